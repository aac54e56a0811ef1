"""HDF5 files that nobody has checked: nothing outside the file is read, nothing is allocated on a header's word."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from poyo_ssl.errors import RecordingError
from poyo_ssl.sources.base import check_size

MAX_ARRAY_BYTES = 1 << 30
"""Of an array that is read whole; traces and pixels, which may be larger, are read in pieces."""

HARMLESS_BYTES = 1 << 20
MAX_TEXT_BYTES = 1 << 20
MAX_CHUNK_BYTES = 1 << 29

DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, EOFError)
"""What h5py raises where the bytes of a file are wrong; which one depends on where they are."""


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open a file for reading; whatever h5py says of damage inside the block becomes a `RecordingError`.

    Raises
    ------
    RecordingError
        If the file is missing, not HDF5, incomplete, or damaged where it is read.

    Examples
    --------
    >>> with open_hdf5(Path("nowhere.nwb")) as file: pass
    Traceback (most recent call last):
    poyo_ssl.errors.RecordingError: no file nowhere.nwb; check the path
    """
    if not path.is_file():
        raise RecordingError(f"no file {path}", fix="check the path")
    try:
        file = h5py.File(path, "r")
    except DAMAGE as error:
        raise RecordingError(f"{path} is not a complete HDF5 file ({error})", fix="download or copy it again") from None
    try:
        with file:
            yield file
    except DAMAGE as error:
        raise RecordingError(f"{path} is damaged ({error})", fix="download or copy it again") from None


def is_hdf5(path: Path, suffix: str, test: Callable[[h5py.File], bool]) -> bool:
    """Tell, without raising, whether a path is an HDF5 file with this suffix that passes a test.

    Examples
    --------
    >>> is_hdf5(Path("nowhere.nwb"), ".nwb", lambda file: "general" in file)
    False
    """
    if path.suffix != suffix or not path.is_file():
        return False
    try:
        with open_hdf5(path) as file:
            return test(file)
    except RecordingError:
        return False


def refuse_links_outside(file: h5py.File) -> None:
    """Refuse a file with a link to another one, before a library that would follow it is let in.

    Raises
    ------
    RecordingError
        If there is one; it is named.
    """
    outside: list[bytes] = []

    def look(name: bytes, info: Any) -> bool | None:
        # Neither h5py's own walk nor `in` will do: they follow the link to see what it leads to.
        if info.type == h5py.h5l.TYPE_EXTERNAL:
            outside.append(name)
        return True if outside else None

    file.id.links.visit(look, info=True)
    if outside:
        target = file.id.links.get_val(outside[0])[0]
        raise RecordingError(
            f"{file.filename}: '{outside[0].decode('utf-8', 'replace')}' is a link to another file, "
            f"'{target.decode('utf-8', 'replace')}'",
            fix="export the file with its data, or delete the link from a copy",
        )


def require_inside(dataset: Any, path: Path, what: str) -> h5py.Dataset:
    """Return `dataset` if it is one whose values are in the file itself.

    Raises
    ------
    RecordingError
        If it is something else, or its values are kept in another file.
    """
    if not isinstance(dataset, h5py.Dataset):
        raise RecordingError(
            f"{path}: {what} is a {type(dataset).__name__}", allowed="an array in the file", fix="write the file again"
        )
    if dataset.is_virtual or dataset.external:
        raise RecordingError(f"{path}: {what} is kept in another file", fix="give a file that holds its own data")
    return dataset


def get(parent: h5py.Group, name: str) -> Any:
    """Return a group or dataset by its path below `parent`, or None if it is not there.

    Raises
    ------
    RecordingError
        If a link or a dataset's storage leads out of the file.
    """
    try:
        item = parent.get(name)
    except (KeyError, OSError):
        # An external link whose target is missing.
        item = None
    if item is None:
        return None
    # Names of the files by the library itself: h5py would build a file object for each.
    outside = h5py.h5f.get_name(item.id) != h5py.h5f.get_name(parent.id)
    if isinstance(item, h5py.Dataset):
        outside = outside or item.is_virtual or bool(item.external)
    if outside:
        raise RecordingError(
            f"{parent.file.filename}: '{name}' is kept in another file", fix="give a file that holds its own data"
        )
    return item


def get_group(parent: h5py.Group, name: str) -> h5py.Group | None:
    """Return a group, or None if there is none of this name."""
    item = get(parent, name)
    return item if isinstance(item, h5py.Group) else None


def get_dataset(parent: h5py.Group, name: str) -> h5py.Dataset | None:
    """Return a dataset, or None if there is none of this name."""
    item = get(parent, name)
    return item if isinstance(item, h5py.Dataset) else None


def name_of(item: h5py.Group | h5py.Dataset) -> str:
    """Return file and path of a group or dataset, for messages."""
    return f"{Path(item.file.filename).name}: {str(item.name).lstrip('/')}"


def require_numbers(dataset: h5py.Dataset, ndim: int, *, whole: bool = True) -> None:
    """Check a dataset's header.

    Parameters
    ----------
    dataset : h5py.Dataset
        Of numbers.
    ndim : int
        Dimensions that it must have.
    whole : bool
        Whether it will be read at once.

    Raises
    ------
    RecordingError
        If it has another number of dimensions, holds no numbers, or claims an absurd size.
    """
    if dataset.shape is None or dataset.ndim != ndim or dataset.dtype.kind not in "iufb":
        raise RecordingError(
            f"{name_of(dataset)} holds {dataset.dtype} of shape {dataset.shape}",
            allowed=f"numbers of {ndim} dimension{'s' if ndim > 1 else ''}",
            fix="the file is damaged or of another layout",
        )
    if dataset.nbytes <= HARMLESS_BYTES:
        return
    stored = dataset.id.get_storage_size()
    check_size(dataset.shape, dataset.dtype, name_of(dataset), stored=max(stored, 1))
    limit = MAX_ARRAY_BYTES if whole else None
    chunk = int(np.prod(dataset.chunks, dtype=float)) * dataset.dtype.itemsize if dataset.chunks else 0
    for size, most, what in ((dataset.nbytes, limit, "values"), (chunk, MAX_CHUNK_BYTES, "one chunk")):
        if most is not None and size > most:
            raise RecordingError(
                f"{name_of(dataset)}: {what} of shape {dataset.shape} would take {size / 1e9:.1f} GB",
                allowed=f"{most / 1e9:.1f} GB",
                fix="the file is damaged or of another layout",
            )


def read_numbers(dataset: h5py.Dataset, ndim: int) -> NDArray:
    """Return a dataset of numbers after `require_numbers`.

    Raises
    ------
    RecordingError
        As `require_numbers`.
    """
    require_numbers(dataset, ndim)
    return np.asarray(dataset[()])


def read_small(parent: h5py.Group, name: str) -> NDArray | None:
    """Return a small dataset of numbers by its path below `parent`, or None if there is none.

    For the hundreds of small datasets of a file: h5py's own layer takes five times as long to open one as to read it.

    Raises
    ------
    RecordingError
        If it is larger than a megabyte, or kept in another file.

    Examples
    --------
    >>> with h5py.File.in_memory() as file:
    ...     file["roi/pix_mask"] = np.array([[3, 4], [3, 5]])
    ...     read_small(file, "roi/pix_mask").tolist(), read_small(file, "roi"), read_small(file, "gone")
    ([[3, 4], [3, 5]], None, None)
    """
    try:
        dataset = h5py.h5o.open(parent.id, name.encode())
    except KeyError:
        return None
    if not isinstance(dataset, h5py.h5d.DatasetID):
        return None
    storage = dataset.get_create_plist()
    outside = storage.get_layout() == h5py.h5d.VIRTUAL or storage.get_external_count() > 0
    if outside or h5py.h5f.get_name(dataset) != h5py.h5f.get_name(parent.id):
        raise RecordingError(
            f"{parent.file.filename}: '{name}' is kept in another file", fix="give a file that holds its own data"
        )
    shape, dtype = dataset.shape, dataset.dtype
    if dtype.kind not in "iufb" or dtype.itemsize * math.prod(shape) > HARMLESS_BYTES:
        raise RecordingError(
            f"{parent.file.filename}: {name} holds {dtype} of shape {shape}",
            allowed="numbers of up to a megabyte",
            fix="the file is damaged or of another layout",
        )
    values = np.empty(shape, dtype)
    if values.size:
        dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
    return values


def read_text(parent: h5py.Group, name: str) -> str:
    """Return a scalar text of fixed or variable length as UTF-8, or an empty text if there is none."""
    dataset = get_dataset(parent, name)
    if dataset is None:
        return ""
    texts = read_texts(dataset)
    return texts[0] if texts else ""


def read_texts(dataset: h5py.Dataset) -> list[str]:
    """Return a dataset of texts, or of whole numbers as texts, as a list.

    Raises
    ------
    RecordingError
        If it holds something else, or more than a megabyte.
    """
    text = dataset.dtype.kind == "S" or h5py.check_string_dtype(dataset.dtype) is not None
    number = dataset.dtype.kind in "iu"
    if dataset.shape is None or dataset.ndim > 1 or not (text or number) or dataset.nbytes > MAX_TEXT_BYTES:
        raise RecordingError(
            f"{name_of(dataset)} holds {dataset.dtype} of shape {dataset.shape}",
            allowed="a text or a list of texts",
            fix="the file is damaged or of another layout",
        )
    values = np.atleast_1d(dataset[()])
    return [value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in values]
