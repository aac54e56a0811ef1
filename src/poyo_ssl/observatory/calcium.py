"""From rates to fluorescence: bursty events, calcium kernel, saturation, neuropil, shot noise, a drifting rest.

In units of the resting fluorescence of the cell, an ROI collects ``drift x (1 + calcium) + r x neuropil`` and shot
noise whose variance grows with it. What is analysed is that minus the estimated r times the neuropil around the ROI;
the estimate is a little off, so that some of the neighbours' activity remains.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from poyo_ssl.data.dff import compute_dff
from poyo_ssl.data.series import SparseEvents
from poyo_ssl.observatory.animals import slow_noise
from poyo_ssl.observatory.worlds import CellClass, Indicator

UNITS_PER_BLOCK = 32
DRIFT_SPREAD = 0.08
DRIFT_KNOT_S = 180.0

NEUROPIL_RATIO = (0.6, 0.1)
"""Mean and standard deviation over ROIs of r, the share of neuropil light that an ROI collects."""

NEUROPIL_RESTING = 0.8
"""Resting light of the neuropil over that of a cell."""

NEUROPIL_RADIUS_PX = 60.0
NEUROPIL_GAIN = 0.5
"""Neuropil dF/F over the mean dF/F of the cells around."""

RESTING_COUNTS = 600.0
"""Resting light of a cell in the microscope's units, which have to be counts for ``allen_mode``."""

NEUROPIL_OWN_SPREAD, NEUROPIL_OWN_S = 0.02, 1.0
SHOT_SHARE = 1 / (1 + NEUROPIL_RATIO[0] * NEUROPIL_RESTING)
"""Share of an ROI's resting light that comes from the cell: noise variance grows by it per unit of calcium."""


def kernel_shape(indicator: Indicator, rate_hz: float, duration_s: float | None = None) -> NDArray[np.float64]:
    """Return the kernel exp(-t / decay) - exp(-t / rise), scaled to a peak of 1, sampled at the imaging rate."""
    time = np.arange(int((duration_s or 10 * indicator.decay_s) * rate_hz)) / rate_hz
    shape = np.exp(-time / indicator.decay_s) - np.exp(-time / indicator.rise_s)
    return shape / _kernel_peak(indicator)


def _kernel_peak(indicator: Indicator) -> float:
    rise, decay = indicator.rise_s, indicator.decay_s
    at = np.log(decay / rise) * rise * decay / (decay - rise)
    return float(np.exp(-at / decay) - np.exp(-at / rise))


def draw_counts(
    rate_hz: NDArray[np.floating], frame_s: float, burstiness: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw event counts per imaging frame: negative binomial with the given mean and Fano factor."""
    mean = np.asarray(rate_hz, np.float64) * frame_s
    if burstiness == 1:
        return rng.poisson(mean)
    # A gamma-mixed Poisson; the shape is far below 1, where most draws are 0.
    return rng.poisson(rng.standard_gamma(mean / (burstiness - 1)) * (burstiness - 1))


def convolve_kernel(events: NDArray[np.floating], indicator: Indicator, rate_hz: float) -> NDArray[np.float64]:
    """Filter ``(T, N)`` events with the indicator's kernel, as the difference of two exponentials."""
    from scipy import signal

    slow = np.exp(-1 / (rate_hz * indicator.decay_s))
    fast = np.exp(-1 / (rate_hz * indicator.rise_s))
    numerator, denominator = [0.0, slow - fast], [1.0, -(slow + fast), slow * fast]
    return signal.lfilter(numerator, denominator, events, axis=0) / _kernel_peak(indicator)


@dataclass(frozen=True)
class Fluorescence:
    """Fluorescence and dF/F of a session and what is true of it."""

    dff: NDArray[np.float32]  # ``(T, N)`` float32
    events: SparseEvents  # Event counts
    noise_level: NDArray[np.float64]  # ``(N,)`` standard deviation of the noise in one frame at rest, in dF/F
    signal_share: NDArray[np.float64]  # ``(N,)`` variance of the noiseless calcium over that plus the noise's at rest
    neuropil_ratio: NDArray[np.float64]  # ``(N,)`` true r
    neuropil_ratio_found: NDArray[np.float64]  # ``(N,)`` the r that the correction used


def simulate_calcium(
    cell: CellClass, rates: NDArray[np.float32], rate_hz: float, rng: np.random.Generator
) -> tuple[NDArray[np.float32], SparseEvents]:
    """Draw events from rates ``(T, N)`` and filter them: noiseless dF/F ``(T, N)`` and the events."""
    calcium = np.empty(rates.shape, np.float32)
    found: list[tuple[NDArray, ...]] = []
    for low in range(0, rates.shape[1], UNITS_PER_BLOCK):
        counts = draw_counts(rates[:, low : low + UNITS_PER_BLOCK], 1 / rate_hz, cell.burstiness, rng)
        frame, unit = np.nonzero(counts)
        found.append((frame, unit + low, counts[frame, unit]))
        block = convolve_kernel(cell.indicator.amplitude * counts, cell.indicator, rate_hz)
        if cell.saturation is not None:
            block = cell.saturation * -np.expm1(-block / cell.saturation)
        calcium[:, low : low + UNITS_PER_BLOCK] = block
    frame, unit, value = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((unit, frame))
    return calcium, SparseEvents(frame[order].astype(np.int64), unit[order], value[order].astype(np.float32))


def mix_neuropil(
    calcium: NDArray[np.float32],
    rows_px: NDArray[np.float64],
    columns_px: NDArray[np.float64],
    rate_hz: float,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Return the light of the neuropil around each ROI, ``(T, N)``, in units of the resting light of a cell.

    It follows the mean calcium of the other cells, the nearer the more, and a fluctuation that all share.
    """
    distance = np.hypot(rows_px[:, None] - rows_px, columns_px[:, None] - columns_px)
    weight = np.exp(-(distance**2) / (2 * NEUROPIL_RADIUS_PX**2))
    np.fill_diagonal(weight, 0.0)
    weight /= np.maximum(weight.sum(1, keepdims=True), 1e-9)
    light = calcium @ (NEUROPIL_GAIN * weight.T).astype(np.float32)
    own = NEUROPIL_OWN_SPREAD * slow_noise((len(calcium), 1), NEUROPIL_OWN_S * rate_hz, rng)
    light += 1 + own.astype(np.float32)
    light *= NEUROPIL_RESTING
    return light


def simulate_fluorescence(
    cell: CellClass,
    rates: NDArray[np.float32],
    rate_hz: float,
    rng: np.random.Generator,
    *,
    rows_px: NDArray[np.float64] | None = None,
    columns_px: NDArray[np.float64] | None = None,
    procedure: str | None = "allen_median",
) -> Fluorescence:
    """Draw events from rates and image them."""
    num_frames, num_units = rates.shape
    calcium, events = simulate_calcium(cell, rates, rate_hz, rng)
    level = cell.noise_level * np.exp(cell.noise_spread * rng.standard_normal(num_units))
    variance = calcium.var(0, dtype=np.float64)
    ratio = np.clip(rng.normal(*NEUROPIL_RATIO, num_units), 0.2, 1.0)
    found = np.clip(ratio + cell.neuropil_error * rng.standard_normal(num_units), 0.0, 1.2)
    rows, columns = (np.zeros(num_units) if place is None else place for place in (rows_px, columns_px))
    neuropil = mix_neuropil(calcium, rows, columns, rate_hz, rng)
    dff = np.empty(rates.shape, np.float32)
    for low in range(0, num_units, UNITS_PER_BLOCK):
        part = slice(low, low + UNITS_PER_BLOCK)
        light = 1 + calcium[:, part]
        noise = rng.standard_normal(light.shape, dtype=np.float32)
        noise *= level[part].astype(np.float32) * np.sqrt(1 + np.float32(SHOT_SHARE) * calcium[:, part])
        drift = _resting_drift(num_frames, light.shape[1], rate_hz, rng)
        if procedure is not None:
            light *= drift
            noise *= drift
        light += noise
        error = (ratio - found)[part].astype(np.float32)
        light += error * neuropil[:, part]
        resting = 1 + error * np.float32(NEUROPIL_RESTING)
        if procedure is None:
            dff[:, part] = light - resting
        else:
            dff[:, part], _ = compute_dff(RESTING_COUNTS * light, procedure, rate_hz=rate_hz)
    return Fluorescence(
        dff=dff,
        events=events,
        noise_level=level,
        signal_share=variance / (variance + level**2),
        neuropil_ratio=ratio,
        neuropil_ratio_found=found,
    )


def _resting_drift(num_frames: int, num_units: int, rate_hz: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw the slow course of resting fluorescence, ``(T, N)`` about 1: bleaching and movement in depth."""
    knots = np.linspace(0, num_frames - 1, max(2, int(num_frames / (DRIFT_KNOT_S * rate_hz)) + 2))
    heights = DRIFT_SPREAD * rng.standard_normal((num_units, len(knots)))
    frames = np.arange(num_frames)
    return np.exp(np.stack([np.interp(frames, knots, height) for height in heights], axis=1)).astype(np.float32)


def expected_moments(
    *,
    mean_rate_hz: float,
    burstiness: float,
    indicator: Indicator,
    noise_level: float,
    rate_hz: float,
    shot_share: float = SHOT_SHARE,
) -> tuple[float, float]:
    """Skewness and excess kurtosis of dF/F at a constant rate, without saturation.

    Cumulants of filtered independent counts: the n-th is the count's times amplitude^n times the sum of the
    kernel's n-th power. A negative binomial count of mean m and Fano factor F has the cumulants m, m F, m F (2 F - 1)
    and m F (6 F^2 - 6 F + 1). Noise of variance v (1 + s x) on a signal x with cumulants k adds v (1 + s k_1) to the
    second cumulant, 3 v s k_2 to the third, and 6 v s k_3 + 3 v^2 s^2 k_2 to the fourth.
    """
    mean, fano = mean_rate_hz / rate_hz, burstiness
    counts = {1: mean, 2: mean * fano, 3: mean * fano * (2 * fano - 1), 4: mean * fano * (6 * fano**2 - 6 * fano + 1)}
    kernel = indicator.amplitude * kernel_shape(indicator, rate_hz)
    signal = {order: value * float((kernel**order).sum()) for order, value in counts.items()}
    growth = noise_level**2 * shot_share
    variance = signal[2] + noise_level**2 + growth * signal[1]
    third = signal[3] + 3 * growth * signal[2]
    fourth = signal[4] + 6 * growth * signal[3] + 3 * growth**2 * signal[2]
    return third / variance**1.5, fourth / variance**2
