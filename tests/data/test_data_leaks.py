"""Leaks planted on purpose are found, and clean splits are called clean."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poyo_ssl.config import SplitConfig
from poyo_ssl.data import leaks
from poyo_ssl.data.intervals import as_intervals, merge
from poyo_ssl.data.recording import Recording, RecordingMetadata
from poyo_ssl.data.splits import split_gratings, split_movie, training_domain
from poyo_ssl.data.stimuli import Presentations
from poyo_ssl.data.units import fit_normalisation
from poyo_ssl.data.windows import movie_windows, trial_windows

MOVIE, MOVIE_FRAMES = "natural_movie_one", 60
PIXELS = np.random.default_rng(5).integers(0, 256, (MOVIE_FRAMES, 6, 8), dtype=np.uint8)
CONFIG = SplitConfig(decay_s=0.05)
WINDOW_FRAMES, GAP_S = 6, 0.2 + 3 * 0.05


@pytest.fixture
def movie_split(make_recording):
    recording = make_recording(num_units=3)
    return recording, split_movie(recording, MOVIE, CONFIG, window_s=0.2, pixels=PIXELS)


def movie_tables(recording, split, names=("train", "valid", "test_clip")):
    table = recording.stimulus(MOVIE)
    return {
        name: movie_windows(
            recording, 0, table, split, name, num_frames=WINDOW_FRAMES, lag_s=0.0, targets=table.columns["frame"]
        )
        for name in names
    }


def frame_leaks(recording, parts, **settings):
    shown = [leaks.shown_frames(recording, parts[name], [MOVIE]) for name in ("train", "test_clip")]
    return leaks.check_unseen_frames(*shown, {MOVIE: PIXELS}, **{"max_correlation": 0.95, **settings})


def test_a_clean_split_has_no_leak(movie_split):
    recording, split = movie_split
    assert leaks.check_parts(recording, split.parts) == []
    assert leaks.check_presentations(recording, split.parts) == []
    assert leaks.check_windows(recording, 0, split.parts, movie_tables(recording, split)) == []
    assert frame_leaks(recording, split.parts) == []
    assert leaks.check_gaps(recording, split.parts, MOVIE, gap_s=GAP_S) == []
    leaks.require_no_leaks([])


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shift=st.floats(0.05, 1.0), backwards=st.booleans())
def test_a_shifted_interval_is_caught(movie_split, shift, backwards):
    """Whichever way one clip's interval is moved, some check must notice: time, trials, frames or the gap."""
    recording, split = movie_split
    moved = split.parts["test_clip"] + (-shift if backwards else shift)
    parts = {**split.parts, "test_clip": moved}
    found = leaks.check_presentations(recording, parts) + leaks.check_parts(recording, parts)
    found += frame_leaks(recording, parts) + leaks.check_gaps(recording, parts, MOVIE, gap_s=GAP_S)
    assert found


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_stolen_trial_is_caught(make_recording, data):
    recording = make_recording(num_units=1)
    split = split_gratings(recording, SplitConfig())
    other = data.draw(st.sampled_from(["valid", "test_gratings"]))
    row = data.draw(st.integers(0, len(split.parts[other]) - 1))
    parts = {**split.parts, "train": merge(np.concatenate([split.parts["train"], split.parts[other][[row]]]))}
    found = leaks.check_parts(recording, parts)
    assert [leak.check for leak in found] == ["parts"]
    assert f"train and {other} share" in found[0].problem
    with pytest.raises(leaks.LeakError, match="do not report"):
        leaks.require_no_leaks(found)


def test_a_validation_clip_beside_the_test_clip_without_a_gap_is_caught(movie_split):
    recording, split = movie_split
    edge = split.parts["test_clip"][:, 0]
    parts = {**split.parts, "valid_clip": np.stack([edge - 0.2, edge], axis=1)}
    found = leaks.check_gaps(recording, parts, MOVIE, gap_s=GAP_S)
    assert any("in valid_clip" in leak.problem and "from test_clip" in leak.problem for leak in found)


def test_inputs_that_reach_into_a_test_are_caught(movie_split):
    recording, split = movie_split
    tables = movie_tables(recording, split)
    longer = replace(tables["train"], num_frames=WINDOW_FRAMES + 40)
    found = leaks.check_windows(recording, 0, split.parts, {"train": longer})
    assert any("inputs of train reach into test_clip" in leak.problem for leak in found)
    late = replace(tables["train"], target_time=tables["train"].target_time + 1.0)
    assert any(leak.check == "targets" for leak in leaks.check_windows(recording, 0, split.parts, {"train": late}))


def test_trial_windows_that_may_move_are_judged_by_all_their_places(make_recording):
    recording = make_recording(num_units=1)
    split = split_gratings(recording, SplitConfig())
    targets = np.zeros(len(recording.stimulus("drifting_gratings")), np.int64)
    table = trial_windows(recording, 0, split, "train", num_frames=57, lag_s=0.0, dilation_s=0.4, targets=targets)
    assert leaks.check_windows(recording, 0, split.parts, {"train": table}) == []
    freer = replace(table, first_high=table.first_high + 60)
    assert leaks.check_windows(recording, 0, split.parts, {"train": freer})


def test_masked_spans_belong_to_nobody(movie_split):
    recording, split = movie_split
    low = split.parts["train"][0, 0]
    masked = replace(recording, masked_domain=np.array([[low + 0.1, low + 0.2]]))
    assert "masked spans" in leaks.check_parts(masked, split.parts)[0].problem
    assert any(
        "masked" in leak.problem for leak in leaks.check_windows(masked, 0, split.parts, movie_tables(recording, split))
    )


def test_a_training_frame_that_resembles_a_clip_is_caught(movie_split):
    recording, split = movie_split
    shown = leaks.shown_frames(recording, split.parts["train"], [MOVIE])[MOVIE]
    tested = leaks.shown_frames(recording, split.parts["test_clip"], [MOVIE])[MOVIE]
    pixels = PIXELS.copy()
    pixels[shown[3]] = pixels[tested[0]]
    found = leaks.check_unseen_frames({MOVIE: shown}, {MOVIE: tested}, {MOVIE: pixels}, max_correlation=0.95)
    assert [leak.check for leak in found] == ["near-duplicates"]
    assert f"training frame {shown[3]} of {MOVIE}" in found[0].problem


def test_too_small_a_gap_is_caught(movie_split):
    recording, split = movie_split
    assert leaks.check_gaps(recording, split.parts, MOVIE, gap_s=GAP_S + 0.1)[0].check == "gap"


def test_statistics_of_anything_but_the_training_part_are_caught(movie_split):
    recording, split = movie_split
    columns, domain = np.arange(3), training_domain(recording, [split])
    clean = fit_normalisation(recording, columns, domain, method="robust_asinh")
    assert leaks.check_normalisation(recording, clean, clean, columns) == []
    whole = as_intervals([[recording.timestamps[0], recording.timestamps[-1]]])
    leaky = fit_normalisation(recording, columns, whole, method="robust_asinh")
    assert leaks.check_normalisation(recording, leaky, clean, columns)[0].check == "statistics"
    assert leaks.check_domain(recording, "z-scores", domain, split.parts) == []
    assert len(leaks.check_domain(recording, "z-scores", whole, split.parts)) == 2


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=st.sampled_from([-50.0, 0.0, 1e4]), task=st.sampled_from(["movie", "gratings"]))
def test_nothing_learned_changes_when_the_test_part_does(make_recording, value, task):
    """Whatever the activity in validation and test is, normalisation and training windows are the same to the bit."""
    recording = make_recording(num_units=3)
    if task == "movie":
        split = split_movie(recording, MOVIE, CONFIG, window_s=0.2, pixels=PIXELS)
    else:
        split = split_gratings(recording, SplitConfig())
    spoiled = recording.dff.copy()
    for low, high in split.held_out:
        spoiled[(recording.timestamps >= low) & (recording.timestamps < high)] = value
    other = replace(recording, dff=spoiled)
    domain = training_domain(recording, [split])
    a, b = (fit_normalisation(r, np.arange(3), domain, method="robust_asinh") for r in (recording, other))
    for name in ("centre", "scale", "mean", "spread"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    if task == "movie":
        table = movie_tables(recording, split, ("train",))["train"]
    else:
        targets = np.zeros(len(recording.stimulus("drifting_gratings")), np.int64)
        table = trial_windows(recording, 0, split, "train", num_frames=50, lag_s=0.0, dilation_s=0.3, targets=targets)
    for first in (table.first_low, table.first_high):
        frames = first[:, None] + np.arange(table.num_frames)
        np.testing.assert_array_equal(recording.dff[frames], other.dff[frames])


def test_a_presentation_cut_in_two_is_caught():
    stamps = np.arange(300) / 30
    table = Presentations.from_frames("natural_scenes", stamps, np.array([0, 60, 120]), np.array([60, 120, 180]), {})
    recording = Recording("r", np.zeros((300, 1)), stamps, RecordingMetadata("m"), stimuli={table.name: table})
    assert leaks.check_presentations(recording, {"train": [[0, 2]], "test_x": [[4, 6]]}) == []
    found = leaks.check_presentations(recording, {"train": [[0, 3]], "test_x": [[4, 6]]})
    assert "train cuts presentation 1 of natural_scenes" in found[0].problem
