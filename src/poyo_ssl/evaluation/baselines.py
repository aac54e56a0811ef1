"""Simple decoders that every model is compared with, behind one small interface.

A baseline is fitted on feature arrays of one recording, ``fit(x_train, y_train, x_valid, y_valid)``, and
predicts with ``predict(x)``. What it learns comes from the training part alone; the validation part only
chooses between hyper-parameters, as it does for a model. Features are windows of dF/F (or events) averaged in
a few time bins (`bin_features`); a baseline scales them itself, with the training part's moments.

Targets are integers: a class for gratings, a frame number for movies, and for reconstruction the row of
the true frame in the stack of movie frames that the baseline was given.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.svm import SVC

from poyo_ssl.evaluation.features import Array, FeatureScaler, IntArray, bin_features, check_parts
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
    FrameNumberBaseline,
    KNNFrameNumber,
    NaiveBayesFrameNumber,
    ShrunkLDAFrameNumber,
    within_tolerance,
)
from poyo_ssl.evaluation.whitened import CosineLDAFrameNumber, WhitenedKNNFrameNumber

__all__ = [
    "Baseline",
    "BlurredMean",
    "ClassBaseline",
    "CosineLDAFrameNumber",
    "FrameLookup",
    "FrameNumberBaseline",
    "GreyFrame",
    "KNNFrameNumber",
    "MajorityClass",
    "MeanFrame",
    "NaiveBayesFrameNumber",
    "PixelMedian",
    "RidgeFrames",
    "ShrunkLDAFrameNumber",
    "WhitenedKNNFrameNumber",
    "bin_features",
    "frame_baselines",
    "frame_number_baselines",
    "gratings_baselines",
    "mean_training_frame",
    "nearest_training_frame",
    "within_tolerance",
]


class Baseline(Protocol):
    """What every baseline offers.

    Attributes
    ----------
    name : str
        Text for tables and predictions files.
    chosen : dict
        Hyper-parameters that the validation part chose, after `fit`.
    """

    name: str
    chosen: dict[str, Any]

    def fit(self, x_train: Array, y_train: Array, x_valid: Array, y_valid: Array) -> Baseline:
        """Fit on ``(N, F)`` features and ``(N,)`` targets; the validation part chooses hyper-parameters."""
        ...

    def predict(self, x: Array) -> Array:
        """Predict ``(N,)`` integers, or ``(N, H, W)`` uint8 frames, for ``(N, F)`` features."""
        ...


class MajorityClass:
    """The most frequent class of the training part; the lowest among equals.

    Parameters
    ----------
    num_classes : int
        Number of classes.

    Examples
    --------
    >>> x, y = np.zeros((3, 1)), np.array([2, 1, 2])
    >>> MajorityClass(num_classes=8).fit(x, y, x, y).predict(x)
    array([2, 2, 2])
    """

    name = "majority"

    def __init__(self, *, num_classes: int) -> None:
        self.num_classes = num_classes
        self.chosen: dict[str, Any] = {}

    def fit(self, x_train: Array, y_train: Array, x_valid: Array, y_valid: Array) -> MajorityClass:
        """Count the classes of the training part."""
        check_parts(x_train, y_train, x_valid, y_valid, num_classes=self.num_classes)
        self._class = int(np.bincount(y_train).argmax())
        return self

    def predict(self, x: Array) -> IntArray:
        """Return ``(N,)`` times the same class."""
        return np.full(len(x), self._class, dtype=np.int64)


class ClassBaseline:
    """A scikit-learn classifier on z-scored features, its one hyper-parameter chosen by validation accuracy.

    Parameters
    ----------
    name : str
        Text for tables.
    num_classes : int
        Number of classes.
    candidates : mapping
        Text of the hyper-parameter -> unfitted classifier.

    Examples
    --------
    >>> x, y = np.eye(4).repeat(3, axis=0), np.arange(4).repeat(3)
    >>> nearly = ClassBaseline(name="nb", num_classes=4, candidates={"default": GaussianNB()})
    >>> nearly.fit(x, y, x, y).predict(np.eye(4))
    array([0, 1, 2, 3])
    """

    def __init__(self, *, name: str, num_classes: int, candidates: Mapping[str, ClassifierMixin]) -> None:
        self.name, self.num_classes, self._candidates = name, num_classes, candidates
        self.chosen: dict[str, Any] = {}

    def fit(self, x_train: Array, y_train: Array, x_valid: Array, y_valid: Array) -> ClassBaseline:
        """Fit every candidate and keep the first of the best."""
        check_parts(x_train, y_train, x_valid, y_valid, num_classes=self.num_classes)
        self._scaler = FeatureScaler.fit(x_train)
        train, valid = self._scaler(x_train), self._scaler(x_valid)
        best = -np.inf
        for text, candidate in self._candidates.items():
            fitted = candidate.fit(train, y_train)
            accuracy = float((fitted.predict(valid) == y_valid).mean())
            if accuracy > best:
                best, self._model, self.chosen = accuracy, fitted, {"hyper_parameter": text}
        return self

    def predict(self, x: Array) -> IntArray:
        """Predict ``(N,)`` classes."""
        return np.asarray(self._model.predict(self._scaler(x)), dtype=np.int64)


def gratings_baselines(*, num_classes: int) -> tuple[Baseline, ...]:
    """Fresh baselines for the direction of gratings, the simplest first.

    Parameters
    ----------
    num_classes : int
        Number of directions.

    Returns
    -------
    tuple of Baseline
        majority, naive_bayes, shrunk_lda, logistic_regression, linear_svm.

    Examples
    --------
    >>> [b.name for b in gratings_baselines(num_classes=8)]
    ['majority', 'naive_bayes', 'shrunk_lda', 'logistic_regression', 'linear_svm']
    """
    strengths = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    candidates: Mapping[str, Mapping[str, ClassifierMixin]] = MappingProxyType(
        {
            "naive_bayes": {f"var_smoothing {v:g}": GaussianNB(var_smoothing=v) for v in (1e-2, 1e-1, 1.0)},
            "shrunk_lda": {
                "Ledoit-Wolf": LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"),
                **{f"shrinkage {s}": LinearDiscriminantAnalysis(solver="lsqr", shrinkage=s) for s in (0.5, 0.9)},
            },
            "logistic_regression": {f"C {c:g}": LogisticRegression(C=c, max_iter=2000) for c in strengths},
            "linear_svm": {f"C {c:g}": SVC(kernel="linear", C=c) for c in strengths},
        }
    )
    return (
        MajorityClass(num_classes=num_classes),
        *(ClassBaseline(name=n, num_classes=num_classes, candidates=c) for n, c in candidates.items()),
    )


def frame_number_baselines(*, num_frames: int, tolerance: int) -> tuple[Baseline, ...]:
    """Fresh baselines for the frame number of one movie.

    Parameters
    ----------
    num_frames : int
        Number of frames of the movie.
    tolerance : int
        Error in frames that still counts as right (1 s).

    Returns
    -------
    tuple of Baseline
        knn, naive_bayes, shrunk_lda, whitened_knn, cosine_lda.

    Examples
    --------
    >>> [b.name for b in frame_number_baselines(num_frames=900, tolerance=30)]
    ['knn', 'naive_bayes', 'shrunk_lda', 'whitened_knn', 'cosine_lda']
    """
    decoders: tuple[type[FrameNumberBaseline], ...] = (
        KNNFrameNumber,
        NaiveBayesFrameNumber,
        ShrunkLDAFrameNumber,
        WhitenedKNNFrameNumber,
        CosineLDAFrameNumber,
    )
    return tuple(decoder(num_frames=num_frames, tolerance=tolerance) for decoder in decoders)


def frame_baselines(frames: Array, *, tolerance: int) -> tuple[Baseline, ...]:
    """Fresh baselines for the reconstruction of movie frames.

    Parameters
    ----------
    frames : ndarray
        ``(L, H, W)`` uint8 movie frames that targets are rows of; only those in the training (and, to choose
        hyper-parameters, validation) part are used.
    tolerance : int
        Frames in one second.

    Returns
    -------
    tuple of Baseline
        grey_frame, mean_frame, pixel_median, blurred_mean, knn_lookup, naive_bayes_lookup, shrunk_lda_lookup, ridge.

    Examples
    --------
    >>> [b.name for b in frame_baselines(np.zeros((3, 16, 16), dtype=np.uint8), tolerance=30)][4:]
    ['knn_lookup', 'naive_bayes_lookup', 'shrunk_lda_lookup', 'ridge']
    """
    lookups = (KNNFrameNumber, NaiveBayesFrameNumber, ShrunkLDAFrameNumber)
    return (
        GreyFrame(frames),
        MeanFrame(frames),
        PixelMedian(frames),
        BlurredMean(frames),
        *(FrameLookup(frames, decoder=decoder, tolerance=tolerance) for decoder in lookups),
        RidgeFrames(frames),
    )
