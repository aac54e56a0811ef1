"""From fluorescence to dF/F, by the two procedures that the Allen's releases were made with.

``allen_median``: a median over 5401 frames is the baseline, never below the trace's noise; then a median over 101
frames, no larger than 2.5 standard deviations of the noise, is taken away. The second step removes whatever lasts
longer than about 1.7 s, so it suppresses sustained activity and changes skewness and kurtosis.

``allen_mode``: the baseline of earlier releases, the mode of the trace over 5400 frames, averaged over 3000.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from poyo_ssl.config import check

DffProcedure = Literal["allen_median", "allen_mode"]
DFF_PROCEDURES: tuple[DffProcedure, ...] = get_args(DffProcedure)

MEDIAN_FRAMES = 5401
DETREND_FRAMES = 101
MOST_DETREND_SD = 2.5
MODE_FRAMES, MEAN_FRAMES = 5400, 3000
MODE_STEP_FRAMES = 150
"""The mode is found at every 150th frame: it is averaged over 3000 afterwards."""

MODE_BINS_PER_SD = 4


def estimate_noise(trace: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the standard deviation of white noise from the differences between frames, ``(T, ...)`` to ``(...)``.

    Examples
    --------
    >>> trace = np.random.default_rng(0).normal(0, 0.3, 20_000)
    >>> float(estimate_noise(trace).round(2))
    0.3
    """
    return np.median(np.abs(np.diff(trace, axis=0)), axis=0) / (0.6744898 * np.sqrt(2))


def compute_dff(fluorescence: NDArray[np.float32], procedure: DffProcedure = "allen_median") -> NDArray[np.float32]:
    """Return dF/F of fluorescence corrected for neuropil.

    Parameters
    ----------
    fluorescence : ndarray
        ``(T, N)`` in any unit.
    procedure : str
        ``allen_median`` or ``allen_mode``, see the module.

    Returns
    -------
    ndarray
        ``(T, N)`` float32, a ratio. At both ends of a recording windows repeat the outermost frame.

    Raises
    ------
    ConfigError
        If there is no such procedure.

    Examples
    --------
    >>> flat = np.full((2000, 2), 7.0, np.float32)
    >>> bool((compute_dff(flat, "allen_median") == 0).all()), bool(np.abs(compute_dff(flat, "allen_mode")).max() < 1e-6)
    (True, True)
    """
    check(
        procedure in DFF_PROCEDURES,
        f"no dF/F procedure '{procedure}'",
        ", ".join(DFF_PROCEDURES),
        "choose one of these",
    )
    compute = _by_median if procedure == "allen_median" else _by_mode
    made = np.empty(fluorescence.shape, np.float32)
    for unit in range(fluorescence.shape[1]):
        made[:, unit] = compute(np.ascontiguousarray(fluorescence[:, unit]))
    return made


def _median(trace: NDArray[np.float32], num_frames: int) -> NDArray[np.float32]:
    from scipy import ndimage

    return ndimage.median_filter(trace, size=num_frames, mode="nearest")


def _by_median(trace: NDArray[np.float32]) -> NDArray[np.float32]:
    baseline = np.maximum(_median(trace, MEDIAN_FRAMES), max(float(estimate_noise(trace)), 1e-6))
    dff = (trace / baseline - 1).astype(np.float32)
    trend = np.minimum(_median(dff, DETREND_FRAMES), np.float32(MOST_DETREND_SD * estimate_noise(dff)))
    return (dff - trend).astype(np.float32)


def _by_mode(trace: NDArray[np.float32]) -> NDArray[np.float32]:
    from scipy import ndimage

    width = max(estimate_noise(trace).item() / MODE_BINS_PER_SD, 1e-6 * float(np.abs(trace).max()) + 1e-18)
    lowest = float(trace.min())
    # Values far above rest are never the mode; one bin holds them all.
    ceiling = lowest + 400 * width
    level = ((np.minimum(trace, ceiling) - lowest) / width).astype(np.int64)
    num_frames, half = len(trace), MODE_FRAMES // 2
    steps = np.arange(0, num_frames + MODE_STEP_FRAMES, MODE_STEP_FRAMES)
    padded = np.pad(level, half, mode="edge")
    pieces = [
        np.bincount(padded[at : at + MODE_STEP_FRAMES], minlength=401) for at in range(0, len(padded), MODE_STEP_FRAMES)
    ]
    total = np.concatenate([np.zeros((1, 401)), np.cumsum(pieces, axis=0)])
    first = np.arange(len(steps))
    last = np.minimum(first + MODE_FRAMES // MODE_STEP_FRAMES, len(total) - 1)
    smooth = ndimage.gaussian_filter1d(total[last] - total[first], MODE_BINS_PER_SD / 2, axis=1, mode="nearest")
    mode = lowest + (smooth.argmax(1) + 0.5) * width
    baseline = np.interp(np.arange(num_frames), steps, mode)
    baseline = ndimage.uniform_filter1d(baseline, MEAN_FRAMES, mode="nearest")
    return (trace / np.maximum(baseline, 1e-6) - 1).astype(np.float32)
