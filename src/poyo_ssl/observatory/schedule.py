"""Sizes of data folders, and when each stimulus of a session is on the screen.

Stimuli change on ticks of a 60 Hz monitor: a grating is on for exactly 120 ticks and gray for 60, a movie frame
for 2. The imaging clock has a rate and a jitter of its own; tables hold both the exact times and the nearest
imaging frames.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from poyo_ssl import protocol
from poyo_ssl.config import check
from poyo_ssl.data.stimuli import Presentations
from poyo_ssl.errors import ConfigError, suggest
from poyo_ssl.observatory.stimuli import MovieSpec

TICKS_PER_S = 60
GRATING_ON_S = 2
GRATING_GRAY_S = 1
TICKS_PER_MOVIE_FRAME = 2

CLOCK_START_S = 26.7
CLOCK_RATES_HZ = (30.04, 30.12)
CLOCK_JITTER_S = 1e-4
CLOCK_RESOLUTION_S = 1e-5


@dataclass(frozen=True)
class ObservatorySize:
    """How much a data folder holds; the schedule is the same for all its recordings.

    Attributes
    ----------
    name : str
        As given to ``--size``.
    lines : tuple of str
        Cre line of each recording.
    num_units : tuple of int
        Fewest and most neurons of a recording, both included.
    movies : tuple of MovieSpec
        Movies of the folder; all are shown in every session.
    temporal_frequencies_hz : tuple of float
        Of the gratings, out of the Allen's five.
    grating_repeats, num_blanks : int
        Trials of each direction and temporal frequency; blank sweeps.
    blocks : tuple of str
        Stimuli in order. A stimulus named several times is divided evenly between its blocks.
    spontaneous_s : float
        Length of each spontaneous block.
    gap_s : float
        Gray before the first block, between blocks and after the last.
    """

    name: str
    lines: tuple[str, ...]
    num_units: tuple[int, int]
    movies: tuple[MovieSpec, ...]
    temporal_frequencies_hz: tuple[float, ...]
    grating_repeats: int
    num_blanks: int
    blocks: tuple[str, ...]
    spontaneous_s: float
    gap_s: float

    def __post_init__(self) -> None:
        known = {"drifting_gratings", "spontaneous", *(movie.name for movie in self.movies)}
        unknown = set(self.blocks) - known
        check(not unknown, f"size {self.name}: blocks {sorted(unknown)}", ", ".join(sorted(known)), "correct them")
        check(
            1 <= self.num_units[0] <= self.num_units[1],
            f"size {self.name}: {self.num_units} units",
            "fewest and most, 1 or more",
            "correct them",
        )
        check(self.gap_s >= 1, f"size {self.name}: gap_s of {self.gap_s}", "1 s or more", "raise it")

    @property
    def num_recordings(self) -> int:
        """Number of recordings."""
        return len(self.lines)

    @property
    def duration_s(self) -> float:
        """Length of a session in seconds."""
        trials = 8 * len(self.temporal_frequencies_hz) * self.grating_repeats + self.num_blanks
        gratings = trials * (GRATING_ON_S + GRATING_GRAY_S) if "drifting_gratings" in self.blocks else 0
        movies = sum(m.num_frames * m.repeats for m in self.movies if m.name in self.blocks)
        spontaneous = self.blocks.count("spontaneous") * self.spontaneous_s
        gaps = (len(self.blocks) + 1) * self.gap_s
        return gratings + movies * TICKS_PER_MOVIE_FRAME / TICKS_PER_S + spontaneous + gaps


_SMALL = ObservatorySize(
    name="small",
    lines=protocol.CRE_LINES,
    num_units=(56, 64),
    movies=(MovieSpec("natural_movie_one", 300), MovieSpec("natural_movie_two", 300)),
    temporal_frequencies_hz=(2.0, 4.0),
    grating_repeats=7,
    num_blanks=6,
    blocks=(
        "drifting_gratings",
        "natural_movie_one",
        "drifting_gratings",
        "spontaneous",
        "natural_movie_two",
        "drifting_gratings",
    ),
    spontaneous_s=60.0,
    gap_s=5.0,
)

_TINY = ObservatorySize(
    name="tiny",
    lines=("Cux2-CreERT2", "Pvalb-IRES-Cre", "Rorb-IRES2-Cre", "Sst-IRES-Cre"),
    num_units=(16, 16),
    movies=(MovieSpec("natural_movie_one", 150, 16, 32), MovieSpec("natural_movie_two", 150, 16, 32)),
    temporal_frequencies_hz=(2.0,),
    grating_repeats=6,
    num_blanks=2,
    blocks=("drifting_gratings", "natural_movie_one", "spontaneous", "natural_movie_two", "drifting_gratings"),
    spontaneous_s=10.0,
    gap_s=2.0,
)

_MEDIUM = replace(_SMALL, name="medium", lines=tuple(itertools.islice(itertools.cycle(protocol.CRE_LINES), 40)))

SIZES: Mapping[str, ObservatorySize] = MappingProxyType({size.name: size for size in (_TINY, _SMALL, _MEDIUM)})
"""Sizes by name: `tiny` for tests, `small` for the demo, `medium` for experiments on one machine."""


def get_size(name: str) -> ObservatorySize:
    """Return a size by name.

    Raises
    ------
    ConfigError
        If there is no such size.

    Examples
    --------
    >>> get_size("small").num_recordings, get_size("medium").num_recordings
    (13, 40)
    """
    if name not in SIZES:
        raise ConfigError(
            f"no size '{name}'{suggest(name, SIZES)}", allowed=", ".join(SIZES), fix="choose one of these"
        )
    return SIZES[name]


@dataclass(frozen=True)
class Schedule:
    """One session's clock and stimulus tables.

    Attributes
    ----------
    timestamps : ndarray
        ``(T,)`` seconds of the imaging frames.
    stimuli : dict
        Stimulus tables by name.
    epochs : dict
        ``(K, 2)`` seconds of each stimulus's blocks, ``spontaneous`` included.
    """

    timestamps: NDArray[np.float64]
    stimuli: dict[str, Presentations]
    epochs: dict[str, NDArray[np.float64]]


def draw_clock(duration_s: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw imaging timestamps: about 30.08 Hz from about 26.7 s, slight jitter, multiples of 1e-5 s.

    Examples
    --------
    >>> times = draw_clock(10.0, np.random.default_rng(0))
    >>> bool((np.diff(times) > 0.03).all()), round(float(1 / np.diff(times).mean()))
    (True, 30)
    """
    rate = rng.uniform(*CLOCK_RATES_HZ)
    num_frames = int(duration_s * rate)
    start = CLOCK_START_S + rng.uniform(0, 0.05)
    jitter = np.clip(rng.normal(0, CLOCK_JITTER_S, num_frames), -10 * CLOCK_JITTER_S, 10 * CLOCK_JITTER_S)
    return np.round((start + np.arange(num_frames) / rate + jitter) / CLOCK_RESOLUTION_S) * CLOCK_RESOLUTION_S


def build_schedule(size: ObservatorySize, rng: np.random.Generator) -> Schedule:
    """Lay out one session: the blocks of `size` in order, gratings in random order.

    Examples
    --------
    >>> schedule = build_schedule(SIZES["tiny"], np.random.default_rng(0))
    >>> table = schedule.stimuli["drifting_gratings"]
    >>> len(table), float((table.end - table.start).round(6).max())
    (50, 2.0)
    """
    timestamps = draw_clock(size.duration_s, rng)
    conditions = _draw_grating_order(size, rng)
    movies = {movie.name: movie for movie in size.movies}
    onsets: dict[str, list[NDArray[np.int64]]] = {}
    epochs: dict[str, list[tuple[float, float]]] = {}
    gap = round(size.gap_s * TICKS_PER_S)
    tick = gap
    for name in size.blocks:
        block, length = _block_ticks(size, name, number=len(epochs.get(name, [])), num_trials=conditions.shape[1])
        onsets.setdefault(name, []).append(tick + block)
        # An epoch ends with its last presentation, before the gray that follows a grating.
        shown = length - GRATING_GRAY_S * TICKS_PER_S if name == "drifting_gratings" else length
        first = timestamps[0] + tick / TICKS_PER_S
        epochs.setdefault(name, []).append((first, first + shown / TICKS_PER_S))
        tick += length + gap
    stimuli = {}
    for name, pieces in onsets.items():
        ticks = np.concatenate(pieces)
        if name in movies:
            number = np.arange(len(ticks))
            columns = {"frame": number % movies[name].num_frames, "repeat": number // movies[name].num_frames}
            stimuli[name] = _table(name, timestamps, ticks, TICKS_PER_MOVIE_FRAME, columns)
        elif name == "drifting_gratings":
            columns = _grating_columns(size, conditions)
            stimuli[name] = _table(name, timestamps, ticks, GRATING_ON_S * TICKS_PER_S, columns)
    return Schedule(timestamps, stimuli, {name: np.array(spans) for name, spans in epochs.items()})


def _block_ticks(size: ObservatorySize, name: str, *, number: int, num_trials: int) -> tuple[NDArray[np.int64], int]:
    """Return the onsets within the `number`-th block of a stimulus, and the block's length, in ticks."""
    if name == "spontaneous":
        return np.zeros(0, np.int64), round(size.spontaneous_s * TICKS_PER_S)
    movies = {movie.name: movie for movie in size.movies}
    total = movies[name].repeats if name in movies else num_trials
    count = len(np.array_split(np.arange(total), size.blocks.count(name))[number])
    if name in movies:
        step, count = TICKS_PER_MOVIE_FRAME, count * movies[name].num_frames
    else:
        step = (GRATING_ON_S + GRATING_GRAY_S) * TICKS_PER_S
    return step * np.arange(count), step * count


def _table(
    name: str, timestamps: NDArray[np.float64], ticks: NDArray[np.int64], duration: int, columns: dict[str, NDArray]
) -> Presentations:
    start = timestamps[0] + ticks / TICKS_PER_S
    end = timestamps[0] + (ticks + duration) / TICKS_PER_S
    half = 0.5 * float(np.median(np.diff(timestamps)))
    frames = np.minimum(np.searchsorted(timestamps, np.stack([start, end]) - half), len(timestamps))
    return Presentations(name, start, end, frames[0].astype(np.int64), frames[1].astype(np.int64), columns)


def _draw_grating_order(size: ObservatorySize, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return direction, temporal frequency and repeat of each trial, ``(3, K)``; -1 in all for a blank sweep."""
    num_directions, num_frequencies = len(protocol.GRATING_DIRECTIONS_DEG), len(size.temporal_frequencies_hz)
    grid = np.indices((num_directions, num_frequencies, size.grating_repeats)).reshape(3, -1)
    trials = np.concatenate([grid, np.full((3, size.num_blanks), -1)], axis=1)
    return trials[:, rng.permutation(trials.shape[1])]


def _grating_columns(size: ObservatorySize, conditions: NDArray[np.int64]) -> dict[str, NDArray]:
    direction, frequency, repeat = conditions
    blank = direction < 0
    frequencies = np.array(size.temporal_frequencies_hz)[frequency]
    known = np.array(protocol.GRATING_TEMPORAL_FREQUENCIES_HZ)
    return {
        "orientation": np.where(blank, np.nan, np.array(protocol.GRATING_DIRECTIONS_DEG)[direction]),
        "temporal_frequency": np.where(blank, np.nan, frequencies),
        "orientation_id": direction.astype(np.int64),
        "temporal_frequency_id": np.where(blank, -1, np.searchsorted(known, frequencies)).astype(np.int64),
        "repeat": repeat.astype(np.int64),
        "blank_sweep": blank,
    }
