"""The real sessions' schedules, exact to the frame."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from poyo_ssl import protocol
from poyo_ssl.observatory import SIZES
from poyo_ssl.observatory.allen_schedule import ALLEN_SESSIONS, MOVIE_FRAMES, NOISE_TEMPLATES
from poyo_ssl.observatory.animals import LINE_FACTS, draw_container
from poyo_ssl.observatory.schedule import build_allen_schedule

METADATA = Path(__file__).parents[3] / "shared/data/real/allen_metadata"
PRESENTATIONS = {
    "three_session_A": {"drifting_gratings": 628, "natural_movie_three": 36000, "natural_movie_one": 9000},
    "three_session_B": {"static_gratings": 6000, "natural_scenes": 5950, "natural_movie_one": 9000},
    "three_session_C": {"locally_sparse_noise": 8880, "natural_movie_one": 9000, "natural_movie_two": 9000},
    "three_session_C2": {"locally_sparse_noise": 5812 + 5584, "natural_movie_one": 9000, "natural_movie_two": 9000},
}
"""Published totals; with one row per spontaneous interval they are the lengths of the Allen's master tables."""
MASTER_ROWS = {"three_session_A": 45629, "three_session_B": 20951, "three_session_C": 26882, "three_session_C2": 29398}


@pytest.fixture(scope="module", params=list(ALLEN_SESSIONS))
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def schedule(kind):
    return build_allen_schedule(kind, np.random.default_rng(5))


def epoch_frames(schedule):
    """Blocks as (stimulus, first frame, end frame), from the written seconds, in order of time."""
    times = schedule.timestamps
    rows = [
        (name, *(int(np.abs(times - moment).argmin()) for moment in span))
        for name, spans in schedule.epochs.items()
        for span in spans
    ]
    return sorted(rows, key=lambda row: row[1])


def test_tables_have_the_published_numbers_of_rows(kind, schedule):
    assert {name: len(table) for name, table in schedule.stimuli.items()} == PRESENTATIONS[kind]
    total = sum(PRESENTATIONS[kind].values()) + len(schedule.epochs["spontaneous"])
    assert total == MASTER_ROWS[kind]


@pytest.mark.real_data
@pytest.mark.parametrize("letter", ["A", "B", "C2"])
def test_blocks_are_those_of_the_real_sessions(letter):
    path = METADATA / f"session_{letter}_epochs.csv"
    if not path.exists():
        pytest.skip(f"no {path}")
    real = pd.read_csv(path)
    plan = ALLEN_SESSIONS[f"three_session_{letter}"]
    assert plan.num_frames == real.end_frame.iloc[-1]
    shown = real[real.stimulus != "none"]
    mine = [(b.stimulus, b.start_frame, b.end_frame) for b in plan.blocks if b.stimulus != "spontaneous"]
    assert mine == list(shown[["stimulus", "start_frame", "end_frame"]].itertuples(index=False, name=None))
    # Spontaneous activity lies within what the real table calls "none".
    gray = real[real.stimulus == "none"]
    for block in plan.blocks:
        if block.stimulus == "spontaneous":
            assert ((gray.start_frame <= block.start_frame) & (block.end_frame <= gray.end_frame)).any()


def test_session_c_has_the_documented_blocks():
    blocks = [
        (b.stimulus.removeprefix("natural_"), b.start_frame, b.end_frame)
        for b in ALLEN_SESSIONS["three_session_C"].blocks
    ]
    assert blocks == [
        ("locally_sparse_noise", 743, 22418),
        ("spontaneous", 22568, 31450),
        ("movie_one", 31451, 40480),
        ("locally_sparse_noise", 41386, 63059),
        ("movie_two", 63963, 72992),
        ("spontaneous", 73142, 82024),
        ("locally_sparse_noise", 82025, 105503),
    ]


def test_tables_begin_and_end_on_the_frames_of_their_blocks(kind, schedule):
    plan = ALLEN_SESSIONS[kind]
    assert len(schedule.timestamps) == plan.num_frames
    assert epoch_frames(schedule) == [(b.stimulus, b.start_frame, b.end_frame) for b in plan.blocks]
    done = dict.fromkeys(schedule.stimuli, 0)
    for block in plan.blocks:
        if not block.num_presentations:
            continue
        name = "locally_sparse_noise" if block.stimulus in NOISE_TEMPLATES else block.stimulus
        table = schedule.stimuli[name]
        first, done[name] = done[name], done[name] + block.num_presentations
        assert table.start_frame[first] == block.start_frame
        assert table.end_frame[done[name] - 1] == block.end_frame
    assert done == {name: len(table) for name, table in schedule.stimuli.items()}


def test_presentations_last_as_long_as_they_should(kind, schedule):
    wanted = {"drifting_gratings": 2.0, "natural_movie": 1 / 30}
    for name, table in schedule.stimuli.items():
        length = next((seconds for prefix, seconds in wanted.items() if name.startswith(prefix)), 0.25)
        np.testing.assert_allclose(table.end - table.start, length, rtol=3e-4)
        frames = table.end_frame - table.start_frame
        # A movie frame may begin and end within one imaging frame.
        assert set(frames.tolist()) <= set(range(int(length * 30.0 + 1e-6) - (length < 0.1), int(length * 30.0) + 3))
    steps = np.diff(schedule.timestamps)
    assert 30.0 < 1 / steps.mean() < 30.3
    assert 0 < steps.std() < 5e-4


def test_drifting_gratings_are_598_sweeps_and_30_blanks():
    columns = build_allen_schedule("three_session_A", np.random.default_rng(0)).stimuli["drifting_gratings"].columns
    blank = columns["blank_sweep"]
    assert blank.sum() == 30
    pairs = np.stack([columns["orientation"], columns["temporal_frequency"]], axis=1)[~blank]
    shown, counts = np.unique(pairs, axis=0, return_counts=True)
    assert len(shown) == 40
    assert set(shown[:, 0]) == set(protocol.GRATING_DIRECTIONS_DEG)
    assert sorted(counts.tolist()) == [14, 14] + [15] * 38
    # `repeat` counts the sweeps of a condition from 0.
    for pair, count in zip(shown, counts, strict=True):
        mine = ~blank & (columns["orientation"] == pair[0]) & (columns["temporal_frequency"] == pair[1])
        assert columns["repeat"][mine].tolist() == list(range(count))


def test_images_come_as_often_as_published():
    stimuli = build_allen_schedule("three_session_B", np.random.default_rng(0)).stimuli
    frames, counts = np.unique(stimuli["natural_scenes"].columns["frame"], return_counts=True)
    assert frames.tolist() == list(range(-1, 118))
    assert (counts == 50).all()
    columns = stimuli["static_gratings"].columns
    blank = columns["blank_sweep"]
    assert blank.sum() == 191
    assert np.isnan(columns["phase"][blank]).all()
    keys = np.stack([columns[f"{key}_id"] for key in ("orientation", "spatial_frequency", "phase")], axis=1)[~blank]
    shown, counts = np.unique(keys, axis=0, return_counts=True)
    assert len(shown) == 120
    assert set(counts.tolist()) == {48, 49}
    np.testing.assert_array_equal(columns["orientation"][~blank], 30.0 * keys[:, 0])
    np.testing.assert_allclose(columns["spatial_frequency"][~blank], 0.02 * 2.0 ** keys[:, 1])
    np.testing.assert_array_equal(columns["phase"][~blank], 0.25 * keys[:, 2])


def test_movies_are_repeated_ten_times_in_order(kind, schedule):
    for name, length in MOVIE_FRAMES.items():
        if name in schedule.stimuli:
            columns = schedule.stimuli[name].columns
            np.testing.assert_array_equal(columns["frame"], np.tile(np.arange(length), 10))
            np.testing.assert_array_equal(columns["repeat"], np.repeat(np.arange(10), length))


def test_noise_frames_index_their_own_template():
    for kind, sizes in (
        ("three_session_C", {4.65: (9000, 8880)}),
        ("three_session_C2", {4.65: (5812, 5812), 9.3: (5584, 5584)}),
    ):
        columns = build_allen_schedule(kind, np.random.default_rng(0)).stimuli["locally_sparse_noise"].columns
        for pixel, (num_templates, num_shown) in sizes.items():
            frame = columns["frame"][columns["pixel_size"] == pixel]
            assert len(frame) == len(np.unique(frame)) == num_shown
            assert frame.max() == num_templates - 1


def test_paper_has_the_studys_recordings():
    size = SIZES["paper"]
    predictable = [session for session in size.sessions if session.cre_line in protocol.PUBLISHED_PREDICTABLE_LINES]
    assert (len(predictable), size.num_recordings) == (134, 433)
    assert {session.session_type for session in size.sessions} == {"three_session_A"}
    for line, facts in LINE_FACTS.items():
        assert 0 <= facts.containers - [session.cre_line for session in size.sessions].count(line) <= 5
    assert len({session.container for session in size.sessions}) == 433


def test_medium_has_containers_of_three_sessions():
    size = SIZES["medium"]
    assert size.num_recordings == 40
    by_container = {}
    for session in size.sessions:
        by_container.setdefault(session.container, []).append(session.session_type.removeprefix("three_session_"))
    kinds = list(by_container.values())
    assert kinds[:-1] == [["A", "B", "C" if kind[2] == "C" else "C2"] for kind in kinds[:-1]]
    assert {kind[2] for kind in kinds[:-1]} == {"C", "C2"}
    assert kinds[-1] == ["A"]


def test_line_facts_have_the_published_totals():
    assert sum(facts.containers for facts in LINE_FACTS.values()) == 456
    assert sum(facts.mice for facts in LINE_FACTS.values()) == 256
    assert all(sum(facts.reporters.values()) == facts.containers for facts in LINE_FACTS.values())


def test_mice_and_reporters_are_as_many_as_the_allens():
    for line, facts in LINE_FACTS.items():
        drawn = [draw_container(3, number, line, number, facts.containers) for number in range(facts.containers)]
        assert len({container.subject_id for container in drawn}) == facts.mice
        reporters = [container.reporter_line for container in drawn]
        assert {name: reporters.count(name) for name in facts.reporters} == dict(facts.reporters)
        sexes = {(container.subject_id, container.sex) for container in drawn}
        assert len(sexes) == facts.mice
        assert all(container.depth_um in facts.depths_um and container.area in facts.areas for container in drawn)
