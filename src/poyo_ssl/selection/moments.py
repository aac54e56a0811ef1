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

CHUNK_BYTES = 1 << 20
"""Size of a piece in float64: a few of them stay in the processor's cache."""

SAMPLE_FRAMES = 16_384
"""Frames, evenly spread, from which median, 99th percentile and noise are taken."""

EVENT_THRESHOLD_SIGMAS = 3.0
NORMAL_MAD = 0.6744897501960817
"""Median absolute deviation of the standard normal distribution."""


class CentralMoments:
    """Mean and sums of central powers 2 to 4 of every column, updated piece by piece.

    Parameters
    ----------
    num_units : int
        Number of columns, N.

    Attributes
    ----------
    count : int
        Rows seen.
    mean, sum2, sum3, sum4 : ndarray
        ``(N,)`` mean and sums of (x - mean)^k; not finite where a value was not.
    low, high : ndarray
        ``(N,)`` extremes.

    Examples
    --------
    >>> import numpy as np
    >>> moments = CentralMoments(1)
    >>> moments.update(np.array([[0.0], [0.0]])); moments.update(np.array([[0.0], [4.0]]))
    >>> moments.skewness().round(4).tolist(), moments.kurtosis().round(4).tolist()  # 6 / 3^1.5, 21 / 9 - 3
    ([1.1547], [-0.6667])
    """

    def __init__(self, num_units: int) -> None:
        self.count = 0
        self.mean, self.sum2, self.sum3, self.sum4 = (np.zeros(num_units) for _ in range(4))
        self.low, self.high = np.full(num_units, np.inf), np.full(num_units, -np.inf)

    def update(self, rows: NDArray) -> None:
        """Add rows, ``(n, N)``; NaN and infinity spoil their own column only."""
        # Where a value is not finite, so is the column's mean from then on.
        with np.errstate(invalid="ignore", over="ignore"):
            centred = rows.astype(np.float64)
            num_new = len(centred)
            mean = np.einsum("tn->n", centred) / num_new
            self.low = np.fmin(self.low, rows.min(axis=0))
            self.high = np.fmax(self.high, rows.max(axis=0))
            centred -= mean
            square = centred * centred
            sum2 = np.einsum("tn->n", square)
            sum3 = np.einsum("tn,tn->n", square, centred)
            sum4 = np.einsum("tn,tn->n", square, square)
            self._merge(num_new, mean, sum2, sum3, sum4)

    def _merge(self, num_new: int, mean: NDArray, sum2: NDArray, sum3: NDArray, sum4: NDArray) -> None:
        a, b = float(self.count), float(num_new)
        n = a + b
        step = mean - self.mean
        self.sum4 += (
            sum4
            + step**4 * (a * b * (a * a - a * b + b * b) / n**3)
            + 6 * step**2 * (a * a * sum2 + b * b * self.sum2) / n**2
            + 4 * step * (a * sum3 - b * self.sum3) / n
        )
        self.sum3 += sum3 + step**3 * (a * b * (a - b) / n**2) + 3 * step * (a * sum2 - b * self.sum2) / n
        self.sum2 += sum2 + step**2 * (a * b / n)
        self.mean += step * (b / n)
        self.count += num_new

    def skewness(self) -> NDArray[np.float64]:
        """Return m3 / m2^1.5 per column, NaN where the column is constant or not finite."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self._varies(), np.sqrt(self.count) * self.sum3 / self.sum2**1.5, np.nan)

    def kurtosis(self) -> NDArray[np.float64]:
        """Return m4 / m2^2 - 3 per column, NaN where the column is constant or not finite."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self._varies(), self.count * self.sum4 / self.sum2**2 - 3, np.nan)

    def _varies(self) -> NDArray[np.bool_]:
        return np.isfinite(self.mean) & (self.low < self.high)


@dataclass(frozen=True)
class UnitStatistics:
    """What `measure_units` found, one entry per unit.

    Attributes
    ----------
    skewness, kurtosis : ndarray
        ``(N,)`` population skewness and excess kurtosis; NaN unless `status` is 'ok'.
    snr : ndarray
        ``(N,)`` (99th percentile - median) / noise. The noise is the median absolute difference of neighbouring
        frames / (0.6745 sqrt 2), the standard deviation of white noise under a slow signal. NaN where it is 0.
    event_rate_hz : ndarray
        ``(N,)`` upward crossings of median + 3 x noise per second: a proxy, in which noise alone counts about
        0.04 Hz at 30 Hz and a burst counts once.
    num_samples : int
        Imaging frames used.
    status : ndarray
        ``(N,)`` 'ok'; 'nan' if any value is not finite; 'constant'.
    """

    skewness: NDArray[np.float64]
    kurtosis: NDArray[np.float64]
    snr: NDArray[np.float64]
    event_rate_hz: NDArray[np.float64]
    num_samples: int
    status: NDArray[np.str_]


def frame_spans(
    timestamps: NDArray[np.float64],
    intervals: NDArray[np.float64] | None,
    masked_domain: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Return the runs of imaging frames inside `intervals` and outside `masked_domain`.

    Parameters
    ----------
    timestamps : ndarray
        ``(T,)`` seconds, increasing.
    intervals : ndarray, optional
        ``(K, 2)`` seconds, half-open; they may overlap, and a frame counts once. None is the whole recording.
    masked_domain : ndarray
        ``(M, 2)`` seconds, half-open.

    Returns
    -------
    ndarray
        ``(R, 2)`` frames, half-open, in order.

    Examples
    --------
    >>> import numpy as np
    >>> frame_spans(np.arange(10.0), np.array([[1.0, 4.0], [3.0, 9.0]]), np.array([[5.0, 6.0]])).tolist()
    [[1, 5], [6, 9]]
    """
    inside = np.ones(len(timestamps), bool) if intervals is None else contains(timestamps, as_intervals(intervals))
    inside &= ~contains(timestamps, as_intervals(masked_domain))
    edges = np.diff(inside.astype(np.int8), prepend=0, append=0)
    return np.stack([np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)], axis=1)


def measure_units(
    recording: Recording, intervals: NDArray[np.float64] | None = None, *, chunk_frames: int | None = None
) -> UnitStatistics:
    """Measure every unit of a recording in two passes over its dF/F, a piece at a time.

    Parameters
    ----------
    recording : Recording
        Its `masked_domain` is always left out.
    intervals : ndarray, optional
        ``(K, 2)`` seconds, half-open, for example those of the training split; None is the whole recording.
    chunk_frames : int, optional
        Frames read at a time; by default about 1 MiB in float64. The result does not depend on it beyond rounding.

    Raises
    ------
    SelectionError
        If fewer than two imaging frames are left.

    Examples
    --------
    >>> import numpy as np
    >>> from poyo_ssl.data.recording import RecordingMetadata
    >>> dff = np.random.default_rng(0).gamma(4.0, size=(20_000, 1)).astype(np.float32)
    >>> found = measure_units(Recording("r", dff, np.arange(20_000) / 30, RecordingMetadata("mouse")))
    >>> found.status.tolist(), found.skewness.round(1).tolist(), found.num_samples  # a gamma's skewness is 2 / sqrt(4)
    (['ok'], [1.0], 20000)
    """
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
        usable_sample = np.where(finite, sample, 0.0)
        median, high = np.quantile(usable_sample, [0.5, 0.99], axis=0)
        noise = np.median(np.abs(np.where(finite, differences, 0.0)), axis=0) / (NORMAL_MAD * np.sqrt(2))
        snr = np.where(finite & (noise > 0), (high - median) / noise, np.nan)
    crossings = _count_crossings(recording, spans, chunk_frames, median + EVENT_THRESHOLD_SIGMAS * noise)
    varies = moments.low < moments.high
    return UnitStatistics(
        skewness=moments.skewness(),
        kurtosis=moments.kurtosis(),
        snr=snr,
        event_rate_hz=np.where(finite, crossings * recording.rate_hz / num_samples, np.nan),
        num_samples=num_samples,
        status=np.where(~finite, "nan", np.where(varies, "ok", "constant")),
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
    """Return moments, evenly spread frames and evenly spread differences of neighbouring frames."""
    moments = CentralMoments(recording.num_units)
    stride = -(-num_samples // SAMPLE_FRAMES)
    frames, differences, seen = [], [], 0
    with np.errstate(invalid="ignore"):
        for first, piece in _pieces(recording, spans, chunk_frames):
            rows = piece if first else piece[1:]
            moments.update(rows)
            wanted = np.arange(-seen % stride, len(rows), stride)
            frames.append(rows[wanted])
            # A run's first frame has none before it; `rows` lie one frame later in `piece` unless they are the first.
            after = wanted[wanted > 0] if first else wanted + 1
            differences.append(piece[after] - piece[after - 1])
            seen += len(rows)
    differences = differences if any(map(len, differences)) else [np.zeros((1, recording.num_units), np.float32)]
    return moments, np.concatenate(frames), np.concatenate(differences)


def _count_crossings(
    recording: Recording, spans: NDArray[np.int64], chunk_frames: int, threshold: NDArray[np.float64]
) -> NDArray[np.int64]:
    limit = threshold.astype(np.float32)
    counts = np.zeros(recording.num_units, np.int64)
    with np.errstate(invalid="ignore"):
        for _, piece in _pieces(recording, spans, chunk_frames):
            above = piece > limit
            counts += np.count_nonzero(above[1:] & ~above[:-1], axis=0)
    return counts
