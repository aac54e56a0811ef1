"""Intervals against scipy, coverage on simulated score tables, pairing and its errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from poyo_ssl.errors import ConfigError
from poyo_ssl.evaluation.statistics import (
    Estimate,
    Interval,
    effect_size,
    estimate_difference,
    estimate_mean,
    holm,
    t_interval,
)


def simulate(rng: np.random.Generator, *, animals: int, recordings: int = 2, repeats: int = 2) -> pd.DataFrame:
    """Scores around 0 that share an animal's and a recording's deviation."""
    value = (
        rng.normal(0, 1, (animals, 1, 1))
        + rng.normal(0, 0.5, (animals, recordings, 1))
        + rng.normal(0, 0.3, (animals, recordings, repeats))
    )
    animal, recording, repeat = np.indices(value.shape).reshape(3, -1)
    return pd.DataFrame(
        {
            "recording_id": [f"m{a}-{r}" for a, r in zip(animal, recording, strict=True)],
            "subject_id": [f"m{a}" for a in animal],
            "stimulus": "natural_movie_one",
            "repeat": repeat,
            "metric": "accuracy",
            "value": value.ravel(),
            "num_targets": 100,
        }
    )


def test_t_interval_equals_scipy() -> None:
    x = np.random.default_rng(0).normal(size=7)
    found = t_interval(x, level=0.9)
    low, high = stats.ttest_1samp(x, 0).confidence_interval(0.9)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert (found.n, found.method) == (7, "t")


def test_one_value_gets_no_bounds_and_none_is_an_error() -> None:
    found = t_interval([0.4])
    assert (found.value, found.n, found.method) == (0.4, 1, "none")
    assert np.isnan(found.low)
    assert np.isnan(found.high)
    for values, text in (([], "no scores"), ([1.0, np.nan], "score 1 is NaN")):
        with pytest.raises(ConfigError, match=text):
            t_interval(values)
    with pytest.raises(ConfigError, match="level 95"):
        t_interval([1.0, 2.0], level=95)


@pytest.mark.parametrize("animals", [3, 5])
def test_t_interval_covers_on_simulated_tables(animals: int) -> None:
    rng = np.random.default_rng(animals)
    # 4,000 tables at once, as the table-wise function averages them: repeats, recordings, then animals.
    value = (
        rng.normal(0, 1, (4000, animals, 1, 1))
        + rng.normal(0, 0.5, (4000, animals, 2, 1))
        + rng.normal(0, 0.3, (4000, animals, 2, 2))
    )
    intervals = [t_interval(own) for own in value.mean(axis=(2, 3))]
    assert abs(np.mean([own.low <= 0 <= own.high for own in intervals]) - 0.95) < 0.02


def test_averages_are_taken_inside_the_animal_first() -> None:
    table = simulate(np.random.default_rng(1), animals=4)
    means = table.groupby("subject_id")["value"].mean()
    found, expected = estimate_mean(table, "accuracy", rng=np.random.default_rng(0)).interval(), t_interval(means)
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert (found.n, found.method) == (4, "t")


def test_rows_count_by_their_targets() -> None:
    table = simulate(np.random.default_rng(1), animals=1, recordings=1)
    table = table.assign(value=[0.0, 1.0], num_targets=[30, 10], repeat=0, block=[0, 1])
    found = estimate_mean(table, "accuracy", rng=np.random.default_rng(0)).interval()
    assert (found.value, found.method) == (0.25, "none")


def test_bootstrap_repeats_with_the_same_generator() -> None:
    table = simulate(np.random.default_rng(3), animals=12)
    first, second = (estimate_mean(table, "accuracy", rng=np.random.default_rng(9)).interval() for _ in range(2))
    assert first == second


def test_bootstrap_without_variance_has_no_width() -> None:
    table = simulate(np.random.default_rng(3), animals=12).assign(value=0.5)
    found = estimate_mean(table, "accuracy", rng=np.random.default_rng(0)).interval()
    assert (found.low, found.high) == (pytest.approx(0.5), pytest.approx(0.5))


def test_paired_interval_removes_what_arms_share() -> None:
    a = simulate(np.random.default_rng(4), animals=6)
    b = a.assign(value=a["value"] - 0.1).sample(frac=1, random_state=0)
    found = estimate_difference(a, b, "accuracy", rng=np.random.default_rng(0)).interval()
    assert (found.low, found.high) == (pytest.approx(0.1), pytest.approx(0.1))
    unpaired = estimate_mean(a, "accuracy", rng=np.random.default_rng(0)).interval()
    assert unpaired.high - unpaired.low > 0.5


def test_pairing_names_the_first_offender() -> None:
    rng = np.random.default_rng(0)
    a = simulate(rng, animals=3)
    for b, text in (
        (a.drop(index=5), "m1-0.*repeat 1 is missing from the second arm"),
        (pd.concat([a, a.iloc[[2]]]), "m0-1.*occurs twice in the second arm"),
        (a.assign(num_targets=np.where(a.index == 3, 99, 100)), "m0-1.*100 and 99 targets"),
        (a.assign(value=np.nan), "m0-0 is NaN"),
        (a.assign(metric="ssim"), "allowed: ssim"),
    ):
        with pytest.raises(ConfigError, match=text):
            estimate_difference(a, b, "accuracy", rng=rng).interval()


def p_value(a: Any, b: Any) -> float:
    return Estimate.of(np.subtract(a, b)).p_two_sided()


def test_paired_test_equals_scipy() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(2, 6))
    assert p_value(a, b) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
    found = t_interval(a - b)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_equal_differences_and_single_pairs() -> None:
    assert p_value([1, 2], [1, 2]) == 1.0
    assert np.isnan(p_value([1], [2]))


@pytest.mark.parametrize("n", [2, 3, 5, 6, 9])
def test_equal_differences_are_judged_by_their_number(n: int) -> None:
    """Coarse scores of few animals are often equal by chance; the sign test is exact there."""
    expected = stats.binomtest(n, n).pvalue
    assert Estimate.of([0.25] * n).p_two_sided() == pytest.approx(expected)
    assert Estimate.of([-0.25] * n).p_two_sided() == pytest.approx(expected)
    scores = np.linspace(0, 0.5, n)  # differences that are equal up to rounding
    assert p_value(scores + 0.25, scores) == pytest.approx(expected)
    interval = t_interval((scores + 0.25) - scores)
    if expected < 0.05:
        assert (interval.low, interval.high) == (pytest.approx(0.25), pytest.approx(0.25))
    else:
        assert np.isnan([interval.low, interval.high]).all()


def test_false_positives_are_rare_where_scores_are_coarse() -> None:
    """Two arms of equal skill on 16 trials of each of two animals: equal differences happen in one table of twelve."""
    hits = np.random.default_rng(4).binomial(16, 0.3, (2, 2000, 2)) / 16
    p = np.array([p_value(a, b) for a, b in zip(*hits, strict=True)])
    assert 0.03 < np.mean((hits[0, :, 0] - hits[1, :, 0] == hits[0, :, 1] - hits[1, :, 1]) & (p < 1)) < 0.15
    assert np.mean(p < 0.05) <= 0.05


def test_holm_by_hand_and_without_tests() -> None:
    np.testing.assert_allclose(holm([0.005, 0.02, 0.04, 0.01]), [0.02, 0.04, 0.04, 0.03])
    np.testing.assert_allclose(holm([0.9, np.nan, 0.6]), [1.0, np.nan, 1.0])


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_lies_between_no_correction_and_bonferroni(p: list[float]) -> None:
    adjusted = holm(p)
    assert (adjusted >= np.array(p)).all()
    assert (adjusted <= np.minimum(np.array(p) * len(p), 1) + 1e-12).all()


def test_examples_by_hand() -> None:
    found = effect_size([0.4, 0.3, 0.2, 0.1])
    assert [round(x, 2) for x in (found.value, found.low, found.high)] == [1.40, 0.11, 2.66]
    assert str(t_interval([1.0, 2.0, 3.0])) == "2.000 [-0.484, 4.484] (n=3, t)"
    assert Estimate.of([1.0, 2.0, 3.0]).p_two_sided() == pytest.approx(0.0742, abs=1e-4)


def test_interval_reads_as_one_line() -> None:
    assert str(Interval(0.5, 0.4, 0.6, 3, "t")) == "0.500 [0.400, 0.600] (n=3, t)"
