"""Optimisers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from poyo_ssl.config import OptimConfig

EMBEDDINGS = frozenset({"tokens", "latents", "sessions", "query", "mask_token", "skip"})
SKIP_RATE = 0.1
"""Learning rate of a value skip, which starts from measured weights, over that of the rest."""


class Lamb(Optimizer):
    """LAMB (You et al. 2020, "Large batch optimization for deep learning") as the study used it.

    No bias correction; weight decay is added to the update; the trust ratio of a tensor is
    ``min(|w|, 10) / |update|``, 1 where either norm is 0 (METHOD.md "exact numbers").

    Parameters
    ----------
    params : iterable
        Parameters or groups.
    lr : float
        Learning rate.
    betas : tuple of float
        Decay of the first and second moment.
    eps : float
        Added to the root of the second moment.
    weight_decay : float
        Added to the update, times the weight.

    Examples
    --------
    One step by hand: the moments are 0.1 g and 0.001 g^2, their ratio is sqrt(10), the trust ratio 2 / sqrt(10).

    >>> weight = torch.nn.Parameter(torch.tensor([2.0]))
    >>> weight.grad = torch.tensor([1.0])
    >>> Lamb([weight], lr=0.1, eps=0.0).step()
    >>> round(weight.item(), 4)
    1.8
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; `closure`, if given, computes loss and gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)
        return loss

    def _update(self, weight: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["mean"], state["square"] = torch.zeros_like(weight), torch.zeros_like(weight)
        first, second = group["betas"]
        state["mean"].lerp_(weight.grad, 1 - first)
        state["square"].mul_(second).addcmul_(weight.grad, weight.grad, value=1 - second)
        update = state["mean"] / (state["square"].sqrt() + group["eps"]) + group["weight_decay"] * weight
        size, length = weight.norm().clamp(max=10.0), update.norm()
        trust = torch.where((size > 0) & (length > 0), size / length, torch.ones_like(size))
        weight.add_(update * trust, alpha=-group["lr"])


def is_embedding(name: str) -> bool:
    """Tell whether a parameter of a model or pretrainer is an embedding, by its name.

    Examples
    --------
    >>> is_embedding("model.tokens.units.weight"), is_embedding("encoder.cross_attention.to_q.weight")
    (True, False)
    """
    return not EMBEDDINGS.isdisjoint(name.split("."))


def make_optimizer(module: nn.Module, config: OptimConfig) -> Optimizer:
    """Make the optimiser of everything in `module` that trains."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    rate, decay = config.learning_rate, config.weight_decay
    skip = {
        "params": [p for name, p in named if "skip" in name.split(".")],
        "lr": SKIP_RATE * rate,
        "weight_decay": 0.0,
    }
    named = [(name, p) for name, p in named if "skip" not in name.split(".")]
    if config.optimiser == "lamb":
        groups = [{"params": [p for _, p in named], "weight_decay": decay}, skip]
        return Lamb([group for group in groups if group["params"]], lr=rate)
    # Decay of embeddings would pull rarely seen units to zero; of gains and biases it is not wanted either.
    decays = [p for name, p in named if p.ndim >= 2 and not is_embedding(name)]
    rest = [p for name, p in named if p.ndim < 2 or is_embedding(name)]
    groups = [{"params": decays, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}, skip]
    # One pass over the weights, not ten: five times as fast on a CPU. Under autocast Lightning cannot clip for it.
    fused = config.precision == "fp32"
    return AdamW([group for group in groups if group["params"]], lr=rate, fused=fused)


def make_schedule(optimizer: Optimizer, config: OptimConfig, *, num_steps: int) -> LRScheduler:
    """Make the learning-rate schedule over `num_steps` steps."""
    if config.schedule == "onecycle":
        peaks = [group["lr"] for group in optimizer.param_groups]
        return OneCycleLR(optimizer, peaks, total_steps=max(num_steps, 2), cycle_momentum=False)

    def cosine(step: int) -> float:
        warm = max(num_steps // 20, 1)
        rest = (step - warm) / max(num_steps - warm, 1)
        return (step + 1) / (warm + 1) if step < warm else 0.5 * (1 + math.cos(math.pi * min(rest, 1.0)))

    def flat_cosine(step: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * min(max(2 * step / num_steps - 1, 0.0), 1.0)))

    return LambdaLR(optimizer, cosine if config.schedule == "cosine" else flat_cosine)
