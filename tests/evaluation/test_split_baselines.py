"""Baselines and controls on a split: those that read activity succeed, controls fail, ceilings know the truth."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.preprocessing import StandardScaler

from poyo_ssl.config import SplitConfig
from poyo_ssl.data.recording import open_recordings
from poyo_ssl.data.splits import split_gratings, split_movie
from poyo_ssl.data.units import fit_normalisation
from poyo_ssl.data.windows import Normalisation, WindowTable, movie_windows, trial_windows
from poyo_ssl.errors import ConfigError, RecordingError
from poyo_ssl.evaluation import features
from poyo_ssl.evaluation.baselines import KnownWindows, make_arms, shift_activity, shift_windows
from poyo_ssl.evaluation.features import Activity, RecordingWindows, activity_inputs
from poyo_ssl.evaluation.frame_number import ShrunkLDAFrameNumber

MOVIE, NUM_FRAMES = "natural_movie_one", 60


def movie_parts(recording, names=("train", "valid", "test_repeat")):
    split, table = split_movie(recording, MOVIE, SplitConfig(num_clips=0), window_s=0.2), recording.stimulus(MOVIE)
    made = {
        name: movie_windows(recording, 0, table, split, name, num_frames=6, lag_s=0.0, targets=table.columns["frame"])
        for name in names
    }
    return [RecordingWindows.of(recording, np.arange(recording.num_units), made[name], 0) for name in names]


def gratings_parts(recording, names=("train", "valid", "test_gratings")):
    split, table = split_gratings(recording, SplitConfig()), recording.stimulus("drifting_gratings")
    targets = np.nan_to_num(table.columns["orientation"] / 45).astype(int)
    made = [
        trial_windows(recording, 0, split, name, num_frames=57, lag_s=0.0, dilation_s=0.0, targets=targets)
        for name in names
    ]
    return [RecordingWindows.of(recording, np.arange(recording.num_units), table, 0) for table in made]


@pytest.fixture
def seeing(make_recording):
    """Return a recording whose neurons follow the movie frame, each another one."""
    recording = make_recording(num_units=24, grating_repeats=10)
    table, dff = recording.stimulus(MOVIE), recording.dff.copy()
    row = np.searchsorted(table.start, recording.timestamps, side="right") - 1
    shown = np.where((row >= 0) & (recording.timestamps < table.end[-1]), table.columns["frame"][row], -100)
    preferred = np.linspace(0, NUM_FRAMES, recording.num_units, endpoint=False)
    dff += 3 * np.exp(-0.5 * ((shown[:, None] - preferred) / 2.0) ** 2).astype(np.float32)
    return replace(recording, dff=dff)


def scores_of(task, made, correct, **settings):
    train, valid, test = made
    known = KnownWindows.of(train, valid)
    found = {}
    for baseline in make_arms(task, train, **settings):
        prediction = baseline.fit(known).predict(test)
        found[baseline.name] = (baseline.kind, float(correct(prediction, test.target).mean()))
    return found


def test_frame_numbers_are_decoded_from_activity_alone(seeing):
    settings = {"num_classes": NUM_FRAMES, "tolerance": 3}
    found = scores_of("frame_number", movie_parts(seeing), lambda p, t: np.abs(p - t) <= 3, **settings)
    baselines = {name: score for name, (kind, score) in found.items() if kind == "baseline"}
    controls = {name: score for name, (kind, score) in found.items() if kind == "control"}
    assert set(baselines) == {"knn", "naive_bayes", "shrunk_lda", "whitened_knn", "cosine_lda"}
    assert min(baselines.values()) > 0.8
    assert set(controls) == {"time in session", "shuffled neurons", "shifted activity"}
    assert max(controls.values()) < 0.4


def test_shuffled_neurons_share_the_fit_of_the_intact_decoder(seeing, monkeypatch):
    train, valid, test = movie_parts(seeing)
    fitted_on = []
    fit = ShrunkLDAFrameNumber.fit
    monkeypatch.setattr(ShrunkLDAFrameNumber, "fit", lambda self, *a: fitted_on.append(len(a[1])) or fit(self, *a))
    made = {b.name: b for b in make_arms("frame_number", train, num_classes=NUM_FRAMES, tolerance=3)}
    known, size = KnownWindows.of(train, valid), len(train) + len(valid)
    alone = made["shuffled neurons"].fit(known).predict(test)
    made["shuffled neurons"].fit(known)
    assert fitted_on.count(size) == 1
    intact = made["shrunk_lda"].fit(known).predict(test)
    np.testing.assert_array_equal(made["shuffled neurons"].fit(known).predict(test), alone)
    assert not np.array_equal(intact, alone)
    assert fitted_on.count(size) == 2
    made["shuffled neurons"].fit(KnownWindows.of(valid, train))
    assert fitted_on.count(size) == 3


@pytest.mark.parametrize("num_bins", [1, 19])
def test_lda_on_the_models_input_equals_scikit_learn_by_hand(make_recording, num_bins):
    recording = make_recording(num_units=24, grating_repeats=10)
    train, valid, test = gratings_parts(recording)
    columns, domain = train.columns, np.array([[5.0, 180.0]])
    fitted = fit_normalisation(recording, columns, domain, method="robust_asinh")
    inputs = {"it": Activity(num_bins, "robust_asinh", fitted)}
    lda = next(arm for arm in make_arms("gratings", train, inputs=inputs, num_classes=8) if arm.name == "shrunk_lda")
    known = KnownWindows.of(train, valid)
    lda.fit(known)

    inside = (recording.timestamps >= 5) & (recording.timestamps < 180)
    middle = np.median(recording.dff[inside], axis=0)
    deviation = 1.4826 * np.median(np.abs(recording.dff[inside] - middle), axis=0)
    squeezed = np.arcsinh((recording.dff - middle) / deviation)
    values = (squeezed - squeezed[inside].mean(axis=0)) / squeezed[inside].std(axis=0)

    def by_hand(table):
        windows = np.stack([values[first : first + 57] for first in table.first_low])
        return windows.reshape(len(table), num_bins, 57 // num_bins, 24).mean(axis=2).reshape(len(table), -1)

    shrinkage = {"Ledoit-Wolf": "auto", "shrinkage 0.5": 0.5, "shrinkage 0.9": 0.9}[
        dict(lda.settings)["hyper_parameter"]
    ]

    def decode(rows, table):
        x = by_hand(known.windows.table)[rows]
        scaler = StandardScaler().fit(x)
        model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage)
        model.fit(scaler.transform(x), known.windows.target[rows])
        return model.predict(scaler.transform(by_hand(table)))

    everything = np.arange(len(train) + len(valid))
    np.testing.assert_array_equal(lda.predict(test), decode(everything, test.table))
    answers = [decode(rows, known.windows.table.select(held)) for rows, held in known.folds]
    np.testing.assert_array_equal(lda.held_out, np.concatenate(answers))


def test_every_baseline_takes_the_input_that_decodes_best(make_recording):
    """Rare transients of a hundredfold size drown raw dF/F; the models' compressed input keeps the direction."""
    recording = make_recording(num_units=24, grating_repeats=15)
    rng = np.random.default_rng(1)
    dff = recording.dff + 200 * (rng.random(recording.dff.shape) < 0.01).astype(np.float32)
    recording = replace(recording, dff=dff)
    train, valid, test = gratings_parts(recording)
    fitted = fit_normalisation(recording, train.columns, np.array([[5.0, 180.0]]), method="robust_asinh")
    inputs = activity_inputs(57, 24, {("robust_asinh", 19): fitted})
    assert list(inputs) == ["robust_asinh dF/F in 1 bin", "robust_asinh dF/F in 3 bins", "raw dF/F in 3 bins"]
    known = KnownWindows.of(train, valid)
    for arm in make_arms("gratings", train, inputs=inputs, num_classes=8)[:5]:
        chosen = arm.fit(known).predict(test)
        assert arm.input == "robust_asinh dF/F in 1 bin"  # the simplest for the majority, the best for others
        if arm.name == "shrunk_lda":
            raw = make_arms("gratings", train, num_classes=8)[2].fit(known).predict(test)
            assert (chosen == test.target).mean() > (raw == test.target).mean() + 0.2


def test_inputs_of_many_neurons_have_fewer_bins():
    one = Normalisation.identity(500, compress=True)
    assert list(activity_inputs(30, 500, {("robust_asinh", 1): one, ("raw", 10): one})) == [
        "robust_asinh dF/F in 1 bin",
        "raw dF/F in 1 bin",
        "robust_asinh dF/F in 3 bins",
        "raw dF/F in 3 bins",
    ]
    assert [own.num_bins for own in activity_inputs(30, 50, {("robust_asinh", 1): one}).values()] == [1, 3, 20]


def test_directions_are_decoded_from_activity_alone(make_recording):
    recording = make_recording(num_units=24, grating_repeats=15)
    found = scores_of("gratings", gratings_parts(recording), lambda p, t: p == t, num_classes=8)
    assert found["shrunk_lda"] == ("baseline", 1.0)
    for name in ("shuffled neurons", "shifted activity", "shuffled labels", "time in session"):
        assert found[name][0] == "control"
        assert found[name][1] < 0.5


def test_frames_have_an_oracle(seeing):
    frames = np.random.default_rng(1).integers(0, 256, (NUM_FRAMES, 12, 12), dtype=np.uint8)
    train, valid, test = movie_parts(seeing)
    made = {b.name: b for b in make_arms("frames", train, frames=frames, tolerance=3)}
    assert {"mean_frame", "pixel_median", "blurred_mean", "ridge", "knn_lookup"} < set(made)
    oracle = made["nearest training frame"].fit(KnownWindows.of(train, valid))
    np.testing.assert_array_equal(oracle.predict(test), frames[test.target])
    assert oracle.kind == "ceiling"


def test_shifting_keeps_windows_within_their_repeat_and_moves_each(seeing):
    train, _, _ = movie_parts(seeing)
    shifted = shift_activity(train, 0)
    np.testing.assert_array_equal(shifted.target, train.target)
    moves = set()
    for repeat in np.unique(train.table.repeat):
        own = train.table.repeat == repeat
        was, now = train.table.first_low[own], shifted.table.first_low[own]
        np.testing.assert_array_equal(np.sort(was), np.sort(now))
        assert (was != now).all()
        moves.add(int(np.flatnonzero(now == was[0])[0]))
    assert len(moves) > 1
    assert min(moves) >= 6
    assert max(moves) <= 54


def test_shifting_keeps_windows_in_their_recording(make_recording):
    tables = [movie_parts(make_recording(name), names=("train",))[0].table for name in "ab"]
    # The second recording's windows lie elsewhere, so that a window out of the first would show.
    tables[1] = replace(tables[1], recording_index=np.ones(len(tables[1]), int), first_low=tables[1].first_low + 10**6)
    table = WindowTable.concatenate(tables)
    shifted = shift_windows(table, np.random.default_rng(0))
    assert (shifted.first_low != table.first_low).all()
    np.testing.assert_array_equal(shifted.first_low >= 10**6, table.recording_index == 1)
    np.testing.assert_array_equal(np.sort(shifted.first_low), np.sort(table.first_low))


def test_true_rates_are_a_ceiling_of_the_observatory_only(tiny, make_recording):
    recording = open_recordings(tiny)[0]
    columns = np.array([3, 1])
    rates = features.driven_rates(recording, columns)
    truth, table = recording.truth, recording.stimulus(MOVIE)
    k = 77
    at = np.searchsorted(recording.timestamps, table.midpoint[k])
    row = np.searchsorted(table.start, recording.timestamps[at], side="right") - 1
    drive = truth[f"{MOVIE}_drive"][table.columns["frame"][row]][columns]
    modulation = (1 + truth["stimulus_depth"][columns] * (drive - 1)) / truth["stimulus_mean"][columns]
    expected = truth["mean_rate_hz"][columns] * modulation
    np.testing.assert_allclose(rates[at], expected, rtol=1e-5)
    train = gratings_parts(recording)[0]
    assert "true rates" in {b.name for b in make_arms("gratings", train, num_classes=8)}
    assert "running speed" in {b.name for b in make_arms("gratings", train, num_classes=8)}
    with pytest.raises(RecordingError, match="no true rates"):
        features.driven_rates(make_recording(num_units=2), columns[:1])


def test_core_and_none_leave_the_controls_out_and_core_keeps_ceilings(make_recording):
    train = gratings_parts(make_recording(num_units=8))[0]
    core = make_arms("gratings", train, which="core", num_classes=8)
    assert [b.name for b in core] == ["majority", "naive_bayes", "shrunk_lda"]
    assert make_arms("gratings", train, which="none", num_classes=8) == []
    frames = np.zeros((NUM_FRAMES, 8, 8), np.uint8)
    core = make_arms("frames", movie_parts(make_recording())[0], which="core", frames=frames)
    names = ["grey_frame", "mean_frame", "knn_lookup", "ridge", "nearest training frame"]
    assert [b.name for b in core] == names
    with pytest.raises(ConfigError, match="did you mean 'gratings'"):
        make_arms("grating", train, num_classes=8)
