import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kurtosis, skew

from poyo_ssl.data.recording import Recording, RecordingMetadata
from poyo_ssl.errors import SelectionError
from poyo_ssl.selection.moments import CentralMoments, frame_spans, measure_units


def make_recording(dff, rate_hz=30.0, **more):
    return Recording("r", dff, np.arange(len(dff)) / rate_hz, RecordingMetadata("mouse"), **more)


def draw(kind, size):
    rng = np.random.default_rng(7)
    return {
        "normal": rng.standard_normal(size),
        "heavy": rng.lognormal(0, 1.5, size),
        "gamma": rng.gamma(0.1, size=size),
        "offset": 1e6 + 50 * rng.gamma(2.0, size=size),
    }[kind].astype(np.float32)


@pytest.mark.parametrize("kind", ["normal", "heavy", "gamma", "offset"])
def test_moments_equal_scipy(kind):
    dff = draw(kind, (20_011, 7))
    found = measure_units(make_recording(dff))
    exact = dff.astype(np.float64)
    np.testing.assert_allclose(found.skewness, skew(exact, axis=0, bias=True), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(found.kurtosis, kurtosis(exact, axis=0, fisher=True, bias=True), rtol=1e-9, atol=1e-10)
    assert found.num_samples == 20_011
    assert (found.status == "ok").all()


def test_float64_traces_with_a_huge_offset_keep_their_digits():
    rng = np.random.default_rng(3)
    small = rng.gamma(2.0, size=(5000, 2))
    moments = CentralMoments(2)
    for rows in np.array_split(1e6 + small, 37):
        moments.update(rows)
    np.testing.assert_allclose(moments.skewness(), skew(small, axis=0), rtol=1e-7)
    np.testing.assert_allclose(moments.kurtosis(), kurtosis(small, axis=0), rtol=1e-7)


def test_a_first_piece_far_from_the_rest_and_a_look_in_between_cost_no_digits():
    rows = np.random.default_rng(5).gamma(2.0, size=(4000, 2))
    rows[:10] += 1e4
    moments = CentralMoments(2)
    for index, piece in enumerate(np.split(rows, np.arange(10, 4000, 70))):
        moments.update(piece)
        if index == 40:
            np.testing.assert_allclose(moments.mean, rows[: moments.count].mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.skewness(), skew(rows, axis=0), rtol=1e-10)
    np.testing.assert_allclose(moments.kurtosis(), kurtosis(rows, axis=0), rtol=1e-10)


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(1, 199), max_size=8, unique=True), seed=st.integers(0, 99))
def test_pieces_do_not_matter(cuts, seed):
    rows = np.random.default_rng(seed).lognormal(0, 1, (200, 3))
    whole, pieces = CentralMoments(3), CentralMoments(3)
    whole.update(rows)
    for piece in np.split(rows, sorted(cuts)):
        pieces.update(piece)
    assert pieces.count == 200
    np.testing.assert_allclose(pieces.skewness(), whole.skewness(), rtol=1e-9)
    np.testing.assert_allclose(pieces.kurtosis(), whole.kurtosis(), rtol=1e-9)


@pytest.mark.parametrize("chunk_frames", [1, 7, 1000, 10**6])
def test_chunk_size_does_not_matter(chunk_frames):
    recording = make_recording(draw("gamma", (3001, 5)), masked_domain=np.array([[40.0, 50.0]]))
    intervals = np.array([[0.0, 20.0], [30.0, 99.0]])
    reference = measure_units(recording, intervals, chunk_frames=333)
    found = measure_units(recording, intervals, chunk_frames=chunk_frames)
    for name in ("skewness", "kurtosis", "snr", "event_rate_hz"):
        np.testing.assert_allclose(getattr(found, name), getattr(reference, name), rtol=1e-9)


def test_intervals_and_masked_spans_are_honoured():
    dff = draw("heavy", (3000, 4))
    recording = make_recording(dff, rate_hz=10.0, masked_domain=np.array([[50.0, 60.0]]))
    found = measure_units(recording, np.array([[100.0, 200.0], [0.0, 70.0], [20.0, 80.0]]))
    time = np.arange(3000) / 10.0
    keep = ((time < 80) | ((time >= 100) & (time < 200))) & ~((time >= 50) & (time < 60))
    assert found.num_samples == keep.sum() == 1700
    np.testing.assert_allclose(found.skewness, skew(dff[keep].astype(float), axis=0), rtol=1e-9)
    spoilt = dff.copy()
    spoilt[~keep] = np.nan
    again = measure_units(
        make_recording(spoilt, rate_hz=10.0, masked_domain=recording.masked_domain),
        np.array([[0.0, 80.0], [100.0, 200.0]]),
    )
    for name in ("skewness", "kurtosis", "snr", "event_rate_hz"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))


@settings(max_examples=40, deadline=None)
@given(
    intervals=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)).map(sorted), max_size=5),
    masked=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)).map(sorted), max_size=3),
)
def test_frame_spans_are_the_frames_inside(intervals, masked):
    times = np.arange(50) + 0.25
    spans = frame_spans(times, np.array(intervals, float).reshape(-1, 2), np.array(masked, float).reshape(-1, 2))
    got = {frame for start, end in spans for frame in range(start, end)}
    expected = {
        frame
        for frame, t in enumerate(times)
        if any(a <= t < b for a, b in intervals) and not any(a <= t < b for a, b in masked)
    }
    assert got == expected
    assert (spans[1:, 0] > spans[:-1, 1]).all()


def test_nan_and_constant_units_are_marked_and_spoil_nobody():
    dff = draw("normal", (4000, 5))
    clean = measure_units(make_recording(dff))
    broken = dff.copy()
    broken[1234, 1] = np.nan
    broken[10, 2] = np.inf
    broken[:, 3] = 0.1
    found = measure_units(make_recording(broken), chunk_frames=500)
    assert found.status.tolist() == ["ok", "nan", "nan", "constant", "ok"]
    assert np.isnan(found.skewness[1:4]).all()
    assert np.isnan(found.kurtosis[1:4]).all()
    np.testing.assert_allclose(found.skewness[[0, 4]], clean.skewness[[0, 4]], rtol=1e-9)
    np.testing.assert_allclose(found.snr[[0, 4]], clean.snr[[0, 4]], rtol=1e-9)


def test_snr_and_event_rate_on_planted_events():
    rng = np.random.default_rng(0)
    num_frames, rate = 18_000, 30.0
    noise = 0.05 * rng.standard_normal((num_frames, 2))
    signal = np.zeros((num_frames, 2))
    # 300 events of 10 frames in 600 s: 0.5 Hz, and the 99th percentile lies on their top.
    for onset in range(30, num_frames, 60):
        signal[onset : onset + 10, 0] = 1.0
    found = measure_units(make_recording((signal + noise).astype(np.float32), rate))
    assert found.snr[0] == pytest.approx((1 + 1.4 * 0.05) / 0.05, rel=0.1)
    # White noise: the 99th percentile lies 2.33 sigma above the median; it crosses 3 sigma 0.04 times a second.
    assert found.snr[1] == pytest.approx(2.33, rel=0.05)
    assert 0.5 <= found.event_rate_hz[0] < 0.54
    assert found.event_rate_hz[1] == pytest.approx(0.04, abs=0.02)


def test_crossings_by_hand():
    # Noise: the differences are 0 except at the steps, so the threshold is the median, 0.
    trace = np.zeros((20, 1), np.float32)
    trace[[3, 4, 9, 15]] = 1.0
    found = measure_units(make_recording(trace, 10.0), chunk_frames=4)
    assert found.event_rate_hz[0] == pytest.approx(3 / 2.0)
    assert np.isnan(found.snr[0])


def test_memory_map_is_streamed(tmp_path):
    dff = draw("gamma", (5000, 6))
    np.save(tmp_path / "dff.npy", dff)
    mapped = np.load(tmp_path / "dff.npy", mmap_mode="r")
    np.testing.assert_array_equal(
        measure_units(make_recording(mapped)).kurtosis, measure_units(make_recording(dff)).kurtosis
    )


def test_no_frame_left_is_an_error():
    with pytest.raises(SelectionError, match="0 imaging frames"):
        measure_units(make_recording(draw("normal", (100, 2))), np.array([[500.0, 600.0]]))


def test_two_values_by_hand():
    moments = CentralMoments(1)
    moments.update(np.array([[0.0], [0.0]]))
    moments.update(np.array([[0.0], [4.0]]))
    np.testing.assert_allclose(moments.skewness(), 6 / 3**1.5)
    np.testing.assert_allclose(moments.kurtosis(), 21 / 9 - 3)


def test_spans_inside_intervals_and_outside_masked_ones():
    spans = frame_spans(np.arange(10.0), np.array([[1.0, 4.0], [3.0, 9.0]]), np.array([[5.0, 6.0]]))
    assert spans.tolist() == [[1, 5], [6, 9]]


def test_skewness_of_a_gamma():
    dff = np.random.default_rng(0).gamma(4.0, size=(20_000, 1)).astype(np.float32)
    assert measure_units(make_recording(dff)).skewness.round(1).tolist() == [1.0]  # 2 / sqrt(4)
