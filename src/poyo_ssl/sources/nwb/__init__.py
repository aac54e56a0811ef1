"""Neurodata Without Borders 2: DANDI 000728 (Allen Visual Coding) and any laboratory's two-photon files."""

from poyo_ssl.sources.nwb.read import NwbSource

__all__ = ["NwbSource"]
