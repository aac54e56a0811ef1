"""Mean responses to movie frames, smoothed over neighbouring frames, and the noise around them, from sums per frame.

Smoothed means and residual (co)variances for any smoothing follow from the same sums, without another pass over the
windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.sparse import csr_array

from poyo_ssl.evaluation.features import FloatArray, IntArray


@dataclass(frozen=True)
class Responses:
    """Windows summed per movie frame.

    Attributes
    ----------
    x : ndarray
        ``(N, F)`` features.
    counts : ndarray
        ``(L,)`` windows of every frame.
    sums : ndarray
        ``(L, F)`` sum of their features.

    Examples
    --------
    >>> responses = Responses.of(np.array([[1.0], [3.0], [8.0]]), np.array([0, 0, 2]), 3)
    >>> responses.means(0.0).ravel(), responses.residual_variance(responses.means(0.0)).round(3)
    (array([2., 4., 8.]), array([0.667]))
    """

    x: FloatArray
    counts: FloatArray
    sums: FloatArray

    @classmethod
    def of(cls, x: FloatArray, y: IntArray, num_frames: int) -> Responses:
        """Sum features ``(N, F)`` with frame numbers ``(N,)``."""
        counts = np.bincount(y, minlength=num_frames).astype(np.float64)
        of_frame = csr_array((np.ones(len(y)), (y, np.arange(len(y)))), shape=(num_frames, len(y)))
        return cls(x, counts, of_frame @ x)

    def means(self, smoothing_frames: float) -> FloatArray:
        """Mean response per frame, averaged over neighbouring frames with a Gaussian.

        Parameters
        ----------
        smoothing_frames : float
            Standard deviation of the Gaussian in frames; 0 leaves the plain means.

        Returns
        -------
        ndarray
            ``(L, F)``; the overall mean where no window is within reach.
        """
        counts, sums = self.counts, self.sums
        if smoothing_frames > 0:
            sums = gaussian_filter1d(sums, smoothing_frames, axis=0, mode="constant")
            counts = gaussian_filter1d(counts, smoothing_frames, mode="constant")
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

    def residual_variance(self, means: FloatArray) -> FloatArray:
        """``(F,)`` mean squared difference of the windows from the means ``(L, F)`` of their frames."""
        explained = ((2 * self.sums - self.counts[:, None] * means) * means).sum(axis=0)
        # Rounding could leave a constant feature a hair below 0.
        return np.maximum(self._squares - explained, 0.0) / len(self.x)

    def residual_covariance(self, means: FloatArray) -> FloatArray:
        """``(F, F)`` mean product of the windows' differences from the means ``(L, F)`` of their frames."""
        cross = (self.sums - 0.5 * self.counts[:, None] * means).T @ means
        return np.asarray((self._products - cross - cross.T) / len(self.x))
