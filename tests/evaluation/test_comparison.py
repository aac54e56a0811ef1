"""Comparisons of arms: effect sizes, Holm's families, "no worse" and "equivalent" against SciPy, and the verdicts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from poyo_ssl.errors import ConfigError
from poyo_ssl.evaluation.leaderboard import Row, compare_arms
from poyo_ssl.evaluation.statistics import effect_size, holm


def make_table(values: Any, metric: str = "accuracy", seed: int | None = None) -> pd.DataFrame:
    """One recording per animal, one value each."""
    names = [f"m{i}" for i in range(len(values))]
    table = pd.DataFrame(
        {"recording_id": names, "subject_id": names, "metric": metric, "value": values, "num_targets": 50}
    )
    return table if seed is None else table.assign(seed=seed)


def compare(a: Any, b: Any, metric: str = "accuracy", **options: Any) -> Row:
    tables = {"a": make_table(a, metric), "b": make_table(b, metric)}
    [found] = compare_arms(tables, [("a", "b")], metric, rng=np.random.default_rng(0), **options)
    return found


@pytest.mark.parametrize("n", [3, 6, 40, 500])
@pytest.mark.parametrize("shift", [-0.8, 0.0, 0.3, 3.0])
def test_effect_size_bounds_invert_the_noncentral_t(n: int, shift: float) -> None:
    x = np.random.default_rng(n).normal(shift, 1, n)
    degrees, t = n - 1, stats.ttest_1samp(x, 0).statistic
    found = effect_size(x)
    # Exact small-sample factor (Hedges 1981), and his approximation of it.
    unbiased = found.value / (x.mean() / x.std(ddof=1))
    assert unbiased == pytest.approx(1 - 3 / (4 * degrees - 1), abs=0.01)
    if abs(t) < 35:
        below = [stats.nct.cdf(t, degrees, bound / unbiased * np.sqrt(n)) for bound in (found.low, found.high)]
        np.testing.assert_allclose(below, [0.975, 0.025], atol=1e-5)
    assert found.low < found.value < found.high


def test_effect_size_is_odd_and_has_no_scale() -> None:
    x = np.random.default_rng(1).normal(0.5, 1, 9)
    found, negative, large = effect_size(x), effect_size(-x), effect_size(1000 * x)
    assert (negative.value, negative.low, negative.high) == pytest.approx((-found.value, -found.high, -found.low))
    assert (large.value, large.low, large.high) == pytest.approx((found.value, found.low, found.high))


def test_effect_size_bias_is_removed() -> None:
    # 20,000 samples of 5: the mean of g is the true effect within four standard errors, that of d is not.
    x = np.random.default_rng(2).normal(0.7, 1, (20_000, 5))
    d = x.mean(axis=1) / x.std(axis=1, ddof=1)
    factor = effect_size(x[0]).value / d[0]
    error = 4 * factor * d.std() / np.sqrt(len(d))
    assert factor * d.mean() == pytest.approx(0.7, abs=error)
    assert d.mean() > 0.7 + error


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.0, 0.0, 0.0], 0.0), ([0.25, 0.25], np.inf), ([-1.0, -1.0, -1.0], -np.inf), ([0.5], np.nan), ([1, 2], np.nan)],
)
def test_effect_size_at_the_edges(values: list[float], expected: float) -> None:
    found = effect_size(values)
    np.testing.assert_equal([found.value, found.low, found.high], [expected] * 3)


def test_p_values_are_those_of_scipy() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(0.6, 0.05, (2, 7))
    found = compare(a, b, margin=0.04)
    d = a - b
    assert found.p == pytest.approx(stats.ttest_1samp(d, 0).pvalue)
    above = stats.ttest_1samp(d, -0.04, alternative="greater").pvalue
    below = stats.ttest_1samp(d, 0.04, alternative="less").pvalue
    assert found.p_no_worse == pytest.approx(above)
    assert found.p_equivalent == pytest.approx(max(above, below))
    low, high = stats.ttest_1samp(d, 0).confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_every_kind_of_claim_is_a_family_of_its_own() -> None:
    rng = np.random.default_rng(4)
    tables = {
        name: make_table(rng.normal(mean, 0.03, 8)) for name, mean in zip("abcd", (0.6, 0.5, 0.59, 0.6), strict=True)
    }
    pairs = [("a", other) for other in "bcd"]
    found = compare_arms(tables, pairs, "accuracy", rng=rng, margin=0.05)
    alone = [compare_arms(tables, [pair], "accuracy", rng=rng, margin=0.05)[0] for pair in pairs]
    for name, single in (("p_holm", "p"), ("p_no_worse", "p_no_worse"), ("p_equivalent", "p_equivalent")):
        expected = holm([getattr(c, single) for c in alone])
        np.testing.assert_allclose([getattr(c, name) for c in found], expected)
    assert [c.p for c in found] == [c.p for c in alone]


@settings(deadline=None, max_examples=30)
@given(st.permutations(range(4)))
def test_holm_does_not_depend_on_the_order(order: list[int]) -> None:
    p = np.array([0.2, 0.01, 0.04, 0.01])
    np.testing.assert_allclose(holm(p[order]), holm(p)[order])


def test_a_result_does_not_depend_on_the_other_arms_or_their_order() -> None:
    rng = np.random.default_rng(5)
    tables = {name: make_table(rng.normal(0.5, 0.1, 14)) for name in "abc"}  # enough animals for the bootstrap
    first = compare_arms(tables, [("a", "b"), ("a", "c")], "accuracy", rng=np.random.default_rng(1))
    second = compare_arms(tables, [("a", "c"), ("a", "b")], "accuracy", rng=np.random.default_rng(1))
    assert first[0].method == "bootstrap"
    assert first == second[::-1]


STEPS = np.array([-0.02, -0.01, 0.0, 0.01, 0.02])
VERDICTS: dict[str, tuple[str, np.ndarray, str]] = {
    "better": ("accuracy", STEPS + 0.1, "better"),
    "worse": ("accuracy", STEPS - 0.1, "worse"),
    "better when lower": ("absolute_error_s", STEPS - 0.1, "better"),
    "worse when higher": ("circular_error_deg", STEPS + 0.1, "worse"),
    "neither good nor bad, higher": ("constant_share", STEPS + 0.1, "higher"),
    "neither good nor bad, lower": ("constant_share", STEPS - 0.1, "lower"),
    "equivalent": ("accuracy", STEPS / 10, "equivalent"),
    "no worse": ("accuracy", STEPS + 0.015, "no worse"),
    "inconclusive": ("accuracy", STEPS * 10, "inconclusive"),
    "no margin, no equivalence": ("psnr_db", STEPS / 10, "inconclusive"),
}


@pytest.mark.parametrize(("metric", "difference", "verdict"), VERDICTS.values(), ids=VERDICTS)
def test_verdicts(metric: str, difference: np.ndarray, verdict: str) -> None:
    base = np.array([0.3, 0.5, 0.4, 0.6, 0.5])
    assert compare(base + difference, base, metric).verdict == verdict


def test_one_animal_is_not_judged_and_a_margin_must_be_positive() -> None:
    found = compare([0.5], [0.4])
    assert (found.verdict, found.value) == ("not judged", pytest.approx(0.1))
    for margin in (0.0, -0.1, float("nan")):
        with pytest.raises(ConfigError, match=r"margin.*above 0"):
            compare([0.5, 0.6], [0.4, 0.3], margin=margin)


@pytest.mark.parametrize(("seeds", "verdict"), [(4, "no claim: 4 of 5 seeds"), (5, "better")])
def test_between_trained_arms_five_seeds_are_needed(seeds: int, verdict: str) -> None:
    rng = np.random.default_rng(6)
    tables = {
        name: pd.concat([make_table(mean + rng.normal(0, 0.002, 6), seed=s) for s in range(seeds)])
        for name, mean in (("ours", 0.7), ("scratch", 0.5))
    }
    tables["ridge"] = make_table(np.full(6, 0.5) + rng.normal(0, 0.002, 6), seed=-1)
    trained = frozenset({"ours", "scratch"})
    pairs = [("ours", "scratch"), ("ours", "ridge")]
    found = compare_arms(tables, pairs, "accuracy", rng=rng, trained=trained)
    assert [c.verdict for c in found] == [verdict, "better"]
    assert [c.num_seeds for c in found] == [seeds, 1]
