"""The command line: help texts, errors in one line with exit code 2, nothing half-written."""

import contextlib
import os
import signal
import subprocess
import sys
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
        (["prepare", "suite2p", "x", "y", "--rate_hz", "abc"], "rate_hz 'abc' (allowed: a number)"),
        (["prepare", "suite2p", "x", "y", "--workers", "1.5"], "workers '1.5' (allowed: a whole number)"),
        (["prepare", "suite2p", "x", "y", "--cells", "some"], "cells 'some' (allowed: iscell, all)"),
        (["prepare", "suite2p", "x", "y", "--overwrite=maybe"], "overwrite 'maybe' (allowed: true, false)"),
        (["prepare", "nwb", "x", "y", "--tables", "a"], "tables 'a' (allowed: a list such as [one, two])"),
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
        (["split", ".", "--decay_s", "-1"], "decay_s of -1.0 (allowed: 0 or more)"),
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


SLOW = ("torch", "lightning", "pandas", "sklearn", "matplotlib", "scipy", "rich")
WITHOUT = f"""
import sys
from poyo_ssl.cli import COMMANDS, build_parser, main
for command in COMMANDS:
    build_parser(command).format_help()
assert main(["--help"]) == 0
print(set({SLOW!r}) & sys.modules.keys())
for line in sys.stdin:
    assert main(line.split()) == 2, line
print({{"torch", "lightning"}} & sys.modules.keys())
"""


def test_help_and_mistakes_do_not_wait_for_torch(tmp_path):
    dff = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    Recording("r", dff, np.arange(300) / 30, RecordingMetadata("m")).save(tmp_path / "data" / "r.h5")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.txt").write_text("mine")
    lines = [
        "pretrain --data nowhere --out y",
        "pretrain --data data --out y",
        "pretrain --data data --out y --selection nowhere",
        "finetune --data nowhere --out y --window.units all",
        "finetune --data data --out mine --window.units all --overwrite",
        "finetune --data data --out y --window.units all --pretrained nowhere",
        "resume nowhere",
        "evaluate nowhere --out y",
        "evaluate mine --out y",
        "evaluate mine --out mine --overwrite",
        "audit nowhere",
        "report nowhere",
        "serve nowhere",
        "select --data nowhere --out y",
        "select --data data --out mine --overwrite",
        "split nowhere",
        "demo --out mine --overwrite",
        "prepare arrays nowhere y",
        "leaderboard nowhere",
    ]
    command = [sys.executable, "-c", WITHOUT]
    found = subprocess.run(command, input="\n".join(lines), cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [line for line in found.stdout.splitlines() if line.startswith(("{", "set("))] == ["set()", "set()"]
    assert found.stderr.count("poyo-ssl: ") == len(lines)


def test_sigterm_is_answered_with_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(COMMANDS, "report", lambda: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    assert main(["report"]) == 143
    assert capsys.readouterr().err == "poyo-ssl: stopped; run the same command to go on or start again\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_ctrl_c_says_how_to_go_on(monkeypatch, capsys):
    def stop():
        error = KeyboardInterrupt()
        error.add_note("what run held before is in run.old-1")
        raise error

    monkeypatch.setitem(COMMANDS, "finetune", stop)
    assert main(["finetune"]) == 130
    line = "poyo-ssl: stopped; go on with 'poyo-ssl resume RUN'; what run held before is in run.old-1\n"
    assert capsys.readouterr().err == line
