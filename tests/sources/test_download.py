"""Downloads from a server that breaks connections, ignores ranges and lies about sizes."""

import hashlib
import json

import numpy as np
import pytest
from tests.sources.file_server import serve_files

from poyo_ssl.errors import ConfigError, RecordingError, ResourceError
from poyo_ssl.sources import download as download_module
from poyo_ssl.sources.download import Patience, check_address, download

CONTENT = np.random.default_rng(0).bytes(3_000_000)
PATH = "/data/1.nwb"


@pytest.fixture
def server():
    with serve_files() as running:
        running.files[PATH] = CONTENT
        yield running


@pytest.fixture
def fetch(server, tmp_path):
    """Return a function that fetches the file without waiting, and notes the waits that it would have made."""

    def run(**settings):
        return download(server.address + PATH, tmp_path / "1.nwb", sleep=run.waits.append, **settings)

    run.waits = []
    return run


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_arrives_once(server, fetch, tmp_path):
    seen = []
    path = fetch(progress=lambda there, size: seen.append((there, size)))
    assert path.read_bytes() == CONTENT
    assert [there for there, _ in seen] == sorted({there for there, _ in seen})
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert leftovers(tmp_path) == ["1.nwb"]
    fetch()
    assert server.seen == [(PATH, None)]


def test_broken_connections_are_continued_where_they_broke(server, fetch, tmp_path):
    server.script = [{"break_after": 100}, {"break_after": 1_500_000}, {"status": 503}, {"break_after": 10}]
    assert fetch().read_bytes() == CONTENT
    asked = [None, "bytes=100-", "bytes=1500100-", "bytes=1500100-", "bytes=1500110-"]
    assert server.seen == [(PATH, span) for span in asked]
    # A wait grows only while the file does not.
    assert fetch.waits == [1.0, 1.0, 2.0, 1.0]
    assert leftovers(tmp_path) == ["1.nwb"]


def test_many_breaks_are_no_reason_to_give_up_as_long_as_the_file_grows(server, fetch):
    server.script = [{"break_after": 100_000}] * 25
    assert fetch(patience=Patience(attempts=2)).read_bytes() == CONTENT


def test_a_server_without_ranges_starts_again(server, fetch):
    server.script = [{"break_after": 1000}, {"ignore_range": True}]
    assert fetch().read_bytes() == CONTENT
    assert server.seen[1] == (PATH, "bytes=1000-")


def test_a_server_without_ranges_that_always_breaks_is_given_up(server, fetch, tmp_path):
    server.script = [{"break_after": 1000, "ignore_range": True}] * 9
    with pytest.raises(RecordingError, match=r"in 4 attempts .*broke after 1000 of 3000000 bytes; 1000 of 3000000"):
        fetch(patience=Patience(attempts=4))
    assert len(server.seen) == 4
    assert leftovers(tmp_path) == ["1.nwb.partial", "1.nwb.partial.json"]


def test_a_later_run_goes_on_with_the_same_version_only(server, fetch, tmp_path):
    server.script = [{"break_after": 2_000_000}] + [{"status": 500}] * 3
    with pytest.raises(RecordingError, match="2000000 of 3000000 bytes are there"):
        fetch(patience=Patience(attempts=3))
    assert fetch().read_bytes() == CONTENT
    assert server.seen[-1] == (PATH, "bytes=2000000-")
    (tmp_path / "1.nwb").unlink()
    server.script = [{"break_after": 2_000_000}] + [{"status": 500}] * 3
    with pytest.raises(RecordingError):
        fetch(patience=Patience(attempts=3))
    server.files[PATH] = CONTENT[::-1]
    assert fetch().read_bytes() == CONTENT[::-1]


def test_a_partial_file_of_which_nothing_is_known_is_not_continued(server, fetch, tmp_path):
    (tmp_path / "1.nwb.partial").write_bytes(b"of another file")
    assert fetch().read_bytes() == CONTENT
    (tmp_path / "1.nwb").unlink()
    (tmp_path / "1.nwb.partial").write_bytes(b"of another file")
    (tmp_path / "1.nwb.partial.json").write_text("damaged")
    assert fetch().read_bytes() == CONTENT
    assert [span for _, span in server.seen] == [None, None]


def test_a_weak_tag_is_no_promise_of_the_same_bytes(server, fetch):
    server.script = [{"break_after": 1000, "etag": 'W/"1"'}, {"etag": 'W/"1"'}]
    assert fetch().read_bytes() == CONTENT
    assert [span for _, span in server.seen] == [None, None]


def test_a_file_that_was_complete_when_the_run_was_killed_is_only_checked(server, fetch, tmp_path):
    (tmp_path / "1.nwb.partial").write_bytes(CONTENT)
    facts = {"etag": '"a"', "total": len(CONTENT), "md5": hashlib.md5(CONTENT).hexdigest()}
    (tmp_path / "1.nwb.partial.json").write_text(json.dumps(facts))
    assert fetch().read_bytes() == CONTENT
    assert server.seen == []


def test_a_part_that_begins_elsewhere_is_thrown_away(server, fetch):
    server.script = [{"break_after": 1000}, {"shift": 5}]
    assert fetch().read_bytes() == CONTENT
    assert [span for _, span in server.seen] == [None, "bytes=1000-", None]


def test_wrong_sizes(server, fetch, tmp_path):
    server.script = [{"claim": len(CONTENT) + 7}] * 9
    with pytest.raises(RecordingError, match="3000000 of 3000007 bytes are there"):
        fetch(patience=Patience(attempts=3))

    def whole(path):
        if path.stat().st_size != len(CONTENT):
            raise RecordingError("it is cut short", fix="x")

    for left in tmp_path.iterdir():
        left.unlink()
    server.script = [{"claim": 500}]
    assert fetch(check=whole).read_bytes() == CONTENT
    (tmp_path / "1.nwb").unlink()
    server.script = [{"claim": 500}] * 9
    with pytest.raises(RecordingError, match="it is cut short"):
        fetch(check=whole, patience=Patience(attempts=3))
    assert leftovers(tmp_path) == []
    server.script = [{"no_length": True}]
    with pytest.raises(RecordingError, match="does not say how large"):
        fetch()


def test_a_wrong_checksum(server, fetch, tmp_path):
    server.s3 = True
    server.script = [{"etag": f'"{"0" * 32}"'}]
    assert fetch().read_bytes() == CONTENT
    assert len(server.seen) == 2
    (tmp_path / "1.nwb").unlink()
    server.script = [{"etag": f'"{"0" * 32}"'}] * 9
    with pytest.raises(RecordingError, match="announced was 00000000"):
        fetch(patience=Patience(attempts=3))
    # The tag of a file that was stored in parts is no checksum.
    server.script = [{"etag": f'"{"0" * 32}-4"'}]
    assert fetch().read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"status": 404}, "the server answers 404 Not Found; check the id and --address"),
        ({"status": 403}, "the server answers 403"),
        ({"redirect": "file:///etc/passwd"}, "the server answers 302"),
        ({"encoding": "gzip"}, "comes encoded as gzip"),
    ],
)
def test_answers_that_no_repetition_mends(server, fetch, tmp_path, step, message):
    server.script = [step]
    with pytest.raises(RecordingError, match=message):
        fetch()
    assert fetch.waits == []
    assert not (tmp_path / "1.nwb").exists()


def test_no_server_and_no_room(server, fetch, tmp_path, monkeypatch):
    waits = []
    with pytest.raises(ConfigError, match=r"no answer from 127.0.0.1:9 in 3 attempts .*--address"):
        download("http://127.0.0.1:9/x", tmp_path / "x", patience=Patience(attempts=3), sleep=waits.append)
    assert waits == [1.0, 2.0]
    monkeypatch.setattr(download_module, "SPARE_DISK_BYTES", 1 << 60)
    with pytest.raises(ResourceError, match=r"needs 0.00 GB more"):
        fetch()
    for address in ("file:///etc", "ftp://x/y", "nothing", "https://", "https://x/y?z"):
        with pytest.raises(ConfigError, match="address"):
            check_address(address)
