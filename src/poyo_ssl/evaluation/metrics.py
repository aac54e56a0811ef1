"""Scores of predictions: frames, frame numbers and gratings, with fixed ranges and every target once.

Images are on the 0-255 scale. Three conventions run through the frame metrics:

- **Constant images** have no correlation; it is defined as 0 here; the score table
  reports the share of constant predictions beside it.
- **Mean-frame-subtracted** images are ``(x - mean) / 2 + 127.5`` with the mean *training* frame: what is left
  when a decoder gets no credit for the average picture. Halving keeps them within 0-255, so that the same fixed
  data range applies; correlations do not see the scale.
- **Centred** images have their own mean over the scored frames of a recording and movie subtracted: predictions that of
  predictions, targets that of targets. What a decoder says throughout a movie then counts for nothing. Subtracting the
  mean training frame does not do that for unseen footage: ``-mean`` is a part of every ``target - mean``, and a decoder
  that says grey finds it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import comb

from poyo_ssl import protocol
from poyo_ssl.errors import ConfigError

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

SSIM_RADIUS_PX = int(3.5 * protocol.SSIM_SIGMA + 0.5)
"""Half width of the Gaussian window; scikit-image's truncation at 3.5 sigma, an 11 x 11 window."""
MULTISCALE_WEIGHTS = (0.0448, 0.2856, 0.3001)
"""The first three of the five of Wang, Simoncelli and Bovik 2003."""
MULTISCALE_LEAST_PX = 4 * (2 * SSIM_RADIUS_PX + 1)
TIE = 1e-5
"""Correlations this close are equal: the same image gives them up to rounding in single precision."""
FRAMES_PER_BLOCK = 64
"""Frames in work at a time, which bounds memory at a few hundred MB for the largest frames."""


def subtract_mean_frame(images: Array, mean_frame: Array) -> FloatArray:
    """Return ``(images - mean_frame) / 2 + 127.5``: ``(N, H, W)``, less ``(H, W)``."""
    # The mean is rounded as predictions are, so that nothing is left of the baseline that predicts it.
    return (np.asarray(images, dtype=np.float64) - np.rint(mean_frame)) / 2 + 127.5


def _check_images(prediction: Array, target: Array) -> None:
    if prediction.ndim != 3 or prediction.shape != target.shape:
        raise ConfigError(
            f"predicted frames of shape {prediction.shape} for targets of shape {target.shape}",
            allowed="(N, H, W) twice",
            fix="resize the movie to the model's frames before windows are made",
        )


def _blocks(*images: Array) -> Iterator[tuple[slice, tuple[FloatArray, ...]]]:
    for start in range(0, len(images[0]), FRAMES_PER_BLOCK):
        part = slice(start, start + FRAMES_PER_BLOCK)
        yield part, tuple(np.asarray(i[part], dtype=np.float64) for i in images)


def ssim(prediction: Array, target: Array) -> FloatArray:
    """``(N,)`` structural similarity of ``(N, H, W)`` frames (Wang et al. 2004), that of scikit-image to rounding.

    Gaussian weights of sigma 1.5 over 11 x 11 pixels, population covariance, data range fixed at 255. The window's two
    passes are matrix products over a stack of frames, which is ten times faster.
    """
    _check_images(prediction, target)
    height, width = prediction.shape[1:]
    if min(height, width) <= 2 * SSIM_RADIUS_PX:
        raise ConfigError(
            f"SSIM of frames of {height} x {width} pixels",
            allowed=f"{2 * SSIM_RADIUS_PX + 1} or more each way",
            fix="use larger frames",
        )
    values = np.empty(len(prediction))
    for part, (x, y) in _blocks(prediction, target):
        values[part] = _similarity(x, y)[0]
    return values


def _similarity(x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """SSIM and its contrast-structure term, each ``(N,)``: means over every place where the window fits whole."""
    rows, columns = _gaussian_band(x.shape[1]), _gaussian_band(x.shape[2]).T
    c1, c2 = (0.01 * protocol.SSIM_DATA_RANGE) ** 2, (0.03 * protocol.SSIM_DATA_RANGE) ** 2
    # Both variances are only ever added, so their squares share one filter.
    mean_x, mean_y, squares, products = (rows @ (z @ columns) for z in (x, y, x * x + y * y, x * y))
    mean_squares, mean_products = mean_x**2 + mean_y**2, mean_x * mean_y
    luminance = (2 * mean_products + c1) / (mean_squares + c1)
    contrast_structure = (2 * (products - mean_products) + c2) / (squares - mean_squares + c2)
    return (luminance * contrast_structure).mean(axis=(1, 2)), contrast_structure.mean(axis=(1, 2))


def ssim_and_multiscale(prediction: Array, target: Array) -> tuple[FloatArray, FloatArray]:
    """`ssim` of every frame, and multi-scale SSIM over three scales, ``(N,)`` each; the first scale is shared.

    Wang, Simoncelli and Bovik 2003 with the first three of their five weights divided by their sum: five scales need
    161 pixels. Between scales frames are averaged over 2 x 2 pixels; negative means count as 0.
    """
    _check_images(prediction, target)
    if min(prediction.shape[1:]) < MULTISCALE_LEAST_PX:
        raise ConfigError(
            f"multi-scale SSIM of frames of {prediction.shape[1]} x {prediction.shape[2]} pixels",
            allowed=f"{MULTISCALE_LEAST_PX} or more each way",
            fix="use larger frames",
        )
    weights = np.array(MULTISCALE_WEIGHTS) / sum(MULTISCALE_WEIGHTS)
    single, several = np.empty(len(prediction)), np.ones(len(prediction))
    for part, (x, y) in _blocks(prediction, target):
        for scale, weight in enumerate(weights):
            whole, contrast_structure = _similarity(x, y)
            if scale == 0:
                single[part] = whole
            mean = whole if scale == len(weights) - 1 else contrast_structure
            several[part] *= np.maximum(mean, 0.0) ** weight
            x, y = _halve(x), _halve(y)
    return single, several


def _halve(images: FloatArray) -> FloatArray:
    """Average over 2 x 2 pixels; an odd last row or column is left out."""
    height, width = (size // 2 * 2 for size in images.shape[1:])
    whole = images[:, :height, :width]
    return np.asarray(whole.reshape(len(images), height // 2, 2, width // 2, 2).mean(axis=(2, 4)))


def _gaussian_band(size: int) -> FloatArray:
    """``(size - 2 r, size)`` matrix that averages with the window wherever it fits whole."""
    offsets = np.arange(-SSIM_RADIUS_PX, SSIM_RADIUS_PX + 1)
    kernel = np.exp(-0.5 * (offsets / protocol.SSIM_SIGMA) ** 2)
    kernel /= kernel.sum()
    band = np.zeros((size - 2 * SSIM_RADIUS_PX, size))
    for row in range(len(band)):
        band[row, row : row + len(kernel)] = kernel
    return band


def psnr(prediction: Array, target: Array) -> FloatArray:
    """``(N,)`` peak signal-to-noise ratio of frames in dB, peak 255."""
    _check_images(prediction, target)
    error = np.empty(len(prediction))
    for part, (x, y) in _blocks(prediction, target):
        error[part] = ((x - y) ** 2).mean(axis=(1, 2))
    # 1/12 is the variance of rounding to whole grey levels: a perfect frame has 58.9 dB instead of infinity.
    return np.asarray(10 * np.log10(protocol.SSIM_DATA_RANGE**2 / np.maximum(error, 1 / 12)))


def _unit_rows(images: Array) -> FloatArray:
    """Flatten to ``(N, P)`` with mean 0 and length 1; constant rows become 0."""
    rows = np.asarray(images, dtype=np.float64).reshape(len(images), -1)
    rows = rows - rows.mean(axis=1, keepdims=True)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    # What subtraction of the mean leaves of a constant image is rounding noise of this size.
    varies = length > 1e-9 * np.sqrt(rows.shape[1])
    return np.asarray(np.where(varies, rows / np.where(varies, length, 1.0), 0.0))


def spatial_correlation(prediction: Array, target: Array) -> FloatArray:
    """``(N,)`` correlation over the pixels of every frame; 0 where either frame is constant."""
    _check_images(prediction, target)
    values = np.empty(len(prediction))
    for part, (x, y) in _blocks(prediction, target):
        values[part] = (_unit_rows(x) * _unit_rows(y)).sum(axis=1)
    return values


def temporal_correlation(prediction: Array, target: Array) -> FloatArray:
    """``(H, W)`` correlation over time, for frames of one repeat of one stimulus; 0 where either trace is constant."""
    _check_images(prediction, target)
    values = np.empty(prediction.shape[1:])
    for row in range(len(values)):  # a row of pixels at a time bounds memory
        a, b = _unit_rows(prediction[:, row].T), _unit_rows(target[:, row].T)
        values[row] = (a * b).sum(axis=1)
    return values


def constant_frames(images: Array) -> npt.NDArray[np.bool_]:
    """``(N,)`` which frames have no variation, so that their correlation is defined as 0."""
    flat = images.reshape(len(images), -1)
    return np.asarray(flat.max(axis=1) == flat.min(axis=1))


def candidate_similarity(prediction: Array, candidates: Array) -> FloatArray:
    """``(N, M)`` spatial correlation of every prediction with every candidate frame."""
    # Single precision: rounding of 1e-6 is far below what tells frames apart, and this is the costliest metric.
    unit = _unit_rows(candidates).astype(np.float32)
    rows = [_unit_rows(x).astype(np.float32) @ unit.T for _, (x,) in _blocks(prediction)]
    return np.concatenate(rows).astype(np.float64)


def identification(similarity: FloatArray, true: IntArray, ways: int) -> FloatArray:
    """``(N,)`` probability that the true frame (column `true`) is the most similar of n candidates.

    The exact expectation over all sets of n - 1 wrong candidates: with `w` candidates less similar than the true one
    and `t` equally similar, ties broken at random, ``[C(w + t + 1, n) - C(w, n)] / [(t + 1) C(M - 1, n - 1)]``. A
    constant prediction scores exactly 1 / n.
    """
    num_candidates = similarity.shape[1]
    if not 2 <= ways <= num_candidates:
        raise ConfigError(f"{ways}-way identification", allowed=f"2 to {num_candidates}", fix="change it")
    worse, ties, _ = _beside_truth(similarity, true)
    wins = comb(worse + ties + 1, ways) - comb(worse, ways)
    return np.asarray(wins / ((ties + 1) * comb(num_candidates - 1, ways - 1)))


def rank_of_truth(similarity: FloatArray, true: IntArray) -> FloatArray:
    """``(N,)`` rank of the true frame among the candidates, 1 is best; ties count half."""
    _, ties, better = _beside_truth(similarity, true)
    return np.asarray(1.0 + better + ties / 2)


def _beside_truth(similarity: FloatArray, true: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """``(N,)`` numbers of candidates less similar than the true one, equally similar, and more similar."""
    own = np.take_along_axis(similarity, true[:, None], axis=1)
    worse, better = (similarity < own - TIE).sum(axis=1), (similarity > own + TIE).sum(axis=1)
    return worse, (np.abs(similarity - own) <= TIE).sum(axis=1) - 1, better


def implied_frame_error(
    similarity: FloatArray, frame_number: IntArray, true_number: IntArray, *, rate_hz: float, tolerance_s: float
) -> tuple[FloatArray, FloatArray]:
    """``(N,)`` error (s) of the most similar candidate's number, and share within tolerance; ties are averaged."""
    best = similarity >= similarity.max(axis=1, keepdims=True) - TIE
    error = np.abs(frame_number[None, :] - true_number[:, None]) / rate_hz
    weight = best / best.sum(axis=1, keepdims=True)
    return (error * weight).sum(axis=1), ((error <= tolerance_s + 1e-9) * weight).sum(axis=1)


def frame_number_scores(
    prediction: IntArray, target: IntArray, *, rate_hz: float, tolerance_s: float
) -> dict[str, FloatArray]:
    """Scores of decoded frame numbers per target; the movie's end is not joined to its start."""
    error = np.abs(np.asarray(prediction, dtype=np.float64) - target) / rate_hz
    return {
        f"within_{tolerance_s:g}s": (error <= tolerance_s + 1e-9).astype(np.float64),
        "absolute_error_s": error,
        "accuracy": (error == 0).astype(np.float64),
    }


def gratings_scores(prediction_deg: FloatArray, target_deg: FloatArray) -> dict[str, FloatArray]:
    """Scores of decoded grating directions per trial; orientation is direction modulo 180 degrees."""
    difference = np.mod(np.asarray(prediction_deg) - target_deg, 360.0)
    error = np.minimum(difference, 360.0 - difference)
    orientation_error = np.minimum(error, 180.0 - error)
    return {
        "accuracy": (error < 1e-6).astype(np.float64),
        "orientation_accuracy": (orientation_error < 1e-6).astype(np.float64),
        "circular_error_deg": error,
    }


def confusion_matrix(prediction: IntArray, target: IntArray, num_classes: int) -> IntArray:
    """``(K, K)`` counts of targets (rows) by prediction (columns)."""
    counts = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(counts, (target, prediction), 1)
    return counts


# Metric (regular expression), name, which way is better, whether it stands in the main table.
METRICS = (
    (r"ssim", "SSIM", "higher", True),
    (r"ssim_mean_subtracted", "SSIM, mean frame subtracted", "higher", True),
    (r"spatial_correlation_centred", "correlation, own means subtracted", "higher", True),
    (r"spatial_correlation_mean_subtracted", "correlation, mean frame subtracted", "higher", True),
    (r"identification_10way", "right frame among 10", "higher", True),
    (r"identification_(\d+)way", r"right frame among \1", "higher", False),
    (r"identification_all", "right frame among all", "higher", False),
    (r"implied_within_(.+)s", r"implied frame within \1 s", "higher", True),
    (r"implied_absolute_error_s", "error of the implied frame (s)", "lower", False),
    (r"median_rank", "median rank of the true frame", "lower", False),
    (r"ms_ssim", "multi-scale SSIM", "higher", False),
    (r"psnr_db", "PSNR (dB)", "higher", False),
    (r"spatial_correlation", "correlation", "higher", False),
    (r"temporal_correlation", "correlation over time per pixel", "higher", False),
    (r"constant_share(.*)", "share of constant frames", "", False),
    (r"within_(.+)s", r"within \1 s", "higher", True),
    (r"accuracy", "accuracy", "higher", True),
    (r"absolute_error_s", "absolute error (s)", "lower", True),
    (r"orientation_accuracy", "orientation accuracy", "higher", True),
    (r"circular_error_deg", "circular error (deg)", "lower", True),
)


@dataclass(frozen=True)
class Metric:
    """How a metric is shown: its label, resolution such as ``64 x 128 px`` or '', and which way is better or ''."""

    label: str
    resolution: str
    better: str
    is_main: bool
    rank: int

    @property
    def is_share(self) -> bool:
        """Whether 1 is the best possible value, so that one margin suits all such metrics."""
        return self.better == "higher" and "(dB)" not in self.label


HEADLINES = {
    ("frames", "repeat"): "ssim",
    ("frames", ""): "spatial_correlation_centred",
    ("frame_number", ""): "within_1s",
    ("gratings", ""): "accuracy",
}
"""The metric that ranks arms, by task and split (empty: any other).

On unseen frames SSIM rewards the mean frame, and a correlation with the mean frame subtracted rewards plain grey.
"""


def headline_metric(task: str, split: str, names: Iterable[str]) -> str:
    """Choose the metric that ranks the arms of a task and split; without the usual one, the first."""
    ordered = sorted(names, key=lambda name: (describe_metric(name).rank, name))
    wanted = HEADLINES.get((task, split), HEADLINES.get((task, ""), ""))
    return next((name for name in ordered if re.fullmatch(rf"{wanted}(_\d+x\d+)?", name)), ordered[0])


def describe_metric(name: str) -> Metric:
    """Find how a metric is shown; one that is not known keeps its name and stands in the main table."""
    stem, height, width = re.fullmatch(r"(.*?)(?:_(\d+)x(\d+))?", name, re.DOTALL).groups()  # type: ignore[union-attr]
    resolution = f"{height} x {width} px" if height else ""
    for rank, (pattern, label, better, is_main) in enumerate(METRICS):
        if match := re.fullmatch(pattern, stem):
            return Metric(match.expand(label), resolution, better, is_main, rank)
    return Metric(stem.replace("_", " "), resolution, "", True, len(METRICS))


def format_number(value: float) -> str:
    """Write with about three digits after the point; '-' for NaN."""
    if not math.isfinite(value):
        return "-"
    size = abs(value)
    digits = 1 if size >= 100 else 2 if size >= 10 else 3
    return f"{value:z.{digits}f}"


def format_p(p: float) -> str:
    """Write a p value; '-' for NaN."""
    return "< 0.001" if p < 0.001 else format_number(p)
