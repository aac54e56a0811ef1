"""PredictionsWriter: the same file as from memory, in bounded memory, complete or not at all."""

from __future__ import annotations

import tracemalloc
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from poyo_ssl.evaluation.predictions import Predictions, PredictionsError, PredictionsWriter

ROWS = ("target", "time", "recording_id", "subject_id", "stimulus", "frame_number", "repeat")


def make_facts(movie: np.ndarray) -> dict[str, Any]:
    return {
        "task": "frames",
        "split": "repeat",
        "arm": "streamed",
        "kind": "baseline",
        "seed": 3,
        "target_frames": movie,
        "mean_frames": {"a": movie.mean(axis=0).astype(np.float32)},
        "split_intervals": {"a": {"test": np.array([[-0.1, 1e4]])}},
        "validation_metric": "ssim_16x24",
        "validation_score": 0.25,
    }


def make_rows(number: np.ndarray, repeat: int = 9) -> dict[str, Any]:
    text = {"recording_id": "a", "subject_id": "m", "stimulus": "natural_movie_one"}
    rows: dict[str, Any] = {name: np.full(len(number), value) for name, value in text.items()}
    rows |= {"target": number, "frame_number": number, "repeat": np.full(len(number), repeat)}
    return rows | {"time": 100.0 * repeat + number / 30}


def write(path: Path, facts: dict[str, Any], *batches: dict[str, Any], **options: Any) -> None:
    with PredictionsWriter(path, **options, **facts) as writer:
        for batch in batches:
            writer.append(**batch)


@pytest.fixture
def movie() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (50, 16, 24), dtype=np.uint8)


def test_batches_give_the_same_file_as_the_whole(movie: np.ndarray, tmp_path: Path) -> None:
    number = np.arange(50)
    rows = make_rows(number)
    whole = Predictions(**make_facts(movie), prediction=movie[::-1].copy(), **rows)
    whole.save(tmp_path / "whole.h5")
    with PredictionsWriter(tmp_path / "streamed.h5", **make_facts(movie)) as writer:
        for own in np.split(number, [1, 2, 30]):  # batches of 1, 1, 28 and 20
            writer.append(prediction=movie[::-1][own], **{name: values[own] for name, values in rows.items()})
    found, expected = (Predictions.load(tmp_path / f"{name}.h5") for name in ("streamed", "whole"))
    for field in fields(Predictions):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(a, dict):
            assert a.keys() == b.keys()
            np.testing.assert_equal(a, b)
        else:
            np.testing.assert_array_equal(a, b)


def test_probabilities_are_streamed_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet(np.ones(4), 10).astype(np.float32)
    number = np.arange(10)
    facts = {"task": "frame_number", "split": "repeat", "arm": "p", "class_values": np.arange(10.0)}
    batch = {"prediction": number, "probabilities": probabilities, **make_rows(number)}
    with pytest.raises(PredictionsError, match=r"probabilities of shape \(10, 4\).*\(10, 10\)"):
        write(tmp_path / "p.h5", facts, batch)
    with PredictionsWriter(tmp_path / "p.h5", **facts | {"task": "gratings", "class_values": np.arange(4.0)}) as writer:
        for own in (slice(0, 4), slice(4, 10)):
            rows = {name: values[own] for name, values in make_rows(number).items()} | {"target": number[own] % 4}
            writer.append(prediction=number[own] % 4, probabilities=probabilities[own], **rows)
    np.testing.assert_array_equal(Predictions.load(tmp_path / "p.h5").probabilities, probabilities)


def test_memory_does_not_grow_with_the_frames(tmp_path: Path) -> None:
    movie = np.random.default_rng(2).integers(0, 256, (64, 64, 128), dtype=np.uint8)
    facts = make_facts(movie) | {"mean_frames": {}, "validation_metric": "", "validation_score": float("nan")}
    batch_bytes, num_batches = movie.nbytes, 40
    tracemalloc.start()
    with PredictionsWriter(tmp_path / "large.h5", **facts) as writer:
        for repeat in range(num_batches):
            writer.append(prediction=movie, **make_rows(np.arange(64), repeat))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # All frames are 40 batches of 0.5 MiB.
    assert peak < 0.3 * batch_bytes * num_batches
    loaded = Predictions.load(tmp_path / "large.h5")
    assert loaded.prediction.shape == (num_batches * 64, 64, 128)
    np.testing.assert_array_equal(loaded.prediction[-64:], movie)


APPENDS: dict[str, tuple[dict[str, Any], str]] = {
    "a column missing": ({"time": None}, "columns missing or unknown: time"),
    "an unknown column": ({"speed": np.zeros(5)}, "columns missing or unknown: speed"),
    "a column too long": ({"time": np.zeros(6)}, r"time of shape \(6,\) \(allowed: \(5,\)\)"),
    "another frame size": ({"prediction": np.zeros((5, 16, 25), np.uint8)}, r"prediction of shape \(5, 16, 25\)"),
    "sudden probabilities": ({"probabilities": np.ones((5, 2))}, r"probabilities of shape \(5, 2\)"),
}


@pytest.mark.parametrize(("change", "text"), APPENDS.values(), ids=APPENDS)
def test_a_batch_that_does_not_fit_is_refused(
    change: dict[str, Any], text: str, movie: np.ndarray, tmp_path: Path
) -> None:
    good = {"prediction": movie[:5], **make_rows(np.arange(5))}
    changed = {"prediction": movie[5:10], **make_rows(np.arange(5, 10))} | change
    bad = {name: values for name, values in changed.items() if values is not None}
    with pytest.raises(PredictionsError, match=text) as caught:
        write(tmp_path / "p.h5", make_facts(movie), good, bad)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


FINISHES: dict[str, tuple[np.ndarray, dict[str, Any], str]] = {
    "a frame missing": (np.r_[0:7, 8:20], {}, "frame 7 of natural_movie_one, repeat 9, of recording a is missing"),
    "a frame repeated": (np.r_[0:12, 3], {"time": 900 + np.arange(13) / 30}, r"row 12 repeats a target \(recording a"),
    "a moment repeated": (np.arange(5), {"time": 900 + np.array([0, 1, 2, 2, 4])}, "row 3 repeats a target"),
    "NaN time": (np.arange(4), {"time": 900 + np.array([0, np.nan, 2, 3])}, "time nan in row 1"),
    "no such frame": (np.arange(48, 52), {}, "target 50 in row 2.*0 to 49"),
    "another session": (np.arange(4), {"subject_id": np.array(list("mnmm"))}, "recording a has more than one"),
    "outside the test": (np.arange(4), {"time": -np.arange(1.0, 5.0)}, r"row 0 .*outside the test intervals"),
}


@pytest.mark.parametrize(("number", "change", "text"), FINISHES.values(), ids=FINISHES)
def test_the_whole_is_checked_at_the_end_and_nothing_is_left(
    number: np.ndarray, change: dict[str, Any], text: str, movie: np.ndarray, tmp_path: Path
) -> None:
    batch = {"prediction": movie[number % 50], **(make_rows(number) | change)}
    with pytest.raises(PredictionsError, match=text) as caught:
        write(tmp_path / "p.h5", make_facts(movie), batch)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_values_of_frames_are_checked_where_they_lie(movie: np.ndarray, tmp_path: Path) -> None:
    for wrong, text in (
        (np.nan, "holds nan in row 5 "),
        (-3.0, "holds -3 in row 5 "),
        (255.5, "holds 255.5 in row 5 "),
    ):
        frames = movie.astype(np.float32)
        frames[5, 3, 2] = frames[9, 0, 0] = wrong
        with pytest.raises(PredictionsError, match=text):
            write(tmp_path / "p.h5", make_facts(movie), {"prediction": frames, **make_rows(np.arange(50))})
    assert list(tmp_path.iterdir()) == []


def test_a_failure_of_the_decoder_leaves_the_earlier_file(movie: np.ndarray, tmp_path: Path) -> None:
    path, batch = tmp_path / "p.h5", {"prediction": movie, **make_rows(np.arange(50))}
    write(path, make_facts(movie), batch)
    before = path.read_bytes()
    with pytest.raises(PredictionsError, match="exists"):
        write(path, make_facts(movie), batch)
    with pytest.raises(RuntimeError, match="out of memory"):
        _fail_midway(path, make_facts(movie), batch)
    with pytest.raises(PredictionsError, match="without rows"):
        write(path, make_facts(movie), overwrite=True)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["p.h5"]


def _fail_midway(path: Path, facts: dict[str, Any], batch: dict[str, Any]) -> None:
    with PredictionsWriter(path, overwrite=True, **facts) as writer:
        writer.append(**batch)
        raise RuntimeError("out of memory")
