"""The fast search for hyper-parameters finds what the plain one finds: loops, dense posteriors, no shared sums."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.special import softmax
from test_baselines import fit_by, make_parts

from poyo_ssl.data.responses import Responses
from poyo_ssl.evaluation import baselines, features, frame_number
from poyo_ssl.evaluation.baselines import make_folds
from poyo_ssl.evaluation.features import in_blocks
from poyo_ssl.evaluation.frame_number import (
    CosineLDAFrameNumber,
    FrameNumberBaseline,
    KNNFrameNumber,
    NaiveBayesFrameNumber,
    ShrunkLDAFrameNumber,
    WhitenedKNNFrameNumber,
    fit_transform,
    nearest_rows,
    transform_names,
    within_tolerance,
)

LENGTH, TOLERANCE = 60, 4


def candidate_transforms(x: np.ndarray) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    return {name: fit_transform(name, x) for name in transform_names(x)}


Posteriors = Iterator[tuple[dict[str, Any], Callable[[np.ndarray], np.ndarray]]]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Many blocks even of small data, on two threads."""
    monkeypatch.setattr(features, "BLOCK_VALUES", 500)
    monkeypatch.setattr(frame_number, "ROWS_PER_PRODUCT", 16)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def plain_means(x: np.ndarray, y: np.ndarray, smoothing: float) -> np.ndarray:
    """Weighted means of all windows, the weights written out; a Gaussian cut at four deviations."""
    apart = np.abs(np.arange(LENGTH)[:, None] - y)
    if smoothing == 0:
        weight = (apart == 0).astype(float)
    else:
        weight = np.exp(-0.5 * (apart / smoothing) ** 2) * (apart <= int(4 * smoothing + 0.5))
    return np.asarray(weight @ x / weight.sum(axis=1, keepdims=True))


def plain_knn(x: np.ndarray, y: np.ndarray) -> Posteriors:
    for (name, transform), metric in itertools.product(
        candidate_transforms(x).items(), ("euclidean", "cosine", "correlation")
    ):
        for k in KNNFrameNumber.neighbours:
            settings = {"transform": name, "metric": metric, "neighbours": k}
            yield settings, lambda v, t=transform, m=metric, k=k: plain_votes(cdist(t(v), t(x), m), y, k)


def plain_votes(distance: np.ndarray, y: np.ndarray, k: int) -> np.ndarray:
    mass = np.zeros((len(distance), LENGTH))
    for row, order in zip(mass, np.argsort(distance, axis=1, kind="stable"), strict=True):
        for rank, window in enumerate(order[:k], start=1):
            row[y[window]] += 1 / rank
    return mass / mass.sum(axis=1, keepdims=True)


def plain_naive_bayes(x: np.ndarray, y: np.ndarray) -> Posteriors:
    for (name, transform), smoothing in itertools.product(
        candidate_transforms(x).items(), NaiveBayesFrameNumber.smoothing_frames
    ):
        means = plain_means(transform(x), y, smoothing)
        variance = ((transform(x) - means[y]) ** 2).mean(axis=0)
        for floor, temperature in itertools.product(
            NaiveBayesFrameNumber.variance_floors, NaiveBayesFrameNumber.temperatures
        ):
            inverse = np.diag(1 / (variance + floor * variance.mean() + 1e-9))
            settings = {
                "transform": name,
                "smoothing_frames": smoothing,
                "variance_floor": floor,
                "temperature": temperature,
            }
            yield settings, gaussian(transform, means, inverse, temperature)


def plain_lda(x: np.ndarray, y: np.ndarray) -> Posteriors:
    for (name, transform), smoothing in itertools.product(
        candidate_transforms(x).items(), ShrunkLDAFrameNumber.smoothing_frames
    ):
        means = plain_means(transform(x), y, smoothing)
        residual = transform(x) - means[y]
        covariance = residual.T @ residual / len(x)
        variance = np.diag(covariance)
        for share, temperature in itertools.product(ShrunkLDAFrameNumber.shrinkages, ShrunkLDAFrameNumber.temperatures):
            shrunk = (1 - share) * (covariance - np.diag(variance)) + np.diag(variance + 0.05 * variance.mean() + 1e-9)
            settings = {
                "transform": name,
                "smoothing_frames": smoothing,
                "shrinkage": share,
                "temperature": temperature,
            }
            yield settings, gaussian(transform, means, np.linalg.inv(shrunk), temperature)


def gaussian(
    transform: Callable[[np.ndarray], np.ndarray], means: np.ndarray, inverse: np.ndarray, temperature: float
) -> Callable[[np.ndarray], np.ndarray]:
    """Posterior from Mahalanobis distances, window by window."""

    def posterior(v: np.ndarray) -> np.ndarray:
        apart = transform(v)[:, None] - means
        squared = np.einsum("nlf,fg,nlg->nl", apart, inverse, apart, optimize=True)
        return np.asarray(softmax(-0.5 * squared / temperature, axis=1))

    return posterior


def plain_whitened(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[dict[str, Any], Callable[[np.ndarray], np.ndarray]]]:
    """Directions after an inverse Cholesky factor, for both decoders that use them."""
    for (name, transform), share in itertools.product(candidate_transforms(x).items(), (0.2, 0.4, 0.6)):
        residual = transform(x) - plain_means(transform(x), y, 8.0)[y]
        covariance = residual.T @ residual / len(x)
        variance = np.diag(covariance)
        shrunk = (1 - share) * (covariance - np.diag(variance)) + np.diag(variance + 0.05 * variance.mean() + 1e-9)
        white = np.linalg.inv(np.linalg.cholesky(shrunk))

        def directions(v: np.ndarray, t: Any = transform, white: np.ndarray = white) -> np.ndarray:
            turned = (t(v) - t(x).mean(axis=0)) @ white.T
            return np.asarray(turned / np.linalg.norm(turned, axis=1, keepdims=True))

        yield {"transform": name, "shrinkage": share}, directions


def plain_cosine_lda(x: np.ndarray, y: np.ndarray) -> Posteriors:
    for settings, directions in plain_whitened(x, y):
        for smoothing, temperature in itertools.product(
            CosineLDAFrameNumber.smoothing_frames, CosineLDAFrameNumber.temperatures
        ):
            means = plain_means(directions(x), y, smoothing)
            means /= np.linalg.norm(means, axis=1, keepdims=True)
            yield (
                {**settings, "smoothing_frames": smoothing, "temperature": temperature},
                lambda v, d=directions, m=means, t=temperature: softmax(d(v) @ m.T / t, axis=1),
            )


def plain_whitened_knn(x: np.ndarray, y: np.ndarray) -> Posteriors:
    for settings, directions in plain_whitened(x, y):
        for k in WhitenedKNNFrameNumber.neighbours:
            yield (
                {**settings, "neighbours": k},
                lambda v, d=directions, k=k: plain_votes(cdist(d(v), d(x)), y, k),
            )


def plain_decision(mass: np.ndarray, half_width: int) -> np.ndarray:
    boxes = [mass[:, max(i - half_width, 0) : i + half_width + 1].sum(axis=1) for i in range(LENGTH)]
    return np.argmax(np.stack(boxes, axis=1) + 1e-6 * mass, axis=1)


@pytest.mark.parametrize(
    ("decoder", "plain"),
    [
        (KNNFrameNumber, plain_knn),
        (NaiveBayesFrameNumber, plain_naive_bayes),
        (ShrunkLDAFrameNumber, plain_lda),
        (WhitenedKNNFrameNumber, plain_whitened_knn),
        (CosineLDAFrameNumber, plain_cosine_lda),
    ],
)
@pytest.mark.usefixtures("small_blocks")
def test_choice_and_answers_equal_the_plain_search(
    decoder: type[FrameNumberBaseline], plain: Callable[[np.ndarray, np.ndarray], Posteriors]
) -> None:
    x, y, x_valid, y_valid, x_test, _ = make_parts(length=LENGTH, units=12, noise=0.9)
    score = within_tolerance(TOLERANCE)
    best, chosen, answers = -np.inf, {}, np.empty(0)
    for settings, posterior in plain(x, y):
        mass = posterior(x_valid)
        for half_width in (0, TOLERANCE // 2, TOLERANCE):
            value = score(plain_decision(mass, half_width), y_valid)
            if value > best:
                best, chosen = value, {**settings, "half_width": half_width}
                answers = plain_decision(posterior(x_test), half_width)
    found = fit_by(decoder(num_frames=LENGTH, tolerance=TOLERANCE), x, y, x_valid, y_valid)
    assert found.settings == chosen
    np.testing.assert_array_equal(found.predict(x_test), answers)


def test_of_many_held_out_windows_evenly_spaced_ones_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "SEARCH_WINDOWS", 100)
    repeat, frame = np.repeat(np.arange(6), LENGTH), np.tile(np.arange(LENGTH), 6)
    for number, (fitted, held) in enumerate(make_folds(frame, repeat, repeat == 5, unseen=False)):
        out = np.flatnonzero(repeat // 2 == number)
        np.testing.assert_array_equal(held, out[::3])
        np.testing.assert_array_equal(fitted, np.setdiff1d(np.arange(len(repeat)), out))


@pytest.mark.usefixtures("small_blocks")
def test_nearest_rows_equal_scipy() -> None:
    rng = np.random.default_rng(0)
    x, stored = rng.normal(1, 1, (50, 7)), rng.normal(1, 1, (90, 7))
    found = nearest_rows(x, stored, 11, ("euclidean", "cosine", "correlation"))
    for metric, rows in found.items():
        np.testing.assert_array_equal(rows, np.argsort(cdist(x, stored, metric), axis=1)[:, :11])


def test_a_silent_window_is_no_nans_neighbour() -> None:
    """Directions of length 0 stay 0: further than cosine 0.5, nearer than what points away."""
    stored = np.array([[0.0, 0.0], [1.0, 0.1], [-1.0, 0.0]])
    np.testing.assert_array_equal(nearest_rows(np.array([[2.0, 0.0]]), stored, 3, ("cosine",))["cosine"], [[1, 0, 2]])


@pytest.mark.parametrize("smoothing", [0.0, 1.5, 6.0])
def test_residuals_from_sums_equal_residuals(smoothing: float) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(3, 2, (200, 5)), rng.integers(0, LENGTH, 200)
    responses = Responses.of(x, y, LENGTH)
    means = responses.means(smoothing)
    residual = x - means[y]
    np.testing.assert_allclose(responses.residual_variance(means), (residual**2).mean(axis=0))
    np.testing.assert_allclose(responses.residual_covariance(means), residual.T @ residual / 200, atol=1e-12)


@pytest.mark.usefixtures("small_blocks")
def test_an_offset_of_all_features_changes_no_answer() -> None:
    """Single precision must not see it: fluorescence in counts lies far from 0."""
    x, y, x_valid, y_valid, x_test, _ = make_parts(length=LENGTH, units=12, noise=0.9)
    for decoder in (NaiveBayesFrameNumber, ShrunkLDAFrameNumber):
        answers = [
            fit_by(
                decoder(num_frames=LENGTH, tolerance=TOLERANCE), x + shift - 10, y, x_valid + shift - 10, y_valid
            ).predict(x_test + shift - 10)
            for shift in (0.0, -4096.0)
        ]
        np.testing.assert_array_equal(*answers)


@pytest.mark.usefixtures("small_blocks")
def test_blocks_come_back_in_order() -> None:
    rows = in_blocks(lambda block: list(range(block.start, block.stop)), 1000, 30)
    assert len(rows) > 10
    assert list(itertools.chain.from_iterable(rows)) == list(range(1000))
