"""Windows and batches: where they lie, what they may not touch, and every value against a plain loop."""

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from poyo_ssl.config import SplitConfig
from poyo_ssl.data.recording import Recording, RecordingMetadata
from poyo_ssl.data.splits import Split, split_gratings, split_movie
from poyo_ssl.data.stimuli import Presentations
from poyo_ssl.data.units import MAD_TO_SD, Neurons, Vocabulary, fit_normalisation
from poyo_ssl.data.windows import (
    BatchRequest,
    BatchSampler,
    Normalisation,
    WindowDataset,
    WindowTable,
    draw_unit_counts,
    movie_windows,
    require_windows,
    trial_windows,
    window_frames,
)
from poyo_ssl.errors import ConfigError, RecordingError, SplitError

MOVIE = "natural_movie_one"
GRATINGS = "drifting_gratings"
PIXELS = np.random.default_rng(5).integers(0, 256, (60, 6, 8), dtype=np.uint8)


def movie_table(recording, split, part, *, num_frames=15, lag_s=0.0):
    table = recording.stimulus(MOVIE)
    targets = table.columns["frame"]
    return movie_windows(
        recording, 0, table, split, part, num_frames=num_frames, lag_s=lag_s, targets=targets.astype(np.int64)
    )


def trial_table(recording, split, part, *, num_frames=30, lag_s=0.0, dilation_s=0.0):
    targets = recording.stimulus(GRATINGS).columns["orientation_id"]
    settings_ = {"num_frames": num_frames, "lag_s": lag_s, "dilation_s": dilation_s}
    return trial_windows(recording, 0, split, part, **settings_, targets=targets.astype(np.int64))


def everything(recording, name):
    """Return a split in which all of a stimulus tests."""
    table = recording.stimulus(name)
    return Split({"train": np.zeros((0, 2)), "test_all": np.array([[table.start[0], table.end[-1]]])})


@pytest.mark.parametrize(("window_s", "frames"), [(0.033, 1), (0.1, 3), (1.0, 30), (1.9, 57), (2.0, 60)])
def test_windows_are_counted_in_frames(make_recording, window_s, frames):
    assert window_frames([make_recording(num_units=1)], window_s) == frames


def test_a_second_cut_by_time_would_have_30_or_31_frames(make_recording):
    recording = make_recording(num_units=1)
    begins = np.arange(2.0, 40.0, 0.01)
    by_time = np.searchsorted(recording.timestamps, begins + 1) - np.searchsorted(recording.timestamps, begins)
    assert set(by_time) == {30, 31}
    table = movie_table(recording, everything(recording, MOVIE), "test_all", num_frames=30)
    assert table.num_frames == 30


def test_rates_that_differ_are_refused():
    def at(rate):
        return Recording(f"r{rate}", np.zeros((90, 1)), np.arange(90) / rate, RecordingMetadata("m"))

    assert window_frames([at(30.0), at(31.0)], 1.0) in (30, 31)
    with pytest.raises(ConfigError, match=r"10\.00 to 30\.00 Hz"):
        window_frames([at(30.0), at(10.0)], 1.0)


def test_a_causal_window_ends_with_the_last_frame_before_target_plus_lag():
    # Imaging at 10 Hz from 0 s; movie frames of 0.5 s from 2 s: middles 2.25, 2.75, ...
    stamps = np.arange(100) / 10
    start = 2.0 + 0.5 * np.arange(10)
    frames = np.round(10 * start).astype(np.int64)
    columns = {"frame": np.arange(10), "repeat": np.zeros(10, int)}
    movie = Presentations(MOVIE, start, start + 0.5, frames, frames + 5, columns)
    recording = Recording("r", np.zeros((100, 1)), stamps, RecordingMetadata("m"), stimuli={MOVIE: movie})
    split = everything(recording, MOVIE)
    now = movie_table(recording, split, "test_all", num_frames=10)
    # Up to 2.25 s there are frames 0 to 22; the ten last are 13 to 22.
    assert now.first_low.tolist() == [13, 18, 23, 28, 33, 38, 43, 48, 53, 58]
    assert now.first_high.tolist() == now.first_low.tolist()
    later = movie_table(recording, split, "test_all", num_frames=10, lag_s=0.3)
    # Up to 2.55 s: frames 0 to 25.
    assert later.first_low.tolist() == [16, 21, 26, 31, 36, 41, 46, 51, 56, 61]
    np.testing.assert_allclose(now.target_time, start + 0.25)
    earlier = movie_table(recording, split, "test_all", num_frames=10, lag_s=-0.3)
    # Up to 1.95 s: frames 0 to 19.
    assert earlier.first_low[0] == 10
    long = movie_table(recording, split, "test_all", num_frames=30)
    # 23 frames are not enough for the first target, 28 not for the second.
    assert long.excluded == {"outside the recording": 2}
    assert long.frame_number.tolist() == list(range(2, 10))


@given(
    st.sampled_from([1, 3, 12, 30]),
    st.sampled_from([-0.2, 0.0, 0.15]),
    st.sampled_from(["train", "valid", "test_repeat", "test_clip"]),
    st.booleans(),
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_movie_windows_touch_no_other_part(make_recording, num_frames, lag_s, part, masked):
    spans = np.array([[134.0, 135.0], [141.0, 141.5]]) if masked else np.zeros((0, 2))
    recording = make_recording(num_units=1, masked_domain=spans)
    # Gaps of a tenth of a second are shorter than most windows, so that many have to go.
    split = split_movie(recording, MOVIE, SplitConfig(decay_s=0.0, clip_fraction=0.2), window_s=0.1, pixels=PIXELS)
    table = movie_table(recording, split, part, num_frames=num_frames, lag_s=lag_s)
    shown, stamps = recording.stimulus(MOVIE), recording.timestamps
    clean, counted = (
        [],
        dict.fromkeys(("outside the recording", "touches a masked span", "reaches into another part"), 0),
    )
    for row in range(len(shown)):
        time = shown.midpoint[row]
        if not any(low <= time < high for low, high in split.parts[part]):
            continue
        stop = sum(stamps <= time + lag_s)
        if stop > len(stamps) or stop < num_frames:
            counted["outside the recording"] += 1
            continue
        window = stamps[stop - num_frames : stop]
        bad = [low <= window[-1] and window[0] < high for low, high in spans]
        if any(bad):
            counted["touches a masked span"] += 1
            continue
        others = [tuple(i) for name, intervals in split.parts.items() if name != part for i in intervals]
        if any(low <= window[-1] and window[0] < high for low, high in others):
            counted["reaches into another part"] += 1
            continue
        clean.append((row, stop - num_frames))
    assert table.first_low.tolist() == [first for _, first in clean]
    assert table.target.tolist() == [int(shown.columns["frame"][row]) for row, _ in clean]
    assert table.repeat.tolist() == [int(shown.columns["repeat"][row]) for row, _ in clean]
    assert dict(table.excluded) == {reason: count for reason, count in counted.items() if count}
    assert len(np.unique(table.target_time)) == len(table)


def test_trial_windows_begin_with_the_trial(make_recording):
    recording = make_recording(num_units=1)
    split = split_gratings(recording, SplitConfig())
    shown = recording.stimulus(GRATINGS)
    tables = [trial_table(recording, split, part, lag_s=0.1) for part in split.parts]
    assert sum(map(len, tables)) == len(shown)
    for table in tables:
        begin = recording.timestamps[table.first_low]
        row = np.searchsorted(shown.start, table.target_time) - 1
        assert (begin >= shown.start[row] + 0.1 - 1e-9).all()
        assert (begin < shown.start[row] + 0.1 + 1 / 30.08).all()
        np.testing.assert_array_equal(table.first_low, table.first_high)
        np.testing.assert_array_equal(table.target, shown.columns["orientation_id"][row])


def test_pretraining_windows_stay_in_dilated_training_trials(make_recording):
    recording = make_recording(num_units=1)
    split = split_gratings(recording, SplitConfig())
    table = trial_table(recording, split, "train", num_frames=57, dilation_s=0.5)
    shown, stamps = recording.stimulus(GRATINGS), recording.timestamps
    assert len(table) == 24
    assert (table.first_high > table.first_low).all()
    for low, high, time in zip(table.first_low, table.first_high, table.target_time, strict=True):
        row = int(np.argmin(np.abs(shown.midpoint - time)))
        assert any(a <= time < b for a, b in split.parts["train"])
        assert stamps[low] >= shown.start[row] - 0.5 - 1e-9 > stamps[low - 1] - 1e-9
        assert stamps[high + 56] < shown.end[row] + 0.5 <= stamps[high + 57] + 1e-9
        for first in (low, high):
            for name, intervals in split.parts.items():
                if name != "train":
                    assert not any(a <= stamps[first + 56] and stamps[first] < b for a, b in intervals)


def test_a_leak_planted_into_the_windows_is_excluded(make_recording):
    """A test trial declared part of training as well keeps its own windows out of training."""
    recording = make_recording(num_units=1)
    split = split_gratings(recording, SplitConfig())
    stolen = split.parts["test_gratings"][:2]
    leaky = Split({**split.parts, "train": np.concatenate([split.parts["train"], stolen])})
    clean, leaked = (trial_table(recording, s, "train") for s in (split, leaky))
    assert leaked.excluded == {"reaches into another part": 2}
    np.testing.assert_array_equal(clean.first_low, leaked.first_low)


def test_no_window_left_gives_the_reasons(make_recording):
    recording = make_recording(num_units=1)
    table = movie_table(recording, everything(recording, MOVIE), "test_all", num_frames=recording.num_frames + 1)
    with pytest.raises(SplitError, match="600 outside the recording"):
        require_windows(table, "part 'test_all'")
    with pytest.raises(SplitError, match="no presentation"):
        require_windows(movie_table(recording, everything(recording, MOVIE), "train"), "part 'train'")


def test_unit_counts_follow_the_density_exactly():
    drawn = draw_unit_counts(np.random.default_rng(0), 200_000)
    counts = np.arange(10, 301)
    density = np.where(counts <= 50, 1 + 49 * (counts - 10) / 40, np.maximum(50 - 49 * (counts - 50) / 50, 1.0))
    assert density[[0, 20, 40, 65, 90, 91, 290]].tolist() == [1, 25.5, 50, 25.5, 1, 1, 1]
    found = np.bincount(drawn, minlength=301)[10:]
    assert stats.chisquare(found, density / density.sum() * len(drawn)).pvalue > 0.01


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3), st.booleans())
@settings(max_examples=80, deadline=None)
def test_every_window_once_per_epoch_over_all_ranks(num_windows, per_rank, num_ranks, epoch, training):
    batch_size = per_rank * num_ranks
    seed = 7 if training else None

    def batches(rank, epoch=epoch):
        sampler = BatchSampler(num_windows, batch_size, seed=seed, epoch=epoch, rank=rank, num_ranks=num_ranks)
        requests = list(sampler)
        assert len(requests) == len(sampler)
        return requests

    if num_windows < num_ranks:
        with pytest.raises(ConfigError, match="fewer --devices"):
            batches(0)
        return
    ranks = [batches(rank) for rank in range(num_ranks)]
    assert len({len(requests) for requests in ranks}) == 1
    seen = np.concatenate([request.windows for requests in ranks for request in requests])
    assert sorted(seen) == list(range(num_windows))
    assert all(len(request.windows) for requests in ranks for request in requests)
    steps = [sum(len(requests[step].windows) for requests in ranks) for step in range(len(ranks[0]))]
    assert max(steps) <= max(batch_size, 2 * num_ranks - 1)
    assert max(steps) - min(steps) <= 1
    # The windows of a step do not depend on the number of ranks unless it is too large for them.
    if per_rank > 1 and num_windows >= 2 * num_ranks:
        alone = list(BatchSampler(num_windows, batch_size, seed=seed, epoch=epoch))
        if len(alone) == len(ranks[0]):
            for step, request in enumerate(alone):
                together = np.concatenate([requests[step].windows for requests in ranks])
                assert set(together) == set(request.windows)
    again = batches(0)
    assert all(np.array_equal(a.windows, b.windows) and a.seed == b.seed for a, b in zip(ranks[0], again, strict=True))


def test_training_order_changes_with_the_epoch_and_evaluation_order_does_not():
    def order(seed, epoch):
        return np.concatenate([r.windows for r in BatchSampler(50, 8, seed=seed, epoch=epoch)]).tolist()

    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
    assert order(None, 0) == order(None, 1) == list(range(50))
    with pytest.raises(ConfigError, match="multiple of 2"):
        BatchSampler(50, 9, seed=0, num_ranks=2)


def test_an_epoch_may_take_a_random_share_of_the_windows():
    def windows(epoch, rank=0, num_ranks=1):
        more = {"rank": rank, "num_ranks": num_ranks}
        sampler = BatchSampler(50, 8, seed=0, epoch=epoch, epoch_windows=20, **more)
        return np.concatenate([request.windows for request in sampler]).tolist()

    assert len(set(windows(0))) == len(windows(0)) == 20
    assert set(windows(0)) != set(windows(1))
    assert sorted(windows(0, 0, 2) + windows(0, 1, 2)) == sorted(windows(0))
    assert set().union(*(windows(epoch) for epoch in range(20))) == set(range(50))


def test_a_share_without_a_seed_is_spread_evenly():
    samplers = [BatchSampler(50, 8, seed=None, epoch=epoch, epoch_windows=8) for epoch in (0, 3)]
    first, again = (np.concatenate([request.windows for request in sampler]).tolist() for sampler in samplers)
    assert first == again == [0, 7, 14, 21, 28, 35, 42, 49]
    assert len(samplers[0]) == 1


@pytest.fixture
def two_recordings(make_recording):
    return [make_recording("one", num_units=5, seed=1), make_recording("two", num_units=3, seed=2)]


def make_dataset(recordings, columns, *, num_frames=12, bank=None, **settings_):
    splits = [split_movie(r, MOVIE, SplitConfig(num_clips=0), window_s=0.4) for r in recordings]
    normalisation = {
        r.recording_id: fit_normalisation(r, c, s.parts["train"], method="robust_z")
        for r, c, s in zip(recordings, columns, splits, strict=True)
    }
    ids = {r.recording_id: r.unit_ids[c].tolist() for r, c in zip(recordings, columns, strict=True)}
    vocabulary = Vocabulary().grow(ids)
    neurons = Neurons(vocabulary, {r.recording_id: c for r, c in zip(recordings, columns, strict=True)}, normalisation)
    units = [neurons.unit_set(recording) for recording in recordings]
    tables = []
    for index, (recording, split) in enumerate(zip(recordings, splits, strict=True)):
        shown = recording.stimulus(MOVIE)
        targets = shown.columns["frame"].astype(np.int64)
        tables.append(
            movie_windows(recording, index, shown, split, "train", num_frames=num_frames, lag_s=0.05, targets=targets)
        )
    return WindowDataset(recordings, units, WindowTable.concatenate(tables), frame_bank=bank, **settings_), splits


@pytest.mark.parametrize("bin_frames", [1, 3])
def test_batches_against_a_plain_loop(two_recordings, bin_frames):
    columns = [np.array([0, 2, 4]), np.array([1, 2])]
    dataset, splits = make_dataset(two_recordings, columns, bin_frames=bin_frames)
    table = dataset.table
    chosen = np.array([3, len(table) - 5, 40])
    batch = dataset[BatchRequest(chosen)]
    steps = 12 // bin_frames
    assert batch.dff.shape == (3, steps, 3)
    assert batch.window_index.tolist() == chosen.tolist()
    assert batch.unit_index.tolist() == [[1, 2, 3], [4, 5, 0], [1, 2, 3]]
    assert batch.unit_mask.tolist() == [[True] * 3, [True, True, False], [True] * 3]
    assert batch.session_index.tolist() == [1, 2, 1]
    assert batch.duration_s == pytest.approx(12 / 30.08)
    for i, window in enumerate(chosen):
        which, first = int(table.recording_index[window]), int(table.first_low[window])
        recording = two_recordings[which]
        for column, unit in enumerate(columns[which]):
            trace = recording.dff[:, unit].astype(np.float64)
            stamps = recording.timestamps
            inside = np.zeros(len(stamps), bool)
            for low, high in splits[which].parts["train"]:
                inside |= (stamps >= low) & (stamps < high)
            middle = np.median(trace[inside])
            spread = 1.4826 * np.median(np.abs(trace[inside] - middle))
            for step in range(steps):
                mean = np.mean(trace[first + step * bin_frames : first + (step + 1) * bin_frames])
                assert batch.dff[i, step, column] == pytest.approx((mean - middle) / spread, abs=2e-5)
        if which == 1:
            assert (batch.dff[i, :, 2] == 0).all()
        begin = recording.timestamps[first]
        for step in range(steps):
            # The middle of the light: half a frame after the mean stamp.
            mean = np.mean(recording.timestamps[first + step * bin_frames : first + (step + 1) * bin_frames])
            assert batch.frame_times[i, step] == pytest.approx(mean - begin + 0.5 / 30.08, abs=1e-6)
        assert batch.target_time[i] == pytest.approx(table.target_time[window] - begin, abs=1e-6)
        assert 0 < batch.frame_times[i, 0] < batch.frame_times[i, -1] < batch.duration_s
        assert batch.target[i] == table.frame_number[window]


def test_frame_targets_come_from_the_bank(two_recordings):
    bank = torch.from_numpy(PIXELS).float() / 255
    dataset, _ = make_dataset(two_recordings, [np.arange(5), np.arange(3)], bank=bank)
    batch = dataset[BatchRequest(np.array([0, 70]))]
    frames = dataset.table.frame_number[[0, 70]]
    assert torch.equal(batch.target, bank[frames])


def test_bins_must_divide_the_window(two_recordings):
    with pytest.raises(ConfigError, match="divisor of 12"):
        make_dataset(two_recordings, [np.arange(5), np.arange(3)], bin_frames=5)


def test_training_draws_units_and_starts_from_the_request_seed(make_recording):
    recording = make_recording(num_units=120)
    split = split_gratings(recording, SplitConfig())
    table = trial_table(recording, split, "train", num_frames=57, dilation_s=0.5)
    columns = np.arange(120)
    vocabulary = Vocabulary().grow({"made": recording.unit_ids.tolist()})
    normalisation = {"made": Normalisation.identity(120, compress=False)}
    units = [Neurons(vocabulary, {recording.recording_id: columns}, normalisation).unit_set(recording)]
    dataset = WindowDataset([recording], units, table, unit_dropout=True)
    windows = np.arange(len(table))
    batch = dataset[BatchRequest(windows, (0, 0, 0, 0))]
    again, other = dataset[BatchRequest(windows, (0, 0, 0, 0))], dataset[BatchRequest(windows, (0, 0, 1, 0))]
    assert torch.equal(batch.dff, again.dff)
    assert batch.dff.shape != other.dff.shape or not torch.equal(batch.dff, other.dff)
    counts = batch.unit_mask.sum(dim=1)
    assert len(set(counts.tolist())) > 5
    assert int(counts.min()) >= 10
    for row in range(len(batch)):
        kept = batch.unit_index[row][batch.unit_mask[row]]
        assert len(kept.unique()) == len(kept)
        first = round(float(table.target_time[row] - batch.target_time[row] - recording.timestamps[0]) * 30.08)
        assert table.first_low[row] <= first <= table.first_high[row]
        np.testing.assert_array_equal(
            batch.dff[row][:, batch.unit_mask[row]], recording.dff[first : first + 57][:, kept.numpy() - 1]
        )
    evaluation = dataset[BatchRequest(windows)]
    assert evaluation.unit_mask.all()
    np.testing.assert_array_equal(evaluation.dff[3], recording.dff[table.first_low[3] : table.first_low[3] + 57])


def test_noise_is_added_in_training_only_and_only_to_neurons(two_recordings):
    columns = [np.arange(5), np.arange(3)]
    (plain, _), (noisy, _) = make_dataset(two_recordings, columns), make_dataset(two_recordings, columns, noise=0.5)
    windows = np.arange(0, len(plain), 7)
    assert torch.equal(plain[BatchRequest(windows)].dff, noisy[BatchRequest(windows)].dff)
    one, other = plain[BatchRequest(windows, (0,))], noisy[BatchRequest(windows, (0,))]
    added = (other.dff - one.dff).movedim(1, 2)
    assert (added[~one.unit_mask] == 0).all()
    assert added[one.unit_mask].std().item() == pytest.approx(0.5, rel=0.05)
    assert stats.kstest(added[one.unit_mask].flatten() / 0.5, "norm").pvalue > 0.001


def test_vocabulary_keeps_rows_and_appends_new_ones():
    first = Vocabulary().grow({"a": ["u1", "u2"], "b": ["u1"]})
    assert (first.num_units, first.num_sessions) == (3, 2)
    second = first.grow({"c": ["u9"], "a": ["u3", "u1"]})
    assert {k: second.units[k] for k in first.units} == first.units
    assert second.units["c/u9"] == 4
    assert second.units["a/u3"] == 5
    assert second.sessions == {"a": 1, "b": 2, "c": 3}
    assert first.num_units == 3


def test_normalisation_uses_the_training_part_only(make_recording):
    made = make_recording(num_units=70, seed=3)
    domain = np.array([[5.0, 20.0], [30.0, 40.0]])
    dff = made.dff.copy()
    outside = (made.timestamps >= 41) | (made.timestamps < 5)
    dff[outside] += 1e3
    changed = make_recording(num_units=70, dff=dff)
    columns = np.arange(70)
    for recording in (made, changed):
        fitted = fit_normalisation(recording, columns, domain, method="robust_z", block=16)
        centre, scale = fitted.centre, fitted.scale
        inside = ((made.timestamps >= 5) & (made.timestamps < 20)) | ((made.timestamps >= 30) & (made.timestamps < 40))
        np.testing.assert_allclose(fitted.centre, np.median(made.dff[inside], axis=0), rtol=1e-5)
        deviation = stats.median_abs_deviation(made.dff[inside].astype(float), axis=0)
        np.testing.assert_allclose(scale, deviation * MAD_TO_SD, rtol=1e-5)
    fitted = fit_normalisation(made, columns, domain, method="raw")
    centre, scale = fitted.centre, fitted.scale
    assert (centre == 0).all()
    assert (scale == 1).all()


def test_a_sparse_trace_is_scaled_by_its_standard_deviation(make_recording):
    made = make_recording(num_units=2)
    dff = np.zeros_like(made.dff)
    dff[::10] = 3.0
    dff[:, 1] = made.dff[:, 1]
    recording = make_recording(num_units=2, dff=dff)
    scale = fit_normalisation(recording, np.array([0]), np.array([[0.0, 1e9]]), method="robust_z").scale
    # One frame in ten is 3: 3 sqrt(0.1 x 0.9).
    assert scale[0] == pytest.approx(3 * math.sqrt(0.09), rel=1e-2)


@pytest.mark.parametrize("method", ["robust_z", "raw"])
def test_unusable_traces_are_listed_by_unit(make_recording, method):
    made = make_recording(num_units=6)
    dff = made.dff.copy()
    dff[:, 1] = 0.1  # its standard deviation in float32 is not 0
    dff[900, 3] = np.nan
    dff[-20, 4] = np.inf  # outside the training part
    dff[made.timestamps > 60, 5] = 0.7
    recording = make_recording(num_units=6, dff=dff)
    with pytest.raises(RecordingError, match=r"3 of 5 units: roi_0001, roi_0003, roi_0004;"):
        fit_normalisation(recording, np.array([0, 1, 3, 4, 5]), np.array([[5.0, 100.0]]), method=method, block=2)
    hidden = make_recording(num_units=6, dff=dff, masked_domain=np.array([[recording.timestamps[-30], 1e9]]))
    with pytest.raises(RecordingError, match="2 of 3 units: roi_0001, roi_0003;"):
        fit_normalisation(hidden, np.array([1, 3, 4]), np.array([[5.0, 100.0]]), method=method)
