"""The messages between a rig and `poyo-ssl serve`: length-prefixed, little-endian, the same on a socket and a pipe.

To the server, ``uint32`` length in bytes, then for C neurons one of

- ``float32[C]``: a frame that follows the one before it at the imaging rate (length 4 C);
- ``float64`` time in seconds, ``float32[C]``: a frame with a time of its own (length 8 + 4 C);
- nothing: the next frame was dropped (length 0).

From the server, first a greeting, ``uint32`` length and that many bytes of JSON (`greeting`); then to each message one
reply ::

    uint32 length     bytes after this field
    uint32 status     0 ok, 1 filling, 2 sparse, 3 dropped, 4 error
    float64 time      seconds of the newest frame
    float64 coverage  share of the window that was there, 0-1
    float64 class     the class's own value, NaN if there is none
    payload           status 0: the output as the greeting describes it; status 4: one line of UTF-8; else nothing
"""

from __future__ import annotations

import json
import math
import struct
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from poyo_ssl.errors import StreamError
from poyo_ssl.online.decoder import Decoder, Prediction

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

    Parameters
    ----------
    source : Source
        Where the bytes come from.
    num_units : int
        Neurons in a frame, C.

    Examples
    --------
    >>> import io
    >>> sent = encode_frame([1.0, 2.0]) + encode_frame([3.0, float("nan")], time=0.5) + encode_drop()
    >>> reader = FrameReader(io.BytesIO(sent), 2)
    >>> for _ in range(4):
    ...     print(reader.read())
    (array([1., 2.], dtype=float32), None)
    (array([ 3., nan], dtype=float32), 0.5)
    (None, None)
    None
    """

    def __init__(self, source: Source, num_units: int) -> None:
        self.source, self.num_units = source, num_units
        self.buffer = memoryview(bytearray(TIME.size + 4 * num_units))

    def read(self) -> tuple[NDArray[np.float32] | None, float | None] | None:
        """Return the next message as (frame, time), its frame None if it was dropped; None at the end.

        The frame is a view of the buffer: the next call overwrites it.

        Raises
        ------
        StreamError
            If the length is that of no message, or the stream ends within one. Nothing more can be read then.
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
    """Return the message of one frame.

    Parameters
    ----------
    values : array
        ``(C,)`` dF/F.
    time : float, optional
        Seconds on the rig's clock.

    Examples
    --------
    >>> encode_frame([1.0]).hex(" ", 4)
    '04000000 0000803f'
    """
    body = (b"" if time is None else TIME.pack(time)) + np.asarray(values, "<f4").tobytes()
    return LENGTH.pack(len(body)) + body


def encode_drop() -> bytes:
    """Return the message that says that a frame was dropped.

    Examples
    --------
    >>> encode_drop().hex()
    '00000000'
    """
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
