"""Small results folders for the tests of the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter

from poyo_ssl.config import SelectionConfig
from poyo_ssl.evaluation.predictions import Predictions
from poyo_ssl.selection.table import Selection

HEIGHT, WIDTH, NUM_FRAMES = 16, 32, 12
RECORDINGS = ("rec_a", "rec_b", "rec_c")


def make_movie(seed: int = 0, *, num_frames: int = NUM_FRAMES, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    smooth = gaussian_filter(np.random.default_rng(seed).normal(size=(num_frames, height, width)), (1, 2, 2))
    return np.clip(128 + 45 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def frame_predictions(
    arm: str, *, split: str, noise: dict[str, float], movie: np.ndarray | None = None, blend: float = 1.0
) -> Predictions:
    """Each recording's frames, `blend` x truth + rest x mean frame, with noise of its own standard deviation."""
    movie = make_movie() if movie is None else movie
    rng = np.random.default_rng(len(arm))
    mean, count = movie.mean(axis=0), len(movie)
    mixed = blend * movie + (1 - blend) * mean
    images = [
        np.clip(np.rint(mixed + sd * rng.normal(size=movie.shape)), 0, 255).astype(np.uint8) for sd in noise.values()
    ]
    total = count * len(noise)
    return Predictions(
        task="frames",
        split=split,
        arm=arm,
        data_checksum="abc",
        prediction=np.concatenate(images),
        target=np.tile(np.arange(count), len(noise)),
        time=np.tile(np.arange(count) / 30, len(noise)),
        recording_id=np.repeat(list(noise), count),
        subject_id=np.repeat([f"mouse of {name}" for name in noise], count),
        stimulus=np.full(total, "natural_movie_one"),
        frame_number=np.tile(np.arange(count) + 100, len(noise)),
        repeat=np.full(total, 9),
        target_frames=movie,
        mean_frames=dict.fromkeys(noise, mean),
    )


def gratings_predictions(arm: str, *, correct: float, num_trials: int = 160) -> Predictions:
    rng = np.random.default_rng(len(arm))
    target = np.arange(num_trials) % 8
    prediction = np.where(rng.random(num_trials) < correct, target, rng.integers(0, 8, num_trials))
    return Predictions(
        task="gratings",
        split="gratings",
        arm=arm,
        data_checksum="abc",
        prediction=prediction,
        target=target,
        time=np.arange(num_trials) * 3.0,
        recording_id=np.full(num_trials, "rec_a"),
        subject_id=np.full(num_trials, "mouse"),
        stimulus=np.full(num_trials, "drifting_gratings"),
        frame_number=np.full(num_trials, -1),
        repeat=np.full(num_trials, -1),
        class_values=np.arange(8) * 45.0,
    )


def row(arm: str, metric: str, value: float | None, **others: Any) -> dict[str, Any]:
    bounds = {"low": None, "high": None} if value is None else {"low": value - 0.05, "high": value + 0.05}
    return {
        "arm": arm,
        "task": "frames",
        "split": "repeat",
        "metric": metric,
        "value": value,
        **bounds,
        "n": 3,
    } | others


def make_selection() -> Selection:
    table = pd.DataFrame(
        {
            "recording_id": "rec_a",
            "unit_id": [f"u{i}" for i in range(6)],
            "unit_index": range(6),
            "cell_specimen_id": -1,
            "cre_line": ["Sst-IRES-Cre"] * 3 + ["Cux2-CreERT2"] * 3,
            "skewness": [1.0, 1.5, 2.0, 5.0, 6.0, 7.0],
            "kurtosis": [4.0, 5.0, 6.0, 60.0, 70.0, 80.0],
            "snr": 2.0,
            "event_rate_hz": 0.1,
            "num_samples": 1000,
            "status": "ok",
            "selected": [True] * 3 + [False] * 3,
        }
    )
    return Selection(table, {"skewness": 3.51, "kurtosis": 22.62}, SelectionConfig())


ARMS = {"pretrained": (0.7, 25.0), "from scratch": (0.4, 35.0), "mean frame": (0.0, 0.0), "ridge": (0.5, 10.0)}
"""Arm -> share of truth in its frames, and noise."""


def write_results(folder: Path, movie: np.ndarray | None = None) -> Path:
    """Write a complete results folder: two models, two baselines, two movie splits, gratings."""
    rows: list[dict[str, Any]] = []
    for split, loss in (("repeat", 1.0), ("clip", 0.4)):
        for arm, (blend, noise) in ARMS.items():
            sds = {name: noise * (1 + 0.5 * i) for i, name in enumerate(RECORDINGS)}
            p = frame_predictions(arm, split=split, noise=sds, movie=movie, blend=blend * loss)
            p.save(folder / "predictions" / f"{split}_{arm.replace(' ', '_')}.h5")
            rows.append(row(arm, "ssim_16x32", 0.3 + blend * loss / 3, split=split))
            rows.append(row(arm, "psnr_db_16x32", 15 + blend, split=split))
            if arm in ("pretrained", "from scratch"):
                gain = blend * loss / 3
                rows.append(row(arm, "ssim_16x32 minus mean frame", gain, split=split))
                rows.append(row(arm, "ssim_16x32 minus ridge", gain - loss / 6, split=split))
    for arm, correct in {"pretrained": 0.6, "from scratch": 0.3, "majority": 0.0}.items():
        gratings_predictions(arm, correct=correct).save(folder / "predictions" / f"gratings_{arm}.h5")
        place = {"task": "gratings", "split": "gratings"}
        rows.append(row(arm, "accuracy", 0.125 + correct, **place))
        rows.append(row(arm, "circular_error_deg", 90 - 90 * correct, **place))
    rows.append(row("pretrained", "circular_error_deg minus majority", -30.0, task="gratings", split="gratings"))
    (folder / "results.json").write_text(json.dumps(rows))
    notes = {
        "headline": ["Decoding beats the mean frame.", "It is not shown on unseen clips."],
        "world": "A virtual observatory whose truth is known.",
        "arms": {"pretrained": "Encoder from the predictable set.", "from scratch": "The same without pretraining."},
        "minutes": 12.5,
    }
    (folder / "notes.json").write_text(json.dumps(notes))
    make_selection().save(folder / "selection")
    (folder / "finetune").mkdir()
    facts = {
        "command": "finetune",
        "task": "frames",
        "seed": 0,
        "state": "finished",
        "started": "2030-01-02T03:04:05+0000",
        "versions": {"python": "3.11.0", "torch": "2.6"},
        "git_commit": "c0ffee",
        "data": [{"recording_id": "rec_a", "path": "/somewhere/rec_a.h5", "sha256": "ab12"}],
    }
    (folder / "finetune" / "run.json").write_text(json.dumps(facts))
    return folder
