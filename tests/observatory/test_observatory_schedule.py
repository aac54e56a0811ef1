from dataclasses import replace

import numpy as np
import pytest

from poyo_ssl.errors import ConfigError
from poyo_ssl.observatory import SIZES, MovieSpec, get_size
from poyo_ssl.observatory.schedule import build_schedule, draw_clock


@pytest.fixture(params=["tiny", "small"])
def size(request):
    return SIZES[request.param]


@pytest.fixture
def schedule(size):
    return build_schedule(size, size.sessions[0], np.random.default_rng(7))


def test_clock_is_near_the_allens():
    times = draw_clock(18_000, 30.1, np.random.default_rng(1))
    steps = np.diff(times)
    assert 26.7 <= times[0] < 26.76
    assert abs(1 / steps.mean() - 30.1) < 1e-3
    assert 0 < steps.std() < 5e-4
    assert steps.min() > 0.03
    np.testing.assert_allclose(times * 1e5, np.round(times * 1e5), atol=1e-4)


def test_gratings_are_two_seconds_on_and_one_second_gray(size, schedule):
    table = schedule.stimuli["drifting_gratings"]
    np.testing.assert_allclose(table.end - table.start, 2.0, atol=1e-9)
    gaps = table.start[1:] - table.end[:-1]
    between_blocks = gaps > 1.5
    np.testing.assert_allclose(gaps[~between_blocks], 1.0, atol=1e-9)
    assert between_blocks.sum() == size.short.blocks.count("drifting_gratings") - 1
    # 2 s at 30.0 to 30.3 Hz are 60.0 to 60.6 imaging frames.
    assert set((table.end_frame - table.start_frame).tolist()) <= {60, 61}


def test_every_grating_comes_equally_often(size, schedule):
    columns = schedule.stimuli["drifting_gratings"].columns
    blank = columns["blank_sweep"]
    assert blank.sum() == size.short.num_blanks
    assert np.isnan(columns["orientation"][blank]).all()
    assert (columns["orientation_id"][blank] == -1).all()
    shown = zip(columns["orientation"][~blank], columns["temporal_frequency"][~blank], strict=True)
    _, counts = np.unique(np.array(list(shown)), axis=0, return_counts=True)
    assert len(counts) == 8 * len(size.short.temporal_frequencies_hz)
    assert (counts == size.short.grating_repeats).all()
    np.testing.assert_array_equal(columns["orientation"][~blank], 45.0 * columns["orientation_id"][~blank])
    allen = np.array([1.0, 2.0, 4.0, 8.0, 15.0])
    np.testing.assert_array_equal(
        columns["temporal_frequency"][~blank], allen[columns["temporal_frequency_id"][~blank]]
    )


def test_small_has_112_trials():
    table = build_schedule(SIZES["small"], SIZES["small"].sessions[0], np.random.default_rng(0)).stimuli
    assert (~table["drifting_gratings"].columns["blank_sweep"]).sum() == 112


def test_movies_run_at_30_hz_back_to_back(size, schedule):
    for movie in size.movies:
        table = schedule.stimuli[movie.name]
        assert len(table) == movie.num_frames * movie.repeats
        np.testing.assert_allclose(np.diff(table.start), 1 / 30, atol=1e-9)
        np.testing.assert_allclose(table.end - table.start, 1 / 30, atol=1e-9)
        np.testing.assert_array_equal(table.columns["frame"][: movie.num_frames], np.arange(movie.num_frames))
        np.testing.assert_array_equal(np.bincount(table.columns["repeat"]), movie.num_frames)


def test_tables_lie_inside_the_recording_and_frames_are_the_nearest(schedule):
    times = schedule.timestamps
    for table in schedule.stimuli.values():
        assert table.start_frame.min() >= 0
        assert table.end_frame.max() < len(times)
        assert table.end.max() < times[-1]
        for moment, frame in ((table.start, table.start_frame), (table.end, table.end_frame)):
            away = np.abs(times[:, None] - moment[:200]).argmin(0)
            # Jitter may tip a moment halfway between two frames to either.
            assert (np.abs(away - frame[:200]) <= 1).all()
            assert (away == frame[:200]).mean() > 0.95


def test_epochs_hold_their_presentations_and_never_overlap(size, schedule):
    spans = np.concatenate(list(schedule.epochs.values()))
    spans = spans[np.argsort(spans[:, 0])]
    assert len(spans) == len(size.short.blocks)
    np.testing.assert_allclose(spans[1:, 0] - spans[:-1, 1], size.short.gap_s, atol=1.01)
    for name, table in schedule.stimuli.items():
        first, last = schedule.epochs[name].T
        row = np.searchsorted(first, table.start + 1e-9, side="right") - 1
        assert (table.end <= last[row] + 1e-9).all()
    lengths = np.diff(schedule.epochs["spontaneous"], axis=1)
    np.testing.assert_allclose(lengths, size.short.spontaneous_s)


def test_a_movie_in_two_blocks_is_divided():
    size = replace(
        SIZES["tiny"],
        movies=(MovieSpec("natural_movie_three", 30, 16, 32, repeats=5),),
        short=replace(SIZES["tiny"].short, blocks=("natural_movie_three", "spontaneous", "natural_movie_three")),
    )
    schedule = build_schedule(size, size.sessions[0], np.random.default_rng(0))
    table = schedule.stimuli["natural_movie_three"]
    assert set(schedule.stimuli) == {"natural_movie_three"}
    np.testing.assert_allclose(np.diff(schedule.epochs["natural_movie_three"], axis=1).ravel(), [3.0, 2.0])
    assert table.columns["repeat"][-1] == 4
    assert schedule.timestamps[-1] >= table.end[-1]


def test_unknown_size_and_bad_sizes_are_refused():
    with pytest.raises(ConfigError, match="no size 'smal', did you mean 'small'"):
        get_size("smal")
    with pytest.raises(ConfigError, match="blocks"):
        replace(SIZES["tiny"], short=replace(SIZES["tiny"].short, blocks=("static_gratings",)))
    with pytest.raises(ConfigError, match="units"):
        replace(SIZES["tiny"], num_units=(5, 4))
    with pytest.raises(ConfigError, match="gap_s"):
        replace(SIZES["tiny"].short, gap_s=0.0)
