"""Arms against each other: paired differences, effect sizes, and what may be claimed of a whole family of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import optimize, special, stats

from poyo_ssl.errors import ConfigError
from poyo_ssl.evaluation.estimate import TINY, Estimate, FloatArray, Interval
from poyo_ssl.evaluation.metric_names import describe_metric
from poyo_ssl.evaluation.statistics import MIN_SEEDS, estimate_difference

MARGIN = 0.02
"""A difference of scores between 0 and 1 that nobody would act on."""
ALPHA = 0.05
MAX_EXACT_T = 35.0
"""Beyond this t the noncentral distribution loses its digits; the effect size counts as normal there."""


@dataclass(frozen=True)
class EffectSize:
    """A standardised mean difference with its interval; NaN for fewer than two pairs."""

    value: float
    low: float
    high: float


def effect_size(differences: npt.ArrayLike, level: float = 0.95) -> EffectSize:
    """Hedges' g of paired differences: their mean over their standard deviation (Cohen's d_z), less its bias.

    The interval inverts the noncentral t distribution (Hedges and Olkin 1985; Cumming and Finch 2001) and so takes
    differences as normal. Of the effect sizes for pairs this one decides how many animals a test needs. It grows
    with the tightness of the pairing, so read it beside the difference itself. Infinite where all
    differences are equal and not 0.

    Parameters
    ----------
    differences : array_like
        ``(n,)`` one per independent unit (animal).
    level : float
        Coverage.

    Examples
    --------
    >>> g = effect_size([0.4, 0.3, 0.2, 0.1])
    >>> print(f"{g.value:.2f} [{g.low:.2f}, {g.high:.2f}]")
    1.40 [0.11, 2.66]
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


@dataclass(frozen=True)
class Comparison:
    """One arm less another, in one metric.

    Attributes
    ----------
    arm, other, metric : str
        What was compared.
    interval : Interval
        Of the paired difference, 95 %.
    effect : EffectSize
        See `effect_size`.
    p, p_holm : float
        Two-sided p of "no difference", as it is and for the whole family.
    margin : float
        Largest difference that counts as none; NaN where no margin was stated for this metric.
    p_no_worse : float
        p of "the arm is worse by the margin or more" (non-inferiority), Holm-adjusted over the family.
    p_equivalent : float
        p of "they differ by the margin or more" (two one-sided tests, Schuirmann 1987), Holm-adjusted over the family.
    num_seeds : int
        Pairs of trainings behind it.
    verdict : str
        ``better``, ``worse`` (``higher``, ``lower`` for a metric without a direction), ``equivalent``, ``no worse``,
        ``inconclusive``; ``no claim: k of 5 seeds`` between two trained arms with too few; ``not judged`` without an
        error.
    """

    arm: str
    other: str
    metric: str
    interval: Interval
    effect: EffectSize
    p: float
    p_holm: float
    margin: float
    p_no_worse: float
    p_equivalent: float
    num_seeds: int
    verdict: str


def compare_arms(
    tables: Mapping[str, pd.DataFrame],
    pairs: Sequence[tuple[str, str]],
    metric: str,
    *,
    rng: np.random.Generator,
    trained: frozenset[str] = frozenset(),
    margin: float = MARGIN,
) -> list[Comparison]:
    """Compare pairs of arms in one metric; all of them are one family for Holm's correction.

    Differences, "no worse" and "equivalent" are three families of their own: each kind of claim is wrong anywhere
    in its family with a probability of at most 5 %.

    Parameters
    ----------
    tables : mapping
        Score table by arm, on the same targets.
    pairs : sequence of (arm, other)
        What to compare.
    metric : str
        The metric.
    rng : numpy.random.Generator
        For the bootstrap over ten or more animals.
    trained : frozenset of str
        Arms that depend on a seed. Between two of them a claim is about trainings, and is refused below `MIN_SEEDS`.
    margin : float
        Largest difference that counts as none, stated before the scores are seen; used for scores of which 1 is best.

    Returns
    -------
    list of Comparison
        In the order of `pairs`.

    Raises
    ------
    ConfigError
        If the arms' rows do not match, see `estimate_difference`, or the margin is not above 0.

    Examples
    --------
    >>> ours = pd.DataFrame({"subject_id": list("abcd"), "recording_id": list("abcd"), "metric": "accuracy",
    ...                      "value": [0.6, 0.7, 0.65, 0.8], "num_targets": 100})
    >>> tables = {"ours": ours, "lda": ours.assign(value=[0.5, 0.55, 0.5, 0.7])}
    >>> [found] = compare_arms(tables, [("ours", "lda")], "accuracy", rng=np.random.default_rng(0))
    >>> print(found.interval, found.verdict)
    0.125 [0.079, 0.171] (n=4 animals, t) better
    """
    if not margin > 0:
        raise ConfigError(f"margin {margin}", allowed="above 0", fix="pass the largest difference that does not matter")
    shown = describe_metric(metric)
    margin = margin if shown.is_share else float("nan")
    found = []
    for arm, other in pairs:
        # Every pair draws the same animals, so that no result depends on the order of the arms.
        estimate = estimate_difference(tables[arm], tables[other], metric, rng=deepcopy(rng))
        found.append(_compare(estimate, arm, other, metric, margin))
    adjusted = {name: holm([getattr(c, name) for c in found]) for name in ("p", "p_no_worse", "p_equivalent")}
    judged = []
    for index, comparison in enumerate(found):
        corrected = replace(
            comparison,
            p_holm=float(adjusted["p"][index]),
            p_no_worse=float(adjusted["p_no_worse"][index]),
            p_equivalent=float(adjusted["p_equivalent"][index]),
        )
        about_trainings = {comparison.arm, comparison.other} <= trained
        judged.append(replace(corrected, verdict=_verdict(corrected, shown.better, about_trainings=about_trainings)))
    return judged


def _compare(estimate: Estimate, arm: str, other: str, metric: str, margin: float) -> Comparison:
    if np.isnan(margin):
        p_no_worse = p_equivalent = float("nan")
    else:
        p_no_worse = estimate.p_above(-margin)
        p_equivalent = max(p_no_worse, estimate.p_below(margin))
    return Comparison(
        arm=arm,
        other=other,
        metric=metric,
        interval=estimate.interval(),
        effect=effect_size(estimate.units),
        p=estimate.p_two_sided(),
        p_holm=float("nan"),
        margin=margin,
        p_no_worse=p_no_worse,
        p_equivalent=p_equivalent,
        num_seeds=estimate.num_seeds,
        verdict="",
    )


def _verdict(c: Comparison, better: str, *, about_trainings: bool) -> str:
    """Return the strongest claim that the family-wise p values carry."""
    if np.isnan(c.p):
        return "not judged"
    if about_trainings and c.num_seeds < MIN_SEEDS:
        return f"no claim: {c.num_seeds} of {MIN_SEEDS} seeds"
    if c.p_holm < ALPHA:
        above = c.interval.value > 0
        if not better:
            return "higher" if above else "lower"
        return "better" if above == (better == "higher") else "worse"
    if c.p_equivalent < ALPHA:
        return "equivalent"
    return "no worse" if c.p_no_worse < ALPHA else "inconclusive"
