"""Commands that make data folders of files of archives: NWB 2 and brainsets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from poyo_ssl.commands.console import console
from poyo_ssl.commands.conversion import convert_recordings
from poyo_ssl.errors import PoyoError

if TYPE_CHECKING:
    from poyo_ssl.sources import Outcome
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


def prepare_brainsets(
    input: Path,
    output: Path,
    how: Literal["link", "copy", "rewrite"] = "link",
    pixels: Path | None = None,
    workers: int | None = None,
    ray: str | None = None,
    overwrite: bool = False,
) -> None:
    """Take files of 'brainsets prepare allen_visual_coding_ophys_2016' as they are, and write our splits beside them.

    Files are checked, then linked to; they are never changed. A file that cannot be taken is named at the end.

    Parameters
    ----------
    input : path
        One .h5 file, or a folder that brainsets prepared.
    output : path
        Data folder to make, or to complete after an interruption.
    how : str
        'link' (hard links; a copy on another disk), 'copy', or 'rewrite', which writes recordings anew, for files that
        something has to be left out of.
    pixels : path, optional
        Folder with the pixels of the stimuli by name, as npy, mp4, gif or a folder of pictures, which brainsets does
        not keep.
    workers : int, optional
        Processes; all cores by default.
    ray : str, optional
        Address of a Ray cluster to run on, or 'local' (needs the extra 'ray').
    overwrite : bool
        Take again what is there.
    """
    from poyo_ssl.sources.brainsets import BrainsetsSource

    source = BrainsetsSource(how=how, pixels=pixels)

    def write_splits(outcomes: list[Outcome]) -> None:
        if all(outcome.status == "failed" for outcome in outcomes):
            return
        try:
            _write_splits(output)
        except PoyoError as error:
            console.print(f"no splits: {error}", markup=False)

    convert_recordings(source, input, output, workers=workers, ray=ray, overwrite=overwrite, then=write_splits)


def _write_splits(folder: Path) -> None:
    """Write splits.json of a data folder; one with other settings, which a user has written, is left alone."""
    from poyo_ssl.config import SplitConfig
    from poyo_ssl.data.recording import open_recordings
    from poyo_ssl.data.split_file import load_split_settings, save_splits

    path = folder / "splits.json"
    if path.exists() and load_split_settings(path) != SplitConfig():
        console.print(f"{path} has settings of its own: write it again with 'poyo-ssl split' if need be", markup=False)
        return
    save_splits(open_recordings(folder), path, SplitConfig())
    console.print(f"splits in {path}", markup=False)
