import numpy as np
import pandas as pd
import pytest
from scipy.integrate import quad
from tests.sources.decay_fit import fit_decay

from poyo_ssl.data.series import SparseEvents
from poyo_ssl.errors import ConfigError
from poyo_ssl.sources.events import EventsSource, GCaMPConfig, calcium, fluorescence, movie_presentations, simulate_dff


def test_calcium_is_the_frame_average_of_the_double_exponential():
    rise, decay, rate = 0.06, 0.41, 30.0
    peak_s = rise * np.log(1 + decay / rise)
    peak = (1 - np.exp(-peak_s / rise)) * np.exp(-peak_s / decay)
    events = np.zeros((40, 2))
    events[3, 0], events[5, 1] = 1, 2
    trace = calcium(events, rate, rise_s=rise, decay_s=decay)
    for frame in range(3, 40):
        a, b = (frame - 3) / rate, (frame - 2) / rate
        expected = quad(lambda t: (1 - np.exp(-t / rise)) * np.exp(-t / decay) / peak, a, b)[0] * rate
        assert trace[frame, 0] == pytest.approx(expected, rel=1e-9)
    np.testing.assert_allclose(trace[5:, 1], 2 * trace[3:-2, 0], rtol=1e-9)
    assert not trace[:3, 0].any()


def test_fluorescence_follows_the_hill_curve():
    indicator = GCaMPConfig(hill=2.0, half_events=3.0, max_dff=4.0)
    events = np.full((4000, 1), 0.5)
    steady = calcium(events, 100.0, rise_s=indicator.rise_s, decay_s=indicator.decay_s)[-1, 0]
    expected = 4.0 * steady**2 / (steady**2 + 9.0)
    assert fluorescence(events, 100.0, indicator=indicator)[-1, 0] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("decay_s", [0.2, 0.8])
def test_decay_is_recovered_under_noise_and_drift(decay_s):
    rng = np.random.default_rng(1)
    segments, spikes = [], []
    for _ in range(3):
        times = np.sort(rng.uniform(0, 120, 100))
        fine = np.histogram(times, np.arange(120 * 120 + 1) / 120)[0]
        trace = fluorescence(fine, 120.0, indicator=GCaMPConfig(decay_s=decay_s)).reshape(-1, 4).mean(1)
        trace = 3 * trace + 0.02 * rng.standard_normal(3600) + np.linspace(0, 1, 3600)
        segments.append(trace)
        spikes.append(times)
    assert np.median(fit_decay(segments, spikes, [30.0] * 3)[0]) == pytest.approx(decay_s, rel=0.1)


def test_segments_without_spikes_are_left_out():
    decay_s, explained = fit_decay([np.zeros(100)], [np.zeros(2)], [30.0])
    assert np.isnan([decay_s, explained]).all()


def test_more_events_peak_later_and_grow_faster_than_linearly():
    trace = calcium(np.eye(1, 200)[0], 100.0, rise_s=0.06, decay_s=0.41)
    # 0.06 ln(1 + 0.41 / 0.06) = 0.123 s
    assert (round(float(trace.max()), 2), int(trace.argmax())) == (1.0, 12)
    bursts = np.zeros((60, 2))
    bursts[10] = 1, 2
    single, double = fluorescence(bursts, 30.0, indicator=GCaMPConfig()).max(axis=0)
    assert double > 3 * single


def test_dff_of_an_event_without_noise():
    events = SparseEvents(np.array([10]), np.array([0]), np.array([8.0], np.float32))
    dff = simulate_dff(events, 60, 2, 30.0, indicator=GCaMPConfig(noise_std=0.0), seed=0)
    assert (dff.shape, dff[:10].any(), round(float(dff[:, 0].max()), 1)) == ((60, 2), False, 2.2)


def test_movie_frames_lie_evenly_in_their_block():
    block = {"start_frame": 10, "end_frame": 20, "repeats": 2, "frames_per_repeat_imaging": 5.0, "movie_frames": 2}
    shown = movie_presentations("natural_movie_one", pd.DataFrame([block]), np.arange(30.0))
    assert shown.start.tolist() == [10.0, 12.5, 15.0, 17.5]
    assert shown.columns["frame"].tolist() == [0, 1, 0, 1]
    assert shown.columns["repeat"].tolist() == [0, 0, 1, 1]


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match="decay_s"):
        GCaMPConfig(decay_s=0.0)
    with pytest.raises(ConfigError, match="seed of -1"):
        EventsSource(seed=-1)
