"""Decoders of the movie frame number that compare directions in whitened feature space.

Responses to one frame vary much in their overall size: a gain that neurons share and that follows the animal's state.
Discriminant analysis takes the size of a response as evidence; the cosine in the space where the noise is white looks
at the pattern alone. Both decoders here are as simple as those of `frame_number`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import cholesky, solve_triangular

from poyo_ssl.evaluation.features import Array, FloatArray, IntArray
from poyo_ssl.evaluation.frame_number import FrameNumberBaseline, candidate_transforms
from poyo_ssl.evaluation.neighbours import nearest_rows, rank_votes
from poyo_ssl.evaluation.responses import Responses

NOISE_SMOOTHING_FRAMES = 8.0
"""Smoothing of the mean responses whose residuals are taken for noise."""
SHRINKAGES = (0.2, 0.4, 0.6)


@dataclass(frozen=True)
class Whitening:
    """A linear map after which noise has unit covariance.

    Attributes
    ----------
    centre : ndarray
        ``(F,)`` subtracted first: the mean of the training features.
    factor : ndarray
        ``(F, F)`` lower Cholesky factor of the shrunk noise covariance.

    Examples
    --------
    >>> residual = np.array([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> whitening = Whitening.fit(residual, centre=np.zeros(2), shrinkage=0.0, variance_floor=0.0)
    >>> whitening(residual).round(3)[[0, 2]]
    array([[1.414, 0.   ],
           [0.   , 1.414]])
    """

    centre: FloatArray
    factor: FloatArray

    @classmethod
    def fit(
        cls, residual: FloatArray, *, centre: FloatArray, shrinkage: float, variance_floor: float = 0.05
    ) -> Whitening:
        """Take the covariance of residuals, shrunk towards its diagonal.

        Parameters
        ----------
        residual : ndarray
            ``(N, F)`` noise: features less the mean response.
        centre : ndarray
            ``(F,)`` what to subtract from features.
        shrinkage : float
            Share of the diagonal, 0 to 1.
        variance_floor : float
            Share of the average variance added to every variance, so that nearly silent neurons do not decide alone.
        """
        covariance = residual.T @ residual / len(residual)
        return cls.from_covariance(covariance, centre=centre, shrinkage=shrinkage, variance_floor=variance_floor)

    @classmethod
    def from_covariance(
        cls, covariance: FloatArray, *, centre: FloatArray, shrinkage: float, variance_floor: float = 0.05
    ) -> Whitening:
        """Shrink a noise covariance ``(F, F)``, which is left as it is; otherwise as `fit`."""
        variance = np.diag(covariance)
        shrunk = (1 - shrinkage) * covariance
        np.fill_diagonal(shrunk, variance + variance_floor * variance.mean() + 1e-9)
        return cls(centre, cholesky(shrunk, lower=True))

    def __call__(self, x: FloatArray) -> FloatArray:
        """Return ``(N, F)`` whitened features."""
        return np.asarray(solve_triangular(self.factor, (x - self.centre).T, lower=True).T)

    def directions(self, x: FloatArray) -> FloatArray:
        """Return ``(N, F)`` whitened features of length 1; the centre itself stays 0."""
        return to_unit_length(self(x))


def to_unit_length(x: FloatArray) -> FloatArray:
    """Divide rows by their length; zeros stay.

    Examples
    --------
    >>> to_unit_length(np.array([[3.0, 4.0], [0.0, 0.0]]))
    array([[0.6, 0.8],
           [0. , 0. ]])
    """
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x / np.where(length > 0, length, 1.0))


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
