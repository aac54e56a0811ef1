"""How stimulus tables are coded, whatever file they come from: conditions, repeats, blank sweeps, blocks.

The columns are those of `poyo_ssl.data.stimuli.Presentations`: the feature of a grating (NaN for a blank sweep), its
`_id` (place among the known values, -1 for a blank sweep), `repeat` within the condition, `blank_sweep`; `frame` and
`repeat` of a movie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from poyo_ssl import protocol
from poyo_ssl.data.intervals import merge
from poyo_ssl.errors import RecordingError
from poyo_ssl.sources.base import Notes

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
"""Features of the Allen's gratings and their values, whose places are the ids."""

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

BLOCK_GAP_FRAMES = round(30 * protocol.BLOCK_PAUSE_S)  # In the Allen's sessions, thousands lie between blocks
MOST_BLOCKS = 3  # Of one stimulus in a session of the Allen's
# Where AllenSDK cuts; a dropped frame or two can exceed it.
SDK_GAP_FRAMES = {"three_session_A": 39, "three_session_B": 15, "three_session_C": 7, "three_session_C2": 7}


def count_occurrences(values: NDArray) -> NDArray[np.int64]:
    """Return how often each value ``(K,)``, or row of values ``(K, F)``, has occurred before."""
    label = np.unique(values, axis=0, return_inverse=True)[1].reshape(-1)
    order = np.argsort(label, kind="stable")
    first = np.searchsorted(label[order], label[order])
    count = np.empty(len(label), np.int64)
    count[order] = np.arange(len(label)) - first
    return count


def code_feature(
    key: str, values: NDArray[np.float64], shown: NDArray[np.bool_], levels: Sequence[float] | NDArray[np.float64]
) -> dict[str, NDArray]:
    """Return a feature ``(K,)`` and the id of its nearest level; NaN and -1 where none was `shown`."""
    known = np.asarray(levels, np.float64)
    nearest = np.abs(np.where(shown, values, 0.0)[:, None] - known).argmin(1)
    return {key: np.where(shown, values, np.nan), f"{key}_id": np.where(shown, nearest, -1).astype(np.int64)}


def code_gratings(
    name: str,
    values: Mapping[str, NDArray[np.float64]],
    flags: NDArray | None,
    what: str,
    notes: Notes,
    *,
    rows: NDArray[np.int64] | None = None,
) -> dict[str, NDArray]:
    """Return the columns of one of the Allen's gratings.

    A sweep is blank where `flags` is 1 or, without flags, where no feature has a value. `rows` are the places of the
    sweeps in the file, for messages.
    """
    levels = GRATINGS[name]
    absent = np.isnan(np.stack([values[key] for key in levels], axis=1))  # (K, F)
    blank = np.asarray(absent.all(axis=1))
    if flags is not None:
        flagged = np.asarray(flags == 1)
        if (flagged & ~blank).any():
            notes.add(f"{name}: {int((flagged & ~blank).sum())} blank sweeps have feature values; left out")
        blank = flagged
    rows = np.arange(len(blank)) if rows is None else rows
    fix = "download the file again"
    bad = np.flatnonzero(absent.any(axis=1) & ~blank)
    if len(bad):
        problem = f"{what}: row {rows[bad[0]]} has no value for a feature but is no blank"
        raise RecordingError(problem, allowed="NaN in blanks only", fix=fix)
    columns: dict[str, NDArray] = {}
    for key, known in levels.items():
        columns |= code_feature(key, values[key], ~blank, known)
        bad = np.flatnonzero(~blank & ~np.isclose(values[key], np.asarray(known)[columns[f"{key}_id"]], rtol=1e-4))
        if len(bad):
            problem = f"{what}: row {rows[bad[0]]} has {key} {values[key][bad[0]]:g}"
            raise RecordingError(problem, allowed=", ".join(f"{value:g}" for value in known), fix=fix)
    conditions = np.stack([columns[f"{key}_id"] for key in levels], axis=1)
    return columns | {"repeat": np.where(blank, -1, count_occurrences(conditions)), "blank_sweep": blank}


def count_repeats(name: str, frame: NDArray[np.int64], num_frames: int, what: str) -> NDArray[np.int64]:
    """Return the repeat of each row of a movie, by its place; refuse a movie with holes."""
    place = np.arange(len(frame))
    wrong = np.flatnonzero(frame != place % num_frames)
    if len(wrong) or len(frame) % num_frames:
        row = int(wrong[0]) if len(wrong) else len(frame)
        shown = f"image {frame[row]}" if row < len(frame) else "the end of the table"
        raise RecordingError(
            f"{what}: repeat {row // num_frames} of {name} has {shown} where image {row % num_frames} should be",
            allowed=f"repeats of images 0 to {num_frames - 1}",
            fix="rows are missing: the repeats after them could not be told apart",
        )
    return place // num_frames


def find_blocks(name: str, spans: NDArray[np.int64], session_type: str, notes: Notes) -> NDArray[np.int64]:
    """Return the blocks of one of the Allen's stimuli from its presentations, both ``(K, 2)`` frames.

    The files hold no list of blocks. AllenSDK cuts at gaps of a few frames (39 in session A), which frames dropped by
    the screen can exceed; a note says where it would cut otherwise.
    """
    gaps = spans[1:, 0] - spans[:-1, 1]
    inside = np.flatnonzero((gaps > SDK_GAP_FRAMES.get(session_type, BLOCK_GAP_FRAMES)) & (gaps <= BLOCK_GAP_FRAMES))
    for row in inside[:1]:
        more = f" and {len(inside) - 1} more" if len(inside) > 1 else ""
        where = f"a gap of {gaps[row]} frames at frame {spans[row, 1]}{more}"
        notes.add(f"{name}: {where} inside a block, where AllenSDK would cut it")
    blocks = merge(spans.astype(np.float64), gap_s=BLOCK_GAP_FRAMES).astype(np.int64)
    if len(blocks) > MOST_BLOCKS:
        notes.add(f"{name}: {len(blocks)} blocks, of which the Allen's sessions have up to {MOST_BLOCKS}")
    return blocks


def code_images(
    name: str,
    frame: NDArray[np.int64],
    num_images: int | None,
    what: str,
    notes: Notes,
    *,
    rows: NDArray[np.int64] | None = None,
) -> dict[str, NDArray]:
    """Return the columns of one of the Allen's movies, scenes (-1 for a blank) or sparse noises.

    `num_images` is the length of the template, by default the published one; `rows` are the places in the file.
    """
    known = MOVIE_FRAMES.get(name) or NOISE_FRAMES.get(name) or NUM_SCENES
    length = known if num_images is None else num_images
    lowest = -1 if name == SCENES else 0
    bad = np.flatnonzero((frame < lowest) | (frame >= length))
    if len(bad):
        problem = f"{what}: row {bad[0] if rows is None else rows[bad[0]]} shows image {frame[bad[0]]}"
        raise RecordingError(problem, allowed=f"{lowest} to {length - 1}", fix="download the file again")
    if name in NOISE_FRAMES:
        return {"frame": frame, "pixel_size": np.full(len(frame), NOISE_PIXEL_DEG[name])}
    if name == SCENES:
        return {"frame": frame}
    repeat = count_repeats(name, frame, length, what)
    shown = len(frame) // max(length, 1)
    if shown != MOVIE_REPEATS:
        notes.add(f"{name} has {shown} repeats where {MOVIE_REPEATS} were shown")
    return {"frame": frame, "repeat": repeat}
