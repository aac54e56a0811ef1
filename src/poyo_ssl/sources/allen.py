"""The source `allen`: Allen Brain Observatory NWB 1 files, read with h5py alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from poyo_ssl import protocol
from poyo_ssl.data.hdf5 import (
    StoredTraces,
    get_dataset,
    get_group,
    is_hdf5,
    name_of,
    open_hdf5,
    read_numbers,
    read_small,
    read_text,
    read_texts,
    require_dataset,
    require_numbers,
)
from poyo_ssl.data.recording import Recording, RecordingMetadata
from poyo_ssl.data.series import PupilTrace, RoiMasks, TimeSeries
from poyo_ssl.data.stimuli import Presentations
from poyo_ssl.errors import RecordingError
from poyo_ssl.sources.base import Notes, Source, name_rows, require_increasing, require_unique
from poyo_ssl.sources.coding import (
    EXPECTED,
    GRATINGS,
    KNOWN,
    NOISE,
    NOISE_FRAMES,
    SPONTANEOUS,
    code_gratings,
    code_images,
    find_blocks,
)

DATA_FOLDER = "ophys_experiment_data"
PIPELINE = "processing/brain_observatory_pipeline"
DFF = f"{PIPELINE}/DfOverF/imaging_plane_1"
FLUORESCENCE = f"{PIPELINE}/Fluorescence/imaging_plane_1"
SEGMENTATION = f"{PIPELINE}/ImageSegmentation"
PLANE = f"{SEGMENTATION}/imaging_plane_1"
PRESENTATIONS, TEMPLATES = "stimulus/presentation", "stimulus/templates"
SUFFIX = "_stimulus"

NEWEST_PIPELINE = 3.0
FIRST_PIPELINE = "0.9"  # Of files that do not name the version of their processing
PLANE_SHAPE = (512, 512)
MAX_PLANE_PIXELS = 4096
SESSION_TYPES = tuple(EXPECTED)

UNKNOWN_LINE = "unknown"
# Two mice's genotypes leave out the end of the line's name.
LINE_ALIASES = {"Rbp4-Cre": "Rbp4-Cre_KL100"}
# Mice whose sex in the files is not that of the Allen's database.
DISPUTED_SEX = ("232269", "232270", "243303", "252106")

FIX = "download the file again"


def _refuse(
    item: h5py.Group | h5py.Dataset, problem: str, allowed: str | None = None, fix: str = FIX
) -> RecordingError:
    return RecordingError(f"{name_of(item)}: {problem}", allowed=allowed, fix=fix)


# --- Metadata ---


def parse_cre_line(genotype: str) -> str:
    """Return the Allen's name of the driver line in a genotype, or ``unknown`` outside the 13 lines."""
    line = genotype.split(";")[0].split("/")[0].strip()
    line = LINE_ALIASES.get(line, line)
    return line if line in protocol.CRE_LINES else UNKNOWN_LINE


def parse_reporter(genotype: str) -> str:
    """Return the reporter line, the part of a genotype that begins with ``Ai``; empty if there is none."""
    parts = [part.split("/")[0].strip() for part in genotype.split(";")]
    return next((part for part in parts if re.match(r"Ai\d", part)), "")


def parse_indicator(reporter: str) -> str:
    """Return the indicator that a reporter line expresses; empty if its name does not say."""
    found = re.search(r"GC(?:aMP)?6([fs])", reporter)
    return f"GCaMP6{found[1]}" if found else ""


def parse_donor(specimen_name: str) -> str:
    """Return the six digits of the mouse in a specimen's name, which is free text; empty if there are none."""
    found = re.findall(r"(?<!\d)\d{6}(?!\d)", specimen_name)
    return found[-1] if found else ""


def parse_date(text: str) -> str:
    """Return ``YYYY-MM-DD HH:MM:SS`` of a date as C's ``asctime`` or ISO 8601 writes it; empty for anything else."""
    for parse in (lambda value: datetime.strptime(value, "%a %b %d %H:%M:%S %Y"), datetime.fromisoformat):
        try:
            return parse(" ".join(text.split())).strftime("%Y-%m-%d %H:%M:%S")
        except ValueError:
            continue
    return ""


def read_genotype(genotype: str, indicator: str, notes: Notes) -> dict[str, str]:
    """Return Cre line, reporter line and indicator as fields of `RecordingMetadata`.

    The reporter tells the indicator: files call it GCaMP6f where the mouse expresses GCaMP6s.
    """
    cre_line, reporter = parse_cre_line(genotype), parse_reporter(genotype)
    if cre_line == UNKNOWN_LINE:
        notes.add(f"unknown line: genotype '{genotype[:80]}' is none of the Allen's 13 driver lines")
    expressed = parse_indicator(reporter)
    if expressed and indicator and indicator != expressed:
        notes.add(f"indicator '{indicator[:40]}' contradicts reporter {reporter}; taken as {expressed}")
    return {"cre_line": cre_line, "reporter_line": reporter, "indicator": expressed or indicator}


def read_version(file: h5py.File, notes: Notes) -> str:
    """Return the version of the Allen's processing pipeline that made the file."""
    dataset = get_dataset(file, "general/generated_by")
    texts = read_texts(dataset) if dataset is not None else []
    version = texts[-1] if texts else FIRST_PIPELINE
    if not re.fullmatch(r"\d+(\.\d+)?", version):
        notes.add(f"pipeline version '{version[:40]}' is not a number; read as 3.0")
    elif float(version) > NEWEST_PIPELINE:
        notes.add(f"pipeline version {version} is newer than 3.0, the newest known; check what comes out")
    return version


def read_metadata(file: h5py.File, notes: Notes) -> RecordingMetadata:
    """Return the metadata of an open file; what cannot be understood is left empty, with a note."""

    def text(name: str) -> str:
        return read_text(file, f"general/{name}")

    def number(name: str, pattern: str, unit: str) -> int | None:
        found = re.fullmatch(pattern, text(name).strip())
        if found and len(found[1]) <= 6:
            return int(found[1])
        notes.add(f"general/{name} '{text(name)}' is no number of {unit}; left empty")
        return None

    plane = "optophysiology/imaging_plane_1"
    lines = read_genotype(text("subject/genotype"), text(f"{plane}/indicator"), notes)
    donor = parse_donor(text("specimen_name"))
    if not donor:
        donor = text("subject/subject_id") or "unknown"
        specimen = text("specimen_name")
        notes.add(f"specimen name '{specimen}' has no six-digit mouse; subject_id '{donor}' is taken as the animal")
    sex = text("subject/sex")
    if donor in DISPUTED_SEX:
        notes.add(f"sex '{sex}' of mouse {donor} is not what the Allen's database says")
    session_type = text("session_type")
    if session_type not in SESSION_TYPES:
        notes.add(f"unknown session type '{session_type}': stimuli and blocks are taken as they are found")
    date = read_text(file, "session_start_time")
    if not parse_date(date):
        notes.add(f"session_start_time '{date}' is not a date; left empty")
    age = number("subject/age", r"(\d+) days?", "days")
    version = read_version(file, notes)
    location, target = text(f"{plane}/location"), text("targeted_structure")
    if location and target and location != target:
        notes.add(f"targeted structure '{target}' but imaging plane in '{location}'; the plane's is taken")
    depth = number(f"{plane}/imaging depth", r"(\d+)\b.*", "micrometres")
    device = text("devices/2-photon microscope")  # "<microscope>. <rig> Please ..."
    rig = re.match(r"[^.]+\. (\S+) Please", device)
    if rig is None:
        notes.add(f"device '{device}' does not name a rig; kept as it is")
    return RecordingMetadata(
        **lines,
        subject_id=donor,
        container_id=text("experiment_container_id"),
        sex=sex,
        age_days=None if age is None else float(age),
        session_type=session_type,
        targeted_structure=location or target,
        depth_um=depth,
        recording_date=parse_date(date),
        device_id=rig[1] if rig else device or "two_photon",
        description=read_text(file, "session_description"),
        origin=f"Allen NWB 1 file, pipeline {version}, {text('institution') or 'unknown institution'}",
    )


# --- Stimuli ---


def frame_edges(timestamps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the seconds of frames 0 to T, ``(T + 1,)``, the last one mean step after the last timestamp."""
    step = (timestamps[-1] - timestamps[0]) / (len(timestamps) - 1)
    return np.append(timestamps, timestamps[-1] + step)


def read_stimuli(
    file: h5py.File, timestamps: NDArray[np.float64], last_frame: int, session_type: str, notes: Notes
) -> tuple[dict[str, Presentations], dict[str, NDArray[np.float64]]]:
    """Return presentations and blocks ``(K, 2)`` in seconds of every stimulus.

    `last_frame` is the largest end that the file may name: T, or more where frames were trimmed.
    """
    edges, num_frames = frame_edges(timestamps), len(timestamps)
    stimuli: dict[str, Presentations] = {}
    epochs: dict[str, NDArray[np.float64]] = {}
    noises = []
    for name, group in _find_groups(file, session_type, notes).items():
        spans = _read_spans(group, last_frame, point=name == SPONTANEOUS)
        if name == SPONTANEOUS:
            epochs[name] = edges[np.minimum(_pair_spontaneous(group, spans), num_frames)]
            continue
        rows = np.lexsort((spans[:, 1], spans[:, 0]))
        if name in GRATINGS:
            values, flags = _read_features(group, name, rows)
            columns = code_gratings(name, values, flags, name_of(group), notes, rows=rows)
        else:
            columns = code_images(name, *_read_images(file, group, name, rows), name_of(group), notes, rows=rows)
        spans = np.minimum(spans[rows], num_frames)
        table = Presentations.from_frames(name, timestamps, spans[:, 0], spans[:, 1], columns)
        epochs[name] = edges[find_blocks(name, spans, session_type, notes)]
        if name in NOISE_FRAMES:
            noises.append(table)
        else:
            stimuli[name] = table
    if noises:
        stimuli[NOISE] = merge_noises(noises)
    return stimuli, epochs


def _find_groups(file: h5py.File, session_type: str, notes: Notes) -> dict[str, h5py.Group]:
    """Return the group of each known stimulus by name without ``_stimulus``."""
    presentations = get_group(file, PRESENTATIONS)
    groups: dict[str, h5py.Group] = {}
    for key in presentations if presentations is not None else ():
        name, group = key.removesuffix(SUFFIX), get_group(presentations, key)
        if name in groups:
            raise RecordingError(
                f"{name_of(presentations)} has both '{name}' and '{name}{SUFFIX}'",
                allowed="one of them",
                fix="delete the one that does not belong to the recording",
            )
        if group is None or name not in KNOWN:
            notes.add(f"stimulus '{key[:80]}' is not one of the Allen's; left out")
        else:
            groups[name] = group
    found = ", ".join(presentations if presentations is not None else ()) or "none"
    for name in EXPECTED.get(session_type, ()):
        if name not in groups:
            missing = f"no '{name}' or '{name}{SUFFIX}' among the stimuli"
            notes.add(f"{missing}, which {session_type} should have (found: {found})")
    return groups


def _read_data(group: h5py.Group, ndim: int) -> NDArray:
    # Of the group itself: where a template is hard-linked into it, that has a 'data' too.
    return read_numbers(require_dataset(group, "data", "one row per presentation", FIX), ndim)


def _read_spans(group: h5py.Group, limit: int, *, point: bool) -> NDArray[np.int64]:
    """Return start and end frames ``(K, 2)``, half-open.

    A `point` (the beginning or end of an interval) may lie at the very end of the recording.
    """
    frames = read_numbers(require_dataset(group, "frame_duration", "start and end frame of each row", FIX), 2)
    data = get_dataset(group, "data")
    num_rows = data.shape[0] if data is not None and data.shape else len(frames)
    if frames.shape != (num_rows, 2):
        raise _refuse(group, f"frame_duration of shape {frames.shape} for {num_rows} rows", f"({num_rows}, 2)")
    if not num_rows:
        raise _refuse(group, "no presentations", "1 or more")
    with np.errstate(invalid="ignore"):
        start, end = np.asarray(frames, np.float64).T
        last = start > limit if point else start >= limit
        infinite = ~(np.isfinite(start) & np.isfinite(end))
        bad = np.flatnonzero(infinite | (start < 0) | (end > limit) | last | (end < start))
    if len(bad):
        problem = f"row {bad[0]} of frame_duration runs from {start[bad[0]]:g} to {end[bad[0]]:g}"
        raise _refuse(group, problem, f"frames 0 to {limit}, end not before start")
    # As the Allen's own reader does, fractions are cut off.
    return np.stack([start, end], axis=1).astype(np.int64)


def _pair_spontaneous(group: h5py.Group, spans: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return ``(K, 2)`` frames: the j-th interval runs from the j-th row of +1 to the j-th row of -1."""
    sign = _read_data(group, 1)
    begin, end = np.sort(spans[sign == 1, 0]), np.sort(spans[sign == -1, 0])
    pairs = len(begin) == len(end) and len(begin) + len(end) == len(sign)
    if not pairs or (end < begin).any() or (begin[1:] < end[:-1]).any():
        raise _refuse(group, f"rows of {sign.tolist()[:10]} are not in pairs", "+1 (on), -1 (off), +1, -1, ...")
    return np.stack([begin, end], axis=1)


def _read_features(
    group: h5py.Group, name: str, rows: NDArray[np.int64]
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.float64] | None]:
    """Return the features of gratings by name, ``(K,)`` each, and the flags of blank sweeps, if there are any."""
    values = _read_data(group, 2)[rows].astype(np.float64)
    features = read_texts(require_dataset(group, "features", "a name for each column of 'data'", FIX))
    if len(features) != values.shape[1]:
        raise _refuse(group, f"{len(features)} features for {values.shape[1]} columns", "a name for each column")
    missing = [key for key in GRATINGS[name] if features.count(key) != 1]
    if missing:
        raise _refuse(group, f"features {', '.join(features)} lack {', '.join(missing)}", ", ".join(GRATINGS[name]))
    flags = values[:, features.index("blank_sweep")] if "blank_sweep" in features else None
    return {key: values[:, features.index(key)] for key in GRATINGS[name]}, flags


def _read_images(
    file: h5py.File, group: h5py.Group, name: str, rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], int | None]:
    """Return which image each row shows, and how many images there are, if the file has them."""
    frame = _read_data(group, 1)[rows]
    if frame.dtype.kind == "f" and not (np.isfinite(frame).all() and (frame == np.trunc(frame)).all()):
        raise _refuse(group, "'data' holds fractions or NaN", "whole numbers of template images")
    template = get_dataset(file, f"{TEMPLATES}/{name}_image_stack/data")
    return frame.astype(np.int64), template.shape[0] if template is not None and template.shape else None


def merge_noises(noises: Sequence[Presentations]) -> Presentations:
    """Join the sparse noises of session C2 into one table, in the order of time."""
    place = ("start", "end", "start_frame", "end_frame")
    parts = [{key: getattr(table, key) for key in place} | dict(table.columns) for table in noises]
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    order = np.argsort(joined["start_frame"], kind="stable")
    joined = {key: values[order] for key, values in joined.items()}
    start, end, start_frame, end_frame = (joined.pop(key) for key in place)
    return Presentations(NOISE, start, end, start_frame, end_frame, joined)


class GreyImages:
    """Images ``(K, height, width)`` as uint8, in one stack or one by one, read by slices or place.

    Scenes are stored as floats that hold whole numbers.
    """

    dtype = np.dtype(np.uint8)
    ndim = 3

    def __init__(self, stored: h5py.Dataset | Sequence[h5py.Dataset]) -> None:
        first = (len(stored), *stored[0].shape) if isinstance(stored, Sequence) else stored.shape
        self.shape = tuple(int(size) for size in first)
        self._stored = stored

    def __getitem__(self, place: Any) -> NDArray[np.uint8]:
        if isinstance(self._stored, h5py.Dataset):
            return self._as_grey(self._stored, self._stored[place])
        if isinstance(place, slice):
            return np.stack([self[image] for image in range(*place.indices(len(self._stored)))])
        return self._as_grey(self._stored[place], read_numbers(self._stored[place], 2))

    @staticmethod
    def _as_grey(dataset: h5py.Dataset, values: NDArray) -> NDArray[np.uint8]:
        # NaN compares false.
        if values.dtype != np.uint8 and not ((values >= 0) & (values <= 255) & (values == np.trunc(values))).all():
            raise RecordingError(
                f"{name_of(dataset)} holds pixels that are no grey levels", allowed="whole numbers 0 to 255", fix=FIX
            )
        return np.asarray(values).astype(np.uint8, copy=False)


# --- Traces ---


def read_clock(file: h5py.File) -> NDArray[np.float64]:
    """Return the imaging timestamps ``(T,)`` in seconds, those of dF/F or else of the fluorescence."""
    places = [get_dataset(file, f"{place}/timestamps") for place in (DFF, FLUORESCENCE)]
    dataset = next((found for found in places if found is not None), None)
    if dataset is None:
        raise RecordingError(f"{file.filename}: no timestamps in {DFF} or {FLUORESCENCE}", fix=FIX)
    times = read_numbers(dataset, 1).astype(np.float64)
    require_increasing(times, name_of(dataset), FIX)
    return times


def find_traces(file: h5py.File, num_times: int, num_rois: int | None, max_trim: int) -> h5py.Dataset:
    """Return dF/F ``(N, T)`` after comparing it with the number of timestamps and of ROIs."""
    dataset = get_dataset(file, f"{DFF}/data")
    if dataset is None:
        raise RecordingError(f"{file.filename}: no '{DFF}/data'", fix="give an Allen NWB 1 file with these traces")
    require_numbers(dataset, 2, whole=False)
    rois, frames = dataset.shape
    if abs(frames - num_times) > max_trim:
        turned = abs(rois - num_times) <= max_trim and num_rois in (None, frames)
        raise RecordingError(
            f"{name_of(dataset)} has shape {dataset.shape} for {num_times} timestamps"
            + (": transposed, (frames, ROIs)" if turned else ""),
            allowed=f"(ROIs, frames), up to {max_trim} frames more or less than timestamps",
            fix="store it as (ROIs, frames)" if turned else FIX,
        )
    if min(frames, num_times) < 2:
        raise _refuse(dataset, f"{min(frames, num_times)} imaging frames", "2 or more")
    return dataset


def read_fluorescence(
    path: Path | str,
    kind: Literal["raw", "neuropil", "demixed", "corrected"] = "corrected",
    *,
    rois: Sequence[int] | None = None,
    without_demixing: bool = False,
) -> NDArray[np.float32]:
    """Return fluorescence ``(T, len(rois))`` in arbitrary units, for those who compute dF/F themselves.

    The neuropil-corrected trace is in no file: from pipeline 2.0 on it is the demixed trace, before it the raw one,
    less the neuropil times each ROI's contamination ratio r. `without_demixing` corrects the raw trace where the
    demixed one is missing, as it is in a few files.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        neuropil = f"{FLUORESCENCE}_neuropil_response"
        old = get_dataset(file, f"{neuropil}/data") is None
        parts = {
            "raw": f"{FLUORESCENCE}/data",
            "neuropil": f"{FLUORESCENCE}/neuropil_traces" if old else f"{neuropil}/data",
            "demixed": f"{FLUORESCENCE}_demixed_signal/data",
        }
        if kind != "corrected":
            return _read_rows(file, parts[kind], rois)
        source = "raw" if read_version(file, Notes()).startswith(("0", "1")) else "demixed"
        if source == "demixed" and get_dataset(file, parts["demixed"]) is None and without_demixing:
            source = "raw"
        ratio = get_dataset(file, f"{FLUORESCENCE}/r" if old else f"{neuropil}/r")
        if ratio is None:
            raise RecordingError(f"{path}: no contamination ratio r", fix="read 'raw' or 'neuropil' instead")
        signal, surround = _read_rows(file, parts[source], rois), _read_rows(file, parts["neuropil"], rois)
        ratios = read_numbers(ratio, 1)
        if len(ratios) < signal.shape[1] or signal.shape != surround.shape:
            shapes = f"{source} traces {signal.shape}, neuropil {surround.shape}, r {ratios.shape}"
            raise RecordingError(f"{path}: {shapes}", allowed="the same ROIs in all", fix=FIX)
        return signal - (ratios if rois is None else ratios[list(rois)]).astype(np.float32) * surround


def _read_rows(file: h5py.File, name: str, rois: Sequence[int] | None) -> NDArray[np.float32]:
    dataset = get_dataset(file, name)
    if dataset is None:
        fix = "pass without_demixing=True to use the raw trace" if "demixed" in name else "read another kind"
        raise RecordingError(f"{file.filename}: no '{name}'", fix=fix)
    require_numbers(dataset, 2)
    num_rois = dataset.shape[0]
    wanted = np.arange(num_rois) if rois is None else np.asarray(list(rois), np.int64)
    bad = wanted[(wanted < 0) | (wanted >= num_rois)]
    if len(bad):
        raise _refuse(dataset, f"no ROI {bad[0]}", f"0 to {num_rois - 1}", "ask for rows of the file")
    # HDF5 reads rows in increasing order only.
    rows, place = np.unique(wanted, return_inverse=True)
    return np.ascontiguousarray(dataset[rows][place].T, np.float32)


# --- ROIs ---


@dataclass
class _Identities:
    """The names that a file gives its ROIs; empty where it has none."""

    cell_specimen_ids: NDArray[np.int64]
    roi_ids: list[str]
    roi_list: list[str]

    @classmethod
    def read(cls, file: h5py.File) -> _Identities:
        cells = get_dataset(file, f"{SEGMENTATION}/cell_specimen_ids")
        specimens = read_numbers(cells, 1) if cells is not None else np.zeros(0, np.int64)
        if specimens.dtype.kind not in "iu":
            raise RecordingError(f"{name_of(cells)} holds {specimens.dtype}", allowed="whole numbers", fix=FIX)
        texts = [get_dataset(file, name) for name in (f"{SEGMENTATION}/roi_ids", f"{PLANE}/roi_list")]
        return cls(specimens.astype(np.int64), *[[] if t is None else read_texts(t) for t in texts])

    def lengths(self) -> dict[str, int]:
        return {name: len(values) for name, values in vars(self).items() if len(values)}

    def check(self, path: Path, num_rois: int, notes: Notes) -> None:
        """Compare the lengths, refuse names that are given twice, and fill in what is missing."""
        if set(self.lengths().values()) - {num_rois}:
            found = ", ".join(f"{length} {name}" for name, length in self.lengths().items())
            raise RecordingError(f"{path}: {num_rois} dF/F traces, {found}", allowed="one of each per ROI", fix=FIX)
        for name, values in vars(self).items():
            require_unique([value for value in values if value != -1], f"{path}: {name}", FIX)
        if not len(self.cell_specimen_ids):
            notes.add("no cell specimen ids: cells cannot be matched with other sessions")
            self.cell_specimen_ids = np.full(num_rois, -1, np.int64)
        if not self.roi_ids:
            notes.add("no roi_ids: units are called by their row")
            self.roi_ids = self.roi_list or [f"roi_{row:04d}" for row in range(num_rois)]


def _read_masks(file: h5py.File, roi_list: list[str], notes: Notes) -> RoiMasks | None:
    """Read the pixel list of each ROI, or its image where it has none or the first of them disagrees with its image.

    A list is read much faster than an image that is nearly all zero, and opening each image alone takes longer than
    everything else together.
    """
    pixels: list[NDArray] = []  # (2, P): rows and columns of each ROI
    shape, lists_hold = None, True
    plane = get_group(file, PLANE)
    for key in roi_list:
        safe = plane is not None and re.fullmatch(r"[\w.-]+", key)
        listed = _read_pixel_list(plane, key, shape or PLANE_SHAPE) if safe and lists_hold else None
        image = _read_image(file, f"{PLANE}/{key}/img_mask") if safe and (listed is None or shape is None) else None
        if image is not None:
            if shape is not None and image.shape != shape:
                sizes = f"masks of {shape} and of {image.shape} pixels"
                raise RecordingError(f"{file.filename}: {sizes}", allowed="one size", fix=FIX)
            shape = image.shape
            if listed is not None and not _same_pixels(listed, image):
                notes.add("pixel lists of the ROIs are not those of their images; the images are taken")
                lists_hold, listed = False, None
            listed = np.stack(np.nonzero(image)) if listed is None else listed
        pixels.append(np.zeros((2, 0), np.int64) if listed is None else listed)
    unit = np.repeat(np.arange(len(pixels), dtype=np.int32), [part.shape[1] for part in pixels])
    rows, columns = np.concatenate([np.zeros((2, 0), np.int64), *pixels], axis=1).astype(np.int32)
    return keep_masks(RoiMasks(unit, rows, columns, shape or PLANE_SHAPE), len(pixels), notes)


def _read_pixel_list(plane: h5py.Group, key: str, shape: tuple[int, int]) -> NDArray | None:
    """Return rows and columns ``(2, P)`` of a list of x and y; None if there is none inside the plane."""
    listed = read_small(plane, f"{key}/pix_mask")
    if listed is None or listed.ndim != 2 or listed.shape[1] != 2 or listed.dtype.kind not in "iu":
        return None
    place = listed.T[::-1].astype(np.int64)
    return place if ((place >= 0) & (place < np.array(shape)[:, None])).all() else None


def _read_image(file: h5py.File, name: str) -> NDArray[np.bool_] | None:
    """Return the image of a mask, True inside."""
    image = get_dataset(file, name)
    if image is None:
        return None
    require_numbers(image, 2)
    if max(image.shape) > MAX_PLANE_PIXELS:
        raise _refuse(image, f"an image of shape {image.shape}", f"up to {MAX_PLANE_PIXELS} pixels a side")
    return np.nan_to_num(read_numbers(image, 2)) != 0


def _same_pixels(listed: NDArray, image: NDArray[np.bool_]) -> bool:
    drawn = np.zeros_like(image)
    inside = (listed < np.array(image.shape)[:, None]).all(axis=0)
    drawn[tuple(listed[:, inside])] = True
    return bool(inside.all() and np.array_equal(drawn, image))


def keep_masks(masks: RoiMasks, num_units: int, notes: Notes) -> RoiMasks | None:
    """Return the masks, or None if all are empty; a note says which are."""
    empty = np.setdiff1d(np.arange(num_units), masks.unit)
    if len(empty) == num_units:
        notes.add("no ROI masks: positions are unknown")
        return None
    if len(empty):
        notes.add(f"the mask is empty in {name_rows(empty)}: position unknown")
    return masks


# --- Behaviour ---

Series = tuple[NDArray[np.float64], NDArray]
"""Timestamps ``(n,)`` in seconds and values ``(n, k)``."""


def check_series(times: NDArray[np.float64], values: NDArray, what: str, notes: Notes) -> Series | None:
    """Return a behavioural trace, or None if its clock is not sound; values that are not finite stay in."""
    if len(values) != len(times):
        notes.add(f"{what}: {len(values)} samples for {len(times)} timestamps; left out")
    elif not (np.isfinite(times).all() and (np.diff(times) > 0).all()):
        notes.add(f"{what}: timestamps are not finite and increasing; left out")
    else:
        return times, values.reshape(len(values), -1)
    return None


def make_running(series: Series | None, notes: Notes) -> TimeSeries | None:
    """Return the running speed, in the unit of the series, without samples that are not finite."""
    if series is None:
        return None
    times, values = series
    if values.shape[1] != 1:
        notes.add(f"running_speed has {values.shape[1]} columns; left out")
        return None
    valid = np.isfinite(values[:, 0])
    if not valid.all():
        notes.add(f"running speed: {int((~valid).sum())} of {len(valid)} samples are not finite; left out")
    return TimeSeries(times[valid], values[valid, 0].astype(np.float32)) if valid.any() else None


def make_pupil(gaze: Series | None, area: Series | None, notes: Notes) -> PupilTrace | None:
    """Return gaze ``(n, 2)`` and pupil size of one clock, without the samples that the eye tracker rejected (NaN).

    Most files have no eye data.
    """
    if gaze is None or gaze[1].shape[1] != 2:
        if gaze is not None or area is not None:
            notes.add("pupil: no gaze on the monitor; left out")
        return None
    times, location = gaze
    size = np.full(len(times), np.nan)
    if area is not None and area[1].shape == (len(times), 1) and np.array_equal(area[0], times):
        size = area[1][:, 0]
    elif area is not None:
        notes.add("pupil size has a clock of its own; left out")
    valid = np.isfinite(location).all(axis=1) & (np.isfinite(size) | np.isnan(size).all())
    if not valid.all():
        notes.add(f"pupil: {int((~valid).sum())} of {len(valid)} samples rejected by the eye tracker; left out")
    if not valid.any():
        return None
    return PupilTrace(times[valid], location[valid].astype(np.float32), size[valid].astype(np.float32))


def _read_series(file: h5py.File, name: str, notes: Notes) -> Series | None:
    group, what = get_group(file, f"{PIPELINE}/{name}"), name.rpartition("/")[2]
    if group is None:
        return None
    data, stamps = get_dataset(group, "data"), get_dataset(group, "timestamps")
    if data is None or stamps is None:
        notes.add(f"{what} lacks its {'data' if data is None else 'timestamps'}; left out")
        return None
    times = read_numbers(stamps, 1).astype(np.float64)
    return check_series(times, read_numbers(data, 2 if data.ndim == 2 else 1), what, notes)


def _read_motion(file: h5py.File, notes: Notes) -> TimeSeries | None:
    """Return the shift of the imaging plane in pixels, x and y."""
    # The oldest files have the plural.
    names = [f"MotionCorrection/2p_image_series/{key}" for key in ("xy_translation", "xy_translations")]
    name = next((name for name in names if get_group(file, f"{PIPELINE}/{name}") is not None), names[0])
    series = _read_series(file, name, notes)
    if series is None:
        return None
    stamps, shift = series
    if shift.shape[1] != 2 or not np.isfinite(shift).all():
        notes.add(f"motion of shape {shift.shape} is not x and y of every frame; left out")
        return None
    features = get_dataset(file, f"{PIPELINE}/{name}/feature_description")
    if features is not None and read_texts(features) == ["y_motion", "x_motion"]:
        shift = shift[:, ::-1]
    return TimeSeries(stamps, shift.astype(np.float32))


# --- The source ---


@dataclass(frozen=True)
class AllenSource(Source):
    """Allen Brain Observatory, Visual Coding two-photon: NWB 1 files of pipelines 0.9 to 3.0.

    Parameters
    ----------
    max_trim_frames : int
        dF/F and timestamps may differ by so many frames, which are trimmed with a warning.

    Examples
    --------
    >>> from poyo_ssl import AllenSource, convert
    >>> outcomes = convert(AllenSource(), Path("allen_cache"), Path("data"))  # doctest: +SKIP
    """

    max_trim_frames: int = 1
    name = "allen"

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Tell whether `path` is an HDF5 file with the Allen's pipeline module or a text of NWB 1."""

        def is_allen(file: h5py.File) -> bool:
            return get_group(file, PIPELINE) is not None or read_text(file, "nwb_version").startswith("NWB-1")

        return is_hdf5(path, ".nwb", is_allen)

    def find(self, input: Path) -> list[Path]:
        """Return the file itself, or every ``*.nwb`` of a folder or of its ``ophys_experiment_data``."""
        if input.is_file():
            return [input]
        for folder in (input / DATA_FOLDER, input):
            if paths := sorted(folder.glob("*.nwb")):
                return paths
        raise RecordingError(
            f"no *.nwb in {input} or its {DATA_FOLDER}",
            fix="give a folder of Allen files, or get some with 'prepare allen --download'",
        )

    def read(self, path: Path) -> Recording:
        """Return the recording of one file; its dF/F stays on disk where it is stored uncompressed."""
        notes = Notes()
        with open_hdf5(path) as file:
            _require_pipeline(file)
            times = read_clock(file)
            ids = _Identities.read(file)
            dataset = find_traces(file, len(times), next(iter(ids.lengths().values()), None), self.max_trim_frames)
            ids.check(path, dataset.shape[0], notes)
            lengths = dataset.shape[1], len(times)
            num_frames = min(lengths)
            if max(lengths) > num_frames:
                notes.add(f"{lengths[0]} frames of dF/F and {lengths[1]} timestamps: trimmed to {num_frames}")
            times = times[:num_frames]
            metadata = read_metadata(file, notes)
            recording_id = self.recording_id(path)
            named = read_text(file, "general/session_id") or read_text(file, "general/ophys_experiment_id")
            if named != recording_id:
                notes.add(f"the file says that it is experiment '{named}'; called {recording_id} after its name")
            stimuli, epochs = read_stimuli(file, times, max(lengths), metadata.session_type, notes)
            masks = _read_masks(file, ids.roi_list, notes)
            motion = _read_motion(file, notes)
            running = make_running(_read_series(file, "BehavioralTimeSeries/running_speed", notes), notes)
            gaze = _read_series(file, "EyeTracking/pupil_location", notes)
            pupil = make_pupil(gaze, _read_series(file, "PupilTracking/pupil_size", notes), notes)
            return Recording(
                recording_id,
                StoredTraces(dataset, num_frames, by_roi=True),
                times,
                metadata,
                unit_ids=np.array(ids.roi_ids, dtype=np.str_),
                cell_specimen_ids=ids.cell_specimen_ids,
                stimuli=stimuli,
                epochs=epochs,
                running=running,
                pupil=pupil,
                motion=motion,
                roi_masks=masks,
                warnings=tuple(notes),
            )

    def movies(self, path: Path) -> Iterator[tuple[str, GreyImages]]:
        """Give the templates of movies, scenes and sparse noises by name, each sliced by images."""
        with open_hdf5(path) as file:
            templates = get_group(file, TEMPLATES)
            for key in templates if templates is not None else ():
                name = key.removesuffix("_image_stack")
                dataset = get_dataset(file, f"{TEMPLATES}/{key}/data")
                if dataset is not None and name in KNOWN:
                    require_numbers(dataset, 3, whole=False)
                    yield name, GreyImages(dataset)


def _require_pipeline(file: h5py.File) -> None:
    if get_group(file, PIPELINE) is None:
        modules = get_group(file, "processing")
        found = ", ".join(modules) if modules is not None else f"no 'processing'; {', '.join(list(file)[:12])}"
        raise RecordingError(
            f"{file.filename}: no group '{PIPELINE}' (found: {found})",
            fix="give an Allen Brain Observatory NWB 1 file; for NWB 2 use 'prepare nwb'",
        )
    if get_group(file, DFF) is None:
        found = ", ".join(file[PIPELINE])
        raise RecordingError(f"{file.filename}: no group '{DFF}' (found: {found})", fix="give a file with dF/F")
