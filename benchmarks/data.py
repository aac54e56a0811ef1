"""Whether data ever waits: windows per second from disk against what the model consumes, and moments per second.

    python benchmarks/data.py [--folder FOLDER] [--repeats 10] [--quick] [--json FILE]

Forty recordings of 200 neurons are written once into the folder (a temporary one by default) and memory-mapped.
Windows are made as in training, with neurons dropped and in random order over all recordings, on one thread. Beside
them stands the training step of the dim-64 model on the same batch, forward, backward and optimiser; the two take
turns, and the table has medians of CPU seconds. `ratio` is how many such models one thread could feed.

Moments are those of `select`: `measure_units`, skewness and kurtosis with signal to noise and event rate. `warm`: the
file is in the page cache; the figure is megabytes of dF/F per CPU second. `cold`: the kernel is asked to forget the
file first, and the time is set against that of reading its bytes alone, also cold; where storage answers as fast as
memory, that ratio says nothing of a disk.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from poyo_ssl.config import FinetuneConfig, ModelConfig, ObjectiveConfig, OptimConfig, ReadoutConfig
from poyo_ssl.data.recording import Recording, RecordingMetadata
from poyo_ssl.data.windows import BatchSampler, Normalisation, UnitSet, WindowDataset, WindowTable
from poyo_ssl.models.poyo_ssl import PoyoSSL
from poyo_ssl.models.pretraining import TwinPretrainer
from poyo_ssl.selection.moments import measure_units
from poyo_ssl.training.modules import FinetuneModule, make_optimizer

NUM_RECORDINGS, NUM_UNITS, RATE_HZ = 40, 200, 30.08
SHAPES = (("pretraining", 8, 57), ("fine-tuning", 32, 30), ("fine-tuning", 32, 1))
READ_BYTES = 1 << 20


def write_recordings(folder: Path, num_frames: int) -> list[Recording]:
    """Write what is not there yet, and open it."""
    rng = np.random.default_rng(0)
    found = []
    for i in range(NUM_RECORDINGS):
        path = folder / f"recording_{i:02d}.h5"
        if not path.exists():
            dff = rng.gamma(1.0, size=(num_frames, NUM_UNITS)).astype(np.float32)
            times = np.arange(num_frames) / RATE_HZ
            Recording(path.stem, dff, times, RecordingMetadata(f"mouse{i}")).save(path)
        found.append(Recording.open(path))
    return found


def make_dataset(recordings: list[Recording], num_frames: int, num_windows: int) -> WindowDataset:
    """Return windows at random places of all recordings."""
    rng = np.random.default_rng(1)
    which = rng.integers(0, len(recordings), num_windows)
    first = rng.integers(0, recordings[0].num_frames - num_frames, num_windows)
    table = WindowTable(
        num_frames=num_frames,
        recording_index=which,
        first_low=first,
        first_high=first,
        target_time=np.asarray((first + 0.5 * num_frames) / RATE_HZ, np.float64),
        target=np.zeros(num_windows, np.int64),
        stimulus=np.full(num_windows, "drifting_gratings"),
        frame_number=first,
        repeat=first,
    )
    columns = np.arange(NUM_UNITS)
    units = [
        UnitSet(columns, columns + 1 + i * NUM_UNITS, Normalisation.identity(NUM_UNITS, compress=True), i + 1)
        for i in range(len(recordings))
    ]
    return WindowDataset(recordings, units, table, unit_dropout=True)


def make_step(task: str) -> Callable[[Any], None]:
    """Return a training step of the dim-64 model."""
    torch.manual_seed(0)
    model = PoyoSSL(
        ModelConfig(),
        num_units=NUM_RECORDINGS * NUM_UNITS,
        num_sessions=NUM_RECORDINGS,
        readouts={"gratings": ReadoutConfig()},
    )
    module: torch.nn.Module
    if task == "pretraining":
        module = TwinPretrainer(model, ObjectiveConfig())
    else:
        module = FinetuneModule(model, FinetuneConfig(task="gratings"), num_targets=8)
    module.train()
    optimizer = make_optimizer(module, OptimConfig())
    generator = torch.Generator().manual_seed(0)

    def step(batch: Any) -> None:
        loss = module(batch, generator).loss if isinstance(module, TwinPretrainer) else module.losses(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def measure_windows(recordings: list[Recording], repeats: int) -> list[dict[str, Any]]:
    """Return one row per shape: windows per second of loader and model."""
    rows = []
    for task, batch_size, num_frames in SHAPES:
        dataset = make_dataset(recordings, num_frames, 20 * batch_size * (repeats + 1))
        requests = iter(BatchSampler(len(dataset), batch_size, seed=0))
        step, loading, stepping = make_step(task), [], []
        for _ in range(repeats + 1):
            start = time.process_time()
            for _ in range(20):
                batch = dataset[next(requests)]
            loaded = time.process_time()
            step(batch)
            loading.append((loaded - start) / (20 * batch_size))
            stepping.append((time.process_time() - loaded) / batch_size)
        load, train = float(np.median(loading[1:])), float(np.median(stepping[1:]))
        rows.append(
            {
                "task": task,
                "batch": batch_size,
                "frames": num_frames,
                "loader_per_s": round(1 / load, 1),
                "model_per_s": round(1 / train, 1),
                "ratio": round(train / load, 1),
            }
        )
    return rows


def forget(path: Path) -> None:
    """Ask the kernel to drop a file from its page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_bytes(path: Path) -> None:
    """Read a file from its first byte to its last."""
    buffer = bytearray(READ_BYTES)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def seconds(function: Callable[[], Any], clock: Callable[[], float]) -> float:
    """Return how long a call takes."""
    start = clock()
    function()
    return clock() - start


def measure_moments(path: Path, repeats: int) -> dict[str, float]:
    """Return megabytes per second from a warm cache, and the times from a cold one."""
    recording = Recording.open(path)
    megabytes = 4 * recording.num_frames * recording.num_units / 1e6
    measure_units(recording)
    warm = [seconds(lambda: measure_units(recording), time.thread_time) for _ in range(repeats)]
    reading, measuring = [], []
    for _ in range(repeats):
        forget(path)
        reading.append(seconds(lambda: read_bytes(path), time.perf_counter))
        forget(path)
        # Opened anew: pages that are mapped would stay in memory.
        measuring.append(seconds(lambda: measure_units(Recording.open(path)), time.perf_counter))
    return {
        "megabytes": round(megabytes, 1),
        "warm_mb_per_cpu_s": round(megabytes / float(np.median(warm)), 0),
        "read_cold_s": round(float(np.median(reading)), 3),
        "moments_cold_s": round(float(np.median(measuring)), 3),
        "cold_ratio": round(float(np.median(measuring) / np.median(reading)), 2),
    }


def resident_mib(key: str) -> float:
    """Return VmRSS or RssAnon of this process in MiB (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def measure_memory(recordings: list[Recording]) -> dict[str, float]:
    """Return anonymous MiB (maps of files left out) after 200 and after 2000 batches."""
    dataset = make_dataset(recordings, 30, 32 * 2000)
    found = {}
    for count, request in enumerate(BatchSampler(len(dataset), 32, seed=0), start=1):
        dataset[request]
        if count in (200, 2000):
            found[str(count)] = round(resident_mib("RssAnon"), 1)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the recordings lie or will lie; else a temporary folder")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="recordings of 3,000 frames instead of 30,000")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        recordings = write_recordings(folder, 3_000 if options.quick else 30_000)
        results: dict[str, Any] = {"windows": measure_windows(recordings, options.repeats)}
        results["memory_mib"] = measure_memory(recordings)
        long = folder / "long.h5"
        if not long.exists():
            dff = np.random.default_rng(2).gamma(1.0, size=(115_000, NUM_UNITS)).astype(np.float32)
            Recording("long", dff, np.arange(115_000) / RATE_HZ, RecordingMetadata("mouse")).save(long)
        results["moments"] = measure_moments(long, options.repeats)
    print(
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}, one thread, {options.repeats} runs"
    )
    print("| task | batch | frames | windows made per s | consumed per s | ratio |\n|---|---|---|---|---|---|")
    for row in results["windows"]:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")
    print(f"anonymous MiB after batches: {results['memory_mib']}")
    print(f"moments: {results['moments']}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
