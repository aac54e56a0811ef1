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

PerTarget = dict[str, FloatArray]
"""Values of each target by metric."""


def score_table(
    predictions: Predictions,
    *,
    mean_frames: Mapping[str, Array] | None = None,
    tolerance_s: float = 1.0,
    block_s: float = BLOCK_S,
) -> pd.DataFrame:
    """Score a predictions file.

    Parameters
    ----------
    predictions : Predictions
        Validated on load.
    mean_frames : mapping, optional
        Recording id -> ``(H, W)`` mean training frame; by default those stored in the predictions. Without any, the
        metrics on mean-frame-subtracted images are left out: identification, rank and implied frame too.
    tolerance_s : float
        Error of a frame number that still counts as right.
    block_s : float
        Targets of a repeat are averaged in blocks of this many seconds: frames are autocorrelated, so not frames but
        blocks are what the bootstrap draws.

    Returns
    -------
    DataFrame
        Columns `TABLE_COLUMNS`, one row per recording, stimulus, repeat (-1 for gratings), block and metric; the block
        is `WHOLE_REPEAT` for a metric that is no mean over targets. Names of frame metrics end in the
        resolution they were measured at, such as ``ssim_64x128``. Where fewer than n candidates exist, the row of n-way
        identification is absent.

    Raises
    ------
    PredictionsError
        If the predictions are not valid.
    ConfigError
        If some recordings have a mean frame and others not, or one has the wrong size; or the block is not above 0.

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
    if mean_frames is None:
        mean_frames = predictions.mean_frames
    rows = []
    centres = _centres(predictions) if predictions.task == "frames" else {}
    for (recording, subject, stimulus, repeat), part in _groups(predictions):
        if predictions.task == "frames":
            per_target, whole = _frame_scores(predictions, part, mean_frames, centres, tolerance_s=tolerance_s)
        else:
            per_target, whole = _class_scores(predictions, part, tolerance_s=tolerance_s), {}
        place = (recording, subject, stimulus, repeat)
        time = predictions.time[part]
        # Trials have no repeat to count from; from the recording's start, blocks are the same in every fold.
        start = time[0] if repeat >= 0 else 0.0
        # A rounding error of the first frame's time must not push the last frame of a block into the next.
        block = np.floor((time - start) / block_s + 1e-6).astype(np.int64)
        for index in np.unique(block):
            own = block == index
            for name, values in per_target.items():
                rows.append((*place, int(index), predictions.seed, name, float(values[own].mean()), int(own.sum())))
        for name, value in whole.items():
            rows.append((*place, WHOLE_REPEAT, predictions.seed, name, value, len(part)))
    return pd.DataFrame(rows, columns=list(TABLE_COLUMNS))


def headline_score(predictions: Predictions) -> tuple[str, float]:
    """Measure the metric that ranks the arms of a task and split, and no other.

    Baselines are chosen by this score of their validation part.

    Parameters
    ----------
    predictions : Predictions
        Of any part; `split` names the split that it serves.

    Returns
    -------
    metric, score : str, float
        Name as in `score_table`, and the mean over animals as in `estimate_mean`.

    Raises
    ------
    PredictionsError, ConfigError
        See `score_table`.

    Examples
    --------
    >>> two = np.arange(2)
    >>> headline_score(Predictions(task="gratings", split="gratings", arm="majority", prediction=two * 0, target=two,
    ...     time=two * 3.0, recording_id=np.full(2, "r"), subject_id=np.full(2, "m"),
    ...     stimulus=np.full(2, "drifting_gratings"), frame_number=two - two - 1, repeat=two - two - 1,
    ...     class_values=np.array([0.0, 45.0])))
    ('accuracy', 0.5)
    """
    if predictions.task == "frames":
        predictions.validate()
        centres = {} if predictions.split == "repeat" else _centres(predictions)
        rows = [_headline_row(predictions, *group, centres) for group in _groups(predictions)]
        table = pd.DataFrame(rows, columns=["recording_id", "subject_id", "metric", "value", "num_targets"])
    else:
        table = score_table(predictions)
    metric = headline_metric(predictions.task, predictions.split, set(table["metric"]))
    table = table[table["metric"] == metric]
    sums = table.assign(value=table["value"] * table["num_targets"])
    sums = sums.groupby(["subject_id", "recording_id"])[["value", "num_targets"]].sum()
    return metric, float((sums["value"] / sums["num_targets"]).groupby("subject_id").mean().mean())


def _headline_row(
    predictions: Predictions, place: tuple[str, str, str, int], part: IntArray, centres: Centres
) -> tuple[str, str, str, float, int]:
    """Score the frames of one recording, stimulus and repeat."""
    size = predictions.target_frames.shape[1:]
    name = headline_metric("frames", predictions.split, ["spatial_correlation_centred", "ssim"])
    total = 0.0
    for start in range(0, len(part), FRAMES_PER_PASS):
        rows = part[start : start + FRAMES_PER_PASS]
        images = np.asarray(predictions.prediction[rows]), predictions.target_frames[predictions.target[rows]]
        if name == "ssim":
            total += float(metrics.ssim(*images).sum())
        else:
            total += float(_centred_correlation(*images, centres[place[0], place[2]]).sum())
    return place[0], place[1], "{}_{}x{}".format(name, *size), total / len(part), len(part)


@dataclass(frozen=True)
class Centre:
    """Means ``(H, W)`` of the predictions of one recording and movie, and of their targets, over all rows of a file."""

    prediction: FloatArray
    target: FloatArray


Centres = Mapping[tuple[str, str], Centre]
"""By recording and movie."""


def _centres(predictions: Predictions) -> Centres:
    """Average predictions and targets of every recording and movie, read in passes."""
    found: dict[tuple[str, str], Centre] = {}
    places = dict.fromkeys(zip(predictions.recording_id.tolist(), predictions.stimulus.tolist(), strict=True))
    for recording, movie in places:
        rows = np.flatnonzero((predictions.recording_id == recording) & (predictions.stimulus == movie))
        # Whole grey levels add up exactly, so that a decoder that always says the same is left with exactly nothing.
        total = np.zeros(predictions.target_frames.shape[1:])
        for start in range(0, len(rows), FRAMES_PER_PASS):
            own = np.asarray(predictions.prediction[rows[start : start + FRAMES_PER_PASS]])
            total += own.sum(axis=0, dtype=np.float64)
        shown, counts = np.unique(predictions.target[rows], return_counts=True)
        target = np.tensordot(counts.astype(np.float64), np.asarray(predictions.target_frames[shown], np.float64), 1)
        found[recording, movie] = Centre(total / len(rows), target / len(rows))
    return found


def _centred_correlation(predicted: Array, target: Array, centre: Centre) -> FloatArray:
    return metrics.spatial_correlation(predicted - centre.prediction, target - centre.target)


def merge_folds(table: pd.DataFrame) -> pd.DataFrame:
    """Put together the rows of blocks that several folds share: each fold has some of a block's targets.

    Parameters
    ----------
    table : DataFrame
        Score tables of all folds, one below the other.

    Raises
    ------
    ConfigError
        If folds cut a repeat of which a metric is no mean over targets, such as a median.

    Examples
    --------
    >>> row = dict.fromkeys(TABLE_COLUMNS, 0) | {"metric": "accuracy", "value": 1.0, "num_targets": 3}
    >>> merge_folds(pd.DataFrame([row, row | {"value": 0.0, "num_targets": 1}]))[["value", "num_targets"]]
       value  num_targets
    0   0.75            4
    """
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


def _class_scores(predictions: Predictions, part: IntArray, *, tolerance_s: float) -> PerTarget:
    predicted, true = (np.asarray(a[part], dtype=np.int64) for a in (predictions.prediction, predictions.target))
    if predictions.task == "gratings":
        return metrics.gratings_scores(predictions.class_values[predicted], predictions.class_values[true])
    rate_hz = predictions.movie_rate_hz
    return metrics.frame_number_scores(predicted, true, rate_hz=rate_hz, tolerance_s=tolerance_s)


def _groups(predictions: Predictions) -> Iterator[tuple[tuple[str, str, str, int], IntArray]]:
    """Rows of one recording, stimulus and repeat, in order of time."""
    names = ("recording_id", "subject_id", "stimulus", "repeat")
    columns = [getattr(predictions, name) for name in names]
    group = pd.DataFrame(dict(zip(names, columns, strict=True))).groupby(list(names), sort=True).ngroup().to_numpy()
    for index in range(int(group.max()) + 1):
        rows = np.flatnonzero(group == index)
        recording, subject, stimulus, repeat = (column[rows[0]] for column in columns)
        ordered = rows[np.argsort(predictions.time[rows], kind="stable")]
        yield (str(recording), str(subject), str(stimulus), int(repeat)), ordered


def _mean_frame(mean_frames: Mapping[str, Array], recording: str, size: tuple[int, ...]) -> Array | None:
    if not mean_frames:
        return None
    if recording not in mean_frames:
        raise ConfigError(f"no mean training frame for recording {recording}", fix="give one for every recording")
    if mean_frames[recording].shape != size:
        raise ConfigError(
            f"mean frame of {recording} of shape {mean_frames[recording].shape}", allowed=str(size), fix="resize it"
        )
    return mean_frames[recording]


def _frame_scores(
    predictions: Predictions,
    part: IntArray,
    mean_frames: Mapping[str, Array],
    centres: Centres,
    *,
    tolerance_s: float,
) -> tuple[PerTarget, dict[str, float]]:
    """All frame metrics of one recording, stimulus and repeat: per target, and of the whole."""
    predicted = np.asarray(predictions.prediction[part])
    target = predictions.target_frames[predictions.target[part]]
    recording, stimulus = predictions.recording_id[part[0]], predictions.stimulus[part[0]]
    mean_frame = _mean_frame(mean_frames, str(recording), predicted.shape[1:])
    candidates = None
    if mean_frame is not None:
        # Candidates are the distinct target frames of the movie over all repeats of the file: on `clip`, those of
        # the held-out clips.
        same_movie = (predictions.recording_id == recording) & (predictions.stimulus == stimulus)
        numbers, first = np.unique(predictions.frame_number[same_movie], return_index=True)
        frames = predictions.target_frames[predictions.target[same_movie][first]]
        candidates = (numbers, metrics.subtract_mean_frame(frames, mean_frame))
    passes = []
    for start in range(0, len(part), FRAMES_PER_PASS):
        rows = slice(start, start + FRAMES_PER_PASS)
        found = _image_scores(predicted[rows], target[rows])
        found["spatial_correlation_centred"] = _centred_correlation(
            predicted[rows], target[rows], centres[str(recording), str(stimulus)]
        )
        if mean_frame is not None and candidates is not None:
            images = [metrics.subtract_mean_frame(a[rows], mean_frame) for a in (predicted, target)]
            found |= _subtracted_scores(images[0], images[1])
            found |= _identification_scores(
                metrics.candidate_similarity(images[0], candidates[1]),
                candidates[0],
                predictions.frame_number[part[rows]],
                rate_hz=predictions.movie_rate_hz,
                tolerance_s=tolerance_s,
            )
        passes.append(found)
    per_target = {name: np.concatenate([found[name] for found in passes]) for name in passes[0]}
    whole = {"temporal_correlation": float(metrics.temporal_correlation(predicted, target).mean())}
    if "rank" in per_target:
        whole["median_rank"] = float(np.median(per_target.pop("rank")))
    resolution = "{}x{}".format(*predicted.shape[1:])
    return (
        {f"{name}_{resolution}": values for name, values in per_target.items()},
        {f"{name}_{resolution}": value for name, value in whole.items()},
    )


def _image_scores(predicted: Array, target: Array) -> PerTarget:
    if min(predicted.shape[1:]) >= metrics.MULTISCALE_LEAST_PX:
        similarity = dict(zip(("ssim", "ms_ssim"), metrics.ssim_and_multiscale(predicted, target), strict=True))
    else:
        similarity = {"ssim": metrics.ssim(predicted, target)}
    return {
        **similarity,
        "psnr_db": metrics.psnr(predicted, target),
        "spatial_correlation": metrics.spatial_correlation(predicted, target),
        "constant_share": metrics.constant_frames(predicted).astype(np.float64),
    }


def _subtracted_scores(predicted: FloatArray, target: FloatArray) -> PerTarget:
    """Image metrics on mean-frame-subtracted images."""
    return {
        "ssim_mean_subtracted": metrics.ssim(predicted, target),
        "spatial_correlation_mean_subtracted": metrics.spatial_correlation(predicted, target),
        "constant_share_mean_subtracted": metrics.constant_frames(predicted).astype(np.float64),
    }


def _identification_scores(
    similarity: FloatArray, numbers: IntArray, true_number: IntArray, *, rate_hz: float, tolerance_s: float
) -> PerTarget:
    """Which candidate a reconstruction resembles most."""
    true = np.searchsorted(numbers, true_number)
    ways = {f"{n}way": n for n in IDENTIFICATION_WAYS} | {"all": len(numbers)}
    found = {
        f"identification_{name}": metrics.identification(similarity, true, n)
        for name, n in ways.items()
        if 2 <= n <= len(numbers)
    }
    error, within = metrics.implied_frame_error(
        similarity, numbers, true_number, rate_hz=rate_hz, tolerance_s=tolerance_s
    )
    found |= {"implied_absolute_error_s": error, f"implied_within_{tolerance_s:g}s": within}
    return found | {"rank": metrics.rank_of_truth(similarity, true)}
