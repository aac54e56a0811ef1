"""Output folders of suite2p, before and after version 1.0.

A recording is a folder ``suite2p`` (or any folder) with ``plane0``, ``plane1``, ... and perhaps ``combined``, or one
such plane. Clock, stimuli, pixels and metadata lie beside it (in the folder that holds ``suite2p``) or are given
(`poyo_ssl.sources.tables`).
"""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from poyo_ssl.config import Suite2pConfig
from poyo_ssl.data.recording import Recording
from poyo_ssl.data.series import RoiMasks
from poyo_ssl.errors import RecordingError
from poyo_ssl.sources.arrays import check_dff_settings, dff_of_fluorescence
from poyo_ssl.sources.base import Notes, Source, clean_name, require, trim_to_clock
from poyo_ssl.sources.tables import FIX_FILE, Companions, check_line, load_npy, read_npy_header

REMEDY = "give what is needed from it by hand (--rate_hz), and remove it"
MAX_ITEM_BYTES = 4096  # Of one element of an array; a pickle could ask for more than the memory holds


class _Sealed:
    """Stands for an object that is not wanted, such as a path or a date, or for a class that must not be called."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        del state


class _DType:
    """Stands for ``numpy.dtype``: plain types only, whatever state a pickle tries to give it."""

    def __init__(self, spec: str, *_: Any) -> None:
        self.dtype = np.dtype(spec if isinstance(spec, str) else "V0")
        if self.dtype.kind not in "biufcSUO" or self.dtype.itemsize > MAX_ITEM_BYTES:
            raise pickle.UnpicklingError(f"elements of type {str(spec)[:40]}")

    def __setstate__(self, state: Any) -> None:
        _, order, subarray, names, fields, *_ = state
        if subarray or names or fields:
            raise pickle.UnpicklingError("an array of structures")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands for an array until its numbers come, as the state (version, shape, dtype, Fortran order, content)."""

    def __init__(self, *_: Any) -> None:
        self.array: np.ndarray = np.empty(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, content = state
        dtype = kind.dtype
        if dtype.hasobject:
            flat = np.empty(len(content), object)
            flat[:] = list(content)
        else:
            flat = np.frombuffer(content.encode("latin1") if isinstance(content, str) else content, dtype)
        # Refuses a shape that is not that of the content.
        self.array = flat.reshape(shape, order="F" if fortran else "C")


def _scalar(kind: _DType, content: Any = b"") -> Any:
    if kind.dtype.hasobject:
        raise pickle.UnpicklingError("a scalar of objects")
    return np.frombuffer(content.encode("latin1") if isinstance(content, str) else content, kind.dtype, count=1)[0]


def _bytes_of(text: str, encoding: str) -> bytes:
    """How protocols below 3 write bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in {encoding}")
    return text.encode("latin1")


def _unwrap(value: Any, seen: dict[int, Any]) -> Any:
    """Replace what stands for arrays by arrays; `seen` keeps what is referred to many times from being copied."""
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, _Array):
        array = value.array
        if array.dtype.hasobject:
            array = array.copy()
            seen[id(value)] = array
            for index, item in enumerate(array.flat):
                array.flat[index] = _unwrap(item, seen)
        seen[id(value)] = array
    elif isinstance(value, dict):
        seen[id(value)] = {}
        seen[id(value)].update((key, _unwrap(item, seen)) for key, item in value.items())
    elif isinstance(value, (list, tuple)):
        seen[id(value)] = []
        seen[id(value)].extend(_unwrap(item, seen) for item in value)
    else:
        return value
    return seen[id(value)]


# Everything that a pickle may name, and what stands for it.
ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Sealed,
    ("numpy", "dtype"): _DType,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _bytes_of,
    **{
        (f"numpy.{core}.{module}", name): function
        for core in ("core", "_core")
        for module in ("multiarray", "_multiarray_umath")
        for name, function in (("_reconstruct", _Array), ("scalar", _scalar))
    },
    **{
        (module, name): _Sealed
        for module in ("pathlib", "pathlib._local")
        for name in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
    },
    # suite2p notes when it ran.
    **{("datetime", name): _Sealed for name in ("datetime", "date", "time", "timedelta", "timezone")},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a global, or refuse it."""
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it would run {module}.{name}")
        return ALLOWED[module, name]

    def persistent_load(self, identity: Any) -> Any:
        """Refuse references to outside of the file."""
        raise pickle.UnpicklingError(f"it refers to {identity!r} outside of it")


def load_pickled(path: Path) -> Any:
    """Return the pickled content of a npy file: dictionaries, lists, texts, numbers and arrays, and nothing else.

    A file that names anything outside `ALLOWED` is refused, and what it names is not run.
    """
    require(path.is_file(), f"no file {path}", fix=REMEDY)
    try:
        with path.open("rb") as stream:
            shape, dtype = read_npy_header(stream, str(path), pickled=True)
            require(dtype.hasobject, f"{path} holds {dtype}", "a pickled dictionary", REMEDY)
            content = _unwrap(_Unpickler(stream, encoding="latin1").load(), {})
        whole = isinstance(content, np.ndarray) and content.dtype == object and content.shape == tuple(shape)
        require(whole, f"{path} is damaged", fix=FIX_FILE)
    except RecordingError:
        raise
    except Exception as error:
        # A damaged pickle lets the allowed functions be called with anything.
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise RecordingError(f"{path} is not unpickled: {text}", fix=REMEDY) from None
    return content.item() if content.shape == () else list(content)


DEFAULT_FS, DEFAULT_TAU = 10.0, 1.0  # suite2p's own, which are often left as they are
AXES = ("ypix", "xpix")  # Pixels of a ROI
MAX_PADDING = 2  # Frames by which the planes of one recording may differ


@dataclass(frozen=True)
class Suite2pSource(Suite2pConfig, Source):
    """Output of suite2p."""

    name: ClassVar[str] = "suite2p"

    companions: Companions = field(default_factory=Companions)

    def __post_init__(self) -> None:
        check_dff_settings(self.dff_procedure, self.neuropil_ratio or 0.0)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Tell whether `path` is a plane of suite2p, or holds some."""
        return path.is_dir() and (_is_plane(path) or any(_is_plane(plane) for plane in path.glob("plane*")))

    def find(self, input: Path) -> list[Path]:
        """Return the folder, or all folders of planes below it, whatever they were called."""
        if self.recognises(input):
            return [input]
        planes = [plane for plane in input.rglob("plane*") if _is_plane(plane)] if input.is_dir() else []
        found = sorted({plane.parent for plane in planes})
        require(found, f"no suite2p output in {input}", "a folder with plane0/F.npy, or such folders below")
        return found

    def recording_id(self, path: Path) -> str:
        """Return the name of the folder that suite2p was told to save to; with its parents' where it is a number."""
        parts = [path.name]
        for parent in path.absolute().parents:
            # suite2p's own names, and numbers of experiments and dates, are not unique.
            if not re.fullmatch(r"suite2p|combined|plane\d+|[\d_.-]*", parts[0]) or len(parts) > 4:
                break
            parts.insert(0, parent.name)
        own = [part for part in parts if not re.fullmatch(r"suite2p|combined|plane\d+", part)]
        return clean_name("_".join(own))

    def files(self, path: Path) -> list[Path]:
        """Return what is read of every plane, and the companions."""
        names = ("F.npy", "Fneu.npy", "iscell.npy", "stat.npy", "ops.npy", "settings.npy", "db.npy")
        found = [plane / name for plane in self._planes(path) for name in names if (plane / name).is_file()]
        return found + self.companions.files(_home(path))

    def movies(self, path: Path) -> Iterator[tuple[str, Any]]:
        """Give the pixels that lie beside the folder."""
        yield from self.companions.read_movies(_home(path))

    def read(self, path: Path) -> Recording:
        """Return the recording of a folder."""
        notes, home = Notes(), _home(path)
        planes = [_Plane(folder, self.cells, notes) for folder in self._planes(path)]
        num_frames = _common_length(planes, notes)
        rate_hz, ratio = self._settings(path, planes, notes)
        clock = self.companions.read_clock(home)
        if clock is None:
            clock = np.arange(num_frames) / rate_hz
        light = np.concatenate([plane.light[plane.rows, :num_frames].T for plane in planes], axis=1)
        light = light.astype(np.float32, copy=False)
        neuropil = np.concatenate([plane.neuropil[plane.rows, :num_frames].T for plane in planes], axis=1)
        light, timestamps = trim_to_clock(light, clock, str(path), trimmed := Notes())
        require(len(timestamps) >= 2, f"{path} has {len(timestamps)} frames", "2 or more")
        measured = float(1 / np.median(np.diff(timestamps)))
        if abs(measured / rate_hz - 1) > 0.02:
            notes.add(f"the timestamps have {measured:.4g} Hz, suite2p was told fs {rate_hz:.4g}")
        dff = dff_of_fluorescence(light, neuropil, ratio, self.dff_procedure, measured, "Fneu.npy", notes)
        stimuli, epochs = self.companions.read_stimuli(home, timestamps, notes)
        name = self.recording_id(path)
        origin = f"suite2p, F - {ratio:g} Fneu, dF/F by {self.dff_procedure}"
        metadata = self.companions.read_metadata(home, {"subject_id": name, "origin": origin})
        masks = _join_masks(planes, notes)
        notes.add(*trimmed)
        check_line(metadata, notes)
        several = len(planes) > 1
        unit_ids = [
            f"{plane.folder.name + '_' if several else ''}roi_{row:04d}" for plane in planes for row in plane.rows
        ]
        return Recording(
            name,
            dff,
            timestamps,
            metadata,
            unit_ids=np.array(unit_ids),
            roi_masks=masks,
            stimuli=stimuli,
            epochs=epochs,
            warnings=tuple(notes),
        )

    def _planes(self, path: Path) -> list[Path]:
        """Return the one folder, the combined one, or all planes."""
        if _is_plane(path):
            return [path]
        planes = [plane for plane in path.glob("plane*") if plane.name[5:].isdecimal() and _is_plane(plane)]
        if len(planes) > 1 and _is_plane(path / "combined"):
            return [path / "combined"]
        problem = f"{path} has no traces: suite2p found no ROIs, or was stopped"
        require(planes, problem, fix="run suite2p again")
        return sorted(planes, key=lambda plane: int(plane.name[5:]))

    def _settings(self, path: Path, planes: list[_Plane], notes: Notes) -> tuple[float, float]:
        """Return the rate in Hz and the neuropil ratio: given, or as suite2p was told."""
        told, missed = _read_settings(planes[0].folder, path)
        notes.add(*missed)
        rate_hz = self.companions.rate_hz
        if rate_hz is None:
            rate_hz = _positive(told.get("fs"))
            if rate_hz is None:
                problem = f"{planes[0].folder} does not say the imaging rate: {', and '.join(missed)}"
                raise RecordingError(problem, fix="give --rate_hz (frames per second and plane)")
            usual = "suite2p's default, which is often left wrong;"
            if rate_hz == DEFAULT_FS:
                notes.add(f"fs is 10 Hz, {usual} give --rate_hz if it is not true")
            if _positive(told.get("tau")) == DEFAULT_TAU:
                notes.add(f"tau is 1 s, {usual} only its spikes depend on it")
        ratio = self.neuropil_ratio
        if ratio is None:
            ratio = _positive(told.get("neucoeff"))
        if ratio is None:
            notes.add("the neuropil ratio is not known: 0.7 is taken")
        return rate_hz, 0.7 if ratio is None else ratio


class _Plane:
    """Traces of one plane, memory-mapped, and which of its ROIs are cells."""

    def __init__(self, folder: Path, cells: str, notes: Notes) -> None:
        self.folder = folder
        self.light, self.neuropil = (_load_traces(folder / name) for name in ("F.npy", "Fneu.npy"))
        num_rois, self.num_frames = self.light.shape
        problem = f"{folder}: F.npy has shape {self.light.shape}, Fneu.npy {self.neuropil.shape}"
        require(self.neuropil.shape == self.light.shape, problem, "the same", "copy the folder again")
        if num_rois > self.num_frames:
            notes.add(f"{folder.name}/F.npy has more ROIs ({num_rois}) than frames; suite2p writes (ROIs, frames)")
        self.rows = np.arange(num_rois)
        if cells == "iscell":
            self.rows = np.flatnonzero(_read_iscell(folder / "iscell.npy", num_rois))
            fix = "curate iscell.npy or pass --cells all"
            require(len(self.rows), f"{folder}: no ROI is called a cell", fix=fix)
            called = f"{len(self.rows)} of {num_rois} ROIs are called cells"
            notes.add(f"{folder.name}: {called}; the others are left out")
        # Frames at the end in which a combined folder's shorter planes are filled with zeros; a ROI without light is
        # not padded.
        tail = self.light[self.rows, -(MAX_PADDING + 1) :] != 0
        alive = tail[:, :1].any(axis=1)
        self.padding = int((~tail[alive].all(axis=0)).sum()) if alive.any() else 0


def _read_iscell(path: Path, num_rois: int) -> NDArray[np.bool_]:
    require(path.is_file(), f"no {path}", fix="add it, or pass --cells all")
    iscell = load_npy(path)
    fits = iscell.ndim in (1, 2) and iscell.dtype.kind in "biuf" and 0 not in iscell.shape
    require(fits, f"{path} holds {iscell.dtype} of shape {iscell.shape}", "(ROIs, 2)", "copy it again")
    flag = iscell if iscell.ndim == 1 else iscell[:, 0]
    problem = f"{path} has {len(flag)} rows, F.npy {num_rois} ROIs"
    require(len(flag) == num_rois, problem, "as many", "copy the folder again")
    labels = np.isin(flag, (0, 1)).all()
    require(labels, f"{path} has labels other than 0 and 1", fix="save the labels in column 0")
    return np.asarray(flag, bool)


def _load_traces(path: Path) -> NDArray:
    traces = load_npy(path)
    fits = traces.ndim == 2 and traces.dtype.kind in "iuf" and 0 not in traces.shape
    problem = f"{path} holds {traces.dtype} of shape {traces.shape}"
    require(fits, problem, "numbers of (ROIs, frames)", "copy it again")
    return traces


def _common_length(planes: list[_Plane], notes: Notes) -> int:
    """Return the number of frames that all planes have."""
    lengths = [plane.num_frames for plane in planes]
    shortest, longest = min(lengths), max(lengths)
    problem, allowed = f"planes of {shortest} to {longest} frames", f"a difference of {MAX_PADDING}"
    require(longest - shortest <= MAX_PADDING, problem, allowed, "give planes of one recording")
    if len(planes) > 1:
        notes.add(f"{len(planes)} planes on one clock: a plane is imaged up to one frame time later than the first")
    padded = max(plane.padding for plane in planes)
    if padded or longest > shortest:
        cut = longest - shortest + padded
        notes.add(f"some planes are shorter: the last {cut} frames of all are left out")
    return shortest - padded


def _read_settings(plane: Path, path: Path) -> tuple[dict[str, Any], list[str]]:
    """Return fs, tau and neucoeff of whatever file says them, ops.npy or, since 1.0, settings.npy; and what did not."""
    told: dict[str, Any] = {}
    missed: list[str] = []
    folders = dict.fromkeys((plane, *sorted(path.glob("plane*")), path))
    files = [file for folder in folders for name in ("settings.npy", "ops.npy") if (file := folder / name).is_file()]
    if not files:
        missed.append("no ops.npy and no settings.npy")
    for file in files:
        if _positive(told.get("fs")):
            break
        try:
            content = load_pickled(file)
        except RecordingError as error:
            missed.append(error.problem)
            continue
        if not isinstance(content, dict):
            missed.append(f"{file} does not hold a dictionary")
            continue
        extraction = content.get("extraction")
        nested = extraction.get("neuropil_coefficient") if isinstance(extraction, dict) else None
        told |= {key: content[key] for key in ("fs", "tau", "neucoeff") if key in content}
        if nested is not None:
            told["neucoeff"] = nested
        if not _positive(told.get("fs")):
            missed.append(f"{file} has no 'fs' above 0")
    return told, missed


def _positive(value: Any) -> float | None:
    """Return a number above 0, or None."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) and number > 0 else None


def _join_masks(planes: list[_Plane], notes: Notes) -> RoiMasks | None:
    """Return the pixels of the cells, if stat.npy can be read; planes lie side by side only in 'combined'."""
    if len(planes) > 1:
        return None
    plane = planes[0]
    if not (plane.folder / "stat.npy").is_file():
        notes.add("no stat.npy: the ROIs have no masks")
        return None
    try:
        stat = load_pickled(plane.folder / "stat.npy")
        if len(stat) != len(plane.light):
            raise ValueError(f"{len(stat)} ROIs in stat.npy, {len(plane.light)} in F.npy")
        rows, columns = ([np.asarray(stat[roi][key], np.int64).reshape(-1) for roi in plane.rows] for key in AXES)
        unit = np.repeat(np.arange(len(rows), dtype=np.int32), [len(pixels) for pixels in rows])
        row, column = np.concatenate(rows), np.concatenate(columns)
        if len(row) != len(column) or (len(row) and min(row.min(), column.min()) < 0):
            raise ValueError("pixels outside the image")
    except (RecordingError, ValueError, KeyError, TypeError, IndexError) as error:
        notes.add(f"the ROIs have no masks: {' '.join(str(error).split())}")
        return None
    height, width = (int(part.max(initial=0)) + 1 for part in (row, column))
    if max(height, width) > 1 << 15:
        notes.add(f"the ROIs have no masks: pixels at row {height - 1} and column {width - 1}")
        return None
    return RoiMasks(unit, row.astype(np.int32), column.astype(np.int32), image_shape=(height, width))


def _is_plane(path: Path) -> bool:
    return (path / "F.npy").is_file()


def _home(path: Path) -> Path:
    """Return the folder that holds the output, where a laboratory keeps what belongs to it."""
    home = path
    while re.fullmatch(r"suite2p|combined|plane\d+", home.name) and home.parent != home:
        home = home.parent
    return home
