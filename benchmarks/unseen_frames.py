"""What one trial tells about a picture never seen: decoders that know all neurons' tuning, with footage of their own.

``python benchmarks/unseen_frames.py --data DATA --out runs/unseen`` takes the neurons of a folder that ``poyo-ssl
prepare observatory`` made, shows them stills of new dead-leaves pictures, and reads their true rates, or numbers of
events that are drawn at those rates for windows of some lengths, with `poyo_ssl.observatory.inversion`. Nothing but the
picture changes a rate, and no fluorescence hides an event. 2,400 views of 160 pictures teach; the score is the spatial
correlation with views of 160 other pictures.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

from poyo_ssl import protocol
from poyo_ssl.data.recording import Recording, open_recordings
from poyo_ssl.data.splits import load_resized_movie
from poyo_ssl.evaluation.metrics import spatial_correlation
from poyo_ssl.evaluation.statistics import t_interval
from poyo_ssl.observatory.drives import picture_responses
from poyo_ssl.observatory.inversion import COMPRESSION, Footage, KnownNeurons, draw_footage, has_known_neurons

HEIGHT, WIDTH = 32, 64
WINDOWS_S = (0.5, 1.0, 2.0, 20.0)
MOVIE = "natural_movie_one"


def main() -> None:
    """Measure, print and write ``unseen_frames.csv``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder that 'poyo-ssl prepare observatory' made")
    parser.add_argument("--out", type=Path, required=True, help="folder for unseen_frames.csv")
    options = parser.parse_args()
    footage, fresh = (draw_footage(HEIGHT, WIDTH, seed) for seed in (0, 1))
    rows = []
    for recording in open_recordings(options.data):
        if has_known_neurons(recording):
            metadata = recording.metadata
            facts = {"line": metadata.cre_line, "area": metadata.targeted_structure, "neurons": recording.num_units}
            rows.append(facts | measure(recording, footage, fresh, np.random.default_rng(0)))
            print(*(f"{v:.3f}" if isinstance(v, float) else v for v in rows[-1].values()), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "unseen_frames.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for text, predictable in (("lines published as predictable", True), ("other lines", False)):
        own = [row for row in rows if (row["line"] in protocol.PUBLISHED_PREDICTABLE_LINES) == predictable]
        if own:
            inputs = [name for name in own[0] if name not in ("line", "area", "neurons")]
            print(f"{text}: ", *(f"{name}: {t_interval([row[name] for row in own])};" for name in inputs))


def measure(recording: Recording, footage: Footage, fresh: Footage, rng: np.random.Generator) -> dict[str, float]:
    """Score true rates, and events of each window, of one recording."""
    neurons = KnownNeurons(recording, np.arange(recording.num_units))
    responses = picture_responses(neurons.population, fresh.pixels).astype(np.float64)
    made = {"true rates": neurons.invert_rates(footage).predict(responses**COMPRESSION)}
    assert recording.data_folder is not None
    movie = load_resized_movie(recording.data_folder, MOVIE, height=HEIGHT, width=WIDTH)
    mean = neurons.mean_response(movie)
    for seconds in WINDOWS_S:
        inversion = neurons.invert_counts(footage, seconds, mean, rng)
        counts = neurons.draw_counts(fresh.pixels, seconds, mean, rng)
        made[f"events of {seconds:g} s"] = inversion.predict(np.sqrt(counts))
    return {name: float(spatial_correlation(frames, fresh.pixels).mean()) for name, frames in made.items()}


if __name__ == "__main__":
    main()
