"""dF/F and fluorescence of an Allen NWB 1 file: stored by ROI, wanted by frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from poyo_ssl.errors import RecordingError
from poyo_ssl.sources.allen.about import read_version
from poyo_ssl.sources.hdf5 import get_dataset, name_of, open_hdf5, read_numbers, require_numbers

PIPELINE = "processing/brain_observatory_pipeline"
DFF = f"{PIPELINE}/DfOverF/imaging_plane_1"
FLUORESCENCE = f"{PIPELINE}/Fluorescence/imaging_plane_1"

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


class RoiTraces:
    """Traces stored as ``(N, T)``, read as ``(T, N)`` float32 by slices of frames.

    Parameters
    ----------
    dataset : h5py.Dataset
        ``(N, T)`` numbers. What is stored as it is, whole or in chunks, is memory-mapped.
    num_frames : int
        Frames to show; those beyond are left out.

    Examples
    --------
    >>> with h5py.File.in_memory() as file:
    ...     traces = RoiTraces(file.create_dataset("data", data=np.arange(6.0).reshape(2, 3), chunks=(1, 2)), 3)
    >>> traces.shape, traces[1:3].tolist()
    ((3, 2), [[1.0, 4.0], [2.0, 5.0]])
    """

    ndim = 2
    dtype = np.dtype(np.float32)

    def __init__(self, dataset: h5py.Dataset, num_frames: int) -> None:
        self.shape = (num_frames, int(dataset.shape[0]))
        self._turned: NDArray[np.float32] | None = None
        self._blocks: list[Block] = []
        offset, path = dataset.id.get_offset(), dataset.file.filename
        if dataset.chunks is None and offset is not None and dataset.size:
            mapped = np.memmap(path, dtype=dataset.dtype, mode="r", offset=offset, shape=dataset.shape)
            # As a plain array: numpy does more for every slice of a memory map.
            self._blocks = [(0, [(0, np.asarray(mapped))])]
        elif dataset.chunks is not None and dataset.size and (blocks := _map_chunks(dataset)):
            self._blocks = blocks
        elif dataset.chunks is None or dataset.size * 4 <= CACHED_BYTES:
            self._turned = _unpack(dataset)
        else:
            self._blocks = [(0, [(0, _reopen(dataset))])]

    def __getitem__(self, frames: slice) -> NDArray[np.float32]:
        start, stop, step = frames.indices(self.shape[0])
        assert step == 1, frames
        if self._turned is not None:
            return self._turned[start:stop]
        turned = np.empty((stop - start, self.shape[1]), np.float32)
        for first, parts in self._blocks:
            begin, end = max(start, first), min(stop, first + parts[0][1].shape[1])
            if begin < end:
                rows = [rows[:, begin - first : end - first] for _, rows in parts]
                _turn(rows[0] if len(rows) == 1 else np.concatenate(rows), turned[begin - start : end - start])
        return turned

    def extremes(self) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Return the least and the greatest value of every unit, ``(N,)`` each, NaN where a value is NaN.

        None where the traces lie by frame already or would have to be unpacked for it.
        """
        if self._turned is not None or self._blocks[0][1][0][1].dtype != np.float32:
            return None
        low, high = np.full(self.shape[1], np.inf, np.float32), np.full(self.shape[1], -np.inf, np.float32)
        for first, parts in self._blocks:
            if first >= self.shape[0]:
                # A last block of trimmed frames only.
                continue
            for roi, rows in parts:
                if isinstance(rows, h5py.Dataset):
                    return None
                # What is looked at for the least value is still in the processor's cache for the greatest.
                step = max(1, LOOKED_AT_BYTES // (rows.shape[1] * rows.itemsize))
                for start in range(0, len(rows), step):
                    some = rows[start : start + step, : self.shape[0] - first]
                    place = slice(roi + start, roi + start + len(some))
                    low[place] = np.minimum(low[place], some.min(axis=1))
                    high[place] = np.maximum(high[place], some.max(axis=1))
        return low, high


def _turn(rows: NDArray, turned: NDArray[np.float32]) -> None:
    """Write ``(N, n)`` into ``(n, N)``."""
    for first in range(0, len(turned), TILE_FRAMES):
        turned[first : first + TILE_FRAMES] = rows[:, first : first + TILE_FRAMES].T


def _map_chunks(dataset: h5py.Dataset) -> list[Block] | None:
    """Map the chunks of a dataset, past HDF5, which would copy each of them once more.

    None where that cannot be done: they are compressed, not all there, or so small that looking them up takes longer.
    """
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


def _unpack(dataset: h5py.Dataset) -> NDArray[np.float32]:
    """Read a whole dataset in slabs of whole chunks, so that each is unpacked once."""
    length = dataset.chunks[1] if dataset.chunks else max(dataset.shape[1], 1)
    slab = max(SLAB_FRAMES // length, 1) * length
    turned = np.empty(dataset.shape[::-1], np.float32)
    for first in range(0, len(turned), slab):
        _turn(dataset[:, first : first + slab], turned[first : first + slab])
    return turned


def _reopen(dataset: h5py.Dataset) -> h5py.Dataset:
    """Open a dataset with room for every chunk that a slab of frames meets: fewer would be unpacked again each time."""
    across = -(-dataset.shape[0] // dataset.chunks[0])
    slab = across * dataset.chunks[0] * dataset.chunks[1] * dataset.dtype.itemsize
    file = h5py.File(dataset.file.filename, "r", rdcc_nbytes=min(slab, CACHED_BYTES), rdcc_nslots=20 * across + 1)
    return file[dataset.name]


def read_clock(file: h5py.File) -> NDArray[np.float64]:
    """Return the imaging timestamps, those of dF/F or else of the fluorescence.

    Raises
    ------
    RecordingError
        If there are none, or they are not finite and increasing.
    """
    dataset = get_dataset(file, f"{DFF}/timestamps")
    if dataset is None:
        dataset = get_dataset(file, f"{FLUORESCENCE}/timestamps")
    if dataset is None:
        raise RecordingError(
            f"{file.filename}: no timestamps in {DFF} or {FLUORESCENCE}", fix="download the file again"
        )
    times = read_numbers(dataset, 1).astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(times))
    if len(bad) == 0:
        bad = np.flatnonzero(np.diff(times) <= 0) + 1
    if len(bad):
        before = f" after {times[bad[0] - 1]:g}" if bad[0] else ""
        raise RecordingError(
            f"{name_of(dataset)}: timestamp {bad[0]} is {times[bad[0]]:g}{before}",
            allowed="finite seconds that increase",
            fix="download the file again",
        )
    return times


def find_traces(file: h5py.File, name: str, times: int, rois: int | None, max_trim: int) -> h5py.Dataset:
    """Return an ``(N, T)`` dataset after comparing it with the number of timestamps and of ROIs.

    Raises
    ------
    RecordingError
        If it is missing, transposed, or more than `max_trim` frames off the timestamps.
    """
    dataset = get_dataset(file, f"{name}/data")
    if dataset is None:
        raise RecordingError(f"{file.filename}: no '{name}/data'", fix="give an Allen NWB 1 file with these traces")
    require_numbers(dataset, 2, whole=False)
    num_rois, num_frames = dataset.shape
    if abs(num_frames - times) > max_trim:
        turned = abs(num_rois - times) <= max_trim and (rois is None or num_frames == rois)
        raise RecordingError(
            f"{name_of(dataset)} has shape {dataset.shape} for {times} timestamps"
            + (": transposed, (frames, ROIs)" if turned else ""),
            allowed=f"(ROIs, frames), up to {max_trim} frames more or less than timestamps",
            fix="store it as (ROIs, frames)" if turned else "download the file again",
        )
    return dataset


def read_fluorescence(
    path: Path | str,
    kind: Literal["raw", "neuropil", "demixed", "corrected"] = "corrected",
    *,
    rois: Sequence[int] | None = None,
    without_demixing: bool = False,
) -> NDArray[np.float32]:
    """Return fluorescence traces of an Allen NWB 1 file, for those who compute dF/F themselves.

    The neuropil-corrected trace is in no file: from pipeline 2.0 on it is the demixed trace, before it the raw one,
    less the neuropil times each ROI's contamination ratio r.

    Parameters
    ----------
    path : path
        The file.
    kind : {'raw', 'neuropil', 'demixed', 'corrected'}
        Which trace.
    rois : sequence of int, optional
        Rows in the order wanted; by default all.
    without_demixing : bool
        Correct the raw trace where the demixed one is missing, as it is in a few files.

    Returns
    -------
    ndarray
        ``(T, len(rows))`` arbitrary units.

    Raises
    ------
    RecordingError
        If the traces are missing or damaged, or a row does not exist.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        version = read_version(file, [])
        neuropil = f"{FLUORESCENCE}_neuropil_response"
        old = get_dataset(file, f"{neuropil}/data") is None
        parts = {
            "raw": f"{FLUORESCENCE}/data",
            "neuropil": f"{FLUORESCENCE}/neuropil_traces" if old else f"{neuropil}/data",
            "demixed": f"{FLUORESCENCE}_demixed_signal/data",
        }
        if kind != "corrected":
            return _read_rows(file, parts[kind], rois)
        source = "raw" if version.startswith(("0", "1")) else "demixed"
        if source == "demixed" and get_dataset(file, parts["demixed"]) is None and without_demixing:
            source = "raw"
        ratio = get_dataset(file, f"{FLUORESCENCE}/r" if old else f"{neuropil}/r")
        if ratio is None:
            raise RecordingError(f"{path}: no contamination ratio r", fix="read 'raw' or 'neuropil' instead")
        signal, surround = _read_rows(file, parts[source], rois), _read_rows(file, parts["neuropil"], rois)
        ratios = read_numbers(ratio, 1)
        if len(ratios) < signal.shape[1] or signal.shape != surround.shape:
            raise RecordingError(
                f"{path}: {source} traces {signal.shape}, neuropil {surround.shape}, r {ratios.shape}",
                allowed="the same ROIs in all",
                fix="download the file again",
            )
        return signal - (ratios if rois is None else ratios[list(rois)]).astype(np.float32) * surround


def _read_rows(file: h5py.File, name: str, rois: Sequence[int] | None) -> NDArray[np.float32]:
    dataset = get_dataset(file, name)
    if dataset is None:
        fix = "pass without_demixing=True to use the raw trace" if "demixed" in name else "read another kind"
        raise RecordingError(f"{file.filename}: no '{name}'", fix=fix)
    require_numbers(dataset, 2)
    num_rois = dataset.shape[0]
    wanted = np.arange(num_rois) if rois is None else np.asarray(list(rois), np.int64)
    bad = wanted[(wanted < 0) | (wanted >= num_rois)]
    if len(bad):
        raise RecordingError(f"{name_of(dataset)}: no ROI {bad[0]}", allowed=f"0 to {num_rois - 1}", fix="correct it")
    # HDF5 reads rows in increasing order only.
    rows, place = np.unique(wanted, return_inverse=True)
    return np.ascontiguousarray(dataset[rows][place].T, np.float32)
