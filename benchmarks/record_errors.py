"""A pytest plugin that writes the text of every error of a test run to a file, one a line, sorted.

``ERRORS_FILE=before.txt PYTHONPATH=CHECKOUT/src:CHECKOUT/benchmarks pytest -p record_errors``: places and numbers are
left out, so that the files of two checkouts can be compared. Errors made in other processes than pytest's are not seen.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from poyo_ssl.errors import PoyoError

FILE = Path(os.environ.get("ERRORS_FILE", "errors.txt")).absolute()
SEEN: set[str] = set()


def normalise(text: str) -> str:
    """Take paths of temporary files, addresses and numbers out of an error.

    Examples
    --------
    >>> normalise("/tmp/pytest-of-me/pytest-0/test_x0/a.h5 has 3 of -2.5e-3 s")
    '<tmp>/a.h5 has N of N s'
    """
    text = re.sub(r"\S*?/pytest-of-[^/\s]+/[^/\s]+/(popen-[^/\s]+/)?[^/\s;)',]+", "<tmp>", text)
    text = re.sub(r"/tmp/[^/\s;)',]+", "<tmp>", text)
    text = re.sub(r"\b0x[0-9a-f]+\b", "<address>", text)
    return re.sub(r"-?\d+(\.\d+)?(e[-+]?\d+)?", "N", text)


def _record(make: Any) -> Any:
    def init(self: PoyoError, *arguments: Any, **more: Any) -> None:
        make(self, *arguments, **more)
        SEEN.add(f"{type(self).__name__}: {normalise(str(self))}")

    return init


def pytest_configure() -> None:
    """Watch every error that is made."""
    PoyoError.__init__ = _record(PoyoError.__init__)  # type: ignore[method-assign]


def pytest_sessionfinish(session: Any) -> None:
    """Write what was seen: each worker a file of its own, which the one that started them merges."""
    worker = getattr(session.config, "workerinput", {}).get("workerid", "")
    parts = [] if worker else sorted(FILE.parent.glob(f"{FILE.name}.gw*"))
    for part in parts:
        SEEN.update(part.read_text(encoding="utf-8").splitlines())
        part.unlink()
    path = FILE.with_name(f"{FILE.name}.{worker}") if worker else FILE
    path.write_text("".join(f"{line}\n" for line in sorted(SEEN)), encoding="utf-8")
