"""Which presentations train, validate and test, as intervals in seconds.

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

import functools
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poyo_ssl import protocol
from poyo_ssl.config import SplitConfig, from_plain
from poyo_ssl.data.intervals import Intervals, as_intervals, merge, overlaps, subtract
from poyo_ssl.data.recording import Recording
from poyo_ssl.data.stimuli import MOVIE_PREFIX, Presentations, load_movie, movie_path
from poyo_ssl.errors import RecordingError, SplitError, suggest
from poyo_ssl.files import write_beside

FRAMES_PER_BLOCK = 256


def resize_movie(pixels: NDArray[np.uint8], *, height: int, width: int) -> NDArray[np.uint8]:
    """Resize frames with antialiasing, ``(L, height, width)`` uint8."""
    from skimage.transform import resize

    if pixels.shape[1:] == (height, width):
        return np.asarray(pixels)
    resized = np.empty((len(pixels), height, width), np.uint8)
    for i, frame in enumerate(pixels):
        small = resize(frame.astype(np.float32), (height, width), order=1, anti_aliasing=True, preserve_range=True)
        resized[i] = np.clip(np.round(small), 0, 255)
    return resized


def load_resized_movie(folder: Path | str, name: str, *, height: int, width: int) -> NDArray[np.uint8]:
    """Return a movie of a data folder at another size; every recording of the folder shares one copy, read-only."""
    pixels = load_movie(folder, name)
    if pixels.shape[1:] == (height, width):
        return pixels
    path = movie_path(folder, name)
    return _resize_file(path, path.stat().st_mtime_ns, height, width)


@functools.lru_cache(maxsize=16)
def _resize_file(path: Path, modified_ns: int, height: int, width: int) -> NDArray[np.uint8]:
    del modified_ns  # a part of the cache's key: a movie that was replaced is read again
    resized = resize_movie(load_movie(path.parent.parent, path.stem), height=height, width=width)
    resized.flags.writeable = False
    return resized


def comparison_frames(folder: Path | str, name: str) -> NDArray[np.uint8]:
    """Return the frames of a movie at the size at which near-duplicates are looked for."""
    height, width = _comparison_size(load_movie(folder, name))
    return load_resized_movie(folder, name, height=height, width=width)


def _comparison_size(pixels: NDArray[np.uint8]) -> tuple[int, int]:
    return tuple(np.minimum(pixels.shape[1:], protocol.NEAR_DUPLICATE_SIZE).tolist())


class _Frames:
    """Frames that equal those of the same content: what is found in a movie is found once for all recordings."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.pixels = pixels  # (L, H, W)
        self.content = pixels.shape, hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Frames) and self.content == other.content

    def __hash__(self) -> int:
        return hash(self.content)


def nearest_correlation(frames: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the largest correlation of each frame of a whole movie ``(L, H, W)`` with any of the others, ``(L,)``.

    The mean of `frames` is subtracted; larger frames are resized to 64 x 128 first. A frame that equals the mean but
    for its brightness correlates 0.
    """
    return _nearest_correlation(_Frames(frames), _Frames(others))


@functools.lru_cache(maxsize=32)
def _nearest_correlation(movie: _Frames, among: _Frames) -> NDArray[np.float64]:
    height, width = _comparison_size(movie.pixels)
    frames, others = (resize_movie(each.pixels, height=height, width=width) for each in (movie, among))
    mean = frames.mean(axis=0, dtype=np.float64).astype(np.float32)
    unit = _unit_rows(others, mean)
    blocks = [
        (_unit_rows(frames[start : start + FRAMES_PER_BLOCK], mean) @ unit.T).max(axis=1)
        for start in range(0, len(frames), FRAMES_PER_BLOCK)
    ]
    found = np.concatenate(blocks).astype(np.float64)
    found.flags.writeable = False
    return found


def _unit_rows(frames: NDArray[np.uint8], mean: NDArray[np.float32]) -> NDArray[np.float32]:
    rows = (frames - mean).reshape(len(frames), -1)
    rows -= rows.mean(axis=1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-3)


def clip_roles(pixels: NDArray[np.uint8], config: SplitConfig, *, gap_s: float, frame_s: float) -> NDArray[np.str_]:
    """Name what held-out clips do to each movie frame: ``test_clip``, ``valid_clip``, ``gap`` and so on, or nothing.

    Test clips are contiguous, equally long, spread evenly over the movie. Before each, `gap_s` away, lies a validation
    clip; where there is no room for it, it is shorter. Gaps lie on both sides of either and go on over the movie's
    ends, since its repeats follow each other. A frame of training or of a validation clip whose `nearest_correlation`
    with the test clips exceeds `config.near_duplicate_correlation` is a ``near-duplicate``, and so is a training frame
    that resembles a validation clip. A frame is shown for `frame_s`.
    """
    return _clip_roles(_Frames(pixels), config, int(np.ceil(gap_s / frame_s)))


@functools.lru_cache(maxsize=32)
def _clip_roles(movie: _Frames, config: SplitConfig, gap: int) -> NDArray[np.str_]:
    pixels, num_frames = movie.pixels, len(movie.pixels)
    length = max(round(config.clip_fraction * num_frames / config.num_clips), 1)
    valid_length = round(config.valid_clip_fraction * num_frames / config.num_clips)
    centres = (np.arange(config.num_clips) + 0.5) * num_frames / config.num_clips
    starts = np.round(centres - length / 2).astype(int)
    test = _frames_of(starts, length, num_frames)
    beside = _frames_of(starts - gap, length + 2 * gap, num_frames) & ~test
    # The test's own gap wins where a short movie brings a validation clip around to the next test clip.
    valid = _frames_of(starts - gap - valid_length, valid_length, num_frames) & ~test & ~beside
    first = np.flatnonzero(valid)
    beside |= _frames_of(first - gap, 2 * gap + 1, num_frames) & ~test & ~valid
    role = np.select([test, valid, beside], ["test_clip", "valid_clip", "gap"], "").astype("<U24")
    limit = config.near_duplicate_correlation
    role[(nearest_correlation(pixels, pixels[test]) > limit) & ~test & ~beside] = "near-duplicate"
    if valid.any():
        role[(nearest_correlation(pixels, pixels[valid]) > limit) & (role == "")] = "near-duplicate"
    role.flags.writeable = False
    return role


def _frames_of(starts: NDArray[np.int64], length: int, num_frames: int) -> NDArray[np.bool_]:
    """``(num_frames,)`` bool, True within `length` frames from any start, around the movie's ends."""
    found = np.zeros(num_frames, bool)
    found[(starts[:, None] + np.arange(length)) % num_frames] = True
    return found


GRATINGS = "drifting_gratings"


class PartName(str):
    """Name of a part: ``train``, ``valid``, ``valid_clip``, or ``test_`` and what is tested."""

    # Names are parsed here alone.

    @property
    def role(self) -> str:
        """``train``, ``valid`` or ``test``."""
        return self.partition("_")[0]

    @property
    def split_name(self) -> str:
        """What is tested, for example ``repeat`` or ``subject_clip``; what a validation part is for, or nothing."""
        return self.partition("_")[2]

    @property
    def of_new_animal(self) -> bool:
        """Whether it tests an animal that training left out."""
        return self.split_name.startswith("subject_")

    @property
    def is_clip(self) -> bool:
        """Whether it is a clip held out of a training movie, validation clips included."""
        return self.split_name.removeprefix("subject_") == "clip"

    @property
    def is_unseen(self) -> bool:
        """Whether its frames never train: a held-out clip or another movie."""
        return self.is_clip or self.split_name.removeprefix("subject_") == "movie"


VALID_CLIP = PartName("valid_clip")

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
    def tests(self) -> tuple[PartName, ...]:
        """Names of the test parts, for example ``('test_repeat', 'test_clip')``."""
        return tuple(part for part in map(PartName, self.parts) if part.role == "test")

    @property
    def validations(self) -> tuple[PartName, ...]:
        """Names of the validation parts, ``('valid',)`` or ``('valid', 'valid_clip')``."""
        return tuple(part for part in map(PartName, self.parts) if part.role == "valid")

    def validation_of(self, test: str) -> str:
        """Name of the part that validates for a test: unseen frames for unseen frames, where there are any.

        Examples
        --------
        >>> split = Split(dict.fromkeys(("train", "valid", "valid_clip", "test_repeat", "test_clip"), np.zeros((1, 2))))
        >>> split.validation_of("test_repeat"), split.validation_of("test_clip")
        ('valid', 'valid_clip')
        """
        return VALID_CLIP if PartName(test).is_unseen and VALID_CLIP in self.parts else "valid"

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

    def to_plain(self) -> dict[str, Any]:
        """Return the split as JSON holds it."""
        return {"parts": {name: spans.tolist() for name, spans in self.parts.items()}, "unused": dict(self.unused)}

    @classmethod
    def from_plain(cls, item: Mapping[str, Any]) -> Split:
        """Return the split that `to_plain` described."""
        return cls({part: as_intervals(spans) for part, spans in item["parts"].items()}, item["unused"])


def split_from_labels(table: Presentations, labels: NDArray[np.str_], parts: Sequence[str]) -> Split:
    """Turn one label per presentation into a split; those of equal label that touch become one interval.

    A pause ends an interval, since another stimulus may be shown in it.
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


def split_gratings(recording: Recording, config: SplitConfig, *, may_be_empty: bool = False) -> Split:
    """Split gratings trials; blank sweeps belong to no part.

    At random, stratified by direction: each direction gives ``round(fraction x n)`` trials to test and to validation
    (at least one where it has three or more), the rest to training. With `gratings_test_repeats` trials are told apart
    by the table's ``repeat`` column; with `gratings_by_block` the session's last block tests, and the last trials of
    each direction in the blocks before it validate. Parts without a trial are refused unless they `may_be_empty`.
    """
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
    split = split_from_labels(table, labels, ["train", "valid", test])
    return split if may_be_empty else _checked(recording, GRATINGS, split)


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
    may_be_empty: bool = False,
) -> Split:
    """Split one movie by repeats and, with `config.num_clips`, by held-out clips; a test movie tests as a whole.

    Held-out clips are so in all repeats; `valid` and `test_repeat` show training frames alone. The gap around a clip is
    `window_s` (input window plus lag) and three decay times. Near-duplicates are looked for in `pixels`
    (frames, height, width); training frames that resemble one of `unseen`, those of the test movies, are dropped.
    """
    table = recording.stimulus(movie)
    masked = _is_masked(table, recording.masked_domain)
    if movie in config.test_movies:
        split = split_from_labels(table, np.where(masked, "masked", "test_movie"), ["test_movie"])
        return split if may_be_empty else _checked(recording, movie, split)
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
    split = split_from_labels(table, labels, parts)
    return split if may_be_empty else _checked(recording, movie, split)


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
    """Split the movies of a task, and its test movies, with the pixels in the recording's data folder."""
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
        splits[GRATINGS] = split_gratings(recording, config, may_be_empty=True)
    folder = recording.data_folder
    shown = sorted(name for name in recording.stimuli if name.startswith(MOVIE_PREFIX))
    known = {n: comparison_frames(folder, n) for n in shown if folder is not None and movie_path(folder, n).exists()}
    tests = [known[name] for name in config.test_movies if name in known]
    for name in shown:
        splits[name] = split_movie(
            recording,
            name,
            config if name in known else config.without_clips(),
            window_s=window_s,
            pixels=known.get(name),
            unseen=np.concatenate(tests) if tests else None,
            may_be_empty=True,
        )
    return splits


def draw_test_subjects(subject_ids: Collection[str], config: SplitConfig) -> tuple[str, ...]:
    """Return the animals that only test, sorted: those named, or a share of all drawn by the seed."""
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


FORMAT, VERSION = "poyo_ssl.splits", 1


def save_splits(
    recordings: Sequence[Recording], path: Path | str, config: SplitConfig, *, window_s: float = 1.0
) -> dict[str, dict[str, Split]]:
    """Split every stimulus of every recording and write the parts to a file.

    Parameters
    ----------
    recordings : sequence of Recording
        All recordings of a study.
    path : path
        File to write; one that is there is replaced.
    config : SplitConfig
        The splits.
    window_s : float
        Window plus lag of the decoders; clips keep this and three decay times on each side.

    Returns
    -------
    dict
        Split by recording id and stimulus.

    Raises
    ------
    SplitError
        If a recording cannot be split so.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from poyo_ssl.data.recording import RecordingMetadata
    >>> from poyo_ssl.data.stimuli import Presentations
    >>> stamps = np.arange(600) / 30
    >>> start = np.arange(10) * 45
    >>> movie = Presentations.from_frames(
    ...     "natural_movie_one", stamps, start, start + 45, {"frame": np.zeros(10, int), "repeat": np.arange(10)})
    >>> recording = Recording(
    ...     "r", np.zeros((600, 1)), stamps, RecordingMetadata("m"), stimuli={"natural_movie_one": movie})
    >>> path = Path(tempfile.mkdtemp()) / "splits.json"
    >>> _ = save_splits([recording], path, SplitConfig())
    >>> load_splits(path)["r"]["natural_movie_one"].parts["test_repeat"].tolist()
    [[13.5, 15.0]]
    """
    tests = draw_test_subjects([r.metadata.subject_id for r in recordings], config)
    animals = sorted({r.metadata.subject_id for r in recordings})
    found: dict[str, dict[str, Split]] = {}
    contents: dict[str, Any] = {}
    for recording in recordings:
        new = recording.metadata.subject_id in tests
        named = {
            name: split.of_new_animal() if new else split
            for name, split in standard_splits(recording, config, window_s=window_s).items()
        }
        found[recording.recording_id] = named
        contents[recording.recording_id] = {
            "subject_id": recording.metadata.subject_id,
            "stimuli": {name: split.to_plain() for name, split in named.items()},
        }
    whole = {
        "format": FORMAT,
        "version": VERSION,
        "settings": asdict(config),
        "window_s": window_s,
        "animals": {"train": [a for a in animals if a not in tests], "test": list(tests)},
        "recordings": contents,
    }
    write_beside(Path(path), json.dumps(whole, indent=1) + "\n")
    return found


def load_splits(path: Path | str) -> Mapping[str, Mapping[str, Split]]:
    """Read the splits of every recording and stimulus.

    Raises
    ------
    SplitError
        If the file is missing, damaged, or of another format or version.
    """
    whole = _read(Path(path))
    try:
        return {
            recording: {stimulus: Split.from_plain(item) for stimulus, item in entry["stimuli"].items()}
            for recording, entry in whole["recordings"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SplitError(f"{path} is damaged ({error!r})", fix="write it again with 'poyo-ssl split'") from None


def load_split_settings(path: Path | str) -> SplitConfig:
    """Read the settings that a file of splits was made with; errors as in `load_splits`."""
    return from_plain(SplitConfig, _read(Path(path)).get("settings", {}))


def load_split_window(path: Path | str) -> float:
    """Read the window plus lag, in seconds, that a file of splits was made for; errors as in `load_splits`."""
    window_s = _read(Path(path)).get("window_s")
    if not isinstance(window_s, (int, float)) or not window_s > 0:
        raise SplitError(f"{path} is damaged (window_s {window_s})", fix="write it again with 'poyo-ssl split'")
    return float(window_s)


def _read(path: Path) -> dict[str, Any]:
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SplitError(f"no splits in {path}", fix="write them with 'poyo-ssl split DATA'") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SplitError(f"{path} is damaged ({error})", fix="write it again with 'poyo-ssl split'") from None
    if not isinstance(whole, dict) or (whole.get("format"), whole.get("version")) != (FORMAT, VERSION):
        raise SplitError(f"{path} holds no splits of version {VERSION}", fix="write it again with 'poyo-ssl split'")
    return whole
