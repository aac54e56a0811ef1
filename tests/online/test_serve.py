"""Serving: the messages, real sockets on loopback, and the command as a process with pipes."""

import collections
import contextlib
import gc
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from untrained import NUM_UNITS, make_recording, make_run

import poyo_ssl
from poyo_ssl.cli import main
from poyo_ssl.config import OptimConfig
from poyo_ssl.errors import StreamError
from poyo_ssl.online import Decoder, serve
from poyo_ssl.online.serve import Server, answer, warm_up
from poyo_ssl.training.predict import predict

DOCS = Path(__file__).parents[2] / "docs" / "online.md"
DFF = make_recording().dff


def make_decoder(output="gratings", **window):
    return Decoder(make_run(output, dtype=torch.float32, window=window), make_recording())


def expected(decoder, frames):
    decoder.reset()
    return [decoder.step(frame) for frame in frames]


@contextlib.contextmanager
def serving(decoder):
    lines = []
    with Server(decoder, 0, report=lines.append) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server, lines
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def connected(server):
    address = (server.server_address[0], server.port)
    with socket.create_connection(address, timeout=30) as connection, connection.makefile("rwb") as stream:
        yield connection, stream


def eventually(happened):
    """Wait for what another thread does after it has answered."""
    for _ in range(1000):
        if happened():
            return
        time.sleep(0.01)
    pytest.fail("it never happened")


def read(stream):
    return stream.read(*struct.unpack("<I", stream.read(4)))


def ask(stream, message):
    stream.write(message)
    stream.flush()
    reply = read(stream)
    return *struct.unpack_from("<Iddd", reply), reply[28:]


@pytest.mark.parametrize("output", ["gratings", "position", "frames"])
def test_the_client_of_the_docs_gets_what_the_decoder_says(output):
    code = re.search(r"```python\n(import json, socket.*?)```", DOCS.read_text(encoding="utf-8"), re.S)[1]
    assert len([line for line in code.splitlines() if line]) == 15
    decoder, got = make_decoder(output), []
    with serving(decoder) as (server, lines):
        names = {"frames": DFF[:20], "act_on": lambda output, class_value: got.append((output, class_value))}
        exec(code.replace("5005", str(server.port)), names)
        eventually(lambda: len(lines) == 2)
    wanted = [prediction for prediction in expected(decoder, DFF[:20]) if prediction.status == "ok"]
    assert len(got) == len(wanted) == 9
    for (value, class_value), prediction in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(value, prediction.output)
        assert value.shape == decoder.output_shape
        np.testing.assert_equal(class_value, np.nan if prediction.class_value is None else prediction.class_value)
    assert re.fullmatch(r"client 127\.0\.0\.1:\d+ done: 20 frames, 0 dropped, 0 values missing", lines[1])


def test_messages_to_the_byte():
    assert serve.encode_frame([1.0]).hex(" ", 4) == "04000000 0000803f"
    assert serve.encode_drop().hex() == "00000000"


def test_the_greeting_says_what_a_client_must_know():
    decoder = make_decoder("frames")
    sink = io.BytesIO()
    answer(decoder, io.BytesIO(b""), sink)
    sink.seek(0)
    facts = json.loads(read(sink))
    assert facts["unit_ids"] == [f"roi_{i:04d}" for i in range(NUM_UNITS)]
    assert (facts["format"], facts["task"], facts["dtype"], facts["shape"]) == (1, "frames", "uint8", [16, 32])
    assert facts["class_values"] is None
    assert facts["num_frames"] == 12
    assert sink.read() == b""


def test_times_drops_and_refused_frames():
    decoder = make_decoder()
    with serving(decoder) as (server, _), connected(server) as (_, stream):
        read(stream)
        assert ask(stream, serve.encode_frame(DFF[0], 5.0))[:3] == (1, 5.0, 1 / 12)
        status, _, _, _, text = ask(stream, serve.encode_frame(DFF[0], 5.0))
        assert status == 4
        assert text.decode().startswith("StreamError: a frame at 5.000000 s after one at 5.000000 s (allowed: a later")
        assert ask(stream, serve.encode_frame(DFF[0], float("nan")))[0] == 4
        status, when, coverage, value, payload = ask(stream, serve.encode_drop())
        assert (status, coverage, payload) == (3, 1 / 12, b"")
        assert when == pytest.approx(5.0 + 1 / decoder.rate_hz)
        assert np.isnan(value)
        assert ask(stream, serve.encode_frame(np.full(NUM_UNITS, np.nan)))[0] == 1
        assert ask(stream, serve.encode_frame(DFF[3], 6.0))[1] == 6.0
    assert decoder.counts.frames == 3
    assert decoder.counts.missing == NUM_UNITS


@pytest.mark.parametrize("length", [1, 4 * NUM_UNITS - 1, 4 * NUM_UNITS + 4, 8 + 4 * NUM_UNITS + 1, 2**31, 2**32 - 1])
def test_a_wrong_length_is_refused_before_anything_is_read_for_it(length):
    class Counting(io.BytesIO):
        asked = 0

        def readinto(self, buffer):
            self.asked += len(buffer)
            return super().readinto(buffer)

    source = Counting(struct.pack("<I", length) + b"x" * 100)
    reader = serve.FrameReader(source, NUM_UNITS)
    with pytest.raises(StreamError, match=rf"a message of {length} bytes for 7 neurons.*28 \(a frame\), 36 .* or 0"):
        reader.read()
    assert source.asked == 4
    assert len(reader.buffer) == 8 + 4 * NUM_UNITS


def test_a_wrong_length_ends_the_connection_with_a_named_line_and_the_next_client_is_served():
    with serving(make_decoder()) as (server, lines):
        with connected(server) as (connection, stream):
            read(stream)
            connection.sendall(struct.pack("<I", 2**32 - 1) + b"y" * 100_000)  # more than the server will ever read
            reply = read(stream)
            assert struct.unpack_from("<I", reply)[0] == 4
            assert reply[28:].startswith(b"StreamError: a message of 4294967295 bytes for 7 neurons")
            assert stream.read(1) == b""
        eventually(lambda: not server.busy.locked())
        with connected(server) as (_, stream):
            read(stream)
            assert ask(stream, serve.encode_frame(DFF[0]))[0] == 1
    assert any("sent away: a message of 4294967295 bytes" in line for line in lines)


@pytest.mark.parametrize("how", ["in the middle of a frame", "in the middle of a length", "by a reset"])
def test_a_client_may_vanish(how):
    decoder = make_decoder()
    with serving(decoder) as (server, lines):
        with connected(server) as (connection, stream):
            read(stream)
            ask(stream, serve.encode_frame(DFF[0]))
            if how == "by a reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                stream.write(serve.encode_frame(DFF[1])[: 10 if "frame" in how else 2])
        eventually(lambda: any("sent away: the stream ended after" in line or "lost" in line for line in lines))
        eventually(lambda: not server.busy.locked())
        with connected(server) as (_, stream):
            read(stream)
            # The window is empty again: nothing of the one before is left.
            assert ask(stream, serve.encode_frame(DFF[0]))[2] == 1 / 12


def test_a_reply_that_nobody_takes_is_told_in_one_line(capfd):
    class Gone(io.RawIOBase):
        def writable(self):
            return True

        def write(self, data):
            raise BrokenPipeError(32, "Broken pipe")

    class Request:
        def makefile(self, mode):
            return io.BufferedReader(io.BytesIO()) if mode == "rb" else io.BufferedWriter(Gone())

        def __getattr__(self, name):
            return lambda *_: b""

    lines = []
    with Server(make_decoder(), 0, report=lines.append) as server:
        server.process_request(Request(), ("127.0.0.1", 9))
    assert lines == [
        "client 127.0.0.1:9 connected",
        "client 127.0.0.1:9 lost (Broken pipe): 0 frames, 0 dropped, 0 values missing",
    ]
    assert capfd.readouterr().err == ""


def test_a_second_client_is_told_that_the_server_is_busy():
    with serving(make_decoder()) as (server, lines), connected(server) as (_, stream):
        read(stream)
        with connected(server) as (_, other):
            reply = read(other)
            assert struct.unpack_from("<I", reply)[0] == 4
            assert reply[28:].startswith(b"StreamError: another client is connected")
            assert other.read(1) == b""
        assert ask(stream, serve.encode_frame(DFF[0]))[0] == 1
    assert any("refused" in line for line in lines)


@pytest.mark.parametrize("bin_frames", [1, 2, 3])
def test_every_client_gets_the_offline_answers(bin_frames):
    """A second client comes after more than four windows of the first, and then a reset."""
    decoder, recording = make_decoder(bin_frames=bin_frames), make_recording()
    offline = predict(decoder.run, recording).probabilities
    frames = list(zip(recording.dff, recording.timestamps, strict=True))
    with serving(decoder) as (server, _):
        for num_frames in (55, 60):
            eventually(lambda: not server.busy.locked())
            with connected(server) as (_, stream):
                read(stream)
                replies = [ask(stream, serve.encode_frame(*frame)) for frame in frames[:num_frames]]
            got = [np.frombuffer(payload, "<f4") for status, *_, payload in replies if status == 0]
            np.testing.assert_allclose(got, offline[: num_frames - 11], rtol=1e-4, atol=1e-6)
    decoder.reset()
    answers = [decoder.step(*frame) for frame in frames]
    np.testing.assert_allclose([answer.output for answer in answers[11:]], offline, rtol=1e-4, atol=1e-6)


def test_a_port_that_is_taken_is_named():
    decoder = make_decoder()
    with serving(decoder) as (server, _), pytest.raises(StreamError, match=rf"port {server.port} .*another --port"):
        Server(decoder, server.port, report=print)
    with pytest.raises(StreamError, match="port 70000"):
        Server(decoder, 70_000, report=print)


def test_warming_up_leaves_no_trace():
    decoder = make_decoder()
    try:
        warm_up(decoder)
        assert gc.get_freeze_count() > 10_000  # torch alone is more
    finally:
        gc.unfreeze()
    assert decoder.counts.frames == 0
    assert decoder.step(DFF[0]).status == "filling"


class Trickle(io.RawIOBase):
    """A stream that gives at most so many bytes at a time."""

    def __init__(self, data, sizes):
        self.data, self.sizes = data, sizes

    def readinto(self, buffer):
        size = min(self.sizes.pop() if self.sizes else 3, len(buffer), len(self.data))
        buffer[:size], self.data = self.data[:size], self.data[size:]
        return size


@given(st.lists(st.one_of(st.none(), st.floats(0, 9))), st.lists(st.integers(1, 50)), st.integers(0, 200))
def test_messages_survive_any_cutting_and_a_cut_end_is_an_error(times, sizes, cut):
    frames = [np.arange(3, dtype=np.float32) + i for i in range(len(times))]
    data = b"".join(serve.encode_frame(frame, when) for frame, when in zip(frames, times, strict=True))
    reader = serve.FrameReader(Trickle(data, list(sizes)), 3)
    for frame, when in zip(frames, times, strict=True):
        got, got_when = reader.read()
        np.testing.assert_array_equal(got, frame)
        assert got_when == when
    assert reader.read() is None
    whole = {0}
    for when in times:
        whole.add(max(whole) + len(serve.encode_frame(frames[0], when)))
    reader = serve.FrameReader(Trickle(data[:cut], list(sizes)), 3)
    ended = contextlib.nullcontext()
    if min(cut, len(data)) not in whole:
        ended = pytest.raises(StreamError, match="the stream ended after")
    with ended:
        collections.deque(iter(reader.read, None))


@given(st.binary(max_size=60))
def test_noise_is_read_or_refused(data):
    reader = serve.FrameReader(io.BytesIO(data), 2)
    with contextlib.suppress(StreamError):
        collections.deque(iter(reader.read, None))


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """Return a small fine-tuned run on disk, and frames of its recording."""
    folder = tmp_path_factory.mktemp("serve")
    poyo_ssl.generate_observatory(folder / "data", size="tiny")
    recording = poyo_ssl.open_recordings(folder / "data")[0]
    config = poyo_ssl.FinetuneConfig(
        model=poyo_ssl.ModelConfig(dim=8, dim_head=8, depth=1),
        window=poyo_ssl.WindowConfig(window_s=0.5, units="all"),
        optim=OptimConfig(epochs=1),
    )
    poyo_ssl.finetune([recording], folder / "run", config=config, progress=False)
    return folder / "run", recording.read_dff(0, 18)


@contextlib.contextmanager
def start(*arguments):
    """Run the command; whatever happens, it does not outlive the test."""
    environment = os.environ | {"PYTHONPATH": str(Path(poyo_ssl.__file__).parents[1]), "COLUMNS": "300"}
    command = [sys.executable, "-m", "poyo_ssl", "serve", *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def test_the_command_answers_in_a_pipe(run_folder):
    folder, frames = run_folder
    decoder = Decoder(folder)
    wanted = io.BytesIO()
    sent = b"".join(serve.encode_frame(frame) for frame in frames)
    answer(decoder, io.BytesIO(sent), wanted)
    with start(folder, "--pipe", "true") as process:
        out, complaints = process.communicate(sent + struct.pack("<I", 5), timeout=120)
    assert out.startswith(wanted.getvalue())
    assert out[len(wanted.getvalue()) + 32 :].startswith(b"StreamError: a message of 5 bytes")
    assert process.returncode == 2
    assert complaints.decode().startswith("poyo-ssl: a message of 5 bytes")
    assert len(complaints.decode().strip().splitlines()) == 1


def test_the_command_answers_on_a_port_until_it_is_stopped(run_folder):
    folder, frames = run_folder
    with start(folder, "--port", 0) as process:
        port = int(re.search(rb"on 127\.0\.0\.1:(\d+);", process.stderr.readline())[1])
        with socket.create_connection(("127.0.0.1", port), 60) as connection, connection.makefile("rwb") as stream:
            facts = json.loads(read(stream))
            statuses = [ask(stream, serve.encode_frame(frame))[0] for frame in frames]
            assert statuses == [1] * (facts["num_frames"] - 1) + [0] * (len(frames) - facts["num_frames"] + 1)
            process.send_signal(signal.SIGTERM)
            assert stream.read(1) == b""
        out, complaints = process.communicate(timeout=60)
    assert process.returncode == 0, complaints
    assert out == b""
    connected, *last = sorted(complaints.decode().splitlines())
    assert re.fullmatch(r"client \S+ connected", connected)
    assert last == [
        f"{connected.removesuffix('connected')}done: {len(frames)} frames, 0 dropped, 0 values missing",
        "stopped",
    ]


def test_a_closed_server_leaves_no_thread_and_no_client():
    before = threading.active_count()
    with serving(make_decoder()) as (server, lines), connected(server) as (_, stream):
        read(stream)
        ask(stream, serve.encode_frame(DFF[0]))
        server.shutdown()
        server.server_close()
        assert not server.busy.locked()
        assert stream.read(1) == b""
        assert threading.active_count() <= before + 1  # the one that called serve_forever
    assert re.fullmatch(r"client \S+ done: 1 frames, 0 dropped, 0 values missing", lines[-1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "0"], "--threads 0 (allowed: 1 or more)"),
        (["--recording", "nobody"], "recording nobody is not known to"),
        (["--min_coverage", "3"], "min_coverage of 3.0"),
        (["--port", "-1"], "port -1 of 127.0.0.1"),
    ],
)
def test_mistakes_are_answered_in_one_line(run_folder, capsys, arguments, message):
    threads = torch.get_num_threads()
    try:
        assert main(["serve", str(run_folder[0]), *arguments]) == 2
    finally:
        torch.set_num_threads(threads)
    err = capsys.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_serving_needs_no_training_code():
    """What decodes online starts without Lightning, whose import takes longer than all else together."""
    script = "import sys, poyo_ssl.online.serve; print([name for name in sys.modules if 'lightning' in name])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
