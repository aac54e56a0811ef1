"""New recordings of a trained run: nothing but embeddings is fitted, on a part disjoint from the test part."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from poyo_ssl.config import OptimConfig, SplitConfig
from poyo_ssl.data.recording import open_recordings
from poyo_ssl.errors import ConfigError
from poyo_ssl.evaluation.evaluate import evaluate
from poyo_ssl.evaluation.predictions import Predictions
from poyo_ssl.training import run_folder
from poyo_ssl.training.audit import audit_run
from poyo_ssl.training.predict import open_task
from poyo_ssl.training.run_folder import TrainedRun
from poyo_ssl.training.train import finetune

ANIMAL = "mouse_0_Cux2_00"
QUICK = OptimConfig(epochs=2, epoch_windows=48, batch_size=16, learning_rate=1e-2)


@pytest.fixture(scope="module")
def source(tiny, finetune_config, tmp_path_factory):
    """Return a run that decodes frames and has never seen one of the four animals."""
    split = replace(finetune_config.split, test_subjects=(ANIMAL,))
    config = replace(finetune_config, task="frames", split=split, optim=QUICK)
    return finetune(tiny, tmp_path_factory.mktemp("runs") / "source", config=config, progress=False)


@pytest.fixture(scope="module")
def adapted(tiny, source, finetune_config, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "adapted"
    # Another task and window on purpose: everything but the optimiser comes from the source.
    config = replace(finetune_config, adapt="embeddings", optim=QUICK, task="gratings", seed=1)
    return finetune(tiny, out, pretrained=source, config=config, progress=False)


def test_only_embeddings_differ_from_the_source(source, adapted):
    before, after = (TrainedRun.open(folder).model.state_dict() for folder in (source, adapted))
    assert set(before) == set(after)
    tables = {"tokens.units.weight", "sessions.weight"}
    for name in set(before) - tables:
        assert torch.equal(before[name], after[name]), name
    assert all(len(after[name]) < len(before[name]) for name in tables)


def test_embeddings_are_fitted(tiny, source, adapted, finetune_config, tmp_path):
    config = replace(finetune_config, adapt="embeddings", seed=1, optim=replace(QUICK, learning_rate=1e-12))
    still = finetune(tiny, tmp_path / "still", pretrained=source, config=config, progress=False)
    first, last = (TrainedRun.open(folder).model for folder in (still, adapted))
    for name in ("tokens.units.weight", "sessions.weight"):
        moved = (first.state_dict()[name] - last.state_dict()[name])[1:].abs()
        assert (moved.amax(dim=1) > 1e-3).all(), name


def test_the_new_animal_is_the_only_one_and_its_parts_are_disjoint(source, adapted):
    run = TrainedRun.open(adapted)
    assert list(run.columns) == ["obs_000_Cux2-CreERT2"]
    assert "obs_000_Cux2-CreERT2" not in TrainedRun.open(source).columns
    parts = run_folder.read_splits(adapted)["obs_000_Cux2-CreERT2"].parts
    assert set(parts) == {"train", "valid", "valid_clip", "test_subject_repeat", "test_subject_clip"}
    assert audit_run(adapted).leaks == ()
    assert run.config.task == "frames"


def test_the_subject_split_is_scored_like_any_other(adapted, tmp_path):
    scores = evaluate({"adapted": adapted}, tmp_path / "results", baselines="core", controls=False)
    assert {row.split for row in scores.rows} == {"subject_repeat", "subject_clip"}
    stored = [Predictions.load(path) for path in (tmp_path / "results" / "predictions").glob("*.h5")]
    assert {p.subject_id[0] for p in stored} == {ANIMAL}
    data = open_task(adapted)
    assert data.tests == ("test_subject_repeat", "test_subject_clip")


def test_gratings_of_a_new_animal_keep_the_classes_of_the_source(tiny, finetune_config, tmp_path):
    split = SplitConfig(test_subjects=(ANIMAL,))
    config = replace(finetune_config, task="gratings", split=split, optim=QUICK)
    source = finetune(tiny, tmp_path / "source", config=config, progress=False)
    again = finetune(
        tiny, tmp_path / "again", pretrained=source, config=replace(config, adapt="embeddings"), progress=False
    )
    np.testing.assert_array_equal(TrainedRun.open(again).class_values, np.arange(8) * 45.0)
    assert set(run_folder.read_splits(again)) == {"obs_000_Cux2-CreERT2"}


def test_what_cannot_be_adapted_is_said(tiny, pretrained, source, finetune_config, tmp_path):
    config = replace(finetune_config, adapt="embeddings", optim=QUICK)
    known = open_recordings(tiny)[1:]
    with pytest.raises(ConfigError, match="without a fine-tuned run"):
        finetune(tiny, tmp_path / "run", config=config, progress=False)
    with pytest.raises(ConfigError, match="no readout of the task"):
        finetune(tiny, tmp_path / "run", pretrained=pretrained, config=config, progress=False)
    with pytest.raises(ConfigError, match="every recording is known"):
        finetune(known, tmp_path / "run", pretrained=source, config=config, progress=False)
    assert not (tmp_path / "run").exists()


def test_new_and_known_animals_are_not_mixed(tiny, source, finetune_config, tmp_path):
    first, second = open_recordings(tiny)[:2]
    later = replace(second, recording_id="another_session_of_a_known_animal")
    config = replace(finetune_config, adapt="embeddings", optim=QUICK)
    with pytest.raises(ConfigError, match="another_session_of_a_known_animal is of animal 'mouse_0_Pvalb_00'"):
        finetune([first, later], tmp_path / "run", pretrained=source, config=config, progress=False)
    alone = finetune([later], tmp_path / "alone", pretrained=source, config=config, progress=False)
    parts = next(iter(run_folder.read_splits(alone).values())).parts
    assert "test_repeat" in parts  # a new session of a known animal is no test of new animals


def test_a_frozen_random_encoder_stays_as_it_was_drawn(pair, finetune_config, tmp_path):
    config = replace(finetune_config, adapt="readout", optim=QUICK)
    weights = [
        TrainedRun.open(finetune(pair, tmp_path / name, config=c, progress=False)).model.state_dict()
        for name, c in {
            "frozen": config,
            "still": replace(config, optim=replace(QUICK, learning_rate=1e-12)),
        }.items()
    ]
    for name, value in weights[0].items():
        same = torch.allclose(value, weights[1][name], atol=1e-9)
        assert same != name.startswith(("readout", "sessions.")), name
