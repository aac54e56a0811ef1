"""Simple decoders of the movie frame number: nearest neighbours, naive Bayes, shrunk discriminants."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve

from poyo_ssl.data.responses import Responses, Whitening, to_unit_length
from poyo_ssl.evaluation.features import Array, FeatureScaler, FloatArray, IntArray, check_parts, in_blocks


def decide(mass: FloatArray, half_width: int, seen: npt.NDArray[np.bool_]) -> IntArray:
    """Choose the seen frame with the most mass within +- `half_width` frames of it.

    Parameters
    ----------
    mass : ndarray
        ``(N, L)`` non-negative.
    half_width : int
        Frames on either side.
    seen : ndarray
        ``(L,)`` bool, frames that may be chosen.

    Returns
    -------
    ndarray
        ``(N,)`` int64.

    Examples
    --------
    >>> decide(np.array([[0.4, 0.0, 0.1, 0.3, 0.2]]), 1, np.ones(5, dtype=bool))
    array([3])
    """
    return decide_each(lambda rows: [mass[rows]], len(mass), (half_width,), seen)[0, 0]


def decide_each(
    masses: Callable[[slice], Iterable[FloatArray]],
    num_rows: int,
    half_widths: Sequence[int],
    seen: npt.NDArray[np.bool_],
) -> IntArray:
    """Decide by every mass and every half width, block by block, so that no whole mass is ever held.

    Parameters
    ----------
    masses : callable
        From a slice of rows to S arrays of mass, ``(rows, L)`` each; called by several threads.
    num_rows : int
        Number of windows N.
    half_widths : sequence of int
        H numbers of frames on either side.
    seen : ndarray
        ``(L,)`` bool, frames that may be chosen.

    Returns
    -------
    ndarray
        ``(S, H, N)`` int64.

    Examples
    --------
    >>> mass = np.array([[0.4, 0.0, 0.1, 0.3, 0.2]])
    >>> decide_each(lambda rows: [mass[rows], mass[rows] ** 9], 1, (0, 1), np.ones(5, dtype=bool))[..., 0]
    array([[0, 3],
           [0, 1]])
    """
    unseen = np.flatnonzero(~seen)

    def block(rows: slice) -> IntArray:
        return np.array([_decide_block(mass, half_widths, unseen) for mass in masses(rows)], np.int64)

    return np.concatenate(in_blocks(block, num_rows, len(seen)), axis=-1)


def _decide_block(mass: FloatArray, half_widths: Sequence[int], unseen: IntArray) -> list[IntArray]:
    import torch  # here, since reports need the scores of decoders but no torch

    num_rows, num_frames = mass.shape
    pad = min(max(half_widths), num_frames)
    total = np.zeros((num_rows, num_frames + 1 + 2 * pad))  # mass before a frame, also of frames beyond either end
    # numpy's running sum takes four times as long.
    torch.cumsum(torch.from_numpy(mass), dim=1, out=torch.from_numpy(total)[:, pad + 1 : pad + 1 + num_frames])
    total[:, pad + 1 + num_frames :] = total[:, pad + num_frames, None]
    # A hair of the frame's own mass chooses the peak on the plateau that a box sum makes of it.
    hair = 1e-6 * mass
    found = []
    for half_width in half_widths:
        low, high = pad - min(half_width, pad), pad + 1 + min(half_width, pad)
        gain = total[:, high : high + num_frames] - total[:, low : low + num_frames]
        gain += hair
        gain[:, unseen] = -np.inf
        found.append(gain.argmax(axis=1))
    return found


Metric = Literal["euclidean", "cosine", "correlation"]

ROWS_PER_PRODUCT = 512
"""Rows whose products with all stored rows are held at once."""


def nearest_rows(
    x: FloatArray, stored: FloatArray, k: int, metrics: Sequence[Metric] = ("euclidean",)
) -> dict[Metric, IntArray]:
    """Rows of the k nearest stored vectors by every metric, nearest first; all metrics share one matrix product.

    Parameters
    ----------
    x : ndarray
        ``(N, F)``.
    stored : ndarray
        ``(M, F)``.
    k : int
        Number of neighbours, at most M are returned.
    metrics : sequence of {'euclidean', 'cosine', 'correlation'}
        The latter two are euclidean distances of unit vectors, after the mean over features has been subtracted for
        'correlation'; a vector of length 0 stays 0.

    Returns
    -------
    dict
        Metric to ``(N, k)`` int64.

    Examples
    --------
    >>> nearest_rows(np.array([[0.9]]), np.array([[0.0], [1.0], [5.0]]), 2)["euclidean"]
    array([[1, 0]])
    >>> nearest_rows(np.array([[3.0, 1.0]]), np.array([[1.0, 1.0], [9.0, 3.0]]), 1, ("cosine",))["cosine"]
    array([[1]])
    """
    k = min(k, len(stored))
    found: dict[Metric, list[IntArray]] = {metric: [] for metric in metrics}
    of_stored = {metric: _terms(stored, metric) for metric in metrics}
    for start in range(0, len(x), ROWS_PER_PRODUCT):
        part = x[start : start + ROWS_PER_PRODUCT]
        products = part @ stored.T
        for metric, terms in of_stored.items():
            found[metric] += _select(products, _terms(part, metric), terms, x.shape[1], k)
    return {metric: np.concatenate(rows) for metric, rows in found.items()}


Terms = tuple[FloatArray, FloatArray, FloatArray]
"""Mean that a metric subtracts, factor to its length, and squared length after both, of every row."""


def _terms(x: FloatArray, metric: Metric) -> Terms:
    none = np.zeros(len(x))
    if metric == "euclidean":
        return none, none + 1, (x**2).sum(axis=1)
    mean = x.mean(axis=1) if metric == "correlation" else none
    length = np.linalg.norm(x - mean[:, None], axis=1)
    some = length > 0
    return mean, some / np.where(some, length, 1.0), some.astype(np.float64)


def _select(products: FloatArray, own: Terms, stored: Terms, num_features: int, k: int) -> list[IntArray]:
    """``(rows, k)`` nearest stored rows, block by block, from products ``(N, M)`` of rows with stored rows."""

    def block(rows: slice) -> IntArray:
        mean, factor, _ = (term[rows, None] for term in own)
        scaled = (products[rows] - num_features * mean * stored[0]) * (factor * stored[1])
        distance = stored[2] - 2 * scaled  # squared, less a term that the row shares
        nearest = np.argpartition(distance, k - 1, axis=1)[:, :k]
        order = np.argsort(np.take_along_axis(distance, nearest, axis=1), axis=1, kind="stable")
        return np.take_along_axis(nearest, order, axis=1)

    return in_blocks(block, *products.shape)


def rank_votes(numbers: IntArray, num_frames: int) -> FloatArray:
    """Let neighbours vote with 1/rank.

    Parameters
    ----------
    numbers : ndarray
        ``(N, k)`` frame numbers of the neighbours, nearest first.
    num_frames : int
        Number of frames L.

    Returns
    -------
    ndarray
        ``(N, L)``, rows sum to 1.

    Examples
    --------
    >>> rank_votes(np.array([[2, 0]]), 3).round(2)
    array([[0.33, 0.  , 0.67]])
    """
    num_rows, k = numbers.shape
    weight = 1.0 / np.arange(1, k + 1)
    votes = np.broadcast_to(weight / weight.sum(), numbers.shape)
    place = np.arange(num_rows)[:, None] * num_frames + numbers
    mass = np.bincount(place.ravel(), votes.ravel(), minlength=num_rows * num_frames)
    return np.asarray(mass, np.float64).reshape(num_rows, num_frames)


SEARCH_WINDOWS = 1000
"""About how many validation windows choose hyper-parameters, where there are twice as many or more.

Windows of one second at 30 Hz share all but a frame with the next, so that every second or third says nearly the same.
"""

Score = Callable[[IntArray, IntArray], float]
"""How good predicted frame numbers are for the true ones; larger is better."""

Discriminant = tuple[dict[str, Any], FloatArray, FloatArray]
"""Hyper-parameters, weights ``(L, F)`` and bias ``(L,)`` of a linear score per frame."""


def within_tolerance(tolerance: int) -> Score:
    """Return a score: the share of frame numbers within `tolerance`; among equal shares, mean error decides.

    Examples
    --------
    >>> round(within_tolerance(1)(np.array([3, 9]), np.array([4, 4])), 3)
    0.5
    """

    def score(predicted: IntArray, true: IntArray) -> float:
        error = np.abs(predicted - true)
        # The second term stays far below the weight of one window, so that it only orders equal shares.
        return float((error <= tolerance).mean() - 1e-9 * error.mean())

    return score


class FrameNumberBaseline(ABC):
    """A decoder of frame numbers that gives every frame a posterior mass.

    The decoded frame is the one with the most mass within +- some frames of it: the Bayes decision when
    errors up to that many frames count as right. That half width is a hyper-parameter too: 0, half or
    all of `tolerance`. Frames absent from the training part are never decoded.

    Parameters
    ----------
    num_frames : int
        Number of frames of the movie.
    tolerance : int
        Error in frames that still counts as right (1 s: the movie's rate).
    score : callable, optional
        What hyper-parameters maximise on the validation part, instead of ``within_tolerance(tolerance)``.

    Attributes
    ----------
    chosen : dict
        The hyper-parameters taken by `fit`.
    """

    name: str

    def __init__(self, *, num_frames: int, tolerance: int, score: Score | None = None) -> None:
        self.num_frames, self.tolerance = num_frames, tolerance
        self.score = score or within_tolerance(tolerance)
        self.chosen: dict[str, Any] = {}

    @abstractmethod
    def fit(self, x_train: Array, y_train: Array, x_valid: Array, y_valid: Array) -> FrameNumberBaseline:
        """Fit on ``(N, F)`` features and ``(N,)`` frame numbers; the validation part only chooses."""

    @abstractmethod
    def posterior(self, x: Array) -> FloatArray:
        """``(N, num_frames)`` mass of every frame, with rows that sum to 1."""

    def predict(self, x: Array) -> IntArray:
        """Decode ``(N,)`` frame numbers."""
        return decide(self.posterior(x), self.chosen["half_width"], self._seen)

    def _start(self, x_train: Array, y_train: Array, x_valid: Array, y_valid: Array) -> tuple[Array, Array]:
        """Forget what was chosen; return the validation windows that choose, evenly spaced where there are many."""
        check_parts(x_train, y_train, x_valid, y_valid, num_classes=self.num_frames)
        self._seen = np.bincount(y_train, minlength=self.num_frames) > 0
        self._best = -np.inf
        step = max(len(y_valid) // SEARCH_WINDOWS, 1)
        return x_valid[::step], y_valid[::step]

    def _try_rules(
        self, masses: Callable[[slice], Iterable[FloatArray]], y_valid: Array, tried: Sequence[dict[str, Any]]
    ) -> bool:
        """Score every decision rule by every mass; keep and report settings that are better than all before.

        `masses` makes, from a slice of rows, the mass of each of the settings `tried`.
        """
        better = False
        half_widths = tuple(dict.fromkeys((0, self.tolerance // 2, self.tolerance)))
        found = decide_each(masses, len(y_valid), half_widths, self._seen)
        for settings, of_rules in zip(tried, found, strict=True):
            for half_width, answer in zip(half_widths, of_rules, strict=True):
                score = self.score(answer, y_valid)
                if score > self._best:
                    self._best, better = score, True
                    self.chosen = {**settings, "half_width": half_width}
        return better

    def _try_temperatures(
        self, scores: Array, y_valid: Array, settings: dict[str, Any], temperatures: Sequence[float]
    ) -> bool:
        """As `_try_rules`, for softmax posteriors of scores ``(N, L)``."""

        def masses(rows: slice) -> Iterator[FloatArray]:
            below_peak = self._below_peak(scores[rows])
            for temperature in temperatures:
                mass = below_peak / temperature
                yield np.exp(mass, out=mass)  # decisions do not depend on the sum

        return self._try_rules(masses, y_valid, [{**settings, "temperature": t} for t in temperatures])

    def _below_peak(self, scores: Array) -> FloatArray:
        seen = scores if self._seen.all() else np.where(self._seen, scores, -np.inf)
        return np.subtract(seen, seen.max(axis=1, keepdims=True), dtype=np.float64)

    def _softmax(self, scores: FloatArray, temperature: float) -> FloatArray:
        mass = np.exp(self._below_peak(scores) / temperature)
        return mass / mass.sum(axis=1, keepdims=True)

    def _try_votes(
        self, numbers: IntArray, y_valid: Array, settings: dict[str, Any], neighbours: Sequence[int]
    ) -> bool:
        """As `_try_rules`, for votes of the frame numbers ``(N, K)`` of the nearest windows."""
        return self._try_rules(
            lambda rows: (rank_votes(numbers[rows, :k], self.num_frames) for k in neighbours),
            y_valid,
            [{**settings, "neighbours": k} for k in neighbours],
        )


def candidate_transforms(x_train: Array) -> dict[str, Callable[[Array], FloatArray]]:
    """Return the transforms of the features that validation chooses among.

    Parameters
    ----------
    x_train : ndarray
        ``(N, F)`` training features, the only ones that statistics come from.

    Returns
    -------
    dict
        'zscore', and where no training feature is negative (counts) 'sqrt', else 'none' and 'asinh' (robust z-score,
        inverse hyperbolic sine, z-score: large transients no longer drown the rest).

    Examples
    --------
    >>> list(candidate_transforms(np.array([[0.0], [2.0]])))
    ['zscore', 'sqrt']
    >>> candidate_transforms(np.array([[-1.0], [0.0], [1.0]]))["asinh"](np.array([[0.0]]))
    array([[0.]])
    """
    transforms: dict[str, Callable[[Array], FloatArray]] = {"zscore": FeatureScaler.fit(x_train)}
    if x_train.min() >= 0:
        # The square root evens out the variance of counts.
        return transforms | {"sqrt": lambda x: np.sqrt(np.maximum(x, 0), dtype=np.float64)}
    robust = FeatureScaler.fit_robust(x_train)
    compressed = FeatureScaler.fit(np.arcsinh(robust(x_train)))
    transforms["none"] = lambda x: np.asarray(x, dtype=np.float64)
    transforms["asinh"] = lambda x: compressed(np.arcsinh(robust(x)))
    return transforms


class KNNFrameNumber(FrameNumberBaseline):
    """The k nearest training windows vote for their frame number, with votes 1/rank.

    Chosen on the validation part: transform of the features, distance, k and the decision's half width.

    Examples
    --------
    >>> x, y = np.eye(4).repeat(3, axis=0), np.arange(4).repeat(3)
    >>> KNNFrameNumber(num_frames=4, tolerance=0).fit(x, y, x, y).predict(np.eye(4))
    array([0, 1, 2, 3])
    """

    name = "knn"
    neighbours = (1, 5, 10, 20, 50, 100)
    metrics: tuple[Metric, ...] = ("euclidean", "cosine", "correlation")

    def fit(self, x_train: Array, y_train: Array, x_valid: Array, y_valid: Array) -> KNNFrameNumber:
        """Store the training windows and choose transform, distance, k and half width."""
        x_valid, y_valid = self._start(x_train, y_train, x_valid, y_valid)
        self._y = np.asarray(y_train, dtype=np.int64)
        for name, transform in candidate_transforms(x_train).items():
            stored = transform(x_train)
            nearest = nearest_rows(transform(x_valid), stored, max(self.neighbours), self.metrics)
            for metric, rows in nearest.items():
                settings = {"transform": name, "metric": metric}
                if self._try_votes(self._y[rows], y_valid, settings, self.neighbours):
                    self._transform, self._stored, self._metric = transform, stored, metric
        return self

    def posterior(self, x: Array) -> FloatArray:
        """``(N, num_frames)`` share of the votes."""
        metrics = (self._metric,)
        nearest = nearest_rows(self._transform(x), self._stored, self.chosen["neighbours"], metrics)
        return rank_votes(self._y[nearest[self._metric]], self.num_frames)


class LinearFrameNumber(FrameNumberBaseline):
    """A linear score per frame from mean responses that are smoothed over neighbouring frames.

    A movie has hundreds of frames and few repeats; without smoothing the mean response to a frame is noise.
    Chosen on the validation part: transform, smoothing, what a subclass adds, the temperature of the
    posterior (independence makes it overconfident) and the decision's half width.
    All seen frames are equally likely beforehand.
    """

    smoothing_frames = (0.0, 2.0, 4.0, 8.0, 12.0, 16.0)
    temperatures = (1.0, 4.0, 16.0)

    @abstractmethod
    def _discriminants(self, responses: Responses, means: FloatArray) -> Iterator[Discriminant]:
        """Yield candidates from the training part's responses and their smoothed means ``(num_frames, F)``."""

    def fit(self, x_train: Array, y_train: Array, x_valid: Array, y_valid: Array) -> LinearFrameNumber:
        """Take smoothed mean responses and choose the hyper-parameters."""
        x_valid, y_valid = self._start(x_train, y_train, x_valid, y_valid)
        for name, transform in candidate_transforms(x_train).items():
            x = transform(x_train)
            centre = x.mean(axis=0)  # changes no score's differences, and products lose no digits to an offset
            responses = Responses.of(x - centre, np.asarray(y_train, dtype=np.int64), self.num_frames)
            # Hyper-parameters are chosen with products in single precision, answers are given in double.
            held_out = (transform(x_valid) - centre).astype(np.float32)
            for smoothing in self.smoothing_frames:
                for added, weights, bias in self._discriminants(responses, responses.means(smoothing)):
                    settings = {"transform": name, "smoothing_frames": smoothing, **added}
                    scores = held_out @ weights.astype(np.float32).T + bias.astype(np.float32)
                    if self._try_temperatures(scores, y_valid, settings, self.temperatures):
                        self._transform, self._centre = transform, centre
                        self._weights, self._bias = weights, bias
        return self

    def posterior(self, x: Array) -> FloatArray:
        """``(N, num_frames)`` posterior at the chosen temperature."""
        scores = (self._transform(x) - self._centre) @ self._weights.T + self._bias
        return self._softmax(scores, self.chosen["temperature"])


class NaiveBayesFrameNumber(LinearFrameNumber):
    """Naive Bayes: features are independent and Gaussian given the frame, with one variance per feature.

    The variance is pooled over frames around the smoothed means; a share of the average variance, chosen on
    the validation part, is added to it, so that nearly silent neurons do not decide alone.

    Examples
    --------
    >>> x, y = np.eye(4).repeat(3, axis=0), np.arange(4).repeat(3)
    >>> NaiveBayesFrameNumber(num_frames=4, tolerance=0).fit(x, y, x, y).predict(np.eye(4))
    array([0, 1, 2, 3])
    """

    name = "naive_bayes"
    variance_floors = (0.03, 0.3, 1.0)

    def _discriminants(self, responses: Responses, means: FloatArray) -> Iterator[Discriminant]:
        variance = responses.residual_variance(means)
        for floor in self.variance_floors:
            precision = 1.0 / (variance + floor * variance.mean() + 1e-9)
            weights = means * precision
            yield {"variance_floor": floor}, weights, -0.5 * (weights * means).sum(axis=1)


class ShrunkLDAFrameNumber(LinearFrameNumber):
    """Linear discriminants: Gaussian given the frame, with one covariance for all frames.

    The covariance of the residuals around the smoothed means is shrunk towards its diagonal by a share
    chosen on the validation part. Naive Bayes is the share 1.

    Examples
    --------
    >>> x, y = np.eye(4).repeat(3, axis=0), np.arange(4).repeat(3)
    >>> ShrunkLDAFrameNumber(num_frames=4, tolerance=0).fit(x, y, x, y).predict(np.eye(4))
    array([0, 1, 2, 3])
    """

    name = "shrunk_lda"
    shrinkages = (0.05, 0.2, 0.5, 0.8)
    variance_floor = 0.05

    def _discriminants(self, responses: Responses, means: FloatArray) -> Iterator[Discriminant]:
        covariance = responses.residual_covariance(means)
        variance = np.diag(covariance).copy()
        for shrinkage in self.shrinkages:
            shrunk = (1 - shrinkage) * covariance
            np.fill_diagonal(shrunk, variance + self.variance_floor * variance.mean() + 1e-9)
            # One product with the inverse is faster than solving for as many means as a movie has frames.
            weights = means @ cho_solve(cho_factor(shrunk, lower=True), np.eye(len(shrunk)))
            yield {"shrinkage": shrinkage}, weights, -0.5 * (weights * means).sum(axis=1)


NOISE_SMOOTHING_FRAMES = 8.0
"""Smoothing of the mean responses whose residuals are taken for noise."""
SHRINKAGES = (0.2, 0.4, 0.6)


def _whitenings(x_train: Array, y_train: IntArray, num_frames: int) -> Iterator[tuple[dict[str, Any], Any, Whitening]]:
    """Yield settings, transform and whitening of every candidate."""
    for name, transform in candidate_transforms(x_train).items():
        x = transform(x_train)
        responses = Responses.of(x, y_train, num_frames)
        covariance = responses.residual_covariance(responses.means(NOISE_SMOOTHING_FRAMES))
        for shrinkage in SHRINKAGES:
            settings = {"transform": name, "shrinkage": shrinkage}
            whitening = Whitening.from_covariance(covariance, centre=x.mean(axis=0), shrinkage=shrinkage)
            yield settings, transform, whitening


class CosineLDAFrameNumber(FrameNumberBaseline):
    """Cosine between a whitened window and the smoothed mean direction of every frame.

    Shrunk discriminant analysis without the lengths of window and mean. Chosen on the validation part: transform,
    shrinkage of the noise covariance, smoothing, temperature of the posterior and the decision's half width.

    Examples
    --------
    >>> x, y = np.eye(4).repeat(3, axis=0), np.arange(4).repeat(3)
    >>> CosineLDAFrameNumber(num_frames=4, tolerance=0).fit(x, y, x, y).predict(np.eye(4))
    array([0, 1, 2, 3])
    """

    name = "cosine_lda"
    smoothing_frames = (0.0, 4.0, 8.0, 12.0, 16.0)
    temperatures = (0.02, 0.04, 0.08)

    def fit(self, x_train: Array, y_train: Array, x_valid: Array, y_valid: Array) -> CosineLDAFrameNumber:
        """Take mean directions and choose the hyper-parameters."""
        x_valid, y_valid = self._start(x_train, y_train, x_valid, y_valid)
        y = np.asarray(y_train, dtype=np.int64)
        for settings, transform, whitening in _whitenings(x_train, y, self.num_frames):
            train, valid = (whitening.directions(transform(x)) for x in (x_train, x_valid))
            responses = Responses.of(train, y, self.num_frames)
            # Hyper-parameters are chosen with products in single precision, answers are given in double.
            single = valid.astype(np.float32)
            for smoothing in self.smoothing_frames:
                means = to_unit_length(responses.means(smoothing))
                tried = {**settings, "smoothing_frames": smoothing}
                cosine = single @ means.astype(np.float32).T
                if self._try_temperatures(cosine, y_valid, tried, self.temperatures):
                    self._transform, self._whitening, self._means = transform, whitening, means
        return self

    def posterior(self, x: Array) -> FloatArray:
        """``(N, num_frames)`` posterior at the chosen temperature."""
        cosine = self._whitening.directions(self._transform(x)) @ self._means.T
        return self._softmax(cosine, self.chosen["temperature"])


class WhitenedKNNFrameNumber(FrameNumberBaseline):
    """The k training windows of the nearest direction in whitened space vote with 1/rank.

    Chosen on the validation part: transform, shrinkage of the noise covariance, k and the decision's half width.

    Examples
    --------
    >>> x, y = np.eye(4).repeat(3, axis=0), np.arange(4).repeat(3)
    >>> WhitenedKNNFrameNumber(num_frames=4, tolerance=0).fit(x, y, x, y).predict(np.eye(4))
    array([0, 1, 2, 3])
    """

    name = "whitened_knn"
    neighbours = (1, 5, 10, 20, 50, 100)

    def fit(self, x_train: Array, y_train: Array, x_valid: Array, y_valid: Array) -> WhitenedKNNFrameNumber:
        """Store the training directions and choose the hyper-parameters."""
        x_valid, y_valid = self._start(x_train, y_train, x_valid, y_valid)
        self._y = np.asarray(y_train, dtype=np.int64)
        for settings, transform, whitening in _whitenings(x_train, self._y, self.num_frames):
            train, valid = (whitening.directions(transform(x)) for x in (x_train, x_valid))
            nearest = nearest_rows(valid, train, max(self.neighbours))["euclidean"]
            if self._try_votes(self._y[nearest], y_valid, settings, self.neighbours):
                self._transform, self._whitening, self._stored = transform, whitening, train
        return self

    def posterior(self, x: Array) -> FloatArray:
        """``(N, num_frames)`` share of the votes."""
        directions = self._whitening.directions(self._transform(x))
        nearest = nearest_rows(directions, self._stored, self.chosen["neighbours"])["euclidean"]
        return rank_votes(self._y[nearest], self.num_frames)
