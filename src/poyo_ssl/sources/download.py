"""Fetch large files over HTTP: broken connections are continued, and what arrives is checked before it gets its name.

A file in work is ``NAME.partial``, with ``NAME.partial.json`` beside it, which holds the server's tag of the version
(ETag), its size and checksum. The next attempt, or the next run, asks for the rest of that very version (Range,
If-Range); a server that cannot do so, or holds another version by now, sends the file from its beginning.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from poyo_ssl.errors import ConfigError, RecordingError, ResourceError

BLOCK_BYTES = 1 << 20
SPARE_DISK_BYTES = 1 << 30
NOT_NOW = (408, 425, 429, 500, 502, 503, 504)
"""Answers of a server that may be other ones a little later."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Patience:
    """How long to try."""

    attempts: int = 6  # that may fail in a row without the file having grown
    first_wait_s: float = 1.0  # after a failure; it doubles from failure to failure
    longest_wait_s: float = 60.0
    timeout_s: float = 60.0  # silence of the server that counts as a failure

    def wait_s(self, failures: int) -> float:
        """Return the wait after so many failures in a row."""
        return min(self.first_wait_s * 2 ** (failures - 1), self.longest_wait_s)


class _AttemptError(Exception):
    """An attempt that failed and may be repeated; `reached` tells whether a server answered at all."""

    def __init__(self, reason: str, *, reached: bool = True) -> None:
        super().__init__(reason)
        self.reached = reached


def check_address(address: str) -> str:
    """Return the address of a folder on the web, without a final slash."""
    parts = urllib.parse.urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        raise ConfigError(f"address '{address}'", allowed="http:// or https:// and a folder")
    return address.rstrip("/")


def download(
    url: str,
    target: Path,
    *,
    check: Callable[[Path], object] | None = None,
    progress: Progress | None = None,
    patience: Patience = Patience(),
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """Fetch one file; a file that is there is taken as it is, since only a checked one ever gets the name.

    Size and, where the server gives one, MD5 checksum must be those that were announced. `check` is given the complete
    file before it gets its name, and raises `RecordingError` if it is not what it must be. `progress` is called with
    the bytes that are there and the size, after every megabyte.
    """
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _Partial(target)
    failures, longest = 0, partial.size
    while True:
        try:
            _attempt(url, partial, progress, patience.timeout_s)
            _verify(partial, check)
            break
        except _AttemptError as error:
            # A connection that breaks again and again gets on; one that never gets further does not.
            failures = 1 if partial.size > longest else failures + 1
            longest = max(longest, partial.size)
            if failures >= patience.attempts:
                _give_up(url, partial, error, failures)
            sleep(patience.wait_s(failures))
    partial.finish()
    return target


def _give_up(url: str, partial: _Partial, error: _AttemptError, failures: int) -> None:
    if error.reached:
        there = f"{partial.size} of {partial.total or 'unknown'} bytes are there"
        raise RecordingError(
            f"{url} could not be fetched in {failures} attempts ({error}; {there})", fix="run it again to continue"
        ) from None
    host = urllib.parse.urlsplit(url).netloc
    raise ConfigError(
        f"no answer from {host} in {failures} attempts ({error})", fix="check the connection and --address"
    ) from None


class _Partial:
    """A file in work: its bytes, and which version of the file on the server they are of."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(target.name + ".partial")
        self.note = target.with_name(target.name + ".partial.json")
        try:
            facts = json.loads(self.note.read_text("utf-8"))
            self.etag, self.total, self.md5 = str(facts["etag"]), int(facts["total"]), str(facts["md5"])
        except (OSError, ValueError, KeyError, TypeError):
            # No note or a damaged one: of which version the bytes are is not known.
            self.restart()

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def restart(self) -> None:
        self.etag, self.total, self.md5 = "", 0, ""
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def begin(self, etag: str, total: int, md5: str) -> None:
        """Start with no bytes of a version."""
        self.restart()
        self.etag, self.total, self.md5 = etag, total, md5
        self.path.touch()
        # A weak tag does not promise the same bytes: what is continued by it could be a mixture.
        if etag and not etag.startswith("W/"):
            self.note.write_text(json.dumps({"etag": etag, "total": total, "md5": md5}), "utf-8")

    def finish(self) -> None:
        self.path.replace(self.target)
        self.note.unlink(missing_ok=True)


def _attempt(url: str, partial: _Partial, progress: Progress | None, timeout_s: float) -> None:
    """Ask once for what is missing, and write what comes; refuse a server that will not send the file."""
    headers = {"Accept-Encoding": "identity", "User-Agent": f"poyo-ssl/{version('poyo-ssl')}"}
    if not partial.note.exists():
        partial.restart()
    if partial.size and partial.size == partial.total:
        return
    if partial.size:
        headers |= {"Range": f"bytes={partial.size}-", "If-Range": partial.etag}
    try:
        with _opener().open(urllib.request.Request(url, headers=headers), timeout=timeout_s) as answer:
            _place(answer, partial, url)
            with partial.path.open("ab") as stream:
                while block := _read_block(answer):
                    stream.write(block)
                    if progress:
                        progress(stream.tell(), partial.total)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            partial.restart()
        elif error.code not in NOT_NOW:
            raise RecordingError(
                f"{url}: the server answers {error.code} {error.reason}", fix="check the id and --address"
            ) from None
        raise _AttemptError(f"the server answers {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise _AttemptError(str(error.reason), reached=False) from None
    except http.client.HTTPException as error:
        raise _AttemptError(f"{type(error).__name__} {error}".strip()) from None
    except (ConnectionError, TimeoutError) as error:
        raise _AttemptError(str(error) or type(error).__name__) from None
    if partial.size < partial.total:
        raise _AttemptError(f"the connection broke after {partial.size} of {partial.total} bytes")


def _opener() -> urllib.request.OpenerDirector:
    """Return an opener of HTTP alone: no redirection leads to a file of this machine."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener


def _read_block(answer: Any) -> bytes:
    try:
        return answer.read(BLOCK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        # Told apart from an error of the disk, which no repetition mends.
        raise _AttemptError(str(error) or type(error).__name__) from None


def _place(answer: Any, partial: _Partial, url: str) -> None:
    """Compare an answer with what is there; a whole file, or a part that does not fit, starts from nothing."""
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise RecordingError(f"{url} comes encoded as {answer.headers['Content-Encoding']}", fix="check --address")
    etag, size = answer.headers.get("ETag", ""), partial.size
    if answer.status == 206:
        span = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", answer.headers.get("Content-Range", ""))
        fits = span is not None and int(span[1]) == size and int(span[3]) == partial.total and etag == partial.etag
        if not fits:
            partial.restart()
            raise _AttemptError("the server continued another version of the file")
    elif answer.status == 200:
        length = answer.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise RecordingError(f"{url}: the server does not say how large the file is", fix="check --address")
        partial.begin(etag, int(length), _announced_md5(answer.headers))
    else:
        raise _AttemptError(f"the server answers {answer.status}")
    free = shutil.disk_usage(partial.path.parent).free
    missing = partial.total - partial.size
    if missing + SPARE_DISK_BYTES > free:
        raise ResourceError(
            f"{partial.target.name} needs {missing / 1e9:.2f} GB more, {free / 1e9:.2f} GB are free in "
            f"{partial.path.parent}",
            fix="make room, or choose another folder",
        )


def _announced_md5(headers: Any) -> str:
    """Return the MD5 that Amazon S3 uses as the tag of a file that was stored in one piece; else an empty text."""
    tag = headers.get("ETag", "").strip('"')
    of_s3 = headers.get("x-amz-request-id") and headers.get("x-amz-server-side-encryption", "AES256") == "AES256"
    return tag if of_s3 and re.fullmatch(r"[0-9a-f]{32}", tag) else ""


def _verify(partial: _Partial, check: Callable[[Path], object] | None) -> None:
    """Check a complete file; a wrong one is thrown away."""
    try:
        if partial.size != partial.total:
            raise _AttemptError(f"{partial.size} bytes came, {partial.total} were announced")
        if partial.md5:
            with partial.path.open("rb") as stream:
                found = hashlib.file_digest(stream, "md5").hexdigest()
            if found != partial.md5:
                raise _AttemptError(f"the checksum is {found}, announced was {partial.md5}")
        if check:
            check(partial.path)
    except (RecordingError, _AttemptError) as error:
        partial.restart()
        raise _AttemptError(str(error)) from None
