"""dF/F procedures against plain definitions of their baselines, and on traces with a known answer."""

import numpy as np
import pytest
from scipy import signal, stats

from poyo_ssl.data.dff import PROCEDURES, compute_dff, estimate_noise
from poyo_ssl.errors import ConfigError


@pytest.fixture(scope="module")
def light():
    """Return ``(9000, 3)`` fluorescence at 30 Hz with its true baseline and transients."""
    rng = np.random.default_rng(0)
    baseline = 200 * (1 + 0.15 * np.sin(np.arange(9000) / 1500))[:, None] * np.array([1.0, 2.0, 0.5])
    transient = np.zeros((9000, 3))
    for unit in range(3):
        for onset in rng.integers(0, 8900, 25):
            transient[onset : onset + 60, unit] += 1.5 * np.exp(-np.arange(60) / 12)
    return baseline * (1 + transient + rng.normal(0, 0.03, (9000, 3))), baseline, transient


@pytest.mark.parametrize(("procedure", "bias"), [("allen_median", 0.03), ("allen_mode", 0.06), ("maximin", 0.08)])
def test_known_transients_come_back(light, procedure, bias):
    fluorescence, _, transient = light
    dff, floored = compute_dff(fluorescence, procedure, rate_hz=30.0)
    assert dff.dtype == np.float32
    assert not floored.any()
    inner = slice(600, -600)
    error = dff[inner] - transient[inner]
    assert np.abs(np.median(error, axis=0)).max() < bias
    for unit in range(3):
        assert np.corrcoef(dff[inner, unit], transient[inner, unit])[0, 1] > 0.95


def test_allen_median_equals_its_definition(light):
    trace = light[0][:, 0]
    dff, _ = compute_dff(trace[:, None], "allen_median", rate_hz=30.08)
    # Frames whose windows of 5401 and, around that, of 101 lie inside the trace.
    rows = np.arange(2700 + 50, len(trace) - 2700 - 50)
    baseline = {i: np.median(trace[i - 2700 : i + 2701]) for i in range(rows[0] - 50, rows[-1] + 51)}
    ratio = {i: (trace[i] - value) / value for i, value in baseline.items()}
    slow = {row: np.median([ratio[i] for i in range(row - 50, row + 51)]) for row in rows[::41]}
    below_cap = [row for row, value in slow.items() if value < 2 * 0.03]
    assert len(below_cap) > 50
    for row in below_cap:
        assert dff[row, 0] == pytest.approx(ratio[row] - slow[row], abs=1e-6)


def test_detrending_is_capped_by_the_noise():
    trace = 100 + np.random.default_rng(0).normal(0, 1, 9000)
    trace[4000:4300] += 50  # Far longer than 101 frames: without a cap it would vanish.
    dff, _ = compute_dff(trace[:, None], "allen_median", rate_hz=30.0)
    assert np.median(dff[4100:4200]) == pytest.approx(0.5 - 2.5 * 0.01, abs=0.003)


def test_noise_is_that_of_the_trace_without_its_peaks(light):
    trace = light[0][:, 0]
    rest = trace - signal.medfilt(trace, 31)
    rest = rest[rest < 1.5 * abs(rest.min())]
    rest = rest[abs(rest) < 2.5 * stats.median_abs_deviation(rest, scale="normal")]
    expected = stats.median_abs_deviation(rest, scale="normal")
    assert estimate_noise(trace, 30.0) == pytest.approx(expected, rel=0.02)


def test_allen_mode_equals_its_definition_at_whole_seconds():
    counts = np.random.default_rng(1).poisson(80, 12_000).astype(float) + np.repeat([0, 20], 6000)
    expected = []
    for second in range(0, 12_001, 30):
        window = np.rint(counts[max(second - 2700, 0) : second + 2700]).astype(int)
        expected.append(np.bincount(window).argmax())
    line = np.interp(np.arange(12_000), np.arange(0, 12_001, 30), expected)
    padded = np.pad(line, 1500, mode="edge")
    mean = np.convolve(padded, np.ones(3001) / 3001, mode="valid")
    dff, _ = compute_dff(counts[:, None], "allen_mode", rate_hz=30.0)
    np.testing.assert_allclose(dff[:, 0], (counts - mean) / mean, atol=1e-6)


def test_maximin_and_percentile_equal_their_definitions(light):
    trace = light[0][:, 1]
    dff, _ = compute_dff(trace[:, None], "percentile", rate_hz=10.0)
    row = 4000
    baseline = np.sort(trace[row - 899 : row + 900])[int(1799 * 0.08)]
    assert dff[row, 0] == pytest.approx(trace[row] / baseline - 1, abs=1e-5)
    offset = np.arange(-40, 41)
    kernel = np.exp(-(offset**2) / 200)
    smooth = np.convolve(trace, kernel / kernel.sum(), mode="same")
    low = np.array([smooth[max(i - 300, 0) : i + 300].min() for i in range(3000, 6000)])
    high = max(low[4000 - 3000 - 300 : 4000 - 3000 + 300])
    dff, _ = compute_dff(trace[:, None], "maximin", rate_hz=10.0)
    assert dff[4000, 0] == pytest.approx(trace[4000] / high - 1, abs=1e-6)


@pytest.mark.parametrize("procedure", PROCEDURES)
def test_strange_traces_stay_finite_and_are_told(procedure, light):
    rng = np.random.default_rng(0)
    trace = light[0][:3000, 0]
    with_gap = trace.copy()
    with_gap[700:720] = np.nan
    strange = np.stack([np.zeros(3000), np.full(3000, 7.0), rng.normal(0, 1, 3000), -trace, with_gap], axis=1)
    dff, floored = compute_dff(strange, procedure, rate_hz=30.0)
    assert np.isfinite(dff[:, :4]).all()
    assert not dff[:, :2].any()
    assert floored[2] > 0.5
    assert floored[3] == 1.0
    assert np.flatnonzero(np.isnan(dff[:, 4])).tolist() == list(range(700, 720))
    # One unit does not depend on the others, and short recordings have short windows.
    alone, _ = compute_dff(strange[:, 4:], procedure, rate_hz=30.0)
    np.testing.assert_array_equal(alone[:, 0], dff[:, 4])
    assert np.isfinite(compute_dff(trace[:5, None], procedure, rate_hz=30.0)[0]).all()
    assert np.isnan(compute_dff(np.full((50, 1), np.nan), procedure, rate_hz=30.0)[0]).all()


def test_unknown_procedure_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'allen_median'"):
        compute_dff(np.ones((10, 1)), "alen_median", rate_hz=30.0)
