"""What NWB 2 files hold: traces, units, stimuli, templates, behaviour."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from poyo_ssl.data.hdf5 import (
    get,
    get_dataset,
    get_group,
    name_of,
    open_hdf5,
    read_numbers,
    read_texts,
    refuse_links_outside,
    require_inside,
    require_numbers,
)
from poyo_ssl.data.intervals import merge
from poyo_ssl.data.series import PupilTrace, RoiMasks, TimeSeries
from poyo_ssl.data.stimuli import Presentations
from poyo_ssl.errors import ConfigError, RecordingError, suggest
from poyo_ssl.sources.allen import (
    UNKNOWN_LINE,
    GreyImages,
    make_pupil,
    make_running,
    parse_cre_line,
    parse_indicator,
    parse_reporter,
)
from poyo_ssl.sources.base import name_rows
from poyo_ssl.sources.tables import ALIASES, StimulusTable, make_table

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


SEXES = {"M": "male", "F": "female"}
DAYS = {"D": 1, "W": 7}


def parse_age(text: str) -> float | None:
    """Return the days of an ISO 8601 duration in days or weeks, as NWB wants it; None for anything else.

    Examples
    --------
    >>> parse_age("P93D"), parse_age("P12W"), parse_age("P70D/P80D"), parse_age("adult")
    (93.0, 84.0, None, None)
    """
    found = re.fullmatch(r"P(\d{1,5}(?:\.\d{1,3})?)([DW])", text.strip())
    return float(found[1]) * DAYS[found[2]] if found else None


def read_fields(nwbfile: Any, series: Any, warnings: list[str]) -> dict[str, Any]:
    """Return what the file says of the fields of `RecordingMetadata`; what cannot be understood gets a warning.

    Parameters
    ----------
    nwbfile : pynwb.NWBFile
        The file.
    series : pynwb.ophys.RoiResponseSeries
        Its traces, whose imaging plane is described.
    warnings : list of str
        Is appended to.
    """
    fields: dict[str, Any] = {"description": _text(nwbfile.session_description)}
    if nwbfile.session_start_time is not None:
        fields["recording_date"] = nwbfile.session_start_time.strftime("%Y-%m-%d %H:%M:%S")
    subject = nwbfile.subject
    genotype = _text(subject.genotype) if subject is not None else ""
    fields["cre_line"] = parse_cre_line(genotype)
    fields["reporter_line"] = parse_reporter(genotype)
    if fields["cre_line"] == UNKNOWN_LINE:
        warnings.append(f"unknown line: genotype '{genotype[:80]}' is none of the Allen's 13 driver lines")
    if subject is None:
        warnings.append("the file names no subject")
    else:
        fields |= _read_subject(subject, warnings)
    table = series.rois.table if series.rois is not None else None
    plane = getattr(table, "imaging_plane", None)
    if plane is not None:
        fields["targeted_structure"] = _text(plane.location)
        fields["indicator"] = _text(plane.indicator)
        if plane.device is not None:
            fields["device_id"] = _text(plane.device.name) or "two_photon"
    expressed = parse_indicator(fields["reporter_line"])
    if expressed and fields.get("indicator", expressed) != expressed:
        named = fields["indicator"][:40]
        warnings.append(f"indicator '{named}' contradicts reporter {fields['reporter_line']}; taken as {expressed}")
    if expressed:
        fields["indicator"] = expressed
    return fields


def _read_subject(subject: Any, warnings: list[str]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if _text(subject.subject_id):
        fields["subject_id"] = _text(subject.subject_id)
    age, sex, species = _text(subject.age), _text(subject.sex), _text(subject.species)
    fields["age_days"] = parse_age(age)
    if age and fields["age_days"] is None:
        warnings.append(f"age '{age[:40]}' is no number of days or weeks (P93D); left empty")
    fields["sex"] = SEXES.get(sex, "")
    if species:
        fields["species"] = species.upper().replace(" ", "_")
    return fields


def _text(value: Any) -> str:
    """Return a text without what HDF5 cannot hold in an attribute."""
    return "" if value is None else str(value).replace("\0", "").strip()[:4096]


KINDS = {
    "neuropil": r"neuropil|background",
    "events": r"event|spike|deconv|firing",
    "other": r"baseline|denoise|ratio",
    "dff": r"dff|d_?f_?over_?f|delta_?f|dfof",
    "fluorescence": r"",
}
"""How the name of a series or of its container tells what it holds; the first that is found."""


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


PRESENTATIONS = "stimulus/presentation"
TARGETS = ("indexed_timeseries", "indexed_images")
MAX_IMAGE_PIXELS = 1 << 24


def find_templates(file: h5py.File) -> Iterator[tuple[str, Any]]:
    """Give the pixels that each index series points to, ``(images, height, width)`` uint8, by the series' name.

    Colour images are left out.

    Raises
    ------
    RecordingError
        If images are no 8-bit grey levels or differ in size.
    """
    presentations = get_group(file, PRESENTATIONS)
    for key in presentations if presentations is not None else ():
        series = get_group(presentations, key)
        target = next((get_group(series, name) for name in TARGETS if series is not None and name in series), None)
        if target is None:
            continue
        stack = get_dataset(target, "data")
        name = key.removesuffix("_stimulus")
        if stack is not None and stack.ndim == 3 and stack.shape[0]:
            require_numbers(stack, 3, whole=False)
            yield name, GreyImages(stack)
        elif stack is None:
            images = [item for item in _order_images(target) if item.ndim == 2]
            if images:
                yield name, ImageStack(images)


def _order_images(group: h5py.Group) -> list[h5py.Dataset]:
    """Return images by the order that the file gives, or else by the number at the end of their name.

    HDF5 lists names alphabetically, in which Image10 comes before Image2.
    """
    order = get_dataset(group, "order_of_images")
    if order is not None and h5py.check_ref_dtype(order.dtype) is h5py.Reference:
        return [item for ref in order[()] if isinstance(item := group.file[ref], h5py.Dataset)]
    names = [name for name in group if isinstance(get(group, name), h5py.Dataset) and name != "order_of_images"]

    def place(name: str) -> tuple[int, str]:
        found = re.search(r"(\d+)$", name)
        return (int(found[1]) if found else -1, name)

    return [group[name] for name in sorted(names, key=place)]


class ImageStack:
    """Images of one size that are stored one by one, as ``(images, height, width)`` uint8, read by slices or index."""

    dtype = np.dtype(np.uint8)
    ndim = 3

    def __init__(self, images: list[h5py.Dataset]) -> None:
        sizes = {item.shape for item in images}
        if len(sizes) > 1 or int(np.prod(images[0].shape)) > MAX_IMAGE_PIXELS:
            raise RecordingError(
                f"{name_of(images[0].parent)} has images of {' and '.join(map(str, sorted(sizes)[:3]))}",
                allowed="one size",
                fix="repair the file",
            )
        self.shape = (len(images), *images[0].shape)
        self._images = images

    def __getitem__(self, place: Any) -> NDArray[np.uint8]:
        if isinstance(place, slice):
            return np.stack([self._read(item) for item in self._images[place]])
        return self._read(self._images[place])

    @staticmethod
    def _read(dataset: h5py.Dataset) -> NDArray[np.uint8]:
        values = read_numbers(dataset, 2)
        if values.dtype == np.uint8:
            return values
        # NaN compares false.
        if not ((values >= 0) & (values <= 255) & (values == np.trunc(values))).all():
            raise RecordingError(
                f"{name_of(dataset)} holds pixels that are no grey levels",
                allowed="whole numbers 0 to 255",
                fix="repair the file",
            )
        return values.astype(np.uint8)


RUNNING = ("running_speed", "speed")
CM_PER_S = {"cm/s": 1.0, "cm s^-1": 1.0, "centimeters/second": 1.0, "m/s": 100.0, "meters/second": 100.0}


def read_running(nwbfile: Any, path: Path, warnings: list[str]) -> TimeSeries | None:
    """Return the running speed in cm/s, if one series has such a name; samples that are not finite are left out."""
    found = _find(nwbfile, RUNNING, path, warnings)
    if found is None:
        return None
    item, times, values = found
    factor = CM_PER_S.get(str(item.unit).strip().lower())
    if values.shape[1] != 1 or factor is None:
        warnings.append(
            f"{item.name} has {values.shape[1]} columns in '{str(item.unit)[:20]}' where a speed in cm/s or m/s is "
            "understood; left out"
        )
        return None
    return make_running((times, factor * values), warnings)


def read_pupil(nwbfile: Any, path: Path, warnings: list[str]) -> PupilTrace | None:
    """Return gaze (cm on the monitor, whatever unit DANDI 000728 names) and pupil size; most files have none."""
    place = _find(nwbfile, ("pupil_location",), path, warnings)
    if place is None:
        return None
    if place[2].shape[1] != 2:
        warnings.append(f"pupil_location has {place[2].shape[1]} columns; left out")
        return None
    area = _find(nwbfile, ("pupil_size",), path, warnings)
    return make_pupil(place[1:], None if area is None else area[1:], warnings)


def _find(
    nwbfile: Any, names: tuple[str, ...], path: Path, warnings: list[str]
) -> tuple[Any, NDArray[np.float64], NDArray] | None:
    """Return a series of processed data, its timestamps and its values ``(n, k)``."""
    from pynwb import TimeSeries as NwbSeries

    found = [
        item
        for module in (nwbfile.processing or {}).values()
        for item in module.all_children()
        if isinstance(item, NwbSeries) and str(item.name).lower() in names
    ]
    if len(found) > 1:
        warnings.append(f"{len(found)} series are called {found[0].name}; none is taken")
    if len(found) != 1:
        return None
    item = found[0]
    try:
        data = require_inside(item.data, path, item.name)
        values = read_numbers(data, 2 if data.ndim == 2 else 1).astype(np.float64).reshape(len(data), -1)
        if item.timestamps is not None:
            times = read_numbers(require_inside(item.timestamps, path, f"{item.name}/timestamps"), 1).astype(np.float64)
        else:
            times = (item.starting_time or 0.0) + np.arange(len(values)) / (item.rate or np.nan)
    except RecordingError as error:
        warnings.append(f"{item.name} cannot be read ({error.problem}); left out")
        return None
    scale = float(item.conversion or 1.0)
    if len(times) != len(values) or not (np.isfinite(times).all() and (np.diff(times) > 0).all()):
        warnings.append(f"{item.name}: timestamps are not finite, increasing, and one per sample; left out")
        return None
    return item, times, values * scale + float(item.offset or 0.0)
