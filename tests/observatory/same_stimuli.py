"""Comparison of the stimuli of two recordings."""

import numpy as np


def assert_same_stimuli(one, two):
    """Compare the stimuli of two recordings: names, frames, and the first one's columns."""
    assert set(one.stimuli) == set(two.stimuli)
    for name, table in one.stimuli.items():
        again = two.stimuli[name]
        np.testing.assert_array_equal(table.start_frame, again.start_frame)
        np.testing.assert_array_equal(table.end_frame, again.end_frame)
        for column, values in table.columns.items():
            np.testing.assert_array_equal(values, again.columns[column], err_msg=f"{name} {column}")
