"""Checks of predictions: alone, against each other, and against recordings and splits.

Each names its first offender in one line. `check` needs a file alone; `check_same_targets` and `check_same_truth`
compare files of one task and split; `DataFolder` compares a file with the recordings and their splits.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from poyo_ssl.errors import PoyoError, suggest

if TYPE_CHECKING:
    from poyo_ssl.data.recording import Recording
    from poyo_ssl.data.splits import Split
    from poyo_ssl.data.stimuli import Presentations
    from poyo_ssl.data.windows import WindowTable
    from poyo_ssl.evaluation.predictions import Predictions, StoredFrames

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

TASKS = ("gratings", "frame_number", "frames")
KINDS = ("model", "baseline", "control", "ceiling")
PARTS = ("train", "valid", "test")
TEXT_ROWS = ("recording_id", "subject_id", "stimulus")
TIME_RESOLUTION_S = 1e-6
"""Times closer than this are the same."""
BLOCK_ROWS = 256
"""Frames looked at in one piece, which bounds memory."""


class PredictionsError(PoyoError):
    """A predictions file that is missing, damaged, inconsistent or not about the expected targets."""


# One file alone.


def check(p: Predictions) -> None:
    """Check facts, shapes, values, uniqueness, intervals and gaps, in this order."""
    _check_facts(p)
    _check_shapes(p)
    _check_values(p)
    _check_unique(p)
    _check_intervals(p)
    _check_gaps(p)


def _check_facts(p: Predictions) -> None:
    for name, allowed in (("task", TASKS), ("kind", KINDS)):
        if (value := getattr(p, name)) not in allowed:
            raise PredictionsError(f"predictions of {name} '{value}'", allowed=", ".join(allowed), fix="change it")
    for name in ("arm", "split"):
        if not getattr(p, name).strip():
            raise PredictionsError(f"predictions with an empty {name}", fix="name it")
    if not (np.isfinite(p.movie_rate_hz) and p.movie_rate_hz > 0):
        raise PredictionsError(f"movie_rate_hz {p.movie_rate_hz}", allowed="above 0", fix="change it")
    if p.seed < -1:
        raise PredictionsError(f"seed {p.seed}", allowed="-1 (no seed) or more", fix="change it")
    if bool(p.validation_metric) == np.isnan(p.validation_score) or np.isinf(p.validation_score):
        given = f"validation_score {p.validation_score} of metric '{p.validation_metric}'"
        raise PredictionsError(given, allowed="a number and a name, or neither", fix="write both")


def _check_shapes(p: Predictions) -> None:
    count, classes, size = len(p.prediction), len(p.class_values), p.target_frames.shape[1:]
    if count == 0:
        raise PredictionsError("predictions without rows", fix="check the split's intervals")
    for name in ("target", "time", "frame_number", "repeat", *TEXT_ROWS):
        _require(getattr(p, name).shape == (count,), name, getattr(p, name), f"({count},)")
    if p.task == "frames":
        is_movie = p.target_frames.ndim == 3 and p.target_frames.dtype == np.uint8 and len(p.target_frames) > 0
        _require(is_movie, "target_frames", p.target_frames, "(M, H, W) uint8")
        is_grey = p.prediction.dtype == np.uint8 or p.prediction.dtype.kind == "f"
        allowed = f"({count}, {size[0]}, {size[1]}) uint8 or float"
        _require(p.prediction.shape == (count, *size) and is_grey, "prediction", p.prediction, allowed)
        for recording, frame in p.mean_frames.items():
            _require(frame.shape == size, f"mean frame of {recording}", frame, str(size))
    else:
        _require(p.prediction.ndim == 1, "prediction", p.prediction, f"({count},)")
    if p.probabilities is not None:
        fits = p.probabilities.shape == (count, classes)
        _require(fits, "probabilities", p.probabilities, f"({count}, {classes})")
    for recording, parts in p.split_intervals.items():
        for part, spans in parts.items():
            name = f"split_intervals of {recording}"
            if part not in PARTS:
                raise PredictionsError(f"{name} for part '{part}'", allowed=", ".join(PARTS), fix="rename it")
            _require(spans.ndim == 2 and spans.shape[1] == 2, f"{name}, {part},", spans, "(K, 2)")


def _require(fits: bool, name: str, values: Array | StoredFrames, allowed: str) -> None:
    if not fits:
        given = f"{name} of shape {values.shape} and type {values.dtype}"
        raise PredictionsError(given, allowed=allowed, fix="write it in that shape and type")


def _check_values(p: Predictions) -> None:
    _reject(p, "time", ~np.isfinite(p.time), "finite seconds")
    for name in ("frame_number", "repeat"):
        values = getattr(p, name)
        _reject(p, name, _not_integer(values) | (values < -1), "an integer of -1 or more")
    if p.task == "frames":
        limits = {"target": len(p.target_frames)}
    else:
        limits = dict.fromkeys(("prediction", "target"), len(p.class_values))
        if not np.isfinite(p.class_values).all():
            raise PredictionsError("NaN among class_values", fix="write a number for every class")
    for name, limit in limits.items():
        values = getattr(p, name)
        wrong = _not_integer(values) | (values < 0) | (values >= limit)
        _reject(p, name, wrong, f"an integer of 0 to {limit - 1}")
    if p.probabilities is not None:
        inside = ((p.probabilities >= 0) & (p.probabilities <= 1 + 1e-6)).all(axis=1)
        _reject(p, "probabilities", np.logical_not(inside), "0 to 1")
    for recording, frame in p.mean_frames.items():
        if not _is_grey(frame).all():
            raise PredictionsError(
                f"mean frame of {recording} is NaN or out of range", allowed="0 to 255", fix="clip it"
            )
    if p.task == "frames" and p.prediction.dtype != np.uint8:
        _check_frame_values(p)


def _check_frame_values(p: Predictions) -> None:
    """Float frames may hold anything."""
    largest = 0.0
    for start in range(0, len(p.prediction), BLOCK_ROWS):
        block = np.asarray(p.prediction[start : start + BLOCK_ROWS])
        block = block.reshape(len(block), -1)
        wrong = ~_is_grey(block)
        if wrong.any():
            row = int(np.argmax(wrong.any(axis=1)))
            value = block[row][np.argmax(wrong[row])]
            given = f"prediction holds {value:g} in row {start + row} ({_where(p, start + row)})"
            raise PredictionsError(given, allowed="0 to 255", fix="clip or mend the decoder's frames")
        largest = max(largest, float(block.max()))
    if largest <= 1 < p.target_frames.max():
        given = f"predicted frames reach from 0 to {largest:g}"
        raise PredictionsError(given, allowed="grey levels of 0 to 255", fix="multiply by 255")


def _is_grey(values: Array) -> Mask:
    return (values >= 0) & (values <= 255)


def _not_integer(values: Array) -> Mask:
    """Find where a number is NaN, infinite or has a fraction."""
    if values.dtype.kind in "iu":
        return np.zeros(values.shape, dtype=bool)
    finite = np.isfinite(values)
    return np.asarray(~finite | (np.where(finite, values, 0.0) % 1 != 0))


def _reject(p: Predictions, name: str, wrong: Mask, allowed: str) -> None:
    if wrong.any():
        row = int(np.argmax(wrong))
        given = f"{name} {getattr(p, name)[row]} in row {row} ({_where(p, row)})"
        raise PredictionsError(given, allowed=allowed, fix="correct the decoder that wrote it")


def _where(p: Predictions, row: int) -> str:
    return f"recording {p.recording_id[row]}, {p.time[row]:.6f} s"


def _check_unique(p: Predictions) -> None:
    # One moment may not be scored twice, nor one frame of one repeat at two moments.
    frames = p.targets().drop(columns="time")
    again = target_keys(p.recording_id, p.time).duplicated() | (
        frames.duplicated() & (p.repeat >= 0) & (p.frame_number >= 0)
    )
    if again.any():
        row = int(np.argmax(again))
        raise PredictionsError(f"row {row} repeats a target ({_where(p, row)})", fix="predict every target once")
    animals = pd.DataFrame({"recording": p.recording_id, "animal": p.subject_id}).drop_duplicates()
    shared = animals[animals["recording"].duplicated()]
    if not shared.empty:
        given = f"recording {shared['recording'].iloc[0]} has more than one subject_id"
        raise PredictionsError(given, fix="name one animal per recording")


def _check_intervals(p: Predictions) -> None:
    for recording, parts in p.split_intervals.items():
        for part, spans in parts.items():
            bad = ~(spans[:, 0] < spans[:, 1])
            if bad.any():
                given = f"interval {spans[np.argmax(bad)].tolist()} of part '{part}' of {recording}"
                raise PredictionsError(given, allowed="start below end, in seconds", fix="order its ends")
        check_disjoint(recording, parts)
        if "test" not in parts:
            continue
        rows = np.flatnonzero(p.recording_id == recording)
        if len(rows) == 0 and len(parts["test"]):
            given = f"no prediction of recording {recording}, which has test intervals of split '{p.split}'"
            raise PredictionsError(given, fix="predict the test part of every recording")
        outside = interval_index(p.time[rows], parts["test"]) < 0
        if outside.any():
            row = int(rows[np.argmax(outside)])
            given = f"row {row} ({_where(p, row)}) lies outside the test intervals of split '{p.split}'"
            raise PredictionsError(given, fix="predict the test part only")


def check_disjoint(recording: str, parts: Mapping[str, Array]) -> None:
    """Reject a leak: parts (``(K, 2)`` seconds) that share more than `TIME_RESOLUTION_S`."""
    for index, (first, one) in enumerate(parts.items()):
        for second, other in list(parts.items())[index + 1 :]:
            start = np.maximum(one[:, None, 0], other[None, :, 0])
            end = np.minimum(one[:, None, 1], other[None, :, 1])
            leak = np.argwhere(end - start > TIME_RESOLUTION_S)
            if len(leak):
                a, b = leak[0]
                given = f"parts '{first}' and '{second}' of {recording} share {start[a, b]:.6f} to {end[a, b]:.6f} s"
                raise PredictionsError(given, fix="train and test on disjoint intervals")


def interval_index(time: Array, intervals: Array) -> npt.NDArray[np.int64]:
    """``(N,)`` which interval holds each time, -1 for none."""
    after, before = intervals[:, 0] - TIME_RESOLUTION_S, intervals[:, 1] + TIME_RESOLUTION_S
    inside = (time[:, None] >= after) & (time[:, None] <= before)
    if not inside.size:
        return np.full(len(time), -1)
    return np.where(inside.any(axis=1), inside.argmax(axis=1), -1)


def _check_gaps(p: Predictions) -> None:
    """Within one test interval every frame of a repeat is predicted, or every k-th.

    Only a file that has its test intervals can be checked alone: between intervals frames are missing on purpose.
    """
    where = np.full(len(p), -1)
    for recording, parts in p.split_intervals.items():
        if "test" in parts:
            rows = np.flatnonzero(p.recording_id == recording)
            where[rows] = interval_index(p.time[rows], parts["test"])
    rows = np.flatnonzero((where >= 0) & (p.repeat >= 0) & (p.frame_number >= 0))
    group = ["recording_id", "stimulus", "repeat", "interval"]
    table = p.targets().iloc[rows].assign(interval=where[rows]).sort_values([*group, "time"], kind="stable")
    step = table.groupby(group, sort=False)["frame_number"].diff()
    if len(rows) < 3 or step.isna().all():
        return
    usual = step.dropna().mode().iloc[0]
    odd = step.notna() & (step != usual)
    if usual <= 0 or not odd.any():
        return
    last = table[odd].iloc[0]
    missing = int(last["frame_number"] - step[odd].iloc[0] + usual)
    raise PredictionsError(
        f"frame {missing} of {last['stimulus']}, repeat {last['repeat']}, of recording {last['recording_id']} is "
        f"missing before {last['time']:.6f} s ({int(odd.sum())} gaps)",
        fix="predict every target of the test intervals once",
    )


# Files of one task and split against each other.

KEYS = ["recording_id", "tick"]
"""What tells targets apart: recording, and time in microseconds."""


def target_keys(recording_id: Array | str, time: Array) -> pd.DataFrame:
    """Return the `KEYS` of targets: one recording for all, or one each."""
    ticks = np.rint(np.asarray(time, dtype=np.float64) / TIME_RESOLUTION_S).astype(np.int64)
    return pd.DataFrame({"tick": ticks}).assign(recording_id=np.asarray(recording_id).astype(str))[KEYS]


def _at(row: pd.Series) -> str:
    return f"recording {row['recording_id']} at {row['tick'] * TIME_RESOLUTION_S:.6f} s"


def check_same_targets(arms: Mapping[str, pd.DataFrame]) -> None:
    """Check that arms predict the same targets (their `KEYS`); the odd ones out are those that differ from most."""
    prints = {name: tuple(sorted(keys.itertuples(index=False, name=None))) for name, keys in arms.items()}
    counts = Counter(prints.values())
    # Among equally common sets the largest counts: predictions are rather missing than invented.
    usual = max(counts, key=lambda keys: (counts[keys], len(keys)))
    like = next(name for name, keys in prints.items() if keys == usual)
    for name, keys in arms.items():
        if prints[name] != usual:
            _name_difference(f"{name} against {like}: ", keys, arms[like])


def _name_difference(who: str, found: pd.DataFrame, wanted: pd.DataFrame) -> None:
    """Name the first recording, else the first moment, that is missing or too much."""
    recordings = [list(dict.fromkeys(keys["recording_id"])) for keys in (wanted, found)]
    texts = ("is missing", "is not among those to be scored")
    for (own, other), text in zip((recordings, recordings[::-1]), texts, strict=True):
        if alone := [name for name in own if name not in other]:
            given = f"{who}recording {alone[0]} {text} ({len(alone)} such)"
            raise PredictionsError(given, fix="predict the recordings of the split")
    both = wanted.merge(found, how="outer", indicator=True)
    for side, text in zip(("left_only", "right_only"), texts, strict=True):
        offenders = both[both["_merge"] == side]
        if not offenders.empty:
            given = f"{who}target of {_at(offenders.iloc[0])} {text} ({len(offenders)} such)"
            raise PredictionsError(given, fix="predict every target of the split exactly once")


MILLIDEGREES = 1000
MEAN_FRAME_TOLERANCE = 0.5
"""Grey levels by which mean frames may differ: rounding, and nothing else."""


@dataclass(frozen=True)
class Truth:
    """What a predictions file says was to be decoded."""

    # One row per target: `KEYS`, subject_id, stimulus, repeat, frame_number, and ``direction`` (millidegrees) or
    # ``pixels`` (a number that tells pictures apart); a frame number is its own truth.
    targets: pd.DataFrame
    facts: Mapping[str, str]  # what must be the same for all arms of a task and split, by how it is called
    mean_frames: Mapping[str, Array]  # recording id -> (H, W)

    @classmethod
    def of(cls, p: Predictions) -> Truth:
        """Take the truth out of validated predictions."""
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
    """Check that files (name, truth) of one task and split agree on the truth wherever they share targets."""
    for fact in truths[0][1].facts:
        usual, _ = Counter(truth.facts[fact] for _, truth in truths).most_common(1)[0]
        like = next(file for file, truth in truths if truth.facts[fact] == usual)
        for file, truth in truths:
            if truth.facts[fact] != usual:
                given = f"{file} has {fact} {truth.facts[fact]}, {like} has {usual}"
                raise PredictionsError(given, fix="write all files of a task and split alike")
    references: list[tuple[str, Truth]] = []
    for file, truth in truths:
        for like, reference in references:
            own, other = _shared_rows(truth.targets, reference.targets)
            _compare_targets(file, own, like, other)
            _compare_mean_frames(file, truth, like, reference, np.unique(own["recording_id"].to_numpy()))
        # One reference per fold is enough: who agrees with it needs no comparison with its like.
        if not any(_same_keys(truth.targets, reference.targets) for _, reference in references):
            references.append((file, truth))


def _same_keys(first: pd.DataFrame, second: pd.DataFrame) -> bool:
    return all(np.array_equal(first[key].to_numpy(), second[key].to_numpy()) for key in KEYS)


def _shared_rows(first: pd.DataFrame, second: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of both, in pairs, of the targets that both have."""
    if _same_keys(first, second):
        return first, second
    pairs = first[KEYS].assign(one=np.arange(len(first))).merge(second[KEYS].assign(other=np.arange(len(second))))
    return first.iloc[pairs["one"].to_numpy()], second.iloc[pairs["other"].to_numpy()]


def _compare_targets(file: str, own: pd.DataFrame, like: str, other: pd.DataFrame) -> None:
    for column in own.columns.difference(KEYS, sort=False):
        differ = np.flatnonzero(own[column].to_numpy() != other[column].to_numpy())
        if len(differ):
            values = [table[column].iloc[differ[0]] for table in (own, other)]
            if column == "direction":
                values = [f"{value / MILLIDEGREES:g}" for value in values]
            elif column == "pixels":
                values = [f"with checksum {value:012x}" for value in values]
            given = f"{file} has {column} {values[0]} of {_at(own.iloc[differ[0]])}, {like} has {values[1]}"
            raise PredictionsError(given, fix="write the truth of the data into every file")


def _compare_mean_frames(file: str, own: Truth, like: str, other: Truth, recordings: Array) -> None:
    for recording in recordings:
        if recording in own.mean_frames and recording in other.mean_frames:
            apart = np.abs(np.asarray(own.mean_frames[recording], float) - other.mean_frames[recording]).max()
            if apart > MEAN_FRAME_TOLERANCE:
                given = f"{file} has another mean frame of recording {recording} than {like}"
                raise PredictionsError(
                    f"{given}, by up to {apart:.1f} grey levels",
                    allowed=f"{MEAN_FRAME_TOLERANCE:g}",
                    fix="write the mean over the training part of the split into every file",
                )


# A file against the recordings and their splits.

GREY_LEVELS = 1
"""By how much true frames may differ from the movie's: rounding."""
DEGREES = 1e-3
"""By how much true directions may differ: far above what single precision does to them."""


class DataFolder:
    """The recordings and ``splits.json`` of one data folder, to check predictions files against."""

    def __init__(self, folder: Path | str) -> None:
        from poyo_ssl.data.recording import open_recordings
        from poyo_ssl.data.splits import load_split_settings, load_split_window, load_splits

        folder = Path(folder)
        self.recordings = {recording.recording_id: recording for recording in open_recordings(folder)}
        path = (folder if folder.is_dir() else folder.parent) / "splits.json"
        self.splits = load_splits(path)
        self.config = load_split_settings(path)
        self.window_s = load_split_window(path)

    def check(self, p: Predictions) -> None:
        """Check every target of a file against the recordings.

        Every row must be a presentation of the test part, at its middle, with the stimulus, repeat, frame, direction,
        picture and animal that the recording says; all targets whose window of the splits' length lies in clean data
        must be there; nothing of the test part may be among the file's training or validation intervals.
        """
        for recording_id in dict.fromkeys(p.recording_id.astype(str)):
            if recording_id not in self.recordings:
                given = f"recording {recording_id} is not in the data folder{suggest(recording_id, self.recordings)}"
                raise PredictionsError(given, fix="give the folder of the recordings that were decoded")
            recording = self.recordings[recording_id]
            rows = np.flatnonzero(p.recording_id == recording_id)
            animal, given = recording.metadata.subject_id, p.subject_id[rows[0]]
            if given != animal:
                text = f"recording {recording_id} has subject_id {given}"
                raise PredictionsError(text, allowed=animal, fix="write the animal of the recording")
            splits = self._splits_of(p, recording)
            for stimulus in dict.fromkeys(p.stimulus[rows].astype(str)):
                own = rows[p.stimulus[rows] == stimulus]
                _StimulusCheck(p, recording, stimulus, own, splits, self.window_s).run()

    def _splits_of(self, p: Predictions, recording: Recording) -> Mapping[str, Split]:
        """Return splits by stimulus; unseen frames have no number to be told by, so that task has no clips."""
        from poyo_ssl.data.splits import standard_splits

        stored = self.splits.get(recording.recording_id, {})
        if p.task != "frame_number":
            return stored
        made = standard_splits(recording, self.config.known_frames_only(), window_s=self.window_s)
        is_new = any(test.of_new_animal for split in stored.values() for test in split.tests)
        return {name: split.of_new_animal() if is_new else split for name, split in made.items()}


@dataclass(frozen=True)
class _StimulusCheck:
    """Rows of a file that are about one stimulus of one recording."""

    p: Predictions
    recording: Recording
    stimulus: str
    rows: Array  # (R,)
    splits: Mapping[str, Split]
    window_s: float

    @property
    def name(self) -> str:
        return f"{self.stimulus} of recording {self.recording.recording_id}"

    @property
    def part(self) -> str:
        return f"test_{self.p.split}"

    @cached_property
    def table(self) -> Presentations:
        return self.recording.stimulus(self.stimulus)

    def run(self) -> None:
        """Check split, leaks, times, values and completeness, in this order."""
        split = self.splits.get(self.stimulus)
        if split is None:
            given = f"{self.name} is not among the splits"
            raise PredictionsError(given, fix="write them again with 'poyo-ssl split'")
        if self.part not in split.parts:
            raise PredictionsError(
                f"no split '{self.p.split}' of {self.name}",
                allowed=", ".join(test.removeprefix("test_") for test in split.tests),
                fix="write splits.json with the settings of the decoder's split ('poyo-ssl split')",
            )
        recording_id, tested = self.recording.recording_id, {f"{self.part} of splits.json": split.parts[self.part]}
        for own, spans in self.p.split_intervals.get(recording_id, {}).items():
            if own != "test":
                check_disjoint(recording_id, {f"{own} of the file": spans} | tested)
        shown = self._presentations(split)
        self._check_truth(shown)
        self._check_complete()

    def _presentations(self, split: Split) -> Array:
        """``(R,)`` presentation in whose middle each target lies."""
        from poyo_ssl.data.intervals import contains
        from poyo_ssl.data.splits import GRATINGS, usable_trials

        p, rows, middles = self.p, self.rows, self.table.midpoint
        order = np.argsort(middles, kind="stable")
        after = np.clip(np.searchsorted(middles[order], p.time[rows]), 1, max(len(order) - 1, 1))
        near = order[np.stack([after - 1, np.minimum(after, len(order) - 1)])]
        apart = np.abs(middles[near] - p.time[rows])
        found = np.take_along_axis(near, apart.argmin(axis=0)[None], axis=0)[0]
        wanted = contains(middles[found], split.parts[self.part])
        if self.stimulus == GRATINGS:
            wanted &= usable_trials(self.table)[found]
        for bad, text in (
            (apart.min(axis=0) > TIME_RESOLUTION_S, f"the middle of no presentation of {self.name}"),
            (~wanted, f"not in the test part of split '{p.split}' of {self.name}"),
        ):
            if bad.any():
                row = rows[np.argmax(bad)]
                raise PredictionsError(
                    f"row {row} at {p.time[row]:.6f} s is {text} ({int(bad.sum())} such)",
                    fix="predict the presentations of the test part, each at the middle between its start and end",
                )
        return found

    def _check_truth(self, shown: Array) -> None:
        p, rows = self.p, self.rows
        target = p.target[rows].astype(np.int64)
        columns = {name: values[shown] for name, values in self.table.columns.items()}
        if p.task == "gratings":
            pairs = [("direction", p.class_values[target], columns["orientation"].astype(float))]
        else:
            pairs = [("frame_number", p.frame_number[rows], columns["frame"])]
            pairs.append(("repeat", p.repeat[rows], columns["repeat"]))
        if p.task == "frame_number":
            pairs.append(("target", p.class_values[target], columns["frame"]))
        for column, own, true in pairs:
            bad = np.abs(own - true) > (DEGREES if column == "direction" else 0)
            if bad.any():
                first = int(np.argmax(bad))
                raise PredictionsError(
                    f"row {rows[first]} at {p.time[rows[first]]:.6f} s has {column} {own[first]:g}, {self.name} has "
                    f"{true[first]:g} there ({int(bad.sum())} such)",
                    fix="write the truth of the recording",
                )
        if p.task == "frames":
            self._check_pictures(target, columns["frame"])

    def _check_pictures(self, target: Array, numbers: Array) -> None:
        from poyo_ssl.data.splits import load_resized_movie

        assert self.recording.data_folder is not None
        height, width = self.p.target_frames.shape[1:]
        movie = load_resized_movie(self.recording.data_folder, self.stimulus, height=height, width=width)
        for index, number in np.unique(np.stack([target, numbers]), axis=1).T:
            apart = np.abs(self.p.target_frames[index].astype(int) - movie[number]).max()
            if apart > GREY_LEVELS:
                raise PredictionsError(
                    f"target_frames {index} is not frame {number} of {self.name}: up to {apart} grey levels apart",
                    allowed=f"{GREY_LEVELS}",
                    fix="resize the movie with poyo_ssl.data.splits.load_resized_movie",
                )

    def _check_complete(self) -> None:
        wanted = self._windows()
        expected, found = (
            pd.MultiIndex.from_frame(target_keys(self.recording.recording_id, time))
            for time in (wanted.target_time, self.p.time[self.rows])
        )
        missing = ~expected.isin(found)
        if missing.any():
            first = int(np.argmax(missing))
            what = f"{wanted.target_time[first]:.6f} s, of {self.name}"
            if self.p.task != "gratings":
                what = f"frame {wanted.frame_number[first]}, repeat {wanted.repeat[first]}, {what}"
            raise PredictionsError(
                f"{what} is missing ({int(missing.sum())} of {len(wanted)} targets of split '{self.p.split}' are)",
                fix="predict every target of the test part; a decoder of longer windows needs splits of its --window_s",
            )

    def _windows(self) -> WindowTable:
        """Make the windows of the test part that no decoder of the splits' `window_s` may leave out.

        That is window plus lag: what a decoder reads for a movie frame lies within so many seconds before and after
        it. A target whose input could reach into any other part, of whichever stimulus, need not be there.
        """
        from poyo_ssl.data.splits import join
        from poyo_ssl.data.windows import movie_windows, trial_windows, window_frames

        p, recording, split = self.p, self.recording, join(list(self.splits.values()))
        # A lag that is no whole number of imaging frames takes one more.
        num_frames = window_frames([recording], self.window_s) + 1
        if p.task == "gratings":
            shown = self.table.columns["orientation"][:, None]
            known = np.isclose(shown, p.class_values, rtol=0, atol=DEGREES).any(axis=1)
            targets = np.where(known, 0, -1)
            return trial_windows(
                recording, 0, split, self.part, num_frames=num_frames, lag_s=0.0, dilation_s=0.0, targets=targets
            )
        known = np.isin(self.table.columns["frame"], p.class_values) | (p.task == "frames")
        targets = np.where(known, 0, -1)
        before, after = (
            movie_windows(
                recording, 0, self.table, split, self.part, num_frames=num_frames, lag_s=lag_s, targets=targets
            )
            for lag_s in (0.0, self.window_s)
        )
        return before.select(np.isin(before.target_time, after.target_time))
