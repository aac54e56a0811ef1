"""Frames in, predictions out, over a loopback socket or a pipe, for a rig in any language (docs/online.md)."""

from __future__ import annotations

import contextlib
import gc
import socket
import socketserver
import threading
from collections.abc import Callable
from typing import Any, BinaryIO, Protocol

from poyo_ssl.errors import StreamError
from poyo_ssl.online import wire
from poyo_ssl.online.decoder import Counts, Decoder

LOOPBACK = "127.0.0.1"
"""dF/F and predictions never leave the machine: there is no other address to listen on."""

LINGER_S, LINGER_READS = 0.5, 256


class Sink(Protocol):
    """A binary stream that takes bytes."""

    def write(self, data: bytes, /) -> object:
        """Take all of `data`."""

    def flush(self) -> object:
        """Send what was written."""


def warm_up(decoder: Decoder) -> None:
    """Let a decoder make its tables now, so that the first prediction takes no longer than the others.

    What is loaded by then is also taken from the garbage collector's rounds (`gc.freeze`): a frame in which it goes
    over all of torch would be late.
    """
    for _ in range(decoder.num_frames):
        decoder.step([0.0] * len(decoder.unit_ids))
    decoder.reset()
    gc.collect()
    gc.freeze()


def answer(decoder: Decoder, source: wire.Source, sink: Sink) -> Counts:
    """Greet, then answer every message until the stream ends.

    A frame that the decoder refuses (its time is not later than the last) is answered with an error and leaves the
    decoder as it was. A message that cannot be told from the next is answered with an error too, and ends the stream.

    Parameters
    ----------
    decoder : Decoder
        It forgets all frames first.
    source, sink : binary streams
        Where messages come from and replies go to (`poyo_ssl.online.wire`).

    Returns
    -------
    Counts
        What came in.

    Raises
    ------
    StreamError
        If a length is that of no message, or the stream ends within one.
    OSError
        If the other side is gone while it is written to.

    Examples
    --------
    >>> import io, tempfile, poyo_ssl as ps
    >>> from poyo_ssl.config import OptimConfig
    >>> folder = tempfile.mkdtemp()
    >>> _ = ps.generate_observatory(f"{folder}/data", size="tiny")
    >>> config = ps.FinetuneConfig(
    ...     model=ps.ModelConfig(dim=8, dim_head=8, depth=1),
    ...     window=ps.WindowConfig(window_s=0.5, units="all"), optim=OptimConfig(epochs=1))
    >>> recording = ps.open_recordings(f"{folder}/data")[0]
    >>> decoder = Decoder(ps.finetune([recording], f"{folder}/run", config=config, progress=False))
    >>> sent = b"".join(wire.encode_frame(frame) for frame in recording.read_dff(0, 20))
    >>> replies = io.BytesIO()
    >>> answer(decoder, io.BytesIO(sent), replies)
    Counts(frames=20, dropped=0, missing=0)
    """
    decoder.reset()
    reader = wire.FrameReader(source, len(decoder.unit_ids))
    _send(sink, wire.greeting(decoder))
    while True:
        try:
            message = reader.read()
        except StreamError as error:
            _send(sink, wire.encode_error(error))
            raise
        if message is None:
            return decoder.counts
        frame, time = message
        try:
            if frame is None:
                decoder.skip()
                reply = wire.encode_dropped(decoder)
            else:
                reply = wire.encode_prediction(decoder.step(frame, time))
        except StreamError as error:
            reply = wire.encode_error(error)
        _send(sink, reply)


def _send(sink: Sink, data: bytes) -> None:
    sink.write(data)
    sink.flush()


class Server(socketserver.ThreadingTCPServer):
    """One client at a time on a loopback port; each starts with an empty window, others are told that it is busy.

    Closing it ends every connection and waits for their threads: one that still computes when the interpreter goes
    would crash it.

    Parameters
    ----------
    decoder : Decoder
        What answers.
    port : int
        Port; 0 takes a free one.
    report : callable
        Called with one line for every client that comes or goes.

    Raises
    ------
    StreamError
        If the port cannot be had.

    Examples
    --------
    ``with Server(decoder, 0, report=print) as server: server.serve_forever()`` answers until `shutdown`.
    """

    allow_reuse_address = True

    def __init__(self, decoder: Decoder, port: int, *, report: Callable[[str], None]) -> None:
        self.decoder, self.report, self.busy = decoder, report, threading.Lock()
        self.connections: set[socket.socket] = set()
        try:
            super().__init__((LOOPBACK, port), _Client)
        except (OSError, OverflowError) as error:
            raise StreamError(
                f"port {port} of {LOOPBACK} cannot be opened ({error})",
                allowed="a free port from 1024 to 65535, or 0 for any",
                fix="pass another --port",
            ) from None

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread of its own."""
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget a connection that has been served."""
        self.connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """End every connection, wait for their threads and free the port."""
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        super().server_close()


class _Client(socketserver.BaseRequestHandler):
    server: Server
    request: socket.socket

    def handle(self) -> None:
        name, server = f"client {self.client_address[0]}:{self.client_address[1]}", self.server
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A buffer whose reader is gone cannot be flushed when it is closed either: that has been told by then.
        with (
            contextlib.suppress(OSError),
            self.request.makefile("rb") as source,
            self.request.makefile("wb") as sink,
        ):
            if not server.busy.acquire(blocking=False):
                server.report(f"{name} refused: another client is connected")
                _refuse(sink)
                return
            try:
                server.report(f"{name} connected")
                server.report(f"{name} done: {_tell(answer(server.decoder, source, sink))}")
            except StreamError as error:
                server.report(f"{name} sent away: {error}")
            except OSError as error:
                counts = _tell(server.decoder.counts)
                server.report(f"{name} lost ({error.strerror or error}): {counts}")
            finally:
                server.busy.release()

    def finish(self) -> None:
        """Read on for a moment: a socket that is closed on unread bytes takes its last reply back."""
        scratch = bytearray(4096)
        with contextlib.suppress(OSError):
            self.request.shutdown(socket.SHUT_WR)
            self.request.settimeout(LINGER_S)
            for _ in range(LINGER_READS):
                if not self.request.recv_into(scratch):
                    return


def _refuse(sink: BinaryIO) -> None:
    error = StreamError("another client is connected", allowed="one at a time", fix="close that one first")
    _send(sink, wire.encode_error(error))


def _tell(counts: Counts) -> str:
    return f"{counts.frames} frames, {counts.dropped} dropped, {counts.missing} values missing"
