"""The command line: help texts, errors in one line with exit code 2, nothing half-written."""

import contextlib
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from poyo_ssl.cli import COMMANDS, main, preset_names
from poyo_ssl.config import FinetuneConfig, PretrainConfig, from_plain
from poyo_ssl.data.recording import Recording, RecordingMetadata

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def help_of(capsys, monkeypatch):
    """Return a function that gives a command's help text at a fixed width."""
    monkeypatch.setenv("COLUMNS", "100")

    def ask(command):
        with contextlib.suppress(SystemExit):
            main([*command.split(), "--help"])
        return capsys.readouterr().out

    return ask


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_golden(command, help_of):
    path = GOLDEN / f"help_{command.replace(' ', '_') or 'poyo-ssl'}.txt"
    text = help_of(command)
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text(), f"run UPDATE_GOLDEN=1 pytest {__file__} and read the difference"


def test_prepare_lists_its_sources(help_of):
    shown = [line.split("  ")[1] for line in help_of("prepare").splitlines() if line.startswith("  ")]
    assert shown == [command for command in COMMANDS if command.startswith("prepare ")]


def test_every_setting_is_documented(help_of):
    for command in ("pretrain", "finetune", "select"):
        lines = help_of(command).split("older to make", 1)[1]
        entries = [block for block in lines.split("\n  --")[1:] if "CONFIG" not in block.split("\n")[0]]
        for entry in entries:
            described = entry.split("(type:")[0].split("(required")[0]
            words = [word for word in described.split() if not word.startswith(("{", "[")) and not word.isupper()]
            assert len(words) > 1, entry


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["pretain"], "unknown command 'pretain', did you mean 'pretrain'?"),
        (["prepare", "observatry", "x"], "did you mean 'prepare observatory'?"),
        (["pretrain", "--data", "x", "--out", "y", "--optim.batchsize", "3"], "did you mean '--optim.batch_size'?"),
        (["finetune", "--data", "x", "--out", "y", "--task", "grating"], "did you mean 'gratings'?"),
        (["finetune", "--data", "x", "--out", "y", "--window.window_s", "-1"], "window_s of -1.0"),
        (["finetune", "--data", "x", "--out", "y"], "no recordings (*.h5) in x"),
        (["finetune", "--out", "y"], "data"),
        (["pretrain", "--config", "pretrain_code", "--data", "x", "--out", "y"], "did you mean 'pretrain_coded'?"),
        (["prepare", "observatory", "x", "--world", "nul"], "did you mean 'null'?"),
        (["prepare", "events", "nowhere", "x"], "nowhere"),
        (["prepare", "arrays", "nowhere", "x"], "nothing at nowhere"),
        (["prepare", "arrays", "nowhere", "x", "--axis", "time_first"], "did you mean '--axes'?"),
        (["prepare", "arrays", "nowhere", "x", "--dff_procedure", "maximum"], "did you mean 'maximin'?"),
        (["prepare", "arrays", "nowhere", "x", "--rate_hz", "0"], "rate_hz of 0.0"),
        (["prepare", "suite2p", "nowhere", "x", "--rate_hz", "9", "--timestamps", "t.npy"], "a rate and timestamps"),
        (["prepare", "suite2p", ".", "x", "--cells", "all"], "no suite2p output in ."),
        (["prepare", "suite2p", "x", "y", "--rate_hz", "abc"], "rate_hz 'abc' (allowed: a number); correct it"),
        (["prepare", "suite2p", "x", "y", "--workers", "1.5"], "workers '1.5' (allowed: a whole number); correct it"),
        (["prepare", "suite2p", "x", "y", "--cells", "some"], "cells 'some' (allowed: iscell, all); correct it"),
        (["prepare", "suite2p", "x", "y", "--overwrite=maybe"], "overwrite 'maybe' (allowed: true, false); correct it"),
        (["prepare", "nwb", "x", "y", "--tables", "a"], "tables 'a' (allowed: a list such as [one, two]); correct it"),
        (["doctor", "nowhere"], "nothing at nowhere"),
        (["evaluate", "nowhere", "--out", "y"], "nowhere"),
        (["report", "nowhere"], "nowhere"),
        (["evaluate", ".", "--seed", "-1"], "--seed -1 (allowed: 0 or more)"),
        (["evaluate", ".", "--devices", "0"], "--devices 0 (allowed: 1 or more)"),
        (["leaderboard", "nowhere"], "no folder nowhere"),
        (["leaderboard", ".", "--seed", "-1"], "--seed -1 (allowed: 0 or more)"),
        (["split", "."], "no recordings (*.h5) in ."),
        (["split", ".", "--window_s", "0"], "--window_s 0.0 (allowed: above 0)"),
        (["split", ".", "--seed", "-1"], "seed"),
        (["split", ".", "--decay_s", "-1"], "split.decay_s of -1.0 (allowed: 0 or more)"),
        (["split", ".", "--near_duplicate_correlation", "1.5"], "near_duplicate_correlation of 1.5"),
        (["resume", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_get_one_line_and_code_2(arguments, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.startswith("poyo-ssl: ")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_unknown_field_of_a_settings_file(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.yaml").write_text("optim:\n  epoch: 3\n")
    assert main(["finetune", "--data", "x", "--out", "y", "--config", "settings.yaml"]) == 2
    assert "did you mean 'optim.epochs'?" in capsys.readouterr().err


def test_damaged_recordings(capsys, tmp_path):
    (tmp_path / "a.h5").write_bytes(b"not hdf5")
    assert main(["select", "--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "is not a complete HDF5 file" in capsys.readouterr().err
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group("session")
    assert main(["select", "--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "calcium_traces" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_missing_stimulus_and_existing_folder(capsys, tmp_path):
    dff = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    Recording("r", dff, np.arange(300) / 30, RecordingMetadata("m")).save(tmp_path / "data" / "r.h5")
    base = ["finetune", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--window.units", "all"]
    assert main(base) == 2
    assert "no stimulus 'drifting_gratings'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("keep me")
    assert main(base) == 2
    assert "exists" in capsys.readouterr().err
    assert main([*base, "--overwrite"]) == 2
    assert (tmp_path / "run" / "mine.txt").read_text() == "keep me"


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_parses(name):
    from importlib.resources import files

    values = yaml.safe_load((files("poyo_ssl") / "configs" / f"{name}.yaml").read_text())
    kind = PretrainConfig if name.startswith("pretrain") else FinetuneConfig
    assert isinstance(from_plain(kind, values), kind)


def test_described_preset_is_the_published_objective():
    from importlib.resources import files

    values = yaml.safe_load((files("poyo_ssl") / "configs" / "pretrain_described.yaml").read_text())
    described = from_plain(PretrainConfig, values)
    assert described.objective == PretrainConfig().objective
    assert described.model == PretrainConfig().model
