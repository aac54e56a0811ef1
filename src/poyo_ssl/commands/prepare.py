"""Commands that make data folders."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import Progress

from poyo_ssl.commands.console import console
from poyo_ssl.commands.conversion import convert_recordings

if TYPE_CHECKING:
    from poyo_ssl.sources.arrays import ArraysSource
    from poyo_ssl.sources.companions import Companions
    from poyo_ssl.sources.suite2p import Suite2pSource


def prepare_observatory(
    output: Path,
    world: str = "allen_like",
    size: str = "small",
    seed: int = 0,
    dff_procedure: str = "allen_median",
    as_nwb: bool = False,
    workers: int | None = None,
    overwrite: bool = False,
) -> None:
    """Simulate a virtual Allen Brain Observatory with known truth.

    Parameters
    ----------
    output : path
        Data folder to make, or to complete after an interruption.
    world : str
        allen_like, regularity_helps, null or noise_confounded.
    size : str
        tiny (4 recordings), small (13, one per Cre line; minutes long), or with the real schedules medium (40:
        sessions A, B and C of each line) or paper (433 sessions A).
    seed : int
        Same seed, same bytes, whatever the number of workers.
    dff_procedure : str
        allen_median (the Allen's recent one, which takes out sustained activity), allen_mode (its earlier one), maximin
        or percentile.
    as_nwb : bool
        Write each recording as an Allen NWB 1 file too, into OUTPUT/ophys_experiment_data.
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
            dff_procedure=dff_procedure,
            as_nwb=as_nwb,
            workers=(os.cpu_count() or 1) if workers is None else workers,
            overwrite=overwrite,
            progress=lambda _: progress.advance(task),
        )
    console.print(f"{len(paths)} recordings in {output}")


def prepare_events(
    input: Path,
    output: Path,
    seed: int = 0,
    workers: int | None = None,
    ray: str | None = None,
    overwrite: bool = False,
) -> None:
    """Turn folders of event files into recordings with simulated dF/F (GCaMP6f).

    A folder that cannot be read is named at the end and does not stop the others; the exit code is then 2. What was
    converted before is left as it is.

    Parameters
    ----------
    input : path
        Folder with events.npz, epochs.csv and drifting_gratings.csv, or a folder of such folders.
    output : path
        Data folder to make, or to complete after an interruption.
    seed : int
        Seed of the noise.
    workers : int, optional
        Processes; all cores by default.
    ray : str, optional
        Address of a Ray cluster to run on, or 'local' (needs the extra 'ray').
    overwrite : bool
        Convert again what is there.
    """
    from poyo_ssl.sources.events import EventsSource

    source = EventsSource(seed=seed)
    convert_recordings(source, input, output, workers=workers, ray=ray, overwrite=overwrite)


def prepare_suite2p(
    input: Path,
    output: Path,
    source: Suite2pSource,
    companions: Companions,
    workers: int | None = None,
    ray: str | None = None,
    overwrite: bool = False,
) -> None:
    """Convert output of suite2p (before and after 1.0) to dF/F of F - r Fneu; nothing unsafe is unpickled.

    Clock, stimuli, pixels and metadata are files beside the folder 'suite2p' (timestamps.npy, stimuli.csv, pixels,
    recording.json), or the settings of these names. A folder that cannot be read is named at the end.

    Parameters
    ----------
    input : path
        One folder 'suite2p' (or one plane), or a folder that holds some at any depth.
    output : path
        Data folder to make, or to complete after an interruption.
    source : Suite2pSource
        What to take.
    companions : Companions
        What belongs to the traces.
    workers : int, optional
        Processes; all cores by default.
    ray : str, optional
        Address of a Ray cluster to run on, or 'local' (needs the extra 'ray').
    overwrite : bool
        Convert again what is there.
    """
    source = replace(source, companions=companions)
    convert_recordings(source, input, output, workers=workers, ray=ray, overwrite=overwrite)


def prepare_arrays(
    input: Path,
    output: Path,
    source: ArraysSource,
    companions: Companions,
    workers: int | None = None,
    ray: str | None = None,
    overwrite: bool = False,
) -> None:
    """Convert arrays of dF/F, fluorescence or events (npy, npz, csv or mat) with a stimulus table.

    Clock, stimuli, pixels and metadata are files in the recording's folder (timestamps.npy, stimuli.csv, pixels,
    recording.json), or the settings of these names. A recording that cannot be read is named at the end.

    Parameters
    ----------
    input : path
        A file of arrays; a folder with dff.*, fluorescence.* (and neuropil.*) or events.*; or a folder of such
        folders.
    output : path
        Data folder to make, or to complete after an interruption.
    source : ArraysSource
        How to read them.
    companions : Companions
        What belongs to the traces.
    workers : int, optional
        Processes; all cores by default.
    ray : str, optional
        Address of a Ray cluster to run on, or 'local' (needs the extra 'ray').
    overwrite : bool
        Convert again what is there.
    """
    source = replace(source, companions=companions)
    convert_recordings(source, input, output, workers=workers, ray=ray, overwrite=overwrite)
