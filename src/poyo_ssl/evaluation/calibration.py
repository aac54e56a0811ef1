"""Whether intervals cover and tests err as often as they say: the statistics on score tables whose truth is known.

`benchmarks/statistics_coverage.py` runs these checks on at least 2,000 tables each; docs/statistics.md has the outcome.
`check_tables` and `check_margins` call what a user calls, on tables like those of `score_table`; the others the same
formulas on many tables at once.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from poyo_ssl.evaluation.leaderboard import compare_arms
from poyo_ssl.evaluation.simulated_scores import World, simulate_arms, simulate_trainings
from poyo_ssl.evaluation.statistics import FloatArray, crossed_error, estimate_mean, t_bounds

NUM_ARMS = 4
MARGIN = 0.5
"""In units of the standard deviation over animals."""
ALPHA = 0.05

Shares = dict[str, float]
"""Share of the simulated tables in which each thing happened."""


def check_tables(world: World, num_animals: int, num_tables: int, rng: np.random.Generator) -> Shares:
    """Count how often intervals cover the truth, and how often a difference is claimed that is not there.

    Parameters
    ----------
    world : {'between', 'within', 'skewed'}
        Where arms differ by chance, see `simulated_scores.SCATTER`.
    num_animals, num_tables : int
        Animals per table, and tables.
    rng : numpy.random.Generator
        Source of tables and resamples.

    Returns
    -------
    dict
        ``mean``, ``difference`` and ``effect size``: share of 95 % intervals that hold the true 0; ``p < 0.05``: share
        of single comparisons; ``claim``: share of families of three comparisons in which one or more is called better
        or worse.

    Examples
    --------
    >>> shares = check_tables("between", 3, 4, np.random.default_rng(0))
    >>> list(shares)
    ['mean', 'difference', 'effect size', 'p < 0.05', 'claim']
    """
    counts = dict.fromkeys(("mean", "difference", "effect size", "p < 0.05", "claim"), 0)
    pairs = [("arm0", f"arm{index}") for index in range(1, NUM_ARMS)]
    for _ in range(num_tables):
        tables = simulate_arms(rng, num_animals, world, num_arms=NUM_ARMS)
        mean = estimate_mean(tables["arm1"], "accuracy", rng=rng).interval()
        found = compare_arms(tables, pairs, "accuracy", rng=rng)
        difference, effect = found[0].interval, found[0].effect
        counts["mean"] += mean.low <= 0 <= mean.high
        counts["difference"] += difference.low <= 0 <= difference.high
        counts["effect size"] += effect.low <= 0 <= effect.high
        counts["p < 0.05"] += found[0].p < ALPHA
        counts["claim"] += any(comparison.verdict in ("better", "worse") for comparison in found)
    return _shares(counts, num_tables)


def check_margins(num_animals: int, num_tables: int, rng: np.random.Generator) -> Shares:
    """Count false "no worse" and "equivalent" where the true difference is just the margin.

    Parameters
    ----------
    num_animals, num_tables, rng
        See `check_tables`; the world is ``between``.

    Returns
    -------
    dict
        ``no worse`` and ``equivalent``.

    Examples
    --------
    >>> sorted(check_margins(3, 4, np.random.default_rng(0)))
    ['equivalent', 'no worse']
    """
    counts = dict.fromkeys(("no worse", "equivalent"), 0)
    for _ in range(num_tables):
        tables = simulate_arms(rng, num_animals, "between", num_arms=2)
        tables["arm0"] = tables["arm0"].assign(value=tables["arm0"]["value"] - MARGIN)
        [found] = compare_arms(tables, [("arm0", "arm1")], "accuracy", rng=rng, margin=MARGIN)
        counts["no worse"] += found.p_no_worse < ALPHA
        counts["equivalent"] += found.p_equivalent < ALPHA
    return _shares(counts, num_tables)


def check_trainings(
    num_animals: int,
    num_tables: int,
    rng: np.random.Generator,
    *,
    seed_scatter: float,
    num_seeds: int = 5,
    effect: float = 0.0,
) -> Shares:
    """Count significant differences between two trained arms, and how often their interval covers the truth.

    Parameters
    ----------
    num_animals, num_tables, rng
        See `check_tables`. With one animal trainings alone are the replicate and the claim is about that animal, so it
        has no difference of its own here.
    seed_scatter : float
        Standard deviation of the trainings' luck, see `simulate_trainings`.
    num_seeds : int
        Trainings.
    effect : float
        True difference; 0 makes every significant one a false positive, any other makes the share the power.

    Returns
    -------
    dict
        ``covered``, ``significant``, and ``animals alone``: the share significant without the trainings' error (NaN
        with one animal).

    Examples
    --------
    >>> list(check_trainings(5, 4, np.random.default_rng(0), seed_scatter=0.5))
    ['covered', 'significant', 'animals alone']
    """
    scatter = {"seed_scatter": seed_scatter, "animal_scatter": 0.5 if num_animals > 1 else 0.0}
    difference = effect + simulate_trainings(rng, num_tables, num_animals, num_seeds, **scatter)
    animals, trainings = difference.mean(axis=2), difference.mean(axis=1)
    if num_animals == 1:
        low, high = t_bounds(trainings)
        alone = float("nan")
    else:
        # What `estimate_difference` makes of a score table with seeds, of all tables at once.
        error, degrees = crossed_error(animals, trainings)
        reach = stats.t.ppf(1 - ALPHA / 2, degrees) * error
        low, high = animals.mean(axis=1) - reach, animals.mean(axis=1) + reach
        alone = _share_beside(*t_bounds(animals), 0.0)
    covered, significant = 1 - _share_beside(low, high, effect), _share_beside(low, high, 0.0)
    return {"covered": covered, "significant": significant, "animals alone": alone}


def _share_beside(low: FloatArray, high: FloatArray, truth: float) -> float:
    """Share of intervals that do not hold the truth."""
    return float(((low > truth) | (high < truth)).mean())


def seed_power(num_seeds: int, effect: float, num_tables: int, rng: np.random.Generator) -> float:
    """Share of comparisons over trainings alone that show a true effect; the t interval of `estimate_over_seeds`.

    Parameters
    ----------
    num_seeds : int
        Pairs of trainings.
    effect : float
        In standard deviations of the paired differences.
    num_tables, rng
        See `check_tables`.

    Examples
    --------
    >>> round(seed_power(5, 2.0, 4000, np.random.default_rng(0)), 1)
    0.9
    """
    return _share_beside(*t_bounds(effect + rng.normal(size=(num_tables, num_seeds))), 0.0)


def _shares(counts: dict[str, int], num_tables: int) -> Shares:
    return {name: float(count) / num_tables for name, count in counts.items()}
