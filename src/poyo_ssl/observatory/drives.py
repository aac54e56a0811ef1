"""What stimuli do to neurons: spatiotemporal Gabor energy models on the stimulus itself.

A neuron filters the picture on the screen with a complex Gabor and its time course with a complex temporal
kernel (Adelson and Bergen 1985); complex cells take the energy, simple cells the rectified, squared real part. Every
stimulus passes through the same filters. Gratings are not rendered: their projections are the filters' sums over the
screen with two exponentials.

Everything on the screen is held for a number of monitor ticks (2 for a movie frame, 15 for an image), so the
convolution in time is a sum over presentations: each contributes its projection times the kernel's sum over the lags at
which it was on.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from poyo_ssl import protocol
from poyo_ssl.data.stimuli import MOVIE_PREFIX, Presentations
from poyo_ssl.observatory.allen_schedule import (
    GRATING_S,
    MONITOR_RATE_HZ,
    NOISE_TEMPLATES,
    STATIC_ORIENTATIONS_DEG,
    STATIC_PHASES,
    STATIC_SPATIAL_FREQUENCIES_CPD,
    TICKS_PER_IMAGE,
    TICKS_PER_MOVIE_FRAME,
)
from poyo_ssl.observatory.animals import Behaviour, slow_noise
from poyo_ssl.observatory.cells import (
    SCREEN_DEG,
    STIMULUS_KINDS,
    Population,
    build_spatial_filters,
    screen_grid,
)
from poyo_ssl.observatory.worlds import CellClass

GRATING_SPATIAL_FREQUENCY_CPD = 0.04
GRATING_CONTRAST = 0.8
RESPONSE_TAIL_S = 0.5
"""How long the response to a stimulus is followed into the gray after it."""

KERNEL_S = 0.4
LARGEST_RETINA_ROWS = 64
GRATING_GRID = (64, 112)
"""Points of the screen at which gratings are summed; 0.32 cycles per degree are 3 points a cycle."""

NOISE_OVERSAMPLING = 4
SUPPRESSION = 2.0
"""A suppressed cell's drive is 1 / (1 + 2 x what it would be): 1 on gray, a third at the mean of a stimulus."""

Complex = NDArray[np.complex64]
Floats = NDArray[np.float32]
Piece = tuple[NDArray[np.int64], Floats, NDArray[np.bool_]]
"""Imaging frames, their drive, and whether the stimulus is on (or its response only dying away)."""


def build_temporal_filters(population: Population) -> Complex:
    """Return the complex temporal kernels at the monitor's rate, ``(taps, N)``."""
    time = (np.arange(int(KERNEL_S * MONITOR_RATE_HZ)) / MONITOR_RATE_HZ)[:, None]
    scaled = time / population.time_constant_s
    envelope = scaled**2 * np.exp(-scaled)
    kernel = envelope / envelope.sum(0) * np.exp(2j * np.pi * population.temporal_frequency_hz * time)
    return kernel.astype(np.complex64)


def _held_kernel(kernel: Complex, tick: int, hold: int) -> list[Complex]:
    """Sum the kernel over the lags of each presentation, the current one (now at `tick`) first."""
    edges = [0, *range(tick + 1, len(kernel), hold), len(kernel)]
    return [kernel[low:high].sum(0) for low, high in itertools.pairwise(edges)]


def _respond(population: Population, preferred: Complex, opposite: Complex) -> Floats:
    """Energy of complex cells, half-squared response of simple cells, from filtered projections ``(T, N)``.

    Raised to the cell's exponent.
    """
    both_ways = (1 - population.direction_selectivity).astype(np.float32)
    energy = preferred.real**2 + preferred.imag**2 + both_ways * (opposite.real**2 + opposite.imag**2)
    linear = np.maximum(preferred.real + both_ways * opposite.real, 0) ** 2
    return np.where(population.simple, linear, energy) ** population.exponent.astype(np.float32)


def control_gain(population: Population, response: Floats, mean: NDArray[np.floating], kind: str) -> Floats:
    """Scale responses to mean 1 (gain control) times affinity; silence suppressed cells; untuned ones stay at 1."""
    affinity = population.affinity[:, STIMULUS_KINDS.index(kind)]
    drive = response * (affinity / np.maximum(mean, 1e-12)).astype(np.float32)
    drive = np.where(population.suppressed, 1 / (1 + SUPPRESSION * drive), drive)
    return np.where(population.tuned, drive, np.float32(1)).astype(np.float32)


def undo_gain_control(population: Population, drive: Floats, mean: NDArray[np.floating], kind: str) -> Floats:
    """Return the responses ``(T, N)`` from which the gain control made a drive; NaN for untuned neurons."""
    affinity = population.affinity[:, STIMULUS_KINDS.index(kind)]
    scaled = np.where(population.suppressed, (1 / np.maximum(drive, 1e-12) - 1) / SUPPRESSION, drive)
    response = scaled * (np.maximum(mean, 1e-12) / affinity)
    return np.where(population.tuned, response, np.nan).astype(np.float32)


def picture_responses(population: Population, pixels: NDArray[np.uint8]) -> Floats:
    """Return the responses before gain control to pictures that stay on the screen, ``(F, H, W)`` to ``(F, N)``."""
    projected = project_pictures(population, pixels)
    settled = build_temporal_filters(population).sum(0)
    return _respond(population, projected * settled, projected * settled.conj())


def gray_drive(population: Population) -> Floats:
    """Return the drive on uniform gray, ``(N,)``: 0, but 1 for suppressed and for untuned cells."""
    return np.where(population.tuned & ~population.suppressed, 0, 1).astype(np.float32)


def project_pictures(population: Population, pixels: NDArray[np.uint8]) -> Complex:
    """Return the filters' responses to pictures that fill the screen, ``(F, H, W)`` uint8 to ``(F, N)``.

    Pictures of 128 rows and more are averaged over squares of pixels first.
    """
    factor = max(1, pixels.shape[1] // LARGEST_RETINA_ROWS)
    height, width = pixels.shape[1] // factor, pixels.shape[2] // factor
    filters = build_spatial_filters(population, *screen_grid(height, width))
    # As one real product: real and imaginary parts side by side.
    stacked = np.concatenate([filters.real, filters.imag], axis=1)
    projected = np.empty((len(pixels), len(population)), np.complex64)
    step = max(1, (1 << 26) // pixels[0].size)
    for start in range(0, len(pixels), step):
        piece = pixels[start : start + step, : height * factor, : width * factor]
        blocks = piece.reshape(len(piece), height, factor, width, factor)
        rows = blocks.sum(2, dtype=np.uint16).sum(3, dtype=np.uint32)
        contrast = rows.reshape(len(piece), -1).astype(np.float32) / np.float32(127 * factor**2) - 1
        both = contrast @ stacked
        projected[start : start + step] = both[:, : len(population)] + 1j * both[:, len(population) :]
    return projected


def project_noise(population: Population, frames: NDArray[np.uint8], pixel_deg: float) -> Complex:
    """Return the filters' responses to noise of square pixels about the middle of the screen, ``(F, N)``.

    What lies off the screen is not seen.
    """
    _, height, width = frames.shape
    fine = NOISE_OVERSAMPLING
    x = (np.arange(width * fine) + 0.5 - width * fine / 2) * pixel_deg / fine
    y = (height * fine / 2 - np.arange(height * fine) - 0.5) * pixel_deg / fine
    grid_y, grid_x = (axis.ravel() for axis in np.meshgrid(y, x, indexing="ij"))
    seen = (np.abs(grid_x) < SCREEN_DEG[1] / 2) & (np.abs(grid_y) < SCREEN_DEG[0] / 2)
    filters = np.zeros((len(grid_x), len(population)), np.complex64)
    filters[seen] = build_spatial_filters(population, grid_x[seen], grid_y[seen])
    coarse = filters.reshape(height, fine, width, fine, -1).sum((1, 3)).reshape(height * width, -1)
    contrast = frames.reshape(len(frames), -1).astype(np.float32) / 127 - 1
    return (contrast @ coarse.real + 1j * (contrast @ coarse.imag)).astype(np.complex64)


def project_gratings(
    population: Population,
    directions_deg: NDArray[np.floating],
    spatial_frequencies_cpd: NDArray[np.floating],
) -> tuple[Complex, Complex]:
    """Return the filters' sums with exp(ikx) and exp(-ikx) for K waves, ``(K, N)`` each."""
    x, y = screen_grid(*GRATING_GRID)
    filters = build_spatial_filters(population, x, y)
    angle = np.deg2rad(directions_deg)[:, None]
    position = np.cos(angle) * x + np.sin(angle) * y
    wave = np.exp(2j * np.pi * np.asarray(spatial_frequencies_cpd)[:, None] * position).astype(np.complex64)
    return wave @ filters, wave.conj() @ filters


def movie_drive(population: Population, pixels: NDArray[np.uint8]) -> Floats:
    """Compute the drive of every neuron by a movie that is shown back to back: its end comes before its beginning."""
    projected = project_pictures(population, pixels)
    kernel = build_temporal_filters(population)
    response = np.empty((len(pixels), TICKS_PER_MOVIE_FRAME, len(population)), np.float32)
    for tick in range(TICKS_PER_MOVIE_FRAME):
        preferred, opposite = np.zeros_like(projected), np.zeros_like(projected)
        for back, weight in enumerate(_held_kernel(kernel, tick, TICKS_PER_MOVIE_FRAME)):
            before = np.roll(projected, back, axis=0)
            preferred += before * weight
            opposite += before * weight.conj()
        response[:, tick] = _respond(population, preferred, opposite)
    flat = response.reshape(-1, len(population))
    return control_gain(population, flat, flat.mean(0, dtype=np.float64), MOVIE_PREFIX)


def grating_drive(
    population: Population, directions_deg: Sequence[float], temporal_frequencies_hz: Sequence[float]
) -> Floats:
    """Compute the drive of every neuron by full-screen gratings of 0.04 cycles per degree and 80 % contrast."""
    kernel = build_temporal_filters(population)
    on = round(GRATING_S * MONITOR_RATE_HZ)
    total = on + round(RESPONSE_TAIL_S * MONITOR_RATE_HZ)
    time = np.arange(on) / MONITOR_RATE_HZ
    directions = np.asarray(directions_deg)
    sums = project_gratings(population, directions, np.full(len(directions), GRATING_SPATIAL_FREQUENCY_CPD))
    response = np.empty((len(directions), len(temporal_frequencies_hz), total, len(population)), np.float32)
    for column, frequency in enumerate(temporal_frequencies_hz):
        turn = np.exp(2j * np.pi * frequency * time)[:, None].astype(np.complex64)
        for row, (forward, backward) in enumerate(zip(*sums, strict=True)):
            projected = np.zeros((total, len(population)), np.complex64)
            projected[:on] = GRATING_CONTRAST / 2 * (forward * turn.conj() + backward * turn)
            preferred, opposite = np.zeros_like(projected), np.zeros_like(projected)
            for lag, weight in enumerate(kernel):
                preferred[lag:] += projected[: total - lag] * weight
                opposite[lag:] += projected[: total - lag] * weight.conj()
            response[row, column] = _respond(population, preferred, opposite)
    mean = response[:, :, :on].mean((0, 1, 2), dtype=np.float64)
    return control_gain(population, response, mean, "drifting_gratings")


def static_grating_projections(population: Population) -> Complex:
    """Return the projections of the 120 static gratings, ``(120, N)``, orientation slowest, phase fastest."""
    orientation, frequency, phase = (
        axis.ravel()
        for axis in np.meshgrid(STATIC_ORIENTATIONS_DEG, STATIC_SPATIAL_FREQUENCIES_CPD, STATIC_PHASES, indexing="ij")
    )
    forward, backward = project_gratings(population, orientation, frequency)
    turn = np.exp(2j * np.pi * phase)[:, None].astype(np.complex64)
    return (GRATING_CONTRAST / 2 * (forward * turn + backward * turn.conj())).astype(np.complex64)


def held_drive(
    population: Population,
    projected: Complex,
    table: Presentations,
    shown: NDArray[np.int64],
    times: NDArray[np.float64],
    kind: str,
) -> Piece:
    """Compute the drive by images that follow one another every 15 ticks, at imaging frames."""
    hold = TICKS_PER_IMAGE
    row = np.searchsorted(table.start, times, side="right") - 1
    tick = np.floor((times - table.start[np.maximum(row, 0)]) * MONITOR_RATE_HZ + 1e-6).astype(np.int64)
    follows = np.append(np.abs(table.start[1:] - table.end[:-1]) < 0.5 / MONITOR_RATE_HZ, False)
    # Within a block a tick may overrun by the monitor's deviation from 60 Hz; at its end, gray follows.
    tick = np.where(follows[np.maximum(row, 0)], np.minimum(tick, hold - 1), tick)
    frames = np.flatnonzero((row >= 0) & (tick < hold + round(RESPONSE_TAIL_S * MONITOR_RATE_HZ)))
    row, tick = row[frames], tick[frames]
    first = np.maximum.accumulate(np.where(np.append(True, ~follows[:-1]), np.arange(len(table)), 0))[row]
    kernel = build_temporal_filters(population)
    images = np.concatenate([projected, np.zeros_like(projected[:1])])
    response = np.empty((len(frames), len(population)), np.float32)
    late, within = np.divmod(tick, hold)
    for phase in range(hold):
        mine = np.flatnonzero(within == phase)
        preferred = np.zeros((len(mine), len(population)), np.complex64)
        opposite = np.zeros_like(preferred)
        for back, weight in enumerate(_held_kernel(kernel, phase, hold)):
            at = row[mine] + late[mine] - back
            on = (at <= row[mine]) & (at >= first[mine])
            before = images[np.where(on, shown[np.clip(at, 0, len(shown) - 1)], -1)]
            preferred += before * weight
            opposite += before * weight.conj()
        response[mine] = _respond(population, preferred, opposite)
    mean = response[late == 0].mean(0, dtype=np.float64)
    return frames, control_gain(population, response, mean, kind), late == 0


def _noise_drives(
    population: Population,
    table: Presentations,
    templates: Mapping[str, NDArray[np.uint8]],
    times: NDArray[np.float64],
) -> list[Piece]:
    """Drive by each noise of the table, told apart by its pixel size."""
    found = []
    for name, (_, _, _, pixel_deg) in NOISE_TEMPLATES.items():
        mine = table.columns["pixel_size"] == pixel_deg
        if name in templates and mine.any():
            part = table.select(mine)
            projected = project_noise(population, templates[name], pixel_deg)
            shown = part.columns["frame"].astype(np.int64)
            found.append(held_drive(population, projected, part, shown, times, "locally_sparse_noise"))
    return found


def drive_at_frames(
    population: Population,
    stimuli: Mapping[str, Presentations],
    templates: Mapping[str, NDArray[np.uint8]],
    times: NDArray[np.float64],
) -> tuple[Floats, dict[str, Floats]]:
    """Compute the drive of N neurons at the imaging frames of a session."""
    drive = np.repeat(gray_drive(population)[None], len(times), axis=0)
    means: dict[str, Floats] = {}
    pieces: list[Piece] = []
    for name, table in stimuli.items():
        if name.startswith(MOVIE_PREFIX):
            whole = movie_drive(population, templates[name])
            means[name] = whole.reshape(-1, TICKS_PER_MOVIE_FRAME, len(population)).mean(1)
            pieces.append(_movie_at_frames(whole, table, times))
        elif name == "drifting_gratings":
            frequencies = np.unique(table.columns["temporal_frequency"][~table.columns["blank_sweep"]])
            whole = grating_drive(population, protocol.GRATING_DIRECTIONS_DEG, frequencies.tolist())
            means[name] = whole[:, :, : round(GRATING_S * MONITOR_RATE_HZ)].mean(2)
            pieces.append(_gratings_at_frames(whole, frequencies, table, times))
        elif name == "static_gratings":
            ids = [table.columns[f"{key}_id"].astype(np.int64) for key in ("orientation", "spatial_frequency", "phase")]
            shown = (ids[0] * len(STATIC_SPATIAL_FREQUENCIES_CPD) + ids[1]) * len(STATIC_PHASES) + ids[2]
            shown = np.where(table.columns["blank_sweep"], -1, shown)
            pieces.append(held_drive(population, static_grating_projections(population), table, shown, times, name))
        elif name == "natural_scenes":
            projected = project_pictures(population, templates[name])
            pieces.append(held_drive(population, projected, table, table.columns["frame"], times, name))
        else:
            pieces += _noise_drives(population, table, templates, times)
    # A response that dies away gives place to the next stimulus.
    for late in (True, False):
        for frames, values, on in pieces:
            drive[frames[on != late]] = values[on != late]
    return drive, means


def _movie_at_frames(whole: Floats, table: Presentations, times: NDArray[np.float64]) -> Piece:
    row = np.maximum(np.searchsorted(table.start, times, side="right") - 1, 0)
    frames = np.flatnonzero((times >= table.start[row]) & (times < table.end[row]))
    row = row[frames]
    # A time that falls on a tick must not slip below it by rounding.
    tick = np.floor((times[frames] - table.start[row]) * MONITOR_RATE_HZ + 1e-6).astype(np.int64)
    drive = whole[TICKS_PER_MOVIE_FRAME * table.columns["frame"][row] + np.clip(tick, 0, 1)]
    return frames, drive, np.ones(len(frames), bool)


def _gratings_at_frames(
    whole: Floats, frequencies: NDArray[np.floating], table: Presentations, times: NDArray[np.float64]
) -> Piece:
    row = np.maximum(np.searchsorted(table.start, times, side="right") - 1, 0)
    tick = np.floor((times - table.start[row]) * MONITOR_RATE_HZ + 1e-6).astype(np.int64)
    on = (times >= table.start[row]) & (tick < whole.shape[2]) & ~table.columns["blank_sweep"][row]
    frames, row = np.flatnonzero(on), row[on]
    column = np.searchsorted(frequencies, table.columns["temporal_frequency"][row])
    drive = whole[table.columns["orientation_id"][row], column, tick[on]]
    return frames, drive, times[frames] < table.end[row]


MAX_DEPTH = 0.95
MAX_GAIN_VARIANCE = 4.0
NUM_SHARED_FACTORS = 3
"""The first is arousal, which the pupil shows; the others are seen in the population only."""

SHARED_S, PRIVATE_S = 2.0, 1.0
LARGEST_SCALE = 4.0
NUM_SCALE_SAMPLES = 4000
UNITS_PER_BLOCK = 32


@dataclass(frozen=True)
class Rates:
    """Rates of N neurons over a session and what is true of them."""

    rate_hz: NDArray[np.float32]  # ``(T, N)`` float32 events per second at the imaging frames
    mean_rate_hz: NDArray[np.float64]  # ``(N,)`` mean over the session
    stimulus_information: NDArray[np.float64]  # ``(N,)`` share of the rate's variance that the stimulus explains
    # ``(N,)`` m in rate = mean x (1 + m (drive - 1)) / c x gain, c the mean of 1 + m (drive - 1)
    stimulus_depth: NDArray[np.float64]
    stimulus_mean: NDArray[np.float64]  # ``(N,)`` the constant c
    running_gain: NDArray[np.float64]  # ``(N,)`` change of the log rate per standard deviation of running speed
    arousal_gain: NDArray[np.float64]  # ``(N,)`` the same of arousal

    def expected_hz(self, drive: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return the rate at a drive ``(..., N)`` while everything else has its mean effect."""
        modulation = (1 + self.stimulus_depth * (drive - 1)) / self.stimulus_mean
        return (self.mean_rate_hz * modulation).astype(np.float32)


def _scale_to_variance(log_gain: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Find by bisection the factor of each column whose exponential has the wanted variance over squared mean.

    Running is far from normal and slow noise is never long enough, so no formula gives it.
    """
    sample = log_gain[:: max(1, len(log_gain) // NUM_SCALE_SAMPLES)]
    low, high = np.zeros(len(wanted)), np.full(len(wanted), LARGEST_SCALE)
    for _ in range(14):
        middle = (low + high) / 2
        gain = np.exp(middle * sample)
        too_small = gain.var(0) < wanted * gain.mean(0) ** 2
        low, high = np.where(too_small, middle, low), np.where(too_small, high, middle)
    return (low + high) / 2


def simulate_rates(
    cell: CellClass,
    drive: NDArray[np.float32],
    behaviour: Behaviour,
    rate_hz: float,
    rng: np.random.Generator,
    *,
    relative_rate: NDArray[np.float64] | None = None,
) -> Rates:
    """Turn stimulus drive into rates with the class's dials.

    With S the driven part (mean about 1, variance V) and G an independent gain of mean 1 and variance g, the
    stimulus explains Var S / Var(S G) = V / (V (1 + g) + g) of the rate's variance; g is solved from the wanted
    share q: g = V (1 - q) / (q (1 + V)).
    """
    num_frames, num_units = drive.shape
    speed = behaviour.running.astype(np.float64)
    speed = (speed - speed.mean()) / max(float(speed.std()), 1e-9)
    sign = np.where(rng.random(num_units) < (1 + cell.running_sign) / 2, 1.0, -1.0)
    loading = rng.standard_normal((NUM_SHARED_FACTORS, num_units))
    # Arousal excites the cells that running excites.
    loading[0] = sign * np.abs(loading[0])
    loading /= np.linalg.norm(loading, axis=0)
    factors = slow_noise((num_frames, NUM_SHARED_FACTORS), SHARED_S * rate_hz, rng)
    factors[:, 0] = behaviour.arousal
    share = np.clip(cell.stimulus_information * np.exp(0.25 * rng.standard_normal(num_units)), 0.02, 0.95)
    common = np.column_stack([np.sqrt(cell.running_share) * speed, np.sqrt(cell.shared_share) * factors])
    weights = np.concatenate([sign[None], loading])
    relative = np.ones(num_units) if relative_rate is None else relative_rate
    blocks = [
        _block_rates(
            cell, drive[:, part], share[part], common @ weights[:, part], PRIVATE_S * rate_hz, relative[part], rng
        )
        for part in (slice(low, low + UNITS_PER_BLOCK) for low in range(0, num_units, UNITS_PER_BLOCK))
    ]
    rate, information, depth, mean, scale = (np.concatenate(parts, axis=-1) for parts in zip(*blocks, strict=True))
    return Rates(
        rate_hz=rate,
        mean_rate_hz=cell.mean_rate_hz * relative,
        stimulus_information=information,
        stimulus_depth=depth,
        stimulus_mean=mean,
        running_gain=scale * sign * np.sqrt(cell.running_share),
        arousal_gain=scale * loading[0] * np.sqrt(cell.shared_share),
    )


def _block_rates(
    cell: CellClass,
    drive: NDArray[np.float32],
    share: NDArray[np.float64],
    log_gain: NDArray[np.float64],
    private_frames: float,
    relative_rate: NDArray[np.float64],
    rng: np.random.Generator,
) -> tuple[NDArray, ...]:
    """Rates of some units, with their stimulus information, depth, mean stimulus and scale of the log gain."""
    drive_variance = drive.var(0, dtype=np.float64)
    driven = drive_variance > 1e-9
    wanted = share * cell.rate_variance
    depth = np.where(driven, np.minimum(np.sqrt(wanted / np.maximum(drive_variance, 1e-9)), MAX_DEPTH), 0.0)
    stimulus = 1 + depth.astype(np.float32) * (drive - 1)
    mean = stimulus.mean(0, dtype=np.float64)
    stimulus /= mean.astype(np.float32)
    variance = stimulus.var(0, dtype=np.float64)
    gain_variance = np.where(driven, variance * (1 - share) / (share * (1 + variance)), cell.rate_variance)
    gain_variance = np.minimum(gain_variance, MAX_GAIN_VARIANCE)
    private_share = 1 - cell.running_share - cell.shared_share
    log_gain += np.sqrt(private_share) * slow_noise(drive.shape, private_frames, rng)
    scale = _scale_to_variance(log_gain, gain_variance)
    modulation = np.exp((scale * log_gain).astype(np.float32))
    modulation *= stimulus
    average = modulation.mean(0, dtype=np.float64)
    spread = modulation.var(0, dtype=np.float64)
    # The stimulus alone has variance V at a mean of 1; so does the whole once divided by its average.
    information = np.where(driven, np.minimum(variance / np.maximum(spread / average**2, 1e-12), 1.0), 0.0)
    modulation *= (cell.mean_rate_hz * relative_rate / average).astype(np.float32)
    return modulation, information, depth, mean, scale
