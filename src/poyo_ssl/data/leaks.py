"""Does anything of a test part reach training? Checks that trust no split, only intervals, clocks and pixels.

Each check looks at what a training used (intervals in seconds, windows, statistics) and returns what it found wrong, an
empty list if nothing is. They are meant for any decoder: a split made elsewhere can be checked with them, too.
`poyo_ssl.training.audit` applies all of them to a run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from poyo_ssl.data.intervals import Intervals, as_intervals, contains, merge, subtract
from poyo_ssl.data.recording import Recording
from poyo_ssl.data.splits import PartName, nearest_correlation
from poyo_ssl.data.windows import Normalisation, WindowTable
from poyo_ssl.errors import SplitError

SHORTEST_OVERLAP_S = 1e-6
"""Shared time below this is rounding."""


@dataclass(frozen=True)
class Leak:
    """One way in which a test part reached training."""

    check: str  # for example "parts" or "statistics"
    recording_id: str
    problem: str  # names the first offender

    def __str__(self) -> str:
        return f"{self.check}, recording {self.recording_id}: {self.problem}"


class LeakError(SplitError):
    """A test part that reached training."""


def require_no_leaks(leaks: Sequence[Leak]) -> None:
    """Raise `LeakError` that names the first leak and counts the others."""
    if leaks:
        others = f" (and {len(leaks) - 1} more)" if len(leaks) > 1 else ""
        raise LeakError(f"{leaks[0]}{others}", fix="do not report scores of this run")


def shared_time(first: Intervals, second: Intervals) -> Intervals:
    """Return the spans that two sets of half-open intervals share, longer than rounding."""
    both = subtract(first, subtract(first, second))
    return both[both[:, 1] - both[:, 0] > SHORTEST_OVERLAP_S]


def check_parts(recording: Recording, parts: Mapping[str, Intervals]) -> list[Leak]:
    """Check that parts share no time with one another, nor with masked spans."""
    spans = {name: as_intervals(intervals) for name, intervals in parts.items()}
    spans["masked spans"] = recording.masked_domain.reshape(-1, 2)
    names = list(spans)
    found = []
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            found += _overlap("parts", recording, f"{first} and {second} share", spans[first], spans[second])
    return found


def _overlap(check: str, recording: Recording, what: str, first: Intervals, second: Intervals) -> list[Leak]:
    both = shared_time(first, second)
    if len(both) == 0:
        return []
    seconds = float((both[:, 1] - both[:, 0]).sum())
    return [Leak(check, recording.recording_id, f"{what} {seconds:.3f} s, first at {both[0, 0]:.3f} s")]


def check_windows(
    recording: Recording, index: int, parts: Mapping[str, Intervals], tables: Mapping[str, WindowTable]
) -> list[Leak]:
    """Check every input that may be drawn: none of one part touches the time of another part or a masked span."""
    found = []
    stamps = recording.timestamps
    for part, table in tables.items():
        rows = table.recording_index == index
        start = stamps[table.first_low[rows]]
        end = stamps[table.first_high[rows] + table.num_frames - 1] + SHORTEST_OVERLAP_S
        inputs = merge(np.stack([start, end], axis=1))
        for other, spans in {**parts, "masked spans": recording.masked_domain.reshape(-1, 2)}.items():
            if other != part:
                # One stamp alone has no length, so inputs are widened by less than a frame.
                both = subtract(inputs, subtract(inputs, as_intervals(spans)))
                if len(both):
                    problem = f"inputs of {part} reach into {other} at {both[0, 0]:.3f} s"
                    found.append(Leak("inputs", recording.recording_id, problem))
        outside = ~contains(table.target_time[rows], as_intervals(parts[part]))
        if outside.any():
            time = table.target_time[rows][outside][0]
            found.append(Leak("targets", recording.recording_id, f"target at {time:.3f} s lies outside {part}"))
    return found


def check_presentations(recording: Recording, parts: Mapping[str, Intervals]) -> list[Leak]:
    """Check that no presentation (trial or movie frame) is cut in two by the parts' edges."""
    found = []
    for table in recording.stimuli.values():
        # Ends of rounded times may overlap the next presentation, so a presentation is judged by its inner half.
        quarter = (table.end - table.start) / 4
        first, last = table.start + quarter, table.end - quarter
        for name, spans in parts.items():
            cut = contains(first, as_intervals(spans)) != contains(last, as_intervals(spans))
            if cut.any():
                row = int(np.flatnonzero(cut)[0])
                found.append(
                    Leak("trials", recording.recording_id, f"{name} cuts presentation {row} of {table.name} in two")
                )
    return found


def shown_frames(recording: Recording, spans: Intervals, movies: Iterable[str]) -> dict[str, NDArray[np.int64]]:
    """Return the frame numbers of each movie whose middle was on the screen within `spans`, sorted, each once."""
    found = {}
    for movie in movies:
        if movie in recording.stimuli:
            table = recording.stimulus(movie)
            found[movie] = np.unique(table.columns["frame"][contains(table.midpoint, as_intervals(spans))])
    return found


def check_unseen_frames(
    trained: Mapping[str, NDArray[np.int64]],
    tested: Mapping[str, NDArray[np.int64]],
    pixels: Mapping[str, NDArray[np.uint8]],
    *,
    max_correlation: float,
    where: str = "any",
) -> list[Leak]:
    """Check that frames which test as unseen were never trained on, nor a near-duplicate of one."""
    found = []
    for movie, frames in trained.items():
        for other, wanted in tested.items():
            same = np.intersect1d(frames, wanted) if other == movie else np.zeros(0, np.int64)
            if len(same):
                found.append(Leak("frames", where, f"{len(same)} frames of {movie} train and test, first {same[0]}"))
            rest = np.setdiff1d(wanted, same)
            if len(frames) and len(rest):
                nearest = nearest_correlation(pixels[movie], pixels[other][rest])[frames]
                if nearest.max() > max_correlation:
                    row = int(nearest.argmax())
                    problem = f"training frame {frames[row]} of {movie} correlates {nearest[row]:.4f} with a test frame"
                    found.append(Leak("near-duplicates", where, f"{problem} of {other}"))
    return found


def check_gaps(recording: Recording, parts: Mapping[str, Intervals], movie: str, *, gap_s: float) -> list[Leak]:
    """Check that nothing that trains or validates lies within `gap_s` seconds of a held-out clip."""
    table = recording.stimulus(movie)
    learned = {name: as_intervals(v) for name, v in parts.items() if PartName(name).role != "test"}
    clips = {name: as_intervals(v) for name, v in parts.items() if PartName(name).is_clip}
    for part, spans in learned.items():
        shown = contains(table.midpoint, spans)
        for name, held_out in clips.items():
            for low, high in held_out if name != part else ():
                away = np.maximum(low - table.end[shown], table.start[shown] - high)
                # Tables round times to imaging frames.
                if away.size and away.min() < gap_s - 1 / recording.rate_hz:
                    problem = f"presentation of {movie} in {part} {away.min():.3f} s from {name} at {low:.3f} s"
                    return [Leak("gap", recording.recording_id, f"{problem}, {gap_s:.3f} s are due")]
    return []


def check_normalisation(
    recording: Recording, stored: Normalisation, refitted: Normalisation, columns: NDArray[np.int64]
) -> list[Leak]:
    """Check that stored statistics are those of the training part, refitted."""
    for name in ("centre", "scale", "mean", "spread"):
        was, should = getattr(stored, name), getattr(refitted, name)
        wrong = ~np.isclose(was, should, rtol=1e-5, atol=1e-7)
        if wrong.any():
            unit = int(np.flatnonzero(wrong)[0])
            problem = (
                f"{name} of unit {recording.unit_ids[columns[unit]]} is {was[unit]:.6g}; "
                f"the training part gives {should[unit]:.6g}"
            )
            return [Leak("statistics", recording.recording_id, problem)]
    return []


def check_domain(recording: Recording, what: str, domain: Intervals, parts: Mapping[str, Intervals]) -> list[Leak]:
    """Check that spans from which something was learned share no time with any test part or masked span."""
    found = []
    spans = {name: as_intervals(v) for name, v in parts.items() if PartName(name).role == "test"}
    for name, held_out in {**spans, "masked spans": recording.masked_domain.reshape(-1, 2)}.items():
        found += _overlap("statistics", recording, f"{what} and {name} share", as_intervals(domain), held_out)
    return found
