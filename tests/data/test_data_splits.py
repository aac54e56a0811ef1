"""Splits: disjoint, honest about gaps and near-duplicates, and exactly as large as worked out by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poyo_ssl.cli import main
from poyo_ssl.config import SplitConfig
from poyo_ssl.data.intervals import as_intervals, contains, overlaps
from poyo_ssl.data.recording import Recording, RecordingMetadata
from poyo_ssl.data.splits import (
    Split,
    clip_roles,
    draw_test_subjects,
    join,
    load_split_settings,
    load_splits,
    nearest_correlation,
    save_splits,
    split_from_labels,
    split_gratings,
    split_movie,
    split_movies,
    standard_splits,
    training_domain,
    training_recordings,
)
from poyo_ssl.data.stimuli import Presentations, save_movie
from poyo_ssl.errors import ConfigError, SplitError

MOVIE = "natural_movie_one"
MOVIE_FRAMES = 60
PIXELS = np.random.default_rng(5).integers(0, 256, (MOVIE_FRAMES, 6, 8), dtype=np.uint8)

configs = st.builds(
    lambda order, sizes, clips, fraction, valid_fraction, decay: SplitConfig(
        repeat_train=tuple(order[: sizes[0]]),
        repeat_valid=tuple(order[sizes[0] : sizes[0] + sizes[1]]),
        repeat_test=tuple(order[sizes[0] + sizes[1] :]),
        num_clips=clips,
        clip_fraction=fraction,
        valid_clip_fraction=valid_fraction,
        decay_s=decay,
    ),
    st.permutations(range(10)),
    st.sampled_from([(8, 1), (6, 2), (1, 1), (3, 6)]),
    st.integers(0, 3),
    st.sampled_from([0.04, 0.1, 0.2]),
    st.sampled_from([0.0, 0.05, 0.1]),
    st.sampled_from([0.0, 0.02, 0.05]),
)


def parts_of_rows(table, split):
    return {part: contains(table.midpoint, intervals) for part, intervals in split.parts.items()}


@pytest.mark.parametrize(
    ("trials", "train", "valid", "test"), [(15, 10, 2, 3), (10, 7, 1, 2), (5, 3, 1, 1), (4, 2, 1, 1), (3, 1, 1, 1)]
)
def test_gratings_are_stratified_into_these_counts(make_recording, trials, train, valid, test):
    recording = make_recording(grating_repeats=trials, num_units=1)
    table = recording.stimulus("drifting_gratings")
    inside = parts_of_rows(table, split_gratings(recording, SplitConfig()))
    for direction in range(8):
        shown = table.columns["orientation"] == 45.0 * direction
        assert [(inside[p] & shown).sum() for p in ("train", "valid", "test_gratings")] == [train, valid, test]


def test_gratings_splits_repeat_themselves_and_differ_between_recordings(make_recording):
    one, other = make_recording("one", num_units=1), make_recording("other", num_units=1)

    def tests(recording, seed):
        return split_gratings(recording, SplitConfig(seed=seed)).parts["test_gratings"].tolist()

    assert tests(one, 0) == tests(one, 0)
    assert tests(one, 0) != tests(one, 1)
    assert tests(one, 0) != tests(other, 0)


def test_gratings_by_repeats(make_recording):
    recording = make_recording(num_units=1)
    config = SplitConfig(gratings_valid_repeats=(1,), gratings_test_repeats=(4,))
    table = recording.stimulus("drifting_gratings")
    inside = parts_of_rows(table, split_gratings(recording, config))
    repeat = table.columns["repeat"]
    np.testing.assert_array_equal(inside["test_gratings"], repeat == 4)
    np.testing.assert_array_equal(inside["valid"], repeat == 1)
    np.testing.assert_array_equal(inside["train"], np.isin(repeat, (0, 2, 3)))


def test_gratings_by_repeats_need_the_column(make_recording):
    recording = make_recording(num_units=1)
    table = recording.stimulus("drifting_gratings")
    columns = {name: values for name, values in table.columns.items() if name != "repeat"}
    bare = replace(recording, stimuli={table.name: replace(table, columns=columns)})
    with pytest.raises(SplitError, match="repeat"):
        split_gratings(bare, SplitConfig(gratings_test_repeats=(4,)))


def test_blank_sweeps_are_in_no_part(make_recording):
    recording = make_recording(num_units=1, grating_repeats=5)
    table = recording.stimulus("drifting_gratings")
    blank = np.arange(len(table)) % 7 == 0
    marked = replace(table, columns={**table.columns, "blank_sweep": blank})
    split = split_gratings(replace(recording, stimuli={table.name: marked}), SplitConfig())
    inside = parts_of_rows(table, split)
    np.testing.assert_array_equal(np.any(list(inside.values()), axis=0), ~blank)
    assert split.unused == {"blank or unlabelled": int(blank.sum())}


def test_too_few_trials_name_the_empty_part(make_recording):
    with pytest.raises(SplitError, match="part 'valid' of drifting_gratings"):
        split_gratings(make_recording(grating_repeats=2, num_units=1), SplitConfig())


@given(configs, st.sampled_from([0.033, 0.2, 0.4]), st.booleans())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_parts_are_disjoint_and_follow_the_rules(make_recording, shared_seconds, config, window_s, masked):
    recording = make_recording(num_units=1, grating_repeats=3)
    table = recording.stimulus(MOVIE)
    if masked:
        # From the middle of one frame to the middle of another, and an edge that is exactly a frame's start.
        spans = as_intervals([[table.midpoint[70], table.midpoint[95]], [table.start[200], table.start[210]]])
        recording = replace(recording, masked_domain=spans)
    try:
        splits = [
            split_gratings(recording, config),
            split_movie(recording, MOVIE, config, window_s=window_s, pixels=PIXELS),
        ]
    except SplitError:
        return
    movie, parts = splits[1], join(splits).parts
    assert shared_seconds(parts) == pytest.approx(0, abs=1e-9)
    inside = parts_of_rows(table, movie)
    repeat, frame = table.columns["repeat"], table.columns["frame"]
    allowed = {"train": config.repeat_train, "valid": config.repeat_valid, "test_repeat": config.repeat_test}
    for part, repeats in allowed.items():
        assert set(repeat[inside[part]]) <= set(repeats)
    if config.num_clips:
        clip = np.unique(frame[inside["test_clip"]])
        assert not np.isin(frame[inside["train"]], clip).any()
        assert ("valid_clip" in inside) == (config.valid_clip_fraction > 0)
        seen = inside["train"] | inside["valid"] | inside["test_repeat"]
        validating = inside.get("valid_clip", np.zeros(len(table), bool))
        assert not np.isin(frame[validating], frame[seen | inside["test_clip"]]).any()
        # Seconds between the edges of anything else and of any clip.
        gap = window_s + 3 * config.decay_s
        for part, others in (("test_clip", seen | validating), ("valid_clip", seen | inside["test_clip"])):
            for low, high in movie.parts.get(part, ()):
                away = np.maximum(low - table.end[others], table.start[others] - high)
                assert away.min() >= gap - 1e-6
    for _, high in recording.masked_domain:
        assert not any(contains(np.array([high - 1e-6]), intervals)[0] for intervals in parts.values())
    for intervals in parts.values():
        closed = overlaps(intervals[:, 0], intervals[:, 1] - 1e-9, recording.masked_domain)
        assert not closed.any()
    unused = sum(split.unused.get(reason, 0) for split in splits[1:] for reason in split.unused)
    assert unused + sum(rows.sum() for rows in inside.values()) == len(table)


def test_near_duplicates_against_a_double_loop():
    rng = np.random.default_rng(0)
    base = rng.normal(0, 40, (40, 5, 7))
    # Pairs of frames that resemble each other more or less.
    pairs = [(20, 2, 0.99), (19, 35, 0.97), (21, 30, 0.9), (2, 5, 0.995), (12, 33, 0.99), (18, 13, 0.99)]
    for source, copy, share in pairs:
        base[copy] = share * base[source] + np.sqrt(1 - share**2) * base[copy]
    pixels = np.clip(128 + base, 0, 255).astype(np.uint8)
    config = SplitConfig(num_clips=1, clip_fraction=0.1)
    role = clip_roles(pixels, config, gap_s=0.1, frame_s=1 / 30)
    # 10 % of 40 frames are 4, in the middle: 18 to 21; 0.1 s are 3 frames.
    assert np.flatnonzero(role == "test_clip").tolist() == [18, 19, 20, 21]
    # Another 4 before the gap validate, but for frame 13, which resembles a frame of the test clip.
    assert np.flatnonzero(role == "valid_clip").tolist() == [11, 12, 14]
    assert np.flatnonzero(role == "gap").tolist() == [8, 9, 10, 15, 16, 17, 22, 23, 24]
    centred = pixels.astype(float) - pixels.astype(float).mean(axis=0)
    expected = set()
    for i in range(40):
        for clip in range(11, 22):
            correlation = np.corrcoef(centred[i].ravel(), centred[clip].ravel())[0, 1]
            if i not in range(8, 25) and clip in (11, 12, 14, 18, 19, 20, 21) and correlation > 0.95:
                expected.add(i)
    expected.add(13)
    # Frame 5 resembles frame 2, which resembles a clip's; the rule is not transitive unless it does so itself.
    assert set(np.flatnonzero(role == "near-duplicate")) == expected
    assert {2, 33, 35} <= expected
    assert 30 not in expected


def test_clips_near_the_ends_keep_their_gap_over_the_join_of_repeats():
    config = SplitConfig(num_clips=4, clip_fraction=0.2)
    role = clip_roles(PIXELS, config, gap_s=0.3, frame_s=1 / 30)
    # Clips of 3 frames around 7.5, 22.5, ...; nine frames before the first reach into the repeat before.
    assert np.flatnonzero(role == "test_clip").tolist() == [6, 7, 8, 21, 22, 23, 36, 37, 38, 51, 52, 53]
    assert (role[57:] == "gap").all()


def test_a_stimulus_in_two_blocks_leaves_what_is_between_alone(make_recording, shared_seconds):
    """As natural movie three: five repeats, another movie, five repeats more."""
    recording = make_recording(num_units=1)
    table = recording.stimulus(MOVIE)
    repeat = table.columns["repeat"]
    later = repeat >= 5
    shifted = replace(table, name="natural_movie_three", start=table.start + 40.0 * later, end=table.end + 40.0 * later)
    between = (table.midpoint >= shifted.end[~later][-1] + 1) & (repeat >= 5)
    inner = replace(table.select(between), columns={k: v[: between.sum()] for k, v in table.columns.items()})
    assert len(inner) > 100
    inner = replace(inner, columns={"frame": inner.columns["frame"], "repeat": np.arange(len(inner)) % 10})
    stamps = np.arange(recording.timestamps[0], shifted.end[-1] + 5, 1 / 30.08)
    session = replace(
        recording,
        dff=np.zeros((len(stamps), 1), np.float32),
        timestamps=stamps,
        stimuli={"natural_movie_three": shifted, MOVIE: inner},
    )
    config = SplitConfig(num_clips=0)
    splits = [split_movie(session, name, config, window_s=0.2) for name in ("natural_movie_three", MOVIE)]
    assert shared_seconds(join(splits).parts) == pytest.approx(0, abs=1e-9)


def test_times_rounded_to_imaging_frames_lose_and_double_nothing():
    """Movie frames of a file whose tables give the first and last imaging frame: some last no time at all."""
    stamps = 3.0 + np.arange(200) / 30.08
    first = np.round(np.arange(150) * 30.08 / 30).astype(int)
    last = np.append(first[1:], first[-1] + 1) - 1
    columns = {"frame": np.arange(150) % 15, "repeat": np.arange(150) // 15}
    table = Presentations.from_frames(MOVIE, stamps, first, last, columns)
    assert (table.end == table.start).any()
    labels = np.where(columns["repeat"] < 8, "train", np.where(columns["repeat"] == 8, "valid", "test_repeat"))
    split = split_from_labels(table, labels, ["train", "valid", "test_repeat"])
    for part, rows in parts_of_rows(table, split).items():
        np.testing.assert_array_equal(rows, labels == part)


def test_clips_need_the_movie_that_was_shown(make_recording):
    recording = make_recording(num_units=1)
    with pytest.raises(SplitError, match="without its pixels"):
        split_movie(recording, MOVIE, SplitConfig(), window_s=0.1)
    with pytest.raises(SplitError, match="shows frame 59"):
        split_movie(recording, MOVIE, SplitConfig(), window_s=0.1, pixels=PIXELS[:50])


def test_statistics_come_from_outside_every_stimulus_held_out(make_recording, tmp_path):
    recording = make_recording(num_units=1, masked_domain=np.array([[20.0, 21.0]]))
    save_movie(tmp_path, MOVIE, PIXELS)
    recording = Recording.open(recording.save(tmp_path / "made.h5"))
    config = SplitConfig(decay_s=0.02, clip_fraction=0.1)
    splits = list(standard_splits(recording, config, window_s=0.2).values())
    assert [split.tests for split in splits] == [("test_gratings",), ("test_repeat", "test_clip")]
    domain = training_domain(recording, splits)
    grid = np.arange(recording.timestamps[0], recording.timestamps[-1], 0.01)
    held = [contains(grid, split.parts[part]) for split in splits for part in split.parts if part != "train"]
    expected = ~np.any([*held, contains(grid, recording.masked_domain)], axis=0)
    np.testing.assert_array_equal(contains(grid, domain), expected)


def test_a_stimulus_too_short_for_a_task_still_holds_out_what_it_can(make_recording):
    recording = make_recording(num_units=1)
    table = recording.stimulus(MOVIE)
    short = replace(recording, stimuli={MOVIE: table.select(table.columns["repeat"] >= 9)})
    (split,) = standard_splits(short, SplitConfig(num_clips=0)).values()
    assert len(split.parts["test_repeat"]) == 1
    with pytest.raises(SplitError, match="part 'train'"):
        split_movie(short, MOVIE, SplitConfig(num_clips=0), window_s=0.1)


def test_a_planted_leak_is_seen(make_recording, shared_seconds):
    recording = make_recording(num_units=1)
    split = split_gratings(recording, SplitConfig())
    assert shared_seconds(split.parts) == 0
    stolen = split.parts["test_gratings"][:1]
    leaky = Split({**split.parts, "train": np.concatenate([split.parts["train"], stolen])})
    assert shared_seconds(leaky.parts) == pytest.approx(2.0)


def in_two_blocks(recording, pause_s):
    """Put a pause before the last 16 gratings trials and move everything after it."""
    table = recording.stimulus("drifting_gratings")
    later = pause_s * (np.arange(len(table)) >= len(table) - 16)
    moved = replace(table, start=table.start + later, end=table.end + later)
    return replace(recording, stimuli={table.name: moved})


def test_gratings_by_block_test_the_last_block_and_validate_on_the_trials_before_it(make_recording):
    recording = in_two_blocks(make_recording(num_units=1, grating_repeats=9), 10.5)
    table = recording.stimulus("drifting_gratings")
    inside = parts_of_rows(table, split_gratings(recording, SplitConfig(gratings_by_block=True)))
    last = np.arange(len(table)) >= len(table) - 16
    np.testing.assert_array_equal(inside["test_gratings_block"], last)
    for direction in range(8):
        rows = np.flatnonzero((table.columns["orientation"] == 45.0 * direction) & ~last)
        # A tenth of 0.7 + 0.1 is an eighth of at most nine trials: one, the last.
        np.testing.assert_array_equal(inside["valid"][rows], np.arange(len(rows)) == len(rows) - 1)
        np.testing.assert_array_equal(inside["train"][rows], np.arange(len(rows)) < len(rows) - 1)


def test_gratings_in_one_block_cannot_be_split_by_block(make_recording):
    for recording in (make_recording(num_units=1), in_two_blocks(make_recording(num_units=1), 8.0)):
        with pytest.raises(SplitError, match="in one block"):
            split_gratings(recording, SplitConfig(gratings_by_block=True))
    with pytest.raises(ConfigError, match="one of the two"):
        SplitConfig(gratings_by_block=True, gratings_test_repeats=(1,))


def test_a_test_movie_tests_as_a_whole_and_takes_its_like_out_of_training(make_recording, tmp_path, shared_seconds):
    recording = make_recording(num_units=1)
    first = recording.stimulus(MOVIE)
    shift = first.end[-1] - first.start[0] + 3.0
    other = replace(first, name="natural_movie_two", start=first.start + shift, end=first.end + shift)
    stamps = np.arange(recording.timestamps[0], other.end[-1] + 2, 1 / 30.08)
    session = replace(
        recording,
        dff=np.zeros((len(stamps), 1), np.float32),
        timestamps=stamps,
        stimuli={MOVIE: first, other.name: other},
    )
    unseen = np.random.default_rng(6).integers(0, 256, PIXELS.shape, dtype=np.uint8)
    unseen[40] = PIXELS[11]
    save_movie(tmp_path, MOVIE, PIXELS)
    save_movie(tmp_path, other.name, unseen)
    session = Recording.open(session.save(tmp_path / "session.h5"))
    config = SplitConfig(num_clips=0, test_movies=(other.name,))
    split = split_movies(session, [MOVIE], config, window_s=0.2)
    assert split.tests == ("test_repeat", "test_movie")
    assert shared_seconds(split.parts) == 0
    np.testing.assert_array_equal(parts_of_rows(other, split)["test_movie"], np.ones(len(other), bool))
    trained = first.columns["frame"][parts_of_rows(first, split)["train"]]
    assert set(trained) == set(range(MOVIE_FRAMES)) - {11}
    domain = training_domain(session, list(standard_splits(session, config).values()))
    assert not overlaps(other.start, other.end - 1e-6, domain).any()
    with pytest.raises(SplitError, match="both trains and tests"):
        split_movies(session, [other.name], config, window_s=0.2)


@given(
    st.lists(st.sampled_from("abcdefgh"), min_size=3, max_size=12).filter(lambda names: len(set(names)) >= 3),
    st.floats(0.05, 0.6),
    st.integers(0, 5),
)
def test_an_animal_is_on_one_side_only(animals, fraction, seed):
    config = SplitConfig(test_subject_fraction=fraction, seed=seed)
    tests = draw_test_subjects(animals, config)
    assert tests == draw_test_subjects(animals[::-1] * 2, config)
    assert 1 <= len(tests) < len(set(animals))
    assert len(tests) == max(round(fraction * len(set(animals))), 1)
    named = SplitConfig(test_subjects=tests)
    assert draw_test_subjects(animals, named) == tests


def test_recordings_of_a_test_animal_never_train(make_recording):
    recordings = [
        replace(make_recording(f"r{i}", num_units=1), metadata=RecordingMetadata(animal))
        for i, animal in enumerate(["a", "b", "a", "c"])
    ]
    kept = training_recordings(recordings, SplitConfig(test_subjects=("a",)))
    assert [r.recording_id for r in kept] == ["r1", "r3"]
    with pytest.raises(SplitError, match="no animal 'aa', did you mean 'a'"):
        training_recordings(recordings, SplitConfig(test_subjects=("aa",)))
    with pytest.raises(SplitError, match="all 3 animals test"):
        training_recordings(recordings, SplitConfig(test_subjects=("a", "b", "c")))


def test_near_duplicates_are_looked_for_at_64_by_128():
    """Fine grain that antialiasing removes does not hide that two large frames are the same picture."""
    rng = np.random.default_rng(0)
    coarse = np.kron(rng.integers(40, 216, (9, 16, 32)), np.ones((16, 16)))
    grain = rng.choice([-1, 1], coarse.shape) * 24.0
    movie = np.clip(coarse + grain, 0, 255).astype(np.uint8)
    movie[3] = np.clip(coarse[0] - grain[0], 0, 255)
    flat = movie.reshape(9, -1) - movie.reshape(9, -1).mean(axis=0)
    assert np.corrcoef(flat)[0, 3] < 0.9
    assert nearest_correlation(movie, movie[:1])[3] > 0.95


def test_splits_are_stored_beside_the_data_and_read_back(make_recording, tmp_path):
    recordings = [make_recording(name, num_units=1) for name in ("one", "two")]
    for recording in recordings:
        recording.save(tmp_path / f"{recording.recording_id}.h5")
    config = SplitConfig(num_clips=0, test_subjects=("mouse_two",))
    save_splits(recordings, tmp_path / "splits.json", config)
    stored = load_splits(tmp_path / "splits.json")
    assert load_split_settings(tmp_path / "splits.json") == config
    assert set(stored["two"][MOVIE].parts) == {"train", "valid", "test_subject_repeat"}
    for recording in recordings:
        for name, split in standard_splits(recording, config).items():
            found = stored[recording.recording_id][name]
            assert found.unused == split.unused
            for (_, a), (_, b) in zip(found.parts.items(), split.parts.items(), strict=True):
                np.testing.assert_array_equal(a, b)
    whole = json.loads((tmp_path / "splits.json").read_text())
    assert whole["animals"] == {"train": ["mouse_one"], "test": ["mouse_two"]}


def test_the_command_says_which_parts_are_empty(tiny, tmp_path, capsys):
    """Movies of a few seconds have no room for clips with their gaps."""
    assert main(["split", str(tiny), "--out", str(tmp_path / "clips.json")]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert f"part 'train' of {MOVIE} is empty in 4 of 4 recordings" in said
    assert "of drifting_gratings is empty" not in said
    assert main(["split", str(tiny), "--out", str(tmp_path / "repeats.json"), "--num_clips", "0"]) == 0
    assert "is empty" not in capsys.readouterr().err
    stored = load_splits(tmp_path / "repeats.json")
    assert len(stored) == 4
    assert all(len(spans) for named in stored.values() for split in named.values() for spans in split.parts.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "no splits"), ("{", "damaged"), ('{"format": "other"}', "version 1"), ("[]", "version 1")],
)
def test_a_damaged_file_of_splits_is_named(text, message, tmp_path):
    if text is not None:
        (tmp_path / "splits.json").write_text(text)
    with pytest.raises(SplitError, match=message):
        load_splits(tmp_path / "splits.json")
