"""From rates to dF/F: bursty events, calcium kernel, saturation, noise, drifting baseline and its removal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from poyo_ssl.data.series import SparseEvents
from poyo_ssl.observatory.worlds import CellClass, Indicator

BASELINE_FRAMES = 5401
"""Window of the median baseline, as in the Allen's dF/F recipe."""

BASELINE_STEP_FRAMES = 900
DRIFT_SPREAD = 0.08
DRIFT_KNOT_S = 180.0


def kernel_shape(indicator: Indicator, rate_hz: float, duration_s: float | None = None) -> NDArray[np.float64]:
    """Return the kernel exp(-t / decay) - exp(-t / rise), scaled to a peak of 1, sampled at the imaging rate.

    Parameters
    ----------
    indicator : Indicator
        Time constants.
    rate_hz : float
        Imaging rate.
    duration_s : float, optional
        Length; ten decay times by default.

    Examples
    --------
    >>> from poyo_ssl.observatory.worlds import GCAMP6F
    >>> kernel = kernel_shape(GCAMP6F, 30.0)
    >>> float(kernel[0]), float(kernel.max().round(2))
    (0.0, 1.0)
    """
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
    """Draw event counts per imaging frame: negative binomial with the given mean and Fano factor.

    Parameters
    ----------
    rate_hz : ndarray
        ``(T, N)`` events per second.
    frame_s : float
        Length of a frame in seconds.
    burstiness : float
        Fano factor of the count, 1 or more; 1 is Poisson.
    rng : numpy.random.Generator
        Source of the draws.

    Examples
    --------
    >>> counts = draw_counts(np.full((90_000, 1), 3.0), 1 / 30, 3.0, np.random.default_rng(0))
    >>> bool(abs(counts.mean() - 0.1) < 0.01), bool(abs(counts.var() / counts.mean() - 3) < 0.2)
    (True, True)
    """
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


def remove_baseline(fluorescence: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return dF/F against a sliding median of 5401 frames, sampled every 900 frames and interpolated.

    Parameters
    ----------
    fluorescence : ndarray
        ``(T, N)``, positive baseline.

    Examples
    --------
    >>> bool(np.allclose(remove_baseline(np.full((2000, 2), 7.0)), 0))
    True
    """
    num_frames = len(fluorescence)
    centres = np.arange(0, num_frames + BASELINE_STEP_FRAMES - 1, BASELINE_STEP_FRAMES)
    centres[-1] = num_frames - 1
    half = BASELINE_FRAMES // 2
    knots = np.stack([np.median(fluorescence[max(at - half, 0) : at + half + 1], axis=0) for at in centres])
    position = np.interp(np.arange(num_frames), centres, np.arange(len(centres)))
    lower = np.minimum(position.astype(int), len(centres) - 2)
    weight = (position - lower)[:, None]
    baseline = (1 - weight) * knots[lower] + weight * knots[lower + 1]
    return fluorescence / baseline - 1


@dataclass(frozen=True)
class Fluorescence:
    """dF/F of a session and what is true of it.

    Attributes
    ----------
    dff : ndarray
        ``(T, N)`` float32.
    events : SparseEvents
        Event counts.
    noise_level : ndarray
        ``(N,)`` standard deviation of the noise in one frame, in dF/F.
    signal_share : ndarray
        ``(N,)`` variance of the noiseless dF/F over that plus the noise's.
    """

    dff: NDArray[np.float32]
    events: SparseEvents
    noise_level: NDArray[np.float64]
    signal_share: NDArray[np.float64]


def simulate_fluorescence(
    cell: CellClass, rates: NDArray[np.float32], rate_hz: float, rng: np.random.Generator
) -> Fluorescence:
    """Draw events from rates and image them.

    Parameters
    ----------
    cell : CellClass
        Burstiness, indicator, noise, saturation.
    rates : ndarray
        ``(T, N)`` events per second.
    rate_hz : float
        Imaging rate.
    rng : numpy.random.Generator
        Source of everything random.
    """
    num_frames, num_units = rates.shape
    counts = draw_counts(rates, 1 / rate_hz, cell.burstiness, rng)
    frame, unit = np.nonzero(counts)
    events = SparseEvents(frame.astype(np.int64), unit.astype(np.int64), counts[frame, unit].astype(np.float32))
    calcium = convolve_kernel(cell.indicator.amplitude * counts, cell.indicator, rate_hz)
    if cell.saturation is not None:
        calcium = cell.saturation * -np.expm1(-calcium / cell.saturation)
    noise_level = cell.noise_level * np.exp(cell.noise_spread * rng.standard_normal(num_units))
    variance = calcium.var(0)
    knots = np.linspace(0, num_frames - 1, max(2, int(num_frames / (DRIFT_KNOT_S * rate_hz)) + 2))
    drift = np.stack(
        [
            np.interp(np.arange(num_frames), knots, DRIFT_SPREAD * rng.standard_normal(len(knots)))
            for _ in range(num_units)
        ],
        axis=1,
    )
    resting = np.exp(drift)
    noise = rng.standard_normal((num_frames, num_units)) * noise_level
    dff = remove_baseline(resting * (1 + calcium + noise))
    return Fluorescence(dff.astype(np.float32), events, noise_level, variance / (variance + noise_level**2))


def expected_moments(
    *, mean_rate_hz: float, burstiness: float, indicator: Indicator, noise_level: float, rate_hz: float
) -> tuple[float, float]:
    """Skewness and excess kurtosis of dF/F at a constant rate, without saturation.

    Cumulants of filtered independent counts: the n-th is the count's times amplitude^n times the sum of the
    kernel's n-th power; noise adds to the second. A negative binomial count of mean m and Fano factor F has the
    cumulants m, m F, m F (2 F - 1) and m F (6 F^2 - 6 F + 1).

    Parameters
    ----------
    mean_rate_hz, burstiness, indicator, noise_level
        As in `CellClass`.
    rate_hz : float
        Imaging rate.

    Returns
    -------
    tuple of float
        Skewness, excess (Fisher) kurtosis.

    Examples
    --------
    For Poisson events and a kernel without rise this is 0.943 / sqrt(r tau) and 1 / (r tau):

    >>> quick = Indicator("quick", rise_s=1e-6, decay_s=0.4, amplitude=1.0)
    >>> skewness, kurtosis = expected_moments(
    ...     mean_rate_hz=0.5, burstiness=1.0, indicator=quick, noise_level=0.0, rate_hz=1000.0)
    >>> round(skewness / (0.943 / 0.2**0.5), 2), round(kurtosis / (1 / 0.2), 2)
    (1.0, 1.0)
    """
    mean, fano = mean_rate_hz / rate_hz, burstiness
    counts = {2: mean * fano, 3: mean * fano * (2 * fano - 1), 4: mean * fano * (6 * fano**2 - 6 * fano + 1)}
    kernel = indicator.amplitude * kernel_shape(indicator, rate_hz)
    cumulant = {order: value * float((kernel**order).sum()) for order, value in counts.items()}
    variance = cumulant[2] + noise_level**2
    return cumulant[3] / variance**1.5, cumulant[4] / variance**2
