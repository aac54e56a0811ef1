"""Neurons of the observatory: spatiotemporal Gabor energy models on the stimulus itself, and their rates.

A neuron filters the picture on the screen with a complex Gabor and its time course with a complex temporal
kernel (Adelson and Bergen 1985); complex cells take the energy, simple cells the rectified, squared real part.
Gratings pass through the very same filters, from the filters' sums over the screen. The driven part of the rate is
multiplied by a gain (running, a few shared factors, a private one), so that the share of the rate's variance
that the stimulus explains is a setting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from poyo_ssl.observatory.worlds import CellClass

SCREEN_DEG = (60.0, 120.0)
"""Height and width of the screen in degrees of visual angle."""

MONITOR_RATE_HZ = 60.0
GRATING_SPATIAL_FREQUENCY_CPD = 0.04
GRATING_CONTRAST = 0.8
RESPONSE_TAIL_S = 0.5
"""How long the response to a grating is followed into the gray after it."""

KERNEL_S = 0.4
LARGEST_RETINA_ROWS = 64
MAX_DEPTH = 0.95
MAX_GAIN_VARIANCE = 4.0
NUM_SHARED_FACTORS = 2


@dataclass(frozen=True)
class Population:
    """Tuning of N neurons, one value each.

    Attributes
    ----------
    rf_x_deg, rf_y_deg : ndarray
        Receptive-field centre, from the middle of the screen; right and up are positive.
    rf_sigma_deg : ndarray
        Standard deviation of the receptive field's envelope.
    direction_deg : ndarray
        Preferred direction of drift; the preferred orientation lies across it.
    direction_selectivity : ndarray
        1: the opposite direction drives through nothing but the filters' overlap; 0: both alike.
    spatial_frequency_cpd, temporal_frequency_hz : ndarray
        Preferred frequencies.
    phase_rad : ndarray
        Phase of the Gabor, which matters for simple cells.
    time_constant_s : ndarray
        Of the temporal kernel, whose peak lies at twice that.
    simple, tuned : ndarray
        Booleans: a simple cell; driven by stimuli at all.
    """

    rf_x_deg: NDArray[np.float64]
    rf_y_deg: NDArray[np.float64]
    rf_sigma_deg: NDArray[np.float64]
    direction_deg: NDArray[np.float64]
    direction_selectivity: NDArray[np.float64]
    spatial_frequency_cpd: NDArray[np.float64]
    temporal_frequency_hz: NDArray[np.float64]
    phase_rad: NDArray[np.float64]
    time_constant_s: NDArray[np.float64]
    simple: NDArray[np.bool_]
    tuned: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.rf_x_deg)


def draw_population(cell: CellClass, num_units: int, rng: np.random.Generator) -> Population:
    """Draw the tuning of `num_units` neurons.

    Examples
    --------
    >>> population = draw_population(CellClass(), 5, np.random.default_rng(0))
    >>> len(population), bool((abs(population.rf_x_deg) < 60).all())
    (5, True)
    """
    spatial = np.exp(rng.uniform(np.log(0.025), np.log(0.07), num_units))
    half_height, half_width = SCREEN_DEG[0] / 2, SCREEN_DEG[1] / 2
    return Population(
        rf_x_deg=rng.uniform(-0.85 * half_width, 0.85 * half_width, num_units),
        rf_y_deg=rng.uniform(-0.75 * half_height, 0.75 * half_height, num_units),
        rf_sigma_deg=cell.rf_cycles * rng.uniform(0.8, 1.2, num_units) / spatial,
        direction_deg=rng.uniform(0, 360, num_units),
        direction_selectivity=rng.beta(1.5, 1.5, num_units),
        spatial_frequency_cpd=spatial,
        temporal_frequency_hz=np.exp(rng.uniform(np.log(1.0), np.log(6.0), num_units)),
        phase_rad=rng.uniform(0, 2 * np.pi, num_units),
        time_constant_s=rng.uniform(0.02, 0.035, num_units),
        simple=rng.random(num_units) < cell.simple_fraction,
        tuned=rng.random(num_units) >= cell.untuned_fraction,
    )


def _screen_grid(height: int, width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centres of the pixels in degrees, ``(height * width,)`` each; the first row is the top."""
    x = ((np.arange(width) + 0.5) / width - 0.5) * SCREEN_DEG[1]
    y = (0.5 - (np.arange(height) + 0.5) / height) * SCREEN_DEG[0]
    grid_y, grid_x = np.meshgrid(y, x, indexing="ij")
    return grid_x.ravel(), grid_y.ravel()


def build_spatial_filters(population: Population, height: int, width: int) -> NDArray[np.complex128]:
    """Return the complex Gabors on a pixel grid, ``(height * width, N)``, without response to uniform grey."""
    x, y = _screen_grid(height, width)
    from_x, from_y = x[:, None] - population.rf_x_deg, y[:, None] - population.rf_y_deg
    envelope = np.exp(-(from_x**2 + from_y**2) / (2 * population.rf_sigma_deg**2))
    envelope /= envelope.sum(0)
    angle = np.deg2rad(population.direction_deg)
    along = np.cos(angle) * from_x + np.sin(angle) * from_y
    carrier = np.exp(1j * (2 * np.pi * population.spatial_frequency_cpd * along + population.phase_rad))
    gabor = envelope * carrier
    return gabor - envelope * gabor.sum(0)


def build_temporal_filters(population: Population) -> NDArray[np.complex128]:
    """Return the complex temporal kernels at the monitor's rate, ``(taps, N)``."""
    time = (np.arange(int(KERNEL_S * MONITOR_RATE_HZ)) / MONITOR_RATE_HZ)[:, None]
    scaled = time / population.time_constant_s
    envelope = scaled**2 * np.exp(-scaled)
    return envelope / envelope.sum(0) * np.exp(2j * np.pi * population.temporal_frequency_hz * time)


def _filter_in_time(
    projected: NDArray[np.complex128], kernel: NDArray[np.complex128], *, circular: bool
) -> NDArray[np.complex128]:
    """Convolve ``(T, N)`` with ``(taps, N)`` causally; before the first row lies grey, or the end if circular."""
    filtered = np.zeros_like(projected)
    for lag, weight in enumerate(kernel):
        shifted = np.roll(projected, lag, axis=0)
        if not circular:
            shifted[:lag] = 0
        filtered += weight * shifted
    return filtered


def _respond(population: Population, projected: NDArray[np.complex128], *, circular: bool) -> NDArray[np.float64]:
    """Energy of complex cells, half-squared response of simple cells, ``(T, N)``."""
    kernel = build_temporal_filters(population)
    preferred = _filter_in_time(projected, kernel, circular=circular)
    opposite = _filter_in_time(projected, kernel.conj(), circular=circular)
    both_ways = 1 - population.direction_selectivity
    energy = np.abs(preferred) ** 2 + both_ways * np.abs(opposite) ** 2
    linear = np.maximum(preferred.real + both_ways * opposite.real, 0) ** 2
    return np.where(population.simple, linear, energy)


def _with_gain_control(response: NDArray[np.float64], tuned: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Scale every neuron to a mean of 1 over the stimulus; neurons that nothing drives stay at 1."""
    mean = response.reshape(-1, response.shape[-1]).mean(0)
    return np.where(tuned, response / np.maximum(mean, 1e-12), 1.0)


def movie_drive(population: Population, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Compute the drive of every neuron by a movie that is shown back to back: its end comes before its beginning.

    Parameters
    ----------
    population : Population
        N neurons.
    pixels : ndarray
        ``(L, H, W)`` uint8 at 30 Hz.

    Returns
    -------
    ndarray
        ``(2 L, N)`` at the monitor's 60 Hz, mean 1 for each neuron (gain control), 1 for untuned neurons.
    """
    factor = max(1, pixels.shape[1] // LARGEST_RETINA_ROWS)
    height, width = pixels.shape[1] // factor, pixels.shape[2] // factor
    blocks = pixels[:, : height * factor, : width * factor].reshape(len(pixels), height, factor, width, factor)
    contrast = blocks.mean((2, 4)).reshape(len(pixels), -1) / 127.0 - 1
    filters = build_spatial_filters(population, height, width)
    held = np.repeat(contrast @ filters, 2, axis=0)
    return _with_gain_control(_respond(population, held, circular=True), population.tuned)


def grating_drive(
    population: Population,
    directions_deg: Sequence[float],
    temporal_frequencies_hz: Sequence[float],
    *,
    duration_s: float,
    height: int,
    width: int,
) -> NDArray[np.float64]:
    """Compute the drive of every neuron by full-screen drifting gratings of 0.04 cycles per degree and 80 % contrast.

    A grating cos(k x - w t) on the screen projects onto a filter as two exponentials in time, whose coefficients
    are the filter's sums with exp(ikx) and exp(-ikx) over the pixels: no grating has to be rendered.

    Returns
    -------
    ndarray
        ``(directions, temporal frequencies, time, N)`` at 60 Hz for the grating and `RESPONSE_TAIL_S` after it;
        mean 1 over all gratings while on.
    """
    x, y = _screen_grid(height, width)
    filters = build_spatial_filters(population, height, width)
    on = round(duration_s * MONITOR_RATE_HZ)
    total = on + round(RESPONSE_TAIL_S * MONITOR_RATE_HZ)
    time = np.arange(on) / MONITOR_RATE_HZ
    drive = np.empty((len(directions_deg), len(temporal_frequencies_hz), total, len(population)))
    for row, direction in enumerate(np.deg2rad(directions_deg)):
        position = np.cos(direction) * x + np.sin(direction) * y
        wave = np.exp(2j * np.pi * GRATING_SPATIAL_FREQUENCY_CPD * position)
        forward, backward = wave @ filters, wave.conj() @ filters
        for column, frequency in enumerate(temporal_frequencies_hz):
            turn = np.exp(2j * np.pi * frequency * time)[:, None]
            projected = np.zeros((total, len(population)), np.complex128)
            projected[:on] = GRATING_CONTRAST / 2 * (forward / turn + backward * turn)
            drive[row, column] = _respond(population, projected, circular=False)
    mean = drive[:, :, :on].mean((0, 1, 2))
    return np.where(population.tuned, drive / np.maximum(mean, 1e-12), 1.0)


def simulate_running(num_frames: int, rate_hz: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Simulate running speed in cm/s: bouts of some seconds between rests, smooth, never far below 0.

    Examples
    --------
    >>> speed = simulate_running(3000, 30.0, np.random.default_rng(0))
    >>> speed.shape, speed.dtype
    ((3000,), dtype('float32'))
    """
    from scipy import ndimage

    target = np.zeros(num_frames)
    at, runs = 0, bool(rng.random() < 0.4)
    while at < num_frames:
        length = int(rng.exponential(12.0 if runs else 18.0) * rate_hz) + 1
        target[at : at + length] = rng.gamma(4.0, 5.0) if runs else 0.0
        at, runs = at + length, not runs
    wobble = ndimage.gaussian_filter1d(rng.standard_normal(num_frames), 0.3 * rate_hz)
    smooth = ndimage.gaussian_filter1d(target, 0.5 * rate_hz)
    return (smooth * (1 + 0.5 * wobble) + 0.3 * wobble).astype(np.float32)


def _slow_noise(shape: tuple[int, int], time_constant_frames: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Ornstein-Uhlenbeck noise of unit variance along the first axis."""
    from scipy import signal

    decay = np.exp(-1 / time_constant_frames)
    white = rng.standard_normal(shape)
    white[1:] *= np.sqrt(1 - decay**2)
    return signal.lfilter([1.0], [1.0, -decay], white, axis=0)


def _scale_to_variance(log_gain: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Find by bisection the factor of each column whose exponential has the wanted variance over squared mean.

    Running is far from normal and slow noise is never long enough, so no formula gives it.
    """
    sample = log_gain[:: max(1, len(log_gain) // 4000)]
    low, high = np.zeros(len(wanted)), np.full(len(wanted), 4.0)
    for _ in range(14):
        middle = (low + high) / 2
        gain = np.exp(middle * sample)
        too_small = gain.var(0) < wanted * gain.mean(0) ** 2
        low, high = np.where(too_small, middle, low), np.where(too_small, high, middle)
    return (low + high) / 2


@dataclass(frozen=True)
class Rates:
    """Rates of N neurons over a session and what is true of them.

    Attributes
    ----------
    rate_hz : ndarray
        ``(T, N)`` float32 events per second at the imaging frames.
    mean_rate_hz : ndarray
        ``(N,)`` mean over the session.
    stimulus_information : ndarray
        ``(N,)`` share of the rate's variance that the stimulus explains.
    stimulus_depth : ndarray
        ``(N,)`` m in rate = mean x (1 + m (drive - 1)) x gain.
    running_gain : ndarray
        ``(N,)`` change of the log rate per standard deviation of running speed.
    """

    rate_hz: NDArray[np.float32]
    mean_rate_hz: NDArray[np.float64]
    stimulus_information: NDArray[np.float64]
    stimulus_depth: NDArray[np.float64]
    running_gain: NDArray[np.float64]


def simulate_rates(
    cell: CellClass,
    drive: NDArray[np.float64],
    running: NDArray[np.float32],
    rate_hz: float,
    rng: np.random.Generator,
) -> Rates:
    """Turn stimulus drive into rates with the class's dials.

    With S the driven part (mean about 1, variance V) and G an independent gain of mean 1 and variance g, the
    stimulus explains Var S / Var(S G) = V / (V (1 + g) + g) of the rate's variance; g is solved from the wanted
    share q: g = V (1 - q) / (q (1 + V)).

    Parameters
    ----------
    cell : CellClass
        The dials.
    drive : ndarray
        ``(T, N)``, 0 on grey, mean 1 during stimuli, constant 1 for untuned neurons.
    running : ndarray
        ``(T,)`` cm/s.
    rate_hz : float
        Imaging rate.
    rng : numpy.random.Generator
        Source of everything random.
    """
    num_frames, num_units = drive.shape
    share = np.clip(cell.stimulus_information * np.exp(0.25 * rng.standard_normal(num_units)), 0.02, 0.95)
    drive_variance = drive.var(0)
    driven = drive_variance > 1e-9
    wanted = share * cell.rate_variance
    depth = np.where(driven, np.minimum(np.sqrt(wanted / np.maximum(drive_variance, 1e-9)), MAX_DEPTH), 0.0)
    stimulus = 1 + depth * (drive - 1)
    stimulus /= stimulus.mean(0)
    variance = stimulus.var(0)
    gain_variance = np.where(driven, variance * (1 - share) / (share * (1 + variance)), cell.rate_variance)
    gain_variance = np.minimum(gain_variance, MAX_GAIN_VARIANCE)

    speed = (running - running.mean()) / max(float(running.std()), 1e-9)
    sign = np.where(rng.random(num_units) < (1 + cell.running_sign) / 2, 1.0, -1.0)
    loading = rng.standard_normal((NUM_SHARED_FACTORS, num_units))
    loading /= np.linalg.norm(loading, axis=0)
    shared = _slow_noise((num_frames, NUM_SHARED_FACTORS), 2.0 * rate_hz, rng) @ loading
    private = _slow_noise((num_frames, num_units), 1.0 * rate_hz, rng)
    private_share = 1 - cell.running_share - cell.shared_share
    log_gain = np.sqrt(cell.running_share) * sign * speed[:, None]
    log_gain += np.sqrt(cell.shared_share) * shared + np.sqrt(private_share) * private
    scale = _scale_to_variance(log_gain, gain_variance)
    gain = np.exp(scale * log_gain)
    gain /= gain.mean(0)

    modulation = stimulus * gain
    mean_rate = cell.mean_rate_hz * np.exp(cell.rate_spread * rng.standard_normal(num_units))
    rate = mean_rate * modulation / modulation.mean(0)
    information = np.where(driven, np.minimum(variance / np.maximum(modulation.var(0), 1e-12), 1.0), 0.0)
    return Rates(rate.astype(np.float32), mean_rate, information, depth, scale * sign * np.sqrt(cell.running_share))
