"""Baselines: known answers, independent references, nothing learned outside the training part."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import median_abs_deviation
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier

from poyo_ssl.data.responses import Responses, Whitening, to_unit_length
from poyo_ssl.errors import ConfigError, SplitError
from poyo_ssl.evaluation.baselines import (
    Decoder,
    choose,
    fit_chosen,
    frame_baselines,
    frame_number_baselines,
    gratings_baselines,
    make_folds,
)
from poyo_ssl.evaluation.features import FeatureScaler, bin_features
from poyo_ssl.evaluation.frame_images import (
    BlurredMean,
    FrameLookup,
    GreyFrame,
    MeanFrame,
    PixelMedian,
    RidgeFrames,
    mean_training_frame,
    nearest_training_frame,
)
from poyo_ssl.evaluation.frame_number import (
    CosineLDAFrameNumber,
    KNNFrameNumber,
    NaiveBayesFrameNumber,
    ShrunkLDAFrameNumber,
    WhitenedKNNFrameNumber,
    decide,
    fit_transform,
    transform_names,
    within_tolerance,
)

DECODERS = [
    KNNFrameNumber,
    NaiveBayesFrameNumber,
    ShrunkLDAFrameNumber,
    WhitenedKNNFrameNumber,
    CosineLDAFrameNumber,
]
Parts = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def fit_by(decoder: Any, x: np.ndarray, y: np.ndarray, x_valid: np.ndarray, y_valid: np.ndarray) -> Any:
    """Choose by a validation part alone, and fit on the training part alone."""
    scores = decoder.scores(x, y, x_valid, y_valid)
    return decoder.fit(x, y, max(scores, key=scores.__getitem__))


def make_movie(length: int = 60) -> np.ndarray:
    """Smooth movie of moving blobs, ``(L, 16, 20)`` uint8."""
    rng = np.random.default_rng(0)
    time = np.arange(length)[:, None, None]
    y, x = np.mgrid[:16, :20]
    image = np.zeros((length, 16, 20))
    for _ in range(6):
        (row, column), period = rng.uniform(0, 16, 2), rng.uniform(5, 15)
        shift = 6 * np.sin(time / period)
        image += np.exp(-((y - row - shift) ** 2 + (x - column + shift) ** 2) / 20)
    return np.asarray(np.clip(255 * image / image.max(), 0, 255), dtype=np.uint8)


def make_parts(*, length: int = 60, noise: float = 0.5, units: int = 40, signal: float = 1.0) -> Parts:
    """Six training repeats, one to choose, one to test, of responses smooth in frame number."""
    rng = np.random.default_rng(1)
    centres = rng.uniform(0, length, units)
    tuning = signal * np.exp(-0.5 * ((np.arange(length)[:, None] - centres) / 4) ** 2)

    def repeats(count: int) -> tuple[np.ndarray, np.ndarray]:
        number = np.tile(np.arange(length), count)
        return tuning[number] + noise * rng.normal(size=(len(number), units)), number

    return (*repeats(6), *repeats(1), *repeats(1))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12))
def test_bin_features_equals_means_of_slices(num_frames: int, num_bins: int) -> None:
    windows = np.random.default_rng(0).normal(size=(3, num_frames, 4)).astype(np.float32)
    if num_bins > num_frames:
        with pytest.raises(ConfigError, match=f"{num_bins} time bins"):
            bin_features(windows, num_bins)
        return
    found = bin_features(windows, num_bins).reshape(3, 4, num_bins)
    for b in range(num_bins):
        part = windows[:, b * num_frames // num_bins : (b + 1) * num_frames // num_bins]
        np.testing.assert_allclose(found[..., b], part.mean(axis=1, dtype=float), atol=1e-6)


def test_scaler_leaves_constants_at_zero() -> None:
    x = np.random.default_rng(0).normal(3, 2, (50, 3))
    x[:, 1] = 0.1
    scaled = FeatureScaler.fit(x)(x)
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(scaled.std(axis=0), [1, 0, 1])


@pytest.mark.parametrize("index", range(5))
def test_frame_number_baselines_decode_smooth_responses(index: int) -> None:
    *fitted, x_test, y_test = make_parts()
    baseline = fit_by(frame_number_baselines(num_frames=60, tolerance=3)[index], *fitted)
    assert (np.abs(baseline.predict(x_test) - y_test) <= 3).mean() > 0.8
    assert baseline.settings


@pytest.mark.parametrize("index", range(5))
def test_shuffled_frame_numbers_are_at_chance(index: int) -> None:
    x, y, x_valid, y_valid, x_test, y_test = make_parts()
    shuffled = np.random.default_rng(2).permutation(y)
    baseline = fit_by(frame_number_baselines(num_frames=60, tolerance=3)[index], x, shuffled, x_valid, y_valid)
    assert (np.abs(baseline.predict(x_test) - y_test) <= 3).mean() < 0.35  # chance 0.11


@pytest.mark.parametrize("decoder", DECODERS)
def test_unseen_frames_are_never_decoded(decoder: type[KNNFrameNumber]) -> None:
    x, y, *rest, x_test, _ = make_parts()
    keep = (y < 20) | (y >= 30)
    predicted = fit_by(decoder(num_frames=60, tolerance=3), x[keep], y[keep], *rest).predict(x_test)
    assert not ((predicted >= 20) & (predicted < 30)).any()


@pytest.mark.parametrize("decoder", DECODERS)
def test_posteriors_are_distributions(decoder: type[KNNFrameNumber]) -> None:
    *fitted, x_test, _ = make_parts()
    mass = fit_by(decoder(num_frames=60, tolerance=3), *fitted)._mass(x_test)
    assert mass.min() >= 0
    np.testing.assert_allclose(mass.sum(axis=1), 1)


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "correlation"])
def test_nearest_neighbour_equals_scikit_learn(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, *_, x_test, _ = make_parts()
    monkeypatch.setattr(KNNFrameNumber, "metrics", (metric,))
    monkeypatch.setattr(KNNFrameNumber, "neighbours", (1,))
    found = fit_by(KNNFrameNumber(num_frames=60, tolerance=0), x, y, x, y)
    scaled = FeatureScaler.fit(x) if found.settings["transform"] == "zscore" else np.asarray
    expected = KNeighborsClassifier(n_neighbors=1, metric=metric, algorithm="brute").fit(scaled(x), y)
    np.testing.assert_array_equal(found.predict(x_test), expected.predict(scaled(x_test)))


def test_discriminants_equal_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, x_valid, y_valid, x_test, _ = make_parts(length=8)
    monkeypatch.setattr(ShrunkLDAFrameNumber, "smoothing_frames", (0.0,))
    monkeypatch.setattr(ShrunkLDAFrameNumber, "shrinkages", (1e-9,))
    monkeypatch.setattr(ShrunkLDAFrameNumber, "variance_floor", 1e-9)
    # Many windows per class, so that the covariance needs no shrinkage.
    x, y = np.tile(x, (20, 1)), np.tile(y, 20)
    x = x + np.random.default_rng(0).normal(size=x.shape)
    found = fit_by(ShrunkLDAFrameNumber(num_frames=8, tolerance=0), x, y, x_valid, y_valid)
    expected = LinearDiscriminantAnalysis(solver="lsqr", priors=np.full(8, 1 / 8)).fit(x, y)
    np.testing.assert_array_equal(found.predict(x_test), expected.predict(x_test))


def test_whitened_residuals_have_unit_covariance() -> None:
    rng = np.random.default_rng(0)
    residual = rng.normal(size=(4000, 5)) @ rng.normal(size=(5, 5))
    covariance = residual.T @ residual / len(residual)
    whitening = Whitening.from_covariance(covariance, centre=np.ones(5), shrinkage=0.0, variance_floor=0.0)
    white = whitening(residual + 1)
    np.testing.assert_allclose(white.T @ white / len(white), np.eye(5), atol=1e-6)
    diagonal = Whitening.from_covariance(covariance, centre=np.ones(5), shrinkage=1.0, variance_floor=0.0)
    np.testing.assert_allclose(diagonal(residual + 1), residual / np.sqrt((residual**2).mean(axis=0)), rtol=1e-6)
    np.testing.assert_array_equal(to_unit_length(np.array([[3.0, 4.0], [0.0, 0.0]])), [[0.6, 0.8], [0, 0]])


def test_cosines_equal_a_metric_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cosines under the inverse of the noise covariance, written out, and scikit-learn's nearest neighbour by them."""
    x, y, *_, x_test, _ = make_parts()
    for name, value in (("smoothing_frames", (4.0,)), ("temperatures", (0.04,))):
        monkeypatch.setattr(CosineLDAFrameNumber, name, value)
    monkeypatch.setattr(WhitenedKNNFrameNumber, "neighbours", (1,))
    monkeypatch.setattr("poyo_ssl.evaluation.frame_number.WhitenedFrameNumber.shrinkages", (0.4,))
    monkeypatch.setattr("poyo_ssl.evaluation.frame_number.transform_names", lambda _: ("none",))
    residual = x - Responses.of(x, y, 60).means(8.0)[y]
    covariance = residual.T @ residual / len(x)
    diagonal = np.diag(np.diag(covariance) + 0.05 * np.diag(covariance).mean())
    inverse = np.linalg.inv(0.6 * (covariance - np.diag(np.diag(covariance))) + diagonal)

    def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        lengths = [np.sqrt(np.einsum("nf,fg,ng->n", v, inverse, v)) for v in (a, b)]
        return np.asarray(a @ inverse @ b.T / np.outer(*lengths))

    centred, test = x - x.mean(axis=0), x_test - x.mean(axis=0)
    length = np.sqrt(np.einsum("nf,fg,ng->n", centred, inverse, centred))
    means = Responses.of(centred / length[:, None], y, 60).means(4.0)
    expected = np.exp(cosines(test, means) / 0.04)
    found = fit_by(CosineLDAFrameNumber(num_frames=60, tolerance=0), x, y, x, y)._mass(x_test)
    np.testing.assert_allclose(found, expected / expected.sum(axis=1, keepdims=True), rtol=1e-6, atol=1e-12)
    nearest = fit_by(WhitenedKNNFrameNumber(num_frames=60, tolerance=0), x, y, x, y).predict(x_test)
    np.testing.assert_array_equal(nearest, y[cosines(test, centred).argmax(axis=1)])


def test_cosine_is_blind_to_a_gain_that_misleads_discriminants() -> None:
    """Test windows of the same pattern at a quarter of the gain: only the direction still tells the frame."""
    rng = np.random.default_rng(4)
    tuning = rng.normal(size=(20, 40)) * np.linspace(0.4, 2.0, 20)[:, None]
    tuning -= tuning.mean(axis=0)
    y = np.tile(np.arange(20), 8)
    x = tuning[y] + 0.2 * rng.normal(size=(len(y), 40))
    quiet = 0.25 * tuning + 0.02 * rng.normal(size=(20, 40))
    correct = {
        decoder.name: (fit_by(decoder(num_frames=20, tolerance=0), x, y, x, y).predict(quiet) == np.arange(20)).mean()
        for decoder in (ShrunkLDAFrameNumber, CosineLDAFrameNumber)
    }
    assert correct["cosine_lda"] == 1.0
    assert correct["shrunk_lda"] < 0.9


def test_compressed_features_equal_the_formula() -> None:
    x = np.random.default_rng(0).standard_t(2, size=(500, 3))
    robust = (x - np.median(x, axis=0)) / median_abs_deviation(x, axis=0, scale="normal")
    expected = np.arcsinh(robust)
    expected = (expected - expected.mean(axis=0)) / expected.std(axis=0)
    np.testing.assert_allclose(fit_transform("asinh", x)(x), expected)
    assert transform_names(x) == ("zscore", "none", "asinh")
    assert transform_names(np.abs(x)) == ("zscore", "sqrt")
    robust = FeatureScaler.fit_robust(np.array([[-1.0], [0.0], [1.0], [2.0], [900.0]]))
    np.testing.assert_allclose(robust(np.array([[1 + 1.4826]])), 1, atol=1e-4)


def test_smooth_means_equals_direct_sum() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 3)), rng.integers(0, 20, 50)
    weight = np.exp(-0.5 * ((np.arange(20)[:, None] - y) / 1.5) ** 2) * (np.abs(np.arange(20)[:, None] - y) <= 6)
    plain = Responses.of(np.array([[1.0], [3.0], [8.0]]), np.array([0, 0, 2]), 3).means(0.0)
    np.testing.assert_array_equal(plain.ravel(), [2, 4, 8])  # frame 1 is not shown: the overall mean
    np.testing.assert_allclose(Responses.of(x, y, 20).means(1.5), weight @ x / weight.sum(axis=1, keepdims=True))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 15), st.integers(0, 6), st.integers(0, 2**31))
def test_decide_equals_plain_loop(length: int, half_width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    mass = rng.dirichlet(np.ones(length), size=4)
    seen = rng.random(length) < 0.7
    seen[rng.integers(length)] = True
    for row, found in zip(mass, decide(mass, half_width, seen), strict=True):
        total = [row[max(0, i - half_width) : i + half_width + 1].sum() + 1e-6 * row[i] for i in range(length)]
        assert seen[found]
        assert total[found] == pytest.approx(max(np.array(total)[seen]))


def test_score_orders_equal_rates_by_error() -> None:
    score = within_tolerance(1)
    true = np.array([0, 0])
    assert score(np.array([0, 5]), true) > score(np.array([0, 50]), true) > score(np.array([9, 9]), true)


@pytest.mark.parametrize("index", range(1, 5))
def test_gratings_baselines_decode_and_need_labels(index: int) -> None:
    rng = np.random.default_rng(3)
    tuning, y, y_valid, y_test = rng.normal(size=(8, 40)), *(np.tile(np.arange(8), n) for n in (7, 2, 4))
    x, x_valid, x_test = (tuning[part] + rng.normal(size=(len(part), 40)) for part in (y, y_valid, y_test))
    found = fit_by(gratings_baselines(num_classes=8)[index], x, y, x_valid, y_valid)
    assert (found.predict(x_test) == y_test).mean() >= 0.75
    x_many, y_many = rng.normal(size=(200, 40)), rng.integers(0, 8, 200)
    chance = fit_by(gratings_baselines(num_classes=8)[index], x, rng.permutation(y), x_valid, y_valid)
    assert (chance.predict(x_many) == y_many).mean() < 0.3


def test_a_direction_of_two_trials_is_fitted_in_silence() -> None:
    rng = np.random.default_rng(0)
    y = np.array([0] * 6 + [1] * 6 + [2] * 2)
    x = np.eye(3)[y] * 9 + rng.normal(size=(14, 3))
    folds = make_folds(y, np.full(14, -1), np.arange(14) > 12, unseen=False)
    assert [np.bincount(y[rows]).tolist() for _, rows in folds] == [[3, 3, 1]] * 2
    for decoder in gratings_baselines(num_classes=3)[1:]:
        assert (fit_chosen(decoder, x, y, folds).predict(x) == y).all()


def test_majority_class_is_that_of_the_training_part() -> None:
    baseline = gratings_baselines(num_classes=8)[0]
    x = np.zeros((4, 2))
    fit_by(baseline, x, np.array([3, 3, 1, 0]), x, np.array([1, 1, 1, 1]))
    np.testing.assert_array_equal(baseline.predict(x[:2]), [3, 3])


def test_constant_frames_by_hand() -> None:
    movie = make_movie()
    x, y, x_valid, y_valid, x_test, _ = make_parts()
    y = y % 30
    mean = movie[:30].sum(axis=0, dtype=float) / 30
    np.testing.assert_allclose(mean_training_frame(movie, y), mean)
    np.testing.assert_array_equal(MeanFrame(movie).fit(x, y, ()).predict(x_test)[7], np.rint(mean))
    grey = GreyFrame(movie).fit(x, y, ()).predict(x_test)
    np.testing.assert_array_equal(grey, np.full((len(x_test), *movie.shape[1:]), np.rint(mean.mean())))
    median = PixelMedian(movie).fit(x, y, ()).predict(x_test)[0]
    np.testing.assert_array_equal(median, np.rint(np.median(movie[:30], axis=0)))
    blurred = fit_by(BlurredMean(movie), x, y, x_valid, y_valid)
    assert blurred.predict(x_test).std(axis=0).max() == 0
    assert blurred.predict(x_test)[0].std() < mean.std()


def test_lookup_returns_training_frames_and_beats_the_mean() -> None:
    movie = make_movie()
    x, y, x_valid, y_valid, x_test, y_test = make_parts()
    keep = (y < 20) | (y >= 26)
    stored = {frame.tobytes() for frame in movie[np.unique(y[keep])]}
    mean_error = ((movie[y_test] - mean_training_frame(movie, y[keep])) ** 2).mean()
    for decoder in (KNNFrameNumber, NaiveBayesFrameNumber, ShrunkLDAFrameNumber):
        lookup = fit_by(FrameLookup(movie, decoder=decoder, tolerance=3), x[keep], y[keep], x_valid, y_valid)
        frames = lookup.predict(x_test)
        assert {frame.tobytes() for frame in frames} <= stored
        assert ((movie[y_test].astype(float) - frames) ** 2).mean() < mean_error


def test_nearest_training_frame_equals_plain_search() -> None:
    movie = make_movie()
    y_train, y_test = np.arange(0, 60, 7), np.array([3, 30, 3, 59])
    for found, row in zip(nearest_training_frame(movie, y_train, y_test), y_test, strict=True):
        errors = ((movie[y_train].astype(float) - movie[row]) ** 2).sum(axis=(1, 2))
        np.testing.assert_array_equal(found, movie[y_train[errors.argmin()]])
    np.testing.assert_array_equal(nearest_training_frame(movie, y_train, y_train), movie[y_train])


@pytest.mark.parametrize("units", [40, 500])
def test_ridge_equals_scikit_learn(units: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways round: fewer and more features than windows."""
    movie = make_movie()
    x, y, x_valid, y_valid, x_test, _ = make_parts(units=units)
    monkeypatch.setattr(RidgeFrames, "penalties", (3.0,))
    monkeypatch.setattr(RidgeFrames, "num_components", (60,))
    found = fit_by(RidgeFrames(movie), x, y, x_valid, y_valid).predict(x_test)
    scaler = FeatureScaler.fit(x)
    singular = np.linalg.svd(scaler(x), compute_uv=False)
    penalty = 3.0 * float((singular[singular > 1e-5 * singular[0]] ** 2).mean())
    expected = Ridge(alpha=penalty).fit(scaler(x), movie[y].reshape(len(y), -1).astype(float))
    difference = found.reshape(len(found), -1) - np.clip(expected.predict(scaler(x_test)), 0, 255)
    assert np.abs(difference).max() < 0.51  # rounding to whole grey levels


def test_ridge_composes_unseen_frames_better_than_any_lookup_of_noise() -> None:
    movie = make_movie()
    x, y, x_valid, y_valid, x_test, y_test = make_parts(noise=0.2)
    found = fit_by(RidgeFrames(movie), x, y, x_valid, y_valid)
    error = ((found.predict(x_test).astype(float) - movie[y_test]) ** 2).mean()
    assert error < 0.3 * ((movie[y_test] - movie.mean(axis=0)) ** 2).mean()
    # No signal: all it can do is the mean.
    x, y, x_valid, y_valid, x_test, y_test = make_parts(signal=0.0)
    blind = fit_by(RidgeFrames(movie), x, y, x_valid, y_valid).predict(x_test)
    error = ((blind.astype(float) - movie[y_test]) ** 2).mean()
    assert error < 1.1 * ((movie[y_test] - movie.mean(axis=0)) ** 2).mean()


@pytest.mark.parametrize("index", range(7))
def test_frames_of_the_test_part_have_no_influence(index: int) -> None:
    """A leak planted on purpose: replacing the held-out clip's pixels must change no prediction."""
    movie = make_movie()
    x, y, x_valid, y_valid, x_test, _ = make_parts()
    train, valid = ((part < 20) | (part >= 30) for part in (y, y_valid))
    fitted = (x[train], y[train], x_valid[valid], y_valid[valid])
    planted = movie.copy()
    planted[20:30] = 255 - planted[20:30]
    first, second = (fit_by(frame_baselines(m, tolerance=3)[index], *fitted).predict(x_test) for m in (movie, planted))
    np.testing.assert_array_equal(first, second)
    assert first.shape == (60, 16, 20)
    assert first.dtype == np.uint8


@pytest.mark.parametrize("units", [1, 3])
def test_constant_features_and_one_frame_break_nothing(units: int) -> None:
    movie = make_movie(2)
    x, y = np.zeros((6, units)), np.zeros(6, dtype=np.int64)
    for baseline in (*frame_baselines(movie, tolerance=1), *frame_number_baselines(num_frames=2, tolerance=1)):
        predicted = fit_by(baseline, x, y, x, y).predict(x)
        assert len(predicted) == 6
        if baseline.name not in ("blurred_mean", "grey_frame"):
            np.testing.assert_array_equal(predicted[0], movie[0] if predicted.ndim == 3 else 0)


def bad_features() -> dict[str, tuple[np.ndarray, np.ndarray, type[Exception], str]]:
    x, y = np.zeros((3, 2)), np.array([0, 1, 1])
    nan = x.copy()
    nan[1, 1] = np.nan
    return {
        "empty": (x[:0], y[:0], SplitError, "no windows to fit a baseline on"),
        "shape": (x[:2], y, ConfigError, r"features of shape \(2, 2\) for 3 targets"),
        "NaN": (nan, y, ConfigError, "feature in window 1"),
        "class": (x, y + 1, ConfigError, r"target 2 of window 1 \(allowed: 0 to 1\)"),
        "fraction": (x, y + 0.5, ConfigError, "target 0.5 of window 0"),
    }


@pytest.mark.parametrize(("x", "y", "error", "text"), bad_features().values(), ids=bad_features())
def test_bad_input_is_named(x: np.ndarray, y: np.ndarray, error: type[Exception], text: str) -> None:
    baselines = (
        *gratings_baselines(num_classes=2),
        *frame_number_baselines(num_frames=2, tolerance=1),
        *frame_baselines(make_movie(2), tolerance=1),
    )
    for baseline in baselines:
        with pytest.raises(error, match=text):
            fit_chosen(baseline, x, y, [(np.arange(2), np.arange(2, 3))])


def test_folds_hold_out_whole_repeats_stratified_trials_or_the_validation_clip() -> None:
    repeat, frame = np.repeat(np.arange(7), 50), np.tile(np.arange(50), 7)
    validates = repeat == 6
    held = [np.unique(repeat[rows]).tolist() for _, rows in make_folds(frame, repeat, validates, unseen=False)]
    assert held == [[0, 1, 2], [3, 4], [5, 6]]
    [(fitted, clip)] = make_folds(frame, repeat, validates, unseen=True)
    np.testing.assert_array_equal(repeat[clip], 6)
    np.testing.assert_array_equal(fitted, np.flatnonzero(~validates))
    direction, none = np.repeat(np.arange(4), 10), np.full(40, -1)
    trials = make_folds(direction, none, np.arange(40) > 34, unseen=False)
    assert [np.bincount(direction[rows]).tolist() for _, rows in trials] == [[2, 2, 2, 2]] * 5
    for fitted, rows in trials:
        np.testing.assert_array_equal(np.sort(np.append(fitted, rows)), np.arange(40))
    # A class of one trial cannot be in every fold: the validation part is held out.
    [(_, rows)] = make_folds(np.array([0, 0, 1]), none[:3], np.array([False, True, False]), unseen=False)
    assert rows.tolist() == [1]


class Counting(Decoder):
    """Scores the share of ones in its first feature, by candidate; knows nothing."""

    name, num_targets = "counting", 2

    def scores(self, x, y, x_held, y_held):  # type: ignore[no-untyped-def]
        return {(("weight", 1),): float(x_held[:, 0].sum()), (("weight", 2),): float(x_held[:, 0].sum())}


def test_the_best_input_by_all_folds_is_chosen_and_the_first_of_equals() -> None:
    y = np.array([0, 1, 0, 1])
    folds = [(np.arange(2, 4), np.arange(2)), (np.arange(2), np.arange(2, 4))]
    inputs = {
        name: np.array(ones, float)[:, None]
        for name, ones in {"a": [1, 1, 0, 0], "b": [1, 0, 1, 1], "c": [0, 1, 1, 1]}.items()
    }
    assert choose(Counting(), inputs, y, folds) == ("b", (("weight", 1),), 3.0)
