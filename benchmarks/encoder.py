"""Our encoder against what a user could run instead: seconds and peak memory, and how far the rest is from the floor.

    python benchmarks/encoder.py --quick
    python benchmarks/encoder.py --rivals published --sizes 1M --batches 8 --neurons 200 --frames 57 [--json FILE]
    python benchmarks/encoder.py --rivals torch_brain --sizes 1M --frames 30 --peer peer/bin/python
    python benchmarks/encoder.py --device cuda --precision bf16 --batches 64 256

Rivals, each with the weights, window, objective and optimiser of ours:

- `published`: one pretraining step as published (`published.py`: our plain token form, each twin pass encodes anew,
  explicit softmax, dropout of the attention 0.2). Ours drops at the same rates.
- `published_fused`: the same with torch's fused attention; neither drops attention.
- `block`, `block_fused`: the cross-attention alone, forward and backward, in the plain token form, likewise.
- `torch_brain`: one supervised step of CalciumPOYOPlus of torch_brain 0.1.2 in an environment of its own
  (`peers/calcium_poyo_plus.py`); its tokens have no start and end, so ours have none here. `--attention-dropout`
  holds for both (0, its default, unless given).

Ours and the rival take turns, one step each, after one warm-up step; seconds are medians. Peak memory is that of the
first full step of a fresh process above what it held before. `ratio` is theirs over ours, `bound` the ratio of the
operations in matrix products, and `floor` the least time our step could take here: its products at the speed of a
large one, its softmax's powers of two, and the optimiser's memory traffic, one after the other. On a machine that
computes for others, too, `--clock cpu --threads 1` counts processor seconds instead of those that pass.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from measuring import CLOCKS, Machine, counted_flops, measure_machine, run_once
from poyo_ssl.config import MODEL_SIZES, ModelConfig, ObjectiveConfig, OptimConfig, ReadoutConfig
from poyo_ssl.data.windows import Batch
from poyo_ssl.models.poyo_ssl import PoyoSSL, latent_times
from poyo_ssl.models.pretraining import TwinPretrainer
from poyo_ssl.protocol import IMAGING_RATE_HZ, ROTARY_T_MIN_CODED_S
from poyo_ssl.training.modules import make_optimizer
from published import PublishedTwin, published_arithmetic

RIVALS = ("published", "published_fused", "block", "block_fused", "torch_brain")
SIZES: dict[str, dict[str, Any]] = {
    **MODEL_SIZES,
    "deep": {"dim": 128, "dim_head": 64, "cross_heads": 2, "self_heads": 8, "depth": 24},
    # What CalciumPOYOPlus takes if nothing is said.
    "defaults": {
        "dim": 512, "dim_head": 64, "cross_heads": 1, "self_heads": 8, "depth": 2, "num_latents_per_step": 64,
    },
}  # fmt: skip
RELEASED = ObjectiveConfig(
    masking="feature",
    mask_ratio=1 / 1024,
    reconstruction="mse",
    reconstruct="all",
    masked_pass_residuals=False,
    gratings_weight=1.0,
    times_batch_size=True,
)
MIB_PER_TOKEN_AND_WIDTH = 90 / 2**20
"""Of the published step: measured peaks divided by tokens and width (docs/encoder.md)."""
BYTES_PER_WEIGHT = 40
"""Read in both passes, gradient written; AdamW reads four and writes three values."""


@dataclass(frozen=True)
class Cell:
    """One comparison."""

    rival: str
    size: str
    batch: int
    neurons: int
    frames: int
    attention_dropout: float
    device: str
    precision: str
    threads: int
    clock: str
    peer: str | None

    @property
    def config(self) -> ModelConfig:
        """Settings of our model."""
        supervised = self.rival == "torch_brain"
        return ModelConfig(
            **SIZES[self.size],
            latent_grid="window" if supervised else "unit_second",
            rotary_t_min_s=ROTARY_T_MIN_CODED_S,
            start_end_tokens=not supervised,
            attention_dropout=self.attention_dropout,
        )

    @property
    def warm_up(self) -> Cell:
        """A step that loads everything and needs no memory."""
        return replace(self, batch=1, neurons=min(self.neurons, 10), frames=1)

    def autocast(self) -> AbstractContextManager:
        """Return the precision of forward passes."""
        on = self.precision == "bf16"
        return torch.autocast(self.device, torch.bfloat16) if on else nullcontext()


def make_batch(cell: Cell) -> Batch:
    """Return random windows on the cell's device."""
    size, frames, duration_s = cell.batch, cell.frames, cell.frames / IMAGING_RATE_HZ
    return Batch(
        dff=torch.randn(size, frames, cell.neurons),
        unit_index=torch.arange(1, cell.neurons + 1).expand(size, -1),
        unit_mask=torch.ones(size, cell.neurons, dtype=torch.bool),
        frame_times=((torch.arange(frames) + 0.5) / IMAGING_RATE_HZ).expand(size, -1),
        session_index=torch.ones(size, dtype=torch.long),
        target_time=torch.full((size,), duration_s / 2),
        duration_s=duration_s,
        target=torch.randint(8, (size,)),
    ).to(cell.device)


class Contest:
    """Ours and, unless it runs elsewhere, the rival: two ways to a loss of the same weights.

    Parameters
    ----------
    cell : Cell
        What is compared.
    """

    def __init__(self, cell: Cell) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(cell.threads)
        config = cell.config
        if cell.rival.startswith("block"):
            config = replace(config, depth=1)
        self.model = PoyoSSL(config, num_units=cell.neurons, num_sessions=1, readouts={"gratings": ReadoutConfig()}).to(
            cell.device
        )
        self.twins = {"ours": TwinPretrainer(self.model, RELEASED), "theirs": PublishedTwin(self.model, RELEASED)}
        self.optimizer = make_optimizer(self.model.train(), OptimConfig())
        self.generator = torch.Generator().manual_seed(0)

    def loss(self, cell: Cell, who: str, batch: Batch) -> Tensor:
        """Return what is minimised."""
        if cell.rival == "torch_brain":
            target = batch.target
            assert target is not None
            return F.cross_entropy(self.model(batch, "gratings").float(), target)
        if cell.rival.startswith("block"):
            return self._cross_attention(batch, None if who == "ours" else "plain").float().square().mean()
        return self.twins[who](batch, self.generator).loss

    def _cross_attention(self, batch: Batch, form: Any) -> Tensor:
        model = self.model
        times = latent_times(model.config, batch.duration_s).to(batch.dff.device)
        latents = model.latents.repeat(len(times) // len(model.latents), 1).unsqueeze(0)
        grid = model.tokens(batch, times, model.rotary)
        return model.encoder.cross_attention(latents, grid, model.rotary(times, latents.dtype), form=form)

    def make_step(self, cell: Cell, who: str) -> Callable[[], None]:
        """Return forward, backward and (but for the block alone) optimiser."""
        batch = make_batch(cell)

        def step() -> None:
            fused = cell.rival.endswith("_fused")
            arithmetic = published_arithmetic(fused=fused) if who == "theirs" else nullcontext()
            with arithmetic, cell.autocast():
                loss = self.loss(cell, who, batch)
            loss.backward()
            if not cell.rival.startswith("block"):
                self.optimizer.step()
            self.optimizer.zero_grad()

        return step

    def count_flops(self, cell: Cell, who: str) -> int:
        """Return the floating-point operations in matrix products of one step."""
        # A rival with explicit attention stands for the fused one: the same products.
        cell = replace(cell, rival=cell.rival.removesuffix("_fused"))
        with counted_flops() as counter:
            self.make_step(cell, who)()
        return counter.get_total_flops()


class Peer:
    """CalciumPOYOPlus in its own process, one step on request.

    Parameters
    ----------
    cell : Cell
        What is compared.
    """

    def __init__(self, cell: Cell) -> None:
        assert cell.peer is not None
        here = Path(__file__).parent
        self.process = subprocess.Popen(
            [cell.peer, str(here / "peers/calcium_poyo_plus.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": str(here)},
        )
        self._write(json.dumps(self.case(cell)))

    @staticmethod
    def case(cell: Cell) -> dict[str, Any]:
        """Return what the other process must know."""
        config = cell.config
        same = ("dim", "dim_head", "cross_heads", "self_heads", "depth", "num_latents_per_step", "ffn_dropout")
        model = {name: getattr(config, name) for name in same} | {
            "latent_step": config.latent_step_s,
            "lin_dropout": config.residual_dropout,
            "atn_dropout": config.attention_dropout,
        }
        steps = len(latent_times(config, cell.frames / IMAGING_RATE_HZ)) // config.num_latents_per_step
        return {**asdict(cell), "model": model, "rate_hz": IMAGING_RATE_HZ, "latent_steps": steps}

    def _write(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def run(self) -> tuple[float, float]:
        """Return seconds and peak MiB of its next step."""
        assert self.process.stdout is not None
        self._write("step")
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.process.args} ended; see its message above")
        seconds, peak = json.loads(answer)
        return seconds, peak

    def count_flops(self) -> int:
        """Return the floating-point operations in matrix products of one step."""
        assert self.process.stdout is not None
        self._write("count")
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def peak_in_child(cell: Cell, who: str) -> float:
    """Return the peak MiB of the first full step of a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak, cell, who).result()


def _peak(cell: Cell, who: str) -> float:
    contest = Contest(cell)
    contest.make_step(cell.warm_up, who)()
    return run_once(contest.make_step(cell, who), torch.device(cell.device))[1]


@contextmanager
def contenders(cell: Cell) -> Iterator[tuple[Contest, Peer | None, tuple[Callable[[], float], ...], dict[str, float]]]:
    """Give both sides, their timed steps and peak memory; the other process, if there is one, ends afterwards."""

    def seconds(step: Callable[[], None]) -> Callable[[], float]:
        return lambda: run_once(step, torch.device(cell.device), cell.clock)[0]

    contest = Contest(cell)
    ours = seconds(contest.make_step(cell, "ours"))
    memory = {"ours": peak_in_child(cell, "ours")}
    if cell.rival != "torch_brain":
        memory["theirs"] = peak_in_child(cell, "theirs")
        yield contest, None, (ours, seconds(contest.make_step(cell, "theirs"))), memory
        return
    peer = Peer(cell)
    try:
        memory["theirs"] = peer.run()[1]
        yield contest, peer, (ours, lambda: peer.run()[0]), memory
    finally:
        peer.close()


def compare(cell: Cell, machine: Machine, repeats: int) -> dict[str, Any]:
    """Return one row."""
    with contenders(cell) as (contest, peer, (ours, theirs), memory):
        turns = np.array([[ours(), theirs()] for _ in range(repeats + 1)])
        seconds = dict(zip(("ours", "theirs"), np.median(turns[1:], axis=0), strict=True))
        row = {
            "size": cell.size,
            "dim_head": cell.config.dim_head,
            "rival": cell.rival,
            "attention_dropout": cell.attention_dropout,
            "batch": cell.batch,
            "neurons": cell.neurons,
            "frames": cell.frames,
            **seconds,
            "ratio_time": seconds["theirs"] / seconds["ours"],
            "ours_mib": memory["ours"],
            "theirs_mib": memory["theirs"],
            "ratio_memory": memory["theirs"] / memory["ours"],
        }
        flops = contest.count_flops(cell, "ours")
        row["gflop"] = flops / 1e9
        row["floor"] = _floor(cell, contest, flops, machine)
        row["bound"] = (contest.count_flops(cell, "theirs") if peer is None else peer.count_flops()) / flops
        return row


def _floor(cell: Cell, contest: Contest, flops: int, machine: Machine) -> float:
    config = contest.model.config
    latents = len(latent_times(config, cell.frames / IMAGING_RATE_HZ))
    tokens = cell.neurons * (cell.frames + 2 * config.start_end_tokens)
    logits = cell.batch * latents * config.cross_heads * tokens
    traffic = 0
    if not cell.rival.startswith("block"):
        passes = 1 if cell.rival == "torch_brain" else 2
        logits += passes * cell.batch * latents**2 * config.self_heads * config.depth
        traffic = BYTES_PER_WEIGHT * sum(p.numel() for p in contest.model.parameters())
    # The softmax is computed in the forward pass and, because it is not kept, once more in the backward pass.
    return flops / machine.gflops / 1e9 + 2 * logits / machine.gexp2 / 1e9 + traffic / machine.copied_gb / 1e9


def memory_needed_gib(cell: Cell) -> float:
    """Return about what the rival's step needs."""
    tokens = cell.batch * cell.neurons * (cell.frames + 2)
    width = cell.config.dim + cell.config.cross_heads * cell.config.dim_head
    weights = 16 * PoyoSSL(cell.config, num_units=1, num_sessions=1, readouts={}).num_parameters()["core"] / 2**30
    return weights + tokens * width * MIB_PER_TOKEN_AND_WIDTH / 2**10


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    """Yield what the command line asks for."""
    for size, rival, batch, neurons, frames in product(
        options.sizes, options.rivals, options.batches, options.neurons, options.frames
    ):
        if rival == "torch_brain":
            dropout = options.attention_dropout
        else:
            dropout = 0.0 if rival.endswith("_fused") else ModelConfig().attention_dropout
        yield Cell(
            rival, size, batch, neurons, frames, dropout,
            options.device, options.precision, options.threads, options.clock, options.peer,
        )  # fmt: skip


HEAD = (
    "| size | rival | batch | neurons | frames | ours (s) | theirs (s) | ratio | bound | ours (MiB) | theirs (MiB) "
    "| ratio | floor (s) | ours / floor |"
)


def line(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    return (
        f"| {row['size']} | {row['rival']} | {row['batch']} | {row['neurons']} | {row['frames']} | {row['ours']:.4f} "
        f"| {row['theirs']:.4f} | {row['ratio_time']:.2f} | {row['bound']:.2f} "
        f"| {row['ours_mib']:.0f} | {row['theirs_mib']:.0f} | {row['ratio_memory']:.2f} "
        f"| {row['floor']:.4f} | {row['ours'] / row['floor']:.2f} |"
    )


def profile(cell: Cell) -> str:
    """Return where our step's time goes, by torch's operation."""
    contest = Contest(cell)
    step = contest.make_step(cell, "ours")
    step()
    with torch.profiler.profile() as found:
        step()
    key = "self_device_time_total" if cell.device == "cuda" else "self_cpu_time_total"
    times = sorted(((getattr(event, key), event) for event in found.key_averages()), key=lambda pair: -pair[0])
    total = sum(time for time, _ in times)
    rows = [f"| {event.key} | {time / 1e3:.1f} | {time / total:.1%} | {event.count} |" for time, event in times[:15]]
    return "\n".join(["| operation | ms | share | calls |", "|---|---|---|---|", *rows])


def parse() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few small cells, three turns each, under a minute")
    parser.add_argument("--rivals", nargs="+", default=["published", "published_fused"], choices=RIVALS)
    parser.add_argument("--sizes", nargs="+", default=["1M"], choices=list(SIZES))
    parser.add_argument("--batches", nargs="+", type=int, default=[8])
    parser.add_argument("--neurons", nargs="+", type=int, default=[200])
    parser.add_argument("--frames", nargs="+", type=int, default=[57])
    parser.add_argument("--attention-dropout", type=float, default=0.0, help="of both sides, against torch_brain")
    parser.add_argument("--peer", help="python of an environment with torch_brain 0.1.2, see peers/")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", default="wall", choices=CLOCKS, help="cpu: processor seconds, for a busy machine")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--memory-gib", type=float, default=24.0, help="cells whose rival needs more are left out")
    parser.add_argument("--profile", action="store_true", help="print where our step's time goes instead")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    if options.quick:
        options.rivals, options.batches, options.repeats = ["published", "block"], [2], 3
    if "torch_brain" in options.rivals and options.peer is None:
        parser.error("--rivals torch_brain needs --peer, see peers/calcium_poyo_plus.py")
    return options


def main() -> None:
    """Run the cells and print the table."""
    options = parse()
    torch.set_num_threads(options.threads)
    if options.profile:
        for cell in cells(options):
            print(cell, profile(cell), sep="\n")
        return
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    machine = measure_machine(torch.device(options.device), dtype, options.clock)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {options.threads} threads")
    print(f"product {machine.gflops:.0f} GFLOP/s, copy {machine.copied_gb:.1f} GB/s, 2^x {machine.gexp2:.2f} G/s")
    print(f"{options.device}, {options.precision}, medians of {options.repeats}, {options.clock} clock\n")
    print(f"{HEAD}\n|{'---|' * 14}", flush=True)
    rows = []
    for cell in cells(options):
        needed = memory_needed_gib(cell)
        if needed > options.memory_gib:
            where = f"| {cell.size} | {cell.rival} | {cell.batch} | {cell.neurons} | {cell.frames} |"
            print(f"{where} left out: the rival needs about {needed:.0f} GiB", flush=True)
            continue
        rows.append(compare(cell, machine, options.repeats))
        print(line(rows[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"machine": asdict(machine), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
