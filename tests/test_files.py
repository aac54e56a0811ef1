"""Folders of results: made whole or not at all, and never in the place of what is not ours."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from poyo_ssl.cli import main
from poyo_ssl.data.recording import Recording, RecordingMetadata
from poyo_ssl.errors import ConfigError
from poyo_ssl.files import FILES, check_new, new_folder, paths_of

ROW = {"arm": "a", "task": "gratings", "split": "gratings", "metric": "accuracy", "value": 0.5}
MARKS = {
    "run": ("run.json", {"command": "finetune", "state": "finished"}),
    "demo": ("run.json", {"command": "demo", "state": "running"}),
    "selection": ("selection.json", {"config": {}, "thresholds": {}}),
    "results": ("results.json", [ROW]),
}


def make(folder, kind):
    """Make a folder of a kind with every file that it can hold."""
    for pattern in FILES[kind]:
        path = folder / pattern.replace("*", "x")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("old")
    name, content = MARKS[kind]
    (folder / name).write_text(json.dumps(content))
    return folder


def fail(folder, kind, name, error):
    """Begin to replace a folder, then fail."""
    with new_folder(folder, kind, overwrite=True) as new:
        (new / name).parent.mkdir(exist_ok=True)
        (new / name).write_text("new")
        raise error


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", MARKS)
def test_a_folder_of_ours_is_replaced(kind, tmp_path):
    folder = make(tmp_path / "out", kind)
    (folder / f"{MARKS[kind][0]}.partial").write_text("killed while it was written")
    with pytest.raises(ConfigError, match="exists; choose another or pass --overwrite"):
        check_new(folder, kind, overwrite=False)
    with new_folder(folder, kind, overwrite=True) as new:
        assert new == folder
        assert list(new.iterdir()) == []
        assert (tmp_path / f"out.old-{os.getpid()}" / MARKS[kind][0]).exists()
        (new / "new.txt").write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "new.txt"]


@pytest.mark.parametrize("kind", MARKS)
def test_a_failure_brings_the_earlier_folder_back(kind, tmp_path):
    before = snapshot(make(tmp_path / "out", kind))
    for error in (ValueError(), KeyboardInterrupt(), ConfigError("x", fix="y")):
        with pytest.raises(type(error)):
            fail(tmp_path / "out", kind, "run.json", error)
        assert snapshot(tmp_path) == before


def test_a_training_that_can_be_resumed_stays_beside_the_earlier_one(tmp_path):
    before = snapshot(make(tmp_path / "out", "run"))
    new = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt) as caught:
        fail(new, "run", "checkpoints/last.ckpt", KeyboardInterrupt())
    aside = tmp_path / f"out.old-{os.getpid()}"
    assert caught.value.__notes__ == [f"what {tmp_path / 'out'} held before is in {aside}"]
    assert len(snapshot(aside)) == len(before)
    assert snapshot(new) == {new / "checkpoints" / "last.ckpt": b"new"}


@pytest.mark.parametrize("kind", MARKS)
@pytest.mark.parametrize("stranger", ["notes.txt", "deep/run.json", "log/a/b/c", "predictions/old/a.h5"])
def test_a_folder_with_a_strange_file_stays(kind, stranger, tmp_path):
    folder = make(tmp_path / "out", kind)
    (folder / stranger).parent.mkdir(parents=True, exist_ok=True)
    (folder / stranger).write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(ConfigError, match=f"holds {stranger}, which is not ours"):
        check_new(folder, kind, overwrite=True)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("kind", MARKS)
@pytest.mark.parametrize("name", ["run", "run.json", "results.json", "selection.json"])
def test_a_name_alone_does_not_make_a_folder_ours(kind, name, tmp_path):
    for content in ("", "{}", "[1]", '{"command": "mine"}'):
        (tmp_path / name).write_text(content)
        with pytest.raises(ConfigError, match="is no folder of"):
            check_new(tmp_path, kind, overwrite=True)
    for other in set(MARKS) - {kind}:
        with pytest.raises(ConfigError, match="is no folder of"):
            check_new(make(tmp_path / "other" / other, other), kind, overwrite=True)


def test_a_link_in_the_folder_is_a_stranger(tmp_path):
    folder = make(tmp_path / "out", "run")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match=r"holds model.safetensors, which is not ours"):
        check_new(folder, "run", overwrite=True)


def test_an_output_that_holds_an_input_is_refused(tmp_path):
    folder = make(tmp_path / "out", "run")
    (tmp_path / "link").symlink_to(folder)
    for out, given in ((folder, folder), (folder, folder / "run.json"), (tmp_path / "link", folder)):
        with pytest.raises(ConfigError, match="holds the input"):
            check_new(out, "run", overwrite=True, inputs=[None, given])
    check_new(folder, "run", overwrite=True, inputs=[tmp_path / "out2", tmp_path])


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    make(tmp_path / "real", "run")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with new_folder(tmp_path / "link", "run", overwrite=True) as new:
        (new / "new.txt").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "real").iterdir()] == ["new.txt"]


def test_paths_of_data():
    class InMemory:
        path = None

    assert paths_of("a") == paths_of(Path("a")) == [Path("a")]
    assert paths_of([InMemory()]) == paths_of(InMemory()) == paths_of(None) == []


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("evaluate out --out out", "run"),
        ("evaluate out/predictions/x.h5 --out out", "results"),
        ("pretrain --data out/data --out out", "demo"),
        ("pretrain --data out/data --out out", "run"),
        ("finetune --data data --pretrained out --out out", "run"),
        ("finetune --data data --selection out --out out", "selection"),
        ("select --data out/data --out out", "selection"),
        ("select --data data --out out", "run"),
        ("demo --out out", "results"),
        ("pretrain --data data --out out", "selection"),
        ("evaluate out2 --out out", "selection"),
    ],
)
def test_commands_never_remove_their_input_or_what_is_not_theirs(command, kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "out", kind)
    shutil.copytree(tmp_path / "out", tmp_path / "out2")
    (tmp_path / "out" / "data").mkdir(exist_ok=True)
    (tmp_path / "out" / "data" / "mine.h5").write_text("mine")
    before = snapshot(tmp_path)
    assert main([*command.split(), "--overwrite"]) == 2
    error = capsys.readouterr().err
    assert any(text in error for text in ("holds the input", "is no folder of", "not ours")), error
    assert snapshot(tmp_path) == before


def test_select_replaces_its_own_folder(tmp_path):
    dff = np.random.default_rng(0).normal(size=(3000, 4)).astype(np.float32)
    Recording("r", dff, np.arange(3000) / 30, RecordingMetadata("m")).save(tmp_path / "data" / "r.h5")
    command = f"select --data {tmp_path}/data --out {tmp_path}/out --level neuron --keep_fraction".split()
    assert main([*command, "0.5"]) == 0
    assert main([*command, "1"]) == 2
    assert '"keep_fraction": 0.5' in (tmp_path / "out" / "selection.json").read_text()
    assert main([*command, "1", "--overwrite"]) == 0
    assert '"keep_fraction": 1.0' in (tmp_path / "out" / "selection.json").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"data", "out"}
