"""From predictions files to the rows of results.json: scores with intervals, and arms against each other.

It needs neither model nor data: whatever wrote the files, they are scored and compared alike.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from poyo_ssl.errors import PoyoError
from poyo_ssl.evaluation.comparison import MARGIN, Comparison, compare_arms
from poyo_ssl.evaluation.estimate import Estimate
from poyo_ssl.evaluation.metric_names import describe_metric, headline_metric
from poyo_ssl.evaluation.predictions import ArmKind, Predictions, PredictionsError
from poyo_ssl.evaluation.predictions_checks import check_same_targets
from poyo_ssl.evaluation.same_truth import KEYS, Truth, check_same_truth
from poyo_ssl.evaluation.scores import merge_folds, score_table
from poyo_ssl.evaluation.statistics import estimate_mean
from poyo_ssl.folders import check_new, new_folder, plain, versions, write_beside

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
        Data folder with ``splits.json``, against which every target is checked (`poyo_ssl.evaluation.against_data`).
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
    if out is not None:
        check_new(Path(out), overwrite=overwrite)
    scored = load_scored(paths, data)
    scores = summarise(scored, rng=np.random.default_rng(seed), margin=margin)
    if out is not None:
        folder = new_folder(Path(out), overwrite=overwrite)
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
        from poyo_ssl.evaluation.against_data import DataFolder

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
