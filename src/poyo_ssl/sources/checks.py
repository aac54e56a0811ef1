"""What is checked of a recording of any source: traces that are not finite or constant, gaps of the clock."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poyo_ssl.data.intervals import as_intervals, merge
from poyo_ssl.data.recording import Recording
from poyo_ssl.errors import RecordingError

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
