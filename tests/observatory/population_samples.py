"""A neuron to order."""

import numpy as np

from poyo_ssl.observatory.cells import STIMULUS_KINDS, Population


def make_population(**changes) -> Population:
    """One complex cell in the middle of the screen that prefers the grating of 90 degrees at 2 Hz."""
    values = {
        "rf_x_deg": 0.0,
        "rf_y_deg": 0.0,
        "rf_sigma_deg": 12.0,
        "direction_deg": 90.0,
        "direction_selectivity": 1.0,
        "spatial_frequency_cpd": 0.04,
        "temporal_frequency_hz": 2.0,
        "phase_rad": 0.0,
        "time_constant_s": 0.03,
        "simple": False,
        "tuned": True,
        "suppressed": False,
        "exponent": 1.0,
        "affinity": np.ones(len(STIMULUS_KINDS)),
        "relative_rate": 1.0,
        "roi_row_px": 256.0,
        "roi_column_px": 256.0,
        "roi_radius_px": 6.0,
    } | changes
    return Population(**{name: np.array([value]) for name, value in values.items()})
