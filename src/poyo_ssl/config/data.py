"""Settings of selection, splits and windows."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from poyo_ssl import protocol
from poyo_ssl.config.checks import check
from poyo_ssl.errors import suggest


@dataclass(frozen=True)
class SelectionConfig:
    """How predictable neurons are chosen.

    Attributes
    ----------
    level : {'line', 'neuron'}
        'line' (as published): all neurons of the Cre lines whose means lie below both thresholds; 'neuron': each
        neuron by its own moments, without any label.
    thresholds : {'published', 'knee', 'given'}
        'published': skewness 3.51 and kurtosis 22.62; 'knee': refitted to the line means (at both levels: the knee
        of single neurons means nothing); 'given': the two settings below.
    knee_curve : {'concave', 'convex'}
        For 'knee': the bend where a few low lines end, or the bend where a few high lines begin.
    skewness_threshold : float, optional
        For 'given'.
    kurtosis_threshold : float, optional
        For 'given'.
    keep_fraction : float, optional
        At level 'neuron', keep this share of all usable neurons instead of using thresholds: those with the
        smallest sum of their ranks in skewness and in kurtosis (over all recordings; ties in the order of the table).

    Raises
    ------
    ConfigError
        If settings exclude each other, are missing, or a share is not in (0, 1].

    Examples
    --------
    >>> SelectionConfig(thresholds="given", skewness_threshold=2.0)
    Traceback (most recent call last):
    poyo_ssl.errors.ConfigError: thresholds 'given' without kurtosis_threshold (allowed: both thresholds, finite); ...
    """

    level: Literal["line", "neuron"] = "line"
    thresholds: Literal["published", "knee", "given"] = "published"
    knee_curve: Literal["concave", "convex"] = "concave"
    skewness_threshold: float | None = None
    kurtosis_threshold: float | None = None
    keep_fraction: float | None = None

    def __post_init__(self) -> None:
        levels, choices = ("line", "neuron"), ("published", "knee", "given")
        check(
            self.level in levels,
            f"level '{self.level}'{suggest(self.level, levels)}",
            "line or neuron",
            "change it",
        )
        check(
            self.thresholds in choices,
            f"thresholds '{self.thresholds}'{suggest(self.thresholds, choices)}",
            "published, knee or given",
            "change it",
        )
        for name in ("skewness_threshold", "kurtosis_threshold"):
            value = getattr(self, name)
            if self.thresholds == "given":
                check(
                    value is not None and math.isfinite(value),
                    f"thresholds 'given' without {name}",
                    "both thresholds, finite",
                    f"pass --{name}",
                )
            else:
                check(
                    value is None,
                    f"{name} of {value} with thresholds '{self.thresholds}'",
                    "thresholds 'given'",
                    "pass --thresholds given or leave it out",
                )
        if self.keep_fraction is not None:
            check(
                0 < self.keep_fraction <= 1,
                f"keep_fraction of {self.keep_fraction}",
                "above 0, at most 1",
                "change it",
            )
            check(
                self.level == "neuron" and self.thresholds == "published",
                f"keep_fraction with level '{self.level}' and thresholds '{self.thresholds}'",
                "level 'neuron' and no other thresholds",
                "pass --level neuron or leave keep_fraction out",
            )


@dataclass(frozen=True)
class SplitConfig:
    """How presentations are divided into train, valid and test.

    Attributes
    ----------
    repeat_train : list of int
        Repeats of every movie that train.
    repeat_valid : list of int
        Repeats of every movie that validate.
    repeat_test : list of int
        Repeats of every movie that test.
    num_clips : int
        Held-out clips per movie; 0 turns the `clip` split off.
    clip_fraction : float
        Share of a movie's frames in its held-out test clips.
    valid_clip_fraction : float
        Share of a movie's frames in validation clips, held out like the test clips, one beside each. They choose what
        is chosen for tests on unseen frames; 0 leaves that to frames that trained, which favours identification.
    decay_s : float
        Decay time of the indicator; clips keep a gap of window + 3 decay times on each side.
    near_duplicate_correlation : float
        Training frames that correlate more than this with a clip frame are dropped.
    gratings_fractions : tuple
        Shares of train, valid and test among the trials of each direction.
    gratings_valid_repeats : list of int
        With `gratings_test_repeats`: repeats of the gratings table that validate.
    gratings_test_repeats : list of int
        Divide gratings by the table's `repeat` column, these being the test; empty means by the fractions.
    gratings_by_block : bool
        Test on the session's last block of gratings and train on the blocks before it (`gratings_block`), so that
        neighbouring trials are never on both sides.
    test_movies : list of str
        Movies that only test (`movie`); training frames that resemble any of theirs are dropped.
    test_subjects : list of str
        Animals that only test (`subject`): training leaves them out, 'finetune --adapt embeddings' takes them.
    test_subject_fraction : float
        Share of the animals that only test, drawn by `seed`, where no names are given.
    seed : int
        Seed of the random division of gratings trials, and of animals.
    """

    repeat_train: tuple[int, ...] = protocol.REPEAT_TRAIN
    repeat_valid: tuple[int, ...] = protocol.REPEAT_VALID
    repeat_test: tuple[int, ...] = protocol.REPEAT_TEST
    num_clips: int = 1
    clip_fraction: float = 0.15
    valid_clip_fraction: float = 0.1
    decay_s: float = 0.4
    near_duplicate_correlation: float = protocol.NEAR_DUPLICATE_CORRELATION
    gratings_fractions: tuple[float, float, float] = protocol.GRATINGS_SPLIT_FRACTIONS
    gratings_valid_repeats: tuple[int, ...] = ()
    gratings_test_repeats: tuple[int, ...] = ()
    gratings_by_block: bool = False
    test_movies: tuple[str, ...] = ()
    test_subjects: tuple[str, ...] = ()
    test_subject_fraction: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        parts = (*self.repeat_train, *self.repeat_valid, *self.repeat_test)
        check(len(set(parts)) == len(parts), f"repeats {parts}", "each in one part", "correct split.repeat_*")
        both = set(self.gratings_valid_repeats) & set(self.gratings_test_repeats)
        check(not both, f"gratings repeats {sorted(both)} in two parts", "each in one part", "correct them")
        check(
            not (self.gratings_by_block and self.gratings_test_repeats),
            f"gratings_by_block with gratings_test_repeats {self.gratings_test_repeats}",
            "one of the two",
            "leave one out",
        )
        share = self.test_subject_fraction
        check(0 <= share < 1, f"test_subject_fraction of {share}", "0 or more, below 1", "lower it")
        check(
            not (share and self.test_subjects),
            f"test_subject_fraction of {share} with test_subjects {self.test_subjects}",
            "one of the two",
            "leave one out",
        )
        check(self.seed >= 0, f"split.seed of {self.seed}", "0 or more", "change it")
        check(self.decay_s >= 0, f"split.decay_s of {self.decay_s}", "0 or more", "change it")
        limit = self.near_duplicate_correlation
        check(0 < limit <= 1, f"split.near_duplicate_correlation of {limit}", "above 0, at most 1", "change it")
        check(self.num_clips >= 0, f"split.num_clips of {self.num_clips}", "0 or more", "raise it")
        check(0 < self.clip_fraction < 0.5, f"split.clip_fraction of {self.clip_fraction}", "0 to 0.5", "lower it")
        share = self.valid_clip_fraction
        check(0 <= share < 0.5, f"split.valid_clip_fraction of {share}", "0 or more, below 0.5", "lower it")
        total = sum(self.gratings_fractions)
        check(abs(total - 1) < 1e-6, f"gratings fractions with sum {total}", "a sum of 1", "correct them")
        check(min(self.gratings_fractions) > 0, f"fractions {self.gratings_fractions}", "above 0", "correct them")

    def without_clips(self) -> SplitConfig:
        """Return the same split without held-out clips."""
        return replace(self, num_clips=0)

    def known_frames_only(self) -> SplitConfig:
        """Return the same split without tests on unseen frames, which a decoder of frame numbers cannot name."""
        return replace(self, num_clips=0, test_movies=())


@dataclass(frozen=True)
class WindowConfig:
    """What a model sees of a recording.

    Attributes
    ----------
    window_s : float
        Length of the input in seconds; one imaging frame at least.
    lag_s : float
        Response lag: the input ends this long after the middle of a movie frame, or begins this long after
        the start of a trial.
    bin_frames : int
        Imaging frames averaged into one step of the input.
    normalisation : {'robust_z', 'robust_asinh', 'raw'}
        'robust_z': median and scaled median absolute deviation per neuron, from the training part;
        'robust_asinh': the inverse hyperbolic sine of that at mean 0 and standard deviation 1, which keeps large
        transients from drowning the rest;
        'raw': dF/F as it is (the release).
    unit_dropout : bool
        Draw a random number of neurons per training window (METHOD.md "exact numbers").
    noise : float
        Standard deviation of Gaussian noise added to the normalised, binned input in training.
    units : {'all', 'selected', 'unselected'}
        Neurons to use, by the selection's mask.
    """

    window_s: float = 1.0
    lag_s: float = 0.0
    bin_frames: int = 1
    normalisation: Literal["robust_z", "robust_asinh", "raw"] = "robust_z"
    unit_dropout: bool = True
    noise: float = 0.0
    units: Literal["all", "selected", "unselected"] = "all"

    def __post_init__(self) -> None:
        check(0 < self.window_s <= 10, f"window_s of {self.window_s}", "0.033 to 2 s, at most 10", "change it")
        check(-2 <= self.lag_s <= 2, f"lag_s of {self.lag_s}", "-2 to 2 s", "change it")
        check(self.noise >= 0, f"noise of {self.noise}", "0 or more", "raise it")
        check(self.bin_frames >= 1, f"bin_frames of {self.bin_frames}", "1 or more", "raise it")
