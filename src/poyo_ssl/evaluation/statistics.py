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
from scipy import optimize, special, stats

from poyo_ssl.errors import ConfigError

FloatArray = npt.NDArray[np.float64]
Method = Literal["t", "bootstrap", "none"]

TINY = 1e-12
"""Scatter below this share of the values is rounding."""


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval."""

    value: float
    low: float  # NaN where there are too few values for bounds, or a few that are all equal
    high: float
    n: int  # independent values
    method: Method
    unit: str = ""  # what is independent: animals, recordings, repeats or seeds

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
    """

    value: float
    error: float  # standard error; NaN where nothing tells it
    units: FloatArray  # (n,) value of every independent unit
    unit: str = ""
    degrees: float = 0.0  # of freedom of Student's t
    pivots: FloatArray | None = None  # (B,) sorted studentised bootstrap errors, in the place of Student's t
    num_seeds: int = 1  # trainings behind each unit

    @classmethod
    def of(cls, values: npt.ArrayLike, unit: str = "") -> Estimate:
        """Return the mean of ``(n,)`` independent values, none of them NaN."""
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
        """Return the mean with its two-sided interval."""
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


def t_interval(values: npt.ArrayLike, level: float = 0.95) -> Interval:
    """Mean of independent values with Student's t interval."""
    return Estimate.of(values).interval(level)


@dataclass(frozen=True)
class EffectSize:
    """A standardised mean difference with its interval; NaN for fewer than two pairs."""

    value: float
    low: float
    high: float


MAX_EXACT_T = 35.0
"""Beyond this t the noncentral distribution loses its digits; the effect size counts as normal there."""


def effect_size(differences: npt.ArrayLike, level: float = 0.95) -> EffectSize:
    """Hedges' g of ``(n,)`` paired differences, one per animal: mean over standard deviation (d_z), less its bias.

    The interval inverts the noncentral t distribution (Hedges and Olkin 1985; Cumming and Finch 2001) and so takes
    differences as normal. Of the effect sizes for pairs this one decides how many animals a test needs. It grows with
    the tightness of the pairing. Infinite where all differences are equal and not 0.
    """
    d = np.asarray(differences, dtype=np.float64).ravel()
    n = len(d)
    if n < 2:
        return EffectSize(np.nan, np.nan, np.nan)
    mean, spread = float(d.mean()), float(d.std(ddof=1))
    if spread <= TINY * max(1.0, float(np.abs(d).max())):
        return EffectSize(*[0.0 if abs(mean) <= TINY else float(np.copysign(np.inf, mean))] * 3)
    degrees, dz, tail = n - 1, mean / spread, (1 - level) / 2
    if abs(dz) * np.sqrt(n) > MAX_EXACT_T:
        reach = stats.norm.ppf(1 - tail) * np.sqrt(1 / n + dz**2 / (2 * degrees))
        bounds = [dz - reach, dz + reach]
    else:
        bounds = [_noncentrality(dz * np.sqrt(n), degrees, p) / np.sqrt(n) for p in (1 - tail, tail)]
    unbiased = np.exp(special.gammaln(degrees / 2) - special.gammaln((degrees - 1) / 2)) / np.sqrt(degrees / 2)
    # With one degree of freedom the correction is 0: two pairs say nothing about a spread.
    return EffectSize(*(float(unbiased * x) for x in (dz, *bounds))) if degrees > 1 else EffectSize(*[np.nan] * 3)


def _noncentrality(t: float, degrees: int, probability: float) -> float:
    """Which noncentrality puts this probability below `t`."""

    def excess(centre: float) -> float:
        below = float(special.nctdtr(degrees, centre, t))
        # Where it is 0 or 1 to all digits, SciPy may answer NaN.
        return (float(centre < t) if np.isnan(below) else below) - probability

    reach = 8.0 + 3.0 * abs(t)
    return float(optimize.brentq(excess, t - reach, t + reach, xtol=1e-6))


def holm(p_values: Sequence[float]) -> FloatArray:
    """Adjust p values for several comparisons (Holm 1979); NaN, where no test was possible, counts as none."""
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return adjusted


MIN_ANIMALS_BOOTSTRAP = 10
MIN_SEEDS = 5
NUM_RESAMPLES = 2000
PAIRING_COLUMNS = ("recording_id", "subject_id", "stimulus", "repeat", "block", "seed")
"""Columns that a row of one arm and the row of the other must share; those that an arm lacks are left out."""


def estimate_mean(table: pd.DataFrame, metric: str, *, rng: np.random.Generator) -> Estimate:
    """Estimate the mean of a metric of a score table over animals (or, of one animal, recordings, repeats, seeds).

    Seeds are averaged within a block; rows of a recording (repeats, blocks) are averaged with their `num_targets` as
    weights, recordings within an animal and animals without weights.
    """
    return _estimate(_rows(table, metric), rng)


def estimate_difference(
    table_a: pd.DataFrame, table_b: pd.DataFrame, metric: str, *, rng: np.random.Generator
) -> Estimate:
    """Estimate the mean difference a - b: paired row by row, seed by seed, then as in `estimate_mean`."""
    return _estimate(pair_rows(table_a, table_b, metric), rng)


def pair_rows(table_a: pd.DataFrame, table_b: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Match the rows of two arms on `PAIRING_COLUMNS`; `value` of the result is their difference.

    Seeds that one arm lacks are left out. A row without a partner, or with several, is an error that names the first.
    """
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


def _estimate(rows: pd.DataFrame, rng: np.random.Generator) -> Estimate:
    seeds = _seed_means(rows)
    trainings = Estimate.of(seeds) if len(seeds) >= MIN_SEEDS else None
    is_crossed = trainings is not None and trainings.error > 0
    blocks = _average_seeds(rows)
    animals = _by_animal(blocks)
    if len(animals) == 1:
        found = _inside_one_animal(blocks, animals[0], seeds)
    elif is_crossed:
        found = Estimate.of(_animal_means(animals), "animals")  # on the t scale, as the error over trainings is
    else:
        found = hierarchical_estimate(animals, rng)
    found = replace(found, num_seeds=max(1, len(seeds)))
    if not is_crossed or found.unit == "seeds" or np.isnan(found.error):
        return found
    error, degrees = crossed_error(found.units, seeds)
    return replace(found, error=float(error), degrees=float(degrees), pivots=None)


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


def crossed_error(units: FloatArray, trainings: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return error and degrees of freedom ``(...)`` of a mean over two crossed factors: min F' (Clark 1973).

    `units` ``(..., n)`` are means of animals, or of the next level that has several, `trainings` ``(..., s)`` means of
    trainings over all of these. Degrees are Satterthwaite's, rounded down: with five trainings that rule alone lets
    5.6 % through instead of 5 % (docs/statistics.md).
    """
    parts = np.stack([x.var(axis=-1, ddof=1) / x.shape[-1] for x in (units, trainings)])
    degrees = np.array([x.shape[-1] - 1.0 for x in (units, trainings)]).reshape(2, *[1] * (parts.ndim - 1))
    shared = parts.sum(axis=0) ** 2 / (parts**2 / degrees).sum(axis=0)
    # Rounding may not turn a whole number into the one below.
    return np.sqrt(parts.sum(axis=0)), np.floor(shared + 1e-9)


def hierarchical_estimate(animals: Sequence[Sequence[Block]], rng: np.random.Generator) -> Estimate:
    """Estimate the mean over animals from their blocks: bootstrap from `MIN_ANIMALS_BOOTSTRAP` on, t below."""
    found = Estimate.of(_animal_means(animals), "animals")
    n = len(animals)
    if n < MIN_ANIMALS_BOOTSTRAP or found.error == 0:
        return found
    drawn = _resample(animals, rng)
    error = drawn.std(axis=1, ddof=1) / np.sqrt(n)
    flat = error <= TINY * max(1.0, abs(found.value))
    # Where nearly all animals score the same, resamples without any scatter have no studentised error.
    if flat.mean() > 0.001:
        return found
    pivots = (drawn.mean(axis=1)[~flat] - found.value) / error[~flat]
    return replace(found, pivots=np.sort(pivots))


def _resample(animals: Sequence[Sequence[Block]], rng: np.random.Generator) -> FloatArray:
    """``(B, animals)`` animal means, with animals, recordings and blocks all drawn with replacement."""
    chosen = rng.integers(len(animals), size=NUM_RESAMPLES * len(animals))
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
    return drawn.reshape(NUM_RESAMPLES, len(animals))
