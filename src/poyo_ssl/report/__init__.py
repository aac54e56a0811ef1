"""Room `report`: one self-contained page from a folder of results. It needs no model and no torch."""

from poyo_ssl.report.figures import figure_confusion, figure_frames, rank_recordings, to_png
from poyo_ssl.report.html import write_report

__all__ = ["figure_confusion", "figure_frames", "rank_recordings", "to_png", "write_report"]
