"""Small series that travel with a recording: behaviour and events."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TimeSeries:
    """A behavioural trace: ``timestamps`` (n,) seconds and ``values`` (n,)."""

    timestamps: NDArray[np.float64]
    values: NDArray[np.float32]


@dataclass(frozen=True)
class SparseEvents:
    """Neural events in coordinate form: ``frame`` (M,), ``unit`` (M,) and ``value`` (M,)."""

    frame: NDArray[np.int64]
    unit: NDArray[np.int64]
    value: NDArray[np.float32]

    def dense(self, num_frames: int, num_units: int) -> NDArray[np.float32]:
        """Return the ``(num_frames, num_units)`` array of summed event values.

        Examples
        --------
        >>> import numpy as np
        >>> events = SparseEvents(np.array([1, 1]), np.array([0, 0]), np.array([1.0, 2.0], np.float32))
        >>> events.dense(3, 1).ravel().tolist()
        [0.0, 3.0, 0.0]
        """
        grid = np.zeros((num_frames, num_units), np.float32)
        np.add.at(grid, (self.frame, self.unit), self.value)
        return grid
