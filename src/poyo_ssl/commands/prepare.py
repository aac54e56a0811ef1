"""Commands that make data folders."""

from __future__ import annotations

import os
from pathlib import Path

from rich.progress import Progress

from poyo_ssl.commands.console import console


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
