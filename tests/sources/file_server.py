"""A web server of files in memory that misbehaves as it is told, for tests of downloads."""

import hashlib
import http.server
import os
import re
import threading
from contextlib import contextmanager
from unittest import mock


class FileServer(http.server.ThreadingHTTPServer):
    """`files` by path; `script` holds what goes wrong, one dict per request in their order; `seen` what was asked.

    A step of the script may have: `status` (answer with it), `redirect` (to an address), `ignore_range`,
    `break_after` (close the connection after so many bytes), `claim` (announce so many bytes), `etag`,
    `no_length`, `shift` (begin a part so many bytes later than asked), `encoding`.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.script: list[dict] = []
        self.seen: list[tuple[str, str | None]] = []
        self.s3 = False

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        """Say nothing."""

    def do_GET(self):
        server: FileServer = self.server
        step = server.script.pop(0) if server.script else {}
        asked = self.headers.get("Range")
        server.seen.append((self.path, asked))
        content = server.files.get(self.path)
        self.close_connection = True
        if "redirect" in step:
            return self._answer(302, {"Location": step["redirect"]}, b"")
        if "status" in step or content is None:
            return self._answer(step.get("status", 404), {}, b"no")
        etag = step.get("etag", f'"{hashlib.md5(content).hexdigest()}"')
        headers = {"ETag": etag}
        if server.s3:
            headers["x-amz-request-id"] = "1"
        if "encoding" in step:
            headers["Content-Encoding"] = step["encoding"]
        status, start = 200, 0
        current = self.headers.get("If-Range") in (None, etag)
        if asked and current and not step.get("ignore_range"):
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) + step.get("shift", 0)
            if start >= len(content):
                return self._answer(416, {"Content-Range": f"bytes */{len(content)}"}, b"")
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self._answer(status, headers, content[start:], step)

    def _answer(self, status, headers, body, step=None):
        step = step or {}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if not step.get("no_length"):
            self.send_header("Content-Length", str(step.get("claim", len(body))))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body[: step.get("break_after", len(body))])


@contextmanager
def serve_files():
    """Run a server on a free port of this machine, which no proxy stands in front of."""
    with FileServer() as server, mock.patch.dict(os.environ, {"no_proxy": "*"}):
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
