"""Evaluation of runs: the same windows for every arm, rows with intervals, predictions that suffice by themselves."""

import hashlib
import json
import shutil
from collections import Counter
from dataclasses import replace
from functools import lru_cache
from operator import attrgetter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from poyo_ssl.config import (
    MODEL_SIZES,
    FinetuneConfig,
    ModelConfig,
    OptimConfig,
    SelectionConfig,
    SplitConfig,
    WindowConfig,
)
from poyo_ssl.data import splits
from poyo_ssl.data.recording import open_recordings
from poyo_ssl.data.task import Task, allowed_domain
from poyo_ssl.data.windows import BatchRequest, WindowDataset
from poyo_ssl.errors import ConfigError, PoyoError
from poyo_ssl.evaluation.evaluate import evaluate
from poyo_ssl.evaluation.features import Activity, RecordingWindows
from poyo_ssl.evaluation.leaderboard import evaluate_files, read_results
from poyo_ssl.evaluation.predictions import Predictions
from poyo_ssl.selection.table import fit_selection
from poyo_ssl.training import run_folder
from poyo_ssl.training.predict import open_task
from poyo_ssl.training.run_folder import TrainedRun, read_neurons
from poyo_ssl.training.train import finetune

MODEL = ModelConfig(**MODEL_SIZES["tiny"], attention_dropout=0.0, value_embedding="per_unit")
GRATINGS = FinetuneConfig(
    model=replace(MODEL, num_latents_per_step=2),
    window=WindowConfig(window_s=1.9, bin_frames=19, units="all"),
    optim=OptimConfig(epochs=1, batch_size=16),
)
FRAMES = replace(
    GRATINGS,
    task="frames",
    movies=("natural_movie_one",),
    frame_height=16,
    frame_width=32,
    window=WindowConfig(window_s=0.3, bin_frames=9, units="all"),
    split=SplitConfig(decay_s=0.1),
    optim=OptimConfig(epochs=3, epoch_windows=256, batch_size=32, learning_rate=1e-2),
)


@pytest.fixture(scope="module")
def gratings_runs(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [finetune(tiny, folder / f"seed{s}", config=replace(GRATINGS, seed=s), progress=False) for s in (0, 1)]


@pytest.fixture(scope="module")
def frames_run(tiny, tmp_path_factory):
    return finetune(tiny, tmp_path_factory.mktemp("runs") / "frames", config=FRAMES, progress=False)


def test_rows_pair_every_arm_on_the_same_trials(gratings_runs, tmp_path):
    scores = evaluate(
        dict(zip("ab", gratings_runs, strict=True)), tmp_path / "results", baselines="core", controls=False
    )
    assert [row.to_json() for row in read_results(tmp_path / "results")] == [row.to_json() for row in scores.rows]
    compared = {(row.arm, row.minus) for row in scores.rows if row.metric == "accuracy"}
    assert {("a", "b"), ("a", "majority"), ("a", "shrunk lda"), ("b", "shrunk lda")} <= compared
    assert ("majority", "shrunk lda") not in compared
    assert {row.n for row in scores.rows} == {4}
    value = {(row.arm, row.minus): row.value for row in scores.rows if row.metric == "accuracy"}
    assert value["a", "b"] == pytest.approx(value["a", ""] - value["b", ""])
    assert value["a", "chance"] == pytest.approx(value["a", ""] - 1 / 8)
    files = [Predictions.load(path) for path in (tmp_path / "results" / "predictions").glob("*.h5")]
    assert {p.arm for p in files} == {"a", "b", "majority", "naive bayes", "shrunk lda", "true rates"}
    for predictions in files:
        np.testing.assert_array_equal(predictions.time, files[0].time)
        np.testing.assert_array_equal(predictions.target, files[0].target)
    chosen = {p.arm: p.validation_score for p in files if p.kind == "baseline"}
    assert {p.validation_metric for p in files if p.kind == "baseline"} == {"accuracy"}
    [best] = {row.minus for row in scores.rows if row.minus and row.best_baseline}
    assert chosen[best] == max(chosen.values())
    assert {row.best_baseline for row in scores.rows if row.minus == best} == {"validation"}


def test_predictions_files_alone_give_the_same_rows(gratings_runs, tmp_path):
    first = evaluate({"a": gratings_runs[0]}, tmp_path / "first", baselines="core")
    files = sorted((tmp_path / "first" / "predictions").glob("*.h5"))
    again = evaluate_files(files, tmp_path / "again")
    key = attrgetter("arm", "metric", "minus")
    first, again, read = (
        [row.to_json() for row in sorted(rows, key=key)]
        for rows in (first.rows, again.rows, read_results(tmp_path / "again"))
    )
    assert first == again == read


def test_every_test_frame_is_scored_once_on_both_splits(frames_run, tiny, tmp_path):
    scores = evaluate({"model": frames_run}, tmp_path / "results", baselines="core", controls=False)
    assert {row.split for row in scores.rows} == {"repeat", "clip"}
    value = {(r.arm, r.split, r.metric): r.value for r in scores.rows if not r.minus}
    assert value["mean frame", "repeat", "spatial_correlation_mean_subtracted_16x32"] == 0
    stored = [Predictions.load(path) for path in (tmp_path / "results" / "predictions").glob("*.h5")]
    ceilings = {(p.arm, p.split) for p in stored if p.kind == "ceiling"}
    both = {("nearest training frame", split) for split in ("repeat", "clip")}
    both |= {("true rates", split) for split in ("repeat", "clip")}
    assert ceilings == both | {("true events", "clip")}
    headlines = {"repeat": "ssim_16x32", "clip": "spatial_correlation_centred_16x32"}
    for p in stored:
        assert p.validation_metric == (headlines[p.split] if p.kind == "baseline" else "")
    for constant in ("mean frame", "grey frame"):
        assert value[constant, "clip", "spatial_correlation_centred_16x32"] == 0
    assert {p.arm for p in stored if p.kind == "ceiling"} == {"nearest training frame", "true rates", "true events"}
    # The movie is stored once for all of them.
    assert len(list((tmp_path / "results" / "predictions").glob("targets_*.npy"))) == 1
    [mean_frame] = [p.validation_score for p in stored if (p.arm, p.split) == ("mean frame", "clip")]
    assert mean_frame == 0
    data = open_task(frames_run)
    for part in ("repeat", "clip"):
        table = data.windows(f"test_{part}")
        stored = Predictions.load(tmp_path / "results" / "predictions" / f"model-frames-{part}-seed0.h5")
        assert len(stored) == len(table)
        assert len(set(zip(stored.recording_id, stored.time, strict=True))) == len(table)
        assert stored.prediction.shape == (len(table), 16, 32)
    repeat = Predictions.load(tmp_path / "results" / "predictions" / "model-frames-repeat-seed0.h5")
    clip = Predictions.load(tmp_path / "results" / "predictions" / "model-frames-clip-seed0.h5")
    assert not set(repeat.frame_number) & set(clip.frame_number)
    assert set(repeat.repeat) == {9}
    assert set(clip.repeat) == set(range(10))


def test_unseen_frames_choose_their_own_epoch_and_baselines(frames_run, tmp_path):
    """Each validation part keeps the weights of its best epoch; test parts use those of the part that serves them."""
    facts = json.loads((frames_run / "run.json").read_text())
    metrics = pd.read_csv(frames_run / "log" / "metrics.csv")
    for part in ("valid", "valid_clip"):
        losses = metrics[["epoch", f"{part}/loss"]].dropna()
        best = losses.loc[losses[f"{part}/loss"].idxmin()]
        assert facts["best_epoch"][part] == best["epoch"]
        assert facts["valid_loss"][part] == pytest.approx(best[f"{part}/loss"], rel=1e-5)
    evaluate({"model": frames_run}, tmp_path / "results", baselines="core", controls=False)
    stored = {(p.arm, p.split): p for p in map(Predictions.load, (tmp_path / "results" / "predictions").glob("*.h5"))}
    data = open_task(frames_run)
    for split, validation in (("repeat", "valid"), ("clip", "valid_clip")):
        assert stored["model", split].model_id == TrainedRun.open(frames_run, validation=validation).model_id()
        for recording_id, parts in data.splits.items():
            for arm in ("model", "ridge"):
                intervals = stored[arm, split].split_intervals[recording_id]["valid"]
                np.testing.assert_array_equal(intervals, parts.parts[validation])


def test_features_are_bin_means_of_the_windows_and_of_the_models_input(frames_run):
    task, neurons = open_task(frames_run), read_neurons(frames_run)
    table = task.windows("test_repeat")
    recording = task.recordings[0]
    windows = RecordingWindows.of(recording, neurons.columns[recording.recording_id], table, 0)
    rows = np.flatnonzero(table.recording_index == 0)
    start = table.first_low[rows[5]]
    expected = recording.read_dff(start, start + 9).reshape(3, 3, -1).mean(axis=1).T.ravel()
    np.testing.assert_allclose(windows.binned(num_bins=3)[5], expected, rtol=1e-6)
    read = Activity(3, "robust_z", neurons.normalisation[recording.recording_id])(windows)
    run = TrainedRun.open(frames_run)
    batch = WindowDataset([recording], [run.unit_set(recording)], windows.table, bin_frames=3)[BatchRequest(rows[:7])]
    np.testing.assert_allclose(read[:7].reshape(7, -1, 3).transpose(0, 2, 1), batch.dff, rtol=1e-5, atol=1e-6)


def test_nothing_is_read_judged_or_opened_twice(gratings_runs, frames_run, tiny, tmp_path, monkeypatch):
    counts = Counter()

    def count(owner, name, key):
        made = getattr(owner, name)

        def counting(*args, **kwargs):
            counts[name, key(*args, **kwargs)] += 1
            return made(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    data = shutil.copytree(tiny, tmp_path / "data")  # files that no cache of this process knows
    count(hashlib, "file_digest", lambda file, _: Path(file.name))
    for name in ("_nearest_correlation", "_clip_roles"):  # caches that hold nothing yet, and what they cache
        monkeypatch.setattr(splits, name, getattr(splits, name).__wrapped__)
        count(splits, name, lambda *judged: tuple(getattr(own, "content", own) for own in judged))
        monkeypatch.setattr(splits, name, lru_cache(getattr(splits, name)))
    count(run_folder, "read_tensors", lambda path: path)
    count(Task, "_windows_of", lambda task, index, part: (task.name, index, part))
    runs = {"a": gratings_runs, "frames": frames_run}
    evaluate(runs, tmp_path / "results", data=data, baselines="core", controls=True)
    recordings = {key.name for name, key in counts if name == "file_digest" and key.suffix == ".h5"}
    assert recordings == {path.name for path in tiny.glob("*.h5")}
    of_kind = {
        name: [number for (own, key), number in counts.items() if own == name]
        for name in ("file_digest", "_nearest_correlation", "_clip_roles", "_windows_of")
    }
    for name, numbers in of_kind.items():
        assert numbers, name
        assert set(numbers) == {1}, name
    opened = {key: number for (name, key), number in counts.items() if name == "read_tensors"}
    models = {path: number for path, number in opened.items() if path.name.startswith("model")}
    assert set(models.values()) == {1}
    assert len(models) == 4  # two seeds; the weights for known and for unseen frames


def test_arms_with_other_windows_are_refused(gratings_runs, tiny, tmp_path):
    other = replace(GRATINGS, split=SplitConfig(seed=7))
    run = finetune(tiny, tmp_path / "other", config=other, progress=False)
    with pytest.raises(ConfigError, match="other test windows"):
        evaluate({"a": gratings_runs[0], "b": run}, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_arms_of_other_neurons_share_no_baseline(gratings_runs, tiny, tmp_path):
    recordings = open_recordings(tiny)
    domains = {r.recording_id: allowed_domain(r, SplitConfig(), window_s=1.0) for r in recordings}
    most = fit_selection(recordings, intervals=domains, config=SelectionConfig(level="neuron", keep_fraction=0.9))
    own = replace(GRATINGS, window=replace(GRATINGS.window, units="selected"))
    run = finetune(tiny, tmp_path / "most", config=own, selection=most, progress=False)
    arms = {"all": gratings_runs[0], "most": run}
    with pytest.raises(ConfigError, match=r"'all' and 'most' decode from 16 and \d+ neurons of .*, not the same ones"):
        evaluate(arms, tmp_path / "results", baselines="core", controls=False)
    assert not (tmp_path / "results").exists()
    assert evaluate(arms, tmp_path / "results", baselines="none", controls=False).rows


def test_moved_data_and_damaged_runs_are_named(gratings_runs, tiny, tmp_path):
    moved = shutil.copytree(tiny, tmp_path / "moved")
    scores = evaluate({"a": gratings_runs[0]}, tmp_path / "results", data=moved, baselines="none")
    assert scores.rows
    broken = shutil.copytree(gratings_runs[0], tmp_path / "broken")
    facts = json.loads((broken / "run.json").read_text())
    (broken / "run.json").write_text(json.dumps(facts)[:50])
    with pytest.raises(PoyoError, match="damaged"):
        evaluate({"a": broken}, tmp_path / "other")
    with pytest.raises(PoyoError, match="no recording of"):
        evaluate({"a": gratings_runs[0]}, tmp_path / "third", data=[open_recordings(tiny)[0]][:0])
