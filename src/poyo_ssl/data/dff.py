"""dF/F from fluorescence: baselines by name.

``allen_median``
    Allen Brain Observatory, current recipe: median of 5401 frames, floored by the trace's noise; then a median of 101
    frames, capped at 2.5 noise deviations, is subtracted from dF/F.
``allen_mode``
    Allen Brain Observatory, earlier releases: mode of 5400 frames in bins of one count, averaged over 3000 frames.
``maximin``
    suite2p's: Gaussian of 10 frames, then running minimum and running maximum of 60 s.
``percentile``
    Running 8th percentile of 180 s.

Windows of the Allen recipes are in frames of about 30 Hz; at another rate (5 % or more away) they keep their seconds.
Three things are ours: windows are mirrored at the ends of the recording (or, for the mode, cut), where AllenSDK fills
the median's with zeros, which bends the first and last 90 seconds; the mode is computed once a second and interpolated
before it is averaged; and every baseline is floored by the noise, below which a ratio means nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from poyo_ssl.errors import ConfigError, suggest

Trace = NDArray[np.float64]

RECIPE_RATE_HZ = 30.0
RATE_TOLERANCE = 0.05
MEDIAN_FRAMES, DETREND_FRAMES, NOISE_FRAMES = 5401, 101, 31
MODE_FRAMES, MODE_MEAN_FRAMES = 5400, 3000
MODE_MAX_BINS = 4096
DETREND_CAP_SIGMAS = 2.5
MAXIMIN_SIGMA_FRAMES, MAXIMIN_WINDOW_S = 10.0, 60.0
PERCENTILE, PERCENTILE_WINDOW_S = 8.0, 180.0
MAD_TO_STD = 1.4826022185056018
"""Standard deviation of a normal distribution over its median absolute deviation."""


def compute_dff(
    fluorescence: NDArray, procedure: str, *, rate_hz: float
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return dF/F of fluorescence traces."""
    if procedure not in PROCEDURES:
        raise ConfigError(
            f"no dF/F procedure '{procedure}'{suggest(procedure, PROCEDURES)}",
            allowed=", ".join(PROCEDURES),
            fix="choose one of these",
        )
    find_baseline = PROCEDURES[procedure]
    dff = np.empty(fluorescence.shape, np.float32)
    floored = np.zeros(fluorescence.shape[1])
    for unit in range(fluorescence.shape[1]):
        trace = np.asarray(fluorescence[:, unit], np.float64)
        finite = np.isfinite(trace)
        if finite.sum() < 2:
            dff[:, unit] = np.nan
            continue
        filled = trace
        if not finite.all():
            filled = np.interp(np.arange(len(trace)), np.flatnonzero(finite), trace[finite])
        baseline = find_baseline(filled, rate_hz)
        # A constant trace has no noise; its own level keeps the ratio finite.
        floor = max(estimate_noise(filled, rate_hz), 1e-6 * float(np.abs(filled).max()), 1e-30)
        floored[unit] = np.mean(baseline < floor)
        ratio = (filled - baseline) / np.maximum(baseline, floor)
        if procedure == "allen_median":
            slow = median_filter(ratio, _scaled(DETREND_FRAMES, rate_hz))
            ratio -= np.minimum(slow, DETREND_CAP_SIGMAS * estimate_noise(ratio, rate_hz))
        dff[:, unit] = np.where(finite, ratio, np.nan)
    return dff, floored


def median_filter(trace: Trace, frames: int) -> Trace:
    """Return the running median of an odd number of frames, mirrored at the ends."""
    from scipy import ndimage

    return ndimage.median_filter(trace, min(frames, _largest_odd(len(trace))), mode="reflect")


def estimate_noise(trace: Trace, rate_hz: float) -> float:
    """Return the standard deviation of a trace's noise, in its unit: that of what a running median of 1 s leaves.

    From the median absolute deviation, after positive peaks (1.5 times as high as the deepest trough) and then values
    beyond 2.5 deviations are left out.
    """
    rest = trace - median_filter(trace, _scaled(NOISE_FRAMES, rate_hz))
    rest = rest[rest < 1.5 * abs(rest.min())]
    if len(rest) == 0:
        return 0.0
    rest = rest[np.abs(rest) < 2.5 * _robust_std(rest)]
    return _robust_std(rest) if len(rest) else 0.0


def _robust_std(values: Trace) -> float:
    return MAD_TO_STD * float(np.median(np.abs(values - np.median(values))))


def _scaled(frames: int, rate_hz: float) -> int:
    """Return a recipe's window in frames of this rate, odd."""
    if abs(rate_hz / RECIPE_RATE_HZ - 1) < RATE_TOLERANCE:
        return frames
    return max(_largest_odd(round(frames * rate_hz / RECIPE_RATE_HZ)), 1)


def _largest_odd(number: int) -> int:
    return number - 1 + number % 2


def _median_baseline(trace: Trace, rate_hz: float) -> Trace:
    return median_filter(trace, _scaled(MEDIAN_FRAMES, rate_hz))


def _mode_baseline(trace: Trace, rate_hz: float) -> Trace:
    from scipy import ndimage

    second = max(round(rate_hz), 1)
    half = max(round(MODE_FRAMES * rate_hz / RECIPE_RATE_HZ / 2 / second), 1)
    # One count per bin, as the recipe; more where the trace spans more counts than there are bins.
    low = np.floor(trace.min() + 0.5)
    width = max(1.0, (trace.max() - low + 1) / MODE_MAX_BINS)
    bins = ((trace + 0.5 - low) // width).clip(0, MODE_MAX_BINS - 1).astype(np.int64)
    num_bins, num_seconds = int(bins.max()) + 1, -(-len(trace) // second)
    counts = np.bincount(np.arange(len(trace)) // second * num_bins + bins, minlength=num_seconds * num_bins)
    total = np.zeros((num_seconds + 1, num_bins), np.int32)
    np.cumsum(counts.reshape(num_seconds, num_bins), axis=0, out=total[1:])
    centres = np.arange(num_seconds + 1)
    inside = total[np.minimum(centres + half, num_seconds)] - total[np.maximum(centres - half, 0)]
    mode = low + inside.argmax(axis=1) * width + (width - 1) / 2
    line = np.interp(np.arange(len(trace)), centres * second, mode)
    frames = min(_scaled(MODE_MEAN_FRAMES + 1, rate_hz), _largest_odd(len(trace)))
    return ndimage.uniform_filter1d(line, frames, mode="nearest")


def _maximin_baseline(trace: Trace, rate_hz: float) -> Trace:
    from scipy import ndimage

    window = min(max(round(MAXIMIN_WINDOW_S * rate_hz), 1), len(trace))
    smooth = ndimage.gaussian_filter1d(trace, MAXIMIN_SIGMA_FRAMES)
    return ndimage.maximum_filter1d(ndimage.minimum_filter1d(smooth, window), window)


def _percentile_baseline(trace: Trace, rate_hz: float) -> Trace:
    from scipy import ndimage

    window = min(_largest_odd(max(round(PERCENTILE_WINDOW_S * rate_hz), 1)), _largest_odd(len(trace)))
    return ndimage.percentile_filter(trace, PERCENTILE, window)


PROCEDURES: dict[str, Callable[[Trace, float], Trace]] = {
    "allen_median": _median_baseline,
    "allen_mode": _mode_baseline,
    "maximin": _maximin_baseline,
    "percentile": _percentile_baseline,
}
"""Baselines by name; each takes a trace and the imaging rate in Hz."""
