"""Pretraining and fine-tuning: from recordings to a run folder, and on from where a run stopped."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from poyo_ssl.config import FinetuneConfig, PretrainConfig
from poyo_ssl.data.recording import open_recordings
from poyo_ssl.errors import CheckpointError, PoyoError
from poyo_ssl.selection.table import Selection
from poyo_ssl.training import run_folder
from poyo_ssl.training.fit import fit, last_checkpoint
from poyo_ssl.training.jobs import Data, Job, finetuning_job, pretraining_job
from poyo_ssl.training.restore import read_arguments


def pretrain(
    data: Data,
    out: Path | str,
    *,
    config: PretrainConfig | None = None,
    selection: Selection | Path | str | None = None,
    devices: int = 1,
    nodes: int = 1,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Pretrain an encoder by masked latent reconstruction and a small gratings loss.

    Parameters
    ----------
    data : path or sequence of Recording
        Data folder, file, or recordings.
    out : path
        Run folder to make.
    config : PretrainConfig, optional
        Settings.
    selection : Selection or path, optional
        Which neurons are predictable; needed unless ``config.window.units`` is 'all'.
    devices, nodes : int
        Processes (GPUs, or CPU processes) per node, and nodes.
    overwrite : bool
        Replace a run that is there.
    progress : bool
        Show progress bars.

    Returns
    -------
    Path
        The run folder.

    Raises
    ------
    PoyoError
        If data, selection or settings do not fit together.
    """
    config = config or PretrainConfig()
    arguments: dict[str, Any] = {
        "data": data,
        "selection": selection,
        "config": config,
        "devices": devices,
        "nodes": nodes,
    }
    out = Path(out)
    return _train(out, overwrite, lambda: pretraining_job(out, arguments, progress=progress))


def finetune(
    data: Data,
    out: Path | str,
    *,
    config: FinetuneConfig | None = None,
    pretrained: Path | str | None = None,
    selection: Selection | Path | str | None = None,
    devices: int = 1,
    nodes: int = 1,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Fine-tune a pretrained encoder with a readout on one task, or train both from scratch.

    Parameters
    ----------
    data : path or sequence of Recording
        Data folder, file, or recordings.
    out : path
        Run folder to make.
    config : FinetuneConfig, optional
        Settings.
    pretrained : path, optional
        Run folder of `pretrain`; without it the encoder starts from random weights.
    selection : Selection or path, optional
        Which neurons are predictable; needed unless ``config.window.units`` is 'all'.
    devices, nodes : int
        Processes (GPUs, or CPU processes) per node, and nodes.
    overwrite : bool
        Replace a run that is there.
    progress : bool
        Show progress bars.

    Returns
    -------
    Path
        The run folder.

    Raises
    ------
    PoyoError
        If data, selection, checkpoint or settings do not fit together.
    """
    config = config or FinetuneConfig()
    arguments: dict[str, Any] = {"data": data, "selection": selection, "pretrained": pretrained, "config": config}
    arguments |= {"devices": devices, "nodes": nodes}
    out = Path(out)
    return _train(out, overwrite, lambda: finetuning_job(out, arguments, progress=progress))


def resume(folder: Path | str, *, progress: bool = True) -> Path:
    """Go on with a run that was stopped; the result equals that of an uninterrupted run.

    Equal bit for bit with the same number of CPU threads: torch sums some gradients thread by thread.

    Parameters
    ----------
    folder : path
        Run folder.
    progress : bool
        Show progress bars.

    Raises
    ------
    CheckpointError
        If the folder is no run, the run was made from recordings in memory, or its data have changed.
    """
    folder = Path(folder)
    facts = run_folder.read_json(folder, "run.json")
    if facts["state"] == "finished":
        return folder
    arguments = read_arguments(folder)
    if arguments["data"] is None:
        raise CheckpointError(f"{folder} was trained on recordings in memory", fix="train again from a data folder")
    known = {item["recording_id"]: item["sha256"] for item in facts["data"]}
    for recording in open_recordings(arguments["data"]):
        if known.get(recording.recording_id, recording.checksum()) != recording.checksum():
            raise CheckpointError(f"{recording.path} has changed since {folder} began", fix="train again")
    if arguments["selection"] is None:
        # Chosen by a selection in memory: the run kept what it chose.
        arguments["selection"] = run_folder.read_inputs(folder)[3]
    make = pretraining_job if facts["command"] == "pretrain" else finetuning_job
    job = make(folder, arguments, progress=progress)
    job.write_start()
    fit(job)
    return folder


def _train(out: Path, overwrite: bool, make: Callable[[], Job]) -> Path:
    """Make a job, then its folder, and fit; a job that turns out to be impossible leaves no folder behind."""
    # Under DDP every process runs the command; the first makes the folder.
    first = run_folder.process_rank() == 0
    if first:
        run_folder.check_new(out, overwrite=overwrite)
    job = make()
    if first:
        run_folder.new_folder(out, overwrite=overwrite)
    try:
        job.write_start()
        fit(job)
    except PoyoError:
        if first and not last_checkpoint(out).exists():
            shutil.rmtree(out)
        raise
    return out
