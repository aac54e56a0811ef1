"""Event files: a folder of spike events and stimulus tables, turned into a recording with simulated dF/F.

The format, so that a laboratory can write its own folder (all frames count from 0, ends are exclusive):

``events.npz`` (numpy, required)
    ``cell`` (M,) and ``frame`` (M,): row and imaging frame of every event; ``shape``: (cells, frames); ``fps``:
    imaging frames per second. Optional: ``value`` (M,) event sizes (1 if absent), ``cell_specimen_id`` (cells,),
    ``masked_frames`` (K, 2): spans that no split, statistic or window may touch (events in them are refused).
``epochs.csv`` (required)
    ``stimulus, start_frame, end_frame, repeats, frames_per_repeat_imaging, movie_frames``, in the order of time. The
    last three are for movies (``natural_movie_*``) only: number of repeats in the block, imaging frames per repeat (may
    be a fraction) and movie frames per repeat. Repeats are counted over all blocks of a movie.
``drifting_gratings.csv`` (required if an epoch is called ``drifting_gratings``)
    ``start_frame, end_frame, orientation`` (degrees), ``temporal_frequency`` (Hz), ``blank_sweep`` (0 or 1),
    ``label_known`` (0 or 1; optional, 1 if absent). Where 0, orientation is NaN and ``blank_sweep`` is False: whether
    the sweep was blank is as unknown as its direction.
``recording.json`` (optional)
    Fields of `RecordingMetadata`, for example ``{"subject_id": "mouse7", "cre_line": "Vip-IRES-Cre"}``. Without it, a
    folder called ``allen_<experiment id>`` is looked up in ``allen_metadata/experiment_containers.json`` beside it
    (the Allen Institute's list of experiment containers); failing that, the subject is called after the folder.

The traces are made by `simulate_dff`; the file says ``real events, simulated fluorescence``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from poyo_ssl.data.hdf5 import check_size
from poyo_ssl.data.recording import Recording, RecordingMetadata
from poyo_ssl.data.series import SparseEvents
from poyo_ssl.data.stimuli import MOVIE_PREFIX, Presentations
from poyo_ssl.errors import RecordingError, check, suggest
from poyo_ssl.sources.allen_list import CONTAINERS_FILE, read_experiments
from poyo_ssl.sources.base import Source, clean_name, first_row, require
from poyo_ssl.sources.coding import GRATINGS, code_feature
from poyo_ssl.sources.tables import is_whole, list_npz, load_array, read_csv, read_metadata_file

if TYPE_CHECKING:
    import pandas as pd

ORIGIN = "real events, simulated fluorescence"
GRATINGS_NAME = "drifting_gratings"
UNITS_PER_BLOCK = 32
MAX_FRAMES_PER_IMAGE = 100  # So many movie frames within one imaging frame are a mistake
REQUIRED, OPTIONAL = ("cell", "frame", "shape", "fps"), ("value", "cell_specimen_id", "masked_frames")
MOVIE_COLUMNS = ("repeats", "frames_per_repeat_imaging", "movie_frames")
EVENTS_FILE, EPOCHS_FILE, METADATA_FILE = "events.npz", "epochs.csv", "recording.json"


@dataclass(frozen=True)
class GCaMPConfig:
    """The indicator and its noise, as fitted to GCaMP6f in vivo."""

    rise_s: float = 0.06  # Time constant of the rise
    decay_s: float = 0.41  # Of calcium; fluorescence falls faster by up to the Hill exponent
    hill: float = 2.27  # Exponent of the Hill curve; 1 is plain saturation
    half_events: float = 7.0  # Calcium, in simultaneous events, at which fluorescence is half of its maximum
    max_dff: float = 3.9  # dF/F at saturation, a ratio (1.0 doubles the fluorescence)
    noise_std: float = 0.063  # Per imaging frame, in dF/F; median over neurons
    noise_spread: float = 0.36  # Standard deviation of the logarithm of the noise level over neurons

    def __post_init__(self) -> None:
        for name in ("rise_s", "decay_s", "hill", "half_events", "max_dff"):
            check(getattr(self, name) > 0, f"indicator.{name} of {getattr(self, name)}", "above 0")
        for name in ("noise_std", "noise_spread"):
            check(getattr(self, name) >= 0, f"indicator.{name} of {getattr(self, name)}", "0 or more")


def calcium(events: NDArray, rate_hz: float, *, rise_s: float, decay_s: float) -> NDArray[np.float64]:
    """Filter event sizes ``(T, ...)`` with the double exponential, averaged over each imaging frame.

    An event happens when its frame begins. One event of size 1 peaks at 1 (a little less where a frame averages the
    peak away).
    """
    from scipy.signal import lfilter

    peak_s = rise_s * np.log1p(decay_s / rise_s)
    peak = (1 - np.exp(-peak_s / rise_s)) * np.exp(-peak_s / decay_s)
    difference = np.zeros(events.shape)
    for tau, sign in ((decay_s, 1.0), (1 / (1 / rise_s + 1 / decay_s), -1.0)):
        step = np.exp(-1 / (rate_hz * tau))
        # The mean of exp(-t / tau) over a frame, so that an event is seen in the frame in which it happens.
        gain = sign * tau * rate_hz * (1 - step) / peak
        difference += lfilter([gain], [1.0, -step], np.asarray(events, np.float64), axis=0)
    return np.maximum(difference, 0.0, out=difference)


def fluorescence(events: NDArray, rate_hz: float, *, indicator: GCaMPConfig) -> NDArray[np.float64]:
    """Return noiseless dF/F of event sizes, both ``(T, ...)``: a ratio, 0 without events."""
    concentration = calcium(events, rate_hz, rise_s=indicator.rise_s, decay_s=indicator.decay_s)
    power = (concentration / indicator.half_events) ** indicator.hill
    return indicator.max_dff * power / (1 + power)


def simulate_dff(
    events: SparseEvents, num_frames: int, num_units: int, rate_hz: float, *, indicator: GCaMPConfig, seed: int
) -> NDArray[np.float32]:
    """Return dF/F of events with additive Gaussian noise, ``(num_frames, num_units)``.

    Each unit's noise level is log-normal around the median `noise_std`, except that of unit 0, which is the median (the
    level was calibrated on cell 0 of Allen experiment 501574836).
    """
    order = np.argsort(events.unit, kind="stable")
    frame, unit, value = events.frame[order], events.unit[order], events.value[order]
    level_stream, *unit_streams = np.random.default_rng(seed).spawn(num_units + 1)
    spread = indicator.noise_spread * level_stream.standard_normal(num_units)
    # The median was calibrated on a unit 0, which therefore gets it whatever the seed.
    spread[0] = 0.0
    level = indicator.noise_std * np.exp(spread)
    dff = np.empty((num_frames, num_units), np.float32)
    for first in range(0, num_units, UNITS_PER_BLOCK):
        units = np.arange(first, min(first + UNITS_PER_BLOCK, num_units))
        mine = slice(*np.searchsorted(unit, [units[0], units[-1] + 1]))
        grid = SparseEvents(frame[mine], unit[mine] - first, value[mine]).dense(num_frames, len(units))
        noise = np.stack([unit_streams[u].standard_normal(num_frames) for u in units], axis=1)
        dff[:, units] = fluorescence(grid, rate_hz, indicator=indicator) + level[units] * noise
    return dff


@dataclass(frozen=True)
class EventsSource(Source):
    r"""Folders of event files.

    Attributes
    ----------
    indicator : GCaMPConfig
        Forward model from events to dF/F, and its noise.
    seed : int
        Seed of the noise. Every unit has its own stream, so a unit's trace does not depend on the others.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp()) / "mouse7"
    >>> folder.mkdir()
    >>> np.savez(folder / "events.npz", cell=[0, 1], frame=[5, 40], shape=[2, 300], fps=30.0)
    >>> _ = (folder / "epochs.csv").write_text("stimulus,start_frame,end_frame\nspontaneous,0,300\n")
    >>> recording = EventsSource(seed=0).read(folder)
    >>> recording.dff.shape, recording.metadata.origin
    ((300, 2), 'real events, simulated fluorescence')
    """

    name: ClassVar[str] = "events"

    indicator: GCaMPConfig = field(default_factory=GCaMPConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        check(self.seed >= 0, f"seed of {self.seed}", "0 or more")

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Tell whether `path` is a folder with events and epochs."""
        return (path / EVENTS_FILE).is_file() and (path / EPOCHS_FILE).is_file()

    def find(self, input: Path) -> list[Path]:
        """Return the folder, or the folders in it that hold event files."""
        if (input / EVENTS_FILE).is_file():
            return [input]
        found = sorted(item.parent for item in input.glob(f"*/{EVENTS_FILE}"))
        if not found:
            raise RecordingError(
                f"no {EVENTS_FILE} in {input} or its folders", fix="give a folder of event files, or of such folders"
            )
        return found

    def recording_id(self, path: Path) -> str:
        """Return the folder's name, or the experiment id of ``allen_<id>``."""
        return clean_name(path.name.removeprefix("allen_") if _allen_id(path) else path.absolute().name)

    def files(self, path: Path) -> list[Path]:
        """Return what is read of a folder, and the Allen's list if its metadata come from there."""
        own = [path / name for name in (EVENTS_FILE, EPOCHS_FILE, f"{GRATINGS_NAME}.csv", METADATA_FILE)]
        listed = [_containers(path)] if _allen_id(path) and not (path / METADATA_FILE).is_file() else []
        return [item for item in own + listed if item.is_file()]

    def read(self, path: Path) -> Recording:
        """Return the recording of a folder, with simulated dF/F."""
        file = _read_events(path / EVENTS_FILE)
        epochs = _read_epochs(path / EPOCHS_FILE, file.num_frames)
        timestamps = np.arange(file.num_frames) / file.fps
        stimuli, spans = {}, {}
        for name, blocks in epochs.groupby("stimulus"):
            spans[str(name)] = blocks[["start_frame", "end_frame"]].to_numpy(float) / file.fps
            if str(name).startswith(MOVIE_PREFIX):
                stimuli[str(name)] = movie_presentations(str(name), blocks, timestamps)
        if GRATINGS_NAME in spans:
            stimuli[GRATINGS_NAME] = _read_gratings(path / f"{GRATINGS_NAME}.csv", timestamps)
        return Recording(
            self.recording_id(path),
            simulate_dff(
                file.events, file.num_frames, file.num_units, file.fps, indicator=self.indicator, seed=self.seed
            ),
            timestamps,
            RecordingMetadata(**_read_metadata(path)),
            cell_specimen_ids=file.cell_specimen_ids,
            stimuli=stimuli,
            epochs=spans,
            masked_domain=file.masked_frames / file.fps,
            events=file.events,
        )


@dataclass(frozen=True)
class _EventFile:
    num_units: int
    num_frames: int
    fps: float
    events: SparseEvents
    cell_specimen_ids: NDArray[np.int64]  # (units,)
    masked_frames: NDArray[np.int64]  # (K, 2)


def _read_events(path: Path) -> _EventFile:
    names = list_npz(path)
    for key in REQUIRED:
        require(key in names, f"{path} has no '{key}'", ", ".join(names), "add it to the file")
    arrays = {key: load_array(path, key) for key in (*REQUIRED, *OPTIONAL) if key in names}
    shape, rate = arrays["shape"], arrays["fps"].reshape(-1)
    sized = shape.shape == (2,) and is_whole(shape) and shape.min() >= 1
    require(sized, f"{path}: shape is {shape.tolist()}", "whole numbers (cells, frames)")
    require(len(rate) == 1 and 0 < rate[0] < np.inf, f"{path}: fps is {arrays['fps'].tolist()}", "above 0 Hz")
    num_units, num_frames = int(shape[0]), int(shape[1])
    check_size((num_frames, num_units), np.dtype(np.float32), f"{path}: shape")
    num_events = arrays["cell"].size
    arrays.setdefault("value", np.ones(num_events))
    arrays.setdefault("cell_specimen_id", np.full(num_units, -1))
    lengths = {"cell": num_events, "frame": num_events, "value": num_events, "cell_specimen_id": num_units}
    for key, length in lengths.items():
        require(arrays[key].shape == (length,), f"{path}: '{key}' has shape {arrays[key].shape}", f"({length},)")
    for key, limit in (("cell", num_units), ("frame", num_frames)):
        values = arrays[key]
        # NaN compares false.
        if (bad := first_row(~((values >= 0) & (values < limit) & (values % 1 == 0)))) is not None:
            raise RecordingError(f"{path}: event {bad} has {key} {values[bad]}", allowed=f"0 to {limit - 1}")
    cell, frame = arrays["cell"].astype(np.int64), arrays["frame"].astype(np.int64)
    value, specimens = np.asarray(arrays["value"], np.float32), arrays["cell_specimen_id"]
    require(is_whole(specimens), f"{path}: cell_specimen_id is not whole everywhere", "whole numbers; -1 is unknown")
    positive = np.isfinite(value).all() and (value >= 0).all()
    require(positive, f"{path}: an event size is negative or not finite", "0 or more")
    masked = arrays.get("masked_frames", np.zeros((0, 2)))
    require(np.isfinite(masked).all(), f"{path}: masked_frames is not finite", "(K, 2) spans")
    masked = masked.astype(np.int64)
    spans = masked.ndim == 2 and masked.shape[1] == 2 and (masked[:, 0] < masked[:, 1]).all() and (masked >= 0).all()
    require(spans, f"{path}: masked_frames is {masked.tolist()}", "(K, 2) spans")
    last = masked.max(initial=0)
    require(last <= num_frames, f"{path}: a masked span ends at {last}", f"0 to {num_frames}")
    inside = sum(int(((frame >= start) & (frame < end)).sum()) for start, end in masked)
    fix = "correct the spans or the events"
    require(not inside, f"{path}: {inside} events lie inside masked_frames", "none", fix)
    # By frame, as files of events are read by time.
    order = np.lexsort((cell, frame))
    events = SparseEvents(frame[order], cell[order], value[order])
    return _EventFile(num_units, num_frames, float(rate[0]), events, specimens.astype(np.int64), masked)


def _read_table(path: Path, columns: tuple[str, ...], num_frames: int) -> pd.DataFrame:
    """Read a table whose rows span frames in the order of time."""
    import pandas as pd

    require(path.is_file(), f"no file {path}", fix="give a folder of event files, or add this file to it")
    table = read_csv(path)
    for column in (*columns, "start_frame", "end_frame"):
        near = suggest(column, map(str, table.columns))
        require(column in table, f"{path} has no column '{column}'{near}", fix="add it to the table")
    start, end = (pd.to_numeric(table[name], errors="coerce").to_numpy(float) for name in ("start_frame", "end_frame"))
    order = np.r_[True, start[1:] >= end[:-1]]
    whole = (start % 1 == 0) & (end % 1 == 0)
    if (row := first_row(~((start >= 0) & (start < end) & (end <= num_frames) & order & whole))) is not None:
        early = "" if order[row] else f" and begins before row {row - 1} ends"
        problem = f"{path}: row {row} covers frames {start[row]:g} to {end[row]:g}{early}"
        allowed = f"whole frames in the order of time, without overlap, inside 0 to {num_frames}"
        raise RecordingError(problem, allowed=allowed)
    return table.assign(start_frame=start.astype(np.int64), end_frame=end.astype(np.int64))


def _read_epochs(path: Path, num_frames: int) -> pd.DataFrame:
    import pandas as pd

    epochs = _read_table(path, ("stimulus",), num_frames)
    for key in MOVIE_COLUMNS:
        epochs[key] = pd.to_numeric(epochs[key], errors="coerce") if key in epochs else np.nan
    for row, epoch in epochs.iterrows():
        name = str(epoch.stimulus)
        named = clean_name(name) == name and not pd.isna(epoch.stimulus)
        require(named, f"{path}: row {row} has the stimulus '{name}'", "letters, digits and _")
        if not name.startswith(MOVIE_PREFIX):
            continue
        repeats, length, movie_frames = values = [float(epoch[key]) for key in MOVIE_COLUMNS]
        span = epoch.end_frame - epoch.start_frame
        fits = np.isfinite(values).all() and min(values) > 0 and abs(repeats * length - span) <= 1.0
        require(
            fits and repeats % 1 == movie_frames % 1 == 0 and movie_frames <= MAX_FRAMES_PER_IMAGE * length,
            f"{path}: row {row} ({name}) has {list(MOVIE_COLUMNS)} of {values} for {span} imaging frames",
            "positive numbers with repeats x frames_per_repeat_imaging within 1 of the block's length",
        )
    return epochs


def movie_presentations(name: str, blocks: pd.DataFrame, timestamps: NDArray[np.float64]) -> Presentations:
    """Lay the frames of a movie evenly over its blocks (rows of ``epochs.csv``, in the order of time).

    Frame k of repeat r of a block begins at imaging frame ``start_frame + (r x movie_frames + k) x
    frames_per_repeat_imaging / movie_frames`` and ends where the next begins. Times keep the fraction; the columns
    `start_frame` and `end_frame` are rounded to the nearest imaging frame.
    """
    edges, frames, repeats, first_repeat = [], [], [], 0
    for block in blocks.to_dict("records"):
        num_repeats, num_movie = int(block["repeats"]), int(block["movie_frames"])
        index = np.arange(num_repeats * num_movie + 1)
        position = block["start_frame"] + index * (block["frames_per_repeat_imaging"] / num_movie)
        edges.append(np.stack([position[:-1], position[1:]]))
        frames.append(index[:-1] % num_movie)
        repeats.append(first_repeat + index[:-1] // num_movie)
        first_repeat += num_repeats
    # A block may end with the recording: the clock goes on for the fraction of a frame that is missing.
    positions = np.concatenate(edges, axis=1)
    clock = np.append(timestamps, 2 * timestamps[-1] - timestamps[-2])
    start, end = np.interp(positions, np.arange(len(clock)), clock)
    start_frame, end_frame = np.minimum(np.rint(positions).astype(np.int64), len(timestamps))
    columns = {"frame": np.concatenate(frames), "repeat": np.concatenate(repeats)}
    return Presentations(name, start, end, start_frame, end_frame, columns)


def _read_gratings(path: Path, timestamps: NDArray[np.float64]) -> Presentations:
    import pandas as pd

    table = _read_table(path, ("orientation", "temporal_frequency", "blank_sweep"), len(timestamps))
    flags = {"label_known": np.ones(len(table)), "blank_sweep": np.zeros(len(table))}
    for name in flags:
        if name in table:
            # A sweep of unknown label may leave out whether it was blank.
            flags[name] = np.nan_to_num(pd.to_numeric(table[name], errors="coerce").to_numpy(float))
        require(np.isin(flags[name], (0, 1)).all(), f"{path}: {name} is not 0 or 1 everywhere", "0, 1 or empty")
    known = flags["label_known"] == 1
    blank = known & (flags["blank_sweep"] == 1)
    shown = known & ~blank
    columns: dict[str, NDArray] = {"blank_sweep": blank, "label_known": known}
    for name, levels in GRATINGS[GRATINGS_NAME].items():
        values = pd.to_numeric(table[name], errors="coerce").to_numpy(float)
        if (row := first_row(shown & ~np.isin(values, levels))) is not None:
            problem, allowed = f"{path}: row {row} has {name} {values[row]:g}", ", ".join(f"{one:g}" for one in levels)
            raise RecordingError(problem, allowed=allowed, fix="correct it or set label_known to 0")
        columns |= code_feature(name, values, shown, levels)
    start_frame, end_frame = (table[name].to_numpy(np.int64) for name in ("start_frame", "end_frame"))
    return Presentations.from_frames(GRATINGS_NAME, timestamps, start_frame, end_frame, columns)


def _allen_id(folder: Path) -> int | None:
    digits = folder.name.removeprefix("allen_")
    return int(digits) if folder.name.startswith("allen_") and digits.isdecimal() else None


def _containers(folder: Path) -> Path:
    return folder.parent / "allen_metadata" / CONTAINERS_FILE


def _read_metadata(folder: Path) -> dict[str, Any]:
    defaults = {"subject_id": folder.name, "origin": ORIGIN, "description": f"event files of {folder.name}"}
    given, containers = folder / METADATA_FILE, _containers(folder)
    if given.is_file():
        # Whatever the file says of its events, the fluorescence is simulated.
        return defaults | read_metadata_file(given) | {"origin": ORIGIN}
    experiment_id = _allen_id(folder)
    if experiment_id is not None and containers.is_file():
        known = [one for one in read_experiments(containers) if one.experiment_id == experiment_id]
        return defaults | (known[0].metadata() if known else {})
    return defaults
