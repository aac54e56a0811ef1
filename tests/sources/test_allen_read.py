"""Allen NWB 1 files: what was written comes back, in sessions A, B, C and C2 and in the oldest and newest layouts."""

import pickle

import h5py
import numpy as np
import pytest
from allen_samples import BLOCKS, draw_templates, make_session, write_session

from poyo_ssl.data.recording import Recording
from poyo_ssl.data.stimuli import load_movie
from poyo_ssl.sources.allen import AllenSource, read_fluorescence
from poyo_ssl.sources.run import convert

MODULE = "processing/brain_observatory_pipeline"


def _assert_same(found, made):
    np.testing.assert_array_equal(found.read_dff(0, found.num_frames), made.dff)
    np.testing.assert_array_equal(found.timestamps, made.timestamps)
    assert found.unit_ids.tolist() == made.unit_ids.tolist()
    assert found.cell_specimen_ids.tolist() == made.cell_specimen_ids.tolist()
    assert set(found.stimuli) == set(made.stimuli)
    for name, table in made.stimuli.items():
        again = found.stimuli[name]
        for field in ("start_frame", "end_frame", "start", "end"):
            np.testing.assert_array_equal(getattr(again, field), getattr(table, field))
        assert set(again.columns) == set(table.columns)
        for column, values in table.columns.items():
            np.testing.assert_array_equal(again.columns[column], values, err_msg=f"{name} {column}")
    for kind, fields in {"running": ["values"], "pupil": ["location", "size"], "motion": ["values"]}.items():
        for field in ("timestamps", *fields):
            np.testing.assert_array_equal(getattr(getattr(found, kind), field), getattr(getattr(made, kind), field))
    for unit in range(made.num_units):
        np.testing.assert_array_equal(found.roi_masks.dense(unit), made.roi_masks.dense(unit))


@pytest.mark.parametrize("session_type", BLOCKS)
def test_a_session_comes_back_as_it_was_written(session_type, tmp_path):
    made, path = write_session(tmp_path, session_type)
    found = AllenSource().read(path)
    assert found.warnings == ()
    _assert_same(found, made)
    about, given = vars(found.metadata), vars(made.metadata)
    assert {key for key in about if about[key] != given[key]} == {"origin"}
    assert found.metadata.origin == "Allen NWB 1 file, pipeline 3.0, Allen Institute for Brain Science"
    # A block ends with its last presentation, in the samples as in the real schedule.
    for name, spans in made.epochs.items():
        got = found.epochs[name]
        np.testing.assert_array_equal(got[:, 0], spans[:, 0])
        np.testing.assert_allclose(got[:, 1], spans[:, 1], atol=1e-9)
    order = sorted((start, name) for name, spans in found.epochs.items() for start in spans[:, 0])
    assert [name for _, name in order] == BLOCKS[session_type]


@pytest.mark.parametrize("session_type", ["three_session_A", "three_session_C2"])
def test_conversion_writes_a_recording_and_the_pixels_once(session_type, tmp_path):
    made, _ = write_session(tmp_path / "ophys_experiment_data", session_type)
    outcomes = convert(AllenSource(), tmp_path, tmp_path / "data")
    assert [(o.recording_id, o.status, o.error, o.warnings) for o in outcomes] == [("501574836", "written", "", ())]
    _assert_same(Recording.open(tmp_path / "data" / "501574836.h5"), made)
    shown = {name for name in BLOCKS[session_type] if "gratings" not in name and name != "spontaneous"}
    assert {path.stem for path in (tmp_path / "data" / "stimuli").iterdir()} == shown
    for name in shown:
        np.testing.assert_array_equal(load_movie(tmp_path / "data", name), draw_templates()[name])
    assert [o.status for o in convert(AllenSource(), tmp_path, tmp_path / "data")] == ["unchanged"]


@pytest.mark.parametrize("layout", [{}, {"chunks": (4, 600)}, {"chunks": (1, 1000), "compression": "gzip"}])
def test_a_recording_travels_to_another_process(layout, tmp_path):
    made, path = write_session(tmp_path)
    with h5py.File(path, "a") as file:
        name = f"{MODULE}/DfOverF/imaging_plane_1/data"
        del file[name]
        file.create_dataset(name, data=made.dff.T, **layout)
    sent = pickle.dumps(AllenSource().read(path))
    assert len(sent) < path.stat().st_size - made.dff.nbytes
    _assert_same(pickle.loads(sent), made)


def test_torch_brain_opens_a_converted_file(tmp_path):
    datasets = pytest.importorskip("torch_brain.datasets")
    made, _ = write_session(tmp_path, "three_session_B")
    convert(AllenSource(), tmp_path, tmp_path / "study")
    dataset = datasets.AllenVisualCodingOphys2016(root=str(tmp_path), dirname="study")
    data = dataset.get_recording("501574836")
    np.testing.assert_array_equal(data.calcium_traces.df_over_f[:], made.dff)
    scenes = made.stimuli["natural_scenes"]
    np.testing.assert_array_equal(data.natural_scenes.frame, scenes.columns["frame"] + 1)
    gratings = made.stimuli["static_gratings"]
    shown = ~gratings.columns["blank_sweep"]
    for column in ("orientation_id", "spatial_frequency_id", "phase_id", "phase"):
        np.testing.assert_array_equal(getattr(data.static_gratings, column), gratings.columns[column][shown])
    assert data.rois.imaging_plane_xy[:].shape == (5, 2)
    assert np.isfinite(data.rois.imaging_plane_xy[:]).all()
    data.file.close()


# Blocks of real sessions in imaging frames (first start, last end), as published.
REAL_BLOCKS = {
    "three_session_A": {
        "drifting_gratings": [[736, 18810], [48712, 66786], [94878, 115485]],
        "natural_movie_three": [[19746, 37850], [75869, 93972]],
        "natural_movie_one": [[38756, 47807]],
    },
    "three_session_B": {
        "static_gratings": [[747, 15196], [54953, 69403], [97406, 113662]],
        "natural_scenes": [[16100, 30551], [39582, 54050], [80241, 96126]],
        "natural_movie_one": [[70307, 79338]],
    },
    "three_session_C": {
        "locally_sparse_noise": [[743, 22418], [41386, 63059], [82025, 105503]],
        "natural_movie_one": [[31451, 40480]],
        "natural_movie_two": [[63963, 72992]],
    },
}
SLOW = {"drifting_gratings": (90, 60), "natural_movie_one": (1, 1), "natural_movie_two": (1, 1)}


@pytest.mark.parametrize("session_type", REAL_BLOCKS)
def test_blocks_of_real_schedules(session_type):
    from poyo_ssl.sources.base import Notes
    from poyo_ssl.sources.coding import find_blocks

    for name, blocks in REAL_BLOCKS[session_type].items():
        step, length = SLOW.get(name, (1, 1) if name == "natural_movie_three" else (7, 7))
        pieces = []
        for first, last in blocks:
            start = np.arange(first, last - length + 1, step)
            piece = np.stack([start, start + length], axis=1)
            piece[-1, 1] = last
            pieces.append(piece)
        spans = np.concatenate(pieces)
        assert find_blocks(name, spans, session_type, notes := Notes()).tolist() == blocks
        assert list(notes) == []


def test_dropped_frames_do_not_cut_a_block(tmp_path):
    made, path = write_session(tmp_path)
    with h5py.File(path, "a") as file:
        frames = file["stimulus/presentation/drifting_gratings_stimulus/frame_duration"]
        # As in 659495103: 44 frames where AllenSDK allows 39.
        frames[9, 1] -= 14
    found = AllenSource().read(path)
    assert len(found.epochs["drifting_gratings"]) == len(made.epochs["drifting_gratings"]) == 3
    assert [w for w in found.warnings if "gap of 44 frames" in w and "AllenSDK would cut" in w]


def _edit(path, change):
    with h5py.File(path, "a") as file:
        change(file)
    return AllenSource().read(path)


def _oldest(file):
    """Pipeline 0.9: no version, plural motion, running as a column, neuropil beside the raw traces."""
    del file["general/generated_by"]
    folder = file[f"{MODULE}/MotionCorrection/2p_image_series"]
    folder.move("xy_translation", "xy_translations")
    speed = file[f"{MODULE}/BehavioralTimeSeries/running_speed"]
    values = speed["data"][()]
    del speed["data"]
    speed["data"] = values[:, None]
    fluorescence = file[f"{MODULE}/Fluorescence"]
    fluorescence.move("imaging_plane_1_neuropil_response/data", "imaging_plane_1/neuropil_traces")
    del fluorescence["imaging_plane_1_neuropil_response"], fluorescence["imaging_plane_1_demixed_signal"]


def test_the_oldest_layout(tmp_path):
    made, path = write_session(tmp_path)
    found = _edit(path, _oldest)
    _assert_same(found, made)
    assert found.metadata.origin.startswith("Allen NWB 1 file, pipeline 0.9")
    np.testing.assert_allclose(read_fluorescence(path) / 500 - 1, made.dff, atol=1e-5)


def test_a_newer_pipeline_is_read_with_a_warning(tmp_path):
    def change(file):
        del file["general/generated_by"]
        file["general/generated_by"] = np.array([b"pipeline", b"3.1"])

    made, path = write_session(tmp_path)
    found = _edit(path, change)
    _assert_same(found, made)
    assert [w for w in found.warnings if "pipeline version 3.1 is newer" in w]


def test_texts_of_variable_length_are_read_too(tmp_path):
    def change(file):
        names = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        for name in names:
            if file[name].dtype.kind == "S":
                values = file[name].asstr()[()]
                del file[name]
                file.create_dataset(name, data=values, dtype=h5py.string_dtype())

    made, path = write_session(tmp_path)
    before = AllenSource().read(path)
    found = _edit(path, change)
    _assert_same(found, made)
    assert found.metadata == before.metadata


def test_rows_out_of_order_are_sorted_with_their_data(tmp_path):
    def change(file):
        for name in ("drifting_gratings", "natural_movie_one"):
            group = file[f"stimulus/presentation/{name}_stimulus"]
            order = np.random.default_rng(0).permutation(len(group["data"]))
            for key in ("data", "frame_duration", "timestamps"):
                group[key][...] = group[key][()][order]

    made, path = write_session(tmp_path)
    _assert_same(_edit(path, change), made)


def test_features_go_by_name(tmp_path):
    def change(file):
        group = file["stimulus/presentation/drifting_gratings_stimulus"]
        values, names = group["data"][()], group["features"][()]
        group["data"][...], group["features"][...] = values[:, [2, 1, 0]], names[[2, 1, 0]]

    made, path = write_session(tmp_path)
    _assert_same(_edit(path, change), made)


def test_a_template_hard_linked_into_a_presentation_is_not_its_data(tmp_path):
    def change(file):
        group = file["stimulus/presentation/natural_movie_one_stimulus"]
        del group["indexed_timeseries"]
        group["indexed_timeseries"] = file["stimulus/templates/natural_movie_one_image_stack"]

    made, path = write_session(tmp_path)
    _assert_same(_edit(path, change), made)


def test_without_eye_tracker_running_or_motion(tmp_path):
    def change(file):
        del file[f"{MODULE}/BehavioralTimeSeries"], file[f"{MODULE}/EyeTracking"], file[f"{MODULE}/PupilTracking"]
        del file[f"{MODULE}/MotionCorrection"]

    _, path = write_session(tmp_path)
    found = _edit(path, change)
    assert (found.running, found.pupil, found.motion, found.warnings) == (None, None, None, ())


def test_running_off_the_imaging_clock_keeps_its_own(tmp_path):
    def change(file):
        file[f"{MODULE}/BehavioralTimeSeries/running_speed/timestamps"][...] += 0.004

    made, path = write_session(tmp_path)
    found = _edit(path, change)
    np.testing.assert_array_equal(found.running.timestamps, made.timestamps + 0.004)
    on_clock = found.running.interpolate(made.timestamps)
    assert np.isnan(on_clock[0])
    np.testing.assert_allclose(
        on_clock[5], np.interp(made.timestamps[5], found.running.timestamps, made.running.values)
    )


@pytest.mark.parametrize("layout", [{"chunks": (4, 600)}, {}])
def test_traces_that_are_not_finite_are_found_in_any_storage(layout, tmp_path):
    made, path = write_session(tmp_path)
    dff = made.dff.T.copy()
    dff[1, 40], dff[3] = np.nan, 0.5
    with h5py.File(path, "a") as file:
        name = f"{MODULE}/DfOverF/imaging_plane_1/data"
        del file[name]
        file.create_dataset(name, data=dff, **layout)
    outcome = convert(AllenSource(), path, tmp_path / "out")[0]
    assert [text for text in outcome.warnings if text.startswith("dF/F")] == [
        f"dF/F is not finite in row 1 (ROI {made.unit_ids[1]}): left out",
        f"dF/F is constant in row 3 (ROI {made.unit_ids[3]})",
    ]
    found = Recording.open(tmp_path / "out" / "501574836.h5")
    np.testing.assert_array_equal(found.dff, dff[[0, 2, 3, 4]].T)


def test_fluorescence_of_rows_in_any_order(tmp_path):
    made, path = write_session(tmp_path)
    for rows in ([3, 0, 3], [4]):
        np.testing.assert_allclose(read_fluorescence(path, rois=rows) / 500 - 1, made.dff[:, rows], atol=1e-5)
    raw, neuropil = read_fluorescence(path, "raw"), read_fluorescence(path, "neuropil", rois=[0])
    np.testing.assert_allclose(raw - 0.7 * neuropil, 500 * (1 + made.dff), rtol=1e-5)


def test_the_animal_of_an_observatory_file(tmp_path):
    from dataclasses import replace

    metadata = replace(make_session().metadata, subject_id="mouse_0_001")
    _, path = write_session(tmp_path, metadata=metadata)
    found = AllenSource().read(path)
    assert found.metadata.subject_id == "mouse_0_001"
    assert "has no six-digit mouse" in found.warnings[0]
