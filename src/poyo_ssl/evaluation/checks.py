"""Check predictions against one another, and against recordings and splits."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from poyo_ssl.data.intervals import contains
from poyo_ssl.data.recording import Recording, open_recordings
from poyo_ssl.data.splits import (
    GRATINGS,
    Split,
    join,
    load_resized_movie,
    load_split_settings,
    load_split_window,
    load_splits,
    standard_splits,
    usable_trials,
)
from poyo_ssl.data.stimuli import Presentations
from poyo_ssl.data.windows import WindowTable, movie_windows, trial_windows, window_frames
from poyo_ssl.errors import suggest
from poyo_ssl.evaluation.predictions import (
    TIME_RESOLUTION_S,
    Array,
    Predictions,
    PredictionsError,
    check_disjoint,
    target_keys,
)

KEYS = ["recording_id", "tick"]
MILLIDEGREES = 1000
MEAN_FRAME_TOLERANCE = 0.5
"""Grey levels by which mean frames may differ: rounding, and nothing else."""


@dataclass(frozen=True)
class Truth:
    """What a predictions file says was to be decoded.

    Attributes
    ----------
    targets : DataFrame
        One row per target: `KEYS` (recording, and time in microseconds), and what files must agree on: subject_id,
        stimulus, repeat, frame_number and one of ``direction`` (millidegrees) and ``pixels`` (a number that tells
        pictures apart); a frame number is its own truth.
    facts : mapping
        What must be the same for all arms of a task and split, by how it is called.
    mean_frames : mapping
        Recording id -> ``(H, W)`` mean training frame.
    """

    targets: pd.DataFrame
    facts: Mapping[str, str]
    mean_frames: Mapping[str, Array]

    @classmethod
    def of(cls, predictions: Predictions) -> Truth:
        """Take the truth out of validated predictions."""
        p = predictions
        target = np.asarray(p.target, dtype=np.int64)
        columns: dict[str, Array] = {name: getattr(p, name).astype(str) for name in ("subject_id", "stimulus")}
        columns |= {name: getattr(p, name).astype(np.int64) for name in ("repeat", "frame_number")}
        facts = {} if p.task == "gratings" else {"movie_rate_hz": f"{p.movie_rate_hz:g}"}
        if p.task == "gratings":
            columns["direction"] = np.rint(p.class_values * MILLIDEGREES).astype(np.int64)[target]
            facts["class_values"] = ", ".join(f"{value:g}" for value in np.sort(p.class_values))
        elif p.task == "frames":
            digests = [hashlib.blake2b(frame.tobytes(), digest_size=6).digest() for frame in p.target_frames]
            columns["pixels"] = np.array([int.from_bytes(digest) for digest in digests])[target]
            facts["target_frames"] = "{} x {} pixels".format(*p.target_frames.shape[1:])
            facts["mean_frames"] = "given" if p.mean_frames else "not given"
        else:
            columns["frame_number"] = target
        return cls(target_keys(p.recording_id, p.time).assign(**columns), facts, p.mean_frames)


def check_same_truth(truths: Sequence[tuple[str, Truth]]) -> None:
    """Check that files of one task and split agree on the truth wherever they share targets.

    Parameters
    ----------
    truths : sequence of (str, Truth)
        Name and truth of each file.

    Raises
    ------
    PredictionsError
        Naming two files that disagree, and the first thing on which they do.

    Examples
    --------
    >>> from dataclasses import replace
    >>> made = Predictions(task="gratings", split="gratings", arm="majority", prediction=np.array([0, 0]),
    ...     target=np.array([0, 1]), time=np.array([1.0, 4.0]), recording_id=np.full(2, "r"),
    ...     subject_id=np.full(2, "m"), stimulus=np.full(2, "drifting_gratings"), frame_number=np.full(2, -1),
    ...     repeat=np.full(2, -1), class_values=np.array([0.0, 45.0]))
    >>> other = replace(made, target=np.array([0, 0]))
    >>> check_same_truth([("a.h5", Truth.of(made)), ("b.h5", Truth.of(other))])
    Traceback (most recent call last):
    poyo_ssl.evaluation.predictions.PredictionsError: b.h5 has direction 0 of recording r at 4.000000 s, a.h5 \
has 45; write the truth of the data into every file
    """
    for fact in truths[0][1].facts:
        usual, _ = Counter(truth.facts[fact] for _, truth in truths).most_common(1)[0]
        like = next(file for file, truth in truths if truth.facts[fact] == usual)
        for file, truth in truths:
            if truth.facts[fact] != usual:
                raise PredictionsError(
                    f"{file} has {fact} {truth.facts[fact]}, {like} has {usual}",
                    fix="write all files of a task and split alike",
                )
    references: list[tuple[str, Truth]] = []
    for file, truth in truths:
        for like, reference in references:
            rows = _shared_rows(truth.targets, reference.targets)
            _compare_targets(file, truth.targets.iloc[rows[0]], like, reference.targets.iloc[rows[1]])
            shared = np.unique(truth.targets["recording_id"].to_numpy()[rows[0]])
            _compare_mean_frames(file, truth, like, reference, shared)
        # One reference per fold is enough: who agrees with it needs no comparison with its like.
        if not any(_same_keys(truth.targets, reference.targets) for _, reference in references):
            references.append((file, truth))


def _same_keys(first: pd.DataFrame, second: pd.DataFrame) -> bool:
    return all(np.array_equal(first[key].to_numpy(), second[key].to_numpy()) for key in KEYS)


def _shared_rows(first: pd.DataFrame, second: pd.DataFrame) -> tuple[Array, Array]:
    """Rows of both, in pairs, of the targets that both have."""
    if _same_keys(first, second):
        return np.arange(len(first)), np.arange(len(second))
    pairs = first[KEYS].assign(one=np.arange(len(first))).merge(second[KEYS].assign(other=np.arange(len(second))))
    return pairs["one"].to_numpy(), pairs["other"].to_numpy()


def _compare_targets(file: str, own: pd.DataFrame, like: str, other: pd.DataFrame) -> None:
    for column in own.columns.difference(KEYS, sort=False):
        differ = np.flatnonzero(own[column].to_numpy() != other[column].to_numpy())
        if len(differ):
            row, values = own.iloc[differ[0]], [table[column].iloc[differ[0]] for table in (own, other)]
            if column == "direction":
                values = [f"{value / MILLIDEGREES:g}" for value in values]
            elif column == "pixels":
                values = [f"with checksum {value:012x}" for value in values]
            raise PredictionsError(
                f"{file} has {column} {values[0]} of recording {row['recording_id']} at "
                f"{row['tick'] * TIME_RESOLUTION_S:.6f} s, {like} has {values[1]}",
                fix="write the truth of the data into every file",
            )


def _compare_mean_frames(file: str, own: Truth, like: str, other: Truth, recordings: Array) -> None:
    for recording in recordings:
        if recording in own.mean_frames and recording in other.mean_frames:
            apart = np.abs(np.asarray(own.mean_frames[recording], float) - other.mean_frames[recording]).max()
            if apart > MEAN_FRAME_TOLERANCE:
                raise PredictionsError(
                    f"{file} has another mean frame of recording {recording} than {like}, by up to {apart:.1f} grey "
                    "levels",
                    allowed=f"{MEAN_FRAME_TOLERANCE:g}",
                    fix="write the mean over the training part of the split into every file",
                )


GREY_LEVELS = 1
"""By how much true frames may differ from the movie's: rounding."""
DEGREES = 1e-3
"""By how much true directions may differ: far above what single precision does to them."""


class DataFolder:
    """The recordings and ``splits.json`` of one data folder, to check predictions files against.

    Parameters
    ----------
    folder : path
        Data folder with a file of 'poyo-ssl split' beside the recordings.

    Raises
    ------
    PoyoError
        If there are no recordings, or no splits.

    Examples
    --------
    >>> import tempfile
    >>> from poyo_ssl.config import SplitConfig
    >>> from poyo_ssl.data.recording import RecordingMetadata
    >>> from poyo_ssl.data.splits import save_splits
    >>> folder, stamps, start = Path(tempfile.mkdtemp()), np.arange(600) / 30, np.arange(10) * 45
    >>> columns = {"frame": np.zeros(10, int), "repeat": np.arange(10)}
    >>> movie = Presentations.from_frames("natural_movie_one", stamps, start, start + 45, columns)
    >>> recording = Recording("r", np.zeros((600, 1)), stamps, RecordingMetadata("m"), stimuli={movie.name: movie})
    >>> _ = recording.save(folder / "r.h5")
    >>> _ = save_splits([recording], folder / "splits.json", SplitConfig(num_clips=0))
    >>> made = Predictions(task="frame_number", split="repeat", arm="mine", prediction=np.array([0]),
    ...     target=np.array([0]), time=movie.midpoint[9:], recording_id=np.array(["r"]), subject_id=np.array(["m"]),
    ...     stimulus=np.array([movie.name]), frame_number=np.array([0]), repeat=np.array([9]),
    ...     class_values=np.array([0.0]))
    >>> DataFolder(folder).check(made)
    """

    def __init__(self, folder: Path | str) -> None:
        folder = Path(folder)
        self.recordings = {recording.recording_id: recording for recording in open_recordings(folder)}
        path = (folder if folder.is_dir() else folder.parent) / "splits.json"
        self.splits = load_splits(path)
        self.config = load_split_settings(path)
        self.window_s = load_split_window(path)

    def check(self, predictions: Predictions) -> None:
        """Check every target of a file against the recordings.

        Every row must be a presentation of the test part, at its middle, with the stimulus, repeat, frame, direction,
        picture and animal that the recording says; all targets whose window of the splits' length lies in clean data
        must be there; nothing of the test part may be among the file's training or validation intervals.

        Parameters
        ----------
        predictions : Predictions
            One file.

        Raises
        ------
        PredictionsError
            Naming the first offender.
        """
        p = predictions
        for recording_id in dict.fromkeys(p.recording_id.astype(str)):
            if recording_id not in self.recordings:
                raise PredictionsError(
                    f"recording {recording_id} is not in the data folder{suggest(recording_id, self.recordings)}",
                    fix="give the folder of the recordings that were decoded",
                )
            recording = self.recordings[recording_id]
            rows = np.flatnonzero(p.recording_id == recording_id)
            animal = recording.metadata.subject_id
            if p.subject_id[rows[0]] != animal:
                raise PredictionsError(
                    f"recording {recording_id} has subject_id {p.subject_id[rows[0]]}", allowed=animal, fix="correct it"
                )
            for stimulus in dict.fromkeys(p.stimulus[rows].astype(str)):
                self._check_stimulus(p, recording, stimulus, rows[p.stimulus[rows] == stimulus])

    def _check_stimulus(self, p: Predictions, recording: Recording, stimulus: str, rows: Array) -> None:
        name = f"{stimulus} of recording {recording.recording_id}"
        splits = self._splits_of(p, recording)
        split = splits.get(stimulus)
        if split is None:
            raise PredictionsError(f"{name} is not among the splits", fix="write them again with 'poyo-ssl split'")
        part = f"test_{p.split}"
        if part not in split.parts:
            raise PredictionsError(
                f"no split '{p.split}' of {name}",
                allowed=", ".join(test.removeprefix("test_") for test in split.tests),
                fix="write splits.json with the settings of the decoder's split ('poyo-ssl split')",
            )
        others = {
            own: spans for own, spans in p.split_intervals.get(recording.recording_id, {}).items() if own != "test"
        }
        for own, spans in others.items():
            check_disjoint(
                recording.recording_id, {f"{own} of the file": spans, f"{part} of splits.json": split.parts[part]}
            )
        table = recording.stimulus(stimulus)
        shown = self._rows_at(p, rows, table, split, part, name)
        self._check_values(p, recording, table, rows, shown, name)
        self._check_complete(p, recording, table, rows, splits, part, name)

    def _splits_of(self, p: Predictions, recording: Recording) -> Mapping[str, Split]:
        """Return splits by stimulus; unseen frames have no number to be told by, so that task has no clips."""
        stored = self.splits.get(recording.recording_id, {})
        if p.task != "frame_number":
            return stored
        made = standard_splits(recording, self.config.known_frames_only(), window_s=self.window_s)
        is_new = any(test.of_new_animal for split in stored.values() for test in split.tests)
        return {name: split.of_new_animal() if is_new else split for name, split in made.items()}

    def _rows_at(self, p: Predictions, rows: Array, table: Presentations, split: Split, part: str, name: str) -> Array:
        """``(R,)`` presentation in whose middle each target lies."""
        middles = table.midpoint
        order = np.argsort(middles, kind="stable")
        after = np.clip(np.searchsorted(middles[order], p.time[rows]), 1, max(len(order) - 1, 1))
        near = order[np.stack([after - 1, np.minimum(after, len(order) - 1)])]
        apart = np.abs(middles[near] - p.time[rows])
        found = np.take_along_axis(near, apart.argmin(axis=0)[None], axis=0)[0]
        wanted = contains(middles[found], split.parts[part])
        if table.name == GRATINGS:
            wanted &= usable_trials(table)[found]
        for bad, text in (
            (apart.min(axis=0) > TIME_RESOLUTION_S, f"the middle of no presentation of {name}"),
            (~wanted, f"not in the test part of split '{p.split}' of {name}"),
        ):
            if bad.any():
                row = rows[np.argmax(bad)]
                raise PredictionsError(
                    f"row {row} at {p.time[row]:.6f} s is {text} ({int(bad.sum())} such)",
                    fix="predict the presentations of the test part, each at the middle between its start and end",
                )
        return found

    def _check_values(
        self, p: Predictions, recording: Recording, table: Presentations, rows: Array, shown: Array, name: str
    ) -> None:
        target = p.target[rows].astype(np.int64)
        pairs: list[tuple[str, Array, Array, float]] = []
        if p.task == "gratings":
            true = table.columns["orientation"][shown].astype(float)
            pairs.append(("direction", p.class_values[target], true, DEGREES))
        else:
            numbers = table.columns["frame"][shown]
            pairs.append(("frame_number", p.frame_number[rows], numbers, 0))
            pairs.append(("repeat", p.repeat[rows], table.columns["repeat"][shown], 0))
            if p.task == "frame_number":
                pairs.append(("target", p.class_values[target], numbers, 0))
        for column, own, true, tolerance in pairs:
            self._compare(p, rows, np.abs(own - true) > tolerance, name, column, own, true)
        if p.task == "frames":
            assert recording.data_folder is not None
            height, width = p.target_frames.shape[1:]
            movie = load_resized_movie(recording.data_folder, table.name, height=height, width=width)
            pairs_of_frames = np.unique(np.stack([target, table.columns["frame"][shown]]), axis=1).T
            for index, number in pairs_of_frames:
                apart = np.abs(p.target_frames[index].astype(int) - movie[number]).max()
                if apart > GREY_LEVELS:
                    raise PredictionsError(
                        f"target_frames {index} is not frame {number} of {name}: up to {apart} grey levels apart",
                        allowed=f"{GREY_LEVELS}",
                        fix="resize the movie with poyo_ssl.data.splits.load_resized_movie",
                    )

    def _compare(
        self, p: Predictions, rows: Array, bad: Array, name: str, column: str, own: Array, true: Array
    ) -> None:
        if bad.any():
            first = int(np.argmax(bad))
            raise PredictionsError(
                f"row {rows[first]} at {p.time[rows[first]]:.6f} s has {column} {own[first]:g}, {name} has "
                f"{true[first]:g} there ({int(bad.sum())} such)",
                fix="write the truth of the recording",
            )

    def _check_complete(
        self,
        p: Predictions,
        recording: Recording,
        table: Presentations,
        rows: Array,
        splits: Mapping[str, Split],
        part: str,
        name: str,
    ) -> None:
        wanted = self._windows(p, recording, table, join(list(splits.values())), part)
        keys = pd.MultiIndex.from_frame(target_keys(p.recording_id[rows], p.time[rows]))
        expected = pd.MultiIndex.from_frame(
            target_keys(np.full(len(wanted), recording.recording_id), wanted.target_time)
        )
        missing = ~expected.isin(keys)
        if missing.any():
            first = int(np.argmax(missing))
            frame = (
                f"frame {wanted.frame_number[first]}, repeat {wanted.repeat[first]}, " if p.task != "gratings" else ""
            )
            raise PredictionsError(
                f"{frame}{wanted.target_time[first]:.6f} s, of {name} is missing ({int(missing.sum())} of "
                f"{len(wanted)} targets of split '{p.split}' are)",
                fix="predict every target of the test part; a decoder of longer windows needs splits of its --window_s",
            )

    def _windows(
        self, p: Predictions, recording: Recording, table: Presentations, split: Split, part: str
    ) -> WindowTable:
        """Make the windows of a part that no decoder of the splits' `window_s` may leave out.

        That is window plus lag: what a decoder reads for a movie frame lies within so many seconds before and after
        it. A target whose input could reach into any other part, of whichever stimulus, need not be there.
        """
        # A lag that is no whole number of imaging frames takes one more.
        num_frames = window_frames([recording], self.window_s) + 1
        if p.task == "gratings":
            known = np.isclose(table.columns["orientation"][:, None], p.class_values, rtol=0, atol=DEGREES).any(axis=1)
            targets = np.where(known, 0, -1)
            return trial_windows(
                recording, 0, split, part, num_frames=num_frames, lag_s=0.0, dilation_s=0.0, targets=targets
            )
        frames = table.columns["frame"]
        known = np.isin(frames, p.class_values) if p.task == "frame_number" else np.ones(len(table), bool)
        before, after = (
            movie_windows(
                recording, 0, table, split, part, num_frames=num_frames, lag_s=lag_s, targets=np.where(known, 0, -1)
            )
            for lag_s in (0.0, self.window_s)
        )
        return before.select(np.isin(before.target_time, after.target_time))
