"""Simple decoders of the movie frame number: nearest neighbours, naive Bayes, shrunk discriminants.

All but the first smooth mean responses over neighbouring frames, since a movie has hundreds of frames and few repeats.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from poyo_ssl.data.responses import Responses, Whitening, to_unit_length
from poyo_ssl.evaluation.features import Array, FeatureScaler, FloatArray, IntArray, in_blocks

Settings = tuple[tuple[str, Any], ...]
"""Names and values of a decoder's hyper-parameters."""
Scores = dict[Settings, float]
"""How well each candidate decodes held-out windows: a sum over them, larger is better."""
Score = Callable[[IntArray, IntArray], float]
"""The same of predicted and true frame numbers."""
Candidates = Iterator[tuple[list[dict[str, Any]], Callable[[slice], Iterable[FloatArray]]]]
Discriminants = Iterator[tuple[dict[str, Any], FloatArray, FloatArray]]
"""Settings, weights ``(L, F)`` and bias ``(L,)`` of a linear score per frame."""


def decide(mass: FloatArray, half_width: int, seen: NDArray[np.bool_]) -> IntArray:  # (N,)
    """Choose the seen frame with the most mass ``(N, L)`` within +- `half_width` frames of it."""
    return decide_each(lambda rows: [mass[rows]], len(mass), (half_width,), seen)[0, 0]


def decide_each(
    masses: Callable[[slice], Iterable[FloatArray]],
    num_rows: int,
    half_widths: Sequence[int],
    seen: NDArray[np.bool_],  # (L,) frames that may be chosen
) -> IntArray:  # (S, H, N)
    """Decide by every mass and every half width, block by block, so that no whole mass is ever held.

    `masses` makes S arrays ``(rows, L)`` from a slice of rows, in several threads.
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
) -> dict[Metric, IntArray]:  # (N, k)
    """Rows of the k nearest stored vectors by every metric, nearest first; all metrics share one matrix product.

    'cosine' and 'correlation' are euclidean distances of unit vectors, for the latter less their mean over features; a
    vector of length 0 stays 0.
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


def rank_votes(numbers: IntArray, num_frames: int) -> FloatArray:  # (N, num_frames), rows sum to 1
    """Let the frame numbers ``(N, k)`` of neighbours, nearest first, vote with 1/rank."""
    num_rows, k = numbers.shape
    weight = 1.0 / np.arange(1, k + 1)
    votes = np.broadcast_to(weight / weight.sum(), numbers.shape)
    place = np.arange(num_rows)[:, None] * num_frames + numbers
    mass = np.bincount(place.ravel(), votes.ravel(), minlength=num_rows * num_frames)
    return np.asarray(mass, np.float64).reshape(num_rows, num_frames)


def within_tolerance(tolerance: int) -> Score:
    """Return a score: the number of frame numbers within `tolerance`; among equals, the sum of errors decides."""

    def score(predicted: IntArray, true: IntArray) -> float:
        error = np.abs(predicted - true)
        # The second term stays below the weight of one window.
        return float((error <= tolerance).sum() - 1e-9 * error.sum())

    return score


def fit_transform(name: str, x: Array) -> Callable[[Array], FloatArray]:
    """Fit one of `transform_names` to features ``(N, F)``.

    'asinh' is a robust z-score, its inverse hyperbolic sine, and a z-score: large transients no longer drown the rest.
    """
    if name == "zscore":
        return FeatureScaler.fit(x)
    if name == "sqrt":
        return lambda values: np.sqrt(np.maximum(values, 0), dtype=np.float64)
    if name == "none":
        return lambda values: np.asarray(values, dtype=np.float64)
    robust = FeatureScaler.fit_robust(x)
    compressed = FeatureScaler.fit(np.arcsinh(robust(x)))
    return lambda values: compressed(np.arcsinh(robust(values)))


def transform_names(x: Array) -> tuple[str, ...]:
    """Name the transforms that decoders choose among; the square root evens out the variance of counts."""
    return ("zscore", "sqrt") if x.min() >= 0 else ("zscore", "none", "asinh")


class FrameNumberBaseline(ABC):
    """A decoder of frame numbers that gives every frame a posterior mass.

    The decoded frame is the one with the most mass within +- some frames of it: the Bayes decision when errors up to
    that many frames count as right. That half width is a hyper-parameter too: 0, half or all of `tolerance` (1 s).
    Frames absent from the fitted windows are never decoded.
    """

    name: str

    def __init__(self, *, num_frames: int, tolerance: int, score: Score | None = None) -> None:
        self.num_targets, self.tolerance = num_frames, tolerance
        self.score = score or within_tolerance(tolerance)
        self.settings: dict[str, Any] = {}

    def scores(self, x: Array, y: IntArray, x_held: Array, y_held: IntArray) -> Scores:
        """Score every candidate, fitted on features ``(N, F)`` and frame numbers ``(N,)``, on held-out windows."""
        self._seen = np.bincount(y, minlength=self.num_targets) > 0
        half_widths = tuple(dict.fromkeys((0, self.tolerance // 2, self.tolerance)))
        found: Scores = {}
        for tried, masses in self._candidates(x, y, x_held):
            answers = decide_each(masses, len(y_held), half_widths, self._seen)
            for settings, of_rules in zip(tried, answers, strict=True):
                for half_width, answer in zip(half_widths, of_rules, strict=True):
                    found[*settings.items(), ("half_width", half_width)] = self.score(answer, y_held)
        return found

    def fit(self, x: Array, y: IntArray, settings: Settings) -> FrameNumberBaseline:
        """Fit with the settings chosen."""
        self._seen = np.bincount(y, minlength=self.num_targets) > 0
        self.settings = dict(settings)
        self._fit(x, y)
        return self

    def predict(self, x: Array) -> IntArray:  # (N,)
        """Decode frame numbers."""
        return decide(self._mass(x), self.settings["half_width"], self._seen)

    @abstractmethod
    def _candidates(self, x: Array, y: IntArray, x_held: Array) -> Candidates:
        """Yield settings, and what makes the mass of each of them from a slice of held-out rows."""

    @abstractmethod
    def _fit(self, x: Array, y: IntArray) -> None: ...

    @abstractmethod
    def _mass(self, x: Array) -> FloatArray:  # (N, num_targets)
        """Mass of every frame, with rows that sum to 1."""

    def _softmax(self, scores: FloatArray, temperature: float) -> FloatArray:
        mass = np.exp(self._below_peak(scores) / temperature)
        return mass / mass.sum(axis=1, keepdims=True)

    def _below_peak(self, scores: Array) -> FloatArray:
        seen = scores if self._seen.all() else np.where(self._seen, scores, -np.inf)
        return np.subtract(seen, seen.max(axis=1, keepdims=True), dtype=np.float64)

    def _softmaxes(self, scores: Array, temperatures: Sequence[float]) -> Callable[[slice], Iterator[FloatArray]]:
        def masses(rows: slice) -> Iterator[FloatArray]:
            below_peak = self._below_peak(scores[rows])
            for temperature in temperatures:
                mass = below_peak / temperature
                yield np.exp(mass, out=mass)  # decisions do not depend on the sum

        return masses

    def _votes(self, numbers: IntArray, neighbours: Sequence[int]) -> Callable[[slice], Iterator[FloatArray]]:
        return lambda rows: (rank_votes(numbers[rows, :k], self.num_targets) for k in neighbours)


def _with_each(settings: dict[str, Any], name: str, values: Iterable[Any]) -> list[dict[str, Any]]:
    return [{**settings, name: value} for value in values]


class KNNFrameNumber(FrameNumberBaseline):
    """The k nearest windows vote for their frame number, with votes 1/rank."""

    name = "knn"
    neighbours = (1, 5, 10, 20, 50, 100)
    metrics: tuple[Metric, ...] = ("euclidean", "cosine", "correlation")

    def _candidates(self, x: Array, y: IntArray, x_held: Array) -> Candidates:
        for name in transform_names(x):
            transform = fit_transform(name, x)
            nearest = nearest_rows(transform(x_held), transform(x), max(self.neighbours), self.metrics)
            for metric, rows in nearest.items():
                tried = _with_each({"transform": name, "metric": metric}, "neighbours", self.neighbours)
                yield tried, self._votes(y[rows], self.neighbours)

    def _fit(self, x: Array, y: IntArray) -> None:
        self._transform = fit_transform(self.settings["transform"], x)
        self._stored, self._y = self._transform(x), y

    def _mass(self, x: Array) -> FloatArray:
        metric = self.settings["metric"]
        nearest = nearest_rows(self._transform(x), self._stored, self.settings["neighbours"], (metric,))[metric]
        return rank_votes(self._y[nearest], self.num_targets)


class LinearFrameNumber(FrameNumberBaseline):
    """A linear score per frame from smoothed mean responses; all seen frames are equally likely beforehand.

    A temperature of the posterior is chosen too: independence makes it overconfident.
    """

    smoothing_frames = (0.0, 2.0, 4.0, 8.0, 12.0, 16.0)
    temperatures = (1.0, 4.0, 16.0)

    @abstractmethod
    def _discriminants(self, responses: Responses, means: FloatArray) -> Discriminants:
        """Yield settings, weights and bias of candidates from responses and smoothed means."""

    def _candidates(self, x: Array, y: IntArray, x_held: Array) -> Candidates:
        for name in transform_names(x):
            transform, centre, responses = self._responses(name, x, y)
            # Hyper-parameters are chosen with products in single precision, answers are given in double.
            held_out = (transform(x_held) - centre).astype(np.float32)
            for smoothing in self.smoothing_frames:
                for added, weights, bias in self._discriminants(responses, responses.means(smoothing)):
                    settings = {"transform": name, "smoothing_frames": smoothing, **added}
                    scores = held_out @ weights.astype(np.float32).T + bias.astype(np.float32)
                    tried = _with_each(settings, "temperature", self.temperatures)
                    yield tried, self._softmaxes(scores, self.temperatures)

    def _responses(self, name: str, x: Array, y: IntArray) -> tuple[Callable[[Array], FloatArray], Array, Responses]:
        transform = fit_transform(name, x)
        values = transform(x)
        centre = values.mean(axis=0)  # changes no score's differences, and products lose no digits to an offset
        return transform, centre, Responses.of(values - centre, y, self.num_targets)

    def _fit(self, x: Array, y: IntArray) -> None:
        self._transform, self._centre, responses = self._responses(self.settings["transform"], x, y)
        candidates = self._discriminants(responses, responses.means(self.settings["smoothing_frames"]))
        self._weights, self._bias = next((w, b) for added, w, b in candidates if added.items() <= self.settings.items())

    def _mass(self, x: Array) -> FloatArray:
        scores = (self._transform(x) - self._centre) @ self._weights.T + self._bias
        return self._softmax(scores, self.settings["temperature"])


class NaiveBayesFrameNumber(LinearFrameNumber):
    """Features are independent and Gaussian given the frame, with one variance per feature, pooled over frames.

    A share of the average variance is added to it, so that nearly silent neurons do not decide alone.
    """

    name = "naive_bayes"
    variance_floors = (0.03, 0.3, 1.0)

    def _discriminants(self, responses: Responses, means: FloatArray) -> Discriminants:
        variance = responses.residual_variance(means)
        for floor in self.variance_floors:
            precision = 1.0 / (variance + floor * variance.mean() + 1e-9)
            weights = means * precision
            yield {"variance_floor": floor}, weights, -0.5 * (weights * means).sum(axis=1)


class ShrunkLDAFrameNumber(LinearFrameNumber):
    """Gaussian given the frame, with one covariance for all, shrunk to its diagonal; naive Bayes is the share 1."""

    name = "shrunk_lda"
    shrinkages = (0.05, 0.2, 0.5, 0.8)
    variance_floor = 0.05

    def _discriminants(self, responses: Responses, means: FloatArray) -> Discriminants:
        covariance = responses.residual_covariance(means)
        variance = np.diag(covariance).copy()
        for shrinkage in self.shrinkages:
            shrunk = (1 - shrinkage) * covariance
            np.fill_diagonal(shrunk, variance + self.variance_floor * variance.mean() + 1e-9)
            # One product with the inverse is faster than solving for as many means as a movie has frames.
            weights = means @ cho_solve(cho_factor(shrunk, lower=True), np.eye(len(shrunk)))
            yield {"shrinkage": shrinkage}, weights, -0.5 * (weights * means).sum(axis=1)


class WhitenedFrameNumber(FrameNumberBaseline):
    """Decodes from the directions of windows in a space where noise is white."""

    noise_smoothing_frames = 8.0  # of the mean responses whose residuals are taken for noise
    shrinkages = (0.2, 0.4, 0.6)

    def _noise(self, name: str, x: Array, y: IntArray) -> tuple[Callable[[Array], FloatArray], FloatArray, FloatArray]:
        """Transform, centre and covariance of the noise."""
        transform = fit_transform(name, x)
        values = transform(x)
        responses = Responses.of(values, y, self.num_targets)
        covariance = responses.residual_covariance(responses.means(self.noise_smoothing_frames))
        return transform, values.mean(axis=0), covariance

    def _candidates(self, x: Array, y: IntArray, x_held: Array) -> Candidates:
        for name in transform_names(x):
            transform, centre, covariance = self._noise(name, x, y)
            for shrinkage in self.shrinkages:
                whitening = Whitening.from_covariance(covariance, centre=centre, shrinkage=shrinkage)
                directions, held_out = (whitening.directions(transform(values)) for values in (x, x_held))
                yield from self._decoders({"transform": name, "shrinkage": shrinkage}, directions, held_out, y)

    @abstractmethod
    def _decoders(
        self, settings: dict[str, Any], directions: FloatArray, held_out: FloatArray, y: IntArray
    ) -> Candidates:
        """As `_candidates`, in one whitened space."""

    def _fit(self, x: Array, y: IntArray) -> None:
        self._transform, centre, covariance = self._noise(self.settings["transform"], x, y)
        self._whitening = Whitening.from_covariance(covariance, centre=centre, shrinkage=self.settings["shrinkage"])
        self._y, self._stored = y, self._directions(x)

    def _directions(self, x: Array) -> FloatArray:
        return self._whitening.directions(self._transform(x))


class CosineLDAFrameNumber(WhitenedFrameNumber):
    """Cosine to the smoothed mean direction of every frame: discriminant analysis without lengths."""

    name = "cosine_lda"
    smoothing_frames = (0.0, 4.0, 8.0, 12.0, 16.0)
    temperatures = (0.02, 0.04, 0.08)

    def _decoders(
        self, settings: dict[str, Any], directions: FloatArray, held_out: FloatArray, y: IntArray
    ) -> Candidates:
        responses = Responses.of(directions, y, self.num_targets)
        # Hyper-parameters are chosen with products in single precision, answers are given in double.
        single = held_out.astype(np.float32)
        for smoothing in self.smoothing_frames:
            means = to_unit_length(responses.means(smoothing))
            tried = _with_each({**settings, "smoothing_frames": smoothing}, "temperature", self.temperatures)
            yield tried, self._softmaxes(single @ means.astype(np.float32).T, self.temperatures)

    def _fit(self, x: Array, y: IntArray) -> None:
        super()._fit(x, y)
        responses = Responses.of(self._stored, y, self.num_targets)
        self._means = to_unit_length(responses.means(self.settings["smoothing_frames"]))

    def _mass(self, x: Array) -> FloatArray:
        return self._softmax(self._directions(x) @ self._means.T, self.settings["temperature"])


class WhitenedKNNFrameNumber(WhitenedFrameNumber):
    """The k windows of the nearest direction vote with 1/rank."""

    name = "whitened_knn"
    neighbours = (1, 5, 10, 20, 50, 100)

    def _decoders(
        self, settings: dict[str, Any], directions: FloatArray, held_out: FloatArray, y: IntArray
    ) -> Candidates:
        nearest = nearest_rows(held_out, directions, max(self.neighbours))["euclidean"]
        yield _with_each(settings, "neighbours", self.neighbours), self._votes(y[nearest], self.neighbours)

    def _mass(self, x: Array) -> FloatArray:
        nearest = nearest_rows(self._directions(x), self._stored, self.settings["neighbours"])["euclidean"]
        return rank_votes(self._y[nearest], self.num_targets)
