"""What makes a predictions file wrong, each told in one line that names the first offender."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from poyo_ssl.evaluation.predictions_layout import READ_ROWS, TEXT_ROWS, Array, PredictionsError, StoredFrames

if TYPE_CHECKING:
    from poyo_ssl.evaluation.predictions import Predictions

TIME_RESOLUTION_S = 1e-6
"""Times closer than this are the same."""
TASKS = ("gratings", "frame_number", "frames")
KINDS = ("model", "baseline", "control", "ceiling")
PARTS = ("train", "valid", "test")


def check(predictions: Predictions) -> None:
    """Check facts, shapes, values, uniqueness, intervals and gaps, in this order.

    Raises
    ------
    PredictionsError
        Naming the first offender.
    """
    _check_facts(predictions)
    _check_shapes(predictions)
    _check_values(predictions)
    if predictions.task == "frames":
        _check_frame_values(predictions)
    _check_unique(predictions)
    _check_intervals(predictions)
    _check_gaps(predictions)


def _check_facts(p: Predictions) -> None:
    for name, allowed in (("task", TASKS), ("kind", KINDS)):
        if getattr(p, name) not in allowed:
            raise PredictionsError(
                f"predictions of {name} '{getattr(p, name)}'", allowed=", ".join(allowed), fix="change it"
            )
    for name in ("arm", "split"):
        if not getattr(p, name).strip():
            raise PredictionsError(f"predictions with an empty {name}", fix="name it")
    if not (np.isfinite(p.movie_rate_hz) and p.movie_rate_hz > 0):
        raise PredictionsError(f"movie_rate_hz {p.movie_rate_hz}", allowed="above 0", fix="change it")
    if p.seed < -1:
        raise PredictionsError(f"seed {p.seed}", allowed="-1 (no seed) or more", fix="change it")
    if bool(p.validation_metric) == np.isnan(p.validation_score) or np.isinf(p.validation_score):
        raise PredictionsError(
            f"validation_score {p.validation_score} of metric '{p.validation_metric}'",
            allowed="a number and a name, or neither",
            fix="write both",
        )


def _check_shapes(p: Predictions) -> None:
    count = len(p.prediction)
    if count == 0:
        raise PredictionsError("predictions without rows", fix="check the split's intervals")
    for name in ("target", "time", "frame_number", "repeat", *TEXT_ROWS):
        if getattr(p, name).shape != (count,):
            raise _wrong_shape(name, getattr(p, name), f"({count},)")
    if p.task == "frames":
        size = p.target_frames.shape[1:]
        if p.target_frames.ndim != 3 or p.target_frames.dtype != np.uint8 or not len(p.target_frames):
            raise _wrong_shape("target_frames", p.target_frames, "(M, H, W) uint8")
        wrong_type = p.prediction.dtype != np.uint8 and p.prediction.dtype.kind != "f"
        if p.prediction.shape != (count, *size) or wrong_type:
            raise _wrong_shape("prediction", p.prediction, f"({count}, {size[0]}, {size[1]}) uint8 or float")
        for recording, frame in p.mean_frames.items():
            if frame.shape != size:
                raise _wrong_shape(f"mean frame of {recording}", frame, str(size))
    elif p.prediction.ndim != 1:
        raise _wrong_shape("prediction", p.prediction, f"({count},)")
    classes = len(p.class_values)
    if p.probabilities is not None and p.probabilities.shape != (count, classes):
        raise _wrong_shape("probabilities", p.probabilities, f"({count}, {classes})")
    for recording, parts in p.split_intervals.items():
        for part, intervals in parts.items():
            if part not in PARTS:
                raise PredictionsError(
                    f"split_intervals of {recording} for part '{part}'", allowed=", ".join(PARTS), fix="rename it"
                )
            if intervals.ndim != 2 or intervals.shape[1] != 2:
                raise _wrong_shape(f"split_intervals of {recording}, {part},", intervals, "(K, 2)")


def _wrong_shape(name: str, values: Array | StoredFrames, allowed: str) -> PredictionsError:
    return PredictionsError(f"{name} of shape {values.shape} and type {values.dtype}", allowed=allowed, fix="mend it")


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
        if not ((frame >= 0) & (frame <= 255)).all():
            raise PredictionsError(
                f"mean frame of {recording} is NaN or out of range", allowed="0 to 255", fix="write it again"
            )


def _check_frame_values(p: Predictions) -> None:
    """Frames of float type may hold anything; a file of frames is read in blocks."""
    if p.prediction.dtype == np.uint8:
        return
    largest = 0.0
    for start in range(0, len(p.prediction), READ_ROWS):
        block = p.prediction[start : start + READ_ROWS].reshape(min(READ_ROWS, len(p.prediction) - start), -1)
        wrong = ~((block >= 0) & (block <= 255))
        if wrong.any():
            row = int(np.argmax(wrong.any(axis=1)))
            value = block[row][np.argmax(wrong[row])]
            raise PredictionsError(
                f"prediction holds {value:g} in row {start + row} ({_where(p, start + row)})",
                allowed="0 to 255",
                fix="clip or mend the decoder's frames",
            )
        largest = max(largest, float(block.max()))
    if largest <= 1 < p.target_frames.max():
        raise PredictionsError(
            f"predicted frames reach from 0 to {largest:g}", allowed="grey levels of 0 to 255", fix="multiply by 255"
        )


def _reject(p: Predictions, name: str, wrong: npt.NDArray[np.bool_], allowed: str) -> None:
    if wrong.any():
        row = int(np.argmax(wrong))
        raise PredictionsError(
            f"{name} {getattr(p, name)[row]} in row {row} ({_where(p, row)})",
            allowed=allowed,
            fix="correct the decoder that wrote it",
        )


def _where(p: Predictions, row: int) -> str:
    return f"recording {p.recording_id[row]}, {p.time[row]:.6f} s"


def _not_integer(values: Array) -> npt.NDArray[np.bool_]:
    """Find where a number is NaN, infinite or has a fraction."""
    if values.dtype.kind in "iu":
        return np.zeros(values.shape, dtype=bool)
    finite = np.isfinite(values)
    return np.asarray(~finite | (np.where(finite, values, 0.0) % 1 != 0))


def target_keys(recording_id: Array, time: Array) -> pd.DataFrame:
    """Return ``recording_id`` and ``tick``, the time in microseconds, of every target."""
    ticks = np.rint(np.asarray(time, dtype=np.float64) / TIME_RESOLUTION_S).astype(np.int64)
    return pd.DataFrame({"recording_id": np.asarray(recording_id).astype(str), "tick": ticks})


def _check_unique(p: Predictions) -> None:
    keys = target_keys(p.recording_id, p.time)
    # One moment may not be scored twice, nor one frame of one repeat at two moments.
    frames = p.targets().drop(columns="time")
    again = keys.duplicated() | (frames.duplicated() & (p.repeat >= 0) & (p.frame_number >= 0))
    if again.any():
        row = int(np.argmax(again))
        raise PredictionsError(f"row {row} repeats a target ({_where(p, row)})", fix="predict every target once")
    animals = pd.DataFrame({"recording": p.recording_id, "animal": p.subject_id}).drop_duplicates()
    shared = animals["recording"].duplicated()
    if shared.any():
        raise PredictionsError(
            f"recording {animals[shared]['recording'].iloc[0]} has more than one subject_id",
            fix="name one animal per recording",
        )


def _check_intervals(p: Predictions) -> None:
    for recording, parts in p.split_intervals.items():
        for part, intervals in parts.items():
            bad = ~(intervals[:, 0] < intervals[:, 1])
            if bad.any():
                raise PredictionsError(
                    f"interval {intervals[np.argmax(bad)].tolist()} of part '{part}' of {recording}",
                    allowed="start below end, in seconds",
                    fix="mend it",
                )
        check_disjoint(recording, parts)
        if "test" not in parts:
            continue
        rows = np.flatnonzero(p.recording_id == recording)
        if len(rows) == 0 and len(parts["test"]):
            raise PredictionsError(
                f"no prediction of recording {recording}, which has test intervals of split '{p.split}'",
                fix="predict the test part of every recording",
            )
        outside = interval_index(p.time[rows], parts["test"]) < 0
        if outside.any():
            row = int(rows[np.argmax(outside)])
            raise PredictionsError(
                f"row {row} ({_where(p, row)}) lies outside the test intervals of split '{p.split}'",
                fix="predict the test part only",
            )


def check_disjoint(recording: str, parts: Mapping[str, Array]) -> None:
    """Reject a leak: a moment that trains may not test.

    Parameters
    ----------
    recording : str
        Id of the recording.
    parts : mapping
        ``(K, 2)`` seconds by name of the part.

    Raises
    ------
    PredictionsError
        Naming the first two parts that share more than `TIME_RESOLUTION_S`, and where.
    """
    for index, (first, one) in enumerate(parts.items()):
        for second, other in list(parts.items())[index + 1 :]:
            shared_start = np.maximum(one[:, None, 0], other[None, :, 0])
            shared_end = np.minimum(one[:, None, 1], other[None, :, 1])
            leak = np.argwhere(shared_end - shared_start > TIME_RESOLUTION_S)
            if len(leak):
                a, b = leak[0]
                raise PredictionsError(
                    f"parts '{first}' and '{second}' of {recording} share {shared_start[a, b]:.6f} to "
                    f"{shared_end[a, b]:.6f} s",
                    fix="train and test on disjoint intervals",
                )


def interval_index(time: Array, intervals: Array) -> npt.NDArray[np.int64]:
    """``(N,)`` which interval holds each time, -1 for none.

    Examples
    --------
    >>> interval_index(np.array([0.5, 1.5, 2.5]), np.array([[2.0, 3.0], [0.0, 1.0]]))
    array([ 1, -1,  0])
    """
    inside = (time[:, None] >= intervals[:, 0] - TIME_RESOLUTION_S) & (
        time[:, None] <= intervals[:, 1] + TIME_RESOLUTION_S
    )
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
    if len(rows) < 3:
        return
    table = p.targets().iloc[rows].assign(interval=where[rows], row=rows)
    group = ["recording_id", "stimulus", "repeat", "interval"]
    table = table.sort_values([*group, "time"], kind="stable")
    step = table.groupby(group, sort=False)["frame_number"].diff()
    known = step.dropna()
    if known.empty:
        return
    usual = known.mode().iloc[0]
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


def check_expected(found: pd.DataFrame, wanted: pd.DataFrame) -> None:
    """Check that exactly the expected targets are predicted.

    Parameters
    ----------
    found, wanted : DataFrame
        See `target_keys`.

    Raises
    ------
    PredictionsError
        Naming the first recording, else the first moment, that is missing or too much.
    """
    recordings = [list(dict.fromkeys(keys["recording_id"])) for keys in (wanted, found)]
    texts = ("is missing", "is not among those to be scored")
    for (own, other), text in zip((recordings, recordings[::-1]), texts, strict=True):
        alone = [name for name in own if name not in other]
        if alone:
            raise PredictionsError(
                f"recording {alone[0]} {text} ({len(alone)} such)",
                fix="predict the recordings of the split",
            )
    both = wanted.merge(found, how="outer", indicator=True)
    for side, text in zip(("left_only", "right_only"), texts, strict=True):
        offenders = both[both["_merge"] == side]
        if not offenders.empty:
            first = offenders.iloc[0]
            raise PredictionsError(
                f"target of recording {first['recording_id']} at {first['tick'] * TIME_RESOLUTION_S:.6f} s {text}"
                f" ({len(offenders)} such)",
                fix="predict every target of the split exactly once",
            )


def check_same_targets(arms: Mapping[str, pd.DataFrame]) -> None:
    """Check that arms predict the same targets; the odd ones out are those that differ from most.

    Parameters
    ----------
    arms : mapping
        Targets by arm, see `target_keys`.

    Raises
    ------
    PredictionsError
        Naming the first such arm and its first offence.
    """
    prints = {name: tuple(sorted(keys.itertuples(index=False, name=None))) for name, keys in arms.items()}
    counts = Counter(prints.values())
    # Among equally common sets the largest counts: predictions are rather missing than invented.
    usual = max(counts, key=lambda keys: (counts[keys], len(keys)))
    like = next(name for name, keys in prints.items() if keys == usual)
    for name, keys in arms.items():
        if prints[name] != usual:
            try:
                check_expected(keys, arms[like])
            except PredictionsError as error:
                raise PredictionsError(f"{name} against {like}: {error.problem}", fix=error.fix) from None
