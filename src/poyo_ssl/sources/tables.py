"""Files of laboratories: arrays, and what lies beside the traces (clock, stimulus table, pixels, who was recorded).

Numbers come from npy, npz, csv and MATLAB files: no pickle, nothing allocated on a header's word. A stimulus table has
one row per presentation, in seconds on the recording's clock. What lies beside the traces is a setting (a path, or the
rate), or else a file of a fixed name in the recording's folder: ``timestamps.npy`` (or npz, csv, mat), ``stimuli.csv``,
``pixels`` (a folder), ``recording.json``.
"""

from __future__ import annotations

import json
import re
import tempfile
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from poyo_ssl import protocol
from poyo_ssl.config import CompanionPaths
from poyo_ssl.data.hdf5 import check_size, get_dataset, open_hdf5, read_numbers
from poyo_ssl.data.intervals import merge
from poyo_ssl.data.recording import METADATA_FIELDS, RecordingMetadata
from poyo_ssl.data.stimuli import MOVIE_PREFIX, Presentations
from poyo_ssl.errors import ConfigError, RecordingError, suggest
from poyo_ssl.sources.base import Notes, clean_name, first_row, name_rows, require
from poyo_ssl.sources.coding import GRATINGS, SPONTANEOUS, code_feature, count_occurrences

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".npy", ".npz", ".csv", ".mat")
FIX_FILE = "the file is damaged; copy or write it again"
# What numpy raises on a damaged header, which it reads as Python text.
HEADER_DAMAGE = (
    *(ValueError, OSError, EOFError, TypeError, SyntaxError, RecursionError, MemoryError),
    *(zlib.error, tokenize.TokenError),
)
ZIP_DAMAGE = (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)
MATLAB_NUMBERS = (
    "double",
    "single",
    "logical",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
)


def load_array(path: Path, key: str | None = None) -> NDArray:
    """Return one numeric array of a file, memory-mapped where it is a npy file.

    A csv file has rows by lines; a line of names is skipped. `key` names the array in a npz or mat file; it is not
    needed if there is only one.
    """
    require(path.is_file(), f"no file {path}", fix="check the path")
    readers: dict[str, Callable[[], NDArray]] = {
        ".npy": lambda: load_npy(path),
        ".npz": lambda: _load_npz(path, key),
        ".csv": lambda: _load_csv(path),
        ".mat": lambda: _load_mat73(path, key) if h5py.is_hdf5(path) else _load_mat(path, key),
    }
    require(path.suffix.lower() in readers, f"{path} is not a file of arrays", ", ".join(SUFFIXES))
    array = readers[path.suffix.lower()]()
    require(array.dtype.kind in "biuf", f"{path} holds values of type {array.dtype}", "real numbers")
    return array


def _incomplete(what: Path | str, kind: str, error: BaseException) -> RecordingError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return RecordingError(f"{what} is not a complete {kind} ({reason})", fix=FIX_FILE)


def load_npy(path: Path) -> NDArray:
    """Memory-map a npy file, which numpy checks against its size."""
    require(path.is_file(), f"no file {path}", fix="check the path")
    try:
        with path.open("rb") as stream:
            shape, dtype = read_npy_header(stream, str(path))
        if 0 in shape:
            return np.zeros(shape, dtype)
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, OverflowError) as error:
        raise _incomplete(path, "npy file", error) from None


def read_npy_header(stream: Any, what: str, *, pickled: bool = False) -> tuple[tuple[int, ...], np.dtype]:
    """Return shape and type of the npy data in a stream; refuse pickled objects unless they are expected."""
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        with warnings.catch_warnings():
            # Headers of Python 2 are read with a warning.
            warnings.simplefilter("ignore")
            shape, _, dtype = read(stream)
    except HEADER_DAMAGE as error:
        raise _incomplete(what, "npy file", error) from None
    problem = f"{what} holds pickled objects, which can run code"
    require(pickled or not dtype.hasobject, problem, fix="save it as an array of numbers")
    require(all(size >= 0 for size in shape), f"{what} has shape {shape}", fix=FIX_FILE)
    return shape, dtype


def _pick(path: Path, key: str | None, names: list[str]) -> str:
    """Return the array to read among those that a file has."""
    allowed = ", ".join(names[:20])
    if key is not None:
        require(key in names, f"{path} has no array '{key}'{suggest(key, names)}", allowed or "it has none")
        return key
    require(names, f"{path} holds no arrays", fix="save an array of numbers in it")
    require(len(names) == 1, f"{path} holds several arrays", allowed, "say which with --key")
    return names[0]


def list_npz(path: Path) -> list[str]:
    """Return the names of the arrays in a npz file, sorted."""
    require(path.is_file(), f"no file {path}", fix="check the path")
    try:
        with zipfile.ZipFile(path) as archive:
            return sorted(name.removesuffix(".npy") for name in archive.namelist())
    except ZIP_DAMAGE as error:
        raise _incomplete(path, "npz file", error) from None


def _load_npz(path: Path, key: str | None) -> NDArray:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {item.filename.removesuffix(".npy"): item for item in archive.infolist()}
            name = _pick(path, key, sorted(members))
            what = f"array '{name}' of {path}"
            with archive.open(members[name]) as stream:
                shape, dtype = read_npy_header(stream, what)
            check_size(shape, dtype, what, stored=members[name].compress_size)
            with archive.open(members[name]) as stream:
                return np.lib.format.read_array(stream, allow_pickle=False)
    except ZIP_DAMAGE as error:
        raise _incomplete(path, "npz file", error) from None


def read_csv(path: Path, **options: Any) -> pd.DataFrame:
    """Read a file of comma-separated values with pandas."""
    import pandas as pd

    try:
        return pd.read_csv(path, encoding="utf-8-sig", **options)
    except (ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RecordingError(f"{path} is not a table ({reason})", fix="write it as comma-separated values") from None


def _load_csv(path: Path) -> NDArray:
    import pandas as pd

    with path.open(encoding="utf-8-sig", errors="replace") as stream:
        has_names = not all(_is_number(cell) for cell in stream.readline(1 << 20).split(","))
    table = read_csv(path, header=0 if has_names else None, low_memory=False)
    require(not table.empty, f"{path} has a line of names and no numbers", fix="write the numbers below it")
    for place in range(table.shape[1]):
        column = table.iloc[:, place]
        if column.dtype.kind in "biuf":
            continue
        text = pd.to_numeric(column, errors="coerce").isna() & column.notna()
        row = int(text.to_numpy().argmax())
        where = f"'{str(column.iloc[row])[:40]}' in row {row + 1} of the numbers, column {place + 1}"
        raise RecordingError(f"{path}: {where}", allowed="numbers below one line of names")
    return table.to_numpy(np.float64)


def is_whole(values: NDArray) -> bool:
    """Tell whether all are finite whole numbers."""
    return values.dtype.kind in "biuf" and bool(np.isfinite(values).all() and (values % 1 == 0).all())


def _is_number(cell: str) -> bool:
    try:
        float(cell.strip() or "nan")
    except ValueError:
        return False
    return True


def _load_mat(path: Path, key: str | None) -> NDArray:
    from scipy import io

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kinds = {name: (shape, kind) for name, shape, kind in io.whosmat(path)}
            name = _pick(path, key, sorted(name for name, (_, kind) in kinds.items() if kind in MATLAB_NUMBERS))
            check_size(kinds[name][0], np.dtype(np.float64), f"array '{name}' of {path}", stored=path.stat().st_size)
            return np.asarray(io.loadmat(path, variable_names=[name])[name])
    except RecordingError:
        raise
    except Exception as error:
        # scipy's reader trusts its input: on a damaged file it raises whatever its arithmetic happens to meet.
        raise _incomplete(path, "MATLAB file", error) from None


def _load_mat73(path: Path, key: str | None) -> NDArray:
    with open_hdf5(path) as file:
        dataset = file[_pick(path, key, sorted(name for name in file if get_dataset(file, name) is not None))]
        # MATLAB's first axis is HDF5's last.
        return read_numbers(dataset, dataset.ndim).T


# Other spellings of the columns of a stimulus table.
ALIASES = {
    "start": ("start_time", "onset"),
    "stop": ("stop_time", "end", "end_time", "offset"),
    "name": ("stimulus", "stimulus_name"),
    "orientation": ("orientation_in_degrees", "direction"),
    "spatial_frequency": ("spatial_frequency_in_cycles_per_degree",),
    "temporal_frequency": ("temporal_frequency_in_hz",),
    "blank_sweep": ("is_blank_sweep",),
}
# What the stimuli whose name begins so must say of each presentation to be decoded.
NEEDED = {"drifting_gratings": "orientation", MOVIE_PREFIX: "frame"}


@dataclass(frozen=True)
class StimulusTable:
    """Rows of all stimuli of one recording, before they meet its clock."""

    start: NDArray[np.float64]  # (K,) s
    stop: NDArray[np.float64]  # (K,) s
    name: NDArray[np.str_]  # (K,)
    columns: Mapping[str, NDArray]  # (K,) each; NaN or an empty text where a column is not the row's
    what: str  # File, for messages

    def __post_init__(self) -> None:
        start, stop = self.start, self.stop
        if (row := first_row(~(np.isfinite(start) & np.isfinite(stop) & (stop >= start)))) is not None:
            problem = f"{self.what}: row {row} ({self.name[row]}) runs from {start[row]:g} s to {stop[row]:g} s"
            raise RecordingError(problem, allowed="finite seconds, stop not before start")

    def place(
        self, timestamps: NDArray[np.float64], movie_frames: Mapping[str, int], notes: Notes
    ) -> tuple[dict[str, Presentations], dict[str, NDArray[np.float64]]]:
        """Put the rows on a recording's clock: presentations (not of ``spontaneous``) and epochs in s, by stimulus.

        `movie_frames` are the numbers of frames of the movies whose pixels are known: a movie without the column
        `frame` has one row per repeat, over which its frames are laid evenly.
        """
        step = float(np.median(np.diff(timestamps)))
        inside = (self.start >= timestamps[0] - step) & (self.stop <= timestamps[-1] + 1.5 * step)
        if len(inside) and not inside.any():
            span = f"({self.start.min():g} to {self.stop.max():g} s) lies within the recording"
            raise RecordingError(
                f"{self.what}: none of {len(inside)} rows {span} ({timestamps[0]:g} to {timestamps[-1]:g} s)",
                fix="give the table on the recording's clock, in seconds",
            )
        if not inside.all():
            outside = np.flatnonzero(~inside)
            notes.add(f"{self.what}: {name_rows(outside)} reach outside the recording: left out")
        if inside.any() and self.stop[inside].max() < timestamps[0] + 0.1 * (timestamps[-1] - timestamps[0]):
            notes.add(f"{self.what}: all stimuli lie in the first tenth of the recording; is the table in seconds?")
        stimuli, epochs = {}, {}
        for raw in dict.fromkeys(self.name[inside].tolist()):
            rows = np.flatnonzero(inside & (self.name == raw))
            rows = rows[np.argsort(self.start[rows], kind="stable")]
            name = SPONTANEOUS if raw == SPONTANEOUS else clean_name(raw)
            if name != raw:
                notes.add(f"{self.what}: stimulus '{raw}' is called '{name}'")
            require(name not in epochs, f"{self.what}: two stimuli would be called '{name}'", fix="rename one of them")
            start, stop = self.start[rows], self.stop[rows]
            epochs[name] = merge(np.stack([start, stop], axis=1), gap_s=protocol.BLOCK_PAUSE_S)
            if name == SPONTANEOUS:
                continue
            overlap = np.flatnonzero(start[1:] < stop[:-1] - step)
            if len(overlap):
                notes.add(f"{name}: {len(overlap)} presentations begin before the one before them ends")
            columns = {key: values[rows] for key, values in self.columns.items() if _has_any(values[rows])}
            if "frame" not in columns and name in movie_frames:
                start, stop, columns = _lay_frames(name, start, stop, columns, movie_frames[name])
            columns = _finish_columns(name, columns, self.what, len(start), movie_frames.get(name))
            stimuli[name] = Presentations.from_times(name, timestamps, start, stop, columns)
            needed = next((key for prefix, key in NEEDED.items() if name.startswith(prefix)), None)
            if needed is not None and needed not in columns:
                notes.add(f"{name} has no '{needed}' in {self.what}: it cannot be decoded")
        return stimuli, epochs


def read_table(path: Path) -> StimulusTable:
    """Read a csv table: `start`, `stop` (seconds), `name`, and any other columns."""
    require(path.is_file(), f"no stimulus table {path}", fix="check the path")
    table = read_csv(path, skipinitialspace=True)
    return make_table({str(key): table[key].to_numpy() for key in table}, str(path))


def make_table(columns: Mapping[str, NDArray], what: str) -> StimulusTable:
    """Make a table from columns by name, in any of their known spellings."""
    spelled = {key.strip().lower(): np.asarray(values) for key, values in columns.items()}
    for wanted, others in ALIASES.items():
        present = [key for key in (wanted, *others) if key in spelled]
        if present:
            spelled[wanted] = spelled.pop(present[0])
    for wanted in ("start", "stop", "name"):
        problem = f"{what} has no column '{wanted}'{suggest(wanted, spelled)} (found: {', '.join(columns)[:80]})"
        require(wanted in spelled, problem, "start, stop (seconds), name, and any others, with commas between them")
    require(len(spelled["start"]), f"{what} has no rows", fix="add the stimuli, or leave the table out")
    start, stop = (_seconds(spelled.pop(key), key, what) for key in ("start", "stop"))
    name = np.array([str(value).strip() for value in spelled.pop("name")], dtype=np.str_)
    return StimulusTable(start, stop, name, {key: _plain(values) for key, values in spelled.items()}, what)


def _seconds(values: NDArray, key: str, what: str) -> NDArray[np.float64]:
    import pandas as pd

    numbers = pd.to_numeric(pd.Series(values), errors="coerce").to_numpy(np.float64)
    if (row := first_row(~np.isfinite(numbers))) is not None:
        raise RecordingError(f"{what}: '{key}' of row {row} is '{values[row]}'", allowed="seconds")
    return numbers


def _plain(values: NDArray) -> NDArray:
    """Return a column as numbers, or else as text."""
    if values.dtype.kind in "biuf":
        return values
    import pandas as pd

    series = pd.Series(values)
    words = series.dropna().astype(str).str.strip().str.lower()
    if len(words) and words.isin(["true", "false"]).all():
        return (series.astype(str).str.strip().str.lower() == "true").to_numpy(bool)
    numbers = pd.to_numeric(series, errors="coerce")
    if numbers.notna().sum() == series.notna().sum():
        return numbers.to_numpy(np.float64)
    return np.array(["" if missing else str(value) for value, missing in zip(values, series.isna(), strict=True)])


def _has_any(values: NDArray) -> bool:
    return bool((values != "").any()) if values.dtype.kind == "U" else bool((~np.isnan(values.astype(float))).any())


def _lay_frames(
    name: str, start: NDArray[np.float64], stop: NDArray[np.float64], columns: dict[str, NDArray], num_frames: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], dict[str, NDArray]]:
    """Turn one row per repeat into one per movie frame."""
    require((stop > start).all(), f"{name}: a repeat lasts no time", fix="write when it stopped")
    edges = np.arange(num_frames + 1) / num_frames
    spans = start[:, None] + edges * (stop - start)[:, None]
    columns = {key: np.repeat(values, num_frames) for key, values in columns.items()}
    columns["frame"] = np.tile(np.arange(num_frames), len(start))
    columns.setdefault("repeat", np.repeat(np.arange(len(start)), num_frames))
    return spans[:, :-1].reshape(-1), spans[:, 1:].reshape(-1), columns


def _finish_columns(
    name: str, columns: Mapping[str, NDArray], what: str, length: int, num_images: int | None
) -> dict[str, NDArray]:
    """Give the columns of one stimulus the types that the tasks expect, and add those that follow from others.

    Gratings get `blank_sweep` (True where the orientation is missing) and ids of orientation and temporal frequency;
    movies get `repeat`, counted per frame, if the table has none.
    """
    done = dict(columns)
    blank = done.get("blank_sweep", np.zeros(length))
    flags = blank.dtype.kind != "U" and np.isin(np.nan_to_num(blank.astype(float)), (0, 1)).all()
    require(flags, f"{what}: blank_sweep of {name} is not 0 or 1", "0, 1 or empty")
    blank = np.nan_to_num(blank.astype(float)).astype(bool)
    for key in ("frame", "repeat"):
        if key in done:
            require(is_whole(done[key]), f"{what}: '{key}' of {name} is not a whole number everywhere", "0, 1, 2, ...")
            done[key] = done[key].astype(np.int64)
    if "frame" in done:
        frame, is_movie = done["frame"], name.startswith(MOVIE_PREFIX)
        wrong = (frame < (0 if is_movie else -1)) | (frame >= (num_images or np.iinfo(np.int64).max))
        if (row := first_row(wrong)) is not None:
            problem = f"{what}: presentation {row} of {name} shows frame {frame[row]}"
            allowed = f"0 to {num_images - 1}" if num_images else "0 or more"
            raise RecordingError(problem, allowed=allowed, fix="count from 0, or give the stimulus that was shown")
        if is_movie and "repeat" not in done:
            done["repeat"] = count_occurrences(frame)
    if "orientation" in done:
        orientation = done["orientation"]
        numbers = orientation.dtype.kind != "U"
        require(numbers, f"{what}: orientation of {name} is not a number everywhere", fix="give degrees")
        done["blank_sweep"] = blank | ~np.isfinite(orientation.astype(float))
        for key, usual in GRATINGS["drifting_gratings"].items():
            if key in done and done[key].dtype.kind != "U":
                values = done[key].astype(float)
                shown = ~done["blank_sweep"] & np.isfinite(values)
                levels = np.asarray(usual) if np.isin(values[shown], usual).all() else np.unique(values[shown])
                done |= code_feature(key, values, shown, levels)
    elif "blank_sweep" in done:
        done["blank_sweep"] = blank
    return done


PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif")
VIDEOS = (".mp4", ".mov", ".avi", ".mkv")
MAX_PIXELS = 1 << 26  # Of one picture: eight times the largest screens
MAX_MOVIE_BYTES = 32 << 30


def find_pixels(folder: Path) -> dict[str, Path]:
    """Return the stimuli of a folder: ``NAME.npy``, ``NAME.mp4``, ``NAME.gif`` or a folder ``NAME`` of pictures."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir() or path.suffix.lower() in (".npy", ".gif", *VIDEOS):
            name = path.name if path.is_dir() else path.stem
            problem = f"{path} and {found.get(name)} are both stimulus '{name}'"
            require(name not in found, problem, fix="remove one of them")
            found[name] = path
    return found


def read_pixels(path: Path) -> NDArray[np.uint8]:
    """Return the pixels of one stimulus ``(frames, height, width)``, on disk (mapped) where they are many.

    Colours become luma (ITU-R 601). Frames of a gif or folder must have one size; pictures of a folder are taken in the
    order of the numbers in their names.
    """
    if path.is_dir():

        def place(picture: Path) -> tuple[list[int], str]:
            return [int(number) for number in re.findall(r"\d+", picture.stem)], picture.name

        pictures = [item for item in path.iterdir() if item.suffix.lower() in PICTURES]
        return _collect(path, _read_pictures(sorted(pictures, key=place)))
    require(path.is_file(), f"no file {path}", fix="check the path")
    suffix = path.suffix.lower()
    if suffix == ".gif":
        return _collect(path, _read_pictures([path]))
    if suffix in VIDEOS:
        return _collect(path, _read_video(path))
    kinds = f"{', '.join(('.npy', '.gif', *VIDEOS))} or a folder of pictures"
    require(suffix == ".npy", f"{path} is not a stimulus", kinds)
    pixels = load_npy(path)
    if pixels.ndim == 2:
        pixels = pixels[None]
    fits = pixels.dtype == np.uint8 and pixels.ndim == 3 and 0 not in pixels.shape
    require(fits, f"{path} holds {pixels.dtype} of shape {pixels.shape}", "uint8 of (frames, height, width)")
    return pixels


def _check_pixels(path: Path, width: int, height: int) -> None:
    require(width * height <= MAX_PIXELS, f"{path} claims {width} x {height} pixels", f"{MAX_PIXELS} in all")


def _read_pictures(paths: list[Path]) -> Iterator[NDArray[np.uint8]]:
    """Give every frame of every file."""
    from PIL import Image, ImageSequence

    for path in paths:
        try:
            with warnings.catch_warnings():
                # Pillow warns of pictures that would fill the memory.
                warnings.simplefilter("error")
                with Image.open(path) as picture:
                    _check_pixels(path, *picture.size)
                    for frame in ImageSequence.Iterator(picture):
                        grey = not frame.mode.startswith(("I", "F"))
                        require(grey, f"{path} has pixels of mode {frame.mode}", "8 bits")
                        yield np.asarray(frame.convert("L"))
        except RecordingError:
            raise
        except Exception as error:
            # Pillow's readers raise whatever a damaged file makes them meet.
            raise _incomplete(path, "picture", error) from None


def _read_video(path: Path) -> Iterator[NDArray[np.uint8]]:
    try:
        import av
    except ImportError:
        raise ConfigError(f"{path} needs PyAV, which is not installed", fix="pip install 'poyo-ssl[video]'") from None
    try:
        with av.open(str(path), options={"protocol_whitelist": "file"}) as container:
            require(container.streams.video, f"{path} has no video", fix=FIX_FILE)
            stream = container.streams.video[0]
            _check_pixels(path, stream.width, stream.height)
            decoded = 0
            for frame in container.decode(stream):
                decoded += 1
                # Full range, whatever range the codec keeps.
                grey = frame.reformat(format="gray", dst_color_range="JPEG").to_ndarray()
                yield np.asarray(grey, np.uint8)
            complete = decoded >= stream.frames
            require(complete, f"{path} ends after {decoded} of {stream.frames} frames", fix=FIX_FILE)
    except (av.FFmpegError, ValueError) as error:
        raise _incomplete(path, "video", error) from None


def _collect(path: Path, frames: Iterable[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Stack frames in a temporary file, which vanishes with the array."""
    shape: tuple[int, ...] | None = None
    count = 0
    with tempfile.TemporaryFile() as stream:
        for frame in frames:
            shape = shape or frame.shape
            sizes = f"{frame.shape[0]} x {frame.shape[1]}, not {shape[0]} x {shape[1]}"
            require(frame.shape == shape, f"{path}: picture {count} is {sizes}", fix="give all the same size")
            fits = (count + 1) * frame.size <= MAX_MOVIE_BYTES
            require(fits, f"{path} has more than {count} frames of {frame.size} pixels", fix="make it smaller")
            stream.write(np.ascontiguousarray(frame).tobytes())
            count += 1
        if shape is None:
            raise RecordingError(f"{path} holds no picture", allowed=", ".join(PICTURES))
        stream.flush()
        return np.memmap(stream, np.uint8, "r", shape=(count, *shape))


CLOCK, TABLE, PIXELS, METADATA = "timestamps", "stimuli.csv", "pixels", "recording.json"
NUMBERS = ("age_days", "depth_um")


@dataclass(frozen=True)
class Companions(CompanionPaths):
    """Clock, stimuli, pixels and metadata of traces: files of a fixed name beside them, or the given ones."""

    def files(self, folder: Path) -> list[Path]:
        """Return those that are there."""
        tables = self._find(folder, "stimuli", TABLE), self._find(folder, "metadata", METADATA)
        pixels = self._find(folder, "pixels", PIXELS)
        inside = sorted(item for item in pixels.rglob("*") if item.is_file()) if pixels else []
        return [path for path in (self._clock_file(folder), *tables) if path is not None] + inside

    def _find(self, folder: Path, setting: str, name: str) -> Path | None:
        given: Path | None = getattr(self, setting)
        require(given is None or given.exists(), f"no {given}", fix=f"correct --{setting}")
        return given or (folder / name if (folder / name).exists() else None)

    def _clock_file(self, folder: Path) -> Path | None:
        if self.timestamps is not None or self.rate_hz is not None:
            return self.timestamps
        return next((path for suffix in SUFFIXES if (path := folder / f"{CLOCK}{suffix}").is_file()), None)

    def read_clock(self, folder: Path) -> NDArray[np.float64] | None:
        """Return ``(T,)`` seconds, or None if there is no file of timestamps."""
        path = self._clock_file(folder)
        if path is None:
            return None
        values = load_array(path)
        single = values.size == max(values.shape, default=0)
        require(single, f"{path} holds an array of shape {values.shape}", "one second per frame", "save one column")
        return np.asarray(values, np.float64).reshape(-1)

    def read_stimuli(
        self, folder: Path, timestamps: NDArray[np.float64], notes: Notes
    ) -> tuple[dict[str, Presentations], dict[str, NDArray[np.float64]]]:
        """Return presentations and epochs; none, with a note, if there is no table."""
        path = self._find(folder, "stimuli", TABLE)
        if path is None:
            notes.add(f"no stimulus table: nothing can be decoded (give --stimuli or {TABLE})")
            return {}, {}
        movie_frames = {name: len(pixels) for name, pixels in self.read_movies(folder)}
        stimuli, epochs = read_table(path).place(timestamps, movie_frames, notes)
        for name in movie_frames:
            if name not in stimuli:
                notes.add(f"pixels of '{name}', which the table does not mention")
        return stimuli, epochs

    def read_movies(self, folder: Path) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        """Give the pixels of every stimulus by name."""
        pixels = self._find(folder, "pixels", PIXELS)
        if pixels is None:
            return
        require(pixels.is_dir(), f"{pixels} is a file", "a folder with one item per stimulus", "move it there")
        for name, path in find_pixels(pixels).items():
            yield clean_name(name), read_pixels(path)

    def read_metadata(self, folder: Path, defaults: Mapping[str, Any]) -> RecordingMetadata:
        """Return `defaults`, overruled by the metadata file."""
        path = self._find(folder, "metadata", METADATA)
        return RecordingMetadata(**{**defaults, **(read_metadata_file(path) if path else {})})


def read_metadata_file(path: Path) -> dict[str, Any]:
    """Return the fields of a ``recording.json``: text, or numbers for age and depth."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise RecordingError(f"{path} is not JSON ({error})", fix='write it as {"subject_id": "mouse7"}') from None
    require(isinstance(values, dict), f"{path} holds a {type(values).__name__}", "fields by name")
    for key, value in values.items():
        near = suggest(key, METADATA_FIELDS)
        require(key in METADATA_FIELDS, f"{path} has an unknown field '{key}'{near}", ", ".join(METADATA_FIELDS))
        kind, wanted = ("a number", (int, float)) if key in NUMBERS else ("text", str)
        fits = isinstance(value, wanted) and not isinstance(value, bool) and "\0" not in str(value)
        require(fits, f"{path}: '{key}' is {json.dumps(value)[:80]}", kind)
    if "depth_um" in values:
        require(abs(values["depth_um"]) < 1e6, f"{path}: 'depth_um' is {values['depth_um']}", "micrometres")
        values["depth_um"] = round(values["depth_um"])
    return values


def check_line(metadata: RecordingMetadata, notes: Notes) -> None:
    """Note a Cre line that is not one of the Allen's 13, by which neurons are selected per line."""
    line = metadata.cre_line
    if line not in protocol.CRE_LINES:
        known = f"is not one of the Allen's 13{suggest(line, protocol.CRE_LINES)}"
        notes.add(f"Cre line '{line}' {known}; selection per line does not know it")
