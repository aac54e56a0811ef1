"""A recording: dF/F, exact timestamps, units, stimuli and the animal, from arrays or lazily from a file.

On disk it is brainsets HDF5 (the layout that ``brainsets prepare allen_visual_coding_ophys_2016`` writes), with
what that layout lacks beside it, in groups that its tools read as well: `imaging_clock` (exact timestamps),
`masked_domain`, blank sweeps, start and end frames, cell specimen ids, events, and the truth of simulations.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from poyo_ssl.data.hdf5 import map_dataset
from poyo_ssl.data.series import PupilTrace, RoiMasks, SparseEvents, TimeSeries
from poyo_ssl.data.stimuli import Presentations
from poyo_ssl.errors import RecordingError, suggest
from poyo_ssl.files import written_whole
from poyo_ssl.protocol import CRE_LINES


@dataclass(frozen=True)
class RecordingMetadata:
    """Who was recorded, where and how.

    Attributes
    ----------
    subject_id : str
        The animal; subject splits go by it. (The brainsets layout keeps the container id under this name;
        ours is stored beside it as ``animal_id``.)
    container_id : str
        Groups recordings of one field of view.
    cre_line : str
        Allen spelling of the driver line, or ``unknown``.
    reporter_line, indicator, sex, species, session_type, targeted_structure, recording_date : str
        As the source gives them; empty when not known.
    age_days : float, optional
        Age of the animal.
    depth_um : int, optional
        Imaging depth in micrometres.
    device_id : str
        Microscope.
    description : str
        Free text.
    origin : str
        Where the numbers come from, for example ``real events, simulated fluorescence``.
    """

    subject_id: str
    container_id: str = ""
    cre_line: str = "unknown"
    reporter_line: str = ""
    indicator: str = ""
    sex: str = ""
    age_days: float | None = None
    species: str = "MUS_MUSCULUS"
    session_type: str = ""
    targeted_structure: str = ""
    depth_um: int | None = None
    recording_date: str = ""
    device_id: str = "two_photon"
    description: str = ""
    origin: str = ""


def _no_intervals() -> NDArray[np.float64]:
    return np.zeros((0, 2))


@dataclass(frozen=True)
class Recording:
    """One imaging session.

    Attributes
    ----------
    recording_id : str
        Identity of the session; the file's stem.
    dff : array
        ``(T, N)`` float32 dF/F, dimensionless: an array, a memory map or an h5py dataset.
    timestamps : ndarray
        ``(T,)`` seconds, increasing.
    metadata : RecordingMetadata
        Animal, line, place.
    unit_ids : ndarray
        ``(N,)`` text, one ROI of this session each; made from the row number if not given.
    cell_specimen_ids : ndarray
        ``(N,)`` identity of the cell across sessions, -1 unknown.
    stimuli : dict
        Stimulus tables by name.
    epochs : dict
        ``(K, 2)`` seconds for each stimulus name, ``spontaneous`` included.
    masked_domain : ndarray
        ``(K, 2)`` seconds that no split, statistic or window may touch.
    running : TimeSeries, optional
        Running speed in cm/s.
    pupil : PupilTrace, optional
        Gaze and pupil size.
    motion : TimeSeries, optional
        ``(T, 2)`` shift of the imaging plane in pixels, x and y, as the motion correction found it.
    roi_masks : RoiMasks, optional
        Pixels of the units.
    events : SparseEvents, optional
        Events that the dF/F was made from or that were inferred from it.
    split_domains : dict
        ``(K, 2)`` seconds for ``train``, ``valid`` and ``test``, for readers of the brainsets ecosystem.
    truth : mapping
        What a simulation knows: arrays by name, read from the file when asked for.
    warnings : tuple of str
        What the source of the recording repaired, left out or found suspicious, one line each.
    path : Path, optional
        The file behind the recording.

    Raises
    ------
    RecordingError
        If shapes disagree, or timestamps are not finite and increasing.

    Examples
    --------
    A recording from arrays, written and read back:

    >>> import tempfile, numpy as np
    >>> made = Recording("demo", np.zeros((60, 3), np.float32), np.arange(60) / 30, RecordingMetadata("mouse1"))
    >>> path = made.save(tempfile.mkdtemp() + "/demo.h5")
    >>> again = Recording.open(path)
    >>> again.num_units, round(again.rate_hz, 2), again.metadata.subject_id
    (3, 30.0, 'mouse1')
    """

    recording_id: str
    dff: Any
    timestamps: NDArray[np.float64]
    metadata: RecordingMetadata
    unit_ids: NDArray[np.str_] = None  # type: ignore[assignment]
    cell_specimen_ids: NDArray[np.int64] = None  # type: ignore[assignment]
    stimuli: Mapping[str, Presentations] = field(default_factory=dict)
    epochs: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    masked_domain: NDArray[np.float64] = field(default_factory=_no_intervals)
    running: TimeSeries | None = None
    pupil: PupilTrace | None = None
    motion: TimeSeries | None = None
    roi_masks: RoiMasks | None = None
    events: SparseEvents | None = None
    split_domains: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    truth: Mapping[str, NDArray] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    path: Path | None = None

    def __post_init__(self) -> None:
        if self.dff.ndim != 2:
            self._refuse(f"dF/F has shape {self.dff.shape}", "(time, units)", "reshape it")
        num_units = self.dff.shape[1]
        if self.unit_ids is None:
            ids = np.array([f"roi_{i:04d}" for i in range(num_units)], dtype=np.str_)
            object.__setattr__(self, "unit_ids", ids)
        if self.cell_specimen_ids is None:
            object.__setattr__(self, "cell_specimen_ids", np.full(num_units, -1, np.int64))
        object.__setattr__(self, "timestamps", np.asarray(self.timestamps, np.float64))
        if self.timestamps.shape != (self.dff.shape[0],):
            self._refuse(
                f"{self.timestamps.shape[0]} timestamps for dF/F of shape {tuple(self.dff.shape)}",
                f"{self.dff.shape[0]} timestamps",
                "give dF/F as (time, units), one timestamp per row",
            )
        if len(self.timestamps) < 2:
            self._refuse(f"{len(self.timestamps)} imaging frames", "2 or more", "check the source")
        steps = np.diff(self.timestamps)
        bad = np.flatnonzero(~(steps > 0))
        if len(bad):
            self._refuse(f"timestamps do not increase at frame {int(bad[0]) + 1}", None, "sort or repair them")
        for name, values in {"unit_ids": self.unit_ids, "cell_specimen_ids": self.cell_specimen_ids}.items():
            if values.shape != (num_units,):
                self._refuse(f"{len(values)} {name} for {num_units} units", f"{num_units}", "give one per unit")
        if len(np.unique(self.unit_ids)) != num_units:
            self._refuse("unit ids are not unique", "one id per unit", "rename the units")
        if self.roi_masks is not None and len(self.roi_masks.unit) and self.roi_masks.unit.max() >= num_units:
            self._refuse(
                f"a mask of unit {self.roi_masks.unit.max()}", f"units 0 to {num_units - 1}", "give one mask per unit"
            )
        for table in self.stimuli.values():
            if len(table) and table.end_frame.max() > self.num_frames:
                self._refuse(
                    f"{table.name} ends at imaging frame {table.end_frame.max()}",
                    f"0 to {self.num_frames}",
                    "check that table and traces belong together",
                )

    def _refuse(self, problem: str, allowed: str | None, fix: str) -> None:
        raise RecordingError(f"recording {self.recording_id}: {problem}", allowed=allowed, fix=fix)

    @property
    def num_frames(self) -> int:
        """Number of imaging frames, T."""
        return int(self.dff.shape[0])

    @property
    def num_units(self) -> int:
        """Number of units, N."""
        return int(self.dff.shape[1])

    @property
    def rate_hz(self) -> float:
        """Imaging rate in Hz: the inverse of the median step between timestamps."""
        return float(1 / np.median(np.diff(self.timestamps)))

    @property
    def duration_s(self) -> float:
        """Length in seconds, the last frame included."""
        return float(self.timestamps[-1] - self.timestamps[0] + 1 / self.rate_hz)

    @property
    def data_folder(self) -> Path | None:
        """Folder of the file, where the movies' pixels lie too."""
        return self.path.parent if self.path else None

    def stimulus(self, name: str) -> Presentations:
        """Return one stimulus table.

        Raises
        ------
        RecordingError
            If the recording has no such stimulus; it names those that it has.
        """
        if name not in self.stimuli:
            self._refuse(
                f"no stimulus '{name}'{suggest(name, self.stimuli)}",
                ", ".join(sorted(self.stimuli)) or "the recording has none",
                "ask for one of these or take another recording",
            )
        return self.stimuli[name]

    def read_dff(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return dF/F of imaging frames ``[start, stop)``, ``(stop - start, N)`` float32."""
        return np.asarray(self.dff[start:stop], np.float32)

    def with_units(self, rows: NDArray[np.int64], *, dff: Any = None) -> Recording:
        """Return the recording of some units only; a simulation's truth, which is of all, is left behind.

        Parameters
        ----------
        rows : ndarray
            Increasing indices of the units to keep.
        dff : array, optional
            ``(T, len(rows))`` traces of these units; by default they are read into memory.
        """
        events, masks = self.events, self.roi_masks
        if events is not None:
            mine = np.isin(events.unit, rows)
            events = SparseEvents(events.frame[mine], np.searchsorted(rows, events.unit[mine]), events.value[mine])
        if masks is not None:
            mine = np.isin(masks.unit, rows)
            unit = np.searchsorted(rows, masks.unit[mine]).astype(masks.unit.dtype)
            masks = RoiMasks(unit, masks.row[mine], masks.column[mine], masks.image_shape)
        return replace(
            self,
            dff=self.read_dff(0, self.num_frames)[:, rows] if dff is None else dff,
            unit_ids=self.unit_ids[rows],
            cell_specimen_ids=self.cell_specimen_ids[rows],
            events=events,
            roi_masks=masks,
            truth={},
            path=None,
        )

    def save(self, path: Path | str, *, overwrite: bool = False) -> Path:
        """Write the recording as brainsets HDF5; open the path that it returns to work from the file.

        Parameters
        ----------
        path : path
            File to write, ``<recording_id>.h5`` by convention.
        overwrite : bool
            Replace a file that is there.

        Raises
        ------
        RecordingError
            If the file is there and `overwrite` is False.
        """
        path = Path(path)
        if path.exists() and not overwrite:
            raise RecordingError(f"{path} exists", fix="choose another name or pass --overwrite")
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without modification times the same recording gives the same bytes.
        with written_whole(path) as beside, h5py.File(beside, "w", track_order=False) as file:
            _write(file, self)
        return path

    @classmethod
    def open(cls, path: Path | str) -> Recording:
        """Open a brainsets HDF5 file; dF/F stays on disk (memory-mapped where it is contiguous).

        Raises
        ------
        RecordingError
            If the file is missing, damaged, or not a calcium recording of this layout.
        """
        path = Path(path)
        if not path.is_file():
            raise RecordingError(f"no recording file {path}", fix="check the path or run 'poyo-ssl prepare' first")
        try:
            with h5py.File(path, "r") as file:
                return _read(file, path)
        except OSError as error:
            raise RecordingError(
                f"{path} is not a complete HDF5 file ({error})", fix="copy or prepare it again"
            ) from None
        except (KeyError, TypeError, ValueError) as error:
            # What h5py and the readers say of groups, fields or attributes that are missing or of another kind.
            raise RecordingError(f"{path} is not in the brainsets layout ({error})", fix="prepare it again") from None

    def checksum(self) -> str:
        """Return the SHA-256 of the file, or of dF/F and timestamps for a recording in memory."""
        if self.path:
            facts = self.path.stat()
            return _file_checksum(self.path.resolve(), facts.st_size, facts.st_mtime_ns)
        digest = hashlib.sha256()
        for start in range(0, self.num_frames, 4096):
            digest.update(self.read_dff(start, start + 4096).tobytes())
        digest.update(self.timestamps.tobytes())
        return digest.hexdigest()


@functools.lru_cache(maxsize=4096)
def _file_checksum(path: Path, size: int, modified_ns: int) -> str:
    del size, modified_ns  # parts of the cache's key: a file that was replaced is read again
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def open_recordings(folder: Path | str) -> list[Recording]:
    """Open every recording (``*.h5``) of a data folder, sorted by id.

    Raises
    ------
    RecordingError
        If the folder is missing or holds no recording.
    """
    folder = Path(folder)
    if folder.is_file():
        return [Recording.open(folder)]
    paths = sorted(folder.glob("*.h5")) if folder.is_dir() else []
    if not paths:
        raise RecordingError(f"no recordings (*.h5) in {folder}", fix="run 'poyo-ssl prepare' first or check the path")
    return [Recording.open(path) for path in paths]


METADATA_FIELDS = tuple(f.name for f in fields(RecordingMetadata))


class FileTruth(Mapping[str, NDArray]):
    """Arrays by name that stay in the file until they are asked for; an hour's true rates take some 15 MB.

    It holds the path and no open file, so that recordings can be sent to other processes.
    """

    def __init__(self, path: Path, names: list[str]) -> None:
        self._path = Path(path)
        self._names = tuple(names)

    def __getitem__(self, name: str) -> NDArray:
        if name not in self._names:
            raise KeyError(name)
        try:
            with h5py.File(self._path, "r") as file:
                values = file["truth"][name][()]
        except (OSError, KeyError) as error:
            raise RecordingError(
                f"{self._path}: its truth '{name}' can no longer be read ({error})", fix="open the recording again"
            ) from None
        return np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"FileTruth({str(self._path)!r}, {list(self._names)})"


# The layout.

BRAINSET_ID = "allen_visual_coding_ophys_2016"
BLANKS_SUFFIX = "_blank_sweeps"
LONGEST_S = 2_592_000.0
"""Thirty days: the layout has an index of one entry per second, which a damaged clock would make without end."""

SCENES = "natural_scenes"
"""The layout counts its images from 1 and has 0 for a blank; in memory they count from 0 and a blank is -1."""

# Where each metadata field lives; the layout's own names first, ours beside them.
METADATA_PLACES = {
    "subject_id": ("subject", "animal_id"),
    "container_id": ("subject", "id"),
    "cre_line": ("subject", "cre_line_allen"),
    "reporter_line": ("subject", "reporter_line"),
    "indicator": ("subject", "indicator"),
    "sex": ("subject", "sex"),
    "age_days": ("subject", "age"),
    "species": ("subject", "species"),
    "session_type": ("session", "session_type"),
    "recording_date": ("session", "recording_date"),
    "device_id": ("device", "id"),
    "depth_um": ("device", "imaging_depth"),
    "targeted_structure": ("device", "target_area"),
    "description": ("brainset", "description"),
    "origin": ("brainset", "source"),
}


def _group(parent: h5py.Group, name: str, kind: str) -> h5py.Group:
    group = parent.create_group(name)
    group.attrs["object"] = kind
    if kind == "Data":
        group.attrs["absolute_start"] = 0.0
    return group


def _write_fields(group: h5py.Group, columns: dict[str, NDArray]) -> None:
    """Write named arrays; text becomes fixed-length bytes, listed in ``_unicode_keys``."""
    unicode_keys = sorted(key for key, values in columns.items() if values.dtype.kind == "U")
    for key, values in sorted(columns.items()):
        if values.dtype.kind == "U":
            values = np.char.encode(values, "utf-8")
            values = values.astype("S1") if values.size == 0 else values
        group.create_dataset(key, data=values)
    group.attrs["_unicode_keys"] = np.array(unicode_keys, dtype="S")


def _write_interval(parent: h5py.Group, name: str, start: NDArray, end: NDArray, **columns: NDArray) -> None:
    group = _group(parent, name, "Interval")
    _write_fields(group, {"start": np.asarray(start, float), "end": np.asarray(end, float), **columns})
    timekeys = ["start", "end"] + (["timestamps"] if "timestamps" in columns else [])
    group.attrs["timekeys"] = np.array(timekeys, dtype="S")


def _write_irregular(parent: h5py.Group, name: str, timestamps: NDArray, **columns: NDArray) -> None:
    timestamps = np.asarray(timestamps, float)
    if not timestamps[-1] - timestamps[0] <= LONGEST_S:
        raise RecordingError(
            f"{name}: timestamps run from {timestamps[0]:g} to {timestamps[-1]:g} s",
            allowed=f"{LONGEST_S:g} s",
            fix="repair the clock",
        )
    group = _group(parent, name, "IrregularTimeSeries")
    _write_fields(group, {"timestamps": timestamps, **columns})
    group.attrs["timekeys"] = np.array(["timestamps"], dtype="S")
    _write_interval(group, "domain", timestamps[:1], timestamps[-1:])
    seconds = np.arange(timestamps[0], timestamps[-1] + 1.0, 1.0)
    group.create_dataset("timestamp_indices_1s", data=np.searchsorted(timestamps, seconds))


def _write(file: h5py.File, recording: Recording) -> None:
    # In alphabetical order, so that a recording gives the same bytes whatever order its dicts were filled in.
    file.attrs["object"] = "Data"
    file.attrs["absolute_start"] = 0.0
    _write_metadata(file, recording)
    _write_traces(file, recording)
    for name, table in sorted(recording.stimuli.items()):
        _write_stimulus(file, name, table)
    for name, intervals in sorted(recording.epochs.items()):
        _write_interval(file, f"{name}_domain", intervals[:, 0], intervals[:, 1])
    for name, intervals in sorted(recording.split_domains.items()):
        _write_interval(file, f"{name}_domain", intervals[:, 0], intervals[:, 1])
    _write_interval(file, "masked_domain", recording.masked_domain[:, 0], recording.masked_domain[:, 1])
    _write_behaviour(file, recording)
    if recording.events is not None:
        events = {name: getattr(recording.events, name) for name in ("frame", "unit", "value")}
        _write_fields(_group(file, "events", "ArrayDict"), events)
    if recording.warnings:
        _write_fields(_group(file, "notes", "ArrayDict"), {"warnings": np.array(recording.warnings, dtype=np.str_)})
    if recording.truth:
        truth = _group(file, "truth", "Data")
        for name, values in sorted(recording.truth.items()):
            truth.create_dataset(name, data=np.char.encode(values, "utf-8") if values.dtype.kind == "U" else values)


def _write_behaviour(file: h5py.File, recording: Recording) -> None:
    if recording.running is not None:
        speed = np.asarray(recording.running.values, np.float32)[:, None]
        _write_irregular(file, "running", recording.running.timestamps, running_speed=speed)
    if recording.pupil is not None:
        pupil = {name: np.asarray(getattr(recording.pupil, name), np.float32) for name in ("location", "size")}
        _write_irregular(file, "pupil", recording.pupil.timestamps, **pupil)
    if recording.motion is not None:
        shift = np.asarray(recording.motion.values, np.float32)
        _write_irregular(file, "motion", recording.motion.timestamps, xy_px=shift)


def _write_rois(file: h5py.File, recording: Recording) -> None:
    rois = {"id": recording.unit_ids, "cell_specimen_id": np.asarray(recording.cell_specimen_ids, np.int64)}
    if recording.roi_masks is None:
        rois["imaging_plane_xy"] = np.full((recording.num_units, 2), np.nan)
    else:
        masks = recording.roi_masks
        rois |= masks.geometry(recording.num_units)
        # Masks differ in length: all pixels in one array, beside the table that has one row per unit.
        group = _group(file, "roi_masks", "ArrayDict")
        group.attrs["image_shape"] = np.array(masks.image_shape)
        _write_fields(group, {name: getattr(masks, name) for name in ("unit", "row", "column")})
    _write_fields(_group(file, "rois", "ArrayDict"), rois)


def _write_metadata(file: h5py.File, recording: Recording) -> None:
    groups = {name: _group(file, name, "Data") for name in ("brainset", "subject", "session", "device")}
    groups["brainset"].attrs["id"] = BRAINSET_ID
    groups["session"].attrs["id"] = recording.recording_id
    groups["device"].attrs["recording_tech"] = "TWO_PHOTON_IMAGING"
    # The layout's own spelling: the driver without zygosity, hyphens as underscores.
    groups["subject"].attrs["cre_line"] = recording.metadata.cre_line.replace("-", "_")
    for name, (group, attribute) in METADATA_PLACES.items():
        value = getattr(recording.metadata, name)
        if value is not None:
            groups[group].attrs[attribute] = value


def _write_traces(file: h5py.File, recording: Recording) -> None:
    times = recording.timestamps
    rate = (len(times) - 1) / (times[-1] - times[0])
    domain = np.array([times[0]]), np.array([times[0] + len(times) / rate])
    _write_interval(file, "domain", *domain)
    traces = _group(file, "calcium_traces", "RegularTimeSeries")
    traces.attrs["sampling_rate"] = float(rate)
    # Contiguous, so that readers can memory-map it; written in pieces, so that it is never held twice.
    dataset = traces.create_dataset("df_over_f", shape=recording.dff.shape, dtype=np.float32)
    for start in range(0, recording.num_frames, 16_384):
        stop = min(start + 16_384, recording.num_frames)
        dataset[start:stop] = recording.read_dff(start, stop)
    _write_interval(traces, "domain", *domain)
    _write_irregular(file, "imaging_clock", times)
    _write_rois(file, recording)


def _write_stimulus(file: h5py.File, name: str, table: Any) -> None:
    """One stimulus; gratings keep their blank sweeps in a group of their own, as the layout has none."""
    blank = np.asarray(table.columns.get("blank_sweep", np.zeros(len(table), bool)), bool)
    parts = [(name, ~blank)] + ([(name + BLANKS_SUFFIX, blank)] if blank.any() else [])
    for group_name, keep in parts:
        part = table.select(keep)
        columns = {key: values for key, values in part.columns.items() if key != "blank_sweep"}
        if name == SCENES:
            columns["frame"] = columns["frame"] + 1
        frames = {"start_frame": part.start_frame, "end_frame": part.end_frame}
        _write_interval(file, group_name, part.start, part.end, timestamps=part.midpoint, **columns, **frames)


def _text(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8")
    return value.item() if isinstance(value, np.generic) else value


def _read_fields(group: h5py.Group) -> dict[str, NDArray]:
    columns = {}
    for key, item in group.items():
        if isinstance(item, h5py.Dataset):
            values = item[()]
            columns[key] = np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values
    return columns


def _read_intervals(group: h5py.Group) -> NDArray[np.float64]:
    return np.stack([group["start"][()], group["end"][()]], axis=1).astype(float).reshape(-1, 2)


def _require(file: h5py.File, name: str, path: Path) -> Any:
    if name not in file:
        raise RecordingError(
            f"{path}: no '{name}' (found: {', '.join(sorted(file))})",
            fix="give a brainsets recording with calcium traces, or run 'poyo-ssl prepare'",
        )
    return file[name]


def _read(file: h5py.File, path: Path) -> Recording:
    """Read everything but dF/F, which is mapped."""
    dataset = _require(file, "calcium_traces/df_over_f", path)
    rois = _read_fields(_require(file, "rois", path))
    session = _require(file, "session", path)
    timestamps = _read_timestamps(file, dataset.shape[0])
    running = pupil = motion = masks = events = None
    if "running" in file:
        speed = file["running"]
        running = TimeSeries(speed["timestamps"][()], speed["running_speed"][()].reshape(-1))
    if "pupil" in file:
        columns = _read_fields(file["pupil"])
        size = columns.get("size", np.full(len(columns["timestamps"]), np.nan, np.float32))
        pupil = PupilTrace(columns["timestamps"], columns["location"], size)
    if "motion" in file:
        motion = TimeSeries(file["motion/timestamps"][()], file["motion/xy_px"][()])
    if "roi_masks" in file:
        height, width = file["roi_masks"].attrs["image_shape"]
        masks = RoiMasks(**_read_fields(file["roi_masks"]), image_shape=(int(height), int(width)))
    if "events" in file:
        events = SparseEvents(**_read_fields(file["events"]))
    stimuli, epochs, splits, masked = {}, {}, {}, np.zeros((0, 2))
    for name, group in file.items():
        if group.attrs.get("object") not in ("Interval", b"Interval") or name == "domain":
            continue
        if name == "masked_domain":
            masked = _read_intervals(group)
        elif name.removesuffix("_domain") in ("train", "valid", "test"):
            splits[name.removesuffix("_domain")] = _read_intervals(group)
        elif name.endswith("_domain"):
            epochs[name.removesuffix("_domain")] = _read_intervals(group)
        elif not name.endswith(BLANKS_SUFFIX):
            stimuli[name] = _read_stimulus(file, name, timestamps)
    return Recording(
        str(_text(session.attrs.get("id", path.stem))),
        map_dataset(dataset),
        timestamps,
        _read_metadata(file),
        unit_ids=rois["id"].astype(np.str_),
        cell_specimen_ids=rois.get("cell_specimen_id", np.full(dataset.shape[1], -1, np.int64)),
        stimuli=stimuli,
        epochs=epochs,
        masked_domain=masked,
        running=running,
        pupil=pupil,
        motion=motion,
        roi_masks=masks,
        events=events,
        split_domains=splits,
        truth=FileTruth(path, list(file["truth"])) if "truth" in file else {},
        warnings=tuple(_read_fields(file["notes"])["warnings"].tolist()) if "notes" in file else (),
        path=path,
    )


def _read_timestamps(file: h5py.File, num_frames: int) -> NDArray[np.float64]:
    rate = float(file["calcium_traces"].attrs["sampling_rate"])
    if "imaging_clock" in file:
        return file["imaging_clock/timestamps"][()]
    # Files of other tools keep only a mean rate.
    return float(file["calcium_traces/domain/start"][0]) + np.arange(num_frames) / rate


def _read_metadata(file: h5py.File) -> RecordingMetadata:
    metadata: dict[str, Any] = {}
    for name, (group, attribute) in METADATA_PLACES.items():
        if group in file and attribute in file[group].attrs:
            metadata[name] = _text(file[group].attrs[attribute])
    if "cre_line" not in metadata and "cre_line" in file["subject"].attrs:
        # Only the list tells Ntsr1-Cre_GN220 from Ntsr1-Cre-GN220.
        spelled = str(_text(file["subject"].attrs["cre_line"]))
        known = {line.replace("-", "_"): line for line in CRE_LINES}
        metadata["cre_line"] = known.get(spelled, spelled)
    # Without an animal the container is the best unit of independence that the file offers.
    metadata.setdefault("subject_id", metadata.get("container_id", "unknown"))
    return RecordingMetadata(**metadata)


def _read_stimulus(file: h5py.File, name: str, timestamps: NDArray[np.float64]) -> Presentations:
    columns = _read_fields(file[name])
    if name + BLANKS_SUFFIX in file:
        blanks = _read_fields(file[name + BLANKS_SUFFIX])
        flag = np.arange(len(columns["start"]) + len(blanks["start"])) >= len(columns["start"])
        columns = {key: np.concatenate([values, blanks[key]]) for key, values in columns.items()}
        order = np.argsort(columns["start"], kind="stable")
        columns = {key: values[order] for key, values in columns.items()} | {"blank_sweep": flag[order]}
    elif "orientation" in columns:
        columns["blank_sweep"] = np.zeros(len(columns["start"]), bool)
    if name == SCENES:
        columns["frame"] = columns["frame"].astype(np.int64) - 1
    columns.pop("timestamps", None)
    start, end = columns.pop("start"), columns.pop("end")
    nearest = np.searchsorted(timestamps, np.stack([start, end]) - 0.5 * np.median(np.diff(timestamps)))
    frames = np.minimum(nearest, len(timestamps))
    start_frame = columns.pop("start_frame", frames[0].astype(np.int64))
    end_frame = columns.pop("end_frame", np.maximum(frames[0], frames[1]).astype(np.int64))
    return Presentations(name, start, end, start_frame, end_frame, columns)
