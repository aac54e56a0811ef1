"""The whole method on a small virtual observatory: the main job of the package, in minutes on two cores."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from poyo_ssl.config import (
    FinetuneConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    PretrainConfig,
    SelectionConfig,
    SplitConfig,
    WindowConfig,
)
from poyo_ssl.data.recording import open_recordings
from poyo_ssl.data.task import allowed_domain
from poyo_ssl.evaluation.evaluate import evaluate
from poyo_ssl.files import new_folder, write_beside
from poyo_ssl.observatory import generate_observatory, get_size
from poyo_ssl.report import write_report
from poyo_ssl.selection.picture import plot_selection
from poyo_ssl.selection.table import fit_selection
from poyo_ssl.training.train import finetune, pretrain

WORLD, SIZE = "allen_like", "small"
MOVIES = ("natural_movie_one", "natural_movie_two")
ARMS = {
    "pretrained": "pretrained on the predictable neurons, then fine-tuned on the other recordings",
    "from scratch": "the same model, steps and recordings from random weights",
    "grey frame": "every pixel at the mean grey level of the training frames: it knows no picture",
    "mean frame": "the mean training frame of each recording, whatever the neurons do",
    "knn lookup": "the stored frame that the most similar training activity was recorded with",
    "ridge": "ridge regression from binned dF/F to principal components of the training frames",
    "majority": "the commonest training direction",
    "shrunk lda": "linear discriminant with shrunk covariance on binned dF/F",
    "nearest training frame": "ceiling of every lookup: it is told the true frame",
    "true rates": "ceiling: what the neurons' noise-free rates tell a decoder that knows their tuning",
    "true events": "ceiling of one trial: the true events in the same windows, read by a decoder that knows the tuning",
}


def demo_configs(seed: int) -> tuple[PretrainConfig, FinetuneConfig, FinetuneConfig]:
    """Return the demo's settings: pretraining, gratings, frames.

    A small model with one value direction per neuron (ours, not the study's), inputs in bins of 0.1 s, and no
    attention dropout, so that everything fits into minutes on two cores. Gratings are decoded with a value skip, which
    was chosen on validation (docs/log.md): some hundred trials are few for an encoder alone.
    """
    model = ModelConfig(
        dim=64,
        depth=2,
        num_latents_per_step=4,
        latent_step_s=0.25,
        value_embedding="per_unit",
        attention_dropout=0.0,
        residual_dropout=0.2,
    )
    inputs = WindowConfig(window_s=1.9, bin_frames=3, normalisation="robust_asinh")
    pretraining = PretrainConfig(
        model=model,
        objective=ObjectiveConfig(),
        window=replace(inputs, units="selected"),
        optim=OptimConfig(epochs=20, batch_size=32, learning_rate=2e-3),
        seed=seed,
    )
    inputs = replace(inputs, units="unselected", unit_dropout=False, noise=0.5)
    gratings = FinetuneConfig(
        task="gratings",
        model=model,
        window=inputs,
        optim=OptimConfig(epochs=15, batch_size=32, learning_rate=2e-3),
        value_skip_bins=1,
        seed=seed,
    )
    frames = replace(
        gratings,
        task="frames",
        value_skip_bins=0,
        movies=MOVIES,
        frame_height=32,
        frame_width=64,
        window=replace(inputs, window_s=0.5),
        optim=OptimConfig(epochs=6, epoch_windows=4096, batch_size=64, learning_rate=2e-3),
    )
    return pretraining, gratings, frames


def run_demo(out: Path, *, seed: int = 0, overwrite: bool = False, console: Console | None = None) -> Path:
    """Simulate, select, pretrain, fine-tune, evaluate and report.

    Parameters
    ----------
    out : path
        Folder to make: ``data/``, ``selection/``, ``runs/``, ``predictions/``, ``results.json``, ``report.html``.
    seed : int
        Seed of the observatory and of every training.
    overwrite : bool
        Replace a demo that is there.
    console : Console, optional
        Where progress is shown; a quiet one by default.

    Returns
    -------
    Path
        The report.
    """
    console = console or Console(quiet=True)
    started = time.monotonic()
    with new_folder(out, "demo", overwrite=overwrite):
        # A folder that was started is one of ours, so that --overwrite may replace it after an interruption.
        write_beside(out / "run.json", json.dumps({"command": "demo", "state": "running", "seed": seed}))
        data = _simulate(out / "data", seed=seed, console=console)
        selection = _select(data, out / "selection", console=console)
        pretraining, gratings, frames = demo_configs(seed)
        chatty: dict[str, Any] = {"progress": not console.quiet}
        runs = out / "runs"
        console.rule("pretraining on the predictable neurons")
        encoder = pretrain(data, runs / "pretraining", config=pretraining, selection=selection, **chatty)
        arms: dict[str, list[Path]] = {"pretrained": [], "from scratch": []}
        for task in (gratings, frames):
            for arm, source in (("pretrained", encoder), ("from scratch", None)):
                console.rule(f"{task.task}, {arm}")
                folder = runs / f"{task.task}-{arm.replace(' ', '-')}"
                arms[arm].append(finetune(data, folder, config=task, pretrained=source, selection=selection, **chatty))
        console.rule("evaluation")
        _evaluate(out, arms, seed=seed, console=console)
        minutes = (time.monotonic() - started) / 60
        notes = {
            "world": WORLD,
            "data": f"virtual observatory, size {SIZE}, seed {seed}",
            "arms": ARMS,
            "minutes": minutes,
        }
        notes |= {"headline": _headline(out)}
        write_beside(out / "notes.json", json.dumps(notes, indent=1))
        write_beside(out / "run.json", json.dumps({"command": "demo", "state": "finished", "seed": seed}))
        return write_report(out)


def _simulate(folder: Path, *, seed: int, console: Console) -> Path:
    console.rule("simulating a small observatory")
    with Progress(console=console) as progress:
        task = progress.add_task(WORLD, total=get_size(SIZE).num_recordings)
        generate_observatory(
            folder,
            world=WORLD,
            size=SIZE,
            seed=seed,
            workers=os.cpu_count() or 1,
            progress=lambda _: progress.advance(task),
        )
    return folder


def _select(data: Path, folder: Path, *, console: Console) -> Path:
    console.rule("selecting predictable neurons")
    recordings = open_recordings(data)
    domains = {r.recording_id: allowed_domain(r, SplitConfig(), window_s=1.0) for r in recordings}
    selection = fit_selection(recordings, intervals=domains, config=SelectionConfig())
    selection.save(folder)
    plot_selection(selection, folder / "selection.png")
    return folder


def _evaluate(out: Path, arms: dict[str, list[Path]], *, seed: int, console: Console) -> None:
    """Score both tasks, each arm under its own name, into one results folder."""
    rows = []
    (out / "predictions").mkdir(exist_ok=True)
    for place in range(2):
        results = out / f"evaluation-{place}"
        with console.status("evaluating") as status:
            scores = evaluate(
                {arm: runs[place] for arm, runs in arms.items()},
                results,
                baselines="core",
                controls=False,
                seed=seed,
                progress=status.update,
            )
        rows += scores.rows
        for path in (results / "predictions").iterdir():
            path.replace(out / "predictions" / path.name)
        for path in (results / "results.json", results / "evaluation.json"):
            path.unlink()
        (results / "predictions").rmdir()
        results.rmdir()
    write_beside(out / "results.json", json.dumps(rows, indent=1))


def _headline(out: Path) -> list[str]:
    """Say in sentences what the figures say, whichever way they fall."""
    rows = {(r["arm"], r["task"], r["split"], r["metric"]): r for r in json.loads((out / "results.json").read_text())}
    ssim, correlation = "ssim_32x64", "spatial_correlation_centred_32x64"

    def gain(task: str, split: str, metric: str, other: str, what: str) -> str:
        row = rows[("pretrained", task, split, f"{metric} minus {other}" if other else metric)]
        low, high = row["low"], row["high"]
        judged = "above zero" if low > 0 else "below zero" if high < 0 else "not distinguishable from zero"
        return f"{what}: {row['value']:+.3f} (95 % interval {low:+.3f} to {high:+.3f}, {row['n']} animals), {judged}."

    return [
        gain("gratings", "gratings", "accuracy minus chance", "", "Gratings direction, fine-tuned minus chance"),
        gain("gratings", "gratings", "accuracy", "from scratch", "Gratings direction, pretrained minus scratch"),
        gain("gratings", "gratings", "accuracy", "shrunk lda", "Gratings direction, fine-tuned minus shrunk LDA"),
        gain("frames", "repeat", ssim, "mean frame", "Known frames, SSIM, fine-tuned minus mean frame"),
        gain("frames", "repeat", ssim, "from scratch", "Known frames, SSIM, pretrained minus scratch"),
        gain("frames", "repeat", ssim, "knn lookup", "Known frames, SSIM, fine-tuned minus kNN lookup"),
        *(
            gain("frames", "clip", correlation, other, f"Unseen frames, correlation, fine-tuned minus {other}")
            for other in ("ridge", "true events", "true rates")
        ),
    ]
