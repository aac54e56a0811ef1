"""The whole method on a small virtual observatory: the main job of the package, in minutes on two cores."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

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
from poyo_ssl.evaluation.leaderboard import Row, read_results, write_rows
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
    """Simulate, select, pretrain, fine-tune, evaluate and report into a folder; return the report."""
    console = console or Console(quiet=True)
    with new_folder(out, "demo", overwrite=overwrite) as folder:
        started = time.monotonic()
        facts = {"command": "demo", "state": "running", "seed": seed}
        # A demo that was killed is still one of ours, which --overwrite may replace.
        write_beside(folder / "run.json", json.dumps(facts))
        _run(folder, seed, console)
        minutes = (time.monotonic() - started) / 60
        notes = {"world": WORLD, "data": f"virtual observatory, size {SIZE}, seed {seed}", "arms": ARMS}
        more = {"minutes": minutes, "headline": _headline(folder)}
        write_beside(folder / "notes.json", json.dumps(notes | more, indent=1))
        write_beside(folder / "run.json", json.dumps(facts | {"state": "finished"}))
        return write_report(folder, out / "report.html")


def _run(out: Path, seed: int, console: Console) -> None:
    """Write data, selection, runs, predictions and results.json."""
    data, runs, show = out / "data", out / "runs", not console.quiet
    console.rule("simulating a small observatory")
    with Progress(console=console) as bar:
        task = bar.add_task(WORLD, total=get_size(SIZE).num_recordings)
        generate_observatory(
            data, world=WORLD, size=SIZE, seed=seed, workers=os.cpu_count() or 1, progress=lambda _: bar.advance(task)
        )

    console.rule("selecting predictable neurons")
    recordings = open_recordings(data)
    domains = {r.recording_id: allowed_domain(r, SplitConfig(), window_s=1.0) for r in recordings}
    chosen = fit_selection(recordings, intervals=domains, config=SelectionConfig())
    selection = chosen.save(out / "selection")
    plot_selection(chosen, selection / "selection.png")

    console.rule("pretraining on the predictable neurons")
    pretraining, *tasks = demo_configs(seed)
    encoder = pretrain(data, runs / "pretraining", config=pretraining, selection=selection, progress=show)
    trained: dict[str, dict[str, Path]] = {}
    for config in tasks:
        for arm, source in (("pretrained", encoder), ("from scratch", None)):
            console.rule(f"{config.task}, {arm}")
            run = runs / f"{config.task}-{arm.replace(' ', '-')}"
            finetune(data, run, config=config, pretrained=source, selection=selection, progress=show)
            trained.setdefault(config.task, {})[arm] = run

    console.rule("evaluation")
    rows: list[Row] = []
    (out / "predictions").mkdir()
    for name, arms in trained.items():
        results = out / f"evaluation-{name}"
        with console.status("evaluating") as status:
            scores = evaluate(arms, results, baselines="core", controls=False, seed=seed, progress=status.update)
        rows += scores.rows
        for path in (results / "predictions").iterdir():
            path.replace(out / "predictions" / path.name)
        shutil.rmtree(results)
    write_rows(out, rows)


def _headline(out: Path) -> list[str]:
    """Say in sentences what the figures say, whichever way they fall."""
    gratings, known, unseen = "Gratings direction", "Known frames, SSIM", "Unseen frames, correlation"
    # Task, split, metric, what it is called, and which arms are subtracted beside the best baselines.
    compared = (
        ("gratings", "gratings", "accuracy", gratings, ("chance", "from scratch")),
        ("frames", "repeat", "ssim_32x64", known, ("mean frame", "from scratch")),
        ("frames", "clip", "spatial_correlation_centred_32x64", unseen, ("true events", "true rates")),
    )
    rows = [row for row in read_results(out) if row.arm == "pretrained" and row.minus]
    sentences = []
    for task, split, metric, what, others in compared:
        own = {row.minus: row for row in rows if (row.task, row.split, row.metric) == (task, split, metric)}
        best = [name for name, row in own.items() if row.best_baseline]
        best += [name for name, row in own.items() if row.best_on_test and name not in best]
        sentences += [_sentence(own[name], what) for name in dict.fromkeys((*others, *best))]
    return sentences


def _sentence(row: Row, what: str) -> str:
    name = f"{row.minus} ({row.marks})" if row.marks else row.minus
    judged = "above zero" if row.low > 0 else "below zero" if row.high < 0 else "not distinguishable from zero"
    interval = f"95 % interval {row.low:+.3f} to {row.high:+.3f}, {row.n} animals"
    return f"{what}, pretrained minus {name}: {row.value:+.3f} ({interval}), {judged}."
