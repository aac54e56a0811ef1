"""The audit of finished runs: clean ones pass, every planted leak is found from the run's files alone."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from poyo_ssl.cli import main
from poyo_ssl.config import FinetuneConfig, PretrainConfig, SelectionConfig, SplitConfig, WindowConfig
from poyo_ssl.data import task
from poyo_ssl.data.intervals import as_intervals
from poyo_ssl.data.leaks import LeakError, check_domain, require_no_leaks
from poyo_ssl.data.recording import open_recordings
from poyo_ssl.data.stimuli import movie_path
from poyo_ssl.data.task import allowed_domain
from poyo_ssl.errors import CheckpointError
from poyo_ssl.selection.table import fit_selection
from poyo_ssl.training import run_folder, train
from poyo_ssl.training.audit import audit_run


def problems(found):
    return [f"{leak.check}: {leak.problem}" for leak in found.leaks]


@pytest.fixture
def quick(finetune_config) -> FinetuneConfig:
    return replace(finetune_config, optim=replace(finetune_config.optim, epochs=1, epoch_windows=16))


def test_clean_runs_pass(pretrained, finetuned, capsys):
    for folder in (pretrained, finetuned):
        found = audit_run(folder)
        assert problems(found) == []
        require_no_leaks(found.leaks)
    assert main(["audit", str(pretrained), str(finetuned)]) == 0
    assert capsys.readouterr().err.count("no leak") == 2


def test_frames_runs_with_every_test_part_pass(pair, quick, tmp_path):
    config = replace(quick, task="frames", split=replace(quick.split, test_movies=("natural_movie_two",)), seed=3)
    folder = train.finetune(pair, tmp_path / "run", config=config, progress=False)
    assert set(next(iter(run_folder.read_splits(folder).values())).parts) == {
        "train", "valid", "valid_clip", "test_repeat", "test_clip", "test_movie"
    }  # fmt: skip
    assert problems(audit_run(folder)) == []


def test_a_laxer_limit_of_near_duplicates_than_the_protocol_s_is_found(pair, quick, tmp_path):
    """A training frame is all but a copy of a test frame, and the run's own limit lets it train."""
    data = shutil.copytree(pair, tmp_path / "data")
    config = replace(quick, task="frames", split=replace(quick.split, near_duplicate_correlation=1.0))
    recordings = open_recordings(data)
    prepared = task.Task.of(recordings, config)
    trained, tested = (set(prepared.windows(part).frame_number) for part in ("train", "test_clip"))
    pixels = np.load(movie_path(data, "natural_movie_one"))
    pixels[min(trained)] = pixels[min(tested)]
    pixels[min(trained), :2, :2] ^= 1
    np.save(movie_path(data, "natural_movie_one"), pixels)
    folder = train.finetune(data, tmp_path / "run", config=config, progress=False)
    found = audit_run(folder)
    assert {leak.check for leak in found.leaks} == {"near-duplicates"}
    strict = replace(config, split=quick.split)
    assert problems(audit_run(train.finetune(data, tmp_path / "strict", config=strict, progress=False))) == []


def test_statistics_from_the_whole_recording_are_found(pair, quick, tmp_path, monkeypatch):
    """The leak is planted in the training itself: its domain is the whole recording, test part included."""
    with monkeypatch.context() as patch:
        patch.setattr(task, "training_domain", lambda recording, splits: as_intervals([recording.timestamps[[0, -1]]]))
        folder = train.finetune(pair, tmp_path / "run", config=quick, progress=False)
    found = audit_run(folder)
    assert {leak.check for leak in found.leaks} == {"statistics"}
    assert {leak.recording_id for leak in found.leaks} == {r.recording_id for r in open_recordings(pair)}
    with pytest.raises(LeakError, match="the training part gives"):
        require_no_leaks(found.leaks)


@pytest.mark.parametrize("shift", [-1.0, 2.5])
def test_a_shifted_interval_is_found(finetuned, tmp_path, shift, capsys):
    folder = shutil.copytree(finetuned, tmp_path / "run")
    splits = json.loads((folder / "splits.json").read_text())
    name = next(iter(splits))
    splits[name]["parts"]["test_gratings"][0] = [t + shift for t in splits[name]["parts"]["test_gratings"][0]]
    (folder / "splits.json").write_text(json.dumps(splits))
    assert any("test_gratings" in problem for problem in problems(audit_run(folder)))
    assert main(["audit", str(folder)]) == 2
    assert "do not report scores" in capsys.readouterr().err


def test_a_test_trial_that_trains_is_found(pair, quick, tmp_path, monkeypatch):
    """A split that lends a test trial to training: the run's splits are not those of its settings."""
    honest = task.split_gratings

    def lend(recording, config):
        split = honest(recording, config)
        parts = dict(split.parts)
        parts["train"] = np.concatenate([parts["train"], parts["test_gratings"][:1]])
        parts["test_gratings"] = parts["test_gratings"][1:]
        return replace(split, parts=parts)

    with monkeypatch.context() as patch:
        patch.setattr(task, "split_gratings", lend)
        folder = train.finetune(pair, tmp_path / "run", config=quick, progress=False)
    assert any("not the part that the settings give" in problem for problem in problems(audit_run(folder)))


@pytest.mark.parametrize("window_s", [0.1, 0.5, 1.0])
def test_moments_of_any_shorter_window_s_tests_are_left_out(pair, quick, window_s):
    """One selection serves decoders of several windows, whose gaps around clips differ."""
    for recording in open_recordings(pair):
        domain = allowed_domain(recording, quick.split, window_s=1.0)
        assert len(domain)
        for split in task.standard_splits(recording, quick.split, window_s=window_s).values():
            assert check_domain(recording, "selection", domain, split.parts) == []


def test_moments_measured_on_test_parts_are_found(pair, quick, tmp_path):
    recordings = open_recordings(pair)
    choice = SelectionConfig(level="neuron", keep_fraction=0.5)
    config = replace(quick, window=WindowConfig(window_s=0.5, units="selected"))
    clean = {r.recording_id: allowed_domain(r, config.split, window_s=0.5) for r in recordings}
    for name, intervals in (("clean", clean), ("leaky", None)):
        fit_selection(recordings, intervals=intervals, config=choice).save(tmp_path / name)
        train.finetune(pair, tmp_path / f"run_{name}", selection=tmp_path / name, config=config, progress=False)
    assert problems(audit_run(tmp_path / "run_clean")) == []
    assert all("the selection's moments" in p for p in problems(audit_run(tmp_path / "run_leaky")))
    assert audit_run(tmp_path / "run_leaky").leaks
    table = pd.read_csv(tmp_path / "clean" / "selection.csv")
    table["skewness"] += 1.0
    table.to_csv(tmp_path / "clean" / "selection.csv", index=False)
    assert any(p.startswith("selection: ") for p in problems(audit_run(tmp_path / "run_clean")))


def test_the_release_s_pretraining_shows_its_test_trials(pair, pretrain_config, quick, tmp_path):
    """`trials: all` is a documented preset of the released code; what it leaks is said."""
    config: PretrainConfig = replace(pretrain_config, trials="all", optim=quick.optim)
    encoder = train.pretrain(pair, tmp_path / "encoder", config=config, progress=False)
    folder = train.finetune(pair, tmp_path / "run", pretrained=encoder, config=quick, progress=False)
    found = problems(audit_run(folder))
    assert any(p.startswith("runs before: train inputs") and "test_gratings" in p for p in found)
    assert any(p.startswith("runs before: statistics") for p in found)


def test_units_and_animals_that_only_test_are_found(tiny, quick, tmp_path, monkeypatch):
    animal = open_recordings(tiny)[0].metadata.subject_id
    config = replace(quick, split=SplitConfig(test_subjects=(animal,)))
    clean = train.finetune(tiny, tmp_path / "clean", config=config, progress=False)
    assert problems(audit_run(clean)) == []
    with monkeypatch.context() as patch:
        patch.setattr(train, "training_recordings", lambda recordings, config: recordings)
        leaky = train.finetune(tiny, tmp_path / "leaky", config=config, progress=False)
    assert problems(audit_run(leaky)) == [f"animals: animal '{animal}' is one of those that only test"]
    words = json.loads((clean / "vocabulary.json").read_text())
    words["units"]["obs_000_Cux2-CreERT2/stranger"] = 999
    (clean / "vocabulary.json").write_text(json.dumps(words))
    assert any(p.startswith("vocabulary: unit obs_000") for p in problems(audit_run(clean)))


@pytest.mark.parametrize("text", ["{", "[]", '{"r": {}}', '{"r": {"parts": {"train": [1]}, "unused": {}}}', '{"r": 3}'])
def test_damaged_splits_are_one_line(text, tmp_path):
    (tmp_path / "splits.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"splits.json is damaged \(.*train again") as caught:
        run_folder.read_splits(tmp_path)
    assert "\n" not in str(caught.value)
