"""Rounding errors of the encoder's forms, against the plain token form in float64.

    python benchmarks/encoder_error.py [--windows 8] [--device cuda]

For each form and precision: the largest difference of the latents, of the gradient of dF/F and of those of the two
weights where it is largest, over the largest value of the same tensor; `--windows` of 57 frames x 200 neurons, dim 64,
without dropout, with rotary periods from two frames on and from the published 0.1 ms. The forms in float64 show the
algebra, float32 and bfloat16 autocast what training sees.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any, get_args

import torch
from torch import Tensor

from poyo_ssl.config import ModelConfig, ReadoutConfig
from poyo_ssl.data.windows import Batch
from poyo_ssl.models.poyo_ssl import CrossAttentionForm, PoyoSSL
from poyo_ssl.protocol import IMAGING_RATE_HZ, ROTARY_T_MIN_CODED_S

FRAMES, NEURONS = 57, 200


def make_batch(windows: int, device: str) -> Batch:
    """Return random windows."""
    generator = torch.Generator().manual_seed(0)
    times = (torch.arange(FRAMES, dtype=torch.float64) + 0.5) / IMAGING_RATE_HZ
    return Batch(
        dff=torch.randn(windows, FRAMES, NEURONS, generator=generator, dtype=torch.float64),
        unit_index=torch.arange(1, NEURONS + 1).expand(windows, -1),
        unit_mask=torch.ones(windows, NEURONS, dtype=torch.bool),
        frame_times=times.expand(windows, -1),
        session_index=torch.ones(windows, dtype=torch.long),
        target_time=torch.full((windows,), 0.5, dtype=torch.float64),
        duration_s=FRAMES / IMAGING_RATE_HZ,
    ).to(device)


def latents_and_gradients(model: PoyoSSL, batch: Batch, form: Any, *, bf16: bool) -> dict[str, Tensor]:
    """Return the latents and, by name, the gradients of dF/F and of every weight of the encoder, in float64."""
    dff = batch.dff.clone().requires_grad_()
    with torch.autocast(dff.device.type, torch.bfloat16, enabled=bf16):
        out = model.encode(replace(batch, dff=dff), form=form).values
    # Of few bits, so that every precision is asked for the same gradient: sums of it cancel, its rounding would not.
    pull = torch.arange(out.numel(), device=out.device).view_as(out).cos().bfloat16().to(out.dtype)
    weights = {
        name: p for name, p in model.named_parameters() if name.split(".")[0] in ("latents", "tokens", "encoder")
    }
    gradients = torch.autograd.grad(out, [dff, *weights.values()], pull)
    return {name: x.detach().double() for name, x in zip(("out", "dff", *weights), (out, *gradients), strict=True)}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--windows", type=int, default=2)
    options = parser.parse_args()
    batch = make_batch(options.windows, options.device)
    print("| shortest period (s) | precision | form | latents | gradient of dF/F | worst weight's | which | second |")
    print(f"|{'---|' * 8}")
    for t_min in (ModelConfig().rotary_t_min_s, ROTARY_T_MIN_CODED_S):
        model = PoyoSSL(
            ModelConfig(rotary_t_min_s=t_min),
            num_units=NEURONS,
            num_sessions=1,
            readouts={"gratings": ReadoutConfig()},
            generator=torch.Generator().manual_seed(0),
        )
        model = model.eval().double().to(options.device)
        exact = latents_and_gradients(model, batch, "plain", bf16=False)
        for precision in ("float64", "float32", "bfloat16"):
            model = model.double() if precision == "float64" else model.float()
            for form in get_args(CrossAttentionForm):
                found = latents_and_gradients(model, batch, form, bf16=precision == "bfloat16")
                errors = {
                    name: ((found[name] - other).abs().max() / other.abs().max()).item()
                    for name, other in exact.items()
                }
                numbers = f"{errors.pop('out'):.1e} | {errors.pop('dff'):.1e}"
                *_, second, worst = sorted(errors, key=errors.__getitem__)
                weights = f"{errors[worst]:.1e} | {worst} | {errors[second]:.1e}"
                print(f"| {t_min:.2g} | {precision} | {form} | {numbers} | {weights} |", flush=True)


if __name__ == "__main__":
    main()
