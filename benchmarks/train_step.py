"""Step time and peak memory of pretraining and fine-tuning, for each named size up to 15 M.

    python benchmarks/train_step.py [--sizes 1M 3M] [--repeats 10] [--json FILE]

The cases run interleaved in one process, one step of each in turn; the table gives the median of the repeats after one
warm-up step. Memory is the process's peak resident size in a step above what it holds before it.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from measuring import run_once
from poyo_ssl.config import MODEL_SIZES, FinetuneConfig, ModelConfig, ObjectiveConfig, OptimConfig, ReadoutConfig
from poyo_ssl.data.windows import Batch
from poyo_ssl.models.poyo_ssl import PoyoSSL, count_parameters
from poyo_ssl.models.pretraining import TwinPretrainer
from poyo_ssl.training.modules import FinetuneModule, make_optimizer

NUM_UNITS = 200
RATE_HZ = 30.08
LARGEST = 15_000_000


@dataclass
class Case:
    """One row of the table."""

    size: str
    parameters: int
    task: str
    batch: int
    neurons: int
    frames: int
    attention_dropout: float
    seconds: float = 0.0
    peak_mib: float = 0.0


def make_batch(case: Case, target: torch.Tensor) -> Batch:
    """Return a random batch of one shape."""
    size, frames = case.batch, case.frames
    return Batch(
        dff=torch.randn(size, frames, NUM_UNITS),
        unit_index=torch.arange(1, NUM_UNITS + 1).expand(size, -1),
        unit_mask=torch.ones(size, NUM_UNITS, dtype=torch.bool),
        frame_times=((torch.arange(frames) + 0.5) / RATE_HZ).expand(size, -1),
        session_index=torch.ones(size, dtype=torch.long),
        target_time=torch.full((size,), 0.5 * frames / RATE_HZ),
        duration_s=frames / RATE_HZ,
        target=target,
    )


def make_step(case: Case, device: torch.device) -> Callable[[], None]:
    """Return a function that takes one training step: forward, backward, optimiser."""
    model_config = ModelConfig(**MODEL_SIZES[case.size], attention_dropout=case.attention_dropout)
    if case.task == "pretraining":
        readouts = {"gratings": ReadoutConfig()}
        model = PoyoSSL(model_config, num_units=NUM_UNITS, num_sessions=1, readouts=readouts)
        module: torch.nn.Module = TwinPretrainer(model, ObjectiveConfig())
        target = torch.randint(8, (case.batch,))
    else:
        config = FinetuneConfig(task="frames", model=model_config)
        readouts = {"frames": ReadoutConfig("frames", height=64, width=128)}
        model = PoyoSSL(model_config, num_units=NUM_UNITS, num_sessions=1, readouts=readouts)
        module = FinetuneModule(model, config, num_targets=0)
        target = torch.rand(case.batch, 64, 128)
    module.to(device).train()
    optimizer = make_optimizer(module, OptimConfig())
    batch = make_batch(case, target).to(device)
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        if isinstance(module, TwinPretrainer):
            loss = module(batch, generator).loss
        else:
            assert isinstance(module, FinetuneModule)
            loss = module.losses(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def main() -> None:
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    fitting = [size for size in MODEL_SIZES if count_parameters(size) <= LARGEST]
    parser.add_argument("--sizes", nargs="+", default=fitting, choices=list(MODEL_SIZES))
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--attention-dropout", type=float, default=ModelConfig().attention_dropout)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    shapes = (("pretraining", 8, 57), ("fine-tuning", 32, 1), ("fine-tuning", 32, 30))
    cases = [
        Case(size, count_parameters(size), task, batch, NUM_UNITS, frames, options.attention_dropout)
        for size in options.sizes
        for task, batch, frames in shapes
    ]
    steps = [make_step(case, device) for case in cases]
    measured = np.full((options.repeats + 1, len(cases), 2), np.nan)
    for repeat in range(options.repeats + 1):
        for place, step in enumerate(steps):
            measured[repeat, place] = run_once(step, device)
    medians = np.median(measured[1:], axis=0)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"attention dropout {options.attention_dropout}, median of {options.repeats}")
    print("| size | core parameters | task | batch | neurons | frames | step (s) | peak (MiB) |")
    print("|---|---|---|---|---|---|---|---|")
    for case, (seconds, peak) in zip(cases, medians, strict=True):
        case.seconds, case.peak_mib = float(seconds), float(peak)
        numbers = f"{case.batch} | {case.neurons} | {case.frames} | {seconds:.3f} | {peak:.0f}"
        print(f"| {case.size} | {case.parameters:,} | {case.task} | {numbers} |")
    if options.json:
        options.json.write_text(json.dumps([asdict(case) for case in cases], indent=1))


if __name__ == "__main__":
    main()
