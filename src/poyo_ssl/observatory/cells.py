"""Neurons of the observatory: where they lie, what part of the screen they see, and what they prefer there.

Cells of a field of view see neighbouring parts of the screen (retinotopy with scatter). Their tuning drifts from day
to day; over the sessions of a container the same cell is found again or missed.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from poyo_ssl.config import check
from poyo_ssl.data.series import RoiMasks
from poyo_ssl.data.stimuli import MOVIE_PREFIX
from poyo_ssl.errors import ConfigError
from poyo_ssl.observatory.worlds import CellClass

PLANE_SHAPE = (512, 512)
"""Pixels of an Allen imaging plane, 400 x 400 micrometres."""
RADII_PX = (5.0, 8.0)
"""Radius of a cell body: 4 to 6 micrometres at 0.78 micrometres a pixel."""
BORDER_PX = 10


def draw_roi_masks(num_units: int, rng: np.random.Generator) -> RoiMasks:
    """Draw a disc for every unit, in a random cell of a grid and off its middle, so that none overlap."""
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


SCREEN_DEG = (67.5, 120.0)
"""Height and width of the screen in degrees of visual angle: 16 to 9, as far as the Allen's noise reaches sideways."""

FIELD_DEG = {"VISp": 22.0}
"""Visual angle across a field of view of 400 micrometres; other areas are smaller and so see more in one."""

FIELD_DEG_ELSEWHERE = 40.0
RF_SCATTER_DEG = 4.0
SPATIAL_FREQUENCY_RANGE_CPD = (0.02, 0.12)

STIMULUS_KINDS = ("drifting_gratings", "static_gratings", "natural_scenes", MOVIE_PREFIX, "locally_sparse_noise")
"""Kinds that a neuron can like more or less than others; the three movies are one kind."""


@dataclass(frozen=True)
class Population:
    """Tuning of N neurons, ``(N,)`` each."""

    rf_x_deg: NDArray[np.float64]  # Receptive-field centre, from the middle of the screen; right and up are positive
    rf_y_deg: NDArray[np.float64]
    rf_sigma_deg: NDArray[np.float64]  # Standard deviation of the receptive field's envelope
    direction_deg: NDArray[np.float64]  # Preferred direction of drift; the preferred orientation lies across it
    direction_selectivity: NDArray[np.float64]  # 1: the opposite direction drives only by overlap; 0: both alike
    spatial_frequency_cpd: NDArray[np.float64]
    temporal_frequency_hz: NDArray[np.float64]
    phase_rad: NDArray[np.float64]  # Phase of the Gabor, which matters for simple cells
    time_constant_s: NDArray[np.float64]  # Of the temporal kernel, whose peak lies at twice that
    simple: NDArray[np.bool_]
    tuned: NDArray[np.bool_]  # Driven by stimuli at all
    suppressed: NDArray[np.bool_]  # Silenced by what would drive others
    exponent: NDArray[np.float64]  # Power of the filters' energy: above 1 the cell answers to fewer pictures
    affinity: NDArray[np.float64]  # ``(N, 5)`` how much each of `STIMULUS_KINDS` drives the cell, about 1
    relative_rate: NDArray[np.float64]  # Mean rate over the median of the class
    roi_row_px: NDArray[np.float64]  # Place and radius in the imaging plane of 512 x 512 pixels
    roi_column_px: NDArray[np.float64]
    roi_radius_px: NDArray[np.float64]

    def __post_init__(self) -> None:
        for axis, half in (("y", SCREEN_DEG[0] / 2), ("x", SCREEN_DEG[1] / 2)):
            away = getattr(self, f"rf_{axis}_deg")
            for unit in np.flatnonzero(~(np.abs(away) <= half)):
                where = f"neuron {unit}: receptive field at rf_{axis}_deg {away[unit]:.1f}, off the screen"
                raise ConfigError(where, allowed=f"-{half} to {half}", fix="move it onto the screen")

    def __len__(self) -> int:
        return len(self.rf_x_deg)

    def select(self, rows: NDArray[np.int64]) -> Population:
        """Return some of the neurons."""
        return Population(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def draw_population(cell: CellClass, num_units: int, rng: np.random.Generator, *, area: str = "VISp") -> Population:
    """Draw the tuning of `num_units` neurons of one field of view."""
    half_height, half_width = SCREEN_DEG[0] / 2, SCREEN_DEG[1] / 2
    centre = rng.uniform(-0.55, 0.55) * half_width, rng.uniform(-0.4, 0.4) * half_height
    row, column, radius = draw_places(num_units, rng)
    span = FIELD_DEG.get(area, FIELD_DEG_ELSEWHERE)
    turn = rng.uniform(0, 2 * np.pi)
    up, across = span * (0.5 - row / PLANE_SHAPE[0]), span * (column / PLANE_SHAPE[1] - 0.5)
    x = centre[0] + np.cos(turn) * across - np.sin(turn) * up + RF_SCATTER_DEG * rng.standard_normal(num_units)
    y = centre[1] + np.sin(turn) * across + np.cos(turn) * up + RF_SCATTER_DEG * rng.standard_normal(num_units)
    spatial = np.clip(0.045 * np.exp(0.4 * rng.standard_normal(num_units)), *SPATIAL_FREQUENCY_RANGE_CPD)
    kinds = len(STIMULUS_KINDS)
    return Population(
        rf_x_deg=np.clip(x, -0.95 * half_width, 0.95 * half_width),
        rf_y_deg=np.clip(y, -0.95 * half_height, 0.95 * half_height),
        rf_sigma_deg=cell.rf_cycles * rng.uniform(0.8, 1.2, num_units) / spatial,
        direction_deg=rng.uniform(0, 360, num_units),
        direction_selectivity=rng.beta(1.5, 1.5, num_units),
        spatial_frequency_cpd=spatial,
        temporal_frequency_hz=np.exp(rng.uniform(np.log(1.0), np.log(6.0), num_units)),
        phase_rad=rng.uniform(0, 2 * np.pi, num_units),
        time_constant_s=rng.uniform(0.02, 0.035, num_units),
        simple=rng.random(num_units) < cell.simple_fraction,
        tuned=rng.random(num_units) >= cell.untuned_fraction,
        suppressed=rng.random(num_units) < cell.suppressed_fraction,
        exponent=np.full(num_units, cell.drive_exponent),
        affinity=np.exp(cell.affinity_spread * rng.standard_normal((num_units, kinds))),
        relative_rate=np.exp(cell.rate_spread * rng.standard_normal(num_units)),
        roi_row_px=row,
        roi_column_px=column,
        roi_radius_px=radius,
    )


def drift_population(population: Population, cell: CellClass, days: float, rng: np.random.Generator) -> Population:
    """Return the same neurons some days later: preferred direction, place and rate have wandered.

    All grow with the square root of time, as random walks do; after one day their standard deviations are `drift`
    times 45 degrees, 5 degrees of visual angle and 1 in the logarithm of the rate.
    """
    scale = cell.drift * np.sqrt(days)
    step = rng.standard_normal((4, len(population)))
    half_height, half_width = 0.95 * SCREEN_DEG[0] / 2, 0.95 * SCREEN_DEG[1] / 2
    return replace(
        population,
        direction_deg=population.direction_deg + 45 * scale * step[0],
        rf_x_deg=np.clip(population.rf_x_deg + 5 * scale * step[1], -half_width, half_width),
        rf_y_deg=np.clip(population.rf_y_deg + 5 * scale * step[2], -half_height, half_height),
        relative_rate=population.relative_rate * np.exp(scale * step[3]),
    )


def screen_grid(height: int, width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the centres of the pixels in degrees, ``(height * width,)`` each; the first row is the top."""
    x = ((np.arange(width) + 0.5) / width - 0.5) * SCREEN_DEG[1]
    y = (0.5 - (np.arange(height) + 0.5) / height) * SCREEN_DEG[0]
    grid_y, grid_x = np.meshgrid(y, x, indexing="ij")
    return grid_x.ravel(), grid_y.ravel()


def build_spatial_filters(
    population: Population, x: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[np.complex64]:
    """Return the complex Gabors at points of the screen, ``(points, N)``, without response to uniform grey."""
    from_x, from_y = x[:, None] - population.rf_x_deg, y[:, None] - population.rf_y_deg
    envelope = np.exp(-(from_x**2 + from_y**2) / (2 * population.rf_sigma_deg**2))
    envelope /= envelope.sum(0)
    angle = np.deg2rad(population.direction_deg)
    along = np.cos(angle) * from_x + np.sin(angle) * from_y
    carrier = np.exp(1j * (2 * np.pi * population.spatial_frequency_cpd * along + population.phase_rad))
    gabor = envelope * carrier
    return (gabor - envelope * gabor.sum(0)).astype(np.complex64)
