"""Scores of trained runs beside the simple baselines, on the very same windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poyo_ssl import files
from poyo_ssl.config import FinetuneConfig
from poyo_ssl.data.splits import PartName
from poyo_ssl.data.task import Task, frame_duration_s
from poyo_ssl.data.windows import UnitSet, WindowTable
from poyo_ssl.errors import ConfigError
from poyo_ssl.evaluation.baselines import BaselineSet, SplitBaseline, load_cebra, shift_windows, split_baselines
from poyo_ssl.evaluation.features import Part
from poyo_ssl.evaluation.frame_images import mean_training_frame
from poyo_ssl.evaluation.leaderboard import MARGIN, ScoredFile, Scores, save_into, summarise, write_results
from poyo_ssl.evaluation.predictions import ArmKind, Predictions
from poyo_ssl.evaluation.scores import headline_score
from poyo_ssl.training import run_folder
from poyo_ssl.training.predict import open_task, predict_windows
from poyo_ssl.training.run_folder import TrainedRun, decide


def assemble(task: Task, part: str, prediction: NDArray, *, arm: str, **facts: Any) -> Predictions:
    """Put predictions of a part beside targets, times and identities; `facts` are further attributes of the file."""
    parts = {"train": "train", "valid": task.validation_of(part), "test": part}
    intervals = {
        recording: {kind: split.parts[name] for kind, name in parts.items() if name in split.parts}
        for recording, split in task.splits.items()
    }
    split = PartName(part).split_name
    return assemble_windows(task, task.windows(part), prediction, split, arm=arm, split_intervals=intervals, **facts)


def assemble_windows(
    task: Task, table: WindowTable, prediction: NDArray, split: str, *, arm: str, **facts: Any
) -> Predictions:
    """Put predictions of any windows of a task beside targets, times and identities."""
    values = np.zeros(0) if task.class_values is None else task.class_values
    return Predictions(
        task=task.name,
        split=split,
        arm=arm,
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


def predict_test(
    run: TrainedRun,
    task: Task,
    part: str,
    *,
    arm: str,
    units: Sequence[UnitSet] | None = None,
    inputs: WindowTable | None = None,
    devices: int = 1,
    nodes: int = 1,
) -> Predictions:
    """Return a run's predictions of a part, perhaps from other units or from other windows, row by row."""
    table = task.windows(part) if inputs is None else inputs
    output = predict_windows(run, task.recordings, table, units=units, devices=devices, nodes=nodes)
    kind = "control" if run.has_random_encoder else "model"
    facts: dict[str, Any] = {"arm": arm, "kind": kind, "model_id": run.model_id(), "seed": run.config.seed}
    if run.task == "frames":
        return assemble(task, part, output, **facts)
    assert run.class_values is not None
    if output.ndim == 1:
        return assemble(task, part, np.round(output * (len(run.class_values) - 1)).astype(int), **facts)
    return assemble(task, part, decide(run, output), **facts, probabilities=output, class_values=run.class_values)


def control_predictions(
    run: TrainedRun, task: Task, part: str, *, arm: str, seed: int, devices: int = 1, nodes: int = 1
) -> Iterator[Predictions]:
    """Predict a test part with each control of a run.

    - ``shuffled neurons``: every neuron's activity is read as that of another one of its recording, the same one in all
      windows. Activity stays as it was; who was active is lost.
    - ``shifted activity``: within each repeat the windows are moved on circularly (`shift_windows`). Activity keeps its
      autocorrelation; when it happened is lost.
    - ``untrained``: the same model with weights drawn anew.

    Parameters
    ----------
    run : TrainedRun
        The run.
    task, part : Task, str
        Test part whose targets are predicted.
    arm : str
        Name of the run in tables.
    seed : int
        Seed of permutations, shifts and weights; together with the run's own.
    devices, nodes : int
        Processes per node, and nodes.

    Yields
    ------
    Predictions
        Of kind 'control', with the run's seed and `model_id`; the arm is named ``<arm> (<control>)``.
    """
    place = [seed, run.config.seed]
    rng = np.random.default_rng(place)
    units = [shuffle_units(run.unit_set(recording), rng) for recording in task.recordings]
    shifted = shift_windows(task.windows(part), np.random.default_rng([*place, 1]))
    untrained = run.untrained(int(np.random.SeedSequence([*place, 2]).generate_state(1)[0]))
    broken: dict[str, tuple[TrainedRun, dict[str, Any]]] = {
        "shuffled neurons": (run, {"units": units}),
        "shifted activity": (run, {"inputs": shifted}),
        "untrained": (untrained, {}),
    }
    for name, (model, change) in broken.items():
        predictions = predict_test(model, task, part, arm=f"{arm} ({name})", **change, devices=devices, nodes=nodes)
        yield replace(predictions, kind="control")


def shuffle_units(units: UnitSet, rng: np.random.Generator) -> UnitSet:
    """Give every neuron the place of another in the vocabulary; none keeps its own, unless it is the only one.

    Values stay normalised with their own neuron's moments: what the model sees is as large as ever.

    Examples
    --------
    >>> from poyo_ssl.data.windows import Normalisation
    >>> units = UnitSet(np.arange(3), np.array([5, 6, 7]), Normalisation.identity(3, compress=False), session_row=1)
    >>> shuffle_units(units, np.random.default_rng(0)).rows.tolist() in ([6, 7, 5], [7, 5, 6])
    True
    """
    order = rng.permutation(len(units.rows))
    rows = np.empty_like(units.rows)
    # A cycle through all neurons in random order.
    rows[order] = units.rows[np.roll(order, 1)]
    return replace(units, rows=rows)


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
        Rows with intervals over animals (EVALUATION.md "Statistics") and score tables.

    Raises
    ------
    PoyoError
        If a run is incomplete, its data are missing, two runs of a task have different test windows, or CEBRA is
        wanted and not installed.
    """
    tell = progress or _say_nothing
    out = Path(out)
    first = run_folder.process_rank() == 0
    named = _name_runs(runs)
    inputs = [*(run for _, run in named), *files.paths_of(data)]
    if first:
        files.check_new(out, "results", overwrite=overwrite, inputs=inputs)
    if baselines == "with_cebra":
        # Said before the runs predict, which can take long.
        load_cebra()
    columns = {} if baselines == "none" else _columns_by_task(named)
    known: list[Predictions] = []
    parts: dict[tuple[str, str], Task] = {}
    for arm, run in named:
        if Path(run).is_file():
            known.append(Predictions.load(run))
            continue
        tell(f"predicting with {arm}")
        task = open_task(run, data, allow_unfinished=allow_unfinished)
        for part in task.tests:
            _check_same(parts.setdefault((task.name, part), task), task, part, arm)
        # The task was opened, so the run is finished or need not be.
        known += _predict_run(arm, run, task, seed=seed if controls else None, devices=devices, nodes=nodes)
    if baselines != "none" and first:
        for name in dict.fromkeys(name for name, _ in parts):
            tests = {part: task for (own, part), task in parts.items() if own == name}
            known += _fit_baselines(next(iter(tests.values())), list(tests), columns[name], baselines, tell, seed=seed)
    if not first:
        return Scores([], {})
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


def _predict_run(
    arm: str, run: Path | str, task: Task, *, seed: int | None, devices: int, nodes: int
) -> Iterator[Predictions]:
    """Predict every test part of a run, each with the weights that its validation part chose, and with controls.

    Without a `seed` there are no controls; a run that is a control itself has none.
    """
    means = _mean_frames(task)
    for part in task.tests:
        model = TrainedRun.open(run, validation=task.validation_of(part), allow_unfinished=True)
        made = [predict_test(model, task, part, arm=arm, devices=devices, nodes=nodes)]
        if seed is not None and made[0].kind == "model":
            made += control_predictions(model, task, part, arm=arm, seed=seed, devices=devices, nodes=nodes)
        for predictions in made:
            yield replace(predictions, mean_frames=means)


def _columns_by_task(named: Sequence[tuple[str, Path | str]]) -> dict[str, Mapping[str, NDArray]]:
    """Return the units that the runs of each task decode from, by recording id: baselines must read the same ones."""
    first: dict[str, tuple[str, Mapping[str, NDArray]]] = {}
    for arm, folder in named:
        if Path(folder).is_file():
            continue
        task = str(run_folder.read_json(Path(folder), "run.json").get("task"))
        own = run_folder.read_neurons(folder).columns
        other, columns = first.setdefault(task, (arm, own))
        for recording in sorted(columns.keys() & own.keys()):
            if not np.array_equal(columns[recording], own[recording]):
                raise ConfigError(
                    f"arms '{other}' and '{arm}' decode from {len(columns[recording])} and "
                    f"{len(own[recording])} neurons of {recording}, not the same ones",
                    fix="evaluate them apart, each beside baselines on its neurons, or pass --baselines none",
                )
    return {task: columns for task, (_, columns) in first.items()}


def _check_same(reference: Task, task: Task, part: str, arm: str) -> None:
    """Every arm of a task is scored on the same targets, or the comparison means nothing."""
    a, b = (of.windows(part) for of in (reference, task))
    ids = [[r.recording_id for r in of.recordings] for of in (reference, task)]
    if ids[0] != ids[1] or len(a) != len(b) or not np.array_equal(a.target_time, b.target_time):
        raise ConfigError(
            f"arm '{arm}' has other test windows ({len(b)}) than the first of its task ({len(a)})",
            fix="train the arms on the same recordings with the same window and split settings",
        )


def _mean_frames(task: Task) -> dict[str, NDArray]:
    """``(H, W)`` mean training frame of each recording; empty unless the task is frames."""
    if task.frame_bank is None:
        return {}
    table = task.windows("train")
    return {
        recording.recording_id: mean_training_frame(task.frame_bank, table.target[table.recording_index == index])
        for index, recording in enumerate(task.recordings)
    }


def _fit_baselines(
    task: Task,
    tests: Sequence[str],
    columns: Mapping[str, NDArray],
    which: BaselineSet,
    tell: Callable[[str], None],
    *,
    seed: int,
) -> list[Predictions]:
    """Fit every baseline, control and ceiling on every recording; predict all test parts.

    Tests on unseen frames have a validation part of their own, so for them all is fitted anew.
    """
    filled: list[Predictions] = []
    for valid in task.validations:
        own = [test for test in tests if task.validation_of(test) == valid]
        filled += _fit_with(task, valid, own, columns, which, tell, seed=seed)
    return filled


def _fit_with(
    task: Task,
    valid: str,
    tests: Sequence[str],
    columns: Mapping[str, NDArray],
    which: BaselineSet,
    tell: Callable[[str], None],
    *,
    seed: int,
) -> list[Predictions]:
    """Fit on the training part, choose on `valid`, predict the tests that it serves; score baselines on `valid` too."""
    if not tests:
        return []
    means = _mean_frames(task)
    found: dict[tuple[str, ArmKind, str], NDArray] = {}
    known: dict[tuple[str, ArmKind, str], NDArray[np.bool_]] = {}
    for index, recording in enumerate(task.recordings):
        units = columns[recording.recording_id]
        own_train, own_valid = (Part.of(recording, units, task.windows(n), index) for n in ("train", valid))
        for baseline in make_baselines(task, own_train, which, seed=seed):
            wanted = [test for test in (*tests, valid) if _serves(baseline, test)]
            if not wanted:
                continue
            tell(f"fitting {baseline.name} on {recording.recording_id}")
            baseline.fit(own_train, own_valid)
            for test in wanted:
                table = task.windows(test)
                rows = table.recording_index == index
                prediction = baseline.predict(Part.of(recording, units, table, index))
                key = (baseline.name, baseline.kind, test)
                shape = (len(table), *prediction.shape[1:])
                found.setdefault(key, np.zeros(shape, prediction.dtype))[rows] = prediction
                known.setdefault(key, np.zeros(len(table), bool))[rows] = True
    filled = []
    for (name, kind, test), prediction in found.items():
        if test == valid:
            continue
        # A control that only some recordings allow (running speed) cannot stand beside arms of all of them.
        if not known[(name, kind, test)].all():
            tell(f"leaving {name} out: some recordings lack what it reads")
            continue
        predictions = assemble(task, test, prediction, arm=name.replace("_", " "), kind=kind)
        predictions.mean_frames = means
        if kind == "baseline":
            # The best of them is chosen by this, without a look at the test.
            answers, split = found[(name, kind, valid)], PartName(test).split_name
            on_valid = assemble_windows(task, task.windows(valid), answers, split, arm=name, kind=kind)
            on_valid.mean_frames = means
            predictions.validation_metric, predictions.validation_score = headline_score(on_valid)
        filled.append(predictions)
    return filled


def _serves(baseline: SplitBaseline, part: str) -> bool:
    return not getattr(baseline, "only_unseen_frames", False) or PartName(part).is_unseen


def make_baselines(task: Task, train: Part, which: BaselineSet, *, seed: int = 0) -> list[SplitBaseline]:
    """Return fresh baselines, controls and ceilings of a task for one recording."""
    tolerance = 0
    if task.movie_frame_s:
        assert isinstance(task.config, FinetuneConfig)
        tolerance = round(1.0 / frame_duration_s(train.recording.stimulus(task.config.movies[0])))
    return split_baselines(
        task.name,
        train,
        which=which,
        num_classes=0 if task.class_values is None else len(task.class_values),
        frames=task.frame_bank,
        tolerance=tolerance,
        seed=seed,
    )


def _say_nothing(text: str) -> None:
    del text
