"""Which presentations train, validate and test, as intervals in seconds (EVALUATION.md "Splits").

One training serves all movie splits: it sees the training repeats without the held-out clips, the gaps around
them and near-duplicates of their frames. `repeat` then tests the training frames in an unseen repeat
(identification of known frames), `clip` tests the held-out clips in every repeat (frames never seen), `movie` other
movies of the session (footage never seen). What validates follows what is tested: `valid`, training frames in an
unseen repeat, for `repeat`; `valid_clip`, clips beside the test clips and held out like them, for `clip` and `movie`,
since hyper-parameters chosen on known frames are those of identification.

`gratings` tests trials among the training trials, `gratings_block` a block after them. `subject` tests animals that
training leaves out; their own training part then is the adaptation part, on which nothing but embeddings is fitted,
and their tests are called `subject_repeat`, `subject_clip` and so on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from poyo_ssl import protocol
from poyo_ssl.config import SplitConfig
from poyo_ssl.data.intervals import Intervals, as_intervals, merge, overlaps, subtract
from poyo_ssl.data.recording import Recording
from poyo_ssl.data.stimuli import MOVIE_PREFIX, Presentations, movie_path
from poyo_ssl.data.unseen_frames import clip_roles, comparison_frames, nearest_correlation
from poyo_ssl.errors import RecordingError, SplitError, suggest

GRATINGS = "drifting_gratings"

VALID_CLIP = "valid_clip"
UNSEEN_TESTS = ("clip", "movie")
"""What the names of tests on frames that were never trained on end in."""

LONGEST_PAUSE_S = 0.1
"""Presentations of one part that follow each other within this time share an interval; it bridges rounded times."""


@dataclass(frozen=True)
class Split:
    """Parts of one recording for one task.

    Attributes
    ----------
    parts : dict
        ``(K, 2)`` seconds by part: ``train``, ``valid``, perhaps ``valid_clip``, and one ``test_<name>`` for each
        test, disjoint.
    unused : dict
        Presentations in no part, counted by reason.
    """

    parts: Mapping[str, Intervals]
    unused: Mapping[str, int] = field(default_factory=dict)

    @property
    def tests(self) -> tuple[str, ...]:
        """Names of the test parts, for example ``('test_repeat', 'test_clip')``."""
        return tuple(name for name in self.parts if name.startswith("test_"))

    @property
    def validations(self) -> tuple[str, ...]:
        """Names of the validation parts, ``('valid',)`` or ``('valid', 'valid_clip')``."""
        return tuple(name for name in self.parts if name.startswith("valid"))

    def validation_of(self, test: str) -> str:
        """Name of the part that validates for a test: unseen frames for unseen frames, where there are any.

        Examples
        --------
        >>> split = Split(dict.fromkeys(("train", "valid", "valid_clip", "test_repeat", "test_clip"), np.zeros((1, 2))))
        >>> split.validation_of("test_repeat"), split.validation_of("test_clip")
        ('valid', 'valid_clip')
        """
        return VALID_CLIP if test.endswith(UNSEEN_TESTS) and VALID_CLIP in self.parts else "valid"

    @property
    def held_out(self) -> Intervals:
        """``(K, 2)`` seconds of validation and test together."""
        return self.others("train")

    def others(self, part: str) -> Intervals:
        """``(K, 2)`` seconds of every other part, into which an input of `part` may not reach."""
        return merge(np.concatenate([v for name, v in self.parts.items() if name != part] + [np.zeros((0, 2))]))

    def of_new_animal(self) -> Split:
        """Return the same parts with tests named after the `subject` split: ``test_subject_repeat`` and so on."""
        renamed = {name.replace("test_", "test_subject_", 1): v for name, v in self.parts.items()}
        return Split(renamed, self.unused)


def split_from_labels(table: Presentations, labels: NDArray[np.str_], parts: Sequence[str]) -> Split:
    """Turn one label per presentation into a split; those of equal label that touch become one interval.

    A pause ends an interval, since another stimulus may be shown in it.

    Examples
    --------
    >>> import numpy as np
    >>> table = Presentations.from_frames("m", np.arange(9) / 1.0, np.arange(8), np.arange(1, 9), {})
    >>> labels = np.array(["train"] * 4 + ["gap"] + ["test_clip"] * 3)
    >>> split = split_from_labels(table, labels, ["train", "valid", "test_clip"])
    >>> split.parts["test_clip"].tolist(), split.unused
    ([[5.0, 8.0]], {'gap': 1})
    """
    end = _end_on_screen(table)
    intervals = {}
    for part in parts:
        rows = np.flatnonzero(labels == part)
        apart = (np.diff(rows) > 1) | (table.start[rows[1:]] - end[rows[:-1]] > LONGEST_PAUSE_S)
        runs = np.split(rows, np.flatnonzero(apart) + 1) if len(rows) else []
        intervals[part] = merge(as_intervals([(table.start[run[0]], end[run[-1]]) for run in runs]))
    reasons, counts = np.unique(labels[~np.isin(labels, list(parts))], return_counts=True)
    return Split(intervals, {str(r): int(c) for r, c in zip(reasons, counts, strict=True)})


def _end_on_screen(table: Presentations) -> NDArray[np.float64]:
    """``(K,)`` seconds: a presentation lasts until the next one begins, or to its own end before a pause.

    Tables with times rounded to imaging frames have presentations that overlap by a rounding error or last no time
    at all; each would be in two parts or in none.
    """
    following = np.append(table.start[1:], np.inf)
    end = np.where(following - table.end <= LONGEST_PAUSE_S, following, table.end)
    return np.maximum(end, np.nextafter(table.start, np.inf))


def _is_masked(table: Presentations, masked_domain: Intervals) -> NDArray[np.bool_]:
    """``(K,)`` bool, True for presentations of which any moment is masked; the end itself is not part of one."""
    return overlaps(table.start, np.nextafter(_end_on_screen(table), -np.inf), masked_domain)


def usable_trials(table: Presentations) -> NDArray[np.bool_]:
    """``(K,)`` bool, True for gratings that are neither blank nor of unknown direction."""
    known = np.isfinite(table.columns["orientation"].astype(float))
    blank = np.asarray(table.columns.get("blank_sweep", np.zeros(len(table), bool)), bool)
    labelled = np.asarray(table.columns.get("label_known", np.ones(len(table), bool)), bool)
    return known & ~blank & labelled


def split_gratings(recording: Recording, config: SplitConfig) -> Split:
    """Split gratings trials; blank sweeps belong to no part.

    At random, stratified by direction: each direction gives ``round(fraction x n)`` trials to test and to validation
    (at least one where it has three or more), the rest to training. With `gratings_test_repeats` trials are told apart
    by the table's ``repeat`` column; with `gratings_by_block` the session's last block tests, and the last trials of
    each direction in the blocks before it validate.

    Raises
    ------
    SplitError
        If a part stays empty, or there is no column or no second block to split by.
    """
    return _checked(recording, GRATINGS, _divide_gratings(recording, config))


def _divide_gratings(recording: Recording, config: SplitConfig) -> Split:
    table = recording.stimulus(GRATINGS)
    labels = np.full(len(table), "blank or unlabelled", dtype="<U24")
    masked = _is_masked(table, recording.masked_domain)
    labels[masked] = "masked"
    usable = usable_trials(table) & ~masked
    test = "test_gratings_block" if config.gratings_by_block else "test_gratings"
    if config.gratings_test_repeats:
        if "repeat" not in table.columns:
            raise SplitError(
                f"recording {recording.recording_id}: {GRATINGS} has no column 'repeat' to split by",
                fix="leave split.gratings_test_repeats empty",
            )
        repeat = table.columns["repeat"]
        labels[usable] = "train"
        labels[usable & np.isin(repeat, config.gratings_valid_repeats)] = "valid"
        labels[usable & np.isin(repeat, config.gratings_test_repeats)] = test
    elif config.gratings_by_block:
        last = _is_last_block(recording, table)
        labels[usable & last] = test
        share = config.gratings_fractions[1] / sum(config.gratings_fractions[:2])
        for rows in _rows_by_direction(table, usable & ~last):
            labels[rows] = "train"
            labels[rows[len(rows) - max(round(share * len(rows)), 1 if len(rows) >= 2 else 0) :]] = "valid"
    else:
        # The id keeps splits of different recordings independent and those of one recording reproducible.
        generator = np.random.default_rng([config.seed, *recording.recording_id.encode()])
        for rows in _rows_by_direction(table, usable):
            rows = generator.permutation(rows)
            num_valid, num_test = (
                max(round(fraction * len(rows)), 1 if len(rows) >= 3 else 0)
                for fraction in config.gratings_fractions[1:]
            )
            labels[rows] = "train"
            labels[rows[: num_test + num_valid]] = "valid"
            labels[rows[:num_test]] = test
    return split_from_labels(table, labels, ["train", "valid", test])


def _rows_by_direction(table: Presentations, among: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """Rows of each direction in order of time."""
    orientation = table.columns["orientation"]
    return [np.flatnonzero(among & (orientation == direction)) for direction in np.unique(orientation[among])]


def _is_last_block(recording: Recording, table: Presentations) -> NDArray[np.bool_]:
    """``(K,)`` bool, True for trials of the last block; a pause of more than 10 s separates blocks."""
    block = np.cumsum(np.append(False, table.start[1:] - table.end[:-1] > protocol.BLOCK_PAUSE_S))
    if len(table) == 0 or block[-1] == 0:
        raise SplitError(
            f"recording {recording.recording_id} shows {GRATINGS} in one block",
            allowed="two blocks or more, at least 10 s apart",
            fix="leave split.gratings_by_block out",
        )
    return np.asarray(block == block[-1])


def split_movie(
    recording: Recording,
    movie: str,
    config: SplitConfig,
    *,
    window_s: float,
    pixels: NDArray[np.uint8] | None = None,
    unseen: NDArray[np.uint8] | None = None,
) -> Split:
    """Split one movie by repeats and, with `config.num_clips`, by held-out clips; a test movie tests as a whole.

    Held-out clips are so in all repeats; `valid` and `test_repeat` show training frames alone.

    Parameters
    ----------
    recording : Recording
        The recording with the movie's table.
    movie : str
        Name of the movie.
    config : SplitConfig
        Repeats, clips, gap.
    window_s : float
        Length of the input windows plus response lag; the gap around a clip is this plus three decay times.
    pixels : ndarray, optional
        ``(frames, height, width)`` of the movie, needed for clips: near-duplicates are found in them.
    unseen : ndarray, optional
        ``(M, height, width)`` frames of the test movies: training frames that resemble one are dropped.

    Raises
    ------
    SplitError
        If a part stays empty, or clips are asked for without pixels or with those of a shorter movie.
    """
    split = _divide_movie(recording, movie, config, window_s=window_s, pixels=pixels, unseen=unseen)
    return _checked(recording, movie, split)


def _divide_movie(
    recording: Recording,
    movie: str,
    config: SplitConfig,
    *,
    window_s: float,
    pixels: NDArray[np.uint8] | None,
    unseen: NDArray[np.uint8] | None,
) -> Split:
    table = recording.stimulus(movie)
    masked = _is_masked(table, recording.masked_domain)
    if movie in config.test_movies:
        return split_from_labels(table, np.where(masked, "masked", "test_movie"), ["test_movie"])
    frame, repeat = table.columns["frame"], table.columns["repeat"]
    labels = np.full(len(table), "repeat in no part", dtype="<U32")
    for part, repeats in (("train", config.repeat_train), ("valid", config.repeat_valid)):
        labels[np.isin(repeat, repeats)] = part
    labels[np.isin(repeat, config.repeat_test)] = "test_repeat"
    parts = ["train", "valid", "test_repeat"]
    if config.num_clips:
        if pixels is None:
            raise SplitError(f"clips of {movie} without its pixels", fix="prepare the movie or set split.num_clips 0")
        if frame.max(initial=0) >= len(pixels):
            raise SplitError(
                f"recording {recording.recording_id} shows frame {frame.max()} of {movie}, which has {len(pixels)}",
                fix="put the movie that was shown into the data folder",
            )
        step = float(np.median(np.diff(table.start[repeat == repeat[0]])))
        role = clip_roles(pixels, config, gap_s=window_s + 3 * config.decay_s, frame_s=step)[frame]
        labels = np.where(role == "", labels, role)
        parts += [VALID_CLIP, "test_clip"] if config.valid_clip_fraction else ["test_clip"]
    if unseen is not None and pixels is not None:
        similar = nearest_correlation(pixels, unseen) > config.near_duplicate_correlation
        # A clip frame may resemble a test movie's: neither trains.
        labels[similar[frame] & (labels != "test_clip")] = "near-duplicate of a test movie"
    labels[masked] = "masked"
    return split_from_labels(table, labels, parts)


def _checked(recording: Recording, stimulus: str, split: Split) -> Split:
    for part, intervals in split.parts.items():
        if len(intervals) == 0:
            raise SplitError(
                f"recording {recording.recording_id}: part '{part}' of {stimulus} has no presentation",
                fix="change the split's fractions or repeats, shorten its clips (split.clip_fraction, "
                "split.valid_clip_fraction) or take a recording with more repeats",
            )
    return split


def join(splits: Sequence[Split]) -> Split:
    """Join splits of several stimuli of one recording into one."""
    names = dict.fromkeys(name for split in splits for name in split.parts)
    empty = np.zeros((0, 2))
    parts = {n: merge(np.concatenate([s.parts.get(n, empty) for s in splits])) for n in names}
    reasons = dict.fromkeys(reason for split in splits for reason in split.unused)
    return Split(parts, {reason: sum(s.unused.get(reason, 0) for s in splits) for reason in reasons})


def training_domain(recording: Recording, splits: Sequence[Split]) -> Intervals:
    """``(K, 2)`` seconds from which statistics may be taken: all but validation, test and masked spans."""
    whole = as_intervals([[recording.timestamps[0], recording.timestamps[-1] + 1 / recording.rate_hz]])
    held_out = [split.held_out for split in splits]
    return subtract(whole, np.concatenate([*held_out, recording.masked_domain.reshape(-1, 2)]))


def split_movies(recording: Recording, movies: Sequence[str], config: SplitConfig, *, window_s: float) -> Split:
    """Split the movies of a task, and its test movies, with the pixels in the recording's data folder.

    Raises
    ------
    RecordingError
        If clips or test movies are asked for and the recording lies in no data folder, or it lacks a movie.
    SplitError
        If a part stays empty, or a test movie is to train, too.
    """
    both = sorted(set(movies) & set(config.test_movies))
    if both:
        raise SplitError(f"movie {both[0]} both trains and tests", fix="name it in movies or in split.test_movies")
    pixels = {}
    if config.num_clips or config.test_movies:
        pixels = {name: _pixels_of(recording, name) for name in (*movies, *config.test_movies)}
    unseen = np.concatenate([pixels[name] for name in config.test_movies]) if config.test_movies else None
    return join(
        [
            split_movie(recording, name, config, window_s=window_s, pixels=pixels.get(name), unseen=unseen)
            for name in (*movies, *config.test_movies)
        ]
    )


def _pixels_of(recording: Recording, movie: str) -> NDArray[np.uint8]:
    if recording.data_folder is None:
        raise RecordingError(
            f"no pixels of '{movie}' for recording {recording.recording_id}, which lies in no data folder",
            fix="save it beside the movie, or set split.num_clips 0",
        )
    return comparison_frames(recording.data_folder, movie)


def standard_splits(recording: Recording, config: SplitConfig, *, window_s: float = 1.0) -> dict[str, Split]:
    """Split every stimulus of a recording that a task can use, by name; `window_s` sets the gaps around clips.

    Parts may stay empty here: a stimulus shown too briefly to be a task's own still holds out what it can.
    """
    splits = {}
    if GRATINGS in recording.stimuli:
        splits[GRATINGS] = _divide_gratings(recording, config)
    folder = recording.data_folder
    shown = sorted(name for name in recording.stimuli if name.startswith(MOVIE_PREFIX))
    known = {n: comparison_frames(folder, n) for n in shown if folder is not None and movie_path(folder, n).exists()}
    tests = [known[name] for name in config.test_movies if name in known]
    for name in shown:
        splits[name] = _divide_movie(
            recording,
            name,
            config if name in known else config.without_clips(),
            window_s=window_s,
            pixels=known.get(name),
            unseen=np.concatenate(tests) if tests else None,
        )
    return splits


def draw_test_subjects(subject_ids: Collection[str], config: SplitConfig) -> tuple[str, ...]:
    """Return the animals that only test, sorted: those named, or a share of all drawn by the seed.

    Parameters
    ----------
    subject_ids : collection of str
        Animal of every recording; an animal may occur more than once.
    config : SplitConfig
        `test_subjects` or `test_subject_fraction`.

    Raises
    ------
    SplitError
        If a name is unknown, or no animal would be left to train or to test.

    Examples
    --------
    >>> draw_test_subjects(["a", "b", "b", "c", "d"], SplitConfig(test_subject_fraction=0.5))
    ('b', 'c')
    >>> draw_test_subjects(["a", "b"], SplitConfig())
    ()
    """
    animals = sorted(set(subject_ids))
    for name in config.test_subjects:
        if name not in animals:
            raise SplitError(
                f"no animal '{name}'{suggest(name, animals)}", allowed=", ".join(animals), fix="correct test_subjects"
            )
    chosen = set(config.test_subjects)
    if config.test_subject_fraction:
        count = max(round(config.test_subject_fraction * len(animals)), 1)
        # Its own stream: the same seed also orders gratings trials.
        chosen = set(np.random.default_rng([config.seed, 2]).permutation(animals)[:count].tolist())
    if chosen and len(chosen) == len(animals):
        raise SplitError(
            f"all {len(animals)} animals test and none trains", fix="lower split.test_subject_fraction or name fewer"
        )
    return tuple(sorted(chosen))


def training_recordings(recordings: Sequence[Recording], config: SplitConfig) -> list[Recording]:
    """Return the recordings of animals that may train."""
    tests = draw_test_subjects([r.metadata.subject_id for r in recordings], config)
    return [r for r in recordings if r.metadata.subject_id not in tests]
