"""Allen Brain Observatory, Visual Coding two-photon: files, lists of experiments, downloads."""

from poyo_ssl.sources.allen.read import AllenSource
from poyo_ssl.sources.allen.traces import read_fluorescence

__all__ = ["AllenSource", "read_fluorescence"]
