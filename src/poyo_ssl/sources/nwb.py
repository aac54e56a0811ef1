"""The source `nwb`: NWB 2 files, read with pynwb; dF/F stays on disk."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
from numpy.typing import NDArray

from poyo_ssl.config import NwbConfig
from poyo_ssl.data.hdf5 import (
    StoredTraces,
    decode,
    get,
    get_dataset,
    get_group,
    is_hdf5,
    name_of,
    open_hdf5,
    read_numbers,
    read_texts,
    refuse_links_outside,
    require_inside,
    require_numbers,
)
from poyo_ssl.data.intervals import merge
from poyo_ssl.data.recording import Recording, RecordingMetadata
from poyo_ssl.data.series import PupilTrace, RoiMasks, TimeSeries
from poyo_ssl.data.stimuli import Presentations
from poyo_ssl.errors import ConfigError, RecordingError, suggest
from poyo_ssl.sources import dandi
from poyo_ssl.sources.allen import (
    MAX_PLANE_PIXELS,
    PRESENTATIONS,
    SUFFIX,
    GreyImages,
    Series,
    check_series,
    keep_masks,
    make_pupil,
    make_running,
    read_genotype,
)
from poyo_ssl.sources.arrays import check_dff_settings, dff_of_fluorescence
from poyo_ssl.sources.base import Notes, Source, clean_name, require_increasing, require_unique, trim_to_clock
from poyo_ssl.sources.coding import GRATINGS, SPONTANEOUS
from poyo_ssl.sources.tables import ALIASES, TABLE, Companions, StimulusTable, make_table

REPAIR = "write the file again with this corrected"
MAX_REMARKS = 3
UNIMPORTANT = "Ignoring the following cached namespace"
"""Begins a remark of pynwb about schema versions, which nearly every file gets."""

KINDS = {
    "neuropil": r"neuropil|background",
    "events": r"event|spike|deconv|firing",
    "other": r"baseline|denoise|ratio",
    "dff": r"dff|d_?f_?over_?f|delta_?f|dfof",
    "fluorescence": r"",
}
"""How the name of a series or of its container tells what it holds; the first that is found."""

PERCENT = ("percent", "%", "pct")
CM_PER_S = {"cm/s": 1.0, "cm s^-1": 1.0, "centimeters/second": 1.0, "m/s": 100.0, "meters/second": 100.0}
RUNNING = ("running_speed", "speed")
SEXES = {"M": "male", "F": "female"}
DAYS = {"D": 1, "W": 7}

CELL_COLUMNS = ("iscell", "is_cell", "accepted", "valid_roi")
"""Columns of ROI tables that say with 0 and 1 which ROIs are cells."""

SPECIMEN_COLUMNS = ("cell_specimen_id", "cell_specimen_ids", "global_roi_id")
USUAL_PIXELS = 512
PIECE_BYTES = 1 << 27

EPOCHS, INVALID = "epochs", "invalid_times"
NOT_SHOWN = ("tags", "timeseries")
"""Columns that the schema gives to every table of intervals, and that say nothing of what was shown."""

LONGEST_STEPS = 2.5
"""An image is shown until the next one, unless that comes later than after so many usual steps."""

IMAGE_TARGETS = ("indexed_timeseries", "indexed_images")
MAX_IMAGE_PIXELS = 1 << 24


def nwb_version(file: h5py.File) -> str:
    """Return the version of an open file, ``1`` for the old layout, and an empty text if it is none."""
    version = decode(file.attrs.get("nwb_version", ""))
    return "1" if not version and get(file, "nwb_version") is not None else version


@contextmanager
def open_nwb(path: Path, remarks: Notes) -> Iterator[Any]:
    """Give the `pynwb.NWBFile` of a file, whose arrays stay on disk; what pynwb finds strange is added to `remarks`."""
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
                yield _read_file(NWBHDF5IO, file, path)
            finally:
                lines = dict.fromkeys(" ".join(str(item.message).split())[:200] for item in caught)
                texts = [line for line in lines if not line.startswith(UNIMPORTANT)]
                remarks.add(*(f"pynwb: {line}" for line in texts[:MAX_REMARKS]))
                if len(texts) > MAX_REMARKS:
                    remarks.add(f"pynwb: {len(texts) - MAX_REMARKS} more remarks")


def _read_file(kind: Any, file: h5py.File, path: Path) -> Any:
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


@dataclass(frozen=True)
class RoiSeries:
    """A `pynwb.ophys.RoiResponseSeries`, its place (``ophys/DfOverF/DfOverF``) and a key of `KINDS`."""

    name: str
    kind: str
    series: Any


@dataclass(frozen=True)
class Units:
    """The ROIs behind the columns of the stored traces; `keep` are the columns to take, None for all."""

    keep: NDArray[np.int64] | None
    unit_ids: NDArray[np.str_]  # (N,), of the columns that are taken
    cell_specimen_ids: NDArray[np.int64]  # (N,), -1 unknown
    masks: RoiMasks | None


@dataclass(frozen=True)
class Layout:
    """How all traces of a recording are stored: `turned` as (ROIs, frames), one frame per timestamp or one more."""

    timestamps: NDArray[np.float64]
    turned: bool
    units: Units


def classify(name: str) -> str:
    """Return what a series of this place holds, by its name and that of its container."""
    last = "/".join(name.split("/")[-2:]).lower()
    return next(kind for kind, pattern in KINDS.items() if re.search(pattern, last))


def place_of(item: Any) -> str:
    """Return the names of an object's containers and its own, below the file's top."""
    names: list[str] = []
    while item is not None and item.parent is not None:
        names.insert(0, str(item.name))
        item = item.parent
    return "/".join(names)


def parse_age(text: str) -> float | None:
    """Return the days of an ISO 8601 duration in days or weeks, as NWB wants it; None for anything else."""
    found = re.fullmatch(r"P(\d{1,5}(?:\.\d{1,3})?)([DW])", text.strip())
    return float(found[1]) * DAYS[found[2]] if found else None


def find_stops(onset: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return until when each image was shown: until the next one, or for a usual step before a pause."""
    steps = np.diff(onset)
    usual = float(np.median(steps)) if len(steps) else 1 / 30
    return onset + np.append(np.where(steps <= LONGEST_STEPS * usual, steps, usual), usual)


def _text(value: Any) -> str:
    """Return a text without what HDF5 cannot hold in an attribute."""
    return "" if value is None else str(value).replace("\0", "").strip()[:4096]


class NwbReader:
    """Reads an open `pynwb.NWBFile`; what is odd about it is added to `notes`."""

    def __init__(self, nwbfile: Any, path: Path, notes: Notes) -> None:
        self.nwbfile, self.path, self.notes = nwbfile, path, notes

    def _refuse(self, problem: str, allowed: str | None = None, fix: str = REPAIR) -> RecordingError:
        return RecordingError(f"{self.path}: {problem}", allowed=allowed, fix=fix)

    def _numbers(self, data: Any, what: str, ndim: int = 1) -> NDArray:
        return read_numbers(require_inside(data, self.path, what), ndim)

    def _whole(self, data: Any, what: str) -> NDArray[np.int64]:
        numbers = self._numbers(data, what)
        if numbers.dtype.kind not in "iu":
            raise self._refuse(f"{what} holds {numbers.dtype}", "whole numbers")
        return numbers.astype(np.int64)

    def times_of(self, item: Any, what: str, num_samples: int) -> NDArray[np.float64]:
        """Return the timestamps of any time series, or those that its start and rate make (NaN without a rate)."""
        if item.timestamps is not None:
            return self._numbers(item.timestamps, f"{what}/timestamps").astype(np.float64)
        return (item.starting_time or 0.0) + np.arange(num_samples) / (item.rate or np.nan)

    # Traces

    def list_series(self) -> list[RoiSeries]:
        """Return every series of ROI responses, sorted by place."""
        from pynwb.ophys import RoiResponseSeries

        found = {place_of(item): item for item in self.nwbfile.objects.values() if isinstance(item, RoiResponseSeries)}
        return [RoiSeries(name, classify(name), found[name]) for name in sorted(found)]

    def choose_series(self, found: Sequence[RoiSeries], wanted: str | None, kind: str) -> RoiSeries:
        """Return the series to read: the one asked for, or the only one of dF/F, or the only one of fluorescence."""
        if wanted is not None:
            return self._find_series(found, wanted, kind)
        for sought in ("dff", "fluorescence") if kind == "auto" else (kind,):
            matching = [item for item in found if item.kind == sought]
            if len(matching) > 1:
                raise RecordingError(
                    f"{self.path} has several series of {sought}",
                    allowed=", ".join(item.name for item in matching),
                    fix="say which with --series; of several planes each is a recording",
                )
            if matching:
                return matching[0]
        among = f" among {', '.join(f'{item.name} ({item.kind})' for item in found)}" if found else " in any module"
        fix = "say which with --series and --kind" if found else "give a file with traces of ROIs"
        raise self._refuse(f"no dF/F or fluorescence (RoiResponseSeries){among}", fix=fix)

    def _find_series(self, found: Sequence[RoiSeries], wanted: str, kind: str) -> RoiSeries:
        matching = [item for item in found if item.name == wanted or item.name.endswith("/" + wanted)]
        if len(matching) != 1:
            number = "several series end" if matching else "no series ends"
            close = suggest(wanted, [item.series.name for item in found])
            names = ", ".join(item.name for item in found) or "it has none"
            raise self._refuse(f"{number} in '{wanted}'{close}", names, "name one of these with --series")
        item = matching[0]
        if kind == "auto" and item.kind not in ("dff", "fluorescence"):
            fix = "say what it is with --kind, or take another --series"
            raise self._refuse(f"{item.name} seems to hold {item.kind}", "dff, fluorescence", fix)
        return item if kind == "auto" else RoiSeries(item.name, kind, item.series)

    def choose_demixed(self, found: Sequence[RoiSeries]) -> RoiSeries:
        """Return the demixed fluorescence of DANDI 000728, which a few of its files lack."""
        named = {item.series.name: item for item in found if item.kind == "fluorescence"}
        if "Demixed" not in named:
            raise self._refuse(
                "no demixed fluorescence ('Corrected' is the raw one, whatever its name says)",
                ", ".join(item.name for item in named.values()) or "it has none",
                "pass --series Corrected to do without demixing",
            )
        self.notes.add("dF/F is computed from the demixed fluorescence")
        return named["Demixed"]

    def values_of(self, item: RoiSeries) -> h5py.Dataset:
        """Return the values of a series after their header was checked."""
        dataset = require_inside(item.series.data, self.path, f"{item.name}/data")
        require_numbers(dataset, 2, whole=False)
        return dataset

    def open_traces(self, item: RoiSeries, layout: Layout) -> StoredTraces:
        """Return traces ``(T, N)`` in their unit: stored x conversion + offset, percents as ratios."""
        factor, offset = float(item.series.conversion), float(item.series.offset or 0.0)
        if str(item.series.unit).strip().lower() in PERCENT and item.kind == "dff":
            factor, offset = factor / 100, offset / 100
        if not (np.isfinite(factor) and np.isfinite(offset) and factor != 0):
            raise self._refuse(f"{item.name} has conversion {factor} and offset {offset}", "finite, not 0")
        if (factor, offset) != (1, 0):
            then = f" after which {offset:g} is added" if offset else ""
            self.notes.add(f"{item.name} is multiplied by {factor:g}{then}")
        dataset, num_frames, keep = self.values_of(item), len(layout.timestamps), layout.units.keep
        return StoredTraces(dataset, num_frames, by_roi=layout.turned, keep=keep, factor=factor, offset=offset)

    def is_turned(self, shape: tuple[int, ...], num_rois: int | None, num_stamps: int | None, name: str) -> bool:
        """Tell whether traces are stored as (ROIs, frames); NWB 2 has frames first, which not every writer knows."""

        def fits(frames: int, rois: int) -> bool:
            return num_rois in (None, rois) and (num_stamps is None or abs(frames - num_stamps) <= 1)

        what = f"{self.path.name}: {name} has shape {shape}"
        if fits(shape[0], shape[1]):
            return False
        if fits(shape[1], shape[0]):
            self.notes.add(f"{what}: transposed, it is read as (ROIs, frames)")
            return True
        counts = {"ROIs": num_rois, "timestamps": num_stamps}
        claimed = " and ".join(f"{count} {unit}" for unit, count in counts.items() if count is not None)
        raise RecordingError(
            f"{what} for {claimed}",
            allowed="(frames, ROIs), one frame more or less than timestamps",
            fix=f"take another --series, or {REPAIR}",
        )

    def make_stamps(self, item: RoiSeries, num_frames: int) -> NDArray[np.float64]:
        """Return the timestamps that the rate and start of a series make."""
        start, rate = item.series.starting_time, item.series.rate
        fix = "give --rate_hz or --timestamps"
        if rate is None:
            raise self._refuse(f"{item.name} has no clock", fix=fix)
        start = 0.0 if start is None else float(start)
        if not (np.isfinite(rate) and rate > 0 and np.isfinite(start)):
            raise self._refuse(f"{item.name} starts at {start} s with {rate} Hz", "a rate above 0", fix)
        return start + np.arange(num_frames) / float(rate)

    # ROIs

    def read_units(self, series: Any, num_units: int, cells: str) -> Units:
        """Return the ROIs of a series with `num_units` columns; with `cells` 'iscell', those that are called cells."""
        if series.rois is None:
            self.notes.add("the traces do not say which ROIs they are of: units are called by their column")
            names = np.array([f"roi_{column:04d}" for column in range(num_units)])
            return Units(None, names, np.full(num_units, -1, np.int64), None)
        table = series.rois.table
        rows = self._whole(series.rois.data, "the traces' region of ROIs")
        ids = self._whole(table.id.data, f"{table.name}/id")
        if len(rows) != num_units:
            raise self._refuse(f"{num_units} traces, {len(rows)} rows of '{table.name}'", "one ROI per trace")
        bad = np.flatnonzero((rows < 0) | (rows >= len(ids)))
        if len(bad):
            outside = f"trace {bad[0]} is of row {rows[bad[0]]} of '{table.name}'"
            raise self._refuse(outside, f"0 to {len(ids) - 1}")
        require_unique(rows, f"{self.path}: ROI row", REPAIR)
        require_unique(ids[rows], f"{self.path}: ROI id of '{table.name}'", REPAIR)
        keep = self._choose_cells(table, rows) if cells == "iscell" else None
        rows = rows if keep is None else rows[keep]
        columns = (self._column(table, name) for name in SPECIMEN_COLUMNS)
        whole = (values for values in columns if values is not None and values.ndim == 1 and values.dtype.kind in "iu")
        specimens = next(whole, np.full(len(ids), -1))
        known = specimens[rows].astype(np.int64)
        return Units(keep, ids[rows].astype(np.str_), known, self._read_masks(table, rows))

    def _column(self, table: Any, name: str) -> NDArray | None:
        """Return a column of numbers with a value per row, or None."""
        if name not in table.colnames or not isinstance(table[name].data, h5py.Dataset):
            return None
        dataset = require_inside(table[name].data, self.path, f"{table.name}/{name}")
        if dataset.ndim not in (1, 2) or dataset.shape[0] != len(table.id) or dataset.dtype.kind not in "iufb":
            return None
        return read_numbers(dataset, dataset.ndim)

    def _choose_cells(self, table: Any, rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
        name = next((name for name in table.colnames if name.lower() in CELL_COLUMNS), None)
        if name is None:
            return None
        flags = self._column(table, name)
        # suite2p has the probability in a second column.
        flags = flags[:, 0] if flags is not None and flags.ndim == 2 and flags.shape[1] else flags
        if flags is None or flags.ndim != 1 or not np.isin(flags, (0, 1)).all():
            raise self._refuse(f"'{name}' of '{table.name}' does not tell cells by 0 and 1", fix="pass --cells all")
        keep = np.flatnonzero(flags[rows])
        if len(keep) == 0:
            raise self._refuse(f"'{name}' calls no ROI a cell", fix="pass --cells all")
        if len(keep) == len(rows):
            return None
        self.notes.add(f"{len(keep)} of {len(rows)} ROIs are cells by '{name}'; the others are left out")
        return keep

    def _read_masks(self, table: Any, rows: NDArray[np.int64]) -> RoiMasks | None:
        """Return masks, if there are any that make sense; the first axis of an image (NWB's x) is the row."""
        try:
            if "pixel_mask" in table.colnames:
                masks = self._read_pixel_masks(table, rows)
            elif "image_mask" in table.colnames:
                masks = self._read_image_masks(table, rows)
            else:
                masks = RoiMasks(*np.zeros((3, 0), np.int32))
        except RecordingError as error:
            self.notes.add(f"the ROIs have no masks: {error}")
            return None
        return keep_masks(masks, len(rows), self.notes)

    def _read_pixel_masks(self, table: Any, rows: NDArray[np.int64]) -> RoiMasks:
        """Join the pixel lists of `rows`; the index holds the end of each ROI's list."""
        index = table["pixel_mask"]
        ends = self._whole(index.data, "pixel_mask_index")
        records = index.target.data  # which hdmf may have wrapped
        pixels = require_inside(getattr(records, "dataset", records), self.path, "pixel_mask")
        names = pixels.dtype.names or ()
        if pixels.ndim != 1 or not {"x", "y"} <= set(names) or any(pixels.dtype[n].kind not in "iuf" for n in "xy"):
            raise RecordingError(f"pixel_mask holds {pixels.dtype}", allowed="x, y, weight")
        if pixels.nbytes > max(1 << 20, pixels.id.get_storage_size() * 1100) or pixels.nbytes > 1 << 30:
            raise RecordingError(f"pixel_mask claims {pixels.nbytes / 1e9:.1f} GB")
        starts = np.r_[0, ends[:-1]]
        if len(ends) != len(table.id) or (ends < starts).any() or (len(ends) and ends[-1] > len(pixels)):
            raise RecordingError(f"pixel_mask_index of {len(ends)} ROIs does not divide {len(pixels)} pixels")
        values = pixels[()]
        place = np.stack([np.asarray(values[name], np.float64) for name in "xy"])
        mine = [np.arange(starts[row], ends[row]) for row in rows]  # pixels of each unit
        unit = np.repeat(np.arange(len(rows), dtype=np.int32), [len(part) for part in mine])
        place = place[:, np.concatenate(mine)]
        with np.errstate(invalid="ignore"):
            if place.size and not ((place >= 0) & (place < MAX_PLANE_PIXELS) & (place % 1 == 0)).all():
                raise RecordingError("pixels outside the image", allowed=f"0 to {MAX_PLANE_PIXELS - 1}")
        row, column = place.astype(np.int32)
        # The size of the image is in no field that all writers fill.
        height, width = (max(int(part.max(initial=0)) + 1, USUAL_PIXELS) for part in (row, column))
        return RoiMasks(unit, row, column, (height, width))

    def _read_image_masks(self, table: Any, rows: NDArray[np.int64]) -> RoiMasks:
        """Read images piece by piece, whole chunks of ROIs at a time."""
        images, length = require_inside(table["image_mask"].data, self.path, "image_mask"), len(table.id)
        require_numbers(images, 3, whole=False)
        if images.shape[0] != length or max(images.shape[1:]) > MAX_PLANE_PIXELS:
            raise RecordingError(f"image_mask has shape {images.shape} for {length} ROIs")
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

    # Stimuli

    def list_tables(self) -> dict[str, Any]:
        """Return every `pynwb.epoch.TimeIntervals` of the session and of its stimuli, by name."""
        from pynwb.epoch import TimeIntervals

        file, found = self.nwbfile, dict[str, Any]()
        places = [file.trials, file.epochs, file.invalid_times]
        for item in [*places, *(file.intervals or {}).values(), *(file.stimulus or {}).values()]:
            if isinstance(item, TimeIntervals) and not any(item is other for other in found.values()):
                found[item.name if item.name not in found else f"{item.name}_{len(found)}"] = item
        return found

    def read_columns(self, table: Any) -> dict[str, NDArray]:
        """Return the columns that have one number or text per row; a note names the others."""
        columns: dict[str, NDArray] = {}
        left_out = []
        for name in table.colnames:
            if name in NOT_SHOWN:
                continue
            values = table[name].data
            plain = type(table[name]).__name__ in ("VectorData", "ElementIdentifiers")
            plain = plain and isinstance(values, h5py.Dataset) and values.ndim == 1
            texts = plain and (values.dtype.kind == "S" or h5py.check_string_dtype(values.dtype) is not None)
            if not texts and not (plain and values.dtype.kind in "iufb"):
                left_out.append(name)
                continue
            require_inside(values, self.path, f"{table.name}/{name}")
            # Of texts the dataset behind hdmf's wrapper, which decodes them.
            columns[name] = np.array(read_texts(h5py.Dataset(values.id))) if texts else read_numbers(values, 1)
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) > 1:
            each = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise self._refuse(f"columns of '{table.name}' differ in length ({each})")
        if left_out:
            lost = ", ".join(left_out)
            self.notes.add(f"columns of '{table.name}' that are no number or text per row: {lost}; left out")
        return columns

    def read_intervals(self, table: Any) -> StimulusTable | None:
        """Return a table of intervals; without a column that names the stimulus, the table itself is one."""
        columns = self.read_columns(table)
        if not len(columns.get("start_time", ())):
            self.notes.add(f"'{table.name}' has no rows")
            return None
        if not {name.strip().lower() for name in columns} & {"name", *ALIASES["name"]}:
            columns["name"] = np.full(len(columns["start_time"]), table.name.removesuffix(SUFFIX))
        return make_table(columns, f"{self.path}: {table.name}")

    def read_invalid_times(self) -> NDArray[np.float64]:
        """Return ``(K, 2)`` seconds that the laboratory calls invalid."""
        item = self.nwbfile.invalid_times
        table = self.read_intervals(item) if item is not None else None
        if table is None:
            return np.zeros((0, 2))
        self.notes.add(f"{len(table.start)} invalid times: masked")
        return merge(np.stack([table.start, table.stop], axis=1))

    def read_images(self) -> list[tuple[StimulusTable, int | None]]:
        """Return each index series as a table with the column `frame`, and its number of images, if known."""
        from pynwb.image import IndexSeries

        found = []
        for item in (self.nwbfile.stimulus or {}).values():
            if not isinstance(item, IndexSeries):
                continue
            what, name = f"{self.path}: {item.name}", item.name.removesuffix(SUFFIX)
            index = self._numbers(item.data, item.name)
            if index.dtype.kind == "f" and not (np.isfinite(index).all() and (index % 1 == 0).all()):
                raise RecordingError(f"{what} holds fractions", allowed="whole numbers of images", fix=REPAIR)
            onset = self.times_of(item, item.name, len(index))
            if len(onset) != len(index):
                raise RecordingError(
                    f"{what} has {len(index)} images and {len(onset)} timestamps", allowed="as many", fix=REPAIR
                )
            require_increasing(onset, what, REPAIR)
            number = _count_images(item)
            bad = np.flatnonzero((index < 0) | (index >= (number or np.inf)))
            if len(bad):
                allowed = f"0 to {number - 1}" if number else "0 or more"
                raise RecordingError(f"{what}: row {bad[0]} shows image {index[bad[0]]}", allowed=allowed, fix=REPAIR)
            if len(index):
                names, frame = np.full(len(index), name), {"frame": index.astype(np.int64)}
                table = StimulusTable(onset, find_stops(onset), names, frame, f"{self.path}: {name}")
                found.append((table, number or None))
        return found

    def read_stimuli(
        self, timestamps: NDArray[np.float64], wanted: Sequence[str] | None
    ) -> tuple[dict[str, Presentations], dict[str, NDArray[np.float64]]]:
        """Return presentations and epochs of index series and of the `wanted` tables of intervals.

        By default of all tables but ``epochs`` and ``invalid_times``.
        """
        tables = self.list_tables()
        missing = [name for name in wanted or () if name not in tables]
        if missing:
            known = ", ".join(tables) or "it has none"
            raise self._refuse(f"no table '{missing[0]}'", known, "name some of these with --tables")
        if wanted is None and EPOCHS in tables:
            self.notes.add(f"the table '{EPOCHS}' is not taken as a stimulus; if it is one, name it with --tables")
        names = [name for name in tables if name not in (EPOCHS, INVALID)] if wanted is None else wanted
        parts = [(table, None) for name in names if (table := self.read_intervals(tables[name])) is not None]
        stimuli: dict[str, Presentations] = {}
        epochs: dict[str, NDArray[np.float64]] = {}
        for table, number in [*parts, *self.read_images()]:
            shown, spans = table.place(timestamps, {str(table.name[0]): number} if number else {}, self.notes)
            twice = sorted(set(spans) & set(epochs))
            if twice:
                raise self._refuse(f"two tables hold '{twice[0]}'", fix="say which to take with --tables")
            stimuli |= shown
            epochs |= spans
        names = [name for name in self.nwbfile.stimulus or {} if name not in tables]
        unread = [name for name in names if name.removesuffix(SUFFIX) not in epochs]
        if unread:
            lost = ", ".join(unread)
            self.notes.add(f"stimuli that are no table of intervals or index series: {lost}; left out")
        if not stimuli:
            self.notes.add("no stimulus table: nothing can be decoded (give --stimuli or stimuli.csv)")
        return stimuli, epochs

    def read_dandi(self) -> dandi.Shown:
        """Return what a file of DANDI 000728 says was shown."""
        tables = {key.removesuffix(SUFFIX): item for key, item in self.list_tables().items()}
        read = {name: self.read_intervals(tables[name]) for name in (*GRATINGS, SPONTANEOUS) if name in tables}
        epochs = self.nwbfile.epochs
        return dandi.Shown(read, self.read_images(), None if epochs is None else self.read_columns(epochs))

    # Metadata and behaviour

    def read_fields(self, series: Any) -> dict[str, Any]:
        """Return fields of `RecordingMetadata` for traces; what cannot be understood gets a note."""
        file, subject = self.nwbfile, self.nwbfile.subject
        fields: dict[str, Any] = {"description": _text(file.session_description)}
        if file.session_start_time is not None:
            fields["recording_date"] = file.session_start_time.strftime("%Y-%m-%d %H:%M:%S")
        table = series.rois.table if series.rois is not None else None
        plane = getattr(table, "imaging_plane", None)
        if plane is not None:
            fields["targeted_structure"] = _text(plane.location)
            if plane.device is not None:
                fields["device_id"] = _text(plane.device.name) or "two_photon"
        indicator = "" if plane is None else _text(plane.indicator)
        fields |= read_genotype("" if subject is None else _text(subject.genotype), indicator, self.notes)
        if subject is None:
            self.notes.add("the file names no subject")
            return fields
        age, species = _text(subject.age), _text(subject.species)
        fields |= {"age_days": parse_age(age), "sex": SEXES.get(_text(subject.sex), "")}
        if age and fields["age_days"] is None:
            self.notes.add(f"age '{age[:40]}' is no number of days or weeks (P93D); left empty")
        if _text(subject.subject_id):
            fields["subject_id"] = _text(subject.subject_id)
        if species:
            fields["species"] = species.upper().replace(" ", "_")
        return fields

    def find_behaviour(self, *names: str) -> tuple[Any, Series] | None:
        """Return the only processed time series with one of these names, and its sound samples."""
        from pynwb import TimeSeries

        children = [child for module in (self.nwbfile.processing or {}).values() for child in module.all_children()]
        found = [item for item in children if isinstance(item, TimeSeries) and str(item.name).lower() in names]
        if len(found) > 1:
            self.notes.add(f"{len(found)} series are called {found[0].name}; none is taken")
        if len(found) != 1:
            return None
        item = found[0]
        try:
            data = require_inside(item.data, self.path, item.name)
            values = read_numbers(data, 2 if data.ndim == 2 else 1).astype(np.float64)
            times = self.times_of(item, item.name, len(values))
        except RecordingError as error:
            self.notes.add(f"{item.name} cannot be read ({error.problem}); left out")
            return None
        values = values * float(item.conversion or 1.0) + float(item.offset or 0.0)
        series = check_series(times, values, item.name, self.notes)
        return None if series is None else (item, series)

    def read_running(self) -> TimeSeries | None:
        """Return the running speed in cm/s, if one series has such a name."""
        found = self.find_behaviour(*RUNNING)
        if found is None:
            return None
        item, (times, values) = found
        factor = CM_PER_S.get(str(item.unit).strip().lower())
        if values.shape[1] != 1 or factor is None:
            columns = f"{values.shape[1]} columns in '{str(item.unit)[:20]}'"
            self.notes.add(f"{item.name} has {columns} where a speed in cm/s or m/s is understood; left out")
            return None
        return make_running((times, factor * values), self.notes)

    def read_pupil(self) -> PupilTrace | None:
        """Return gaze (cm on the monitor, whatever unit DANDI 000728 names) and pupil size."""
        gaze, area = self.find_behaviour("pupil_location"), self.find_behaviour("pupil_size")
        return make_pupil(gaze and gaze[1], area and area[1], self.notes)


def _count_images(item: Any) -> int | None:
    if item.indexed_timeseries is not None and item.indexed_timeseries.data is not None:
        return int(item.indexed_timeseries.data.shape[0])
    return len(item.indexed_images.images) if item.indexed_images is not None else None


def find_templates(file: h5py.File) -> Iterator[tuple[str, GreyImages]]:
    """Give the grey pixels that each index series points to, ``(images, height, width)``, by the series' name."""
    presentations = get_group(file, PRESENTATIONS)
    for key in presentations if presentations is not None else ():
        series = get_group(presentations, key)
        names = [name for name in IMAGE_TARGETS if series is not None and name in series]
        target = get_group(series, names[0]) if names else None
        if target is None:
            continue
        stack, name = get_dataset(target, "data"), key.removesuffix(SUFFIX)
        if stack is not None and stack.ndim == 3 and stack.shape[0]:
            require_numbers(stack, 3, whole=False)
            yield name, GreyImages(stack)
        elif stack is None and (images := [item for item in _order_images(target) if item.ndim == 2]):
            sizes = sorted({item.shape for item in images})
            if len(sizes) > 1 or int(np.prod(sizes[0])) > MAX_IMAGE_PIXELS:
                several = f"{name_of(target)} has images of {' and '.join(map(str, sizes[:3]))}"
                raise RecordingError(several, allowed="one size", fix=REPAIR)
            yield name, GreyImages(images)


def _order_images(group: h5py.Group) -> list[h5py.Dataset]:
    """Return images by the order that the file gives, or else by the number at the end of their name.

    HDF5 lists names alphabetically, in which Image10 comes before Image2.
    """
    order = get_dataset(group, "order_of_images")
    if order is not None and h5py.check_ref_dtype(order.dtype) is h5py.Reference:
        return [item for ref in order[()] if isinstance(item := group.file[ref], h5py.Dataset)]

    def place(name: str) -> tuple[int, str]:
        found = re.search(r"(\d+)$", name)
        return (int(found[1]) if found else -1, name)

    names = [name for name in group if isinstance(get(group, name), h5py.Dataset) and name != "order_of_images"]
    return [group[name] for name in sorted(names, key=place)]


@dataclass(frozen=True)
class NwbSource(NwbConfig, Source):
    """NWB 2 files: DANDI 000728 (Allen Visual Coding), or any laboratory's with traces of ROIs.

    Settings are those of `poyo_ssl.config.NwbConfig`; `companions` overrule what a file says.

    Examples
    --------
    >>> from poyo_ssl import NwbSource, convert
    >>> outcomes = convert(NwbSource(tables=("trials",)), Path("mouse7.nwb"), Path("data"))  # doctest: +SKIP
    """

    name: ClassVar[str] = "nwb"

    companions: Companions = field(default_factory=Companions)

    def __post_init__(self) -> None:
        check_dff_settings(self.dff_procedure, self.neuropil_ratio)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Tell whether `path` is a file of NWB 2."""
        return is_hdf5(path, ".nwb", lambda file: nwb_version(file).startswith("2"))

    def find(self, input: Path) -> list[Path]:
        """Return the file, or every ``*.nwb`` in a folder at any depth, without the raw halves of DANDI 000728."""
        if input.is_file():
            return [input]
        paths = sorted(input.rglob("*.nwb"))
        if not paths:
            raise RecordingError(f"no *.nwb in {input}", fix="give an NWB 2 file or a folder of them")
        known = set(paths)
        return [path for path in paths if dandi.processed_half(path) not in known]

    def recording_id(self, path: Path) -> str:
        """Return the experiment id of DANDI 000728, as the source `allen` does, or the names of file and series."""
        # One plane must not replace the other.
        plane = [self.series.rpartition("/")[2]] if self.series else []
        return dandi.experiment_of(path) or clean_name("_".join([path.stem, *plane]))

    def files(self, path: Path) -> list[Path]:
        """Return the file and its companions."""
        return [path, *self.companions.files(_home(path))]

    def movies(self, path: Path) -> Iterator[tuple[str, Any]]:
        """Give the pixels that index series point to, and those beside the file."""
        beside = dict(self.companions.read_movies(_home(path)))
        with open_hdf5(path) as file:
            for name, pixels in find_templates(file):
                if clean_name(name) not in beside:
                    yield name, pixels
        yield from beside.items()

    def read(self, path: Path) -> Recording:
        """Return the recording of one file."""
        notes, remarks = Notes(), Notes()
        with open_nwb(path, remarks) as nwbfile:
            recording = self._read(NwbReader(nwbfile, path, notes))
        return replace(recording, warnings=(*notes, *remarks))

    def _read(self, reader: NwbReader) -> Recording:
        path, notes = reader.path, reader.notes
        session_type = dandi.session_type_of(reader.nwbfile)
        found = reader.list_series()
        chosen = self._choose(reader, found, session_type)
        dataset, series = reader.values_of(chosen), chosen.series
        what = f"{path.name}: {chosen.name}"

        stamps = self._read_stamps(reader, chosen)
        num_rois = None if series.rois is None else len(series.rois.data)
        turned = reader.is_turned(dataset.shape, num_rois, None if stamps is None else len(stamps), chosen.name)
        num_frames, num_units = dataset.shape[::-1] if turned else dataset.shape
        if 0 in dataset.shape:
            raise RecordingError(f"{what} has shape {dataset.shape}", allowed="frames and ROIs")
        if stamps is None and self.companions.rate_hz is not None:
            stamps = np.arange(num_frames) / self.companions.rate_hz
        elif stamps is None:
            stamps = reader.make_stamps(chosen, num_frames)
        # An array of no size of its own: only lengths are compared here.
        no_traces = np.broadcast_to(np.float32(0), (num_frames, num_units))
        _, timestamps = trim_to_clock(no_traces, stamps, what, notes)
        if len(timestamps) < 2:
            raise RecordingError(f"{what}: {len(timestamps)} imaging frames", allowed="2 or more")

        units = reader.read_units(series, num_units, self.cells)
        layout = Layout(timestamps, turned, units)
        dff: StoredTraces | NDArray[np.float32] = reader.open_traces(chosen, layout)
        if chosen.kind != "dff":
            dff = self._compute_dff(reader, found, chosen, layout, dff[0 : len(timestamps)])
        stimuli, epochs = self._read_stimuli(reader, timestamps, session_type)
        metadata = self._read_metadata(reader, chosen, session_type)
        masked = reader.read_invalid_times()
        return Recording(
            self.recording_id(path),
            dff,
            timestamps,
            metadata,
            unit_ids=units.unit_ids,
            # ROI ids of DANDI 000728 are those of cells.
            cell_specimen_ids=units.unit_ids.astype(np.int64) if session_type else units.cell_specimen_ids,
            stimuli=stimuli,
            epochs=epochs,
            masked_domain=masked,
            running=reader.read_running(),
            pupil=reader.read_pupil() if session_type else None,
            roi_masks=units.masks,
        )

    def _choose(self, reader: NwbReader, found: list[RoiSeries], session_type: str | None) -> RoiSeries:
        if not found and session_type and not reader.nwbfile.processing:
            raise RecordingError(
                f"{reader.path} is the raw half of a session of DANDI 000728, without dF/F",
                fix=f"give the file that ends in {dandi.PROCESSED}.nwb",
            )
        has_dff = any(item.kind == "dff" for item in found)
        automatic = self.series is None and (self.kind == "fluorescence" or (self.kind == "auto" and not has_dff))
        if session_type and automatic and found:
            return reader.choose_demixed(found)
        return reader.choose_series(found, self.series, self.kind)

    def _read_stamps(self, reader: NwbReader, chosen: RoiSeries) -> NDArray[np.float64] | None:
        """Return timestamps; None where they are to be made from a rate."""
        if self.companions.timestamps is not None:
            return self.companions.read_clock(reader.path.parent)
        if self.companions.rate_hz is not None or chosen.series.timestamps is None:
            return None
        return reader.times_of(chosen.series, chosen.name, 0)

    def _compute_dff(
        self,
        reader: NwbReader,
        found: list[RoiSeries],
        chosen: RoiSeries,
        layout: Layout,
        light: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """Return dF/F ``(T, N)`` of fluorescence less its neuropil: the only one, or the one of the same name."""
        others = [item for item in found if item.kind == "neuropil"]
        if len(others) > 1:
            others = [item for item in others if item.series.name == chosen.series.name]
        ratio: float | NDArray[np.float64] = self.neuropil_ratio
        neuropil = None
        if len(others) != 1:
            reader.notes.add("no neuropil beside the fluorescence: none is subtracted")
        else:
            shape, wanted = reader.values_of(others[0]).shape, reader.values_of(chosen).shape
            if shape != wanted:
                problem = f"{reader.path}: {others[0].name} has shape {shape}, {chosen.name} {wanted}"
                raise RecordingError(problem, allowed="one neuropil trace per ROI", fix=REPAIR)
            neuropil = reader.open_traces(others[0], layout)[0 : len(light)]
            if dandi.session_type_of(reader.nwbfile):
                own = dandi.read_ratios(reader.nwbfile, shape[0 if layout.turned else 1], reader.path)
                if own is None:
                    reader.notes.add(f"no neuropil ratios in the file: {ratio:g} is taken")
                else:
                    ratio = own if layout.units.keep is None else own[layout.units.keep]
        rate_hz = float(1 / np.median(np.diff(layout.timestamps)))
        what = str(reader.path)
        return dff_of_fluorescence(light, neuropil, ratio, self.dff_procedure, rate_hz, what, reader.notes)

    def _read_stimuli(
        self, reader: NwbReader, timestamps: NDArray[np.float64], session_type: str | None
    ) -> tuple[dict[str, Presentations], dict[str, NDArray[np.float64]]]:
        home = _home(reader.path)
        if self.companions.stimuli is not None or (home / TABLE).exists():
            if self.tables:
                both = f"{reader.path}: a table beside the file and --tables {' '.join(self.tables)}"
                raise RecordingError(both, fix="leave one of them out")
            reader.notes.add("stimuli are those of the table beside the file, not the file's own")
            return self.companions.read_stimuli(home, timestamps, reader.notes)
        if session_type and self.tables is None:
            return dandi.code_stimuli(reader.read_dandi(), timestamps, session_type, reader.path, reader.notes)
        return reader.read_stimuli(timestamps, self.tables)

    def _read_metadata(self, reader: NwbReader, chosen: RoiSeries, session_type: str | None) -> RecordingMetadata:
        fields = {"subject_id": self.recording_id(reader.path), "origin": "NWB 2 file"}
        fields |= reader.read_fields(chosen.series)
        if session_type:
            fields |= dandi.correct_fields(reader.nwbfile, session_type, reader.notes)
        if chosen.kind == "fluorescence":
            fields["origin"] += f", dF/F of {chosen.name} by {self.dff_procedure}"
        return self.companions.read_metadata(_home(reader.path), fields)


def _home(path: Path) -> Path:
    """Return the folder of a file's companions: of its own name, or its own folder if it is alone there."""
    own = path.with_suffix("")
    return own if own.is_dir() or len(list(path.parent.glob("*.nwb"))) > 1 else path.parent
