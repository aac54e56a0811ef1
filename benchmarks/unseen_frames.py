"""What one trial tells about a picture never seen: decoders of the observatory's neurons with unlimited footage.

``python benchmarks/unseen_frames.py --out runs/unseen`` draws neurons of every line, shows them stills of new
dead-leaves pictures, and reads the true rates, or the true numbers of events in one window, with
`poyo_ssl.observatory.inversion`. No gain but the picture's changes a rate, no fluorescence hides an event, and 2,400
views of 160 pictures teach, so that a decoder of dF/F can hardly do better. Spatial correlation with views of 160 other
pictures, mean and standard deviation over populations.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from poyo_ssl import protocol
from poyo_ssl.data.stimuli import MOVIE_PREFIX
from poyo_ssl.evaluation.metrics import spatial_correlation
from poyo_ssl.observatory import CellClass, get_world
from poyo_ssl.observatory.calcium import draw_counts
from poyo_ssl.observatory.cells import draw_population
from poyo_ssl.observatory.drives import control_gain, picture_responses
from poyo_ssl.observatory.inversion import (
    COMPRESSION,
    COUNT_PENALTY,
    RATE_PENALTY,
    Footage,
    PictureInversion,
    draw_footage,
)
from poyo_ssl.observatory.rates import MAX_DEPTH

HEIGHT, WIDTH = 32, 64
NUM_UNITS = (60, 190)
WINDOWS_S = (0.5, 1.0, 2.0)
NUM_POPULATIONS = 3
AREA = "VISp"


@dataclass(frozen=True)
class Case:
    """Score of one kind of input, read from one population."""

    line: str
    num_units: int
    inputs: str
    correlation: float


def main() -> None:
    """Measure and write ``unseen_frames.csv`` and ``unseen_frames.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for unseen_frames.csv and unseen_frames.md")
    parser.add_argument("--world", default="allen_like", help="world of the observatory")
    options = parser.parse_args()
    footage, fresh = (draw_footage(HEIGHT, WIDTH, seed) for seed in (0, 1))
    cases = []
    for line, cell in get_world(options.world).classes.items():
        for num_units in NUM_UNITS:
            for seed in range(NUM_POPULATIONS):
                cases += measure(line, cell, num_units, footage, fresh, np.random.default_rng([seed, num_units]))
    options.out.mkdir(parents=True, exist_ok=True)
    text = "\n".join(f"{c.line},{c.num_units},{c.inputs},{c.correlation:.4f}" for c in cases)
    (options.out / "unseen_frames.csv").write_text(f"line,num_units,inputs,correlation\n{text}\n")
    table = tabulate(cases)
    (options.out / "unseen_frames.md").write_text(table)
    print(table)


def measure(
    line: str, cell: CellClass, num_units: int, footage: Footage, fresh: Footage, rng: np.random.Generator
) -> list[Case]:
    """Score true rates, and events of each window, of one population."""
    population = draw_population(cell, num_units, rng, area=AREA)
    population = population.select(np.flatnonzero(population.tuned))
    responses = [picture_responses(population, own.pixels) for own in (footage, fresh)]
    mean = responses[0].mean(axis=0, dtype=np.float64)
    drives = [control_gain(population, own, mean, MOVIE_PREFIX) for own in responses]
    rates = [event_rates(cell, drive, drives[0], population.relative_rate) for drive in drives]
    features = {"true rates": ([own.astype(np.float64) ** COMPRESSION for own in responses], RATE_PENALTY)}
    for seconds in WINDOWS_S:
        counts = [draw_counts(own, seconds, cell.burstiness, rng) for own in rates]
        features[f"events of {seconds:g} s"] = ([np.sqrt(own) for own in counts], COUNT_PENALTY)
    found = []
    for name, ((stored, asked), penalty) in features.items():
        made = PictureInversion(footage, stored, penalty=penalty).predict(asked)
        found.append(Case(line, num_units, name, float(spatial_correlation(made, fresh.pixels).mean())))
    return found


def event_rates(
    cell: CellClass, drive: NDArray[np.float32], shown: NDArray[np.float32], relative_rate: NDArray[np.float64]
) -> NDArray[np.float64]:
    """``(K, N)`` rates in Hz at the wanted depth (as `simulate_rates` chooses it), without any other gain."""
    wanted = cell.stimulus_information * cell.rate_variance
    depth = np.minimum(np.sqrt(wanted / np.maximum(shown.var(axis=0, dtype=np.float64), 1e-9)), MAX_DEPTH)
    scale = np.maximum(1 + depth * (shown - 1), 0).mean(axis=0)
    return np.asarray(cell.mean_rate_hz * relative_rate * np.maximum(1 + depth * (drive - 1), 0) / scale)


def tabulate(cases: list[Case]) -> str:
    """Write a row per line and number of neurons, and their means over the lines that pretraining leaves out."""
    inputs = list(dict.fromkeys(case.inputs for case in cases))
    rows = [f"| line | neurons | {' | '.join(inputs)} |", "|---|---|" + "---|" * len(inputs)]
    for line in dict.fromkeys(case.line for case in cases):
        for num_units in NUM_UNITS:
            own = [c for c in cases if (c.line, c.num_units) == (line, num_units)]
            values = [[c.correlation for c in own if c.inputs == name] for name in inputs]
            written = " | ".join(f"{np.mean(v):.3f} ({np.std(v, ddof=1):.3f})" for v in values)
            rows.append(f"| {line} | {num_units} | {written} |")
    for num_units in NUM_UNITS:
        means = []
        for name in inputs:
            own = [c for c in cases if c.num_units == num_units and c.inputs == name]
            means.append(np.mean([c.correlation for c in own if c.line not in protocol.PUBLISHED_PREDICTABLE_LINES]))
        rows.append(f"| mean of the nine other lines | {num_units} | {' | '.join(f'{m:.3f}' for m in means)} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
