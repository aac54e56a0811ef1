"""The Allen's public bucket: lists of experiments and their files, fetched into a folder as AllenSDK lays it out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poyo_ssl.errors import RecordingError
from poyo_ssl.sources.allen.experiments import EXPERIMENTS_FILE, read_experiments
from poyo_ssl.sources.allen.read import DATA_FOLDER
from poyo_ssl.sources.download import check_address, download
from poyo_ssl.sources.hdf5 import open_hdf5

ADDRESS = "https://allen-brain-observatory.s3.us-west-2.amazonaws.com/visual-coding-2p"
"""The Allen Institute's public bucket ``allen-brain-observatory`` in the region ``us-west-2``."""

MAX_ID_DIGITS = 12


@dataclass(frozen=True)
class Fetched:
    """What became of one file.

    Attributes
    ----------
    experiment_id : int
        Of the experiment.
    path : Path
        Where it is, or would be.
    error : str
        Why it is not there; empty if it is.
    """

    experiment_id: int
    path: Path
    error: str = ""


def experiment_path(folder: Path, experiment_id: int) -> Path:
    """Return where the file of an experiment belongs.

    Examples
    --------
    >>> experiment_path(Path("cache"), 501574836).as_posix()
    'cache/ophys_experiment_data/501574836.nwb'
    """
    number = int(experiment_id)
    # Only digits make a name or an address, so that no list of ids can lead out of the folder.
    if number < 0 or len(str(number)) > MAX_ID_DIGITS:
        raise RecordingError(f"experiment id {number}", allowed=f"up to {MAX_ID_DIGITS} digits", fix="correct the list")
    return folder / DATA_FOLDER / f"{number}.nwb"


def download_list(folder: Path, address: str = ADDRESS, **settings: Any) -> Path:
    """Fetch the list of all experiments, unless it is there.

    Parameters
    ----------
    folder : path
        Folder to write to; made if it is not there.
    address : str
        Of the folder ``visual-coding-2p``, or of a mirror of it.
    **settings
        As for `poyo_ssl.sources.download.download`.

    Raises
    ------
    RecordingError, ConfigError, ResourceError
        As `download`.
    """
    url = f"{check_address(address)}/{EXPERIMENTS_FILE}"
    return download(url, folder / EXPERIMENTS_FILE, check=_check_list, **settings)


def download_experiments(
    ids: Sequence[int],
    folder: Path,
    address: str = ADDRESS,
    *,
    progress: Callable[[int, int, int], None] | None = None,
    done: Callable[[Fetched], None] | None = None,
    **settings: Any,
) -> list[Fetched]:
    """Fetch the files of experiments, one after the other; those that are there are left alone.

    A file that the server does not have, or does not send whole, does not stop the others.

    Parameters
    ----------
    ids : sequence of int
        Experiments.
    folder : path
        Files go to its ``ophys_experiment_data``.
    address : str
        Of the folder ``visual-coding-2p``, or of a mirror of it.
    progress : callable, optional
        Called with experiment, bytes that are there, and size.
    done : callable, optional
        Called after every file.
    **settings
        As for `poyo_ssl.sources.download.download`.

    Raises
    ------
    ConfigError
        If no server answers.
    ResourceError
        If the disk is too small.
    """
    address = check_address(address)
    fetched = []
    for number in ids:
        path = experiment_path(folder, number)

        def show(there: int, size: int, number: int = number) -> None:
            if progress:
                progress(number, there, size)

        try:
            download(f"{address}/{DATA_FOLDER}/{path.name}", path, check=_check_hdf5, progress=show, **settings)
            result = Fetched(number, path)
        except RecordingError as error:
            result = Fetched(number, path, str(error))
        fetched.append(result)
        if done:
            done(result)
    return fetched


def _check_list(path: Path) -> None:
    """Read a list of experiments."""
    read_experiments(path)


def _check_hdf5(path: Path) -> None:
    """Open a file: HDF5 compares its size with its header, which tells a file that was cut short at its source."""
    with open_hdf5(path):
        pass
