"""All predictions files of a folder in one table per task and split: scores, ranks, gain over the best baseline.

Scores of different splits or data mean different things, so each task and split has a table of its own, and files of
different data in one of them are refused. Every decoder that writes a predictions file takes part
(docs/predictions.md).
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import optimize, special, stats

from poyo_ssl.errors import ConfigError, PoyoError, suggest
from poyo_ssl.evaluation.checks import KEYS, Truth, check_same_truth
from poyo_ssl.evaluation.metrics import describe_metric, headline_metric
from poyo_ssl.evaluation.predictions import FORMAT, ArmKind, Predictions, PredictionsError, check_same_targets
from poyo_ssl.evaluation.scores import merge_folds, score_table
from poyo_ssl.evaluation.statistics import (
    MIN_SEEDS,
    TINY,
    Estimate,
    FloatArray,
    Interval,
    estimate_difference,
    estimate_mean,
)
from poyo_ssl.files import check_new, new_folder, plain, versions, write_beside

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


CHANCE = "chance"
BEST_BASELINE = {
    "validation": "chosen by its validation score",
    "test": "chosen by its test score, which is optimistic for the baseline",
}
"""How the best simple baseline can have been chosen, and what that means."""


@dataclass(frozen=True)
class ScoredFile:
    """What the comparison of arms needs of a predictions file, once it is scored.

    Attributes
    ----------
    name : str
        What to call the file in messages.
    task, split, arm, kind, model_id, seed, data_checksum, validation_metric, validation_score
        As in `Predictions`.
    num_classes : int
        Number of classes; 0 for frames.
    truth : Truth
        What was to be decoded.
    table : DataFrame
        Score table.
    """

    name: str
    task: str
    split: str
    arm: str
    kind: ArmKind
    model_id: str
    seed: int
    data_checksum: str
    validation_metric: str
    validation_score: float
    num_classes: int
    truth: Truth
    table: pd.DataFrame

    @property
    def targets(self) -> pd.DataFrame:
        """``recording_id`` and ``tick`` (time in microseconds) of every target."""
        return self.truth.targets[KEYS]

    @classmethod
    def of(cls, predictions: Predictions, name: str = "") -> ScoredFile:
        """Score predictions."""
        origin = ("arm", "kind", "model_id", "seed", "data_checksum")
        facts = ("task", "split", *origin, "validation_metric", "validation_score")
        return cls(
            name=name or f"arm '{predictions.arm}'",
            **{fact: getattr(predictions, fact) for fact in facts},
            num_classes=len(predictions.class_values),
            truth=Truth.of(predictions),
            table=score_table(predictions),
        )


@dataclass(frozen=True)
class Arm:
    """All files of one arm on one task and split: its seeds, and folds that share the targets among them."""

    name: str
    kind: ArmKind
    files: tuple[ScoredFile, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of its trainings, in order; empty where nothing is random."""
        return tuple(sorted({file.seed for file in self.files if file.seed >= 0}))

    @property
    def model_ids(self) -> frozenset[str]:
        """Ids of the models behind its files, as far as they are known."""
        return frozenset(file.model_id for file in self.files if file.model_id)

    @property
    def table(self) -> pd.DataFrame:
        """Score tables of all files, one below the other; blocks that folds share are put together."""
        return merge_folds(pd.concat([file.table for file in self.files], ignore_index=True))

    def validation_score(self, metric: str) -> float:
        """Mean validation score in a metric over the files; NaN unless all of them have it."""
        own = [file.validation_score for file in self.files if file.validation_metric == metric]
        return float(np.mean(own)) if len(own) == len(self.files) else math.nan


@dataclass(frozen=True)
class Part:
    """All arms of one task and split on the same targets, models first."""

    task: str
    split: str
    arms: Mapping[str, Arm]
    num_classes: int

    @property
    def metrics(self) -> list[str]:
        """Metrics of the first arm, in the order of its table."""
        return list(dict.fromkeys(next(iter(self.arms.values())).table["metric"]))

    @property
    def headline(self) -> str:
        """The metric that ranks the arms."""
        return headline_metric(self.task, self.split, self.metrics)

    def models_of(self, control: str) -> list[str]:
        """Names of the models that a control was made from; none where it has no model, or one of its own."""
        arm = self.arms[control]
        models = self.of_kind("model") if arm.kind == "control" else []
        return [name for name in models if self.arms[name].model_ids & arm.model_ids]

    def of_kind(self, kind: ArmKind) -> list[str]:
        """Names of the arms of a kind."""
        return [name for name, arm in self.arms.items() if arm.kind == kind]


@dataclass(frozen=True)
class Scores:
    """What an evaluation found.

    Attributes
    ----------
    rows : list of dict
        ``arm, task, split, metric, value, low, high, n`` and what else there is to say; also written to
        ``results.json``. A metric named ``<metric> minus <arm>`` is a paired difference.
    tables : dict
        Score table by (task, split, arm).
    """

    rows: list[dict[str, Any]]
    tables: Mapping[tuple[str, str, str], pd.DataFrame]


def evaluate_files(
    files: Iterable[Path | str],
    out: Path | str | None = None,
    *,
    data: Path | str | None = None,
    seed: int = 0,
    margin: float = MARGIN,
    overwrite: bool = False,
) -> Scores:
    """Recompute every score from predictions files, without models and, if you like, without data.

    Parameters
    ----------
    files : iterable of path
        Predictions files: several arms, seeds, splits and tasks are told apart by what the files say.
    out : path, optional
        Folder to make, with copies of the files and ``results.json``; nothing is written by default.
    data : path, optional
        Data folder with ``splits.json``, against which every target is checked (`poyo_ssl.evaluation.checks`).
    seed : int
        Seed of the bootstrap.
    margin : float
        See `compare_arms`.
    overwrite : bool
        Replace results that are there.

    Returns
    -------
    Scores
        Rows and tables.

    Raises
    ------
    PoyoError
        If a file is not valid, does not go with the data, or files of one task and split have different targets; the
        first offender is named.
    """
    paths = [Path(path) for path in files]
    inputs = [*paths, data]
    if out is not None:
        check_new(out, "results", overwrite=overwrite, inputs=inputs)
    scored = load_scored(paths, data)
    scores = summarise(scored, rng=np.random.default_rng(seed), margin=margin)
    if out is not None:
        with new_folder(out, "results", overwrite=overwrite, inputs=inputs) as folder:
            (folder / "predictions").mkdir()
            for file, path in zip(scored, paths, strict=True):
                shutil.copyfile(path, free_path(folder / "predictions", file.arm, file.task, file.split, file.seed))
            write_results(folder, scores, files=[str(path) for path in paths], seed=seed, margin=margin)
    return scores


def load_scored(files: Iterable[Path | str], data: Path | str | None = None) -> list[ScoredFile]:
    """Load and score predictions files, each checked against a data folder first if one is given.

    Raises
    ------
    PoyoError
        If a file is not valid or does not go with the data, or the folder lacks recordings or splits.
    """
    known = None
    if data is not None:
        # Windows need torch, which scores of files do not.
        from poyo_ssl.evaluation.checks import DataFolder

        known = DataFolder(data)
    scored = []
    for path in files:
        predictions = Predictions.load(path)
        if known is not None:
            try:
                known.check(predictions)
            except PredictionsError as error:
                raise PredictionsError(f"{path}: {error.problem}", allowed=error.allowed, fix=error.fix) from None
        scored.append(ScoredFile.of(predictions, str(path)))
    return scored


def free_path(folder: Path, arm: str, task: str, split: str, seed: int) -> Path:
    """Return a path for a predictions file that no file has yet.

    Examples
    --------
    >>> free_path(Path("nowhere"), "shrunk lda", "gratings", "gratings", -1).name
    'shrunk_lda-gratings-gratings.h5'
    """
    safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in arm)
    stem = f"{safe}-{task}-{split}" + (f"-seed{seed}" if seed >= 0 else "")
    number, path = 1, folder / f"{stem}.h5"
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}.h5"
    return path


def write_results(folder: Path, scores: Scores, **facts: Any) -> None:
    """Write results.json, and evaluation.json with what it was made from."""
    write_beside(folder / "results.json", json.dumps(plain(scores.rows), indent=1))
    write_beside(folder / "evaluation.json", json.dumps(plain(facts | {"versions": versions()}), indent=1))


def read_results(folder: Path | str) -> list[dict[str, Any]]:
    """Read the rows of a results folder.

    Raises
    ------
    PoyoError
        If there are none.
    """
    path = Path(folder) / "results.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise PoyoError(f"no results in {folder} ({error})", fix="run 'poyo-ssl evaluate' first") from None


def gather_parts(files: Iterable[ScoredFile]) -> list[Part]:
    """Sort files into tasks and splits, and these into arms.

    Raises
    ------
    PredictionsError
        If one arm has two kinds, predicts a target twice with one seed, or files have other targets than
        most of their task and split, another truth, or other metrics.
    """
    groups: dict[tuple[str, str], list[ScoredFile]] = {}
    for file in files:
        groups.setdefault((file.task, file.split), []).append(file)
    parts = []
    for (task, split), own in groups.items():
        by_arm: dict[str, list[ScoredFile]] = {}
        for file in sorted(own, key=lambda file: file.kind != "model"):
            by_arm.setdefault(file.arm, []).append(file)
        arms = {name: _gather_arm(name, its) for name, its in by_arm.items()}
        check_same_targets(
            {
                f"{arm.name}, seed {seed}" if seed >= 0 else arm.name: pd.concat(
                    [file.targets for file in arm.files if file.seed == seed]
                )
                for arm in arms.values()
                for seed in (arm.seeds or (-1,))
            }
        )
        check_same_truth([(file.name, file.truth) for file in own])
        part = Part(task, split, arms, own[0].num_classes)
        _check_same_metrics(part)
        parts.append(part)
    return parts


def _check_same_metrics(part: Part) -> None:
    """Folds hold fewer candidate frames than the whole, and so may lack identification among many."""
    measured = {name: set(arm.table["metric"]) for name, arm in part.arms.items()}
    for name, own in measured.items():
        lacking = sorted(set().union(*measured.values()) - own)
        if lacking:
            raise PredictionsError(
                f"arm '{name}' has no {lacking[0]} on {part.split}, as other arms have",
                fix="cut all arms into the same files",
            )


def _gather_arm(name: str, files: Sequence[ScoredFile]) -> Arm:
    kinds = dict.fromkeys(file.kind for file in files)
    if len(kinds) > 1:
        raise PredictionsError(
            f"arm '{name}' is of kinds {', '.join(kinds)}", fix="give each arm one kind, or two names"
        )
    seen: dict[int, list[ScoredFile]] = {}
    for file in files:
        for earlier in seen.setdefault(file.seed, []):
            twice = file.targets.merge(earlier.targets)
            if len(twice):
                first = twice.iloc[0]
                raise PredictionsError(
                    f"{earlier.name} and {file.name} both predict recording {first['recording_id']} at "
                    f"{first['tick'] / 1e6:.6f} s as arm '{name}' with seed {file.seed}",
                    fix="leave one out, or give them other arms or seeds",
                )
        seen[file.seed].append(file)
    return Arm(name, files[0].kind, tuple(files))


def summarise(files: Iterable[ScoredFile], *, rng: np.random.Generator, margin: float = MARGIN) -> Scores:
    """Turn scored files into rows with intervals: of each arm, and of each model less every arm after it.

    Parameters
    ----------
    files : iterable of ScoredFile
        Of any tasks and splits.
    rng : numpy.random.Generator
        For the bootstrap over ten or more animals.
    margin : float
        See `compare_arms`.
    """
    rows: list[dict[str, Any]] = []
    tables: dict[tuple[str, str, str], pd.DataFrame] = {}
    for part in gather_parts(files):
        own = {name: arm.table for name, arm in part.arms.items()}
        tables |= {(part.task, part.split, name): table for name, table in own.items()}
        means = {
            (name, metric): estimate_mean(table, metric, rng=deepcopy(rng))
            for name, table in own.items()
            for metric in dict.fromkeys(table["metric"])
        }
        rows += [_score_row(part, name, metric, mean) for (name, metric), mean in means.items()]
        best, how = best_baseline(part, {n: m.value for (n, metric), m in means.items() if metric == part.headline})
        for metric in part.metrics:
            for comparison in compare_part(part, own, metric, rng=deepcopy(rng), margin=margin):
                rows.append(_comparison_row(part, comparison, how if comparison.other == best else ""))
    return Scores(rows, tables)


def best_baseline(part: Part, test_scores: Mapping[str, float]) -> tuple[str, str]:
    """Choose the simple baseline that gains refer to, without a look at test scores where that can be.

    Parameters
    ----------
    part : Part
        Arms of one task and split.
    test_scores : mapping
        Mean test score in the headline metric by arm.

    Returns
    -------
    name, how : str
        The baseline and how it was chosen, a key of `BEST_BASELINE`; both empty without baselines. Unless every
        baseline has a validation score in one and the same metric, the best on the test part is taken: that favours
        the baseline, by the luck that its rivals did not have.
    """
    baselines = part.of_kind("baseline")
    if not baselines:
        return "", ""
    measured = {file.validation_metric for name in baselines for file in part.arms[name].files}
    metric, how = part.headline, "test"
    scores: Mapping[str, float] = test_scores
    if len(measured) == 1 and (shared := measured.pop()):
        metric, how = shared, "validation"
        scores = {name: part.arms[name].validation_score(shared) for name in baselines}
    sign = -1 if describe_metric(metric).better == "lower" else 1
    return max(baselines, key=lambda name: sign * scores[name]), how


def compare_part(
    part: Part, tables: Mapping[str, pd.DataFrame], metric: str, *, rng: np.random.Generator, margin: float = MARGIN
) -> list[Comparison]:
    """Compare each model with every arm that is no earlier model nor another's control, and in accuracy with chance."""
    models = part.of_kind("model")
    source = {name: part.models_of(name) for name in part.arms}
    compared, others = dict(tables), list(part.arms)
    if part.task == "gratings" and metric == "accuracy" and CHANCE not in compared:
        # Chance is an arm that scores 1 / classes everywhere, so that it is weighed like any other.
        rows = tables[others[0]]
        compared[CHANCE] = rows[rows["seed"] == rows["seed"].iloc[0]].assign(value=1 / part.num_classes, seed=-1)
        others.append(CHANCE)
    pairs = [
        (model, other)
        for place, model in enumerate(models)
        for other in others
        if other not in models[: place + 1] and model in (source.get(other) or models)
    ]
    # A model and its own control are one training, so a claim about them needs no others.
    trained = frozenset(name for name, arm in part.arms.items() if arm.seeds and not source[name])
    return compare_arms(compared, pairs, metric, rng=rng, trained=trained, margin=margin) if pairs else []


def _score_row(part: Part, arm: str, metric: str, mean: Estimate) -> dict[str, Any]:
    interval = mean.interval()
    facts = {"arm": arm, "task": part.task, "split": part.split, "metric": metric}
    values = {"value": interval.value, "low": interval.low, "high": interval.high, "n": interval.n}
    more = {"unit": interval.unit, "method": interval.method, "kind": part.arms[arm].kind}
    return facts | _json_numbers(values) | more | {"num_seeds": len(part.arms[arm].seeds)}


def _comparison_row(part: Part, c: Comparison, best: str) -> dict[str, Any]:
    facts = {"arm": c.arm, "task": part.task, "split": part.split, "metric": f"{c.metric} minus {c.other}"}
    values = {
        "value": c.interval.value,
        "low": c.interval.low,
        "high": c.interval.high,
        "n": c.interval.n,
        "effect_size": c.effect.value,
        "effect_low": c.effect.low,
        "effect_high": c.effect.high,
        "p": c.p,
        "p_holm": c.p_holm,
        "margin": c.margin,
        "p_no_worse": c.p_no_worse,
        "p_equivalent": c.p_equivalent,
        "num_seeds": c.num_seeds,
    }
    more = {"unit": c.interval.unit, "method": c.interval.method, "verdict": c.verdict, "best_baseline": best}
    return facts | _json_numbers(values) | more


def _json_numbers(values: Mapping[str, float]) -> dict[str, float | int | None]:
    """NaN and infinity are no JSON; what does not exist is null."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


RANKED: tuple[ArmKind, ...] = ("model", "baseline")
"""Kinds with a rank; controls should fail and ceilings know what no decoder can."""


@dataclass(frozen=True)
class Entry:
    """One arm of a leaderboard.

    Attributes
    ----------
    arm, kind, num_seeds
        As in the predictions files; 0 seeds where nothing is random.
    rank : int, optional
        Place among `RANKED` arms in the headline metric; equal scores share the better place.
    scores : mapping
        Mean with its 95 % interval by metric.
    gains : mapping
        Comparison with the best baseline by metric; empty for the best baseline itself, and without baselines.
    """

    arm: str
    kind: ArmKind
    num_seeds: int
    rank: int | None
    scores: Mapping[str, Interval]
    gains: Mapping[str, Comparison]


@dataclass(frozen=True)
class Leaderboard:
    """All arms of one task and split, the best in the headline metric first.

    Attributes
    ----------
    task, split, data_checksum : str
        What was decoded; the checksum is empty when no file knows it.
    headline : str
        The metric that ranks.
    metrics : tuple of str
        All metrics, main ones first.
    best : str
        The best simple baseline, which gains refer to; empty without one.
    entries : tuple of Entry
        The arms.
    notes : tuple of str
        What a reader must know: how the best baseline was chosen, what chance is, what the verdicts mean.
    """

    task: str
    split: str
    data_checksum: str
    headline: str
    metrics: tuple[str, ...]
    best: str
    entries: tuple[Entry, ...]
    notes: tuple[str, ...]


def find_predictions(folder: Path | str) -> tuple[list[Path], list[Path]]:
    """Find the predictions files in and below a folder.

    Returns
    -------
    found, others : list of Path
        Predictions files, and HDF5 files (``*.h5``) of another kind, which are left out.

    Raises
    ------
    ConfigError
        If there is no predictions file.
    PredictionsError
        If a file is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError(f"no folder {folder}", fix="check the path")
    found: list[Path] = []
    others: list[Path] = []
    for path in sorted(folder.rglob("*.h5")):
        try:
            with h5py.File(path, "r") as file:
                (found if file.attrs.get("format") == FORMAT else others).append(path)
        except (OSError, RuntimeError) as error:
            raise PredictionsError(f"{path} is damaged ({error})", fix="write it again or move it away") from None
    if not found:
        more = f" ({len(others)} other HDF5 files)" if others else ""
        raise ConfigError(
            f"no predictions file (*.h5) in {folder}{more}",
            fix="run 'poyo-ssl evaluate' first, or write one as docs/predictions.md says",
        )
    return found, others


def make_leaderboards(
    files: Iterable[Path | str],
    *,
    task: str | None = None,
    split: str | None = None,
    data: Path | str | None = None,
    seed: int = 0,
    margin: float = MARGIN,
) -> list[Leaderboard]:
    """Score predictions files and rank their arms, one table per task and split.

    Parameters
    ----------
    files : iterable of path
        Predictions files. Several files of one arm are its seeds, or folds that share the targets among them.
    task, split : str, optional
        Only this task or split.
    data : path, optional
        Data folder with ``splits.json``, against which every target is checked (`poyo_ssl.evaluation.checks`).
    seed : int
        Seed of the bootstrap over ten or more animals.
    margin : float
        See `compare_arms`.

    Raises
    ------
    PoyoError
        If a file is not valid or does not go with the data, files of one task and split are of different data or
        targets, or none is left.
    """
    scored = load_scored(files, data)
    for name, wanted in (("task", task), ("split", split)):
        known = sorted({getattr(file, name) for file in scored})
        if wanted is not None and wanted not in known:
            raise ConfigError(
                f"no predictions of {name} '{wanted}'{suggest(wanted, known)}",
                allowed=", ".join(known),
                fix="change it",
            )
    wanted_files = [f for f in scored if task in (None, f.task) and split in (None, f.split)]
    if not wanted_files:
        raise ConfigError(f"no predictions of task '{task}' on split '{split}'", fix="leave one of them out")
    check_same_data(wanted_files)
    return [_rank(part, rng=np.random.default_rng(seed), margin=margin) for part in gather_parts(wanted_files)]


def check_same_data(files: Sequence[ScoredFile]) -> None:
    """Check that the files of each task and split were made from one and the same data.

    Files that do not know their data's checksum are left to the comparison of targets.

    Raises
    ------
    PredictionsError
        Naming the first file whose data differ from those of the first.
    """
    first: dict[tuple[str, str], ScoredFile] = {}
    for file in files:
        if not file.data_checksum:
            continue
        reference = first.setdefault((file.task, file.split), file)
        if file.data_checksum != reference.data_checksum:
            raise PredictionsError(
                f"{file.name} is of data {file.data_checksum[:12]}, {reference.name} of {reference.data_checksum[:12]}"
                f" ({file.task} on {file.split})",
                allowed="one data set per task and split",
                fix="keep one folder per data set",
            )


def _rank(part: Part, *, rng: np.random.Generator, margin: float) -> Leaderboard:
    tables = {name: arm.table for name, arm in part.arms.items()}
    metrics = sorted(part.metrics, key=lambda m: (m != part.headline, not describe_metric(m).is_main, _place(m)))
    scores = {
        name: {m: estimate_mean(table, m, rng=deepcopy(rng)).interval() for m in metrics}
        for name, table in tables.items()
    }
    best, how = best_baseline(part, {name: own[part.headline].value for name, own in scores.items()})
    gains: dict[str, dict[str, Comparison]] = {name: {} for name in tables}
    if best:
        pairs = [(name, best) for name in tables if name != best]
        trained = frozenset(name for name, arm in part.arms.items() if arm.seeds)
        for metric in metrics:
            for found in compare_arms(tables, pairs, metric, rng=deepcopy(rng), trained=trained, margin=margin):
                gains[found.arm][metric] = found
    sign = -1 if describe_metric(part.headline).better == "lower" else 1
    value = {name: sign * own[part.headline].value for name, own in scores.items()}
    ranked = [value[name] for name, arm in part.arms.items() if arm.kind in RANKED]
    entries = [
        Entry(
            arm=name,
            kind=part.arms[name].kind,
            num_seeds=len(part.arms[name].seeds),
            rank=1 + sum(other > value[name] for other in ranked) if part.arms[name].kind in RANKED else None,
            scores=scores[name],
            gains=gains[name],
        )
        for name in sorted(tables, key=lambda name: -value[name])
    ]
    checksum = next((f.data_checksum for arm in part.arms.values() for f in arm.files if f.data_checksum), "")
    notes = tuple(_notes(part, best, how, margin))
    return Leaderboard(part.task, part.split, checksum, part.headline, tuple(metrics), best, tuple(entries), notes)


def _place(metric: str) -> tuple[int, str]:
    return describe_metric(metric).rank, metric


def _notes(part: Part, best: str, how: str, margin: float) -> Iterable[str]:
    if not best:
        yield "No file is of kind 'baseline', so no gain can be shown: add some (poyo-ssl evaluate fits them)."
    else:
        yield f"Gains refer to the best simple baseline, '{best}', {BEST_BASELINE[how]}."
    lacking = [f.name for arm in part.of_kind("baseline") for f in part.arms[arm].files if not f.validation_metric]
    if how == "test" and lacking:
        yield f"Without a validation score: {lacking[0]}" + (f" and {len(lacking) - 1} more." if lacking[1:] else ".")
    elif how == "test":
        yield "The baselines' validation scores are of different metrics and cannot be compared."
    if part.task == "gratings":
        yield f"Chance is {1 / part.num_classes:.3f} for accuracy."
    if best:
        yield (
            "p values are Holm-corrected over the arms of a metric; 'equivalent' and 'no worse' are meant with a "
            f"margin of {margin:g}."
        )
