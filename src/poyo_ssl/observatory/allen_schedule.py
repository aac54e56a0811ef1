"""The schedules of the Allen Brain Observatory's sessions A, B, C and C2, exact to the imaging frame.

Block edges are those of one real session of each kind (ids and files: documentation of the observatory); how many
presentations a block holds follows from its length and the published totals. Between the edges of a block,
presentations are spread evenly on ticks of the 60 Hz monitor, so that the first one begins and the last one ends on the
block's frames; the monitor thereby runs within 0.02 % of 60 Hz.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from poyo_ssl import protocol
from poyo_ssl.sources.coding import count_occurrences

GRATINGS_SESSION = "three_session_A"
MONITOR_RATE_HZ = 60
TICKS_PER_MOVIE_FRAME, TICKS_PER_IMAGE = 2, 15
GRATING_S, GRATING_PERIOD_S = 2, 3
IMAGE_S = 0.25
"""Static gratings, natural scenes and noise frames follow one another without a gap."""

MOVIE_FRAMES: Mapping[str, int] = MappingProxyType(
    {"natural_movie_one": 900, "natural_movie_two": 900, "natural_movie_three": 3600}
)
NUM_SCENES = 118
SCENE_REPEATS = 50
"""Of each image and of the blank."""
NOISE_TEMPLATES: Mapping[str, tuple[int, int, int, float]] = MappingProxyType(
    {
        "locally_sparse_noise": (9000, 16, 28, 4.65),
        "locally_sparse_noise_4deg": (5812, 16, 28, 4.65),
        "locally_sparse_noise_8deg": (5584, 8, 14, 9.3),
    }
)
"""Frames, rows, columns and pixel size in degrees of each noise."""

STATIC_ORIENTATIONS_DEG = (0.0, 30.0, 60.0, 90.0, 120.0, 150.0)
STATIC_SPATIAL_FREQUENCIES_CPD = (0.02, 0.04, 0.08, 0.16, 0.32)
STATIC_PHASES = (0.0, 0.25, 0.5, 0.75)
NUM_STATIC_BLANKS = 191
GRATING_REPEATS = 15
NUM_GRATING_BLANKS = 30
NUM_LOST_GRATINGS = 2
"""Sweeps that a real session falls short of 15 for each condition: 628 = 8 x 5 x 15 - 2 + 30."""


@dataclass(frozen=True)
class Block:
    """One stimulus on the screen without a break."""

    stimulus: str  # Allen name
    start_frame: int  # Imaging frames, half-open
    end_frame: int  # Imaging frames, half-open
    num_presentations: int = 0  # Sweeps, images or movie frames; 0 for ``spontaneous``

    @property
    def duration_s(self) -> float:
        """Nominal length in seconds: a gratings block ends with its last sweep, before the gray after it."""
        if self.stimulus == "drifting_gratings":
            return GRATING_PERIOD_S * self.num_presentations - (GRATING_PERIOD_S - GRATING_S)
        if self.stimulus in MOVIE_FRAMES:
            return self.num_presentations / 30
        return IMAGE_S * self.num_presentations


@dataclass(frozen=True)
class AllenSession:
    """Length in imaging frames, and blocks in order of time, of one kind of session."""

    num_frames: int
    blocks: tuple[Block, ...]

    @property
    def rate_hz(self) -> float:
        """Imaging rate at which the blocks have their nominal lengths."""
        shown = [block for block in self.blocks if block.num_presentations]
        frames = sum(block.end_frame - block.start_frame for block in shown)
        return frames / sum(block.duration_s for block in shown)


def _session(num_frames: int, *rows: tuple[str, int, int, int]) -> AllenSession:
    return AllenSession(num_frames, tuple(Block(*row) for row in rows))


# Spontaneous activity begins 150 frames (5 s) after the stimulus before it and lasts until the next one.
ALLEN_SESSIONS: Mapping[str, AllenSession] = MappingProxyType(
    {
        "three_session_A": _session(
            115481,
            ("drifting_gratings", 743, 18776, 200),
            ("natural_movie_three", 19708, 37772, 18000),
            ("natural_movie_one", 38673, 47706, 9000),
            ("drifting_gratings", 48607, 66640, 200),
            ("spontaneous", 66790, 75701, 0),
            ("natural_movie_three", 75701, 93763, 18000),
            ("drifting_gratings", 94664, 115226, 228),
        ),
        "three_session_B": _session(
            113854,
            ("static_gratings", 742, 15193, 1920),
            ("natural_scenes", 16095, 30546, 1920),
            ("spontaneous", 30696, 39577, 0),
            ("natural_scenes", 39577, 54027, 1920),
            ("static_gratings", 54928, 69379, 1920),
            ("natural_movie_one", 70281, 79313, 9000),
            ("natural_scenes", 80215, 96096, 2110),
            ("static_gratings", 97374, 113630, 2160),
        ),
        "three_session_C": _session(
            105733,
            ("locally_sparse_noise", 743, 22418, 2880),
            ("spontaneous", 22568, 31450, 0),
            ("natural_movie_one", 31451, 40480, 9000),
            ("locally_sparse_noise", 41386, 63059, 2880),
            ("natural_movie_two", 63963, 72992, 9000),
            ("spontaneous", 73142, 82024, 0),
            ("locally_sparse_noise", 82025, 105503, 3120),
        ),
        "three_session_C2": _session(
            124060,
            ("locally_sparse_noise_4deg", 743, 15344, 1940),
            ("locally_sparse_noise_8deg", 15344, 29343, 1860),
            ("spontaneous", 29493, 38374, 0),
            ("natural_movie_one", 38374, 47405, 9000),
            ("locally_sparse_noise_4deg", 48006, 62605, 1940),
            ("locally_sparse_noise_8deg", 62605, 76605, 1860),
            ("natural_movie_two", 77205, 86238, 9000),
            ("spontaneous", 86388, 95268, 0),
            ("locally_sparse_noise_8deg", 95268, 109296, 1864),
            ("locally_sparse_noise_4deg", 109296, 123836, 1932),
        ),
    }
)
"""Real blocks by session type."""


def block_shares(block: Block) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return when presentations begin and end, as shares of the block's length, ``(K,)`` each."""
    number = np.arange(block.num_presentations)
    if block.stimulus == "drifting_gratings":
        onset, length = GRATING_PERIOD_S * number.astype(float), float(GRATING_S)
    else:
        length = block.duration_s / max(block.num_presentations, 1)
        onset = length * number
    return onset / block.duration_s, (onset + length) / block.duration_s


def draw_conditions(stimulus: str, rng: np.random.Generator) -> dict[str, NDArray]:
    """Draw what is shown in each presentation of a stimulus over a whole session: the columns of its table."""
    if stimulus == "drifting_gratings":
        frequencies = protocol.GRATING_TEMPORAL_FREQUENCIES_HZ
        return draw_drifting_gratings(frequencies, GRATING_REPEATS, NUM_GRATING_BLANKS, rng, num_lost=NUM_LOST_GRATINGS)
    if stimulus == "static_gratings":
        return _draw_static_gratings(rng)
    if stimulus == "natural_scenes":
        return {"frame": rng.permutation(np.repeat(np.arange(-1, NUM_SCENES), SCENE_REPEATS))}
    if stimulus in NOISE_TEMPLATES:
        return _noise_columns(stimulus)
    total = sum(b.num_presentations for b in ALLEN_SESSIONS[_session_with(stimulus)].blocks if b.stimulus == stimulus)
    number = np.arange(total)
    return {"frame": number % MOVIE_FRAMES[stimulus], "repeat": number // MOVIE_FRAMES[stimulus]}


def _session_with(stimulus: str) -> str:
    return next(name for name, plan in ALLEN_SESSIONS.items() if any(b.stimulus == stimulus for b in plan.blocks))


def _noise_columns(stimulus: str) -> dict[str, NDArray]:
    """Noise frames in the order of the template; session C skips 120 of them between its second and third block."""
    num_templates, _, _, pixel_size = NOISE_TEMPLATES[stimulus]
    lengths = [b.num_presentations for b in ALLEN_SESSIONS[_session_with(stimulus)].blocks if b.stimulus == stimulus]
    skipped = num_templates - sum(lengths)
    frame = np.arange(sum(lengths))
    frame[sum(lengths[:-1]) :] += skipped
    return {"frame": frame, "pixel_size": np.full(len(frame), pixel_size)}


def draw_drifting_gratings(
    temporal_frequencies_hz: tuple[float, ...],
    repeats: int,
    num_blanks: int,
    rng: np.random.Generator,
    *,
    num_lost: int = 0,
) -> dict[str, NDArray]:
    """Draw a session's sweeps in random order, blank sweeps among them."""
    frequencies = np.asarray(temporal_frequencies_hz)
    directions = np.asarray(protocol.GRATING_DIRECTIONS_DEG)
    num_conditions = len(directions) * len(frequencies)
    condition = np.repeat(np.arange(num_conditions), repeats)
    lost = rng.choice(num_conditions, num_lost, replace=False)
    condition = np.delete(condition, lost * repeats)
    condition = rng.permutation(np.append(condition, np.full(num_blanks, -1)))
    blank = condition < 0
    direction, frequency = np.divmod(condition, len(frequencies))
    known = np.asarray(protocol.GRATING_TEMPORAL_FREQUENCIES_HZ)
    return {
        "orientation": np.where(blank, np.nan, directions[direction]),
        "temporal_frequency": np.where(blank, np.nan, frequencies[frequency]),
        "orientation_id": np.where(blank, -1, direction),
        "temporal_frequency_id": np.where(blank, -1, np.searchsorted(known, frequencies[frequency])),
        "repeat": np.where(blank, -1, count_occurrences(condition)),
        "blank_sweep": blank,
    }


def _draw_static_gratings(rng: np.random.Generator) -> dict[str, NDArray]:
    """6000 gratings: 48 or 49 of each of the 120 conditions, and the blanks."""
    shape = (len(STATIC_ORIENTATIONS_DEG), len(STATIC_SPATIAL_FREQUENCIES_CPD), len(STATIC_PHASES))
    num_conditions, num_shown = int(np.prod(shape)), 6000 - NUM_STATIC_BLANKS
    more = rng.choice(num_conditions, num_shown % num_conditions, replace=False)
    shown = np.append(np.repeat(np.arange(num_conditions), num_shown // num_conditions), more)
    condition = rng.permutation(np.append(shown, np.full(NUM_STATIC_BLANKS, -1)))
    blank = condition < 0
    columns: dict[str, NDArray] = {}
    values = {
        "orientation": STATIC_ORIENTATIONS_DEG,
        "spatial_frequency": STATIC_SPATIAL_FREQUENCIES_CPD,
        "phase": STATIC_PHASES,
    }
    places = np.unravel_index(np.maximum(condition, 0), shape)
    for (name, levels), place in zip(values.items(), places, strict=True):
        columns[name] = np.where(blank, np.nan, np.asarray(levels)[place])
        columns[f"{name}_id"] = np.where(blank, -1, place)
    columns["repeat"] = np.where(blank, -1, count_occurrences(condition))
    columns["blank_sweep"] = blank
    return columns
