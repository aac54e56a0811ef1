"""What was shown, as any laboratory writes it into an NWB 2 file: tables of intervals and index series."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from poyo_ssl.data.intervals import merge
from poyo_ssl.data.stimuli import Presentations
from poyo_ssl.errors import RecordingError
from poyo_ssl.sources.hdf5 import read_numbers, read_texts, require_inside
from poyo_ssl.sources.tables import ALIASES, StimulusTable, make_table

SUFFIX = "_stimulus"
EPOCHS, INVALID = "epochs", "invalid_times"
NOT_SHOWN = ("tags", "timeseries")
"""Columns that the schema gives to every table of intervals, and that say nothing of what was shown."""

LONGEST_STEPS = 2.5
"""An image is shown until the next one, unless that comes later than after so many usual steps."""


def list_tables(nwbfile: Any) -> dict[str, Any]:
    """Return every `pynwb.epoch.TimeIntervals` of the session and of its stimuli, by name."""
    from pynwb.epoch import TimeIntervals

    found: dict[str, Any] = {}
    places = [nwbfile.trials, nwbfile.epochs, nwbfile.invalid_times]
    for item in [*places, *(nwbfile.intervals or {}).values(), *(nwbfile.stimulus or {}).values()]:
        if isinstance(item, TimeIntervals) and not any(item is other for other in found.values()):
            name = item.name if item.name not in found else f"{item.name}_{len(found)}"
            found[name] = item
    return found


def read_columns(table: Any, path: Path, warnings: list[str]) -> dict[str, NDArray]:
    """Return the columns that have one number or text per row; others are named in a warning.

    Raises
    ------
    RecordingError
        If a column is damaged or has another length than the table.
    """
    columns, left_out = {}, []
    for name in table.colnames:
        if name in NOT_SHOWN:
            continue
        column = table[name]
        values = column.data
        plain = type(column).__name__ in ("VectorData", "ElementIdentifiers") and isinstance(values, h5py.Dataset)
        texts = plain and h5py.check_string_dtype(values.dtype) is not None
        if not plain or values.ndim != 1 or not (texts or values.dtype.kind in "iufbS"):
            left_out.append(name)
            continue
        require_inside(values, path, f"{table.name}/{name}")
        if texts or values.dtype.kind == "S":
            columns[name] = np.array(read_texts(_plain_dataset(values)), dtype=np.str_)
        else:
            columns[name] = read_numbers(values, 1)
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise RecordingError(
            f"{path}: columns of '{table.name}' differ in length "
            f"({', '.join(f'{name} {length}' for name, length in lengths.items())})",
            fix="repair the file",
        )
    if left_out:
        warnings.append(
            f"columns of '{table.name}' that are no number or text per row: {', '.join(left_out)}; left out"
        )
    return columns


def _plain_dataset(dataset: h5py.Dataset) -> h5py.Dataset:
    """Return the dataset behind hdmf's wrapper, which decodes texts."""
    return h5py.Dataset(dataset.id)


def read_intervals(table: Any, path: Path, warnings: list[str]) -> StimulusTable | None:
    """Return a table of intervals; without a column that names the stimulus, the table itself is one.

    Raises
    ------
    RecordingError
        If it has no start or stop, or a time is not a number.
    """
    columns = read_columns(table, path, warnings)
    if not len(columns.get("start_time", ())):
        warnings.append(f"'{table.name}' has no rows")
        return None
    spelled = {name.strip().lower() for name in columns}
    if not spelled & {"name", *ALIASES["name"]}:
        columns["name"] = np.full(len(columns["start_time"]), table.name.removesuffix(SUFFIX))
    return make_table(columns, f"{path}: {table.name}")


def read_invalid_times(nwbfile: Any, path: Path, warnings: list[str]) -> NDArray[np.float64]:
    """Return ``(K, 2)`` seconds that the laboratory calls invalid.

    Raises
    ------
    RecordingError
        If a time is not finite or a stop lies before its start.
    """
    if nwbfile.invalid_times is None:
        return np.zeros((0, 2))
    table = read_intervals(nwbfile.invalid_times, path, warnings)
    if table is None:
        return np.zeros((0, 2))
    warnings.append(f"{len(table.start)} invalid times: masked")
    return merge(np.stack([table.start, table.stop], axis=1))


def read_index_series(nwbfile: Any, path: Path) -> Iterator[tuple[str, NDArray, NDArray[np.float64], int | None]]:
    """Give name, indices ``(K,)``, onsets ``(K,)`` in seconds, and number of images, of each index series.

    Raises
    ------
    RecordingError
        If indices are no whole numbers inside the images, or onsets are not finite and increasing.
    """
    from pynwb.image import IndexSeries

    for item in (nwbfile.stimulus or {}).values():
        if not isinstance(item, IndexSeries):
            continue
        what = f"{path}: {item.name}"
        index = read_numbers(require_inside(item.data, path, item.name), 1)
        if index.dtype.kind == "f" and not (np.isfinite(index).all() and (index % 1 == 0).all()):
            raise RecordingError(f"{what} holds fractions", allowed="whole numbers of images", fix="repair the file")
        if item.timestamps is not None:
            onset = read_numbers(require_inside(item.timestamps, path, f"{item.name}/timestamps"), 1).astype(np.float64)
        else:
            start, rate = item.starting_time or 0.0, item.rate or np.nan
            onset = start + np.arange(len(index)) / rate
        if len(onset) != len(index):
            raise RecordingError(
                f"{what} has {len(index)} images and {len(onset)} timestamps", allowed="as many", fix="repair the file"
            )
        bad = np.flatnonzero(~(np.isfinite(onset) & (np.diff(onset, prepend=-np.inf) > 0)))
        if len(bad):
            raise RecordingError(
                f"{what}: timestamp {bad[0]} is {onset[bad[0]]:g}",
                allowed="finite seconds that increase",
                fix="repair the file",
            )
        number = _count_images(item)
        bad = np.flatnonzero((index < 0) | (index >= (number or np.inf)))
        if len(bad):
            raise RecordingError(
                f"{what}: row {bad[0]} shows image {index[bad[0]]}",
                allowed=f"0 to {number - 1}" if number else "0 or more",
                fix="repair the file",
            )
        yield item.name.removesuffix(SUFFIX), index.astype(np.int64), onset, number


def _count_images(item: Any) -> int | None:
    if item.indexed_timeseries is not None and item.indexed_timeseries.data is not None:
        return int(item.indexed_timeseries.data.shape[0])
    return len(item.indexed_images.images) if item.indexed_images is not None else None


def find_stops(onset: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return until when each image was shown: until the next one, or for a usual step before a pause.

    Examples
    --------
    >>> find_stops(np.array([1.0, 1.5, 2.0, 9.0])).tolist()
    [1.5, 2.0, 2.5, 9.5]
    """
    steps = np.diff(onset)
    usual = float(np.median(steps)) if len(steps) else 1 / 30
    return onset + np.append(np.where(steps <= LONGEST_STEPS * usual, steps, usual), usual)


def read_stimuli(
    nwbfile: Any,
    timestamps: NDArray[np.float64],
    wanted: Sequence[str] | None,
    path: Path,
    warnings: list[str],
) -> tuple[dict[str, Presentations], dict[str, NDArray[np.float64]]]:
    """Return presentations and epochs of tables of intervals and of index series.

    Parameters
    ----------
    nwbfile : pynwb.NWBFile
        The file.
    timestamps : ndarray
        ``(T,)`` seconds.
    wanted : sequence of str, optional
        Names of the tables to take; by default all but ``epochs`` and ``invalid_times``.
    path : path
        For messages.
    warnings : list of str
        Is appended to.

    Raises
    ------
    RecordingError
        If a table is damaged, or two hold stimuli of the same name.
    """
    tables = list_tables(nwbfile)
    missing = [name for name in wanted or () if name not in tables]
    if missing:
        raise RecordingError(
            f"{path}: no table '{missing[0]}'", allowed=", ".join(tables) or "it has none", fix="correct --tables"
        )
    if wanted is None and EPOCHS in tables:
        warnings.append(f"the table '{EPOCHS}' is not taken as a stimulus; if it is one, name it with --tables")
    names = [name for name in tables if name not in (EPOCHS, INVALID)] if wanted is None else list(wanted)
    parts: list[tuple[StimulusTable, dict[str, int]]] = [
        (table, {}) for name in names if (table := read_intervals(tables[name], path, warnings)) is not None
    ]
    for name, index, onset, number in read_index_series(nwbfile, path):
        if len(index):
            named = np.full(len(index), name)
            table = StimulusTable(onset, find_stops(onset), named, {"frame": index}, f"{path}: {name}")
            parts.append((table, {name: number} if number else {}))
    stimuli: dict[str, Presentations] = {}
    epochs: dict[str, NDArray[np.float64]] = {}
    for table, num_images in parts:
        shown, spans = table.place(timestamps, num_images, warnings)
        twice = sorted(set(spans) & set(epochs))
        if twice:
            raise RecordingError(f"{path}: two tables hold '{twice[0]}'", fix="say which to take with --tables")
        stimuli |= shown
        epochs |= spans
    unread = [name for name in nwbfile.stimulus or {} if name.removesuffix(SUFFIX) not in epochs and name not in tables]
    if unread:
        warnings.append(f"stimuli that are no table of intervals or index series: {', '.join(unread)}; left out")
    if not stimuli:
        warnings.append("no stimulus table: nothing can be decoded (give --stimuli or stimuli.csv)")
    return stimuli, epochs
