"""When each stimulus of a session is on the screen.

Stimuli change on ticks of a 60 Hz monitor: a grating is on for 120 ticks and gray for 60, a movie frame for 2, an
image for 15. The imaging clock has a rate and a jitter of its own; tables hold both the exact times and the nearest
imaging frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from poyo_ssl.data.stimuli import Presentations
from poyo_ssl.observatory.allen_schedule import (
    ALLEN_SESSIONS,
    GRATING_PERIOD_S,
    GRATING_S,
    MONITOR_RATE_HZ,
    NOISE_TEMPLATES,
    TICKS_PER_MOVIE_FRAME,
    block_shares,
    draw_conditions,
    draw_drifting_gratings,
)
from poyo_ssl.observatory.sizes import ObservatorySize, SessionPlan, ShortSchedule

NOISE = "locally_sparse_noise"
"""Name of the table that holds every noise of a session, as in the brainsets layout."""

CLOCK_START_S = 26.7
CLOCK_RATES_HZ = (30.0, 30.3)
CLOCK_RATE_SPREAD = 2e-5
"""Relative; sessions with real schedules run at the rate that their block lengths ask for."""

CLOCK_JITTER_S = 1e-4
CLOCK_RESOLUTION_S = 1e-5


@dataclass(frozen=True)
class Schedule:
    """One session's clock and stimulus tables."""

    timestamps: NDArray[np.float64]  # ``(T,)`` seconds of the imaging frames
    stimuli: dict[str, Presentations]  # Stimulus tables by name
    epochs: dict[str, NDArray[np.float64]]  # ``(K, 2)`` seconds of each stimulus's blocks, ``spontaneous`` included


def draw_clock(num_frames: int, rate_hz: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw imaging timestamps from about 26.7 s on: slight jitter, multiples of 1e-5 s."""
    start = CLOCK_START_S + rng.uniform(0, 0.05)
    jitter = np.clip(rng.normal(0, CLOCK_JITTER_S, num_frames), -10 * CLOCK_JITTER_S, 10 * CLOCK_JITTER_S)
    return np.round((start + np.arange(num_frames) / rate_hz + jitter) / CLOCK_RESOLUTION_S) * CLOCK_RESOLUTION_S


def build_schedule(size: ObservatorySize, session: SessionPlan, rng: np.random.Generator) -> Schedule:
    """Lay out one session, gratings and images in random order."""
    if size.short is None:
        return build_allen_schedule(session.session_type, rng)
    return _build_short_schedule(size, size.short, size.duration_s(session), rng)


def build_allen_schedule(session_type: str, rng: np.random.Generator) -> Schedule:
    """Lay out a session as the Allen's of that type, exact to the frame."""
    plan = ALLEN_SESSIONS[session_type]
    rate = plan.rate_hz * (1 + rng.uniform(-CLOCK_RATE_SPREAD, CLOCK_RATE_SPREAD))
    timestamps = draw_clock(plan.num_frames, rate, rng)
    spans: dict[str, list[tuple[float, float]]] = {}
    times: dict[str, list[NDArray[np.float64]]] = {}
    for block in plan.blocks:
        first, last = timestamps[block.start_frame], timestamps[block.end_frame]
        spans.setdefault(block.stimulus, []).append((first, last))
        if block.num_presentations:
            shares = np.stack(block_shares(block))
            times.setdefault(block.stimulus, []).append(first + (last - first) * shares)
    stimuli = {}
    for name, pieces in times.items():
        start, end = np.concatenate(pieces, axis=1)
        stimuli[name] = Presentations.from_times(name, timestamps, start, end, draw_conditions(name, rng))
    noises = [stimuli.pop(name) for name in NOISE_TEMPLATES if name in stimuli]
    if noises:
        stimuli[NOISE] = _merge_tables(NOISE, noises)
    return Schedule(timestamps, stimuli, {name: np.array(rows) for name, rows in spans.items()})


def _merge_tables(name: str, tables: list[Presentations]) -> Presentations:
    """Join tables with the same columns, in order of time."""
    order = np.argsort(np.concatenate([table.start for table in tables]), kind="stable")
    parts = {
        key: np.concatenate([getattr(table, key) for table in tables])[order]
        for key in ("start", "end", "start_frame", "end_frame")
    }
    columns = {key: np.concatenate([table.columns[key] for table in tables])[order] for key in tables[0].columns}
    return Presentations(name, **parts, columns=columns)


def _build_short_schedule(
    size: ObservatorySize, short: ShortSchedule, duration_s: float, rng: np.random.Generator
) -> Schedule:
    """Lay out the blocks of a short session with equal gaps."""
    rate = rng.uniform(*CLOCK_RATES_HZ)
    timestamps = draw_clock(int(duration_s * rate), rate, rng)
    gratings = draw_drifting_gratings(short.temporal_frequencies_hz, short.grating_repeats, short.num_blanks, rng)
    movies = {movie.name: movie for movie in size.movies}
    totals = {name: movie.repeats for name, movie in movies.items()}
    totals["drifting_gratings"] = len(gratings["repeat"])
    onsets: dict[str, list[NDArray[np.int64]]] = {}
    epochs: dict[str, list[tuple[float, float]]] = {}
    gap = round(short.gap_s * MONITOR_RATE_HZ)
    tick = gap
    for name in short.blocks:
        number, step, shown = len(epochs.get(name, [])), 0, 0
        if name == "spontaneous":
            length = shown = round(short.spontaneous_s * MONITOR_RATE_HZ)
            count = 0
        else:
            count = len(np.array_split(np.arange(totals[name]), short.blocks.count(name))[number])
            step = TICKS_PER_MOVIE_FRAME if name in movies else GRATING_PERIOD_S * MONITOR_RATE_HZ
            count *= movies[name].num_frames if name in movies else 1
            length = count * step
            # An epoch ends with its last presentation, before the gray that follows a grating.
            shown = length if name in movies else length - (GRATING_PERIOD_S - GRATING_S) * MONITOR_RATE_HZ
        onsets.setdefault(name, []).append(tick + step * np.arange(count))
        first = timestamps[0] + tick / MONITOR_RATE_HZ
        epochs.setdefault(name, []).append((first, first + shown / MONITOR_RATE_HZ))
        tick += length + gap
    stimuli = {}
    for name, pieces in onsets.items():
        if name == "spontaneous":
            continue
        ticks = np.concatenate(pieces)
        columns, duration = gratings, GRATING_S * MONITOR_RATE_HZ
        if name in movies:
            repeat, frame = np.divmod(np.arange(len(ticks)), movies[name].num_frames)
            columns, duration = {"frame": frame, "repeat": repeat}, TICKS_PER_MOVIE_FRAME
        start, end = (timestamps[0] + moment / MONITOR_RATE_HZ for moment in (ticks, ticks + duration))
        stimuli[name] = Presentations.from_times(name, timestamps, start, end, columns)
    return Schedule(timestamps, stimuli, {name: np.array(spans) for name, spans in epochs.items()})
