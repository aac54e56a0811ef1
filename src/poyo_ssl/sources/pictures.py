"""Stimulus pixels from npy, mp4, gif or a folder of pictures: grey, 8 bits, ``(frames, height, width)``."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from poyo_ssl.errors import ConfigError, RecordingError
from poyo_ssl.sources.array_files import load_npy

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
