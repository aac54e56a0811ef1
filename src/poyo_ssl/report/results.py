"""What a results folder holds, read and arranged into tables.

A results folder has ``results.json`` (rows of arm, task, split, metric, value, low, high, n and, where `evaluate` made
them, kind, effect size, p values and verdict; a metric named ``<metric> minus <arm>`` is a paired difference),
``predictions/*.h5``, and where they were made ``selection/`` and ``notes.json``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from poyo_ssl.errors import PoyoError
from poyo_ssl.evaluation.metrics import Metric, describe_metric, format_number, format_p
from poyo_ssl.evaluation.predictions import Predictions
from poyo_ssl.selection.table import SETTINGS_FILE, TABLE_FILE, Selection

RESULTS_FILE, NOTES_FILE = "results.json", "notes.json"
MODEL_ARMS = ("pretrained", "from scratch")
"""Models by name, where rows do not say the kind; so is every arm that has a row of a paired difference."""

TASKS = {
    "frames": "Movie frames, reconstructed",
    "frame_number": "Movie frame number",
    "gratings": "Direction of drifting gratings",
}
SPLITS = {
    "repeat": "Known frames: every frame of this test was also shown during training, in other repeats. A score here "
    "says how well one of the known frames is identified, not that frames never seen can be reconstructed.",
    "clip": "Unseen frames: the test clips were held out of training in all repeats, with gaps around them, and "
    "training frames nearly equal to a test frame were dropped. Here, and not on repeat, a gain over all baselines "
    "means reconstruction.",
    "movie": "Unseen footage: training on one movie, test on another of the same session.",
    "subject": "New animals: only unit and session embeddings are fitted to them, on a part disjoint from the test.",
    "gratings": "Trials stratified by direction: training and test trials are neighbours and share slow drift, which "
    "helps every decoder.",
    "gratings_block": "Another block of the session than those trained on: no slow drift is shared with the training.",
}
"""Splits of the evaluation protocol, easiest first, and what each can show."""


COMPARISON_TEXTS = ("unit", "kind", "verdict", "best_baseline")
COMPARISON_NUMBERS = ("effect_size", "effect_low", "effect_high", "p_holm", "margin", "p_no_worse", "p_equivalent")


@dataclass(frozen=True)
class Row:
    """One row of results.json; `baseline` is the arm subtracted, empty for a plain score; bounds may be NaN.

    What `evaluate` adds beside (`poyo_ssl.evaluation.leaderboard.Comparison`) is NaN or empty where a row lacks it.
    """

    arm: str
    task: str
    split: str
    metric: str
    baseline: str
    value: float
    low: float
    high: float
    n: int
    unit: str = ""
    kind: str = ""
    verdict: str = ""
    best_baseline: str = ""
    effect_size: float = math.nan
    effect_low: float = math.nan
    effect_high: float = math.nan
    p_holm: float = math.nan
    margin: float = math.nan
    p_no_worse: float = math.nan
    p_equivalent: float = math.nan

    @property
    def shown(self) -> Metric:
        """How the metric is shown."""
        return describe_metric(self.metric)

    @property
    def text(self) -> str:
        """The value."""
        return format_number(self.value)

    @property
    def interval(self) -> str:
        """The interval as text, or 'no interval'."""
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            return "no interval"
        return f"[{format_number(self.low)}, {format_number(self.high)}]"

    @property
    def outcome(self) -> str:
        """What the interval of a paired difference shows: 'better', 'worse' or 'no difference shown'.

        'higher' or 'lower' for a metric of which more is neither good nor bad; 'not judged' without an interval. A
        verdict that comes with the row stands: it is of the whole family of comparisons.
        """
        if self.verdict:
            kind = self.verdict.partition(":")[0]
            return "no difference shown" if kind == "inconclusive" else kind
        if self.interval == "no interval":
            return "not judged"
        if not (self.low > 0 or self.high < 0):
            return "no difference shown"
        if not self.shown.better:
            return "higher" if self.low > 0 else "lower"
        return "better" if (self.low > 0) == (self.shown.better == "higher") else "worse"

    @property
    def words(self) -> str:
        """What a paired difference shows, in words."""
        if self.verdict in ("equivalent", "no worse"):
            p = self.p_equivalent if self.verdict == "equivalent" else self.p_no_worse
            return f"{self.verdict} (margin {self.margin:g}, p = {format_p(p)})"
        if self.verdict:
            return self.verdict
        if self.interval == "no interval":
            return "no interval: too few values"
        place = "above 0" if self.low > 0 else "below 0" if self.high < 0 else "contains 0"
        return f"interval {place}: {self.outcome}"


def read_rows(folder: Path) -> list[Row]:
    """Read results.json.

    Raises
    ------
    PoyoError
        If it is missing, damaged, empty, or a row is incomplete; the message names the first such row.
    """
    if not (folder / RESULTS_FILE).is_file():
        raise PoyoError(f"no {RESULTS_FILE} in {folder}", fix="run 'poyo-ssl evaluate' first or check the path")
    found = read_json(folder / RESULTS_FILE)
    if not isinstance(found, list) or not found:
        raise PoyoError(f"{folder / RESULTS_FILE} holds no list of rows", fix="run 'poyo-ssl evaluate' again")
    return [_read_row(folder / RESULTS_FILE, number, row) for number, row in enumerate(found)]


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises
    ------
    PoyoError
        If it cannot be read or is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PoyoError(f"{path} is damaged ({error})", fix="make it again") from None


def _read_row(path: Path, number: int, row: Any) -> Row:
    try:
        metric, _, baseline = str(row["metric"]).partition(" minus ")
        # A bound that does not exist is null or NaN.
        value, low, high = (math.nan if row[k] is None else float(row[k]) for k in ("value", "low", "high"))
        arm, task, split = (str(row[k]) for k in ("arm", "task", "split"))
        more: dict[str, Any] = {k: str(row.get(k) or "") for k in COMPARISON_TEXTS}
        more |= {k: math.nan if row.get(k) is None else float(row[k]) for k in COMPARISON_NUMBERS}
        return Row(arm, task, split, metric, baseline, value, low, high, int(row["n"]), **more)
    except (KeyError, TypeError, ValueError) as error:
        raise PoyoError(
            f"row {number} of {path} is incomplete ({type(error).__name__}: {error})",
            allowed="arm, task, split, metric, value, low, high, n",
            fix="run 'poyo-ssl evaluate' again",
        ) from None


@dataclass
class Table:
    """Scores, or paired gains, of one task and split."""

    task: str
    split: str
    metrics: list[str]
    arms: list[str]
    models: set[str]
    cells: dict[tuple[str, str], Row]
    best: dict[str, str]


@dataclass
class Results:
    """A results folder, read."""

    folder: Path
    rows: list[Row]
    notes: dict[str, Any]
    selection: Selection | None
    files: dict[tuple[str, str], dict[str, Path]]
    remarks: list[str] = field(default_factory=list)

    @property
    def models(self) -> list[str]:
        """Arms that are models, `MODEL_ARMS` first."""
        kinds = {row.arm: row.kind for row in self.rows if row.kind}
        if kinds:
            return [arm for arm, kind in kinds.items() if kind == "model"]
        compared = [row.arm for row in self.rows if row.baseline]
        present = {row.arm for row in self.rows} | {arm for files in self.files.values() for arm in files}
        return list(dict.fromkeys([*(arm for arm in MODEL_ARMS if arm in present), *compared]))

    def best_baseline(self, task: str, split: str) -> str | None:
        """Find the baseline with a predictions file that is best in the first main metric of the task.

        Without scores it is the first baseline; None if there is none.
        """
        models = self.models
        kinds = {row.arm: row.kind for row in self.rows if row.kind}
        simple = ("", "baseline")
        baselines = [
            arm for arm in self.files.get((task, split), {}) if arm not in models and kinds.get(arm, "") in simple
        ]
        here = [row for row in self.rows if (row.task, row.split, row.baseline) == (task, split, "")]
        scored = [row for row in here if row.arm in baselines and math.isfinite(row.value)]
        if not scored:
            return next(iter(baselines), None)
        first = min(scored, key=lambda row: row.shown.rank)
        sign = -1 if first.shown.better == "lower" else 1
        return max((row for row in scored if row.metric == first.metric), key=lambda row: sign * row.value).arm


def read_results(folder: Path) -> Results:
    """Read a results folder, all but the predictions themselves.

    Raises
    ------
    PoyoError
        If results.json is missing, or a file that is there is damaged.
    """
    rows = read_rows(folder)
    notes = read_json(folder / NOTES_FILE) if (folder / NOTES_FILE).is_file() else {}
    if not isinstance(notes, dict) or not isinstance(notes.get("arms", {}), dict):
        raise PoyoError(f"{folder / NOTES_FILE} is no mapping, or its 'arms' is none", fix="write it again")
    results = Results(folder, rows, notes, None, {})
    if any((folder / "selection" / name).exists() for name in (TABLE_FILE, SETTINGS_FILE)):
        results.selection = Selection.load(folder / "selection")
    for path in sorted((folder / "predictions").glob("*.h5")):
        p = Predictions.load(path)
        arms = results.files.setdefault((p.task, p.split), {})
        if p.arm in arms:
            results.remarks.append(
                f"{path.name} repeats arm '{p.arm}' of {p.task} on {p.split}; pictures show {arms[p.arm].name}."
            )
        arms.setdefault(p.arm, path)
    return results


def _order(known: Iterable[str], name: str) -> tuple[int, str]:
    names = list(known)
    return (names.index(name) if name in names else len(names), name)


def ordered_parts(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Tasks and splits, the easiest first."""
    return sorted(set(pairs), key=lambda pair: (_order(TASKS, pair[0]), _order(SPLITS, pair[1])))


def score_tables(results: Results) -> list[Table]:
    """Arrange the scores: one table per task and split, models above baselines."""
    plain = [row for row in results.rows if not row.baseline]
    models, tables = results.models, []
    for task, split in ordered_parts((row.task, row.split) for row in plain):
        rows = [row for row in plain if (row.task, row.split) == (task, split)]
        cells = {(row.arm, row.metric): row for row in rows}
        names = sorted({row.metric for row in rows}, key=lambda m: (describe_metric(m).rank, m))
        arms = sorted(dict.fromkeys(row.arm for row in rows), key=lambda arm: _order(models, arm)[0])
        best = {name: _best_text([row for row in rows if row.metric == name]) for name in names}
        tables.append(Table(task, split, names, arms, set(models), cells, best))
    return tables


def _best_text(rows: Sequence[Row]) -> str:
    """Write the best value; arms that share it in writing share the mark."""
    better, rows = rows[0].shown.better, [row for row in rows if math.isfinite(row.value)]
    if not better or not rows:
        return ""
    choose = max if better == "higher" else min
    return choose(rows, key=lambda row: row.value).text


@dataclass(frozen=True)
class Gain:
    """A paired difference, and where its interval lies on a line of length 1 that it shares with its metric's others.

    `low`, `value`, `high` and `zero` are places on that line; without an interval, low and high equal value.
    """

    row: Row
    low: float
    value: float
    high: float
    zero: float


@dataclass(frozen=True)
class GainTable:
    """The paired gains of one task and split by metric, and what the intervals of the first one say."""

    task: str
    split: str
    main: dict[str, list[Gain]]
    other: dict[str, list[Gain]]
    summary: list[str]


def gain_tables(results: Results) -> list[GainTable]:
    """Arrange the paired gains: one table per task and split."""
    paired = [row for row in results.rows if row.baseline]
    models, tables = results.models, []
    for task, split in ordered_parts((row.task, row.split) for row in paired):
        rows = [row for row in paired if (row.task, row.split) == (task, split)]
        rows.sort(key=lambda row: (row.shown.rank, row.metric, _order(models, row.arm)[0]))
        names = dict.fromkeys(row.metric for row in rows)
        gains = {name: _place([row for row in rows if row.metric == name]) for name in names}
        main = {name: found for name, found in gains.items() if describe_metric(name).is_main}
        other = {name: found for name, found in gains.items() if name not in main}
        summary = _summary([row for row in rows if row.metric == rows[0].metric])
        tables.append(GainTable(task, split, main, other, summary))
    return tables


def _place(rows: Sequence[Row]) -> list[Gain]:
    """Place the intervals of one metric on a common line that includes 0."""
    ends = [x for row in rows for x in (0.0, row.low, row.value, row.high) if math.isfinite(x)]
    lowest, span = min(ends), (max(ends) - min(ends)) or 1.0
    gains = []
    for row in rows:
        value = row.value if math.isfinite(row.value) else 0.0
        bounds = (row.low, row.high) if math.isfinite(row.low + row.high) else (value, value)
        low, middle, high, zero = ((x - lowest) / span for x in (bounds[0], value, bounds[1], 0.0))
        gains.append(Gain(row, low, middle, high, zero))
    return gains


OUTCOMES = {
    "better": "better than",
    "higher": "higher than",
    "equivalent": "equivalent to",
    "no worse": "no worse than",
    "no difference shown": "no difference shown from",
    "lower": "lower than",
    "worse": "worse than",
    "no claim": "too few seeds for a claim against",
    "not judged": "no interval to judge by against",
}
"""What an interval shows, and how a sentence about it goes on."""


def _summary(rows: Sequence[Row]) -> list[str]:
    """Say for each arm which of the others it is better than, judged by one metric."""
    sentences = []
    for arm in dict.fromkeys(row.arm for row in rows):
        own = [row for row in rows if row.arm == arm]
        others = {outcome: [row.baseline for row in own if row.outcome == outcome] for outcome in OUTCOMES}
        text = "; ".join(
            f"{words} {', '.join(others[outcome])}" for outcome, words in OUTCOMES.items() if others[outcome]
        )
        sentences.append(f"{own[0].shown.label} of {arm}: {text}.")
    return sentences
