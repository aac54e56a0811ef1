"""Damaged and odd Allen files: each case gets a named error or a warning, never a traceback or a silent change."""

import shutil

import h5py
import numpy as np
import pytest
from allen_samples import write_session
from tests.sources.changes import drop, put, put_item

from poyo_ssl.errors import RecordingError
from poyo_ssl.sources.allen import (
    PLANE,
    AllenSource,
    make_pupil,
    make_running,
    parse_cre_line,
    parse_date,
    parse_donor,
    parse_indicator,
    parse_reporter,
    read_fluorescence,
)
from poyo_ssl.sources.base import Notes, check_traces
from poyo_ssl.sources.run import convert

MODULE = "processing/brain_observatory_pipeline"
DFF = f"{MODULE}/DfOverF/imaging_plane_1"
SEGMENTATION = f"{MODULE}/ImageSegmentation"
GRATINGS = "stimulus/presentation/drifting_gratings_stimulus"
MOVIE = "stimulus/presentation/natural_movie_one_stimulus"
SPONTANEOUS = "stimulus/presentation/spontaneous_stimulus"


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    return {kind: write_session(folder / kind, f"three_session_{kind}") for kind in "AB"}


@pytest.fixture
def damaged(originals, tmp_path):
    """Return a function that changes a copy of a session's file and gives its path."""

    def make(change, kind="A"):
        path = tmp_path / "501574836.nwb"
        shutil.copy(originals[kind][1], path)
        with h5py.File(path, "a") as file:
            change(file)
        return path

    return make


def _texts(**values):
    def change(file):
        for name, text in values.items():
            path = {"age": "general/subject/age", "genotype": "general/subject/genotype"}.get(name, f"general/{name}")
            path = {"depth": "general/optophysiology/imaging_plane_1/imaging depth"}.get(name, path)
            path = {"device": "general/devices/2-photon microscope", "date": "session_start_time"}.get(name, path)
            path = {"indicator": "general/optophysiology/imaging_plane_1/indicator"}.get(name, path)
            del file[path]
            file[path] = np.bytes_(text.encode())

    return change


def _swap_in_float(name, make):
    return put(name, lambda values: make(values.astype(float)))


def _with(values, index, value):
    values[index] = value
    return values


ERRORS = {
    "pipeline module missing": (drop(MODULE), r"no group 'processing/brain_observatory_pipeline' .found: "),
    "another module": (
        lambda f: f.move(MODULE, "processing/visual_coding_pipeline"),
        r"found: visual_coding_pipeline.*for NWB 2 use",
    ),
    "dff missing": (drop(f"{MODULE}/DfOverF"), r"no group '.*DfOverF/imaging_plane_1' .found: .*Fluorescence"),
    "dff data missing": (drop(f"{DFF}/data"), r"no '.*DfOverF/imaging_plane_1/data'"),
    "dff transposed": (put(f"{DFF}/data", lambda v: v.T), r"transposed, .frames, ROIs.* .allowed"),
    "dff of texts": (put(f"{DFF}/data", lambda v: np.array([b"x"] * 5)), r"holds \|S1 of shape"),
    "dff of one dimension": (put(f"{DFF}/data", lambda v: v.ravel()), r"numbers of 2 dimensions"),
    "dff two frames short": (put(f"{DFF}/data", lambda v: v[:, :-2]), r"timestamps .allowed: .* up to 1 frames"),
    "no timestamps": (drop(f"{DFF}/timestamps", f"{MODULE}/Fluorescence"), "no timestamps"),
    "timestamp NaN": (put_item(f"{DFF}/timestamps", 17, np.nan), r"timestamp 17 is nan"),
    "timestamp repeated": (
        put_item(f"{DFF}/timestamps", slice(7, 9), 27.0),
        r"timestamp 8 .27 s. is not after timestamp 7",
    ),
    "ids shorter": (
        put(f"{SEGMENTATION}/cell_specimen_ids", lambda v: v[:-1]),
        r"5 dF/F traces, 4 cell_specimen_ids, 5 roi_ids, 5 roi_list",
    ),
    "roi_list longer": (
        put(f"{SEGMENTATION}/imaging_plane_1/roi_list", lambda v: np.append(v, b"roi_0005")),
        r"5 dF/F traces, 5 cell_specimen_ids, 5 roi_ids, 6 roi_list",
    ),
    "ids are fractions": (put(f"{SEGMENTATION}/cell_specimen_ids", lambda v: v + 0.5), "whole numbers"),
    "duplicate cells": (put_item(f"{SEGMENTATION}/cell_specimen_ids", 1, 517472360), r"517472360 occurs [23] times"),
    "duplicate rois": (
        put(f"{SEGMENTATION}/roi_ids", lambda v: _with(v, 1, v[0])),
        r"roi_ids 540000000 occurs 2 times",
    ),
    "both spellings": (
        lambda f: f.copy(GRATINGS, "stimulus/presentation/drifting_gratings"),
        r"both 'drifting_gratings' and 'drifting_gratings_stimulus'",
    ),
    "frame_duration missing": (drop(f"{GRATINGS}/frame_duration"), r"no 'frame_duration' .found: data, feature"),
    "frame_duration short": (put(f"{GRATINGS}/frame_duration", lambda v: v[:-1]), r"shape \(89, 2\) for 90 rows"),
    "frame_duration of one column": (put(f"{GRATINGS}/frame_duration", lambda v: v[:, :1]), r"\(90, 1\) for 90"),
    "frame_duration empty": (
        lambda f: [put(f"{MOVIE}/{k}", lambda v: v[:0])(f) for k in ("data", "frame_duration")],
        "no presentations",
    ),
    "frame_duration NaN": (
        _swap_in_float(f"{GRATINGS}/frame_duration", lambda v: _with(v, (3, 0), np.nan)),
        r"row 3 of frame_duration runs from nan",
    ),
    "start negative": (put_item(f"{GRATINGS}/frame_duration", (4, 0), -1), r"row 4 .* from -1 to"),
    "end beyond": (put_item(f"{GRATINGS}/frame_duration", (4, 1), 10**6), r"row 4 .* to 1e\+06 .allowed: frames 0 to"),
    "end before start": (put_item(f"{GRATINGS}/frame_duration", (4, 1), 5), r"row 4 .* to 5 .*end not before start"),
    "features missing": (drop(f"{GRATINGS}/features"), "no 'features'"),
    "features too few": (put(f"{GRATINGS}/features", lambda v: v[:2]), "2 features for 3 columns"),
    "feature unknown": (
        put(f"{GRATINGS}/features", lambda v: np.array([b"temporal_frequency", b"angle", b"blank_sweep"])),
        "lack orientation",
    ),
    "direction unknown": (put_item(f"{GRATINGS}/data", (2, 1), 50.0), r"row 2 has orientation 50 .allowed: 0, 45"),
    "value missing in a trial": (put_item(f"{GRATINGS}/data", (2, 1), np.nan), "row 2 has no value"),
    "data of gratings missing": (drop(f"{GRATINGS}/data"), "no 'data'"),
    "movie row missing": (
        lambda f: [put(f"{MOVIE}/{k}", lambda v: np.delete(v, 30, 0))(f) for k in ("data", "frame_duration")],
        r"repeat 2 of natural_movie_one has image 7 where image 6 should be",
    ),
    "movie cut short": (
        lambda f: [put(f"{MOVIE}/{k}", lambda v: v[:-5])(f) for k in ("data", "frame_duration")],
        r"repeat 9 of natural_movie_one has the end of the table where image 7",
    ),
    "movie image beyond template": (put_item(f"{MOVIE}/data", 3, 12), r"row 3 shows image 12 .allowed: 0 to 11"),
    "movie image negative": (put_item(f"{MOVIE}/data", 3, -1), r"row 3 shows image -1"),
    "movie images are fractions": (put(f"{MOVIE}/data", lambda v: v + 0.5), "fractions or NaN"),
    "spontaneous unpaired": (put_item(f"{SPONTANEOUS}/data", 1, 1), r"spontaneous_stimulus: rows of \[1, 1\]"),
    "spontaneous reversed": (put(f"{SPONTANEOUS}/data", lambda v: -v), "not in pairs"),
    "masks of two sizes": (
        lambda f: [
            put(f"{SEGMENTATION}/imaging_plane_1/roi_0001/img_mask", lambda v: np.pad(v, 1))(f),
            f[f"{SEGMENTATION}/imaging_plane_1/roi_0001"].pop("pix_mask", None),
        ],
        r"masks of \(512, 512\) and of \(514, 514\)",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_a_damaged_file_is_refused_by_name(case, damaged):
    change, message = ERRORS[case]
    path = damaged(change)
    with pytest.raises(RecordingError, match=message) as caught:
        AllenSource().read(path)
    assert "501574836.nwb" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_scenes_have_118_images_and_a_blank(damaged):
    path = damaged(put_item("stimulus/presentation/natural_scenes_stimulus/data", 5, 118), "B")
    with pytest.raises(RecordingError, match=r"row 5 shows image 118 .allowed: -1 to 117"):
        AllenSource().read(path)
    with h5py.File(path, "a") as file:
        file["stimulus/presentation/natural_scenes_stimulus/data"][5] = -2
    with pytest.raises(RecordingError, match="row 5 shows image -2"):
        AllenSource().read(path)


WARNINGS = {
    "dff a frame short": (put(f"{DFF}/data", lambda v: v[:, :-1]), r"frames of dF/F and \d+ timestamps: trimmed to"),
    "stimulus missing": (drop(GRATINGS), r"no 'drifting_gratings' or 'drifting_gratings_stimulus' .*should have"),
    "stimulus unknown": (lambda f: f.copy(MOVIE, "stimulus/presentation/my_movie_stimulus"), r"'my_movie_stimulus' is"),
    "a repeat missing": (
        lambda f: [put(f"{MOVIE}/{k}", lambda v: v[:-12])(f) for k in ("data", "frame_duration")],
        "natural_movie_one has 9 repeats where 10 were shown",
    ),
    "more than two cuts": (
        put(f"{GRATINGS}/frame_duration", lambda v: v - 400 * (np.arange(len(v)) < 3)[:, None]),
        "drifting_gratings: 4 blocks, of which the Allen's sessions have up to 3",
    ),
    "session type": (_texts(session_type="OPHYS_1_images_A"), "unknown session type 'OPHYS_1_images_A'"),
    "genotype absent": (drop("general/subject/genotype"), "unknown line: genotype '' is none of the Allen's 13"),
    "genotype foreign": (_texts(genotype="Gad2-IRES-Cre/wt"), "unknown line: genotype 'Gad2-IRES-Cre/wt'"),
    "age": (_texts(age="P114"), "general/subject/age 'P114' is no number of days; left empty"),
    "depth": (_texts(depth="deep"), "imaging depth 'deep' is no number"),
    "device": (_texts(device="A microscope"), "device 'A microscope' does not name a rig; kept as it is"),
    "date": (_texts(date="yesterday"), "session_start_time 'yesterday' is not a date"),
    "area": (_texts(targeted_structure="VISl"), "targeted structure 'VISl' but imaging plane in 'VISp'"),
    "indicator": (_texts(indicator="GCaMP6s"), r"indicator 'GCaMP6s' contradicts reporter Ai93"),
    "sex": (_texts(specimen_name="Cux2-CreERT2;Ai93-243303"), "sex 'male' of mouse 243303 is not what"),
    "another experiment": (_texts(session_id="592494159"), "it is experiment '592494159'; called 501574836"),
    "empty mask": (
        lambda f: [
            f[f"{SEGMENTATION}/imaging_plane_1/roi_0003/img_mask"].write_direct(np.zeros((512, 512), np.uint8)),
            put(f"{SEGMENTATION}/imaging_plane_1/roi_0003/pix_mask", lambda v: v[:0])(f),
        ],
        "the mask is empty in row 3: position unknown",
    ),
    "pixel lists wrong": (
        lambda f: [
            put(f"{SEGMENTATION}/imaging_plane_1/roi_000{roi}/pix_mask", lambda v: v[:, ::-1])(f) for roi in range(5)
        ],
        "pixel lists of the ROIs are not those of their images",
    ),
    "no masks": (drop(f"{SEGMENTATION}/imaging_plane_1"), "no ROI masks"),
    "no cell ids": (drop(f"{SEGMENTATION}/cell_specimen_ids"), "no cell specimen ids"),
    "no roi ids": (drop(f"{SEGMENTATION}/roi_ids"), "no roi_ids"),
    "running short": (
        put(f"{MODULE}/BehavioralTimeSeries/running_speed/data", lambda v: v[:-1]),
        r"running_speed: \d+ samples for \d+ timestamps; left out",
    ),
    "running NaN": (
        put_item(f"{MODULE}/BehavioralTimeSeries/running_speed/data", slice(0, 9), np.nan),
        r"running speed: 9 of \d+ samples are not finite",
    ),
    "pupil rejected": (
        put_item(f"{MODULE}/EyeTracking/pupil_location/data", slice(4, 6), np.nan),
        r"pupil: 2 of \d+ samples rejected",
    ),
    "motion of one column": (
        put(f"{MODULE}/MotionCorrection/2p_image_series/xy_translation/data", lambda v: v[:, :1]),
        "motion of shape",
    ),
    "blank with values": (
        lambda f: f[f"{GRATINGS}/data"].write_direct(np.nan_to_num(f[f"{GRATINGS}/data"][()])),
        "drifting_gratings: 10 blank sweeps have feature values",
    ),
}


@pytest.mark.parametrize("case", WARNINGS)
def test_what_is_odd_is_said(case, damaged):
    change, message = WARNINGS[case]
    found = AllenSource().read(damaged(change))
    assert len(found.warnings) == 1, found.warnings
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(found.warnings[0])


def test_values_left_empty(damaged):
    found = AllenSource().read(damaged(_texts(age="P114", depth="deep", device="A microscope", date="yesterday")))
    about = found.metadata
    assert (about.age_days, about.depth_um, about.device_id, about.recording_date) == (None, None, "A microscope", "")


@pytest.mark.parametrize(
    ("genotype", "line"),
    [
        ("Cux2-CreERT2/Cux2-CreERT2;Camk2a-tTA/wt;Ai93(TITL-GCaMP6f)/wt", "Cux2-CreERT2"),
        ("Emx1-IRES-Cre;Camk2a-tTA;Ai93(TITL-GCaMP6f)-hyg", "Emx1-IRES-Cre"),
        ("Rbp4-Cre; Camk2a-tTA; Ai93(TITL-GCaMP6f)", "Rbp4-Cre_KL100"),
        ("Ntsr1-Cre_GN220/wt;Ai148(TIT2L-GC6f-ICL-tTA2)/wt", "Ntsr1-Cre_GN220"),
    ],
)
def test_every_spelling_of_the_genotype(genotype, line, damaged):
    found = AllenSource().read(damaged(_texts(genotype=genotype)))
    assert found.metadata.cre_line == line
    assert found.warnings == ()


def test_texts_of_the_metadata():
    assert [parse_cre_line(text) for text in ("Cux2-CreERT2/wt;Camk2a-tTA/wt", "wt/wt")] == ["Cux2-CreERT2", "unknown"]
    assert parse_reporter("Vip-IRES-Cre/wt;Ai148(TIT2L-GC6f-ICL-tTA2)/wt") == "Ai148(TIT2L-GC6f-ICL-tTA2)"
    reporters = ("Ai93(TITL-GCaMP6f)", "Ai162(TIT2L-GC6s-ICL-tTA2)", "Ai14")
    assert [parse_indicator(name) for name in reporters] == ["GCaMP6f", "GCaMP6s", ""]
    names = ("Cux2-CreERT2;Camk2a-tTA;Ai93-308148", "Emx1-IRES-Cre;Ai93(CAM)-356790.0", "mouse")
    assert [parse_donor(name) for name in names] == ["308148", "356790", ""]
    dates = ("Wed May 31 10:29:38 2017", "2016-07-06T18:27:05", "soon")
    assert [parse_date(text) for text in dates] == ["2017-05-31 10:29:38", "2016-07-06 18:27:05", ""]


def test_samples_of_behaviour_that_are_not_finite():
    times, notes = np.arange(3.0), Notes()
    assert make_running((times, np.array([[0.0], [np.nan], [2.0]])), notes).values.tolist() == [0.0, 2.0]
    assert make_running((times, np.full((3, 1), np.nan)), notes) is None
    pupil = make_pupil((times, np.zeros((3, 2))), (times, np.array([[5.0], [np.nan], [6.0]])), notes)
    assert pupil.size.tolist() == [5.0, 6.0]
    assert notes[::2] == [
        "running speed: 1 of 3 samples are not finite; left out",
        "pupil: 1 of 3 samples rejected by the eye tracker; left out",
    ]


def test_images_of_masks_are_believed_before_lists(damaged, originals):
    def swap(file):
        for roi in range(5):
            put(f"{SEGMENTATION}/imaging_plane_1/roi_000{roi}/pix_mask", lambda v: v[:, ::-1])(file)

    def drop(file):
        for roi in range(5):
            del file[f"{SEGMENTATION}/imaging_plane_1/roi_000{roi}/pix_mask"]

    for change in (swap, drop):
        found = AllenSource().read(damaged(change))
        for unit in range(5):
            np.testing.assert_array_equal(found.roi_masks.dense(unit), originals["A"][0].roi_masks.dense(unit))


def test_end_at_the_last_frame_is_legal(damaged, originals):
    made = originals["A"][0]
    last = made.num_frames
    found = AllenSource().read(damaged(put_item(f"{GRATINGS}/frame_duration", (89, 1), last)))
    assert found.stimuli["drifting_gratings"].end_frame[-1] == last
    assert found.stimuli["drifting_gratings"].end[-1] > made.timestamps[-1]


def test_frames_as_floats_are_cut_off(damaged, originals):
    found = AllenSource().read(damaged(_swap_in_float(f"{GRATINGS}/frame_duration", lambda v: v + 0.7)))
    table, made = found.stimuli["drifting_gratings"], originals["A"][0].stimuli["drifting_gratings"]
    np.testing.assert_array_equal(table.start_frame, made.start_frame)


def test_trimming_is_configurable(damaged):
    path = damaged(put(f"{DFF}/data", lambda v: v[:, :-3]))
    found = AllenSource(max_trim_frames=3).read(path)
    assert found.num_frames == len(found.timestamps)
    with h5py.File(path) as file:
        assert found.num_frames == file[f"{DFF}/data"].shape[1]


def test_constant_and_missing_values_of_traces_name_their_rows(damaged):
    def change(file):
        file[f"{DFF}/data"][1, 5] = np.nan
        file[f"{DFF}/data"][3] = 0.25

    checked = check_traces(AllenSource().read(damaged(change)))
    assert checked.warnings[0] == "dF/F is not finite in row 1 (ROI 540000007): left out"
    assert checked.warnings[1] == "dF/F is constant in row 3 (ROI 540000021)"


def test_demixed_traces_are_replaced_on_request_only(damaged):
    path = damaged(drop(f"{MODULE}/Fluorescence/imaging_plane_1_demixed_signal"))
    assert AllenSource().read(path).warnings == ()
    with pytest.raises(RecordingError, match="without_demixing=True"):
        read_fluorescence(path)
    assert read_fluorescence(path, without_demixing=True).shape[1] == 5
    with pytest.raises(RecordingError, match=r"no ROI 5 .allowed: 0 to 4"):
        read_fluorescence(path, "raw", rois=[2, 5])


def test_no_file_and_files_of_another_kind(tmp_path, originals):
    with pytest.raises(RecordingError, match="no file"):
        AllenSource().read(tmp_path / "nowhere.nwb")
    whole = originals["A"][1].read_bytes()
    for name, content in {"text": b"not HDF5", "empty": b"", "half": whole[: len(whole) // 2]}.items():
        path = tmp_path / f"{name}.nwb"
        path.write_bytes(content)
        assert not AllenSource.recognises(path)
        with pytest.raises(RecordingError, match="is not a complete HDF5 file"):
            AllenSource().read(path)
    assert AllenSource.recognises(originals["A"][1])
    (tmp_path / "empty_folder").mkdir()
    with pytest.raises(RecordingError, match=r"no \*.nwb in"):
        AllenSource().find(tmp_path / "empty_folder")


def test_templates_that_are_no_pictures(damaged):
    name = "stimulus/templates/natural_scenes_image_stack/data"
    path = damaged(put_item(name, (0, 0, 0), 0.5), "B")
    with pytest.raises(RecordingError, match="no grey levels"):
        [pixels[:] for _, pixels in AllenSource().movies(path)]
    with h5py.File(path, "a") as file:
        del file[name]
        file[name] = np.zeros((118, 6))
    with pytest.raises(RecordingError, match="numbers of 3 dimensions"):
        list(AllenSource().movies(path))


def test_nothing_outside_the_file_is_read(damaged, tmp_path, originals):
    secret = tmp_path / "secret.h5"
    shutil.copy(originals["A"][1], secret)

    def link(file):
        del file[f"{DFF}/data"]
        file[f"{DFF}/data"] = h5py.ExternalLink(str(secret), f"{DFF}/data")

    def raw(file):
        shape = file[f"{DFF}/data"].shape
        del file[f"{DFF}/data"]
        file.create_dataset(f"{DFF}/data", shape, "f4", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])

    def virtual(file):
        shape = file[f"{DFF}/data"].shape
        del file[f"{DFF}/data"]
        layout = h5py.VirtualLayout(shape, "f4")
        layout[:] = h5py.VirtualSource(str(secret), f"{DFF}/data", shape)
        file.create_virtual_dataset(f"{DFF}/data", layout)

    pixels = f"{PLANE}/roi_0002/pix_mask"

    def linked_pixels(file):
        del file[pixels]
        file[pixels] = h5py.ExternalLink(str(secret), pixels)

    def raw_pixels(file):
        del file[pixels]
        file.create_dataset(pixels, (40, 2), "i8", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])

    for change in (link, raw, virtual, linked_pixels, raw_pixels):
        with pytest.raises(RecordingError, match="kept in another file"):
            AllenSource().read(damaged(change))


def test_a_header_cannot_make_us_allocate(damaged):
    def bomb(name, shape, dtype="f4", **options):
        def change(file):
            del file[name]
            file.create_dataset(name, shape, dtype, **options)

        return change

    cases = {
        r"claims 100000 x \d+ values": bomb(f"{DFF}/data", (100_000, 9_000_000), chunks=(1, 1000)),
        "claims 5 x ": bomb(f"{DFF}/data", (5, 10_000_000), chunks=(1, 1000), compression="gzip"),
        "claims 3000000000 values": bomb(f"{DFF}/timestamps", (3_000_000_000,), "f8", chunks=(1000,)),
        "img_mask": bomb(f"{SEGMENTATION}/imaging_plane_1/roi_0000/img_mask", (200_000, 200_000), "u1", chunks=(9, 9)),
    }
    for message, change in cases.items():
        path = damaged(change)
        with pytest.raises(RecordingError, match=message):
            AllenSource().read(path)
        assert path.stat().st_size < 10_000_000
    path = damaged(bomb("stimulus/templates/natural_movie_one_image_stack/data", (900_000, 304, 608), "u1"))
    with pytest.raises(RecordingError, match="claims 900000 x 304 x 608"):
        list(AllenSource().movies(path))


def test_a_name_from_the_file_leads_nowhere(damaged, tmp_path):
    path = damaged(_texts(session_id="../../outside"))
    path = path.rename(path.with_name("..evil name.nwb"))
    outcome = convert(AllenSource(), path, tmp_path / "out" / "data")[0]
    assert outcome.status == "written"
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"data"}
    assert outcome.recording_id == "evil_name"


def test_one_bad_file_does_not_stop_the_others(originals, tmp_path):
    shutil.copy(originals["B"][1], tmp_path / "2.nwb")
    (tmp_path / "1.nwb").write_bytes(b"nothing")
    outcomes = convert(AllenSource(), tmp_path, tmp_path / "data")
    assert [o.status for o in outcomes] == ["failed", "written"]
    assert "1.nwb is not a complete HDF5 file" in outcomes[0].error
