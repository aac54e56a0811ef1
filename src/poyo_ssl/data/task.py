"""A task on recordings: splits, windows and targets, worked out once for training, prediction, baselines and audit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from poyo_ssl.config import FinetuneConfig, PretrainConfig, ReadoutConfig, SplitConfig
from poyo_ssl.data.intervals import Intervals, as_intervals, contains, merge
from poyo_ssl.data.recording import Recording
from poyo_ssl.data.splits import (
    GRATINGS,
    PartName,
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


def allowed_domain(recording: Recording, split: SplitConfig, *, window_s: float) -> Intervals:
    """``(K, 2)`` seconds of a recording outside every test and validation part of every stimulus.

    Decoders of shorter windows keep smaller gaps around clips, so more frames of a held-out repeat are theirs to test:
    what any window up to `window_s` tests is left out.
    """
    splits = [s for seconds in (0.0, window_s) for s in standard_splits(recording, split, window_s=seconds).values()]
    return training_domain(recording, splits)


@dataclass(frozen=True)
class Task:
    """What a task asks of recordings, whatever the model: which moments train, validate and test, and the targets.

    Made by `Task.of`; the windows of a part are made when first asked for.
    """

    recordings: list[Recording]
    config: FinetuneConfig | PretrainConfig
    splits: Mapping[str, Split]  # by recording id
    domains: Mapping[str, Intervals]  # (K, 2) seconds from which statistics may come, by recording id
    num_frames: int  # imaging frames per window
    class_values: NDArray[np.float64] | None = None  # directions in degrees, or frame numbers, of the classes
    frame_bank: NDArray[np.uint8] | None = None  # (F, H, W), frames of all movies one after the other
    frame_offsets: Mapping[str, int] = field(default_factory=dict)  # row of each movie's first frame in the bank
    _windows: dict[str, WindowTable] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(
        cls, recordings: Sequence[Recording], config: FinetuneConfig | PretrainConfig, *, new_animals: bool = False
    ) -> Task:
        """Split recordings and gather the targets.

        With `new_animals` no training saw the animals: the training part only adapts embeddings, and the tests are
        those of the `subject` split.
        """
        recordings, window_s = list(recordings), config.window.window_s
        split_config = config.split
        if isinstance(config, FinetuneConfig):
            window_s += max(config.window.lag_s, 0)
            # Unseen frames have no class, so classes are learned from every frame of the training repeats.
            split_config = config.split.known_frames_only() if config.task == "frame_number" else config.split
        splits, domains = {}, {}
        for recording in recordings:
            if isinstance(config, PretrainConfig) or config.task == "gratings":
                split = split_gratings(recording, split_config)
            else:
                split = split_movies(recording, config.movies, split_config, window_s=window_s)
            others = standard_splits(recording, split_config, window_s=window_s).values()
            domain = training_domain(recording, [split, *others])
            if isinstance(config, PretrainConfig) and config.trials == "all":
                # The release's pretraining: trials of all parts train; validation overlaps them.
                everything = merge(np.concatenate(list(split.parts.values())))
                split = Split({"train": everything, "valid": split.parts["valid"]})
                domain = as_intervals([[recording.timestamps[0], recording.timestamps[-1]]])
            splits[recording.recording_id] = split.of_new_animal() if new_animals else split
            domains[recording.recording_id] = domain
        task = cls(recordings, config, splits, domains, window_frames(recordings, config.window.window_s))
        if isinstance(config, PretrainConfig) or config.task == "gratings":
            return replace(task, class_values=task._directions())
        if config.task == "frame_number":
            return replace(task, class_values=np.arange(task._last_training_frame() + 1, dtype=np.float64))
        movies = (*config.movies, *split_config.test_movies)
        size = {"height": config.frame_height, "width": config.frame_width}
        banks = [_load_frames(recordings, movie, **size) for movie in movies]
        starts = np.cumsum([0, *(len(bank) for bank in banks)])
        offsets = {movie: int(start) for movie, start in zip(movies, starts, strict=False)}
        return replace(task, frame_bank=np.concatenate(banks), frame_offsets=offsets)

    @property
    def name(self) -> Literal["gratings", "frame_number", "frames"]:
        """What is decoded."""
        return task_name(self.config)

    @property
    def tests(self) -> tuple[PartName, ...]:
        """Names of the test parts, the same for every recording."""
        return next(iter(self.splits.values())).tests

    @property
    def validations(self) -> tuple[PartName, ...]:
        """Names of the validation parts, the same for every recording."""
        return next(iter(self.splits.values())).validations

    def validation_of(self, test: str) -> str:
        """Name of the part that validates for a test part."""
        return next(iter(self.splits.values())).validation_of(test)

    def windows(self, part: str) -> WindowTable:
        """Return the windows of one part over all recordings; `SplitError` if none is left."""
        if part not in self._windows:
            tables = [table for index in range(len(self.recordings)) for table in self._windows_of(index, part)]
            what = "pretraining" if isinstance(self.config, PretrainConfig) else f"task '{self.name}'"
            self._windows[part] = require_windows(WindowTable.concatenate(tables), f"part '{part}' of {what}")
        return self._windows[part]

    def _windows_of(self, index: int, part: str) -> list[WindowTable]:
        recording, config = self.recordings[index], self.config
        split, lag_s = self.splits[recording.recording_id], config.window.lag_s
        dilation_s = 0.0
        if isinstance(config, PretrainConfig):
            # The window is free to move inside the dilated trial.
            dilation_s = config.trial_dilation_s
            split = Split({part: split.parts[part]}) if config.trials == "all" else split
        if isinstance(config, PretrainConfig) or config.task == "gratings":
            targets = self._direction_targets(recording)
            return [
                trial_windows(
                    recording,
                    index,
                    split,
                    part,
                    num_frames=self.num_frames,
                    lag_s=lag_s,
                    dilation_s=dilation_s,
                    targets=targets,
                )
            ]
        tables = []
        for movie in self.frame_offsets or config.movies:
            table = recording.stimulus(movie)
            targets = table.columns["frame"].astype(np.int64) + self.frame_offsets.get(movie, 0)
            if self.class_values is not None:
                targets = np.where(targets < len(self.class_values), targets, -1)
            tables.append(
                movie_windows(
                    recording, index, table, split, part, num_frames=self.num_frames, lag_s=lag_s, targets=targets
                )
            )
        return tables

    def _directions(self) -> NDArray[np.float64]:
        """Sorted directions in degrees that occur in the training trials."""
        found = []
        for recording in self.recordings:
            table = recording.stimulus(GRATINGS)
            trains = contains(table.midpoint, self.splits[recording.recording_id].parts["train"])
            found.append(table.columns["orientation"][trains & usable_trials(table)])
        return np.unique(np.concatenate(found).astype(np.float64))

    def _direction_targets(self, recording: Recording) -> NDArray[np.int64]:
        """``(K,)`` class of every gratings trial, -1 for a blank or unlabelled one."""
        values = self.class_values
        assert values is not None
        table = recording.stimulus(GRATINGS)
        direction = np.where(usable_trials(table), table.columns["orientation"].astype(float), values[0])
        found = np.searchsorted(values, direction)
        known = usable_trials(table) & (values[np.minimum(found, len(values) - 1)] == direction)
        return np.where(known, found, -1)

    def _last_training_frame(self) -> int:
        assert isinstance(self.config, FinetuneConfig)
        last = 0
        for recording in self.recordings:
            table = recording.stimulus(self.config.movies[0])
            trains = contains(table.midpoint, self.splits[recording.recording_id].parts["train"])
            last = max(last, int(table.columns["frame"][trains].max(initial=0)))
        return last

    @cached_property
    def movie_frame_s(self) -> float:
        """Seconds for which a movie frame is shown; 0 where no movie is decoded."""
        if isinstance(self.config, PretrainConfig) or self.name == "gratings":
            return 0.0
        return frame_duration_s(self.recordings[0].stimulus(self.config.movies[0]))

    @cached_property
    def movie_rate_hz(self) -> float:
        """The movies' nominal frames per second; 30 where no movie is decoded.

        Whole frames, as the baselines' tolerance is: at a measured 29.98 an error of 30 frames would exceed one second.
        """
        return float(max(1, round(1 / self.movie_frame_s))) if self.movie_frame_s else 30.0

    @cached_property
    def checksum(self) -> str:
        """One checksum of all recordings."""
        return hashlib.sha256("".join(r.checksum() for r in self.recordings).encode()).hexdigest()

    def bank_tensor(self) -> torch.Tensor | None:
        """Return the frame bank as float of 0-1."""
        return None if self.frame_bank is None else torch.from_numpy(self.frame_bank).float() / 255


def _load_frames(recordings: Sequence[Recording], movie: str, *, height: int, width: int) -> NDArray[np.uint8]:
    """Resize the frames of a movie with antialiasing, ``(L, height, width)``; all folders must hold the same movie."""
    folders = sorted({recording.data_folder for recording in recordings if recording.data_folder})
    if not folders:
        raise RecordingError(f"no pixels of '{movie}' for recordings in memory", fix="save them beside the movie")
    movies = [load_movie(folder, movie) for folder in folders]
    if any(not np.array_equal(movies[0], other) for other in movies[1:]):
        raise RecordingError(f"data folders hold different movies '{movie}'", fix="give recordings of one study")
    return load_resized_movie(folders[0], movie, height=height, width=width)


def task_name(config: FinetuneConfig | PretrainConfig) -> Literal["gratings", "frame_number", "frames"]:
    """Return what is decoded; pretraining decodes gratings on the side."""
    return "gratings" if isinstance(config, PretrainConfig) else config.task


def make_readout(config: FinetuneConfig | PretrainConfig, class_values: NDArray[np.float64] | None) -> ReadoutConfig:
    """Return the readout that a task needs."""
    if isinstance(config, FinetuneConfig) and config.task == "frames":
        return ReadoutConfig("frames", height=config.frame_height, width=config.frame_width, skips=config.skips)
    assert class_values is not None
    if isinstance(config, PretrainConfig):
        return ReadoutConfig("classes", num_classes=len(class_values))
    return ReadoutConfig(
        config.readout if config.task == "frame_number" else "classes",
        num_classes=len(class_values),
        value_skip_bins=config.value_skip_bins,
        value_skip_dim=min(config.value_skip_dim, len(class_values)),
    )


def frame_duration_s(table: Presentations) -> float:
    """Return how long a movie frame is shown, in seconds."""
    return float(np.median(np.diff(table.start[table.columns["repeat"] == table.columns["repeat"][0]])))
