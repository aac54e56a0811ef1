"""Speed and memory of the evaluation: the whole baseline suite on one recording, and all metrics together.

    poyo-ssl prepare events ../shared/data/real/allen_501574836 runs/real/recordings
    python benchmarks/evaluation.py --recording runs/real/recordings/501574836.h5 [--only PART] [--json FILE]

The suite is every baseline, control and ceiling for gratings, for the frame numbers of natural movie one (900 frames)
and three (3,600), and for their frames at 64 x 128, on windows of one second in three bins; repeats 0-5 train, 6
validates, 7 tests (later ones are masked in this recording). The movies' pixels are not public in that form: drawn
images take their place, which changes no cost. `cebra` is CEBRA's decoders of the same tasks. Metrics are timed on
900 frames of 64 x 128 with the mean frame subtracted, 900 candidates, reading and statistics left out.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poyo_ssl.config import FinetuneConfig, SplitConfig, WindowConfig
from poyo_ssl.data.recording import Recording
from poyo_ssl.evaluation.parts import Part
from poyo_ssl.evaluation.predictions import Predictions
from poyo_ssl.evaluation.scores import score_table
from poyo_ssl.evaluation.split_baselines import split_baselines
from poyo_ssl.training.tasks import prepare_task, task_windows

MOVIES, TOLERANCE = {"natural_movie_one": 900, "natural_movie_three": 3600}, 30
PARTS = ("metrics", "suite", "cebra")
SPLIT = SplitConfig(
    repeat_train=(0, 1, 2, 3, 4, 5),
    repeat_valid=(6,),
    repeat_test=(7,),
    num_clips=0,
    gratings_fractions=(0.6, 0.2, 0.2),
)


def drawn_movie(num_frames: int) -> NDArray[np.uint8]:
    """Smooth random frames ``(L, 64, 128)`` that change slowly."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(np.random.default_rng(0).standard_normal((num_frames, 64, 128)), (8, 4, 4))
    return np.clip(128 + 50 * noise / noise.std(), 0, 255).astype(np.uint8)


def time_suite(recording: Recording, task: str, movie: str, *, cebra: bool) -> dict[str, Any]:
    """Fit and predict every baseline of one task, or CEBRA's; seconds of each."""
    config = FinetuneConfig(
        task="gratings" if task == "gratings" else "frame_number",
        movies=(movie,),
        split=SPLIT,
        window=WindowConfig(window_s=1.0, units="all"),
    )
    data = prepare_task([recording], config)
    tables = {name: task_windows(data, config, name) for name in ("train", "valid", *data.tests)}
    units = np.arange(recording.num_units)
    train, valid, test = (Part.of(recording, units, table, 0) for table in tables.values())
    classes = 0 if data.class_values is None else len(data.class_values)
    found: dict[str, Any] = {
        "task": task,
        "movie": movie,
        "windows": [len(train), len(valid), len(test)],
        "seconds": {},
    }
    frames = drawn_movie(MOVIES[movie]) if task == "frames" else None
    wall, cpu = time.monotonic(), time.process_time()
    for baseline in split_baselines(
        task,
        train,
        which="with_cebra" if cebra else "all",
        num_classes=classes,
        frames=frames,
        tolerance=TOLERANCE,
    ):
        if cebra != baseline.name.startswith("cebra"):
            continue
        started = time.monotonic()
        baseline.fit(train, valid).predict(test)
        found["seconds"][baseline.name] = round(time.monotonic() - started, 2)
        print(f"{task:<13} {movie:<20} {baseline.name:<24} {found['seconds'][baseline.name]:6.1f} s", flush=True)
    found |= {"wall_s": time.monotonic() - wall, "cpu_s": time.process_time() - cpu}
    print(f"{task:<13} {movie:<20} {found['wall_s']:6.1f} s, {found['cpu_s']:6.1f} s of processor", flush=True)
    return found


def time_metrics(frames: NDArray[np.uint8], repeats: int = 10) -> dict[str, Any]:
    """Frames per second of all frame metrics together, median over runs."""
    rng = np.random.default_rng(1)
    count = len(frames)
    noisy = np.clip(frames + rng.normal(0, 30, frames.shape), 0, 255).astype(np.uint8)
    predictions = Predictions(
        task="frames",
        split="repeat",
        arm="noisy",
        prediction=noisy,
        target=np.arange(count),
        time=np.arange(count) / 30,
        recording_id=np.full(count, "r"),
        subject_id=np.full(count, "m"),
        stimulus=np.full(count, "natural_movie_one"),
        frame_number=np.arange(count),
        repeat=np.full(count, 9),
        target_frames=frames,
        mean_frames={"r": frames.mean(axis=0)},
    )
    seconds = []
    for _ in range(repeats):
        started = time.monotonic()
        score_table(replace(predictions))
        seconds.append(time.monotonic() - started)
    return {"frames": count, "frames_per_second": round(count / float(np.median(seconds)), 1), "runs": repeats}


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recording", type=Path, required=True, help="a prepared recording with both natural movies")
    parser.add_argument("--only", choices=PARTS, help="one part; by default all but cebra")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    asked = (args.only,) if args.only else ("metrics", "suite")
    results: dict[str, Any] = {}
    if "metrics" in asked:
        results["metrics"] = time_metrics(drawn_movie(900))
        print(f"metrics: {results['metrics']['frames_per_second']} frames per second", flush=True)
    recording = Recording.open(args.recording)
    tasks = [("gratings", "natural_movie_one"), *((task, m) for m in MOVIES for task in ("frame_number", "frames"))]
    for part in (part for part in asked if part != "metrics"):
        found = [time_suite(recording, task, movie, cebra=part == "cebra") for task, movie in tasks]
        results[part] = {"tasks": found, **{key: round(sum(t[key] for t in found), 1) for key in ("wall_s", "cpu_s")}}
        print(f"{part}: {results[part]['wall_s']} s, {results[part]['cpu_s']} s of processor", flush=True)
    results["peak_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    print(f"peak {results['peak_gib']} GiB")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
