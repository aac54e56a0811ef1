"""Speed and memory of the evaluation: the whole baseline suite on one recording, and all metrics together.

    poyo-ssl prepare events ../shared/data/real/allen_501574836 runs/real/recordings
    python benchmarks/evaluation.py --recording runs/real/recordings/501574836.h5 [--only PART] [--workers N]

The suite is every baseline, control and ceiling for gratings, for the frame numbers of natural movie one (900 frames)
and three (3,600), and for their frames at 64 x 128, on windows of one second; each chooses among raw dF/F and a
model's compressed input, in one bin or three. Repeats 0-5 train, 6 validates, 7 tests (later ones are masked). The
movies' pixels are not public in that form: drawn images take their place, which changes no cost. `cebra` is CEBRA's
decoders of the same tasks. Metrics are timed on 900 frames of 64 x 128 with the mean frame subtracted, 900
candidates, reading and statistics left out.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poyo_ssl.config import FinetuneConfig, SplitConfig, WindowConfig
from poyo_ssl.data.recording import Recording
from poyo_ssl.data.task import Task
from poyo_ssl.data.units import fit_normalisation
from poyo_ssl.evaluation.baselines import KnownWindows, make_arms
from poyo_ssl.evaluation.features import RecordingWindows, activity_inputs
from poyo_ssl.evaluation.predictions import Predictions
from poyo_ssl.evaluation.scores import score_table

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
    data = Task.of([recording], config)
    tables = {name: data.windows(name) for name in ("train", "valid", *data.tests)}
    units = np.arange(recording.num_units)
    train, valid, test = (RecordingWindows.of(recording, units, table, 0) for table in tables.values())
    known = KnownWindows.of(train, valid)
    fitted = fit_normalisation(recording, units, data.domains[recording.recording_id], method="robust_asinh")
    inputs = activity_inputs(data.num_frames, len(units), {("robust_asinh", 10): fitted})
    classes = 0 if data.class_values is None else len(data.class_values)
    found: dict[str, Any] = {
        "task": task,
        "movie": movie,
        "windows": [len(train), len(valid), len(test)],
        "seconds": {},
    }
    frames = drawn_movie(MOVIES[movie]) if task == "frames" else None
    wall, cpu = time.monotonic(), time.process_time()
    for baseline in make_arms(
        task,
        train,
        inputs=inputs,
        which="with_cebra" if cebra else "all",
        num_classes=classes,
        frames=frames,
        tolerance=TOLERANCE,
    ):
        if cebra != baseline.name.startswith("cebra"):
            continue
        started = time.monotonic()
        baseline.fit(known).predict(test)
        found["seconds"][baseline.name] = round(time.monotonic() - started, 2)
        print(f"{task:<13} {movie:<20} {baseline.name:<24} {found['seconds'][baseline.name]:6.1f} s", flush=True)
    found |= {"wall_s": time.monotonic() - wall, "cpu_s": time.process_time() - cpu}
    print(f"{task:<13} {movie:<20} {found['wall_s']:6.1f} s, {found['cpu_s']:6.1f} s of processor", flush=True)
    return found


def time_in_process(path: Path, task: str, movie: str, cebra: bool) -> dict[str, Any]:
    """Return `time_suite` of a process of its own, with its id and its peak memory so far."""
    found = time_suite(Recording.open(path), task, movie, cebra=cebra)
    return found | {"process": os.getpid(), "peak_gib": peak_gib()}


def peak_gib() -> float:
    """Return the largest resident memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def time_tasks(path: Path, *, cebra: bool, workers: int) -> dict[str, Any]:
    """Time all tasks, one after the other here or in processes of one thread each."""
    tasks = [(task, movie) for movie in reversed(MOVIES) for task in ("frame_number", "frames")]
    tasks.append(("gratings", "natural_movie_one"))
    started = time.monotonic()
    if workers:
        # Processes are spawned with this environment, before any of them loads a library.
        os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            found = list(pool.map(time_in_process, *zip(*[(path, *task, cebra) for task in tasks], strict=True)))
    else:
        found = [time_in_process(path, *task, cebra) for task in tasks]
    peaks = {own["process"]: max(f["peak_gib"] for f in found if f["process"] == own["process"]) for own in found}
    wall, cpu = time.monotonic() - started, sum(own["cpu_s"] for own in found)
    return {"tasks": found, "wall_s": round(wall, 1), "cpu_s": round(cpu, 1), "peak_gib": round(sum(peaks.values()), 2)}


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
    parser.add_argument("--workers", type=int, default=0, help="processes that share the tasks; none by default")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    asked = (args.only,) if args.only else ("metrics", "suite")
    results: dict[str, Any] = {}
    if "metrics" in asked:
        results["metrics"] = time_metrics(drawn_movie(900))
        print(f"metrics: {results['metrics']['frames_per_second']} frames per second", flush=True)
    for part in (part for part in asked if part != "metrics"):
        results[part] = time_tasks(args.recording, cebra=part == "cebra", workers=args.workers)
        wall, cpu, peak = (results[part][key] for key in ("wall_s", "cpu_s", "peak_gib"))
        print(f"{part}: {wall} s, {cpu} s of processor, peak {peak} GiB", flush=True)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
