"""Pretraining and fine-tuning: from recordings to a run folder, and on from where a run stopped."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from poyo_ssl import files
from poyo_ssl.config import FinetuneConfig, ModelConfig, OptimConfig, PretrainConfig, WindowConfig, check_selection
from poyo_ssl.data.recording import Recording, open_recordings
from poyo_ssl.data.splits import training_recordings
from poyo_ssl.data.task import Task, make_readout
from poyo_ssl.data.units import Vocabulary, fit_normalisation, make_unit_set
from poyo_ssl.data.windows import BatchSampler, Normalisation, UnitSet, WindowDataset, WindowTable
from poyo_ssl.errors import CheckpointError, ConfigError, ResourceError, SelectionError
from poyo_ssl.models.poyo_ssl import PoyoSSL, Readout
from poyo_ssl.selection.table import Selection
from poyo_ssl.training import run_folder
from poyo_ssl.training.modules import FinetuneModule, PretrainModule, SeededModule, is_better
from poyo_ssl.training.run_folder import (
    TrainedRun,
    load_all_but_embeddings,
    load_encoder,
    load_model_config,
    read_arguments,
    seen_animals,
)
from poyo_ssl.training.value_skip import fit_value_skip

Data = Path | str | Sequence[Recording]


@dataclass
class Job:
    """A training that is ready to go: what Lightning fits and where it writes.

    Nothing is written before `write_start`, which puts settings, data and inputs into the folder. `weights` names the
    file for each validation part that chooses an epoch.
    """

    folder: Path
    write_start: Callable[[], None]
    module: SeededModule
    train: WindowDataset
    valid: dict[str, WindowDataset]
    optim: OptimConfig
    keep: str
    weights: dict[str, str]
    devices: int
    nodes: int
    progress: bool


def open_data(data: Data) -> list[Recording]:
    """Return recordings, opened if `data` is a path."""
    return open_recordings(data) if isinstance(data, (str, Path)) else list(data)


def choose_units(
    recordings: Sequence[Recording], selection: Selection | Path | str | Mapping[str, NDArray] | None, units: str
) -> tuple[list[Recording], dict[str, NDArray[np.int64]]]:
    """Return the recordings that keep any unit and the columns they keep.

    A mapping in the place of the selection gives the columns by recording id: those of a run that is resumed.

    Raises
    ------
    SelectionError
        If a selection is needed and missing, or nothing is left.
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


def _prepare_units(
    data: Task, columns: dict[str, NDArray[np.int64]], window: WindowConfig, vocabulary: Vocabulary
) -> tuple[Vocabulary, dict[str, Normalisation], list[Any]]:
    ids = {r.recording_id: [str(u) for u in r.unit_ids[columns[r.recording_id]]] for r in data.recordings}
    vocabulary = vocabulary.grow(ids)
    normalisation = {
        r.recording_id: fit_normalisation(
            r, columns[r.recording_id], data.domains[r.recording_id], method=window.normalisation
        )
        for r in data.recordings
    }
    units = [make_unit_set(r, columns[r.recording_id], vocabulary, normalisation) for r in data.recordings]
    return vocabulary, normalisation, units


def _describe(folder: Path, command: str, arguments: dict[str, Any], data: Task, **facts: Any) -> None:
    if run_folder.process_rank() or (folder / "run.json").exists():
        return
    stored = dict(arguments)
    # Recordings and selections that live in memory leave no path behind; the run says so by null.
    for key in {"data", "selection", "pretrained"} & set(stored):
        value = stored[key]
        stored[key] = str(Path(value).resolve()) if isinstance(value, (str, Path)) else None
    config = stored.pop("config")
    stored |= files.plain(config)
    facts |= {"seed": config.seed, "num_imaging_frames": data.num_frames}
    run_folder.write_start(folder, command=command, arguments=stored, recordings=data.recordings, **facts)


def pretraining_job(folder: Path, arguments: dict[str, Any], *, progress: bool) -> Job:
    """Build a pretraining from the keyword arguments of `pretrain`."""
    config: PretrainConfig = arguments["config"]
    recordings = training_recordings(open_data(arguments["data"]), config.split)
    recordings, columns = choose_units(recordings, arguments["selection"], config.window.units)
    data = Task.of(recordings, config)
    tables = {part: data.windows(part) for part in ("train", "valid")}
    vocabulary, normalisation, units = _prepare_units(data, columns, config.window, Vocabulary())
    readouts = {"gratings": make_readout(config, data.class_values)}
    model = PoyoSSL(
        config.model,
        num_units=vocabulary.num_units,
        num_sessions=vocabulary.num_sessions,
        readouts=readouts,
        generator=torch.Generator().manual_seed(config.seed),
    )
    _foresee_memory(config.model, config.window, config.optim, data.num_frames, max(map(len, columns.values())))
    excluded = {part: dict(table.excluded) for part, table in tables.items()}
    facts = {"task": "pretraining", "windows": {p: len(t) for p, t in tables.items()}, "excluded": excluded}

    def write_start() -> None:
        _describe(folder, "pretrain", arguments, data, **facts, parameters=model.num_parameters())
        _write_inputs(folder, data, vocabulary, normalisation, columns)

    datasets = _datasets(data, units, tables, config.window)
    return _job(folder, arguments, PretrainModule(model, config), datasets, write_start, progress=progress)


def finetuning_job(folder: Path, arguments: dict[str, Any], *, progress: bool) -> Job:
    """Build a fine-tuning from the keyword arguments of `finetune`."""
    config: FinetuneConfig = arguments["config"]
    if config.adapt == "embeddings":
        return adaptation_job(folder, arguments, progress=progress)
    pretrained = Path(arguments["pretrained"]) if arguments.get("pretrained") else None
    recordings = training_recordings(open_data(arguments["data"]), config.split)
    recordings, columns = choose_units(recordings, arguments["selection"], config.window.units)
    data = Task.of(recordings, config)
    tables = {part: data.windows(part) for part in ("train", *data.validations)}
    if pretrained is not None:
        config = replace(config, model=load_model_config(pretrained))
        arguments = arguments | {"config": config}
    known = run_folder.read_inputs(pretrained)[0] if pretrained else Vocabulary()
    vocabulary, normalisation, units = _prepare_units(data, columns, config.window, known)
    generator = torch.Generator().manual_seed(config.seed)
    model = PoyoSSL(
        config.model,
        num_units=known.num_units,
        num_sessions=known.num_sessions,
        readouts={config.task: make_readout(config, data.class_values)},
        generator=generator,
    )
    loaded = load_encoder(model, pretrained) if pretrained else None
    model.grow(num_units=vocabulary.num_units, num_sessions=vocabulary.num_sessions, generator=generator)
    inputs = Inputs(data, tables, vocabulary, normalisation, columns, units)
    _start_value_skip(model, inputs, config)
    return _finetuning_job(folder, arguments, model, inputs, {"loaded": loaded}, progress=progress)


@dataclass(frozen=True)
class Inputs:
    """What a fine-tuning reads: windows of its parts, and rows and normalisation of the units."""

    data: Task
    tables: dict[str, WindowTable]
    vocabulary: Vocabulary
    normalisation: dict[str, Normalisation]
    columns: dict[str, NDArray[np.int64]]
    units: list[UnitSet]


def adaptation_job(folder: Path, arguments: dict[str, Any], *, progress: bool) -> Job:
    """Build the fitting of nothing but embeddings of new recordings to a fine-tuned run.

    Raises
    ------
    ConfigError
        If no fine-tuned run is given, all recordings are known to it, or new and known animals are mixed.
    """
    asked: FinetuneConfig = arguments["config"]
    if not arguments.get("pretrained"):
        raise ConfigError("adapt 'embeddings' without a fine-tuned run", fix="pass --pretrained RUN")
    source = TrainedRun.open(arguments["pretrained"])
    if not isinstance(source.config, FinetuneConfig):
        raise ConfigError(
            f"{source.folder} is a pretraining, which has no readout of the task",
            allowed="runs of 'finetune'",
            fix="fine-tune it on the animals that train, then adapt that run",
        )
    config = replace(source.config, adapt="embeddings", optim=asked.optim, seed=asked.seed, keep=asked.keep, freeze=())
    arguments = arguments | {"config": config}
    recordings = [r for r in open_data(arguments["data"]) if r.recording_id not in source.vocabulary.sessions]
    new_animals = _are_new_animals(recordings, source)
    recordings, columns = choose_units(recordings, arguments["selection"], config.window.units)
    data = Task.of(recordings, config, new_animals=new_animals)
    if data.num_frames != source.num_frames:
        raise ConfigError(
            f"windows of {data.num_frames} imaging frames at the rate of the new recordings",
            allowed=f"{source.num_frames}, as in {source.folder}",
            fix="adapt to recordings of the same imaging rate",
        )
    data = replace(data, class_values=source.class_values)
    tables = {part: data.windows(part) for part in ("train", *data.validations)}
    vocabulary, normalisation, units = _prepare_units(data, columns, config.window, Vocabulary())
    model = PoyoSSL(
        config.model,
        num_units=vocabulary.num_units,
        num_sessions=vocabulary.num_sessions,
        readouts={config.task: make_readout(config, data.class_values)},
        generator=torch.Generator().manual_seed(config.seed),
    )
    loaded = load_all_but_embeddings(model, source)
    facts = {"loaded": loaded, "new_animals": new_animals, "adapted_from": str(source.folder.resolve())}
    inputs = Inputs(data, tables, vocabulary, normalisation, columns, units)
    _start_value_skip(model, inputs, config)
    return _finetuning_job(folder, arguments, model, inputs, facts, progress=progress)


def _start_value_skip(model: PoyoSSL, inputs: Inputs, config: FinetuneConfig) -> None:
    """Let a value skip, if there is one, start from the training part; the encoder's logits then start at 0.

    Where only embeddings are fitted, prototypes and the encoder's head stay those of the trained run.
    """
    readout = model.readouts[config.task]
    assert isinstance(readout, Readout)
    if readout.skip is None:
        return
    adapts = config.adapt == "embeddings"
    fit_value_skip(
        readout.skip,
        inputs.data.recordings,
        inputs.units,
        inputs.tables["train"],
        dict(inputs.data.domains),
        bin_frames=config.window.bin_frames,
        smoothing=config.label_spread_frames if config.task == "frame_number" else 0.0,
        keep_prototypes=adapts,
    )
    if not adapts:
        readout.silence_head()


def _are_new_animals(recordings: Sequence[Recording], source: TrainedRun) -> bool:
    """Tell whether all recordings are of animals that no training before has seen; refuse a mixture."""
    if not recordings:
        raise ConfigError(f"every recording is known to {source.folder}", fix="give recordings that it has not seen")
    seen = seen_animals(source.folder)
    new = [r.metadata.subject_id not in seen for r in recordings]
    if any(new) and not all(new):
        known = recordings[new.index(False)]
        raise ConfigError(
            f"recording {known.recording_id} is of animal '{known.metadata.subject_id}', which {source.folder} "
            "was trained on, and others are of new animals",
            fix="adapt to them in runs of their own",
        )
    return all(new)


def _finetuning_job(
    folder: Path, arguments: dict[str, Any], model: PoyoSSL, inputs: Inputs, facts: dict[str, Any], *, progress: bool
) -> Job:
    config: FinetuneConfig = arguments["config"]
    data, tables, columns = inputs.data, inputs.tables, inputs.columns
    _foresee_memory(config.model, config.window, config.optim, data.num_frames, max(map(len, columns.values())))
    facts = facts | {
        "task": config.task,
        "windows": {p: len(t) for p, t in tables.items()},
        "excluded": {part: dict(table.excluded) for part, table in tables.items()},
        "weights": _weights(tables, config.keep),
    }
    if data.movie_frame_s:
        facts["movie_frame_s"] = data.movie_frame_s

    def write_start() -> None:
        _describe(folder, "finetune", arguments, data, **facts, parameters=model.num_parameters())
        _write_inputs(folder, data, inputs.vocabulary, inputs.normalisation, columns)

    datasets = _datasets(data, inputs.units, tables, config.window)
    num_targets = len(data.class_values) if data.class_values is not None else 0
    module = FinetuneModule(model, config, num_targets=num_targets, validations=data.validations)
    if not any(p.requires_grad for p in module.parameters()):
        raise ConfigError(f"freeze {list(config.freeze)} leaves nothing to train", fix="freeze fewer parameters")
    return _job(folder, arguments, module, datasets, write_start, progress=progress)


def _datasets(
    data: Task, units: list[UnitSet], tables: dict[str, WindowTable], window: WindowConfig
) -> dict[str, WindowDataset]:
    return {
        part: WindowDataset(
            data.recordings,
            units,
            table,
            bin_frames=window.bin_frames,
            unit_dropout=window.unit_dropout and part == "train",
            noise=window.noise if part == "train" else 0.0,
            frame_bank=data.bank_tensor(),
        )
        for part, table in tables.items()
    }


def _job(
    folder: Path,
    arguments: dict[str, Any],
    module: SeededModule,
    datasets: dict[str, WindowDataset],
    write_start: Callable[[], None],
    *,
    progress: bool,
) -> Job:
    config = arguments["config"]
    # Reconstruction of a moving target has no best epoch: a collapsing encoder would win.
    keep = "last" if isinstance(config, PretrainConfig) else config.keep
    return Job(
        folder=folder,
        write_start=write_start,
        module=module,
        train=datasets["train"],
        valid={part: dataset for part, dataset in datasets.items() if part != "train"},
        optim=config.optim,
        keep=keep,
        weights=_weights(datasets, keep),
        devices=arguments["devices"],
        nodes=arguments["nodes"],
        progress=progress,
    )


def _weights(parts: Iterable[str], keep: str) -> dict[str, str]:
    """Name the file of weights for each validation part; the last epoch is the same for all."""
    validating = [part for part in parts if part != "train"]
    return {part: run_folder.WEIGHTS[part] for part in (validating if keep == "best" else ["valid"])}


def _write_inputs(
    folder: Path,
    data: Task,
    vocabulary: Vocabulary,
    normalisation: dict[str, Normalisation],
    columns: dict[str, NDArray],
) -> None:
    if run_folder.process_rank() == 0:
        run_folder.write_inputs(
            folder,
            splits=data.splits,
            vocabulary=vocabulary,
            class_values=data.class_values,
            normalisation=normalisation,
            units=columns,
            recordings=data.recordings,
        )


def _foresee_memory(
    model: ModelConfig, window: WindowConfig, optim: OptimConfig, num_frames: int, num_units: int
) -> None:
    """Raise `ResourceError` if a training step would need more memory than there is."""
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
        # Plain strings: a checkpoint holds nothing of ours, so that loading one runs no code.
        self.best = dict.fromkeys(map(str, weights), float("inf"))
        self.best_epoch = dict.fromkeys(map(str, weights), -1)

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
            logger=CSVLogger(job.folder, "log", _csv_part(job.folder, last)),
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
    config = config or PretrainConfig()
    arguments: dict[str, Any] = {
        "data": data,
        "selection": selection,
        "config": config,
        "devices": devices,
        "nodes": nodes,
    }
    out = Path(out)
    return _train(out, overwrite, (data, selection), lambda: pretraining_job(out, arguments, progress=progress))


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
    config = config or FinetuneConfig()
    arguments: dict[str, Any] = {"data": data, "selection": selection, "pretrained": pretrained, "config": config}
    arguments |= {"devices": devices, "nodes": nodes}
    out = Path(out)
    inputs = (data, selection, pretrained)
    return _train(out, overwrite, inputs, lambda: finetuning_job(out, arguments, progress=progress))


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
    arguments = read_arguments(folder)
    if arguments["data"] is None:
        raise CheckpointError(f"{folder} was trained on recordings in memory", fix="train again from a data folder")
    known = {item["recording_id"]: item["sha256"] for item in facts["data"]}
    for recording in open_recordings(arguments["data"]):
        if known.get(recording.recording_id, recording.checksum()) != recording.checksum():
            raise CheckpointError(f"{recording.path} has changed since {folder} began", fix="train again")
    if arguments["selection"] is None:
        # Chosen by a selection in memory: the run kept what it chose.
        arguments["selection"] = run_folder.read_inputs(folder)[3]
    make = pretraining_job if facts["command"] == "pretrain" else finetuning_job
    job = make(folder, arguments, progress=progress)
    job.write_start()
    fit(job)
    return folder


def _train(out: Path, overwrite: bool, inputs: Iterable[Any], make: Callable[[], Job]) -> Path:
    """Make a job, then its folder, and fit; a job that turns out to be impossible leaves no folder behind."""
    paths = [path for given in inputs for path in files.paths_of(given)]
    # Under DDP every process runs the command; the first makes the folder.
    first = run_folder.process_rank() == 0
    if first:
        files.check_new(out, "run", overwrite=overwrite, inputs=paths)
    job = make()
    with files.new_folder(out, "run", overwrite=overwrite, inputs=paths) if first else nullcontext():
        job.write_start()
        fit(job)
    return out
