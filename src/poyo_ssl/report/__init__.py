"""Room `report`: self-contained pages from folders of results. It needs no model and no torch."""

from poyo_ssl.report.html import write_report

__all__ = ["write_report"]
