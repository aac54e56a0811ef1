"""Damaged and odd NWB 2 files: each gets a named error or a warning, never a traceback or a silent change."""

import shutil

import h5py
import numpy as np
import pytest
from tests.sources.changes import drop, put, put_item
from tests.sources.nwb_samples import write_dandi, write_laboratory

from poyo_ssl.data.recording import Recording
from poyo_ssl.errors import RecordingError
from poyo_ssl.sources.nwb import NwbSource
from poyo_ssl.sources.run import convert

SERIES = "processing/ophys/DfOverF/DfOverF"
ROIS = "processing/ophys/ImageSegmentation/PlaneSegmentation"
CLOCK = "processing/ophys/Fluorescence/Corrected/timestamps"
GRATINGS = "stimulus/presentation/drifting_gratings"
MOVIE = "stimulus/presentation/natural_movie_one_stimulus"
LOST = "DANDI 000728 keeps neither ROI ids"
SPONTANEOUS = "stimulus/presentation/spontaneous_stimulus"


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nwb")
    return {"dandi": write_dandi(folder)[1], "laboratory": write_laboratory(folder / "laboratory")[2]}


@pytest.fixture
def damaged(originals, tmp_path):
    """Return a function that changes a copy of a file and gives its path."""

    def make(kind, change):
        path = tmp_path / originals[kind].name
        shutil.copy(originals[kind], path)
        with h5py.File(path, "a") as file:
            change(file)
        return path

    return make


def _both(*changes):
    def change(file):
        for one in changes:
            one(file)

    return change


def _rename_columns(missing):
    def change(file):
        names = [name for name in file[GRATINGS].attrs["colnames"] if name != missing]
        file[GRATINGS].attrs["colnames"] = names

    return change


def _session(text):
    return put("general/session_id", lambda _: text)


DANDI_ERRORS = {
    "dff and fluorescence missing": (
        drop("processing/ophys/DfOverF", "processing/ophys/Fluorescence"),
        r"no dF/F or fluorescence .RoiResponseSeries. in any module",
    ),
    "timestamp NaN": (put_item(CLOCK, 17, np.nan), r"timestamp 17 is nan .allowed: finite seconds"),
    "timestamps turned back": (put_item(CLOCK, 9, 26.0), r"timestamp 9 .26 s. is not after timestamp 8"),
    "clock two frames short": (put(CLOCK, lambda v: v[:-2]), r"\(12080, 5\) for 5 ROIs and 12078 timestamps"),
    "a trace more than ROIs": (put(f"{SERIES}/data", lambda v: v[:, :4]), r"\(12080, 4\) for 5 ROIs and 12080"),
    "of one dimension": (put(f"{SERIES}/data", np.ravel), r"numbers of 2 dimensions"),
    "duplicate cells": (
        put(f"{ROIS}/id", lambda v: np.r_[v[1], v[1:]]),
        r"id of 'PlaneSegmentation' 51747236\d occurs 2 times",
    ),
    "ROI outside its table": (
        put_item("processing/ophys/Fluorescence/Corrected/rois", 2, 99),
        r"trace 2 is of row 99 of 'PlaneSegmentation' .allowed: 0 to 4",
    ),
    "a feature missing": (
        _both(
            drop(f"{GRATINGS}/orientation_in_degrees"),
            _rename_columns("orientation_in_degrees"),
        ),
        r"drifting_gratings has no numbers of 'orientation' .allowed: orientation, temporal_frequency",
    ),
    "a feature outside its values": (
        put_item(f"{GRATINGS}/temporal_frequency_in_hz", 5, 3.0),
        r"row 5 has temporal_frequency 3 .allowed: 1, 2, 4, 8, 15",
    ),
    "a feature without value": (
        put_item(f"{GRATINGS}/temporal_frequency_in_hz", 5, np.nan),
        r"row 5 has no value for a feature but is no blank",
    ),
    "gratings before the recording": (
        _both(put_item(f"{GRATINGS}/start_time", 0, -9.0), put_item(f"{GRATINGS}/stop_time", 0, -7.0)),
        r"row 0 of drifting_gratings begins at -9 s .allowed: 26\.7",
    ),
    "gratings end before they begin": (
        put_item(f"{GRATINGS}/stop_time", 3, 0.0),
        r"drifting_gratings: row 3 .drifting_gratings. runs from [\d.]+ s to 0 s",
    ),
    "gratings without a time": (put_item(f"{GRATINGS}/start_time", 3, np.nan), r"'start' of row 3 is 'nan'"),
    "gratings out of order": (
        put(f"{GRATINGS}/start_time", lambda v: np.r_[v[1], v[0], v[2:]]),
        r"runs from|row 1 of drifting_gratings begins before row 0",
    ),
    "a movie with a frame too few": (
        _both(put(f"{MOVIE}/data", lambda v: v[:-1]), put(f"{MOVIE}/timestamps", lambda v: v[:-1])),
        r"repeat 9 of natural_movie_one has the end of the table where image 11 should be",
    ),
    "a movie with another frame": (
        put_item(f"{MOVIE}/data", 30, 3),
        r"repeat 2 of natural_movie_one has image 3 where image 6 should be",
    ),
    "an image outside the template": (put_item(f"{MOVIE}/data", 7, 12), r"row 7 shows image 12 .allowed: 0 to 11"),
    "a movie's clock": (put_item(f"{MOVIE}/timestamps", 7, np.inf), r"natural_movie_one_stimulus: timestamp 7 is inf"),
    "a movie's clock too short": (put(f"{MOVIE}/timestamps", lambda v: v[:-1]), r"has 120 images and 119 timestamps"),
    "spontaneous outside": (put_item(f"{SPONTANEOUS}/stop_time", 0, 1e6), r"spontaneous runs from [\d.]+ to 1e\+06 s"),
    "not NWB 2": (
        lambda f: f.attrs.modify("nwb_version", "1.0.6"),
        r"is of NWB 1.0.6 .* 'prepare allen'",
    ),
    "no NWB": (lambda f: f.attrs.__delitem__("nwb_version"), r"is no NWB file .allowed: NWB 2"),
    "linked elsewhere": (
        lambda f: f.__setitem__("acquisition/raw", h5py.ExternalLink("/dev/zero", "/")),
        r"'acquisition/raw' is a link to another file, '/dev/zero'",
    ),
    "stored elsewhere": (
        _both(
            drop(f"{SERIES}/data"),
            lambda f: f[SERIES].create_dataset("data", (12080, 5), "f4", external=[("/dev/zero", 0, 12080 * 20)]),
        ),
        r"ophys/DfOverF/DfOverF/data is kept in another file",
    ),
    "claims more than there is": (
        _both(
            drop(f"{SERIES}/data"),
            lambda f: f[SERIES].create_dataset("data", (1 << 40, 5), "f4", chunks=(1 << 20, 5)),
        ),
        r"claims 1099511627776 x 5 values of float32",
    ),
    "a group of the schema missing": (drop("session_description"), r"pynwb cannot read it .*session_description"),
}


@pytest.mark.parametrize("case", DANDI_ERRORS)
def test_errors_of_dandi_files(case, damaged, tmp_path):
    change, message = DANDI_ERRORS[case]
    path = damaged("dandi", change)
    with pytest.raises(RecordingError, match=message):
        NwbSource().read(path)


DANDI_WARNINGS = {
    "transposed": (put(f"{SERIES}/data", np.transpose), r"has shape (5, 12080): transposed, it is read as (ROIs, fr"),
    "one frame more": (
        put(f"{SERIES}/data", lambda v: np.r_[v, v[-1:]]),
        "12081 frames of dF/F and 12080 timestamps; the last frame of dF/F is left out",
    ),
    "empty mask": (
        put(f"{ROIS}/pixel_mask_index", lambda v: np.r_[v[0], v[0], v[2:]]),
        "the mask is empty in row 1: position unknown",
    ),
    "masks damaged": (
        put_item(f"{ROIS}/pixel_mask_index", 0, 60000),
        "the ROIs have no masks: pixel_mask_index of 5 ROIs",
    ),
    "a stimulus missing": (drop(MOVIE), "no 'natural_movie_one' among the stimuli, which three_session_A should have"),
    "an unknown stimulus": (
        lambda f: f.move(MOVIE, "stimulus/presentation/natural_movie_four_stimulus"),
        "stimulus 'natural_movie_four' is not one of the Allen's; left out",
    ),
    "a repeat missing": (
        _both(put(f"{MOVIE}/data", lambda v: v[:-12]), put(f"{MOVIE}/timestamps", lambda v: v[:-12])),
        "natural_movie_one has 9 repeats where 10 were shown",
    ),
    "unknown line": (
        put("general/subject/genotype", lambda _: "Gad2-IRES-Cre/wt"),
        "unknown line: genotype 'Gad2-IRES-Cre/wt' is none of the Allen's 13",
    ),
    "age": (put("general/subject/age", lambda _: "adult"), "age 'adult' is no number of days or weeks"),
    "no running": (drop("processing/behavior/BehavioralTimeSeries"), LOST),
    "running's clock": (
        put_item("processing/behavior/BehavioralTimeSeries/running_speed/timestamps", 5, 0.0),
        "running_speed: timestamps are not finite and increasing; left out",
    ),
    "no eye data": (
        drop("processing/behavior/EyeTracking", "processing/behavior/PupilTracking"),
        LOST,
    ),
    "session type": (
        _session("501574836-StimX"),
        "unknown session type 'three_session_X'",
    ),
}


@pytest.mark.parametrize("case", DANDI_WARNINGS)
def test_warnings_of_dandi_files(case, damaged, originals):
    change, message = DANDI_WARNINGS[case]
    recording = NwbSource().read(damaged("dandi", change))
    assert any(message in line for line in recording.warnings), recording.warnings
    if case == "transposed":
        np.testing.assert_array_equal(recording.dff[0:50], NwbSource().read(originals["dandi"]).dff[0:50])
    if case == "no running":
        assert recording.running is None
    if case == "no eye data":
        assert recording.pupil is None


LABORATORY_ERRORS = {
    "no clock": (
        drop(f"{SERIES}/timestamps"),
        r"has no clock; give --rate_hz or --timestamps|pynwb cannot read it",
    ),
    "start of a trial": (put_item("intervals/trials/start_time", 2, np.nan), r"'start' of row 2 is 'nan'"),
    "stop before start": (put_item("intervals/trials/stop_time", 2, 1.0), r"trials: row 2 .* runs from 11 s to 1 s"),
    "no trial inside": (
        _both(*(put(f"intervals/trials/{name}_time", lambda v: v + 1e5) for name in ("start", "stop"))),
        r"none of 16 rows .* lies within the recording .2 to 61\.9",
    ),
    "a column too short": (put("intervals/trials/stop_time", lambda v: v[:-1]), r"differ in length|cannot read it"),
}


@pytest.mark.parametrize("case", LABORATORY_ERRORS)
def test_errors_of_laboratories_files(case, damaged):
    change, message = LABORATORY_ERRORS[case]
    with pytest.raises(RecordingError, match=message):
        NwbSource().read(damaged("laboratory", change))


def test_traces_that_are_not_finite_or_constant_are_named(damaged, tmp_path):
    def change(file):
        file[f"{SERIES}/data"][5, 1] = np.nan
        file[f"{SERIES}/data"][:, 2] = 1.0

    outcome = convert(NwbSource(), damaged("laboratory", change), tmp_path / "out")[0]
    assert "dF/F is not finite in row 1 (ROI 5): left out" in outcome.warnings
    assert "dF/F is constant in row 2 (ROI 8)" in outcome.warnings
    assert Recording.open(tmp_path / "out" / "mouse7.h5").unit_ids.tolist() == ["3", "8", "13"]


@pytest.mark.parametrize("length", [0, 100, 5000, -1000])
def test_truncated_files(originals, tmp_path, length):
    path = tmp_path / "x.nwb"
    path.write_bytes(originals["laboratory"].read_bytes()[:length])
    with pytest.raises(RecordingError, match=r"is not a complete HDF5 file .* download or copy it again"):
        NwbSource().read(path)
    assert not NwbSource.recognises(path)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(RecordingError, match="no file"):
        NwbSource().read(tmp_path / "nowhere.nwb")
    with pytest.raises(RecordingError, match=r"no \*\.nwb in"):
        NwbSource().find(tmp_path)
