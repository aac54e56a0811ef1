"""Pretraining: a masked and an unmasked pass through one model, and whether the latents collapse.

"Causal" masking hides the latents of the window's later part, but every latent has attended to the whole
window, so by itself this is not prediction; `ModelConfig.causal_cross_attention` makes it so.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poyo_ssl.config import ObjectiveConfig
from poyo_ssl.data.windows import Batch
from poyo_ssl.errors import ConfigError
from poyo_ssl.models.poyo_ssl import Latents, PoyoSSL, normal_parameter, send

MaskKind = Literal["causal", "random", "block", "feature"]


def keep_mask(
    times: Tensor,
    *,
    duration_s: float,
    kind: MaskKind,
    ratio: float,
    batch_size: int,
    dim: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw which latents (or features) stay; True = keep."""
    if kind == "feature":
        return _random(batch_size, dim, ratio, generator).unsqueeze(1)  # (B, 1, D)
    if kind == "causal":
        keep = (times < (1 - ratio) * duration_s).expand(batch_size, -1)
    elif kind == "random":
        keep = _random(batch_size, len(times), ratio, generator)
    else:
        keep = _block(times, batch_size, ratio, generator)
    if keep.all() or not keep.any():
        raise ConfigError(
            f"{kind} masking of {ratio} of a window of {duration_s:.3f} s hides {'none' if keep.all() else 'all'} "
            f"of its {len(times)} latents",
            allowed="a window and a share that hide some latents and keep some",
            fix="use longer windows, a shorter --model.latent_step_s or another --objective.mask_ratio",
        )
    return keep.unsqueeze(-1)  # (B, L, 1)


def _random(batch_size: int, count: int, ratio: float, generator: torch.Generator | None) -> Tensor:
    num_hidden = _num_hidden(count, ratio)
    order = torch.rand(batch_size, count, generator=generator).argsort(dim=1)
    return torch.ones(batch_size, count, dtype=torch.bool).scatter_(1, order[:, :num_hidden], False)


def _block(times: Tensor, batch_size: int, ratio: float, generator: torch.Generator | None) -> Tensor:
    _, step_of_latent = times.unique(return_inverse=True)  # (L,)
    num_steps = int(step_of_latent.max()) + 1
    num_hidden = _num_hidden(num_steps, ratio)
    first = torch.randint(num_steps - num_hidden + 1, (batch_size, 1), generator=generator)
    return (step_of_latent < first) | (step_of_latent >= first + num_hidden)  # (B, L)


def _num_hidden(count: int, ratio: float) -> int:
    return min(max(1, round(ratio * count)), max(1, count - 1))


NO_LABEL = -1
"""Target of a window that has no gratings label."""

MIN_EFFECTIVE_RANK = 2.0
MAX_PAIRWISE_COSINE = 0.999
MIN_RELATIVE_SPREAD = 1e-3


@dataclass(frozen=True)
class TwinOutput:
    """One step of pretraining."""

    loss: Tensor
    reconstruction: Tensor
    gratings: Tensor
    accuracy: Tensor
    num_labelled: Tensor
    latents: Tensor


class TwinPretrainer(nn.Module):
    """Masked latent reconstruction plus a small gratings loss."""

    def __init__(self, model: PoyoSSL, objective: ObjectiveConfig, *, gratings_task: str = "gratings") -> None:
        super().__init__()
        if gratings_task not in model.readouts:
            raise ConfigError(
                f"pretraining needs a readout named {gratings_task!r}",
                allowed=", ".join(model.readouts),
                fix="build the model with it",
            )
        self.model, self.objective, self.gratings_task = model, objective, gratings_task
        self.mask_token = normal_parameter(model.config.dim)
        self.target: PoyoSSL | None = None
        if objective.mode == "ema":
            self.target = copy.deepcopy(model).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> TwinPretrainer:
        """Set training mode; the moving average always predicts without dropout."""
        super().train(mode)
        if self.target is not None:
            self.target.eval()
        return self

    def forward(self, batch: Batch, generator: torch.Generator | None = None) -> TwinOutput:
        """Run both passes."""
        if self.objective.masked_pass_residuals:
            unmasked = to_mask = self.model.encode(batch)  # (B, L, D)
        else:
            unmasked, to_mask = self.model.encode_twins(batch)  # (B, L, D) each
        masked, keep = self.masked_latents(batch, to_mask, generator)  # (B, L, D) and (B, L, 1) or (B, 1, D)
        both = unmasked.with_values(torch.cat((masked, unmasked.values)))  # (2B, L, D): one call for both
        predicted, output = self.model.process(both).values.chunk(2)  # (B, L, D) each
        reconstruction = self._distance(predicted, self._target(batch, output), keep)
        gratings, accuracy, num_labelled = self._gratings(batch, unmasked.with_values(output))
        loss = reconstruction + self.objective.gratings_weight * gratings
        if self.objective.times_batch_size:
            loss = loss * len(batch)
        return TwinOutput(loss, reconstruction, gratings, accuracy, num_labelled, output.detach())

    def masked_latents(
        self, batch: Batch, latents: Latents, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return `latents` with some hidden ``(B, L, D)`` and what is kept, ``(B, L, 1)`` or ``(B, 1, D)`` bool."""
        objective, values = self.objective, latents.values
        keep = keep_mask(
            latents.times,
            duration_s=batch.duration_s,
            kind=objective.masking,
            ratio=objective.mask_ratio,
            batch_size=len(batch),
            dim=values.shape[-1],
            generator=generator,
        )
        keep = send(keep, values.device)
        hidden = torch.zeros_like(self.mask_token) if objective.masking == "feature" else self.mask_token
        return torch.where(keep, values, hidden.to(values.dtype)), keep

    def _target(self, batch: Batch, output: Tensor) -> Tensor:
        if self.objective.mode == "joint":
            return output
        if self.target is None:
            return output.detach()
        with torch.no_grad():
            return self.target.process(self.target.encode(batch)).values

    def _distance(self, predicted: Tensor, target: Tensor, keep: Tensor) -> Tensor:
        difference = (predicted - target).float() if predicted.dtype != torch.float64 else predicted - target
        error = difference.abs() if self.objective.reconstruction == "l1" else difference.square()
        error = error.mean(dim=-1)  # (B, L)
        if self.objective.reconstruct == "all":
            return error.mean()
        hidden = ~keep.squeeze(-1)  # (B, L)
        return (error * hidden).sum() / hidden.sum()

    def _gratings(self, batch: Batch, latents: Latents) -> tuple[Tensor, Tensor, Tensor]:
        logits = self.model.readout(
            self.gratings_task, latents, session_index=batch.session_index, target_time=batch.target_time
        )  # (B, K)
        target = batch.target
        if target is None:
            target = torch.full((len(batch),), NO_LABEL, device=logits.device)
        labelled = target != NO_LABEL
        num_labelled = labelled.sum()
        # Nothing here asks a GPU for a number. Without any label the sum is 0 and still has a graph, so that no
        # parameter is left without a gradient.
        loss = F.cross_entropy(logits, target, ignore_index=NO_LABEL, reduction="sum") / num_labelled.clamp(min=1)
        right = (logits.detach().argmax(dim=-1) == target) & labelled
        return loss, right.sum() / num_labelled.clamp(min=1), num_labelled

    @torch.no_grad()
    def update_ema(self) -> None:
        """Move the target's weights towards the model's; does nothing unless the mode is 'ema'."""
        if self.target is None:
            return
        for slow, fast in zip(self.target.parameters(), self.model.parameters(), strict=True):
            slow.lerp_(fast, 1 - self.objective.ema_decay)


@dataclass(frozen=True)
class LatentDiagnostics:
    """How much room the latents use."""

    effective_rank: float
    spread: float
    relative_spread: float
    pairwise_cosine: float
    input_share: float


@torch.no_grad()
def latent_diagnostics(values: Tensor) -> LatentDiagnostics:
    """Measure the latents of a batch."""
    values = values.double()
    latents = values.flatten(0, 1)  # (N, D)
    centred = latents - latents.mean(dim=0)
    singular = torch.linalg.svdvals(centred)
    share = singular / singular.sum().clamp_min(torch.finfo(singular.dtype).tiny)
    spread = centred.square().mean(dim=0).sqrt().mean()
    num = len(latents)
    cosine = (F.normalize(latents, dim=-1).sum(dim=0).square().sum() - num) / (num * (num - 1))
    between = values - values.mean(dim=0)
    total_variance = centred.square().sum().clamp_min(torch.finfo(values.dtype).tiny)
    return LatentDiagnostics(
        effective_rank=float(torch.special.entr(share).sum().exp()),
        spread=float(spread),
        relative_spread=float(spread / latents.square().mean().sqrt().clamp_min(1e-300)),
        pairwise_cosine=float(cosine),
        input_share=float(between.square().sum() / total_variance) if len(values) > 1 else math.nan,
    )


def is_collapsed(diagnostics: LatentDiagnostics) -> bool:
    """Return whether latents have shrunk to one point, one direction or one line.

    True below an effective rank of 2, above a mean pairwise cosine of 0.999 or below a relative spread of
    0.001. `input_share` is not judged: it depends on how alike the windows are.
    """
    return (
        diagnostics.effective_rank < MIN_EFFECTIVE_RANK
        or diagnostics.pairwise_cosine > MAX_PAIRWISE_COSINE
        or diagnostics.relative_spread < MIN_RELATIVE_SPREAD
    )
