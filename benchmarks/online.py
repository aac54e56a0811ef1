"""Latency of the online decoder per imaging frame, what it is made of, and its memory over many frames, on one core.

    python benchmarks/online.py [--frames 1000] [--memory-frames 20000] [--json FILE]

400 neurons, windows of 1 s at 30 Hz, dim 64, depth 6, random weights; 128 or 16 latents; gratings or movie frames
of 64 x 128. The cases take turns, 50 frames each, in one process with one thread. `whole window` is the model itself on
the same window, which is what a decoder without reuse does at every frame. `CPU` is what the thread itself used: where
its 99th percentile is that of the wall clock, nothing else ran on the core in between. `probe` is the 99th percentile
over the 50th of a fixed product of 0.5 ms or so that is timed before every frame: how much the core's own speed varied
meanwhile, and so how much of a frame's spread is not the decoder's. `floor` is the time that the matrix products
of a frame would take at the rate of a large matrix product on this core; all else (exponentials, sums, Python) comes on
top. `put` to `readout` are the stages of a frame.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from poyo_ssl.config import FinetuneConfig, ModelConfig, ReadoutConfig, WindowConfig
from poyo_ssl.data.recording import Recording, RecordingMetadata
from poyo_ssl.data.units import Vocabulary
from poyo_ssl.data.windows import Batch, Normalisation
from poyo_ssl.models.poyo_ssl import PoyoSSL
from poyo_ssl.online import Decoder
from poyo_ssl.training.run_folder import TrainedRun

NUM_UNITS, RATE_HZ, NUM_FRAMES = 400, 30.0, 30
BLOCK = 50
STEPS_PER_WINDOW = 8
PARTS = ("put", "attend", "processor", "readout")


@dataclass
class Case:
    """One row of the table; times in milliseconds."""

    task: Literal["gratings", "frames"]
    latents: int
    p50: float = 0.0
    p99: float = 0.0
    cpu_p50: float = 0.0
    cpu_p99: float = 0.0
    probe: float = 0.0
    whole_window: float = 0.0
    floor: float = 0.0
    parts: dict[str, float] | None = None


def make_recording() -> Recording:
    """Return 600 random frames."""
    dff = np.random.default_rng(0).gamma(1.0, size=(600, NUM_UNITS)).astype(np.float32)
    return Recording("r", dff, np.arange(600) / RATE_HZ, RecordingMetadata("m"))


def make_run(case: Case) -> TrainedRun:
    """Return a run with random weights."""
    config = FinetuneConfig(
        task=case.task,
        model=ModelConfig(num_latents_per_step=case.latents // STEPS_PER_WINDOW),
        window=WindowConfig(units="all", window_s=1.0),
    )
    frames = case.task == "frames"
    readout = ReadoutConfig("frames", height=64, width=128) if frames else ReadoutConfig()
    model = PoyoSSL(
        config.model,
        num_units=NUM_UNITS,
        num_sessions=1,
        readouts={case.task: readout},
        generator=torch.Generator().manual_seed(0),
    )
    return TrainedRun(
        folder=Path("random"),
        config=config,
        task=case.task,
        model=model.eval(),
        vocabulary=Vocabulary({f"r/roi_{i:04d}": i + 1 for i in range(NUM_UNITS)}, {"r": 1}),
        class_values=None if frames else np.linspace(0.0, 315.0, 8, dtype=np.float64),
        num_frames=NUM_FRAMES,
        normalisation={"r": Normalisation.identity(NUM_UNITS, compress=True)},
        columns={"r": np.arange(NUM_UNITS)},
        movie_frame_s=1 / 30,
    )


def count_products(case: Case, run: TrainedRun) -> float:
    """Return the floating-point operations of a frame's matrix products, as the decoder computes them."""
    config, latents, tokens = run.config.model, case.latents, (NUM_FRAMES + 2) * NUM_UNITS
    dim, width = config.dim, config.self_heads * config.dim_head
    attended = 2 * config.cross_heads * latents * tokens * (config.dim_head / 2 + 8)
    block = 2 * latents * dim * (3 * width + width + 12 * dim) + 4 * latents**2 * width
    total = attended + config.depth * block + 24 * latents * dim**2
    if case.task == "frames":
        area = {m: 0 for m in run.model.modules() if isinstance(m, nn.Conv2d)}
        hooks = [
            module.register_forward_hook(lambda m, _, out: area.__setitem__(m, out[0, 0].numel())) for module in area
        ]
        head = run.model.readouts["frames"].head
        assert isinstance(head, nn.Module)
        with torch.inference_mode():
            head(torch.zeros(1, dim))
        for hook in hooks:
            hook.remove()
        total += sum(2 * module.weight.numel() * pixels for module, pixels in area.items())
        total += sum(2 * m.weight.numel() for m in head.modules() if isinstance(m, nn.Linear))
    return total


def product_rate() -> float:
    """Return operations per second of a matrix product of 1024 x 1024, the best of ten."""
    a = torch.randn(1024, 1024)
    return 2 * 1024**3 / min(seconds(lambda: a @ a)[0] for _ in range(10))


def make_probe() -> Callable[[], None]:
    """Return a fixed piece of work in a core's own cache."""
    a = torch.randn(128, 128)
    out = torch.empty_like(a)

    def probe() -> None:
        for _ in range(16):
            torch.mm(a, a, out=out)

    return probe


def seconds(function: Callable[[], Any]) -> tuple[float, float]:
    """Return wall-clock and CPU seconds of one call."""
    wall, cpu = time.perf_counter(), time.thread_time()
    function()
    return time.perf_counter() - wall, time.thread_time() - cpu


def time_parts(decoder: Decoder, repeats: int = 50) -> dict[str, float]:
    """Return the median milliseconds of the stages of a frame."""
    latents, model = decoder.latents, decoder.model
    places = list(range(NUM_FRAMES))
    times = (torch.arange(NUM_FRAMES, dtype=torch.float64) + 0.5) / RATE_HZ
    values, present = torch.randn(NUM_UNITS), torch.ones(NUM_UNITS, dtype=torch.bool)
    task, session, target_time = decoder.run.task, decoder.session_index, torch.tensor([0.5])
    stages: dict[str, Callable[[], Any]] = {
        "put": lambda: decoder.attention.put(0, values, present),
        "attend": lambda: decoder.attention.attend(places, times),
        "processor": lambda: decoder.processor(latents.values[0].clone()),
        "readout": lambda: model.readout(task, latents, session_index=session, target_time=target_time),
    }
    with torch.inference_mode():
        found = {}
        for name, stage in stages.items():
            stage()
            found[name] = 1e3 * float(np.median([seconds(stage)[0] for _ in range(repeats)]))
    return found


def whole_window(run: TrainedRun, decoder: Decoder, dff: torch.Tensor) -> Callable[[], Any]:
    """Return the model's own computation for one window."""
    batch = Batch(
        dff=dff[None],
        unit_index=decoder.unit_index[None],
        unit_mask=torch.ones(1, NUM_UNITS, dtype=torch.bool),
        frame_times=((torch.arange(NUM_FRAMES) + 0.5) / RATE_HZ)[None],
        session_index=decoder.session_index,
        target_time=torch.tensor([0.5]),
        duration_s=NUM_FRAMES / RATE_HZ,
    )

    @torch.inference_mode()
    def forward() -> None:
        run.model(batch, run.task)

    return forward


def measure(cases: list[Case], num_frames: int) -> None:
    """Fill in the cases, which take turns."""
    recording = make_recording()
    runs = [make_run(case) for case in cases]
    decoders = [Decoder(run, recording) for run in runs]
    window = torch.from_numpy(recording.dff[:NUM_FRAMES])
    models = [whole_window(run, decoder, window) for run, decoder in zip(runs, decoders, strict=True)]
    for decoder in decoders:
        for frame in recording.dff[: 2 * NUM_FRAMES]:
            decoder.step(frame)
    wall: list[list[float]] = [[] for _ in cases]
    cpu: list[list[float]] = [[] for _ in cases]
    whole: list[list[float]] = [[] for _ in cases]
    probe = make_probe()
    probed: list[list[float]] = [[] for _ in cases]
    for start in range(0, num_frames, BLOCK):
        for i, decoder in enumerate(decoders):
            for j in range(start, min(start + BLOCK, num_frames)):
                frame = recording.dff[j % len(recording.dff)]
                probed[i].append(seconds(probe)[1])
                on_wall, on_cpu = seconds(lambda decoder=decoder, frame=frame: decoder.step(frame))  # type: ignore[misc]
                wall[i].append(on_wall)
                cpu[i].append(on_cpu)
            whole[i].append(seconds(models[i])[0])
    rate = product_rate()
    for i, case in enumerate(cases):
        case.p50, case.p99 = (1e3 * float(np.quantile(wall[i], q)) for q in (0.5, 0.99))
        case.cpu_p50, case.cpu_p99 = (1e3 * float(np.quantile(cpu[i], q)) for q in (0.5, 0.99))
        case.probe = float(np.quantile(probed[i], 0.99) / np.median(probed[i]))
        case.whole_window = 1e3 * float(np.median(whole[i]))
        case.floor = 1e3 * count_products(case, runs[i]) / rate
        case.parts = time_parts(decoders[i])
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, one thread, {num_frames} frames")
    print(f"large matrix products: {rate / 1e9:.0f} GFLOP/s")


def resident_mib() -> float:
    """Return this process's resident memory in MiB (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def measure_memory(num_frames: int) -> dict[str, float]:
    """Return resident MiB after 1 %, 10 % and all of the frames of a small decoder, some of them dropped or missing."""
    recording = make_recording()
    decoder = Decoder(make_run(Case("gratings", 16)), recording)
    rng, found = np.random.default_rng(0), {}
    marks = {num_frames // 100, num_frames // 10, num_frames}
    for i in range(1, num_frames + 1):
        frame = recording.dff[i % len(recording.dff)].copy()
        frame[rng.random(NUM_UNITS) < 0.01] = np.nan
        decoder.skip() if i % 50 == 0 else decoder.step(frame)
        if i in marks:
            found[str(i)] = round(resident_mib(), 1)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1000, help="timed frames of each case")
    parser.add_argument("--memory-frames", type=int, default=20_000, help="frames of the memory run; 0 leaves it out")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tasks: tuple[Literal["gratings", "frames"], ...] = ("gratings", "frames")
    cases = [Case(task, latents) for latents in (128, 16) for task in tasks]
    if options.frames:
        measure(cases, options.frames)
        print(
            "| latents | task | p50 (ms) | p99 | CPU p50 | CPU p99 | probe | whole window | floor | "
            + " | ".join(PARTS)
            + " |"
        )
        print("|---" * (9 + len(PARTS)) + "|")
        for case in cases:
            assert case.parts is not None
            clocks = [case.p50, case.p99, case.cpu_p50, case.cpu_p99]
            numbers = [case.whole_window, case.floor, *map(case.parts.get, PARTS)]
            cells = [f"{number:.1f}" for number in clocks] + [f"{case.probe:.2f}"] + [f"{x:.1f}" for x in numbers]
            print(f"| {case.latents} | {case.task} | " + " | ".join(cells) + " |")
    memory = measure_memory(options.memory_frames) if options.memory_frames else {}
    if memory:
        print("resident MiB after frames: " + ", ".join(f"{count}: {mib}" for count, mib in memory.items()))
    if options.json:
        options.json.write_text(json.dumps({"cases": [asdict(case) for case in cases], "memory_mib": memory}, indent=1))


if __name__ == "__main__":
    main()
