"""Coding of stimulus tables against values worked out by hand."""

import numpy as np
import pytest

from poyo_ssl.errors import RecordingError
from poyo_ssl.sources.base import Notes
from poyo_ssl.sources.coding import code_gratings, count_occurrences, count_repeats, find_blocks

NAN = np.nan


def test_occurrences():
    assert count_occurrences(np.array([5, 7, 5, 5, 7])).tolist() == [0, 0, 1, 2, 1]
    assert count_occurrences(np.array([[0, 1], [0, 2], [0, 1]])).tolist() == [0, 0, 1]


def code(orientation, frequency, flags=None, notes=None):
    values = {"orientation": np.array(orientation, float), "temporal_frequency": np.array(frequency, float)}
    flags = None if flags is None else np.array(flags)
    return code_gratings("drifting_gratings", values, flags, "here", Notes() if notes is None else notes)


def test_gratings():
    coded = code([45, NAN, 315, 45.001], [2, NAN, 15, 2])
    assert coded["orientation_id"].tolist() == [1, -1, 7, 1]
    assert coded["temporal_frequency_id"].tolist() == [1, -1, 4, 1]
    assert coded["repeat"].tolist() == [0, -1, 0, 1]
    assert coded["blank_sweep"].tolist() == [False, True, False, False]
    assert np.isnan(coded["orientation"]).tolist() == [False, True, False, False]


def test_a_flag_overrules_values():
    coded = code([45, 90], [2, 2], flags=[0.0, 1.0], notes=(notes := Notes()))
    assert coded["orientation_id"].tolist() == [1, -1]
    assert np.isnan(coded["orientation"][1])
    assert notes == ["drifting_gratings: 1 blank sweeps have feature values; left out"]


@pytest.mark.parametrize(
    ("orientation", "frequency", "match"),
    [([45, NAN], [2, 4], "row 1 has no value for a feature but is no blank"), ([45, 50], [2, 2], "orientation 50")],
)
def test_gratings_that_cannot_be_coded(orientation, frequency, match):
    with pytest.raises(RecordingError, match=match):
        code(orientation, frequency)


def test_repeats_go_by_place():
    assert count_repeats("movie", np.tile(np.arange(3), 2), 3, "here").tolist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(RecordingError, match="here: repeat 1 of movie has image 2 where image 1 should be"):
        count_repeats("movie", np.array([0, 1, 2, 0, 2]), 3, "here")
    with pytest.raises(RecordingError, match="the end of the table where image 2 should be"):
        count_repeats("movie", np.array([0, 1]), 3, "here")


def test_blocks():
    spans = np.array([[10, 70], [100, 160], [204, 264], [9000, 9060]])
    assert find_blocks("gratings", spans, "three_session_A", notes := Notes()).tolist() == [[10, 264], [9000, 9060]]
    assert notes == ["gratings: a gap of 44 frames at frame 160 inside a block, where AllenSDK would cut it"]
