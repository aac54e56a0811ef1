"""Sessions A, B and C of one container, with the Allen's schedules, written and read back."""

from dataclasses import replace

import numpy as np
import pytest
from same_stimuli import assert_same_stimuli

from poyo_ssl.data.recording import Recording
from poyo_ssl.observatory import CellClass, MovieSpec, ObservatorySize, get_world
from poyo_ssl.observatory.allen_nwb import write_allen_nwb
from poyo_ssl.observatory.allen_schedule import ALLEN_SESSIONS, MOVIE_FRAMES, NUM_SCENES
from poyo_ssl.observatory.movies import draw_noise
from poyo_ssl.observatory.sessions import simulate_recording
from poyo_ssl.observatory.sizes import SessionPlan
from poyo_ssl.sources.allen import AllenSource

LINE, UNITS = "Cux2-CreERT2", 24
NOISE = "locally_sparse_noise"


@pytest.fixture(scope="module")
def container(tmp_path_factory):
    """Three sessions of lively, well-tuned complex cells: what is true of them shows in an hour of events."""
    cell = CellClass(
        mean_rate_hz=4.0,
        burstiness=1.2,
        stimulus_information=0.85,
        rate_variance=2.0,
        drive_exponent=1.0,
        rf_cycles=0.3,
        untuned_fraction=0.0,
        suppressed_fraction=0.0,
        simple_fraction=0.0,
        affinity_spread=0.0,
        drift=0.05,
    )
    world = get_world("null")
    world = replace(world, classes={**world.classes, LINE: cell})
    kinds = ("three_session_A", "three_session_B", "three_session_C")
    sessions = tuple(
        SessionPlan(f"container_{kind[-1]}", LINE, 0, 0, 1, order, kind) for order, kind in enumerate(kinds)
    )
    movies = tuple(MovieSpec(name, frames, 9, 16) for name, frames in MOVIE_FRAMES.items())
    size = ObservatorySize("container", sessions, movies, num_units=(UNITS, UNITS))
    rng = np.random.default_rng(0)
    templates = {movie.name: rng.integers(0, 255, (movie.num_frames, 9, 16), dtype=np.uint8) for movie in movies}
    templates[NOISE] = draw_noise(NOISE, seed=0)
    templates["natural_scenes"] = rng.integers(0, 255, (NUM_SCENES, 9, 16), dtype=np.uint8)
    folder = tmp_path_factory.mktemp("container")
    paths = [
        simulate_recording(world=world, size=size, seed=0, index=index, templates=templates).save(
            folder / f"{session.recording_id}.h5"
        )
        for index, session in enumerate(sessions)
    ]
    return [Recording.open(path) for path in paths], templates


@pytest.mark.parametrize(("earlier", "later"), [(0, 1), (0, 2), (1, 2)])
def test_sessions_match_in_part_and_matched_cells_are_the_same_ones_drifted(container, earlier, later):
    recordings, _ = container
    first, second = recordings[earlier], recordings[later]
    common, rows, others = np.intersect1d(first.cell_specimen_ids, second.cell_specimen_ids, return_indices=True)
    # Each session finds 24 of 40 cells, so 14.4 on average are in both, with a standard deviation of 1.5.
    assert 8 <= len(common) <= 21
    for name in ("spatial_frequency_cpd", "temporal_frequency_hz", "phase_rad", "roi_row_px"):
        np.testing.assert_array_equal(first.truth[name][rows], second.truth[name][others])
    turned = second.truth["direction_deg"][others] - first.truth["direction_deg"][rows]
    assert 0 < np.abs(turned).max() < 30
    assert first.metadata.subject_id == second.metadata.subject_id
    assert first.metadata.container_id == second.metadata.container_id
    days = (
        np.datetime64(second.metadata.recording_date[:10]) - np.datetime64(first.metadata.recording_date[:10])
    ).astype(int)
    assert days >= 1
    assert second.metadata.age_days - first.metadata.age_days == days


def test_schedules_are_the_allen_s_to_the_frame(container):
    recordings, _ = container
    for recording in recordings:
        plan = ALLEN_SESSIONS[recording.metadata.session_type]
        assert recording.num_frames == plan.num_frames
        for name, table in recording.stimuli.items():
            blocks = [block for block in plan.blocks if block.stimulus == name]
            assert len(table) == sum(block.num_presentations for block in blocks)
            edges = np.cumsum([0, *(block.num_presentations for block in blocks)])
            for block, low, high in zip(blocks, edges[:-1], edges[1:], strict=True):
                assert table.start_frame[low] == block.start_frame
                assert table.end_frame[high - 1] == block.end_frame


def test_receptive_fields_are_found_by_the_event_triggered_average(container):
    (_, _, recording), templates = container
    table = recording.stimulus(NOISE)
    counts = recording.events.dense(recording.num_frames, recording.num_units)
    # The kernel's peak comes 0.05 s after a frame comes on: count from then until as long after it goes off.
    delay = round(0.05 * recording.rate_hz)
    total = np.concatenate([np.zeros((1, UNITS)), np.cumsum(counts, axis=0)])
    answer = total[table.end_frame + delay] - total[table.start_frame + delay]
    shown = templates[NOISE][table.columns["frame"]].reshape(len(table), -1)
    # Complex cells answer black and white alike: the average of the squared contrast.
    contrast = (shown != 127).astype(float)
    average = answer.T @ contrast / answer.sum(0)[:, None] - contrast.mean(0)
    row, column = np.divmod(average.argmax(1), 28)
    x, y = (column - 13.5) * 4.65, (7.5 - row) * 4.65
    away = np.hypot(x - recording.truth["rf_x_deg"], y - recording.truth["rf_y_deg"])
    # The best pixel is within the envelope of most; by chance it would be some 45 degrees away.
    assert np.median(away / recording.truth["rf_sigma_deg"]) < 1.0
    assert np.median(away) < 10


def test_preferred_directions_are_found_from_the_gratings(container):
    (recording, _, _), _ = container
    table = recording.stimulus("drifting_gratings")
    table = table.select(~table.columns["blank_sweep"])
    total = np.concatenate(
        [np.zeros((1, UNITS)), np.cumsum(recording.events.dense(recording.num_frames, UNITS), axis=0)]
    )
    counts = total[table.end_frame] - total[table.start_frame]
    direction = table.columns["orientation_id"].astype(int)
    tuning = np.stack([counts[direction == number].mean(0) for number in range(8)])
    expected = recording.truth["drifting_gratings_rate_hz"].mean(1) * 2.0
    correlation = [np.corrcoef(tuning[:, unit], expected[:, unit])[0, 1] for unit in range(UNITS)]
    assert np.median(correlation) > 0.95
    orientation = np.angle(np.exp(2j * np.deg2rad(45.0 * np.arange(8))) @ tuning)
    apart = np.abs(np.angle(np.exp(1j * (orientation - 2 * np.deg2rad(recording.truth["direction_deg"]))))) / 2
    assert np.rad2deg(np.median(apart)) < 10


def test_preferred_orientations_are_found_from_static_gratings(container):
    (_, recording, _), _ = container
    table = recording.stimulus("static_gratings")
    table = table.select(~table.columns["blank_sweep"])
    delay = round(0.05 * recording.rate_hz)
    total = np.concatenate(
        [np.zeros((1, UNITS)), np.cumsum(recording.events.dense(recording.num_frames, UNITS), axis=0)]
    )
    counts = total[table.end_frame + delay] - total[table.start_frame + delay]
    # At the spatial frequencies that the cells prefer; the finest are seen by none.
    coarse = table.columns["spatial_frequency"] < 0.1
    tuning = np.stack([counts[coarse & (table.columns["orientation_id"] == number)].mean(0) for number in range(6)])
    orientation = np.angle(np.exp(2j * np.deg2rad(30.0 * np.arange(6))) @ tuning)
    apart = np.abs(np.angle(np.exp(1j * (orientation - 2 * np.deg2rad(recording.truth["direction_deg"]))))) / 2
    # By chance 45.
    assert np.rad2deg(np.median(apart)) < 10


@pytest.mark.parametrize("order", [1, 2])
def test_sessions_b_and_c_come_back_from_allen_files(container, tmp_path, order):
    # Session A's way there and back is tested with whole data folders.
    recordings, templates = container
    made = replace(
        recordings[order],
        recording_id="90000001",
        unit_ids=np.array([f"90000001{unit:04d}" for unit in range(UNITS)]),
        metadata=replace(recordings[order].metadata, container_id="80000000"),
    )
    found = AllenSource().read(write_allen_nwb(made, tmp_path / "90000001.nwb", templates=templates))
    np.testing.assert_array_equal(made.read_dff(0, made.num_frames), found.read_dff(0, found.num_frames))
    assert_same_stimuli(made, found)
    for name, spans in made.epochs.items():
        np.testing.assert_array_equal(spans, found.epochs[name])
