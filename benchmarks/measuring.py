"""What the benchmarks measure with: seconds and peak memory of one step, and what this machine can do at best.

Needs torch and nothing of `poyo_ssl`: the peers measure with it in environments of their own.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def resident_mib(key: str) -> float:
    """Return VmRSS or VmHWM of this process in MiB (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    return float("nan")


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""Seconds that pass, or seconds of the processor that all threads of this process use."""


def run_once(step: Callable[[], object], device: torch.device, clock: str = "wall") -> tuple[float, float]:
    """Return seconds of one step, and its peak MiB above what was held before it."""
    now = CLOCKS[clock]
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated() / 2**20
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from the present size
        before = resident_mib("VmRSS")
    start = now()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
        return now() - start, torch.cuda.max_memory_allocated() / 2**20 - before
    return now() - start, resident_mib("VmHWM") - before


@contextmanager
def counted_flops() -> Iterator[FlopCounterMode]:
    """Count the floating-point operations in matrix products, those of attention among them.

    The counter does not know the fused attention of a CPU, so attention is computed from single products meanwhile:
    the same ones, but for the logits that a fused kernel computes again in the backward pass.
    """
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.baddbmm_: _added_product_flop})
    with sdpa_kernel(SDPBackend.MATH), counter:
        yield counter


def _added_product_flop(*shapes: tuple[int, ...], **_: Any) -> int:
    """Return the operations of ``into += left @ right``, which torch's counter does not know."""
    _, left, right = shapes
    return 2 * math.prod(left) * right[-1]


@dataclass(frozen=True)
class Machine:
    """Best speeds of simple work.

    Attributes
    ----------
    gflops : float
        Floating-point operations of a large matrix product, 10^9 per second.
    copied_gb : float
        Bytes read and written by a copy that fits no cache, 10^9 per second.
    gexp2 : float
        Powers of two of values in the cache, 10^9 per second.
    """

    gflops: float
    copied_gb: float
    gexp2: float


def measure_machine(device: torch.device, dtype: torch.dtype, clock: str = "wall") -> Machine:
    """Measure the best of ten runs of each kind of work."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    large = torch.zeros(2**28 // 4, device=device)
    into = torch.empty_like(large)
    cached = torch.rand(2**20, device=device)  # 4 MB

    def powers() -> None:
        for _ in range(20):
            torch.exp2(cached)

    def best(work: Callable[[], object]) -> float:
        return min(run_once(work, device, clock)[0] for _ in range(10))

    return Machine(
        gflops=2 * side**3 / best(lambda: a @ b) / 1e9,
        copied_gb=2 * 4 * large.numel() / best(lambda: into.copy_(large)) / 1e9,
        gexp2=20 * cached.numel() / best(powers) / 1e9,
    )
