"""Stimulus tables, blocks and templates of an Allen NWB 1 file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import h5py
import numpy as np
from numpy.typing import NDArray

from poyo_ssl import protocol
from poyo_ssl.data.stimuli import Presentations
from poyo_ssl.errors import RecordingError
from poyo_ssl.sources.hdf5 import get_dataset, get_group, name_of, read_numbers, read_texts

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
