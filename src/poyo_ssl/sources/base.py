"""What a source is: one kind of input (files of a laboratory or an archive) that becomes recordings.

To add one, derive a frozen dataclass from `Source` (its fields are the settings that change what comes out) and write
`find` and `read`. `poyo_ssl.sources.run` then runs it in parallel, continues it, reports and stores its warnings.

Rules for `read`, which is given files that nobody has checked:

- Whatever is wrong with a file becomes a `RecordingError` that names the file, what was found and the fix.
- Whatever was repaired, left out, guessed or looks wrong becomes a line in ``Recording.warnings`` (`Notes`). Traces
  that are constant or not finite, and gaps of the clock, are found by `check_traces`, for all sources.
- Nothing is unpickled. `data.hdf5.check_size` comes before anything is allocated because a header says so.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from poyo_ssl.data.intervals import as_intervals, merge
from poyo_ssl.data.recording import Recording
from poyo_ssl.errors import RecordingError

# Groups of the recording's file, which a stimulus cannot be called after.
RESERVED_NAMES = (
    *("brainset", "calcium_traces", "device", "domain", "events", "imaging_clock", "motion", "notes", "pupil"),
    *("roi_masks", "rois", "running", "session", "subject", "truth"),
)

CHUNK_FRAMES = 8192
NAMED_ROWS = 8  # So many rows are named in a message; the others are counted
GAP_STEPS = 2.5  # A step of the clock longer than this many median steps is a gap


class Notes(list[str]):
    """What a conversion repaired, left out, guessed or finds wrong, one line each; ends in ``Recording.warnings``."""

    def add(self, *lines: str) -> None:
        """Keep lines."""
        self.extend(lines)


class Source(ABC):
    """One kind of input. Subclasses are frozen dataclasses, so that they can be sent to other processes."""

    name: ClassVar[str]  # As in 'poyo-ssl prepare NAME'

    @classmethod
    @abstractmethod
    def recognises(cls, path: Path) -> bool:
        """Tell, cheaply and without raising, whether `path` (one recording's file or folder) is of this kind."""

    @abstractmethod
    def find(self, input: Path) -> list[Path]:
        """Return one path per recording of `input`, a file or a folder, sorted; raise `RecordingError` for none."""

    @abstractmethod
    def read(self, path: Path) -> Recording:
        """Return the recording at a path of `find`, called `recording_id(path)`.

        Its dF/F is a ``(T, N)`` float32 array, or anything with `shape`, `ndim` and slices of rows (an h5py dataset, a
        memory map), which is then streamed. If that has a method `extremes` (least and greatest value of every unit, or
        None), finite traces are streamed once only. Running the method must stay under 1.5 GB for 64 minutes of 400
        neurons.
        """

    def recording_id(self, path: Path) -> str:
        """Return the recording's id without opening the file; it names the output."""
        return clean_name(path.stem if path.is_file() else path.name)

    def files(self, path: Path) -> list[Path]:
        """Return every file that `read` and `movies` depend on: if one changes, the recording is converted again."""
        return [path] if path.is_file() else sorted(item for item in path.rglob("*") if item.is_file())

    def movies(self, path: Path) -> Iterator[tuple[str, Any]]:
        """Give name and pixels of the stimuli that belong to this recording; none unless a source has some.

        Pixels are ``(frames, height, width)`` uint8, sliced by frames (an h5py dataset will do). The runner writes each
        once per data folder, and refuses a second movie of the same name that differs.
        """
        del path
        yield from ()

    def save(self, recording: Recording, path: Path, target: Path) -> None:
        """Write what `read` gave for `path` to `target`, whole or not at all."""
        del path
        recording.save(target, overwrite=True)


def require(condition: object, problem: str, allowed: str | None = None, fix: str = "") -> None:
    """Raise `RecordingError` unless the condition holds."""
    if not condition:
        raise RecordingError(problem, allowed=allowed, fix=fix)


def first_row(wrong: NDArray[np.bool_]) -> int | None:
    """Return the place of the first True."""
    return int(wrong.argmax()) if wrong.any() else None


def clean_name(text: str) -> str:
    """Return `text` as a name for a recording or stimulus: letters, digits and ``_ . + -``, leading nowhere else."""
    name = re.sub(r"[^0-9A-Za-z_.+-]+", "_", text.strip()).strip("._")[:120] or "unnamed"
    taken = name in RESERVED_NAMES or name.endswith(("_domain", "_blank_sweeps"))
    return name + "_" if taken else name


def name_rows(rows: Sequence[int] | NDArray[np.int64]) -> str:
    """Return ``'3 rows (4, 7, 9)'``, the first few of many."""
    return f"row {int(rows[0])}" if len(rows) == 1 else f"{len(rows)} rows ({_list_some(rows)})"


def _list_some(items: Sequence[Any] | NDArray) -> str:
    return ", ".join([*(str(item) for item in items[:NAMED_ROWS]), *["..."] * (len(items) > NAMED_ROWS)])


def require_increasing(times: NDArray[np.float64], what: str, fix: str) -> None:
    """Refuse timestamps ``(T,)`` that are not finite or do not increase."""
    with np.errstate(invalid="ignore"):
        bad = np.flatnonzero(~(np.isfinite(times) & (np.diff(times, prepend=-np.inf) > 0)))
    if len(bad):
        row = int(bad[0])
        problem = f"timestamp {row} is {times[row]:g}"
        if np.isfinite(times[row]):
            problem = f"timestamp {row} ({times[row]:g} s) is not after timestamp {row - 1} ({times[row - 1]:g} s)"
        raise RecordingError(f"{what}: {problem}", allowed="finite seconds that increase", fix=fix)


def require_unique(values: Any, what: str, fix: str) -> None:
    """Refuse values of which one occurs twice."""
    unique, count = np.unique(values, return_counts=True)
    if (count > 1).any():
        problem = f"{what} {unique[count > 1][0]} occurs {count.max()} times"
        raise RecordingError(problem, allowed="each once", fix=fix)


def trim_to_clock(
    dff: NDArray[np.float32], timestamps: NDArray[np.float64], what: str, notes: Notes
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Match dF/F ``(T, N)`` and timestamps ``(T',)``: cut off one frame more or less, refuse all other differences."""
    timestamps = np.asarray(timestamps, np.float64).reshape(-1)
    num_frames, num_units = dff.shape
    require_increasing(timestamps, what, "sort or repair the clock")
    if abs(num_frames - len(timestamps)) > 1:
        turned = abs(num_units - len(timestamps)) <= 1
        raise RecordingError(
            f"{what}: traces of {num_frames} frames x {num_units} units and {len(timestamps)} timestamps"
            + (": the traces are transposed" if turned else ""),
            allowed="as many timestamps as frames, give or take one",
            fix="transpose the traces" if turned else "give the clock that belongs to these traces",
        )
    length = min(num_frames, len(timestamps))
    if num_frames != len(timestamps):
        extra = "frame of dF/F" if num_frames > length else "timestamp"
        lengths = f"{num_frames} frames of dF/F and {len(timestamps)} timestamps"
        notes.add(f"{what}: {lengths}; the last {extra} is left out")
    return dff[:length], timestamps[:length]


@dataclass(frozen=True)
class FilledTraces:
    """dF/F without some units, and 0 where no unit has a finite value; read piece by piece like an array."""

    traces: Any  # (T, all units), sliced by frames
    keep: NDArray[np.int64]  # Rows of the units to keep

    @property
    def ndim(self) -> int:
        """Two: time and units."""
        return 2

    @property
    def shape(self) -> tuple[int, int]:
        """Frames, units."""
        return int(self.traces.shape[0]), len(self.keep)

    def __getitem__(self, frames: slice) -> NDArray[np.float32]:
        values = np.asarray(self.traces[frames], np.float32)
        return np.nan_to_num(values[:, self.keep], nan=0.0, posinf=0.0, neginf=0.0)


def check_traces(recording: Recording) -> Recording:
    """Return a recording whose dF/F is finite; what was done, and what looks wrong, is added to its warnings.

    Frames in which no unit has a finite value (excluded by the experimenter) become part of `masked_domain`, with 0
    in the traces. A unit that is not finite in other frames is left out.
    """
    num_frames, num_units = recording.num_frames, recording.num_units
    require(num_units > 0, f"recording {recording.recording_id} has no units", fix="check the source's ROIs")
    seen = np.zeros(num_frames, bool)
    num_bad = np.zeros(num_units, np.int64)
    low, high = np.full(num_units, np.inf), np.full(num_units, -np.inf)
    # Some traces know their extremes without being turned into frames.
    known = recording.dff.extremes() if hasattr(recording.dff, "extremes") else None
    if known and all(np.isfinite(values).all() for values in known):
        seen[:], (low, high) = True, known
    for start in () if seen.all() else range(0, num_frames, CHUNK_FRAMES):
        rows = recording.read_dff(start, min(start + CHUNK_FRAMES, num_frames))
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
    notes = Notes(recording.warnings)
    bad = np.flatnonzero(num_bad)
    keep = np.flatnonzero(num_bad == 0)
    problem = f"recording {recording.recording_id}: dF/F is not finite in any of {num_units} units"
    require(len(keep) and seen.any(), problem, fix="check the source's traces")

    def name(rows: NDArray[np.int64]) -> str:
        return f"{name_rows(rows)} (ROI {_list_some(recording.unit_ids[rows])})"

    if len(bad):
        notes.add(f"dF/F is not finite in {name(bad)}: left out")
    if not seen.all():
        notes.add(f"{int((~seen).sum())} frames without a finite value: masked")
    constant = keep[low[keep] == high[keep]]
    if len(constant):
        notes.add(f"dF/F is constant in {name(constant)}")
    check_clock(recording.timestamps, notes)
    checked = recording
    if len(bad) or not seen.all():
        checked = recording.with_units(keep, dff=FilledTraces(recording.dff, keep))
        edges = np.flatnonzero(np.diff(np.r_[False, ~seen, False].astype(np.int8)))
        clock = np.append(recording.timestamps, recording.timestamps[-1] + 1 / recording.rate_hz)
        masked = merge(np.concatenate([recording.masked_domain, as_intervals(clock[edges])]))
        checked = replace(checked, masked_domain=masked)
    return replace(checked, warnings=tuple(notes))


def check_clock(timestamps: NDArray[np.float64], notes: Notes) -> None:
    """Note gaps and an unlikely rate."""
    steps = np.diff(timestamps)
    median = float(np.median(steps))
    gaps = np.flatnonzero(steps > GAP_STEPS * median)
    if len(gaps):
        longest = gaps[np.argmax(steps[gaps])]
        number = "1 gap" if len(gaps) == 1 else f"{len(gaps)} gaps"
        notes.add(f"the clock has {number}, the longest of {steps[longest]:.3f} s at {timestamps[longest]:.3f} s")
    if not 0.5 <= 1 / median <= 1000:
        notes.add(f"an imaging rate of {1 / median:.4g} Hz is unlikely; are timestamps in seconds?")
