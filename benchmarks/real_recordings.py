"""Decoding of small real recordings, leave one repeat out, against simple decoders on the very same windows.

    python benchmarks/real_recordings.py --data ../shared/data/real --out runs/real [--only EXPERIMENT] [--folds 0]

`movie` and `movie_three`: frame number of natural movie one (900 frames) and three (3,600) in Allen experiment
501574836 (real events, simulated dF/F), repeats 0-7, the others being masked; repeat k tests, k + 1 validates, the
other six train. Windows are causal, one second long, and no decoder sees its earlier outputs. The score is the share of
test frames that are decoded within one second (30 movie frames).

`movie_both` and `movie_both_short`: natural movie one with two units per neuron, dF/F and the number of true events in
the frames just before (`BOTH`), for the model and for every baseline: what can a user expect whose files hold both
(Allen files; suite2p's F and spks)? Here the events are real and dF/F is simulated from them, noise included, and the
events were found with the help of the trace after them. `movie_both_short` reads nothing from more than one second
back; `movie_both` counts events of up to 0.3 s before its window of one second, too. Only when `--only` asks.

`gratings`: 12 directions in `v1_gratings_73cells` (real dF/F, 5 Hz), six repeats, four train. The order of the
directions is fixed, so a decoder of the second before the stimulus is the control for what the order alone gives away.

`responses`: 8 directions from the mean responses of 172 cells to 598 gratings (`allen_501724959_gratings`, real dF/F).
Time is not known, so there is no window for the model: baselines only, and running speed alone as the control. Of
fifteen repetitions of a condition three test; the twelve others choose, held out three at a time, and are all fitted.

`movie_cebra` and `gratings_cebra`: CEBRA with k nearest neighbours on the same windows, alone; it takes minutes where
the other decoders take seconds, so these two run only when `--only` asks.

The model is the mean of the probabilities of `--seeds` trainings that differ in their seed only. Its settings were
chosen on validation repeats. Baselines read the same windows of dF/F, of the model's own input (compressed: robust
z-scores through the inverse hyperbolic sine) and, for the movie, of the true events; each chooses its hyper-parameters
by cross-validation over all repeats but the test's, on which it is then fitted (docs/evaluation.md). `valid` is the
score on held-out repeats. A fold that is finished is read from its file in `--out`, so folds may run in parallel.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from poyo_ssl.config import FinetuneConfig, ModelConfig, OptimConfig, SplitConfig, WindowConfig
from poyo_ssl.data.recording import Recording, RecordingMetadata
from poyo_ssl.data.stimuli import Presentations
from poyo_ssl.data.task import Task
from poyo_ssl.data.units import fit_normalisation
from poyo_ssl.data.windows import WindowTable
from poyo_ssl.evaluation.baselines import (
    Decoder,
    Fold,
    cebra_decoder,
    choose,
    decode_held_out,
    frame_number_baselines,
    gratings_baselines,
    make_folds,
)
from poyo_ssl.evaluation.features import bin_features
from poyo_ssl.evaluation.statistics import t_interval
from poyo_ssl.sources.events import EventsSource
from poyo_ssl.training.predict import predict_windows
from poyo_ssl.training.run_folder import TrainedRun, decide_frame
from poyo_ssl.training.train import finetune

Scores = dict[str, float]

MOVIES = {"movie": "natural_movie_one", "movie_three": "natural_movie_three"}
CEBRA = ("movie_cebra", "gratings_cebra")
BOTH = {"movie_both": (10, 1.0, 10), "movie_both_short": (6, 0.8, 8)}
"""Frames whose events are counted, window in seconds, frames per step of the model's input."""
MOVIE_REPEATS, TOLERANCE = 8, 30
GRATING_REPEATS = 6
RESPONSE_FOLDS, RESPONSE_REPEATS = 5, 3
INPUTS = ("dF/F", "compressed", "events")
"""What baselines read: dF/F, the model's own compressed input, or the true spike events (movie only)."""
GRATING_WINDOWS = {"4 s of the stimulus": (4.0, 0.0), "first second": (1.0, 0.0), "second before": (1.0, -1.0)}
"""Length in seconds and start after the stimulus's onset."""

MODEL = ModelConfig(
    dim_head=32,
    self_heads=4,
    depth=1,
    num_latents_per_step=4,
    latent_step_s=1.0,
    start_end_tokens=False,
    value_embedding="per_unit",
    attention_dropout=0.0,
    ffn_dropout=0.5,
    residual_dropout=0.3,
    readout_dropout=0.5,
)
MOVIE_CONFIG = FinetuneConfig(
    task="frame_number",
    movies=(MOVIES["movie"],),
    value_skip_bins=3,
    model=MODEL,
    window=WindowConfig(
        window_s=1.0, bin_frames=10, normalisation="robust_asinh", noise=0.5, unit_dropout=False, units="all"
    ),
    # The value skip starts from measured prototypes; longer training did not improve it on validation (docs/log.md).
    optim=OptimConfig(learning_rate=1e-3, schedule="cosine", epochs=1, epoch_windows=640, batch_size=64),
    keep="last",
)
GRATINGS_CONFIG = FinetuneConfig(
    task="gratings",
    value_skip_bins=1,
    model=MODEL,
    window=WindowConfig(bin_frames=5, normalisation="robust_asinh", noise=0.3, unit_dropout=False, units="all"),
    optim=OptimConfig(learning_rate=1e-3, schedule="cosine", epochs=4, batch_size=16),
    keep="last",
)


def movie_split(fold: int) -> SplitConfig:
    """Repeat `fold` tests, the next one validates, the other six train."""
    valid = (fold + 1) % MOVIE_REPEATS
    train = tuple(r for r in range(MOVIE_REPEATS) if r not in (fold, valid))
    return SplitConfig(repeat_train=train, repeat_valid=(valid,), repeat_test=(fold,), num_clips=0)


def window_values(values: NDArray, table: WindowTable) -> NDArray:
    """``(W, T, N)`` windows of a table, cut from ``(frames, N)`` values."""
    return values[table.first_low[:, None] + np.arange(table.num_frames)]


def baseline_scores(
    baselines: Sequence[Decoder], values: NDArray, tables: Sequence[WindowTable], *, num_bins: int, tolerance: int
) -> dict[str, dict[str, Any]]:
    """Choose by cross-validation over the training and validation tables, fit on both, score the test."""
    parts = [(bin_features(window_values(values, table), num_bins), table.target) for table in tables]
    (x, y), (x_test, y_test) = (np.concatenate(own) for own in zip(*parts[:2], strict=True)), parts[2]
    repeat = np.concatenate([table.repeat for table in tables[:2]])
    folds = make_folds(y, repeat, np.arange(len(y)) >= len(tables[0]), unseen=False)
    return score_baselines(baselines, (x, y), (x_test, y_test), folds, tolerance=tolerance)


def score_baselines(
    baselines: Sequence[Decoder],
    known: tuple[NDArray, NDArray],
    test: tuple[NDArray, NDArray],
    folds: Sequence[Fold],
    *,
    tolerance: int = 0,
) -> dict[str, dict[str, Any]]:
    """Choose by cross-validation, fit on all that is known, and score both what the folds held out and the test."""
    held_out = known[1][np.concatenate([held for _, held in folds])]
    scores: dict[str, dict[str, Any]] = {}
    for baseline in baselines:
        _, settings, _ = choose(baseline, {"": known[0]}, known[1], folds)
        answers = decode_held_out(baseline, *known, folds, settings), baseline.fit(*known, settings).predict(test[0])
        valid, tested = (
            float((np.abs(found - true) <= tolerance).mean())
            for found, true in zip(answers, (held_out, test[1]), strict=True)
        )
        scores[baseline.name] = {"valid": valid, "test": tested, "chosen": {k: str(v) for k, v in settings}}
    return scores


def model_scores(
    recording: Recording,
    config: FinetuneConfig,
    tables: Sequence[WindowTable],
    *,
    folder: Path,
    seeds: int,
    tolerance: int,
) -> dict[str, dict[str, Any]]:
    """Train one run per seed; score each of them and the mean of their probabilities."""
    mass: list[Any] = [0.0] * len(tables)
    scores: dict[str, dict[str, Any]] = {}
    for seed in range(seeds):
        path = finetune(
            [recording], folder / f"seed{seed}", config=replace(config, seed=seed), overwrite=True, progress=False
        )
        run = TrainedRun.open(path)
        outputs = [predict_windows(run, [recording], table) for table in tables]
        mass = [summed + output for summed, output in zip(mass, outputs, strict=True)]
        scores[f"model seed {seed}"] = _score(outputs, tables, tolerance)
    return {"model": _score([summed / seeds for summed in mass], tables, tolerance), **scores}


def _score(probabilities: Sequence[NDArray], tables: Sequence[WindowTable], tolerance: int) -> dict[str, Any]:
    found = [decide_frame(torch.from_numpy(p), reach=tolerance).numpy() for p in probabilities]
    valid, test = (
        float((np.abs(answer - table.target) <= tolerance).mean()) for answer, table in zip(found, tables, strict=True)
    )
    return {"valid": valid, "test": test}


def baseline_inputs(recording: Recording, data: Task) -> dict[str, NDArray]:
    """dF/F as it is, and compressed as the model's input is, with statistics of the training domain alone."""
    dff = recording.read_dff(0, recording.num_frames)
    units = np.arange(recording.num_units)
    normalisation = fit_normalisation(
        recording, units, data.domains[recording.recording_id], method=MOVIE_CONFIG.window.normalisation
    )
    return {"dF/F": dff, "compressed": normalisation.apply(dff, units)}


def add_event_counts(recording: Recording, num_frames: int) -> Recording:
    """Return a recording with two units per neuron: dF/F, then its events in this frame and those just before it.

    The count starts anew where a repeat of a movie begins or ends, so that nothing passes from one part to the next.
    """
    assert recording.events is not None
    events = recording.events.dense(recording.num_frames, recording.num_units)
    edges = [np.array([recording.timestamps[0]])]
    for name in MOVIES.values():
        shown = recording.stimulus(name)
        number = shown.columns["frame"]
        edges += [shown.start[number == 0], shown.end[number == number.max()]]
    edge = np.unique(np.searchsorted(recording.timestamps, np.concatenate(edges)))
    frame = np.arange(recording.num_frames)
    first = np.maximum(frame + 1 - num_frames, edge[np.searchsorted(edge, frame, side="right") - 1])
    total = np.pad(np.cumsum(events, axis=0, dtype=np.float64), ((1, 0), (0, 0)))
    counts = (total[1:] - total[first]).astype(np.float32)
    return Recording(
        recording.recording_id,
        np.concatenate([recording.read_dff(0, recording.num_frames), counts], axis=1),
        recording.timestamps,
        recording.metadata,
        stimuli=recording.stimuli,
        epochs=recording.epochs,
        masked_domain=recording.masked_domain,
    )


def movie_fold(
    recording: Recording,
    config: FinetuneConfig,
    fold: int,
    out: Path,
    seeds: int,
    kinds: Sequence[str],
    *,
    cebra: bool = False,
) -> dict[str, Any]:
    """Scores of one test repeat: model on dF/F, baselines on some of dF/F, compressed dF/F and the events behind it.

    With `cebra`, CEBRA takes the place of the baselines, and there is no model.
    """
    config = replace(config, split=movie_split(fold))
    data = Task.of([recording], config)
    tables = [data.windows(part) for part in ("train", "valid", "test_repeat")]
    num_frames = len(data.class_values) if data.class_values is not None else 0
    inputs = baseline_inputs(recording, data)
    if recording.events is not None:
        inputs["events"] = recording.events.dense(recording.num_frames, recording.num_units)
    started = time.monotonic()
    folder = out / f"fold{fold}"
    scores = (
        {} if cebra else model_scores(recording, config, tables[1:], folder=folder, seeds=seeds, tolerance=TOLERANCE)
    )
    seconds = round(time.monotonic() - started)
    for kind in kinds:
        fresh = (
            (cebra_decoder("frame_number", num_classes=num_frames, tolerance=TOLERANCE),)
            if cebra
            else frame_number_baselines(num_frames=num_frames, tolerance=TOLERANCE)
        )
        found = baseline_scores(fresh, inputs[kind], tables, num_bins=3, tolerance=TOLERANCE)
        scores |= {f"{name}, {kind}": score for name, score in found.items()}
    return {"fold": fold, "windows": [len(table) for table in tables], "train_seconds": seconds, "scores": scores}


def gratings_recording(path: Path) -> Recording:
    """Make a recording from the arrays of `v1_gratings_73cells`."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file.items())
    dff = np.ascontiguousarray(arrays["dff"].T, dtype=np.float32)
    timestamps = np.arange(len(dff)) / float(arrays["fps"])
    directions, number = np.unique(arrays["direction_deg"], return_inverse=True)
    columns = {
        "orientation": directions[number],
        "temporal_frequency": np.full(len(number), np.nan),
        "orientation_id": number.astype(np.int64),
        "blank_sweep": np.zeros(len(number), bool),
        "repeat": arrays["repeat"].astype(np.int64),
    }
    shown = Presentations.from_frames(
        "drifting_gratings", timestamps, arrays["stim_on_frame"], arrays["stim_off_frame"], columns
    )
    metadata = RecordingMetadata("v1_gratings_73cells", origin="real dF/F")
    return Recording("v1_gratings_73cells", dff, timestamps, metadata, stimuli={"drifting_gratings": shown})


def gratings_fold(
    recording: Recording, fold: int, out: Path, seeds: int, kinds: Sequence[str], *, cebra: bool = False
) -> dict[str, Any]:
    """Scores of one test repeat in each kind of window; with `cebra`, of CEBRA alone."""
    scores: dict[str, dict[str, Any]] = {}
    for name, (window_s, lag_s) in GRATING_WINDOWS.items():
        split = SplitConfig(gratings_test_repeats=(fold,), gratings_valid_repeats=((fold + 1) % GRATING_REPEATS,))
        window = replace(GRATINGS_CONFIG.window, window_s=window_s, lag_s=lag_s)
        config = replace(GRATINGS_CONFIG, split=split, window=window)
        data = Task.of([recording], config)
        tables = [data.windows(part) for part in ("train", "valid", "test_gratings")]
        folder = out / f"fold{fold}" / name.replace(" ", "_")
        found = {} if cebra else model_scores(recording, config, tables[1:], folder=folder, seeds=seeds, tolerance=0)
        num_classes = len(data.class_values) if data.class_values is not None else 0
        inputs = baseline_inputs(recording, data)
        for kind in (kind for kind in kinds if kind in inputs):
            fresh = (
                (cebra_decoder("gratings", num_classes=num_classes),)
                if cebra
                else gratings_baselines(num_classes=num_classes)
            )
            of_kind = baseline_scores(fresh, inputs[kind], tables, num_bins=1, tolerance=0)
            found |= {f"{arm} ({kind})": score for arm, score in of_kind.items()}
        scores |= {f"{arm}, {name}": score for arm, score in found.items()}
    return {"fold": fold, "windows": [len(table) for table in tables], "scores": scores}


def response_fold(path: Path, fold: int) -> dict[str, Any]:
    """Scores of three test repetitions from the mean responses, and from running speed alone."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file.items())
    shown = ~arrays["blank"]
    part_of = (arrays["repetition"][shown] // RESPONSE_REPEATS - fold) % RESPONSE_FOLDS  # 0 tests, 1 validates
    classes, target = np.unique(arrays["orientation"][shown], return_inverse=True)
    inputs = {"dF/F": arrays["mean_dff_percent"][shown], "running": arrays["abs_mean_running_cm_s"][shown, None]}
    scores: dict[str, dict[str, Any]] = {}
    for kind, values in inputs.items():
        known, test = ((values[rows], target[rows]) for rows in (part_of > 0, part_of == 0))
        group = part_of[part_of > 0]
        folds = [(np.flatnonzero(group != held), np.flatnonzero(group == held)) for held in np.unique(group)]
        found = score_baselines(gratings_baselines(num_classes=len(classes)), known, test, folds)
        scores |= {f"{name}, {kind}": score for name, score in found.items()}
    return {
        "fold": fold,
        "windows": [int((part_of > 1).sum()), *(int((part_of == i).sum()) for i in (1, 0))],
        "scores": scores,
    }


def table_of(results: Sequence[Mapping[str, Any]]) -> str:
    """Lay out one row per decoder: test score of every repeat, mean with interval, mean on validation repeats."""
    folds = [result["fold"] for result in results]
    lines = [f"{'test repeat':<34}" + "".join(f"{fold:>7}" for fold in folds) + "   mean [95 %]             valid"]
    for name in results[0]["scores"]:
        test, valid = (np.array([r["scores"][name][part] for r in results]) for part in ("test", "valid"))
        interval = t_interval(test)
        row = f"{name:<34}" + "".join(f"{value:7.3f}" for value in test)
        lines.append(f"{row}   {interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]   {valid.mean():.3f}")
    return "\n".join(lines)


def gains(results: Sequence[Mapping[str, Any]], model: str, against: Sequence[str]) -> dict[str, str]:
    """Paired gain of a model over decoders, and over the best of them by mean test score."""

    def of(name: str) -> list[float]:
        return [result["scores"][name]["test"] for result in results]

    best = max(against, key=lambda name: float(np.mean(of(name))))
    found = {name: str(t_interval(np.subtract(of(model), of(name)))) for name in against}
    return found | {f"best of these ({best})": found[best]}


def run_folds(
    name: str, compute: Callable[[int], dict[str, Any]], folds: Sequence[int], out: Path
) -> list[dict[str, Any]]:
    """Return the results of folds; those with a file are read from it."""
    results = []
    for fold in folds:
        path = out / name / f"fold{fold}.json"
        if not path.exists():
            result = compute(fold)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(result, indent=1) + "\n")
        results.append(json.loads(path.read_text()))
        print(f"{name} fold {fold}: " + json.dumps(_short(results[-1])), flush=True)
    return results


def _short(result: Mapping[str, Any]) -> Scores:
    return {name: round(score["test"], 3) for name, score in result["scores"].items() if "seed" not in name}


def report(
    name: str, results: Sequence[Mapping[str, Any]], comparisons: Mapping[str, tuple[str, Sequence[str]]]
) -> dict[str, Any]:
    """Print the table and the paired gains of a decoder over others; return what goes into the JSON file."""
    print(f"\n{name}: leave one repeat out\n{table_of(results)}")
    compared = {title: gains(results, model, against) for title, (model, against) in comparisons.items()}
    for title, found in compared.items():
        print(f"\npaired gain of {title}")
        for against, interval in found.items():
            print(f"  {against:<40} {interval}")
    return {"folds": list(results), "gains": compared}


def movie_experiment(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Decode one movie of the Allen recording."""
    cebra = name in CEBRA
    movie = MOVIES["movie" if name in BOTH else name.removesuffix("_cebra")]
    config, kinds = replace(MOVIE_CONFIG, movies=(movie,)), args.inputs
    prepared = args.out / "recordings" / "501574836.h5"
    if not prepared.exists():
        EventsSource().read(args.data / "allen_501574836").save(prepared)
    recording = Recording.open(prepared)
    if name in BOTH:
        counted, window_s, bin_frames = BOTH[name]
        recording = add_event_counts(recording, counted)
        config = replace(config, window=replace(config.window, window_s=window_s, bin_frames=bin_frames))
        kinds = [kind for kind in kinds if kind != "events"]
    results = run_folds(
        name,
        lambda fold: movie_fold(recording, config, fold, args.out / name, args.seeds, kinds, cebra=cebra),
        args.folds or range(MOVIE_REPEATS),
        args.out,
    )
    comparisons: dict[str, tuple[str, Sequence[str]]] = {}
    for kind in () if cebra else kinds:
        comparisons[f"the model over kNN and naive Bayes, {kind}"] = (
            "model",
            [f"{arm}, {kind}" for arm in ("knn", "naive_bayes")],
        )
        others = [arm for arm in results[0]["scores"] if arm.endswith(f", {kind}")]
        comparisons[f"the model over all baselines, {kind}"] = ("model", others)
    return report(name, results, comparisons)


def gratings_experiment(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Decode the twelve directions."""
    cebra = name in CEBRA
    recording = gratings_recording(args.data / "v1_gratings_73cells" / "v1_gratings_73cells.npz")
    results = run_folds(
        name,
        lambda fold: gratings_fold(recording, fold, args.out / name, args.seeds, args.inputs, cebra=cebra),
        args.folds or range(GRATING_REPEATS),
        args.out,
    )
    kinds = [kind for kind in args.inputs if kind != "events"]
    comparisons = {
        f"the model, {window}, over": (f"model, {window}", [f"shrunk_lda ({kind}), {window}" for kind in kinds])
        for window in GRATING_WINDOWS
        if kinds and not cebra
    }
    return report(name, results, comparisons)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the real recordings")
    parser.add_argument("--out", type=Path, required=True, help="folder for recordings, runs and results")
    experiments = [*MOVIES, *BOTH, "gratings", "responses", *CEBRA]
    parser.add_argument("--only", choices=experiments, help="one of the experiments")
    parser.add_argument("--folds", type=int, nargs="+", help="test repeats; all by default")
    parser.add_argument("--seeds", type=int, default=2, help="trainings whose probabilities are averaged")
    parser.add_argument(
        "--inputs", nargs="*", choices=INPUTS, default=INPUTS, help="what the baselines read; none: no baselines"
    )
    args = parser.parse_args()
    summary: dict[str, Any] = {"seeds": args.seeds}
    asked = [args.only] if args.only else [*MOVIES, "gratings", "responses"]
    for name in asked:
        if name.startswith("movie"):
            summary[name] = movie_experiment(name, args)
        elif name.startswith("gratings"):
            summary[name] = gratings_experiment(name, args)
        else:
            path = args.data / "allen_501724959_gratings" / "trials.npz"
            folds = args.folds or range(RESPONSE_FOLDS)
            results = run_folds(name, lambda fold, path=path: response_fold(path, fold), folds, args.out)
            summary[name] = report(name, results, {})
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{args.only or 'real'}.json").write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
