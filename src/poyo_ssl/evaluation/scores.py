"""The score table: every metric of a predictions file, one row per recording, stimulus, repeat and metric."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd

from poyo_ssl.errors import ConfigError
from poyo_ssl.evaluation import metrics
from poyo_ssl.evaluation.metrics import Array, FloatArray, IntArray
from poyo_ssl.evaluation.predictions import Predictions

IDENTIFICATION_WAYS = (2, 10, 50)
TABLE_COLUMNS = ("recording_id", "subject_id", "stimulus", "repeat", "metric", "value", "num_targets")

Row = tuple[str, float, int]
"""Metric, value and number of targets."""


def score_table(
    predictions: Predictions,
    *,
    mean_frames: Mapping[str, Array] | None = None,
    movie_rate_hz: float = 30.0,
    tolerance_s: float = 1.0,
) -> pd.DataFrame:
    """Score a predictions file.

    Parameters
    ----------
    predictions : Predictions
        Validated on load.
    mean_frames : mapping, optional
        Recording id -> ``(H, W)`` mean training frame; by default those stored in the predictions. Without any, the
        metrics on mean-frame-subtracted images are left out: identification, rank and implied frame too.
    movie_rate_hz : float
        Frames per second of the movies, for errors in seconds.
    tolerance_s : float
        Error of a frame number that still counts as right.

    Returns
    -------
    DataFrame
        Columns `TABLE_COLUMNS`, one row per recording, stimulus, repeat (-1 for gratings) and metric.
        Names of frame metrics end in the resolution they were measured at, such as ``ssim_64x128``. Where fewer
        than n candidates exist, the row of n-way identification is absent.

    Raises
    ------
    PredictionsError
        If the predictions are not valid.
    ConfigError
        If some recordings have a mean frame and others not, or one has the wrong size.

    Examples
    --------
    >>> from poyo_ssl.evaluation.predictions import Predictions
    >>> four = np.arange(4)
    >>> p = Predictions(task="frame_number", split="repeat", arm="knn", data_checksum="",
    ...     prediction=np.array([0, 1, 2, 99]), target=four, time=four * 1.0, recording_id=np.full(4, "r"),
    ...     subject_id=np.full(4, "m"), stimulus=np.full(4, "natural_movie_one"), frame_number=four,
    ...     repeat=np.full(4, 9), class_values=np.arange(100.0))
    >>> score_table(p)[["repeat", "metric", "value", "num_targets"]]
       repeat            metric  value  num_targets
    0       9         within_1s   0.75            4
    1       9  absolute_error_s   0.80            4
    2       9          accuracy   0.75            4
    """
    predictions.validate()
    if mean_frames is None:
        mean_frames = predictions.mean_frames
    rows = []
    for (recording, subject, stimulus, repeat), part in _groups(predictions):
        if predictions.task == "frames":
            mean_frame = _mean_frame(mean_frames, recording, predictions.target_frames.shape[1:])
            same_movie = (predictions.recording_id == recording) & (predictions.stimulus == stimulus)
            found = _frame_rows(
                predictions, part, same_movie, mean_frame=mean_frame, rate_hz=movie_rate_hz, tolerance_s=tolerance_s
            )
        else:
            predicted, true = (a[part].astype(np.int64) for a in (predictions.prediction, predictions.target))
            if predictions.task == "gratings":
                found = _means(
                    metrics.gratings_scores(predictions.class_values[predicted], predictions.class_values[true])
                )
            else:
                found = _means(
                    metrics.frame_number_scores(predicted, true, rate_hz=movie_rate_hz, tolerance_s=tolerance_s)
                )
        rows += [(recording, subject, stimulus, repeat, *row) for row in found]
    return pd.DataFrame(rows, columns=list(TABLE_COLUMNS))


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


def _means(per_target: Mapping[str, FloatArray]) -> list[Row]:
    return [(name, float(values.mean()), len(values)) for name, values in per_target.items()]


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


def _frame_rows(
    predictions: Predictions,
    part: IntArray,
    same_movie: npt.NDArray[np.bool_],
    *,
    mean_frame: Array | None,
    rate_hz: float,
    tolerance_s: float,
) -> list[Row]:
    """All frame metrics of one recording, stimulus and repeat; names end in the resolution."""
    predicted = predictions.prediction[part]
    target = predictions.target_frames[predictions.target[part]]
    rows = _means(
        {
            "ssim": metrics.ssim(predicted, target),
            "psnr_db": metrics.psnr(predicted, target),
            "spatial_correlation": metrics.spatial_correlation(predicted, target),
            "constant_share": metrics.constant_frames(predicted).astype(np.float64),
        }
    )
    rows.append(("temporal_correlation", float(metrics.temporal_correlation(predicted, target).mean()), len(part)))
    if mean_frame is not None:
        # Candidates are the distinct target frames of the movie over all repeats of the file: on `clip`, those of
        # the held-out clips.
        numbers, first = np.unique(predictions.frame_number[same_movie], return_index=True)
        candidates = predictions.target_frames[predictions.target[same_movie][first]]
        subtracted = [metrics.subtract_mean_frame(a, mean_frame) for a in (predicted, target, candidates)]
        similarity = metrics.candidate_similarity(subtracted[0], subtracted[2])
        true_number = predictions.frame_number[part]
        rows += _subtracted_rows(subtracted[0], subtracted[1])
        rows += _identification_rows(similarity, numbers, true_number, rate_hz=rate_hz, tolerance_s=tolerance_s)
    height, width = predicted.shape[1:]
    return [(f"{name}_{height}x{width}", value, count) for name, value, count in rows]


def _subtracted_rows(predicted: FloatArray, target: FloatArray) -> list[Row]:
    """Image metrics on mean-frame-subtracted images."""
    return _means(
        {
            "ssim_mean_subtracted": metrics.ssim(predicted, target),
            "spatial_correlation_mean_subtracted": metrics.spatial_correlation(predicted, target),
            "constant_share_mean_subtracted": metrics.constant_frames(predicted).astype(np.float64),
        }
    )


def _identification_rows(
    similarity: FloatArray, numbers: IntArray, true_number: IntArray, *, rate_hz: float, tolerance_s: float
) -> list[Row]:
    """Which candidate a reconstruction resembles most."""
    true = np.searchsorted(numbers, true_number)
    ways = {f"{n}way": n for n in IDENTIFICATION_WAYS} | {"all": len(numbers)}
    per_target = {
        f"identification_{name}": metrics.identification(similarity, true, n)
        for name, n in ways.items()
        if 2 <= n <= len(numbers)
    }
    error, within = metrics.implied_frame_error(
        similarity, numbers, true_number, rate_hz=rate_hz, tolerance_s=tolerance_s
    )
    per_target |= {"implied_absolute_error_s": error, f"implied_within_{tolerance_s:g}s": within}
    ranks = metrics.rank_of_truth(similarity, true)
    return [*_means(per_target), ("median_rank", float(np.median(ranks)), len(ranks))]
