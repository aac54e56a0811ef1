"""The predictions file: round trip, first offender named, nothing of an untrusted file believed."""

from __future__ import annotations

import hashlib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from poyo_ssl.evaluation.checks import PredictionsError, check_same_targets, interval_index, target_keys
from poyo_ssl.evaluation.predictions import Predictions


def make_frames(count: int = 12, movie_frames: int = 6) -> Predictions:
    rng = np.random.default_rng(0)
    movie = rng.integers(0, 256, (movie_frames, 16, 20), dtype=np.uint8)
    number = np.arange(count) % movie_frames
    return Predictions(
        task="frames",
        split="repeat",
        arm="ridge · süß",
        data_checksum="abc",
        prediction=np.clip(movie[number].astype(int) + 3, 0, 255).astype(np.uint8),
        target=number,
        time=10 + np.arange(count) / 30,
        recording_id=np.full(count, "session/1"),
        subject_id=np.full(count, "mäuse"),
        stimulus=np.full(count, "natural_movie_one"),
        frame_number=number,
        repeat=np.arange(count) // movie_frames,
        target_frames=movie,
        mean_frames={"session/1": movie.mean(axis=0).astype(np.float32)},
        split_intervals={"session/1": {"train": np.array([[0.0, 9.0]]), "test": np.array([[10.0, 11.0]])}},
    )


def make_classes(count: int = 6) -> Predictions:
    return Predictions(
        task="gratings",
        split="gratings",
        arm="majority",
        data_checksum="",
        prediction=np.zeros(count, dtype=np.int64),
        target=np.arange(count) % 2,
        time=np.arange(count) * 3.0,
        recording_id=np.full(count, "r"),
        subject_id=np.full(count, "m"),
        stimulus=np.full(count, "drifting_gratings"),
        frame_number=np.full(count, -1),
        repeat=np.full(count, -1),
        class_values=np.array([0.0, 45.0]),
        probabilities=np.full((count, 2), 0.5, dtype=np.float32),
    )


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    else:
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("made", [make_frames(), make_classes()], ids=["frames", "gratings"])
def test_round_trip(made: Predictions, tmp_path: Path) -> None:
    made.save(tmp_path / "runs" / "p.h5")
    loaded = Predictions.load(tmp_path / "runs" / "p.h5")
    for f in fields(Predictions):
        assert_same(getattr(made, f.name), getattr(loaded, f.name))
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["p.h5"]


def test_existing_file_is_kept_unless_told(tmp_path: Path) -> None:
    path = tmp_path / "p.h5"
    make_classes().save(path)
    before = path.read_bytes()
    with pytest.raises(PredictionsError, match="exists"):
        make_frames().save(path)
    assert path.read_bytes() == before
    make_frames().save(path, overwrite=True)
    assert Predictions.load(path).task == "frames"


def test_nothing_is_left_behind_when_rows_are_wrong(tmp_path: Path) -> None:
    wrong = replace(make_classes(), time=np.array([0, 3, np.nan, 9, 12, 15]))
    with pytest.raises(PredictionsError, match="row 2"):
        wrong.save(tmp_path / "p.h5")
    assert list(tmp_path.iterdir()) == []


BAD_CLASSES: dict[str, tuple[dict[str, Any], str]] = {
    "NaN time": ({"time": np.array([0, np.nan, 2, 3, 4, 5])}, "time nan in row 1"),
    "NaN prediction": ({"prediction": np.array([0, 0, 0, np.nan, 0, 0])}, r"prediction nan in row 3 \(recording r, 9"),
    "class out of range": ({"prediction": np.array([0, 2, 0, 0, 0, 0])}, "prediction 2 in row 1.*0 to 1"),
    "fraction": ({"target": np.array([0, 0.5, 0, 0, 0, 0])}, "target 0.5 in row 1"),
    "repeat below": ({"repeat": np.full(6, -2)}, "repeat -2 in row 0"),
    "duplicate": ({"time": np.array([0.0, 3, 6, 3, 12, 15])}, r"row 3 repeats a target \(recording r, 3.000000 s\)"),
    "two animals": ({"subject_id": np.array(["m", "n", "m", "m", "m", "m"])}, "recording r has more than one"),
    "length": ({"target": np.zeros(5)}, r"target of shape \(5,\).*\(6,\)"),
    "probability": ({"probabilities": np.full((6, 2), np.nan)}, "row 0.*0 to 1"),
    "probabilities' shape": ({"probabilities": np.ones((6, 3))}, r"probabilities of shape \(6, 3\)"),
    "classes": ({"class_values": np.array([0.0, np.nan])}, "NaN among class_values"),
    "task": ({"task": "movies"}, "task 'movies'"),
    "split": ({"split_intervals": {"r": {"test": np.array([[0.0, 7.0]])}}}, r"row 3.*outside the test intervals"),
    "intervals": ({"split_intervals": {"r": {"test": np.zeros(2)}}}, "split_intervals of r, test"),
    "empty": ({"prediction": np.zeros(0)}, "without rows"),
    "image": ({"prediction": np.zeros((6, 4, 4))}, "prediction of shape"),
}


@pytest.mark.parametrize(("change", "text"), BAD_CLASSES.values(), ids=BAD_CLASSES)
def test_first_offender_is_named(change: dict[str, Any], text: str) -> None:
    with pytest.raises(PredictionsError, match=text) as caught:
        replace(make_classes(), **change).validate()
    assert "\n" not in str(caught.value)


def test_frames_of_another_size_or_range() -> None:
    good = make_frames()
    for change, text in (
        ({"prediction": good.prediction[:, :8]}, r"\(12, 16, 20\) uint8"),
        ({"prediction": good.prediction.astype(np.int64)}, "int64"),
        ({"prediction": good.prediction / 255}, "0 to 1 .*multiply by 255"),
        ({"prediction": good.prediction + 1.5}, r"prediction holds 256.5 in row \d+ \(recording session/1.*0 to 255"),
        ({"prediction": np.where(np.arange(12)[:, None, None] == 7, np.nan, good.prediction)}, "holds nan in row 7 "),
        ({"target_frames": good.target_frames[:0]}, "target_frames"),
        ({"target": good.target + 1}, "target 6 in row 5.*0 to 5"),
        ({"mean_frames": {"session/1": np.zeros((4, 4))}}, "mean frame of session/1"),
        ({"mean_frames": {"session/1": np.full((16, 20), np.nan)}}, "mean frame of session/1 is NaN"),
    ):
        with pytest.raises(PredictionsError, match=text):
            replace(good, **change).validate()


def test_targets_that_differ_from_most_are_named() -> None:
    good = make_classes()
    whole = target_keys(good.recording_id, good.time)
    extra = target_keys("r", np.append(good.time, [99.0, 100.0]))
    check_same_targets({"a": whole, "b": whole[::-1]})
    with pytest.raises(
        PredictionsError, match=r"c against a: target of recording r at 99.000000 s is not among .*2 su"
    ):
        check_same_targets({"a": whole, "b": whole, "c": extra})
    with pytest.raises(PredictionsError, match=r"c against a: target of recording r at 15.000000 s is missing"):
        check_same_targets({"a": whole, "b": whole, "c": whole[:5]})
    with pytest.raises(PredictionsError, match=r"c against a: recording r is missing \(1 such\)"):
        check_same_targets({"a": whole, "b": whole, "c": whole.assign(recording_id="s")})


def test_interval_of_each_time() -> None:
    found = interval_index(np.array([0.5, 1.5, 2.5]), np.array([[2.0, 3.0], [0.0, 1.0]]))
    assert found.tolist() == [1, -1, 0]


def load_beside(folder: Path) -> Predictions:
    """Load two arms that share their target frames; return the second."""
    for name in ("one", "two"):
        replace(make_frames(), arm=name).save(folder / f"{name}.h5", frames_beside=True)
    return Predictions.load(folder / "two.h5")


def test_target_frames_of_a_folder_are_stored_once(tmp_path: Path) -> None:
    made, loaded = make_frames(), load_beside(tmp_path)
    for f in fields(Predictions):
        if f.name != "arm":
            assert_same(getattr(made, f.name), getattr(loaded, f.name))
    [frames] = tmp_path.glob("*.npy")
    content = frames.read_bytes()
    assert frames.name == f"targets_{hashlib.sha256(content).hexdigest()[:12]}.npy"
    assert_same(np.load(frames), made.target_frames)
    with h5py.File(tmp_path / "two.h5") as file:
        assert "target_frames" not in file
    # Copied with its own frames again, from predicted frames that stay in the first file.
    loaded.save(tmp_path / "alone" / "two.h5")
    assert [path.name for path in (tmp_path / "alone").iterdir()] == ["two.h5"]
    assert_same(np.asarray(Predictions.load(tmp_path / "alone" / "two.h5").prediction), made.prediction)
    # Other frames get a file of their own; damaged ones are written again.
    other = replace(make_frames(), target_frames=255 - made.target_frames)
    other.save(tmp_path / "other.h5", frames_beside=True)
    frames.write_bytes(content[:99])
    made.save(tmp_path / "three.h5", frames_beside=True)
    assert len(list(tmp_path.glob("*.npy"))) == 2
    assert frames.read_bytes() == content


def test_a_file_that_was_moved_alone_names_what_it_lacks(tmp_path: Path) -> None:
    load_beside(tmp_path / "first")
    [frames] = (tmp_path / "first").glob("*.npy")
    (tmp_path / "second").mkdir()
    (tmp_path / "first" / "two.h5").rename(tmp_path / "second" / "two.h5")
    with pytest.raises(PredictionsError, match=f"two.h5 lacks its target frames, .*second/{frames.name}; ") as caught:
        Predictions.load(tmp_path / "second" / "two.h5")
    assert "\n" not in str(caught.value)


def _cut(frames: Path) -> None:
    frames.write_bytes(frames.read_bytes()[:-1])


def _pickle(frames: Path) -> None:
    np.save(frames, np.array([{}], dtype=object))


def _claim(frames: Path) -> None:
    """Write a header of many more frames than follow, with the checksum that goes with it."""
    content = frames.read_bytes().replace(b"(6, 16, 20)", b"(6, 160, 20)")
    frames.write_bytes(content)
    with h5py.File(frames.with_name("two.h5"), "r+") as file:
        file.attrs["target_frames_sha256"] = hashlib.sha256(content).hexdigest()


def _elsewhere(frames: Path) -> None:
    with h5py.File(frames.with_name("two.h5"), "r+") as file:
        file.attrs["target_frames_file"] = f"../{frames.parent.name}/{frames.name}"


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (_cut, "does not hold the target frames of two.h5"),
        (_pickle, "does not hold the target frames of two.h5"),
        (_claim, "two.h5 is damaged"),
        (_elsewhere, r"target_frames_file '\.\./.*allowed: an .npy file beside it"),
    ],
)
def test_hostile_frames_beside_are_refused(spoil: Any, text: str, tmp_path: Path) -> None:
    load_beside(tmp_path)
    spoil(next(tmp_path.glob("*.npy")))
    with pytest.raises(PredictionsError, match=text) as caught:
        Predictions.load(tmp_path / "two.h5")
    assert "\n" not in str(caught.value)


def test_other_programs_may_write_floats_for_classes(tmp_path: Path) -> None:
    path = tmp_path / "p.h5"
    make_classes().save(path)
    with h5py.File(path, "r+") as file:
        values = file["prediction"][()]
        del file["prediction"]
        file["prediction"] = values.astype(np.float32)
    assert Predictions.load(path).prediction.dtype == np.int64


def test_missing_truncated_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(PredictionsError, match="no predictions file"):
        Predictions.load(tmp_path / "none.h5")
    path = tmp_path / "p.h5"
    make_frames().save(path)
    whole = path.read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(PredictionsError, match="damaged"):
            Predictions.load(path)
    with h5py.File(path, "w") as file:
        file["x"] = 1
    with pytest.raises(PredictionsError, match="has format None"):
        Predictions.load(path)


def _bomb(file: h5py.File) -> None:
    del file["prediction"]
    file.create_dataset("prediction", shape=(10**11,), dtype="i8", chunks=(10**6,))  # stored: nothing


def _heap_text(file: h5py.File) -> None:
    del file["stimulus"]
    file.create_dataset("stimulus", data=["x" * 3], dtype=h5py.string_dtype())


def _external_link(file: h5py.File) -> None:
    del file["time"]
    file["time"] = h5py.ExternalLink("/etc/hostname", "/")


def _external_link_in_group(file: h5py.File) -> None:
    file["mean_frames"]["9"] = h5py.ExternalLink("/etc/hostname", "/")


def _external_data(file: h5py.File) -> None:
    del file["time"]
    file.create_dataset("time", shape=(1,), dtype="f8", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


def _virtual(file: h5py.File) -> None:
    del file["time"]
    layout = h5py.VirtualLayout(shape=(1,), dtype="f8")
    layout[0] = h5py.VirtualSource("/etc/passwd", "x", shape=(1,))[0]
    file.create_virtual_dataset("time", layout)


def _version(file: h5py.File) -> None:
    file.attrs["format_version"] = 99


def _missing(file: h5py.File) -> None:
    del file["repeat"]


def _attribute(file: h5py.File) -> None:
    file.attrs["arm"] = np.arange(3)


HOSTILE = {
    "bomb": (_bomb, "claims 800000000000 bytes"),
    "vlen": (_heap_text, "'stimulus' has type"),
    "external link": (_external_link, "'time' is missing or not stored"),
    "external link in a group": (_external_link_in_group, "'9' is missing or not stored"),
    "external data": (_external_data, "another file"),
    "virtual data": (_virtual, "another file"),
    "version": (_version, "has format_version 99"),
    "missing": (_missing, "'repeat' is missing"),
    "attribute": (_attribute, "attribute 'arm' that is no text"),
}


@pytest.mark.parametrize(("spoil", "text"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused(spoil: Any, text: str, tmp_path: Path) -> None:
    path = tmp_path / "p.h5"
    make_frames().save(path)
    with h5py.File(path, "r+") as file:
        spoil(file)
    with pytest.raises(PredictionsError, match=text):
        Predictions.load(path)


def test_memory_limit(tmp_path: Path) -> None:
    path = tmp_path / "p.h5"
    make_frames().save(path)
    with pytest.raises(PredictionsError, match="raise max_bytes"):
        Predictions.load(path, max_bytes=2000)
