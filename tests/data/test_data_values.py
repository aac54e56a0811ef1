"""Values worked out by hand for what the data room computes."""

import numpy as np
import pytest

from poyo_ssl.config import SplitConfig
from poyo_ssl.data import dff, splits
from poyo_ssl.data.intervals import as_intervals, merge, overlaps, subtract
from poyo_ssl.data.leaks import check_parts, check_unseen_frames, shared_time
from poyo_ssl.data.recording import FileTruth, Recording, RecordingMetadata, open_recordings
from poyo_ssl.data.series import RoiMasks, SparseEvents, TimeSeries
from poyo_ssl.data.splits import PartName, draw_test_subjects, nearest_correlation, split_from_labels, standard_splits
from poyo_ssl.data.stimuli import Presentations
from poyo_ssl.data.units import Vocabulary
from poyo_ssl.data.windows import Normalisation, draw_unit_counts, window_frames
from poyo_ssl.errors import RecordingError


def test_intervals():
    assert merge(as_intervals([[5, 6], [0, 1], [1, 2]])).tolist() == [[0, 2], [5, 6]]
    assert subtract(as_intervals([[0, 10]]), as_intervals([[2, 3], [9, 12]])).tolist() == [[0, 2], [3, 9]]
    assert overlaps(np.array([0.0, 2.0]), np.array([1.0, 3.0]), as_intervals([[1.0, 2.0]])).tolist() == [True, False]
    assert shared_time(as_intervals([[0, 4]]), as_intervals([[1, 2], [3, 9]])).tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("name", dff.PROCEDURES)
def test_a_transient_over_constant_light(name):
    light = np.full((900, 1), 50.0)
    light[400:410] = 75.0
    found, floored = dff.compute_dff(light, name, rate_hz=30.0)
    assert (found[405, 0].round(2), found[0, 0].round(2), floored.tolist()) == (0.5, 0.0, [0.0])


def test_noise_and_running_medians():
    assert dff.median_filter(np.array([0.0, 9.0, 1.0, 2.0]), 3).tolist() == [0, 1, 2, 2]
    noise = np.random.default_rng(0).normal(0, 2, 20_000)
    noise[::500] += 100
    assert round(dff.estimate_noise(noise, 30.0), 1) == 1.9


def test_what_travels_with_a_recording():
    speed = TimeSeries(np.array([1.0, 2.0]), np.array([0.0, 10.0], np.float32))
    np.testing.assert_array_equal(speed.interpolate(np.array([0.5, 1.5])), [np.nan, 5.0])
    masks = RoiMasks(np.array([0, 1, 1]), np.array([0, 1, 1]), np.array([2, 0, 1]), (2, 3))
    assert masks.dense(1).astype(int).tolist() == [[0, 0, 0], [1, 1, 0]]
    geometry = RoiMasks(np.array([1, 1]), np.array([4, 4]), np.array([7, 8]), (9, 9)).geometry(2)
    assert {name: values[1].tolist() for name, values in geometry.items()} == {
        "imaging_plane_xy": [4.0, 7.5],
        "imaging_plane_area": 2.0,
        "imaging_plane_width": 2.0,
        "imaging_plane_height": 1.0,
    }
    events = SparseEvents(np.array([1, 1]), np.array([0, 0]), np.array([1.0, 2.0], np.float32))
    assert events.dense(3, 1).ravel().tolist() == [0, 3, 0]


def test_the_truth_of_a_simulation_is_read_when_asked_for(tmp_path):
    truth = {"tuned": np.array([True, False])}
    made = Recording("r", np.zeros((9, 2), np.float32), np.arange(9.0), RecordingMetadata("m"), truth=truth)
    again = Recording.open(made.save(tmp_path / "r.h5")).truth
    assert isinstance(again, FileTruth)
    assert (list(again), again["tuned"].tolist()) == (["tuned"], [True, False])
    (tmp_path / "r.h5").unlink()
    with pytest.raises(RecordingError, match="can no longer be read"):
        again["tuned"]


def test_labels_become_intervals():
    table = Presentations.from_frames("m", np.arange(9) / 1.0, np.arange(8), np.arange(1, 9), {})
    labels = np.array(["train"] * 4 + ["gap"] + ["test_clip"] * 3)
    split = split_from_labels(table, labels, ["train", "valid", "test_clip"])
    assert (split.parts["test_clip"].tolist(), split.unused) == ([[5, 8]], {"gap": 1})


def test_animals_that_only_test():
    assert draw_test_subjects(["a", "b", "b", "c", "d"], SplitConfig(test_subject_fraction=0.5)) == ("b", "c")
    assert draw_test_subjects(["a", "b"], SplitConfig()) == ()


@pytest.mark.parametrize(
    ("name", "role", "split_name", "is_clip", "is_unseen", "of_new_animal"),
    [
        ("train", "train", "", False, False, False),
        ("valid", "valid", "", False, False, False),
        ("valid_clip", "valid", "clip", True, True, False),
        ("test_repeat", "test", "repeat", False, False, False),
        ("test_gratings_block", "test", "gratings_block", False, False, False),
        ("test_movie", "test", "movie", False, True, False),
        ("test_subject_clip", "test", "subject_clip", True, True, True),
    ],
)
def test_names_of_parts(name, role, split_name, is_clip, is_unseen, of_new_animal):
    part = PartName(name)
    assert (part.role, part.split_name, part.is_clip) == (role, split_name, is_clip)
    assert (part.is_unseen, part.of_new_animal) == (is_unseen, of_new_animal)


def test_leaks_name_what_they_found():
    recording = Recording("r", np.zeros((90, 1)), np.arange(90) / 30, RecordingMetadata("m"))
    found = check_parts(recording, {"train": as_intervals([[0, 2]]), "test_clip": as_intervals([[1.5, 3]])})
    assert [str(leak) for leak in found] == ["parts, recording r: train and test_clip share 0.500 s, first at 1.500 s"]
    movie = np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8)
    trained, tested = {"m": np.array([0, 1, 2])}, {"m": np.array([2, 3])}
    found = check_unseen_frames(trained, tested, {"m": movie}, max_correlation=0.95)
    assert [leak.problem for leak in found] == ["1 frames of m train and test, first 2"]
    assert nearest_correlation(movie, movie[3:4]).round(3)[3] == 1


def test_vocabularies_keep_the_rows_that_they_have():
    first = Vocabulary().grow({"session_a": ["u1", "u2"]})
    second = first.grow({"session_a": ["u2", "u3"], "session_b": ["u1"]})
    assert second.units == {"session_a/u1": 1, "session_a/u2": 2, "session_a/u3": 3, "session_b/u1": 4}
    assert second.sessions == {"session_a": 1, "session_b": 2}


def test_windows_are_counted_in_frames():
    recording = Recording("r", np.zeros((90, 1)), np.arange(90) / 30.08, RecordingMetadata("m"))
    assert (window_frames([recording], 1.0), window_frames([recording], 0.033)) == (30, 1)
    counts = draw_unit_counts(np.random.default_rng(0), 100_000)
    assert (counts.min(), counts.max(), round(float(counts.mean()))) == (10, 300, 65)
    plain = Normalisation.identity(1, compress=False)
    assert plain.apply(np.array([[2.0]]), np.array([0])).tolist() == [[2.0]]


def test_a_movie_is_judged_once_for_all_recordings(tiny, monkeypatch):
    """Four recordings of two movies: roles of clips by movie, and two correlations for each of them."""
    calls = {"roles": 0, "correlations": 0}
    frames_of, correlate = splits._frames_of, splits._unit_rows

    def count_roles(*arguments):
        calls["roles"] += 1
        return frames_of(*arguments)

    def count_correlations(frames, mean):
        calls["correlations"] += 1
        return correlate(frames, mean)

    splits._clip_roles.cache_clear()
    splits._nearest_correlation.cache_clear()
    monkeypatch.setattr(splits, "_frames_of", count_roles)
    monkeypatch.setattr(splits, "_unit_rows", count_correlations)
    recordings = open_recordings(tiny)
    shown = {name for r in recordings for name in r.stimuli if name.startswith("natural_movie")}
    config = SplitConfig(clip_fraction=0.1, decay_s=0.1)
    for _ in range(3):
        for recording in recordings:
            standard_splits(recording, config, window_s=0.5)
    assert len(recordings) == 4
    assert calls["roles"] == 4 * len(shown)
    assert splits._clip_roles.cache_info().misses == len(shown)
    assert splits._nearest_correlation.cache_info().misses == 2 * len(shown)
    standard_splits(recordings[0], config, window_s=1.0)
    assert splits._clip_roles.cache_info().misses == 2 * len(shown)


def test_a_file_is_hashed_once(tmp_path, monkeypatch):
    made = Recording("r", np.zeros((9, 2), np.float32), np.arange(9.0), RecordingMetadata("m"))
    one, other = (Recording.open(made.save(tmp_path / "r.h5", overwrite=True)) for _ in range(2))
    first = one.checksum()
    monkeypatch.setattr("hashlib.file_digest", None)
    assert other.checksum() == first
    monkeypatch.undo()
    changed = Recording("r", np.ones((9, 2), np.float32), np.arange(9.0), RecordingMetadata("m"))
    assert Recording.open(changed.save(tmp_path / "r.h5", overwrite=True)).checksum() != first
