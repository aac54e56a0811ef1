"""Convert many recordings: in parallel, continued at will, and without one bad file stopping the others.

Beside every recording, ``<output>/conversion/<recording id>.json`` says what it was made of: source, settings, and size
and modification time of every input file. A second run compares these and does nothing where they agree. The order of
writing (record "incomplete", recording, record "complete", each beside its name and renamed) lets a run be killed at
any moment.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from poyo_ssl.data.stimuli import load_movie, movie_path, save_movie
from poyo_ssl.errors import ConfigError, PoyoError, RecordingError
from poyo_ssl.sources.checks import check_traces
from poyo_ssl.sources.source import Source, clean_name
from poyo_ssl.sources.workers import run_in_processes, run_on_ray

RECORDS = "conversion"
COMPARED_FRAMES = 16
"""Frames, evenly spread, by which a movie is recognised as the one that is there."""


@dataclass(frozen=True)
class Outcome:
    """What became of one recording.

    Attributes
    ----------
    recording_id : str
        Its id.
    input : Path
        What it was to be made of.
    status : {'written', 'unchanged', 'failed'}
        'unchanged' if an earlier run had made it of the same files with the same settings.
    warnings : tuple of str
        One line each; they are stored in the recording too.
    error : str
        Why it failed.
    """

    recording_id: str
    input: Path
    status: Literal["written", "unchanged", "failed"]
    warnings: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class _Task:
    source: Source
    path: Path
    output: Path
    recording_id: str
    overwrite: bool


def convert(
    source: Source,
    input: Path | str,
    output: Path | str,
    *,
    workers: int | None = 1,
    ray: str | None = None,
    overwrite: bool = False,
    only: Collection[str] | None = None,
    progress: Callable[[Outcome, int], None] | None = None,
) -> list[Outcome]:
    """Write every recording that `source` finds in `input` to the data folder `output`.

    Parameters
    ----------
    source : Source
        What kind of input it is, and its settings.
    input : path
        File or folder.
    output : path
        Data folder; made if it is not there.
    workers : int, optional
        Processes; with None all cores. With 1 nothing is started.
    ray : str, optional
        Address of a Ray cluster, or ``local``; paths must mean the same on all its machines.
    overwrite : bool
        Convert again what is there, and replace recordings of the same name that were made of something else.
    only : collection of str, optional
        Ids of the recordings to convert; by default all.
    progress : callable, optional
        Called with every outcome and the total.

    Returns
    -------
    list of Outcome
        In the order of `source.find`. A recording that cannot be converted is an outcome of status 'failed'.

    Raises
    ------
    RecordingError
        If there is nothing to convert.
    ConfigError
        If `workers` is below 1 or Ray cannot be reached.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"{workers} workers", allowed="1 or more", fix="raise it")
    input, output = Path(input), Path(output)
    if output.exists() and not output.is_dir():
        raise RecordingError(f"{output} is a file", fix="choose a folder")
    if not input.exists():
        raise RecordingError(f"nothing at {input}", fix="check the path")
    paths = [path for path in source.find(input) if only is None or clean_name(source.recording_id(path)) in only]
    if not paths:
        raise RecordingError(f"none of the {len(only or ())} recordings asked for is in {input}", fix="check the path")
    outcomes: dict[int, Outcome] = {}

    def settle(position: int, outcome: Outcome) -> None:
        outcomes[position] = outcome
        if progress:
            progress(outcome, len(paths))

    tasks, positions = [], []
    names = [clean_name(source.recording_id(path)) for path in paths]
    twice = {name for name, count in Counter(names).items() if count > 1}
    for position, (path, name) in enumerate(zip(paths, names, strict=True)):
        if name in twice:
            others = ", ".join(str(p) for p, n in zip(paths, names, strict=True) if n == name and p != path)
            settle(position, Outcome(name, path, "failed", error=f"{others} would be called {name} too; rename one"))
        elif not overwrite and (record := _find_record(source, path, output, name)):
            settle(position, Outcome(name, path, "unchanged", tuple(record["warnings"])))
        else:
            tasks.append(_Task(source, path, output, name, overwrite))
            positions.append(position)
    for index, outcome, reason in _run(tasks, workers, ray):
        task = tasks[index]
        if outcome is None:
            _remove_partial(task)
            outcome = Outcome(task.recording_id, task.path, "failed", error=reason)
        settle(positions[index], outcome)
    return [outcomes[position] for position in range(len(paths))]


def _run(tasks: list[_Task], workers: int | None, ray: str | None) -> Any:
    if not tasks:
        return iter(())
    if ray is not None:
        return run_on_ray(_convert_one, tasks, workers, ray)
    workers = min(workers or os.cpu_count() or 1, len(tasks))
    if workers == 1:
        return ((index, _convert_one(task), "") for index, task in enumerate(tasks))
    return run_in_processes(_convert_one, tasks, workers)


def _convert_one(task: _Task) -> Outcome:
    """Convert one recording; whatever is wrong with its file is an outcome, not an exception."""
    try:
        return Outcome(task.recording_id, task.path, "written", _write(task))
    except PoyoError as error:
        reason = str(error)
    except OSError as error:
        reason = f"{error.strerror or error}: {error.filename or task.path}; check the file and the disk"
    except MemoryError:
        reason = f"{task.path} does not fit in memory; use fewer --workers"
    except Exception as error:
        reason = f"{task.path}: {type(error).__name__}: {' '.join(str(error).split())}; not foreseen, please report it"
    return Outcome(task.recording_id, task.path, "failed", error=reason)


def _write(task: _Task) -> tuple[str, ...]:
    source, path, target = task.source, task.path, task.output / f"{task.recording_id}.h5"
    record = record_path(task.output, task.recording_id)
    if target.exists() and not task.overwrite:
        _refuse_another(source, path, target, record)
    # Before reading: a file that changes meanwhile is converted again next time.
    facts = _describe(source, path)
    recording = check_traces(source.read(path))
    recording.recording_id = task.recording_id
    for name, pixels in source.movies(path):
        _write_movie(task.output, clean_name(name), pixels, overwrite=task.overwrite)
    facts |= {"path": str(path.absolute()), "warnings": list(recording.warnings), "version": version("poyo-ssl")}
    _write_json(record, facts | {"complete": False})
    source.save(recording, path, target)
    _write_json(record, facts | {"complete": True})
    return recording.warnings


def _refuse_another(source: Source, path: Path, target: Path, record: Path) -> None:
    """Refuse to replace a recording that was made of something else and happens to have the same name."""
    fix = "choose another output, or pass --overwrite to replace it"
    try:
        made = json.loads(record.read_text())
        kind, where = made["source"], Path(made["path"])
    except FileNotFoundError:
        raise RecordingError(f"{target} exists", fix=fix) from None
    except (ValueError, KeyError, TypeError):
        # A damaged record tells nothing.
        return
    # An input that is no longer where it was has been moved; one that is still there is another one.
    if kind != source.name or (where != path.absolute() and where.exists() and not where.samefile(path)):
        raise RecordingError(f"{target} was made of {where} (prepare {kind}), not of {path}", fix=fix)


def record_path(output: Path, recording_id: str) -> Path:
    """Return where a data folder keeps what a recording was made of."""
    return output / RECORDS / f"{recording_id}.json"


def _describe(source: Source, path: Path) -> dict[str, Any]:
    """Return what the result depends on; files are named relative to `path`, so that a folder can be moved."""
    files = []
    for item in source.files(path):
        status = item.stat()
        files.append([os.path.relpath(item, path), status.st_size, status.st_mtime_ns])
    settings: dict[str, Any] = dataclasses.asdict(source) if dataclasses.is_dataclass(source) else {}
    facts = {"source": source.name, "input": path.name, "files": files, "settings": settings}
    # As it comes back from a file: tuples as lists, paths as text.
    return json.loads(json.dumps(facts, default=str))


def _find_record(source: Source, path: Path, output: Path, name: str) -> dict[str, Any] | None:
    """Return the record of an earlier conversion of the very same input, if it was completed."""
    if not (output / f"{name}.h5").is_file():
        return None
    try:
        record = json.loads(record_path(output, name).read_text())
        same = all(record.get(key) == value for key, value in _describe(source, path).items())
        return record if same and record["complete"] else None
    except (OSError, ValueError, KeyError, AttributeError, PoyoError):
        # No record or a damaged one, or an input that cannot be read: the conversion says why.
        return None


def _write_json(path: Path, facts: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".partial")
    beside.write_text(json.dumps(facts, indent=1) + "\n")
    beside.replace(path)


def _write_movie(output: Path, name: str, pixels: Any, *, overwrite: bool) -> None:
    """Write a movie, or make sure that the one that is there is the same."""
    if overwrite or not movie_path(output, name).exists():
        save_movie(output, name, pixels)
        return
    there = load_movie(output, name)
    sample = np.unique(np.linspace(0, len(there) - 1, COMPARED_FRAMES).astype(int))
    same = tuple(pixels.shape) == there.shape
    if not (same and all(np.array_equal(pixels[int(index)], there[int(index)]) for index in sample)):
        raise RecordingError(
            f"the stimulus '{name}' of this recording ({' x '.join(map(str, pixels.shape))}) is not the one in "
            f"{movie_path(output, name)} ({' x '.join(map(str, there.shape))})",
            fix="give it another name or prepare into another folder",
        )


def _remove_partial(task: _Task) -> None:
    for half in (task.output / f"{task.recording_id}.h5", record_path(task.output, task.recording_id)):
        half.with_name(half.name + ".partial").unlink(missing_ok=True)
