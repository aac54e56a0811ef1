"""What travels with a recording beside dF/F: behaviour, masks and events."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TimeSeries:
    """A behavioural trace: ``timestamps`` (n,) seconds and ``values`` (n,) or, with several columns, (n, k)."""

    timestamps: NDArray[np.float64]
    values: NDArray[np.float32]

    def interpolate(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the values at `times`, linear between samples; NaN before the first and after the last one."""
        columns = np.asarray(self.values, np.float64).reshape(len(self.timestamps), -1).T
        filled = [np.interp(times, self.timestamps, column, left=np.nan, right=np.nan) for column in columns]
        return np.stack(filled, axis=1).reshape(len(times), *self.values.shape[1:])


@dataclass(frozen=True)
class PupilTrace:
    """Where the eye looked and how wide the pupil was, samples without a fit left out."""

    timestamps: NDArray[np.float64]  # (n,) seconds on the recording's clock
    location: NDArray[np.float32]  # (n, 2) gaze on the monitor in cm, x and y, origin at its centre
    size: NDArray[np.float32]  # (n,) pupil area in pixels of the eye camera; NaN where only the location is known


@dataclass(frozen=True)
class RoiMasks:
    """Pixels of the ROIs in the imaging plane, in coordinate form."""

    unit: NDArray[np.int32]  # (P,), as the next two
    row: NDArray[np.int32]  # y
    column: NDArray[np.int32]  # x
    image_shape: tuple[int, int] = (512, 512)  # height and width in pixels

    def dense(self, unit: int) -> NDArray[np.bool_]:
        """Return one unit's mask, ``(height, width)``, True inside."""
        image = np.zeros(self.image_shape, bool)
        mine = self.unit == unit
        image[self.row[mine], self.column[mine]] = True
        return image

    def geometry(self, num_units: int) -> dict[str, NDArray[np.float64]]:
        """Return centroid and extent of each unit in pixels, NaN where a mask is empty."""
        area = np.bincount(self.unit, minlength=num_units).astype(float)
        area[area == 0] = np.nan
        centre, extent = [], []
        for values in (self.row, self.column):
            centre.append(np.bincount(self.unit, values, num_units) / area)
            low, high = np.full(num_units, np.inf), np.full(num_units, -np.inf)
            np.minimum.at(low, self.unit, values)
            np.maximum.at(high, self.unit, values)
            extent.append(np.where(np.isnan(area), np.nan, high - low + 1))
        return {
            # (N, 2) as (row, column), in spite of the layout's name
            "imaging_plane_xy": np.stack(centre, axis=1),
            "imaging_plane_area": area,
            "imaging_plane_width": extent[1],
            "imaging_plane_height": extent[0],
        }


@dataclass(frozen=True)
class SparseEvents:
    """Neural events in coordinate form: ``frame`` (M,), ``unit`` (M,) and ``value`` (M,)."""

    frame: NDArray[np.int64]
    unit: NDArray[np.int64]
    value: NDArray[np.float32]

    def dense(self, num_frames: int, num_units: int) -> NDArray[np.float32]:
        """Return the ``(num_frames, num_units)`` array of summed event values."""
        grid = np.zeros((num_frames, num_units), np.float32)
        np.add.at(grid, (self.frame, self.unit), self.value)
        return grid
