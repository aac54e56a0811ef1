from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from poyo_ssl.observatory import CellClass, Indicator
from poyo_ssl.observatory.calcium import (
    SHOT_SHARE,
    convolve_kernel,
    draw_counts,
    expected_moments,
    kernel_shape,
    mix_neuropil,
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


@pytest.mark.parametrize(
    ("rate_hz", "fano", "noise", "indicator"),
    [(1.0, 1.0, 0.05, GCAMP6F), (4.0, 3.0, 0.3, GCAMP6F), (0.7, 1.5, 0.15, GCAMP6S)],
)
def test_moments_of_traces_follow_the_cumulants(rate_hz, fano, noise, indicator):
    # Medians over 48 neurons and 60 minutes, without saturation and detrending.
    cell = CellClass(
        mean_rate_hz=rate_hz,
        burstiness=fano,
        noise_level=noise,
        noise_spread=0.0,
        indicator=indicator,
        saturation=None,
        neuropil_error=0.0,
    )
    rates = np.full((108_000, 48), rate_hz, np.float32)
    dff = simulate_fluorescence(cell, rates, RATE_HZ, np.random.default_rng(0), procedure=None).dff
    skewness, kurtosis = expected_moments(
        mean_rate_hz=rate_hz, burstiness=fano, indicator=indicator, noise_level=noise, rate_hz=RATE_HZ
    )
    assert abs(np.median(stats.skew(dff, axis=0)) / skewness - 1) < 0.10
    assert abs(np.median(stats.kurtosis(dff, axis=0)) / kurtosis - 1) < 0.10


def test_rise_and_noise_lower_the_moments_as_published():
    # METHOD: a rise of 60 ms multiplies by 0.88 and 0.74; a signal share S by S^1.5 and S^2.
    settings = {"mean_rate_hz": 0.5, "burstiness": 1.0, "rate_hz": 500.0, "shot_share": 0.0}
    quick = expected_moments(indicator=Indicator("quick", 1e-6, 0.4, 1.0), noise_level=0.0, **settings)
    risen = expected_moments(indicator=Indicator("risen", 0.06, 0.4, 1.0), noise_level=0.0, **settings)
    assert abs(risen[0] / quick[0] - 0.88) < 0.02
    assert abs(risen[1] / quick[1] - 0.74) < 0.03
    variance = 0.5 * 0.4 / 2
    noisy = expected_moments(indicator=Indicator("quick", 1e-6, 0.4, 1.0), noise_level=variance**0.5, **settings)
    np.testing.assert_allclose(np.divide(noisy, quick), [0.5**1.5, 0.5**2], rtol=0.01)


def test_truth_of_noise_and_signal_share():
    cell = CellClass(mean_rate_hz=1.0, noise_level=0.1, noise_spread=0.3, neuropil_error=0.0)
    rates = np.full((20_000, 30), 1.0, np.float32)
    imaged = simulate_fluorescence(cell, rates, RATE_HZ, np.random.default_rng(0), procedure=None)
    # Independent estimate of white noise: differences of neighbouring frames, whose signal part is small.
    estimate = np.median(np.abs(np.diff(imaged.dff, axis=0)), axis=0) / 0.6745 / np.sqrt(2)
    np.testing.assert_allclose(estimate, imaged.noise_level, rtol=0.25)
    assert np.corrcoef(estimate, imaged.noise_level)[0, 1] > 0.95
    np.testing.assert_allclose(
        imaged.dff.var(0) * imaged.signal_share, imaged.dff.var(0) - imaged.noise_level**2, rtol=0.1
    )


def test_noise_levels_are_log_normal_about_the_class_s():
    cell = CellClass(noise_level=0.07, noise_spread=0.4)
    level = simulate_fluorescence(
        cell, np.zeros((40, 2000), np.float32), RATE_HZ, np.random.default_rng(0), procedure=None
    ).noise_level
    assert stats.kstest(np.log(level / 0.07) / 0.4, "norm").pvalue > 0.01


def test_noise_grows_with_the_light_of_the_cell():
    # Shot noise: its variance is proportional to all light that the ROI collects.
    cell = CellClass(noise_level=0.1, noise_spread=0.0, neuropil_error=0.0, saturation=None, burstiness=1.0)
    rates = np.full((40_000, 4), 30.0, np.float32)
    still = replace(cell.indicator, amplitude=1e-9)
    quiet, bright = (
        simulate_fluorescence(
            replace(cell, indicator=indicator), rates, RATE_HZ, np.random.default_rng(0), procedure=None
        ).dff
        for indicator in (still, cell.indicator)
    )
    # The same seed draws the same noise; calcium hardly changes between neighbouring frames.
    clean = convolve_kernel(
        draw_counts(rates, 1 / RATE_HZ, 1.0, np.random.default_rng(0)) * cell.indicator.amplitude,
        cell.indicator,
        RATE_HZ,
    )
    ratio = (bright - clean).var(0) / quiet.var(0)
    np.testing.assert_allclose(ratio, 1 + SHOT_SHARE * clean.mean(0), rtol=0.05)


def test_both_allen_recipes_take_out_drift_and_only_the_recent_one_sustained_activity():
    rates = np.full((30_000, 4), 0.02, np.float32)
    rates[12_000:12_900] = 2.0  # half a minute
    # The detrend takes 2.5 noise deviations at most, so the activity must be about as low as that.
    dim = replace(GCAMP6F, amplitude=0.18)
    cell = CellClass(
        noise_level=0.05, noise_spread=0.0, neuropil_error=0.0, burstiness=1.0, saturation=None, indicator=dim
    )
    true, median, mode = (
        simulate_fluorescence(cell, rates, RATE_HZ, np.random.default_rng(0), procedure=name).dff
        for name in (None, "allen_median", "allen_mode")
    )
    sustained = slice(12_100, 12_800)
    assert median[sustained].mean() < 0.5 * true[sustained].mean()
    assert abs(mode[sustained].mean() / true[sustained].mean() - 1) < 0.15
    # A detrended trace is less skewed; the resting fluorescence is found to a few percent by both.
    assert np.median(stats.skew(median, axis=0)) < np.median(stats.skew(mode, axis=0))
    for found in (median, mode):
        assert np.abs(np.median(found[:12_000], axis=0)).max() < 0.03


def test_neuropil_follows_the_cells_around_it():
    rng = np.random.default_rng(0)
    calcium = rng.gamma(0.1, 1.0, (3000, 3)).astype(np.float32)
    light = mix_neuropil(calcium, np.array([0.0, 10.0, 400.0]), np.zeros(3), RATE_HZ, rng)
    correlation = np.corrcoef(light.T, calcium.T)[:3, 3:]
    # The first sees its neighbour, not itself and not the far one; the far one sees both a little.
    assert correlation[0, 1] > 0.95
    assert abs(correlation[0, 0]) < 0.1
    assert abs(correlation[0, 2]) < 0.1


def test_a_wrong_correction_leaves_neuropil_in_the_trace():
    cell = CellClass(noise_level=1e-4, noise_spread=0.0, neuropil_error=0.1, saturation=None)
    rates = np.repeat(np.random.default_rng(1).gamma(0.2, 5.0, (300, 1)), 30, axis=0) * np.ones((1, 12), np.float32)
    imaged = simulate_fluorescence(cell, rates.astype(np.float32), RATE_HZ, np.random.default_rng(0), procedure=None)
    calcium = convolve_kernel(imaged.events.dense(*rates.shape) * cell.indicator.amplitude, cell.indicator, RATE_HZ)
    left = imaged.dff - calcium
    error = imaged.neuropil_ratio - imaged.neuropil_ratio_found
    neuropil = np.stack([np.delete(calcium, unit, axis=1).mean(1) for unit in range(12)], axis=1)
    slope = [np.polyfit(neuropil[:, unit], left[:, unit], 1)[0] for unit in range(12)]
    np.testing.assert_allclose(slope, 0.8 * 0.5 * error, atol=0.01)


def test_saturation_bounds_the_trace():
    rates = np.full((5000, 4), 5.0, np.float32)
    linear, bounded = (
        simulate_fluorescence(
            CellClass(noise_level=1e-6, burstiness=8.0, saturation=saturation, neuropil_error=0.0),
            rates,
            RATE_HZ,
            np.random.default_rng(0),
            procedure=None,
        ).dff
        for saturation in (None, 0.5)
    )
    assert bounded.max() < 0.5 + 1e-4 < linear.max()
    np.testing.assert_allclose(bounded, 0.5 * (1 - np.exp(-linear / 0.5)), atol=1e-4)
