"""Feature arrays for the simple decoders: windows averaged in time bins, z-scored on the training part."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray
from scipy.stats import median_abs_deviation

from poyo_ssl.data.recording import Recording
from poyo_ssl.data.splits import GRATINGS
from poyo_ssl.data.stimuli import MOVIE_PREFIX
from poyo_ssl.data.windows import WindowTable
from poyo_ssl.errors import ConfigError, RecordingError, SplitError

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def bin_features(dff_windows: Array, num_bins: int) -> FloatArray:
    """Average windows within time bins of (nearly) equal length.

    Parameters
    ----------
    dff_windows : ndarray
        ``(B, T, C)`` dF/F or events.
    num_bins : int
        Number of bins, at most T. Where T is no multiple of it, bins differ by one frame.

    Returns
    -------
    ndarray
        ``(B, C * num_bins)`` float64; the bins of one neuron lie beside each other.

    Raises
    ------
    ConfigError
        If `num_bins` is not in 1 to T.

    Examples
    --------
    >>> bin_features(np.arange(6.0).reshape(1, 6, 1), 3)
    array([[0.5, 2.5, 4.5]])
    """
    num_windows, num_frames, num_units = dff_windows.shape
    if not 1 <= num_bins <= num_frames:
        raise ConfigError(
            f"{num_bins} time bins for windows of {num_frames} frames",
            allowed=f"1 to {num_frames}",
            fix="change num_bins",
        )
    edges = np.arange(num_bins + 1) * num_frames // num_bins
    sums = np.add.reduceat(dff_windows, edges[:-1], axis=1, dtype=np.float64)
    means = sums / np.diff(edges)[:, None]  # (B, num_bins, C)
    return np.ascontiguousarray(means.transpose(0, 2, 1)).reshape(num_windows, num_units * num_bins)


@dataclass(frozen=True)
class FeatureScaler:
    """Z-scores features with the moments of the training part; constant features become 0.

    Attributes
    ----------
    mean, scale : ndarray
        ``(F,)`` mean and standard deviation of the training features (scale infinite where that is 0).

    Examples
    --------
    >>> scaler = FeatureScaler.fit(np.array([[0.0, 5.0], [2.0, 5.0]]))
    >>> scaler(np.array([[3.0, 9.0]]))
    array([[2., 0.]])
    """

    mean: FloatArray
    scale: FloatArray

    @classmethod
    def fit(cls, x_train: Array) -> FeatureScaler:
        """Take the moments of ``(N, F)`` training features."""
        mean, scale = x_train.mean(axis=0, dtype=np.float64), x_train.std(axis=0, dtype=np.float64)
        # The deviation of a constant is rounding noise, not exactly 0.
        constant = scale <= 1e-12 * np.maximum(1.0, np.abs(mean))
        return cls(mean, np.where(constant, np.inf, scale))

    @classmethod
    def fit_robust(cls, x_train: Array) -> FeatureScaler:
        """Take median and scaled median absolute deviation, or the standard deviation where the latter is 0.

        Examples
        --------
        >>> scaler = FeatureScaler.fit_robust(np.array([[-1.0], [0.0], [1.0], [2.0], [900.0]]))
        >>> scaler(np.array([[1 + 1.4826]])).round(4)
        array([[1.]])
        """
        plain = cls.fit(x_train)
        middle = np.median(x_train, axis=0).astype(np.float64)
        deviation = median_abs_deviation(x_train, axis=0, scale="normal")
        useless = np.isinf(plain.scale) | (deviation <= 1e-12 * np.maximum(1.0, np.abs(middle)))
        return cls(middle, np.where(useless, plain.scale, deviation))

    def __call__(self, x: Array) -> FloatArray:
        """Return z-scored ``(N, F)`` features."""
        return np.asarray((x - self.mean) / self.scale, dtype=np.float64)


def check_parts(x_train: Array, y_train: Array, x_valid: Array, y_valid: Array, *, num_classes: int) -> None:
    """Check features ``(N, F)`` and integer targets ``(N,)`` of both parts.

    Raises
    ------
    SplitError
        If a part has no windows.
    ConfigError
        If shapes disagree, a feature is NaN or infinite, or a target is not an integer of 0 to
        ``num_classes - 1``; the message names the first offender.

    Examples
    --------
    >>> x, y = np.zeros((2, 3)), np.array([0, 7])
    >>> check_parts(x, y, x, y, num_classes=4)
    Traceback (most recent call last):
    poyo_ssl.errors.ConfigError: target 7 of training window 1 (allowed: 0 to 3); check the labels
    """
    for part, x, y in (("training", x_train, y_train), ("validation", x_valid, y_valid)):
        if len(y) == 0:
            raise SplitError(f"no windows in the {part} part of a baseline", fix="check the split's intervals")
        if x.ndim != 2 or len(x) != len(y) or x.shape[1] != x_train.shape[1]:
            raise ConfigError(
                f"{part} features of shape {x.shape} for {len(y)} targets",
                allowed=f"({len(y)}, {x_train.shape[-1]})",
                fix="build both parts with bin_features",
            )
        finite = np.isfinite(x).all(axis=1)
        if not finite.all():
            raise ConfigError(f"NaN or infinite feature in {part} window {int(np.argmin(finite))}", fix="leave it out")
        wrong = (y < 0) | (y >= num_classes) | (y != np.floor(y))
        if wrong.any():
            row = int(np.argmax(wrong))
            raise ConfigError(
                f"target {y[row]} of {part} window {row}", allowed=f"0 to {num_classes - 1}", fix="check the labels"
            )


T = TypeVar("T")

BLOCK_VALUES = 2**15
"""Values of a block: a few float64 arrays of it fit a core's cache, and torch starts no threads of its own for it."""


def in_blocks(work: Callable[[slice], T], num_rows: int, num_columns: int) -> list[T]:
    """Do some work on every block of rows and return the results in order.

    As many threads as torch uses (``OMP_NUM_THREADS``) take blocks in turns; numpy and torch let go of Python's lock.

    Parameters
    ----------
    work : callable
        From a slice of rows to a result.
    num_rows, num_columns : int
        Size of what is worked on; a block has about ``BLOCK_VALUES`` values, and at least one row.

    Examples
    --------
    >>> in_blocks(lambda rows: (rows.start, rows.stop), 3, BLOCK_VALUES // 2)
    [(0, 2), (2, 3)]
    """
    import torch  # here, since reports need the scores of decoders but no torch

    size = max(BLOCK_VALUES // num_columns, 1)
    blocks = [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]
    threads = min(torch.get_num_threads(), len(blocks))
    if threads <= 1:
        return [work(rows) for rows in blocks]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, blocks))


NUM_BINS = 3
"""Time bins per window; no more than it has frames."""
WINDOWS_PER_BLOCK = 256

Signal = NDArray
"""``(T, C)`` in the place of dF/F."""


@dataclass(frozen=True)
class Part:
    """One part (train, valid or a test) of one recording.

    Attributes
    ----------
    recording : Recording
        The recording.
    columns : ndarray
        ``(C,)`` units.
    table : WindowTable
        Windows of this recording alone.
    """

    recording: Recording
    columns: IntArray
    table: WindowTable

    def __len__(self) -> int:
        return len(self.table)

    @property
    def target(self) -> IntArray:
        """``(N,)`` class, frame number or row of the frame bank."""
        return self.table.target

    @property
    def time(self) -> FloatArray:
        """``(N,)`` seconds of the targets."""
        return self.table.target_time

    @classmethod
    def of(cls, recording: Recording, columns: IntArray, table: WindowTable, index: int) -> Part:
        """Take the rows of recording number `index` out of a table of several."""
        return cls(recording, columns, table.select(table.recording_index == index))

    def windows(self, signal: Signal | None = None) -> NDArray[np.float32]:
        """``(N, T, C)`` dF/F of the windows, or of another signal of the same units."""
        blocks = [self._read(slice(i, i + WINDOWS_PER_BLOCK), signal) for i in range(0, len(self), WINDOWS_PER_BLOCK)]
        return np.concatenate(blocks)

    def binned(self, signal: Signal | None = None, *, num_bins: int = NUM_BINS) -> FloatArray:
        """``(N, C x bins)`` means over time bins, read block by block."""
        bins = min(num_bins, self.table.num_frames)
        blocks = [
            bin_features(self._read(slice(i, i + WINDOWS_PER_BLOCK), signal), bins)
            for i in range(0, len(self), WINDOWS_PER_BLOCK)
        ]
        return np.concatenate(blocks)

    def _read(self, rows: slice, signal: Signal | None) -> NDArray[np.float32]:
        frames = self.table.first_low[rows][:, None] + np.arange(self.table.num_frames)
        low, high = int(frames.min()), int(frames.max()) + 1
        if signal is None:
            # A slice is one read; windows of one block lie close together.
            return self.recording.read_dff(low, high)[:, self.columns][frames - low]
        return np.asarray(signal[low:high], np.float32)[frames - low]


View = Callable[[Part], FloatArray]


def activity(part: Part) -> FloatArray:
    """``(N, C x 3)`` dF/F in three time bins."""
    return part.binned()


def time_in_session(part: Part) -> FloatArray:
    """``(N, 3)`` time in the session, squared and cubed, in units of the session's length: what slow drift offers."""
    fraction = (part.time - part.recording.timestamps[0]) / part.recording.duration_s
    return fraction[:, None] ** np.arange(1, 4)


def running_speed(part: Part) -> FloatArray:
    """``(N, 3)`` running speed in three time bins.

    Raises
    ------
    RecordingError
        If the recording has no running speed.
    """
    running = part.recording.running
    if running is None:
        raise RecordingError(
            f"recording {part.recording.recording_id} has no running speed", fix="leave this control out"
        )
    known = np.isfinite(running.values)
    speed = np.interp(part.recording.timestamps, running.timestamps[known], running.values[known])
    return part.binned(speed[:, None])


def true_drive(part: Part) -> FloatArray:
    """``(N, C x 3)`` the true stimulus-driven rates of the units in three time bins, without noise.

    A simulation knows them: the rate that the movie frame or grating on the screen at each imaging frame gives while
    everything else has its mean effect, and the rate on gray. A decoder of it is a ceiling of unseen frames only
    where a validation clip chooses its hyper-parameters: on frames that trained they overfit (docs/log.md).

    Raises
    ------
    RecordingError
        If the recording has no such truth.
    """
    return part.binned(driven_rates(part.recording, part.columns))


def has_truth(recording: Recording) -> bool:
    """Tell whether `true_drive` is known of a recording."""
    return "gray_rate_hz" in recording.truth


def driven_rates(recording: Recording, columns: IntArray) -> NDArray[np.float32]:
    """``(T, C)`` true rate in Hz that the stimulus gives each unit; errors as in `true_drive`."""
    if not has_truth(recording):
        raise RecordingError(
            f"recording {recording.recording_id} has no true rates", fix="leave this ceiling out or use an observatory"
        )
    truth, stamps = recording.truth, recording.timestamps
    rate = np.tile(truth["gray_rate_hz"][columns], (len(stamps), 1)).astype(np.float32)
    for name, table in recording.stimuli.items():
        key = f"{name}_rate_hz"
        if key not in truth:
            continue
        row = np.searchsorted(table.start, stamps, side="right") - 1
        on = (row >= 0) & (stamps < table.end[np.maximum(row, 0)])
        if name == GRATINGS:
            blank = np.asarray(table.columns["blank_sweep"], bool)
            on &= ~blank[np.maximum(row, 0)]
            frequencies = np.unique(table.columns["temporal_frequency"][~blank])
            direction = table.columns["orientation_id"][row[on]].astype(int)
            column = np.searchsorted(frequencies, table.columns["temporal_frequency"][row[on]])
            rate[on] = truth[key][..., columns][direction, column]
        elif name.startswith(MOVIE_PREFIX):
            rate[on] = truth[key][:, columns][table.columns["frame"][row[on]]]
    return rate
