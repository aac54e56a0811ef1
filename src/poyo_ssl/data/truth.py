"""The truth of a simulated recording, read from its file when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from poyo_ssl.errors import RecordingError


class FileTruth(Mapping[str, NDArray]):
    """Arrays by name that stay in the file until they are asked for; an hour's true rates take some 15 MB.

    It holds the path and no open file, so that recordings can be sent to other processes.

    Parameters
    ----------
    path : path
        Brainsets HDF5 file.
    names : iterable of str
        Datasets of its group ``truth``.

    Raises
    ------
    RecordingError
        When an array is asked for and the file is no longer there, or no longer holds it.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "made.h5"
    >>> with h5py.File(path, "w") as file:
    ...     file["truth/tuned"] = np.array([True, False])
    >>> truth = FileTruth(path, ["tuned"])
    >>> list(truth), truth["tuned"].tolist()
    (['tuned'], [True, False])
    """

    def __init__(self, path: Path, names: list[str]) -> None:
        self._path = Path(path)
        self._names = tuple(names)

    def __getitem__(self, name: str) -> NDArray:
        if name not in self._names:
            raise KeyError(name)
        try:
            with h5py.File(self._path, "r") as file:
                values = file["truth"][name][()]
        except (OSError, KeyError) as error:
            raise RecordingError(
                f"{self._path}: its truth '{name}' can no longer be read ({error})", fix="open the recording again"
            ) from None
        return np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"FileTruth({str(self._path)!r}, {list(self._names)})"
