"""Frames in, predictions out, over a loopback socket or a pipe, for a rig in any language (docs/online.md)."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import socket
import socketserver
import struct
import threading
from collections.abc import Callable
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from poyo_ssl.errors import StreamError
from poyo_ssl.online.decoder import Counts, Decoder, Prediction

FORMAT = 1
STATUSES = ("ok", "filling", "sparse", "dropped", "error")
LENGTH = struct.Struct("<I")
REPLY = struct.Struct("<IIddd")
TIME = struct.Struct("<d")


class Source(Protocol):
    """A binary stream that fills a buffer, as far as it can in one go."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Return the number of bytes read; 0 at the end."""


class FrameReader:
    """Reads a rig's messages into one buffer that fits the longest message there is.

    A length that no message has is refused before anything is read or allocated for it.
    """

    def __init__(self, source: Source, num_units: int) -> None:
        self.source, self.num_units = source, num_units
        self.buffer = memoryview(bytearray(TIME.size + 4 * num_units))

    def read(self) -> tuple[NDArray[np.float32] | None, float | None] | None:
        """Return the next message as (frame, time), its frame None if it was dropped; None at the end.

        The frame is a view of the buffer: the next call overwrites it.
        """
        if not self._fill(LENGTH.size, what="a length", may_end=True):
            return None
        (length,) = LENGTH.unpack_from(self.buffer)
        bare, timed = 4 * self.num_units, TIME.size + 4 * self.num_units
        if length not in (0, bare, timed):
            raise StreamError(
                f"a message of {length} bytes for {self.num_units} neurons",
                allowed=f"{bare} (a frame), {timed} (time and frame) or 0 (a dropped frame)",
                fix="send float32 dF/F of the greeting's unit_ids, lengths as little-endian uint32, and connect again",
            )
        if length == 0:
            return None, None
        self._fill(length, what=f"a message of {length} bytes", may_end=False)
        offset = length - bare
        time = TIME.unpack_from(self.buffer)[0] if offset else None
        return np.frombuffer(self.buffer, "<f4", count=self.num_units, offset=offset), time

    def _fill(self, count: int, *, what: str, may_end: bool) -> bool:
        filled = 0
        while filled < count:
            num_read = self.source.readinto(self.buffer[filled:count])
            if not num_read:
                if may_end and filled == 0:
                    return False
                raise StreamError(
                    f"the stream ended after {filled} of {count} bytes of {what}", fix="send whole messages"
                )
            filled += num_read
        return True


def encode_frame(values: Any, time: float | None = None) -> bytes:
    """Return the message of one frame."""
    body = (b"" if time is None else TIME.pack(time)) + np.asarray(values, "<f4").tobytes()
    return LENGTH.pack(len(body)) + body


def encode_drop() -> bytes:
    """Return the message that says that a frame was dropped."""
    return LENGTH.pack(0)


def greeting(decoder: Decoder) -> bytes:
    """Return the first message of a server, JSON.

    Fields: ``format``, ``recording_id``, ``unit_ids`` (the neurons of a frame, in order), ``rate_hz``, ``num_frames``
    (of a window), ``task``, ``dtype`` and ``shape`` of an output, ``class_values`` (what the classes mean, or null).
    """
    values = decoder.run.class_values
    facts = {
        "format": FORMAT,
        "recording_id": decoder.recording_id,
        "unit_ids": decoder.unit_ids,
        "rate_hz": decoder.rate_hz,
        "num_frames": decoder.num_frames,
        "task": decoder.run.task,
        "dtype": "uint8" if decoder.run.task == "frames" else "float32",
        "shape": decoder.output_shape,
        "class_values": None if values is None else values.tolist(),
    }
    body = json.dumps(facts).encode()
    return LENGTH.pack(len(body)) + body


def encode_prediction(prediction: Prediction) -> bytes:
    """Return the reply that carries a prediction."""
    payload = b""
    if prediction.output is not None:
        dtype = "u1" if prediction.output.dtype == np.uint8 else "<f4"
        payload = np.asarray(prediction.output, dtype).tobytes()
    value = math.nan if prediction.class_value is None else prediction.class_value
    return _reply(prediction.status, prediction.time, prediction.coverage, value, payload)


def encode_dropped(decoder: Decoder) -> bytes:
    """Return the reply to a dropped frame."""
    return _reply("dropped", decoder.time, decoder.coverage, math.nan, b"")


def encode_error(error: StreamError) -> bytes:
    """Return the reply to a message that cannot be used: one line, its first word the error's name."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return _reply("error", math.nan, math.nan, math.nan, text.encode())


def _reply(status: str, time: float, coverage: float, value: float, payload: bytes) -> bytes:
    length = REPLY.size - LENGTH.size + len(payload)
    return REPLY.pack(length, STATUSES.index(status), time, coverage, value) + payload


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


def answer(decoder: Decoder, source: Source, sink: Sink) -> Counts:
    """Greet, then answer every message until the stream ends.

    A frame that the decoder refuses (its time is not later than the last) is answered with an error and leaves the
    decoder as it was. A message that cannot be told from the next is answered with an error too, and ends the stream.
    """
    decoder.reset()
    reader = FrameReader(source, len(decoder.unit_ids))
    _send(sink, greeting(decoder))
    while True:
        try:
            message = reader.read()
        except StreamError as error:
            _send(sink, encode_error(error))
            raise
        if message is None:
            return decoder.counts
        frame, time = message
        try:
            if frame is None:
                decoder.skip()
                reply = encode_dropped(decoder)
            else:
                reply = encode_prediction(decoder.step(frame, time))
        except StreamError as error:
            reply = encode_error(error)
        _send(sink, reply)


def _send(sink: Sink, data: bytes) -> None:
    sink.write(data)
    sink.flush()


class Server(socketserver.ThreadingTCPServer):
    """One client at a time on a loopback port; each starts with an empty window, others are told that it is busy.

    Closing it ends every connection and waits for their threads: one that still computes when the interpreter goes
    would crash it.
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
    _send(sink, encode_error(error))


def _tell(counts: Counts) -> str:
    return f"{counts.frames} frames, {counts.dropped} dropped, {counts.missing} values missing"
