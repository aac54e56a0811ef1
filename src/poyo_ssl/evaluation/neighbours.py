"""Nearest training windows and their votes, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from poyo_ssl.evaluation.blocks import in_blocks
from poyo_ssl.evaluation.features import FloatArray, IntArray

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
