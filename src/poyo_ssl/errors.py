"""Errors meant for users: one line that names what was given, what is allowed and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import partial
from typing import Any


class PoyoError(Exception):
    """A mistake in what the user gave; the command line prints it as one line and exits with code 2.

    Parameters
    ----------
    problem : str
        What was found, with the offending value in it.
    allowed : str, optional
        What would have been accepted.
    fix : str, optional
        What the user can do, where `allowed` does not say it.

    Examples
    --------
    >>> str(PoyoError("window of -1 s", allowed="0.033 to 2 s", fix="pass --window_s 1.0"))
    'window of -1 s (allowed: 0.033 to 2 s); pass --window_s 1.0'
    """

    def __init__(self, problem: str, *, allowed: str | None = None, fix: str = "") -> None:
        self.problem, self.allowed, self.fix = problem, allowed, fix
        limit = f" (allowed: {allowed})" if allowed else ""
        super().__init__(" ".join(f"{problem}{limit}{'; ' if fix else ''}{fix}".split()))

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel between processes: pickle would make an exception from its message alone."""
        return partial(type(self), allowed=self.allowed, fix=self.fix), (self.problem,)


class ConfigError(PoyoError):
    """A setting, flag or command that does not exist or has a value outside its range."""


class RecordingError(PoyoError):
    """A recording file that is missing, damaged, inconsistent or lacks what was asked of it."""


class BatchError(PoyoError):
    """A tensor of a batch whose shape or type does not go with the others."""


class SelectionError(PoyoError):
    """A selection of neurons that cannot be made or that keeps nothing."""


class SplitError(PoyoError):
    """A split that leaves a part without any window."""


class CheckpointError(PoyoError):
    """A run folder or checkpoint that is missing, incomplete or of another model."""


class StoppedError(PoyoError):
    """A training that was asked to stop (SIGTERM) and can go on."""


class StreamError(PoyoError):
    """A frame, message or connection that the online decoder cannot use."""


class ResourceError(PoyoError):
    """Too little memory or disk foreseen for what was asked."""


def suggest(word: str, known: Iterable[str]) -> str:
    """Return ``", did you mean 'X'?"`` for the nearest known word, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f", did you mean '{close[0]}'?" if close else ""


def check(condition: bool, problem: str, allowed: str | None = None, fix: str = "") -> None:
    """Raise `ConfigError` unless the condition holds."""
    if not condition:
        raise ConfigError(problem, allowed=allowed, fix=fix)


def choose(name: str, given: str, known: Iterable[str]) -> None:
    """Raise `ConfigError` unless a word is among the known ones."""
    known = list(known)
    check(given in known, f"{name} '{given}'{suggest(given, known)}", ", ".join(known))
