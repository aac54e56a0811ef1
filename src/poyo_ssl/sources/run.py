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
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import numpy as np

from poyo_ssl.data.stimuli import load_movie, movie_path, save_movie
from poyo_ssl.errors import ConfigError, PoyoError, RecordingError, check
from poyo_ssl.files import write_beside
from poyo_ssl.sources.base import Source, check_traces, clean_name, require

RECORDS = "conversion"
COMPARED_FRAMES = 16  # Evenly spread: a movie is recognised by them as the one that is there

Answer = tuple[int, Any, str]  # Position of the item, result, and, where there is none, why


def run_in_processes(
    task: Callable[[Any], Any], items: Sequence[Any], workers: int | None
) -> Generator[Answer, None, None]:
    """Run `task` on every item in up to `workers` processes (None: all cores); give answers as they come.

    `task` must be importable and must not raise. For one worker or item, no process is started. A process that dies
    (killed for want of memory, crash of a library) costs its own item only, which is answered with the reason; a new
    process takes its place. Stopping the iteration stops the processes.
    """
    _check_workers(workers)
    workers = min(workers or os.cpu_count() or 1, len(items))
    if workers <= 1:
        yield from ((position, task(item), "") for position, item in enumerate(items))
        return
    # Forking a process that has started threads can hang it: start fresh ones.
    context = multiprocessing.get_context("spawn")
    waiting = iter(range(len(items)))
    processes: dict[Connection, BaseProcess] = {}  # By the parent's end of the pipe
    busy: dict[Connection, int] = {}  # Position of the item in work

    def hand_over(pipe: Connection | None) -> None:
        """Give the next item to a process, or to a new one; without one, the process ends."""
        position = next(waiting, None)
        if position is None:
            if pipe is not None:
                pipe.close()
            return
        if pipe is None:
            pipe, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, task), daemon=True)
            process.start()
            theirs.close()
            processes[pipe] = process
        busy[pipe] = position
        # A process that has died leaves a broken pipe, of which the next wait tells.
        with contextlib.suppress(BrokenPipeError):
            pipe.send(items[position])

    try:
        for _ in range(workers):
            hand_over(None)
        while busy:
            pipe = wait(list(busy))[0]
            assert isinstance(pipe, Connection), pipe
            position = busy.pop(pipe)
            try:
                answer: Answer = (position, pipe.recv(), "")
            except (EOFError, ConnectionError):
                processes[pipe].join()
                answer = (position, None, _describe_death(processes[pipe].exitcode or 0))
                pipe.close()
            hand_over(None if pipe.closed else pipe)
            yield answer
    finally:
        for pipe, process in processes.items():
            if pipe in busy:
                process.terminate()
            # Python swallows the exit where the signal comes in a destructor or a callback of a weak reference: such a
            # process ends when it finds its pipe closed.
            pipe.close()
        for process in processes.values():
            process.join()


def _check_workers(workers: int | None) -> None:
    check(workers is None or workers >= 1, f"{workers} workers", "1 or more")


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


def _describe_death(exitcode: int) -> str:
    if exitcode >= 0:
        return f"its worker stopped with exit code {exitcode}; run it alone to see why"
    with contextlib.suppress(ValueError):
        name = signal.Signals(-exitcode).name
        if name == "SIGKILL":
            return f"its worker was killed ({name}), often for want of memory; use fewer --workers or run it alone"
        return f"its worker crashed ({name}); the file may be damaged, or a library has a defect: run it alone"
    return f"its worker was killed (signal {-exitcode}); run it alone to see why"


def run_on_ray(
    task: Callable[[Any], Any], items: Sequence[Any], workers: int | None, address: str
) -> Generator[Answer, None, None]:
    """Run `task` on every item on a Ray cluster, `workers` at a time (None: all its cores), like `run_in_processes`.

    `address` is ``auto`` (the cluster of this machine), ``host:port``, or ``local`` for `workers` processes here. Paths
    must mean the same on every machine of the cluster.
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
    problem = f"no Ray cluster at '{address}' ({reason})"
    return ConfigError(problem, allowed="host:port, auto or local", fix="start it or correct the address")


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
        'unchanged' if an earlier run made it of the same files with the same settings.
    warnings : tuple of str
        One line each; the recording holds them too.
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

    @property
    def target(self) -> Path:
        return self.output / f"{self.recording_id}.h5"

    @property
    def record(self) -> Path:
        return record_path(self.output, self.recording_id)


def record_path(output: Path, recording_id: str) -> Path:
    """Return where a data folder keeps what a recording was made of."""
    return output / RECORDS / f"{recording_id}.json"


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
        Kind of input, and its settings.
    input : path
        File or folder.
    output : path
        Data folder to make or complete.
    workers : int, optional
        Processes; None takes all cores. With 1 no process is started.
    ray : str, optional
        Address of a Ray cluster, or ``local``; paths must mean the same on all its machines.
    overwrite : bool
        Convert again what is there, and replace recordings of the same name that were made of something else.
    only : collection of str, optional
        Ids of the recordings to convert; all by default.
    progress : callable, optional
        Called with every outcome and the number of recordings.

    Returns
    -------
    list of Outcome
        In the order of `source.find`. A recording that cannot be converted has the status 'failed'.

    Raises
    ------
    RecordingError
        If there is nothing to convert.
    ConfigError
        If `workers` is below 1 or Ray cannot be reached.

    Examples
    --------
    >>> import tempfile
    >>> from poyo_ssl import ArraysSource, Companions, convert
    >>> folder = Path(tempfile.mkdtemp())
    >>> for mouse in ("mouse7", "mouse8"):
    ...     (folder / "lab" / mouse).mkdir(parents=True)
    ...     np.save(folder / "lab" / mouse / "dff.npy", np.random.default_rng(0).normal(size=(900, 4)))
    >>> source = ArraysSource(companions=Companions(rate_hz=30.0))
    >>> [(one.recording_id, one.status) for one in convert(source, folder / "lab", folder / "data")]
    [('mouse7', 'written'), ('mouse8', 'written')]
    """
    _check_workers(workers)
    input, output = Path(input), Path(output)
    require(output.is_dir() or not output.exists(), f"{output} is a file", fix="choose a folder")
    require(input.exists(), f"nothing at {input}", fix="check the path")
    found = [(path, clean_name(source.recording_id(path))) for path in source.find(input)]
    found = [(path, name) for path, name in found if only is None or name in only]
    require(found, f"none of the {len(only or ())} recordings asked for is in {input}", fix="check the path")
    outcomes: dict[int, Outcome] = {}

    def settle(position: int, outcome: Outcome) -> None:
        outcomes[position] = outcome
        if progress:
            progress(outcome, len(found))

    tasks, positions = [], []
    count = Counter(name for _, name in found)
    for position, (path, name) in enumerate(found):
        task = _Task(source, path, output, name, overwrite)
        if count[name] > 1:
            others = ", ".join(str(other) for other, twin in found if twin == name and other != path)
            settle(position, Outcome(name, path, "failed", error=f"{others} would be called {name} too; rename one"))
        elif not overwrite and (record := _find_record(task)):
            settle(position, Outcome(name, path, "unchanged", tuple(record["warnings"])))
        else:
            tasks.append(task)
            positions.append(position)
    if ray is None or not tasks:
        answers = run_in_processes(_convert_one, tasks, workers)
    else:
        answers = run_on_ray(_convert_one, tasks, workers, ray)
    with contextlib.closing(answers):
        for index, outcome, reason in answers:
            task = tasks[index]
            if outcome is None:
                for half in (task.target, task.record):
                    half.with_name(half.name + ".partial").unlink(missing_ok=True)
                outcome = Outcome(task.recording_id, task.path, "failed", error=reason)
            settle(positions[index], outcome)
    return [outcomes[position] for position in range(len(found))]


def describe_failure(error: Exception, path: Path) -> str:
    """Say in one line why a file could not be read or converted."""
    if isinstance(error, PoyoError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.strerror or error}: {error.filename or path}; check the file and the disk"
    if isinstance(error, MemoryError):
        return f"{path} does not fit in memory; use fewer --workers"
    return f"{path}: {type(error).__name__}: {' '.join(str(error).split())}; not foreseen, please report it"


def _convert_one(task: _Task) -> Outcome:
    """Convert one recording; whatever is wrong with its file is an outcome, not an exception."""
    try:
        return Outcome(task.recording_id, task.path, "written", _write(task))
    except Exception as error:
        return Outcome(task.recording_id, task.path, "failed", error=describe_failure(error, task.path))


def _write(task: _Task) -> tuple[str, ...]:
    source, path = task.source, task.path
    if task.target.exists() and not task.overwrite:
        _refuse_another(task)
    # Before reading: a file that changes meanwhile is converted again next time.
    facts = _describe(source, path)
    recording = dataclasses.replace(check_traces(source.read(path)), recording_id=task.recording_id)
    for name, pixels in source.movies(path):
        _write_movie(task.output, clean_name(name), pixels, overwrite=task.overwrite)
    facts |= {"path": str(path.absolute()), "warnings": list(recording.warnings), "version": version("poyo-ssl")}
    _write_record(task.record, facts | {"complete": False})
    source.save(recording, path, task.target)
    _write_record(task.record, facts | {"complete": True})
    return recording.warnings


def _write_record(path: Path, facts: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_beside(path, json.dumps(facts, indent=1) + "\n")


def _refuse_another(task: _Task) -> None:
    """Refuse to replace a recording that was made of something else and happens to have the same name."""
    kind, path, fix = task.source.name, task.path, "choose another output, or pass --overwrite to replace it"
    try:
        made = json.loads(task.record.read_text())
        made_by, where = made["source"], Path(made["path"])
    except FileNotFoundError:
        raise RecordingError(f"{task.target} exists", fix=fix) from None
    except (ValueError, KeyError, TypeError):
        # A damaged record tells nothing.
        return
    # An input that is no longer where it was has been moved; one that is still there is another one.
    if made_by != kind or (where != path.absolute() and where.exists() and not where.samefile(path)):
        raise RecordingError(f"{task.target} was made of {where} (prepare {made_by}), not of {path}", fix=fix)


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


def _find_record(task: _Task) -> dict[str, Any] | None:
    """Return the record of an earlier conversion of the very same input, if it was completed."""
    if not task.target.is_file():
        return None
    try:
        record = json.loads(task.record.read_text())
        same = all(record.get(key) == value for key, value in _describe(task.source, task.path).items())
        return record if same and record["complete"] else None
    except (OSError, ValueError, KeyError, AttributeError, PoyoError):
        # No record or a damaged one, or an input that cannot be read: the conversion says why.
        return None


def _write_movie(output: Path, name: str, pixels: Any, *, overwrite: bool) -> None:
    """Write a movie, or make sure that the one that is there is the same."""
    if overwrite or not movie_path(output, name).exists():
        save_movie(output, name, pixels)
        return
    there = load_movie(output, name)
    sample = np.unique(np.linspace(0, len(there) - 1, COMPARED_FRAMES).astype(int))
    same = tuple(pixels.shape) == there.shape
    same = same and all(np.array_equal(pixels[int(index)], there[int(index)]) for index in sample)
    here, stored = (" x ".join(map(str, movie.shape)) for movie in (pixels, there))
    problem = (
        f"the stimulus '{name}' of this recording ({here}) is not the one in {movie_path(output, name)} ({stored})"
    )
    require(same, problem, fix="give it another name or prepare into another folder")
