"""Mean responses per class and the covariance of what is left: noise, and the space in which it is white."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular
from scipy.ndimage import gaussian_filter1d
from scipy.sparse import csr_array

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Responses:
    """Windows summed per class, for example per movie frame."""

    x: FloatArray  # (N, F) features
    counts: FloatArray  # (K,) windows of every class
    sums: FloatArray  # (K, F) sum of their features

    @classmethod
    def of(cls, x: FloatArray, y: NDArray[np.int64], num_classes: int) -> Responses:
        """Sum features ``(N, F)`` by class ``(N,)``."""
        counts = np.bincount(y, minlength=num_classes).astype(np.float64)
        of_class = csr_array((np.ones(len(y)), (y, np.arange(len(y)))), shape=(num_classes, len(y)))
        return cls(x, counts, of_class @ x)

    def means(self, smoothing: float) -> FloatArray:  # (K, F)
        """Mean response per class, averaged over neighbouring classes with a Gaussian of that standard deviation.

        Without `smoothing` (0) the plain means; the overall mean where no window is within reach.
        """
        counts, sums = self.counts, self.sums
        if smoothing > 0:
            sums = gaussian_filter1d(sums, smoothing, axis=0, mode="constant")
            counts = gaussian_filter1d(counts, smoothing, mode="constant")
        reached = counts > 1e-9
        means = sums / np.where(reached, counts, 1.0)[:, None]
        means[~reached] = self.x.mean(axis=0)
        return np.asarray(means)

    @cached_property
    def _squares(self) -> FloatArray:
        return np.asarray((self.x**2).sum(axis=0))

    @cached_property
    def _products(self) -> FloatArray:
        return np.asarray(self.x.T @ self.x)

    def residual_variance(self, means: FloatArray) -> FloatArray:  # (F,)
        """Mean squared difference of the windows from the means ``(K, F)`` of their classes."""
        explained = ((2 * self.sums - self.counts[:, None] * means) * means).sum(axis=0)
        # Rounding could leave a constant feature a hair below 0.
        return np.maximum(self._squares - explained, 0.0) / len(self.x)

    def residual_covariance(self, means: FloatArray) -> FloatArray:  # (F, F)
        """Mean product of the windows' differences from the means ``(K, F)`` of their classes."""
        cross = (self.sums - 0.5 * self.counts[:, None] * means).T @ means
        return np.asarray((self._products - cross - cross.T) / len(self.x))


@dataclass(frozen=True)
class Whitening:
    """A linear map after which noise has unit covariance."""

    centre: FloatArray  # (F,) subtracted first: the mean of the training features
    factor: FloatArray  # (F, F) lower Cholesky factor of the shrunk noise covariance

    @classmethod
    def from_covariance(
        cls, covariance: FloatArray, *, centre: FloatArray, shrinkage: float, variance_floor: float = 0.05
    ) -> Whitening:
        """Shrink a noise covariance ``(F, F)`` towards its diagonal by a share of 0 to 1.

        `variance_floor`, a share of the average variance, is added to every variance: nearly silent neurons do not
        decide alone.
        """
        variance = np.diag(covariance)
        shrunk = (1 - shrinkage) * covariance
        np.fill_diagonal(shrunk, variance + variance_floor * variance.mean() + 1e-9)
        return cls(centre, cholesky(shrunk, lower=True))

    def __call__(self, x: FloatArray) -> FloatArray:  # (N, F)
        """Whiten features ``(N, F)``."""
        return np.asarray(solve_triangular(self.factor, (x - self.centre).T, lower=True).T)

    def directions(self, x: FloatArray) -> FloatArray:  # (N, F)
        """Whiten features and divide each row by its length; the centre itself stays 0."""
        return to_unit_length(self(x))


def to_unit_length(x: FloatArray) -> FloatArray:
    """Divide rows by their length; zeros stay."""
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x / np.where(length > 0, length, 1.0))
