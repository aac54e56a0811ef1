"""Convert many recordings: in parallel, continued at will, and without one bad file stopping the others.

Beside every recording, ``<output>/conversion/<recording id>.json`` says what it was made of: source, settings, and size
and modification time of every input file. A second run compares these and does nothing where they agree. The order of
writing (record "incomplete", recording, record "complete", each beside its name and renamed) lets a run be killed at
any moment.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import numpy as np

from poyo_ssl.data.stimuli import load_movie, movie_path, save_movie
from poyo_ssl.errors import ConfigError, PoyoError, RecordingError
from poyo_ssl.sources.base import Source, check_traces, clean_name

Answer = tuple[int, Any, str]
"""Position of the item, what the task returned, and, where it returned nothing, why."""


def _serve(pipe: Connection, task: Callable[[Any], Any]) -> None:
    """Answer items until the pipe closes (child process)."""
    # A terminal's Ctrl-C reaches every process; only the parent decides, whose SIGTERM lets them clean up.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.unraisablehook = _report_unless_exit
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            pipe.send(task(pipe.recv()))


def _report_unless_exit(unraisable: Any) -> None:
    """Say nothing of an exit that Python swallowed, in a destructor say: the closed pipe ends the process soon."""
    if unraisable.exc_type is not SystemExit:
        sys.__unraisablehook__(unraisable)


def run_in_processes(task: Callable[[Any], Any], items: Sequence[Any], workers: int) -> Generator[Answer, None, None]:
    """Run `task` on every item in up to `workers` processes; give answers as they come.

    A process that dies (killed for want of memory, crash of a library) costs its own item only, which is answered with
    the reason; a new process takes its place. Stopping the iteration stops the processes.

    Parameters
    ----------
    task : callable
        Importable function of one item; it must not raise.
    items : sequence
        What can be sent to another process.
    workers : int
        Number of processes.

    Yields
    ------
    tuple of int, object and str
        Position of the item, result, reason for having none.

    Examples
    --------
    >>> sorted(run_in_processes(abs, [-1, 2], workers=1))
    [(0, 1, ''), (1, 2, '')]
    """
    # Forking a process that has started threads can hang it: start fresh ones.
    context = multiprocessing.get_context("spawn")
    waiting = iter(range(len(items)))
    # What each process works on, by the parent's end of its pipe.
    busy: dict[Connection, tuple[BaseProcess, int]] = {}
    started: list[BaseProcess] = []

    def start(position: int) -> None:
        mine, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, task), daemon=True)
        process.start()
        theirs.close()
        started.append(process)
        hand_over(mine, process, position)

    def hand_over(pipe: Connection, process: BaseProcess, position: int) -> None:
        busy[pipe] = (process, position)
        # A process that has died leaves a broken pipe, of which the next wait tells.
        with contextlib.suppress(BrokenPipeError):
            pipe.send(items[position])

    try:
        # The range first: zip would otherwise take one item too many and lose it.
        for _, position in zip(range(workers), waiting, strict=False):
            start(position)
        while busy:
            ready = wait(list(busy))
            for pipe in [pipe for pipe in busy if pipe in ready]:
                process, position = busy.pop(pipe)
                try:
                    answer, alive = (position, pipe.recv(), ""), True
                except (EOFError, ConnectionError):
                    process.join()
                    answer, alive = (position, None, _describe_death(process.exitcode or 0)), False
                following = next(waiting, None)
                if alive and following is not None:
                    hand_over(pipe, process, following)
                else:
                    # A living process stops at the end of its pipe.
                    pipe.close()
                if not alive and following is not None:
                    start(following)
                yield answer
    finally:
        for pipe, (process, _) in busy.items():
            process.terminate()
            # Python swallows the exit where the signal comes in a destructor or a callback of a weak reference: such
            # a process ends when it finds its pipe closed.
            pipe.close()
        for process in started:
            process.join()


def _describe_death(exitcode: int) -> str:
    """Say how a process ended.

    Examples
    --------
    >>> _describe_death(-9)
    'its worker was killed (SIGKILL), often for want of memory; use fewer --workers or run it alone'
    """
    if exitcode >= 0:
        return f"its worker stopped with exit code {exitcode}; run it alone to see why"
    with contextlib.suppress(ValueError):
        name = signal.Signals(-exitcode).name
        if name == "SIGKILL":
            return f"its worker was killed ({name}), often for want of memory; use fewer --workers or run it alone"
        return f"its worker crashed ({name}); the file may be damaged, or a library has a defect: run it alone"
    return f"its worker was killed (signal {-exitcode}); run it alone to see why"


def run_on_ray(task: Callable[[Any], Any], items: Sequence[Any], workers: int | None, address: str) -> Iterator[Answer]:
    """Run `task` on every item on a Ray cluster; give answers as they come, like `run_in_processes`.

    Parameters
    ----------
    task, items
        As in `run_in_processes`; paths must mean the same on every machine of the cluster.
    workers : int, optional
        Items in work at a time; by default as many as the cluster has cores.
    address : str
        Of the cluster (``auto`` for the one this machine belongs to), or ``local`` for one of `workers` processes here.

    Raises
    ------
    ConfigError
        If Ray is not installed or the cluster does not answer.
    """
    try:
        import ray
    except ImportError:
        raise ConfigError("--ray needs Ray, which is not installed", fix="pip install 'poyo-ssl[ray]'") from None
    _check_address(address)
    here = {"num_cpus": workers, "include_dashboard": False}
    where: dict[str, Any] = here if address == "local" else {"address": address}
    try:
        ray.init(log_to_driver=False, **where)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise _no_cluster(address, str(error).strip().splitlines()[0]) from None
    try:
        # A task that killed its worker would kill the next one too.
        remote = ray.remote(max_retries=0)(task)
        waiting = iter(range(len(items)))
        pending = {}
        for _, position in zip(range(workers or int(ray.cluster_resources()["CPU"])), waiting, strict=False):
            pending[remote.remote(items[position])] = position
        while pending:
            done, _ = ray.wait(list(pending), num_returns=1)
            position = pending.pop(done[0])
            following = next(waiting, None)
            if following is not None:
                pending[remote.remote(items[following])] = following
            try:
                yield position, ray.get(done[0]), ""
            except ray.exceptions.RayError as error:
                name = type(error).__name__
                yield position, None, f"its Ray worker was lost ({name}), often for want of memory; run it alone"
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Try to reach ``host:port`` for a few seconds; Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        if address not in ("local", "auto"):
            raise _no_cluster(address, "not an address")
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError, OverflowError) as error:
        raise _no_cluster(address, str(error)) from None


def _no_cluster(address: str, reason: str) -> ConfigError:
    return ConfigError(
        f"no Ray cluster at '{address}' ({reason})",
        allowed="host:port, auto or local",
        fix="start it or correct the address",
    )


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
