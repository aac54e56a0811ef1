"""Arithmetic on half-open intervals in seconds, ``(K, 2)`` arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Intervals = NDArray[np.float64]


def as_intervals(pairs: Sequence[Sequence[float]] | Intervals) -> Intervals:
    """Return `pairs` as a ``(K, 2)`` float array, also when there are none."""
    return np.asarray(pairs, np.float64).reshape(-1, 2)


def merge(intervals: Intervals, *, gap_s: float = 0.0) -> Intervals:
    """Sort intervals and join those that touch, overlap, or lie within `gap_s` seconds of each other."""
    intervals = as_intervals(intervals)
    if len(intervals) == 0:
        return intervals
    intervals = intervals[np.argsort(intervals[:, 0], kind="stable")]
    reach = np.maximum.accumulate(intervals[:, 1])
    new = np.append(True, intervals[1:, 0] > reach[:-1] + gap_s)
    last = np.append(np.flatnonzero(new)[1:] - 1, len(intervals) - 1)
    return np.stack([intervals[new, 0], reach[last]], axis=1)


def subtract(intervals: Intervals, holes: Intervals) -> Intervals:
    """Return what `intervals` cover outside `holes`."""
    pieces = merge(intervals)
    for low, high in merge(holes):
        left = np.stack([pieces[:, 0], np.minimum(pieces[:, 1], low)], axis=1)
        right = np.stack([np.maximum(pieces[:, 0], high), pieces[:, 1]], axis=1)
        pieces = np.concatenate([left, right])
        pieces = pieces[pieces[:, 1] > pieces[:, 0]]
        pieces = pieces[np.argsort(pieces[:, 0], kind="stable")]
    return pieces


def overlaps(start: NDArray[np.float64], end: NDArray[np.float64], intervals: Intervals) -> NDArray[np.bool_]:
    """Tell which spans ``[start, end]`` share a moment with any of the (disjoint, half-open) intervals."""
    merged = merge(intervals)
    # Both counts are by sorted edges: intervals that begin at or before the span's end, less those over by its start.
    begun = np.searchsorted(merged[:, 0], end, side="right")
    over = np.searchsorted(merged[:, 1], start, side="right")
    return begun > over


def contains(times: NDArray[np.float64], intervals: Intervals) -> NDArray[np.bool_]:
    """Tell which times lie in any of the half-open intervals."""
    return overlaps(times, times, intervals)
