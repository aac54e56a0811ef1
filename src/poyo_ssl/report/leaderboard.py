"""Leaderboards as a self-contained page, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from markupsafe import Markup

from poyo_ssl.evaluation.leaderboard import Entry, Leaderboard, Row
from poyo_ssl.evaluation.metrics import describe_metric, format_number, format_p
from poyo_ssl.files import write_beside
from poyo_ssl.report.html import render
from poyo_ssl.report.results import SPLITS, TASKS, interval_bars

SEVERAL = "{} tables: scores of different tasks or splits cannot be compared with each other."
HEADLINE_COLUMNS = 10
"""Columns about the headline metric; those of other metrics follow."""


def header(board: Leaderboard) -> list[str]:
    """Titles of the columns of a leaderboard's table."""
    gains = [f"gain over {board.best.arm}", f"gain over {board.best.on_test}, best on test"]
    if not board.best.arm:
        gains = ["gain over a baseline", "gain over the best on test"]
    others = [_title(metric) for metric in shown_metrics(board)[1:]]
    titles = ["rank", "arm", "kind", "seeds", _title(board.headline), *gains, "effect size", "p (Holm)", "verdict"]
    return [*titles, *others]


def cells(board: Leaderboard, entry: Entry) -> list[str]:
    """One row of a leaderboard's table, as text."""
    gain, on_test = entry.gains.get(board.headline), entry.gains_on_test.get(board.headline)
    over_best = _interval(gain, signed=True) if gain else "best baseline" if entry.arm == board.best.arm else "-"
    over_test = (
        _interval(on_test, signed=True) if on_test else "best on test" if entry.arm == board.best.on_test else "-"
    )
    test = [format_number(gain.effect_size), format_p(gain.p_holm), gain.verdict] if gain else ["-"] * 3
    scores = [f"{_interval(entry.scores[metric])} n={entry.scores[metric].n}" for metric in shown_metrics(board)]
    place = "-" if entry.rank is None else str(entry.rank)
    seeds = str(entry.num_seeds) if entry.num_seeds else "-"
    return [place, entry.arm, entry.kind, seeds, scores[0], over_best, over_test, *test, *scores[1:]]


def shown_metrics(board: Leaderboard) -> list[str]:
    """Metrics with a column of the table: the headline, then the main ones; the CSV file has all of them."""
    return [board.headline] + [m for m in board.metrics if describe_metric(m).is_main and m != board.headline]


def _title(metric: str) -> str:
    shown = describe_metric(metric)
    return f"{shown.label} ({shown.resolution})" if shown.resolution else shown.label


def _interval(row: Row, *, signed: bool = False) -> str:
    sign = "+" if signed and row.value > 0 else ""
    return f"{sign}{row.text} {row.interval if row.has_interval else '[no interval]'}"


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


SCORE = ("value", "low", "high", "n", "unit", "method")
GAIN = ("value", "low", "high", "n")
TEST = ("effect_size", "effect_low", "effect_high", "p", "p_holm", "margin", "p_no_worse", "p_equivalent", "verdict")


def to_csv(boards: Sequence[Leaderboard]) -> str:
    """Write leaderboards as CSV, one row per task, split, arm and metric; what does not exist is empty."""
    rows = [_csv_row(board, entry, metric) for board in boards for entry in board.entries for metric in board.metrics]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _csv_row(board: Leaderboard, entry: Entry, metric: str) -> dict[str, object]:
    score, gain, on_test = (own.get(metric) for own in (entry.scores, entry.gains, entry.gains_on_test))
    found: dict[str, object] = {"task": board.task, "split": board.split, "data_checksum": board.data_checksum}
    found |= {"rank": entry.rank, "arm": entry.arm, "kind": entry.kind, "num_seeds": entry.num_seeds}
    found |= {"metric": metric, "best_baseline": board.best.arm, "best_on_test": board.best.on_test}
    found |= {name: getattr(score, name) for name in SCORE}
    for title, row in (("gain", gain), ("gain_on_test", on_test)):
        names = {name: title if name == "value" else f"{title}_{name}" for name in GAIN}
        found |= {shown: getattr(row, name, "") for name, shown in names.items()}
    found |= {name: getattr(gain, name, "") for name in TEST}
    return {name: "" if isinstance(value, float) and math.isnan(value) else value for name, value in found.items()}


def gain_bars(board: Leaderboard) -> dict[str, Markup]:
    """Draw the headline gains of a leaderboard by arm."""
    gains = {entry.arm: entry.gains[board.headline] for entry in board.entries if entry.gains}
    return dict(zip(gains, interval_bars(list(gains.values())), strict=True)) if gains else {}


def to_html(boards: Sequence[Leaderboard]) -> str:
    """Write leaderboards as one page that needs no script and no network; everything from files is escaped."""
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
    return render("leaderboard.html.jinja", tables=tables, several=several, version=metadata.version("poyo-ssl"))


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
