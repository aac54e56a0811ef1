"""Which neurons are predictable: moments per unit, thresholds, masks."""

from poyo_ssl.config import SelectionConfig
from poyo_ssl.selection.moments import CentralMoments, UnitStatistics, measure_units
from poyo_ssl.selection.picture import figure_selection, plot_selection
from poyo_ssl.selection.table import Selection, fit_selection, knee_threshold

__all__ = [
    "CentralMoments",
    "Selection",
    "SelectionConfig",
    "UnitStatistics",
    "figure_selection",
    "fit_selection",
    "knee_threshold",
    "measure_units",
    "plot_selection",
]
