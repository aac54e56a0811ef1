"""Intervals cover and tests err as they say, on simulated score tables; docs/statistics.md has the published run."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from poyo_ssl.evaluation.statistics import crossed_error, estimate_difference
from statistics_coverage import (
    SCATTER,
    World,
    check_margins,
    check_tables,
    check_trainings,
    seed_power,
    simulate_arms,
    simulate_trainings,
)

CHANCE = 1e-4
"""How often a check may fail although the statistics are as they should be."""


def assert_covers(share: float, num_tables: int) -> None:
    """Coverage may be 0.95 +- 0.02; beyond that it must differ by more than the number of tables explains."""
    low, high = stats.binom.ppf(CHANCE, num_tables, 0.93), stats.binom.isf(CHANCE, num_tables, 0.97)
    assert low <= round(share * num_tables) <= high


def assert_rare(share: float, num_tables: int) -> None:
    """False positives may be 5 %; above that they must differ by more than the number of tables explains."""
    assert round(share * num_tables) <= stats.binom.isf(CHANCE, num_tables, 0.05)


@pytest.mark.parametrize(
    ("world", "animals", "num_tables"), [("between", 5, 250), ("within", 3, 200), ("between", 12, 100)]
)
def test_intervals_cover_and_false_positives_are_rare(world: World, animals: int, num_tables: int) -> None:
    shares = check_tables(world, animals, num_tables, np.random.default_rng(animals))
    for name in ("mean", "difference", "effect size"):
        assert_covers(shares[name], num_tables)
    for name in ("p < 0.05", "claim"):
        assert_rare(shares[name], num_tables)


@pytest.mark.slow
def test_two_thousand_tables() -> None:
    shares = check_tables("between", 5, 2000, np.random.default_rng(7))
    for name in ("mean", "difference", "effect size"):
        assert_covers(shares[name], 2000)
    for name in ("p < 0.05", "claim"):
        assert_rare(shares[name], 2000)


def test_the_check_finds_an_interval_that_covers_too_little() -> None:
    """The percentile bootstrap of three animals, which EVALUATION.md warns of, and Student's t without its tails."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(250, 3))
    drawn = np.take_along_axis(values[:, None], rng.integers(3, size=(250, 400, 3)), axis=2).mean(axis=2)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=1)
    with pytest.raises(AssertionError):
        assert_covers(float(((low <= 0) & (high >= 0)).mean()), 250)
    z = values.mean(axis=1) / (values.std(axis=1, ddof=1) / np.sqrt(3))
    with pytest.raises(AssertionError):
        assert_rare(float((np.abs(z) > 1.96).mean()), 250)


def test_margins_are_not_crossed_too_often() -> None:
    shares = check_margins(5, 200, np.random.default_rng(1))
    assert_rare(shares["no worse"], 200)
    assert_rare(shares["equivalent"], 200)


def test_trainings_that_all_animals_share_are_part_of_the_error() -> None:
    rng = np.random.default_rng(2)
    for animals, scatter in ((3, 1.0), (10, 1.0), (10, 0.3), (30, 0.5)):
        shares = check_trainings(animals, 5000, rng, seed_scatter=scatter)
        assert_covers(shares["covered"], 5000)
        assert_rare(shares["significant"], 5000)
        with pytest.raises(AssertionError):  # without it one finds differences that are the luck of five trainings
            assert_rare(shares["animals alone"], 5000)
    assert check_trainings(10, 2000, rng, seed_scatter=0.5, effect=1.5)["significant"] > 0.7
    alone = check_trainings(1, 5000, rng, seed_scatter=1.0)
    assert_rare(alone["significant"], 5000)
    assert_covers(alone["covered"], 5000)


def test_the_crossed_error_is_what_score_tables_get() -> None:
    difference = simulate_trainings(np.random.default_rng(3), 1, 12, 5, seed_scatter=0.4)[0]
    animal, seed = (index.ravel() for index in np.indices(difference.shape))
    table = pd.DataFrame({"recording_id": animal, "subject_id": animal, "seed": seed, "metric": "accuracy"})
    table = table.assign(value=difference.ravel(), num_targets=10)
    found = estimate_difference(table, table.assign(value=0.0), "accuracy", rng=np.random.default_rng(0))
    error, degrees = crossed_error(difference.mean(axis=1), difference.mean(axis=0))
    assert (found.error, found.degrees, found.num_seeds) == (pytest.approx(error), pytest.approx(degrees), 5)
    assert found.interval().method == "t"


@pytest.mark.parametrize(("seeds", "effect"), [(3, 1.0), (5, 1.0), (5, 2.0), (10, 1.0)])
def test_power_over_seeds_is_that_of_the_noncentral_t(seeds: int, effect: float) -> None:
    edge = stats.t.ppf(0.975, seeds - 1)
    centre = effect * np.sqrt(seeds)
    expected = stats.nct.sf(edge, seeds - 1, centre) + stats.nct.cdf(-edge, seeds - 1, centre)
    found = seed_power(seeds, effect, 20_000, np.random.default_rng(seeds))
    assert found == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / 20_000))


@pytest.mark.parametrize("world", SCATTER)
def test_simulated_arms_have_the_stated_scatter(world: World) -> None:
    tables = simulate_arms(np.random.default_rng(5), 4000, world)
    difference = tables["arm1"]["value"] - tables["arm0"]["value"]
    means = difference.groupby(tables["arm0"]["subject_id"]).mean()
    between, _, within = SCATTER[world]
    assert abs(means.mean()) < 4 * means.std() / np.sqrt(len(means))
    if world == "within":
        # Twelve correlated blocks of both arms in one to three recordings.
        assert 0 < means.std() < within
    else:
        assert means.std() == pytest.approx(between, rel=0.15)
    assert stats.skew(means) == pytest.approx(1.0 if world == "skewed" else 0.0, abs=0.35)
    blocks = tables["arm0"]["value"].to_numpy().reshape(-1, 2, 6)
    blocks = blocks - blocks.mean(axis=2, keepdims=True)
    assert np.corrcoef(blocks[..., :-1].ravel(), blocks[..., 1:].ravel())[0, 1] > 0.1


def test_simulated_trainings_share_their_luck_over_animals() -> None:
    rng = np.random.default_rng(6)
    for scatter, expected in ((2.0, 2.0), (0.0, 0.4 / np.sqrt(300))):
        found = simulate_trainings(rng, 200, 300, 5, seed_scatter=scatter, animal_scatter=0.0).mean(axis=1)
        assert found.std() == pytest.approx(expected, rel=0.1)
