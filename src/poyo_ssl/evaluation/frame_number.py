"""Simple decoders of the movie frame number: nearest neighbours, naive Bayes, shrunk discriminants."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve
from scipy.ndimage import gaussian_filter1d

from poyo_ssl.evaluation.features import Array, FeatureScaler, FloatArray, IntArray, check_parts

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

    def _start(self, x_train: Array, y_train: Array, x_valid: Array, y_valid: Array) -> None:
        check_parts(x_train, y_train, x_valid, y_valid, num_classes=self.num_frames)
        self._seen = np.bincount(y_train, minlength=self.num_frames) > 0
        self._best = -np.inf

    def _try_rules(self, mass: FloatArray, y_valid: Array, settings: dict[str, Any]) -> bool:
        """Score every decision rule; keep and report settings that are better than all before."""
        better = False
        for half_width in dict.fromkeys((0, self.tolerance // 2, self.tolerance)):
            score = self.score(decide(mass, half_width, self._seen), y_valid)
            if score > self._best:
                self._best, better = score, True
                self.chosen = {**settings, "half_width": half_width}
        return better

    def _softmax(self, scores: FloatArray, temperature: float) -> FloatArray:
        scaled = np.where(self._seen, scores, -np.inf) / temperature
        mass = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        return np.asarray(mass / mass.sum(axis=1, keepdims=True))


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
    total = np.concatenate([np.zeros((len(mass), 1)), np.cumsum(mass, axis=1)], axis=1)
    column = np.arange(mass.shape[1])
    high, low = np.minimum(column + half_width + 1, mass.shape[1]), np.maximum(column - half_width, 0)
    # A hair of the frame's own mass chooses the peak on the plateau that a box sum makes of it.
    gain = total[:, high] - total[:, low] + 1e-6 * mass
    return np.argmax(np.where(seen, gain, -np.inf), axis=1)


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
    metrics = ("euclidean", "cosine", "correlation")

    def fit(self, x_train: Array, y_train: Array, x_valid: Array, y_valid: Array) -> KNNFrameNumber:
        """Store the training windows and choose transform, distance, k and half width."""
        self._start(x_train, y_train, x_valid, y_valid)
        self._y = np.asarray(y_train, dtype=np.int64)
        for name, transform in candidate_transforms(x_train).items():
            for metric in self.metrics:
                stored = _embed(transform(x_train), metric)
                nearest = nearest_rows(_embed(transform(x_valid), metric), stored, max(self.neighbours))
                for k in self.neighbours:
                    settings = {"transform": name, "metric": metric, "neighbours": k}
                    if self._try_rules(self._votes(nearest[:, :k]), y_valid, settings):
                        self._transform, self._stored = transform, stored
        return self

    def posterior(self, x: Array) -> FloatArray:
        """``(N, num_frames)`` share of the votes."""
        embedded = _embed(self._transform(x), self.chosen["metric"])
        return self._votes(nearest_rows(embedded, self._stored, self.chosen["neighbours"]))

    def _votes(self, nearest: IntArray) -> FloatArray:
        return rank_votes(self._y[nearest], self.num_frames)


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
    weight = 1.0 / np.arange(1, numbers.shape[1] + 1)
    mass = np.zeros((len(numbers), num_frames))
    votes = np.broadcast_to(weight / weight.sum(), numbers.shape)
    np.add.at(mass, (np.arange(len(numbers))[:, None], numbers), votes)
    return mass


def _embed(x: FloatArray, metric: str) -> FloatArray:
    """Turn cosine and correlation distance into euclidean distance of unit vectors."""
    if metric == "euclidean":
        return x
    if metric == "correlation":
        x = x - x.mean(axis=1, keepdims=True)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 0, length, 1.0)


def nearest_rows(x: FloatArray, stored: FloatArray, k: int) -> IntArray:
    """Rows of the k nearest stored vectors by euclidean distance, ``(N, k)``, nearest first.

    Examples
    --------
    >>> nearest_rows(np.array([[0.9]]), np.array([[0.0], [1.0], [5.0]]), 2)
    array([[1, 0]])
    """
    distance = (stored**2).sum(axis=1) - 2 * (x @ stored.T)  # squared, less a term that the row shares
    k = min(k, len(stored))
    rows = np.argpartition(distance, k - 1, axis=1)[:, :k]
    order = np.argsort(np.take_along_axis(distance, rows, axis=1), axis=1, kind="stable")
    return np.take_along_axis(rows, order, axis=1)


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
    def _discriminants(self, x: FloatArray, means: FloatArray, y: IntArray) -> Iterator[Discriminant]:
        """Yield candidates from training features ``(N, F)`` and means ``(num_frames, F)``."""

    def fit(self, x_train: Array, y_train: Array, x_valid: Array, y_valid: Array) -> LinearFrameNumber:
        """Take smoothed mean responses and choose the hyper-parameters."""
        self._start(x_train, y_train, x_valid, y_valid)
        y = np.asarray(y_train, dtype=np.int64)
        for name, transform in candidate_transforms(x_train).items():
            x, held_out = transform(x_train), transform(x_valid)
            for smoothing in self.smoothing_frames:
                means = smooth_means(x, y, self.num_frames, smoothing)
                for settings, weights, bias in self._discriminants(x, means, y):
                    scores = held_out @ weights.T + bias
                    for temperature in self.temperatures:
                        tried = {
                            "transform": name,
                            "smoothing_frames": smoothing,
                            **settings,
                            "temperature": temperature,
                        }
                        if self._try_rules(self._softmax(scores, temperature), y_valid, tried):
                            self._transform, self._weights, self._bias = transform, weights, bias
        return self

    def posterior(self, x: Array) -> FloatArray:
        """``(N, num_frames)`` posterior at the chosen temperature."""
        return self._softmax(self._transform(x) @ self._weights.T + self._bias, self.chosen["temperature"])


def smooth_means(x: FloatArray, y: IntArray, num_frames: int, smoothing_frames: float) -> FloatArray:
    """Mean response per frame, averaged over neighbouring frames with a Gaussian.

    Parameters
    ----------
    x : ndarray
        ``(N, F)`` features.
    y : ndarray
        ``(N,)`` frame numbers.
    num_frames : int
        Number of frames L.
    smoothing_frames : float
        Standard deviation of the Gaussian in frames; 0 leaves the plain means.

    Returns
    -------
    ndarray
        ``(L, F)``; the overall mean where no window is within reach.

    Examples
    --------
    >>> smooth_means(np.array([[1.0], [3.0], [8.0]]), np.array([0, 0, 2]), 3, 0.0).ravel()
    array([2., 4., 8.])
    """
    counts = np.bincount(y, minlength=num_frames).astype(np.float64)
    sums = np.zeros((num_frames, x.shape[1]))
    np.add.at(sums, y, x)
    if smoothing_frames > 0:
        sums = gaussian_filter1d(sums, smoothing_frames, axis=0, mode="constant")
        counts = gaussian_filter1d(counts, smoothing_frames, mode="constant")
    reached = counts > 1e-9
    means = sums / np.where(reached, counts, 1.0)[:, None]
    means[~reached] = x.mean(axis=0)
    return means


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

    def _discriminants(self, x: FloatArray, means: FloatArray, y: IntArray) -> Iterator[Discriminant]:
        variance = ((x - means[y]) ** 2).mean(axis=0)
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

    def _discriminants(self, x: FloatArray, means: FloatArray, y: IntArray) -> Iterator[Discriminant]:
        residual = x - means[y]
        covariance = residual.T @ residual / len(x)
        variance = np.diag(covariance).copy()
        for shrinkage in self.shrinkages:
            shrunk = (1 - shrinkage) * covariance
            np.fill_diagonal(shrunk, variance + self.variance_floor * variance.mean() + 1e-9)
            weights = cho_solve(cho_factor(shrunk, lower=True), means.T).T
            yield {"shrinkage": shrinkage}, weights, -0.5 * (weights * means).sum(axis=1)
