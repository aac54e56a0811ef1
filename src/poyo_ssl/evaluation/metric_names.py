"""What metrics are called in tables, and which way is better."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

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
    """Choose the metric that ranks the arms of a task and split; without the usual one, the first.

    Parameters
    ----------
    task, split : str
        See `HEADLINES`.
    names : iterable of str
        Metrics that there are scores of.

    Examples
    --------
    >>> headline_metric("frames", "clip", ["ssim_64x128", "spatial_correlation_centred_64x128"])
    'spatial_correlation_centred_64x128'
    """
    ordered = sorted(names, key=lambda name: (describe_metric(name).rank, name))
    wanted = HEADLINES.get((task, split), HEADLINES.get((task, ""), ""))
    return next((name for name in ordered if re.fullmatch(rf"{wanted}(_\d+x\d+)?", name)), ordered[0])


def describe_metric(name: str) -> Metric:
    """Find how a metric is shown; one that is not known keeps its name and stands in the main table.

    Examples
    --------
    >>> describe_metric("identification_50way_64x128").label, describe_metric("ssim_64x128").resolution
    ('right frame among 50', '64 x 128 px')
    """
    stem, height, width = re.fullmatch(r"(.*?)(?:_(\d+)x(\d+))?", name, re.DOTALL).groups()  # type: ignore[union-attr]
    resolution = f"{height} x {width} px" if height else ""
    for rank, (pattern, label, better, is_main) in enumerate(METRICS):
        if match := re.fullmatch(pattern, stem):
            return Metric(match.expand(label), resolution, better, is_main, rank)
    return Metric(stem.replace("_", " "), resolution, "", True, len(METRICS))


def format_number(value: float) -> str:
    """Write with about three digits after the point; '-' for NaN.

    Examples
    --------
    >>> format_number(0.59349), format_number(21.5), format_number(-0.0001), format_number(float("nan"))
    ('0.593', '21.50', '0.000', '-')
    """
    if not math.isfinite(value):
        return "-"
    size = abs(value)
    digits = 1 if size >= 100 else 2 if size >= 10 else 3
    return f"{value:z.{digits}f}"


def format_p(p: float) -> str:
    """Write a p value; '-' for NaN.

    Examples
    --------
    >>> format_p(0.0312), format_p(0.00004), format_p(float("nan"))
    ('0.031', '< 0.001', '-')
    """
    return "< 0.001" if p < 0.001 else format_number(p)
