"""What selection by regularity is worth in simulated worlds whose truth is known.

    python benchmarks/worlds.py --worlds null noise_confounded allen_like [--out runs/worlds] [--seeds 0 1 2 3 4]

Each world is simulated at size `small`: 13 recordings, one animal and one Cre line each. The published thresholds
select some lines. Encoders are pretrained on the selected lines, or on as many of the others (first by name), and
fine-tuned on the recordings that are left, for the direction of gratings; a third model trains there from scratch. All
share model, steps, windows and seed, and read activity through the encoder alone. A fourth is the third with a value
skip (`--value_skip_bins 1`), which would hide what pretraining is worth. Baselines (CEBRA too, which must be
installed), controls and the ceiling are fitted on the same windows.

Two gains of selection come out. "Pretraining": pretrained on selected lines less pretrained on others, paired by animal
and seed. "Decoding": accuracy of shrunk LDA in the recordings of selected lines less that in all others; these are
different animals, so the interval is Welch's, of splits averaged within each.

A training that is complete in `--out` with the same settings is not repeated.

What must be seen: in `null` neither gain, since skewness says nothing there; in `noise_confounded` no gain from
pretraining and worse decoding, since low skewness is only noise.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from poyo_ssl.config import FinetuneConfig, PretrainConfig, SelectionConfig, SplitConfig, WindowConfig
from poyo_ssl.data.recording import Recording, open_recordings
from poyo_ssl.data.task import Task, allowed_domain
from poyo_ssl.demo import demo_configs
from poyo_ssl.errors import CheckpointError
from poyo_ssl.evaluation.baselines import KnownWindows, make_arms
from poyo_ssl.evaluation.evaluate import evaluate
from poyo_ssl.evaluation.features import RecordingWindows
from poyo_ssl.evaluation.leaderboard import Row
from poyo_ssl.observatory import WORLDS, generate_observatory
from poyo_ssl.selection.table import Selection, fit_selection
from poyo_ssl.training.run_folder import TrainedRun
from poyo_ssl.training.train import finetune, pretrain

METRIC = "accuracy"
SELECTED, OTHERS, SCRATCH = "pretrained on selected", "pretrained on others", "from scratch"
SKIP = "from scratch, with a value skip"


def configs(seed: int, pretrain_epochs: int, finetune_epochs: int) -> tuple[PretrainConfig, FinetuneConfig]:
    """Return the demo's settings with other lengths, and without its value skip."""
    pretraining, gratings, _ = demo_configs(seed)
    pretraining = replace(pretraining, optim=replace(pretraining.optim, epochs=pretrain_epochs))
    optim = replace(gratings.optim, epochs=finetune_epochs)
    return pretraining, replace(gratings, optim=optim, value_skip_bins=0)


def is_trained(run: Path, config: PretrainConfig | FinetuneConfig) -> bool:
    """Whether a run is complete and was made with these settings."""
    try:
        return TrainedRun.open(run).config == config
    except CheckpointError:
        return False


def select(recordings: Sequence[Recording]) -> Selection:
    """Select lines by the published thresholds, on what is in no test or validation part."""
    domains = {r.recording_id: allowed_domain(r, SplitConfig(), window_s=1.0) for r in recordings}
    return fit_selection(recordings, intervals=domains, config=SelectionConfig())


def train_arms(
    out: Path,
    selected: list[Recording],
    others: list[Recording],
    selection: Selection,
    seeds: Sequence[int],
    epochs: tuple[int, int],
) -> dict[str, list[Path]]:
    """Train every arm with every seed; arms in the order in which they are compared."""
    sources = {SELECTED: selected, OTHERS: others[: len(selected)], SCRATCH: [], SKIP: []}
    targets = others[len(selected) :]
    arms: dict[str, list[Path]] = {arm: [] for arm in sources}
    quiet: dict[str, Any] = {"selection": selection, "progress": False, "overwrite": True}
    for seed in seeds:
        pretraining, gratings = configs(seed, *epochs)
        for arm, own in sources.items():
            folder = out / f"{arm.replace(',', '').replace(' ', '-')}-seed{seed}"
            run, finetuning = folder / "run", replace(gratings, value_skip_bins=int(arm == SKIP))
            arms[arm].append(run)
            encoder, made = None, is_trained(run, finetuning)
            if own:
                units: Literal["selected", "unselected"] = "selected" if arm == SELECTED else "unselected"
                config = replace(pretraining, window=replace(pretraining.window, units=units))
                encoder = folder / "pretraining"
                if not is_trained(encoder, config):
                    made = False
                    pretrain(own, encoder, config=config, **quiet)
            if made:
                continue
            finetune(targets, run, config=finetuning, pretrained=encoder, **quiet)
            print(f"# {time.process_time():5.0f} s of CPU: {arm}, seed {seed}", flush=True)
    return arms


def lda_accuracy(recordings: Sequence[Recording], seeds: Sequence[int]) -> NDArray[np.float64]:
    """``(R,)`` test accuracy of shrunk LDA in each recording, mean over splits."""
    found = np.zeros((len(seeds), len(recordings)))
    for row, seed in enumerate(seeds):
        config = FinetuneConfig(window=WindowConfig(window_s=1.9, units="all"), split=SplitConfig(seed=seed))
        data = Task.of(recordings, config)
        tables = [data.windows(part) for part in ("train", "valid", "test_gratings")]
        for index, recording in enumerate(recordings):
            units = np.arange(recording.num_units)
            train, valid, test = (RecordingWindows.of(recording, units, table, index) for table in tables)
            assert data.class_values is not None
            baselines = make_arms("gratings", train, which="core", num_classes=len(data.class_values))
            lda = next(b for b in baselines if b.name == "shrunk_lda")
            found[row, index] = (lda.fit(KnownWindows.of(train, valid)).predict(test) == test.target).mean()
    return found.mean(axis=0)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print Markdown."""
    for cells in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(cells) + " |")
    print(flush=True)


def run_world(out: Path, world: str, seeds: Sequence[int], epochs: tuple[int, int]) -> None:
    """Simulate a world, train, evaluate and print its two tables."""
    started = time.process_time()
    print(f"## {world}: {WORLDS[world].description}\n", flush=True)
    generate_observatory(out / "data", world=world, size="small", seed=0)
    recordings = open_recordings(out / "data")
    selection = select(recordings)
    selected = [r for r in recordings if selection.mask(r).any()]
    others = [r for r in recordings if not selection.mask(r).any()]
    names = ", ".join(str(r.metadata.cre_line) for r in selected)
    print(f"Selected: {names}; fine-tuned on {len(others) - len(selected)} other lines.\n", flush=True)
    arms = train_arms(out / "runs", selected, others, selection, seeds, epochs)
    targets = others[len(selected) :]
    rows = evaluate(arms, out / "results", data=targets, baselines="with_cebra", overwrite=True).rows
    own = [row for row in rows if row.metric == METRIC and not row.minus]
    print_table(
        ("arm", "kind", METRIC, "95 % interval", "n"),
        [(r.arm, r.kind, f"{r.value:.3f}", _interval(r), f"{r.n} {r.unit}") for r in own],
    )
    wanted = {(SELECTED, OTHERS): "gain of selection, pretraining", (SELECTED, SCRATCH): "", (OTHERS, SCRATCH): ""}
    compared = []
    for row in rows:
        is_named = (row.arm, row.minus) in wanted
        if row.metric == METRIC and row.minus and (is_named or row.best_baseline or row.best_on_test):
            what = wanted.get((row.arm, row.minus)) or f"{row.arm} less {row.minus}"
            compared.append((what, f"{row.value:+.3f}", _interval(row), row.verdict))
    first, second = lda_accuracy(selected, seeds), lda_accuracy(others, seeds)
    welch = stats.ttest_ind(first, second, equal_var=False).confidence_interval()
    gain = f"{first.mean() - second.mean():+.3f}"
    compared.append(("gain of selection, decoding", gain, f"{welch.low:.3f} to {welch.high:.3f}", "Welch"))
    print_table(("difference in accuracy", "value", "95 % interval", "verdict"), compared)
    print(f"Shrunk LDA: {first.mean():.3f} in selected lines, {second.mean():.3f} in others.")
    print(f"{(time.process_time() - started) / 60:.1f} minutes of CPU.\n", flush=True)


def _interval(row: Row) -> str:
    return f"{row.low:.3f} to {row.high:.3f}" if row.has_interval else "-"


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="+", choices=sorted(WORLDS), default=["null", "noise_confounded"])
    parser.add_argument("--out", type=Path, default=Path("runs/worlds"), help="folder for data, runs and results")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="seeds of training and of splits")
    parser.add_argument("--pretrain-epochs", type=int, default=6)
    parser.add_argument("--finetune-epochs", type=int, default=10)
    arguments = parser.parse_args()
    for world in arguments.worlds:
        epochs = (arguments.pretrain_epochs, arguments.finetune_epochs)
        run_world(arguments.out / world, world, arguments.seeds, epochs)


if __name__ == "__main__":
    main()
