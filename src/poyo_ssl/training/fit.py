"""Lightning around a job: loops, checkpoints, loggers, devices."""

from __future__ import annotations

import logging
import pickle
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from poyo_ssl.data.windows import BatchSampler, WindowDataset
from poyo_ssl.errors import CheckpointError
from poyo_ssl.training import run_folder
from poyo_ssl.training.jobs import Job
from poyo_ssl.training.modules import PretrainModule, is_better

VALIDATION_SHARE = 0.25
"""Of the windows of a shortened epoch: choosing the best epoch must not cost more than the training does."""


class KeepWeights(Callback):
    """Writes weights after validation: of the best epoch so far for each validation part, or of the last.

    Parameters
    ----------
    folder : Path
        The run folder.
    keep : {'best', 'last'}
        Which epoch.
    weights : dict
        File by validation part.
    """

    def __init__(self, folder: Path, keep: str, weights: dict[str, str]) -> None:
        self.folder, self.keep, self.weights = folder, keep, weights
        self.best = dict.fromkeys(weights, float("inf"))
        self.best_epoch = dict.fromkeys(weights, -1)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the weights if they are to be kept."""
        if trainer.sanity_checking:
            return
        for part, name in self.weights.items():
            value = float(trainer.callback_metrics[f"{part}/loss"])
            if self.keep == "last" or is_better(value, self.best[part]):
                self.best[part], self.best_epoch[part] = value, trainer.current_epoch
                if trainer.is_global_zero:
                    save_weights(pl_module.model, self.folder / name)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run must know."""
        return {"best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what an earlier process knew."""
        self.best, self.best_epoch = state_dict["best"], state_dict["best_epoch"]


def save_weights(model: torch.nn.Module, path: Path) -> None:
    """Write a model's weights as safetensors, beside the final name and renamed."""
    beside = path.with_name(path.name + ".partial")
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}, beside)
    beside.replace(path)


def make_trainer(job_folder: Path | None, *, devices: int, nodes: int, progress: bool, **settings: Any) -> L.Trainer:
    """Make a Lightning trainer that keeps quiet and lets our samplers divide the windows."""
    strategy = "ddp" if devices * nodes > 1 else "auto"
    return L.Trainer(
        accelerator="auto",
        devices=devices,
        num_nodes=nodes,
        strategy=strategy,
        use_distributed_sampler=False,
        enable_progress_bar=progress,
        enable_model_summary=False,
        enable_checkpointing=job_folder is not None,
        default_root_dir=job_folder,
        num_sanity_val_steps=0,
        **settings,
    )


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's hints, which speak of data loaders that ours are not."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"lightning\.")
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"lightning\.")
        try:
            yield
        finally:
            logger.setLevel(level)


def last_checkpoint(folder: Path) -> Path:
    """Return where a run keeps the state of its training."""
    return folder / "checkpoints" / "last.ckpt"


def _readable_checkpoint(folder: Path) -> Path | None:
    """Return a run's last checkpoint, or None if it has none yet.

    Raises
    ------
    CheckpointError
        If it is damaged, or holds anything but tensors and plain values: code in it is never run.
    """
    path = last_checkpoint(folder)
    if not path.exists():
        return None
    try:
        # Mapped: only the list of contents is read here.
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{path} is damaged or not a checkpoint of ours ({reason})", fix="train again") from None
    return path


@contextmanager
def _interruptible() -> Iterator[None]:
    """Turn Lightning's exit after Ctrl-C back into KeyboardInterrupt, and let the next Ctrl-C be heard again."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None


def fit(job: Job) -> None:
    """Train to the end, from the last checkpoint if there is one, and write what came of it."""
    started = time.monotonic()
    keeper = KeepWeights(job.folder, job.keep, job.weights)
    # Lightning writes its own "last" only beside a best one or at the end: one file, replaced after every epoch.
    place = last_checkpoint(job.folder)
    saver = ModelCheckpoint(place.parent, filename=place.stem, save_top_k=1, enable_version_counter=False)
    callbacks: list[Callback] = [keeper, saver] + ([RichProgressBar()] if job.progress else [])
    last = _readable_checkpoint(job.folder)
    with quiet_lightning():
        trainer = make_trainer(
            job.folder,
            devices=job.devices,
            nodes=job.nodes,
            progress=job.progress,
            max_epochs=job.optim.epochs,
            precision="bf16-mixed" if job.optim.precision == "bf16" else "32-true",
            gradient_clip_val=job.optim.clip,
            callbacks=callbacks,
            logger=[
                TensorBoardLogger(job.folder, "log", ""),
                CSVLogger(job.folder, "log", _csv_part(job.folder, last)),
            ],
            reload_dataloaders_every_n_epochs=1,
            log_every_n_steps=10,
        )
        with _interruptible():
            trainer.fit(job.module, datamodule=Loaders(job), ckpt_path=last, weights_only=True)
    if trainer.is_global_zero:
        collapsed = {"collapsed": job.module.collapsed} if isinstance(job.module, PretrainModule) else {}
        run_folder.write_facts(
            job.folder,
            state="finished",
            finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            seconds=round(time.monotonic() - started, 1),
            best_epoch=keeper.best_epoch,
            valid_loss=keeper.best,
            **collapsed,
        )


def _csv_part(folder: Path, checkpoint: Path | None) -> str:
    """Name the folder of this process's metrics.csv: Lightning would delete that of the process before it."""
    return f"resumed_{len(list(folder.glob('log/resumed_*'))) + 1}" if checkpoint else ""


class Loaders(L.LightningDataModule):
    """Gives Lightning a new order of the training windows for every epoch."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job

    def _loader(self, dataset: WindowDataset, **order: Any) -> DataLoader:
        assert self.trainer is not None
        ranks = {"rank": self.trainer.global_rank, "num_ranks": self.trainer.world_size}
        sampler = BatchSampler(len(dataset), self.job.optim.batch_size, **order, **ranks)
        return DataLoader(dataset, sampler=sampler, batch_size=None, pin_memory=torch.cuda.is_available())

    def train_dataloader(self) -> DataLoader:
        """Return the training windows in this epoch's order."""
        assert self.trainer is not None
        return self._loader(
            self.job.train,
            seed=self.job.module.seed,
            epoch=self.trainer.current_epoch,
            epoch_windows=self.job.optim.epoch_windows,
        )

    def val_dataloader(self) -> list[DataLoader]:
        """Return the windows of each validation part in their own order; of many a subset, always the same."""
        most = self.job.optim.epoch_windows
        share = None if most is None else max(1, int(most * VALIDATION_SHARE))
        return [self._loader(dataset, seed=None, epoch_windows=share) for dataset in self.job.valid.values()]
