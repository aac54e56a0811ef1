"""Which presentations train, validate and test, as intervals in seconds (EVALUATION.md "Splits").

One training serves both movie splits: it sees the training repeats without the held-out clips, the gaps around
them and near-duplicates of their frames. `repeat` then tests the training frames in an unseen repeat
(identification of known frames), `clip` tests the held-out clips in every repeat (frames never seen).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from poyo_ssl.config import SplitConfig
from poyo_ssl.data.intervals import Intervals, as_intervals, merge, overlaps, subtract
from poyo_ssl.data.recording import Recording
from poyo_ssl.data.stimuli import MOVIE_PREFIX, Presentations, load_movie, movie_path
from poyo_ssl.errors import SplitError

GRATINGS = "drifting_gratings"

LONGEST_PAUSE_S = 0.1
"""Presentations of one part that follow each other within this time share an interval; it bridges rounded times."""


@dataclass(frozen=True)
class Split:
    """Parts of one recording for one task.

    Attributes
    ----------
    parts : dict
        ``(K, 2)`` seconds by part: ``train``, ``valid`` and one ``test_<name>`` for each test, disjoint.
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
    def held_out(self) -> Intervals:
        """``(K, 2)`` seconds of validation and test together."""
        return merge(np.concatenate([v for name, v in self.parts.items() if name != "train"]))

    def others(self, part: str) -> Intervals:
        """``(K, 2)`` seconds of every other part, into which an input of `part` may not reach."""
        return merge(np.concatenate([v for name, v in self.parts.items() if name != part] + [np.zeros((0, 2))]))


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
    """Split gratings trials at random, stratified by direction; blank sweeps belong to no part.

    Each direction gives ``round(fraction x n)`` trials to test and to validation (at least one where it has
    three or more), the rest to training. With `gratings_test_repeats` the trials are instead told apart by the
    table's ``repeat`` column.

    Raises
    ------
    SplitError
        If a part stays empty.
    """
    return _checked(recording, GRATINGS, _divide_gratings(recording, config))


def _divide_gratings(recording: Recording, config: SplitConfig) -> Split:
    table = recording.stimulus(GRATINGS)
    labels = np.full(len(table), "blank or unlabelled", dtype="<U24")
    masked = _is_masked(table, recording.masked_domain)
    labels[masked] = "masked"
    usable = usable_trials(table) & ~masked
    if config.gratings_test_repeats:
        if "repeat" not in table.columns:
            raise SplitError(
                f"recording {recording.recording_id}: {GRATINGS} has no column 'repeat' to split by",
                fix="leave split.gratings_test_repeats empty",
            )
        repeat = table.columns["repeat"]
        labels[usable] = "train"
        labels[usable & np.isin(repeat, config.gratings_valid_repeats)] = "valid"
        labels[usable & np.isin(repeat, config.gratings_test_repeats)] = "test_gratings"
    else:
        # The id keeps splits of different recordings independent and those of one recording reproducible.
        generator = np.random.default_rng([config.seed, *recording.recording_id.encode()])
        for direction in np.unique(table.columns["orientation"][usable]):
            rows = generator.permutation(np.flatnonzero(usable & (table.columns["orientation"] == direction)))
            num_valid, num_test = (
                max(round(fraction * len(rows)), 1 if len(rows) >= 3 else 0)
                for fraction in config.gratings_fractions[1:]
            )
            labels[rows] = "train"
            labels[rows[: num_test + num_valid]] = "valid"
            labels[rows[:num_test]] = "test_gratings"
    return split_from_labels(table, labels, ["train", "valid", "test_gratings"])


def split_movie(
    recording: Recording,
    movie: str,
    config: SplitConfig,
    *,
    window_s: float,
    pixels: NDArray[np.uint8] | None = None,
) -> Split:
    """Split one movie by repeats and, with `config.num_clips`, by held-out clips.

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

    Raises
    ------
    SplitError
        If a part stays empty, or clips are asked for without pixels or with those of a shorter movie.
    """
    return _checked(recording, movie, _divide_movie(recording, movie, config, window_s=window_s, pixels=pixels))


def _divide_movie(
    recording: Recording, movie: str, config: SplitConfig, *, window_s: float, pixels: NDArray[np.uint8] | None
) -> Split:
    table = recording.stimulus(movie)
    frame, repeat = table.columns["frame"], table.columns["repeat"]
    labels = np.full(len(table), "repeat in no part", dtype="<U24")
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
        parts.append("test_clip")
    labels[_is_masked(table, recording.masked_domain)] = "masked"
    return split_from_labels(table, labels, parts)


def clip_roles(pixels: NDArray[np.uint8], config: SplitConfig, *, gap_s: float, frame_s: float) -> NDArray[np.str_]:
    """Name what held-out clips do to each movie frame: ``test_clip``, ``gap``, ``near-duplicate`` or nothing.

    Clips are contiguous, equally long, spread evenly over the movie. Gaps go on over the movie's ends, since its
    repeats follow each other. A training frame is a near-duplicate if its
    correlation with any clip frame (mean frame subtracted) exceeds `config.near_duplicate_correlation`; the rule
    is applied once, not transitively.

    Returns
    -------
    ndarray
        ``(frames,)`` text.
    """
    num_frames = len(pixels)
    length = max(round(config.clip_fraction * num_frames / config.num_clips), 1)
    gap = int(np.ceil(gap_s / frame_s))
    role = np.full(num_frames, "", dtype="<U24")
    centres = (np.arange(config.num_clips) + 0.5) * num_frames / config.num_clips
    starts = np.round(centres - length / 2).astype(int)
    for start in starts:
        role[np.arange(start - gap, start + length + gap) % num_frames] = "gap"
    for start in starts:
        role[start : start + length] = "test_clip"
    flat = pixels.reshape(num_frames, -1).astype(np.float32)
    flat -= flat.mean(axis=0)
    flat -= flat.mean(axis=1, keepdims=True)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    similar = (flat @ flat[role == "test_clip"].T).max(axis=1) > config.near_duplicate_correlation
    role[similar & (role == "")] = "near-duplicate"
    return role


def _checked(recording: Recording, stimulus: str, split: Split) -> Split:
    for part, intervals in split.parts.items():
        if len(intervals) == 0:
            raise SplitError(
                f"recording {recording.recording_id}: part '{part}' of {stimulus} has no presentation",
                fix="change the split's fractions, repeats or clips, or take a recording with more repeats",
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


def standard_splits(recording: Recording, config: SplitConfig, *, window_s: float = 1.0) -> list[Split]:
    """Split every stimulus of a recording that a task can use; `window_s` sets the gaps around clips.

    Parts may stay empty here: a stimulus shown too briefly to be a task's own still holds out what it can.
    """
    splits = []
    if GRATINGS in recording.stimuli:
        splits.append(_divide_gratings(recording, config))
    for name in sorted(recording.stimuli):
        if name.startswith(MOVIE_PREFIX):
            folder = recording.data_folder
            has_pixels = folder is not None and movie_path(folder, name).exists()
            pixels = load_movie(folder, name) if folder is not None and has_pixels else None
            movie_config = config if has_pixels else config.without_clips()
            splits.append(_divide_movie(recording, name, movie_config, window_s=window_s, pixels=pixels))
    return splits
