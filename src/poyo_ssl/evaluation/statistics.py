"""Means of score tables with intervals and tests; animals are the unit, few animals get Student's t.

Scores of one animal are alike, so they are averaged first: seeds within a block of frames, blocks within a recording,
recordings within an animal. With `MIN_ANIMALS_BOOTSTRAP` animals or more the interval is a hierarchical bootstrap
(animal > recording > block of frames), *studentised*: the error of each resample is divided by its own standard error
over animals (Hall 1988; Davison and Hinkley 1997, section 5.2). The plain percentile interval covers too little where
scatter lies between animals, and too much where it lies within them, since resampling inside an animal adds scatter
that its mean has already; the ratio does neither. Below that it is the t interval on animal means. One animal is
weighed by its recordings, one recording by its repeats, and trainings alone (seeds) only from `MIN_SEEDS` on.

From `MIN_SEEDS` seeds on, trainings are a second random factor crossed with animals: every animal is decoded by
the same trainings, so their luck does not average out over animals. Both errors are added, as in min F' (Clark 1973).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from poyo_ssl.errors import ConfigError, StatisticsError

FloatArray = npt.NDArray[np.float64]
Method = Literal["t", "bootstrap", "none"]

TINY = 1e-12
"""Scatter below this share of the values is rounding."""


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval.

    Attributes
    ----------
    value : float
        The mean.
    low, high : float
        Bounds; NaN where there are too few values for any, or a few that are all equal.
    n : int
        Number of independent values.
    method : {'t', 'bootstrap', 'none'}
        How the bounds were made.
    unit : str
        What the independent values are: animals, recordings, repeats or seeds; empty when not known.

    Examples
    --------
    >>> print(Interval(0.5, 0.25, 0.75, 3, "t", "animals"))
    0.500 [0.250, 0.750] (n=3 animals, t)
    """

    value: float
    low: float
    high: float
    n: int
    method: Method
    unit: str = ""

    def __str__(self) -> str:
        count = f"{self.n} {self.unit}".strip()
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] (n={count}, {self.method})"


@dataclass(frozen=True)
class Estimate:
    """A mean over independent units, its standard error, and how far off it may be.

    Units that are all equal have no scatter to judge by: scores of a few trials are coarse, and two animals with the
    same difference are no proof. There the exact sign test takes the place of Student's t: n equal values on one side
    of a bound have a one-sided p of ``2 ** -n``, and there are no bounds where that cannot exclude anything (below six
    values at 95 %).

    Attributes
    ----------
    value, error : float
        Mean and its standard error; the error is NaN where nothing tells it.
    units : ndarray
        ``(n,)`` value of every independent unit.
    unit : str
        What they are.
    degrees : float
        Degrees of freedom of Student's t.
    pivots : ndarray, optional
        ``(B,)`` sorted studentised bootstrap errors, in the place of Student's t.
    num_seeds : int
        Trainings behind each unit.

    Examples
    --------
    >>> print(Estimate.of([1.0, 2.0, 3.0]).interval())
    2.000 [-0.484, 4.484] (n=3, t)
    >>> round(Estimate.of([1.0, 2.0, 3.0]).p_two_sided(), 4)
    0.0742
    """

    value: float
    error: float
    units: FloatArray
    unit: str = ""
    degrees: float = 0.0
    pivots: FloatArray | None = None
    num_seeds: int = 1

    @classmethod
    def of(cls, values: npt.ArrayLike, unit: str = "") -> Estimate:
        """Return the mean of ``(n,)`` independent values.

        Raises
        ------
        ConfigError
            If there are no values or one is NaN.
        """
        x = np.asarray(values, dtype=np.float64).ravel()
        if len(x) == 0:
            raise ConfigError("no scores to average", fix="check the metric's name and the recordings")
        if np.isnan(x).any():
            raise ConfigError(f"score {int(np.argmax(np.isnan(x)))} is NaN", fix="leave it out on purpose or mend it")
        error = float(x.std(ddof=1) / np.sqrt(len(x))) if len(x) > 1 else float("nan")
        if error <= TINY * max(1.0, float(np.abs(x).max())):
            error = 0.0
        return cls(float(x.mean()), error, x, unit, degrees=len(x) - 1.0)

    @property
    def method(self) -> Method:
        """How bounds and p values are made."""
        return "none" if np.isnan(self.error) else "t" if self.pivots is None else "bootstrap"

    def interval(self, level: float = 0.95) -> Interval:
        """Return the mean with its two-sided interval.

        Raises
        ------
        ConfigError
            If `level` is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise ConfigError(f"confidence level {level}", allowed="above 0, below 1", fix="pass 0.95")
        n, half = len(self.units), (1 - level) / 2
        if self.method == "none" or (self.error == 0 and 2.0**-n > half):
            return Interval(self.value, np.nan, np.nan, n, "none", self.unit)
        if self.pivots is None:
            reach = float(stats.t.ppf(1 - half, self.degrees))
            below, above = -reach, reach
        else:
            below, above = np.quantile(self.pivots, [half, 1 - half])
        low, high = self.value - above * self.error, self.value - below * self.error
        return Interval(self.value, float(low), float(high), n, self.method, self.unit)

    def p_above(self, bound: float = 0.0) -> float:
        """One-sided p of "the mean is not above `bound`"; NaN without an error."""
        return self._p(self.value - bound, upper=True)

    def p_below(self, bound: float = 0.0) -> float:
        """One-sided p of "the mean is not below `bound`"; NaN without an error."""
        return self._p(self.value - bound, upper=False)

    def p_two_sided(self, bound: float = 0.0) -> float:
        """Two-sided p of "the mean equals `bound`", equal-tailed as the interval is; NaN without an error."""
        p = 2 * min(self.p_above(bound), self.p_below(bound))
        return p if np.isnan(p) else min(1.0, p)

    def _p(self, distance: float, *, upper: bool) -> float:
        if self.method == "none":
            return float("nan")
        if self.error == 0:
            at = abs(distance) <= TINY * max(1.0, abs(self.value))
            return 2.0 ** -len(self.units) if not at and (distance > 0) == upper else 1.0
        t = distance / self.error
        if self.pivots is None:
            return float(stats.t.sf(t if upper else -t, self.degrees))
        left = np.searchsorted(self.pivots, t, side="left" if upper else "right")
        beyond = len(self.pivots) - left if upper else left
        return float((1 + beyond) / (1 + len(self.pivots)))


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
    return Estimate.of(values).interval(level)


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
    """Two-sided p of the paired t-test, of the sign test where all differences are equal; NaN for fewer than two pairs.

    Examples
    --------
    >>> round(paired_p_value([0.9, 0.8, 0.7], [0.5, 0.5, 0.5]), 4)
    0.0351
    """
    return Estimate.of(_differences(a, b)).p_two_sided()


MIN_ANIMALS_BOOTSTRAP = 10
MIN_SEEDS = 5
NUM_RESAMPLES = 2000
PAIRING_COLUMNS = ("recording_id", "subject_id", "stimulus", "repeat", "block", "seed")
"""Columns that a row of one arm and the row of the other must share; those that an arm lacks are left out."""


def estimate_mean(
    table: pd.DataFrame, metric: str, *, rng: np.random.Generator, num_resamples: int = NUM_RESAMPLES
) -> Estimate:
    """Estimate the mean of a metric over animals (or, of one animal, recordings, repeats, seeds).

    Seeds are averaged within a block; rows of a recording (repeats, blocks) are averaged with their `num_targets` as
    weights, recordings within an animal and animals without weights.

    Parameters
    ----------
    table : DataFrame
        A score table, see `poyo_ssl.evaluation.scores.score_table`; a column ``seed`` tells trainings apart.
    metric : str
        Which rows of it.
    rng : numpy.random.Generator
        For the bootstrap; unused below `MIN_ANIMALS_BOOTSTRAP` animals.
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
    >>> print(estimate_mean(table, "accuracy", rng=np.random.default_rng(0)).interval())
    0.400 [-0.871, 1.671] (n=2 animals, t)
    """
    return _estimate(_rows(table, metric), rng, num_resamples)


def estimate_difference(
    table_a: pd.DataFrame,
    table_b: pd.DataFrame,
    metric: str,
    *,
    rng: np.random.Generator,
    num_resamples: int = NUM_RESAMPLES,
) -> Estimate:
    """Estimate the mean difference a - b: paired row by row, seed by seed, then as in `estimate_mean`.

    Seeds that one arm lacks are left out; `num_seeds` of the result counts the pairs. Arms without a seed in common
    (a baseline has none) are paired by their means over seeds.

    Parameters
    ----------
    table_a, table_b : DataFrame
        Score tables of two arms on the same targets; rows are matched on `PAIRING_COLUMNS`.
    metric, rng, num_resamples
        See `estimate_mean`.

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
    >>> print(estimate_difference(a, b, "accuracy", rng=np.random.default_rng(0)).interval())
    0.250 [nan, nan] (n=2 animals, none)
    """
    return _estimate(pair_rows(table_a, table_b, metric), rng, num_resamples)


def estimate_over_seeds(table_a: pd.DataFrame, table_b: pd.DataFrame, metric: str) -> Estimate:
    """Estimate the mean difference a - b with trainings as the only replicate: paired by seed, t over seeds.

    Parameters
    ----------
    table_a, table_b, metric
        See `estimate_difference`; both tables have a column ``seed``.

    Raises
    ------
    StatisticsError
        If there are fewer than `MIN_SEEDS` seeds: three leave a t-test with two degrees of freedom.

    Examples
    --------
    >>> a = pd.DataFrame({"subject_id": "m", "recording_id": "r", "metric": "accuracy", "num_targets": 10,
    ...                   "value": [0.5, 0.6, 0.7], "seed": [0, 1, 2]})
    >>> estimate_over_seeds(a, a.assign(value=0.4), "accuracy")
    Traceback (most recent call last):
    poyo_ssl.errors.StatisticsError: a claim about trainings from 3 seeds (allowed: 5 or more); train more seeds
    """
    seeds = _seed_means(pair_rows(table_a, table_b, metric))
    if len(seeds) < MIN_SEEDS:
        raise StatisticsError(
            f"a claim about trainings from {len(seeds)} seed{'' if len(seeds) == 1 else 's'}",
            allowed=f"{MIN_SEEDS} or more",
            fix="train more seeds",
        )
    return replace(Estimate.of(seeds, "seeds"), num_seeds=len(seeds))


def pair_rows(table_a: pd.DataFrame, table_b: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Match the rows of two arms; `value` of the result is their difference. See `estimate_difference`."""
    first, second = (_rows(table, metric) for table in (table_a, table_b))
    shared = _seeds(first) & _seeds(second)
    # Without a seed in common (a baseline has none) the pairs are of means over each arm's own seeds.
    first, second = (own[own["seed"].isin(shared)] if shared else _average_seeds(own) for own in (first, second))
    keys = [c for c in PAIRING_COLUMNS if c in first and c in second]
    _check_once(first, keys, metric, "first")
    # Arms of one evaluation have their rows in the same order; to search for partners takes most of the time.
    if len(first) != len(second) or any((first[key].to_numpy() != second[key].to_numpy()).any() for key in keys):
        _check_once(second, keys, metric, "second")
        second = _in_order_of(first, second, keys, metric)
    counts = [own["num_targets"].to_numpy() for own in (first, second)]
    uneven = np.flatnonzero(counts[0] != counts[1])
    if len(uneven):
        raise ConfigError(
            f"{metric} of {_describe(first.iloc[uneven[0]], keys)} has {counts[0][uneven[0]]} and "
            f"{counts[1][uneven[0]]} targets",
            fix="score both arms on the same targets",
        )
    return first[[*keys, "num_targets"]].assign(value=first["value"].to_numpy() - second["value"].to_numpy())


def _check_once(rows: pd.DataFrame, keys: list[str], metric: str, arm: str) -> None:
    repeated = rows.duplicated(keys)
    if repeated.any():
        raise ConfigError(
            f"{metric} of {_describe(rows[repeated].iloc[0], keys)} occurs twice in the {arm} arm",
            fix="keep one row each, or add a column that tells them apart on both sides, such as seed",
        )


def _in_order_of(first: pd.DataFrame, second: pd.DataFrame, keys: list[str], metric: str) -> pd.DataFrame:
    """Rows of `second`, each in the place of its partner in `first`."""
    pairs = first[keys].merge(second, on=keys, how="outer", indicator=True)
    alone = pairs["_merge"] != "both"
    if alone.any():
        row = pairs[alone].iloc[0]
        missing = "second" if row["_merge"] == "left_only" else "first"
        raise ConfigError(
            f"{metric} of {_describe(row, keys)} is missing from the {missing} arm",
            fix="score both arms on the same targets",
        )
    return first[keys].merge(second, on=keys, how="left")


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


def _seeds(rows: pd.DataFrame) -> set[int]:
    return set(rows["seed"][rows["seed"] >= 0]) if "seed" in rows else set()


def _average_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    if "seed" not in rows:
        return rows
    keys = [c for c in (*PAIRING_COLUMNS, "num_targets") if c in rows and c != "seed"]
    return rows.groupby(keys, sort=False)["value"].mean().reset_index()


def _seed_means(rows: pd.DataFrame) -> FloatArray:
    """``(S,)`` mean of every seed over all its animals; empty without seeds."""
    if not _seeds(rows):
        return np.zeros(0)
    return np.array([np.mean(_animal_means(_by_animal(own))) for _, own in rows.groupby("seed", sort=True)])


Block = tuple[FloatArray, FloatArray]
"""Values and weights of the rows of one recording."""


def _by_animal(rows: pd.DataFrame) -> list[list[Block]]:
    """Rows as animal > recording > (values, weights)."""
    ordered = rows.sort_values(["subject_id", "recording_id"], kind="stable")
    value, weight = (ordered[name].to_numpy(dtype=np.float64) for name in ("value", "num_targets"))
    animal, recording = (ordered[name].to_numpy() for name in ("subject_id", "recording_id"))
    new_animal = np.r_[True, animal[1:] != animal[:-1]]
    starts = np.flatnonzero(new_animal | np.r_[True, recording[1:] != recording[:-1]])
    nested: list[list[Block]] = []
    for start, stop in zip(starts, [*starts[1:], len(value)], strict=True):
        if new_animal[start]:
            nested.append([])
        nested[-1].append((value[start:stop], weight[start:stop]))
    return nested


def _animal_means(animals: Sequence[Sequence[Block]]) -> FloatArray:
    return np.array([np.mean([np.average(v, weights=w) for v, w in animal]) for animal in animals])


def _estimate(rows: pd.DataFrame, rng: np.random.Generator, num_resamples: int) -> Estimate:
    seeds = _seed_means(rows)
    over_seeds = Estimate.of(seeds) if len(seeds) >= MIN_SEEDS else None
    blocks = _average_seeds(rows)
    animals = _by_animal(blocks)
    if len(animals) > 1 and over_seeds is not None and over_seeds.error > 0:
        found = Estimate.of(_animal_means(animals), "animals")  # on the t scale, see `_with_seeds`
    elif len(animals) > 1:
        found = hierarchical_estimate(animals, rng, num_resamples)
    else:
        found = _inside_one_animal(blocks, animals[0], seeds)
    found = replace(found, num_seeds=max(1, len(seeds)))
    return _with_seeds(found, over_seeds) if over_seeds is not None and found.unit != "seeds" else found


def _inside_one_animal(rows: pd.DataFrame, animal: Sequence[Block], seeds: FloatArray) -> Estimate:
    """Return the mean over the next level that has several: recordings, repeats, or enough seeds."""
    if len(animal) > 1:
        return Estimate.of([np.average(v, weights=w) for v, w in animal], "recordings")
    groups = rows.groupby([c for c in ("stimulus", "repeat") if c in rows] or ["recording_id"], sort=True)
    if groups.ngroups > 1:
        return Estimate.of([np.average(g["value"], weights=g["num_targets"]) for _, g in groups], "repeats")
    if len(seeds) >= MIN_SEEDS:
        return Estimate.of(seeds, "seeds")
    return Estimate.of(_animal_means([animal]), "animals")


def _with_seeds(found: Estimate, over_seeds: Estimate) -> Estimate:
    """Add the error over trainings."""
    if over_seeds.error == 0 or np.isnan(found.error):
        return found
    error, degrees = crossed_error(found.units, over_seeds.units)
    return replace(found, error=float(error), degrees=float(degrees), pivots=None)


def crossed_error(units: FloatArray, trainings: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the standard error of a mean over two crossed random factors: min F' (Clark 1973) on the t scale.

    Parameters
    ----------
    units : ndarray
        ``(..., n)`` means of the animals, or of the next level that has several.
    trainings : ndarray
        ``(..., s)`` means of the trainings over all of these.

    Returns
    -------
    error, degrees : ndarray
        ``(...)`` standard error, and degrees of freedom after Satterthwaite, rounded down: with five trainings that
        rule alone lets 5.6 % through instead of 5 % (docs/statistics.md).

    Examples
    --------
    >>> error, degrees = crossed_error(np.array([0.0, 1.0, 2.0]), np.array([0.5, 1.0, 1.5]))
    >>> round(float(error), 3), float(degrees)
    (0.645, 2.0)
    """
    parts = np.stack([x.var(axis=-1, ddof=1) / x.shape[-1] for x in (units, trainings)])
    degrees = np.array([x.shape[-1] - 1.0 for x in (units, trainings)]).reshape(2, *[1] * (parts.ndim - 1))
    shared = parts.sum(axis=0) ** 2 / (parts**2 / degrees).sum(axis=0)
    # Rounding may not turn a whole number into the one below.
    return np.sqrt(parts.sum(axis=0)), np.floor(shared + 1e-9)


def hierarchical_estimate(
    animals: Sequence[Sequence[Block]], rng: np.random.Generator, num_resamples: int = NUM_RESAMPLES
) -> Estimate:
    """Estimate the mean over animals from their blocks: bootstrap from `MIN_ANIMALS_BOOTSTRAP` on, t below.

    Parameters
    ----------
    animals : sequence of sequence of (values, weights)
        Animal > recording > ``(K,)`` values of its blocks and their weights.
    rng : numpy.random.Generator
        For the bootstrap.
    num_resamples : int
        Resamples.

    Examples
    --------
    >>> animals = [[(np.array([x, x + 1]), np.ones(2))] for x in range(12)]
    >>> hierarchical_estimate(animals, np.random.default_rng(0)).method
    'bootstrap'
    """
    found = Estimate.of(_animal_means(animals), "animals")
    n = len(animals)
    if n < MIN_ANIMALS_BOOTSTRAP or found.error == 0:
        return found
    drawn = _resample(animals, rng, num_resamples)
    error = drawn.std(axis=1, ddof=1) / np.sqrt(n)
    flat = error <= TINY * max(1.0, abs(found.value))
    # Where nearly all animals score the same, resamples without any scatter have no studentised error.
    if flat.mean() > 0.001:
        return found
    pivots = (drawn.mean(axis=1)[~flat] - found.value) / error[~flat]
    return replace(found, pivots=np.sort(pivots))


def _resample(animals: Sequence[Sequence[Block]], rng: np.random.Generator, num_resamples: int) -> FloatArray:
    """Animal means, with animals, recordings and blocks all drawn with replacement: ``(num_resamples, animals)``."""
    chosen = rng.integers(len(animals), size=num_resamples * len(animals))
    # Every time an animal was drawn, its inside is drawn anew: all times of one animal at once.
    places = np.split(np.argsort(chosen, kind="stable"), np.cumsum(np.bincount(chosen, minlength=len(animals)))[:-1])
    drawn = np.empty(len(chosen))
    for animal, place in zip(animals, places, strict=True):
        recording = rng.integers(len(animal), size=(len(animal), len(place)), dtype=np.uint16)
        means = np.empty(recording.shape)
        for position, (values, weights) in enumerate(animal):
            here = recording == position
            # Small integers are drawn several times faster than wide ones, and sums along the first axis are faster.
            block = rng.integers(len(values), size=(len(values), int(here.sum())), dtype=np.uint16).astype(np.intp)
            means[here] = (values * weights)[block].sum(axis=0) / weights[block].sum(axis=0)
        drawn[place] = means.mean(axis=0)
    return drawn.reshape(num_resamples, len(animals))
