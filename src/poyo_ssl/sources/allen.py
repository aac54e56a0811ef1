"""The source `allen`: Allen Brain Observatory NWB 1 files, read with h5py alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from poyo_ssl import protocol
from poyo_ssl.data.hdf5 import (
    StoredTraces,
    get,
    get_dataset,
    get_group,
    is_hdf5,
    name_of,
    open_hdf5,
    read_numbers,
    read_small,
    read_text,
    read_texts,
    require_numbers,
)
from poyo_ssl.data.recording import Recording, RecordingMetadata
from poyo_ssl.data.series import PupilTrace, RoiMasks, TimeSeries
from poyo_ssl.data.stimuli import Presentations
from poyo_ssl.errors import RecordingError
from poyo_ssl.sources.base import Notes, Source, name_rows

UNKNOWN_LINE = "unknown"
LINE_ALIASES = {"Rbp4-Cre": "Rbp4-Cre_KL100"}
"""Two mice's genotypes leave out the end of the line's name."""

DISPUTED_SEX = ("232269", "232270", "243303", "252106")
"""Mice whose sex in the files is not that of the Allen's database."""

NEWEST_PIPELINE = 3.0
FIRST_PIPELINE = "0.9"
"""Files that do not name the version of their processing are of this one."""

SESSION_TYPES = ("three_session_A", "three_session_B", "three_session_C", "three_session_C2")


def parse_cre_line(genotype: str) -> str:
    """Return the Allen's name of the driver line in a genotype, or ``unknown`` outside the 13 lines.

    Examples
    --------
    >>> parse_cre_line("Cux2-CreERT2/wt;Camk2a-tTA/wt;Ai93(TITL-GCaMP6f)/wt")
    'Cux2-CreERT2'
    >>> parse_cre_line("Rbp4-Cre; Camk2a-tTA; Ai93"), parse_cre_line("Emx1-IRES-Cre"), parse_cre_line("wt/wt")
    ('Rbp4-Cre_KL100', 'Emx1-IRES-Cre', 'unknown')
    """
    line = genotype.split(";")[0].split("/")[0].strip()
    line = LINE_ALIASES.get(line, line)
    return line if line in protocol.CRE_LINES else UNKNOWN_LINE


def parse_reporter(genotype: str) -> str:
    """Return the reporter line, the part of a genotype that begins with ``Ai``; empty if there is none.

    Examples
    --------
    >>> parse_reporter("Vip-IRES-Cre/wt;Ai148(TIT2L-GC6f-ICL-tTA2)/wt")
    'Ai148(TIT2L-GC6f-ICL-tTA2)'
    """
    parts = [part.split("/")[0].strip() for part in genotype.split(";")]
    return next((part for part in parts if re.match(r"Ai\d", part)), "")


def parse_indicator(reporter: str) -> str:
    """Return the indicator that a reporter line expresses; empty if its name does not say.

    Examples
    --------
    >>> parse_indicator("Ai93(TITL-GCaMP6f)"), parse_indicator("Ai162(TIT2L-GC6s-ICL-tTA2)"), parse_indicator("Ai14")
    ('GCaMP6f', 'GCaMP6s', '')
    """
    found = re.search(r"GC(?:aMP)?6([fs])", reporter)
    return f"GCaMP6{found[1]}" if found else ""


def parse_donor(specimen_name: str) -> str:
    """Return the six digits of the mouse in a specimen's name, which is free text; empty if there are none.

    Examples
    --------
    >>> parse_donor("Cux2-CreERT2;Camk2a-tTA;Ai93-308148"), parse_donor("Emx1-IRES-Cre;Ai93(CAM)-356790.0")
    ('308148', '356790')
    """
    found = re.findall(r"(?<!\d)\d{6}(?!\d)", specimen_name)
    return found[-1] if found else ""


def parse_date(text: str) -> str:
    """Return ``YYYY-MM-DD HH:MM:SS`` of a date as C's ``asctime`` or ISO 8601 writes it; empty for anything else.

    Examples
    --------
    >>> parse_date("Wed May 31 10:29:38 2017"), parse_date("2016-07-06T18:27:05"), parse_date("soon")
    ('2017-05-31 10:29:38', '2016-07-06 18:27:05', '')
    """
    for parse in (lambda value: datetime.strptime(value, "%a %b %d %H:%M:%S %Y"), datetime.fromisoformat):
        try:
            return parse(" ".join(text.split())).strftime("%Y-%m-%d %H:%M:%S")
        except ValueError:
            continue
    return ""


def read_version(file: h5py.File, warnings: list[str]) -> str:
    """Return the version of the Allen's processing pipeline that made the file."""
    dataset = get_dataset(file, "general/generated_by")
    texts = read_texts(dataset) if dataset is not None else []
    version = texts[-1] if texts else FIRST_PIPELINE
    if not re.fullmatch(r"\d+(\.\d+)?", version):
        warnings.append(f"pipeline version '{version[:40]}' is not a number; read as 3.0")
    elif float(version) > NEWEST_PIPELINE:
        warnings.append(f"pipeline version {version} is newer than 3.0, the newest known; check what comes out")
    return version


def read_metadata(file: h5py.File, warnings: list[str]) -> RecordingMetadata:
    """Return the metadata of an open file; what cannot be understood is left empty, with a warning.

    Examples
    --------
    >>> with h5py.File.in_memory() as file:
    ...     file["general/subject/genotype"] = b"Sst-IRES-Cre/wt;Ai148(TIT2L-GC6f-ICL-tTA2)/wt"
    ...     file["general/specimen_name"] = b"Sst-IRES-Cre;Ai148-308148"
    ...     about = read_metadata(file, warnings := [])
    >>> about.cre_line, about.subject_id, about.depth_um, len(warnings)
    ('Sst-IRES-Cre', '308148', None, 5)
    """
    plane = "general/optophysiology/imaging_plane_1"
    genotype = read_text(file, "general/subject/genotype")
    reporter = parse_reporter(genotype)
    cre_line = parse_cre_line(genotype)
    if cre_line == UNKNOWN_LINE:
        warnings.append(f"unknown line: genotype '{genotype}' is none of the Allen's 13 driver lines")
    donor = _read_donor(file, warnings)
    sex = read_text(file, "general/subject/sex")
    if donor in DISPUTED_SEX:
        warnings.append(f"sex '{sex}' of mouse {donor} is not what the Allen's database says")
    session_type = read_text(file, "general/session_type")
    if session_type not in SESSION_TYPES:
        warnings.append(f"unknown session type '{session_type}': stimuli and blocks are taken as they are found")
    date = read_text(file, "session_start_time")
    if not parse_date(date):
        warnings.append(f"session_start_time '{date}' is not a date; left empty")
    age = _read_number(file, "general/subject/age", r"(\d+) days?", "days", warnings)
    version = read_version(file, warnings)
    institution = read_text(file, "general/institution") or "unknown institution"
    return RecordingMetadata(
        subject_id=donor,
        container_id=read_text(file, "general/experiment_container_id"),
        cre_line=cre_line,
        reporter_line=reporter,
        indicator=_read_indicator(file, plane, reporter, warnings),
        sex=sex,
        age_days=None if age is None else float(age),
        session_type=session_type,
        targeted_structure=_read_area(file, plane, warnings),
        depth_um=_read_number(file, f"{plane}/imaging depth", r"(\d+)\b.*", "micrometres", warnings),
        recording_date=parse_date(date),
        device_id=_read_rig(file, warnings),
        description=read_text(file, "session_description"),
        origin=f"Allen NWB 1 file, pipeline {version}, {institution}",
    )


def _read_donor(file: h5py.File, warnings: list[str]) -> str:
    specimen = read_text(file, "general/specimen_name")
    donor = parse_donor(specimen)
    if donor:
        return donor
    subject = read_text(file, "general/subject/subject_id") or "unknown"
    warnings.append(f"specimen name '{specimen}' has no six-digit mouse; subject_id '{subject}' is taken as the animal")
    return subject


def _read_indicator(file: h5py.File, plane: str, reporter: str, warnings: list[str]) -> str:
    """Return the indicator; the reporter line knows better than the text, which has been GCaMP6f throughout."""
    text = read_text(file, f"{plane}/indicator")
    indicator = parse_indicator(reporter)
    if not indicator:
        return text
    if text and text != indicator:
        warnings.append(f"indicator '{text}' contradicts reporter {reporter}; taken as {indicator}")
    return indicator


def _read_area(file: h5py.File, plane: str, warnings: list[str]) -> str:
    location = read_text(file, f"{plane}/location")
    target = read_text(file, "general/targeted_structure")
    if location and target and location != target:
        warnings.append(f"targeted structure '{target}' but imaging plane in '{location}'; the plane's is taken")
    return location or target


def _read_number(file: h5py.File, name: str, pattern: str, unit: str, warnings: list[str]) -> int | None:
    text = read_text(file, name)
    found = re.fullmatch(pattern, text.strip())
    if found and len(found[1]) <= 6:
        return int(found[1])
    warnings.append(f"{name} '{text}' is no number of {unit}; left empty")
    return None


def _read_rig(file: h5py.File, warnings: list[str]) -> str:
    """Return the rig of ``<microscope>. <rig> Please ...``, or the whole text."""
    text = read_text(file, "general/devices/2-photon microscope")
    found = re.match(r"[^.]+\. (\S+) Please", text)
    if found:
        return found[1]
    warnings.append(f"device '{text}' does not name a rig; kept as it is")
    return text or "two_photon"


PRESENTATIONS = "stimulus/presentation"
TEMPLATES = "stimulus/templates"
SUFFIX = "_stimulus"
SPONTANEOUS = "spontaneous"
SCENES = "natural_scenes"
NOISE = "locally_sparse_noise"

GRATINGS = {
    "drifting_gratings": {
        "orientation": protocol.GRATING_DIRECTIONS_DEG,
        "temporal_frequency": protocol.GRATING_TEMPORAL_FREQUENCIES_HZ,
    },
    "static_gratings": {
        "orientation": (0.0, 30.0, 60.0, 90.0, 120.0, 150.0),
        "spatial_frequency": (0.02, 0.04, 0.08, 0.16, 0.32),
        "phase": (0.0, 0.25, 0.5, 0.75),
    },
}
"""Features of each grating and their values, whose places are the ids."""

MOVIE_FRAMES = {"natural_movie_one": 900, "natural_movie_two": 900, "natural_movie_three": 3600}
MOVIE_REPEATS = 10
NUM_SCENES = 118
NOISE_FRAMES = {NOISE: 9000, f"{NOISE}_4deg": 5812, f"{NOISE}_8deg": 5584}
NOISE_PIXEL_DEG = {NOISE: 4.65, f"{NOISE}_4deg": 4.65, f"{NOISE}_8deg": 9.3}
"""Degrees of a pixel; those called 8 degrees are 9.3 in truth."""

KNOWN = (*GRATINGS, *MOVIE_FRAMES, SCENES, *NOISE_FRAMES, SPONTANEOUS)
EXPECTED = {
    "three_session_A": ("drifting_gratings", "natural_movie_one", "natural_movie_three", SPONTANEOUS),
    "three_session_B": ("static_gratings", SCENES, "natural_movie_one", SPONTANEOUS),
    "three_session_C": (NOISE, "natural_movie_one", "natural_movie_two", SPONTANEOUS),
    "three_session_C2": (f"{NOISE}_4deg", f"{NOISE}_8deg", "natural_movie_one", "natural_movie_two", SPONTANEOUS),
}

BLOCK_GAP_FRAMES = 300
"""Two presentations further apart than this (10 s) belong to two blocks; between real blocks lie thousands."""

MOST_BLOCKS = 3
"""Of one stimulus in a session of the Allen's."""

SDK_GAP_FRAMES = {"three_session_A": 39, "three_session_B": 15, "three_session_C": 7, "three_session_C2": 7}
"""Where AllenSDK cuts; a dropped frame or two can exceed it."""


@dataclass
class Stimuli:
    """What a file says of its stimuli.

    Attributes
    ----------
    tables : dict
        By name.
    epochs : dict
        ``(K, 2)`` seconds of the blocks of each stimulus.
    """

    tables: dict[str, Presentations] = field(default_factory=dict)
    epochs: dict[str, NDArray[np.float64]] = field(default_factory=dict)


@dataclass(frozen=True)
class Clock:
    """The imaging clock as stimuli need it.

    Attributes
    ----------
    timestamps : ndarray
        ``(T,)`` seconds.
    last_frame : int
        Largest end of a presentation that the file may name: T, or one more where a frame was trimmed.
    """

    timestamps: NDArray[np.float64]
    last_frame: int

    def edges(self, frames: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return seconds of frames ``0..T``, the last extrapolated by a mean step."""
        times = self.timestamps
        step = (times[-1] - times[0]) / (len(times) - 1)
        return np.append(times, times[-1] + step)[np.minimum(frames, len(times))]


def read_stimuli(file: h5py.File, clock: Clock, session_type: str, warnings: list[str]) -> Stimuli:
    """Return every stimulus of an open file.

    Parameters
    ----------
    file : h5py.File
        An Allen NWB 1 file.
    clock : Clock
        Imaging clock.
    session_type : str
        Decides which stimuli are expected.
    warnings : list of str
        Lines are added for what is missing or unknown.

    Raises
    ------
    RecordingError
        If a stimulus is there under both of its names, or a table is incomplete, inconsistent or out of range.
    """
    groups = _find_groups(file, session_type, warnings)
    found = Stimuli()
    noises = []
    for name, group in groups.items():
        spans, order = _read_spans(group, clock, point=name == SPONTANEOUS)
        if name == SPONTANEOUS:
            found.epochs[name] = clock.edges(_read_spontaneous(group, spans))
            continue
        columns = _read_columns(file, name, group, order, session_type, warnings)
        spans = np.minimum(spans[order], len(clock.timestamps))
        table = Presentations.from_frames(name, clock.timestamps, spans[:, 0], spans[:, 1], columns)
        found.epochs[name] = clock.edges(find_blocks(name, spans, session_type, warnings))
        if name in NOISE_FRAMES:
            noises.append(table)
        else:
            found.tables[name] = table
    if noises:
        found.tables[NOISE] = merge_noises(noises)
    return found


def _find_groups(file: h5py.File, session_type: str, warnings: list[str]) -> dict[str, h5py.Group]:
    """Return the group of each known stimulus by name without ``_stimulus``."""
    presentations = get_group(file, PRESENTATIONS)
    names = list(presentations) if presentations is not None else []
    groups: dict[str, h5py.Group] = {}
    for key in names:
        name = key.removesuffix(SUFFIX)
        if name in groups:
            raise RecordingError(
                f"{name_of(file[PRESENTATIONS])} has both '{name}' and '{name}{SUFFIX}'",
                allowed="one of them",
                fix="delete the one that does not belong to the recording",
            )
        group = get_group(file[PRESENTATIONS], key)
        if group is None or name not in KNOWN:
            warnings.append(f"stimulus '{key[:80]}' is not one of the Allen's; left out")
        else:
            groups[name] = group
    for name in EXPECTED.get(session_type, ()):
        if name not in groups:
            warnings.append(
                f"no '{name}' or '{name}{SUFFIX}' among the stimuli, which {session_type} should have "
                f"(found: {', '.join(names) or 'none'})"
            )
    return groups


def _refuse(group: h5py.Group, problem: str, allowed: str, fix: str = "download the file again") -> RecordingError:
    return RecordingError(f"{name_of(group)}: {problem}", allowed=allowed, fix=fix)


def _read_data(group: h5py.Group, ndim: int) -> NDArray:
    # Of the group itself: where a template is hard-linked into it, that has a 'data' too.
    dataset = get_dataset(group, "data")
    if dataset is None:
        raise _refuse(group, f"no 'data' (found: {', '.join(group)})", "one row per presentation")
    return read_numbers(dataset, ndim)


def _read_spans(group: h5py.Group, clock: Clock, *, point: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return start and end frames ``(K, 2)``, half-open, and the order that sorts them.

    A `point` (the beginning or end of an interval) may lie at the very end of the recording.
    """
    dataset = get_dataset(group, "frame_duration")
    if dataset is None:
        raise _refuse(group, f"no 'frame_duration' (found: {', '.join(group)})", "start and end frame of each row")
    frames = read_numbers(dataset, 2)
    data = get_dataset(group, "data")
    num_rows = data.shape[0] if data is not None and data.shape else len(frames)
    if frames.shape != (num_rows, 2):
        raise _refuse(group, f"frame_duration of shape {frames.shape} for {num_rows} rows", f"({num_rows}, 2)")
    if not num_rows:
        raise _refuse(group, "no presentations", "1 or more")
    limit = clock.last_frame
    with np.errstate(invalid="ignore"):
        start, end = np.asarray(frames, np.float64).T
        last = start > limit if point else start >= limit
        bad = np.flatnonzero(
            ~(np.isfinite(start) & np.isfinite(end)) | (start < 0) | (end > limit) | last | (end < start)
        )
    if len(bad):
        row = int(bad[0])
        raise _refuse(
            group,
            f"row {row} of frame_duration runs from {start[row]:g} to {end[row]:g}",
            f"frames 0 to {limit}, end not before start",
        )
    # As the Allen's own reader does, fractions are cut off.
    spans = np.stack([start, end], axis=1).astype(np.int64)
    return spans, np.lexsort((spans[:, 1], spans[:, 0]))


def _read_spontaneous(group: h5py.Group, spans: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return ``(K, 2)`` frames: the j-th interval runs from the j-th row of +1 to the j-th row of -1."""
    sign = _read_data(group, 1)
    begin, end = np.sort(spans[sign == 1, 0]), np.sort(spans[sign == -1, 0])
    pairs = len(begin) == len(end) and len(begin) + len(end) == len(sign)
    if not pairs or (end < begin).any() or (begin[1:] < end[:-1]).any():
        raise _refuse(group, f"rows of {sign.tolist()[:10]} are not in pairs", "+1 (on), -1 (off), +1, -1, ...")
    return np.stack([begin, end], axis=1)


def _read_columns(
    file: h5py.File, name: str, group: h5py.Group, order: NDArray[np.int64], session_type: str, warnings: list[str]
) -> dict[str, NDArray]:
    if name in GRATINGS:
        return _read_gratings(name, group, order, warnings)
    frame = _read_data(group, 1)[order]
    if frame.dtype.kind == "f" and not (np.isfinite(frame).all() and (frame == np.trunc(frame)).all()):
        raise _refuse(group, "'data' holds fractions or NaN", "whole numbers of template images")
    frame = frame.astype(np.int64)
    template = get_dataset(file, f"{TEMPLATES}/{name}_image_stack/data")
    known = MOVIE_FRAMES.get(name) or NOISE_FRAMES.get(name) or NUM_SCENES
    length = template.shape[0] if template is not None and template.shape else known
    lowest = -1 if name == SCENES else 0
    bad = np.flatnonzero((frame < lowest) | (frame >= length))
    if len(bad):
        raise _refuse(group, f"row {order[bad[0]]} shows image {frame[bad[0]]}", f"{lowest} to {length - 1}")
    if name in MOVIE_FRAMES:
        return {"frame": frame, "repeat": _count_repeats(name, group, frame, length, session_type, warnings)}
    if name == SCENES:
        return {"frame": frame}
    return {"frame": frame, "pixel_size": np.full(len(frame), NOISE_PIXEL_DEG[name])}


def _count_repeats(
    name: str, group: h5py.Group, frame: NDArray[np.int64], length: int, session_type: str, warnings: list[str]
) -> NDArray[np.int64]:
    """Return the repeat of each row, which goes by its place; refuse a movie with holes."""
    place = np.arange(len(frame))
    wrong = np.flatnonzero(frame != place % length)
    if len(wrong) or len(frame) % length:
        row = int(wrong[0]) if len(wrong) else len(frame)
        shown = f"image {frame[row]}" if row < len(frame) else "the end of the table"
        raise _refuse(
            group,
            f"repeat {row // length} of {name} has {shown} where image {row % length} should be",
            f"repeats of images 0 to {length - 1}",
            "rows are missing: the repeats after them could not be told apart",
        )
    repeats = len(frame) // length
    if session_type in EXPECTED and repeats != MOVIE_REPEATS:
        warnings.append(f"{name} has {repeats} repeats where {MOVIE_REPEATS} were shown")
    return place // length


def _read_gratings(name: str, group: h5py.Group, order: NDArray[np.int64], warnings: list[str]) -> dict[str, NDArray]:
    values = _read_data(group, 2)[order].astype(np.float64)
    dataset = get_dataset(group, "features")
    if dataset is None:
        raise _refuse(group, f"no 'features' (found: {', '.join(group)})", "a name for each column of 'data'")
    features = read_texts(dataset)
    if len(features) != values.shape[1]:
        raise _refuse(group, f"{len(features)} features for {values.shape[1]} columns", "a name for each column")
    missing = [key for key in GRATINGS[name] if features.count(key) != 1]
    if missing:
        raise _refuse(group, f"features {', '.join(features)} lack {', '.join(missing)}", ", ".join(GRATINGS[name]))
    read = {key: values[:, features.index(key)] for key in GRATINGS[name]}
    absent = np.isnan(np.stack(list(read.values()), axis=1))
    blank = np.asarray(absent.all(axis=1))
    if "blank_sweep" in features:
        flagged = np.asarray(values[:, features.index("blank_sweep")] == 1)
        if (flagged & ~blank).any():
            warnings.append(f"{name}: {int((flagged & ~blank).sum())} blank sweeps have feature values; left out")
        blank = flagged
    bad = np.flatnonzero(absent.any(axis=1) & ~blank)
    if len(bad):
        raise _refuse(group, f"row {order[bad[0]]} has no value for a feature but is no blank", "NaN in blanks only")
    columns: dict[str, NDArray] = {}
    for key, known in GRATINGS[name].items():
        identity = _identify(group, key, read[key], np.asarray(known), blank, order)
        columns |= {key: np.where(blank, np.nan, read[key]), f"{key}_id": identity}
    return {**columns, "repeat": count_conditions(columns, blank), "blank_sweep": blank}


def _identify(
    group: h5py.Group,
    key: str,
    values: NDArray[np.float64],
    known: NDArray[np.float64],
    blank: NDArray[np.bool_],
    order: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return the place of each value among the `known` ones; -1 for blanks."""
    nearest = np.abs(np.where(blank, known[0], values)[:, None] - known).argmin(1)
    bad = np.flatnonzero(~blank & ~np.isclose(values, known[nearest], rtol=1e-4))
    if len(bad):
        allowed = ", ".join(f"{value:g}" for value in known)
        raise _refuse(group, f"row {order[bad[0]]} has {key} {values[bad[0]]:g}", allowed)
    return np.where(blank, -1, nearest).astype(np.int64)


def count_conditions(columns: dict[str, NDArray], blank: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return how often the condition of each row was shown before; -1 for blanks."""
    conditions = np.stack([values for key, values in columns.items() if key.endswith("_id")], axis=1)
    _, label = np.unique(conditions, axis=0, return_inverse=True)
    label = label.reshape(-1)
    by_label = np.argsort(label, kind="stable")
    first = np.searchsorted(label[by_label], label[by_label])
    count = np.empty(len(label), np.int64)
    count[by_label] = np.arange(len(label)) - first
    return np.where(blank, -1, count)


def find_blocks(name: str, spans: NDArray[np.int64], session_type: str, warnings: list[str]) -> NDArray[np.int64]:
    """Return the blocks of a stimulus, ``(K, 2)`` frames: sorted presentations with no gap above 300 frames.

    The files hold no list of blocks. AllenSDK cuts at gaps of a few frames (39 in session A), which frames dropped by
    the screen can exceed; a warning says where it would cut otherwise.

    Examples
    --------
    >>> spans = np.array([[10, 70], [100, 160], [204, 264], [9000, 9060]])
    >>> find_blocks("drifting_gratings", spans, "three_session_A", warnings := []).tolist()
    [[10, 264], [9000, 9060]]
    >>> warnings
    ['drifting_gratings: a gap of 44 frames at frame 160 inside a block, where AllenSDK would cut it']
    """
    gaps = spans[1:, 0] - spans[:-1, 1]
    cuts = np.flatnonzero(gaps > BLOCK_GAP_FRAMES)
    inside = np.flatnonzero((gaps > SDK_GAP_FRAMES.get(session_type, BLOCK_GAP_FRAMES)) & (gaps <= BLOCK_GAP_FRAMES))
    for row in inside[:1]:
        more = f" and {len(inside) - 1} more" if len(inside) > 1 else ""
        warnings.append(
            f"{name}: a gap of {gaps[row]} frames at frame {spans[row, 1]}{more} inside a block, "
            "where AllenSDK would cut it"
        )
    if len(cuts) + 1 > MOST_BLOCKS:
        warnings.append(f"{name}: {len(cuts) + 1} blocks, of which the Allen's sessions have up to {MOST_BLOCKS}")
    first, last = np.append(0, cuts + 1), np.append(cuts, len(spans) - 1)
    reach = np.maximum.accumulate(spans[:, 1])
    return np.stack([spans[first, 0], reach[last]], axis=1)


def merge_noises(noises: list[Presentations]) -> Presentations:
    """Join the sparse noises of session C2 into one table, in the order of time."""
    order = np.argsort(np.concatenate([table.start_frame for table in noises]), kind="stable")

    def join(part: Callable[[Presentations], NDArray]) -> NDArray:
        return np.concatenate([part(table) for table in noises])[order]

    return Presentations(
        NOISE,
        join(lambda table: table.start),
        join(lambda table: table.end),
        join(lambda table: table.start_frame),
        join(lambda table: table.end_frame),
        {"frame": join(lambda table: table.columns["frame"]), "pixel_size": join(lambda t: t.columns["pixel_size"])},
    )


PIPELINE = "processing/brain_observatory_pipeline"
DFF = f"{PIPELINE}/DfOverF/imaging_plane_1"
FLUORESCENCE = f"{PIPELINE}/Fluorescence/imaging_plane_1"


def read_clock(file: h5py.File) -> NDArray[np.float64]:
    """Return the imaging timestamps, those of dF/F or else of the fluorescence.

    Raises
    ------
    RecordingError
        If there are none, or they are not finite and increasing.
    """
    dataset = get_dataset(file, f"{DFF}/timestamps")
    if dataset is None:
        dataset = get_dataset(file, f"{FLUORESCENCE}/timestamps")
    if dataset is None:
        raise RecordingError(
            f"{file.filename}: no timestamps in {DFF} or {FLUORESCENCE}", fix="download the file again"
        )
    times = read_numbers(dataset, 1).astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(times))
    if len(bad) == 0:
        bad = np.flatnonzero(np.diff(times) <= 0) + 1
    if len(bad):
        before = f" after {times[bad[0] - 1]:g}" if bad[0] else ""
        raise RecordingError(
            f"{name_of(dataset)}: timestamp {bad[0]} is {times[bad[0]]:g}{before}",
            allowed="finite seconds that increase",
            fix="download the file again",
        )
    return times


def find_traces(file: h5py.File, name: str, times: int, rois: int | None, max_trim: int) -> h5py.Dataset:
    """Return an ``(N, T)`` dataset after comparing it with the number of timestamps and of ROIs.

    Raises
    ------
    RecordingError
        If it is missing, transposed, or more than `max_trim` frames off the timestamps.
    """
    dataset = get_dataset(file, f"{name}/data")
    if dataset is None:
        raise RecordingError(f"{file.filename}: no '{name}/data'", fix="give an Allen NWB 1 file with these traces")
    require_numbers(dataset, 2, whole=False)
    num_rois, num_frames = dataset.shape
    if abs(num_frames - times) > max_trim:
        turned = abs(num_rois - times) <= max_trim and (rois is None or num_frames == rois)
        raise RecordingError(
            f"{name_of(dataset)} has shape {dataset.shape} for {times} timestamps"
            + (": transposed, (frames, ROIs)" if turned else ""),
            allowed=f"(ROIs, frames), up to {max_trim} frames more or less than timestamps",
            fix="store it as (ROIs, frames)" if turned else "download the file again",
        )
    return dataset


def read_fluorescence(
    path: Path | str,
    kind: Literal["raw", "neuropil", "demixed", "corrected"] = "corrected",
    *,
    rois: Sequence[int] | None = None,
    without_demixing: bool = False,
) -> NDArray[np.float32]:
    """Return fluorescence traces of an Allen NWB 1 file, for those who compute dF/F themselves.

    The neuropil-corrected trace is in no file: from pipeline 2.0 on it is the demixed trace, before it the raw one,
    less the neuropil times each ROI's contamination ratio r.

    Parameters
    ----------
    path : path
        The file.
    kind : {'raw', 'neuropil', 'demixed', 'corrected'}
        Which trace.
    rois : sequence of int, optional
        Rows in the order wanted; by default all.
    without_demixing : bool
        Correct the raw trace where the demixed one is missing, as it is in a few files.

    Returns
    -------
    ndarray
        ``(T, len(rows))`` arbitrary units.

    Raises
    ------
    RecordingError
        If the traces are missing or damaged, or a row does not exist.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        version = read_version(file, [])
        neuropil = f"{FLUORESCENCE}_neuropil_response"
        old = get_dataset(file, f"{neuropil}/data") is None
        parts = {
            "raw": f"{FLUORESCENCE}/data",
            "neuropil": f"{FLUORESCENCE}/neuropil_traces" if old else f"{neuropil}/data",
            "demixed": f"{FLUORESCENCE}_demixed_signal/data",
        }
        if kind != "corrected":
            return _read_rows(file, parts[kind], rois)
        source = "raw" if version.startswith(("0", "1")) else "demixed"
        if source == "demixed" and get_dataset(file, parts["demixed"]) is None and without_demixing:
            source = "raw"
        ratio = get_dataset(file, f"{FLUORESCENCE}/r" if old else f"{neuropil}/r")
        if ratio is None:
            raise RecordingError(f"{path}: no contamination ratio r", fix="read 'raw' or 'neuropil' instead")
        signal, surround = _read_rows(file, parts[source], rois), _read_rows(file, parts["neuropil"], rois)
        ratios = read_numbers(ratio, 1)
        if len(ratios) < signal.shape[1] or signal.shape != surround.shape:
            raise RecordingError(
                f"{path}: {source} traces {signal.shape}, neuropil {surround.shape}, r {ratios.shape}",
                allowed="the same ROIs in all",
                fix="download the file again",
            )
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
        raise RecordingError(f"{name_of(dataset)}: no ROI {bad[0]}", allowed=f"0 to {num_rois - 1}", fix="correct it")
    # HDF5 reads rows in increasing order only.
    rows, place = np.unique(wanted, return_inverse=True)
    return np.ascontiguousarray(dataset[rows][place].T, np.float32)


Series = tuple[NDArray[np.float64], NDArray]
"""Timestamps ``(n,)`` in seconds and values ``(n, k)``."""


def make_running(series: Series, warnings: list[str]) -> TimeSeries | None:
    """Return the running speed of a series with one column, in its unit; None if no sample is finite.

    Examples
    --------
    >>> warnings = []
    >>> make_running((np.arange(3.0), np.array([[0.0], [np.nan], [2.0]])), warnings).values.tolist()
    [0.0, 2.0]
    >>> warnings
    ['running speed: 1 of 3 samples are not finite; left out']
    """
    times, values = series
    valid = np.isfinite(values[:, 0])
    if not valid.all():
        warnings.append(f"running speed: {int((~valid).sum())} of {len(valid)} samples are not finite; left out")
    return TimeSeries(times[valid], values[valid, 0].astype(np.float32)) if valid.any() else None


def make_pupil(gaze: Series, area: Series | None, warnings: list[str]) -> PupilTrace | None:
    """Return gaze ``(n, 2)`` and pupil size of one clock, without the samples that the eye tracker rejected (NaN).

    Examples
    --------
    >>> times = np.arange(2.0)
    >>> make_pupil((times, np.zeros((2, 2))), (times, np.array([[5.0], [np.nan]])), []).size.tolist()
    [5.0]
    """
    times, location = gaze
    size = np.full(len(times), np.nan)
    if area is not None and area[1].shape == (len(times), 1) and np.array_equal(area[0], times):
        size = area[1][:, 0]
    elif area is not None:
        warnings.append("pupil size has a clock of its own; left out")
    valid = np.isfinite(location).all(axis=1) & (np.isfinite(size) | np.isnan(size).all())
    if not valid.all():
        warnings.append(f"pupil: {int((~valid).sum())} of {len(valid)} samples rejected by the eye tracker; left out")
    if not valid.any():
        return None
    return PupilTrace(times[valid], location[valid].astype(np.float32), size[valid].astype(np.float32))


SEGMENTATION = f"{PIPELINE}/ImageSegmentation"
PLANE = f"{SEGMENTATION}/imaging_plane_1"
DATA_FOLDER = "ophys_experiment_data"
PLANE_SHAPE = (512, 512)
MAX_PLANE_PIXELS = 4096


@dataclass(frozen=True)
class AllenSource(Source):
    """Allen Brain Observatory, Visual Coding two-photon: NWB 1 files of pipelines 0.9 to 3.0.

    Attributes
    ----------
    max_trim_frames : int
        dF/F and timestamps may differ by so many frames, which are trimmed with a warning.
    """

    max_trim_frames: int = 1
    name = "allen"

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Tell whether `path` is an HDF5 file with the Allen's pipeline module or a text of NWB 1."""
        return is_hdf5(
            path,
            ".nwb",
            lambda file: get(file, PIPELINE) is not None or read_text(file, "nwb_version").startswith("NWB-1"),
        )

    def find(self, input: Path) -> list[Path]:
        """Return the file itself, or every ``*.nwb`` of a folder or of its ``ophys_experiment_data``."""
        if input.is_file():
            return [input]
        for folder in (input / DATA_FOLDER, input):
            paths = sorted(folder.glob("*.nwb"))
            if paths:
                return paths
        raise RecordingError(
            f"no *.nwb in {input} or its {DATA_FOLDER}",
            fix="give a folder of Allen files, or get some with 'prepare allen --download'",
        )

    def read(self, path: Path) -> Recording:
        """Return the recording of one file; its dF/F stays on disk where it is stored contiguously.

        Raises
        ------
        RecordingError
            If the file is damaged or of another layout, or traces, ROIs, clock and stimuli do not fit together.
        """
        with open_hdf5(path) as file:
            _require_pipeline(file, path)
            return self._read(file, path)

    def _read(self, file: h5py.File, path: Path) -> Recording:
        warnings = Notes()
        times = read_clock(file)
        ids = _read_identities(file)
        dataset = find_traces(file, DFF, len(times), ids.count, self.max_trim_frames)
        ids.check(file, dataset.shape[0], warnings)
        longest = max(len(times), dataset.shape[1])
        num_frames = min(len(times), dataset.shape[1])
        if num_frames < 2:
            raise RecordingError(
                f"{name_of(dataset)}: {num_frames} imaging frames", allowed="2 or more", fix="check it"
            )
        if longest > num_frames:
            warnings.append(f"{dataset.shape[1]} frames of dF/F and {len(times)} timestamps: trimmed to {num_frames}")
        times = times[:num_frames]
        metadata = read_metadata(file, warnings)
        recording_id = self.recording_id(path)
        named = read_text(file, "general/session_id") or read_text(file, "general/ophys_experiment_id")
        if named != recording_id:
            warnings.append(f"the file says that it is experiment '{named}'; called {recording_id} after its name")
        stimuli = read_stimuli(file, Clock(times, longest), metadata.session_type, warnings)
        masks = _read_masks(file, ids.roi_list, warnings)
        motion = _read_motion(file, warnings)
        running = _read_running(file, warnings)
        pupil = _read_pupil(file, warnings)
        return Recording(
            recording_id,
            StoredTraces(dataset, num_frames, by_roi=True),
            times,
            metadata,
            unit_ids=np.array(ids.roi_ids, dtype=np.str_),
            cell_specimen_ids=ids.cell_specimen_ids,
            stimuli=stimuli.tables,
            epochs=stimuli.epochs,
            running=running,
            pupil=pupil,
            motion=motion,
            roi_masks=masks,
            warnings=tuple(warnings),
        )

    def movies(self, path: Path) -> Iterator[tuple[str, Any]]:
        """Give the templates of movies, scenes and sparse noises by name, each sliced by images.

        Raises
        ------
        RecordingError
            If a template is no stack of 8-bit grey images.
        """
        with open_hdf5(path) as file:
            templates = get_group(file, TEMPLATES)
            for key in templates if templates is not None else ():
                name = key.removesuffix("_image_stack")
                dataset = get_dataset(file, f"{TEMPLATES}/{key}/data")
                if dataset is not None and name in KNOWN:
                    require_numbers(dataset, 3, whole=False)
                    yield name, GreyImages(dataset)


class GreyImages:
    """A stack of grey images as uint8, read by slices; scenes are stored as floats that hold whole numbers."""

    dtype = np.dtype(np.uint8)
    ndim = 3

    def __init__(self, dataset: h5py.Dataset) -> None:
        self.shape = tuple(int(size) for size in dataset.shape)
        self._dataset = dataset

    def __getitem__(self, images: Any) -> NDArray[np.uint8]:
        values = np.asarray(self._dataset[images])
        if values.dtype == np.uint8:
            return values
        # NaN compares false.
        if not ((values >= 0) & (values <= 255) & (values == np.trunc(values))).all():
            raise RecordingError(
                f"{name_of(self._dataset)} holds pixels that are no grey levels",
                allowed="whole numbers 0 to 255",
                fix="download the file again",
            )
        return values.astype(np.uint8)


def _require_pipeline(file: h5py.File, path: Path) -> None:
    if get_group(file, PIPELINE) is None:
        modules = get_group(file, "processing")
        found = ", ".join(modules) if modules is not None else f"no 'processing'; {', '.join(list(file)[:12])}"
        raise RecordingError(
            f"{path}: no group '{PIPELINE}' (found: {found})",
            fix="give an Allen Brain Observatory NWB 1 file; for NWB 2 use 'prepare nwb'",
        )
    if get_group(file, DFF) is None:
        raise RecordingError(
            f"{path}: no group '{DFF}' (found: {', '.join(file[PIPELINE])})", fix="give a file with dF/F"
        )


@dataclass
class _Identities:
    """The names that a file gives its ROIs; empty where it has none."""

    cell_specimen_ids: NDArray[np.int64]
    roi_ids: list[str]
    roi_list: list[str]

    @property
    def count(self) -> int | None:
        return next((len(values) for values in vars(self).values() if len(values)), None)

    def check(self, file: h5py.File, num_rois: int, warnings: list[str]) -> None:
        """Compare the lengths, refuse names that are given twice, and fill in what is missing."""
        lengths = {name: len(values) for name, values in vars(self).items() if len(values)}
        if any(length != num_rois for length in lengths.values()):
            found = ", ".join(f"{length} {name}" for name, length in lengths.items())
            raise RecordingError(
                f"{file.filename}: {num_rois} dF/F traces, {found}",
                allowed="one of each per ROI",
                fix="download the file again",
            )
        for name, values in vars(self).items():
            unique, count = np.unique([value for value in values if value != -1], return_counts=True)
            if (count > 1).any():
                raise RecordingError(
                    f"{file.filename}: {name} {unique[count > 1][0]} occurs {count.max()} times",
                    allowed="each once",
                    fix="download the file again",
                )
        if not len(self.cell_specimen_ids):
            warnings.append("no cell specimen ids: cells cannot be matched with other sessions")
            self.cell_specimen_ids = np.full(num_rois, -1, np.int64)
        if not self.roi_ids:
            warnings.append("no roi_ids: units are called by their row")
            self.roi_ids = self.roi_list or [f"roi_{row:04d}" for row in range(num_rois)]


def _read_identities(file: h5py.File) -> _Identities:
    cells = get_dataset(file, f"{SEGMENTATION}/cell_specimen_ids")
    specimens = read_numbers(cells, 1) if cells is not None else np.zeros(0, np.int64)
    if specimens.dtype.kind not in "iu":
        raise RecordingError(
            f"{name_of(cells)} holds {specimens.dtype}", allowed="whole numbers", fix="download the file again"
        )
    texts = [get_dataset(file, name) for name in (f"{SEGMENTATION}/roi_ids", f"{PLANE}/roi_list")]
    return _Identities(specimens.astype(np.int64), *[[] if t is None else read_texts(t) for t in texts])


def _read_masks(file: h5py.File, roi_list: list[str], warnings: list[str]) -> RoiMasks | None:
    """Read the pixel list of each ROI, or its image where it has none or the first of them disagrees with its image.

    A list is read much faster than an image that is nearly all zero, and opening each image alone takes longer than
    everything else together.
    """
    pixels: list[NDArray] = []
    shape, lists_hold = None, True
    plane = get_group(file, PLANE)
    for key in roi_list:
        mask = f"{PLANE}/{key}"
        safe = plane is not None and re.fullmatch(r"[\w.-]+", key)
        listed = _read_pixel_list(plane, key, shape) if safe and lists_hold else None
        if safe and (listed is None or shape is None):
            image = _read_image(file, mask)
            if image is not None:
                if shape is not None and image.shape != shape:
                    raise RecordingError(
                        f"{file.filename}: masks of {shape} and of {image.shape} pixels",
                        allowed="one size",
                        fix="download the file again",
                    )
                shape = image.shape
                if listed is not None and not _same_pixels(listed, image):
                    warnings.append("pixel lists of the ROIs are not those of their images; the images are taken")
                    lists_hold, listed = False, None
                listed = np.stack(np.nonzero(image)) if listed is None else listed
        pixels.append(np.zeros((2, 0), np.int64) if listed is None else listed)
    empty = [row for row, part in enumerate(pixels) if part.shape[1] == 0]
    if len(empty) == len(pixels):
        warnings.append("no ROI masks: positions are unknown")
        return None
    if empty:
        warnings.append(f"the mask is empty in {name_rows(empty)}: position unknown")
    unit = np.repeat(np.arange(len(pixels), dtype=np.int32), [part.shape[1] for part in pixels])
    rows, columns = np.concatenate(pixels, axis=1).astype(np.int32)
    return RoiMasks(unit, rows, columns, shape or PLANE_SHAPE)


def _read_pixel_list(plane: h5py.Group, key: str, shape: tuple[int, int] | None) -> NDArray | None:
    """Return rows and columns ``(2, P)`` of a list of x and y; None if there is none inside the plane."""
    listed = read_small(plane, f"{key}/pix_mask")
    if listed is None or listed.ndim != 2 or listed.shape[1] != 2 or listed.dtype.kind not in "iu":
        return None
    columns, rows = listed.T.astype(np.int64)
    height, width = shape or PLANE_SHAPE
    if len(rows) and (min(rows.min(), columns.min()) < 0 or rows.max() >= height or columns.max() >= width):
        return None
    return np.stack([rows, columns])


def _read_image(file: h5py.File, mask: str) -> NDArray[np.bool_] | None:
    """Return the image of a mask, True inside."""
    image = get_dataset(file, f"{mask}/img_mask")
    if image is None:
        return None
    require_numbers(image, 2)
    if max(image.shape) > MAX_PLANE_PIXELS:
        raise RecordingError(
            f"{name_of(image)} has shape {image.shape}",
            allowed=f"up to {MAX_PLANE_PIXELS} pixels a side",
            fix="download the file again",
        )
    return np.nan_to_num(read_numbers(image, 2)) != 0


def _same_pixels(listed: NDArray, image: NDArray[np.bool_]) -> bool:
    drawn = np.zeros_like(image)
    inside = (listed < np.array(image.shape)[:, None]).all(axis=0)
    drawn[tuple(listed[:, inside])] = True
    return bool(inside.all() and np.array_equal(drawn, image))


def _read_series(file: h5py.File, name: str, warnings: list[str]) -> tuple[NDArray, NDArray] | None:
    """Return timestamps and data ``(n, k)`` of a behavioural trace; samples that are not finite stay in."""
    group = get_group(file, name)
    if group is None:
        return None
    data, stamps = get_dataset(group, "data"), get_dataset(group, "timestamps")
    what = name.rpartition("/")[2]
    if data is None or stamps is None:
        warnings.append(f"{what} lacks its {'data' if data is None else 'timestamps'}; left out")
        return None
    times = read_numbers(stamps, 1).astype(np.float64)
    values = read_numbers(data, 2 if data.ndim == 2 else 1)
    if len(values) != len(times):
        warnings.append(f"{what}: {len(values)} samples for {len(times)} timestamps; left out")
        return None
    if not (np.isfinite(times).all() and (np.diff(times) > 0).all()):
        warnings.append(f"{what}: timestamps are not finite and increasing; left out")
        return None
    return times, values.reshape(len(values), -1)


def _read_running(file: h5py.File, warnings: list[str]) -> TimeSeries | None:
    """Return the running speed; the oldest files keep it as a column."""
    series = _read_series(file, f"{PIPELINE}/BehavioralTimeSeries/running_speed", warnings)
    if series is None:
        return None
    if series[1].shape[1] != 1:
        warnings.append(f"running_speed has {series[1].shape[1]} columns; left out")
        return None
    return make_running(series, warnings)


def _read_pupil(file: h5py.File, warnings: list[str]) -> PupilTrace | None:
    """Return gaze and pupil size; most files have none. Samples that the eye tracker rejected are NaN."""
    place = _read_series(file, f"{PIPELINE}/EyeTracking/pupil_location", warnings)
    area = _read_series(file, f"{PIPELINE}/PupilTracking/pupil_size", warnings)
    if place is None or place[1].shape[1] != 2:
        if place is not None or area is not None:
            warnings.append("pupil: no gaze on the monitor; left out")
        return None
    return make_pupil(place, area, warnings)


def _read_motion(file: h5py.File, warnings: list[str]) -> TimeSeries | None:
    """Return the shift of the imaging plane in pixels, x and y."""
    folder = f"{PIPELINE}/MotionCorrection/2p_image_series"
    # The oldest files have the plural.
    name = next(
        (f"{folder}/{key}" for key in ("xy_translation", "xy_translations") if get(file, f"{folder}/{key}")), ""
    )
    series = _read_series(file, name, warnings) if name else None
    if series is None:
        return None
    stamps, shift = series
    if shift.shape[1] != 2 or not np.isfinite(shift).all():
        warnings.append(f"motion of shape {shift.shape} is not x and y of every frame; left out")
        return None
    features = get_dataset(file, f"{name}/feature_description")
    names = read_texts(features) if features is not None else []
    if names == ["y_motion", "x_motion"]:
        shift = shift[:, ::-1]
    return TimeSeries(stamps, shift.astype(np.float32))
