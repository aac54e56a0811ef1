"""Which series of an NWB 2 file holds the traces, on which clock, and its values by slices of frames."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from poyo_ssl.errors import RecordingError, suggest
from poyo_ssl.sources.allen.traces import CACHED_BYTES, SLAB_FRAMES, RoiTraces
from poyo_ssl.sources.hdf5 import read_numbers, require_inside, require_numbers

KINDS = {
    "neuropil": r"neuropil|background",
    "events": r"event|spike|deconv|firing",
    "other": r"baseline|denoise|ratio",
    "dff": r"dff|d_?f_?over_?f|delta_?f|dfof",
    "fluorescence": r"",
}
"""How the name of a series or of its container tells what it holds; the first that is found."""

SLAB_UNITS = 64


@dataclass(frozen=True)
class Series:
    """One `RoiResponseSeries`.

    Attributes
    ----------
    name : str
        Its place, for example ``ophys/DfOverF/DfOverF``.
    kind : str
        A key of `KINDS`.
    series : pynwb.ophys.RoiResponseSeries
        Itself.
    """

    name: str
    kind: str
    series: Any


def classify(name: str) -> str:
    """Return what a series of this place holds.

    Examples
    --------
    >>> [classify(f"ophys/{name}") for name in ("DfOverF/DfOverF", "DfOverF/DfOverFEvents", "Fluorescence/Neuropil")]
    ['dff', 'events', 'neuropil']
    >>> classify("ophys/Fluorescence/Corrected"), classify("ophys/dff/traces")
    ('fluorescence', 'dff')
    """
    last = "/".join(name.split("/")[-2:]).lower()
    return next(kind for kind, pattern in KINDS.items() if re.search(pattern, last))


def list_series(nwbfile: Any) -> list[Series]:
    """Return every series of ROI responses, sorted by place."""
    from pynwb.ophys import RoiResponseSeries

    found = []
    for item in nwbfile.objects.values():
        if isinstance(item, RoiResponseSeries):
            name = place_of(item)
            found.append(Series(name, classify(name), item))
    return sorted(found, key=lambda item: item.name)


def place_of(item: Any) -> str:
    """Return the names of an object's containers and its own, below the file's top."""
    names: list[str] = []
    while item is not None and item.parent is not None:
        names.insert(0, str(item.name))
        item = item.parent
    return "/".join(names)


def choose_series(found: list[Series], wanted: str | None, kind: str, path: Path) -> Series:
    """Return the series to read: the one asked for, or the only one of dF/F, or the only one of fluorescence.

    Raises
    ------
    RecordingError
        If there is none, or several.
    """
    names = [item.name for item in found]
    if wanted is not None:
        matching = [item for item in found if item.name == wanted or item.name.endswith("/" + wanted)]
        if len(matching) != 1:
            raise RecordingError(
                f"{path}: {'several series end' if matching else 'no series ends'} in '{wanted}'"
                f"{suggest(wanted, [item.series.name for item in found])}",
                allowed=", ".join(names) or "it has none",
                fix="correct --series",
            )
        return _as_kind(matching[0], kind, path)
    for sought in ("dff", "fluorescence") if kind == "auto" else (kind,):
        matching = [item for item in found if item.kind == sought]
        if len(matching) > 1:
            raise RecordingError(
                f"{path} has several series of {sought}",
                allowed=", ".join(item.name for item in matching),
                fix="say which with --series; of several planes each is a recording",
            )
        if matching:
            return matching[0]
    raise RecordingError(
        f"{path}: no dF/F or fluorescence (RoiResponseSeries)"
        + (f" among {', '.join(f'{item.name} ({item.kind})' for item in found)}" if found else " in any module"),
        fix="say which with --series and --kind" if found else "give a file with traces of ROIs",
    )


def _as_kind(item: Series, kind: str, path: Path) -> Series:
    if kind == "auto" and item.kind not in ("dff", "fluorescence"):
        raise RecordingError(
            f"{path}: {item.name} seems to hold {item.kind}",
            allowed="dff, fluorescence",
            fix="say what it is with --kind, or take another --series",
        )
    return item if kind == "auto" else Series(item.name, kind, item.series)


def find_neuropil(found: list[Series], chosen: Series) -> Series | None:
    """Return the neuropil of a fluorescence: the only one, or the one of the same name in another container."""
    others = [item for item in found if item.kind == "neuropil"]
    same = [item for item in others if item.series.name == chosen.series.name]
    if len(others) > 1:
        others = same
    return others[0] if len(others) == 1 else None


def dataset_of(item: Series, path: Path) -> h5py.Dataset:
    """Return the values of a series after their header was checked.

    Raises
    ------
    RecordingError
        If they are no numbers of two dimensions in this file.
    """
    dataset = require_inside(item.series.data, path, f"{item.name}/data")
    require_numbers(dataset, 2, whole=False)
    return dataset


def read_stamps(item: Series, num_frames: int, path: Path) -> NDArray[np.float64]:
    """Return the timestamps of a series, or those that its rate and start make.

    Raises
    ------
    RecordingError
        If it has neither, or the rate is not above 0.
    """
    stamps = item.series.timestamps
    if stamps is not None:
        return read_numbers(require_inside(stamps, path, f"{item.name}/timestamps"), 1).astype(np.float64)
    start, rate = item.series.starting_time, item.series.rate
    if rate is None:
        raise RecordingError(f"{path}: {item.name} has no clock", fix="give --rate_hz or --timestamps")
    start = 0.0 if start is None else float(start)
    if not (np.isfinite(rate) and rate > 0 and np.isfinite(start)):
        raise RecordingError(
            f"{path}: {item.name} starts at {start} s with {rate} Hz",
            allowed="a rate above 0",
            fix="give --rate_hz or --timestamps",
        )
    return start + np.arange(num_frames) / float(rate)


def is_turned(
    shape: tuple[int, ...], num_rois: int | None, num_stamps: int | None, what: str, warnings: list[str]
) -> bool:
    """Tell whether traces are stored as (ROIs, frames); NWB 2 has frames first, which not every writer knows.

    Raises
    ------
    RecordingError
        If neither order fits the number of ROIs and of timestamps.

    Examples
    --------
    >>> is_turned((900, 5), 5, 900, "mine.nwb: dff", [])
    False
    >>> is_turned((5, 900), 5, 900, "mine.nwb: dff", warnings := []), warnings
    (True, ['mine.nwb: dff has shape (5, 900): transposed, it is read as (ROIs, frames)'])
    """

    def fits(frames: int, rois: int) -> bool:
        return (num_rois is None or rois == num_rois) and (num_stamps is None or abs(frames - num_stamps) <= 1)

    if fits(shape[0], shape[1]):
        return False
    if fits(shape[1], shape[0]):
        warnings.append(f"{what} has shape {shape}: transposed, it is read as (ROIs, frames)")
        return True
    rois = "" if num_rois is None else f"{num_rois} ROIs"
    stamps = "" if num_stamps is None else f"{num_stamps} timestamps"
    raise RecordingError(
        f"{what} has shape {shape} for {' and '.join(part for part in (rois, stamps) if part)}",
        allowed="(frames, ROIs), one frame more or less than timestamps",
        fix="repair the file, or take another --series",
    )


class FrameTraces:
    """Traces of an NWB 2 file, read as ``(T, N)`` float32 by slices of frames.

    Parameters
    ----------
    dataset : h5py.Dataset
        ``(T', all ROIs)`` numbers, or ``(all ROIs, T')``.
    num_frames : int
        Frames to show.
    keep : ndarray, optional
        Columns to show.
    turned : bool
        Whether ROIs come first.
    factor, offset : float
        Value = factor x stored + offset.

    Examples
    --------
    >>> with h5py.File.in_memory() as file:
    ...     stored = file.create_dataset("data", data=np.arange(6.0).reshape(3, 2), chunks=(2, 1))
    ...     traces = FrameTraces(stored, 2, keep=np.array([1]), factor=2.0)
    >>> traces.shape, traces[0:2].tolist()
    ((2, 1), [[2.0], [6.0]])
    """

    ndim = 2
    dtype = np.dtype(np.float32)

    def __init__(
        self,
        dataset: h5py.Dataset,
        num_frames: int,
        *,
        keep: NDArray[np.int64] | None = None,
        turned: bool = False,
        factor: float = 1.0,
        offset: float = 0.0,
    ) -> None:
        self._rows: Any = RoiTraces(dataset, num_frames) if turned else _open_frames(dataset)
        self._keep, self._factor, self._offset = keep, np.float32(factor), np.float32(offset)
        self.shape = (num_frames, self._rows.shape[1] if keep is None else len(keep))

    def __getitem__(self, frames: slice) -> NDArray[np.float32]:
        start, stop, step = frames.indices(self.shape[0])
        assert step == 1, frames
        with np.errstate(over="ignore", invalid="ignore"):
            # What does not fit into float32 becomes infinite, which the runner reports.
            values = np.asarray(self._rows[start:stop]).astype(np.float32, copy=False)
            values = values if self._keep is None else values[:, self._keep]
            return values if (self._factor, self._offset) == (1, 0) else self._factor * values + self._offset


def _open_frames(dataset: h5py.Dataset) -> Any:
    """Return ``(T, N)`` rows: mapped where contiguous, unpacked once where they fit, else from a reopened dataset."""
    offset, path = dataset.id.get_offset(), dataset.file.filename
    if dataset.chunks is None and offset is not None and dataset.size:
        return np.memmap(path, dtype=dataset.dtype, mode="r", offset=offset, shape=dataset.shape)
    if dataset.chunks is not None and dataset.size * 4 > CACHED_BYTES:
        across = -(-dataset.shape[1] // dataset.chunks[1])
        slab = across * dataset.chunks[0] * dataset.chunks[1] * dataset.dtype.itemsize
        # Room for every chunk that a slice of frames meets: fewer would be unpacked again each time.
        file = h5py.File(path, "r", rdcc_nbytes=min(slab, CACHED_BYTES), rdcc_nslots=20 * across + 1)
        return file[dataset.name]
    rows, columns = dataset.chunks or (1, 1)
    # Whole chunks, so that each is unpacked once.
    step_rows, step_columns = max(SLAB_FRAMES // rows, 1) * rows, max(SLAB_UNITS // columns, 1) * columns
    unpacked = np.empty(dataset.shape, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for row in range(0, dataset.shape[0], step_rows):
            for column in range(0, dataset.shape[1], step_columns):
                place = slice(row, row + step_rows), slice(column, column + step_columns)
                unpacked[place] = dataset[place]
    return unpacked
