"""Commands from trained runs to scores and reports, and the whole way at once."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from rich.table import Table

from poyo_ssl.commands.console import console
from poyo_ssl.errors import ConfigError


def evaluate(
    runs: list[Path],
    out: Path,
    arms: list[str] | None = None,
    data: Path | None = None,
    baselines: Literal["all", "core", "none"] = "all",
    devices: int = 1,
    nodes: int = 1,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Score fine-tuned runs on their test parts beside the simple baselines.

    Writes predictions/*.h5 and results.json.

    Parameters
    ----------
    runs : list of path
        Run folders of 'poyo-ssl finetune', or predictions files.
    out : path
        Folder to make.
    arms : list of str, optional
        Name of each run in the tables; the folder's name by default.
    data : path, optional
        Where the recordings are now; by default where the runs found them.
    baselines : {'all', 'core', 'none'}
        Baselines to fit beside; 'core' leaves the slower ones out.
    devices : int
        GPUs, or CPU processes where there is no GPU.
    nodes : int
        Machines.
    seed : int
        Seed of the bootstrap over ten or more animals.
    overwrite : bool
        Replace results that are there.
    """
    from poyo_ssl.training.evaluate import evaluate as score

    if arms and len(arms) != len(runs):
        raise ConfigError(f"{len(arms)} arms for {len(runs)} runs", fix="name every run, or none")
    named = dict(zip(arms, runs, strict=True)) if arms else runs
    with console.status("evaluating") as status:
        scores = score(
            named,
            out,
            data=data,
            baselines=baselines,
            devices=devices,
            nodes=nodes,
            seed=seed,
            overwrite=overwrite,
            progress=status.update,
        )
    print_scores(scores.rows)
    console.print(f"results in {out}")


def print_scores(rows: list[dict]) -> None:
    """Show the scores of every arm, differences left out."""
    table = Table("task", "split", "metric", "arm", "value", "95 % interval", "animals")
    for row in sorted(rows, key=lambda r: (r["task"], r["split"], r["metric"])):
        if " minus " not in row["metric"]:
            low, high = row["low"], row["high"]
            interval = "-" if low is None else f"{low:.3f} to {high:.3f}"
            name = (row["task"], row["split"], row["metric"], row["arm"])
            table.add_row(*name, f"{row['value']:.3f}", interval, str(row["n"]))
    console.print(table)


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
