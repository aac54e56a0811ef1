"""Run a task on many items in processes that may die, or on a Ray cluster."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import socket
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from poyo_ssl.errors import ConfigError

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
