"""From stimulus drive to event rates: how deep the stimulus modulates a neuron, and what else does.

The driven part of the rate is multiplied by a gain (running, arousal and other shared factors, a private one), so that
the share of the rate's variance that the stimulus explains is a setting.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from poyo_ssl.observatory.behaviour import Behaviour, slow_noise
from poyo_ssl.observatory.worlds import CellClass

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
        ``(N,)`` m in rate = mean x (1 + m (drive - 1)) / c x gain, c the mean of 1 + m (drive - 1).
    stimulus_mean : ndarray
        ``(N,)`` the constant c.
    running_gain, arousal_gain : ndarray
        ``(N,)`` change of the log rate per standard deviation of running speed and of arousal.
    """

    rate_hz: NDArray[np.float32]
    mean_rate_hz: NDArray[np.float64]
    stimulus_information: NDArray[np.float64]
    stimulus_depth: NDArray[np.float64]
    stimulus_mean: NDArray[np.float64]
    running_gain: NDArray[np.float64]
    arousal_gain: NDArray[np.float64]

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

    Parameters
    ----------
    cell : CellClass
        The dials.
    drive : ndarray
        ``(T, N)``, about 1 on average during stimuli, constant for untuned neurons.
    behaviour : Behaviour
        Running and arousal, ``(T,)``.
    rate_hz : float
        Imaging rate.
    rng : numpy.random.Generator
        Source of everything random.
    relative_rate : ndarray, optional
        ``(N,)`` mean rate over the class's median; all 1 by default.
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
