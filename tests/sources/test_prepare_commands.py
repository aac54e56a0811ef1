"""`poyo-ssl prepare` of a source: what is written, what a second run does, what is said of a bad file."""

import pytest
from allen_samples import write_session

from poyo_ssl.cli import main
from poyo_ssl.data.recording import open_recordings


@pytest.fixture
def allen_folder(tmp_path):
    folder = tmp_path / "ophys_experiment_data"
    folder.mkdir()
    write_session(folder, "three_session_A", recording_id="501574836")
    return folder


def test_a_second_run_does_nothing(allen_folder, tmp_path, capsys):
    command = ["prepare", "allen", str(allen_folder), str(tmp_path / "data"), "--workers", "1"]
    assert main(command) == 0
    (recording,) = open_recordings(tmp_path / "data")
    written = recording.path.stat().st_mtime_ns
    assert "natural_movie_three" in recording.stimuli
    assert main(command) == 0
    assert "0 written, 1 unchanged, 0 failed" in " ".join(capsys.readouterr().err.split())
    assert recording.path.stat().st_mtime_ns == written


def test_a_bad_file_is_named_and_does_not_stop_the_others(allen_folder, tmp_path, capsys):
    (allen_folder / "501574837.nwb").write_bytes(b"not a recording")
    assert main(["prepare", "allen", str(allen_folder), str(tmp_path / "data"), "--workers", "1"]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("poyo-ssl: 1 of 2 recordings could not be converted, 501574837 first")
    assert [recording.path.stem for recording in open_recordings(tmp_path / "data")] == ["501574836"]
