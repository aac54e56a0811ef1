"""Scores of trained runs beside the simple baselines, on the very same windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poyo_ssl import files
from poyo_ssl.config import FinetuneConfig
from poyo_ssl.data.splits import PartName
from poyo_ssl.data.task import Task, frame_duration_s
from poyo_ssl.data.windows import Normalisation, UnitSet, WindowTable
from poyo_ssl.errors import ConfigError
from poyo_ssl.evaluation.baselines import (
    BaselineSet,
    KnownWindows,
    Reading,
    load_cebra,
    make_arms,
    shift_windows,
)
from poyo_ssl.evaluation.features import RecordingWindows, activity_inputs
from poyo_ssl.evaluation.frame_images import FrameStack, mean_training_frame
from poyo_ssl.evaluation.leaderboard import MARGIN, ScoredFile, Scores, save_into, summarise, write_results
from poyo_ssl.evaluation.predictions import ArmKind, Predictions
from poyo_ssl.evaluation.scores import headline_score
from poyo_ssl.training import run_folder
from poyo_ssl.training.predict import TaskOpener, predict_windows
from poyo_ssl.training.run_folder import TrainedRun, decide


def evaluate(
    runs: Mapping[str, Path | str | Sequence[Path | str]] | Sequence[Path | str],
    out: Path | str,
    *,
    data: Any = None,
    baselines: BaselineSet = "all",
    controls: bool = True,
    devices: int = 1,
    nodes: int = 1,
    seed: int = 0,
    margin: float = MARGIN,
    overwrite: bool = False,
    allow_unfinished: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Scores:
    """Predict every test part with every run and baseline, and score them against each other.

    Parameters
    ----------
    runs : mapping or sequence
        Folders of fine-tuned runs, by arm or named after their folders; several runs of one arm are its seeds. A
        predictions file counts as a run too, of the arm that it names.
    out : path
        Results folder: ``predictions/*.h5`` and ``results.json``.
    data : path or sequence of Recording, optional
        Where the recordings are now; by default where the runs found them.
    baselines : {'all', 'core', 'none', 'with_cebra'}
        Which baselines to fit; 'all' includes controls and ceilings of the data, 'with_cebra' CEBRA's embedding beside
        them (the package cebra must be installed).
    controls : bool
        Predict with shuffled neurons, shifted activity and untrained weights of every run, too
        (`poyo_ssl.evaluation.evaluate`).
    devices, nodes : int
        Processes per node, and nodes, for the runs' predictions.
    seed : int
        Seed of the controls, and of the bootstrap that intervals over ten or more animals use.
    margin : float
        Largest difference between scores of 0 to 1 that counts as none, for "equivalent" and "no worse".
    overwrite : bool
        Replace results that are there.
    allow_unfinished : bool
        Also evaluate runs whose training was stopped or still goes on.
    progress : callable, optional
        Called with a line of text before each step.

    Returns
    -------
    Scores
        Rows with intervals over animals (docs/statistics.md) and score tables.

    Raises
    ------
    PoyoError
        If a run is incomplete, its data are missing, two runs of a task have different test windows, or CEBRA is
        wanted and not installed.
    """
    tell = progress or (lambda _: None)
    out = Path(out)
    first = run_folder.process_rank() == 0
    named = _name_runs(runs)
    inputs = [*(run for _, run in named), *files.paths_of(data)]
    if first:
        files.check_new(out, "results", overwrite=overwrite, inputs=inputs)
    if baselines == "with_cebra":
        # Said before the runs predict, which can take long.
        load_cebra()
    read = {} if baselines == "none" else _read_by_runs(named)
    open_task = TaskOpener(data, allow_unfinished=allow_unfinished)
    tested: dict[tuple[str, PartName], Task] = {}
    known: list[Predictions] = []
    for arm, run in named:
        if Path(run).is_file():
            known.append(Predictions.load(run))
            continue
        tell(f"predicting with {arm}")
        task = open_task(run)
        for part in task.tests:
            _check_same(tested.setdefault((task.name, part), task), task, part, arm)
        known += _predict_run(arm, Path(run), task, seed=seed if controls else None, devices=devices, nodes=nodes)
    if not first:
        return Scores([], {})
    if baselines != "none":
        for task in {id(task): task for task in tested.values()}.values():
            for validation in task.validations:
                tests = [p for p in task.tests if task.validation_of(p) == validation and tested[task.name, p] is task]
                if tests:
                    known += _fit_arms(task, validation, tests, read, baselines, tell, seed=seed)
    tell("scoring")
    scores = summarise([ScoredFile.of(p) for p in known], rng=np.random.default_rng(seed), margin=margin)
    with files.new_folder(out, "results", overwrite=overwrite, inputs=inputs) as folder:
        for p in known:
            save_into(folder, p)
        write_results(folder, scores, runs=[{"arm": arm, "run": run} for arm, run in named], seed=seed, margin=margin)
    return scores


def _name_runs(
    runs: Mapping[str, Path | str | Sequence[Path | str]] | Sequence[Path | str],
) -> list[tuple[str, Path | str]]:
    """Return (arm, run) of every run."""
    if not isinstance(runs, Mapping):
        names = [Path(run).stem for run in runs]
        if len(set(names)) != len(names):
            raise ConfigError("two runs with the same folder name", fix="name the arms")
        return list(zip(names, runs, strict=True))
    several = {arm: [own] if isinstance(own, (str, Path)) else list(own) for arm, own in runs.items()}
    return [(arm, run) for arm, own in several.items() for run in own]


@dataclass
class _Read:
    """What the runs of a task read of one recording: baselines must read the same units."""

    arm: str  # the first of them
    columns: NDArray[np.int64]
    normalisations: dict[tuple[str, int], Normalisation] = field(default_factory=dict)  # by method and frames per bin


def _read_by_runs(named: Sequence[tuple[str, Path | str]]) -> dict[tuple[str, str], _Read]:
    """Gather what the runs read, by task and recording id."""
    found: dict[tuple[str, str], _Read] = {}
    for arm, folder in named:
        if Path(folder).is_file():
            continue
        task = str(files.read_json(Path(folder), "run.json").get("task"))
        window = run_folder.read_settings(folder).config.window
        neurons = run_folder.read_neurons(folder)
        for recording, columns in sorted(neurons.columns.items()):
            read = found.setdefault((task, recording), _Read(arm, columns))
            if not np.array_equal(read.columns, columns):
                raise ConfigError(
                    f"arms '{read.arm}' and '{arm}' decode from {len(read.columns)} and {len(columns)} neurons of "
                    f"{recording}, not the same ones",
                    fix="evaluate them apart, each beside baselines on its neurons, or pass --baselines none",
                )
            fitted = neurons.normalisation[recording]
            read.normalisations.setdefault((window.normalisation, window.bin_frames), fitted)
    return found


def _check_same(reference: Task, task: Task, part: str, arm: str) -> None:
    """Every arm of a task is scored on the same targets, or the comparison means nothing."""
    a, b = (of.windows(part) for of in (reference, task))
    ids = [[r.recording_id for r in of.recordings] for of in (reference, task)]
    if ids[0] != ids[1] or not np.array_equal(a.target_time, b.target_time):
        raise ConfigError(
            f"arm '{arm}' has other test windows ({len(b)}) than the first of its task ({len(a)})",
            fix="train the arms on the same recordings with the same window and split settings",
        )


def _predict_run(
    arm: str, folder: Path, task: Task, *, seed: int | None, devices: int, nodes: int
) -> Iterator[Predictions]:
    """Predict every test part, each with the weights that its validation part chose, and with controls.

    Without a `seed` there are no controls; a run that is a control itself has none.
    """
    means = _mean_frames(task)
    by_weights: dict[str, list[PartName]] = {}
    for part in task.tests:
        by_weights.setdefault(run_folder.weights_for(folder, task.validation_of(part)), []).append(part)
    for parts in by_weights.values():
        # The task was opened, so the run is finished or need not be.
        run = TrainedRun.open(folder, validation=task.validation_of(parts[0]), allow_unfinished=True)
        is_control = run.has_random_encoder
        facts: dict[str, Any] = {"model_id": run.model_id(), "seed": run.config.seed, "mean_frames": means}
        controls = [] if seed is None or is_control else _make_controls(run, task, seed)
        for part in parts:
            for control in (None, *controls):
                model = control.run if control else run
                table = task.windows(part)
                if control and control.shift_seed:
                    table = shift_windows(table, np.random.default_rng(control.shift_seed))
                output = predict_windows(
                    model,
                    task.recordings,
                    table,
                    units=control.units if control else None,
                    devices=devices,
                    nodes=nodes,
                )
                named: dict[str, Any] = {
                    "arm": f"{arm} ({control.name})" if control else arm,
                    "kind": "control" if control or is_control else "model",
                }
                yield assemble(task, part, **_decode(model, output), **named, **facts)


def _decode(run: TrainedRun, output: NDArray) -> dict[str, NDArray]:
    """Name a model's outputs as `Predictions` does: frames, positions or probabilities."""
    if run.task == "frames":
        return {"prediction": output}
    assert run.class_values is not None
    if output.ndim == 1:
        return {"prediction": np.round(output * (len(run.class_values) - 1)).astype(int)}
    return {"prediction": decide(run, output), "probabilities": output, "class_values": run.class_values}


@dataclass(frozen=True)
class _Control:
    """A run that has lost what it decodes by."""

    name: str
    run: TrainedRun
    units: list[UnitSet] | None = None
    shift_seed: tuple[int, ...] = ()


def _make_controls(run: TrainedRun, task: Task, seed: int) -> list[_Control]:
    """Make the controls of a run, from a seed together with the run's own.

    Shuffled neurons: every neuron's activity is read as that of another one of its recording, the same one in all
    windows. Shifted activity: within each repeat the windows are moved on circularly. Untrained: weights drawn anew.
    """
    place = (seed, run.config.seed)
    rng = np.random.default_rng(place)
    untrained = run.untrained(int(np.random.SeedSequence([*place, 2]).generate_state(1)[0]))
    return [
        _Control("shuffled neurons", run, units=[shuffle_units(run.unit_set(r), rng) for r in task.recordings]),
        _Control("shifted activity", run, shift_seed=(*place, 1)),
        _Control("untrained", untrained),
    ]


def shuffle_units(units: UnitSet, rng: np.random.Generator) -> UnitSet:
    """Give every neuron the place of another in the vocabulary; none keeps its own, unless it is the only one.

    Values stay normalised with their own neuron's moments: what the model sees is as large as ever.
    """
    order = rng.permutation(len(units.rows))
    rows = np.empty_like(units.rows)
    # A cycle through all neurons in random order.
    rows[order] = units.rows[np.roll(order, 1)]
    return replace(units, rows=rows)


def _mean_frames(task: Task) -> dict[str, NDArray]:
    """``(H, W)`` mean training frame of each recording; empty unless the task is frames."""
    if task.frame_bank is None:
        return {}
    table = task.windows("train")
    return {
        recording.recording_id: mean_training_frame(task.frame_bank, table.target[table.recording_index == index])
        for index, recording in enumerate(task.recordings)
    }


@dataclass
class _ArmPredictions:
    """What one baseline, control or ceiling predicted so far, recording by recording."""

    kind: ArmKind
    of_test: dict[PartName, dict[int, NDArray]] = field(default_factory=dict)  # by recording index
    held_out: list[tuple[WindowTable, NDArray]] = field(default_factory=list)  # of baselines: windows, answers


def _fit_arms(
    task: Task,
    validation: PartName,
    tests: Sequence[PartName],
    read: Mapping[tuple[str, str], _Read],
    which: BaselineSet,
    tell: Callable[[str], None],
    *,
    seed: int,
) -> list[Predictions]:
    """Fit every baseline, control and ceiling on every recording; predict the tests that a validation part serves."""
    stack = None if task.frame_bank is None else FrameStack(task.frame_bank)
    found: dict[str, _ArmPredictions] = {}
    for index, recording in enumerate(task.recordings):
        units = read[task.name, recording.recording_id]
        train, valid, *tested = (
            RecordingWindows.of(recording, units.columns, task.windows(part), index)
            for part in ("train", validation, *tests)
        )
        known = KnownWindows.of(train, valid, unseen=validation.is_unseen)
        arms = make_arms(
            task.name,
            known.windows,
            which=which,
            inputs=activity_inputs(task.num_frames, len(units.columns), units.normalisations),
            num_classes=0 if task.class_values is None else len(task.class_values),
            frames=stack,
            tolerance=_tolerance(task, index),
            seed=seed,
        )
        for arm in arms:
            wanted = [
                (part, windows)
                for part, windows in zip(tests, tested, strict=True)
                if part.is_unseen or not getattr(arm, "only_unseen_frames", False)
            ]
            if not wanted:
                continue
            tell(f"fitting {arm.name} on {recording.recording_id}")
            arm.fit(known)
            own = found.setdefault(arm.name, _ArmPredictions(arm.kind))
            for part, windows in wanted:
                own.of_test.setdefault(part, {})[index] = arm.predict(windows)
            if arm.kind == "baseline":
                assert isinstance(arm, Reading)
                own.held_out.append((known.windows.table.select(known.held_out), arm.held_out))
    means = _mean_frames(task)
    filled = []
    for name, own in found.items():
        facts: dict[str, Any] = {"arm": name.replace("_", " "), "kind": own.kind, "mean_frames": means}
        for part, by_recording in own.of_test.items():
            # A control that only some recordings allow (running speed) cannot stand beside arms of all of them.
            if len(by_recording) < len(task.recordings):
                tell(f"leaving {name} out: some recordings lack what it reads")
                continue
            predictions = assemble(task, part, _in_order(task.windows(part), by_recording), **facts)
            if own.held_out:
                # The best of them is chosen by this, without a look at the test.
                table = WindowTable.concatenate([table for table, _ in own.held_out])
                answers = np.concatenate([answers for _, answers in own.held_out])
                held_out = assemble_windows(task, table, answers, part.split_name, **facts)
                predictions.validation_metric, predictions.validation_score = headline_score(held_out)
            filled.append(predictions)
    return filled


def _in_order(table: WindowTable, by_recording: Mapping[int, NDArray]) -> NDArray:
    """Put predictions of several recordings where their windows are."""
    some = next(iter(by_recording.values()))
    prediction = np.zeros((len(table), *some.shape[1:]), some.dtype)
    for index, own in by_recording.items():
        prediction[table.recording_index == index] = own
    return prediction


def _tolerance(task: Task, index: int) -> int:
    """Movie frames in one second; 0 where no movie is decoded."""
    if not task.movie_frame_s:
        return 0
    assert isinstance(task.config, FinetuneConfig)
    return round(1.0 / frame_duration_s(task.recordings[index].stimulus(task.config.movies[0])))


def assemble(task: Task, part: str, prediction: NDArray, **facts: Any) -> Predictions:
    """Put predictions of a part beside targets, times and identities; `facts` are further fields of `Predictions`."""
    parts = {"train": "train", "valid": task.validation_of(part), "test": part}
    intervals = {
        recording: {kind: split.parts[name] for kind, name in parts.items() if name in split.parts}
        for recording, split in task.splits.items()
    }
    return assemble_windows(
        task, task.windows(part), prediction, PartName(part).split_name, split_intervals=intervals, **facts
    )


def assemble_windows(task: Task, table: WindowTable, prediction: NDArray, split: str, **facts: Any) -> Predictions:
    """Put predictions of any windows of a task beside targets, times and identities."""
    values = np.zeros(0) if task.class_values is None else task.class_values
    return Predictions(
        task=task.name,
        split=split,
        data_checksum=task.checksum,
        prediction=prediction,
        target=table.target,
        time=table.target_time,
        recording_id=np.array([r.recording_id for r in task.recordings])[table.recording_index],
        subject_id=np.array([r.metadata.subject_id for r in task.recordings])[table.recording_index],
        stimulus=table.stimulus,
        frame_number=table.frame_number,
        repeat=table.repeat,
        target_frames=np.zeros((0, 0, 0), np.uint8) if task.frame_bank is None else task.frame_bank,
        movie_rate_hz=task.movie_rate_hz,
        **{"class_values": values} | facts,
    )
