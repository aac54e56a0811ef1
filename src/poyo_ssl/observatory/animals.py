"""Who is imaged: the 13 Cre lines with their reporters, layers, depths and areas, containers and mice.

Counts, reporters, depths and areas are those published for the Allen Brain Observatory (container and session lists,
transgenic white paper).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

_VISUAL_AREAS = ("VISp", "VISl", "VISal", "VISpm", "VISam", "VISrl")
_AI93, _AI94 = "Ai93(TITL-GCaMP6f)", "Ai94(TITL-GCaMP6s)"
_AI148, _AI162 = "Ai148(TIT2L-GC6f-ICL-tTA2)", "Ai162(TIT2L-GC6s-ICL-tTA2)"


@dataclass(frozen=True)
class LineFacts:
    """What is known of one Cre line in the Allen Brain Observatory."""

    cell_class: str  # ``excitatory`` or ``inhibitory``
    layers: str  # Cortical layers
    containers: int  # Published number of experiment containers (three sessions each)
    mice: int  # Published number of mice
    reporters: Mapping[str, int]  # Number of containers by reporter line; the first is the usual one
    depths_um: tuple[int, ...]  # Imaging planes
    # Fewest and most cells of a session. Our choice: of the order of the published total (63,251 cells in 456
    # containers), few in inhibitory lines
    num_units: tuple[int, int]
    areas: tuple[str, ...] = _VISUAL_AREAS  # Visual areas


LINE_FACTS: Mapping[str, LineFacts] = MappingProxyType(
    {
        "Cux2-CreERT2": LineFacts("excitatory", "2/3, 4", 76, 39, {_AI93: 76}, (175, 275), (140, 260)),
        "Emx1-IRES-Cre": LineFacts(
            "excitatory", "2/3, 4, 5", 41, 19, {_AI93: 38, f"{_AI93}-hyg": 3}, (175, 275, 375), (110, 240)
        ),
        "Fezf2-CreER": LineFacts("excitatory", "5", 9, 8, {_AI148: 9}, (375, 400), (40, 90)),
        "Nr5a1-Cre": LineFacts("excitatory", "4", 39, 23, {_AI93: 39}, (300, 325, 350), (50, 120)),
        "Ntsr1-Cre_GN220": LineFacts("excitatory", "6", 18, 10, {_AI148: 18}, (550, 575, 625), (50, 110)),
        "Pvalb-IRES-Cre": LineFacts(
            "inhibitory", "2/3, 4, 5", 21, 9, {_AI162: 21}, (175, 275, 375), (14, 34), ("VISp", "VISl")
        ),
        "Rbp4-Cre_KL100": LineFacts("excitatory", "5", 38, 23, {_AI93: 38}, (375,), (50, 110)),
        "Rorb-IRES2-Cre": LineFacts("excitatory", "4", 40, 24, {_AI93: 40}, (275,), (100, 200)),
        "Scnn1a-Tg3-Cre": LineFacts("excitatory", "4", 9, 7, {_AI93: 9}, (275, 350), (100, 200), ("VISp",)),
        "Slc17a7-IRES2-Cre": LineFacts(
            "excitatory", "2/3, 4, 5", 57, 33, {_AI93: 54, _AI94: 3}, (175, 275, 375), (120, 280)
        ),
        "Sst-IRES-Cre": LineFacts("inhibitory", "4, 5", 49, 30, {_AI148: 49}, (250, 275, 375), (14, 34)),
        "Tlx3-Cre_PL56": LineFacts("excitatory", "5", 9, 7, {_AI148: 9}, (375,), (60, 120)),
        "Vip-IRES-Cre": LineFacts("inhibitory", "2/3, 4", 50, 24, {_AI148: 50}, (175, 275), (14, 40)),
    }
)
"""The 13 lines."""


@dataclass(frozen=True)
class Container:
    """One field of view of one mouse, imaged in one or several sessions."""

    container_id: str
    subject_id: str
    cre_line: str
    reporter_line: str
    area: str
    depth_um: int
    sex: str
    age_days: int  # Age of the mouse on the day of the container's first session


def draw_container(seed: int, number: int, line: str, place: int, of: int) -> Container:
    """Draw a container; the mice of a line have as many containers each as the Allen's."""
    facts = LINE_FACTS[line]
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1, number)))
    mouse = place * facts.mice // facts.containers
    # Everything about the mouse comes from a generator of its own, which its other containers share.
    born = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(2, *line.encode(), mouse)))
    share = np.cumsum(list(facts.reporters.values())) / facts.containers
    reporter = list(facts.reporters)[int(np.searchsorted(share, (place + 0.5) / of))]
    return Container(
        container_id=f"container_{seed}_{number:03d}",
        subject_id=f"mouse_{seed}_{line.split('-')[0]}_{mouse:02d}",
        cre_line=line,
        reporter_line=reporter,
        area=str(rng.choice(facts.areas)),
        depth_um=int(rng.choice(facts.depths_um)),
        sex=str(born.choice(["male", "female"])),
        age_days=int(born.integers(80, 120)) + int(rng.integers(0, 20)),
    )


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
    """Behaviour on the imaging clock."""

    running: NDArray[np.float32]  # ``(T,)`` float32 cm/s
    arousal: NDArray[np.float64]  # ``(T,)`` mean 0, variance 1; slow, partly running, drives pupil and neurons
    pupil_size: NDArray[np.float32]  # ``(T,)`` float32 area in pixels of the eye camera
    gaze_cm: NDArray[np.float32]  # ``(T, 2)`` float32 on the monitor, right and up from its middle
    eye_open: NDArray[np.bool_]  # ``(T,)`` bool; False during blinks, when there is no pupil to see


def simulate_behaviour(num_frames: int, rate_hz: float, rng: np.random.Generator) -> Behaviour:
    """Simulate running, arousal, pupil and gaze of one session."""
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
    """Simulate running speed in cm/s: bouts of some seconds between rests, smooth, never far below 0."""
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
    """Draw Ornstein-Uhlenbeck noise of unit variance along the first axis."""
    from scipy import signal

    decay = np.exp(-1 / time_constant_frames)
    white = rng.standard_normal(shape)
    white[1:] *= np.sqrt(1 - decay**2)
    return signal.lfilter([1.0], [1.0, -decay], white, axis=0)
