"""Commands that make data folders of files of archives: NWB 2."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from poyo_ssl.commands.conversion import convert_recordings

if TYPE_CHECKING:
    from poyo_ssl.sources.companions import Companions
    from poyo_ssl.sources.nwb import NwbSource


def prepare_nwb(
    input: Path,
    output: Path,
    source: NwbSource,
    companions: Companions,
    workers: int | None = None,
    ray: str | None = None,
    overwrite: bool = False,
) -> None:
    """Convert NWB 2 files: DANDI 000728 (Allen Visual Coding), or any laboratory's with traces of ROIs.

    Stimuli are the file's tables of intervals and index series, or a table beside it (stimuli.csv, recording.json and
    pixels, in a folder that the file has to itself or in one of its own name). Needs the extra 'nwb'. A file that
    cannot be read is named at the end.

    Parameters
    ----------
    input : path
        One .nwb file, or a folder that holds some at any depth.
    output : path
        Data folder to make, or to complete after an interruption.
    source : NwbSource
        What to take.
    companions : Companions
        What overrules the file.
    workers : int, optional
        Processes; all cores by default.
    ray : str, optional
        Address of a Ray cluster to run on, or 'local' (needs the extra 'ray').
    overwrite : bool
        Convert again what is there.
    """
    source = replace(source, companions=companions)
    convert_recordings(source, input, output, workers=workers, ray=ray, overwrite=overwrite)
