"""Arrays of a laboratory: what was written comes back, axes and clock are never guessed silently."""

import json
import re

import numpy as np
import pytest
from scipy import io as scipy_io

from poyo_ssl.data.dff import compute_dff
from poyo_ssl.data.recording import Recording
from poyo_ssl.data.stimuli import load_movie
from poyo_ssl.errors import ConfigError, RecordingError
from poyo_ssl.sources.arrays import ArraysSource
from poyo_ssl.sources.run import convert
from poyo_ssl.sources.tables import Companions

RATE = 20.0
CLOCK = 12.5 + np.arange(900) / RATE
DFF = np.random.default_rng(0).normal(0, 0.3, (900, 5)).astype(np.float32)
PIXELS = np.random.default_rng(1).integers(0, 256, (30, 6, 8), dtype=np.uint8)
TABLE = """start,stop,name,orientation,temporal_frequency,contrast,note
13,15,drifting_gratings,90,2,0.8,fine
16,18,drifting_gratings,,,,
19,21,drifting_gratings,45,4,0.8,odd
25,26,natural_movie_one,,,,
26,27,natural_movie_one,,,,
40,50,spontaneous,,,,
"""


def write_folder(folder, *, traces=None, clock=CLOCK, table=TABLE, metadata=None):
    folder.mkdir(parents=True)
    for name, values in (traces or {"dff": DFF}).items():
        np.save(folder / f"{name}.npy", values)
    if clock is not None:
        np.save(folder / "timestamps.npy", clock)
    if table:
        (folder / "stimuli.csv").write_text(table)
    (folder / "pixels").mkdir()
    np.save(folder / "pixels" / "natural_movie_one.npy", PIXELS)
    (folder / "recording.json").write_text(json.dumps(metadata or {"subject_id": "m7", "cre_line": "Sst-IRES-Cre"}))
    return folder


def test_a_folder_becomes_a_recording(tmp_path):
    write_folder(tmp_path / "lab" / "one")
    write_folder(tmp_path / "lab" / "two", metadata={"subject_id": "m8"})
    outcomes = convert(ArraysSource(), tmp_path / "lab", tmp_path / "out")
    assert [(one.recording_id, one.status, one.error) for one in outcomes] == [
        ("one", "written", ""),
        ("two", "written", ""),
    ]
    assert outcomes[0].warnings == ()
    assert outcomes[1].warnings == (
        "Cre line 'unknown' is not one of the Allen's 13; selection per line does not know it",
    )
    recording = Recording.open(tmp_path / "out" / "one.h5")
    np.testing.assert_array_equal(recording.dff, DFF)
    np.testing.assert_array_equal(recording.timestamps, CLOCK)
    assert (recording.metadata.subject_id, recording.metadata.origin) == ("m7", "given dF/F")
    gratings = recording.stimulus("drifting_gratings")
    assert gratings.start.tolist() == [13, 16, 19]
    assert gratings.start_frame.tolist() == [10, 70, 130]
    assert gratings.end_frame.tolist() == [50, 110, 170]
    assert gratings.columns["blank_sweep"].tolist() == [False, True, False]
    np.testing.assert_array_equal(gratings.columns["orientation"], [90, np.nan, 45])
    assert gratings.columns["orientation_id"].tolist() == [2, -1, 1]
    assert gratings.columns["temporal_frequency_id"].tolist() == [1, -1, 2]
    assert gratings.columns["note"].tolist() == ["fine", "", "odd"]
    movie = recording.stimulus("natural_movie_one")
    assert movie.columns["frame"].tolist() == list(range(30)) * 2
    assert movie.columns["repeat"].tolist() == [0] * 30 + [1] * 30
    assert movie.start[31] == pytest.approx(26 + 1 / 30)
    assert {name: spans.tolist() for name, spans in recording.epochs.items()} == {
        "drifting_gratings": [[13.0, 21.0]],
        "natural_movie_one": [[25.0, 27.0]],
        "spontaneous": [[40.0, 50.0]],
    }
    np.testing.assert_array_equal(load_movie(tmp_path / "out", "natural_movie_one"), PIXELS)
    assert {one.status for one in convert(ArraysSource(), tmp_path / "lab", tmp_path / "out")} == {"unchanged"}
    (tmp_path / "lab" / "one" / "stimuli.csv").write_text(TABLE.replace("90", "135"))
    assert [one.status for one in convert(ArraysSource(), tmp_path / "lab", tmp_path / "out")] == [
        "written",
        "unchanged",
    ]


def test_fluorescence_becomes_dff_by_the_named_procedure(tmp_path):
    light = 100 + 20 * DFF
    neuropil = 30 + DFF[::-1]
    folder = write_folder(tmp_path / "f", traces={"fluorescence": light, "neuropil": neuropil})
    recording = ArraysSource(dff_procedure="maximin", neuropil_ratio=0.5).read(folder)
    expected, _ = compute_dff((light - 0.5 * neuropil).astype(np.float32), "maximin", rate_hz=RATE)
    np.testing.assert_allclose(recording.dff, expected, atol=1e-6)
    assert recording.metadata.origin == "dF/F computed from given fluorescence"
    turned = write_folder(tmp_path / "t", traces={"fluorescence": light.T, "neuropil": neuropil.T})
    np.testing.assert_array_equal(
        ArraysSource(dff_procedure="maximin", neuropil_ratio=0.5).read(turned).dff, recording.dff
    )
    (folder / "neuropil.npy").unlink()
    assert "no neuropil beside the fluorescence: none is subtracted" in ArraysSource().read(folder).warnings
    np.save(folder / "neuropil.npy", neuropil[:, :4])
    with pytest.raises(RecordingError, match=r"has shape \(900, 4\), the fluorescence \(900, 5\)"):
        ArraysSource().read(folder)
    dark = write_folder(tmp_path / "d", traces={"fluorescence": DFF, "neuropil": neuropil})
    assert any("lies at or below the noise" in text for text in ArraysSource().read(dark).warnings)


def test_events_become_simulated_dff(tmp_path):
    events = np.zeros((900, 3))
    events[[10, 400], [0, 2]] = 1.0, 2.5
    recording = ArraysSource(seed=3).read(write_folder(tmp_path / "e", traces={"events": events}))
    assert recording.metadata.origin == "given events, simulated fluorescence"
    np.testing.assert_array_equal(recording.events.dense(900, 3), events.astype(np.float32))
    events[5, 0] = -1
    negative = write_folder(tmp_path / "n", traces={"events": events})
    with pytest.raises(RecordingError, match=r"event of unit 0 in frame 5 is -1\.0"):
        ArraysSource().read(negative)


def test_single_files_need_their_kind_and_a_clock(tmp_path):
    scipy_io.savemat(tmp_path / "session.mat", {"traces": DFF, "other": DFF})
    with pytest.raises(RecordingError, match=r"whether .* is not in its name"):
        ArraysSource().read(tmp_path / "session.mat")
    with pytest.raises(RecordingError, match="holds several arrays"):
        ArraysSource(kind="dff").read(tmp_path / "session.mat")
    with pytest.raises(RecordingError, match="has no clock; give --rate_hz"):
        ArraysSource(kind="dff", key="traces").read(tmp_path / "session.mat")
    recording = ArraysSource(companions=Companions(rate_hz=RATE), kind="dff", key="traces").read(
        tmp_path / "session.mat"
    )
    np.testing.assert_array_equal(recording.dff, DFF)
    np.testing.assert_allclose(recording.timestamps, np.arange(900) / RATE)
    assert "no stimulus table" in recording.warnings[0]


@pytest.mark.parametrize(
    ("traces", "clock", "axes", "message"),
    [
        (DFF.T, CLOCK, "auto", r"warning: .*taken as \(units, time\), by the 900 timestamps"),
        (DFF.T, None, "auto", r"warning: .*taken as \(units, time\), the longer axis being time"),
        (DFF.T, CLOCK, "time_first", "the traces are transposed"),
        (
            DFF,
            CLOCK[:-1],
            "auto",
            "warning: .*900 frames of dF/F and 899 timestamps; the last frame of dF/F is left out",
        ),
        (DFF, CLOCK[:-9], "auto", "900 frames x 5 units and 891 timestamps"),
        (DFF, np.r_[CLOCK[:500], np.nan, CLOCK[501:]], "auto", "timestamp 500 is nan"),
        (
            DFF,
            np.r_[CLOCK[:500], CLOCK[499], CLOCK[501:]],
            "auto",
            r"timestamp 500 \(37.45 s\) is not after timestamp 499",
        ),
        (DFF, np.stack([CLOCK, CLOCK]), "auto", r"holds an array of shape \(2, 900\)"),
        (DFF[:5], None, "auto", "say which with --axes"),
        (DFF[:6], CLOCK[:5], "auto", "either axis could be the 5 frames"),
        (DFF[:0], None, "auto", r"holds an array of shape \(0, 5\)"),
        (DFF[0], None, "auto", r"holds an array of shape \(5,\)"),
        (DFF[:, :, None], None, "auto", r"holds an array of shape \(900, 5, 1\)"),
    ],
)
def test_axes_and_clock_are_checked(tmp_path, traces, clock, axes, message):
    folder = write_folder(tmp_path / "x", traces={"dff": traces}, clock=clock, table=None)
    source = ArraysSource(companions=Companions(rate_hz=RATE if clock is None else None), axes=axes)
    if message.startswith("warning: "):
        recording = source.read(folder)
        assert any(re.search(message[9:], text) for text in recording.warnings), recording.warnings
        np.testing.assert_array_equal(recording.dff, DFF[: len(recording.dff)])
    else:
        with pytest.raises(RecordingError, match=message):
            source.read(folder)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("begin,stop,name\n13,15,a\n", r"has no column 'start' .found: begin, stop, name"),
        ("start;stop;name\n13;15;a\n", r"found: start;stop;name. .allowed: .* with commas between them"),
        ("start,stop,name\n", "has no rows"),
        ("start,stop,name\n13,soon,a\n", "'stop' of row 0 is 'soon'"),
        ("start,stop,name\n15,13,a\n", r"row 0 \(a\) runs from 15 s to 13 s"),
        ("start,stop,name\n1000,1002,a\n", "none of 1 rows"),
        ("start,stop,name,frame\n13,14,natural_movie_one,30\n", "shows frame 30"),
        ("start,stop,name,frame\n13,14,natural_movie_one,0.5\n", "'frame' of natural_movie_one is not a whole number"),
        ("start,stop,name,orientation\n13,14,g,north\n", "orientation of g is not a number everywhere"),
        ("start,stop,name,blank_sweep\n13,14,g,maybe\n", "blank_sweep of g is not 0 or 1"),
        ("start,stop,name\n13,14,a/b\n14,15,a_b\n", "two stimuli would be called 'a_b'"),
        ("\x00\x01", "is not a table|has no column"),
    ],
)
def test_bad_tables_get_a_named_error(tmp_path, table, message):
    with pytest.raises(RecordingError, match=message) as caught:
        ArraysSource().read(write_folder(tmp_path / "x", table=table))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("start,stop,name\n1,2,a\n13,14,a\n", "row 0 reach outside the recording: left out"),
        ("start,stop,name\n13,16,a\n14,17,a\n30,31,a\n", "1 presentations begin before the one before them ends"),
        ("start,stop,name\n13,14,a/../b\n30,31,c\n", r"stimulus 'a/../b' is called 'a_.._b'"),
        ("start,stop,name\n12.5,12.6,a\n12.7,13.0,a\n", "is the table in seconds?"),
        ("start,stop,name\n13,14,drifting_gratings\n", "drifting_gratings has no 'orientation' in "),
        ("start,stop,name\n13,14,natural_movie_two\n", "natural_movie_two has no 'frame' in "),
        ("start,stop,name\n13,14,a\n30,31,a\n", "pixels of 'natural_movie_one', which the table does not mention"),
    ],
)
def test_suspicious_tables_get_a_warning(tmp_path, table, message):
    warnings = ArraysSource().read(write_folder(tmp_path / "x", table=table)).warnings
    assert any(message in text for text in warnings), warnings


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"subjct_id": "m"}, "unknown field 'subjct_id', did you mean 'subject_id'"),
        ({"subject_id": 7}, "'subject_id' is 7 .allowed: text"),
        ({"depth_um": "deep"}, "'depth_um' is \"deep\" .allowed: a number"),
        ([1], "holds a list"),
    ],
)
def test_bad_metadata_gets_a_named_error(tmp_path, metadata, message):
    with pytest.raises(RecordingError, match=message):
        ArraysSource().read(write_folder(tmp_path / "x", metadata=metadata))


def test_bad_settings_and_empty_inputs(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'allen_median'"):
        ArraysSource(dff_procedure="alen_median")
    with pytest.raises(ConfigError, match=r"neuropil_ratio of 7"):
        ArraysSource(neuropil_ratio=7)
    with pytest.raises(ConfigError, match="seed of -1"):
        ArraysSource(seed=-1)
    with pytest.raises(ConfigError, match="rate_hz of 0"):
        Companions(rate_hz=0)
    with pytest.raises(RecordingError, match="no traces in"):
        ArraysSource().find(tmp_path)
    folder = write_folder(tmp_path / "x", traces={"dff": DFF, "events": DFF})
    with pytest.raises(RecordingError, match=r"holds dff\.npy and events\.npy"):
        ArraysSource().read(folder)
    with pytest.raises(RecordingError, match="correct --stimuli"):
        ArraysSource(companions=Companions(stimuli=tmp_path / "none.csv"), kind="dff").read(folder)
