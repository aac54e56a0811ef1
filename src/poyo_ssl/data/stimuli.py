"""Stimulus tables of a recording, and movie pixels of a data folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poyo_ssl.errors import RecordingError, suggest

MOVIE_PREFIX = "natural_movie"
MOVIE_PIECE_BYTES = 1 << 24


@dataclass(frozen=True)
class Presentations:
    """One stimulus: when each presentation was on the screen and what it was.

    Attributes
    ----------
    name : str
        Allen name of the stimulus, for example ``drifting_gratings`` or ``natural_movie_one``.
    start, end : ndarray
        ``(K,)`` seconds on the recording's clock, half-open.
    start_frame, end_frame : ndarray
        ``(K,)`` imaging frames, half-open; a movie frame shorter than an imaging frame has
        ``start_frame == end_frame``.
    columns : dict
        ``(K,)`` arrays.

        - ``drifting_gratings``: ``orientation`` (direction in degrees), ``temporal_frequency`` (Hz),
          ``orientation_id``, ``temporal_frequency_id``, ``repeat``, ``blank_sweep`` (bool). Where it is True, the
          values are NaN and the ids -1.
        - ``static_gratings``: ``orientation`` (degrees), ``spatial_frequency`` (cycles per degree), ``phase``
          (cycles), an ``_id`` of each, ``repeat``, ``blank_sweep``.
        - ``natural_scenes``: ``frame``, the number of the image, -1 for a blank. (On disk 1 more, as the brainsets
          layout has it.)
        - movies: ``frame``, ``repeat``.
        - ``locally_sparse_noise``: ``frame`` and ``pixel_size`` (degrees). Both noises of session C2 are in this one
          table, as in the brainsets layout; `frame` counts in the template of the pixel size.

    Raises
    ------
    RecordingError
        If lengths differ, a time is not finite, or an end lies before its start.

    Examples
    --------
    >>> import numpy as np
    >>> trial = Presentations.from_frames(
    ...     "drifting_gratings", np.arange(100) / 30, np.array([0, 90]), np.array([60, 99]),
    ...     {"orientation": np.array([0.0, 45.0])})
    >>> len(trial), float(trial.start[1]), trial.midpoint.round(2).tolist()
    (2, 3.0, [1.0, 3.15])
    """

    name: str
    start: NDArray[np.float64]
    end: NDArray[np.float64]
    start_frame: NDArray[np.int64]
    end_frame: NDArray[np.int64]
    columns: Mapping[str, NDArray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        arrays = {"start": self.start, "end": self.end, "start_frame": self.start_frame}
        arrays |= {"end_frame": self.end_frame, **self.columns}
        for key, values in arrays.items():
            if values.shape != self.start.shape or values.ndim != 1:
                raise RecordingError(
                    f"{self.name}: column '{key}' has shape {values.shape}",
                    allowed=f"({len(self.start)},)",
                    fix="give one value per presentation",
                )
        bad = ~(np.isfinite(self.start) & np.isfinite(self.end) & (self.end >= self.start))
        bad |= (self.start_frame < 0) | (self.end_frame < self.start_frame)
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise RecordingError(
                f"{self.name}: presentation {row} runs from {self.start[row]} s to {self.end[row]} s "
                f"(frames {self.start_frame[row]} to {self.end_frame[row]})",
                allowed="finite times and frames of 0 or more, end not before start",
                fix="correct the stimulus table",
            )

    def __len__(self) -> int:
        return len(self.start)

    @property
    def midpoint(self) -> NDArray[np.float64]:
        """``(K,)`` seconds, the middle of each presentation."""
        return (self.start + self.end) / 2

    @classmethod
    def from_frames(
        cls,
        name: str,
        timestamps: NDArray[np.float64],
        start_frame: NDArray[np.int64],
        end_frame: NDArray[np.int64],
        columns: Mapping[str, NDArray],
    ) -> Presentations:
        """Make a table from imaging frames and the imaging clock.

        Parameters
        ----------
        name : str
            Name of the stimulus.
        timestamps : ndarray
            ``(T,)`` seconds.
        start_frame, end_frame : ndarray
            ``(K,)`` imaging frames, half-open; an end at T is extrapolated by one mean frame.
        columns : dict
            ``(K,)`` arrays.

        Raises
        ------
        RecordingError
            If a frame lies outside the recording.
        """
        start_frame, end_frame = np.asarray(start_frame, np.int64), np.asarray(end_frame, np.int64)
        num_frames = len(timestamps)
        bad = (start_frame < 0) | (start_frame >= num_frames) | (end_frame > num_frames)
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise RecordingError(
                f"{name}: presentation {row} covers frames {start_frame[row]} to {end_frame[row]}",
                allowed=f"0 to {num_frames}",
                fix="check that table and traces belong together",
            )
        step = (timestamps[-1] - timestamps[0]) / max(num_frames - 1, 1)
        edges = np.append(timestamps, timestamps[-1] + step)
        return cls(name, edges[start_frame], edges[end_frame], start_frame, end_frame, dict(columns))

    @classmethod
    def from_times(
        cls,
        name: str,
        timestamps: NDArray[np.float64],
        start: NDArray[np.float64],
        end: NDArray[np.float64],
        columns: Mapping[str, NDArray],
    ) -> Presentations:
        """Make a table from seconds; its imaging frames are the nearest ones.

        Examples
        --------
        >>> import numpy as np
        >>> table = Presentations.from_times("m", np.arange(5.0), np.array([0.4, 1.6]), np.array([1.6, 9.0]), {})
        >>> table.start_frame.tolist(), table.end_frame.tolist()
        ([0, 2], [2, 5])
        """
        half = 0.5 * np.median(np.diff(timestamps))
        start_frame, end_frame = np.searchsorted(timestamps, np.stack([start, end]) - half).astype(np.int64)
        return cls(name, start, end, start_frame, np.maximum(start_frame, end_frame), dict(columns))

    def select(self, keep: NDArray[np.bool_]) -> Presentations:
        """Return the presentations where `keep` is True."""
        return Presentations(
            self.name,
            self.start[keep],
            self.end[keep],
            self.start_frame[keep],
            self.end_frame[keep],
            {key: values[keep] for key, values in self.columns.items()},
        )


def movie_path(folder: Path | str, name: str) -> Path:
    """Return where the pixels of a movie lie in a data folder."""
    return Path(folder) / "stimuli" / f"{name}.npy"


def save_movie(folder: Path | str, name: str, pixels: Any) -> Path:
    """Write the pixels of one movie, ``(frames, height, width)`` uint8 grey, once per data folder.

    Written beside its final name and renamed, so that another process never reads half a movie. Anything sliced by
    frames will do (an h5py dataset); it is read in pieces.
    """
    assert pixels.dtype == np.uint8, pixels.dtype
    assert len(pixels.shape) == 3, pixels.shape
    path = movie_path(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several processes may write the same movie at the same time.
    beside = path.with_name(f"{name}.{os.getpid()}.partial")
    try:
        with beside.open("wb") as stream:
            header = {"descr": "|u1", "fortran_order": False, "shape": tuple(int(size) for size in pixels.shape)}
            np.lib.format.write_array_header_1_0(stream, header)
            step = max(1, MOVIE_PIECE_BYTES // max(int(np.prod(pixels.shape[1:])), 1))
            for start in range(0, pixels.shape[0], step):
                stream.write(np.ascontiguousarray(pixels[start : start + step]).tobytes())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def load_movie(folder: Path | str, name: str) -> NDArray[np.uint8]:
    """Memory-map the pixels of a movie, ``(frames, height, width)`` uint8."""
    path = movie_path(folder, name)
    if not path.exists():
        known = sorted(p.stem for p in path.parent.glob("*.npy")) if path.parent.is_dir() else []
        raise RecordingError(
            f"no pixels of movie '{name}' in {path.parent}{suggest(name, known)}",
            allowed=", ".join(known) or "none there",
            fix="prepare the data folder with its movies",
        )
    try:
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise RecordingError(f"{path} is not a movie file: {error}", fix="prepare it again") from None
    if pixels.ndim != 3 or pixels.dtype != np.uint8:
        raise RecordingError(
            f"{path} holds {pixels.dtype} of shape {pixels.shape}",
            allowed="uint8 of (frames, height, width)",
            fix="prepare it again",
        )
    return pixels
