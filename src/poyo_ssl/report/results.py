"""What a results folder holds, arranged into tables.

A results folder has ``results.json`` (`poyo_ssl.evaluation.leaderboard.Row`), ``predictions/*.h5``, and where they were
made ``selection/`` and ``notes.json``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from poyo_ssl.errors import PoyoError
from poyo_ssl.evaluation.leaderboard import Candidate, Row, best_baseline, read_json, read_results
from poyo_ssl.evaluation.metrics import describe_metric, format_p, headline_metric
from poyo_ssl.evaluation.predictions import Predictions
from poyo_ssl.selection.table import SETTINGS_FILE, TABLE_FILE, Selection

NOTES_FILE = "notes.json"
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


@dataclass(frozen=True)
class StoredArm:
    """A predictions file, and what the choice of the best baseline needs of it."""

    path: Path
    validation_metric: str
    validation_score: float


@dataclass
class Results:
    """A results folder, read."""

    folder: Path
    rows: list[Row]
    notes: dict[str, Any]
    selection: Selection | None
    files: dict[tuple[str, str], dict[str, StoredArm]] = field(default_factory=dict)  # by task and split, and by arm
    remarks: list[str] = field(default_factory=list)

    @property
    def models(self) -> list[str]:
        """Arms that are models, `MODEL_ARMS` first."""
        kinds = {row.arm: row.kind for row in self.rows if row.kind}
        if kinds:
            return [arm for arm, kind in kinds.items() if kind == "model"]
        compared = [row.arm for row in self.rows if row.minus]
        present = {row.arm for row in self.rows} | {arm for files in self.files.values() for arm in files}
        return list(dict.fromkeys([*(arm for arm in MODEL_ARMS if arm in present), *compared]))

    def best_baseline(self, task: str, split: str) -> str | None:
        """Return the best baseline as `evaluate` marked it; where rows have no marks it is chosen by the same rule.

        Only a baseline with a predictions file counts; None if there is none.
        """
        files = self.files.get((task, split), {})
        here = [row for row in self.rows if (row.task, row.split, row.minus) == (task, split, "")]
        if marked := [row.arm for row in here if row.best_baseline and row.arm in files]:
            return marked[0]
        kinds = {row.arm: row.kind for row in self.rows if row.kind}
        simple = [arm for arm in files if arm not in self.models and kinds.get(arm, "baseline") == "baseline"]
        scored = [row for row in here if row.arm in simple and math.isfinite(row.value)]
        if not scored:
            return next(iter(simple), None)
        headline = headline_metric(task, split, [row.metric for row in scored])
        candidates = [
            Candidate(row.arm, row.value, files[row.arm].validation_metric, files[row.arm].validation_score)
            for row in scored
            if row.metric == headline
        ]
        return best_baseline(candidates, headline).arm


def open_results(folder: Path) -> Results:
    """Read a results folder, all but the predictions themselves."""
    rows = read_results(folder)
    notes = read_json(folder / NOTES_FILE) if (folder / NOTES_FILE).is_file() else {}
    if not isinstance(notes, dict) or not isinstance(notes.get("arms", {}), dict):
        raise PoyoError(f"{folder / NOTES_FILE} is no mapping, or its 'arms' is none", fix="write it as a JSON object")
    has_selection = any((folder / "selection" / name).exists() for name in (TABLE_FILE, SETTINGS_FILE))
    results = Results(folder, rows, notes, Selection.load(folder / "selection") if has_selection else None)
    for path in sorted((folder / "predictions").glob("*.h5")):
        p = Predictions.load(path)
        arms = results.files.setdefault((p.task, p.split), {})
        if p.arm in arms:
            results.remarks.append(
                f"{path.name} repeats arm '{p.arm}' of {p.task} on {p.split}; pictures show {arms[p.arm].path.name}."
            )
        arms.setdefault(p.arm, StoredArm(path, p.validation_metric, p.validation_score))
    return results


def _order(known: Iterable[str], name: str) -> tuple[int, str]:
    names = list(known)
    return (names.index(name) if name in names else len(names), name)


def ordered_parts(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Tasks and splits, the easiest first."""
    return sorted(set(pairs), key=lambda pair: (_order(TASKS, pair[0]), _order(SPLITS, pair[1])))


@dataclass
class ScoreTable:
    """Scores of one task and split, models above baselines."""

    task: str
    split: str
    metrics: list[str]
    arms: list[str]
    models: set[str]
    cells: dict[tuple[str, str], Row]  # by arm and metric
    best: dict[str, str]  # best value by metric, as text: arms that share it in writing share the mark


def score_tables(results: Results) -> list[ScoreTable]:
    """Arrange the scores: one table per task and split."""
    models, tables = results.models, []
    for task, split, rows in _by_part([row for row in results.rows if not row.minus]):
        cells = {(row.arm, row.metric): row for row in rows}
        names = sorted({row.metric for row in rows}, key=lambda m: (describe_metric(m).rank, m))
        arms = sorted(dict.fromkeys(row.arm for row in rows), key=lambda arm: _order(models, arm)[0])
        best = {name: _best_text([row for row in rows if row.metric == name]) for name in names}
        tables.append(ScoreTable(task, split, names, arms, set(models), cells, best))
    return tables


def _by_part(rows: Sequence[Row]) -> list[tuple[str, str, list[Row]]]:
    parts = ordered_parts((row.task, row.split) for row in rows)
    return [(*part, [row for row in rows if (row.task, row.split) == part]) for part in parts]


def _best_text(rows: Sequence[Row]) -> str:
    better, rows = rows[0].shown.better, [row for row in rows if math.isfinite(row.value)]
    if not better or not rows:
        return ""
    return (max if better == "higher" else min)(rows, key=lambda row: row.value).text


@dataclass(frozen=True)
class GainTable:
    """Paired gains of one task and split by metric, each with its bar, and what those of the first metric say."""

    task: str
    split: str
    main: dict[str, list[tuple[Row, Markup]]]
    other: dict[str, list[tuple[Row, Markup]]]
    summary: list[str]


def gain_tables(results: Results) -> list[GainTable]:
    """Arrange the paired gains: one table per task and split."""
    models, tables = results.models, []
    for task, split, rows in _by_part([row for row in results.rows if row.minus]):
        rows.sort(key=lambda row: (row.shown.rank, row.metric, _order(models, row.arm)[0]))
        by_metric = {
            name: [row for row in rows if row.metric == name] for name in dict.fromkeys(r.metric for r in rows)
        }
        gains = {name: list(zip(own, interval_bars(own), strict=True)) for name, own in by_metric.items()}
        main = {name: found for name, found in gains.items() if describe_metric(name).is_main}
        other = {name: found for name, found in gains.items() if name not in main}
        tables.append(GainTable(task, split, main, other, _summary(by_metric[rows[0].metric])))
    return tables


BAR = Markup(
    '<svg width="{width}" height="16" role="img" aria-label="interval beside 0">'
    '<line x1="{zero}" x2="{zero}" y1="0" y2="16" stroke="#999"/>'
    '<line x1="{low}" x2="{high}" y1="8" y2="8" stroke="#0072B2" stroke-width="2.5"/>'
    '<circle cx="{value}" cy="8" r="3.6" fill="#0072B2"/></svg>'
)
BAR_PX, BAR_MARGIN_PX = 132, 6


def interval_bars(rows: Sequence[Row]) -> list[Markup]:
    """Draw intervals on one line that includes 0; without an interval a value is a point."""
    spans = []
    for row in rows:
        value = row.value if math.isfinite(row.value) else 0.0
        spans.append(
            {"low": row.low, "value": value, "high": row.high}
            if row.has_interval
            else dict.fromkeys(("low", "value", "high"), value)
        )
    every = [0.0, *(x for span in spans for x in span.values())]
    lowest, length = min(every), (max(every) - min(every)) or 1.0

    def place(x: float) -> str:
        return f"{BAR_MARGIN_PX + (BAR_PX - 2 * BAR_MARGIN_PX) * (x - lowest) / length:.1f}"

    return [BAR.format(width=BAR_PX, zero=place(0.0), **{name: place(x) for name, x in span.items()}) for span in spans]


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
"""What a paired difference shows, and how a sentence about it goes on."""


def outcome(row: Row) -> str:
    """Return what a paired difference shows, a key of `OUTCOMES`: its verdict, else what its interval says."""
    if row.verdict:
        kind = row.verdict.partition(":")[0]
        return "no difference shown" if kind == "inconclusive" else kind
    if not row.has_interval:
        return "not judged"
    if not (row.low > 0 or row.high < 0):
        return "no difference shown"
    if not row.shown.better:
        return "higher" if row.low > 0 else "lower"
    return "better" if (row.low > 0) == (row.shown.better == "higher") else "worse"


def words(row: Row) -> str:
    """Say what a paired difference shows."""
    if row.verdict in ("equivalent", "no worse"):
        p = row.p_equivalent if row.verdict == "equivalent" else row.p_no_worse
        return f"{row.verdict} (margin {row.margin:g}, p = {format_p(p)})"
    if row.verdict:
        return row.verdict
    if not row.has_interval:
        return "no interval: too few values"
    place = "above 0" if row.low > 0 else "below 0" if row.high < 0 else "contains 0"
    return f"interval {place}: {outcome(row)}"


def _summary(rows: Sequence[Row]) -> list[str]:
    """Say for each arm which of the others it is better than, judged by one metric."""
    sentences = []
    for arm in dict.fromkeys(row.arm for row in rows):
        own = [row for row in rows if row.arm == arm]
        others = {key: [row.minus for row in own if outcome(row) == key] for key in OUTCOMES}
        text = "; ".join(f"{goes_on} {', '.join(others[key])}" for key, goes_on in OUTCOMES.items() if others[key])
        sentences.append(f"{own[0].shown.label} of {arm}: {text}.")
        for row in own:
            if row.best_on_test and not row.best_baseline:
                sentences.append(f"Gain of {arm} over {row.minus}, the best baseline on the test set: {row.text}.")
    return sentences
