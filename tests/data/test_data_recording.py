"""Recording files: what is written comes back, damage is refused, torch_brain reads ours and we read its own."""

import pickle
import shutil
from dataclasses import replace
from datetime import datetime

import h5py
import numpy as np
import pytest

from poyo_ssl.data import recording as recording_module
from poyo_ssl.data.hdf5 import LazyDataset
from poyo_ssl.data.recording import Recording, RecordingMetadata, open_recordings
from poyo_ssl.data.series import PupilTrace, RoiMasks, SparseEvents, TimeSeries
from poyo_ssl.data.stimuli import Presentations, load_movie, save_movie
from poyo_ssl.errors import RecordingError
from poyo_ssl.protocol import CRE_LINES


@pytest.fixture
def full(make_recording):
    """Return a recording that has everything a file can hold."""
    made = make_recording("full", num_units=4, grating_repeats=2)
    table = made.stimuli["drifting_gratings"]
    blank = np.arange(len(table)) % 5 == 3
    columns = dict(table.columns) | {"blank_sweep": blank}
    columns["orientation"] = np.where(blank, np.nan, columns["orientation"])
    gratings = Presentations("drifting_gratings", table.start, table.end, table.start_frame, table.end_frame, columns)
    few = Presentations("natural_scenes", table.start, table.end, table.start_frame, table.end_frame).select(blank)
    scenes = replace(few, columns={"frame": np.resize([0, -1, 117], len(few))})
    return make_recording(
        "full",
        num_units=4,
        grating_repeats=2,
        metadata=RecordingMetadata(
            subject_id="mouse_ä",
            container_id="511510667",
            cre_line="Scnn1a-Tg3-Cre",
            reporter_line="Ai93(TITL-GCaMP6f)",
            indicator="GCaMP6f",
            sex="male",
            age_days=103.0,
            session_type="three_session_A",
            targeted_structure="VISp",
            depth_um=275,
            recording_date="2016-02-04 10:25:24",
            device_id="CAM2P.2",
            description="one of many",
            origin="real",
        ),
        unit_ids=np.array(["a", "b", "cc", "ü"]),
        cell_specimen_ids=np.array([517472360, -1, 3, 2**40]),
        stimuli={**made.stimuli, "drifting_gratings": gratings, "natural_scenes": scenes},
        epochs={"spontaneous": np.array([[2.0, 4.0], [30.0, 31.5]])},
        masked_domain=np.array([[70.0, 71.0]]),
        running=TimeSeries(made.timestamps, np.sin(made.timestamps).astype(np.float32)),
        pupil=PupilTrace(
            made.timestamps[3:9], np.arange(12.0).reshape(6, 2).astype(np.float32), np.arange(6, dtype=np.float32)
        ),
        motion=TimeSeries(made.timestamps, np.stack([made.timestamps, -made.timestamps], axis=1).astype(np.float32)),
        roi_masks=RoiMasks(*np.array([[0, 0, 2, 3], [1, 1, 5, 0], [2, 3, 0, 7]]), image_shape=(6, 8)),
        events=SparseEvents(np.array([3, 9]), np.array([0, 2]), np.array([0.5, 1.5], np.float32)),
        split_domains={"train": np.array([[2.0, 50.0]]), "valid": np.zeros((0, 2)), "test": np.array([[60.0, 70.0]])},
        truth={"rate_hz": np.array([1.0, 2.0, 3.0, 4.0]), "kind": np.array(["x", "y", "x", "y"])},
    )


def test_a_file_gives_back_what_was_written(full, tmp_path):
    again = Recording.open(full.save(tmp_path / "full.h5"))
    assert isinstance(again.dff, np.memmap)
    np.testing.assert_array_equal(again.dff, full.dff)
    np.testing.assert_array_equal(again.timestamps, full.timestamps)
    assert again.metadata == full.metadata
    assert again.recording_id == "full"
    assert again.unit_ids.tolist() == full.unit_ids.tolist()
    assert again.cell_specimen_ids.tolist() == full.cell_specimen_ids.tolist()
    assert set(again.stimuli) == set(full.stimuli)
    for name, table in full.stimuli.items():
        found = again.stimuli[name]
        for field in ("start", "end", "start_frame", "end_frame"):
            np.testing.assert_array_equal(getattr(found, field), getattr(table, field))
        assert set(found.columns) == set(table.columns)
        for column, values in table.columns.items():
            np.testing.assert_array_equal(found.columns[column], values)
    assert set(again.epochs) == {"spontaneous"}
    np.testing.assert_array_equal(again.epochs["spontaneous"], full.epochs["spontaneous"])
    np.testing.assert_array_equal(again.masked_domain, full.masked_domain)
    np.testing.assert_array_equal(again.running.values, full.running.values)
    for kind, fields in {"pupil": ("timestamps", "location", "size"), "motion": ("timestamps", "values")}.items():
        for field in fields:
            np.testing.assert_array_equal(getattr(getattr(again, kind), field), getattr(getattr(full, kind), field))
    assert again.roi_masks.image_shape == (6, 8)
    for unit in range(4):
        np.testing.assert_array_equal(again.roi_masks.dense(unit), full.roi_masks.dense(unit))
    np.testing.assert_array_equal(again.events.dense(20, 4), full.events.dense(20, 4))
    assert {k: v.tolist() for k, v in again.split_domains.items()} == {
        k: v.tolist() for k, v in full.split_domains.items()
    }
    assert {k: v.tolist() for k, v in again.truth.items()} == {k: v.tolist() for k, v in full.truth.items()}


def test_the_same_recording_gives_the_same_bytes(full, tmp_path):
    first, second = full.save(tmp_path / "a.h5"), full.save(tmp_path / "b.h5")
    assert first.read_bytes() == second.read_bytes()
    again = Recording.open(first).save(tmp_path / "c.h5")
    assert again.read_bytes() == first.read_bytes()


def test_checksum_changes_with_the_numbers(make_recording, tmp_path):
    one, other = make_recording(seed=0), make_recording(seed=1)
    assert one.checksum() == make_recording(seed=0).checksum() != other.checksum()
    one, other = (Recording.open(r.save(tmp_path / f"{i}.h5")) for i, r in enumerate((one, other)))
    assert one.checksum() == Recording.open(tmp_path / "0.h5").checksum() != other.checksum()


def test_saving_is_all_or_nothing(full, tmp_path, monkeypatch):
    path = full.save(tmp_path / "full.h5")
    before = path.read_bytes()
    with pytest.raises(RecordingError, match="exists"):
        full.save(path)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(recording_module, "_write_stimulus", stop)
    for target in (path, tmp_path / "new.h5"):
        with pytest.raises(KeyboardInterrupt):
            full.save(target, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["full.h5"]
    assert path.read_bytes() == before


def test_a_chunked_file_is_read_lazily_too(full, tmp_path):
    path = full.save(tmp_path / "full.h5")
    with h5py.File(path, "a") as file:
        del file["calcium_traces/df_over_f"]
        file.create_dataset("calcium_traces/df_over_f", data=full.dff.astype(np.float64), chunks=True, compression=1)
    again = Recording.open(path)
    assert isinstance(again.dff, LazyDataset)
    np.testing.assert_array_equal(again.read_dff(10, 20), full.dff[10:20])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(again)).read_dff(10, 20), full.dff[10:20])


def _without(name):
    def change(path):
        with h5py.File(path, "a") as file:
            del file[name]

    return change


def _transpose(path):
    with h5py.File(path, "a") as file:
        values = file["calcium_traces/df_over_f"][()]
        del file["calcium_traces/df_over_f"]
        file["calcium_traces/df_over_f"] = np.ascontiguousarray(values.T)


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-2000])


def _drop_rate(path):
    with h5py.File(path, "a") as file:
        del file["calcium_traces"].attrs["sampling_rate"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "no recording file"),
        (lambda path: path.write_bytes(b"not HDF5 at all"), "not a complete HDF5 file"),
        (_truncate, "not a complete HDF5 file"),
        (_without("calcium_traces"), "no 'calcium_traces/df_over_f' .found: .*rois"),
        (_without("rois"), "no 'rois'"),
        (_without("session"), "no 'session'"),
        (_without("subject"), "subject"),
        (_without("rois/id"), "layout"),
        (_drop_rate, "layout"),
        (_transpose, r"timestamps for dF/F of shape \(4, "),
    ],
)
def test_damaged_files_are_refused_by_name(full, tmp_path, damage, message):
    path = full.save(tmp_path / "full.h5")
    damage(path)
    with pytest.raises(RecordingError, match=message) as caught:
        Recording.open(path)
    assert "\n" not in str(caught.value)


def test_a_file_of_another_tool_that_is_transposed_is_refused(full, tmp_path):
    path = full.save(tmp_path / "full.h5")
    _without("imaging_clock")(path)
    _transpose(path)
    with pytest.raises(RecordingError, match="4 unit_ids"):
        Recording.open(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dff": np.zeros(10, np.float32)}, "shape"),
        ({"timestamps": np.arange(7.0)}, "7 timestamps"),
        ({"timestamps": np.array([0, 1, 1, 2.0] + [3.0 + i for i in range(6)])}, "do not increase at frame 2"),
        ({"timestamps": np.array([0, np.nan] + [2.0 + i for i in range(8)])}, "do not increase at frame 1"),
        ({"unit_ids": np.array(["a", "a"])}, "not unique"),
        ({"cell_specimen_ids": np.array([1])}, "1 cell_specimen_ids for 2 units"),
    ],
)
def test_inconsistent_arrays_are_refused(fields, message):
    values = {"dff": np.zeros((10, 2), np.float32), "timestamps": np.arange(10.0), **fields}
    with pytest.raises(RecordingError, match=message):
        Recording("r", metadata=RecordingMetadata("m"), **values)


def test_an_unknown_stimulus_is_named_with_those_there_are(make_recording):
    with pytest.raises(RecordingError, match=r"did you mean 'natural_movie_one'.*drifting_gratings"):
        make_recording().stimulus("natural_movie_on")


def test_a_table_of_another_recording_is_refused(make_recording):
    made = make_recording()
    with pytest.raises(RecordingError, match="belong together"):
        make_recording(dff=made.dff[:1000], timestamps=made.timestamps[:1000])


def test_a_folder_without_recordings(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(RecordingError, match="no recordings"):
            open_recordings(folder)


def test_movies_are_kept_once_and_checked(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 6), dtype=np.uint8)
    path = save_movie(tmp_path, "natural_movie_one", pixels)
    np.testing.assert_array_equal(load_movie(tmp_path, "natural_movie_one"), pixels)
    with pytest.raises(RecordingError, match="did you mean 'natural_movie_one'"):
        load_movie(tmp_path, "natural_movie_on")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(RecordingError, match="not a movie file"):
        load_movie(tmp_path, "natural_movie_one")
    np.save(path, pixels.astype(float))
    with pytest.raises(RecordingError, match="float64"):
        load_movie(tmp_path, "natural_movie_one")
    np.save(path, np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(RecordingError, match="not a movie file"):
        load_movie(tmp_path, "natural_movie_one")


@pytest.fixture
def brainset(full, tmp_path):
    datasets = pytest.importorskip("torch_brain.datasets")
    full = replace(full, unit_ids=np.array(["a", "b", "cc", "d"]))  # that reader takes ASCII only
    full.save(tmp_path / "study" / "full.h5")
    dataset = datasets.AllenVisualCodingOphys2016(root=str(tmp_path), dirname="study")
    yield dataset
    for data in dataset._data_objects.values():
        data.file.close()


def test_torch_brain_reads_every_group_of_ours(brainset, full):
    data = brainset.get_recording("full")
    np.testing.assert_array_equal(data.calcium_traces.df_over_f[:], full.dff)
    rate = data.calcium_traces.sampling_rate
    assert rate == pytest.approx(30.08)
    assert data.calcium_traces.domain.end[0] - data.calcium_traces.domain.start[0] == pytest.approx(
        full.num_frames / rate
    )
    assert brainset.get_roi_ids() == ["a", "b", "cc", "d"]
    assert data.subject.cre_line == "Scnn1a_Tg3_Cre"
    assert data.subject.id == "511510667"
    shown = full.stimuli["drifting_gratings"]
    seen = ~shown.columns["blank_sweep"]
    np.testing.assert_array_equal(data.drifting_gratings.orientation, shown.columns["orientation"][seen])
    np.testing.assert_array_equal(data.drifting_gratings.timestamps, shown.midpoint[seen])
    np.testing.assert_array_equal(data.imaging_clock.timestamps[:], full.timestamps)
    np.testing.assert_array_equal(data.running.running_speed[:, 0], full.running.values)
    np.testing.assert_array_equal(data.pupil.location[:], full.pupil.location)
    np.testing.assert_array_equal(data.rois.imaging_plane_xy[:], [[1, 2.5], [np.nan] * 2, [5, 0], [0, 7]])
    # There, images of natural scenes count from 1 and a blank is 0.
    assert data.natural_scenes.frame[:3].tolist() == [1, 0, 118][: len(data.natural_scenes)]


def test_torch_brain_slices_ours(brainset, full):
    from torch_brain.datasets import DatasetIndex

    sample = brainset[DatasetIndex("full", 20.0, 21.0)]
    first, last = np.searchsorted(full.timestamps, [20.0, 21.0])
    assert last - first in (30, 31)
    np.testing.assert_array_equal(sample.calcium_traces.df_over_f, full.dff[first:last])
    shown = full.stimuli["drifting_gratings"]
    inside = (shown.end > 20) & (shown.start < 21) & ~shown.columns["blank_sweep"]
    assert len(sample.drifting_gratings) == inside.sum()
    for part, expected in full.split_domains.items():
        domain = brainset.get_sampling_intervals(part)["full"]
        np.testing.assert_array_equal(np.stack([domain.start, domain.end], axis=1), expected)


def test_we_read_a_file_that_torch_brain_wrote(tmp_path):
    """A file as `brainsets prepare` writes it, without any of our additions."""
    b = pytest.importorskip("torch_brain.data")
    rng = np.random.default_rng(0)
    rate, num_frames = 30.0, 900
    whole = b.Interval(np.array([10.0]), np.array([10.0 + num_frames / rate]))
    start = 12.0 + 3 * np.arange(4)
    gratings = b.Interval(
        start=start,
        end=start + 2,
        timestamps=start + 1,
        orientation=np.array([0.0, 90.0, 45.0, 0.0]),
        temporal_frequency=np.ones(4),
        orientation_id=np.array([0, 2, 1, 0]),
        temporal_frequency_id=np.zeros(4, int),
        timekeys=["start", "end", "timestamps"],
    )
    dff = rng.normal(size=(num_frames, 3)).astype(np.float32)
    data = b.Data(
        brainset=b.BrainsetDescription(
            id="allen_visual_coding_ophys_2016", origin_version="x", derived_version="1", source="s", description="d"
        ),
        subject=b.SubjectDescription(id="511510667", species="MUS_MUSCULUS", cre_line="Vip_IRES_Cre", age=100.0),
        session=b.SessionDescription(id="501574836", recording_date=datetime(2016, 2, 4, 10, 25, 24)),
        device=b.DeviceDescription(id="d", recording_tech="TWO_PHOTON_IMAGING", imaging_depth=175, target_area="VISp"),
        calcium_traces=b.RegularTimeSeries(df_over_f=dff, sampling_rate=rate, domain_start=10.0),
        rois=b.ArrayDict(id=np.array(["r1", "r2", "r3"]), imaging_plane_xy=np.zeros((3, 2))),
        drifting_gratings=gratings,
        drifting_gratings_domain=b.Interval(np.array([12.0]), np.array([23.0])),
        spontaneous_domain=b.Interval(np.array([24.0]), np.array([29.0])),
        train_domain=b.Interval(np.array([10.0]), np.array([20.0])),
        valid_domain=b.Interval(np.array([20.0]), np.array([25.0])),
        test_domain=b.Interval(np.array([25.0]), np.array([40.0])),
        domain=whole,
    )
    path = tmp_path / "501574836.h5"
    with h5py.File(path, "w") as file:
        data.to_hdf5(file)
    found = Recording.open(path)
    np.testing.assert_array_equal(found.read_dff(0, num_frames), dff)
    np.testing.assert_allclose(found.timestamps, 10.0 + np.arange(num_frames) / rate, rtol=0, atol=1e-9)
    assert found.recording_id == "501574836"
    assert found.unit_ids.tolist() == ["r1", "r2", "r3"]
    assert found.cell_specimen_ids.tolist() == [-1, -1, -1]
    assert (found.metadata.cre_line, found.metadata.subject_id) == ("Vip-IRES-Cre", "511510667")
    assert (found.metadata.depth_um, found.metadata.age_days) == (175, 100.0)
    table = found.stimuli["drifting_gratings"]
    assert list(found.stimuli) == ["drifting_gratings"]
    assert table.columns["orientation"].tolist() == [0.0, 90.0, 45.0, 0.0]
    assert not table.columns["blank_sweep"].any()
    # Twelve seconds are frame 60 of a clock that starts at ten.
    assert found.metadata.recording_date == "2016-02-04 10:25:24"
    assert table.start_frame.tolist() == [60, 150, 240, 330]
    assert table.end_frame.tolist() == [120, 210, 300, 390]
    assert set(found.epochs) == {"drifting_gratings", "spontaneous"}
    assert found.split_domains["test"].tolist() == [[25.0, 40.0]]
    assert found.masked_domain.shape == (0, 2)
    again = Recording.open(found.save(tmp_path / "ours.h5"))
    np.testing.assert_array_equal(again.dff, dff)


def test_recordings_can_move_with_their_folder(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "moved")
    recordings = open_recordings(tmp_path / "moved")
    assert [r.recording_id for r in recordings] == sorted(r.recording_id for r in recordings)
    assert all(r.data_folder == tmp_path / "moved" for r in recordings)


def test_some_units_keep_what_is_theirs(full):
    part = full.with_units(np.array([1, 2]))
    np.testing.assert_array_equal(part.dff, full.dff[:, 1:3])
    assert part.unit_ids.tolist() == full.unit_ids[1:3].tolist()
    assert part.cell_specimen_ids.tolist() == full.cell_specimen_ids[1:3].tolist()
    assert (part.events.frame.tolist(), part.events.unit.tolist()) == ([9], [1])
    assert (part.roi_masks.unit.tolist(), part.roi_masks.row.tolist()) == ([1], [5])
    assert part.stimuli is full.stimuli
    assert part.path is None


@pytest.mark.parametrize("line", CRE_LINES)
def test_lines_of_files_of_other_tools_get_the_allens_spelling(line, make_recording, tmp_path):
    path = make_recording(metadata=RecordingMetadata("m", cre_line=line)).save(tmp_path / "made.h5")
    with h5py.File(path, "a") as file:
        del file["subject"].attrs["cre_line_allen"]
        assert "-" not in file["subject"].attrs["cre_line"]
    assert Recording.open(path).metadata.cre_line == line
