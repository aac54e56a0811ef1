"""Numbers from npy, npz, csv and MATLAB files of others: no pickle, nothing allocated on a header's word."""

from __future__ import annotations

import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from poyo_ssl.data.hdf5 import check_size, get_dataset, open_hdf5, read_numbers
from poyo_ssl.errors import RecordingError, suggest

SUFFIXES = (".npy", ".npz", ".csv", ".mat")
FIX_FILE = "the file is damaged; copy or write it again"

HEADER_DAMAGE = (
    *(ValueError, OSError, EOFError, TypeError, SyntaxError, RecursionError, MemoryError),
    *(zlib.error, tokenize.TokenError),
)
"""What numpy raises on a damaged header, which it reads as Python text."""


def load_array(path: Path, key: str | None = None) -> NDArray:
    """Return one numeric array of a file, memory-mapped where it is a npy file.

    Parameters
    ----------
    path : path
        ``.npy``, ``.npz``, ``.csv`` (rows by lines; a line of names is skipped) or ``.mat`` (version 4 to 7.3).
    key : str, optional
        Name of the array in a npz or mat file; not needed if it holds only one.

    Raises
    ------
    RecordingError
        If the file is missing, damaged, of another kind, needs pickle, or holds no such array of numbers.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "both.npz"
    >>> np.savez(path, dff=np.zeros((5, 2)), clock=np.arange(5.0))
    >>> load_array(path, "dff").shape
    (5, 2)
    >>> load_array(path)
    Traceback (most recent call last):
    poyo_ssl.errors.RecordingError: ... holds several arrays (allowed: clock, dff); say which with --key
    """
    if not path.is_file():
        raise RecordingError(f"no file {path}", fix="check the path")
    readers: dict[str, Callable[[Path, str | None], NDArray]] = {
        ".npy": lambda path, _: load_npy(path),
        ".npz": _load_npz,
        ".csv": lambda path, _: _load_csv(path),
        ".mat": _load_mat,
    }
    if path.suffix.lower() not in readers:
        raise RecordingError(
            f"{path} is not a file of arrays", allowed=", ".join(SUFFIXES), fix="save it as one of these"
        )
    array = readers[path.suffix.lower()](path, key)
    if array.dtype.kind not in "biuf":
        raise RecordingError(f"{path} holds values of type {array.dtype}", allowed="real numbers", fix="save numbers")
    return array


def load_npy(path: Path) -> NDArray:
    """Memory-map a npy file, which numpy checks against its size.

    Raises
    ------
    RecordingError
        If it is missing, damaged, or would have to be unpickled.
    """
    if not path.is_file():
        raise RecordingError(f"no file {path}", fix="check the path")
    try:
        with path.open("rb") as stream:
            shape, dtype = read_npy_header(stream, str(path))
        if 0 in shape:
            return np.zeros(shape, dtype)
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, OverflowError) as error:
        raise RecordingError(f"{path} is not a complete npy file ({_one_line(error)})", fix=FIX_FILE) from None


def read_npy_header(stream: Any, what: str) -> tuple[tuple[int, ...], np.dtype]:
    """Return shape and type of the npy data in a stream.

    Raises
    ------
    RecordingError
        If the header is damaged or announces pickled objects.
    """
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        with warnings.catch_warnings():
            # Headers of Python 2 are read with a warning.
            warnings.simplefilter("ignore")
            shape, _, dtype = read(stream)
    except HEADER_DAMAGE as error:
        raise RecordingError(f"{what} is not a complete npy file ({_one_line(error)})", fix=FIX_FILE) from None
    if dtype.hasobject:
        raise RecordingError(f"{what} holds pickled objects, which can run code", fix="save it as an array of numbers")
    if any(size < 0 for size in shape):
        raise RecordingError(f"{what} has shape {shape}", fix=FIX_FILE)
    return shape, dtype


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _pick(path: Path, key: str | None, names: list[str]) -> str:
    """Return the array to read among those that a file has."""
    if key is not None and key not in names:
        raise RecordingError(
            f"{path} has no array '{key}'{suggest(key, names)}",
            allowed=", ".join(names[:20]) or "it has none",
            fix="correct --key",
        )
    if key is None and len(names) != 1:
        raise RecordingError(
            f"{path} holds {'several' if names else 'no'} arrays",
            allowed=", ".join(names[:20]) or None,
            fix="say which with --key" if names else "save an array of numbers in it",
        )
    return key if key is not None else names[0]


def list_npz(path: Path) -> list[str]:
    """Return the names of the arrays in a npz file, sorted.

    Raises
    ------
    RecordingError
        If it is missing or damaged.
    """
    if not path.is_file():
        raise RecordingError(f"no file {path}", fix="check the path")
    try:
        with zipfile.ZipFile(path) as archive:
            return sorted(name.removesuffix(".npy") for name in archive.namelist())
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        raise RecordingError(f"{path} is not a complete npz file ({_one_line(error)})", fix=FIX_FILE) from None


def _load_npz(path: Path, key: str | None) -> NDArray:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {item.filename.removesuffix(".npy"): item for item in archive.infolist()}
            member = members[_pick(path, key, sorted(members))]
            what = f"array '{member.filename.removesuffix('.npy')}' of {path}"
            with archive.open(member) as stream:
                shape, dtype = read_npy_header(stream, what)
            check_size(shape, dtype, what, stored=member.compress_size)
            with archive.open(member) as stream:
                return np.lib.format.read_array(stream, allow_pickle=False)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise RecordingError(f"{path} is not a complete npz file ({_one_line(error)})", fix=FIX_FILE) from None


def _load_csv(path: Path) -> NDArray:
    import pandas as pd

    try:
        with path.open(encoding="utf-8-sig") as stream:
            has_names = not all(_is_number(cell) for cell in stream.readline(1 << 20).split(","))
        table = pd.read_csv(path, header=0 if has_names else None, low_memory=False, encoding="utf-8-sig")
    except (ValueError, UnicodeDecodeError, OverflowError) as error:
        raise RecordingError(
            f"{path} is not a table ({_one_line(error)})", fix="write comma-separated numbers"
        ) from None
    if table.empty:
        raise RecordingError(f"{path} has a line of names and no numbers", fix="write the numbers below it")
    for place in range(table.shape[1]):
        column = table.iloc[:, place]
        if column.dtype.kind in "biuf":
            continue
        text = pd.to_numeric(column, errors="coerce").isna() & column.notna()
        row = int(text.to_numpy().argmax())
        raise RecordingError(
            f"{path}: '{str(column.iloc[row])[:40]}' in row {row + 1} of the numbers, column {place + 1}",
            allowed="numbers below one line of names",
            fix="correct it",
        )
    return table.to_numpy(np.float64)


def _is_number(cell: str) -> bool:
    try:
        float(cell.strip() or "nan")
    except ValueError:
        return False
    return True


def _load_mat(path: Path, key: str | None) -> NDArray:
    if h5py.is_hdf5(path):
        return _load_mat73(path, key)
    from scipy import io

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kinds = {name: (shape, kind) for name, shape, kind in io.whosmat(path)}
            numbers: tuple[str, ...] = (
                "double",
                "single",
                "logical",
                "int8",
                "uint8",
                "int16",
                "uint16",
                "int32",
                "uint32",
            )
            numbers += ("int64", "uint64")
            name = _pick(path, key, sorted(name for name, (_, kind) in kinds.items() if kind in numbers))
            what = f"array '{name}' of {path}"
            check_size(kinds[name][0], np.dtype(np.float64), what, stored=path.stat().st_size)
            return np.asarray(io.loadmat(path, variable_names=[name])[name])
    except RecordingError:
        raise
    except Exception as error:
        # scipy's reader trusts its input: on a damaged file it raises whatever its arithmetic happens to meet.
        raise RecordingError(f"{path} is not a complete MATLAB file ({_one_line(error)})", fix=FIX_FILE) from None


def _load_mat73(path: Path, key: str | None) -> NDArray:
    with open_hdf5(path) as file:
        names = sorted(name for name in file if get_dataset(file, name) is not None)
        dataset = file[_pick(path, key, names)]
        # MATLAB's first axis is HDF5's last.
        return read_numbers(dataset, dataset.ndim).T
