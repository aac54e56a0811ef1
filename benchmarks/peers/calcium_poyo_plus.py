"""Train CalciumPOYOPlus of torch_brain 0.1.2 step by step, on request: one side of `../encoder.py`.

Runs in an environment of its own, with ``benchmarks`` on the path:

    python -m venv peer && peer/bin/pip install -r benchmarks/peers/requirements.txt

It reads one line of JSON, the case: `model` (arguments of CalciumPOYOPlus), `batch`, `neurons`, `frames`, `rate_hz`,
`latent_steps`, `threads`, `clock`, `device` and `precision`. Then it answers every line ``step`` with a line of JSON:
seconds and peak MiB of one supervised step (forward, backward, AdamW) on drifting gratings, and a line ``count`` with
the operations in that step's matrix products. A step on one window of ten tokens has gone before. No token is padding
and no mask is given, which spares the model work.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch_brain.models import CalciumPOYOPlus
from torch_brain.registry import MODALITY_REGISTRY

from measuring import counted_flops, run_once

TASK = "drifting_gratings_orientation"


def make_inputs(case: dict[str, Any], device: torch.device) -> tuple[dict[str, Any], Any]:
    """Return random windows of `case` as the model's own collation would give them, and their classes."""
    batch, neurons, frames = case["batch"], case["neurons"], case["frames"]
    duration_s = frames / case["rate_hz"]
    times = (torch.arange(frames) + 0.5) / case["rate_hz"]
    per_step = case["model"]["num_latents_per_step"]
    steps = (torch.arange(case["latent_steps"]) + 0.5) * case["model"]["latent_step"]
    units = torch.arange(1, neurons + 1)  # row 0 is for unknown units
    inputs = {
        "input_unit_index": units.repeat(frames),  # time-major, as tokenize does
        "input_timestamps": times.repeat_interleave(neurons),
        "input_values": torch.randn(batch, frames * neurons, 1),
        "latent_index": torch.arange(per_step).repeat(len(steps)),
        "latent_timestamps": steps.repeat_interleave(per_step),
        "output_session_index": torch.ones(1, dtype=torch.long),
        "output_timestamps": torch.full((1,), duration_s / 2),
        "output_decoder_index": torch.full((1,), MODALITY_REGISTRY[TASK].id),
    }
    inputs = {
        name: value if name == "input_values" else value.expand(batch, -1).contiguous()
        for name, value in inputs.items()
    }
    target = torch.randint(MODALITY_REGISTRY[TASK].dim, (batch,))
    return {name: value.to(device) for name, value in inputs.items()}, target.to(device)


def make_steps(case: dict[str, Any], device: torch.device) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return a small warm-up step and the step to measure."""
    torch.manual_seed(0)
    model = CalciumPOYOPlus(
        sequence_length=float(case["frames"] / case["rate_hz"]),
        **case["model"],
    )
    model.unit_emb.initialize_vocab([f"unit_{i}" for i in range(case["neurons"])])
    model.session_emb.initialize_vocab(["session"])
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def make_step(case: dict[str, Any]) -> Callable[[], None]:
        inputs, target = make_inputs(case, device)

        def step() -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=case["precision"] == "bf16"):
                loss = F.cross_entropy(model(**inputs)[TASK].float(), target)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    return make_step({**case, "batch": 1, "frames": 1, "neurons": 10}), make_step(case)


def main() -> None:
    """Answer until the input ends."""
    case = json.loads(sys.stdin.readline())
    torch.set_num_threads(case["threads"])
    device = torch.device(case["device"])
    warm_up, step = make_steps(case, device)
    warm_up()
    for line in sys.stdin:
        if line.strip() == "count":
            with counted_flops() as counter:
                step()
            print(counter.get_total_flops(), flush=True)
        else:
            print(json.dumps(run_once(step, device, case["clock"])), flush=True)


if __name__ == "__main__":
    main()
