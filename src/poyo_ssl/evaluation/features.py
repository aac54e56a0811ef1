"""Feature arrays for the simple decoders: windows averaged in time bins, z-scored on the training part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import median_abs_deviation

from poyo_ssl.errors import ConfigError, SplitError

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def bin_features(dff_windows: Array, num_bins: int) -> FloatArray:
    """Average windows within time bins of (nearly) equal length.

    Parameters
    ----------
    dff_windows : ndarray
        ``(B, T, C)`` dF/F or events.
    num_bins : int
        Number of bins, at most T. Where T is no multiple of it, bins differ by one frame.

    Returns
    -------
    ndarray
        ``(B, C * num_bins)`` float64; the bins of one neuron lie beside each other.

    Raises
    ------
    ConfigError
        If `num_bins` is not in 1 to T.

    Examples
    --------
    >>> bin_features(np.arange(6.0).reshape(1, 6, 1), 3)
    array([[0.5, 2.5, 4.5]])
    """
    num_windows, num_frames, num_units = dff_windows.shape
    if not 1 <= num_bins <= num_frames:
        raise ConfigError(
            f"{num_bins} time bins for windows of {num_frames} frames",
            allowed=f"1 to {num_frames}",
            fix="change num_bins",
        )
    edges = np.arange(num_bins + 1) * num_frames // num_bins
    sums = np.add.reduceat(dff_windows, edges[:-1], axis=1, dtype=np.float64)
    means = sums / np.diff(edges)[:, None]  # (B, num_bins, C)
    return np.ascontiguousarray(means.transpose(0, 2, 1)).reshape(num_windows, num_units * num_bins)


@dataclass(frozen=True)
class FeatureScaler:
    """Z-scores features with the moments of the training part; constant features become 0.

    Attributes
    ----------
    mean, scale : ndarray
        ``(F,)`` mean and standard deviation of the training features (scale infinite where that is 0).

    Examples
    --------
    >>> scaler = FeatureScaler.fit(np.array([[0.0, 5.0], [2.0, 5.0]]))
    >>> scaler(np.array([[3.0, 9.0]]))
    array([[2., 0.]])
    """

    mean: FloatArray
    scale: FloatArray

    @classmethod
    def fit(cls, x_train: Array) -> FeatureScaler:
        """Take the moments of ``(N, F)`` training features."""
        mean, scale = x_train.mean(axis=0, dtype=np.float64), x_train.std(axis=0, dtype=np.float64)
        # The deviation of a constant is rounding noise, not exactly 0.
        constant = scale <= 1e-12 * np.maximum(1.0, np.abs(mean))
        return cls(mean, np.where(constant, np.inf, scale))

    @classmethod
    def fit_robust(cls, x_train: Array) -> FeatureScaler:
        """Take median and scaled median absolute deviation, or the standard deviation where the latter is 0.

        Examples
        --------
        >>> scaler = FeatureScaler.fit_robust(np.array([[-1.0], [0.0], [1.0], [2.0], [900.0]]))
        >>> scaler(np.array([[1 + 1.4826]])).round(4)
        array([[1.]])
        """
        plain = cls.fit(x_train)
        middle = np.median(x_train, axis=0).astype(np.float64)
        deviation = median_abs_deviation(x_train, axis=0, scale="normal")
        useless = np.isinf(plain.scale) | (deviation <= 1e-12 * np.maximum(1.0, np.abs(middle)))
        return cls(middle, np.where(useless, plain.scale, deviation))

    def __call__(self, x: Array) -> FloatArray:
        """Return z-scored ``(N, F)`` features."""
        return np.asarray((x - self.mean) / self.scale, dtype=np.float64)


def check_parts(x_train: Array, y_train: Array, x_valid: Array, y_valid: Array, *, num_classes: int) -> None:
    """Check features ``(N, F)`` and integer targets ``(N,)`` of both parts.

    Raises
    ------
    SplitError
        If a part has no windows.
    ConfigError
        If shapes disagree, a feature is NaN or infinite, or a target is not an integer of 0 to
        ``num_classes - 1``; the message names the first offender.

    Examples
    --------
    >>> x, y = np.zeros((2, 3)), np.array([0, 7])
    >>> check_parts(x, y, x, y, num_classes=4)
    Traceback (most recent call last):
    poyo_ssl.errors.ConfigError: target 7 of training window 1 (allowed: 0 to 3); check the labels
    """
    for part, x, y in (("training", x_train, y_train), ("validation", x_valid, y_valid)):
        if len(y) == 0:
            raise SplitError(f"no windows in the {part} part of a baseline", fix="check the split's intervals")
        if x.ndim != 2 or len(x) != len(y) or x.shape[1] != x_train.shape[1]:
            raise ConfigError(
                f"{part} features of shape {x.shape} for {len(y)} targets",
                allowed=f"({len(y)}, {x_train.shape[-1]})",
                fix="build both parts with bin_features",
            )
        finite = np.isfinite(x).all(axis=1)
        if not finite.all():
            raise ConfigError(f"NaN or infinite feature in {part} window {int(np.argmin(finite))}", fix="leave it out")
        wrong = (y < 0) | (y >= num_classes) | (y != np.floor(y))
        if wrong.any():
            row = int(np.argmax(wrong))
            raise ConfigError(
                f"target {y[row]} of {part} window {row}", allowed=f"0 to {num_classes - 1}", fix="check the labels"
            )
