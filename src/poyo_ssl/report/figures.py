"""Figures made from predictions files: confusion matrices, and true beside reconstructed frames."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from poyo_ssl.errors import PoyoError
from poyo_ssl.evaluation import metrics
from poyo_ssl.evaluation.checks import TIME_RESOLUTION_S
from poyo_ssl.evaluation.metrics import SSIM_RADIUS_PX, Array, FloatArray, IntArray
from poyo_ssl.evaluation.predictions import Predictions

PANELS_PER_ROW = 3
FRAME_COLUMNS = 8
DPI = 140


def to_png(figure: Figure) -> bytes:
    """Draw a figure as PNG."""
    FigureCanvasAgg(figure)
    stream = io.BytesIO()
    with warnings.catch_warnings():
        # Names come from users; a letter that the font lacks is drawn as a box, and the page has the name as text.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(stream, format="png", dpi=DPI, metadata={"Software": None})
    return stream.getvalue()


def figure_confusion(arms: Sequence[Predictions]) -> Figure:
    """Draw the confusion matrix of every arm: shown direction (rows) by decoded direction (columns)."""
    _check_task(arms, "gratings")
    columns = min(len(arms), PANELS_PER_ROW)
    rows = -(-len(arms) // columns)
    figure = Figure(figsize=(0.7 + 3.6 * columns, 4.0 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat[len(arms) :]:
        axes.set_axis_off()
    for axes, predictions in zip(panels.flat, arms, strict=False):
        image = _draw_confusion(axes, predictions)
    chance = 1 / len(arms[0].class_values)
    bar = figure.colorbar(image, ax=panels, shrink=0.8, pad=0.02, aspect=30)
    bar.set_label("share of the trials of the shown direction", fontsize=9)
    bar.set_ticks([0.0, chance, 0.5, 1.0], labels=["0", f"chance\n{chance:.3f}", "0.5", "1"])
    bar.ax.axhline(chance, color="black", linewidth=1.2)
    bar.ax.tick_params(labelsize=8)
    return figure


def _check_task(arms: Sequence[Predictions], task: str) -> None:
    wrong = [p.task for p in arms if p.task != task]
    if wrong or not arms:
        raise PoyoError(
            f"predictions of task '{wrong[0]}'" if wrong else "no predictions",
            allowed=f"one or more of task '{task}'",
            fix="give the predictions files of that task",
        )


def _draw_confusion(axes: Axes, predictions: Predictions) -> AxesImage:
    num_classes = len(predictions.class_values)
    counts = metrics.confusion_matrix(np.asarray(predictions.prediction), predictions.target, num_classes)
    trials = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, trials, out=np.full(counts.shape, np.nan), where=trials > 0)
    image = axes.imshow(share, vmin=0, vmax=1, cmap="Blues", aspect="equal")
    for row, column in np.argwhere(np.isfinite(share)):
        value = share[row, column]
        # Text of zeros would hide the pattern.
        if value >= 0.005:
            colour = "white" if value > 0.55 else "0.15"
            text = f"{value:.2f}".lstrip("0")
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    labels = [f"{value:g}" for value in predictions.class_values]
    axes.set_xticks(range(num_classes), labels=labels, fontsize=8)
    axes.set_yticks(range(num_classes), labels=labels, fontsize=8)
    axes.set_xlabel("decoded direction (deg)", fontsize=9)
    axes.set_ylabel("shown direction (deg)", fontsize=9)
    accuracy = counts.trace() / counts.sum()
    text = f"accuracy {accuracy:.3f}, chance {1 / num_classes:.3f}, {counts.sum()} trials"
    axes.set_title(f"{predictions.arm}\n{text}", fontsize=9, loc="left", parse_math=False)
    return image


def shared_mean_frame(arms: Sequence[Predictions], recording_id: str) -> Array | None:
    """Return the ``(H, W)`` mean training frame of a recording from the first file that holds it."""
    return next((p.mean_frames[recording_id] for p in arms if recording_id in p.mean_frames), None)


def score_names(arms: Sequence[Predictions], recording_id: str) -> list[str]:
    """Name the numbers below each frame of `figure_frames`, in their order."""
    mean_frame = shared_mean_frame(arms, recording_id)
    return list(_scores(arms[0], np.flatnonzero(arms[0].recording_id == recording_id)[:1], mean_frame))


def _scores(predictions: Predictions, rows: IntArray, mean_frame: Array | None) -> dict[str, FloatArray]:
    """SSIM (absent for frames below its window) and correlation of some rows of one recording."""
    images = predictions.prediction[rows]
    truth = predictions.target_frames[predictions.target[rows]]
    found = {"SSIM": metrics.ssim(images, truth)} if min(truth.shape[1:]) > 2 * SSIM_RADIUS_PX else {}
    if mean_frame is None or mean_frame.shape != truth.shape[1:]:
        return found | {"correlation": metrics.spatial_correlation(images, truth)}
    images, truth = (metrics.subtract_mean_frame(a, mean_frame) for a in (images, truth))
    return found | {"correlation after subtracting the mean frame": metrics.spatial_correlation(images, truth)}


def rank_recordings(predictions: Predictions) -> list[tuple[str, float]]:
    """Order recordings by the mean SSIM of their frames, best first (by correlation where frames are below 11 pixels).

    Parameters
    ----------
    predictions : Predictions
        Of the task frames.

    Returns
    -------
    list of (recording_id, score)
        Ties in the order of the ids.

    Raises
    ------
    PoyoError
        If they are of another task.

    Examples
    --------
    >>> frames = np.random.default_rng(0).integers(0, 256, (2, 16, 16), dtype=np.uint8)
    >>> p = Predictions(task="frames", split="repeat", arm="ridge", data_checksum="", prediction=frames,
    ...     target=np.array([1, 1]), time=np.arange(2.0), recording_id=np.array(["a", "b"]),
    ...     subject_id=np.full(2, "m"), stimulus=np.full(2, "movie"), frame_number=np.array([1, 1]),
    ...     repeat=np.full(2, 9), target_frames=frames)
    >>> [name for name, _ in rank_recordings(p)]
    ['b', 'a']
    """
    _check_task([predictions], "frames")
    found = []
    for recording in np.unique(predictions.recording_id):
        scores = _scores(predictions, np.flatnonzero(predictions.recording_id == recording), None)
        found.append((str(recording), float(next(iter(scores.values())).mean())))
    return sorted(found, key=lambda item: -item[1])


def spread_rows(predictions: Predictions, recording_id: str, count: int) -> IntArray:
    """Choose rows of one recording: different movie frames, evenly spread over its test part."""
    rows = np.flatnonzero(predictions.recording_id == recording_id)
    order = np.lexsort((predictions.time[rows], predictions.frame_number[rows], predictions.stimulus[rows]))
    rows = rows[order]
    movie, number = predictions.stimulus[rows], predictions.frame_number[rows]
    first = np.r_[True, (movie[1:] != movie[:-1]) | (number[1:] != number[:-1])]
    distinct = rows[first]
    # The middles of equal parts: neither end is favoured.
    places = np.floor((np.arange(count) + 0.5) * len(distinct) / count).astype(int)
    return np.asarray(distinct[np.unique(places)], dtype=np.int64)


def figure_frames(arms: Sequence[Predictions], recording_id: str, *, num_columns: int = FRAME_COLUMNS) -> Figure:
    """Draw true frames of one recording, and below them what every arm makes of the same moments."""
    _check_task(arms, "frames")
    chosen = arms[0]
    if recording_id not in chosen.recording_id:
        raise PoyoError(
            f"no predictions of '{chosen.arm}' for recording '{recording_id}'",
            allowed=", ".join(np.unique(chosen.recording_id)),
            fix="choose one of those",
        )
    rows = spread_rows(chosen, recording_id, num_columns)
    height, width = chosen.target_frames.shape[1:]
    figure, panels = _frame_grid(num_rows=len(arms) + 1, num_columns=len(rows), shape=height / width)
    several_movies = len(set(chosen.stimulus[rows])) > 1
    for axes, row in zip(panels[0], rows, strict=True):
        _draw_frame(axes, chosen.target_frames[chosen.target[row]])
        movie = f"{chosen.stimulus[row]}\n" if several_movies else ""
        axes.set_title(f"{movie}frame {chosen.frame_number[row]}", fontsize=8, pad=3, parse_math=False)
    _label_row(panels[0, 0], "true")
    mean_frame = shared_mean_frame(arms, recording_id)
    for line, predictions in zip(panels[1:], arms, strict=True):
        own = np.flatnonzero(predictions.recording_id == recording_id)
        _draw_arm(line, predictions, own, _ticks(chosen.time[rows]), mean_frame)
    return figure


def _frame_grid(*, num_rows: int, num_columns: int, shape: float) -> tuple[Figure, NDArray[np.object_]]:
    """Lay out ``(num_rows, num_columns)`` axes in inches: an automatic layout of so many takes seconds."""
    label, frame_width, gap, score, title = 1.25, 1.3, 0.03, 0.24, 0.36
    frame_height = frame_width * shape
    width = label + num_columns * (frame_width + gap)
    height = title + num_rows * frame_height + (num_rows - 1) * score
    figure = Figure(figsize=(width, height))
    panels = np.empty((num_rows, num_columns), dtype=object)
    bottom = height - title + 0.08
    for row in range(num_rows):
        # The row of true frames has no scores below it.
        bottom -= frame_height + (gap if row < 2 else score)
        for column in range(num_columns):
            left = label + column * (frame_width + gap)
            place = (left / width, bottom / height, frame_width / width, frame_height / height)
            panels[row, column] = figure.add_axes(place)
    return figure, panels


def _ticks(time_s: Array) -> IntArray:
    return np.asarray(np.rint(time_s / TIME_RESOLUTION_S), dtype=np.int64)


def _draw_arm(
    line: Sequence[Axes], predictions: Predictions, own: IntArray, ticks: IntArray, mean_frame: Array | None
) -> None:
    """One row of reconstructions with their scores, found among the recording's rows `own` by their times."""
    _label_row(line[0], predictions.arm)
    row_at = dict(zip(_ticks(predictions.time[own]).tolist(), own.tolist(), strict=True))
    for axes, tick in zip(line, ticks.tolist(), strict=True):
        if tick not in row_at:
            _draw_frame(axes, None)
            axes.set_xlabel("not predicted", fontsize=7.5)
            continue
        _draw_frame(axes, predictions.prediction[row_at[tick]])
        scores = _scores(predictions, np.array([row_at[tick]]), mean_frame).values()
        axes.set_xlabel("  |  ".join(f"{values.item():.2f}" for values in scores), fontsize=7.5, labelpad=2)


def _draw_frame(axes: Axes, frame: Array | None) -> None:
    if frame is not None:
        axes.imshow(frame, vmin=0, vmax=255, cmap="gray", interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_linewidth(0.4)


def _label_row(axes: Axes, name: str) -> None:
    text = textwrap.fill(textwrap.shorten(name, 48, placeholder=" ..."), 16)
    axes.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=8.5, parse_math=False)
