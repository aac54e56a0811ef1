"""What a laboratory keeps beside its traces: clock, stimulus table, stimulus pixels, and who was recorded.

Every one is a setting (a path, or the rate), or else a file of a fixed name in the recording's folder:
``timestamps.npy`` (or npz, csv, mat), ``stimuli.csv``, ``pixels`` (a folder), ``recording.json``.
"""

from __future__ import annotations

import json
import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poyo_ssl import protocol
from poyo_ssl.config import CompanionPaths
from poyo_ssl.data.recording import METADATA_FIELDS, RecordingMetadata
from poyo_ssl.data.stimuli import Presentations
from poyo_ssl.errors import ConfigError, RecordingError, suggest
from poyo_ssl.sources.array_files import SUFFIXES, load_array, load_npy
from poyo_ssl.sources.base import clean_name
from poyo_ssl.sources.tables import read_table

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif")
VIDEOS = (".mp4", ".mov", ".avi", ".mkv")
MAX_PIXELS = 1 << 26
"""Of one picture: eight times the largest screens."""

MAX_MOVIE_BYTES = 32 << 30
FIX = "the file is damaged; copy or write it again"


def find_pixels(folder: Path) -> dict[str, Path]:
    """Return the stimuli of a folder: ``NAME.npy``, ``NAME.mp4``, ``NAME.gif`` or a folder ``NAME`` of pictures.

    Raises
    ------
    RecordingError
        If two of them have the same name.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir() or path.suffix.lower() in (".npy", ".gif", *VIDEOS):
            name = path.name if path.is_dir() else path.stem
            if name in found:
                raise RecordingError(f"{path} and {found[name]} are both stimulus '{name}'", fix="remove one of them")
            found[name] = path
    return found


def read_pixels(path: Path) -> NDArray[np.uint8]:
    """Return the pixels of one stimulus, on disk (mapped) where they are many.

    Colours become luma (ITU-R 601). Frames of a gif or folder must have one size; pictures of a folder are taken in the
    order of the numbers in their names.

    Raises
    ------
    RecordingError
        If it is missing, damaged, has no picture, several sizes, or more than 8 bits per pixel.
    ConfigError
        If it is a video and PyAV is not installed.

    Examples
    --------
    >>> from PIL import Image
    >>> folder = Path(tempfile.mkdtemp())
    >>> for number in (2, 10):
    ...     Image.new("L", (4, 3), number).save(folder / f"frame{number}.png")
    >>> read_pixels(folder)[:, 0, 0].tolist()
    [2, 10]
    """
    if path.is_dir():
        return _collect(path, _read_pictures(_sort_pictures(path)))
    if not path.is_file():
        raise RecordingError(f"no file {path}", fix="check the path")
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return _read_npy(path)
    if suffix == ".gif":
        return _collect(path, _read_pictures([path]))
    if suffix in VIDEOS:
        return _collect(path, _read_video(path))
    kinds = ", ".join((".npy", ".gif", *VIDEOS))
    raise RecordingError(f"{path} is not a stimulus", allowed=f"{kinds} or a folder of pictures", fix="convert it")


def _read_npy(path: Path) -> NDArray[np.uint8]:
    pixels = load_npy(path)
    if pixels.ndim == 2:
        pixels = pixels[None]
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or 0 in pixels.shape:
        raise RecordingError(
            f"{path} holds {pixels.dtype} of shape {pixels.shape}",
            allowed="uint8 of (frames, height, width)",
            fix="convert it to 8-bit grey",
        )
    return pixels


def _sort_pictures(folder: Path) -> list[Path]:
    def place(path: Path) -> tuple[list[int], str]:
        return [int(number) for number in re.findall(r"\d+", path.stem)], path.name

    return sorted((path for path in folder.iterdir() if path.suffix.lower() in PICTURES), key=place)


def _read_pictures(paths: list[Path]) -> Iterator[NDArray[np.uint8]]:
    """Give every frame of every file."""
    from PIL import Image, ImageSequence

    for path in paths:
        try:
            with warnings.catch_warnings():
                # Pillow warns of pictures that would fill the memory.
                warnings.simplefilter("error")
                with Image.open(path) as picture:
                    if picture.size[0] * picture.size[1] > MAX_PIXELS:
                        raise RecordingError(
                            f"{path} claims {picture.size[0]} x {picture.size[1]} pixels",
                            allowed=f"{MAX_PIXELS} in all",
                            fix="make it smaller",
                        )
                    for frame in ImageSequence.Iterator(picture):
                        if frame.mode.startswith(("I", "F")):
                            raise RecordingError(
                                f"{path} has pixels of mode {frame.mode}",
                                allowed="8 bits",
                                fix="convert it to 8-bit grey",
                            )
                        yield np.asarray(frame.convert("L"))
        except RecordingError:
            raise
        except Exception as error:
            # Pillow's readers raise whatever a damaged file makes them meet.
            text = " ".join(str(error).split())[:200]
            raise RecordingError(f"{path} is not a complete picture ({text})", fix=FIX) from None


def _read_video(path: Path) -> Iterator[NDArray[np.uint8]]:
    try:
        import av
    except ImportError:
        raise ConfigError(f"{path} needs PyAV, which is not installed", fix="pip install 'poyo-ssl[video]'") from None
    try:
        with av.open(str(path), options={"protocol_whitelist": "file"}) as container:
            if not container.streams.video:
                raise RecordingError(f"{path} has no video", fix=FIX)
            stream = container.streams.video[0]
            if stream.width * stream.height > MAX_PIXELS:
                raise RecordingError(
                    f"{path} claims {stream.width} x {stream.height} pixels",
                    allowed=f"{MAX_PIXELS} in all",
                    fix="make it smaller",
                )
            decoded = 0
            for frame in container.decode(stream):
                decoded += 1
                # Full range, whatever range the codec keeps.
                grey = frame.reformat(format="gray", dst_color_range="JPEG").to_ndarray()
                yield np.asarray(grey, np.uint8)
            if decoded < stream.frames:
                raise RecordingError(f"{path} ends after {decoded} of {stream.frames} frames", fix=FIX)
    except (av.FFmpegError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise RecordingError(f"{path} is not a complete video ({text})", fix=FIX) from None


def _collect(path: Path, frames: Iterable[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Stack frames in a temporary file, which vanishes with the array."""
    shape: tuple[int, ...] | None = None
    count = 0
    with tempfile.TemporaryFile() as stream:
        for frame in frames:
            shape = shape or frame.shape
            if frame.shape != shape:
                raise RecordingError(
                    f"{path}: picture {count} is {frame.shape[0]} x {frame.shape[1]}, not {shape[0]} x {shape[1]}",
                    fix="give all the same size",
                )
            if (count + 1) * frame.size > MAX_MOVIE_BYTES:
                raise RecordingError(
                    f"{path} has more than {count} frames of {frame.size} pixels", fix="make it smaller"
                )
            stream.write(np.ascontiguousarray(frame).tobytes())
            count += 1
        if shape is None:
            raise RecordingError(f"{path} holds no picture", allowed=", ".join(PICTURES), fix="put pictures into it")
        stream.flush()
        return np.memmap(stream, np.uint8, "r", shape=(count, *shape))


CLOCK, TABLE, PIXELS, METADATA = "timestamps", "stimuli.csv", "pixels", "recording.json"
NUMBERS = ("age_days", "depth_um")


@dataclass(frozen=True)
class Companions(CompanionPaths):
    """Clock, stimuli, pixels and metadata of traces: files of a fixed name beside them, or the given ones."""

    def files(self, folder: Path) -> list[Path]:
        """Return those that are there."""
        found = [
            self._clock_file(folder),
            self._find(folder, "stimuli", TABLE),
            self._find(folder, "metadata", METADATA),
        ]
        pixels = self._find(folder, "pixels", PIXELS)
        inside = sorted(item for item in pixels.rglob("*") if item.is_file()) if pixels else []
        return [path for path in found if path is not None] + inside

    def _find(self, folder: Path, setting: str, name: str) -> Path | None:
        given: Path | None = getattr(self, setting)
        if given is not None:
            if not given.exists():
                raise RecordingError(f"no {given}", fix=f"correct --{setting}")
            return given
        return folder / name if (folder / name).exists() else None

    def _clock_file(self, folder: Path) -> Path | None:
        if self.timestamps is not None or self.rate_hz is not None:
            return self.timestamps
        return next((path for suffix in SUFFIXES if (path := folder / f"{CLOCK}{suffix}").is_file()), None)

    def read_clock(self, folder: Path) -> NDArray[np.float64] | None:
        """Return ``(T,)`` seconds, or None if there is no file of timestamps.

        Raises
        ------
        RecordingError
            If the file is damaged or holds something else.
        """
        path = self._clock_file(folder)
        if path is None:
            return None
        values = load_array(path)
        if values.size != max(values.shape, default=0):
            raise RecordingError(
                f"{path} holds an array of shape {values.shape}", allowed="one second per frame", fix="save one column"
            )
        return np.asarray(values, np.float64).reshape(-1)

    def make_clock(self, num_frames: int, rate_hz: float) -> NDArray[np.float64]:
        """Return ``(num_frames,)`` seconds from 0 on."""
        return np.arange(num_frames) / rate_hz

    def read_stimuli(
        self, folder: Path, timestamps: NDArray[np.float64], warnings: list[str]
    ) -> tuple[dict[str, Presentations], dict[str, NDArray[np.float64]]]:
        """Return presentations and epochs; none, with a warning, if there is no table.

        Raises
        ------
        RecordingError
            If table or pixels are damaged or do not belong to the recording.
        """
        path = self._find(folder, "stimuli", TABLE)
        if path is None:
            warnings.append(f"no stimulus table: nothing can be decoded (give --stimuli or {TABLE})")
            return {}, {}
        movie_frames = {name: len(pixels) for name, pixels in self.read_movies(folder)}
        stimuli, epochs = read_table(path).place(timestamps, movie_frames, warnings)
        for name in movie_frames:
            if name not in stimuli:
                warnings.append(f"pixels of '{name}', which the table does not mention")
        return stimuli, epochs

    def read_movies(self, folder: Path) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        """Give the pixels of every stimulus by name.

        Raises
        ------
        RecordingError
            If one is damaged.
        """
        pixels = self._find(folder, "pixels", PIXELS)
        if pixels is None:
            return
        if not pixels.is_dir():
            raise RecordingError(
                f"{pixels} is a file", allowed="a folder with one item per stimulus", fix="move it there"
            )
        for name, path in find_pixels(pixels).items():
            yield clean_name(name), read_pixels(path)

    def read_metadata(self, folder: Path, defaults: dict[str, Any]) -> RecordingMetadata:
        """Return `defaults`, overruled by the metadata file.

        Raises
        ------
        RecordingError
            If the file is damaged or has an unknown field.
        """
        path = self._find(folder, "metadata", METADATA)
        return RecordingMetadata(**(defaults | (read_metadata_file(path) if path else {})))


def read_metadata_file(path: Path) -> dict[str, Any]:
    """Return the fields of a ``recording.json``.

    Raises
    ------
    RecordingError
        If it is not JSON, has an unknown field, or a field's value is not text (or a number, for age and depth).

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "recording.json"
    >>> _ = path.write_text('{"subject_id": "mouse7", "depth_um": 175}')
    >>> read_metadata_file(path)
    {'subject_id': 'mouse7', 'depth_um': 175}
    """
    try:
        values = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise RecordingError(f"{path} is not JSON ({error})", fix="correct it") from None
    if not isinstance(values, dict):
        raise RecordingError(f"{path} holds a {type(values).__name__}", allowed="fields by name", fix="correct it")
    for key, value in values.items():
        if key not in METADATA_FIELDS:
            raise RecordingError(
                f"{path} has an unknown field '{key}'{suggest(key, METADATA_FIELDS)}",
                allowed=", ".join(METADATA_FIELDS),
                fix="rename or remove it",
            )
        wanted = (int, float) if key in NUMBERS else str
        if isinstance(value, bool) or not isinstance(value, wanted) or "\0" in str(value):
            kind = "a number" if key in NUMBERS else "text"
            raise RecordingError(f"{path}: '{key}' is {json.dumps(value)[:80]}", allowed=kind, fix="correct it")
    if "depth_um" in values:
        if not abs(values["depth_um"]) < 1e6:
            raise RecordingError(f"{path}: 'depth_um' is {values['depth_um']}", allowed="micrometres", fix="correct it")
        values["depth_um"] = round(values["depth_um"])
    return values


def check_line(metadata: RecordingMetadata) -> list[str]:
    """Return a warning if the Cre line is not one of the Allen's 13, by which neurons are selected per line.

    Examples
    --------
    >>> check_line(RecordingMetadata("m", cre_line="Sst-IRES-Cre"))
    []
    """
    if metadata.cre_line in protocol.CRE_LINES:
        return []
    close = suggest(metadata.cre_line, protocol.CRE_LINES)
    return [f"Cre line '{metadata.cre_line}' is not one of the Allen's 13{close}; selection per line does not know it"]
