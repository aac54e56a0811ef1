"""Trainings that take longer: chance with shuffled labels, a killed process, two processes under DDP."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file
from scipy import stats

from poyo_ssl.config import OptimConfig, WindowConfig
from poyo_ssl.data.task import Task
from poyo_ssl.evaluation.evaluate import evaluate
from poyo_ssl.evaluation.leaderboard import read_results
from poyo_ssl.evaluation.predictions import Predictions
from poyo_ssl.files import plain
from poyo_ssl.training.predict import open_task, predict_windows
from poyo_ssl.training.run_folder import TrainedRun, read_json
from poyo_ssl.training.train import finetune, resume

pytestmark = pytest.mark.slow


def accuracy(run_folder, recordings, config):
    """Return hits and trials in the test part."""
    data = Task.of(recordings, config)
    table = data.windows("test_gratings")
    probabilities = predict_windows(TrainedRun.open(run_folder), data.recordings, table)
    return int((probabilities.argmax(axis=1) == table.target).sum()), len(table)


def test_labels_are_learned_and_shuffled_labels_are_not(make_recording, finetune_config, tmp_path):
    """The same training on neurons with clear preferences, with true and with shuffled directions."""
    window = WindowConfig(window_s=1.0, units="all", unit_dropout=False)
    optim = OptimConfig(epochs=25, batch_size=16, learning_rate=1e-2)
    model = replace(finetune_config.model, ffn_dropout=0.0, residual_dropout=0.0)
    config = replace(finetune_config, model=model, window=window, optim=optim)
    recordings = [make_recording(name, grating_repeats=10, num_units=16, seed=i) for i, name in enumerate("ab")]
    run = finetune(recordings, tmp_path / "true", config=config, progress=False)
    hits, trials = accuracy(run, recordings, config)
    assert trials == 32
    # By chance 4 of 32; more than 10 in one case of a thousand.
    assert hits > 10
    rng = np.random.default_rng(0)
    shuffled = []
    for recording in recordings:
        table = recording.stimuli["drifting_gratings"]
        direction = rng.permutation(table.columns["orientation"])
        table = replace(table, columns={**table.columns, "orientation": direction})
        shuffled.append(replace(recording, stimuli={table.name: table}))
    run = finetune(shuffled, tmp_path / "shuffled", config=config, progress=False)
    hits, trials = accuracy(run, shuffled, config)
    assert stats.binomtest(hits, trials, 1 / 8).pvalue > 0.01


SCRIPT = """
import json, sys
from pathlib import Path

import torch
from poyo_ssl.config import FinetuneConfig, from_plain
from poyo_ssl.training.train import KeepWeights
from poyo_ssl.training.train import finetune

if __name__ == "__main__":
    torch.set_num_threads(1)
    data, out, devices = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    config = from_plain(FinetuneConfig, json.loads(Path(sys.argv[4]).read_text()))
    seen, before = [], []

    # What each rank was given and what it ended with, written beside the run.
    from poyo_ssl.training.modules import FinetuneModule

    step = FinetuneModule.training_step

    def training_step(self, batch, batch_idx):
        seen.append([self.current_epoch, batch.window_index.tolist()])
        return step(self, batch, batch_idx)

    def on_train_end(self):
        weights = {name: value.detach().clone() for name, value in self.model.named_parameters()}
        torch.save({"seen": seen, "weights": weights}, out.with_name(f"{out.name}_rank{self.global_rank}.pt"))

    FinetuneModule.training_step, FinetuneModule.on_train_end = training_step, on_train_end
    finetune(data, out, config=config, devices=devices, progress=False)
"""


def start(tmp_path, pair, name, config, devices=1):
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "config.json").write_text(json.dumps(plain(config)))
    arguments = [tmp_path / "train.py", pair, tmp_path / name, devices, tmp_path / "config.json"]
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process):
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output[-3000:]


@pytest.fixture
def one_thread():
    """Compute with one thread, as `SCRIPT` does: LayerNorm's gradient is summed per thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_killed_run_resumes_to_the_same_weights(pair, finetune_config, tmp_path, one_thread):
    optim = OptimConfig(epochs=12, batch_size=16)
    config = replace(finetune_config, optim=optim, keep="last")
    process = start(tmp_path, pair, "killed", config)
    last = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not last.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert last.exists()
    assert read_json(tmp_path / "killed", "run.json")["state"] == "running"
    resumed = resume(tmp_path / "killed", progress=False)
    whole = finetune(pair, tmp_path / "whole", config=config, progress=False)
    one, other = (load_file(folder / "model.safetensors") for folder in (whole, resumed))
    for name, tensor in one.items():
        np.testing.assert_array_equal(tensor, other[name], err_msg=name)


@pytest.mark.parametrize("task", ["gratings", "frames"])
def test_two_processes_train_on_the_same_windows_and_agree(pair, finetune_config, tmp_path, task):
    optim = OptimConfig(epochs=2 if task == "gratings" else 1, batch_size=16, epoch_windows=60)
    config = replace(finetune_config, task=task, optim=optim, keep="last")
    finish(start(tmp_path, pair, "alone", config))
    finish(start(tmp_path, pair, "both", config, devices=2))
    alone = torch.load(tmp_path / "alone_rank0.pt", weights_only=True)
    ranks = [torch.load(tmp_path / f"both_rank{rank}.pt", weights_only=True) for rank in range(2)]
    steps = [sorted(one + other) for (_, one), (_, other) in zip(*(r["seen"] for r in ranks), strict=True)]
    assert steps == [sorted(windows) for _, windows in alone["seen"]]
    for name, value in ranks[0]["weights"].items():
        torch.testing.assert_close(value, ranks[1]["weights"][name], rtol=0, atol=0)
    facts = [read_json(tmp_path / name, "run.json") for name in ("alone", "both")]
    assert facts[0]["windows"] == facts[1]["windows"]
    assert facts[1]["state"] == "finished"


EVALUATE = """
import sys

import numpy as np
import torch
from poyo_ssl.evaluation.evaluate import evaluate
from poyo_ssl.training.predict import open_task, predict_windows
from poyo_ssl.training.run_folder import TrainedRun

if __name__ == "__main__":
    torch.set_num_threads(1)
    out, devices, runs = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    evaluate(runs, out, devices=devices, baselines="none")
    # Every rank has all answers, not only the one that writes.
    task = open_task(runs[0])
    table = task.windows("test_gratings")
    found = predict_windows(TrainedRun.open(runs[0]), task.recordings, table, devices=devices)
    np.save(f"{out}_{torch.distributed.get_rank()}.npy", found)
"""


def test_one_and_two_processes_evaluate_alike(pair, finetuned, finetune_config, tmp_path, one_thread):
    """All tasks, with their controls: every target once, and the same numbers."""
    optim = OptimConfig(epochs=1, batch_size=16, epoch_windows=60)
    runs = [finetuned]
    for task in ("frame_number", "frames"):
        config = replace(finetune_config, task=task, optim=optim)
        runs.append(finetune(pair, tmp_path / task, config=config, progress=False))
    (tmp_path / "evaluate.py").write_text(EVALUATE)
    arguments = [tmp_path / "evaluate.py", tmp_path / "with2", 2, *runs]
    both = subprocess.Popen(
        [sys.executable, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    evaluate(runs, tmp_path / "with1", baselines="none")
    finish(both)
    found = {
        devices: {path.name: Predictions.load(path) for path in (tmp_path / f"with{devices}/predictions").glob("*.h5")}
        for devices in (1, 2)
    }
    assert {p.task for p in found[1].values()} == {"gratings", "frame_number", "frames"}
    assert set(found[1]) == set(found[2])
    for name, alone in found[1].items():
        both = found[2][name]
        pd.testing.assert_frame_equal(alone.targets(), both.targets())
        np.testing.assert_array_equal(alone.target, both.target)
        if alone.probabilities is None:
            # Sums in another order may round to the neighbouring grey level.
            difference = np.abs(alone.prediction[:].astype(int) - both.prediction[:])
            assert difference.max() <= 1, name
            assert (difference > 0).mean() < 1e-3, name
        else:
            np.testing.assert_allclose(alone.probabilities, both.probabilities, atol=1e-5, err_msg=name)
    task = open_task(finetuned)
    table = task.windows("test_gratings")
    alone = predict_windows(TrainedRun.open(finetuned), task.recordings, table)
    assert alone.shape == (len(table), 8)
    for rank in range(2):
        np.testing.assert_allclose(np.load(tmp_path / f"with2_{rank}.npy"), alone, atol=1e-5)
    scores = [
        {(r.arm, r.task, r.split, r.metric, r.minus): r.value for r in read_results(tmp_path / name)}
        for name in ("with1", "with2")
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
