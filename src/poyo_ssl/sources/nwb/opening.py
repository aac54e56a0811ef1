"""Open an NWB 2 file with pynwb, which trusts what it reads, after what it would follow blindly was refused."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from poyo_ssl.errors import ConfigError, RecordingError
from poyo_ssl.sources.hdf5 import get, open_hdf5, refuse_links_outside

MAX_REMARKS = 3
UNIMPORTANT = "Ignoring the following cached namespace"
"""Begins a remark about schema versions, which nearly every file gets."""


def nwb_version(file: h5py.File) -> str:
    """Return the version of an open file, ``1`` for the old layout, and an empty text if it is none.

    Examples
    --------
    >>> with h5py.File.in_memory() as file:
    ...     file.attrs["nwb_version"] = "2.7.0"
    ...     nwb_version(file)
    '2.7.0'
    """
    version = file.attrs.get("nwb_version", "")
    version = version.decode("utf-8", "replace") if isinstance(version, bytes) else str(version)
    return "1" if not version and get(file, "nwb_version") is not None else version


@contextmanager
def open_nwb(path: Path, remarks: list[str]) -> Iterator[Any]:
    """Give the `pynwb.NWBFile` of a file; its arrays stay on disk.

    Parameters
    ----------
    path : path
        The file.
    remarks : list of str
        What pynwb finds strange is appended, one line each.

    Raises
    ------
    RecordingError
        If it is missing, damaged, of NWB 1, links to other files, or is not valid to pynwb.
    ConfigError
        If pynwb is not installed.
    """
    try:
        from pynwb import NWBHDF5IO
    except ImportError:
        raise ConfigError("NWB 2 files need pynwb, which is not installed", fix="pip install 'poyo-ssl[nwb]'") from None
    with open_hdf5(path) as file:
        version = nwb_version(file)
        if not version.startswith("2"):
            raise RecordingError(
                f"{path} is {f'of NWB {version[:20]}' if version else 'no NWB file'}",
                allowed="NWB 2",
                fix="for the Allen's NWB 1 files use 'prepare allen'" if version else "give an NWB file",
            )
        refuse_links_outside(file)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                yield _read(file, NWBHDF5IO, path)
            finally:
                lines = dict.fromkeys(" ".join(str(item.message).split())[:200] for item in caught)
                texts = [line for line in lines if not line.startswith(UNIMPORTANT)]
                remarks += [f"pynwb: {line}" for line in texts[:MAX_REMARKS]]
                if len(texts) > MAX_REMARKS:
                    remarks.append(f"pynwb: {len(texts) - MAX_REMARKS} more remarks")


def _read(file: h5py.File, kind: Any, path: Path) -> Any:
    try:
        return kind(file=file, mode="r").read()
    except MemoryError:
        raise
    except Exception as error:
        # On a file that breaks its schema pynwb raises whatever its code happens to meet.
        # hdmf puts what it was reading before what is wrong with it.
        texts = [text for text in error.args if isinstance(text, str)] or [str(error)]
        raise RecordingError(
            f"{path}: pynwb cannot read it ({' '.join(texts[-1].split())[:300]})",
            fix="check it with 'pynwb-validate', or write it again",
        ) from None
