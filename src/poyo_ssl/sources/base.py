"""What a source is: one kind of input (files of a laboratory or an archive) that becomes recordings.

To add one, derive a frozen dataclass from `Source` (its fields are the settings that change what comes out) and write
`find` and `read`. `poyo_ssl.sources.run` then runs it in parallel, continues it, reports and stores its warnings.

Rules for `read`, which is given files that nobody has checked:

- Whatever is wrong with a file becomes a `RecordingError` that names the file, what was found and the fix.
- Whatever was repaired, left out, guessed or looks wrong becomes a line in ``Recording.warnings``. Traces that are
  constant or not finite, and gaps of the clock, are found by the runner (`poyo_ssl.sources.base`), for all sources.
- Nothing is unpickled, and nothing is allocated because a header says so before `data.hdf5.check_size` was asked.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from poyo_ssl.data.intervals import as_intervals, merge
from poyo_ssl.data.recording import Recording
from poyo_ssl.errors import RecordingError

RESERVED_NAMES = (
    *("brainset", "calcium_traces", "device", "domain", "events", "imaging_clock", "motion", "notes", "pupil"),
    *("roi_masks", "rois", "running", "session", "subject", "truth"),
)
"""Groups of the recording's file, which a stimulus cannot be called after."""


class Notes(list[str]):
    """What a conversion repaired, left out, guessed or finds wrong, one line each; ends in ``Recording.warnings``."""

    def add(self, *lines: str) -> None:
        """Keep lines."""
        self.extend(lines)


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


CHUNK_FRAMES = 8192
NAMED_ROWS = 8
"""So many rows are named in a message; the others are counted."""

GAP_STEPS = 2.5
"""A step of the clock longer than this many median steps is a gap."""


@dataclass(frozen=True)
class FilledTraces:
    """dF/F without some units, and 0 where no unit has a finite value; read piece by piece like an array.

    Attributes
    ----------
    traces : array
        ``(T, all units)``, sliced by frames.
    keep : ndarray
        Rows of the units to keep.
    """

    traces: Any
    keep: NDArray[np.int64]

    @property
    def ndim(self) -> int:
        """Two: time and units."""
        return 2

    @property
    def shape(self) -> tuple[int, int]:
        """``(T, N)``."""
        return int(self.traces.shape[0]), len(self.keep)

    def __getitem__(self, frames: slice) -> NDArray[np.float32]:
        values = np.asarray(self.traces[frames], np.float32)
        return np.nan_to_num(values[:, self.keep], nan=0.0, posinf=0.0, neginf=0.0)


def name_rows(rows: Sequence[int] | NDArray[np.int64]) -> str:
    """Return ``'3 rows (4, 7, 9)'``, the first few of many.

    Examples
    --------
    >>> name_rows([4]), name_rows(range(20))
    ('row 4', '20 rows (0, 1, 2, 3, 4, 5, 6, 7, ...)')
    """
    if len(rows) == 1:
        return f"row {int(rows[0])}"
    shown = ", ".join(str(int(row)) for row in rows[:NAMED_ROWS])
    return f"{len(rows)} rows ({shown}{', ...' if len(rows) > NAMED_ROWS else ''})"


def check_traces(recording: Recording) -> Recording:
    """Return a recording whose dF/F is finite; what was done, and what looks wrong, is added to its warnings.

    Frames in which no unit has a finite value (excluded by the experimenter) become part of `masked_domain`, with 0
    in the traces. A unit that is not finite in other frames is left out.

    Raises
    ------
    RecordingError
        If no unit is left.

    Examples
    --------
    >>> from poyo_ssl.data.recording import RecordingMetadata
    >>> dff = np.random.default_rng(0).normal(size=(90, 3)).astype(np.float32)
    >>> dff[40:50] = np.nan; dff[3, 1] = np.inf; dff[:40, 2] = dff[50:, 2] = 5
    >>> checked = check_traces(Recording("r", dff, np.arange(90) / 30, RecordingMetadata("m")))
    >>> checked.dff.shape, checked.masked_domain.round(2).tolist()
    ((90, 2), [[1.33, 1.67]])
    >>> for text in checked.warnings: print(text)
    dF/F is not finite in row 1 (ROI roi_0001): left out
    10 frames without a finite value: masked
    dF/F is constant in row 2 (ROI roi_0002)
    """
    num_frames, num_units = recording.num_frames, recording.num_units
    if num_units == 0:
        raise RecordingError(f"recording {recording.recording_id} has no units", fix="check the source's ROIs")
    seen = np.zeros(num_frames, bool)
    num_bad = np.zeros(num_units, np.int64)
    low, high = np.full(num_units, np.inf), np.full(num_units, -np.inf)
    # Some traces know their extremes without being turned into frames.
    known = recording.dff.extremes() if hasattr(recording.dff, "extremes") else None
    if known and all(np.isfinite(values).all() for values in known):
        seen[:], (low, high) = True, known
    for start, rows in () if seen.all() else read_pieces(recording):
        least, most = rows.min(axis=0), rows.max(axis=0)
        # NaN and infinity show in the extremes: nearly every piece is done with two passes over it.
        if np.isfinite(least).all() and np.isfinite(most).all():
            seen[start : start + len(rows)] = True
            low, high = np.minimum(low, least), np.maximum(high, most)
            continue
        finite = np.isfinite(rows)
        any_finite = finite.any(axis=1)
        seen[start : start + len(rows)] = any_finite
        num_bad += any_finite.sum() - finite.sum(axis=0)
        rows = np.where(finite, rows, np.nan)
        low, high = np.fmin(low, np.fmin.reduce(rows)), np.fmax(high, np.fmax.reduce(rows))
    warnings = list(recording.warnings)
    bad = np.flatnonzero(num_bad)
    keep = np.flatnonzero(num_bad == 0)
    if len(keep) == 0 or not seen.any():
        raise RecordingError(
            f"recording {recording.recording_id}: dF/F is not finite in any of {num_units} units",
            fix="check the source's traces",
        )
    if len(bad):
        warnings.append(f"dF/F is not finite in {name_rows(bad)} ({_name_rois(recording, bad)}): left out")
    if not seen.all():
        warnings.append(f"{int((~seen).sum())} frames without a finite value: masked")
    constant = keep[low[keep] == high[keep]]
    if len(constant):
        warnings.append(f"dF/F is constant in {name_rows(constant)} ({_name_rois(recording, constant)})")
    warnings += check_clock(recording.timestamps)
    checked = recording
    if len(bad) or not seen.all():
        checked = recording.with_units(keep, dff=FilledTraces(recording.dff, keep))
        checked.masked_domain = merge(np.concatenate([recording.masked_domain, _spans(~seen, recording)]))
    checked.warnings = tuple(warnings)
    return checked


def read_pieces(recording: Recording) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Give dF/F piece by piece: the first frame and ``(n, N)``."""
    for start in range(0, recording.num_frames, CHUNK_FRAMES):
        yield start, recording.read_dff(start, min(start + CHUNK_FRAMES, recording.num_frames))


def check_clock(timestamps: NDArray[np.float64]) -> list[str]:
    """Return warnings about gaps and an unlikely rate.

    Examples
    --------
    >>> check_clock(np.r_[np.arange(30), np.arange(40, 60)] / 30)
    ['the clock has 1 gap, the longest of 0.367 s at 0.967 s']
    """
    steps = np.diff(timestamps)
    median = float(np.median(steps))
    gaps = np.flatnonzero(steps > GAP_STEPS * median)
    warnings = []
    if len(gaps):
        longest = gaps[np.argmax(steps[gaps])]
        number = "1 gap" if len(gaps) == 1 else f"{len(gaps)} gaps"
        warnings.append(f"the clock has {number}, the longest of {steps[longest]:.3f} s at {timestamps[longest]:.3f} s")
    if not 0.5 <= 1 / median <= 1000:
        warnings.append(f"an imaging rate of {1 / median:.4g} Hz is unlikely; are timestamps in seconds?")
    return warnings


def _name_rois(recording: Recording, rows: NDArray[np.int64]) -> str:
    shown = ", ".join(str(name) for name in recording.unit_ids[rows[:NAMED_ROWS]])
    return f"ROI {shown}{', ...' if len(rows) > NAMED_ROWS else ''}"


def _spans(flags: NDArray[np.bool_], recording: Recording) -> NDArray[np.float64]:
    """``(K, 2)`` seconds of the runs of True frames."""
    edges = np.flatnonzero(np.diff(np.r_[False, flags, False].astype(np.int8)))
    clock = np.append(recording.timestamps, recording.timestamps[-1] + 1 / recording.rate_hz)
    return as_intervals(clock[edges].reshape(-1, 2))
