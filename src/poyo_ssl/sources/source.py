"""What a source is: one kind of input (files of a laboratory or an archive) that becomes recordings.

To add one, derive a frozen dataclass from `Source` (its fields are the settings that change what comes out) and write
`find` and `read`. `poyo_ssl.sources.convert` then runs it in parallel, continues it, reports and stores its warnings.

Rules for `read`, which is given files that nobody has checked:

- Whatever is wrong with a file becomes a `RecordingError` that names the file, what was found and the fix.
- Whatever was repaired, left out, guessed or looks wrong becomes a line in ``Recording.warnings``. Traces that are
  constant or not finite, and gaps of the clock, are found by the runner (`poyo_ssl.sources.checks`), for all sources.
- Nothing is unpickled, and nothing is allocated because a header says so before `check_size` was asked.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from poyo_ssl.data.recording import Recording
from poyo_ssl.errors import RecordingError

MAX_BYTES = 64 << 30
"""Larger than any two-photon recording's traces; what claims more is damaged or hostile."""

MAX_EXPANSION = 1100
"""Deflate cannot make data smaller than by a factor of 1032: a header that claims more than this is wrong."""

RESERVED_NAMES = (
    *("brainset", "calcium_traces", "device", "domain", "events", "imaging_clock", "motion", "notes", "pupil"),
    *("roi_masks", "rois", "running", "session", "subject", "truth"),
)
"""Groups of the recording's file, which a stimulus cannot be called after."""


class Source(ABC):
    """One kind of input. Subclasses are frozen dataclasses, so that they can be sent to other processes.

    Attributes
    ----------
    name : str
        As in ``poyo-ssl prepare NAME``.
    """

    name: ClassVar[str]

    @classmethod
    @abstractmethod
    def recognises(cls, path: Path) -> bool:
        """Tell, cheaply and without raising, whether `path` (one recording's file or folder) is of this kind."""

    @abstractmethod
    def find(self, input: Path) -> list[Path]:
        """Return one path per recording of `input`, a file or a folder, sorted.

        Raises
        ------
        RecordingError
            If there is none.
        """

    @abstractmethod
    def read(self, path: Path) -> Recording:
        """Return the recording at a path of `find`, called `recording_id(path)`.

        Its dF/F is a ``(T, N)`` float32 array, or anything with `shape`, `ndim` and slices of rows (an h5py dataset, a
        memory map), which is then streamed. If that has a method `extremes` (least and greatest value of every unit, or
        None), finite traces are streamed once only. Running the method must stay under 1.5 GB for 64 minutes of 400
        neurons.

        Raises
        ------
        RecordingError
            If the file is missing, damaged, inconsistent, or of another kind.
        """

    def recording_id(self, path: Path) -> str:
        """Return the recording's id without opening the file; it names the output."""
        return clean_name(path.stem if path.is_file() else path.name)

    def files(self, path: Path) -> list[Path]:
        """Return every file that `read` and `movies` depend on: if one changes, the recording is converted again."""
        return [path] if path.is_file() else sorted(item for item in path.rglob("*") if item.is_file())

    def movies(self, path: Path) -> Iterator[tuple[str, Any]]:
        """Give the pixels of the stimuli that belong to this recording, by name; none unless a source has some.

        The runner writes each once per data folder, and refuses a second movie of the same name that differs.

        Yields
        ------
        tuple of str and array
            Name of the stimulus; ``(frames, height, width)`` uint8, sliced by frames (an h5py dataset will do).
        """
        del path
        yield from ()

    def save(self, recording: Recording, path: Path, target: Path) -> None:
        """Write what `read` gave for `path` to `target`, whole or not at all."""
        del path
        recording.save(target, overwrite=True)


def check_size(shape: Iterable[int], dtype: np.dtype, what: str, *, stored: int | None = None) -> None:
    """Refuse what a header claims before anything of that size is allocated.

    Parameters
    ----------
    shape : iterable of int
        As the header says.
    dtype : dtype
        As the header says.
    what : str
        The file and, within it, the array; for the message.
    stored : int, optional
        Bytes that are really there, if compressed; uncompressed data are checked by whoever reads them.

    Raises
    ------
    RecordingError
        If the array would not fit into `MAX_BYTES`, or is over `MAX_EXPANSION` times what is stored.

    Examples
    --------
    >>> check_size((1000, 100), np.dtype("f4"), "F.npy")
    >>> check_size((10**9, 100), np.dtype("f4"), "F.npy")
    Traceback (most recent call last):
    poyo_ssl.errors.RecordingError: F.npy claims 1000000000 x 100 values of float32 (400.0 GB) ...
    """
    shape = tuple(int(size) for size in shape)
    # Python's integers do not overflow, where numpy's product would.
    size = dtype.itemsize
    for length in shape:
        size *= length
    limit = MAX_BYTES if stored is None else min(MAX_BYTES, MAX_EXPANSION * max(stored, 64))
    if size > limit:
        raise RecordingError(
            f"{what} claims {' x '.join(map(str, shape))} values of {dtype} ({size / 1e9:.1f} GB)",
            allowed=f"{limit / 1e9:.1f} GB here",
            fix="the file is damaged; copy it again",
        )


def clean_name(text: str) -> str:
    """Return `text` as a name for a recording or stimulus: letters, digits and ``_ . + -``, leading nowhere else.

    Examples
    --------
    >>> clean_name("Natural Movie/one"), clean_name("../../etc/passwd"), clean_name("domain")
    ('Natural_Movie_one', 'etc_passwd', 'domain_')
    """
    name = re.sub(r"[^0-9A-Za-z_.+-]+", "_", text.strip()).strip("._")[:120] or "unnamed"
    taken = name in RESERVED_NAMES or name.endswith(("_domain", "_blank_sweeps"))
    return name + "_" if taken else name


def trim_to_clock(
    dff: NDArray[np.float32], timestamps: NDArray[np.float64], what: str
) -> tuple[NDArray[np.float32], NDArray[np.float64], list[str]]:
    """Match ``(T, N)`` dF/F and ``(T',)`` timestamps: one frame more or less is cut off with a warning.

    Returns
    -------
    tuple
        dF/F, timestamps, warnings.

    Raises
    ------
    RecordingError
        If timestamps are not finite or do not increase, if lengths differ by more than one frame, or the traces
        are transposed.

    Examples
    --------
    >>> dff, times, warnings = trim_to_clock(np.zeros((5, 2), np.float32), np.arange(6.0), "mine.nwb")
    >>> len(times), warnings
    (5, ['mine.nwb: 5 frames of dF/F and 6 timestamps; the last timestamp is left out'])
    """
    timestamps = np.asarray(timestamps, np.float64).reshape(-1)
    num_frames, num_units = dff.shape
    bad = np.flatnonzero(~np.isfinite(timestamps))
    if len(bad):
        raise RecordingError(
            f"{what}: timestamp {bad[0]} is {timestamps[bad[0]]}", allowed="finite seconds", fix="repair the clock"
        )
    bad = np.flatnonzero(~(np.diff(timestamps) > 0))
    if len(bad):
        raise RecordingError(
            f"{what}: timestamp {bad[0] + 1} ({timestamps[bad[0] + 1]:g} s) is not after timestamp {bad[0]} "
            f"({timestamps[bad[0]]:g} s)",
            allowed="seconds that increase",
            fix="sort or repair the clock",
        )
    if abs(num_frames - len(timestamps)) > 1:
        turned = abs(num_units - len(timestamps)) <= 1
        raise RecordingError(
            f"{what}: traces of {num_frames} frames x {num_units} units and {len(timestamps)} timestamps"
            + (": the traces are transposed" if turned else ""),
            allowed="as many timestamps as frames, give or take one",
            fix="transpose the traces" if turned else "give the clock that belongs to these traces",
        )
    length = min(num_frames, len(timestamps))
    warnings = []
    if num_frames != len(timestamps):
        extra = "frame of dF/F" if num_frames > length else "timestamp"
        text = f"{what}: {num_frames} frames of dF/F and {len(timestamps)} timestamps; the last {extra} is left out"
        warnings.append(text)
    return dff[:length], timestamps[:length], warnings
