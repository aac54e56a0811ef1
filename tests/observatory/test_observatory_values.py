"""Values worked out by hand, one function each."""

import h5py
import numpy as np
import pytest
from spectra import amplitude_slope

from poyo_ssl.data.recording import Recording, RecordingMetadata
from poyo_ssl.errors import ConfigError
from poyo_ssl.observatory import CellClass, Indicator, MovieSpec, foreseen_bytes, get_size, get_world, movie_cuts
from poyo_ssl.observatory.allen_nwb import PIPELINE, experiment_id, write_allen_nwb
from poyo_ssl.observatory.allen_schedule import Block, block_shares, draw_conditions
from poyo_ssl.observatory.animals import draw_container, simulate_behaviour, simulate_running, slow_noise
from poyo_ssl.observatory.calcium import expected_moments, kernel_shape
from poyo_ssl.observatory.cells import draw_population, draw_roi_masks, drift_population
from poyo_ssl.observatory.movies import draw_noise, plan_shots, render_movie, sample_view, to_grey
from poyo_ssl.observatory.schedule import build_allen_schedule, build_schedule, draw_clock
from poyo_ssl.observatory.sessions import recording_ids, shown_templates
from poyo_ssl.observatory.worlds import GCAMP6F


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_schedule_is_that_of_the_real_sessions(rng):
    start, end = block_shares(Block("drifting_gratings", 0, 150, 2))
    assert (start.tolist(), end.tolist()) == ([0.0, 0.6], [0.4, 1.0])
    scenes = draw_conditions("natural_scenes", rng)["frame"]
    assert (len(scenes), (scenes == -1).sum()) == (5950, 50)
    size = get_size("medium")
    gratings = build_schedule(size, size.sessions[0], rng).stimuli["drifting_gratings"]
    assert (len(gratings), gratings.start_frame[0], gratings.end_frame[-1]) == (628, 743, 115226)
    counts = {name: len(table) for name, table in build_allen_schedule("three_session_C2", rng).stimuli.items()}
    assert counts == {"locally_sparse_noise": 11396, "natural_movie_one": 9000, "natural_movie_two": 9000}
    assert shown_templates(size, size.sessions[1]) == ("natural_movie_one", "natural_scenes")
    steps = np.diff(draw_clock(300, 30.1, rng))
    assert (steps > 0.03).all()
    assert round(1 / steps.mean(), 1) == 30.1


def test_sizes():
    assert [get_size(name).num_recordings for name in ("small", "medium", "paper")] == [13, 40, 433]
    assert foreseen_bytes(get_size("small")) < 150 * 2**20
    assert foreseen_bytes(get_size("paper")) // 2**30 == 51
    assert recording_ids(get_size("tiny"))[0] == "obs_000_Cux2-CreERT2"


def test_containers_share_mice_as_the_allens_do():
    one, two = (draw_container(0, place, "Cux2-CreERT2", place, 76) for place in (0, 1))
    assert one.subject_id == two.subject_id
    assert one.container_id != two.container_id


def test_behaviour(rng):
    behaviour = simulate_behaviour(9000, 30.0, rng)
    assert np.corrcoef(behaviour.arousal, behaviour.pupil_size)[0, 1] > 0.9
    assert simulate_running(3000, 30.0, rng).dtype == np.float32
    noise = slow_noise((20_000, 1), 10.0, np.random.default_rng(0))[:, 0]
    assert abs(np.corrcoef(noise[10:], noise[:-10])[0, 1] - np.exp(-1)) < 0.05


def test_kernel_and_moments_of_poisson_events():
    assert kernel_shape(GCAMP6F, 30.0)[0] == 0
    quick = Indicator("quick", rise_s=1e-6, decay_s=0.4, amplitude=1.0)
    skewness, kurtosis = expected_moments(
        mean_rate_hz=0.5, burstiness=1.0, indicator=quick, noise_level=0.0, rate_hz=1000.0
    )
    # Without a rise these are 0.943 / sqrt(r tau) and 1 / (r tau).
    assert skewness == pytest.approx(0.943 / 0.2**0.5, rel=0.005)
    assert kurtosis == pytest.approx(1 / 0.2, rel=0.005)


def test_cells(rng):
    masks = draw_roi_masks(20, rng)
    assert set(masks.unit.tolist()) == set(range(20))
    assert not (masks.dense(0) & masks.dense(1)).any()
    before = draw_population(CellClass(), 500, np.random.default_rng(0))
    assert (abs(before.rf_x_deg) < 60).all()
    after = drift_population(before, CellClass(drift=0.1), 4.0, rng)
    # 45 degrees x drift x sqrt(4 days)
    assert (after.direction_deg - before.direction_deg).std() == pytest.approx(9, abs=0.6)


def test_pictures(rng):
    picture = np.array([[0.0, 1.0], [2.0, 3.0]])
    assert sample_view(picture, np.array([0.5]), np.array([0.0, 0.5])).tolist() == [[1.0, 1.5]]
    assert to_grey(np.array([[0.0, 1.0]])).tolist() == [[75, 179]]
    assert abs(amplitude_slope(rng.standard_normal((8, 64, 64)))) < 0.1
    noise = draw_noise("locally_sparse_noise_8deg", seed=0)
    assert noise.shape == (5584, 8, 14)
    assert np.unique(noise).tolist() == [0, 127, 255]


def test_movies_share_no_picture():
    movies = [MovieSpec("natural_movie_one", 300), MovieSpec("natural_movie_two", 300)]
    plan = plan_shots(movies, seed=0)
    pictures = [shot.picture for shots in plan.values() for shot in shots]
    assert len(pictures) == len(set(pictures))
    assert plan["natural_movie_two"][-1].stop == 300
    assert 2 <= len(movie_cuts(movies[:1], seed=0)["natural_movie_one"]) <= 4
    small = [MovieSpec("natural_movie_one", 60, 16, 32)]
    pixels = render_movie(small[0], small, seed=0)
    assert (pixels.shape, pixels.dtype) == ((60, 16, 32), np.uint8)


def test_worlds_name_what_is_wrong():
    assert get_world("allen_like").classes["Pvalb-IRES-Cre"].indicator.name == "GCaMP6s"
    assert get_world("allen_like").cell_class("Slc17a7-IRES2-Cre", "Ai94(TITL-GCaMP6s)").indicator.name == "GCaMP6s"
    with pytest.raises(ConfigError, match=r"mean_rate_hz of -1.0 \(allowed: above 0\)"):
        CellClass(mean_rate_hz=-1.0)
    with pytest.raises(ConfigError, match="no world 'nul', did you mean 'null'"):
        get_world("nul")


def test_allen_file_of_a_recording(tmp_path, rng):
    assert [experiment_id(0, 12), experiment_id(12345, 432)] == ["90000012", "912345432"]
    metadata = RecordingMetadata(
        "308148",
        container_id="591392164",
        cre_line="Vip-IRES-Cre",
        age_days=114.0,
        depth_um=175,
        session_type="three_session_A",
        targeted_structure="VISp",
        recording_date="2017-05-31 10:29:38",
    )
    clock = 26.7 + np.arange(60) / 30
    made = Recording("592494159", np.zeros((60, 3), np.float32), clock, metadata, roi_masks=draw_roi_masks(3, rng))
    with h5py.File(write_allen_nwb(made, tmp_path / "592494159.nwb")) as file:
        assert file["session_start_time"][()] == b"Wed May 31 10:29:38 2017"
        assert file[PIPELINE + "/DfOverF/imaging_plane_1/data"].shape == (3, 60)
