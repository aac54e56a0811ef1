"""Did anything of a run's test parts reach its training? Checks of a finished run folder against the data.

The run's own files are the evidence: splits in seconds, normalisation, vocabulary, class values, the selection and the
runs that it started from. What they should hold is worked out anew from settings and recordings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poyo_ssl import protocol
from poyo_ssl.config import FinetuneConfig, PretrainConfig
from poyo_ssl.data import leaks
from poyo_ssl.data.intervals import Intervals
from poyo_ssl.data.leaks import Leak
from poyo_ssl.data.recording import Recording
from poyo_ssl.data.splits import PartName, Split, comparison_frames, draw_test_subjects
from poyo_ssl.data.stimuli import movie_path
from poyo_ssl.data.task import Task
from poyo_ssl.data.units import fit_normalisation
from poyo_ssl.errors import CheckpointError, ConfigError, SplitError
from poyo_ssl.selection.moments import measure_units
from poyo_ssl.selection.table import Selection
from poyo_ssl.training import run_folder
from poyo_ssl.training.run_folder import Data, RunSettings, read_neurons, read_settings, seen_animals
from poyo_ssl.training.train import open_data


@dataclass(frozen=True)
class Audit:
    """What the audit of a run found.

    Attributes
    ----------
    folder : Path
        The run.
    checks : tuple of str
        What was checked.
    leaks : tuple of Leak
        What is wrong; empty if nothing is.
    """

    folder: Path
    checks: tuple[str, ...]
    leaks: tuple[Leak, ...]


@dataclass(frozen=True)
class _Evidence:
    """A run's files beside what its settings say that they should hold."""

    folder: Path
    settings: RunSettings
    everything: list[Recording]
    data: Task
    stored: Mapping[str, Split]

    @property
    def config(self) -> FinetuneConfig | PretrainConfig:
        return self.settings.config

    @property
    def recordings(self) -> list[Recording]:
        return self.data.recordings

    def parts(self, recording: Recording) -> Mapping[str, Intervals]:
        return self.stored[recording.recording_id].parts


def audit_run(folder: Path | str, data: Data | None = None, *, allow_unfinished: bool = False) -> Audit:
    """Check a run for leaks from its test parts.

    Parameters
    ----------
    folder : path
        Folder of a run of `pretrain` or `finetune`.
    data : path or sequence of Recording, optional
        Where the recordings are now; by default where the run found them.
    allow_unfinished : bool
        Check a run whose training was stopped or still goes on.

    Raises
    ------
    CheckpointError
        If the folder holds no complete run, or its training is not finished.
    ConfigError
        If the run was trained on recordings in memory and `data` is not given.
    """
    run_folder.require_finished(folder, allow=allow_unfinished)
    evidence = _open(Path(folder), data)
    checks = {
        "parts": _check_parts,
        "inputs": _check_inputs,
        "frames": _check_frames,
        "statistics": _check_statistics,
        "vocabulary": _check_vocabulary,
        "selection": _check_selection,
        "animals": _check_animals,
        "runs before": _check_runs_before,
    }
    found = [leak for check in checks.values() for leak in check(evidence)]
    return Audit(Path(folder), tuple(checks), tuple(found))


def _open(folder: Path, data: Data | None) -> _Evidence:
    settings, facts = read_settings(folder), run_folder.read_json(folder, "run.json")
    data = settings.data if data is None else data
    if data is None:
        raise ConfigError(f"{folder} was trained on recordings in memory", fix="give the recordings as data")
    everything = open_data(data)
    stored = run_folder.read_splits(folder)
    recordings = [r for r in everything if r.recording_id in stored]
    if len(recordings) < len(stored):
        missing = sorted(set(stored) - {r.recording_id for r in recordings})
        raise CheckpointError(f"recording {missing[0]} of {folder} is not in the data given", fix="give all its data")
    task = Task.of(recordings, settings.config, new_animals=facts.get("new_animals", False))
    return _Evidence(folder, settings, everything, task, stored)


def _tables(evidence: _Evidence, names: tuple[str, ...]) -> dict[str, Any]:
    """Windows by part, cut by the stored splits."""
    stored = replace(evidence.data, splits=evidence.stored)
    pretraining = isinstance(evidence.config, PretrainConfig)
    return {name: stored.windows(name) for name in names if not pretraining or PartName(name).role != "test"}


def _check_parts(evidence: _Evidence) -> list[Leak]:
    found = []
    for recording in evidence.recordings:
        parts = evidence.parts(recording)
        found += leaks.check_parts(recording, parts) + leaks.check_presentations(recording, parts)
        due = evidence.data.splits[recording.recording_id].parts
        for name in sorted(set(due) | set(parts)):
            same = name in due and name in parts and due[name].shape == parts[name].shape
            if not same or not np.allclose(due[name], parts[name], atol=1e-6):
                found.append(Leak("parts", recording.recording_id, f"{name} is not the part that the settings give"))
    return found


def _check_inputs(evidence: _Evidence) -> list[Leak]:
    names = tuple(next(iter(evidence.stored.values())).parts)
    try:
        tables = _tables(evidence, names)
    except SplitError as error:
        return [Leak("inputs", "any", str(error))]
    return [
        leak
        for index, recording in enumerate(evidence.recordings)
        for leak in leaks.check_windows(recording, index, evidence.parts(recording), tables)
    ]


def _check_frames(evidence: _Evidence) -> list[Leak]:
    config = evidence.config
    if isinstance(config, PretrainConfig) or config.task == "gratings":
        return []
    pixels: dict[str, NDArray[np.uint8]] = {}
    for movie in (*config.movies, *config.split.test_movies):
        folders = [r.data_folder for r in evidence.recordings if r.data_folder is not None]
        known = [folder for folder in folders if movie_path(folder, movie).exists()]
        if known:
            pixels[movie] = comparison_frames(known[0], movie)
    trained = _shown(evidence, pixels, ("train",))
    unseen = {name for split in evidence.stored.values() for name in split.parts if PartName(name).is_unseen}
    # A run may be stricter than the protocol, not laxer.
    limit = min(config.split.near_duplicate_correlation, protocol.NEAR_DUPLICATE_CORRELATION)
    found = leaks.check_unseen_frames(trained, _shown(evidence, pixels, unseen), pixels, max_correlation=limit)
    gap_s = config.window.window_s + max(config.window.lag_s, 0) + 3 * config.split.decay_s
    for recording in evidence.recordings:
        for movie in config.movies:
            found += leaks.check_gaps(recording, evidence.parts(recording), movie, gap_s=gap_s)
    return found


def _shown(evidence: _Evidence, pixels: Mapping[str, Any], names: Any) -> dict[str, NDArray[np.int64]]:
    """Frames by movie that any recording showed in any of the named parts."""
    shown: dict[str, NDArray[np.int64]] = {}
    for recording in evidence.recordings:
        for name in names:
            spans = evidence.parts(recording).get(name, np.zeros((0, 2)))
            for movie, frames in leaks.shown_frames(recording, spans, pixels).items():
                shown[movie] = np.union1d(shown.get(movie, np.zeros(0, np.int64)), frames)
    return shown


def _check_statistics(evidence: _Evidence) -> list[Leak]:
    neurons = read_neurons(evidence.folder)
    found = []
    for recording in evidence.recordings:
        name = recording.recording_id
        domain, used = evidence.data.domains[name], neurons.columns[name]
        found += leaks.check_domain(recording, "statistics", domain, evidence.parts(recording))
        refitted = fit_normalisation(recording, used, domain, method=evidence.config.window.normalisation)
        found += leaks.check_normalisation(recording, neurons.normalisation[name], refitted, used)
    return found


def _check_vocabulary(evidence: _Evidence) -> list[Leak]:
    """Check that rows are of units of this and earlier runs, and classes those of the training trials."""
    neurons, class_values = read_neurons(evidence.folder), run_folder.read_class_values(evidence.folder)
    before = evidence.settings.pretrained
    known = read_neurons(before).vocabulary.units if before else {}
    own = {
        f"{recording.recording_id}/{recording.unit_ids[column]}"
        for recording in evidence.recordings
        for column in neurons.columns[recording.recording_id]
    }
    found = []
    strangers = sorted(set(neurons.vocabulary.units) - own - set(known))
    if strangers:
        found.append(Leak("vocabulary", strangers[0].split("/")[0], f"unit {strangers[0]} was not trained on"))
    due = evidence.data.class_values
    adapted = getattr(evidence.config, "adapt", "all") == "embeddings"
    if not adapted and class_values is not None and due is not None and not np.array_equal(due, class_values):
        extra = np.setdiff1d(class_values, due)
        found.append(Leak("vocabulary", "any", f"classes {extra.tolist()} are not those of the training part"))
    return found


def _check_selection(evidence: _Evidence) -> list[Leak]:
    """Check that moments were measured outside the test parts, and that measuring again gives the same."""
    path = evidence.settings.selection
    if not isinstance(path, (str, Path)):
        return []
    selection = Selection.load(Path(path))
    found = []
    for recording in evidence.recordings:
        measured = selection.intervals.get(recording.recording_id)
        whole = recording.timestamps[[0, -1]].reshape(1, 2)
        spans = whole if measured is None else measured
        found += leaks.check_domain(recording, "the selection's moments", spans, evidence.parts(recording))
        rows = selection.table[selection.table["recording_id"] == recording.recording_id].sort_values("unit_index")
        again = measure_units(recording, measured)
        for name in ("skewness", "kurtosis"):
            wrong = ~np.isclose(rows[name].to_numpy(), getattr(again, name), rtol=1e-6, equal_nan=True)
            if wrong.any():
                unit = recording.unit_ids[int(np.flatnonzero(wrong)[0])]
                problem = f"{name} of unit {unit} is not that of the intervals it is said to be from"
                found.append(Leak("selection", recording.recording_id, problem))
    return found


def _check_animals(evidence: _Evidence) -> list[Leak]:
    """Check that animals which only test took no part, and that new animals are new."""
    config = evidence.config
    own = {r.metadata.subject_id: r.recording_id for r in evidence.recordings}
    if getattr(config, "adapt", "all") == "embeddings":
        facts, pretrained = run_folder.read_json(evidence.folder, "run.json"), evidence.settings.pretrained
        wrong = set(own) & seen_animals(pretrained) if pretrained and facts.get("new_animals") else set()
        problem = "was trained on by the run that is said not to know it"
    else:
        wrong = set(own) & set(draw_test_subjects([r.metadata.subject_id for r in evidence.everything], config.split))
        problem = "is one of those that only test"
    return [Leak("animals", own[name], f"animal '{name}' {problem}") for name in sorted(wrong)]


def _check_runs_before(evidence: _Evidence) -> list[Leak]:
    """Check that inputs and statistics of the runs that this one started from do not touch its test parts."""
    found: list[Leak] = []
    before = evidence.settings.pretrained
    while before:
        earlier = _open(Path(before), evidence.everything)
        inputs = _tables(earlier, ("train", "valid"))
        for index, recording in enumerate(earlier.recordings):
            if recording.recording_id not in evidence.stored:
                continue
            tests = {n: v for n, v in evidence.parts(recording).items() if PartName(n).role == "test"}
            for part, table in inputs.items():
                rows = table.recording_index == index
                first, last = table.first_low[rows], table.first_high[rows] + table.num_frames - 1
                spans = np.stack([recording.timestamps[first], recording.timestamps[last]], axis=1)
                what = f"{part} inputs of {before}"
                found += [
                    replace(leak, check="runs before") for leak in leaks.check_domain(recording, what, spans, tests)
                ]
            domain = earlier.data.domains[recording.recording_id]
            found += [
                replace(leak, check="runs before")
                for leak in leaks.check_domain(recording, f"statistics of {before}", domain, tests)
            ]
        before = earlier.settings.pretrained
    return found
