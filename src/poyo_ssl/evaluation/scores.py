"""The score table: every metric of a predictions file, one row per recording, stimulus, repeat, block and metric."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from poyo_ssl.errors import ConfigError
from poyo_ssl.evaluation import metrics
from poyo_ssl.evaluation.metrics import Array, FloatArray, IntArray, headline_metric
from poyo_ssl.evaluation.predictions import Predictions

IDENTIFICATION_WAYS = (2, 10, 50)
TABLE_COLUMNS = ("recording_id", "subject_id", "stimulus", "repeat", "block", "seed", "metric", "value", "num_targets")
BLOCK_S = 10.0
"""Length of a block: calcium and movies are correlated over a second or two, so blocks hardly are."""
WHOLE_REPEAT = -1
"""The block of a metric that only a whole repeat has, such as a median."""
FRAMES_PER_PASS = 900
"""Frames scored at a time, which bounds memory at about half a GB for frames of 64 x 128."""

TOLERANCE_S = 1.0
"""Error of a frame number that still counts as right."""

PerTarget = dict[str, FloatArray]
"""Values of each target by metric."""


@dataclass(frozen=True)
class Group:
    """Rows of one recording, stimulus and repeat, in order of time."""

    recording_id: str
    subject_id: str
    stimulus: str
    repeat: int
    rows: IntArray


def score_table(predictions: Predictions, *, block_s: float = BLOCK_S) -> pd.DataFrame:
    """Score predictions: columns `TABLE_COLUMNS`, one row per recording, stimulus, repeat, block and metric.

    The targets of a repeat (-1 for gratings) are averaged in blocks of `block_s`: frames are autocorrelated, so the
    bootstrap draws blocks. A metric that is no mean over targets has the block `WHOLE_REPEAT`. Names of frame metrics
    end in their resolution, such as ``ssim_64x128``. Without mean frames, what subtracts them is left out:
    identification, rank and implied frame too. N-way identification is absent where there are fewer than n candidates.

    Examples
    --------
    >>> from poyo_ssl.evaluation.predictions import Predictions
    >>> four = np.arange(4)
    >>> p = Predictions(task="frame_number", split="repeat", arm="knn", prediction=np.array([0, 1, 2, 99]),
    ...     target=four, time=four * 1.0, recording_id=np.full(4, "r"), subject_id=np.full(4, "m"),
    ...     stimulus=np.full(4, "natural_movie_one"), frame_number=four, repeat=np.full(4, 9),
    ...     class_values=np.arange(100.0))
    >>> score_table(p)[["repeat", "block", "metric", "value", "num_targets"]]
       repeat  block            metric  value  num_targets
    0       9      0         within_1s   0.75            4
    1       9      0  absolute_error_s   0.80            4
    2       9      0          accuracy   0.75            4
    """
    predictions.validate()
    if not block_s > 0:
        raise ConfigError(f"blocks of {block_s} s", allowed="above 0", fix="pass 10")
    rows = []
    centres = _centres(predictions) if predictions.task == "frames" else {}
    for group in _groups(predictions):
        if predictions.task == "frames":
            per_target, whole = _frame_scores(predictions, group, centres)
        else:
            per_target, whole = _class_scores(predictions, group.rows), {}
        place = (group.recording_id, group.subject_id, group.stimulus, group.repeat)
        time = predictions.time[group.rows]
        # Trials have no repeat to count from; from the recording's start, blocks are the same in every fold.
        start = time[0] if group.repeat >= 0 else 0.0
        # A rounding error of the first frame's time must not push the last frame of a block into the next.
        block = np.floor((time - start) / block_s + 1e-6).astype(np.int64)
        for index in np.unique(block):
            own = block == index
            for name, values in per_target.items():
                rows.append((*place, int(index), predictions.seed, name, float(values[own].mean()), int(own.sum())))
        for name, value in whole.items():
            rows.append((*place, WHOLE_REPEAT, predictions.seed, name, value, len(group.rows)))
    return pd.DataFrame(rows, columns=list(TABLE_COLUMNS))


def headline_score(predictions: Predictions) -> tuple[str, float]:
    """Measure only the metric that ranks the arms of a task and split: its name, and its mean over animals.

    Baselines are chosen by it on their validation part.
    """
    if predictions.task == "frames":
        predictions.validate()
        centres = {} if predictions.split == "repeat" else _centres(predictions)
        rows = [_headline_row(predictions, group, centres) for group in _groups(predictions)]
        table = pd.DataFrame(rows, columns=["recording_id", "subject_id", "metric", "value", "num_targets"])
    else:
        table = score_table(predictions)
    metric = headline_metric(predictions.task, predictions.split, set(table["metric"]))
    table = table[table["metric"] == metric]
    sums = table.assign(value=table["value"] * table["num_targets"])
    sums = sums.groupby(["subject_id", "recording_id"])[["value", "num_targets"]].sum()
    return metric, float((sums["value"] / sums["num_targets"]).groupby("subject_id").mean().mean())


def _headline_row(predictions: Predictions, group: Group, centres: Centres) -> tuple[str, str, str, float, int]:
    name = headline_metric("frames", predictions.split, ["spatial_correlation_centred", "ssim"])
    total = 0.0
    for rows in _passes(group.rows):
        images = np.asarray(predictions.prediction[rows]), predictions.target_frames[predictions.target[rows]]
        if name == "ssim":
            total += float(metrics.ssim(*images).sum())
        else:
            total += float(_centred_correlation(*images, centres[group.recording_id, group.stimulus]).sum())
    metric = name + _resolution(predictions)
    return group.recording_id, group.subject_id, metric, total / len(group.rows), len(group.rows)


def _resolution(predictions: Predictions) -> str:
    return "_{}x{}".format(*predictions.target_frames.shape[1:])


def _passes(rows: IntArray) -> Iterator[IntArray]:
    for start in range(0, len(rows), FRAMES_PER_PASS):
        yield rows[start : start + FRAMES_PER_PASS]


Centres = Mapping[tuple[str, str], tuple[FloatArray, FloatArray]]
"""By recording and movie: means ``(H, W)`` of its predictions and of their targets, over all rows of a file."""


def _centres(predictions: Predictions) -> Centres:
    found: dict[tuple[str, str], tuple[FloatArray, FloatArray]] = {}
    places = dict.fromkeys(zip(predictions.recording_id.tolist(), predictions.stimulus.tolist(), strict=True))
    for recording, movie in places:
        rows = np.flatnonzero((predictions.recording_id == recording) & (predictions.stimulus == movie))
        # Whole grey levels add up exactly, so that a decoder that always says the same is left with exactly nothing.
        total = np.zeros(predictions.target_frames.shape[1:])
        for own in _passes(rows):
            total += np.asarray(predictions.prediction[own]).sum(axis=0, dtype=np.float64)
        shown, counts = np.unique(predictions.target[rows], return_counts=True)
        target = np.tensordot(counts.astype(np.float64), np.asarray(predictions.target_frames[shown], np.float64), 1)
        found[recording, movie] = (total / len(rows), target / len(rows))
    return found


def _centred_correlation(predicted: Array, target: Array, centre: tuple[FloatArray, FloatArray]) -> FloatArray:
    return metrics.spatial_correlation(predicted - centre[0], target - centre[1])


def merge_folds(table: pd.DataFrame) -> pd.DataFrame:
    """Put together the rows of blocks that several folds share: each fold has some of a block's targets."""
    keys = [name for name in TABLE_COLUMNS if name not in ("value", "num_targets")]
    shared = table.duplicated(keys, keep=False)
    if not shared.any():
        return table
    cut = table[shared & (table["block"] == WHOLE_REPEAT)]
    if not cut.empty:
        first = cut.iloc[0]
        raise ConfigError(
            f"{first['metric']} of recording {first['recording_id']}, repeat {first['repeat']}, comes from several "
            "folds and is no mean over targets",
            fix="keep each repeat in one fold",
        )
    weighted = table.assign(value=table["value"] * table["num_targets"])
    merged = weighted.groupby(keys, sort=False)[["value", "num_targets"]].sum().reset_index()
    return merged.assign(value=merged["value"] / merged["num_targets"])[list(TABLE_COLUMNS)]


def _class_scores(predictions: Predictions, rows: IntArray) -> PerTarget:
    predicted, true = (np.asarray(a[rows], dtype=np.int64) for a in (predictions.prediction, predictions.target))
    if predictions.task == "gratings":
        return metrics.gratings_scores(predictions.class_values[predicted], predictions.class_values[true])
    return metrics.frame_number_scores(predicted, true, rate_hz=predictions.movie_rate_hz, tolerance_s=TOLERANCE_S)


def _groups(predictions: Predictions) -> Iterator[Group]:
    names = ("recording_id", "subject_id", "stimulus", "repeat")
    columns = pd.DataFrame({name: getattr(predictions, name) for name in names})
    group = columns.groupby(list(names), sort=True).ngroup().to_numpy()
    for index in range(int(group.max()) + 1):
        rows = np.flatnonzero(group == index)
        recording, subject, stimulus, repeat = columns.iloc[rows[0]]
        ordered = rows[np.argsort(predictions.time[rows], kind="stable")]
        yield Group(str(recording), str(subject), str(stimulus), int(repeat), ordered)


def _frame_scores(predictions: Predictions, group: Group, centres: Centres) -> tuple[PerTarget, dict[str, float]]:
    """All frame metrics of a group: per target, and of the whole."""
    predicted = np.asarray(predictions.prediction[group.rows])
    target = predictions.target_frames[predictions.target[group.rows]]
    centre = centres[group.recording_id, group.stimulus]
    mean_frame = predictions.mean_frames.get(group.recording_id)
    if predictions.mean_frames and mean_frame is None:
        raise ConfigError(f"no mean training frame for recording {group.recording_id}", fix="give one for each or none")
    if mean_frame is not None:
        numbers, candidates = _candidates(predictions, group)
        candidates = metrics.subtract_mean_frame(candidates, mean_frame)
    passes = []
    for place in _passes(np.arange(len(group.rows))):
        images = predicted[place], target[place]
        found = _image_scores(*images) | {"spatial_correlation_centred": _centred_correlation(*images, centre)}
        if mean_frame is not None:
            left = [metrics.subtract_mean_frame(own, mean_frame) for own in images]
            true = np.searchsorted(numbers, predictions.frame_number[group.rows[place]])
            found |= _subtracted_scores(*left)
            found |= _resemblance(left[0], candidates, numbers, true, predictions.movie_rate_hz)
        passes.append(found)
    per_target = {name: np.concatenate([found[name] for found in passes]) for name in passes[0]}
    whole = {"temporal_correlation": float(metrics.temporal_correlation(predicted, target).mean())}
    if "rank" in per_target:
        whole["median_rank"] = float(np.median(per_target.pop("rank")))
    end = _resolution(predictions)
    return (
        {f"{name}{end}": values for name, values in per_target.items()},
        {f"{name}{end}": value for name, value in whole.items()},
    )


def _candidates(predictions: Predictions, group: Group) -> tuple[IntArray, Array]:
    """``(M,)`` numbers and ``(M, H, W)`` frames of the movie that are targets in any repeat: on `clip`, the clips'."""
    same = (predictions.recording_id == group.recording_id) & (predictions.stimulus == group.stimulus)
    numbers, first = np.unique(predictions.frame_number[same], return_index=True)
    return numbers, predictions.target_frames[predictions.target[same][first]]


def _image_scores(predicted: Array, target: Array) -> PerTarget:
    if min(predicted.shape[1:]) >= metrics.MULTISCALE_LEAST_PX:
        similarity = dict(zip(("ssim", "ms_ssim"), metrics.ssim_and_multiscale(predicted, target), strict=True))
    else:
        similarity = {"ssim": metrics.ssim(predicted, target)}
    return similarity | {
        "psnr_db": metrics.psnr(predicted, target),
        "spatial_correlation": metrics.spatial_correlation(predicted, target),
        "constant_share": metrics.constant_frames(predicted).astype(np.float64),
    }


def _subtracted_scores(predicted: FloatArray, target: FloatArray) -> PerTarget:
    return {
        "ssim_mean_subtracted": metrics.ssim(predicted, target),
        "spatial_correlation_mean_subtracted": metrics.spatial_correlation(predicted, target),
        "constant_share_mean_subtracted": metrics.constant_frames(predicted).astype(np.float64),
    }


def _resemblance(
    predicted: FloatArray, candidates: FloatArray, numbers: IntArray, true: IntArray, rate_hz: float
) -> PerTarget:
    """Which candidate frame a reconstruction resembles most; `true` is the row of the right one."""
    similarity = metrics.candidate_similarity(predicted, candidates)
    ways = {f"{n}way": n for n in IDENTIFICATION_WAYS} | {"all": len(numbers)}
    found = {
        f"identification_{name}": metrics.identification(similarity, true, n)
        for name, n in ways.items()
        if 2 <= n <= len(numbers)
    }
    error, within = metrics.implied_frame_error(
        similarity, numbers, numbers[true], rate_hz=rate_hz, tolerance_s=TOLERANCE_S
    )
    found |= {"implied_absolute_error_s": error, f"implied_within_{TOLERANCE_S:g}s": within}
    return found | {"rank": metrics.rank_of_truth(similarity, true)}
