import numpy as np
import pytest

from poyo_ssl.observatory import CellClass
from poyo_ssl.observatory.animals import simulate_behaviour, slow_noise
from poyo_ssl.observatory.drives import simulate_rates


@pytest.fixture(scope="module")
def behaviour():
    return simulate_behaviour(30_000, 30.0, np.random.default_rng(7))


@pytest.mark.parametrize("wanted", [0.2, 0.5, 0.8])
def test_stimulus_information_is_what_was_asked_for(wanted, behaviour):
    rng = np.random.default_rng(0)
    drive = np.repeat(rng.gamma(0.5, 2.0, (3000, 200)), 10, axis=0).astype(np.float32)
    cell = CellClass(stimulus_information=wanted, rate_variance=1.5)
    rates = simulate_rates(cell, drive, behaviour, 30.0, rng)
    assert abs(np.median(rates.stimulus_information) - wanted) < 0.05
    # Independent: squared correlation of the rate with the drive that caused it.
    explained = [np.corrcoef(rates.rate_hz[:, unit], drive[:, unit])[0, 1] ** 2 for unit in range(200)]
    assert abs(np.median(explained) - wanted) < 0.1
    np.testing.assert_allclose(rates.rate_hz.mean(0), rates.mean_rate_hz, rtol=1e-3)
    assert (rates.rate_hz >= 0).all()


def test_expected_rate_is_the_rate_without_its_gain(behaviour):
    # Averaged over many moments with the same drive, the gain has its mean effect.
    rng = np.random.default_rng(0)
    shown = rng.integers(0, 5, 1000)
    levels = rng.gamma(1.0, 1.0, (5, 40)).astype(np.float32)
    drive = np.repeat(levels[shown], 30, axis=0)
    rates = simulate_rates(CellClass(stimulus_information=0.5, rate_variance=0.6), drive, behaviour, 30.0, rng)
    frames = np.repeat(shown, 30)
    found = np.stack([rates.rate_hz[frames == level].mean(0) for level in range(5)])
    np.testing.assert_allclose(np.median(found / rates.expected_hz(levels), axis=1), 1, atol=0.1)


def test_running_and_arousal_move_the_cells_of_a_class(behaviour):
    rng = np.random.default_rng(0)
    cell = CellClass(running_sign=1.0, running_share=0.8, shared_share=0.1)
    rates = simulate_rates(cell, np.ones((30_000, 30), np.float32), behaviour, 30.0, rng)
    fast = behaviour.running > 5
    assert 0.1 < fast.mean() < 0.9
    assert (rates.rate_hz[fast].mean(0) > rates.rate_hz[~fast].mean(0)).mean() > 0.9
    assert (rates.stimulus_information == 0).all()
    assert (rates.running_gain > 0).all()
    slowed = simulate_rates(
        CellClass(running_sign=-1.0, running_share=0.8, shared_share=0.1),
        np.ones((30_000, 30), np.float32),
        behaviour,
        30.0,
        np.random.default_rng(0),
    )
    assert (slowed.rate_hz[fast].mean(0) < slowed.rate_hz[~fast].mean(0)).mean() > 0.9


def test_shared_noise_is_low_dimensional(behaviour):
    cell = CellClass(running_share=0.0, shared_share=0.9)
    drive = np.ones((30_000, 60), np.float32)
    log_rate = np.log(simulate_rates(cell, drive, behaviour, 30.0, np.random.default_rng(0)).rate_hz)
    eigenvalues = np.linalg.eigvalsh(np.corrcoef(log_rate.T))[::-1]
    assert eigenvalues[:3].sum() > 0.8 * 60
    private = CellClass(running_share=0.0, shared_share=0.0)
    log_rate = np.log(simulate_rates(private, drive, behaviour, 30.0, np.random.default_rng(0)).rate_hz)
    assert np.linalg.eigvalsh(np.corrcoef(log_rate.T))[-3:].sum() < 0.2 * 60


def test_slow_noise_has_its_variance_and_time_constant():
    noise = slow_noise((40_000, 4), 30.0, np.random.default_rng(0))
    np.testing.assert_allclose(noise.std(0), 1, atol=0.1)
    correlation = [np.corrcoef(noise[30:, unit], noise[:-30, unit])[0, 1] for unit in range(4)]
    np.testing.assert_allclose(correlation, np.exp(-1), atol=0.08)


def test_pupil_and_gaze_stay_within_reason(behaviour):
    assert 0.005 < 1 - behaviour.eye_open.mean() < 0.06
    assert 500 < behaviour.pupil_size.min() < behaviour.pupil_size.max() < 6000
    assert np.abs(behaviour.gaze_cm).max() < 15
    assert abs(np.corrcoef(behaviour.arousal, behaviour.running)[0, 1] - np.sqrt(0.6)) < 0.3
