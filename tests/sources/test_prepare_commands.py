"""`poyo-ssl prepare` of a source: what is written, what a second run does, what is said of a bad file."""

import json
import re
import shlex
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import yaml
from allen_samples import write_session
from suite2p_samples import write_plane

from poyo_ssl.cli import COMMANDS, build_parser, find_command, main, resolve
from poyo_ssl.data.recording import Recording, open_recordings
from poyo_ssl.sources.arrays import ArraysSource
from poyo_ssl.sources.suite2p import Suite2pSource
from poyo_ssl.sources.tables import Companions

LIGHT = np.random.default_rng(0).normal(500, 20, (600, 5))


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


@pytest.fixture
def laboratory(tmp_path):
    """Return a folder with fluorescence in two files and everything else under names of its own."""
    folder = tmp_path / "lab"
    folder.mkdir()
    for name in ("monday_fluorescence", "tuesday_fluorescence"):
        np.savez(folder / f"{name}.npz", traces=LIGHT, other=LIGHT[:9])
    (folder / "shown.csv").write_text(
        "start,stop,name,orientation\n3,5,drifting_gratings,90\n6,8,drifting_gratings,45\n"
    )
    (folder / "about.json").write_text(json.dumps({"subject_id": "m7", "cre_line": "Vip-IRES-Cre"}))
    return folder


def test_settings_of_arrays_are_flags_and_yaml(laboratory, tmp_path, capsys):
    named = {"key": "traces", "dff_procedure": "percentile", "axes": "time_first", "rate_hz": 20.0}
    files = {"stimuli": str(laboratory / "shown.csv"), "metadata": str(laboratory / "about.json")}
    source = str(laboratory / "monday_fluorescence.npz")
    flags = [f"--{key}={value}" for key, value in (named | files).items()]
    assert main(["prepare", "arrays", source, str(tmp_path / "flags"), *flags, "--workers", "1"]) == 0
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(named | files | {"workers": 1}))
    command = ["prepare", "arrays", "--config", str(tmp_path / "settings.yaml"), source, str(tmp_path / "yaml")]
    assert main(command) == 0
    first, second = (Recording.open(tmp_path / where / "monday_fluorescence.h5") for where in ("flags", "yaml"))
    assert first.checksum() == second.checksum()
    assert (first.metadata.subject_id, first.rate_hz) == ("m7", pytest.approx(20.0))
    record = json.loads((tmp_path / "flags" / "conversion" / "monday_fluorescence.json").read_text())
    companions = Companions(rate_hz=20.0, **files)
    expected = ArraysSource(companions=companions, key="traces", dff_procedure="percentile", axes="time_first")
    assert record["settings"] == asdict(expected)
    assert main(command) == 0
    assert "0 written, 1 unchanged, 0 failed" in " ".join(capsys.readouterr().err.split())
    assert main([*command, "--overwrite"]) == 0
    assert "1 written" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--rate_hz", "20"], "monday_fluorescence.npz holds several arrays"),
        (["--rate_hz", "20", "--key", "traces", "--kind", "dff", "--stimuli", "gone.csv"], "no gone.csv"),
        (["--key", "traces"], "has no clock (allowed"),
    ],
)
def test_one_bad_recording_is_one_line(laboratory, tmp_path, capsys, settings, message):
    source = str(laboratory / "monday_fluorescence.npz")
    assert main(["prepare", "arrays", source, str(tmp_path / "out"), "--workers", "1", *settings]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("poyo-ssl: ")]
    assert len(lines) == 1
    assert message.replace(" (allowed", "") in lines[0]
    assert "Traceback" not in lines[0]
    assert not list((tmp_path / "out").rglob("*.h5*"))


def test_settings_of_suite2p_are_flags(tmp_path):
    write_plane(tmp_path / "lab" / "mouse7" / "suite2p" / "plane0")
    write_plane(tmp_path / "lab" / "mouse8" / "suite2p" / "plane0", seed=1)
    settings = ["--cells", "all", "--neuropil_ratio", "0.5", "--rate_hz", "20", "--dff_procedure", "maximin"]
    assert main(["prepare", "suite2p", str(tmp_path / "lab"), str(tmp_path / "out"), "--workers", "2", *settings]) == 0
    source = Suite2pSource(
        companions=Companions(rate_hz=20.0), cells="all", neuropil_ratio=0.5, dff_procedure="maximin"
    )
    for recording in open_recordings(tmp_path / "out"):
        expected = source.read(tmp_path / "lab" / recording.recording_id / "suite2p")
        np.testing.assert_array_equal(recording.dff, expected.dff)
    assert {recording.recording_id for recording in open_recordings(tmp_path / "out")} == {"mouse7", "mouse8"}


def test_the_lines_of_the_documentation_parse():
    text = (Path(__file__).parents[2] / "docs" / "recordings.md").read_text()
    lines = [shlex.split(line.strip())[1:] for line in text.splitlines() if line.strip().startswith("poyo-ssl ")]
    shown = {find_command(line)[0] for line in lines}
    assert shown >= {command for command in COMMANDS if command.startswith("prepare ")} | {"doctor"}
    for line in lines:
        command, rest = find_command(line)
        parser = build_parser(command)
        parser.parse_args(resolve(rest, parser))


@pytest.mark.slow
def test_ray_from_the_command_line(tmp_path, monkeypatch, capsys, ray_works):
    # Ray's processes do not inherit pytest's import path.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "src"))
    for number in range(3):
        write_plane(tmp_path / "lab" / f"mouse{number}" / "suite2p" / "plane0", seed=number)
    (tmp_path / "lab" / "mouse1" / "suite2p" / "plane0" / "Fneu.npy").unlink()
    command = ["prepare", "suite2p", str(tmp_path / "lab"), str(tmp_path / "out"), "--ray", "local", "--workers", "2"]
    assert main(command) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "2 written, 0 unchanged, 1 failed" in said
    assert "poyo-ssl: 1 of 3 recordings could not be converted, mouse1 first" in said
    assert main(["prepare", "suite2p", str(tmp_path / "lab"), str(tmp_path / "here"), "--workers", "1"]) == 2
    for one, other in zip(open_recordings(tmp_path / "out"), open_recordings(tmp_path / "here"), strict=True):
        assert one.checksum() == other.checksum()
    assert main(command) == 2
    assert "0 written, 2 unchanged, 1 failed" in " ".join(capsys.readouterr().err.split())


def test_the_readme_on_own_recordings(tmp_path, monkeypatch, capsys):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    commands = re.search(r"<!-- own recordings -->\n```sh\n(.*?)```", readme, re.DOTALL)[1].strip().splitlines()
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "lab" / "mouse7"
    write_plane(folder / "suite2p" / "plane0", fs=30.0)
    (folder / "stimuli.csv").write_text(
        "start,stop,name,orientation\n3,5,drifting_gratings,90\n6,8,drifting_gratings,45\n9,11,natural_movie_one,\n"
    )
    (folder / "pixels").mkdir()
    np.save(folder / "pixels" / "natural_movie_one.npy", np.zeros((60, 8, 16), np.uint8))
    (folder / "recording.json").write_text('{"subject_id": "mouse7", "cre_line": "Vip-IRES-Cre"}')
    for line in commands:
        assert main(shlex.split(line)[1:]) == 0
    said = " ".join(capsys.readouterr().err.split())
    for fact in ("Vip-IRES-Cre", "drifting_gratings", "natural_movie_one", "60 x 8 x 16", "30 Hz"):
        assert fact in said
