"""From a trained run to predictions: of its test parts, or of any moments of a known recording."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from poyo_ssl.config import FinetuneConfig
from poyo_ssl.data.recording import Recording
from poyo_ssl.data.task import Task
from poyo_ssl.data.windows import Batch, BatchSampler, UnitSet, WindowDataset, WindowTable
from poyo_ssl.errors import ConfigError, RecordingError
from poyo_ssl.training.run_folder import (
    Data,
    TrainedRun,
    decide,
    read_class_values,
    read_json,
    read_neurons,
    read_settings,
    require_finished,
)
from poyo_ssl.training.train import make_trainer, open_data, quiet_lightning

PREDICT_BATCH_SIZE = 64


class PredictModule(L.LightningModule):
    """Collects a model's outputs, each window once, over all processes."""

    def __init__(self, run: TrainedRun) -> None:
        super().__init__()
        self.model, self.task = run.model, run.task
        self.windows: list[NDArray] = []
        self.outputs: list[NDArray] = []

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move a batch without waiting for it."""
        return batch.to(device, non_blocking=True)

    def predict_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep the output of one batch."""
        assert batch.window_index is not None
        output = self.model(batch, self.task).float()
        if self.task == "frames":
            output = (output * 255).round().clamp(0, 255).to(torch.uint8)
        elif output.ndim == 2:
            output = output.softmax(dim=-1)
        self.windows.append(batch.window_index.cpu().numpy())
        self.outputs.append(output.cpu().numpy())

    def gather(self, num_windows: int) -> NDArray:
        """Return the outputs of all windows in order; every process gets them."""
        part = (np.concatenate(self.windows), np.concatenate(self.outputs))
        parts: list[Any] = [part]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            parts = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(parts, part)
        windows = np.concatenate([windows for windows, _ in parts])
        assert np.array_equal(np.sort(windows), np.arange(num_windows)), "a window was predicted twice or never"
        outputs = np.concatenate([outputs for _, outputs in parts])
        return outputs[np.argsort(windows)]


def predict_windows(
    run: TrainedRun,
    recordings: Sequence[Recording],
    table: WindowTable,
    *,
    units: Sequence[UnitSet] | None = None,
    devices: int = 1,
    nodes: int = 1,
    progress: bool = False,
) -> NDArray:
    """Return a model's output for every window of a table, each once.

    ``(W, K)`` class probabilities, ``(W,)`` positions, or ``(W, H, W)`` uint8 frames. `units` take the place of those
    that the run knows.
    """
    dataset = WindowDataset(
        recordings,
        [run.unit_set(recording) for recording in recordings] if units is None else units,
        table,
        bin_frames=run.config.window.bin_frames,
    )
    module = PredictModule(run)
    with quiet_lightning():
        trainer = make_trainer(None, devices=devices, nodes=nodes, progress=progress, logger=False)

        class Loader(L.LightningDataModule):
            def predict_dataloader(self) -> DataLoader:
                sampler = BatchSampler(
                    len(table),
                    PREDICT_BATCH_SIZE * trainer.world_size,
                    seed=None,
                    rank=trainer.global_rank,
                    num_ranks=trainer.world_size,
                )
                return DataLoader(dataset, sampler=sampler, batch_size=None)

        trainer.predict(module, datamodule=Loader(), return_predictions=False)
    return module.gather(len(table))


class TaskOpener:
    """Opens tasks of fine-tuning runs again, on their recordings wherever they are now.

    Without `data` they are where the runs found them; the splits follow from settings and recordings as they did then.
    Runs of the same recordings and settings share one task, so that splits and windows are made once for them.
    """

    def __init__(self, data: Data | None = None, *, allow_unfinished: bool = False) -> None:
        self._data, self._allow_unfinished = data, allow_unfinished
        self._recordings: dict[str, list[Recording]] = {}  # by where they are
        self._tasks: dict[Hashable, Task] = {}

    def __call__(self, run: Path | str) -> Task:
        """Open the task of a run."""
        settings, facts = read_settings(run), read_json(Path(run), "run.json")
        require_finished(run, allow=self._allow_unfinished)
        config = settings.config
        if not isinstance(config, FinetuneConfig):
            raise ConfigError(f"{run} is a pretraining", allowed="runs of 'finetune'", fix="fine-tune it first")
        data = self._data if self._data is not None else settings.data
        if data is None:
            raise ConfigError(f"{run} was trained on recordings in memory", fix="give the recordings as data")
        columns = read_neurons(run).columns
        place = str(data) if isinstance(data, (str, Path)) else ""
        if place not in self._recordings:
            self._recordings[place] = open_data(data)
        recordings = [r for r in self._recordings[place] if r.recording_id in columns]
        if not recordings:
            raise RecordingError(f"no recording of {run} in the data given", fix="give the data it was trained on")
        new_animals = facts.get("new_animals", False)
        # Everything of the settings that a task depends on.
        of_task = [config.task, config.movies, config.frame_height, config.frame_width, config.split, new_animals]
        of_task += [config.window.window_s, config.window.lag_s]
        adapts = config.adapt == "embeddings"
        class_values = read_class_values(run) if adapts else None
        if adapts:
            of_task += [facts["num_imaging_frames"], None if class_values is None else class_values.tobytes()]
        key = (place, tuple(r.recording_id for r in recordings), *of_task)
        if key not in self._tasks:
            task = Task.of(recordings, config, new_animals=new_animals)
            if adapts:
                task = replace(task, class_values=class_values, num_frames=facts["num_imaging_frames"])
            self._tasks[key] = task
        return self._tasks[key]


def open_task(run: Path | str, data: Data | None = None, *, allow_unfinished: bool = False) -> Task:
    """Open the task of one run again; see `TaskOpener`."""
    return TaskOpener(data, allow_unfinished=allow_unfinished)(run)


@dataclass(frozen=True)
class Decoded:
    """What a run decodes at moments of a recording; what its task does not give is None.

    Attributes
    ----------
    time : ndarray
        ``(W,)`` seconds at which the input windows end.
    probabilities : ndarray, optional
        ``(W, K)`` of the classes.
    classes : ndarray, optional
        ``(W,)`` the class decided on: direction in degrees, or movie frame.
    position : ndarray, optional
        ``(W,)`` place in the movie, 0 to 1.
    frames : ndarray, optional
        ``(W, H, W)`` uint8 movie frames.
    """

    time: NDArray[np.float64]
    probabilities: NDArray[np.float32] | None = None
    classes: NDArray[np.float64] | None = None
    position: NDArray[np.float32] | None = None
    frames: NDArray[np.uint8] | None = None


def predict(run: TrainedRun | Path | str, recording: Recording, times: NDArray[np.float64] | None = None) -> Decoded:
    """Predict at any moments of a known recording; it needs no stimulus.

    Parameters
    ----------
    run : TrainedRun or path
        A trained run that knows the recording's units.
    recording : Recording
        The recording.
    times : ndarray, optional
        ``(W,)`` seconds at which the input windows end; every imaging frame with a whole window by default.

    Returns
    -------
    Decoded
        Probabilities and classes, positions, or frames.

    Raises
    ------
    RecordingError
        If the run does not know the recording, or `times` leave no whole window.
    """
    run = run if isinstance(run, TrainedRun) else TrainedRun.open(run)
    stamps = recording.timestamps
    times = stamps[run.num_frames - 1 :] if times is None else np.asarray(times, float)
    stop = np.searchsorted(stamps, times, side="right")
    if len(times) == 0 or (stop < run.num_frames).any():
        raise RecordingError(
            f"recording {recording.recording_id}: windows of {run.num_frames} frames end before they begin",
            allowed=f"times from {stamps[min(run.num_frames, len(stamps)) - 1]:.3f} s",
            fix="leave earlier times out",
        )
    target_time = times - run.config.window.lag_s
    if run.task == "gratings":
        # In training the target was the middle of a trial that the window covers.
        target_time = times - 0.5 * run.num_frames / recording.rate_hz
    table = WindowTable.unlabelled(stop - run.num_frames, target_time, num_frames=run.num_frames)
    output = predict_windows(run, [recording], table)
    if run.task == "frames":
        return Decoded(times, frames=output)
    if output.ndim == 1:
        return Decoded(times, position=output)
    assert run.class_values is not None
    return Decoded(times, probabilities=output, classes=run.class_values[decide(run, output)])
