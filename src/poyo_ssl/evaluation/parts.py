"""What a baseline sees of a split: one part of one recording, as windows of activity and what else there is.

The windows are those of the models. Every view below is a function from a part to ``(N, F)`` features; `baselines` and
`controls` say which decoder reads which view.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from poyo_ssl.data.recording import Recording
from poyo_ssl.data.splits import GRATINGS
from poyo_ssl.data.stimuli import MOVIE_PREFIX
from poyo_ssl.data.windows import WindowTable
from poyo_ssl.errors import RecordingError
from poyo_ssl.evaluation.features import FloatArray, IntArray, bin_features

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
