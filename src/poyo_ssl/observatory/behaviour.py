"""What the animal does: running in bouts, a slow arousal that widens the pupil, and gaze that jumps now and then."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

AROUSAL_S = 20.0
RUNNING_WEIGHT = 0.6
"""Share of arousal's variance that follows (smoothed) running."""

PUPIL_AREA_PX = 1800.0
PUPIL_SPREAD = 0.35
SACCADE_INTERVAL_S = 4.0
GAZE_SPREAD_CM = (1.8, 0.9)
GAZE_JITTER_CM = 0.08
BLINK_INTERVAL_S, BLINK_S = 20.0, 0.4


@dataclass(frozen=True)
class Behaviour:
    """Behaviour on the imaging clock.

    Attributes
    ----------
    running : ndarray
        ``(T,)`` float32 cm/s.
    arousal : ndarray
        ``(T,)`` mean 0, variance 1; slow, partly running, drives pupil and neurons.
    pupil_size : ndarray
        ``(T,)`` float32 area in pixels of the eye camera.
    gaze_cm : ndarray
        ``(T, 2)`` float32 on the monitor, right and up from its middle.
    eye_open : ndarray
        ``(T,)`` bool; False during blinks, when there is no pupil to see.
    """

    running: NDArray[np.float32]
    arousal: NDArray[np.float64]
    pupil_size: NDArray[np.float32]
    gaze_cm: NDArray[np.float32]
    eye_open: NDArray[np.bool_]


def simulate_behaviour(num_frames: int, rate_hz: float, rng: np.random.Generator) -> Behaviour:
    """Simulate running, arousal, pupil and gaze of one session.

    Examples
    --------
    >>> behaviour = simulate_behaviour(9000, 30.0, np.random.default_rng(0))
    >>> bool(np.corrcoef(behaviour.arousal, behaviour.pupil_size)[0, 1] > 0.9)
    True
    """
    from scipy import ndimage

    running = simulate_running(num_frames, rate_hz, rng)
    smooth = ndimage.gaussian_filter1d(running.astype(np.float64), 3 * rate_hz)
    smooth = (smooth - smooth.mean()) / max(float(smooth.std()), 1e-9)
    own = slow_noise((num_frames, 1), AROUSAL_S * rate_hz, rng)[:, 0]
    arousal = np.sqrt(RUNNING_WEIGHT) * smooth + np.sqrt(1 - RUNNING_WEIGHT) * own
    arousal = (arousal - arousal.mean()) / max(float(arousal.std()), 1e-9)
    size = PUPIL_AREA_PX * np.exp(PUPIL_SPREAD * np.tanh(arousal / 1.5) + 0.01 * rng.standard_normal(num_frames))
    jumps = rng.random(num_frames) < 1 / (SACCADE_INTERVAL_S * rate_hz)
    targets = rng.standard_normal((int(jumps.sum()) + 1, 2)) * GAZE_SPREAD_CM
    gaze = targets[np.cumsum(jumps)] + GAZE_JITTER_CM * rng.standard_normal((num_frames, 2))
    blinks = rng.random(num_frames) < 1 / (BLINK_INTERVAL_S * rate_hz)
    shut = ndimage.binary_dilation(blinks, np.ones(max(1, int(BLINK_S * rate_hz)), bool))
    return Behaviour(running, arousal, size.astype(np.float32), gaze.astype(np.float32), ~shut)


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


def slow_noise(shape: tuple[int, int], time_constant_frames: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw Ornstein-Uhlenbeck noise of unit variance along the first axis.

    Examples
    --------
    >>> noise = slow_noise((20_000, 1), 10.0, np.random.default_rng(0))[:, 0]
    >>> bool(abs(np.corrcoef(noise[10:], noise[:-10])[0, 1] - np.exp(-1)) < 0.05)
    True
    """
    from scipy import signal

    decay = np.exp(-1 / time_constant_frames)
    white = rng.standard_normal(shape)
    white[1:] *= np.sqrt(1 - decay**2)
    return signal.lfilter([1.0], [1.0, -decay], white, axis=0)
