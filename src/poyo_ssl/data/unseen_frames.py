"""Which movie frames a model may not be trained on, so that held-out footage stays unseen.

Frames are compared at 64 x 128 pixels (or at their own size, where that is smaller) with the mean frame of their movie
subtracted; two frames whose correlation exceeds a limit count as the same picture. The rule is applied once, not
transitively: a training frame goes if it resembles a test frame, not if it resembles one that does.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from poyo_ssl import protocol
from poyo_ssl.config import SplitConfig
from poyo_ssl.data.stimuli import load_movie, movie_path

FRAMES_PER_BLOCK = 256


def resize_movie(pixels: NDArray[np.uint8], *, height: int, width: int) -> NDArray[np.uint8]:
    """Resize frames with antialiasing, ``(L, height, width)`` uint8.

    Examples
    --------
    >>> resize_movie(np.full((2, 8, 16), 7, np.uint8), height=4, width=8).shape
    (2, 4, 8)
    """
    from skimage.transform import resize

    if pixels.shape[1:] == (height, width):
        return np.asarray(pixels)
    resized = np.empty((len(pixels), height, width), np.uint8)
    for i, frame in enumerate(pixels):
        small = resize(frame.astype(np.float32), (height, width), order=1, anti_aliasing=True, preserve_range=True)
        resized[i] = np.clip(np.round(small), 0, 255)
    return resized


def load_resized_movie(folder: Path | str, name: str, *, height: int, width: int) -> NDArray[np.uint8]:
    """Return a movie of a data folder at another size; every recording of the folder shares one copy, read-only.

    Raises
    ------
    RecordingError
        If the folder has no such movie.
    """
    pixels = load_movie(folder, name)
    if pixels.shape[1:] == (height, width):
        return pixels
    path = movie_path(folder, name)
    return _resize_file(path, path.stat().st_mtime_ns, height, width)


@functools.lru_cache(maxsize=16)
def _resize_file(path: Path, modified_ns: int, height: int, width: int) -> NDArray[np.uint8]:
    del modified_ns  # a part of the cache's key: a movie that was replaced is read again
    resized = resize_movie(load_movie(path.parent.parent, path.stem), height=height, width=width)
    resized.flags.writeable = False
    return resized


def comparison_frames(folder: Path | str, name: str) -> NDArray[np.uint8]:
    """Return the frames of a movie at the size at which near-duplicates are looked for."""
    height, width = _comparison_size(load_movie(folder, name))
    return load_resized_movie(folder, name, height=height, width=width)


def _comparison_size(pixels: NDArray[np.uint8]) -> tuple[int, int]:
    return tuple(np.minimum(pixels.shape[1:], protocol.NEAR_DUPLICATE_SIZE).tolist())


def nearest_correlation(frames: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the largest correlation of each frame with any of the others, the mean of `frames` subtracted.

    Parameters
    ----------
    frames : ndarray
        ``(L, H, W)``, the whole movie whose frames are judged; larger ones are resized to 64 x 128 first.
    others : ndarray
        ``(M, H, W)`` frames of the same size.

    Returns
    -------
    ndarray
        ``(L,)`` of -1 to 1; 0 for a frame that equals the mean frame but for its brightness.

    Examples
    --------
    >>> movie = np.random.default_rng(0).integers(0, 256, (5, 8, 8), dtype=np.uint8)
    >>> nearest_correlation(movie, movie[3:4]).round(3)[3]
    np.float64(1.0)
    """
    height, width = _comparison_size(frames)
    frames, others = (resize_movie(a, height=height, width=width) for a in (frames, others))
    mean = frames.mean(axis=0, dtype=np.float64).astype(np.float32)
    unit = _unit_rows(others, mean)
    blocks = [
        (_unit_rows(frames[start : start + FRAMES_PER_BLOCK], mean) @ unit.T).max(axis=1)
        for start in range(0, len(frames), FRAMES_PER_BLOCK)
    ]
    return np.concatenate(blocks).astype(np.float64)


def _unit_rows(frames: NDArray[np.uint8], mean: NDArray[np.float32]) -> NDArray[np.float32]:
    rows = (frames - mean).reshape(len(frames), -1)
    rows -= rows.mean(axis=1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-3)


def clip_roles(pixels: NDArray[np.uint8], config: SplitConfig, *, gap_s: float, frame_s: float) -> NDArray[np.str_]:
    """Name what held-out clips do to each movie frame: ``test_clip``, ``valid_clip``, ``gap`` and so on, or nothing.

    Test clips are contiguous, equally long, spread evenly over the movie. Before each, a gap away, lies a validation
    clip; where there is no room for it, it is shorter. Gaps lie on both sides of either and go on over the movie's
    ends, since its repeats follow each other. A frame of training or of a validation clip whose `nearest_correlation`
    with the test clips exceeds `config.near_duplicate_correlation` is a ``near-duplicate``, and so is a training frame
    that resembles a validation clip.

    Parameters
    ----------
    pixels : ndarray
        ``(frames, height, width)`` of the movie.
    config : SplitConfig
        Number and lengths of clips, limit of correlation.
    gap_s : float
        Seconds to leave on each side of a clip.
    frame_s : float
        How long a movie frame is shown.

    Returns
    -------
    ndarray
        ``(frames,)`` text.
    """
    num_frames = len(pixels)
    length = max(round(config.clip_fraction * num_frames / config.num_clips), 1)
    gap = int(np.ceil(gap_s / frame_s))
    valid_length = round(config.valid_clip_fraction * num_frames / config.num_clips)
    centres = (np.arange(config.num_clips) + 0.5) * num_frames / config.num_clips
    starts = np.round(centres - length / 2).astype(int)
    test = _frames_of(starts, length, num_frames)
    beside = _frames_of(starts - gap, length + 2 * gap, num_frames) & ~test
    # The test's own gap wins where a short movie brings a validation clip around to the next test clip.
    valid = _frames_of(starts - gap - valid_length, valid_length, num_frames) & ~test & ~beside
    first = np.flatnonzero(valid)
    beside |= _frames_of(first - gap, 2 * gap + 1, num_frames) & ~test & ~valid
    role = np.select([test, valid, beside], ["test_clip", "valid_clip", "gap"], "").astype("<U24")
    limit = config.near_duplicate_correlation
    role[(nearest_correlation(pixels, pixels[test]) > limit) & ~test & ~beside] = "near-duplicate"
    if valid.any():
        role[(nearest_correlation(pixels, pixels[valid]) > limit) & (role == "")] = "near-duplicate"
    return role


def _frames_of(starts: NDArray[np.int64], length: int, num_frames: int) -> NDArray[np.bool_]:
    """``(num_frames,)`` bool, True within `length` frames from any start, around the movie's ends."""
    found = np.zeros(num_frames, bool)
    found[(starts[:, None] + np.arange(length)) % num_frames] = True
    return found
