"""All predictions files of a folder in one table per task and split: scores, ranks, gain over the best baseline.

Scores of different splits or data mean different things, so each task and split has a table of its own, and files of
different data in one of them are refused. Every decoder that writes a predictions file takes part
(docs/predictions.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from poyo_ssl.errors import ConfigError, suggest
from poyo_ssl.evaluation.comparison import MARGIN, Comparison, compare_arms
from poyo_ssl.evaluation.estimate import Interval
from poyo_ssl.evaluation.metric_names import describe_metric
from poyo_ssl.evaluation.predictions import ArmKind, PredictionsError
from poyo_ssl.evaluation.predictions_layout import FORMAT
from poyo_ssl.evaluation.statistics import estimate_mean
from poyo_ssl.evaluation.summary import BEST_BASELINE, Part, ScoredFile, best_baseline, gather_parts, load_scored

RANKED: tuple[ArmKind, ...] = ("model", "baseline")
"""Kinds with a rank; controls should fail and ceilings know what no decoder can."""


@dataclass(frozen=True)
class Entry:
    """One arm of a leaderboard.

    Attributes
    ----------
    arm, kind, num_seeds
        As in the predictions files; 0 seeds where nothing is random.
    rank : int, optional
        Place among `RANKED` arms in the headline metric; equal scores share the better place.
    scores : mapping
        Mean with its 95 % interval by metric.
    gains : mapping
        Comparison with the best baseline by metric; empty for the best baseline itself, and without baselines.
    """

    arm: str
    kind: ArmKind
    num_seeds: int
    rank: int | None
    scores: Mapping[str, Interval]
    gains: Mapping[str, Comparison]


@dataclass(frozen=True)
class Leaderboard:
    """All arms of one task and split, the best in the headline metric first.

    Attributes
    ----------
    task, split, data_checksum : str
        What was decoded; the checksum is empty when no file knows it.
    headline : str
        The metric that ranks.
    metrics : tuple of str
        All metrics, main ones first.
    best : str
        The best simple baseline, which gains refer to; empty without one.
    entries : tuple of Entry
        The arms.
    notes : tuple of str
        What a reader must know: how the best baseline was chosen, what chance is, what the verdicts mean.
    """

    task: str
    split: str
    data_checksum: str
    headline: str
    metrics: tuple[str, ...]
    best: str
    entries: tuple[Entry, ...]
    notes: tuple[str, ...]


def find_predictions(folder: Path | str) -> tuple[list[Path], list[Path]]:
    """Find the predictions files in and below a folder.

    Returns
    -------
    found, others : list of Path
        Predictions files, and HDF5 files (``*.h5``) of another kind, which are left out.

    Raises
    ------
    ConfigError
        If there is no predictions file.
    PredictionsError
        If a file is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError(f"no folder {folder}", fix="check the path")
    found: list[Path] = []
    others: list[Path] = []
    for path in sorted(folder.rglob("*.h5")):
        try:
            with h5py.File(path, "r") as file:
                (found if file.attrs.get("format") == FORMAT else others).append(path)
        except (OSError, RuntimeError) as error:
            raise PredictionsError(f"{path} is damaged ({error})", fix="write it again or move it away") from None
    if not found:
        more = f" ({len(others)} other HDF5 files)" if others else ""
        raise ConfigError(
            f"no predictions file (*.h5) in {folder}{more}",
            fix="run 'poyo-ssl evaluate' first, or write one as docs/predictions.md says",
        )
    return found, others


def make_leaderboards(
    files: Iterable[Path | str],
    *,
    task: str | None = None,
    split: str | None = None,
    data: Path | str | None = None,
    seed: int = 0,
    margin: float = MARGIN,
) -> list[Leaderboard]:
    """Score predictions files and rank their arms, one table per task and split.

    Parameters
    ----------
    files : iterable of path
        Predictions files. Several files of one arm are its seeds, or folds that share the targets among them.
    task, split : str, optional
        Only this task or split.
    data : path, optional
        Data folder with ``splits.json``, against which every target is checked (`poyo_ssl.evaluation.against_data`).
    seed : int
        Seed of the bootstrap over ten or more animals.
    margin : float
        See `compare_arms`.

    Raises
    ------
    PoyoError
        If a file is not valid or does not go with the data, files of one task and split are of different data or
        targets, or none is left.
    """
    scored = load_scored(files, data)
    for name, wanted in (("task", task), ("split", split)):
        known = sorted({getattr(file, name) for file in scored})
        if wanted is not None and wanted not in known:
            raise ConfigError(
                f"no predictions of {name} '{wanted}'{suggest(wanted, known)}",
                allowed=", ".join(known),
                fix="change it",
            )
    wanted_files = [f for f in scored if task in (None, f.task) and split in (None, f.split)]
    if not wanted_files:
        raise ConfigError(f"no predictions of task '{task}' on split '{split}'", fix="leave one of them out")
    check_same_data(wanted_files)
    return [_rank(part, rng=np.random.default_rng(seed), margin=margin) for part in gather_parts(wanted_files)]


def check_same_data(files: Sequence[ScoredFile]) -> None:
    """Check that the files of each task and split were made from one and the same data.

    Files that do not know their data's checksum are left to the comparison of targets.

    Raises
    ------
    PredictionsError
        Naming the first file whose data differ from those of the first.
    """
    first: dict[tuple[str, str], ScoredFile] = {}
    for file in files:
        if not file.data_checksum:
            continue
        reference = first.setdefault((file.task, file.split), file)
        if file.data_checksum != reference.data_checksum:
            raise PredictionsError(
                f"{file.name} is of data {file.data_checksum[:12]}, {reference.name} of {reference.data_checksum[:12]}"
                f" ({file.task} on {file.split})",
                allowed="one data set per task and split",
                fix="keep one folder per data set",
            )


def _rank(part: Part, *, rng: np.random.Generator, margin: float) -> Leaderboard:
    tables = {name: arm.table for name, arm in part.arms.items()}
    metrics = sorted(part.metrics, key=lambda m: (m != part.headline, not describe_metric(m).is_main, _place(m)))
    scores = {
        name: {m: estimate_mean(table, m, rng=deepcopy(rng)).interval() for m in metrics}
        for name, table in tables.items()
    }
    best, how = best_baseline(part, {name: own[part.headline].value for name, own in scores.items()})
    gains: dict[str, dict[str, Comparison]] = {name: {} for name in tables}
    if best:
        pairs = [(name, best) for name in tables if name != best]
        trained = frozenset(name for name, arm in part.arms.items() if arm.seeds)
        for metric in metrics:
            for found in compare_arms(tables, pairs, metric, rng=deepcopy(rng), trained=trained, margin=margin):
                gains[found.arm][metric] = found
    sign = -1 if describe_metric(part.headline).better == "lower" else 1
    value = {name: sign * own[part.headline].value for name, own in scores.items()}
    ranked = [value[name] for name, arm in part.arms.items() if arm.kind in RANKED]
    entries = [
        Entry(
            arm=name,
            kind=part.arms[name].kind,
            num_seeds=len(part.arms[name].seeds),
            rank=1 + sum(other > value[name] for other in ranked) if part.arms[name].kind in RANKED else None,
            scores=scores[name],
            gains=gains[name],
        )
        for name in sorted(tables, key=lambda name: -value[name])
    ]
    checksum = next((f.data_checksum for arm in part.arms.values() for f in arm.files if f.data_checksum), "")
    notes = tuple(_notes(part, best, how, margin))
    return Leaderboard(part.task, part.split, checksum, part.headline, tuple(metrics), best, tuple(entries), notes)


def _place(metric: str) -> tuple[int, str]:
    return describe_metric(metric).rank, metric


def _notes(part: Part, best: str, how: str, margin: float) -> Iterable[str]:
    if not best:
        yield "No file is of kind 'baseline', so no gain can be shown: add some (poyo-ssl evaluate fits them)."
    else:
        yield f"Gains refer to the best simple baseline, '{best}', {BEST_BASELINE[how]}."
    lacking = [f.name for arm in part.of_kind("baseline") for f in part.arms[arm].files if not f.validation_metric]
    if how == "test" and lacking:
        yield f"Without a validation score: {lacking[0]}" + (f" and {len(lacking) - 1} more." if lacking[1:] else ".")
    elif how == "test":
        yield "The baselines' validation scores are of different metrics and cannot be compared."
    if part.task == "gratings":
        yield f"Chance is {1 / part.num_classes:.3f} for accuracy."
    if best:
        yield (
            "p values are Holm-corrected over the arms of a metric; 'equivalent' and 'no worse' are meant with a "
            f"margin of {margin:g}."
        )
