import numpy as np
import pytest
from scipy import stats

from poyo_ssl.observatory import CellClass, Indicator
from poyo_ssl.observatory.calcium import (
    convolve_kernel,
    draw_counts,
    expected_moments,
    kernel_shape,
    remove_baseline,
    simulate_fluorescence,
)
from poyo_ssl.observatory.worlds import GCAMP6F, GCAMP6S

RATE_HZ = 30.0


@pytest.mark.parametrize("indicator", [GCAMP6F, GCAMP6S])
def test_recursive_filter_equals_the_sampled_kernel(indicator):
    impulse = np.zeros((200, 2))
    impulse[3, 1] = 2.0
    filtered = convolve_kernel(impulse, indicator, RATE_HZ)
    expected = 2 * kernel_shape(indicator, RATE_HZ, duration_s=197 / RATE_HZ + 1e-9)
    np.testing.assert_allclose(filtered[3:, 1], expected, atol=1e-12)
    assert (filtered[:, 0] == 0).all()
    assert abs(kernel_shape(indicator, 10_000.0).max() - 1) < 1e-4


@pytest.mark.parametrize("fano", [1.0, 1.5, 4.0])
def test_counts_are_negative_binomial(fano):
    counts = draw_counts(np.full((400_000, 1), 3.0), 1 / RATE_HZ, fano, np.random.default_rng(0)).ravel()
    assert abs(counts.mean() / 0.1 - 1) < 0.03
    assert abs(counts.var() / counts.mean() / fano - 1) < 0.05
    if fano > 1:
        expected = stats.nbinom(0.1 / (fano - 1), 1 / fano).pmf(np.arange(4))
        np.testing.assert_allclose([(counts == n).mean() for n in range(4)], expected, atol=2e-3)


@pytest.mark.parametrize(("rate_hz", "fano", "noise"), [(1.0, 1.0, 0.05), (4.0, 3.0, 0.05)])
def test_moments_of_traces_follow_the_cumulants(rate_hz, fano, noise):
    # Medians over 40 neurons and 60 minutes within 10 % (skewness) and 15 % (kurtosis): sample moments of
    # heavy tails are biased low and drift of the resting fluorescence is left in.
    cell = CellClass(
        mean_rate_hz=rate_hz, burstiness=fano, noise_level=max(noise, 1e-6), noise_spread=0.0, indicator=GCAMP6F
    )
    rates = np.full((108_000, 40), rate_hz, np.float32)
    dff = simulate_fluorescence(cell, rates, RATE_HZ, np.random.default_rng(0)).dff
    skewness, kurtosis = expected_moments(
        mean_rate_hz=rate_hz, burstiness=fano, indicator=GCAMP6F, noise_level=noise, rate_hz=RATE_HZ
    )
    assert abs(np.median(stats.skew(dff, axis=0)) / skewness - 1) < 0.10
    assert abs(np.median(stats.kurtosis(dff, axis=0)) / kurtosis - 1) < 0.15


def test_rise_and_noise_lower_the_moments_as_published():
    # METHOD: a rise of 60 ms multiplies by 0.88 and 0.74; a signal share S by S^1.5 and S^2.
    settings = {"mean_rate_hz": 0.5, "burstiness": 1.0, "rate_hz": 500.0}
    quick = expected_moments(indicator=Indicator("quick", 1e-6, 0.4, 1.0), noise_level=0.0, **settings)
    risen = expected_moments(indicator=Indicator("risen", 0.06, 0.4, 1.0), noise_level=0.0, **settings)
    assert abs(risen[0] / quick[0] - 0.88) < 0.02
    assert abs(risen[1] / quick[1] - 0.74) < 0.03
    variance = 0.5 * 0.4 / 2
    noisy = expected_moments(indicator=Indicator("quick", 1e-6, 0.4, 1.0), noise_level=variance**0.5, **settings)
    np.testing.assert_allclose(np.divide(noisy, quick), [0.5**1.5, 0.5**2], rtol=0.01)


def test_baseline_removal_takes_out_drift_and_keeps_transients():
    rng = np.random.default_rng(0)
    times = np.arange(30_000)
    drift = 100 * (1 + 0.2 * np.sin(2 * np.pi * times / 30_000))[:, None]
    calcium = convolve_kernel(0.5 * (rng.random((30_000, 3)) < 0.002), GCAMP6F, RATE_HZ)
    dff = remove_baseline(drift * (1 + calcium))
    assert np.abs(dff - calcium).max() < 0.12
    assert all(np.corrcoef(dff[:, unit], calcium[:, unit])[0, 1] > 0.97 for unit in range(3))


def test_truth_of_noise_and_signal_share():
    cell = CellClass(mean_rate_hz=1.0, noise_level=0.1, noise_spread=0.3)
    imaged = simulate_fluorescence(cell, np.full((20_000, 30), 1.0, np.float32), RATE_HZ, np.random.default_rng(0))
    # Independent estimate of white noise: differences of neighbouring frames, whose signal part is small.
    estimate = np.median(np.abs(np.diff(imaged.dff, axis=0)), axis=0) / 0.6745 / np.sqrt(2)
    np.testing.assert_allclose(estimate, imaged.noise_level, rtol=0.25)
    assert np.corrcoef(estimate, imaged.noise_level)[0, 1] > 0.95
    assert ((imaged.signal_share > 0) & (imaged.signal_share < 1)).all()


def test_saturation_bounds_the_trace():
    cell = CellClass(noise_level=1e-6, saturation=0.5, burstiness=8.0)
    rates = np.full((5000, 4), 5.0, np.float32)
    linear = simulate_fluorescence(
        CellClass(noise_level=1e-6, burstiness=8.0), rates, RATE_HZ, np.random.default_rng(0)
    )
    bounded = simulate_fluorescence(cell, rates, RATE_HZ, np.random.default_rng(0))
    assert bounded.dff.max() < 0.7 < linear.dff.max()
