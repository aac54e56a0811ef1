"""Behavioural traces as sources find them: what is not finite is left out, with a warning."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from poyo_ssl.data.series import PupilTrace, TimeSeries

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
