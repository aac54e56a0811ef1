"""Moments of dF/F per unit, streamed over a recording that never has to fit in memory.

Skewness and excess (Fisher) kurtosis in their biased (population) form, as ``scipy.stats.skew(x)`` and
``scipy.stats.kurtosis(x, fisher=True)`` compute them: m3 / m2^1.5 and m4 / m2^2 - 3 with central moments
m_k = sum (x - mean)^k / n. At the tens of thousands of samples of a recording the bias is far below the third digit.
Central moments of pieces are merged with the formulas of Chan et al. (1979) and Pebay (2008, Sandia SAND2008-6212), so
an offset of the trace costs no digits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from poyo_ssl.data.intervals import as_intervals, contains
from poyo_ssl.data.recording import Recording
from poyo_ssl.errors import SelectionError

CHUNK_BYTES = 1 << 18
"""Size of a piece in float64: three fit a core's cache, and it is large enough for the calls that each costs."""

PIECES_PER_CENTRE = 32
"""Pieces whose powers are summed about one centre: few enough that a trace far from it costs no digits that count."""

SAMPLE_FRAMES = 16_384
"""Frames, evenly spread, from which median, 99th percentile and noise are taken."""

EVENT_THRESHOLD_SIGMAS = 3.0
NORMAL_MAD = 0.6744897501960817
"""Median absolute deviation of the standard normal distribution."""


class CentralMoments:
    """Mean and sums of central powers 2 to 4 of every column, updated piece by piece."""

    def __init__(self, num_units: int) -> None:
        self.varies = np.zeros(num_units, bool)
        self._first: NDArray | None = None
        self._count = 0
        self._mean, self._sum2, self._sum3, self._sum4 = (np.zeros(num_units) for _ in range(4))
        # Rows since the last merge, as sums of powers about `_centre`, which is repeated for every row of a piece.
        self._pending, self._pieces = 0, 0
        self._powers = np.zeros((4, num_units))
        self._centre = np.empty((0, num_units))
        self._scratch = np.empty((2, 0, num_units))

    def update(self, rows: NDArray) -> None:
        """Add rows, ``(n, N)``; NaN and infinity spoil their own column only."""
        num_new = len(rows)
        # Where a value is not finite, so is the column's mean from then on.
        with np.errstate(invalid="ignore", over="ignore"):
            if self._first is None:
                self._first = rows[0].copy()
            if not self.varies.all():
                self.varies |= (rows != self._first).any(axis=0)
            if not self._pending:
                about = self._mean if self._count else rows.mean(axis=0, dtype=np.float64)
                self._centre = np.tile(about, (max(num_new, len(self._centre)), 1))
            elif num_new > len(self._centre):
                self._centre = np.tile(self._centre[0], (num_new, 1))
            if num_new > self._scratch.shape[1]:
                self._scratch = np.empty((2, num_new, rows.shape[1]))
            centred, square = self._scratch[:, :num_new]
            # A cast and a difference of two whole arrays take half of what numpy takes to do both by rows.
            np.copyto(centred, rows)
            np.subtract(centred, self._centre[:num_new], out=centred)
            np.multiply(centred, centred, out=square)
            ones = np.ones(num_new)
            self._powers[0] += ones @ centred
            self._powers[1] += ones @ square
            self._powers[2] += np.einsum("tn,tn->n", square, centred)
            self._powers[3] += np.einsum("tn,tn->n", square, square)
            self._pending += num_new
            self._pieces += 1
            if self._pieces == PIECES_PER_CENTRE:
                self._merge()

    def _merge(self) -> None:
        """Turn what is pending into central moments and add them to those so far."""
        if not self._pending:
            return
        a, b = float(self._count), float(self._pending)
        shift = self._powers[0] / b
        shift2 = shift * shift
        _, power2, power3, power4 = self._powers
        sum2 = power2 - b * shift2
        sum3 = power3 - shift * (3 * power2 - 2 * b * shift2)
        sum4 = power4 - shift * (4 * power3 - shift * (6 * power2 - 3 * b * shift2))
        n = a + b
        step = self._centre[0] + shift - self._mean
        step2 = step * step
        self._sum4 += sum4 + step * (
            step * (step2 * (a * b * (a * a - a * b + b * b) / n**3) + (6 / n**2) * (a * a * sum2 + b * b * self._sum2))
            + (4 / n) * (a * sum3 - b * self._sum3)
        )
        self._sum3 += sum3 + step * (step2 * (a * b * (a - b) / n**2) + (3 / n) * (a * sum2 - b * self._sum2))
        self._sum2 += sum2 + step2 * (a * b / n)
        self._mean += step * (b / n)
        self._count += self._pending
        self._powers[:] = 0
        self._pending, self._pieces = 0, 0

    @property
    def count(self) -> int:
        """Rows seen."""
        return self._count + self._pending

    @property
    def mean(self) -> NDArray[np.float64]:
        """``(N,)`` means; not finite where a value was not."""
        with np.errstate(invalid="ignore", over="ignore"):
            self._merge()
        return self._mean

    def skewness(self) -> NDArray[np.float64]:
        """Return m3 / m2^1.5 per column, NaN where the column is constant or not finite."""
        varies = self._varies()
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(varies, np.sqrt(self._count) * self._sum3 / self._sum2**1.5, np.nan)

    def kurtosis(self) -> NDArray[np.float64]:
        """Return m4 / m2^2 - 3 per column, NaN where the column is constant or not finite."""
        varies = self._varies()
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(varies, self._count * self._sum4 / self._sum2**2 - 3, np.nan)

    def _varies(self) -> NDArray[np.bool_]:
        return np.isfinite(self.mean) & self.varies


@dataclass(frozen=True)
class UnitStatistics:
    """What `measure_units` found, one entry per unit."""

    skewness: NDArray[np.float64]  # ``(N,)`` population skewness and excess kurtosis; NaN unless `status` is 'ok'
    kurtosis: NDArray[np.float64]  # ``(N,)`` population skewness and excess kurtosis; NaN unless `status` is 'ok'
    # ``(N,)`` (99th percentile - median) / noise. The noise is the median absolute difference of neighbouring
    # frames / (0.6745 sqrt 2), the standard deviation of white noise under a slow signal. NaN where it is 0
    snr: NDArray[np.float64]
    # ``(N,)`` upward crossings of median + 3 x noise per second: a proxy, in which noise alone counts about
    # 0.04 Hz at 30 Hz and a burst counts once
    event_rate_hz: NDArray[np.float64]
    num_samples: int  # Imaging frames used
    status: NDArray[np.str_]  # ``(N,)`` 'ok'; 'nan' if any value is not finite; 'constant'


def frame_spans(
    timestamps: NDArray[np.float64],
    intervals: NDArray[np.float64] | None,
    masked_domain: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Return the runs of imaging frames inside `intervals` and outside `masked_domain`."""
    inside = np.ones(len(timestamps), bool) if intervals is None else contains(timestamps, as_intervals(intervals))
    inside &= ~contains(timestamps, as_intervals(masked_domain))
    edges = np.diff(inside.astype(np.int8), prepend=0, append=0)
    return np.stack([np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)], axis=1)


def measure_units(
    recording: Recording, intervals: NDArray[np.float64] | None = None, *, chunk_frames: int | None = None
) -> UnitStatistics:
    """Measure every unit of a recording in two passes over its dF/F, a piece at a time."""
    spans = frame_spans(recording.timestamps, intervals, recording.masked_domain)
    num_samples = int((spans[:, 1] - spans[:, 0]).sum())
    if num_samples < 2:
        raise SelectionError(
            f"recording {recording.recording_id}: {num_samples} imaging frames lie inside the intervals",
            allowed="2 or more outside its masked spans",
            fix="give intervals on the clock of the recording's timestamps",
        )
    chunk_frames = chunk_frames or max(CHUNK_BYTES // (8 * recording.num_units), 2)
    moments, sample, differences = _first_pass(recording, spans, num_samples, chunk_frames)
    finite = np.isfinite(moments.mean)
    with np.errstate(invalid="ignore", divide="ignore"):
        sample[~finite], differences[~finite] = 0.0, 0.0
        median, high = _quantile(sample, 0.5), _quantile(sample, 0.99)
        noise = _quantile(np.abs(differences, out=differences), 0.5) / (NORMAL_MAD * np.sqrt(2))
        snr = np.where(finite & (noise > 0), (high - median) / noise, np.nan)
    crossings = _count_crossings(recording, spans, chunk_frames, median + EVENT_THRESHOLD_SIGMAS * noise)
    return UnitStatistics(
        skewness=moments.skewness(),
        kurtosis=moments.kurtosis(),
        snr=snr,
        event_rate_hz=np.where(finite, crossings * recording.rate_hz / num_samples, np.nan),
        num_samples=num_samples,
        status=np.where(~finite, "nan", np.where(moments.varies, "ok", "constant")),
    )


def _pieces(recording: Recording, spans: NDArray[np.int64], chunk_frames: int) -> Iterator[tuple[bool, NDArray]]:
    """Yield (first piece of its run, dF/F with one frame of the piece before it in front unless it is the first)."""
    for begin, end in spans:
        for start in range(begin, end, chunk_frames):
            lead = int(start > begin)
            yield not lead, recording.read_dff(start - lead, min(start + chunk_frames, end))


def _first_pass(
    recording: Recording, spans: NDArray[np.int64], num_samples: int, chunk_frames: int
) -> tuple[CentralMoments, NDArray[np.float32], NDArray[np.float32]]:
    """Return moments, and evenly spread frames and differences of neighbouring frames, one unit per row."""
    moments = CentralMoments(recording.num_units)
    stride = -(-num_samples // SAMPLE_FRAMES)
    frames = np.empty((-(-num_samples // stride), recording.num_units), np.float32)
    differences = np.zeros_like(frames)
    seen, num_frames, num_differences = 0, 0, 0
    with np.errstate(invalid="ignore"):
        for first, piece in _pieces(recording, spans, chunk_frames):
            rows = piece if first else piece[1:]
            moments.update(rows)
            wanted = -seen % stride
            taken = rows[wanted::stride]
            frames[num_frames : num_frames + len(taken)] = taken
            num_frames += len(taken)
            # A run's first frame has none before it; `rows` lie one frame later in `piece` unless they are the first.
            after = (wanted or stride) if first else wanted + 1
            later = piece[after::stride]
            own = differences[num_differences : num_differences + len(later)]
            np.subtract(later, piece[after - 1 : -1 : stride], out=own)
            num_differences += len(later)
            seen += len(rows)
    return moments, _turned(frames), _turned(differences[: max(num_differences, 1)])


def _turned(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the transpose as an array of its own, copied by tiles that fit the cache."""
    turned = np.empty(rows.shape[::-1], rows.dtype)
    for start in range(0, len(rows), 128):
        turned[:, start : start + 128] = rows[start : start + 128].T
    return turned


def _quantile(rows: NDArray[np.float32], share: float) -> NDArray[np.float64]:
    """Return a quantile of every row, linear between order statistics as ``np.quantile`` is.

    One order statistic at a time: numpy selects several times faster by one rank than by two.
    """
    place = share * (rows.shape[1] - 1)
    low = int(place)
    parted = np.partition(rows, low, axis=1)
    lower = parted[:, low].astype(np.float64)
    if low == place:
        return lower
    return lower + (place - low) * (parted[:, low + 1 :].min(axis=1) - lower)


def _count_crossings(
    recording: Recording, spans: NDArray[np.int64], chunk_frames: int, threshold: NDArray[np.float64]
) -> NDArray[np.int64]:
    # As many rows as a piece: numpy compares two whole arrays faster than every row with one.
    longest = min(chunk_frames, int((spans[:, 1] - spans[:, 0]).max()))
    limit = np.tile(threshold.astype(np.float32), (longest + 1, 1))
    counts = np.zeros(recording.num_units, np.int64)
    with np.errstate(invalid="ignore"):
        for _, piece in _pieces(recording, spans, chunk_frames):
            above = (piece > limit[: len(piece)]).view(np.uint8)
            rises = (above[1:] > above[:-1]).view(np.uint8)
            # Bytes are compared and added as bytes, 255 at most, so that none overflows.
            for start in range(0, len(rises), 255):
                counts += np.add.reduce(rises[start : start + 255], axis=0, dtype=np.uint8)
    return counts
