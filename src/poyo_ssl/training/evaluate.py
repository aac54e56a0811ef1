"""Scores of trained runs beside the simple baselines, on the very same windows."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from poyo_ssl.config import FinetuneConfig
from poyo_ssl.data.recording import Recording
from poyo_ssl.data.windows import WindowTable
from poyo_ssl.errors import ConfigError, PoyoError
from poyo_ssl.evaluation.baselines import (
    Baseline,
    frame_baselines,
    frame_number_baselines,
    gratings_baselines,
    mean_training_frame,
)
from poyo_ssl.evaluation.features import bin_features
from poyo_ssl.evaluation.predictions import Predictions
from poyo_ssl.evaluation.scores import score_table
from poyo_ssl.evaluation.statistics import Interval, animal_interval, paired_animal_interval
from poyo_ssl.training import run_folder
from poyo_ssl.training.predict import TestPart, open_task, predict_test, test_part
from poyo_ssl.training.restore import TrainedRun
from poyo_ssl.training.tasks import TaskData, frame_duration_s, task_windows

BaselineSet = Literal["all", "core", "none"]

# The baselines that EVALUATION.md asks for most often and that fit in seconds.
CORE = ("majority", "shrunk_lda", "mean_frame", "knn_lookup", "ridge", "knn", "naive_bayes")
BASELINE_BINS = 3


@dataclass(frozen=True)
class Scores:
    """What an evaluation found.

    Attributes
    ----------
    rows : list of dict
        ``arm, task, split, metric, value, low, high, n``; also written to ``results.json``.
    tables : dict
        Score table (one row per recording, repeat and metric) by (task, split, arm).
    """

    rows: list[dict[str, Any]]
    tables: Mapping[tuple[str, str, str], pd.DataFrame]


def evaluate(
    runs: Mapping[str, Path | str] | Sequence[Path | str],
    out: Path | str,
    *,
    data: Any = None,
    baselines: BaselineSet = "all",
    devices: int = 1,
    nodes: int = 1,
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Scores:
    """Predict every test part with every run and baseline, and score them against each other.

    Parameters
    ----------
    runs : mapping or sequence
        Folders of fine-tuned runs, by arm or named after their folders; a predictions file counts as an arm, too.
    out : path
        Results folder: ``predictions/*.h5`` and ``results.json``.
    data : path or sequence of Recording, optional
        Where the recordings are now; by default where the runs found them.
    baselines : {'all', 'core', 'none'}
        Which baselines to fit.
    devices, nodes : int
        Processes per node, and nodes, for the runs' predictions.
    seed : int
        Seed of the bootstrap that intervals over ten or more animals use.
    overwrite : bool
        Replace results that are there.
    progress : callable, optional
        Called with a line of text before each step.

    Returns
    -------
    Scores
        Rows with intervals over animals (EVALUATION.md "Statistics") and score tables.

    Raises
    ------
    PoyoError
        If a run is incomplete, its data are missing, or two runs of a task have different test windows.
    """
    tell = progress or _say_nothing
    out = Path(out)
    first = run_folder.process_rank() == 0
    if first:
        run_folder.check_new(out, overwrite=overwrite)
    named = runs if isinstance(runs, Mapping) else {Path(run).stem: run for run in runs}
    if len(named) != len(runs):
        raise ConfigError("two runs with the same folder name", fix="name the arms")
    models = {arm for arm, run in named.items() if not Path(run).is_file()}
    known: dict[tuple[str, str], list[Predictions]] = {}
    parts: dict[tuple[str, str], TestPart] = {}
    for arm, run in named.items():
        if Path(run).is_file():
            predictions = Predictions.load(run)
            known.setdefault((predictions.task, predictions.split), []).append(predictions)
            models.add(predictions.arm)
            continue
        tell(f"predicting with {arm}")
        for part, predictions in _predict_run(arm, run, data, devices=devices, nodes=nodes):
            key = (part.config.task, part.split)
            _check_same(parts.setdefault(key, part), part, arm)
            known.setdefault(key, []).append(predictions)
    if baselines != "none" and first:
        for task in dict.fromkeys(task for task, _ in parts):
            of_task = [part for (name, _), part in parts.items() if name == task]
            columns = TrainedRun.open(next(r for r in named.values() if _is_run_of(r, task))).columns
            for predictions in _fit_baselines(of_task, columns, baselines, tell):
                known[(task, predictions.split)].append(predictions)
    if not first:
        return Scores([], {})
    folder = run_folder.new_folder(out, overwrite=overwrite)
    (folder / "predictions").mkdir()
    for (task, split), entries in known.items():
        for predictions in entries:
            predictions.save(folder / "predictions" / f"{predictions.arm.replace(' ', '_')}-{task}-{split}.h5")
    scores = score(known, models=models, rng=np.random.default_rng(seed))
    run_folder.write_beside(folder / "results.json", json.dumps(run_folder.plain(scores.rows), indent=1))
    run_folder.write_beside(
        folder / "evaluation.json",
        json.dumps({"runs": run_folder.plain(dict(named)), "versions": run_folder.versions(), "seed": seed}, indent=1),
    )
    return scores


def _predict_run(
    arm: str, run: Path | str, data: Any, *, devices: int, nodes: int
) -> Iterator[tuple[TestPart, Predictions]]:
    """Predict every test part of a run."""
    model = TrainedRun.open(run)
    task_data, config, _ = open_task(run, data)
    means = _mean_frames(task_data, config)
    for name in task_data.tests:
        part = test_part(task_data, config, name)
        predictions = predict_test(model, part, arm=arm, devices=devices, nodes=nodes)
        predictions.mean_frames = means
        yield part, predictions


def _is_run_of(run: Path | str, task: str) -> bool:
    return Path(run).is_dir() and run_folder.read_json(Path(run), "run.json").get("task") == task


def _check_same(reference: TestPart, part: TestPart, arm: str) -> None:
    """Every arm of a task is scored on the same targets, or the comparison means nothing."""
    a, b = reference.table, part.table
    ids = [[r.recording_id for r in p.data.recordings] for p in (reference, part)]
    if ids[0] != ids[1] or len(a) != len(b) or not np.array_equal(a.target_time, b.target_time):
        raise ConfigError(
            f"arm '{arm}' has other test windows ({len(b)}) than the first of its task ({len(a)})",
            fix="train the arms on the same recordings with the same window and split settings",
        )


def _mean_frames(data: TaskData, config: FinetuneConfig) -> dict[str, NDArray]:
    """``(H, W)`` mean training frame of each recording; empty unless the task is frames."""
    if data.frame_bank is None:
        return {}
    table = task_windows(data, config, "train")
    return {
        recording.recording_id: mean_training_frame(data.frame_bank, table.target[table.recording_index == index])
        for index, recording in enumerate(data.recordings)
    }


def window_features(
    recording: Recording,
    columns: NDArray[np.int64],
    table: WindowTable,
    rows: NDArray[np.int64],
    *,
    num_bins: int = BASELINE_BINS,
    signal: NDArray | None = None,
) -> NDArray[np.float64]:
    """Return ``(len(rows), C x bins)`` time-binned activity of the windows, as the baselines see it.

    Parameters
    ----------
    recording : Recording
        Where the windows lie.
    columns : ndarray
        ``(C,)`` units.
    table : WindowTable
        The windows.
    rows : ndarray
        Rows of the table, all of this recording.
    num_bins : int
        Time bins per window; no more than it has frames.
    signal : ndarray, optional
        ``(T, N)`` in the place of dF/F, for example the recording's events.
    """
    source = recording.dff if signal is None else signal
    num_bins = min(num_bins, table.num_frames)
    features = np.empty((len(rows), len(columns) * num_bins))
    for start in range(0, len(rows), 256):
        block = rows[start : start + 256]
        frames = table.first_low[block][:, None] + np.arange(table.num_frames)
        low, high = int(frames.min()), int(frames.max()) + 1
        values = np.asarray(source[low:high], np.float32)[:, columns]
        features[start : start + len(block)] = bin_features(values[frames - low], num_bins)
    return features


def _fit_baselines(
    parts: Sequence[TestPart], columns: Mapping[str, NDArray], which: BaselineSet, tell: Callable[[str], None]
) -> list[Predictions]:
    """Fit every baseline on every recording and, for frame numbers, movie; predict all test parts."""
    data, config = parts[0].data, parts[0].config
    train, valid = (task_windows(data, config, part) for part in ("train", "valid"))
    found: dict[tuple[str, str], NDArray] = {}
    means = _mean_frames(data, config)
    for index, recording in enumerate(data.recordings):
        units = columns[recording.recording_id]

        def features(
            table: WindowTable, recording: Recording = recording, index: int = index, units: NDArray = units
        ) -> Any:
            rows = np.flatnonzero(table.recording_index == index)
            return rows, window_features(recording, units, table, rows), table.target[rows]

        (_, x_train, y_train), (_, x_valid, y_valid) = features(train), features(valid)
        tests = {part.name: features(part.table) for part in parts}
        for baseline in make_baselines(data, config, recording, which):
            tell(f"fitting {baseline.name} on {recording.recording_id}")
            baseline.fit(x_train, y_train, x_valid, y_valid)
            for part in parts:
                rows, x_test, _ = tests[part.name]
                prediction = baseline.predict(x_test)
                whole = found.setdefault(
                    (baseline.name, part.name), np.zeros((len(part.table), *prediction.shape[1:]), prediction.dtype)
                )
                whole[rows] = prediction
    filled = []
    for (name, part_name), prediction in found.items():
        part = next(part for part in parts if part.name == part_name)
        predictions = part.to_predictions(prediction, arm=name.replace("_", " "))
        predictions.mean_frames = means
        filled.append(predictions)
    return filled


def make_baselines(
    data: TaskData, config: FinetuneConfig, recording: Recording, which: BaselineSet
) -> tuple[Baseline, ...]:
    """Return fresh baselines of a task for one recording."""
    if config.task == "gratings":
        assert data.class_values is not None
        everything = gratings_baselines(num_classes=len(data.class_values))
    else:
        step = frame_duration_s(recording.stimulus(config.movies[0]))
        tolerance = round(1.0 / step)
        if config.task == "frames":
            assert data.frame_bank is not None
            everything = frame_baselines(data.frame_bank, tolerance=tolerance)
        else:
            assert data.class_values is not None
            everything = frame_number_baselines(num_frames=len(data.class_values), tolerance=tolerance)
    return tuple(b for b in everything if which == "all" or b.name in CORE)


def score(
    known: Mapping[tuple[str, str], Sequence[Predictions]], *, models: Collection[str], rng: np.random.Generator
) -> Scores:
    """Turn predictions into rows with intervals: of each arm, and of each model less every arm after it.

    Parameters
    ----------
    known : mapping
        Predictions by (task, split), models first.
    models : collection of str
        Arms that are compared with the others; the rest are baselines.
    rng : numpy.random.Generator
        For the bootstrap over ten or more animals.
    """
    rows: list[dict[str, Any]] = []
    tables: dict[tuple[str, str, str], pd.DataFrame] = {}
    for (task, split), entries in known.items():
        for predictions in entries:
            tables[(task, split, predictions.arm)] = score_table(predictions)
        arms = [predictions.arm for predictions in entries]
        for arm in arms:
            table = tables[(task, split, arm)]
            for metric in dict.fromkeys(table["metric"]):
                rows.append(_row(arm, task, split, metric, animal_interval(table, metric, rng=rng)))
        for arm in arms:
            if arm in models:
                if task == "gratings":
                    num_classes = len(entries[0].class_values)
                    rows += _against_chance(tables[(task, split, arm)], arm, split, num_classes, rng)
                rows += _paired_rows(tables, task, split, arm, arms, rng)
    return Scores(rows, tables)


def _paired_rows(
    tables: Mapping[tuple[str, str, str], pd.DataFrame],
    task: str,
    split: str,
    arm: str,
    arms: Sequence[str],
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    rows = []
    table = tables[(task, split, arm)]
    for other in arms[arms.index(arm) + 1 :]:
        for metric in dict.fromkeys(table["metric"]):
            interval = paired_animal_interval(table, tables[(task, split, other)], metric, rng=rng)
            rows.append(_row(arm, task, split, f"{metric} minus {other}", interval))
    return rows


def _against_chance(
    table: pd.DataFrame, arm: str, split: str, num_classes: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Chance as an arm that scores 1 / classes everywhere, so that it is weighed like any other."""
    interval = paired_animal_interval(table, table.assign(value=1 / num_classes), "accuracy", rng=rng)
    return [_row(arm, "gratings", split, "accuracy minus chance", interval)]


def _row(arm: str, task: str, split: str, metric: str, interval: Interval) -> dict[str, Any]:
    # NaN is no JSON; an interval that one animal cannot give is null.
    low, high = (None if np.isnan(bound) else float(bound) for bound in (interval.low, interval.high))
    facts = {"arm": arm, "task": task, "split": split, "metric": metric}
    return facts | {"value": float(interval.value), "low": low, "high": high, "n": interval.n}


def read_results(folder: Path | str) -> list[dict[str, Any]]:
    """Read the rows of a results folder.

    Raises
    ------
    PoyoError
        If there are none.
    """
    path = Path(folder) / "results.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise PoyoError(f"no results in {folder} ({error})", fix="run 'poyo-ssl evaluate' first") from None


def _say_nothing(text: str) -> None:
    del text
