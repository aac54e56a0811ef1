"""Predictions files beside the recordings: what a file leaves out or says wrongly is found, with its first offender."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from poyo_ssl.cli import main
from poyo_ssl.config import FinetuneConfig, SplitConfig, WindowConfig
from poyo_ssl.data.recording import open_recordings
from poyo_ssl.data.splits import save_splits, standard_splits
from poyo_ssl.data.task import Task
from poyo_ssl.errors import SplitError
from poyo_ssl.evaluation.checks import DataFolder, PredictionsError
from poyo_ssl.evaluation.evaluate import assemble
from poyo_ssl.evaluation.leaderboard import evaluate_files, make_leaderboards
from poyo_ssl.evaluation.predictions import Predictions

SPLIT = SplitConfig(decay_s=0.1)
WINDOW_S = 0.3
MOVIE = "natural_movie_one"
Spoil = Callable[[Predictions], Predictions]


@pytest.fixture(scope="module")
def data(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data folder with its splits."""
    folder = tmp_path_factory.mktemp("data") / "tiny"
    shutil.copytree(tiny, folder)
    save_splits(open_recordings(folder), folder / "splits.json", SPLIT, window_s=WINDOW_S)
    return folder


@pytest.fixture(scope="module")
def made(data: Path) -> dict[str, Predictions]:
    """Return constant answers on every test part of every task, with the windows of our own models."""
    found = {}
    for task in ("gratings", "frame_number", "frames"):
        config = FinetuneConfig(
            task=task, movies=(MOVIE,), split=SPLIT, window=WindowConfig(window_s=WINDOW_S, units="all")
        )
        config = replace(config, frame_height=16, frame_width=32)
        prepared = Task.of(open_recordings(data), config)
        for name in prepared.tests:
            size = len(prepared.windows(name))
            shape = (size, 16, 32) if task == "frames" else (size,)
            found[f"{task} {name.split_name}"] = assemble(prepared, name, np.zeros(shape, np.uint8), arm="constant")
    return found


def test_files_of_our_own_windows_pass_on_every_task_and_split(data, made):
    assert {"gratings gratings", "frame_number repeat", "frames repeat", "frames clip"} <= set(made)
    folder = DataFolder(data)
    for predictions in made.values():
        folder.check(predictions)


@pytest.mark.parametrize("lag_s", [0.0, 0.2, -0.2])
def test_a_decoder_with_a_lag_passes(lag_s, data):
    """Repeats 0-7 test among others that train, so a late input reaches into the next repeat."""
    split = replace(SPLIT, repeat_train=(0, 1, 2, 4, 5, 6, 8), repeat_valid=(7,), repeat_test=(3, 9))
    window = WindowConfig(window_s=WINDOW_S - abs(lag_s), lag_s=lag_s, units="all")
    config = FinetuneConfig(task="frame_number", movies=(MOVIE,), split=split, window=window)
    recordings = open_recordings(data)
    prepared = Task.of(recordings, config)
    folder = DataFolder(data)
    folder.config = split
    folder.splits = {r.recording_id: standard_splits(r, split, window_s=WINDOW_S) for r in recordings}
    answers = np.zeros(len(prepared.windows("test_repeat")), np.uint8)
    folder.check(assemble(prepared, "test_repeat", answers, arm="constant"))


def rows_of(p: Predictions, keep: np.ndarray) -> Predictions:
    names = ("prediction", "target", "time", "recording_id", "subject_id", "stimulus", "frame_number", "repeat")
    return replace(p, **{name: getattr(p, name)[keep] for name in names})


def without_first_rows(p: Predictions) -> Predictions:
    """Leave out the first rows: no gap, no missing recording, nothing that the file itself would show."""
    return rows_of(p, np.arange(len(p)) >= 3)


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Spoil:
    return lambda p: replace(p, **{name: change(getattr(p, name).copy())})


def put(row: int, value: object) -> Callable[[np.ndarray], np.ndarray]:
    def write(values: np.ndarray) -> np.ndarray:
        values[row] = value
        return values

    return write


def with_leak(p: Predictions) -> Predictions:
    """Declare a training interval that holds part of another repeat's test, which the file's own test leaves out."""
    recording = p.recording_id[0]
    test = p.split_intervals[recording]["test"]
    return replace(p, split_intervals={recording: {"train": test[:1]}})


BAD: dict[str, tuple[str, Spoil, str]] = {
    "first targets left out": ("frame_number repeat", without_first_rows, r"frame 9, repeat 9, .* is missing \(2 of"),
    "first trials left out": ("gratings gratings", without_first_rows, r"drifting_gratings of .* is missing \(3 of"),
    "another direction": (
        "gratings gratings",
        changed("target", lambda t: (t + 1) % 8),
        r"row 0 at .* has direction \d+, drifting_gratings of recording .* has \d+ there",
    ),
    "all targets zero": (
        "frame_number repeat",
        changed("target", np.zeros_like),
        r"has target 0, natural_movie_one of .* has 8 there",
    ),
    "another repeat": (
        "frame_number repeat",
        changed("repeat", put(0, 8)),
        r"row 0 at .* has repeat 8, .* has 9 there",
    ),
    "another frame number": (
        "frames repeat",
        changed("frame_number", lambda n: n + 1),
        r"row 0 at .* has frame_number 9, .* has 8 there",
    ),
    "another picture": (
        "frames repeat",
        changed("target_frames", lambda f: 255 - f),
        r"target_frames 8 is not frame 8 of natural_movie_one of recording",
    ),
    "another animal": (
        "frame_number repeat",
        changed("subject_id", lambda s: np.char.add(s, "x")),
        r"has subject_id .*x \(allowed: ",
    ),
    "between two frames": (
        "frame_number repeat",
        changed("time", lambda t: t + 0.004),
        r"row 0 at .* is the middle of no presentation of natural_movie_one",
    ),
    "a training interval that tests": (
        "frame_number repeat",
        with_leak,
        r"parts 'train of the file' and 'test_repeat of splits.json' of .* share",
    ),
    "an unknown recording": (
        "gratings gratings",
        lambda p: replace(p, recording_id=np.char.add(p.recording_id, "x"), split_intervals={}),
        r"recording .*x is not in the data folder, did you mean",
    ),
    "an unknown split": (
        "frame_number repeat",
        lambda p: replace(p, split="mine"),
        r"no split 'mine' of natural_movie_one .* \(allowed: .*repeat",
    ),
    "a stimulus that was not split": (
        "gratings gratings",
        changed("stimulus", lambda s: np.full(len(s), "static_gratings")),
        r"static_gratings of recording .* is not among the splits",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named(case, data, made):
    which, spoil, message = BAD[case]
    bad = spoil(made[which])
    bad.validate()  # the file by itself is in order
    with pytest.raises(PredictionsError, match=message):
        DataFolder(data).check(bad)


def test_moments_that_train_are_named(data, made):
    p = made["frame_number repeat"]
    recording = next(r for r in open_recordings(data) if r.recording_id == p.recording_id[0])
    movie = recording.stimulus(MOVIE)
    of_first = movie.columns["repeat"] == 0
    count = int(of_first.sum())
    moved = replace(
        rows_of(p, np.arange(count)),
        time=movie.midpoint[of_first],
        target=movie.columns["frame"][of_first],
        frame_number=movie.columns["frame"][of_first],
        repeat=np.zeros(count, int),
        prediction=np.zeros(count, int),
        recording_id=np.full(count, recording.recording_id),
        subject_id=np.full(count, recording.metadata.subject_id),
        stimulus=np.full(count, MOVIE),
        split_intervals={},
    )
    moved.validate()
    with pytest.raises(PredictionsError, match=rf"row 0 at .* is not in the test part .* \({count} such\)"):
        DataFolder(data).check(moved)


def test_commands_check_files_against_the_data(data, made, tmp_path, capsys):
    good, bad = tmp_path / "good.h5", tmp_path / "bad.h5"
    made["gratings gratings"].save(good)
    replace(without_first_rows(made["gratings gratings"]), arm="picky").save(bad)
    with_data, alone = (evaluate_files([good], data=own).rows for own in (data, None))
    assert [row.to_json() for row in with_data] == [row.to_json() for row in alone]
    assert [board.split for board in make_leaderboards([good], data=data)] == ["gratings"]
    for command in (["evaluate", str(bad), "--out", str(tmp_path / "out")], ["leaderboard", str(tmp_path)]):
        assert main([*command, "--data", str(data)]) == 2
        error = capsys.readouterr().err
        assert f"{bad}: " in error
        assert "is missing (3 of" in error
        assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "leaderboard.html").exists()


def test_a_folder_without_splits_says_how_to_make_them(tiny):
    with pytest.raises(SplitError, match="poyo-ssl split DATA"):
        DataFolder(tiny)


def test_damaged_splits_are_named(data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    path = tmp_path / "data" / "splits.json"
    path.write_text(path.read_text().replace('"window_s": 0.3', '"window_s": -1'))
    with pytest.raises(SplitError, match="is damaged \\(window_s -1\\)"):
        DataFolder(tmp_path / "data")
