"""Pretraining and fine-tuning: from recordings to a run folder, and on from where a run stopped.

`_prepare_pretraining`, `_prepare_finetuning` or `_prepare_adaptation` make a `Training` (task, neurons, model), which
`fit` trains. `resume` does the same from the settings that the run folder keeps.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import pickle
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import safetensors.torch
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from poyo_ssl import files
from poyo_ssl.config import FinetuneConfig, ModelConfig, OptimConfig, PretrainConfig, WindowConfig, check_selection
from poyo_ssl.data.recording import Recording, open_recordings
from poyo_ssl.data.splits import training_recordings
from poyo_ssl.data.task import Task
from poyo_ssl.data.units import Neurons, Vocabulary
from poyo_ssl.data.windows import BatchSampler, WindowDataset
from poyo_ssl.errors import CheckpointError, ConfigError, ResourceError, SelectionError, StoppedError
from poyo_ssl.models.poyo_ssl import PoyoSSL, Readout
from poyo_ssl.selection.table import Selection
from poyo_ssl.training import run_folder
from poyo_ssl.training.modules import FinetuneModule, PretrainModule, is_better
from poyo_ssl.training.run_folder import Data, RunSettings, TrainedRun, build_model, read_neurons, read_settings
from poyo_ssl.training.value_skip import fit_value_skip

log = logging.getLogger(__name__)


def pretrain(
    data: Data,
    out: Path | str,
    *,
    config: PretrainConfig | None = None,
    selection: Selection | Path | str | None = None,
    devices: int = 1,
    nodes: int = 1,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Pretrain an encoder by masked latent reconstruction and a small gratings loss.

    Parameters
    ----------
    data : path or sequence of Recording
        Data folder, file, or recordings.
    out : path
        Run folder to make.
    config : PretrainConfig, optional
        Settings.
    selection : Selection or path, optional
        Which neurons are predictable; needed unless ``config.window.units`` is 'all'.
    devices, nodes : int
        Processes (GPUs, or CPU processes) per node, and nodes.
    overwrite : bool
        Replace a run that is there.
    progress : bool
        Show progress bars.

    Returns
    -------
    Path
        The run folder.

    Raises
    ------
    PoyoError
        If data, selection or settings do not fit together.
    """
    settings = RunSettings(config or PretrainConfig(), data, selection, devices=devices, nodes=nodes)
    return _train(Path(out), settings, overwrite=overwrite, progress=progress)


def finetune(
    data: Data,
    out: Path | str,
    *,
    config: FinetuneConfig | None = None,
    pretrained: Path | str | None = None,
    selection: Selection | Path | str | None = None,
    devices: int = 1,
    nodes: int = 1,
    overwrite: bool = False,
    allow_unfinished: bool = False,
    progress: bool = True,
) -> Path:
    """Fine-tune a pretrained encoder with a readout on one task, or train both from scratch.

    Parameters
    ----------
    data : path or sequence of Recording
        Data folder, file, or recordings.
    out : path
        Run folder to make.
    config : FinetuneConfig, optional
        Settings.
    pretrained : path, optional
        Run folder of `pretrain`; without it the encoder starts from random weights.
    selection : Selection or path, optional
        Which neurons are predictable; needed unless ``config.window.units`` is 'all'.
    devices, nodes : int
        Processes (GPUs, or CPU processes) per node, and nodes.
    overwrite : bool
        Replace a run that is there.
    allow_unfinished : bool
        Start from a `pretrained` run whose training was stopped or still goes on.
    progress : bool
        Show progress bars.

    Returns
    -------
    Path
        The run folder.

    Raises
    ------
    PoyoError
        If data, selection, checkpoint or settings do not fit together.
    """
    settings = RunSettings(
        config or FinetuneConfig(), data, selection, pretrained, devices, nodes, allow_unfinished=allow_unfinished
    )
    return _train(Path(out), settings, overwrite=overwrite, progress=progress)


def resume(folder: Path | str, *, progress: bool = True) -> Path:
    """Go on with a run that was stopped; the result equals that of an uninterrupted run.

    Equal bit for bit with the same number of CPU threads: torch sums some gradients thread by thread.

    Parameters
    ----------
    folder : path
        Run folder.
    progress : bool
        Show progress bars.

    Raises
    ------
    CheckpointError
        If the folder is no run, the run was made from recordings in memory, or its data have changed.
    """
    folder = Path(folder)
    facts = run_folder.read_json(folder, "run.json")
    if facts["state"] == "finished":
        return folder
    settings = read_settings(folder)
    if settings.data is None:
        raise CheckpointError(f"{folder} was trained on recordings in memory", fix="train again from a data folder")
    known = {item["recording_id"]: item["sha256"] for item in facts["data"]}
    for recording in open_data(settings.data):
        if known.get(recording.recording_id, recording.checksum()) != recording.checksum():
            raise CheckpointError(f"{recording.path} has changed since {folder} began", fix="train again")
    if settings.selection is None:
        # Chosen by a selection in memory: the run kept what it chose.
        settings = replace(settings, selection=read_neurons(folder).columns)
    training = prepare(settings)
    _write_start(folder, training)
    fit(folder, training, progress=progress)
    return folder


def _train(folder: Path, settings: RunSettings, *, overwrite: bool, progress: bool) -> Path:
    """Prepare a training, then make its folder, and fit; one that turns out to be impossible leaves no folder."""
    given = (settings.data, settings.selection, settings.pretrained)
    inputs = [path for one in given for path in files.paths_of(one)]
    # Under DDP every process runs the command; the first makes the folder.
    first = run_folder.process_rank() == 0
    if first:
        files.check_new(folder, "run", overwrite=overwrite, inputs=inputs)
    training = prepare(settings)
    with files.new_folder(folder, "run", overwrite=overwrite, inputs=inputs) if first else nullcontext():
        _write_start(folder, training)
        fit(folder, training, progress=progress)
    return folder


# From settings to a training that is ready to go.


@dataclass(frozen=True)
class Training:
    """A training that is ready to go; nothing is written yet."""

    settings: RunSettings
    task: Task
    neurons: Neurons
    module: PretrainModule | FinetuneModule
    origin: Mapping[str, Any]  # what run.json says of the run that it started from

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts that training reads."""
        return ("train", *self.task.validations)

    @property
    def keep(self) -> str:
        """Which epoch's weights are kept."""
        config = self.settings.config
        # Reconstruction of a moving target has no best epoch: a collapsing encoder would win.
        return "last" if isinstance(config, PretrainConfig) else config.keep

    @property
    def weights(self) -> dict[str, str]:
        """File of weights for each validation part that chooses an epoch; the last epoch is the same for all."""
        parts = self.task.validations if self.keep == "best" else ("valid",)
        return {str(part): run_folder.WEIGHTS[part] for part in parts}

    def dataset(self, part: str) -> WindowDataset:
        """Return the batches of one part; training drops units and adds noise."""
        window, train = self.settings.config.window, part == "train"
        return WindowDataset(
            self.task.recordings,
            [self.neurons.unit_set(recording) for recording in self.task.recordings],
            self.task.windows(part),
            bin_frames=window.bin_frames,
            unit_dropout=window.unit_dropout and train,
            noise=window.noise if train else 0.0,
            frame_bank=self.task.bank_tensor(),
        )


def prepare(settings: RunSettings) -> Training:
    """Open recordings, make the task, and build the model: everything up to the first step."""
    config = settings.config
    if isinstance(config, PretrainConfig):
        return _prepare_pretraining(settings, config)
    if config.adapt == "embeddings":
        return _prepare_adaptation(settings, config)
    return _prepare_finetuning(settings, config)


def _prepare_pretraining(settings: RunSettings, config: PretrainConfig) -> Training:
    recordings = training_recordings(open_data(settings.data), config.split)
    recordings, columns = choose_units(recordings, settings.selection, config.window.units)
    task = Task.of(recordings, config)
    neurons = _fit_neurons(task, columns, Vocabulary())
    model = build_model(config, neurons.vocabulary, task.class_values, generator=_generator(config.seed))
    _foresee_memory(config.model, config.window, config.optim, task.num_frames, neurons)
    return Training(settings, task, neurons, PretrainModule(model, config), {})


def _prepare_finetuning(settings: RunSettings, config: FinetuneConfig) -> Training:
    known = Vocabulary()
    if settings.pretrained:
        run_folder.require_finished(settings.pretrained, allow=settings.allow_unfinished)
        config = replace(config, model=read_settings(settings.pretrained).config.model)
        known = read_neurons(settings.pretrained).vocabulary
    recordings = training_recordings(open_data(settings.data), config.split)
    recordings, columns = choose_units(recordings, settings.selection, config.window.units)
    task = Task.of(recordings, config)
    neurons = _fit_neurons(task, columns, known)
    generator = _generator(config.seed)
    model = build_model(config, known, task.class_values, generator=generator)
    loaded = run_folder.load_encoder(model, settings.pretrained) if settings.pretrained else None
    vocabulary = neurons.vocabulary
    model.grow(num_units=vocabulary.num_units, num_sessions=vocabulary.num_sessions, generator=generator)
    return _ready(replace(settings, config=config), config, task, neurons, model, {"loaded": loaded})


def _prepare_adaptation(settings: RunSettings, asked: FinetuneConfig) -> Training:
    """Fit nothing but embeddings of recordings that a fine-tuned run does not know; the rest is that run's."""
    if not settings.pretrained:
        raise ConfigError("adapt 'embeddings' without a fine-tuned run", fix="pass --pretrained RUN")
    source = TrainedRun.open(settings.pretrained, allow_unfinished=settings.allow_unfinished)
    if not isinstance(source.config, FinetuneConfig):
        raise ConfigError(
            f"{source.folder} is a pretraining, which has no readout of the task",
            allowed="runs of 'finetune'",
            fix="fine-tune it on the animals that train, then adapt that run",
        )
    config = replace(source.config, adapt="embeddings", optim=asked.optim, seed=asked.seed, keep=asked.keep, freeze=())
    recordings = [r for r in open_data(settings.data) if r.recording_id not in source.vocabulary.sessions]
    new_animals = _are_new_animals(recordings, source)
    recordings, columns = choose_units(recordings, settings.selection, config.window.units)
    task = Task.of(recordings, config, new_animals=new_animals)
    if task.num_frames != source.num_frames:
        raise ConfigError(
            f"windows of {task.num_frames} imaging frames at the rate of the new recordings",
            allowed=f"{source.num_frames}, as in {source.folder}",
            fix="adapt to recordings of the same imaging rate",
        )
    task = replace(task, class_values=source.class_values)
    neurons = _fit_neurons(task, columns, Vocabulary())
    model = build_model(config, neurons.vocabulary, task.class_values, generator=_generator(config.seed))
    loaded = run_folder.load_all_but_embeddings(model, source)
    origin = {"loaded": loaded, "new_animals": new_animals, "adapted_from": str(source.folder.resolve())}
    return _ready(replace(settings, config=config), config, task, neurons, model, origin)


def _are_new_animals(recordings: Sequence[Recording], source: TrainedRun) -> bool:
    """Tell whether all recordings are of animals that no training before has seen; refuse a mixture."""
    if not recordings:
        raise ConfigError(f"every recording is known to {source.folder}", fix="give recordings that it has not seen")
    seen = run_folder.seen_animals(source.folder)
    new = [r.metadata.subject_id not in seen for r in recordings]
    if any(new) and not all(new):
        known = recordings[new.index(False)]
        raise ConfigError(
            f"recording {known.recording_id} is of animal '{known.metadata.subject_id}', which {source.folder} "
            "was trained on, and others are of new animals",
            fix="adapt to them in runs of their own",
        )
    return all(new)


def _fit_neurons(task: Task, columns: Mapping[str, NDArray[np.int64]], known: Vocabulary) -> Neurons:
    # A part without windows is named before anything is fitted.
    for part in ("train", *task.validations):
        task.windows(part)
    method = task.config.window.normalisation
    return Neurons.fit(task.recordings, columns, task.domains, method=method, known=known)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _ready(
    settings: RunSettings,
    config: FinetuneConfig,
    task: Task,
    neurons: Neurons,
    model: PoyoSSL,
    origin: Mapping[str, Any],
) -> Training:
    """Let a value skip, if there is one, start from the training part; the encoder's logits then start at 0.

    Where only embeddings are fitted, prototypes and the encoder's head stay those of the trained run.
    """
    readout = model.readouts[config.task]
    assert isinstance(readout, Readout)
    if readout.skip is not None:
        adapts = config.adapt == "embeddings"
        fit_value_skip(
            readout.skip,
            task.recordings,
            [neurons.unit_set(recording) for recording in task.recordings],
            task.windows("train"),
            task.domains,
            bin_frames=config.window.bin_frames,
            smoothing=config.label_spread_frames if config.task == "frame_number" else 0.0,
            keep_prototypes=adapts,
        )
        if not adapts:
            readout.silence_head()
    _foresee_memory(config.model, config.window, config.optim, task.num_frames, neurons)
    num_targets = len(task.class_values) if task.class_values is not None else 0
    module = FinetuneModule(model, config, num_targets=num_targets, validations=task.validations)
    return Training(settings, task, neurons, module, origin)


def open_data(data: Data | None) -> list[Recording]:
    """Return recordings, opened if `data` is a path."""
    assert data is not None
    return open_recordings(data) if isinstance(data, (str, Path)) else list(data)


def choose_units(
    recordings: Sequence[Recording], selection: Selection | Path | str | Mapping[str, NDArray] | None, units: str
) -> tuple[list[Recording], dict[str, NDArray[np.int64]]]:
    """Return the recordings that keep any unit and the columns they keep.

    A mapping in the place of the selection gives the columns by recording id: those of a run that is resumed.
    """
    if units == "all":
        return list(recordings), {r.recording_id: np.arange(r.num_units) for r in recordings}
    check_selection(units, selection)
    assert selection is not None
    if isinstance(selection, Mapping):
        kept = [recording for recording in recordings if recording.recording_id in selection]
        return kept, {r.recording_id: selection[r.recording_id] for r in kept}
    table = selection if isinstance(selection, Selection) else Selection.load(Path(selection))
    # Units that 'select' marked as unusable (NaN, constant) are in neither set.
    wanted = {
        r.recording_id: table.mask(r) if units == "selected" else table.usable(r) & ~table.mask(r) for r in recordings
    }
    columns = {name: np.flatnonzero(mask) for name, mask in wanted.items()}
    kept = [recording for recording in recordings if len(columns[recording.recording_id])]
    if not kept:
        raise SelectionError(f"no recording has units that are '{units}'", fix="change the selection or window.units")
    return kept, {r.recording_id: columns[r.recording_id] for r in kept}


def _foresee_memory(
    model: ModelConfig, window: WindowConfig, optim: OptimConfig, num_frames: int, neurons: Neurons
) -> None:
    """Raise `ResourceError` if a training step would need more memory than there is."""
    num_units = max(map(len, neurons.columns.values()))
    tokens = (num_frames // window.bin_frames + 2) * num_units
    latents = max(int(window.window_s / model.latent_step_s), 1) * model.num_latents_per_step
    # Floats that backward needs, counted generously: keys, values and what they are made of per token; about
    # 40 widths per latent and block; attention among latents.
    cross = 6 * tokens * model.cross_heads * model.dim_head
    block = latents * (40 * model.dim + 6 * model.self_heads * model.dim_head)
    floats = optim.batch_size * (cross + 2 * model.depth * block)
    needed = 4 * floats
    if torch.cuda.is_available():
        free = torch.cuda.mem_get_info()[0]
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") + _page_cache_bytes()
    if needed > free:
        raise ResourceError(
            f"a step of {optim.batch_size} windows of {tokens} tokens needs about {needed / 2**30:.1f} GiB",
            allowed=f"{free / 2**30:.1f} GiB are free",
            fix="lower optim.batch_size, window_s or model.dim, or raise window.bin_frames",
        )


def _page_cache_bytes() -> int:
    """Bytes that Linux would give back on demand; 0 elsewhere."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Cached:"))


def _write_start(folder: Path, training: Training) -> None:
    """Write settings, data and inputs into the run folder; settings and data only once."""
    if run_folder.process_rank():
        return
    task, config = training.task, training.settings.config
    if not (folder / "run.json").exists():
        facts: dict[str, Any] = {
            **training.origin,
            "task": "pretraining" if isinstance(config, PretrainConfig) else task.name,
            "windows": {part: len(task.windows(part)) for part in training.parts},
            "excluded": {part: dict(task.windows(part).excluded) for part in training.parts},
        }
        if isinstance(config, FinetuneConfig):
            facts["weights"] = training.weights
        if task.movie_frame_s:
            facts["movie_frame_s"] = task.movie_frame_s
        facts |= {"parameters": training.module.model.num_parameters()}
        facts |= {"seed": config.seed, "num_imaging_frames": task.num_frames}
        run_folder.write_start(folder, training.settings, task.recordings, facts)
    run_folder.write_inputs(folder, task, training.neurons)


# Fitting.

VALIDATION_SHARE = 0.25
"""Of the windows of a shortened epoch: choosing the best epoch must not cost more than the training does."""


def fit(folder: Path, training: Training, *, progress: bool) -> None:
    """Train to the end, from the last checkpoint if there is one, and write what came of it."""
    started = time.monotonic()
    settings, optim = training.settings, training.settings.config.optim
    keeper = KeepWeights(folder, training.keep, training.weights)
    # Lightning writes its own "last" only beside a best one or at the end: one file, replaced after every epoch.
    place = checkpoints(folder)[0]
    saver = ModelCheckpoint(place.parent, filename=place.stem, save_top_k=1, enable_version_counter=False)
    callbacks: list[Callback] = [keeper, saver] + ([RichProgressBar()] if progress else [])
    last = _usable_checkpoint(folder)
    with quiet_lightning(), _interruptible(folder), _room_on_disk(folder):
        trainer = make_trainer(
            folder,
            devices=settings.devices,
            nodes=settings.nodes,
            progress=progress,
            max_epochs=optim.epochs,
            precision="bf16-mixed" if optim.precision == "bf16" else "32-true",
            gradient_clip_val=optim.clip,
            callbacks=callbacks,
            plugins=[CheckpointFiles()],
            # Lightning would delete the metrics.csv of the process before this one.
            logger=CSVLogger(folder, "log", f"resumed_{len(list(folder.glob('log/resumed_*'))) + 1}" if last else ""),
            reload_dataloaders_every_n_epochs=1,
            log_every_n_steps=10,
        )
        trainer.fit(training.module, datamodule=Loaders(training), ckpt_path=last, weights_only=True)
    if trainer.is_global_zero:
        module = training.module
        collapsed = {"collapsed": module.collapsed} if isinstance(module, PretrainModule) else {}
        run_folder.write_facts(
            folder,
            state="finished",
            finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            seconds=round(time.monotonic() - started, 1),
            best_epoch=keeper.best_epoch,
            valid_loss=keeper.best,
            **collapsed,
        )


class Loaders(L.LightningDataModule):
    """Gives Lightning a new order of the training windows for every epoch."""

    def __init__(self, training: Training) -> None:
        super().__init__()
        self.optim, self.seed = training.settings.config.optim, training.settings.config.seed
        self.train, self.valid = (training.dataset("train"), [training.dataset(p) for p in training.parts[1:]])

    def _loader(self, dataset: WindowDataset, **order: Any) -> DataLoader:
        assert self.trainer is not None
        ranks = {"rank": self.trainer.global_rank, "num_ranks": self.trainer.world_size}
        sampler = BatchSampler(len(dataset), self.optim.batch_size, **order, **ranks)
        return DataLoader(dataset, sampler=sampler, batch_size=None, pin_memory=torch.cuda.is_available())

    def train_dataloader(self) -> DataLoader:
        """Return the training windows in this epoch's order."""
        assert self.trainer is not None
        epoch = self.trainer.current_epoch
        return self._loader(self.train, seed=self.seed, epoch=epoch, epoch_windows=self.optim.epoch_windows)

    def val_dataloader(self) -> list[DataLoader]:
        """Return the windows of each validation part in their own order; of many a subset, always the same."""
        most = self.optim.epoch_windows
        share = None if most is None else max(1, int(most * VALIDATION_SHARE))
        return [self._loader(dataset, seed=None, epoch_windows=share) for dataset in self.valid]


class KeepWeights(Callback):
    """Writes weights after validation: of the best epoch so far for each validation part, or of the last."""

    def __init__(self, folder: Path, keep: str, weights: Mapping[str, str]) -> None:
        self.folder, self.keep, self.weights = folder, keep, weights  # weights: file by validation part
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
                    assert isinstance(pl_module, (PretrainModule, FinetuneModule))
                    tensors = {n: t.detach().cpu().contiguous() for n, t in pl_module.model.state_dict().items()}
                    files.write_beside(self.folder / name, safetensors.torch.save(tensors))

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run must know."""
        return {"best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what an earlier process knew."""
        self.best, self.best_epoch = state_dict["best"], state_dict["best_epoch"]


def make_trainer(folder: Path | None, *, devices: int, nodes: int, progress: bool, **settings: Any) -> L.Trainer:
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
        enable_checkpointing=folder is not None,
        default_root_dir=folder,
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


def _how_to_go_on(folder: Path) -> str:
    started = any(path.exists() for path in checkpoints(folder))
    return f"go on with 'poyo-ssl resume {folder}'" if started else "start it again, it had no checkpoint yet"


@contextmanager
def _interruptible(folder: Path) -> Iterator[None]:
    """Turn Lightning's exit after Ctrl-C back into KeyboardInterrupt, and that after SIGTERM into an error.

    The next Ctrl-C is heard again.
    """
    handler, on_sigterm = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    in_charge = threading.current_thread() is threading.main_thread() and on_sigterm is not None
    if in_charge:
        # Lightning would call the command line's handler too, which does not wait for the end of the batch.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    except SIGTERMException:
        raise StoppedError(f"the training of {folder} was stopped (SIGTERM)", fix=_how_to_go_on(folder)) from None
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None
    finally:
        if in_charge:
            signal.signal(signal.SIGTERM, on_sigterm)


@contextmanager
def _room_on_disk(folder: Path) -> Iterator[None]:
    """Name the disk that is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        mount = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.is_mount())
        raise ResourceError(
            f"the disk of {folder} is full ({mount}, {shutil.disk_usage(folder).free / 2**20:.0f} MiB free)",
            fix=f"make room, then {_how_to_go_on(folder)}",
        ) from None


def checkpoints(folder: Path) -> tuple[Path, Path]:
    """Return where a run keeps the state of its training after the last epoch and the one before."""
    return folder / "checkpoints" / "last.ckpt", folder / "checkpoints" / "previous.ckpt"


class CheckpointFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its name, and keeps the one before.

    Lightning would copy it from the temporary folder over the only one that there is.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint whole before it takes the place of the last."""
        del storage_options
        last, previous = checkpoints(Path(path).parent.parent)
        last.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        torch.save(checkpoint, content)
        fresh = last.with_name("next.ckpt")
        files.write_beside(fresh, content.getbuffer())
        if last.exists():
            # Linked, not renamed: a kill at any moment leaves a last checkpoint.
            spare = previous.with_name(previous.name + ".partial")
            spare.unlink(missing_ok=True)
            try:
                os.link(last, spare)
            except OSError:  # a file system without hard links
                shutil.copyfile(last, spare)
            spare.replace(previous)
        fresh.replace(last)


def _usable_checkpoint(folder: Path) -> Path | None:
    """Return a run's last checkpoint, the one before if that is damaged, or None if it has none yet."""
    found = [path for path in checkpoints(folder) if path.exists()]
    damage = []
    for path in found:
        try:
            # Mapped: only the list of contents is read here. Code in a checkpoint is never run.
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
            damage.append(str(error).strip().splitlines()[0])
            continue
        if damage:
            log.warning("poyo-ssl: %s is damaged (%s); the run goes on from %s", found[0], damage[0], path)
        return path
    if damage:
        raise CheckpointError(f"{found[0]} is damaged or not a checkpoint of ours ({damage[0]})", fix="train again")
    return None
