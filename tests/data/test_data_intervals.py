"""Interval arithmetic against sets of cells of a fine grid."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from poyo_ssl.data.intervals import as_intervals, contains, merge, overlaps, subtract

# Whole seconds from 0 to 20; a grid of quarter seconds then tells everything.
CELLS = np.arange(0, 20, 0.25)
pairs = st.lists(st.tuples(st.integers(0, 19), st.integers(1, 6)), max_size=6).map(
    lambda items: as_intervals([(low, min(low + length, 20)) for low, length in items])
)


def cells_of(intervals):
    return {float(cell) for cell in CELLS if any(low <= cell < high for low, high in intervals)}


def is_canonical(intervals):
    inside = (intervals[:, 1] > intervals[:, 0]).all()
    return bool(inside and (intervals[1:, 0] > intervals[:-1, 1]).all())


@given(pairs, st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_merge_covers_the_same_and_joins_gaps(intervals, gap):
    merged = merge(intervals, gap_s=gap)
    covered = cells_of(intervals)
    expected = set(covered)
    for low in sorted({high for _, high in intervals}):
        reach = [start for start in intervals[:, 0] if low < start <= low + gap]
        if reach:
            expected |= {float(c) for c in CELLS if low <= c < min(reach)}
    assert cells_of(merged) == expected
    assert is_canonical(merged)


@given(pairs, pairs)
@settings(max_examples=60, deadline=None)
def test_subtract_is_the_set_difference(intervals, holes):
    left = subtract(intervals, holes)
    assert cells_of(left) == cells_of(intervals) - cells_of(holes)
    assert (left[:, 1] > left[:, 0]).all()
    assert (left[1:, 0] >= left[:-1, 1]).all()


@given(pairs, pairs)
@settings(max_examples=60, deadline=None)
def test_overlaps_and_contains_against_a_loop(spans, intervals):
    start, end = spans[:, 0], spans[:, 1]
    # A span includes both its ends, an interval not its last moment.
    expected = [any(low <= e and s < high for low, high in intervals) for s, e in spans]
    assert overlaps(start, end, intervals).tolist() == expected
    inside = [float(cell) in cells_of(intervals) for cell in CELLS]
    assert contains(CELLS, intervals).tolist() == inside


def test_nothing_stays_nothing():
    nothing = as_intervals([])
    assert merge(nothing).shape == subtract(nothing, nothing).shape == (0, 2)
    assert not overlaps(np.array([0.0]), np.array([9.0]), nothing).any()
