"""Which ROIs the traces of an NWB 2 file belong to: ids, the laboratory's choice of cells, and masks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from poyo_ssl.data.series import RoiMasks
from poyo_ssl.errors import RecordingError
from poyo_ssl.sources.checks import name_rows
from poyo_ssl.sources.hdf5 import read_numbers, require_inside, require_numbers

CELL_COLUMNS = ("iscell", "is_cell", "accepted", "valid_roi")
"""Columns of ROI tables that say with 0 and 1 which ROIs are cells."""

SPECIMEN_COLUMNS = ("cell_specimen_id", "cell_specimen_ids", "global_roi_id")
MAX_PLANE_PIXELS = 4096
USUAL_PIXELS = 512
PIECE_BYTES = 1 << 27


@dataclass(frozen=True)
class Units:
    """The ROIs behind the columns of the traces.

    Attributes
    ----------
    keep : ndarray or None
        Columns to take; None for all.
    unit_ids : ndarray
        ``(N,)`` text, of the columns that are taken.
    cell_specimen_ids : ndarray
        ``(N,)``, -1 unknown.
    masks : RoiMasks or None
        Pixels.
    """

    keep: NDArray[np.int64] | None
    unit_ids: NDArray[np.str_]
    cell_specimen_ids: NDArray[np.int64]
    masks: RoiMasks | None


def count_rois(series: Any) -> int | None:
    """Return how many ROIs a series says that it has, or None."""
    return None if series.rois is None else len(series.rois.data)


def read_units(series: Any, num_units: int, cells: str, path: Path, warnings: list[str]) -> Units:
    """Return the ROIs of a series with `num_units` columns.

    Parameters
    ----------
    series : pynwb.ophys.RoiResponseSeries
        The traces.
    num_units : int
        Their columns.
    cells : {'iscell', 'all'}
        'iscell' leaves out ROIs that the laboratory does not call cells.
    path : path
        For messages.
    warnings : list of str
        Is appended to.

    Raises
    ------
    RecordingError
        If the series names ROIs that its table does not have, or one twice, or none is a cell.
    """
    if series.rois is None:
        warnings.append("the traces do not say which ROIs they are of: units are called by their column")
        names = np.array([f"roi_{column:04d}" for column in range(num_units)])
        return Units(None, names, np.full(num_units, -1, np.int64), None)
    table = series.rois.table
    rows = _whole(series.rois.data, path, "the traces' region of ROIs")
    ids = _whole(table.id.data, path, f"{table.name}/id")
    if len(rows) != num_units:
        raise RecordingError(
            f"{path}: {num_units} traces, {len(rows)} rows of '{table.name}'",
            allowed="one ROI per trace",
            fix="repair the file",
        )
    bad = np.flatnonzero((rows < 0) | (rows >= len(ids)))
    if len(bad):
        raise RecordingError(
            f"{path}: trace {bad[0]} is of row {rows[bad[0]]} of '{table.name}'",
            allowed=f"0 to {len(ids) - 1}",
            fix="repair the file",
        )
    for what, values in (("row", rows), (f"id of '{table.name}'", ids[rows])):
        unique, count = np.unique(values, return_counts=True)
        if (count > 1).any():
            raise RecordingError(
                f"{path}: {what} {unique[count > 1][0]} occurs {count.max()} times among the traces",
                allowed="each once",
                fix="repair the file",
            )
    keep = _choose_cells(table, rows, cells, path, warnings)
    rows = rows if keep is None else rows[keep]
    specimens = _find_specimens(table, len(ids), path)
    known = np.full(len(rows), -1, np.int64) if specimens is None else specimens[rows]
    return Units(keep, ids[rows].astype(np.str_), known, _read_masks(table, rows, len(ids), path, warnings))


def _whole(values: Any, path: Path, what: str) -> NDArray[np.int64]:
    numbers = read_numbers(require_inside(values, path, what), 1)
    if numbers.dtype.kind not in "iu":
        raise RecordingError(f"{path}: {what} holds {numbers.dtype}", allowed="whole numbers", fix="repair the file")
    return numbers.astype(np.int64)


def _column(table: Any, name: str, length: int, path: Path) -> NDArray | None:
    """Return a column of numbers with a value per row, or None."""
    if name not in table.colnames or not isinstance(table[name].data, h5py.Dataset):
        return None
    dataset = require_inside(table[name].data, path, f"{table.name}/{name}")
    if dataset.ndim not in (1, 2) or dataset.shape[0] != length or dataset.dtype.kind not in "iufb":
        return None
    return read_numbers(dataset, dataset.ndim)


def _choose_cells(
    table: Any, rows: NDArray[np.int64], cells: str, path: Path, warnings: list[str]
) -> NDArray[np.int64] | None:
    name = next((name for name in table.colnames if name.lower() in CELL_COLUMNS), None)
    if cells == "all" or name is None:
        return None
    flags = _column(table, name, len(table.id), path)
    flags = flags[:, 0] if flags is not None and flags.ndim == 2 and flags.shape[1] else flags
    if flags is None or flags.ndim != 1 or not np.isin(flags, (0, 1)).all():
        raise RecordingError(
            f"{path}: '{name}' of '{table.name}' does not tell cells by 0 and 1", fix="pass --cells all"
        )
    keep = np.flatnonzero(flags[rows])
    if len(keep) == 0:
        raise RecordingError(f"{path}: '{name}' calls no ROI a cell", fix="pass --cells all")
    if len(keep) == len(rows):
        return None
    warnings.append(f"{len(keep)} of {len(rows)} ROIs are cells by '{name}'; the others are left out")
    return keep


def _find_specimens(table: Any, length: int, path: Path) -> NDArray[np.int64] | None:
    for name in SPECIMEN_COLUMNS:
        values = _column(table, name, length, path)
        if values is not None and values.ndim == 1 and values.dtype.kind in "iu":
            return values.astype(np.int64)
    return None


def _read_masks(table: Any, rows: NDArray[np.int64], length: int, path: Path, warnings: list[str]) -> RoiMasks | None:
    """Return masks, if there are any that make sense; the first axis of an image (NWB's x) is the row."""
    try:
        if "pixel_mask" in table.colnames:
            masks = _read_pixel_masks(table, rows, length, path)
        elif "image_mask" in table.colnames:
            masks = _read_image_masks(table, rows, length, path)
        else:
            warnings.append("no ROI masks: positions are unknown")
            return None
    except RecordingError as error:
        warnings.append(f"the ROIs have no masks: {error}")
        return None
    empty = np.setdiff1d(np.arange(len(rows)), masks.unit)
    if len(empty) == len(rows):
        warnings.append("no ROI masks: positions are unknown")
        return None
    if len(empty):
        warnings.append(f"the mask is empty in {name_rows(empty)}: position unknown")
    return masks


def _read_pixel_masks(table: Any, rows: NDArray[np.int64], length: int, path: Path) -> RoiMasks:
    """Join the pixel lists of `rows`; the index holds the end of each ROI's list."""
    index = table["pixel_mask"]
    ends = _whole(index.data, path, "pixel_mask_index")
    # hdmf wraps datasets of records.
    records = index.target.data
    pixels = require_inside(getattr(records, "dataset", records), path, "pixel_mask")
    names = pixels.dtype.names or ()
    if pixels.ndim != 1 or not {"x", "y"} <= set(names) or any(pixels.dtype[n].kind not in "iuf" for n in "xy"):
        raise RecordingError(f"pixel_mask holds {pixels.dtype}", allowed="x, y, weight", fix="repair the file")
    if pixels.nbytes > max(1 << 20, pixels.id.get_storage_size() * 1100) or pixels.nbytes > 1 << 30:
        raise RecordingError(f"pixel_mask claims {pixels.nbytes / 1e9:.1f} GB", fix="repair the file")
    starts = np.r_[0, ends[:-1]]
    if len(ends) != length or (ends < starts).any() or (length and ends[-1] > len(pixels)):
        raise RecordingError(
            f"pixel_mask_index of {len(ends)} ROIs does not divide {len(pixels)} pixels", fix="repair the file"
        )
    values = pixels[()]
    place = np.stack([np.asarray(values[name], np.float64) for name in "xy"])
    counts = (ends - starts)[rows]
    # Element k of unit u is pixel starts[u] + k.
    unit = np.repeat(np.arange(len(rows), dtype=np.int32), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    place = place[:, starts[rows][unit] + np.arange(len(unit)) - first]
    with np.errstate(invalid="ignore"):
        if place.size and not ((place >= 0) & (place < MAX_PLANE_PIXELS) & (place % 1 == 0)).all():
            raise RecordingError(
                "pixels outside the image", allowed=f"0 to {MAX_PLANE_PIXELS - 1}", fix="repair the file"
            )
    row, column = place.astype(np.int32)
    # The size of the image is in no field that all writers fill.
    height, width = (max(int(part.max(initial=0)) + 1, USUAL_PIXELS) for part in (row, column))
    return RoiMasks(unit, row, column, (height, width))


def _read_image_masks(table: Any, rows: NDArray[np.int64], length: int, path: Path) -> RoiMasks:
    """Read images piece by piece, whole chunks of ROIs at a time."""
    images = require_inside(table["image_mask"].data, path, "image_mask")
    require_numbers(images, 3, whole=False)
    if images.shape[0] != length or max(images.shape[1:]) > MAX_PLANE_PIXELS:
        raise RecordingError(f"image_mask has shape {images.shape} for {length} ROIs", fix="repair the file")
    each = max(int(np.prod(images.shape[1:])) * images.dtype.itemsize, 1)
    step = max(1, min(images.chunks[0] if images.chunks else 1, PIECE_BYTES // each))
    unit_of = np.full(length, -1)
    unit_of[rows] = np.arange(len(rows))
    parts = []
    for start in range(0, length, step):
        roi, row, column = np.nonzero(np.nan_to_num(images[start : start + step]))
        mine = unit_of[start + roi]
        parts.append(np.stack([mine, row, column])[:, mine >= 0])
    unit, row, column = np.concatenate(parts, axis=1).astype(np.int32)
    order = np.argsort(unit, kind="stable")
    return RoiMasks(unit[order], row[order], column[order], (images.shape[1], images.shape[2]))
