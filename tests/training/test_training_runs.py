"""Run folders: complete, repeatable, resumable, and never left half made."""

import errno
import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file

from poyo_ssl.cli import main
from poyo_ssl.config import OptimConfig
from poyo_ssl.data.recording import Recording, open_recordings
from poyo_ssl.errors import (
    CheckpointError,
    ConfigError,
    PoyoError,
    RecordingError,
    ResourceError,
    SelectionError,
    SplitError,
    StoppedError,
)
from poyo_ssl.selection import SelectionConfig, fit_selection
from poyo_ssl.training import train
from poyo_ssl.training.audit import audit_run
from poyo_ssl.training.modules import SeededModule
from poyo_ssl.training.predict import open_task, predict
from poyo_ssl.training.run_folder import TrainedRun, delete_run, list_runs, read_json, read_settings
from poyo_ssl.training.train import finetune, pretrain, resume

FILES = {
    "config.yaml",
    "run.json",
    "splits.json",
    "vocabulary.json",
    "normalisation.safetensors",
    "model.safetensors",
    "checkpoints/last.ckpt",
    "log/metrics.csv",
}


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def assert_same_weights(one, other):
    one, other = weights_of(one), weights_of(other)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        np.testing.assert_array_equal(tensor, other[name], err_msg=name)


def epochs_logged(path):
    rows = [row.split(",") for row in path.read_text().splitlines()]
    return {row[rows[0].index("epoch")] for row in rows[1:]}


def files_in(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_pretraining_leaves_a_complete_folder(pretrained, pair, pretrain_config):
    assert files_in(pretrained) >= FILES
    assert not [name for name in files_in(pretrained) if "partial" in name]
    settings = read_settings(pretrained)
    assert settings.config == pretrain_config
    assert settings.data == str(pair)
    facts = read_json(pretrained, "run.json")
    assert (facts["command"], facts["state"], facts["seed"], facts["task"]) == (
        "pretrain",
        "finished",
        0,
        "pretraining",
    )
    # Four of six trials of eight directions in two recordings; one of six validates.
    assert facts["windows"] == {"train": 64, "valid": 16}
    assert facts["num_imaging_frames"] == 57
    assert facts["collapsed"] in (True, False)
    assert {"python", "torch", "lightning", "poyo-ssl"} <= set(facts["versions"])
    recordings = open_recordings(pair)
    assert facts["data"] == [
        {
            "recording_id": r.recording_id,
            "subject_id": r.metadata.subject_id,
            "path": str(r.path),
            "sha256": r.checksum(),
        }
        for r in recordings
    ]
    assert facts["parameters"]["units"] == (32 + 1) * 32
    splits = read_json(pretrained, "splits.json")
    assert set(splits) == {r.recording_id for r in recordings}
    for split in splits.values():
        assert set(split["parts"]) == {"train", "valid", "test_gratings"}


def test_the_log_has_every_epoch(pretrained):
    path = pretrained / "log" / "metrics.csv"
    names = set(path.read_text().splitlines()[0].split(","))
    assert names >= {"train/loss", "valid/loss", "latents/effective_rank", "latents/pairwise_cosine", "latents/spread"}
    assert epochs_logged(path) == {"0", "1"}


def test_finetuning_reports_what_it_loaded_and_keeps_the_rows(finetuned, pretrained, finetune_config):
    assert files_in(finetuned) >= FILES
    assert read_settings(finetuned).config == finetune_config
    loaded = read_json(finetuned, "run.json")["loaded"]
    encoder = {name: value for name, value in weights_of(pretrained).items() if not name.startswith("readouts.")}
    assert loaded["from"] == str(pretrained)
    assert loaded["tensors"] == len(encoder)
    assert loaded["parameters"] == sum(value.size for value in encoder.values())
    assert loaded["fresh"] == [
        "readouts.gratings.query",
        "readouts.gratings.head.weight",
        "readouts.gratings.head.bias",
    ]


def test_finetuning_on_new_recordings_keeps_known_embedding_rows(tiny, pretrained, finetune_config, tmp_path):
    config = replace(finetune_config, freeze=("tokens", "sessions"), optim=OptimConfig(epochs=1, batch_size=32))
    recordings = open_recordings(tiny)[1:3]
    out = finetune(recordings, tmp_path / "run", config=config, pretrained=pretrained, progress=False)
    before, after = weights_of(pretrained), weights_of(out)
    # 32 units and 2 recordings were known, 16 and 1 are new; row 0 is padding.
    assert after["tokens.units.weight"].shape == (49, 32)
    np.testing.assert_array_equal(after["tokens.units.weight"][:33], before["tokens.units.weight"])
    assert (np.abs(after["tokens.units.weight"][33:]).sum(axis=1) > 0).all()
    np.testing.assert_array_equal(after["sessions.weight"][:3], before["sessions.weight"])
    assert after["sessions.weight"].shape == (4, 32)
    old = read_json(pretrained, "vocabulary.json")["units"]
    new = read_json(out, "vocabulary.json")["units"]
    assert {name: new[name] for name in old} == old
    assert read_settings(out).data is None
    (out / "run.json").write_text(json.dumps(read_json(out, "run.json") | {"state": "running"}))
    with pytest.raises(CheckpointError, match="recordings in memory"):
        resume(out)


def test_a_reloaded_model_gives_identical_predictions(finetuned, pair):
    recording = open_recordings(pair)[0]
    times = recording.timestamps[50:90:4]
    first, second = predict(finetuned, recording, times), predict(TrainedRun.open(finetuned), recording, times)
    np.testing.assert_array_equal(first.probabilities, second.probabilities)
    run = TrainedRun.open(finetuned)
    assert not run.model.training
    for name, tensor in run.model.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), weights_of(finetuned)[name])


def test_prediction_needs_no_stimulus_and_no_file(finetuned, pair):
    known = open_recordings(pair)[1]
    bare = Recording(
        known.recording_id, known.read_dff(0, 200), known.timestamps[:200], known.metadata, unit_ids=known.unit_ids
    )
    found = predict(finetuned, bare)
    # Windows of 15 frames fit 186 times into 200.
    assert found.probabilities.shape == (186, 8)
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, rtol=1e-5)
    assert set(found.classes) <= set(np.arange(8) * 45.0)
    np.testing.assert_array_equal(found.time, known.timestamps[14:200])
    with pytest.raises(RecordingError, match="end before they begin"):
        predict(finetuned, bare, known.timestamps[3:5])
    stranger = replace(bare, recording_id="stranger")
    with pytest.raises(RecordingError, match="stranger is not known"):
        predict(finetuned, stranger)
    renamed = replace(bare, unit_ids=np.char.add("x", known.unit_ids))
    with pytest.raises(RecordingError, match="other units"):
        predict(finetuned, renamed)


def test_the_same_seed_gives_the_same_weights(finetuned, pretrained, pair, finetune_config, tmp_path):
    again = finetune(pair, tmp_path / "again", config=finetune_config, pretrained=pretrained, progress=False)
    assert_same_weights(finetuned, again)
    config = replace(finetune_config, seed=1, optim=replace(finetune_config.optim, epochs=1))
    other = finetune(pair, tmp_path / "other", config=config, pretrained=pretrained, progress=False)
    assert not np.array_equal(weights_of(other)["latents"], weights_of(finetuned)["latents"])


@pytest.fixture
def stop_at(monkeypatch):
    """Return a way to let training fail at a step, and one to let it go on."""

    class StoppedError(Exception):
        pass

    class Stop:
        error = StoppedError

        def at(self, step, error=StoppedError):
            start = SeededModule.on_train_batch_start

            def failing(module, batch, batch_idx):
                if module.trainer.global_step == step:
                    raise error
                return start(module, batch, batch_idx)

            monkeypatch.setattr(SeededModule, "on_train_batch_start", failing)

        def never(self):
            monkeypatch.undo()

    return Stop()


@pytest.mark.parametrize(("optimiser", "schedule"), [("adamw", "onecycle"), ("lamb", "flat_cosine")])
def test_a_resumed_finetuning_equals_an_uninterrupted_one(
    pair, finetune_config, tmp_path, stop_at, schedule, optimiser
):
    optim = OptimConfig(optimiser=optimiser, schedule=schedule, epochs=3, batch_size=32)
    config = replace(finetune_config, optim=optim, keep="last")
    whole = finetune(pair, tmp_path / "whole", config=config, progress=False)
    # Two steps an epoch: step 5 is the last of the third.
    stop_at.at(5)
    with pytest.raises(stop_at.error):
        finetune(pair, tmp_path / "stopped", config=config, progress=False)
    assert read_json(tmp_path / "stopped", "run.json")["state"] == "running"
    stop_at.never()
    resumed = resume(tmp_path / "stopped", progress=False)
    assert_same_weights(whole, resumed)
    facts = [read_json(folder, "run.json") for folder in (whole, resumed)]
    assert facts[0]["valid_loss"] == facts[1]["valid_loss"]
    assert facts[1]["state"] == "finished"
    states = [torch.load(folder / "checkpoints/last.ckpt", weights_only=True) for folder in (whole, resumed)]
    assert [state["global_step"] for state in states] == [6, 6]
    assert epochs_logged(resumed / "log" / "metrics.csv") == {"0", "1"}
    assert epochs_logged(resumed / "log" / "resumed_1" / "metrics.csv") == {"2"}
    assert resume(resumed) == resumed


def test_a_resumed_pretraining_equals_an_uninterrupted_one(pair, pretrain_config, tmp_path, stop_at):
    objective = replace(pretrain_config.objective, mode="ema", masking="random")
    config = replace(pretrain_config, objective=objective, optim=OptimConfig(epochs=2, batch_size=32))
    whole = pretrain(pair, tmp_path / "whole", config=config, progress=False)
    stop_at.at(3)
    with pytest.raises(stop_at.error):
        pretrain(pair, tmp_path / "stopped", config=config, progress=False)
    stop_at.never()
    assert_same_weights(whole, resume(tmp_path / "stopped", progress=False))


def test_a_run_stopped_before_its_first_checkpoint_starts_again(pair, finetuned, finetune_config, tmp_path, stop_at):
    config = replace(finetune_config, optim=replace(finetune_config.optim, epochs=1))
    whole = finetune(pair, tmp_path / "whole", config=config, progress=False)
    stop_at.at(1)
    with pytest.raises(stop_at.error):
        finetune(pair, tmp_path / "stopped", config=config, progress=False)
    stop_at.never()
    assert_same_weights(whole, resume(tmp_path / "stopped", progress=False))


def test_an_interrupted_run_can_go_on(pair, finetune_config, tmp_path, stop_at):
    config = replace(finetune_config, optim=OptimConfig(epochs=2, batch_size=32), keep="last")
    handler = signal.getsignal(signal.SIGINT)
    stop_at.at(2, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        finetune(pair, tmp_path / "run", config=config, progress=False)
    assert signal.getsignal(signal.SIGINT) is handler
    assert read_json(tmp_path / "run", "run.json")["state"] == "running"
    stop_at.never()
    resume(tmp_path / "run", progress=False)
    assert read_json(tmp_path / "run", "run.json")["state"] == "finished"


def test_resume_refuses_changed_data(pair, finetune_config, tmp_path, stop_at):
    recordings = open_recordings(pair)[:1]
    folder = tmp_path / "data"
    recordings[0].save(folder / "one.h5")
    config = replace(finetune_config, optim=OptimConfig(epochs=1, batch_size=32))
    stop_at.at(0)
    with pytest.raises(stop_at.error):
        finetune(folder, tmp_path / "run", config=config, progress=False)
    stop_at.never()
    changed = replace(open_recordings(pair)[0], dff=open_recordings(pair)[0].read_dff(0, 10**6) + 1)
    changed.save(folder / "one.h5", overwrite=True)
    with pytest.raises(CheckpointError, match="has changed"):
        resume(tmp_path / "run", progress=False)


class Code:
    """Pickles into a call of `os.mkdir`."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("damage", ["code", "truncated", "text"])
def test_a_checkpoint_with_code_or_damage_is_refused(pair, finetune_config, tmp_path, stop_at, damage):
    stop_at.at(3)
    config = replace(finetune_config, optim=OptimConfig(epochs=2, batch_size=32))
    with pytest.raises(stop_at.error):
        finetune(pair, tmp_path / "run", config=config, progress=False)
    stop_at.never()
    last, trap = tmp_path / "run" / "checkpoints" / "last.ckpt", tmp_path / "trap"
    if damage == "code":
        state = torch.load(last, weights_only=True)
        torch.save(state | {"extra": Code(trap)}, last)
    else:
        last.write_bytes(last.read_bytes()[:-5000] if damage == "truncated" else b"hello")
    with pytest.raises(CheckpointError, match=r"last\.ckpt is damaged or not a checkpoint of ours") as caught:
        resume(tmp_path / "run", progress=False)
    assert "\n" not in str(caught.value)
    assert not trap.exists()


def test_a_damaged_checkpoint_gives_way_to_the_one_before(pair, finetune_config, tmp_path, stop_at, caplog):
    config = replace(finetune_config, optim=OptimConfig(epochs=3, batch_size=32), keep="last")
    whole = finetune(pair, tmp_path / "whole", config=config, progress=False)
    stop_at.at(5)
    with pytest.raises(stop_at.error):
        finetune(pair, tmp_path / "run", config=config, progress=False)
    stop_at.never()
    last, previous = train.checkpoints(tmp_path / "run")
    assert [torch.load(path, weights_only=True)["global_step"] for path in (last, previous)] == [4, 2]
    last.write_bytes(last.read_bytes()[:-5000])
    assert_same_weights(whole, resume(tmp_path / "run", progress=False))
    assert f"the run goes on from {previous}" in caplog.text


def test_a_checkpoint_is_written_beside_the_last_one(tmp_path, monkeypatch):
    """A kill or a full disk while it is written leaves both that there were."""
    last, previous = train.checkpoints(tmp_path)
    for step in (1, 2):
        train.CheckpointFiles().save_checkpoint({"step": step}, last)

    def stop(stream):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", stop)
    full = pytest.raises(ResourceError, match=r"the disk of .* is full \(/.*make room.*resume")
    with full as caught, train._room_on_disk(tmp_path):
        train.CheckpointFiles().save_checkpoint({"step": 3}, last)
    assert "\n" not in str(caught.value)
    assert [torch.load(path)["step"] for path in (last, previous)] == [2, 1]
    assert files_in(tmp_path) == {"checkpoints/last.ckpt", "checkpoints/previous.ckpt"}


def test_a_full_disk_leaves_a_run_that_can_go_on(pair, finetune_config, tmp_path, monkeypatch):
    config = replace(finetune_config, optim=OptimConfig(epochs=2, batch_size=32))
    write = train.CheckpointFiles.save_checkpoint

    def full(self, checkpoint, path, storage_options=None):
        if checkpoint["global_step"] > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, checkpoint, path)

    monkeypatch.setattr(train.CheckpointFiles, "save_checkpoint", full)
    with pytest.raises(ResourceError, match="is full"):
        finetune(pair, tmp_path / "run", config=config, progress=False)
    monkeypatch.undo()
    whole = finetune(pair, tmp_path / "whole", config=config, progress=False)
    assert_same_weights(whole, resume(tmp_path / "run", progress=False))


@pytest.fixture
def terminated(pair, finetune_config, tmp_path, monkeypatch):
    """Return a run that SIGTERM stopped after its first epoch, and what it said."""
    start = SeededModule.on_train_batch_start

    def ask(module, batch, batch_idx):
        if module.trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return start(module, batch, batch_idx)

    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(SeededModule, "on_train_batch_start", ask)
    config = replace(finetune_config, optim=OptimConfig(epochs=2, batch_size=32), keep="last")
    with pytest.raises(StoppedError) as caught:
        finetune(pair, tmp_path / "terminated", config=config, progress=False)
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGTERM) is handler
    return tmp_path / "terminated", caught.value


def test_sigterm_says_how_to_go_on(terminated, pair, finetune_config, tmp_path):
    folder, error = terminated
    assert str(error) == f"the training of {folder} was stopped (SIGTERM); go on with 'poyo-ssl resume {folder}'"
    assert read_json(folder, "run.json")["state"] == "running"
    config = replace(finetune_config, optim=OptimConfig(epochs=2, batch_size=32), keep="last")
    whole = finetune(pair, tmp_path / "whole", config=config, progress=False)
    assert_same_weights(whole, resume(folder, progress=False))


def test_the_command_line_answers_sigterm_with_143(terminated, tmp_path, monkeypatch, capsys):
    start = SeededModule.on_train_batch_start

    def ask(module, batch, batch_idx):
        if module.trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return start(module, batch, batch_idx)

    monkeypatch.setattr(SeededModule, "on_train_batch_start", ask)
    again = tmp_path / "again"
    assert main(["finetune", "--config", str(terminated[0] / "config.yaml"), "--out", str(again)]) == 143
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("poyo-ssl: ")]
    assert said == [f"poyo-ssl: the training of {again} was stopped (SIGTERM); go on with 'poyo-ssl resume {again}'"]


def test_unfinished_runs_are_used_only_when_allowed(terminated, pair, finetune_config, tmp_path):
    folder, _ = terminated
    config = replace(finetune_config, optim=OptimConfig(epochs=1, batch_size=64))
    recording = open_recordings(pair)[0]
    uses = (
        lambda: TrainedRun.open(folder),
        lambda: open_task(folder),
        lambda: audit_run(folder),
        lambda: predict(folder, recording, recording.timestamps[50:52]),
        lambda: finetune(pair, tmp_path / "new", config=config, pretrained=folder, progress=False),
        lambda: finetune(
            pair, tmp_path / "new", config=replace(config, adapt="embeddings"), pretrained=folder, progress=False
        ),
    )
    for use in uses:
        with pytest.raises(
            CheckpointError, match=r"is not finished \(state 'running'\); finish it with 'poyo-ssl resume"
        ):
            use()
    assert not (tmp_path / "new").exists()
    assert TrainedRun.open(folder, allow_unfinished=True).folder == folder
    assert open_task(folder, allow_unfinished=True).tests
    assert audit_run(folder, allow_unfinished=True).leaks == ()
    for command in (
        ["audit", str(folder)],
        ["evaluate", str(folder), "--out", str(tmp_path / "x"), "--baselines=none"],
    ):
        assert main(command) == 2
        assert main([*command, "--allow-unfinished"]) == 0
    new = finetune(pair, tmp_path / "new", config=config, pretrained=folder, allow_unfinished=True, progress=False)
    assert read_json(new, "run.json")["allow_unfinished"] is True
    assert read_settings(new).allow_unfinished


def test_settings_with_code_are_refused(finetuned, tmp_path):
    import shutil

    shutil.copytree(finetuned, tmp_path / "run")
    trap = tmp_path / "trap"
    (tmp_path / "run" / "config.yaml").write_text(f"config: !!python/object/apply:os.mkdir ['{trap}']\n")
    with pytest.raises(CheckpointError, match="damaged"):
        TrainedRun.open(tmp_path / "run")
    assert not trap.exists()


def _no_config(folder):
    (folder / "config.yaml").unlink()


def _other_command(folder):
    (folder / "run.json").write_text(json.dumps(read_json(folder, "run.json") | {"command": "evaluate"}))


def _truncated_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _unknown_field(folder):
    stored = yaml.safe_load((folder / "config.yaml").read_text())
    stored["model"]["dimm"] = 3
    (folder / "config.yaml").write_text(yaml.safe_dump(stored))


def _other_width(folder):
    stored = yaml.safe_load((folder / "config.yaml").read_text())
    stored["model"]["dim"] = 64
    (folder / "config.yaml").write_text(yaml.safe_dump(stored))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "run.json").unlink(), "not a complete run: no run.json"),
        (lambda folder: (folder / "run.json").write_text("{"), "run.json is damaged"),
        (_no_config, "config.yaml is damaged"),
        (_other_command, "is a run of 'evaluate'"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no .*model.safetensors; let the run finish"),
        (_truncated_weights, "model.safetensors is damaged"),
        (_unknown_field, "unknown field 'dimm', did you mean 'dim'"),
        (_other_width, "is of another model"),
    ],
)
def test_damaged_runs_are_refused_by_name(finetuned, pair, finetune_config, tmp_path, damage, message):
    import shutil

    shutil.copytree(finetuned, tmp_path / "run")
    damage(tmp_path / "run")
    with pytest.raises((CheckpointError, ConfigError), match=message):
        TrainedRun.open(tmp_path / "run")
    with pytest.raises((CheckpointError, ConfigError), match=message):
        finetune(pair, tmp_path / "new", config=finetune_config, pretrained=tmp_path / "run", progress=False)
    assert not (tmp_path / "new").exists()


def _broken(recording, change):
    dff = recording.read_dff(0, recording.num_frames).copy()
    change(dff)
    return replace(recording, dff=dff)


def _nan(dff):
    dff[100, 2] = np.nan
    dff[:, 5] = 0.25


ERRORS = {
    "nan and constant units": (RecordingError, "2 of 16 units: obs_000_Cux2-CreERT2_0002, obs_000_Cux2-CreERT2_0005"),
    "missing stimulus": (RecordingError, "no stimulus 'drifting_gratings'"),
    "missing movie": (RecordingError, "no stimulus 'natural_movie_tree', did you mean 'natural_movie_two'"),
    "movie without pixels": (RecordingError, "no pixels of 'natural_movie_one'"),
    "missing data": (RecordingError, "no recordings"),
    "missing selection": (SelectionError, "without a selection"),
    "empty selection": (SelectionError, "no recording has units that are 'selected'"),
    "no window left": (SplitError, "no window left for part 'valid' of task 'frame_number'"),
    "freeze everything": (ConfigError, "leaves nothing to train"),
    "bins": (ConfigError, "divisor of 15"),
    "missing pretraining": (CheckpointError, "not a complete run"),
    "too little memory": (ResourceError, "GiB are free"),
}


def _nothing_selected(pair):
    chosen = fit_selection(
        open_recordings(pair), intervals=None, config=SelectionConfig(level="neuron", keep_fraction=1)
    )
    return replace(chosen, table=chosen.table.assign(selected=False))


def _arguments(case, pair, config):
    first = open_recordings(pair)[0]
    data, settings, more = pair, config, {}
    match case:
        case "nan and constant units":
            data = [_broken(first, _nan)]
        case "missing stimulus":
            data = [replace(first, stimuli={})]
        case "missing movie":
            settings = replace(config, task="frame_number", movies=("natural_movie_tree",))
        case "movie without pixels":
            data, settings = [replace(first, path=None)], replace(config, task="frames")
        case "empty selection":
            settings = replace(config, window=replace(config.window, units="selected"))
            more = {"selection": _nothing_selected(pair)}
        case "missing data":
            data = pair / "nowhere"
        case "missing selection":
            settings = replace(config, window=replace(config.window, units="selected"))
        case "no window left":
            settings = replace(config, task="frame_number", window=replace(config.window, window_s=6.0))
        case "freeze everything":
            settings = replace(config, freeze=("",))
        case "bins":
            settings = replace(config, window=replace(config.window, bin_frames=4))
        case "missing pretraining":
            more = {"pretrained": pair / "nowhere"}
    return data, {"config": settings, **more}


@pytest.mark.parametrize("case", ERRORS)
def test_what_cannot_be_done_is_named_and_leaves_nothing(case, pair, finetune_config, tmp_path, monkeypatch):
    kind, message = ERRORS[case]
    data, arguments = _arguments(case, pair, finetune_config)
    if case == "too little memory":
        monkeypatch.setattr(train.os, "sysconf", lambda name: 1)
        monkeypatch.setattr(train, "_page_cache_bytes", lambda: 0)
    with pytest.raises(kind, match=message) as caught:
        finetune(data, tmp_path / "run", progress=False, **arguments)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_an_existing_folder_stays_as_it_is(pair, finetune_config, tmp_path):
    precious = tmp_path / "run" / "precious.txt"
    precious.parent.mkdir()
    precious.write_text("mine")
    with pytest.raises(ConfigError, match="exists"):
        finetune(pair, tmp_path / "run", config=finetune_config, progress=False)
    with pytest.raises(ConfigError, match="no folder of a run"):
        finetune(pair, tmp_path / "run", config=finetune_config, overwrite=True, progress=False)
    assert precious.read_text() == "mine"


def test_overwrite_replaces_a_run_only_by_one_that_can_be_made(pair, finetune_config, tmp_path):
    config = replace(finetune_config, optim=OptimConfig(epochs=1, batch_size=64))
    run = finetune(pair, tmp_path / "run", config=config, progress=False)
    before = weights_of(run)["latents"]
    bad = replace(config, window=replace(config.window, units="selected"))
    with pytest.raises(PoyoError):
        finetune(pair, run, config=bad, overwrite=True, progress=False)
    np.testing.assert_array_equal(weights_of(run)["latents"], before)
    finetune(pair, run, config=replace(config, seed=5), overwrite=True, progress=False)
    assert read_json(run, "run.json")["seed"] == 5
    assert not np.array_equal(weights_of(run)["latents"], before)


def test_a_setting_that_fails_at_the_first_step_leaves_nothing(pair, pretrain_config, tmp_path):
    config = replace(pretrain_config, objective=replace(pretrain_config.objective, mask_ratio=0.01))
    with pytest.raises(ConfigError, match="hides none"):
        pretrain(pair, tmp_path / "run", config=config, progress=False)
    assert not (tmp_path / "run").exists()


def test_runs_are_listed_and_deleted(pair, finetune_config, tmp_path):
    assert list_runs(tmp_path) == []
    config = replace(finetune_config, optim=OptimConfig(epochs=1, batch_size=64))
    for name in ("a", "deep/b"):
        finetune(pair, tmp_path / name, config=config, progress=False)
    runs = list_runs(tmp_path)
    assert [run["path"] for run in runs] == [tmp_path / "a", tmp_path / "deep/b"] or len(runs) == 2
    assert {run["state"] for run in runs} == {"finished"}
    delete_run(tmp_path / "a")
    assert [run["path"] for run in list_runs(tmp_path)] == [tmp_path / "deep/b"]
    with pytest.raises(CheckpointError, match="not a complete run"):
        delete_run(tmp_path / "deep")
    assert (tmp_path / "deep").exists()
