"""The skewness-kurtosis plane: every neuron, the means of the Cre lines and the thresholds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from poyo_ssl.files import written_whole
from poyo_ssl.selection.table import Selection

# Okabe and Ito's blue and vermilion: told apart with every kind of colour vision, and in grey by lightness.
PREDICTABLE_COLOUR, OTHER_COLOUR = "#0072B2", "#D55E00"
TICKS = {"skewness": (-1, 0, 0.5, 1, 2, 5, 10, 20, 50), "kurtosis": (-1, 0, 0.5, 1, 2, 5, 10, 50, 100, 500, 1000, 5000)}
LABEL_HEIGHT = 0.047
"""Least distance of two line labels, as a share of the axes' height."""


def figure_selection(selection: Selection) -> Figure:
    """Draw the selection; neurons without usable traces are counted in the title.

    Both axes are linear from -1 to 1 and logarithmic beyond (moments can be negative).
    """
    figure = Figure(figsize=(8.0, 5.2), layout="constrained", dpi=130)
    axes = figure.subplots()
    usable = selection.table[selection.table["status"] == "ok"]
    groups = {
        f"predictable ({int(usable['selected'].sum())})": (usable[usable["selected"]], PREDICTABLE_COLOUR, "o"),
        f"other ({int((~usable['selected']).sum())})": (usable[~usable["selected"]], OTHER_COLOUR, "^"),
    }
    # Few neurons can be drawn larger than thousands.
    area = float(np.clip(6000 / max(len(usable), 1), 4, 30))
    for label, (rows, colour, marker) in groups.items():
        axes.scatter(
            rows["skewness"], rows["kurtosis"], s=area, c=colour, marker=marker, alpha=0.45, linewidths=0,
            label=label, rasterized=True,
        )  # fmt: skip
    for name, draw in (("skewness", axes.axvline), ("kurtosis", axes.axhline)):
        if name in selection.thresholds:
            draw(selection.thresholds[name], color="0.25", linestyle="--", linewidth=1)
    _scale(axes)
    _label_thresholds(axes, selection)
    _label_lines(axes, selection)
    axes.set(xlabel="skewness of dF/F", ylabel="excess kurtosis of dF/F")
    axes.set_title(_title(selection), fontsize=10, loc="left", pad=10)
    axes.legend(loc="lower right", frameon=False, markerscale=2)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_selection(selection: Selection, path: Path | str) -> Path:
    """Write `figure_selection` as PNG, beside its name and then renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = figure_selection(selection)
    FigureCanvasAgg(figure)
    with written_whole(path) as beside:
        figure.savefig(beside, format="png")
    return path


def _title(selection: Selection) -> str:
    config, left_out = selection.config, int((selection.table["status"] != "ok").sum())
    how = f"kept fraction {config.keep_fraction}" if config.keep_fraction else f"{config.thresholds} thresholds"
    title = f"{selection.table['selected'].sum()} of {len(selection.table)} neurons predictable ({config.level}, {how})"
    return title + (f"; {left_out} without a usable trace" if left_out else "")


def _scale(axes: Axes) -> None:
    for name, axis, set_scale in (
        ("skewness", axes.xaxis, axes.set_xscale),
        ("kurtosis", axes.yaxis, axes.set_yscale),
    ):
        set_scale("symlog", linthresh=1.0, linscale=0.6)
        axis.set_major_locator(FixedLocator(TICKS[name]))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _label_thresholds(axes: Axes, selection: Selection) -> None:
    if not selection.thresholds:
        return
    skewness, kurtosis = selection.thresholds["skewness"], selection.thresholds["kurtosis"]
    axes.text(
        skewness, 1.0, f" {skewness:.4g}", transform=axes.get_xaxis_transform(), va="top", fontsize=8, color="0.25"
    )
    axes.text(
        0.0, kurtosis, f" {kurtosis:.4g}", transform=axes.get_yaxis_transform(), va="bottom", fontsize=8, color="0.25"
    )


def _label_lines(axes: Axes, selection: Selection) -> None:
    """Mark the line means and name them, with their predictable / usable neurons, in a column at the right."""
    lines = selection.lines.dropna(subset=["skewness", "kurtosis"]).sort_values("kurtosis")
    axes.scatter(lines["skewness"], lines["kurtosis"], s=45, c="white", edgecolors="black", zorder=4)
    # Limits are settled late; the places of the names need them now.
    axes.autoscale_view()
    to_axes = axes.transData + axes.transAxes.inverted()
    wanted = np.array([to_axes.transform(row)[1] for row in lines[["skewness", "kurtosis"]].to_numpy()])
    heights = _spread(wanted)
    for height, line in zip(heights, lines.to_dict("records"), strict=True):
        mostly = line["num_selected"] > line["num_usable"] / 2
        axes.annotate(
            f"{line['cre_line']}  {line['num_selected']}/{line['num_usable']}",
            xy=(line["skewness"], line["kurtosis"]),
            xytext=(1.02, height),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            color=PREDICTABLE_COLOUR if mostly else "black",
            fontweight="bold" if mostly else "normal",
            arrowprops={"arrowstyle": "-", "relpos": (0.0, 0.5), "color": "0.6", "linewidth": 0.6, "shrinkB": 4},
        )


def _spread(heights: np.ndarray) -> np.ndarray:
    """Move ascending heights apart to `LABEL_HEIGHT`, as little as keeps them in order."""
    spread = heights.copy()
    for i in range(1, len(spread)):
        spread[i] = max(spread[i], spread[i - 1] + LABEL_HEIGHT)
    # Labels pushed out at the top come back down.
    for i in reversed(range(len(spread))):
        limit = 0.97 if i == len(spread) - 1 else spread[i + 1] - LABEL_HEIGHT
        spread[i] = min(spread[i], limit)
    return spread
