"""Do predictions files agree on what was to be decoded? An arm that brings a truth of its own may not be compared.

A file holds its own targets, and nothing but the other files can tell whether they are the right ones: with other
directions, another movie, another mean frame or another frame rate a score is a number of another kind.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from poyo_ssl.evaluation.predictions import Predictions
from poyo_ssl.evaluation.predictions_checks import TIME_RESOLUTION_S, target_keys
from poyo_ssl.evaluation.predictions_layout import Array, PredictionsError

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
    poyo_ssl.evaluation.predictions_layout.PredictionsError: b.h5 has direction 0 of recording r at 4.000000 s, a.h5 \
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
