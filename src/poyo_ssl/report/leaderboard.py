"""Leaderboards as a self-contained page, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path

import numpy as np
from jinja2 import Environment, StrictUndefined

from poyo_ssl.evaluation.leaderboard import Entry, Leaderboard
from poyo_ssl.evaluation.metrics import describe_metric, format_number, format_p
from poyo_ssl.evaluation.statistics import Interval
from poyo_ssl.files import write_beside
from poyo_ssl.report.results import SPLITS, TASKS

SEVERAL = "{} tables: scores of different tasks or splits cannot be compared with each other."
BAR_PX = 140
"""Width of the picture of a gain."""


def header(board: Leaderboard) -> list[str]:
    """Titles of the columns of a leaderboard's table."""
    titles = [_title(board.headline), f"gain over {board.best}" if board.best else "gain over a baseline"]
    others = [_title(metric) for metric in shown_metrics(board)[1:]]
    return ["rank", "arm", "kind", "seeds", *titles, "effect size", "p (Holm)", "verdict", *others]


def cells(board: Leaderboard, entry: Entry) -> list[str]:
    """One row of a leaderboard's table, as text.

    Examples
    --------
    >>> from poyo_ssl.evaluation.leaderboard import Entry, Leaderboard
    >>> score = Interval(0.5, 0.25, 0.75, 3, "t", "animals")
    >>> entry = Entry("ridge", "baseline", 0, 1, {"accuracy": score}, {})
    >>> board = Leaderboard("gratings", "gratings", "", "accuracy", ("accuracy",), "ridge", (entry,), ())
    >>> cells(board, entry)
    ['1', 'ridge', 'baseline', '-', '0.500 [0.250, 0.750] n=3', 'best baseline', '-', '-', '-']
    """
    gain = entry.gains.get(board.headline)
    if gain is None:
        middle = ["best baseline" if entry.arm == board.best else "-", "-", "-", "-"]
    else:
        middle = [_interval(gain.interval, signed=True), format_number(gain.effect.value)]
        middle += [format_p(gain.p_holm), gain.verdict]
    scores = [f"{_interval(entry.scores[metric])} n={entry.scores[metric].n}" for metric in shown_metrics(board)]
    place = "-" if entry.rank is None else str(entry.rank)
    seeds = str(entry.num_seeds) if entry.num_seeds else "-"
    return [place, entry.arm, entry.kind, seeds, scores[0], *middle, *scores[1:]]


def shown_metrics(board: Leaderboard) -> list[str]:
    """Metrics with a column of the table: the headline, then the main ones; the CSV file has all of them."""
    return [board.headline] + [m for m in board.metrics if describe_metric(m).is_main and m != board.headline]


def _title(metric: str) -> str:
    shown = describe_metric(metric)
    return f"{shown.label} ({shown.resolution})" if shown.resolution else shown.label


def _interval(interval: Interval, *, signed: bool = False) -> str:
    value = format_number(interval.value)
    sign = "+" if signed and interval.value > 0 else ""
    if np.isnan(interval.low):
        return f"{sign}{value} [no interval]"
    return f"{sign}{value} [{format_number(interval.low)}, {format_number(interval.high)}]"


def to_markdown(boards: Sequence[Leaderboard]) -> str:
    """Write leaderboards as Markdown tables with their notes."""
    blocks = ["# Leaderboard\n"]
    if len(boards) > 1:
        blocks.append(f"{SEVERAL.format(len(boards))}\n")
    for board in boards:
        lines = [f"## {board.task}, split `{board.split}`\n"]
        lines += [f"- {_escape(note)}" for note in board.notes]
        titles = header(board)
        lines += ["", _row(titles), "|" + "---|" * len(titles)]
        lines += [_row(cells(board, entry)) for entry in board.entries]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def _row(texts: Sequence[str]) -> str:
    return "| " + " | ".join(_escape(text) for text in texts) + " |"


def _escape(text: str) -> str:
    """Arm names are free text."""
    plain = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return plain.replace("\\", "\\\\").replace("|", "\\|").replace("`", "\\`")


FACTS = ("task", "split", "data_checksum", "rank", "arm", "kind", "num_seeds", "metric", "best_baseline")
SCORE = ("value", "low", "high", "n", "unit", "method")
GAIN = ("gain", "gain_low", "gain_high", "gain_n")
TEST = ("effect_size", "effect_low", "effect_high", "p", "p_holm", "margin", "p_no_worse", "p_equivalent", "verdict")


def to_csv(boards: Sequence[Leaderboard]) -> str:
    """Write leaderboards as CSV, one row per task, split, arm and metric; what does not exist is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, (*FACTS, *SCORE, *GAIN, *TEST), lineterminator="\n")
    writer.writeheader()
    for board in boards:
        for entry in board.entries:
            for metric in board.metrics:
                writer.writerow(_csv_row(board, entry, metric))
    return text.getvalue()


def _csv_row(board: Leaderboard, entry: Entry, metric: str) -> dict[str, object]:
    score, gain = entry.scores[metric], entry.gains.get(metric)
    facts = (board.task, board.split, board.data_checksum, entry.rank, entry.arm, entry.kind, entry.num_seeds, metric)
    found: dict[str, object] = dict(zip(FACTS, (*facts, board.best), strict=True))
    found |= {name: getattr(score, name) for name in SCORE}
    if gain is not None:
        found |= dict(zip(GAIN, (getattr(gain.interval, name) for name in ("value", "low", "high", "n")), strict=True))
        found |= dict(zip(TEST, (gain.effect.value, gain.effect.low, gain.effect.high), strict=False))
        found |= {name: getattr(gain, name) for name in TEST[3:]}
    return {name: "" if isinstance(value, float) and np.isnan(value) else value for name, value in found.items()}


@dataclass(frozen=True)
class Bar:
    """Where a gain, its interval and 0 lie on a line of `BAR_PX` pixels that all arms of a table share."""

    low: float
    value: float
    high: float
    zero: float


def gain_bars(board: Leaderboard) -> dict[str, Bar]:
    """Place the headline gains of a leaderboard by arm; without an interval a gain is a point."""
    gains = {entry.arm: entry.gains[board.headline].interval for entry in board.entries if entry.gains}
    ends = {
        arm: [gain.value if np.isnan(bound) else bound for bound in (gain.low, gain.high)]
        for arm, gain in gains.items()
    }
    every = [0.0, *(x for arm, gain in gains.items() for x in (*ends[arm], gain.value))]
    lowest, span = min(every), (max(every) - min(every)) or 1.0

    def place(x: float) -> float:
        return 4 + (BAR_PX - 8) * (x - lowest) / span

    return {
        arm: Bar(place(ends[arm][0]), place(gain.value), place(ends[arm][1]), place(0.0)) for arm, gain in gains.items()
    }


def to_html(boards: Sequence[Leaderboard]) -> str:
    """Write leaderboards as one page that needs no script and no network; everything from files is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = (resources.files("poyo_ssl.report") / "leaderboard.html.jinja").read_text(encoding="utf-8")
    tables = [
        {
            "board": board,
            "task": TASKS.get(board.task, board.task),
            "shows": SPLITS.get(board.split, ""),
            "header": header(board),
            "rows": [(entry, cells(board, entry)) for entry in board.entries],
            "bars": gain_bars(board),
        }
        for board in boards
    ]
    several = SEVERAL.format(len(boards)) if len(boards) > 1 else ""
    return environment.from_string(template).render(
        tables=tables, several=several, width=BAR_PX, version=metadata.version("poyo-ssl")
    )


def write_leaderboard(boards: Sequence[Leaderboard], folder: Path | str) -> list[Path]:
    """Write ``leaderboard.html``, ``leaderboard.csv`` and ``leaderboard.md``.

    Parameters
    ----------
    boards : sequence of Leaderboard
        See `poyo_ssl.evaluation.leaderboard.make_leaderboards`.
    folder : path
        Where to; made if it is not there. Earlier leaderboards in it are replaced, each once the new one is complete.

    Returns
    -------
    list of Path
        The three files.
    """
    folder = Path(folder)
    texts = {
        "leaderboard.html": to_html(boards),
        "leaderboard.csv": to_csv(boards),
        "leaderboard.md": to_markdown(boards),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_beside(folder / name, text)
    return [folder / name for name in texts]
