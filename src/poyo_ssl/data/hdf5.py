"""HDF5 files that nobody has checked: nothing outside the file is read, nothing is allocated on a header's word.

Recordings, predictions and the files of other laboratories are opened and read through this module.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from poyo_ssl.errors import PoyoError, RecordingError

MAX_BYTES = 64 << 30
"""Larger than any two-photon recording's traces; what claims more is damaged or hostile."""

MAX_EXPANSION = 1100
"""Deflate shrinks data by a factor of 1032 at most: a header that claims more is wrong."""

MAX_ARRAY_BYTES = 1 << 30
"""Of an array that is read whole; traces and pixels, which may be larger, are read in pieces."""

HARMLESS_BYTES = 1 << 20
MAX_TEXT_BYTES = 1 << 20
MAX_CHUNK_BYTES = 1 << 29

DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, EOFError)
"""What h5py raises where the bytes of a file are wrong; which one depends on where they are."""

COPY_AGAIN = "download or copy it again"
ANOTHER_FILE = "give a file that holds its own data"
WRONG_LAYOUT = "copy the file again, or give one of the right layout"


@contextmanager
def open_hdf5(path: Path, error: type[PoyoError] = RecordingError) -> Iterator[h5py.File]:
    """Open a file for reading; damage that h5py meets inside the block becomes an `error`, as does a missing file."""
    if not path.is_file():
        raise error(f"no file {path}", fix="check the path")
    try:
        file = h5py.File(path, "r")
    except DAMAGE as cause:
        raise error(f"{path} is not a complete HDF5 file ({cause})", fix=COPY_AGAIN) from None
    try:
        with file:
            yield file
    except RecordingError as refused:
        # Of the functions below, for a caller with an error class of its own.
        if error is RecordingError:
            raise
        raise error(refused.problem, allowed=refused.allowed, fix=refused.fix) from None
    except DAMAGE as cause:
        raise error(f"{path} is damaged ({cause})", fix=COPY_AGAIN) from None


def is_hdf5(path: Path, suffix: str, test: Callable[[h5py.File], bool]) -> bool:
    """Tell, without raising, whether a path is an HDF5 file with this suffix that passes a test."""
    if path.suffix != suffix or not path.is_file():
        return False
    try:
        with open_hdf5(path) as file:
            return test(file)
    except RecordingError:
        return False


def refuse_links_outside(file: h5py.File) -> None:
    """Refuse a file with a link to another one, before a library that would follow it is let in."""
    outside: list[bytes] = []

    def look(name: bytes, info: Any) -> bool | None:
        # Neither h5py's own walk nor `in` will do: they follow the link to see what it leads to.
        if info.type == h5py.h5l.TYPE_EXTERNAL:
            outside.append(name)
        return True if outside else None

    file.id.links.visit(look, info=True)
    if outside:
        name, target = outside[0], file.id.links.get_val(outside[0])[0]
        raise RecordingError(
            f"{file.filename}: '{decode(name)}' is a link to another file, '{decode(target)}'",
            fix="export the file with its data, or delete the link from a copy",
        )


def check_size(shape: Iterable[int], dtype: np.dtype, what: str, *, stored: int | None = None) -> None:
    """Refuse what a header claims before anything of that size is allocated.

    `stored` are the bytes that are really there, if compressed; uncompressed data are checked by whoever reads them.
    """
    shape = tuple(int(size) for size in shape)
    # Python's integers do not overflow, where numpy's product would.
    size = dtype.itemsize * math.prod(shape)
    limit = MAX_BYTES if stored is None else min(MAX_BYTES, MAX_EXPANSION * max(stored, 64))
    if size > limit:
        raise RecordingError(
            f"{what} claims {' x '.join(map(str, shape))} values of {dtype} ({size / 1e9:.1f} GB)",
            allowed=f"{limit / 1e9:.1f} GB here",
            fix="the file is damaged; copy it again",
        )


def decode(text: bytes | str) -> str:
    """Return a text or the UTF-8 of one."""
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)


def name_of(item: h5py.Group | h5py.Dataset) -> str:
    """Return file and path of a group or dataset, for messages."""
    return f"{Path(item.file.filename).name}: {str(item.name).lstrip('/')}".removesuffix(": ")


def get(parent: h5py.Group, name: str) -> Any:
    """Return a group or dataset by its path below `parent`, None if it is not there; refuse one in another file."""
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
        raise RecordingError(f"{parent.file.filename}: '{name}' is kept in another file", fix=ANOTHER_FILE)
    return item


def get_group(parent: h5py.Group, name: str) -> h5py.Group | None:
    """Return a group, or None if there is none of this name."""
    item = get(parent, name)
    return item if isinstance(item, h5py.Group) else None


def get_dataset(parent: h5py.Group, name: str) -> h5py.Dataset | None:
    """Return a dataset, or None if there is none of this name."""
    item = get(parent, name)
    return item if isinstance(item, h5py.Dataset) else None


def require_dataset(parent: h5py.Group, name: str, allowed: str | None = None, fix: str = COPY_AGAIN) -> h5py.Dataset:
    """Return a dataset; refuse a parent without it, and a group where it belongs."""
    item = get(parent, name)
    if isinstance(item, h5py.Dataset):
        return item
    found = f"no '{name}' (found: {', '.join(parent)})" if item is None else f"a group '{name}' where an array belongs"
    raise RecordingError(f"{name_of(parent)} has {found}", allowed=allowed, fix=fix)


def require_inside(dataset: Any, path: Path, what: str) -> h5py.Dataset:
    """Return a dataset that another library has found, if its values are in the file itself."""
    if not isinstance(dataset, h5py.Dataset):
        raise RecordingError(
            f"{path}: {what} is a {type(dataset).__name__}", allowed="an array in the file", fix="write the file again"
        )
    if dataset.is_virtual or dataset.external:
        raise RecordingError(f"{path}: {what} is kept in another file", fix=ANOTHER_FILE)
    return dataset


def require_numbers(dataset: h5py.Dataset, ndim: int, *, whole: bool = True) -> None:
    """Check a header: numbers of so many dimensions, of a size that can be true, and be read at once if `whole`."""
    if dataset.shape is None or dataset.ndim != ndim or dataset.dtype.kind not in "iufb":
        raise RecordingError(
            f"{name_of(dataset)} holds {dataset.dtype} of shape {dataset.shape}",
            allowed=f"numbers of {ndim} dimension{'s' if ndim > 1 else ''}",
            fix=WRONG_LAYOUT,
        )
    if dataset.nbytes <= HARMLESS_BYTES:
        return
    check_size(dataset.shape, dataset.dtype, name_of(dataset), stored=max(dataset.id.get_storage_size(), 1))
    limit = MAX_ARRAY_BYTES if whole else None
    chunk = math.prod(dataset.chunks) * dataset.dtype.itemsize if dataset.chunks else 0
    for size, most, what in ((dataset.nbytes, limit, "values"), (chunk, MAX_CHUNK_BYTES, "one chunk")):
        if most is not None and size > most:
            raise RecordingError(
                f"{name_of(dataset)}: {what} of shape {dataset.shape} would take {size / 1e9:.1f} GB",
                allowed=f"{most / 1e9:.1f} GB",
                fix=WRONG_LAYOUT,
            )


def read_numbers(dataset: h5py.Dataset, ndim: int) -> NDArray:
    """Return a dataset of numbers after `require_numbers`."""
    require_numbers(dataset, ndim)
    return np.asarray(dataset[()])


def read_small(parent: h5py.Group, name: str) -> NDArray | None:
    """Return numbers of up to a megabyte by their path below `parent`, or None if there is no such dataset.

    For the hundreds of small datasets of a file: h5py's own layer takes five times as long to open one as to read it.
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
        raise RecordingError(f"{parent.file.filename}: '{name}' is kept in another file", fix=ANOTHER_FILE)
    shape, dtype = dataset.shape, dataset.dtype
    if dtype.kind not in "iufb" or dtype.itemsize * math.prod(shape) > HARMLESS_BYTES:
        problem = f"{parent.file.filename}: {name} holds {dtype} of shape {shape}"
        raise RecordingError(problem, allowed="numbers of up to a megabyte", fix=WRONG_LAYOUT)
    values = np.empty(shape, dtype)
    if values.size:
        dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
    return values


def read_text(parent: h5py.Group, name: str) -> str:
    """Return a text of fixed or variable length (the first of a list), or an empty text if there is none."""
    dataset = get_dataset(parent, name)
    texts = read_texts(dataset) if dataset is not None else []
    return texts[0] if texts else ""


def read_texts(dataset: h5py.Dataset) -> list[str]:
    """Return a dataset of texts, or of whole numbers as texts, as a list."""
    text = dataset.dtype.kind == "S" or h5py.check_string_dtype(dataset.dtype) is not None
    number = dataset.dtype.kind in "iu"
    if dataset.shape is None or dataset.ndim > 1 or not (text or number) or dataset.nbytes > MAX_TEXT_BYTES:
        raise RecordingError(
            f"{name_of(dataset)} holds {dataset.dtype} of shape {dataset.shape}",
            allowed="a text or a list of texts",
            fix=WRONG_LAYOUT,
        )
    return [decode(value) for value in np.atleast_1d(dataset[()])]


CACHED_BYTES = 512 << 20
"""Compressed traces up to this size are unpacked once and kept; larger ones are unpacked piece by piece."""

SLAB_FRAMES = 8192
TILE_FRAMES = 128
"""Frames turned at a time: a tile of 128 frames x 400 ROIs stays in the processor's cache."""

LOOKED_AT_BYTES = 1 << 18
"""Of traces whose extremes are sought at a time; they stay in the cache from one search to the other."""

MIN_CHUNK_BYTES = 8 << 10
"""Of a chunk that is mapped; looking up smaller ones takes longer than to have HDF5 copy them."""

Block = tuple[int, list[tuple[int, Any]]]
"""First frame, and traces ``(n, frames)`` with the first ROI of each, which together are all ROIs."""


class LazyDataset:
    """A dataset whose file is opened when it is first read, and which travels to other processes without it."""

    def __init__(self, dataset: h5py.Dataset, frame_axis: int = 0) -> None:
        self.path, self.name = dataset.file.filename, dataset.name
        self.shape, self.dtype, self.ndim = dataset.shape, dataset.dtype, dataset.ndim
        self._cache: dict[str, int] = {}
        if dataset.chunks and dataset.ndim == 2:
            # Room for every chunk that a slab of frames meets: fewer would be unpacked again each time.
            across = -(-dataset.shape[1 - frame_axis] // dataset.chunks[1 - frame_axis])
            slab = across * math.prod(dataset.chunks) * dataset.dtype.itemsize
            self._cache = {"rdcc_nbytes": min(slab, CACHED_BYTES), "rdcc_nslots": 20 * across + 1}
        self._opened: h5py.Dataset | None = None

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, place: Any) -> NDArray:
        if self._opened is None:
            self._opened = h5py.File(self.path, "r", **self._cache)[self.name]
        return self._opened[place]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray:
        return np.asarray(self[()], dtype)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_opened": None}


def map_dataset(dataset: h5py.Dataset, frame_axis: int = 0) -> np.memmap | LazyDataset:
    """Map a dataset that is stored in one piece, past HDF5; read any other on demand."""
    offset = dataset.id.get_offset()
    if dataset.chunks is None and offset is not None and dataset.size:
        return np.memmap(dataset.file.filename, dtype=dataset.dtype, mode="r", offset=offset, shape=dataset.shape)
    return LazyDataset(dataset, frame_axis)


class StoredTraces:
    """Traces of a file, read as ``(T, N)`` float32 by slices of frames, without an open file of their own.

    `by_roi` where they are stored as ``(N, T)``; frames beyond `num_frames` are left out, `keep` are the columns to
    show, and a value is factor x stored + offset.
    """

    ndim = 2
    dtype = np.dtype(np.float32)

    def __init__(
        self,
        dataset: h5py.Dataset,
        num_frames: int,
        *,
        by_roi: bool = False,
        keep: NDArray[np.int64] | None = None,
        factor: float = 1.0,
        offset: float = 0.0,
    ) -> None:
        self._source = dataset.file.filename, dataset.name
        self._settings = {"by_roi": by_roi, "keep": keep, "factor": factor, "offset": offset}
        self._keep, self._factor, self._offset = keep, np.float32(factor), np.float32(offset)
        self._num_rois = int(dataset.shape[0 if by_roi else 1])
        self.shape = (num_frames, self._num_rois if keep is None else len(keep))
        # (T', all ROIs), or else blocks of (all ROIs, T') that are turned when they are read.
        self._frames: Any = None
        self._blocks: list[Block] = (_map_chunks(dataset) or []) if by_roi else []
        if self._blocks:
            return
        stored = map_dataset(dataset, frame_axis=int(by_roi))
        if isinstance(stored, LazyDataset) and (not dataset.chunks or dataset.size * 4 <= CACHED_BYTES):
            self._frames = _unpack(dataset, by_roi)
        elif by_roi:
            self._blocks = [(0, [(0, stored)])]
        else:
            self._frames = stored

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_traces, (*self._source, self.shape[0], self._settings)

    def __getitem__(self, frames: slice) -> NDArray[np.float32]:
        start, stop, step = frames.indices(self.shape[0])
        assert step == 1, frames
        # What does not fit into float32 becomes infinite, which the runner reports.
        with np.errstate(over="ignore", invalid="ignore"):
            values = self._turn_blocks(start, stop) if self._blocks else np.asarray(self._frames[start:stop])
            values = values.astype(np.float32, copy=False)
            values = values if self._keep is None else values[:, self._keep]
            return values if (self._factor, self._offset) == (1, 0) else self._factor * values + self._offset

    def _turn_blocks(self, start: int, stop: int) -> NDArray[np.float32]:
        turned = np.empty((stop - start, self._num_rois), np.float32)
        for first, parts in self._blocks:
            begin, end = max(start, first), min(stop, first + parts[0][1].shape[1])
            if begin < end:
                # As plain arrays: numpy does more for every slice of a memory map.
                rows = [np.asarray(rows[:, begin - first : end - first]) for _, rows in parts]
                _turn(rows[0] if len(rows) == 1 else np.concatenate(rows), turned[begin - start : end - start])
        return turned

    def extremes(self) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Return the least and the greatest value of every unit, ``(N,)`` each, NaN where a value is NaN.

        None where the traces lie by frame already, or would have to be unpacked or computed for it.
        """
        as_stored = self._keep is None and (self._factor, self._offset) == (1, 0)
        arrays = [rows for _, parts in self._blocks for _, rows in parts]
        if not as_stored or not arrays or isinstance(arrays[0], LazyDataset) or arrays[0].dtype != np.float32:
            return None
        low, high = np.full(self.shape[1], np.inf, np.float32), np.full(self.shape[1], -np.inf, np.float32)
        for first, parts in self._blocks:
            if first >= self.shape[0]:
                # A last block of trimmed frames only.
                continue
            for roi, rows in parts:
                # What is looked at for the least value is still in the processor's cache for the greatest.
                step = max(1, LOOKED_AT_BYTES // (rows.shape[1] * rows.itemsize))
                for start in range(0, len(rows), step):
                    some = np.asarray(rows[start : start + step, : self.shape[0] - first])
                    place = slice(roi + start, roi + start + len(some))
                    low[place] = np.minimum(low[place], some.min(axis=1))
                    high[place] = np.maximum(high[place], some.max(axis=1))
        return low, high


def _open_traces(path: str, name: str, num_frames: int, settings: dict[str, Any]) -> StoredTraces:
    with h5py.File(path, "r") as file:
        return StoredTraces(file[name], num_frames, **settings)


def _turn(rows: NDArray, turned: NDArray[np.float32]) -> None:
    """Write ``(N, n)`` into ``(n, N)``."""
    for first in range(0, len(turned), TILE_FRAMES):
        turned[first : first + TILE_FRAMES] = rows[:, first : first + TILE_FRAMES].T


def _map_chunks(dataset: h5py.Dataset) -> list[Block] | None:
    """Map the chunks of an ``(N, T)`` dataset, past HDF5, which would copy each of them once more.

    None where that cannot be done: they are compressed, not all there, or so small that looking them up takes longer.
    """
    if not dataset.chunks or not dataset.size:
        return None
    file, (rows, frames) = dataset.file, dataset.chunks
    num_rois, num_frames = dataset.shape
    size = rows * frames * dataset.dtype.itemsize
    if size < MIN_CHUNK_BYTES or dataset.id.get_create_plist().get_nfilters():
        return None
    # Only a file that nobody writes to has on disk what HDF5 would say.
    if file.driver != "sec2" or file.mode != "r" or file.userblock_size:
        return None
    content = np.asarray(np.memmap(file.filename, np.uint8, "r"))
    found: list[Any] = []
    dataset.id.chunk_iter(found.append)
    blocks: dict[int, dict[int, NDArray]] = {frame: {} for frame in range(0, num_frames, frames)}
    for chunk in found:
        roi, frame = chunk.chunk_offset
        if chunk.size != size or chunk.byte_offset + size > len(content) or frame not in blocks:
            return None
        stored = np.ndarray((rows, frames), dataset.dtype, content, chunk.byte_offset)
        # Chunks at the edges are stored whole.
        blocks[frame][roi] = stored[: num_rois - roi, : num_frames - frame]
    if any(set(parts) != set(range(0, num_rois, rows)) for parts in blocks.values()):
        return None
    return [(frame, sorted(parts.items())) for frame, parts in blocks.items()]


def _unpack(dataset: h5py.Dataset, by_roi: bool) -> NDArray[np.float32]:
    """Read a whole dataset as ``(T', all ROIs)`` in slabs of whole chunks, so that each is unpacked once."""
    num_frames = dataset.shape[int(by_roi)]
    length = dataset.chunks[int(by_roi)] if dataset.chunks else max(num_frames, 1)
    slab = max(SLAB_FRAMES // length, 1) * length
    frames = np.empty(dataset.shape[::-1] if by_roi else dataset.shape, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for first in range(0, num_frames, slab):
            if by_roi:
                _turn(dataset[:, first : first + slab], frames[first : first + slab])
            else:
                frames[first : first + slab] = dataset[first : first + slab]
    return frames
