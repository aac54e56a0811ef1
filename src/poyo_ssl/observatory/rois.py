"""Where the cells of a simulated plane lie: round masks that do not overlap."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from poyo_ssl.config import check
from poyo_ssl.data.series import RoiMasks

PLANE_SHAPE = (512, 512)
"""Pixels of an Allen imaging plane, 400 x 400 micrometres."""
RADII_PX = (5.0, 8.0)
"""Radius of a cell body: 4 to 6 micrometres at 0.78 micrometres a pixel."""
BORDER_PX = 10


def draw_roi_masks(num_units: int, rng: np.random.Generator) -> RoiMasks:
    """Draw a disc for every unit, in a random cell of a grid and off its middle, so that none overlap.

    Parameters
    ----------
    num_units : int
        Number of units, at most 729.
    rng : numpy.random.Generator
        Source of places and radii.

    Raises
    ------
    ConfigError
        If so many cells do not fit into the plane.

    Examples
    --------
    >>> masks = draw_roi_masks(20, np.random.default_rng(0))
    >>> sorted(set(masks.unit.tolist())) == list(range(20)), bool((masks.dense(0) & masks.dense(1)).any())
    (True, False)
    """
    return paint_discs(*draw_places(num_units, rng))


def draw_places(
    num_units: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Draw row, column and radius of every unit's disc in pixels, ``(num_units,)`` each; see `draw_roi_masks`."""
    spacing = int(2 * RADII_PX[1]) + 2
    per_side = (min(PLANE_SHAPE) - 2 * BORDER_PX) // spacing
    check(
        1 <= num_units <= per_side**2,
        f"{num_units} units in one imaging plane",
        f"1 to {per_side**2}",
        "simulate fewer units per recording",
    )
    places = np.stack(np.divmod(rng.permutation(per_side**2)[:num_units], per_side), axis=1)
    radii = rng.uniform(*RADII_PX, num_units)
    slack = (spacing - 1) / 2 - radii
    centres = BORDER_PX + (places + 0.5) * spacing + rng.uniform(-1, 1, (num_units, 2)) * slack[:, None]
    return centres[:, 0], centres[:, 1], radii


def paint_discs(rows: NDArray[np.float64], columns: NDArray[np.float64], radii: NDArray[np.float64]) -> RoiMasks:
    """Return the pixels within each disc, ``(N,)`` rows, columns and radii in pixels."""
    row, column = np.indices(PLANE_SHAPE, np.int32)
    discs = zip(rows, columns, radii, strict=True)
    pixels = [np.nonzero(np.hypot(row - y, column - x) < radius) for y, x, radius in discs]
    unit = np.repeat(np.arange(len(radii), dtype=np.int32), [len(inside) for inside, _ in pixels])
    inside, across = (np.concatenate(parts).astype(np.int32) for parts in zip(*pixels, strict=True))
    return RoiMasks(unit, inside, across, PLANE_SHAPE)
