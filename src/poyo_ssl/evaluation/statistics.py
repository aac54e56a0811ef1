"""Intervals and tests on score tables: animals are the unit, few animals get a t interval.

Scores of one animal are alike, so they are averaged first: blocks (repeats, seeds) within a recording,
recordings within an animal. With `MIN_ANIMALS_BOOTSTRAP` animals or more the interval is a hierarchical
bootstrap (animal > recording > block); below that its percentile interval covers too little (0.84 at 3
animals, 0.90 at 5), so it is the t interval on animal means. One animal has no interval over animals: compare
its repeats with `paired_interval`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from poyo_ssl.errors import ConfigError

FloatArray = npt.NDArray[np.float64]

MIN_ANIMALS_BOOTSTRAP = 10
PAIRING_COLUMNS = ("recording_id", "subject_id", "stimulus", "repeat", "seed")
"""Columns that a row of one arm and the row of the other must share; absent ones (seed) are left out."""


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval.

    Attributes
    ----------
    value : float
        The mean.
    low, high : float
        Bounds; NaN where there are too few values for any.
    n : int
        Number of independent values (animals, or pairs).
    method : {'t', 'bootstrap', 'none'}
        How the bounds were made.

    Examples
    --------
    >>> print(Interval(0.5, 0.25, 0.75, 3, "t"))
    0.500 [0.250, 0.750] (n=3, t)
    """

    value: float
    low: float
    high: float
    n: int
    method: Literal["t", "bootstrap", "none"]

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] (n={self.n}, {self.method})"


def t_bounds(values: npt.ArrayLike, level: float = 0.95) -> tuple[FloatArray, FloatArray]:
    """Bounds of Student's t interval for the mean, along the last axis.

    Parameters
    ----------
    values : array_like
        ``(..., n)`` independent values, n of 2 or more.
    level : float
        Coverage.

    Returns
    -------
    low, high : ndarray
        ``(...)``.

    Examples
    --------
    >>> low, high = t_bounds([1.0, 2.0, 3.0])
    >>> round(float(low), 3), round(float(high), 3)
    (-0.484, 4.484)
    """
    x = np.asarray(values, dtype=np.float64)
    n = x.shape[-1]
    half = stats.t.ppf((1 + level) / 2, n - 1) * x.std(axis=-1, ddof=1) / np.sqrt(n)
    mean = x.mean(axis=-1)
    return mean - half, mean + half


def t_interval(values: npt.ArrayLike, level: float = 0.95) -> Interval:
    """Mean of independent values with Student's t interval.

    Parameters
    ----------
    values : array_like
        ``(n,)``; NaN is an error, one value gives no bounds.
    level : float
        Coverage.

    Raises
    ------
    ConfigError
        If there are no values, one is NaN, or the level is not between 0 and 1.

    Examples
    --------
    >>> print(t_interval([1.0, 2.0, 3.0]))
    2.000 [-0.484, 4.484] (n=3, t)
    >>> print(t_interval([1.0]))
    1.000 [nan, nan] (n=1, none)
    """
    x = _checked(values, level)
    if len(x) < 2:
        return Interval(float(x[0]), np.nan, np.nan, 1, "none")
    low, high = t_bounds(x, level)
    return Interval(float(x.mean()), float(low), float(high), len(x), "t")


def _checked(values: npt.ArrayLike, level: float) -> FloatArray:
    x = np.asarray(values, dtype=np.float64).ravel()
    if not 0 < level < 1:
        raise ConfigError(f"confidence level {level}", allowed="above 0, below 1", fix="pass 0.95")
    if len(x) == 0:
        raise ConfigError("no scores to average", fix="check the metric's name and the recordings")
    if np.isnan(x).any():
        raise ConfigError(f"score {int(np.argmax(np.isnan(x)))} is NaN", fix="leave it out on purpose or mend it")
    return x


def paired_interval(a: npt.ArrayLike, b: npt.ArrayLike, level: float = 0.95) -> Interval:
    """Mean of ``a - b`` with Student's t interval, for arms measured on the same units (repeats, sessions).

    Examples
    --------
    >>> print(paired_interval([0.9, 0.8, 0.7], [0.5, 0.5, 0.5]))
    0.300 [0.052, 0.548] (n=3, t)
    """
    return t_interval(_differences(a, b), level)


def _differences(a: npt.ArrayLike, b: npt.ArrayLike) -> FloatArray:
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape:
        raise ConfigError(f"{x.size} scores paired with {y.size}", fix="score both arms on the same units")
    return x - y


def paired_p_value(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Two-sided p of the paired t-test; NaN for fewer than two pairs, 0 or 1 where all differences are equal.

    Examples
    --------
    >>> round(paired_p_value([0.9, 0.8, 0.7], [0.5, 0.5, 0.5]), 4)
    0.0351
    """
    d = _differences(a, b)
    if d.size < 2:
        return float("nan")
    error = d.std(ddof=1) / np.sqrt(d.size)
    if error <= 1e-12 * max(1.0, abs(d.mean())):
        return 1.0 if abs(d.mean()) <= 1e-12 else 0.0
    return float(2 * stats.t.sf(abs(d.mean()) / error, d.size - 1))


def cohens_dz(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Effect size of a paired comparison: mean difference over the differences' standard deviation.

    NaN for fewer than two pairs, infinite where all differences are equal and not 0.

    Examples
    --------
    >>> round(cohens_dz([0.9, 0.8, 0.7], [0.5, 0.5, 0.5]), 2)
    3.0
    """
    d = _differences(a, b)
    if d.size < 2:
        return float("nan")
    mean, spread = float(d.mean()), float(d.std(ddof=1))
    if spread <= 1e-12 * max(1.0, abs(mean)):
        return 0.0 if abs(mean) <= 1e-12 else float(np.copysign(np.inf, mean))
    return mean / spread


def holm(p_values: Sequence[float]) -> FloatArray:
    """Adjust p values for several comparisons (Holm 1979, step-down Bonferroni).

    Parameters
    ----------
    p_values : sequence of float
        Unadjusted; NaN (no test was possible) stays NaN and does not count as a comparison.

    Returns
    -------
    ndarray
        Adjusted p values in the given order, at most 1.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03])
    array([0.03, 0.06, 0.06])
    """
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return adjusted


def animal_interval(
    table: pd.DataFrame,
    metric: str,
    *,
    rng: np.random.Generator,
    level: float = 0.95,
    num_resamples: int = 2000,
) -> Interval:
    """Mean of a metric over animals with its interval.

    Rows of a recording (repeats, seeds) are averaged with their `num_targets` as weights, recordings within
    an animal and animals without weights.

    Parameters
    ----------
    table : DataFrame
        A score table, see `poyo_ssl.evaluation.metrics.score_table`.
    metric : str
        Which rows of it.
    rng : numpy.random.Generator
        For the bootstrap; unused below `MIN_ANIMALS_BOOTSTRAP` animals.
    level : float
        Coverage.
    num_resamples : int
        Resamples of the bootstrap.

    Raises
    ------
    ConfigError
        If the table has no rows of that metric, or a NaN.

    Examples
    --------
    >>> table = pd.DataFrame({"subject_id": ["m1", "m1", "m2"], "recording_id": ["a", "b", "c"],
    ...                       "metric": "accuracy", "value": [0.2, 0.4, 0.5], "num_targets": 10})
    >>> print(animal_interval(table, "accuracy", rng=np.random.default_rng(0)))
    0.400 [-0.871, 1.671] (n=2, t)
    """
    animals = _by_animal(_rows(table, metric))
    return _interval_over_animals(animals, rng, level, num_resamples)


def paired_animal_interval(
    table_a: pd.DataFrame,
    table_b: pd.DataFrame,
    metric: str,
    *,
    rng: np.random.Generator,
    level: float = 0.95,
    num_resamples: int = 2000,
) -> Interval:
    """Mean difference a - b over animals: paired row by row, then as in `animal_interval`.

    Parameters
    ----------
    table_a, table_b : DataFrame
        Score tables of two arms on the same targets; rows are matched on `PAIRING_COLUMNS`.
    metric, rng, level, num_resamples
        See `animal_interval`.

    Raises
    ------
    ConfigError
        If a row of one arm has no partner, or several, in the other, or their numbers of targets differ;
        the message names the first.

    Examples
    --------
    >>> a = pd.DataFrame({"subject_id": ["m1", "m2"], "recording_id": ["a", "b"], "metric": "accuracy",
    ...                   "value": [0.5, 0.75], "num_targets": 10})
    >>> b = a.assign(value=[0.25, 0.5])
    >>> print(paired_animal_interval(a, b, "accuracy", rng=np.random.default_rng(0)))
    0.250 [0.250, 0.250] (n=2, t)
    """
    rows_a, rows_b = _rows(table_a, metric), _rows(table_b, metric)
    keys = [c for c in PAIRING_COLUMNS if c in rows_a and c in rows_b]
    for arm, rows in (("first", rows_a), ("second", rows_b)):
        repeated = rows.duplicated(keys)
        if repeated.any():
            raise ConfigError(
                f"{metric} of {_describe(rows[repeated].iloc[0], keys)} occurs twice in the {arm} arm",
                fix="keep one row each, or add a column that tells them apart on both sides, such as seed",
            )
    pairs = rows_a.merge(rows_b, on=keys, how="outer", suffixes=("_a", "_b"), indicator=True)
    alone = pairs["_merge"] != "both"
    if alone.any():
        row = pairs[alone].iloc[0]
        missing = "second" if row["_merge"] == "left_only" else "first"
        raise ConfigError(
            f"{metric} of {_describe(row, keys)} is missing from the {missing} arm",
            fix="score both arms on the same targets",
        )
    uneven = pairs["num_targets_a"] != pairs["num_targets_b"]
    if uneven.any():
        row = pairs[uneven].iloc[0]
        raise ConfigError(
            f"{metric} of {_describe(row, keys)} has {row['num_targets_a']} and {row['num_targets_b']} targets",
            fix="score both arms on the same targets",
        )
    differences = pairs[keys].assign(value=pairs["value_a"] - pairs["value_b"], num_targets=pairs["num_targets_a"])
    return _interval_over_animals(_by_animal(differences), rng, level, num_resamples)


def _describe(row: pd.Series, keys: Sequence[str]) -> str:
    return ", ".join(f"{key} {row[key]}" for key in keys)


def _rows(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    rows = table[table["metric"] == metric]
    if rows.empty:
        known = ", ".join(sorted(set(table["metric"]))) or "none"
        raise ConfigError(f"no scores of metric '{metric}'", allowed=known, fix="check its name")
    if rows["value"].isna().any():
        row = rows[rows["value"].isna()].iloc[0]
        raise ConfigError(f"{metric} of recording {row['recording_id']} is NaN", fix="mend or leave out the row")
    return rows


Block = tuple[FloatArray, FloatArray]
"""Values and weights of the rows of one recording."""


def _by_animal(rows: pd.DataFrame) -> list[list[Block]]:
    """Rows as animal > recording > (values, weights)."""
    return [
        [
            (recording["value"].to_numpy(dtype=np.float64), recording["num_targets"].to_numpy(dtype=np.float64))
            for _, recording in animal.groupby("recording_id", sort=True)
        ]
        for _, animal in rows.groupby("subject_id", sort=True)
    ]


def _interval_over_animals(
    animals: list[list[Block]], rng: np.random.Generator, level: float, num_resamples: int
) -> Interval:
    means = [float(np.mean([np.average(v, weights=w) for v, w in animal])) for animal in animals]
    if len(means) < MIN_ANIMALS_BOOTSTRAP:
        return t_interval(means, level)
    _checked(means, level)
    resampled = _bootstrap_means(animals, rng, num_resamples)
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(np.mean(means)), float(low), float(high), len(means), "bootstrap")


def _bootstrap_means(animals: list[list[Block]], rng: np.random.Generator, num_resamples: int) -> FloatArray:
    """Means over animals, recordings and blocks all drawn with replacement: ``(num_resamples,)``."""
    chosen = rng.integers(len(animals), size=(num_resamples, len(animals)))
    drawn = np.empty(chosen.shape)
    for index, animal in enumerate(animals):
        times = np.nonzero(chosen == index)  # every time this animal was drawn, its inside is drawn anew
        recording = rng.integers(len(animal), size=(len(times[0]), len(animal)))
        means = np.empty(recording.shape)
        for position, (values, weights) in enumerate(animal):
            here = recording == position
            block = rng.integers(len(values), size=(int(here.sum()), len(values)))
            means[here] = (values[block] * weights[block]).sum(axis=1) / weights[block].sum(axis=1)
        drawn[times] = means.mean(axis=1)
    return np.asarray(drawn.mean(axis=1))
