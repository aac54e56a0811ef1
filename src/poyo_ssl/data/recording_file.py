"""Brainsets HDF5, written and read with h5py alone (ALLEN layout of torch_brain / temporaldata objects)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from poyo_ssl.data.hdf5 import map_dataset
from poyo_ssl.data.series import PupilTrace, RoiMasks, SparseEvents, TimeSeries
from poyo_ssl.data.stimuli import Presentations
from poyo_ssl.errors import RecordingError
from poyo_ssl.protocol import CRE_LINES

if TYPE_CHECKING:
    from poyo_ssl.data.recording import Recording


class FileTruth(Mapping[str, NDArray]):
    """Arrays by name that stay in the file until they are asked for; an hour's true rates take some 15 MB.

    It holds the path and no open file, so that recordings can be sent to other processes.

    Parameters
    ----------
    path : path
        Brainsets HDF5 file.
    names : iterable of str
        Datasets of its group ``truth``.

    Raises
    ------
    RecordingError
        When an array is asked for and the file is no longer there, or no longer holds it.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "made.h5"
    >>> with h5py.File(path, "w") as file:
    ...     file["truth/tuned"] = np.array([True, False])
    >>> truth = FileTruth(path, ["tuned"])
    >>> list(truth), truth["tuned"].tolist()
    (['tuned'], [True, False])
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


def write_recording(file: h5py.File, recording: Recording) -> None:
    """Write `recording` into an open, empty HDF5 file.

    In alphabetical order, so that a recording gives the same bytes whatever order its dicts were filled in.
    """
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
    for field, (group, attribute) in METADATA_PLACES.items():
        value = getattr(recording.metadata, field)
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


def read_recording(file: h5py.File, path: Path) -> dict[str, Any]:
    """Read everything but dF/F; return the keyword arguments of `Recording`, metadata as a dict."""
    dataset = _require(file, "calcium_traces/df_over_f", path)
    roi_ids = _read_fields(_require(file, "rois", path))
    session = _require(file, "session", path)
    rate = float(file["calcium_traces"].attrs["sampling_rate"])
    contents: dict[str, Any] = {
        "recording_id": str(_text(session.attrs.get("id", path.stem))),
        "dff": map_dataset(dataset),
        "timestamps": _read_timestamps(file, dataset.shape[0], rate),
        "unit_ids": roi_ids["id"].astype(np.str_),
        "cell_specimen_ids": roi_ids.get("cell_specimen_id", np.full(dataset.shape[1], -1, np.int64)),
        "metadata": _read_metadata(file),
    }
    contents |= _read_tables(file, contents["timestamps"])
    if "running" in file:
        running = file["running"]
        contents["running"] = TimeSeries(running["timestamps"][()], running["running_speed"][()].reshape(-1))
    if "pupil" in file:
        pupil = _read_fields(file["pupil"])
        size = pupil.get("size", np.full(len(pupil["timestamps"]), np.nan, np.float32))
        contents["pupil"] = PupilTrace(pupil["timestamps"], pupil["location"], size)
    if "motion" in file:
        contents["motion"] = TimeSeries(file["motion/timestamps"][()], file["motion/xy_px"][()])
    if "roi_masks" in file:
        height, width = file["roi_masks"].attrs["image_shape"]
        contents["roi_masks"] = RoiMasks(**_read_fields(file["roi_masks"]), image_shape=(int(height), int(width)))
    if "events" in file:
        contents["events"] = SparseEvents(**_read_fields(file["events"]))
    if "notes" in file:
        contents["warnings"] = tuple(_read_fields(file["notes"])["warnings"].tolist())
    if "truth" in file:
        contents["truth"] = FileTruth(path, list(file["truth"]))
    return contents


def _read_timestamps(file: h5py.File, num_frames: int, rate: float) -> NDArray[np.float64]:
    if "imaging_clock" in file:
        return file["imaging_clock/timestamps"][()]
    # Files of other tools keep only a mean rate.
    return float(file["calcium_traces/domain/start"][0]) + np.arange(num_frames) / rate


def _read_metadata(file: h5py.File) -> dict[str, Any]:
    metadata = {}
    for field, (group, attribute) in METADATA_PLACES.items():
        if group in file and attribute in file[group].attrs:
            metadata[field] = _text(file[group].attrs[attribute])
    if "cre_line" not in metadata and "cre_line" in file["subject"].attrs:
        # Only the list tells Ntsr1-Cre_GN220 from Ntsr1-Cre-GN220.
        spelled = str(_text(file["subject"].attrs["cre_line"]))
        known = {line.replace("-", "_"): line for line in CRE_LINES}
        metadata["cre_line"] = known.get(spelled, spelled)
    # Without an animal the container is the best unit of independence that the file offers.
    metadata.setdefault("subject_id", metadata.get("container_id", "unknown"))
    return metadata


def _read_tables(file: h5py.File, timestamps: NDArray[np.float64]) -> dict[str, Any]:
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
            stimuli[name] = Presentations(name, **_read_presentations(file, name, timestamps))
    return {"stimuli": stimuli, "epochs": epochs, "split_domains": splits, "masked_domain": masked}


def _read_presentations(file: h5py.File, name: str, timestamps: NDArray[np.float64]) -> dict[str, Any]:
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
    return {
        "start": start,
        "end": end,
        "start_frame": start_frame,
        "end_frame": end_frame,
        "columns": columns,
    }
