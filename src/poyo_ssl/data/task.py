"""From recordings and a task to targets, splits and window tables; the same ones for models and baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from poyo_ssl.config import FinetuneConfig, PretrainConfig, ReadoutConfig, SplitConfig
from poyo_ssl.data.intervals import Intervals, as_intervals, contains, merge
from poyo_ssl.data.recording import Recording
from poyo_ssl.data.splits import (
    GRATINGS,
    Split,
    load_resized_movie,
    split_gratings,
    split_movies,
    standard_splits,
    training_domain,
    usable_trials,
)
from poyo_ssl.data.stimuli import Presentations, load_movie
from poyo_ssl.data.windows import WindowTable, movie_windows, require_windows, trial_windows, window_frames
from poyo_ssl.errors import RecordingError


@dataclass(frozen=True)
class TaskData:
    """Everything about a task that does not depend on a model.

    Attributes
    ----------
    recordings : list of Recording
        Recordings with the task's stimulus.
    splits : dict
        Parts of each recording for this task, by recording id.
    domains : dict
        ``(K, 2)`` seconds of each recording from which statistics may come.
    num_frames : int
        Imaging frames per window.
    class_values : ndarray, optional
        Directions in degrees, or movie frame numbers, of the classes.
    frame_bank : ndarray, optional
        ``(F, H, W)`` uint8 frames of all movies, one after the other.
    frame_offsets : dict
        Row of each movie's first frame in the bank.
    """

    recordings: list[Recording]
    splits: Mapping[str, Split]
    domains: Mapping[str, Intervals]
    num_frames: int
    class_values: NDArray[np.float64] | None = None
    frame_bank: NDArray[np.uint8] | None = None
    frame_offsets: Mapping[str, int] | None = None

    @property
    def tests(self) -> tuple[str, ...]:
        """Names of the test parts."""
        return next(iter(self.splits.values())).tests

    @property
    def validations(self) -> tuple[str, ...]:
        """Names of the validation parts."""
        return next(iter(self.splits.values())).validations

    def validation_of(self, test: str) -> str:
        """Name of the part that validates for a test part."""
        return next(iter(self.splits.values())).validation_of(test)

    def bank_tensor(self) -> torch.Tensor | None:
        """Return the frame bank as float of 0-1."""
        return None if self.frame_bank is None else torch.from_numpy(self.frame_bank).float() / 255


def allowed_domain(recording: Recording, split: SplitConfig, *, window_s: float) -> Intervals:
    """``(K, 2)`` seconds of a recording outside every test and validation part of every stimulus.

    Decoders of shorter windows keep smaller gaps around clips, so more frames of a held-out repeat are theirs to test:
    what any window up to `window_s` tests is left out.
    """
    splits = [s for seconds in (0.0, window_s) for s in standard_splits(recording, split, window_s=seconds).values()]
    return training_domain(recording, splits)


def direction_classes(recordings: Sequence[Recording], splits: Mapping[str, Split]) -> NDArray[np.float64]:
    """Return the sorted directions in degrees that occur in the training trials of the recordings' gratings."""
    found = []
    for recording in recordings:
        table = recording.stimulus(GRATINGS)
        trains = contains(table.midpoint, splits[recording.recording_id].parts["train"])
        found.append(table.columns["orientation"][trains & usable_trials(table)])
    return np.unique(np.concatenate(found).astype(np.float64))


def load_frames(recordings: Sequence[Recording], movie: str, *, height: int, width: int) -> NDArray[np.uint8]:
    """Return a movie's frames, resized with antialiasing, ``(L, height, width)`` uint8.

    Raises
    ------
    RecordingError
        If the recordings lie in no data folder, or their folders hold different movies of that name.
    """
    folders = {recording.data_folder for recording in recordings if recording.data_folder}
    if not folders:
        raise RecordingError(f"no pixels of '{movie}' for recordings in memory", fix="save them beside the movie")
    movies = [load_movie(folder, movie) for folder in sorted(folders)]
    if any(not np.array_equal(movies[0], other) for other in movies[1:]):
        raise RecordingError(f"data folders hold different movies '{movie}'", fix="give recordings of one study")
    return load_resized_movie(sorted(folders)[0], movie, height=height, width=width)


def prepare_task(recordings: Sequence[Recording], config: FinetuneConfig, *, new_animals: bool = False) -> TaskData:
    """Split recordings for a task and gather its targets.

    Parameters
    ----------
    recordings : sequence of Recording
        Recordings with the task's stimulus.
    config : FinetuneConfig
        Task, window and split.
    new_animals : bool
        The animals took no part in training: the training part only adapts embeddings, and the tests are those of
        the `subject` split.

    Raises
    ------
    RecordingError, SplitError
        If a recording lacks the stimulus, or a part stays empty.
    """
    recordings = list(recordings)
    window_s = config.window.window_s + max(config.window.lag_s, 0)
    # Unseen frames have no class, so classes are learned from every frame of the training repeats.
    split_config = config.split.known_frames_only() if config.task == "frame_number" else config.split
    splits, domains = {}, {}
    for recording in recordings:
        if config.task == "gratings":
            split = split_gratings(recording, split_config)
        else:
            split = split_movies(recording, config.movies, split_config, window_s=window_s)
        splits[recording.recording_id] = split.of_new_animal() if new_animals else split
        domains[recording.recording_id] = training_domain(
            recording, [split, *standard_splits(recording, split_config, window_s=window_s).values()]
        )
    data = TaskData(recordings, splits, domains, window_frames(recordings, config.window.window_s))
    if config.task == "gratings":
        return replace(data, class_values=direction_classes(recordings, splits))
    if config.task == "frame_number":
        return replace(data, class_values=np.arange(_last_training_frame(data, config.movies[0]) + 1, dtype=np.float64))
    size = {"height": config.frame_height, "width": config.frame_width}
    movies = (*config.movies, *split_config.test_movies)
    banks = [load_frames(recordings, movie, **size) for movie in movies]
    starts = np.cumsum([0, *(len(bank) for bank in banks)])
    offsets = {movie: int(start) for movie, start in zip(movies, starts, strict=False)}
    return replace(data, frame_bank=np.concatenate(banks), frame_offsets=offsets)


def _last_training_frame(data: TaskData, movie: str) -> int:
    last = 0
    for recording in data.recordings:
        table = recording.stimulus(movie)
        trains = contains(table.midpoint, data.splits[recording.recording_id].parts["train"])
        last = max(last, int(table.columns["frame"][trains].max(initial=0)))
    return last


def task_windows(data: TaskData, config: FinetuneConfig, part: str) -> WindowTable:
    """Return the windows of one part over all recordings.

    Raises
    ------
    SplitError
        If none is left.
    """
    settings: dict[str, Any] = {"num_frames": data.num_frames, "lag_s": config.window.lag_s}
    tables = []
    for index, recording in enumerate(data.recordings):
        split = data.splits[recording.recording_id]
        if config.task == "gratings":
            targets = class_targets(recording, data.class_values)
            tables.append(trial_windows(recording, index, split, part, **settings, dilation_s=0.0, targets=targets))
            continue
        for movie in data.frame_offsets or config.movies:
            table = recording.stimulus(movie)
            targets = table.columns["frame"].astype(np.int64) + (data.frame_offsets or {}).get(movie, 0)
            if data.class_values is not None:
                targets = np.where(targets < len(data.class_values), targets, -1)
            tables.append(movie_windows(recording, index, table, split, part, **settings, targets=targets))
    return require_windows(WindowTable.concatenate(tables), f"part '{part}' of task '{config.task}'")


def class_targets(recording: Recording, class_values: NDArray[np.float64] | None) -> NDArray[np.int64]:
    """``(K,)`` class of every gratings trial, -1 for a blank or unlabelled one."""
    assert class_values is not None
    table = recording.stimulus(GRATINGS)
    direction = np.where(usable_trials(table), table.columns["orientation"].astype(float), class_values[0])
    found = np.searchsorted(class_values, direction)
    known = usable_trials(table) & (class_values[np.minimum(found, len(class_values) - 1)] == direction)
    return np.where(known, found, -1)


def pretraining_data(recordings: Sequence[Recording], config: PretrainConfig) -> TaskData:
    """Split the gratings of recordings for pretraining."""
    recordings = list(recordings)
    splits = {r.recording_id: split_gratings(r, config.split) for r in recordings}
    domains = {
        r.recording_id: training_domain(
            r, [splits[r.recording_id], *standard_splits(r, config.split, window_s=config.window.window_s).values()]
        )
        for r in recordings
    }
    if config.trials == "all":
        splits = {name: _everything_trains(split) for name, split in splits.items()}
        domains = {r.recording_id: as_intervals([[r.timestamps[0], r.timestamps[-1]]]) for r in recordings}
    frames = window_frames(recordings, config.window.window_s)
    return TaskData(recordings, splits, domains, frames, direction_classes(recordings, splits))


def _everything_trains(split: Split) -> Split:
    """Return the release's pretraining split: trials of all parts train; validation overlaps them."""
    return Split({"train": merge(np.concatenate(list(split.parts.values()))), "valid": split.parts["valid"]})


def pretraining_windows(data: TaskData, config: PretrainConfig, part: str) -> WindowTable:
    """Return one window per gratings trial of a part, free to move inside the dilated trial."""
    alone = config.trials == "all"
    tables = []
    for index, recording in enumerate(data.recordings):
        split = data.splits[recording.recording_id]
        tables.append(
            trial_windows(
                recording,
                index,
                Split({part: split.parts[part]}) if alone else split,
                part,
                num_frames=data.num_frames,
                lag_s=config.window.lag_s,
                dilation_s=config.trial_dilation_s,
                targets=class_targets(recording, data.class_values),
            )
        )
    return require_windows(WindowTable.concatenate(tables), f"part '{part}' of pretraining")


def make_readout(config: FinetuneConfig, class_values: NDArray[np.float64] | None) -> ReadoutConfig:
    """Return the readout that a task needs."""
    if config.task == "frames":
        return ReadoutConfig("frames", height=config.frame_height, width=config.frame_width, skips=config.skips)
    assert class_values is not None
    kind: Literal["classes", "position"] = config.readout if config.task == "frame_number" else "classes"
    width = min(config.value_skip_dim, len(class_values))
    return ReadoutConfig(
        kind, num_classes=len(class_values), value_skip_bins=config.value_skip_bins, value_skip_dim=width
    )


def frame_duration_s(table: Presentations) -> float:
    """Return how long a movie frame is shown, in seconds."""
    return float(np.median(np.diff(table.start[table.columns["repeat"] == table.columns["repeat"][0]])))
