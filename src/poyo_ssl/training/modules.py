"""What Lightning trains: losses, schedules and logging around the models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from poyo_ssl.config import FinetuneConfig, OptimConfig, PretrainConfig
from poyo_ssl.data.windows import Batch
from poyo_ssl.errors import ConfigError, suggest
from poyo_ssl.models.losses import MovieLoss
from poyo_ssl.models.poyo_ssl import PoyoSSL
from poyo_ssl.models.pretraining import TwinPretrainer, is_collapsed, latent_diagnostics

EMBEDDINGS = frozenset({"tokens", "latents", "sessions", "query", "mask_token", "skip"})
SKIP_RATE = 0.1
"""Learning rate of a value skip, which starts from measured weights, over that of the rest."""


class Lamb(Optimizer):
    """LAMB (You et al. 2020, "Large batch optimization for deep learning") as the study used it.

    No bias correction; weight decay is added to the update; the trust ratio of a tensor is
    ``min(|w|, 10) / |update|``, 1 where either norm is 0.
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
    """Tell whether a parameter of a model or pretrainer is an embedding, by its name."""
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


class SeededModule(L.LightningModule):
    """A module whose step depends on nothing but (seed, step, rank): a resumed run equals an uninterrupted one."""

    def __init__(self, *, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.generator = torch.Generator()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed everything the step will draw."""
        # Dropout draws from torch's global state; seeding it from the step leaves no state to save.
        place = [self.seed, self.trainer.global_step, self.global_rank]
        step_seed = int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> 1)
        torch.manual_seed(step_seed)
        self.generator.manual_seed(step_seed)

    def on_validation_start(self) -> None:
        """Give validation the same masks at every epoch."""
        self.generator.manual_seed(self.seed)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move a batch without waiting for it."""
        return batch.to(device, non_blocking=True)

    def optimise(self, config: Any) -> dict[str, Any]:
        """Return optimiser and per-step schedule in Lightning's form."""
        optimizer = make_optimizer(self, config)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = make_schedule(optimizer, config, num_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def log_part(self, part: str, values: dict[str, Tensor | float], size: int) -> None:
        """Log means over an epoch, over all processes."""
        named = {f"{part}/{name}": value for name, value in values.items()}
        # Names tell the parts apart; Lightning would add the loader's number to them.
        self.log_dict(named, on_step=False, on_epoch=True, batch_size=size, sync_dist=True, add_dataloader_idx=False)


class PretrainModule(SeededModule):
    """Masked latent reconstruction with a watch on collapse."""

    def __init__(self, model: PoyoSSL, config: PretrainConfig) -> None:
        super().__init__(seed=config.seed)
        self.config = config
        # The mask token is drawn from torch's global state, which must not decide what a seed gives.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.twin = TwinPretrainer(model, config.objective)
        # Zeroed features need no token, and DDP refuses parameters that never get a gradient.
        self.twin.mask_token.requires_grad_(config.objective.masking != "feature")
        self.collapsed = False

    @property
    def model(self) -> PoyoSSL:
        """The encoder that is being trained."""
        return self.twin.model

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        output = self.twin(batch, self.generator)
        self.log_part("train", {"loss": output.loss, "reconstruction": output.reconstruction}, len(batch))
        self.log_part("train", {"gratings": output.gratings, "accuracy": output.accuracy}, len(batch))
        return output.loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Let the moving average follow."""
        self.twin.update_ema()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss and the spread of the latents."""
        output = self.twin(batch, self.generator)
        self.log_part("valid", {"loss": output.loss, "reconstruction": output.reconstruction}, len(batch))
        self.log_part("valid", {"gratings": output.gratings, "accuracy": output.accuracy}, len(batch))
        if batch_idx == 0:
            diagnostics = latent_diagnostics(output.latents)
            self.collapsed = is_collapsed(diagnostics)
            self.log_part("latents", asdict(diagnostics), 1)

    def configure_optimizers(self) -> Any:
        """Return optimiser and schedule."""
        return self.optimise(self.config.optim)


FITTED = {
    "all": ("*",),
    "embeddings": ("tokens.units.*", "sessions.*", "readouts.*.skip.units.*", "readouts.*.skip.centres.*"),
    "readout": ("readout*", "sessions.*"),
}
"""Patterns of the names of parameters that a kind of adaptation fits."""


class FinetuneModule(SeededModule):
    """A readout trained with its encoder."""

    # num_targets: classes, or frames of the movie; validations: in the order of their loaders.
    def __init__(
        self, model: PoyoSSL, config: FinetuneConfig, *, num_targets: int, validations: Sequence[str] = ("valid",)
    ) -> None:
        super().__init__(seed=config.seed)
        self.validations = tuple(validations)
        self.model, self.config, self.num_targets = model, config, num_targets
        self.movie_loss = MovieLoss(config.movie_loss) if config.task == "frames" else None
        parameters = dict(model.named_parameters())
        for name, parameter in parameters.items():
            if not any(fnmatchcase(name, pattern) for pattern in FITTED[config.adapt]):
                parameter.requires_grad_(False)
        for prefix in config.freeze:
            frozen = [name for name in parameters if name.startswith(prefix)]
            if not frozen:
                parts = sorted({name.split(".")[0] for name in parameters})
                raise ConfigError(
                    f"no parameter begins with freeze '{prefix}'{suggest(prefix, parts)}",
                    allowed=f"{', '.join(parts)}, or longer names",
                    fix="correct it",
                )
            for name in frozen:
                parameters[name].requires_grad_(False)
        if not any(parameter.requires_grad for parameter in parameters.values()):
            raise ConfigError(f"freeze {list(config.freeze)} leaves nothing to train", fix="freeze fewer parameters")

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed the step; where only embeddings are fitted, running means and dropout stand still, too."""
        super().on_train_batch_start(batch, batch_idx)
        if self.config.adapt == "embeddings":
            self.model.eval()

    def predict(self, batch: Batch) -> Tensor:
        """Return logits ``(B, K)``, positions ``(B,)`` or frames ``(B, H, W)``."""
        return self.model(batch, self.config.task)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``loss`` and what else is worth logging."""
        output, target = self.predict(batch), batch.target
        assert target is not None, "training without targets"
        if self.movie_loss is not None:
            total, terms = self.movie_loss(output.float(), target)
            return {"loss": total, **terms}
        if self.config.task == "frame_number" and self.config.readout == "position":
            error = (output.float() - target / max(self.num_targets - 1, 1)).abs().mean()
            return {"loss": error}
        if self.config.task == "frame_number" and self.config.label_spread_frames:
            soft = spread_labels(target, self.num_targets, spread=self.config.label_spread_frames)
            loss = F.cross_entropy(output.float(), soft)
        else:
            loss = F.cross_entropy(output.float(), target)
        return {"loss": loss, "accuracy": (output.argmax(dim=-1) == target).float().mean()}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        losses = self.losses(batch)
        self.log_part("train", dict(losses), len(batch))
        return losses["loss"]

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log the loss under the name of the validation part."""
        self.log_part(self.validations[dataloader_idx], dict(self.losses(batch)), len(batch))

    def configure_optimizers(self) -> Any:
        """Return optimiser and schedule."""
        return self.optimise(self.config.optim)


def spread_labels(target: Tensor, num_classes: int, *, spread: float) -> Tensor:
    """Return soft labels ``(B, num_classes)``: a normalised Gaussian around the true movie frame.

    Neighbouring frames look alike and the score forgives a second, so one-hot labels waste most of what a window says.
    """
    distance = torch.arange(num_classes, device=target.device) - target[:, None]
    return torch.softmax(-distance.square() / (2 * spread**2), dim=-1)


def is_better(value: float, best: float) -> bool:
    """Tell whether a validation loss is lower than the best so far; NaN never is."""
    return math.isfinite(value) and value < best
