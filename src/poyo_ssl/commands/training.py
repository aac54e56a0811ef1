"""Commands from prepared recordings to trained runs."""

from __future__ import annotations

from pathlib import Path

from rich.progress import Progress
from rich.table import Table

from poyo_ssl.commands.console import console
from poyo_ssl.config import FinetuneConfig, PretrainConfig, SelectionConfig, SplitConfig


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
