"""What a results folder holds, read and arranged into tables.

A results folder has ``results.json`` (rows of arm, task, split, metric, value, low, high, n; a metric named
``<metric> minus <arm>`` is a paired difference), ``predictions/*.h5``, and where they were made ``selection/`` and
``notes.json``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from poyo_ssl.errors import PoyoError
from poyo_ssl.evaluation.predictions import Predictions
from poyo_ssl.selection.table import SETTINGS_FILE, TABLE_FILE, Selection

RESULTS_FILE, NOTES_FILE = "results.json", "notes.json"
MODEL_ARMS = ("pretrained", "from scratch")
"""Models by name; so is every arm that is compared with another (has a row of a paired difference)."""

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

# Metric (regular expression), name, which way is better, whether it stands in the main table.
METRICS = (
    (r"ssim", "SSIM", "higher", True),
    (r"ssim_mean_subtracted", "SSIM, mean frame subtracted", "higher", True),
    (r"spatial_correlation_mean_subtracted", "correlation, mean frame subtracted", "higher", True),
    (r"identification_10way", "right frame among 10", "higher", True),
    (r"identification_(\d+)way", r"right frame among \1", "higher", False),
    (r"identification_all", "right frame among all", "higher", False),
    (r"implied_within_(.+)s", r"implied frame within \1 s", "higher", True),
    (r"implied_absolute_error_s", "error of the implied frame (s)", "lower", False),
    (r"median_rank", "median rank of the true frame", "lower", False),
    (r"psnr_db", "PSNR (dB)", "higher", False),
    (r"spatial_correlation", "correlation", "higher", False),
    (r"temporal_correlation", "correlation over time per pixel", "higher", False),
    (r"constant_share(.*)", "share of constant frames", "", False),
    (r"within_(.+)s", r"within \1 s", "higher", True),
    (r"accuracy", "accuracy", "higher", True),
    (r"absolute_error_s", "absolute error (s)", "lower", True),
    (r"orientation_accuracy", "orientation accuracy", "higher", True),
    (r"circular_error_deg", "circular error (deg)", "lower", True),
)


@dataclass(frozen=True)
class Metric:
    """How a metric is shown: its label, resolution such as ``64 x 128 px`` or '', and which way is better or ''."""

    label: str
    resolution: str
    better: str
    is_main: bool
    rank: int


def describe_metric(name: str) -> Metric:
    """Find how a metric is shown; one that is not known keeps its name and stands in the main table.

    Examples
    --------
    >>> describe_metric("identification_50way_64x128").label, describe_metric("ssim_64x128").resolution
    ('right frame among 50', '64 x 128 px')
    """
    stem, height, width = re.fullmatch(r"(.*?)(?:_(\d+)x(\d+))?", name, re.DOTALL).groups()  # type: ignore[union-attr]
    resolution = f"{height} x {width} px" if height else ""
    for rank, (pattern, label, better, is_main) in enumerate(METRICS):
        if match := re.fullmatch(pattern, stem):
            return Metric(match.expand(label), resolution, better, is_main, rank)
    return Metric(stem.replace("_", " "), resolution, "", True, len(METRICS))


def format_number(value: float) -> str:
    """Write with about three digits after the point; '-' for NaN.

    Examples
    --------
    >>> format_number(0.59349), format_number(21.5), format_number(-0.0001), format_number(float("nan"))
    ('0.593', '21.50', '0.000', '-')
    """
    if not math.isfinite(value):
        return "-"
    size = abs(value)
    digits = 1 if size >= 100 else 2 if size >= 10 else 3
    return f"{value:z.{digits}f}"


@dataclass(frozen=True)
class Row:
    """One row of results.json; `baseline` is the arm subtracted, empty for a plain score; bounds may be NaN."""

    arm: str
    task: str
    split: str
    metric: str
    baseline: str
    value: float
    low: float
    high: float
    n: int

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

        'higher' or 'lower' for a metric of which more is neither good nor bad; 'not judged' without an interval.
        """
        if self.interval == "no interval":
            return "not judged"
        if not (self.low > 0 or self.high < 0):
            return "no difference shown"
        if not self.shown.better:
            return "higher" if self.low > 0 else "lower"
        return "better" if (self.low > 0) == (self.shown.better == "higher") else "worse"

    @property
    def verdict(self) -> str:
        """The interval of a paired difference in words."""
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
        return Row(arm, task, split, metric, baseline, value, low, high, int(row["n"]))
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
        compared = [row.arm for row in self.rows if row.baseline]
        present = {row.arm for row in self.rows} | {arm for files in self.files.values() for arm in files}
        return list(dict.fromkeys([*(arm for arm in MODEL_ARMS if arm in present), *compared]))

    def best_baseline(self, task: str, split: str) -> str | None:
        """Find the baseline with a predictions file that is best in the first main metric of the task.

        Without scores it is the first baseline; None if there is none.
        """
        models = self.models
        baselines = [arm for arm in self.files.get((task, split), {}) if arm not in models]
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
    "no difference shown": "no difference shown from",
    "lower": "lower than",
    "worse": "worse than",
    "not judged": "no interval to judge by against",
}
"""What an interval shows, and how a sentence about it goes on."""


def _summary(rows: Sequence[Row]) -> list[str]:
    """Say for each arm which of the others it is better than, judged by the intervals of one metric."""
    sentences = []
    for arm in dict.fromkeys(row.arm for row in rows):
        own = [row for row in rows if row.arm == arm]
        others = {outcome: [row.baseline for row in own if row.outcome == outcome] for outcome in OUTCOMES}
        text = "; ".join(
            f"{words} {', '.join(others[outcome])}" for outcome, words in OUTCOMES.items() if others[outcome]
        )
        sentences.append(f"{own[0].shown.label} of {arm}: {text}.")
    return sentences
