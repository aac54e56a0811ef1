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
        """Return the values at `times`, linear between samples; NaN before the first and after the last one.

        Examples
        --------
        >>> import numpy as np
        >>> speed = TimeSeries(np.array([1.0, 2.0]), np.array([0.0, 10.0], np.float32))
        >>> speed.interpolate(np.array([0.5, 1.5])).tolist()
        [nan, 5.0]
        """
        columns = np.asarray(self.values, np.float64).reshape(len(self.timestamps), -1).T
        filled = [np.interp(times, self.timestamps, column, left=np.nan, right=np.nan) for column in columns]
        return np.stack(filled, axis=1).reshape(len(times), *self.values.shape[1:])


@dataclass(frozen=True)
class PupilTrace:
    """Where the eye looked and how wide the pupil was, samples without a fit left out.

    Attributes
    ----------
    timestamps : ndarray
        ``(n,)`` seconds on the recording's clock.
    location : ndarray
        ``(n, 2)`` gaze on the monitor in cm, x and y, origin at its centre.
    size : ndarray
        ``(n,)`` pupil area in pixels of the eye camera; NaN where only the location is known.
    """

    timestamps: NDArray[np.float64]
    location: NDArray[np.float32]
    size: NDArray[np.float32]


@dataclass(frozen=True)
class RoiMasks:
    """Pixels of the ROIs in the imaging plane, in coordinate form.

    Attributes
    ----------
    unit, row, column : ndarray
        ``(P,)`` which unit, and where: row is y, column is x.
    image_shape : tuple of int
        Height and width of the imaging plane in pixels.
    """

    unit: NDArray[np.int32]
    row: NDArray[np.int32]
    column: NDArray[np.int32]
    image_shape: tuple[int, int] = (512, 512)

    def dense(self, unit: int) -> NDArray[np.bool_]:
        """Return one unit's mask, ``(height, width)``, True inside.

        Examples
        --------
        >>> import numpy as np
        >>> masks = RoiMasks(np.array([0, 1, 1]), np.array([0, 1, 1]), np.array([2, 0, 1]), (2, 3))
        >>> masks.dense(1).astype(int).tolist()
        [[0, 0, 0], [1, 1, 0]]
        """
        image = np.zeros(self.image_shape, bool)
        mine = self.unit == unit
        image[self.row[mine], self.column[mine]] = True
        return image

    def geometry(self, num_units: int) -> dict[str, NDArray[np.float64]]:
        """Return centroid and extent of each unit, NaN where a mask is empty.

        Returns
        -------
        dict
            ``imaging_plane_xy`` ``(N, 2)``, in spite of the layout's name as (row, column); ``imaging_plane_area``,
            ``imaging_plane_width`` and ``imaging_plane_height``, ``(N,)`` in pixels.

        Examples
        --------
        >>> import numpy as np
        >>> masks = RoiMasks(np.array([1, 1]), np.array([4, 4]), np.array([7, 8]), (9, 9))
        >>> {name: values[1].tolist() for name, values in masks.geometry(2).items()}  # doctest: +NORMALIZE_WHITESPACE
        {'imaging_plane_xy': [4.0, 7.5], 'imaging_plane_area': 2.0, 'imaging_plane_width': 2.0,
         'imaging_plane_height': 1.0}
        """
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
