import hashlib
import multiprocessing
import os
import shutil
import signal
from collections import namedtuple

import numpy as np
import pytest

from poyo_ssl.cli import main
from poyo_ssl.data.recording import Recording, open_recordings
from poyo_ssl.data.stimuli import load_movie
from poyo_ssl.errors import ConfigError, RecordingError, ResourceError
from poyo_ssl.observatory import SIZES, foreseen_bytes, generate_observatory, get_world, movie_cuts
from poyo_ssl.observatory.allen_nwb import experiment_id
from poyo_ssl.observatory.sessions import simulate_recording


def digests(folder):
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


class InterruptedGenerationError(Exception):
    pass


def test_same_seed_same_bytes_whatever_the_workers(tiny_folder, tmp_path):
    generate_observatory(tmp_path / "two", size="tiny", seed=0, workers=2)
    assert digests(tmp_path / "two") == digests(tiny_folder)


def test_another_seed_gives_other_recordings(tiny_folder, tmp_path):
    generate_observatory(tmp_path / "other", size="tiny", seed=1)
    other, here = digests(tmp_path / "other"), digests(tiny_folder)
    assert set(other) == set(here)
    assert not set(other.values()) & set(here.values())


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_generation_continues(tiny_folder, tmp_path, workers):
    def stop(path):
        raise InterruptedGenerationError

    with pytest.raises(InterruptedGenerationError) as stopped:
        generate_observatory(tmp_path / "data", size="tiny", seed=0, workers=workers, progress=stop)
    # Nothing goes on writing behind the back of who catches the exception and still holds it.
    assert stopped.value
    assert not multiprocessing.active_children()
    recordings = set((tmp_path / "data").glob("*.h5"))
    assert 1 <= len(recordings) < 4 if workers == 1 else recordings
    # Movies are rendered once: they are kept too.
    movies = set((tmp_path / "data" / "stimuli").iterdir())
    assert {path.stem for path in movies} == {movie.name for movie in SIZES["tiny"].movies}
    kept = {path: path.stat().st_mtime_ns for path in recordings | movies}
    seen = []
    paths = generate_observatory(tmp_path / "data", size="tiny", seed=0, progress=seen.append)
    assert sorted(seen) == paths
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    assert digests(tmp_path / "data") == digests(tiny_folder)


def test_an_error_in_a_worker_is_the_user_s(tiny_folder, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(tiny_folder, folder)
    (folder / "stimuli" / "natural_movie_two.npy").write_bytes(b"damaged")
    for session in SIZES["tiny"].sessions[:2]:
        (folder / f"{session.recording_id}.h5").unlink()
    with pytest.raises(RecordingError, match=r"natural_movie_two\.npy is not a movie file"):
        generate_observatory(folder, size="tiny", seed=0, workers=2)


def test_a_worker_that_is_killed_is_said_and_the_command_goes_on(tiny_folder, tmp_path):
    def kill(path):
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)

    with pytest.raises(ResourceError, match=r"was killed \(SIGKILL\), often for want of memory.*same command"):
        generate_observatory(tmp_path / "data", size="tiny", seed=0, workers=2, progress=kill)
    generate_observatory(tmp_path / "data", size="tiny", seed=0)
    assert digests(tmp_path / "data") == digests(tiny_folder)


def test_what_a_killed_generation_left_is_done_again(tiny_folder, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(tiny_folder, folder)
    # Killed while it wrote a movie and a recording: both lie there in part, under other names.
    movie, recording = (
        folder / "stimuli" / "natural_movie_two.npy",
        folder / f"{SIZES['tiny'].sessions[2].recording_id}.h5",
    )
    for path, rest in ((movie, "natural_movie_two.4711.partial"), (recording, f"{recording.name}.partial")):
        (path.parent / rest).write_bytes(path.read_bytes()[:1000])
        path.unlink()
    generate_observatory(folder, size="tiny", seed=0)
    assert digests(folder) == digests(tiny_folder)


def test_a_folder_of_another_generation_is_refused_unless_overwritten(tiny_folder, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(tiny_folder, folder)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(RecordingError, match="holds world 'allen_like', size 'tiny', seed 0"):
        generate_observatory(folder, size="tiny", world="null")
    assert digests(folder) == digests(tiny_folder) | {"notes.txt": digests(folder)["notes.txt"]}
    paths = generate_observatory(folder, size="tiny", world="null", overwrite=True)
    assert "world null" in Recording.open(paths[0]).metadata.origin
    assert (folder / "notes.txt").read_text() == "mine"


def test_foreign_recordings_and_damaged_manifests_are_refused(tiny_folder, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "session.h5").write_bytes(b"")
    with pytest.raises(RecordingError, match="recordings from elsewhere"):
        generate_observatory(tmp_path / "mine", size="tiny", overwrite=True)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "observatory.json").write_text("{")
    with pytest.raises(RecordingError, match="damaged"):
        generate_observatory(tmp_path / "damaged", size="tiny")
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordingError, match="is a file"):
        generate_observatory(tmp_path / "file", size="tiny")


def test_wrong_settings_leave_no_folder(tmp_path):
    folder = tmp_path / "data"
    for wrong, message in (
        ({"world": "nul"}, "no world 'nul', did you mean 'null'"),
        ({"size": "tyni"}, "no size 'tyni' .*tiny, small, medium, paper"),
        ({"seed": -1}, "seed of -1"),
        ({"seed": 2**32}, r"seed of 4294967296 \(allowed: 0 to 4294967295\)"),
        ({"workers": 0}, "0 workers"),
        ({"dff_procedure": "allen_mod"}, "no dF/F procedure 'allen_mod'"),
    ):
        with pytest.raises(ConfigError, match=message):
            generate_observatory(folder, **{"size": "tiny"} | wrong)
    assert not folder.exists()


@pytest.mark.parametrize("setting", ["--seed=-1", "--workers=0", "--world=nul"])
def test_a_wrong_setting_is_one_line_and_exit_code_2(tmp_path, setting, capfd):
    assert main(["prepare", "observatory", str(tmp_path / "data"), "--size=tiny", setting]) == 2
    said = [line for line in capfd.readouterr().err.splitlines() if "poyo-ssl:" in line]
    assert len(said) == 1
    assert "allowed" in said[0]


def test_the_largest_seed_has_ids_of_its_own(tmp_path):
    size, largest = SIZES["tiny"], 2**32 - 1
    templates = {movie.name: np.zeros((movie.num_frames, 16, 32), np.uint8) for movie in size.movies}
    made = simulate_recording(world=get_world("null"), size=size, seed=largest, index=3, templates=templates)
    assert len(np.unique(made.cell_specimen_ids)) == made.num_units
    assert (made.cell_specimen_ids // 10**8 == largest).all()
    assert int(f"{experiment_id(largest, 432)}{9999:04d}") < 2**63


def test_too_little_disk_is_foreseen(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    with pytest.raises(ResourceError, match="0 MB are free"):
        generate_observatory(tmp_path / "data", size="tiny")
    assert not (tmp_path / "data").exists()


def test_a_complete_folder_needs_no_space(tiny_folder, tmp_path, monkeypatch):
    folder = tmp_path / "data"
    shutil.copytree(tiny_folder, folder)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    assert len(generate_observatory(folder, size="tiny", seed=0)) == 4
    # One recording is missing, its movies are there: that recording's space is asked for.
    (folder / f"{SIZES['tiny'].sessions[0].recording_id}.h5").unlink()
    one = foreseen_bytes(SIZES["tiny"], [0]) - foreseen_bytes(SIZES["tiny"], [])
    with pytest.raises(ResourceError, match=f"takes {one / 2**20:.0f} MB more"):
        generate_observatory(folder, size="tiny", seed=0)


def test_foreseen_space_is_enough_and_not_far_too_much(tiny_folder):
    taken = sum(path.stat().st_size for path in tiny_folder.rglob("*") if path.is_file())
    assert taken < foreseen_bytes(SIZES["tiny"]) < 3 * taken
    one, three = foreseen_bytes(SIZES["tiny"], [0]), foreseen_bytes(SIZES["tiny"], [1, 2, 3])
    stimuli = sum(path.stat().st_size for path in (tiny_folder / "stimuli").iterdir())
    assert abs(one + three - foreseen_bytes(SIZES["tiny"]) - stimuli) < 0.02 * stimuli


def test_recordings_say_where_they_come_from(tiny_recordings):
    animals = {recording.metadata.subject_id for recording in tiny_recordings}
    assert len(animals) == 4
    lines = [session.cre_line for session in SIZES["tiny"].sessions]
    for recording, line in zip(tiny_recordings, lines, strict=True):
        metadata = recording.metadata
        assert metadata.cre_line == line
        assert recording.recording_id.isascii()
        assert metadata.origin == "simulated (poyo-ssl observatory, world allen_like, seed 0)"
        assert metadata.indicator == ("GCaMP6s" if line == "Pvalb-IRES-Cre" else "GCaMP6f")
        assert metadata.container_id
        assert 80 <= metadata.age_days < 140
        assert 175 <= metadata.depth_um <= 625
    ids = np.concatenate([recording.cell_specimen_ids for recording in tiny_recordings])
    assert len(np.unique(ids)) == len(ids)


def test_recordings_hold_stimuli_movies_and_cuts(tiny_folder, tiny_recordings):
    size = SIZES["tiny"]
    cuts = movie_cuts(size.movies, seed=0)
    for recording in tiny_recordings:
        assert set(recording.stimuli) == {"drifting_gratings", "natural_movie_one", "natural_movie_two"}
        assert set(recording.epochs) == {*recording.stimuli, "spontaneous"}
        assert np.isfinite(recording.read_dff(0, recording.num_frames)).all()
        for movie in size.movies:
            np.testing.assert_array_equal(recording.truth[f"{movie.name}_cuts"], cuts[movie.name])
            assert load_movie(tiny_folder, movie.name).shape == (movie.num_frames, movie.height, movie.width)


def test_truth_has_a_value_for_every_unit(tiny_recordings):
    for recording in tiny_recordings:
        truth, num_units = recording.truth, recording.num_units
        others = {"rate_hz": (-(-recording.num_frames // 3), num_units), "rate_bin_frames": (1,)}
        others["affinity"] = (num_units, 5)
        for movie in SIZES["tiny"].movies:
            others[f"{movie.name}_drive"] = others[f"{movie.name}_rate_hz"] = (movie.num_frames, num_units)
            others[f"{movie.name}_cuts"] = truth[f"{movie.name}_cuts"].shape
        others["drifting_gratings_drive"] = others["drifting_gratings_rate_hz"] = (8, 1, num_units)
        assert set(others) < set(truth)
        assert len(set(truth) - set(others)) >= 28
        for name, values in truth.items():
            assert values.shape == others.get(name, (num_units,)), name
            assert values.dtype == bool or np.isfinite(values).all(), name
        rate = recording.events.dense(recording.num_frames, recording.num_units).sum(0) / recording.duration_s
        assert np.corrcoef(rate, truth["mean_rate_hz"])[0, 1] > 0.5
        # The mean over the session is what the truth says, up to the draw of the events and rounding to half precision.
        np.testing.assert_allclose(truth["rate_hz"].mean(0, dtype=float), truth["mean_rate_hz"], rtol=0.01)


def test_running_is_saved_on_the_imaging_clock(tiny_recordings):
    for recording in tiny_recordings:
        np.testing.assert_array_equal(recording.running.timestamps, recording.timestamps)
        assert -3 < recording.running.values.min() < 1
        assert recording.running.values.max() < 120


@pytest.fixture(scope="module")
def mode_recordings(tmp_path_factory):
    """The tiny folder with the Allen's earlier recipe, which leaves the shape of transients alone."""
    folder = tmp_path_factory.mktemp("mode")
    generate_observatory(folder, size="tiny", seed=0, dff_procedure="allen_mode")
    return open_recordings(folder)


def test_the_recipe_changes_traces_and_nothing_else(tiny_recordings, mode_recordings):
    for one, two in zip(tiny_recordings, mode_recordings, strict=True):
        assert (one.read_dff(0, 100) != two.read_dff(0, 100)).mean() > 0.9
        np.testing.assert_array_equal(one.events.frame, two.events.frame)
        assert set(one.truth) == set(two.truth)
        for name, values in one.truth.items():
            np.testing.assert_array_equal(values, two.truth[name])


@pytest.mark.parametrize("index", [0, 1])
def test_kernel_decay_is_recovered_from_the_file(mode_recordings, index):
    # Finite-impulse regression of dF/F on the events, then a line through the logarithm of its tail.
    recording = mode_recordings[index]
    events = recording.events.dense(recording.num_frames, recording.num_units)
    dff = recording.read_dff(0, recording.num_frames)
    decay = float(recording.truth["kernel_decay_s"][0])
    lags = np.arange(int(3 * decay * recording.rate_hz))
    kernels = []
    for unit in range(recording.num_units):
        design = np.stack([np.roll(events[:, unit], lag) for lag in lags], axis=1)[len(lags) :]
        design = np.column_stack([design, np.ones(len(design))])
        kernels.append(np.linalg.lstsq(design, dff[len(lags) :, unit], rcond=None)[0][:-1])
    kernel = np.mean(kernels, axis=0)
    tail = slice(int(0.6 * decay * recording.rate_hz), None)
    slope = np.polyfit(lags[tail] / recording.rate_hz, np.log(kernel[tail]), 1)[0]
    assert abs(-1 / slope / decay - 1) < 0.15


def test_gratings_tuning_is_recovered_from_the_file(tiny_recordings):
    found = []
    for recording in tiny_recordings:
        table = recording.stimuli["drifting_gratings"]
        table = table.select(~table.columns["blank_sweep"])
        counts = recording.events.dense(recording.num_frames, recording.num_units)
        trials = np.stack([counts[a:b].sum(0) for a, b in zip(table.start_frame, table.end_frame, strict=True)])
        direction = table.columns["orientation_id"]
        tuning = np.stack([trials[direction == number].mean(0) for number in range(8)])
        drive = recording.truth["drifting_gratings_drive"][:, 0]
        clear = recording.truth["tuned"] & (recording.truth["stimulus_depth"] > 0.3)
        found += [np.corrcoef(tuning[:, unit], drive[:, unit])[0, 1] for unit in np.flatnonzero(clear)]
    assert len(found) > 15
    assert np.median(found) > 0.6


def test_torch_brain_opens_the_folder(tiny_folder, tiny_recordings):
    datasets = pytest.importorskip("torch_brain.datasets")
    dataset = datasets.AllenVisualCodingOphys2016(root=str(tiny_folder.parent), dirname=tiny_folder.name)
    assert sorted(dataset.recording_ids) == [recording.recording_id for recording in tiny_recordings]
    first = dataset.get_recording(dataset.recording_ids[0])
    own = Recording.open(tiny_folder / f"{dataset.recording_ids[0]}.h5")
    np.testing.assert_allclose(first.calcium_traces.df_over_f[:10], own.read_dff(0, 10))
    np.testing.assert_allclose(first.natural_movie_one.start[:5], own.stimuli["natural_movie_one"].start[:5])


def test_open_recordings_sees_nothing_but_recordings(tiny_folder):
    assert len(open_recordings(tiny_folder)) == 4
    assert not list(tiny_folder.rglob("*.partial"))
