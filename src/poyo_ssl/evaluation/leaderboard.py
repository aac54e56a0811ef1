"""All predictions files of a folder in one table per task and split: scores, ranks, gain over the best baseline.

Scores of different splits or data mean different things, so each task and split has a table of its own, and files of
different data in one of them are refused. Every decoder that writes a predictions file takes part
(docs/predictions.md).
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from poyo_ssl.errors import ConfigError, PoyoError, suggest
from poyo_ssl.evaluation.checks import KEYS, PredictionsError, Truth, check_same_targets, check_same_truth
from poyo_ssl.evaluation.metrics import Metric, describe_metric, format_number, headline_metric
from poyo_ssl.evaluation.predictions import FORMAT, ArmKind, Predictions
from poyo_ssl.evaluation.scores import merge_folds, score_table
from poyo_ssl.evaluation.statistics import (
    MIN_SEEDS,
    Estimate,
    effect_size,
    estimate_difference,
    estimate_mean,
    holm,
)
from poyo_ssl.files import check_new, new_folder, plain, versions, write_beside

MARGIN = 0.02
"""A difference of scores between 0 and 1 that nobody would act on."""
ALPHA = 0.05
CHANCE = "chance"
RESULTS_FILE = "results.json"


# One row of results.json.

OF_DIFFERENCES = ("effect_size", "effect_low", "effect_high", "p", "p_holm", "margin", "p_no_worse", "p_equivalent")


@dataclass(frozen=True)
class Row:
    """The mean score of an arm in one metric, or its paired difference from the arm in `minus`."""

    arm: str
    task: str
    split: str
    metric: str
    minus: str  # arm subtracted; empty for a score
    value: float
    low: float  # 95 % interval; NaN where there is none
    high: float
    n: int  # independent values
    unit: str = ""  # what is independent: animals, recordings, repeats or seeds
    method: str = ""  # of the interval: t, bootstrap or none
    num_seeds: int = 0  # trainings; of a difference, pairs of them
    kind: str = ""  # of the arm; empty for a difference
    # Whether the arm, of a difference the one subtracted, is the best baseline: how it was chosen ('validation' or
    # 'test', else empty), and whether it is the best on the test part.
    best_baseline: str = ""
    best_on_test: bool = False
    # Of differences alone.
    effect_size: float = math.nan  # Hedges' g
    effect_low: float = math.nan
    effect_high: float = math.nan
    p: float = math.nan  # two-sided, of "no difference"
    p_holm: float = math.nan  # p for the whole family
    margin: float = math.nan  # largest difference that counts as none; NaN where none was stated for this metric
    p_no_worse: float = math.nan  # "worse by the margin or more" (non-inferiority), for the whole family
    p_equivalent: float = math.nan  # "they differ by the margin or more" (Schuirmann 1987), for the whole family
    # better, worse (higher, lower for a metric without a direction), equivalent, no worse, inconclusive; 'no claim: k
    # of 5 seeds' between two trained arms with too few; 'not judged' without an error.
    verdict: str = ""

    @property
    def shown(self) -> Metric:
        """How the metric is shown."""
        return describe_metric(self.metric)

    @property
    def text(self) -> str:
        """The value."""
        return format_number(self.value)

    @property
    def has_interval(self) -> bool:
        """Whether there are bounds."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def interval(self) -> str:
        """The interval as text, or 'no interval'."""
        return f"[{format_number(self.low)}, {format_number(self.high)}]" if self.has_interval else "no interval"

    @property
    def marks(self) -> str:
        """Whether the arm, of a difference the one subtracted, is the best baseline."""
        return ", ".join(["best baseline"] * bool(self.best_baseline) + ["best on test"] * self.best_on_test)

    def to_json(self) -> dict[str, Any]:
        """Return what applies to a score or a difference; NaN and infinity are no JSON, so they become null."""
        left_out = ("kind",) if self.minus else (*OF_DIFFERENCES, "verdict")
        values = {name: value for name, value in asdict(self).items() if name not in left_out}
        return {n: None if isinstance(v, float) and not math.isfinite(v) else v for n, v in values.items()}

    @classmethod
    def of_json(cls, row: Mapping[str, Any]) -> Row:
        """Read a row that may lack what `evaluate` adds to arm, task, split, metric, value, low, high and n."""
        metric, minus = str(row["metric"]), row.get("minus")
        if minus is None:  # before `minus` had a key of its own
            metric, _, minus = metric.partition(" minus ")
        found: dict[str, Any] = {k: str(row[k]) for k in ("arm", "task", "split")}
        found |= {k: _number(row[k]) for k in ("value", "low", "high")}
        found |= {k: _number(row.get(k)) for k in OF_DIFFERENCES}
        found |= {k: str(row.get(k) or "") for k in ("unit", "method", "kind", "best_baseline", "verdict")}
        found |= {"num_seeds": int(row.get("num_seeds") or 0), "best_on_test": bool(row.get("best_on_test"))}
        return cls(metric=metric, minus=str(minus), n=int(row["n"]), **found)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def write_results(folder: Path, scores: Scores, **facts: Any) -> None:
    """Write results.json, and evaluation.json with what it was made from."""
    write_rows(folder, scores.rows)
    write_beside(folder / "evaluation.json", json.dumps(plain(facts | {"versions": versions()}), indent=1))


def write_rows(folder: Path, rows: Iterable[Row]) -> None:
    """Write results.json."""
    write_beside(folder / RESULTS_FILE, json.dumps([row.to_json() for row in rows], indent=1))


def read_results(folder: Path | str) -> list[Row]:
    """Read results.json; the first row that is incomplete is named."""
    path = Path(folder) / RESULTS_FILE
    if not path.is_file():
        raise PoyoError(f"no {RESULTS_FILE} in {folder}", fix="run 'poyo-ssl evaluate' first or check the path")
    found = read_json(path)
    if not isinstance(found, list) or not found:
        raise PoyoError(f"{path} holds no list of rows", fix="run 'poyo-ssl evaluate' again")
    rows = []
    for number, row in enumerate(found):
        try:
            rows.append(Row.of_json(row))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PoyoError(
                f"row {number} of {path} is incomplete ({type(error).__name__}: {error})",
                allowed="arm, task, split, metric, value, low, high, n",
                fix="run 'poyo-ssl evaluate' again",
            ) from None
    return rows


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PoyoError(f"{path} is damaged ({error})", fix="make it again") from None


# Comparisons.


def compare_arms(
    tables: Mapping[str, pd.DataFrame],
    pairs: Sequence[tuple[str, str]],
    metric: str,
    *,
    rng: np.random.Generator,
    task: str = "",
    split: str = "",
    trained: frozenset[str] = frozenset(),
    margin: float = MARGIN,
) -> list[Row]:
    """Compare pairs of arms (score tables on the same targets) in one metric; all are one family for Holm's correction.

    Differences, "no worse" and "equivalent" are three families of their own: each kind of claim is wrong anywhere in
    its family with a probability of at most 5 %. A claim between two `trained` arms is about trainings, and is refused
    below `MIN_SEEDS`. The margin is stated before the scores are seen; it is used for scores of which 1 is best.

    Examples
    --------
    >>> ours = pd.DataFrame({"subject_id": list("abcd"), "recording_id": list("abcd"), "metric": "accuracy",
    ...                      "value": [0.6, 0.7, 0.65, 0.8], "num_targets": 100})
    >>> tables = {"ours": ours, "lda": ours.assign(value=[0.5, 0.55, 0.5, 0.7])}
    >>> [found] = compare_arms(tables, [("ours", "lda")], "accuracy", rng=np.random.default_rng(0))
    >>> print(found.text, found.interval, found.n, found.unit, found.verdict)
    0.125 [0.079, 0.171] 4 animals better
    """
    if not margin > 0:
        raise ConfigError(f"margin {margin}", allowed="above 0", fix="pass the largest difference that does not matter")
    shown = describe_metric(metric)
    margin = margin if shown.is_share else math.nan
    found = []
    for arm, other in pairs:
        # Every pair draws the same animals, so that no result depends on the order of the arms.
        estimate = estimate_difference(tables[arm], tables[other], metric, rng=deepcopy(rng))
        row = _row(estimate, arm=arm, task=task, split=split, metric=metric, minus=other)
        effect = effect_size(estimate.units)
        p_no_worse = math.nan if math.isnan(margin) else estimate.p_above(-margin)
        found.append(
            replace(
                row,
                effect_size=effect.value,
                effect_low=effect.low,
                effect_high=effect.high,
                p=estimate.p_two_sided(),
                margin=margin,
                p_no_worse=p_no_worse,
                p_equivalent=math.nan if math.isnan(margin) else max(p_no_worse, estimate.p_below(margin)),
                num_seeds=estimate.num_seeds,
            )
        )
    adjusted = [holm([getattr(row, name) for row in found]) for name in ("p", "p_no_worse", "p_equivalent")]
    judged = []
    for row, p, no_worse, equivalent in zip(found, *adjusted, strict=True):
        row = replace(row, p_holm=float(p), p_no_worse=float(no_worse), p_equivalent=float(equivalent))
        about_trainings = {row.arm, row.minus} <= trained
        judged.append(replace(row, verdict=_verdict(row, shown.better, about_trainings=about_trainings)))
    return judged


def _row(estimate: Estimate, **place: Any) -> Row:
    found = estimate.interval()
    return Row(
        value=found.value, low=found.low, high=found.high, n=found.n, unit=found.unit, method=found.method, **place
    )


def _verdict(row: Row, better: str, *, about_trainings: bool) -> str:
    """Return the strongest claim that the family-wise p values carry."""
    if math.isnan(row.p):
        return "not judged"
    if about_trainings and row.num_seeds < MIN_SEEDS:
        return f"no claim: {row.num_seeds} of {MIN_SEEDS} seeds"
    if row.p_holm < ALPHA:
        above = row.value > 0
        if not better:
            return "higher" if above else "lower"
        return "better" if above == (better == "higher") else "worse"
    if row.p_equivalent < ALPHA:
        return "equivalent"
    return "no worse" if row.p_no_worse < ALPHA else "inconclusive"


# The best simple baseline.

SIMPLEST_FIRST = (
    *("majority", "grey frame", "mean frame", "pixel median", "blurred mean", "running speed", "time in session"),
    *("knn", "knn lookup", "whitened knn", "whitened knn lookup", "naive bayes", "naive bayes lookup", "ridge"),
    *("shrunk lda", "shrunk lda lookup", "cosine lda", "cosine lda lookup", "logistic regression", "linear svm"),
    *("unet", "cebra knn", "cebra unet"),
)
"""Baselines by their names in tables, in the order in which ties are broken; others follow, by name."""
TIE = 1e-9
"""Scores this close are equal: a validation part of a few trials gives several baselines the same share."""
BEST_BASELINE = {
    "validation": "chosen by its validation score",
    "test": "chosen by its test score, which is optimistic for the baseline",
}
"""How the best simple baseline can have been chosen, and what that means."""


@dataclass(frozen=True)
class Candidate:
    """A baseline that may be the best: of kind 'baseline', so no control, ceiling or oracle."""

    arm: str
    test_score: float  # in the headline metric
    validation_metric: str = ""  # empty unless all of its files have a score in one metric
    validation_score: float = math.nan


@dataclass(frozen=True)
class BestBaseline:
    """The baseline that gains refer to, how it was chosen (a key of `BEST_BASELINE`), and the best on the test part."""

    arm: str = ""
    how: str = ""
    on_test: str = ""


def best_baseline(candidates: Sequence[Candidate], headline: str) -> BestBaseline:
    """Choose the best simple baseline, without a look at test scores where that can be; ties go to the simpler one.

    It is the best by validation score. Unless all baselines have one in the same metric, the best on the test part is
    taken: that favours the baseline, by the luck that its rivals did not have.
    """
    if not candidates:
        return BestBaseline()
    on_test = _best({own.arm: own.test_score for own in candidates}, headline)
    [metric, *others] = {own.validation_metric for own in candidates}
    if others or not metric:
        return BestBaseline(on_test, "test", on_test)
    return BestBaseline(_best({own.arm: own.validation_score for own in candidates}, metric), "validation", on_test)


def _best(scores: Mapping[str, float], metric: str) -> str:
    sign = -1 if describe_metric(metric).better == "lower" else 1
    values = {arm: sign * score if math.isfinite(score) else -math.inf for arm, score in scores.items()}
    highest = max(values.values())
    return min((arm for arm, value in values.items() if value >= highest - TIE), key=_simplicity)


def _simplicity(arm: str) -> tuple[int, str]:
    return SIMPLEST_FIRST.index(arm) if arm in SIMPLEST_FIRST else len(SIMPLEST_FIRST), arm


# Files, arms, and all arms of one task and split.


@dataclass(frozen=True)
class ScoredFile:
    """What the comparison of arms needs of a predictions file, once it is scored; facts as in `Predictions`."""

    name: str  # what to call the file in messages
    task: str
    split: str
    arm: str
    kind: ArmKind
    model_id: str
    seed: int
    data_checksum: str
    validation_metric: str
    validation_score: float
    num_classes: int  # 0 for frames
    truth: Truth
    table: pd.DataFrame

    @property
    def targets(self) -> pd.DataFrame:
        """`KEYS` of every target."""
        return self.truth.targets[KEYS]

    @classmethod
    def of(cls, p: Predictions, name: str = "") -> ScoredFile:
        """Score predictions."""
        return cls(
            name=name or f"arm '{p.arm}'",
            task=p.task,
            split=p.split,
            arm=p.arm,
            kind=p.kind,
            model_id=p.model_id,
            seed=p.seed,
            data_checksum=p.data_checksum,
            validation_metric=p.validation_metric,
            validation_score=p.validation_score,
            num_classes=len(p.class_values),
            truth=Truth.of(p),
            table=score_table(p),
        )


@dataclass(frozen=True)
class Arm:
    """All files of one arm on one task and split: its seeds, and folds that share the targets among them."""

    name: str
    kind: ArmKind
    files: tuple[ScoredFile, ...]
    table: pd.DataFrame  # score tables of all files; blocks that folds share are put together

    @classmethod
    def of(cls, name: str, files: Sequence[ScoredFile]) -> Arm:
        """Put the files of an arm together; they are of one kind and predict no target twice with one seed."""
        kinds = dict.fromkeys(file.kind for file in files)
        if len(kinds) > 1:
            given = f"arm '{name}' is of kinds {', '.join(kinds)}"
            raise PredictionsError(given, fix="give each arm one kind, or two names")
        for index, file in enumerate(files):
            for earlier in files[:index]:
                twice = file.targets.merge(earlier.targets) if earlier.seed == file.seed else file.targets[:0]
                if len(twice):
                    first = twice.iloc[0]
                    raise PredictionsError(
                        f"{earlier.name} and {file.name} both predict recording {first['recording_id']} at "
                        f"{first['tick'] / 1e6:.6f} s as arm '{name}' with seed {file.seed}",
                        fix="leave one out, or give them other arms or seeds",
                    )
        table = merge_folds(pd.concat([file.table for file in files], ignore_index=True))
        return cls(name, files[0].kind, tuple(files), table)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of its trainings, in order; empty where nothing is random."""
        return tuple(sorted({file.seed for file in self.files if file.seed >= 0}))

    @property
    def model_ids(self) -> frozenset[str]:
        """Ids of the models behind its files, as far as they are known."""
        return frozenset(file.model_id for file in self.files if file.model_id)

    def candidate(self, test_score: float) -> Candidate:
        """Return what the choice of the best baseline needs; the validation score is the mean over files."""
        metrics = {file.validation_metric for file in self.files}
        if len(metrics) > 1:
            return Candidate(self.name, test_score)
        score = float(np.mean([file.validation_score for file in self.files]))
        return Candidate(self.name, test_score, metrics.pop(), score)


@dataclass(frozen=True)
class ArmSet:
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

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """Score table by arm."""
        return {name: arm.table for name, arm in self.arms.items()}

    def of_kind(self, kind: ArmKind) -> list[str]:
        """Names of the arms of a kind."""
        return [name for name, arm in self.arms.items() if arm.kind == kind]

    def models_of(self, control: str) -> list[str]:
        """Names of the models that a control was made from; none where it has no model, or one of its own."""
        arm = self.arms[control]
        models = self.of_kind("model") if arm.kind == "control" else []
        return [name for name in models if self.arms[name].model_ids & arm.model_ids]

    def scores(self, rng: np.random.Generator) -> tuple[list[Row], BestBaseline]:
        """Return a row for every arm and metric, and the best baseline, which is marked."""
        rows = [
            replace(
                _row(
                    estimate_mean(arm.table, metric, rng=deepcopy(rng)),
                    arm=name,
                    task=self.task,
                    split=self.split,
                    metric=metric,
                    minus="",
                ),
                kind=arm.kind,
                num_seeds=len(arm.seeds),
            )
            for name, arm in self.arms.items()
            for metric in dict.fromkeys(arm.table["metric"])
        ]
        values = {row.arm: row.value for row in rows if row.metric == self.headline}
        baselines = [self.arms[name].candidate(values[name]) for name in self.of_kind("baseline")]
        best = best_baseline(baselines, self.headline)
        return [_mark(row, row.arm, best) for row in rows], best

    def compare(self, metric: str, *, rng: np.random.Generator, margin: float = MARGIN) -> list[Row]:
        """Compare each model with every arm that is no earlier model nor another's control, in accuracy with chance."""
        models = self.of_kind("model")
        source = {name: self.models_of(name) for name in self.arms}
        tables, others = self.tables, list(self.arms)
        if self.task == "gratings" and metric == "accuracy" and CHANCE not in tables:
            # Chance is an arm that scores 1 / classes everywhere, so that it is weighed like any other.
            rows = tables[others[0]]
            tables[CHANCE] = rows[rows["seed"] == rows["seed"].iloc[0]].assign(value=1 / self.num_classes, seed=-1)
            others.append(CHANCE)
        pairs = [
            (model, other)
            for place, model in enumerate(models)
            for other in others
            if other not in models[: place + 1] and model in (source.get(other) or models)
        ]
        # A model and its own control are one training, so a claim about them needs no others.
        trained = frozenset(name for name, arm in self.arms.items() if arm.seeds and not source[name])
        place = {"task": self.task, "split": self.split}
        return compare_arms(tables, pairs, metric, rng=rng, trained=trained, margin=margin, **place) if pairs else []


def _mark(row: Row, arm: str, best: BestBaseline) -> Row:
    """Say whether the arm of a score, or the one subtracted, is the best baseline."""
    return replace(row, best_baseline=best.how if arm == best.arm else "", best_on_test=arm == best.on_test)


def gather_arms(files: Iterable[ScoredFile]) -> list[ArmSet]:
    """Sort files into tasks and splits, and these into arms that share targets, truth and metrics."""
    groups: dict[tuple[str, str], list[ScoredFile]] = {}
    for file in files:
        groups.setdefault((file.task, file.split), []).append(file)
    found = []
    for (task, split), own in groups.items():
        by_arm: dict[str, list[ScoredFile]] = {}
        for file in sorted(own, key=lambda file: file.kind != "model"):
            by_arm.setdefault(file.arm, []).append(file)
        arms = {name: Arm.of(name, its) for name, its in by_arm.items()}
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
        measured = {name: set(arm.table["metric"]) for name, arm in arms.items()}
        for name, metrics in measured.items():
            # Folds hold fewer candidate frames than the whole, and so may lack identification among many.
            if lacking := sorted(set().union(*measured.values()) - metrics):
                given = f"arm '{name}' has no {lacking[0]} on {split}, as other arms have"
                raise PredictionsError(given, fix="cut all arms into the same files")
        found.append(ArmSet(task, split, arms, own[0].num_classes))
    return found


# Evaluation: rows of all files.


@dataclass(frozen=True)
class Scores:
    """What an evaluation found.

    Attributes
    ----------
    rows : list of Row
        Scores of arms and paired differences, as in ``results.json``.
    tables : mapping
        Score table by (task, split, arm).
    """

    rows: list[Row]
    tables: Mapping[tuple[str, str, str], pd.DataFrame]


def summarise(files: Iterable[ScoredFile], *, rng: np.random.Generator, margin: float = MARGIN) -> Scores:
    """Turn scored files into rows with intervals: of each arm, and of each model less every arm after it."""
    rows: list[Row] = []
    tables: dict[tuple[str, str, str], pd.DataFrame] = {}
    for own in gather_arms(files):
        tables |= {(own.task, own.split, name): table for name, table in own.tables.items()}
        scores, best = own.scores(rng)
        rows += scores
        for metric in own.metrics:
            rows += [_mark(row, row.minus, best) for row in own.compare(metric, rng=deepcopy(rng), margin=margin)]
    return Scores(rows, tables)


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
        Seed of the bootstrap over ten or more animals.
    margin : float
        Largest difference between scores of 0 to 1 that counts as none, see `compare_arms`.
    overwrite : bool
        Replace results that are there.

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
            for file, path in zip(scored, paths, strict=True):
                if file.task == "frames":
                    save_into(folder, Predictions.load(path))
                else:
                    copy = free_path(folder / "predictions", file.arm, file.task, file.split, file.seed)
                    copy.parent.mkdir(exist_ok=True)
                    shutil.copyfile(path, copy)
            write_results(folder, scores, files=[str(path) for path in paths], seed=seed, margin=margin)
    return scores


def load_scored(files: Iterable[Path | str], data: Path | str | None = None) -> list[ScoredFile]:
    """Load and score predictions files, each checked against a data folder first if one is given."""
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


def save_into(results: Path, p: Predictions) -> None:
    """Save predictions into a results folder; all of its files share their target frames."""
    p.save(free_path(results / "predictions", p.arm, p.task, p.split, p.seed), frames_beside=True)


def free_path(folder: Path, arm: str, task: str, split: str, seed: int) -> Path:
    """Return a path for a predictions file that no file has yet."""
    safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in arm)
    stem = f"{safe}-{task}-{split}" + (f"-seed{seed}" if seed >= 0 else "")
    number, path = 1, folder / f"{stem}.h5"
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}.h5"
    return path


# Leaderboards: all arms ranked.

RANKED: tuple[ArmKind, ...] = ("model", "baseline")
"""Kinds with a rank; controls should fail and ceilings know what no decoder can."""


@dataclass(frozen=True)
class Entry:
    """One arm of a leaderboard."""

    arm: str
    kind: ArmKind
    num_seeds: int  # 0 where nothing is random
    rank: int | None  # among `RANKED` arms in the headline metric; equal scores share the better place
    scores: Mapping[str, Row]  # by metric
    gains: Mapping[str, Row]  # over the best baseline, by metric; empty for itself, and without baselines
    gains_on_test: Mapping[str, Row]  # over the baseline that is best on the test part


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
    best : BestBaseline
        The baseline that gains refer to, how it was chosen, and the best on the test part.
    entries : tuple of Entry
        The arms.
    notes : tuple of str
        How the best baseline was chosen, what chance is, what the verdicts mean.
    """

    task: str
    split: str
    data_checksum: str
    headline: str
    metrics: tuple[str, ...]
    best: BestBaseline
    entries: tuple[Entry, ...]
    notes: tuple[str, ...]


def find_predictions(folder: Path | str) -> tuple[list[Path], list[Path]]:
    """Find the predictions files in and below a folder, and other HDF5 files (``*.h5``), which are left out."""
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
            given = f"no predictions of {name} '{wanted}'{suggest(wanted, known)}"
            raise ConfigError(given, allowed=", ".join(known), fix="change it")
    wanted_files = [f for f in scored if task in (None, f.task) and split in (None, f.split)]
    if not wanted_files:
        raise ConfigError(f"no predictions of task '{task}' on split '{split}'", fix="leave one of them out")
    check_same_data(wanted_files)
    return [_rank(own, rng=np.random.default_rng(seed), margin=margin) for own in gather_arms(wanted_files)]


def check_same_data(files: Sequence[ScoredFile]) -> None:
    """Check that the files of each task and split have one data checksum; a file without one is left to its targets."""
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


def _rank(own: ArmSet, *, rng: np.random.Generator, margin: float) -> Leaderboard:
    shown = {name: describe_metric(name) for name in own.metrics}
    metrics = sorted(shown, key=lambda m: (m != own.headline, not shown[m].is_main, shown[m].rank, m))
    rows, best = own.scores(rng)
    scores = _by_arm(rows, own)
    gains = _by_arm(_gains(own, best.arm, metrics, rng, margin), own)
    on_test = gains
    if best.on_test != best.arm:
        on_test = _by_arm(_gains(own, best.on_test, metrics, rng, margin), own)
    sign = -1 if shown[own.headline].better == "lower" else 1
    value = {name: sign * scores[name][own.headline].value for name in own.arms}
    ranked = [value[name] for name, arm in own.arms.items() if arm.kind in RANKED]
    entries = [
        Entry(
            arm=name,
            kind=own.arms[name].kind,
            num_seeds=len(own.arms[name].seeds),
            rank=1 + sum(other > value[name] for other in ranked) if own.arms[name].kind in RANKED else None,
            scores=scores[name],
            gains=gains[name],
            gains_on_test=on_test[name],
        )
        for name in sorted(own.arms, key=lambda name: -value[name])
    ]
    checksum = next((f.data_checksum for arm in own.arms.values() for f in arm.files if f.data_checksum), "")
    notes = tuple(_notes(own, best, margin))
    return Leaderboard(own.task, own.split, checksum, own.headline, tuple(metrics), best, tuple(entries), notes)


def _gains(
    own: ArmSet, baseline: str, metrics: Sequence[str], rng: np.random.Generator, margin: float
) -> Iterator[Row]:
    """Compare every arm with a baseline, if there is one."""
    pairs = [(name, baseline) for name in own.arms if baseline and name != baseline]
    trained = frozenset(name for name, arm in own.arms.items() if arm.seeds)
    place = {"task": own.task, "split": own.split}
    for metric in metrics if pairs else ():
        yield from compare_arms(own.tables, pairs, metric, rng=deepcopy(rng), trained=trained, margin=margin, **place)


def _by_arm(rows: Iterable[Row], own: ArmSet) -> dict[str, dict[str, Row]]:
    found: dict[str, dict[str, Row]] = {name: {} for name in own.arms}
    for row in rows:
        found[row.arm][row.metric] = row
    return found


def _notes(own: ArmSet, best: BestBaseline, margin: float) -> Iterator[str]:
    if not best.arm:
        yield "No file is of kind 'baseline', so no gain can be shown: add some (poyo-ssl evaluate fits them)."
    else:
        yield f"Gains refer to the best simple baseline, '{best.arm}', {BEST_BASELINE[best.how]}."
    lacking = [f.name for arm in own.of_kind("baseline") for f in own.arms[arm].files if not f.validation_metric]
    if best.how == "test" and lacking:
        yield f"Without a validation score: {lacking[0]}" + (f" and {len(lacking) - 1} more." if lacking[1:] else ".")
    elif best.how == "test":
        yield "The baselines' validation scores are of different metrics and cannot be compared."
    elif best.how == "validation":
        yield f"The best baseline on the test set is '{best.on_test}'; gains over it stand beside."
    if own.task == "gratings":
        yield f"Chance is {1 / own.num_classes:.3f} for accuracy."
    if best.arm:
        yield (
            "p values are Holm-corrected over the arms of a metric; 'equivalent' and 'no worse' are meant with a "
            f"margin of {margin:g}."
        )
