"""The Allen NWB 1 writer, held against the published layout path by path."""

from dataclasses import replace

import h5py
import numpy as np
import pytest
from allen_samples import draw_templates, make_session, write_session

from poyo_ssl.data.series import TimeSeries
from poyo_ssl.errors import RecordingError
from poyo_ssl.observatory.allen_nwb import write_allen_nwb

MODULE = "processing/brain_observatory_pipeline"


@pytest.fixture(scope="module")
def session_a(tmp_path_factory):
    recording, path = write_session(tmp_path_factory.mktemp("writer"))
    with h5py.File(path) as file:
        yield recording, file


def test_every_scalar_text_is_of_fixed_length(session_a):
    _, file = session_a
    texts = []
    file.visititems(lambda name, item: texts.append((name, item)) if isinstance(item, h5py.Dataset) else None)
    scalars = {name: item for name, item in texts if item.shape == () and item.dtype.kind not in "if"}
    assert len(scalars) > 25
    assert all(item.dtype.kind == "S" for item in scalars.values()), scalars
    assert scalars["session_start_time"][()] == b"Thu Feb  4 10:25:24 2016"
    assert scalars["general/subject/age"][()] == b"114 days"
    assert scalars["general/optophysiology/imaging_plane_1/imaging depth"][()] == b"275 microns"
    assert scalars["general/specimen_name"][()] == b"Cux2-CreERT2;Camk2a-tTA;Ai93-222426"
    assert scalars["general/subject/genotype"][()] == b"Cux2-CreERT2/wt;Camk2a-tTA/wt;Ai93(TITL-GCaMP6f)/wt"
    device, rig = scalars["general/devices/2-photon microscope"][()].split(b". ", 1)
    assert device == b"Nikon A1R-MP multiphoton microscope"
    assert rig.startswith(b"CAM2P.2 Please ")
    assert file["general/generated_by"][-1] == b"3.0"
    assert len(file["epochs"]) == 0


def test_traces_share_the_order_of_the_rois(session_a):
    recording, file = session_a
    module = file[MODULE]
    np.testing.assert_array_equal(module["DfOverF/imaging_plane_1/data"][()], recording.dff.T)
    np.testing.assert_array_equal(module["DfOverF/imaging_plane_1/timestamps"][()], recording.timestamps)
    segmentation = module["ImageSegmentation"]
    assert segmentation["cell_specimen_ids"][()].tolist() == recording.cell_specimen_ids.tolist()
    assert segmentation["roi_ids"][()].astype(str).tolist() == recording.unit_ids.tolist()
    for unit, key in enumerate(segmentation["imaging_plane_1/roi_list"][()].astype(str)):
        mask = segmentation[f"imaging_plane_1/{key}/img_mask"][()]
        assert mask.shape == (512, 512)
        np.testing.assert_array_equal(mask != 0, recording.roi_masks.dense(unit))
        x, y = segmentation[f"imaging_plane_1/{key}/pix_mask"][()].T
        assert mask[y, x].all()
        assert len(x) == mask.sum()


def test_the_corrected_trace_is_that_of_dff(session_a):
    recording, file = session_a
    module = file[MODULE + "/Fluorescence"]
    neuropil = module["imaging_plane_1_neuropil_response"]
    corrected = module["imaging_plane_1_demixed_signal/data"][()] - neuropil["r"][()][:, None] * neuropil["data"][()]
    np.testing.assert_allclose(corrected.T / 500 - 1, recording.dff, atol=1e-5)


def test_running_starts_on_the_imaging_clock(session_a):
    _, file = session_a
    running = file[MODULE + "/BehavioralTimeSeries/running_speed/timestamps"]
    assert running[0] in file[MODULE + "/Fluorescence/imaging_plane_1/timestamps"][()]


def test_presentations_of_session_a(session_a):
    recording, file = session_a
    shown = file["stimulus/presentation"]
    gratings, table = shown["drifting_gratings_stimulus"], recording.stimuli["drifting_gratings"]
    assert gratings["features"][()].tolist() == [b"temporal_frequency", b"orientation", b"blank_sweep"]
    blank = gratings["data"][:, 2] == 1
    np.testing.assert_array_equal(blank, table.columns["blank_sweep"])
    assert np.isnan(gratings["data"][blank, :2]).all()
    np.testing.assert_array_equal(np.diff(gratings["frame_duration"][()]).ravel(), 60)
    spontaneous = shown["spontaneous_stimulus"]
    assert spontaneous["data"][()].tolist() == [1, -1]
    start, end = spontaneous["frame_duration"][()]
    assert start[0] == start[1] < end[0] == end[1]
    np.testing.assert_array_equal(recording.timestamps[[start[0], end[0]]], recording.epochs["spontaneous"][0])


def test_templates_hang_off_presentations_by_soft_links(session_a):
    _, file = session_a
    for name in ("natural_movie_one", "natural_movie_three"):
        group = file[f"stimulus/presentation/{name}_stimulus"]
        link = group.get("indexed_timeseries", getlink=True)
        assert isinstance(link, h5py.SoftLink)
        assert link.path == f"/stimulus/templates/{name}_image_stack"
        np.testing.assert_array_equal(group["indexed_timeseries/data"][()], draw_templates()[name])


def test_blanks_of_session_b(tmp_path):
    recording, path = write_session(tmp_path, "three_session_B")
    with h5py.File(path) as file:
        gratings = file["stimulus/presentation/static_gratings_stimulus"]
        assert gratings["features"][()].tolist() == [b"orientation", b"spatial_frequency", b"phase"]
        blank = np.isnan(gratings["data"][()])
        for column in blank.T:
            np.testing.assert_array_equal(column, recording.stimuli["static_gratings"].columns["blank_sweep"])
        scenes = file["stimulus/presentation/natural_scenes_stimulus/data"][()]
        assert scenes[:3].tolist() == [-1, 0, 117]
        assert file["stimulus/templates/natural_scenes_image_stack/data"].dtype == np.float32


def test_the_two_noises_of_session_c2(tmp_path):
    recording, path = write_session(tmp_path, "three_session_C2")
    sizes = recording.stimuli["locally_sparse_noise"].columns["pixel_size"]
    with h5py.File(path) as file:
        for name, size in (("locally_sparse_noise_4deg", 4.65), ("locally_sparse_noise_8deg", 9.3)):
            assert len(file[f"stimulus/presentation/{name}_stimulus/data"]) == (sizes == size).sum()
        assert len(file["stimulus/presentation/spontaneous_stimulus/data"]) == 4


def test_the_same_recording_gives_the_same_bytes(tmp_path):
    _, path = write_session(tmp_path)
    before = path.read_bytes()
    assert write_session(tmp_path)[1].read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: {"metadata": replace(r.metadata, recording_date="", depth_um=None)}, "no recording_date, depth_um"),
        (lambda r: {"roi_masks": None}, "no ROI masks"),
        (lambda r: {"running": TimeSeries(r.timestamps + 0.01, r.running.values)}, "no imaging timestamp"),
    ],
)
def test_what_an_allen_file_must_have(tmp_path, change, message):
    with pytest.raises(RecordingError, match=message):
        write_session(tmp_path, **change(make_session()))
    assert list(tmp_path.iterdir()) == []


def test_pixels_must_be_there(tmp_path):
    with pytest.raises(RecordingError, match="no pixels of 'natural_movie_three' were given"):
        write_allen_nwb(make_session(), tmp_path / "x.nwb", templates={})
    session = make_session()
    saved = replace(session, path=session.save(tmp_path / "501574836.h5"))
    with pytest.raises(RecordingError, match="no pixels of movie 'natural_movie_three'"):
        write_allen_nwb(saved, tmp_path / "x.nwb")
    (tmp_path / "x.nwb").touch()
    with pytest.raises(RecordingError, match="exists"):
        write_allen_nwb(saved, tmp_path / "x.nwb")
