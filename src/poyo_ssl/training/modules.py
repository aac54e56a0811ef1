"""What Lightning trains: losses, schedules and logging around the models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poyo_ssl.config import FinetuneConfig, PretrainConfig
from poyo_ssl.data.batch import Batch
from poyo_ssl.errors import ConfigError, suggest
from poyo_ssl.models.losses import MovieLoss
from poyo_ssl.models.poyo_ssl import PoyoSSL
from poyo_ssl.models.twin import TwinPretrainer, is_collapsed, latent_diagnostics
from poyo_ssl.training.optim import make_optimizer, make_schedule


class SeededModule(L.LightningModule):
    """A module whose step depends on nothing but (seed, step, rank): a resumed run equals an uninterrupted one.

    Parameters
    ----------
    seed : int
        Seed of dropout and masks.
    """

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
    """Masked latent reconstruction with a watch on collapse.

    Parameters
    ----------
    model : PoyoSSL
        With a readout ``gratings``.
    config : PretrainConfig
        Objective, optimiser and seed.
    """

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
    """A readout trained with its encoder.

    Parameters
    ----------
    model : PoyoSSL
        With a readout named like the task.
    config : FinetuneConfig
        Task, loss, optimiser and seed.
    num_targets : int
        Classes, or frames of the movie.
    validations : sequence of str
        Names of the validation parts, in the order of their loaders.

    Raises
    ------
    ConfigError
        If a name to freeze fits no parameter.
    """

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

    Parameters
    ----------
    target : Tensor
        ``(B,)`` long.
    num_classes : int
        Frames of the movie.
    spread : float
        Standard deviation in frames.

    Examples
    --------
    >>> spread_labels(torch.tensor([0]), 3, spread=1.0).double().numpy().round(3).tolist()
    [[0.574, 0.348, 0.078]]
    """
    distance = torch.arange(num_classes, device=target.device) - target[:, None]
    return torch.softmax(-distance.square() / (2 * spread**2), dim=-1)


def count_trainable(module: nn.Module) -> int:
    """Return the number of parameters that train."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def is_better(value: float, best: float) -> bool:
    """Tell whether a validation loss is lower than the best so far; NaN never is."""
    return math.isfinite(value) and value < best
