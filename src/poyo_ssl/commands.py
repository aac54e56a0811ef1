"""The commands, each a typed function; `poyo_ssl.cli` turns their arguments into flags and YAML.

Heavy libraries are imported inside, so that ``poyo-ssl --help`` answers at once.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from poyo_ssl.config import FinetuneConfig, PretrainConfig, SelectionConfig, SplitConfig
from poyo_ssl.errors import ConfigError

console = Console(stderr=True)


def prepare_observatory(
    output: Path,
    world: str = "allen_like",
    size: str = "small",
    seed: int = 0,
    workers: int | None = None,
    overwrite: bool = False,
) -> None:
    """Simulate a small virtual Allen Brain Observatory with known truth.

    Parameters
    ----------
    output : path
        Data folder to make, or to complete after an interruption.
    world : str
        allen_like, regularity_helps, null or noise_confounded.
    size : str
        tiny (4 recordings), small (13, one per Cre line) or medium (40).
    seed : int
        Same seed, same bytes, whatever the number of workers.
    workers : int, optional
        Processes; all cores by default.
    overwrite : bool
        Replace an observatory that is there.
    """
    from poyo_ssl.observatory import generate_observatory, get_size, get_world

    get_world(world)
    total = get_size(size).num_recordings
    with Progress(console=console) as progress:
        task = progress.add_task(f"simulating {world}", total=total)
        paths = generate_observatory(
            output,
            world=world,
            size=size,
            seed=seed,
            workers=workers or os.cpu_count() or 1,
            overwrite=overwrite,
            progress=lambda _: progress.advance(task),
        )
    console.print(f"{len(paths)} recordings in {output}")


def prepare_events(input: Path, output: Path, seed: int = 0, overwrite: bool = False) -> None:
    """Turn a folder of event files into a recording with simulated dF/F (GCaMP6f).

    Parameters
    ----------
    input : path
        Folder with events.npz, epochs.csv and drifting_gratings.csv.
    output : path
        Data folder to write the recording to.
    seed : int
        Seed of the noise.
    overwrite : bool
        Replace a recording that is there.
    """
    from poyo_ssl.sources.events import EventsConfig
    from poyo_ssl.sources.events import prepare_events as prepare

    path = prepare(input, output, config=EventsConfig(), seed=seed, overwrite=overwrite)
    console.print(f"wrote {path}")


def select(data: Path, out: Path, config: SelectionConfig, split: SplitConfig, overwrite: bool = False) -> None:
    """Score every neuron's dF/F by skewness and excess kurtosis and choose the predictable ones.

    Writes selection.csv (one row per neuron), selection.json and selection.png.

    Parameters
    ----------
    data : path
        Data folder, or one recording.
    out : path
        Folder to make.
    config : SelectionConfig
        Level and thresholds.
    split : SplitConfig
        Moments are taken outside of every validation and test part of this split.
    overwrite : bool
        Replace a selection that is there.
    """
    from poyo_ssl.data.recording import open_recordings
    from poyo_ssl.selection.picture import plot_selection
    from poyo_ssl.selection.table import fit_selection
    from poyo_ssl.training.run_folder import new_folder
    from poyo_ssl.training.tasks import allowed_domain

    recordings = open_recordings(data)
    with Progress(console=console) as progress:
        task = progress.add_task("measuring neurons", total=len(recordings))
        selection = fit_selection(
            recordings,
            intervals={r.recording_id: allowed_domain(r, split, window_s=1.0) for r in recordings},
            config=config,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    new_folder(out, overwrite=overwrite)
    selection.save(out)
    plot_selection(selection, out / "selection.png")
    table = Table("Cre line", "neurons", "skewness", "kurtosis (excess)", "predictable")
    for row in selection.lines.to_dict("records"):
        chosen = f"{row['num_selected']} of {row['num_usable']}"
        table.add_row(
            row["cre_line"], str(row["num_usable"]), f"{row['skewness']:.2f}", f"{row['kurtosis']:.2f}", chosen
        )
    console.print(table)
    unusable = selection.table[selection.table["status"] != "ok"]
    if len(unusable):
        named = ", ".join(f"{r}/{u} ({s})" for r, u, s in unusable[["recording_id", "unit_id", "status"]].values[:10])
        console.print(f"{len(unusable)} neurons left out: {named}{' ...' if len(unusable) > 10 else ''}")
    console.print(f"selection in {out}")


def pretrain(
    data: Path,
    out: Path,
    config: PretrainConfig,
    selection: Path | None = None,
    devices: int = 1,
    nodes: int = 1,
    overwrite: bool = False,
) -> None:
    """Pretrain an encoder by masked latent reconstruction on the predictable neurons.

    Parameters
    ----------
    data : path
        Data folder, or one recording.
    out : path
        Run folder to make.
    config : PretrainConfig
        Settings.
    selection : path, optional
        Folder of 'poyo-ssl select'; needed unless window.units is all.
    devices : int
        GPUs, or CPU processes where there is no GPU.
    nodes : int
        Machines.
    overwrite : bool
        Replace a run that is there.
    """
    from poyo_ssl.training.run import pretrain as train
    from poyo_ssl.training.run_folder import read_json

    run = train(data, out, config=config, selection=selection, devices=devices, nodes=nodes, overwrite=overwrite)
    if read_json(run, "run.json").get("collapsed"):
        console.print("[bold red]the latents have collapsed: do not fine-tune from this run; see its log/")
    console.print(f"pretrained encoder in {run}")


def finetune(
    data: Path,
    out: Path,
    config: FinetuneConfig,
    pretrained: Path | None = None,
    selection: Path | None = None,
    devices: int = 1,
    nodes: int = 1,
    overwrite: bool = False,
) -> None:
    """Fine-tune an encoder with a readout on one task, or train both from scratch.

    Parameters
    ----------
    data : path
        Data folder, or one recording.
    out : path
        Run folder to make.
    config : FinetuneConfig
        Settings.
    pretrained : path, optional
        Run of 'poyo-ssl pretrain'; without it the encoder starts from random weights.
    selection : path, optional
        Folder of 'poyo-ssl select'; needed unless window.units is all.
    devices : int
        GPUs, or CPU processes where there is no GPU.
    nodes : int
        Machines.
    overwrite : bool
        Replace a run that is there.
    """
    from poyo_ssl.training.run import finetune as train
    from poyo_ssl.training.run_folder import read_json

    run = train(
        data,
        out,
        config=config,
        pretrained=pretrained,
        selection=selection,
        devices=devices,
        nodes=nodes,
        overwrite=overwrite,
    )
    loaded = read_json(run, "run.json").get("loaded")
    if loaded:
        console.print(
            f"encoder from {loaded['from']}: {loaded['tensors']} tensors, {loaded['parameters']:,} parameters; "
            f"fresh: {', '.join(loaded['fresh'])}"
        )
    console.print(f"fine-tuned model in {run}")


def resume(run: Path) -> None:
    """Go on with a run that was stopped; the result equals that of an uninterrupted run.

    Parameters
    ----------
    run : path
        Run folder.
    """
    from poyo_ssl.training.run import resume as go_on

    console.print(f"finished {go_on(run)}")


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
