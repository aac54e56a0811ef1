"""What the simple decoders read: windows of one recording in time bins, and what else is known of their moments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.stats import median_abs_deviation

from poyo_ssl.data.recording import Recording
from poyo_ssl.data.splits import GRATINGS
from poyo_ssl.data.stimuli import MOVIE_PREFIX
from poyo_ssl.data.windows import Normalisation, WindowTable
from poyo_ssl.errors import ConfigError, RecordingError

Array = NDArray[Any]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

NUM_BINS = 3  # time bins of raw dF/F and of what is no activity
MOST_FEATURES = 1000  # bins of the model's input beyond NUM_BINS are joined where there would be more features
WINDOWS_PER_BLOCK = 256


def bin_features(windows: Array, num_bins: int) -> FloatArray:  # (N, C * num_bins)
    """Average windows ``(N, T, C)`` in time bins that differ by one frame at most; a neuron's lie side by side."""
    num_windows, num_frames, num_units = windows.shape
    if not 1 <= num_bins <= num_frames:
        raise ConfigError(
            f"{num_bins} time bins for windows of {num_frames} frames",
            allowed=f"1 to {num_frames}",
            fix="change num_bins",
        )
    edges = np.arange(num_bins + 1) * num_frames // num_bins
    sums = np.add.reduceat(windows, edges[:-1], axis=1, dtype=np.float64)
    means = sums / np.diff(edges)[:, None]  # (N, num_bins, C)
    return np.ascontiguousarray(means.transpose(0, 2, 1)).reshape(num_windows, num_units * num_bins)


@dataclass(frozen=True)
class FeatureScaler:
    """Z-scores features with the moments of those that are fitted; constant features become 0."""

    mean: FloatArray  # (F,)
    scale: FloatArray  # (F,) infinite where a feature is constant

    @classmethod
    def fit(cls, x: Array) -> FeatureScaler:
        """Take mean and standard deviation of features ``(N, F)``."""
        mean, scale = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
        # The deviation of a constant is rounding noise, not exactly 0.
        constant = scale <= 1e-12 * np.maximum(1.0, np.abs(mean))
        return cls(mean, np.where(constant, np.inf, scale))

    @classmethod
    def fit_robust(cls, x: Array) -> FeatureScaler:
        """Take median and scaled median absolute deviation, or the standard deviation where the latter is 0."""
        plain = cls.fit(x)
        middle = np.median(x, axis=0).astype(np.float64)
        deviation = median_abs_deviation(x, axis=0, scale="normal")
        useless = np.isinf(plain.scale) | (deviation <= 1e-12 * np.maximum(1.0, np.abs(middle)))
        return cls(middle, np.where(useless, plain.scale, deviation))

    def __call__(self, x: Array) -> FloatArray:
        """Scale features ``(N, F)``."""
        return np.asarray((x - self.mean) / self.scale, dtype=np.float64)


T = TypeVar("T")

BLOCK_VALUES = 2**15
"""Values of a block: a few float64 arrays of it fit a core's cache, and torch starts no threads of its own for it."""


def in_blocks(work: Callable[[slice], T], num_rows: int, num_columns: int) -> list[T]:
    """Do some work on every block of rows, of about `BLOCK_VALUES` values each, and return the results in order.

    As many threads as torch uses (``OMP_NUM_THREADS``) take blocks in turns; numpy and torch let go of Python's lock.
    """
    import torch  # here, since reports need the scores of decoders but no torch

    size = max(BLOCK_VALUES // num_columns, 1)
    blocks = [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]
    threads = min(torch.get_num_threads(), len(blocks))
    if threads <= 1:
        return [work(rows) for rows in blocks]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, blocks))


@dataclass(frozen=True)
class RecordingWindows:
    """Windows of one recording, and the features read from them so far."""

    recording: Recording
    columns: IntArray  # (C,) units
    table: WindowTable  # of this recording alone
    order: IntArray | None = None  # (C,) puts each unit's values in the place of another
    _features: dict[str, FloatArray] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, recording: Recording, columns: IntArray, table: WindowTable, index: int) -> RecordingWindows:
        """Take the windows of recording number `index` out of a table of several."""
        return cls(recording, columns, table.select(table.recording_index == index))

    def __len__(self) -> int:
        return len(self.table)

    @property
    def target(self) -> IntArray:
        """``(N,)`` class, frame number or row of the movie frames."""
        return self.table.target

    def shuffled(self, rng: np.random.Generator) -> RecordingWindows:
        """Put every unit in the place of another, the same one in all windows."""
        return replace(self, order=rng.permutation(len(self.columns)))

    def features(self, name: str, view: View) -> FloatArray:  # (N, F)
        """Read a view once, whoever asks for it by this name."""
        if name not in self._features:
            self._features[name] = view(self)
        return self._features[name]

    def binned(
        self, signal: Array | None = None, *, num_bins: int = NUM_BINS, normalisation: Normalisation | None = None
    ) -> FloatArray:  # (N, C * bins)
        """Average dF/F, normalised or not, or another signal ``(T, C)`` in time bins, block by block."""
        table = self.table
        bins = min(num_bins, table.num_frames)
        blocks = []
        for start in range(0, len(self), WINDOWS_PER_BLOCK):
            frames = table.first_low[start : start + WINDOWS_PER_BLOCK, None] + np.arange(table.num_frames)
            low, high = int(frames.min()), int(frames.max()) + 1
            if signal is None:
                # A slice is one read; windows of one block lie close together.
                values = self.recording.read_dff(low, high)[:, self.columns]
                if normalisation is not None:
                    values = normalisation.apply(values, np.arange(len(self.columns)))
                values = values if self.order is None else values[:, self.order]
            else:
                values = np.asarray(signal[low:high], np.float32)
            blocks.append(bin_features(values[frames - low], bins))
        return np.concatenate(blocks)


View = Callable[[RecordingWindows], FloatArray]
"""From windows to ``(N, F)`` features."""


@dataclass(frozen=True)
class Activity:
    """dF/F in time bins: as it is, or normalised as the models' input."""

    num_bins: int = NUM_BINS
    method: str = "raw"  # of normalisation
    normalisation: Normalisation | None = None  # of the recording's units

    @property
    def name(self) -> str:
        """How the input is called in what a baseline chose."""
        return f"{self.method} dF/F in {self.num_bins} bin{'s' if self.num_bins > 1 else ''}"

    def __call__(self, windows: RecordingWindows) -> FloatArray:
        """Read the windows."""
        return windows.binned(num_bins=self.num_bins, normalisation=self.normalisation)


def activity_inputs(
    num_frames: int, num_units: int, normalisations: Mapping[tuple[str, int], Normalisation]
) -> dict[str, Activity]:
    """Name what baselines may read, the fewest bins first: the models' input in one and in their bins, and raw dF/F.

    The models' input is given by method and imaging frames per bin.
    """
    most = max(NUM_BINS, MOST_FEATURES // num_units)
    inputs = []
    for (method, bin_frames), normalisation in normalisations.items():
        fitted = None if method == "raw" else normalisation
        inputs += [Activity(bins, method, fitted) for bins in (1, min(num_frames // bin_frames, most))]
    # A sort keeps the order of equals: of as many bins, the models' input before raw dF/F.
    inputs = sorted([*inputs, Activity(min(NUM_BINS, num_frames))], key=lambda own: own.num_bins)
    return {own.name: own for own in inputs}


def time_in_session(windows: RecordingWindows) -> FloatArray:  # (N, 3)
    """Return time in the session, squared and cubed, in units of the session's length: what slow drift offers."""
    recording = windows.recording
    fraction = (windows.table.target_time - recording.timestamps[0]) / recording.duration_s
    return fraction[:, None] ** np.arange(1, 4)


def running_speed(windows: RecordingWindows) -> FloatArray:  # (N, 3)
    """Average running speed in three time bins."""
    running = windows.recording.running
    if running is None:
        raise RecordingError(
            f"recording {windows.recording.recording_id} has no running speed", fix="leave this control out"
        )
    known = np.isfinite(running.values)
    speed = np.interp(windows.recording.timestamps, running.timestamps[known], running.values[known])
    return windows.binned(speed[:, None])


def true_drive(windows: RecordingWindows) -> FloatArray:  # (N, C * 3)
    """Average the stimulus-driven rates of the units, which a simulation knows without noise, in three time bins.

    A decoder of them is a ceiling of unseen frames only where a validation clip chooses its settings: on frames that
    trained they overfit (docs/log.md).
    """
    return windows.binned(driven_rates(windows.recording, windows.columns))


def has_truth(recording: Recording) -> bool:
    """Tell whether `true_drive` is known of a recording."""
    return "gray_rate_hz" in recording.truth


def driven_rates(recording: Recording, columns: IntArray) -> NDArray[np.float32]:  # (T, C) Hz
    """Return the rate that frame, grating or gray gives each unit while all else has its mean effect."""
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
