import json

import numpy as np
import pytest

from poyo_ssl.cli import main
from poyo_ssl.data.recording import Recording
from poyo_ssl.data.series import SparseEvents
from poyo_ssl.errors import RecordingError
from poyo_ssl.sources.events import EventsSource, GCaMPConfig, simulate_dff

EPOCHS = """stimulus,start_frame,end_frame,repeats,frames_per_repeat_imaging,movie_frames
drifting_gratings,10,200,,,
natural_movie_one,300,402,2,51,50
spontaneous,402,500,,,
natural_movie_one,500,602,2,51,50
"""
GRATINGS = """start_frame,end_frame,orientation,temporal_frequency,blank_sweep,label_known
10,70,45,2,0,1
80,140,,,1,1
150,200,,,,0
"""


def write_folder(folder, *, epochs=EPOCHS, gratings=GRATINGS, **arrays):
    folder.mkdir(exist_ok=True, parents=True)
    events = {"cell": [0, 2, 1], "frame": [5, 20, 550], "shape": [3, 700], "fps": 30.0, "masked_frames": [[640, 700]]}
    events = {key: value for key, value in (events | arrays).items() if value is not None}
    np.savez(folder / "events.npz", **events)
    (folder / "epochs.csv").write_text(epochs)
    if gratings:
        (folder / "drifting_gratings.csv").write_text(gratings)
    return folder


def prepare(folder, output):
    source = EventsSource()
    return source.read(folder).save(output / f"{source.recording_id(folder)}.h5")


def test_folder_becomes_a_recording(tmp_path):
    recording = Recording.open(prepare(write_folder(tmp_path / "mouse7"), tmp_path / "out"))
    assert recording.recording_id == recording.metadata.subject_id == "mouse7"
    assert recording.metadata.origin == "real events, simulated fluorescence"
    np.testing.assert_allclose(recording.timestamps, np.arange(700) / 30)
    np.testing.assert_allclose(recording.masked_domain, [[640 / 30, 700 / 30]])
    np.testing.assert_allclose(recording.epochs["natural_movie_one"], np.array([[300, 402], [500, 602]]) / 30)
    assert recording.events.frame.tolist() == [5, 20, 550]
    assert recording.events.unit.tolist() == [0, 2, 1]
    movie = recording.stimulus("natural_movie_one")
    assert len(movie) == 200
    assert movie.columns["repeat"][[0, 50, 100, 150]].tolist() == [0, 1, 2, 3]
    assert movie.start[101] == pytest.approx((500 + 51 / 50) / 30)
    assert movie.end[99] == pytest.approx(402 / 30)
    np.testing.assert_array_equal(movie.end_frame[:99], movie.start_frame[1:100])
    gratings = recording.stimulus("drifting_gratings")
    assert gratings.columns["orientation_id"].tolist() == [1, -1, -1]
    assert gratings.columns["temporal_frequency_id"].tolist() == [1, -1, -1]
    assert gratings.columns["blank_sweep"].tolist() == [False, True, False]
    assert gratings.columns["label_known"].tolist() == [True, True, False]
    assert gratings.start_frame.tolist() == [10, 80, 150]


def test_metadata_file_is_taken_but_never_the_origin(tmp_path):
    folder = write_folder(tmp_path / "lab")
    (folder / "recording.json").write_text(json.dumps({"subject_id": "m1", "cre_line": "Vip-IRES-Cre", "origin": "x"}))
    metadata = Recording.open(prepare(folder, tmp_path / "out")).metadata
    assert (metadata.subject_id, metadata.cre_line) == ("m1", "Vip-IRES-Cre")
    assert metadata.origin == "real events, simulated fluorescence"
    (folder / "recording.json").write_text(json.dumps({"cre_lin": "Vip-IRES-Cre"}))
    with pytest.raises(RecordingError, match="did you mean 'cre_line'"):
        prepare(folder, tmp_path / "other")


def test_noise_has_its_level_and_comes_from_the_seed():
    none = SparseEvents(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
    indicator = GCaMPConfig(noise_std=0.1, noise_spread=0.5)
    dff = simulate_dff(none, 2000, 200, 30.0, indicator=indicator, seed=4)
    again = simulate_dff(none, 2000, 200, 30.0, indicator=indicator, seed=4)
    other = simulate_dff(none, 2000, 200, 30.0, indicator=indicator, seed=5)
    np.testing.assert_array_equal(dff, again)
    assert not np.allclose(dff, other)
    levels = dff.std(axis=0)
    assert levels[0] == pytest.approx(0.1, rel=0.05)
    assert np.median(levels) == pytest.approx(0.1, rel=0.15)
    assert np.std(np.log(levels)) == pytest.approx(0.5, rel=0.15)
    assert dff.dtype == np.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fps": None}, "has no 'fps'"),
        ({"cell": [0, 3, 1]}, r"event 1 has cell 3 \(allowed: 0 to 2\)"),
        ({"frame": [5, 700, 550]}, r"event 1 has frame 700 \(allowed: 0 to 699\)"),
        ({"frame": [5, 20]}, "'frame' has shape"),
        ({"value": [1.0, -1.0, 1.0]}, "event size"),
        ({"frame": [5, 20, 650]}, "1 events lie inside masked_frames"),
        ({"masked_frames": [[640, 701]]}, "masked span ends at 701"),
        ({"fps": 0.0}, "fps is 0"),
        ({"epochs": "stimulus,start_frame,end_frame\na,10,50\nb,40,60\n"}, "row 1 .* begins before row 0 ends"),
        ({"epochs": "stimulus,start_frame,end_frame\na,10,5000\n"}, "row 0 covers frames 10 to 5000"),
        ({"epochs": "stimulus,start_frame\na,10\n"}, "no column 'end_frame'"),
        ({"epochs": "stimulus,start_frame,end_frame\nnatural_movie_one,10,50\n"}, "row 0 .natural_movie_one."),
        ({"epochs": ""}, "is not a table"),
        ({"epochs": EPOCHS.replace("10,200", "10.5,200")}, "row 0 covers frames 10.5 to 200"),
        ({"epochs": EPOCHS.replace("spontaneous", "../x")}, r"row 2 has the stimulus '\.\./x'"),
        ({"epochs": EPOCHS.replace("2,51,50", "2,51,many")}, r"row 1 .natural_movie_one. has .* nan"),
        ({"epochs": EPOCHS.replace("2,51,50", "2,51,50000000")}, r"row 1 .natural_movie_one."),
        ({"shape": [10**9, 10**9]}, r"claims 1000000000 x 1000000000 values"),
        ({"cell_specimen_id": [1.5, 2, 3]}, "cell_specimen_id is not whole"),
        ({"cell": np.array(["a", "b", "c"])}, "holds values of type"),
        ({"gratings": GRATINGS.replace("45,2", "left,2")}, "row 0 has orientation nan"),
        ({"gratings": GRATINGS.replace("0,1\n80", "maybe,7\n80")}, "label_known is not 0 or 1"),
        ({"gratings": None}, r"no file .*drifting_gratings\.csv"),
        ({"gratings": GRATINGS.replace("45", "44")}, "row 0 has orientation 44"),
    ],
)
def test_bad_input_gets_one_line_and_no_file(tmp_path, change, message):
    folder = write_folder(tmp_path / "bad", **change)
    with pytest.raises(RecordingError, match=message) as caught:
        prepare(folder, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("out/*"))


def test_missing_and_truncated_files(tmp_path):
    with pytest.raises(RecordingError, match=r"no file .*events\.npz"):
        prepare(tmp_path / "nowhere", tmp_path / "out")
    folder = write_folder(tmp_path / "mouse")
    whole = (folder / "events.npz").read_bytes()
    (folder / "events.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RecordingError, match="not a complete npz"):
        prepare(folder, tmp_path / "other")


def test_allen_metadata_beside_the_folder_is_found(tmp_path):
    lines = [("reporter", "Ai93(TITL-GCaMP6f)"), ("driver", "Camk2a-tTA"), ("driver", "Cux2-CreERT2")]
    donor = {
        "external_donor_name": "222420",
        "sex": "F",
        "age": {"days": 144.0},
        "transgenic_lines": [{"transgenic_line_type_name": kind, "name": name} for kind, name in lines],
    }
    experiment = {"id": 42, "stimulus_name": "three_session_A", "date_of_acquisition": "2016-02-04T23:20:58Z"}
    container = {
        "id": 7,
        "imaging_depth": 275,
        "targeted_structure": {"acronym": "VISp"},
        "specimen": {"donor": donor},
        "ophys_experiments": [experiment],
    }
    (tmp_path / "allen_metadata").mkdir()
    (tmp_path / "allen_metadata" / "experiment_containers.json").write_text(json.dumps([container]))
    recording = Recording.open(prepare(write_folder(tmp_path / "allen_42"), tmp_path / "out"))
    assert recording.recording_id == "42"
    assert recording.metadata.cre_line == "Cux2-CreERT2"
    assert (recording.metadata.subject_id, recording.metadata.container_id) == ("222420", "7")
    assert recording.metadata.indicator == "GCaMP6f"


def test_many_folders_are_continued_and_one_bad_one_is_named(tmp_path, capsys):
    for number in range(12):
        write_folder(tmp_path / "lab" / f"mouse{number:02d}")
    (tmp_path / "lab" / "mouse05" / "epochs.csv").unlink()
    command = ["prepare", "events", str(tmp_path / "lab"), str(tmp_path / "data"), "--workers", "2"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "1 of 12 recordings could not be converted, mouse05 first" in said.splitlines()[-1]
    assert "11 written, 0 unchanged, 1 failed" in " ".join(said.split())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").glob("*.h5")}
    write_folder(tmp_path / "lab" / "mouse05")
    assert main(command) == 0
    assert "1 written, 11 unchanged, 0 failed" in " ".join(capsys.readouterr().err.split())
    assert before == {path: path.stat().st_mtime_ns for path in before}
    with pytest.raises(RecordingError, match=r"no events\.npz in"):
        EventsSource().find(tmp_path)
