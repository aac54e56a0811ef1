"""Commands from trained runs to scores and reports, and the whole way at once."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from rich.markup import escape
from rich.table import Table

from poyo_ssl.commands.console import console
from poyo_ssl.errors import ConfigError


def evaluate(
    runs: list[Path],
    out: Path | None = None,
    arms: list[str] | None = None,
    data: Path | None = None,
    baselines: Literal["all", "core", "none", "with_cebra"] = "all",
    controls: bool = True,
    devices: int = 1,
    nodes: int = 1,
    seed: int = 0,
    margin: float = 0.02,
    overwrite: bool = False,
) -> None:
    """Score fine-tuned runs beside the simple baselines, or predictions files without any model.

    Writes predictions/*.h5 and results.json.

    Parameters
    ----------
    runs : list of path
        Run folders of 'poyo-ssl finetune', or predictions files of any decoder. With files alone neither models nor
        data are needed.
    out : path, optional
        Folder to make; with files alone it may be left out, and the tables are only shown.
    arms : list of str, optional
        Name of each run in the tables; the folder's name by default. Runs of one name are seeds of one arm.
    data : path, optional
        Where the recordings are now; by default where the runs found them. With files alone, a data folder with
        splits.json ('poyo-ssl split'): every target of every file is checked against it.
    baselines : {'all', 'core', 'none', 'with_cebra'}
        Baselines to fit beside runs; 'core' leaves the slower ones and the controls of the data out, 'with_cebra' adds
        CEBRA's embedding (needs 'poyo-ssl[cebra]').
    controls : bool
        Predict with shuffled neurons, shifted activity and untrained weights of every run, too: they should fail.
    devices : int
        GPUs, or CPU processes where there is no GPU.
    nodes : int
        Machines.
    seed : int
        Seed of the controls, and of the bootstrap over ten or more animals.
    margin : float
        Largest difference between scores of 0 to 1 that counts as none, for 'equivalent' and 'no worse'.
    overwrite : bool
        Replace results that are there.
    """
    if arms and len(arms) != len(runs):
        raise ConfigError(f"{len(arms)} arms for {len(runs)} runs", fix="name every run, or none")
    for run in runs:
        if not run.exists():
            raise ConfigError(f"no run or predictions file {run}", fix="check the path")
    if all(run.is_file() for run in runs):
        if arms:
            raise ConfigError("--arms for predictions files", fix="leave it out: each file names its arm")
        from poyo_ssl.evaluation.summary import evaluate_files

        scores = evaluate_files(runs, out, data=data, seed=seed, margin=margin, overwrite=overwrite)
    else:
        from poyo_ssl.training.evaluate import evaluate as score

        if out is None:
            raise ConfigError("evaluate of runs without --out", fix="name the folder that predictions go to")
        named: dict[str, list[Path]] = {}
        for arm, run in zip(arms or [], runs, strict=False):
            named.setdefault(arm, []).append(run)
        with console.status("evaluating") as status:
            scores = score(
                named or runs,
                out,
                data=data,
                baselines=baselines,
                controls=controls,
                devices=devices,
                nodes=nodes,
                seed=seed,
                margin=margin,
                overwrite=overwrite,
                progress=status.update,
            )
    print_scores(scores.rows)
    print_comparisons(scores.rows)
    if out is not None:
        console.print(f"results in {out}")


def print_scores(rows: list[dict]) -> None:
    """Show the scores of every arm, a table for each task and split."""
    scores = [row for row in rows if " minus " not in row["metric"]]
    for task, split in dict.fromkeys((row["task"], row["split"]) for row in scores):
        table = _table(f"{task} on {split}: scores", "metric", "arm", "kind", "value", "95 % interval", "n")
        for row in sorted(scores, key=lambda r: r["metric"]):
            if (row["task"], row["split"]) == (task, split):
                numbers = (f"{row['value']:.3f}", _interval(row), f"{row['n']} {row['unit']}")
                table.add_row(row["metric"], escape(row["arm"]), row["kind"], *numbers)
        console.print(table)


def print_comparisons(rows: list[dict]) -> None:
    """Show how the models differ from the other arms, in the metric that ranks them."""
    from poyo_ssl.evaluation.metric_names import headline_metric

    columns = ("model", "minus", "difference", "95 % interval", "effect size", "p (Holm)", "verdict")
    for task, split in dict.fromkeys((row["task"], row["split"]) for row in rows):
        own = [row for row in rows if (row["task"], row["split"]) == (task, split)]
        headline = headline_metric(task, split, [row["metric"] for row in own if " minus " not in row["metric"]])
        table = _table(f"{task} on {split}: comparisons in {headline}", *columns)
        for row in own:
            metric, _, other = row["metric"].partition(" minus ")
            if other and metric == headline:
                numbers = ["-" if row[k] is None else f"{row[k]:.3f}" for k in ("effect_size", "p_holm")]
                marked = f"{other} (best baseline)" if row["best_baseline"] else other
                first = (escape(row["arm"]), escape(marked), f"{row['value']:+.3f}", _interval(row))
                table.add_row(*first, *numbers, row["verdict"])
        if table.row_count:
            console.print(table)


def _table(title: str, *columns: str) -> Table:
    """Make a table that breaks long words on a narrow terminal: an ellipsis in their place would hide digits."""
    table = Table(title=escape(title))
    for column in columns:
        table.add_column(escape(column), overflow="fold")
    return table


def _interval(row: dict) -> str:
    return "-" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"


def leaderboard(
    folder: Path,
    out: Path | None = None,
    task: Literal["gratings", "frame_number", "frames"] | None = None,
    split: str | None = None,
    data: Path | None = None,
    seed: int = 0,
    margin: float = 0.02,
) -> None:
    """Rank all predictions files of a folder, with the gain over the best simple baseline.

    Writes leaderboard.html, leaderboard.csv and leaderboard.md: one table per task and split.

    Parameters
    ----------
    folder : path
        Predictions files (*.h5) of one data set, of any decoders, in and below it.
    out : path, optional
        Folder for the leaderboard; that of the predictions by default. An earlier leaderboard is replaced.
    task : {'gratings', 'frame_number', 'frames'}, optional
        Only this task.
    split : str, optional
        Only this split.
    data : path, optional
        Data folder with splits.json ('poyo-ssl split'): every target of every file is checked against it.
    seed : int
        Seed of the bootstrap over ten or more animals.
    margin : float
        Largest difference between scores of 0 to 1 that counts as none, for 'equivalent' and 'no worse'.
    """
    from poyo_ssl.evaluation.leaderboard import find_predictions, make_leaderboards
    from poyo_ssl.report.leaderboard import SEVERAL, cells, header, write_leaderboard

    paths, others = find_predictions(folder)
    if others:
        console.print(f"left out {len(others)} HDF5 files that hold no predictions, first {others[0]}", markup=False)
    with console.status(f"scoring {len(paths)} predictions files"):
        boards = make_leaderboards(paths, task=task, split=split, data=data, seed=seed, margin=margin)
    if len(boards) > 1:
        console.print(SEVERAL.format(len(boards)))
    for board in boards:
        # On a terminal the headline is enough; the files have the other metrics.
        shown = _table(f"{board.task} on {board.split}", *header(board)[:9])
        for entry in board.entries:
            shown.add_row(*(escape(text) for text in cells(board, entry)[:9]))
        console.print(shown)
        for note in board.notes:
            console.print(note, markup=False)
    for path in write_leaderboard(boards, out or folder):
        console.print(f"wrote {path}", markup=False)


def report(results: Path, out: Path | None = None) -> None:
    """Write a self-contained report.html from a results folder.

    Parameters
    ----------
    results : path
        Folder of 'poyo-ssl evaluate' or 'poyo-ssl demo'.
    out : path, optional
        File to write; report.html in the folder by default.
    """
    from poyo_ssl.report import write_report

    console.print(f"wrote {write_report(results, out)}")


def demo(out: Path = Path("runs/demo"), seed: int = 0, overwrite: bool = False) -> None:
    """Run the whole method on a small virtual observatory and write a report.

    Parameters
    ----------
    out : path
        Folder to make.
    seed : int
        Seed of the observatory and of every training.
    overwrite : bool
        Replace a demo that is there.
    """
    from poyo_ssl.demo import run_demo

    page = run_demo(out, seed=seed, overwrite=overwrite, console=console)
    console.print(f"open {page}")
