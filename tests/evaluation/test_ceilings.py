"""Ceilings of unseen frames on a simulated recording: what true rates and true events tell."""

from dataclasses import replace

import numpy as np
import pytest

from poyo_ssl.config import SplitConfig
from poyo_ssl.data.recording import open_recordings
from poyo_ssl.data.splits import split_movies
from poyo_ssl.data.stimuli import load_movie
from poyo_ssl.data.windows import WindowTable, movie_windows
from poyo_ssl.evaluation.baselines import KnownWindows, TrueEvents, TrueRates, make_arms, whole_movie
from poyo_ssl.evaluation.features import RecordingWindows
from poyo_ssl.evaluation.frame_images import FrameStack

MOVIES = ("natural_movie_one", "natural_movie_two")
SPLIT = SplitConfig(clip_fraction=0.1, decay_s=0.1)


@pytest.fixture(scope="module")
def bank(tiny):
    return np.concatenate([load_movie(tiny, movie) for movie in MOVIES])


@pytest.fixture(scope="module")
def clip_parts(tiny):
    """Return training, validation and test part of both movies of each recording, targets counted over both."""
    made = []
    for recording in open_recordings(tiny):
        split = split_movies(recording, MOVIES, SPLIT, window_s=0.5)
        parts = []
        for name in ("train", "valid_clip", "test_clip", "test_repeat"):
            tables = []
            for number, movie in enumerate(MOVIES):
                table = recording.stimulus(movie)
                targets = table.columns["frame"].astype(np.int64) + 150 * number
                windows = {"num_frames": 15, "lag_s": 0.0, "targets": targets}
                tables.append(movie_windows(recording, 0, table, split, name, **windows))
            parts.append(
                RecordingWindows.of(recording, np.arange(recording.num_units), WindowTable.concatenate(tables), 0)
            )
        made.append(parts)
    return made


def fit_rates(bank, train, valid):
    return TrueRates(FrameStack(bank), seed=0).fit(KnownWindows.of(train, valid, unseen=True))


def score(predicted, part, bank):
    """Mean correlation with the true frames, by numpy's own; 0 for plain grey."""
    pairs = zip(predicted, bank[part.target], strict=True)
    return np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] if np.ptp(a) else 0.0 for a, b in pairs])


def test_a_movie_is_found_in_the_stack(clip_parts, bank):
    train, _, test, _ = clip_parts[0]
    for number, movie in enumerate(MOVIES):
        for part in (train, test):
            np.testing.assert_array_equal(whole_movie(part, movie, bank), bank[150 * number : 150 * (number + 1)])


def test_true_rates_see_unseen_frames_and_not_with_other_neurons_rates(clip_parts, bank):
    seen, mistaken = [], []
    for train, valid, test, _ in clip_parts:
        ceiling = fit_rates(bank, train, valid)
        assert ceiling.decoder in ("ridge", "inversion")
        made = ceiling.predict(test)
        assert made.shape == (len(test), 16, 32)
        assert made.dtype == np.uint8
        seen.append(score(made, test, bank))
        # The same neurons in others' places: every rate is another's.
        order = np.roll(test.columns, 5)
        wrong = fit_rates(bank, train, valid)
        wrong._neurons = fit_rates(bank, replace(train, columns=order), valid)._neurons
        mistaken.append(score(wrong.predict(test), test, bank))
    assert np.mean(seen) > 0.1
    assert np.mean(seen) > np.mean(mistaken) + 0.05


def test_repeats_of_a_frame_have_one_true_rate(clip_parts, bank):
    train, valid, test, _ = clip_parts[0]
    made = fit_rates(bank, train, valid).predict(test)
    target, first, back = np.unique(test.target, return_index=True, return_inverse=True)
    assert len(target) < len(test)
    np.testing.assert_array_equal(made, made[first][back])


def test_the_validation_part_decides(clip_parts, bank):
    """Where known frames are held out, ridge on the true rates knows them."""
    train, valid, _, known = clip_parts[0]
    windows = KnownWindows.of(train, known)
    ceiling = TrueRates(FrameStack(bank), seed=0).fit(windows)
    assert ceiling.decoder == "ridge"
    held_out = replace(train, table=windows.windows.table.select(windows.held_out))
    assert score(ceiling._ridge.held_out, held_out, bank) > 0.9
    ceiling = fit_rates(bank, train, valid)
    made = {"ridge": ceiling._ridge.held_out, "inversion": ceiling._invert(valid)}
    errors = {name: ((frames.astype(float) - bank[valid.target]) ** 2).mean() for name, frames in made.items()}
    assert ceiling.decoder == min(errors, key=errors.__getitem__)


def test_true_events_read_the_windows_they_are_given(clip_parts, bank):
    train, valid, test, _ = clip_parts[0]
    ceiling = TrueEvents(bank, seed=0).fit(KnownWindows.of(train, valid, unseen=True))
    made = ceiling.predict(test)
    assert made.shape == (len(test), 16, 32)
    counts = ceiling._neurons.counts(test.table.first_low, 15)
    silent = np.flatnonzero(counts.sum(axis=1) == 0)
    assert 1 < len(silent) < len(test)
    np.testing.assert_array_equal(made[silent], made[silent[:1]].repeat(len(silent), axis=0))
    assert not np.array_equal(made[counts.sum(axis=1).argmax()], made[silent[0]])


def test_ceilings_need_the_truth(clip_parts, bank, make_recording):
    train = clip_parts[0][0]
    kinds = {b.name: b.kind for b in make_arms("frames", train, which="core", frames=bank)}
    wanted = {"nearest training frame", "true rates", "true events"}
    assert {name for name, kind in kinds.items() if kind == "ceiling"} == wanted
    made = replace(train, recording=make_recording(num_units=train.recording.num_units))
    names = {b.name for b in make_arms("frames", made, which="core", frames=bank)}
    assert names & wanted == {"nearest training frame"}
