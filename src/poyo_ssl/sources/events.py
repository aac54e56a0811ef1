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

The traces are made by `poyo_ssl.sources.events`; the file says ``real events, simulated fluorescence``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.fft import dct
from scipy.optimize import minimize_scalar
from scipy.signal import lfilter

from poyo_ssl import protocol
from poyo_ssl.config import check
from poyo_ssl.data.hdf5 import check_size
from poyo_ssl.data.recording import Recording, RecordingMetadata
from poyo_ssl.data.series import SparseEvents
from poyo_ssl.data.stimuli import MOVIE_PREFIX, Presentations
from poyo_ssl.errors import RecordingError, suggest
from poyo_ssl.sources.allen_list import CONTAINERS_FILE, read_experiments
from poyo_ssl.sources.base import Source, clean_name
from poyo_ssl.sources.tables import list_npz, load_array, read_metadata_file

OVERSAMPLING = 4
SLOWEST_PERIOD_S = 20.0
DECAY_BOUNDS_S = (0.05, 3.0)
MIN_SPIKES = 10


@dataclass(frozen=True)
class GCaMPConfig:
    """The indicator and its noise.

    Attributes
    ----------
    rise_s : float
        Time constant of the rise in seconds (GCaMP6f in vivo: 0.05 to 0.075).
    decay_s : float
        Time constant of the calcium decay in seconds; fluorescence falls faster by up to the Hill exponent.
    hill : float
        Exponent of the Hill curve; 1 is plain saturation.
    half_events : float
        Calcium, in simultaneous events, at which fluorescence is half of its maximum.
    max_dff : float
        dF/F at saturation, a ratio (1.0 doubles the fluorescence).
    noise_std : float
        Median over neurons of the standard deviation of the noise per imaging frame, in dF/F.
    noise_spread : float
        Standard deviation of the logarithm of the noise level over neurons; 0 gives all the same.

    Raises
    ------
    ConfigError
        If a time constant, exponent or amplitude is not above 0, or a noise setting below 0.
    """

    rise_s: float = 0.06
    decay_s: float = 0.41
    hill: float = 2.27
    half_events: float = 7.0
    max_dff: float = 3.9
    noise_std: float = 0.063
    noise_spread: float = 0.36

    def __post_init__(self) -> None:
        for name in ("rise_s", "decay_s", "hill", "half_events", "max_dff"):
            check(getattr(self, name) > 0, f"indicator.{name} of {getattr(self, name)}", "above 0", "raise it")
        for name in ("noise_std", "noise_spread"):
            check(getattr(self, name) >= 0, f"indicator.{name} of {getattr(self, name)}", "0 or more", "raise it")


def calcium(events: NDArray, rate_hz: float, *, rise_s: float, decay_s: float) -> NDArray[np.float64]:
    """Filter events with the double exponential, averaged over each imaging frame.

    Parameters
    ----------
    events : ndarray
        ``(T, ...)`` event sizes; an event happens when its frame begins.
    rate_hz : float
        Imaging rate.
    rise_s, decay_s : float
        Time constants in seconds.

    Returns
    -------
    ndarray
        ``(T, ...)`` calcium; one event of size 1 peaks at 1 (a little less where a frame averages the peak away).

    Examples
    --------
    >>> import numpy as np
    >>> trace = calcium(np.eye(1, 200)[0], 100.0, rise_s=0.06, decay_s=0.41)
    >>> round(float(trace.max()), 2), int(trace.argmax())  # 0.06 ln(1 + 0.41 / 0.06) = 0.123 s
    (1.0, 12)
    """
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
    """Return noiseless dF/F of events.

    Parameters
    ----------
    events : ndarray
        ``(T, ...)`` event sizes.
    rate_hz : float
        Imaging rate.
    indicator : GCaMPConfig
        Time constants, exponent and saturation.

    Returns
    -------
    ndarray
        ``(T, ...)`` dF/F as a ratio, 0 without events.

    Examples
    --------
    >>> import numpy as np
    >>> burst = np.zeros((60, 2)); burst[10, 0] = 1; burst[10, 1] = 2
    >>> single, double = fluorescence(burst, 30.0, indicator=GCaMPConfig()).max(axis=0)
    >>> bool(double > 3 * single)
    True
    """
    concentration = calcium(events, rate_hz, rise_s=indicator.rise_s, decay_s=indicator.decay_s)
    power = (concentration / indicator.half_events) ** indicator.hill
    return indicator.max_dff * power / (1 + power)


@dataclass(frozen=True)
class DecayFit:
    """Result of `fit_decay`.

    Attributes
    ----------
    decay_s : float
        Median over the segments.
    segment_decay_s : ndarray
        ``(S,)`` seconds, NaN where a segment was not used.
    variance_explained : ndarray
        ``(S,)`` share of the detrended segment's variance, NaN where not used.
    num_used : int
        Segments with enough spikes and finite dF/F.
    """

    decay_s: float
    segment_decay_s: NDArray[np.float64]
    variance_explained: NDArray[np.float64]
    num_used: int


def fit_decay(
    dff: Sequence[NDArray],
    spike_times: Sequence[NDArray],
    rates_hz: Sequence[float],
    *,
    indicator: GCaMPConfig | None = None,
) -> DecayFit:
    """Fit the decay of calcium to segments of dF/F with known spikes.

    For each segment the decay (0.05 to 3 s) and a free gain minimise the squared error between dF/F and the model of
    the spikes; components slower than 20 s are left out of both, so drift and baseline do not matter.

    Parameters
    ----------
    dff : sequence of ndarray
        ``(T_i,)`` dF/F.
    spike_times : sequence of ndarray
        ``(M_i,)`` seconds from each segment's start.
    rates_hz : sequence of float
        Imaging rate of each segment.
    indicator : GCaMPConfig, optional
        Rise, exponent and saturation, which stay as they are.

    Raises
    ------
    RecordingError
        If no segment has 10 spikes and finite dF/F.

    Examples
    --------
    >>> import numpy as np
    >>> spikes = np.random.default_rng(0).uniform(0, 100, 60)
    >>> grid = np.histogram(spikes, np.arange(3001) / 30)[0]
    >>> trace = fluorescence(grid, 30.0, indicator=GCaMPConfig(decay_s=0.5))
    >>> round(fit_decay([trace], [spikes], [30.0]).decay_s, 1)
    0.5
    """
    indicator = indicator or GCaMPConfig()
    decays, explained = np.full(len(dff), np.nan), np.full(len(dff), np.nan)
    for i, (trace, spikes, rate) in enumerate(zip(dff, spike_times, rates_hz, strict=True)):
        if len(spikes) >= MIN_SPIKES and np.isfinite(trace).all():
            decays[i], explained[i] = _fit_segment(np.asarray(trace, float), np.asarray(spikes), rate, indicator)
    if not np.isfinite(decays).any():
        raise RecordingError(
            "no segment to fit the decay to", allowed="finite dF/F and 10 spikes or more", fix="add segments"
        )
    return DecayFit(float(np.nanmedian(decays)), decays, explained, int(np.isfinite(decays).sum()))


def _fit_segment(
    trace: NDArray[np.float64], spikes: NDArray, rate_hz: float, indicator: GCaMPConfig
) -> tuple[float, float]:
    num_frames, fine_rate = len(trace), rate_hz * OVERSAMPLING
    fine = np.histogram(spikes, np.arange(num_frames * OVERSAMPLING + 1) / fine_rate)[0]
    num_slow = int(2 * num_frames / (rate_hz * SLOWEST_PERIOD_S)) + 1
    target = dct(trace, norm="ortho")[num_slow:]

    def error(log_decay: float) -> float:
        settings = GCaMPConfig(
            rise_s=indicator.rise_s,
            decay_s=float(np.exp(log_decay)),
            hill=indicator.hill,
            half_events=indicator.half_events,
        )
        model = fluorescence(fine, fine_rate, indicator=settings).reshape(num_frames, OVERSAMPLING).mean(1)
        model = dct(model, norm="ortho")[num_slow:]
        return 1 - float(target @ model) ** 2 / float((model @ model) * (target @ target))

    found = minimize_scalar(error, bounds=tuple(np.log(DECAY_BOUNDS_S)), method="bounded", options={"xatol": 0.01})
    return float(np.exp(found.x)), 1 - float(found.fun)


def read_cascade(
    folder: Path | str, *, indicator: str = "GCaMP6f", cell_type: str = "exc", preparation: str = "in vivo"
) -> tuple[list[NDArray], list[NDArray], list[float]]:
    """Read ground-truth segments of CASCADE: dF/F, spike times in seconds, and imaging rates.

    Parameters
    ----------
    folder : path
        Holds ``index.csv`` and ``cascade_v1_celltypes_30hz.npz``.
    indicator, cell_type, preparation : str
        Rows of the index to take.

    Raises
    ------
    RecordingError
        If a file is missing or no row fits.
    """
    folder = Path(folder)
    index_path, traces_path = folder / "index.csv", folder / "cascade_v1_celltypes_30hz.npz"
    for path in (index_path, traces_path):
        if not path.is_file():
            raise RecordingError(f"no file {path}", fix="give the folder with the CASCADE segments")
    index = pd.read_csv(index_path)
    wanted = (index.indicator == indicator) & (index.cell_type == cell_type) & (index.preparation == preparation)
    if not wanted.any():
        raise RecordingError(
            f"no {preparation} {indicator} segment of {cell_type} cells in {index_path}", fix="relax it"
        )
    with np.load(traces_path) as file:
        rows = index.trace[wanted].tolist()
        return [file[f"f{i}"] for i in rows], [file[f"e{i}"] for i in rows], index.fps[wanted].tolist()


ORIGIN = "real events, simulated fluorescence"
GRATINGS = "drifting_gratings"
UNITS_PER_BLOCK = 32
MAX_FRAMES_PER_IMAGE = 100
"""So many movie frames within one imaging frame are a mistake."""
REQUIRED, OPTIONAL = ("cell", "frame", "shape", "fps"), ("value", "cell_specimen_id", "masked_frames")
EVENTS_FILE, EPOCHS_FILE, METADATA_FILE = "events.npz", "epochs.csv", "recording.json"


@dataclass(frozen=True)
class EventsConfig:
    """How event files become a recording.

    Attributes
    ----------
    indicator : GCaMPConfig
        Forward model from events to dF/F, and its noise.
    """

    indicator: GCaMPConfig = field(default_factory=GCaMPConfig)


@dataclass(frozen=True)
class EventsSource(Source):
    """Folders of event files.

    Attributes
    ----------
    config : EventsConfig
        Forward model.
    seed : int
        Of the noise; every unit has its own stream, so a unit's trace does not depend on the others.
    """

    name: ClassVar[str] = "events"

    config: EventsConfig = field(default_factory=EventsConfig)
    seed: int = 0

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
        own = [path / name for name in (EVENTS_FILE, EPOCHS_FILE, f"{GRATINGS}.csv", METADATA_FILE)]
        listed = [_containers(path)] if _allen_id(path) and not (path / METADATA_FILE).is_file() else []
        return [item for item in own + listed if item.is_file()]

    def read(self, path: Path) -> Recording:
        """Return the recording of a folder, with simulated dF/F."""
        contents = _read_events(path / EVENTS_FILE)
        num_units, num_frames = contents["shape"]
        timestamps = np.arange(num_frames) / contents["fps"]
        epochs = _read_epochs(path / EPOCHS_FILE, num_frames)
        events: SparseEvents = contents["events"]
        return Recording(
            self.recording_id(path),
            simulate_dff(
                events, num_frames, num_units, contents["fps"], indicator=self.config.indicator, seed=self.seed
            ),
            timestamps,
            RecordingMetadata(**_read_metadata(path)),
            cell_specimen_ids=contents["cell_specimen_id"],
            stimuli=_make_stimuli(path, epochs, timestamps),
            epochs={
                str(name): rows[["start_frame", "end_frame"]].to_numpy(float) / contents["fps"]
                for name, rows in epochs.groupby("stimulus")
            },
            masked_domain=contents["masked_frames"] / contents["fps"],
            events=events,
        )


def prepare_events(
    input: Path | str,
    output: Path | str,
    *,
    config: EventsConfig,
    seed: int,
    overwrite: bool = False,
) -> Path:
    r"""Write one recording, ``<output>/<recording id>.h5``, from a folder of event files.

    For many folders, continued at will, give `EventsSource` to `poyo_ssl.sources.run.convert`.

    Parameters
    ----------
    input : path
        Folder in the format that this module describes.
    output : path
        Data folder; made if it is not there.
    config : EventsConfig
        Forward model.
    seed : int
        Of the noise.
    overwrite : bool
        Replace a recording of this name.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    RecordingError
        If a file, key or column is missing, an event lies outside `shape` or inside a masked span, epochs are not in
        order, or the recording exists.

    Examples
    --------
    >>> import tempfile, pathlib, numpy as np
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> np.savez(folder / "events.npz", cell=[0, 1], frame=[5, 40], shape=[2, 300], fps=30.0)
    >>> _ = (folder / "epochs.csv").write_text("stimulus,start_frame,end_frame\nspontaneous,0,300\n")
    >>> path = prepare_events(folder, folder / "out", config=EventsConfig(), seed=0)
    >>> recording = Recording.open(path)
    >>> recording.dff.shape, recording.metadata.origin
    ((300, 2), 'real events, simulated fluorescence')
    """
    source = EventsSource(config, seed)
    path = Path(output) / f"{source.recording_id(Path(input))}.h5"
    if path.exists() and not overwrite:
        raise RecordingError(f"{path} exists", fix="choose another output or pass --overwrite")
    return source.read(Path(input)).save(path, overwrite=overwrite)


def simulate_dff(
    events: SparseEvents, num_frames: int, num_units: int, rate_hz: float, *, indicator: GCaMPConfig, seed: int
) -> NDArray[np.float32]:
    """Return dF/F of events with additive Gaussian noise, ``(num_frames, num_units)`` float32.

    Parameters
    ----------
    events : SparseEvents
        Frames, units and sizes.
    num_frames, num_units : int
        Size of the recording.
    rate_hz : float
        Imaging rate.
    indicator : GCaMPConfig
        Forward model and noise; each unit's noise level is log-normal around the median `noise_std`, except that of
        unit 0, which is the median (the level was calibrated on cell 0 of Allen experiment 501574836).
    seed : int
        Of the noise levels and the noise.

    Examples
    --------
    >>> import numpy as np
    >>> events = SparseEvents(np.array([10]), np.array([0]), np.array([8.0], np.float32))
    >>> dff = simulate_dff(events, 60, 2, 30.0, indicator=GCaMPConfig(noise_std=0.0), seed=0)
    >>> dff.shape, bool(dff[:10].any()), round(float(dff[:, 0].max()), 1)
    ((60, 2), False, 2.2)
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


def _need(path: Path) -> Path:
    if not path.is_file():
        raise RecordingError(f"no file {path}", fix="give a folder of event files, or add this file to it")
    return path


def _read_events(path: Path) -> dict[str, Any]:
    """Return `events`, `shape` (cells, frames), `fps`, `cell_specimen_id` and `masked_frames`, all checked."""
    names = list_npz(path)
    for key in REQUIRED:
        if key not in names:
            raise RecordingError(f"{path} has no '{key}'", allowed=", ".join(names), fix="add it to the file")
    arrays = {key: load_array(path, key) for key in (*REQUIRED, *OPTIONAL) if key in names}
    shape = arrays["shape"]
    if shape.shape != (2,) or not (np.isfinite(shape).all() and shape.min() >= 1 and (shape % 1 == 0).all()):
        raise RecordingError(f"{path}: shape is {shape.tolist()}", allowed="(cells, frames)", fix="correct it")
    if arrays["fps"].size != 1 or not 0 < float(arrays["fps"].reshape(-1)[0]) < np.inf:
        raise RecordingError(f"{path}: fps is {arrays['fps'].tolist()}", allowed="above 0 Hz", fix="correct it")
    fps = float(arrays["fps"].reshape(-1)[0])
    num_units, num_frames = int(shape[0]), int(shape[1])
    check_size((num_frames, num_units), np.dtype(np.float32), f"{path}: shape")
    for key, limit in (("cell", num_units), ("frame", num_frames)):
        values = arrays[key]
        if values.ndim != 1:
            raise RecordingError(f"{path}: '{key}' has shape {values.shape}", allowed="(events,)", fix="correct it")
        # NaN compares false.
        bad = np.flatnonzero(~((values >= 0) & (values < limit) & (values % 1 == 0)))
        if len(bad):
            raise RecordingError(
                f"{path}: event {bad[0]} has {key} {values[bad[0]]}", allowed=f"0 to {limit - 1}", fix="correct it"
            )
    cell, frame = arrays["cell"].astype(np.int64), arrays["frame"].astype(np.int64)
    value = np.asarray(arrays.get("value", np.ones(len(cell))), np.float32)
    specimens = arrays.get("cell_specimen_id", np.full(num_units, -1))
    if not (np.isfinite(specimens).all() and (specimens % 1 == 0).all()):
        raise RecordingError(f"{path}: cell_specimen_id is not whole everywhere", fix="correct it; -1 is unknown")
    lengths: dict[str, tuple[NDArray, int]] = {
        "frame": (frame, len(cell)),
        "value": (value, len(cell)),
        "cell_specimen_id": (specimens, num_units),
    }
    for key, (given, length) in lengths.items():
        if given.shape != (length,):
            raise RecordingError(f"{path}: '{key}' has shape {given.shape}", allowed=f"({length},)", fix="correct it")
    if not (np.isfinite(value).all() and (value >= 0).all()):
        raise RecordingError(f"{path}: an event size is negative or not finite", allowed="0 or more", fix="correct it")
    masked = _check_masked(path, arrays.get("masked_frames", np.zeros((0, 2))), frame, num_frames)
    # By frame, as files of events are read by time.
    order = np.lexsort((cell, frame))
    return {
        "events": SparseEvents(frame[order], cell[order], value[order]),
        "shape": (num_units, num_frames),
        "fps": fps,
        "cell_specimen_id": specimens.astype(np.int64),
        "masked_frames": masked,
    }


def _check_masked(path: Path, masked: NDArray, frame: NDArray[np.int64], num_frames: int) -> NDArray[np.int64]:
    if not np.isfinite(masked).all():
        raise RecordingError(f"{path}: masked_frames is not finite", allowed="(K, 2) spans", fix="correct it")
    masked = np.asarray(masked, np.int64)
    if masked.ndim != 2 or masked.shape[1] != 2 or (masked[:, 0] >= masked[:, 1]).any() or (masked < 0).any():
        raise RecordingError(f"{path}: masked_frames is {masked.tolist()}", allowed="(K, 2) spans", fix="correct it")
    if len(masked) and masked.max() > num_frames:
        raise RecordingError(
            f"{path}: a masked span ends at {masked.max()}", allowed=f"0 to {num_frames}", fix="cut it"
        )
    inside = sum(int(((frame >= start) & (frame < end)).sum()) for start, end in masked)
    if inside:
        raise RecordingError(
            f"{path}: {inside} events lie inside masked_frames", allowed="none", fix="correct the spans or the events"
        )
    return masked


def _read_table(path: Path, columns: tuple[str, ...], num_frames: int) -> pd.DataFrame:
    """Read a table whose rows span frames in the order of time."""
    try:
        table = pd.read_csv(_need(path))
    except (ValueError, OverflowError) as error:
        raise RecordingError(
            f"{path} is not a table ({' '.join(str(error).split())[:200]})", fix="write it as comma-separated values"
        ) from None
    for column in (*columns, "start_frame", "end_frame"):
        if column not in table:
            raise RecordingError(
                f"{path} has no column '{column}'{suggest(column, map(str, table.columns))}", fix="add it to the table"
            )
    start, end = (pd.to_numeric(table[name], errors="coerce").to_numpy(float) for name in ("start_frame", "end_frame"))
    order = np.r_[True, start[1:] >= end[:-1]]
    whole = (start % 1 == 0) & (end % 1 == 0)
    bad = np.flatnonzero(~((start >= 0) & (start < end) & (end <= num_frames) & order & whole))
    if len(bad):
        row = int(bad[0])
        raise RecordingError(
            f"{path}: row {row} covers frames {start[row]:g} to {end[row]:g}"
            + (f" and begins before row {row - 1} ends" if not order[row] else ""),
            allowed=f"whole frames in the order of time, without overlap, inside 0 to {num_frames}",
            fix="sort or correct the table",
        )
    return table.assign(start_frame=start.astype(np.int64), end_frame=end.astype(np.int64))


def _read_epochs(path: Path, num_frames: int) -> pd.DataFrame:
    epochs = _read_table(path, ("stimulus",), num_frames)
    needed = ["repeats", "frames_per_repeat_imaging", "movie_frames"]
    for name in needed:
        epochs[name] = pd.to_numeric(epochs[name], errors="coerce") if name in epochs else np.nan
    for row, epoch in epochs.iterrows():
        name = str(epoch.stimulus)
        if clean_name(name) != name or pd.isna(epoch.stimulus):
            raise RecordingError(
                f"{path}: row {row} has the stimulus '{name}'", allowed="letters, digits and _", fix="rename it"
            )
        if not name.startswith(MOVIE_PREFIX):
            continue
        repeats, length, movie_frames = values = [float(epoch[key]) for key in needed]
        span = epoch.end_frame - epoch.start_frame
        fits = np.isfinite(values).all() and min(values) > 0 and abs(repeats * length - span) <= 1.0
        if not (fits and repeats % 1 == movie_frames % 1 == 0 and movie_frames <= MAX_FRAMES_PER_IMAGE * length):
            raise RecordingError(
                f"{path}: row {row} ({name}) has {needed} of {values} for {span} imaging frames",
                allowed="positive numbers with repeats x frames_per_repeat_imaging within 1 of the block's length",
                fix="correct the row",
            )
    return epochs


def _make_stimuli(folder: Path, epochs: pd.DataFrame, timestamps: NDArray[np.float64]) -> dict[str, Presentations]:
    stimuli = {}
    for name, blocks in epochs.groupby("stimulus"):
        if str(name).startswith(MOVIE_PREFIX):
            stimuli[str(name)] = movie_presentations(str(name), blocks, timestamps)
    if GRATINGS in set(epochs.stimulus):
        stimuli[GRATINGS] = _read_gratings(folder / f"{GRATINGS}.csv", timestamps)
    return stimuli


def movie_presentations(name: str, blocks: pd.DataFrame, timestamps: NDArray[np.float64]) -> Presentations:
    """Lay the frames of a movie evenly over its blocks.

    Frame k of repeat r of a block begins at imaging frame ``start_frame + (r x movie_frames + k) x
    frames_per_repeat_imaging / movie_frames`` and ends where the next begins. Times keep the fraction; the columns
    `start_frame` and `end_frame` are rounded to the nearest imaging frame.

    Parameters
    ----------
    name : str
        Name of the movie.
    blocks : DataFrame
        Rows of ``epochs.csv`` of this movie, in the order of time.
    timestamps : ndarray
        ``(T,)`` seconds of the imaging frames.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> blocks = pd.DataFrame([dict(start_frame=10, end_frame=20, repeats=2, frames_per_repeat_imaging=5.0,
    ...                             movie_frames=2)])
    >>> shown = movie_presentations("natural_movie_one", blocks, np.arange(30.0))
    >>> shown.start.tolist(), shown.columns["frame"].tolist(), shown.columns["repeat"].tolist()
    ([10.0, 12.5, 15.0, 17.5], [0, 1, 0, 1], [0, 0, 1, 1])
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
    wanted = ("orientation", "temporal_frequency", "blank_sweep")
    table = _read_table(path, wanted, len(timestamps))
    flags = {"label_known": np.ones(len(table)), "blank_sweep": np.zeros(len(table))}
    for name in flags:
        if name in table:
            # A sweep of unknown label may leave out whether it was blank.
            flags[name] = np.nan_to_num(pd.to_numeric(table[name], errors="coerce").to_numpy(float))
        if not np.isin(flags[name], (0, 1)).all():
            raise RecordingError(f"{path}: {name} is not 0 or 1 everywhere", fix="correct the table")
    known = flags["label_known"] == 1
    blank = known & (flags["blank_sweep"] == 1)
    shown = known & ~blank
    columns: dict[str, NDArray] = {"blank_sweep": blank, "label_known": known}
    choices = {
        "orientation": protocol.GRATING_DIRECTIONS_DEG,
        "temporal_frequency": protocol.GRATING_TEMPORAL_FREQUENCIES_HZ,
    }
    for name, allowed in choices.items():
        values = np.where(shown, pd.to_numeric(table[name], errors="coerce").to_numpy(float), np.nan)
        bad = np.flatnonzero(shown & ~np.isin(values, allowed))
        if len(bad):
            raise RecordingError(
                f"{path}: row {bad[0]} has {name} {values[bad[0]]:g}",
                allowed=", ".join(f"{v:g}" for v in allowed),
                fix="correct it or set label_known to 0",
            )
        columns[name] = values
        columns[f"{name}_id"] = np.where(shown, np.searchsorted(allowed, values), -1).astype(np.int64)
    start_frame, end_frame = (table[name].to_numpy(np.int64) for name in ("start_frame", "end_frame"))
    return Presentations.from_frames(GRATINGS, timestamps, start_frame, end_frame, columns)


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
