"""Bad predictions files at the command line: one line that names the first offender, exit code 2, nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from poyo_ssl.cli import main
from poyo_ssl.evaluation.predictions import Predictions

RECORDINGS, REPEATS, FRAMES = ("a", "b"), (8, 9), 30
TOTAL = len(RECORDINGS) * len(REPEATS) * FRAMES


def make_file(arm: str) -> Predictions:
    """Reconstructions of two recordings, two repeats of one second, with the test intervals of both."""
    rng = np.random.default_rng(0)
    movie = rng.integers(0, 256, (FRAMES, 12, 16), dtype=np.uint8)
    recording, repeat, number = (index.ravel() for index in np.indices((len(RECORDINGS), len(REPEATS), FRAMES)))
    name = np.array(RECORDINGS)[recording]
    return Predictions(
        task="frames",
        split="repeat",
        arm=arm,
        kind="baseline",
        prediction=np.clip(movie[number] + rng.normal(0, 20, (TOTAL, 12, 16)), 0, 255).astype(np.float32),
        target=number,
        time=100.0 * repeat + number / 30,
        recording_id=name,
        subject_id=np.char.add("mouse of ", name),
        stimulus=np.full(TOTAL, "natural_movie_one"),
        frame_number=number,
        repeat=np.array(REPEATS)[repeat],
        target_frames=movie,
        mean_frames={name: movie.mean(axis=0).astype(np.float32) for name in RECORDINGS},
        split_intervals={name: {"test": np.array([[-0.01, 1.1], [99.99, 101.1]])} for name in RECORDINGS},
    )


ROWS = ("prediction", "target", "time", "recording_id", "subject_id", "stimulus", "frame_number", "repeat")


def keep(*left_out: int) -> Callable[[h5py.File], None]:
    """Leave rows out."""
    rows = np.setdiff1d(np.arange(TOTAL), left_out)

    def spoil(file: h5py.File) -> None:
        for name in ROWS:
            replace(file, name, file[name][()][rows])

    return spoil


def replace(file: h5py.File, name: str, values: Any) -> None:
    del file[name]
    file[name] = values


def put(name: str, row: int, value: Any) -> Callable[[h5py.File], None]:
    """Write another value into one row."""

    def spoil(file: h5py.File) -> None:
        file[name][row] = value

    return spoil


def shaped(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[h5py.File], None]:
    """Write a whole array anew."""
    return lambda file: replace(file, name, change(file[name][()]))


def all_of(*spoils: Callable[[h5py.File], None]) -> Callable[[h5py.File], None]:
    def spoil(file: h5py.File) -> None:
        for one in spoils:
            one(file)

    return spoil


ALONE: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "misses a frame": (
        keep(17),
        "frame 17 of natural_movie_one, repeat 8, of recording a is missing before 0.600000 s",
    ),
    "misses two": (keep(17, 70), "recording a is missing before 0.600000 s (2 gaps)"),
    "repeats a frame": (
        all_of(put("frame_number", 5, 4), put("time", 5, 4.2 / 30)),
        "row 5 repeats a target (recording a, 0.140000 s)",
    ),
    "repeats a moment": (put("time", 31, 100.0), "row 31 repeats a target (recording a, 100.000000 s)"),
    "other shape": (
        shaped("prediction", lambda x: x[:, :, :15]),
        "prediction of shape (120, 12, 15) and type float32 (allowed: (120, 12, 16) uint8 or float)",
    ),
    "transposed": (shaped("prediction", lambda x: x.swapaxes(1, 2)), "prediction of shape (120, 16, 12)"),
    "one column too short": (shaped("time", lambda x: x[1:]), "time of shape (119,)"),
    "range above": (
        put("prediction", 7, np.full((12, 16), 300.0)),
        "prediction holds 300 in row 7 (recording a, 0.233333 s) (allowed: 0 to 255)",
    ),
    "range below": (put("prediction", 119, np.full((12, 16), -1.0)), "prediction holds -1 in row 119 (recording b"),
    "range of 0 to 1": (shaped("prediction", lambda x: x / 255), "predicted frames reach from 0 to 1"),
    "NaN": (
        all_of(put("prediction", 9, np.full((12, 16), np.nan)), put("prediction", 3, np.full((12, 16), np.inf))),
        "prediction holds inf in row 3",
    ),
    "one NaN pixel": (
        put("prediction", 64, np.where(np.arange(192).reshape(12, 16) == 77, np.nan, 5.0)),
        "prediction holds nan in row 64 (recording b, 0.133333 s)",
    ),
    "NaN time": (put("time", 2, np.nan), "time nan in row 2"),
    "NaN mean frame": (
        lambda file: replace_mean(file, np.full((12, 16), np.nan)),
        "mean frame of a is NaN or out of range",
    ),
    "unknown frame": (
        put("target", 4, FRAMES),
        "target 30 in row 4 (recording a, 0.133333 s) (allowed: an integer of 0",
    ),
    "outside the test": (put("time", 0, 50.0), "row 0 (recording a, 50.000000 s) lies outside the test intervals"),
    "misses a session": (keep(*range(60)), "no prediction of recording a, which has test intervals of split 'repeat'"),
    "two animals": (put("subject_id", 1, b"other"), "recording a has more than one subject_id"),
}


def replace_mean(file: h5py.File, frame: np.ndarray) -> None:
    del file["mean_frames/0"]
    file["mean_frames/0"] = frame
    file["mean_frames/0"].attrs["recording_id"] = "a"


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command line, which must refuse in one line; return it."""
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("poyo-ssl: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(("spoil", "text"), ALONE.values(), ids=ALONE)
def test_a_bad_file_is_refused_in_one_line(
    spoil: Callable[[h5py.File], None], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_file("mine").save(tmp_path / "mine.h5")
    with h5py.File(tmp_path / "mine.h5", "r+") as file:
        spoil(file)
    error = refused(["evaluate", str(tmp_path / "mine.h5"), "--out", str(tmp_path / "out")], capsys)
    assert f"{tmp_path / 'mine.h5'}: " in error
    assert text in error
    assert [path.name for path in tmp_path.iterdir()] == ["mine.h5"]


def rename(file: h5py.File) -> None:
    for name in ("recording_id", "subject_id"):
        replace(file, name, np.where(file[name][()] == file[name][0], b"another", file[name][()]))
    del file["split_intervals"], file["mean_frames"]


def remove(file: h5py.File, name: str) -> None:
    del file[name]


def double(file: h5py.File) -> None:
    """Frames of twice the height."""
    for name in ("prediction", "target_frames"):
        replace(file, name, np.repeat(file[name][()], 2, axis=1))
    means = {key: (frame[()], dict(frame.attrs)) for key, frame in file["mean_frames"].items()}
    for key, (frame, facts) in means.items():
        replace(file, f"mean_frames/{key}", np.repeat(frame, 2, axis=0))
        file[f"mean_frames/{key}"].attrs.update(facts)


def without_intervals(spoil: Callable[[h5py.File], None]) -> Callable[[h5py.File], None]:
    def both(file: h5py.File) -> None:
        del file["split_intervals"]
        spoil(file)

    return both


TOGETHER: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "misses a frame": (
        without_intervals(keep(17)),
        "arm-2 against arm-0: target of recording a at 0.566667 s is missing",
    ),
    "misses a repeat": (without_intervals(keep(*range(30, 60))), "recording a at 100.000000 s is missing (30 such)"),
    "misses a session": (without_intervals(keep(*range(60))), "arm-2 against arm-0: recording a is missing (1 such)"),
    "other session": (rename, "arm-2 against arm-0: recording a is missing"),
    "no mean frames": (lambda file: remove(file, "mean_frames"), "2.h5 has mean_frames not given, "),
    "other mean frame": (
        lambda file: replace_mean(file, np.zeros((12, 16))),
        "2.h5 has another mean frame of recording a than ",
    ),
    "other movie": (
        shaped("target_frames", lambda x: 255 - x),
        "2.h5 has pixels with checksum ",
    ),
    "other frames for the same moments": (
        shaped("target", lambda x: x[::-1]),
        " of recording a at 0.000000 s, ",
    ),
    "other size of frames": (lambda file: double(file), "2.h5 has target_frames 24 x 16 pixels, "),
    "other animal": (
        shaped("subject_id", lambda x: np.char.add(x, b"2")),
        "2.h5 has subject_id mouse of a2 of recording a at 0.000000 s, ",
    ),
    "other stimulus": (shaped("stimulus", lambda x: np.char.add(x, b"2")), "2.h5 has stimulus natural_movie_one2 of"),
    "other repeat": (shaped("repeat", lambda x: x + 1), "2.h5 has repeat 9 of recording a at 0.000000 s, "),
    "other rate of the movie": (
        lambda file: file.attrs.update(movie_rate_hz=3000.0),
        "2.h5 has movie_rate_hz 3000, ",
    ),
    "other times": (
        without_intervals(shaped("time", lambda x: x + 1e-3)),
        "target of recording a at 0.000000 s is missing (120 such)",
    ),
}


@pytest.mark.parametrize("command", ["evaluate", "leaderboard"])
@pytest.mark.parametrize(("spoil", "text"), TOGETHER.values(), ids=TOGETHER)
def test_the_odd_one_among_good_files_is_named(
    command: str, spoil: Callable[[h5py.File], None], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / f"{arm}.h5" for arm in range(3)]
    for path in paths:
        make_file(f"arm-{path.stem}").save(path)
    with h5py.File(paths[2], "r+") as file:
        spoil(file)
    given = [str(tmp_path)] if command == "leaderboard" else [str(path) for path in paths]
    error = refused([command, *given, "--out", str(tmp_path / "out")], capsys)
    assert text in error
    assert not (tmp_path / "out").exists()


def test_good_files_are_scored_and_no_digit_is_hidden(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arm in "ab":
        predictions = make_file(arm)
        predictions.kind = "model" if arm == "a" else "baseline"
        predictions.save(tmp_path / f"{arm}.h5")
    assert main(["evaluate", str(tmp_path / "a.h5"), str(tmp_path / "b.h5"), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "results.json").exists()
    assert main(["leaderboard", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    for title in ("frames on repeat: scores", "frames on repeat: comparisons in ssim_12x16", "gain"):
        assert title in said
    assert "\N{HORIZONTAL ELLIPSIS}" not in said
