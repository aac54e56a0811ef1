"""Settings: frozen dataclasses whose documented fields are the flags of the commands."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, get_type_hints

from poyo_ssl import protocol
from poyo_ssl.errors import ConfigError, suggest


def check(condition: bool, problem: str, allowed: str, fix: str) -> None:
    """Raise `ConfigError` unless `condition` holds."""
    if not condition:
        raise ConfigError(problem, allowed=allowed, fix=fix)


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


@dataclass(frozen=True)
class ModelConfig:
    """The encoder.

    Attributes
    ----------
    dim : int
        Width of latents, unit and session embeddings.
    dim_head : int
        Width of one attention head.
    cross_heads : int
        Heads of the cross-attention from latents to the recording, and of the readout's.
    self_heads : int
        Heads of the self-attention among latents.
    depth : int
        Number of self-attention blocks.
    num_latents_per_step : int
        Learned latents repeated at every latent step.
    latent_step_s : float
        Distance in seconds between latent steps.
    latent_grid : {'window', 'unit_second'}
        'window': steps at (k + 1/2) x step over the window; 'unit_second': the release's fixed grid of
        0-1 s whatever the window.
    start_end_tokens : bool
        Add a start and an end token per neuron, at the window's first and last moment.
    value_embedding : {'shared', 'per_unit'}
        What dF/F is multiplied by in a token: 'shared' (published) one vector for all neurons, which are then
        told apart by attention weights alone; 'per_unit' (ours) a vector of each neuron's own, so that an
        attention value is a population readout of up to `dim` dimensions. A neuron that is not known then
        contributes no dF/F.
    causal_cross_attention : bool
        Let a latent see only frames up to its own time, which makes the masked task a prediction; there is
        then no end token.
    rotary_t_min_s : float
        Shortest rotary period in seconds; two imaging frames by default.
    rotary_t_max_s : float
        Longest rotary period in seconds.
    ffn_dropout : float
        Dropout inside the feed-forward blocks.
    attention_dropout : float
        Dropout on attention probabilities; above 0 the fused attention kernels cannot be used.
    residual_dropout : float
        Dropout on each residual branch of the self-attention blocks.
    readout_dropout : float
        Dropout on the vector that a task's head reads.
    """

    dim: int = 64
    dim_head: int = 64
    cross_heads: int = 2
    self_heads: int = 8
    depth: int = 6
    num_latents_per_step: int = protocol.NUM_LATENTS_PER_STEP
    latent_step_s: float = protocol.LATENT_STEP_S
    latent_grid: Literal["window", "unit_second"] = "window"
    start_end_tokens: bool = True
    value_embedding: Literal["shared", "per_unit"] = "shared"
    causal_cross_attention: bool = False
    rotary_t_min_s: float = 2 / protocol.IMAGING_RATE_HZ
    rotary_t_max_s: float = protocol.ROTARY_T_MAX_S
    ffn_dropout: float = 0.2
    attention_dropout: float = 0.2
    residual_dropout: float = 0.4
    readout_dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("dim", "dim_head", "cross_heads", "self_heads", "depth", "num_latents_per_step"):
            check(getattr(self, name) >= 1, f"model.{name} of {getattr(self, name)}", "1 or more", "raise it")
        check(self.dim_head % 4 == 0, f"model.dim_head of {self.dim_head}", "a multiple of 4", "round it")
        check(self.latent_step_s > 0, f"model.latent_step_s of {self.latent_step_s}", "above 0 s", "raise it")
        check(
            0 < self.rotary_t_min_s < self.rotary_t_max_s,
            f"rotary periods {self.rotary_t_min_s} to {self.rotary_t_max_s} s",
            "0 < rotary_t_min_s < rotary_t_max_s",
            "swap or change them",
        )
        for name in ("ffn_dropout", "attention_dropout", "residual_dropout", "readout_dropout"):
            check(
                0 <= getattr(self, name) < 1,
                f"model.{name} of {getattr(self, name)}",
                "0 to below 1",
                "change it",
            )


MODEL_SIZES: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "tiny": {"dim": 32, "dim_head": 16, "cross_heads": 2, "self_heads": 4, "depth": 2},
        "1M": {"dim": 64, "dim_head": 64, "cross_heads": 2, "self_heads": 8, "depth": 6},
        "3M": {"dim": 128, "dim_head": 64, "cross_heads": 2, "self_heads": 8, "depth": 6},
        "6M": {"dim": 192, "dim_head": 64, "cross_heads": 2, "self_heads": 8, "depth": 6},
        "13M": {"dim": 256, "dim_head": 128, "cross_heads": 2, "self_heads": 8, "depth": 6},
        "31M": {"dim": 384, "dim_head": 128, "cross_heads": 2, "self_heads": 8, "depth": 8},
        "50M": {"dim": 512, "dim_head": 128, "cross_heads": 2, "self_heads": 8, "depth": 8},
        "98M": {"dim": 768, "dim_head": 128, "cross_heads": 2, "self_heads": 8, "depth": 8},
        "323M": {"dim": 1024, "dim_head": 1024, "cross_heads": 2, "self_heads": 8, "depth": 6},
    }
)
"""Named sizes; their true counts are in docs/sizes.md."""


@dataclass(frozen=True)
class ReadoutConfig:
    """What one task reads from the latents.

    Attributes
    ----------
    kind : {'classes', 'position', 'frames'}
        'classes': logits over classes; 'position': one number in 0-1; 'frames': a grey image.
    num_classes : int
        Number of classes for 'classes'.
    height : int
        Height of the image for 'frames'; even.
    width : int
        Width of the image for 'frames'; even.
    skips : bool
        Project the latent into every scale of the frame decoder (the published Skip-Connection U-Net);
        False is the paper's ablation.
    value_skip_bins : int
        Time bins of the linear path from dF/F to the logits of 'classes' (`poyo_ssl.models.poyo_ssl`); 0 for none.
    value_skip_dim : int
        Width of that path.
    """

    kind: Literal["classes", "position", "frames"] = "classes"
    num_classes: int = len(protocol.GRATING_DIRECTIONS_DEG)
    height: int = 64
    width: int = 128
    skips: bool = True
    value_skip_bins: int = 0
    value_skip_dim: int = 256

    def __post_init__(self) -> None:
        check(self.value_skip_bins >= 0, f"value_skip_bins of {self.value_skip_bins}", "0 or more", "raise it")
        check(self.value_skip_dim >= 1, f"value_skip_dim of {self.value_skip_dim}", "1 or more", "raise it")
        check(
            self.kind == "classes" or not self.value_skip_bins,
            f"value_skip_bins of {self.value_skip_bins} with a readout of '{self.kind}'",
            "0, or a readout of classes",
            "leave it out",
        )
        check(self.num_classes >= 2, f"{self.num_classes} classes", "2 or more", "check the labels")
        for name in ("height", "width"):
            value = getattr(self, name)
            check(value >= 8 and value % 2 == 0, f"frame {name} of {value}", "even, 8 or more", "change it")


@dataclass(frozen=True)
class ObjectiveConfig:
    """Masked latent reconstruction and the small gratings loss.

    Attributes
    ----------
    masking : {'causal', 'random', 'block', 'feature'}
        Which latents are hidden: the later part of the window, a random set of latents, one random block of
        latent steps, or (the release) a share of the features of every latent set to zero.
    mask_ratio : float
        Share that is hidden; for 'feature' the share of features (at least one).
    mode : {'joint', 'stopgrad', 'ema'}
        How the target is made: shared weights with gradient through both passes, without gradient through
        the target, or by an exponential moving average of the weights.
    ema_decay : float
        Decay per step of the moving average, for 'ema'.
    reconstruction : {'l1', 'mse'}
        Distance between masked and unmasked output.
    reconstruct : {'masked', 'all'}
        Latents that the distance covers.
    masked_pass_residuals : bool
        Keep the encoder's two residual branches in the masked pass; the release lacks them.
    gratings_weight : float
        Weight of the gratings cross-entropy.
    times_batch_size : bool
        Multiply the loss by the batch size, as the release does.
    """

    masking: Literal["causal", "random", "block", "feature"] = "causal"
    mask_ratio: float = 0.5
    mode: Literal["joint", "stopgrad", "ema"] = "joint"
    ema_decay: float = 0.996
    reconstruction: Literal["l1", "mse"] = "l1"
    reconstruct: Literal["masked", "all"] = "masked"
    masked_pass_residuals: bool = True
    gratings_weight: float = protocol.GRATINGS_LOSS_WEIGHT_DESCRIBED
    times_batch_size: bool = False

    def __post_init__(self) -> None:
        check(
            0 < self.mask_ratio < 1,
            f"objective.mask_ratio of {self.mask_ratio}",
            "above 0, below 1",
            "change it",
        )
        check(0 <= self.ema_decay < 1, f"objective.ema_decay of {self.ema_decay}", "0 to below 1", "change it")
        check(self.gratings_weight >= 0, f"gratings_weight of {self.gratings_weight}", "0 or more", "raise it")
        check(
            self.masking != "feature" or self.reconstruct == "all",
            "objective.reconstruct 'masked' with masking 'feature'",
            "'all' (feature masking hides part of every latent)",
            "pass --objective.reconstruct all",
        )


@dataclass(frozen=True)
class MovieLossConfig:
    """Weights of the frame loss, on images of 0-1 (METHOD.md, "exact numbers"); 0 turns a term off.

    Attributes
    ----------
    focal : float
        Weight of the focal term.
    l1 : float
        Weight of the mean absolute difference.
    fft : float
        Weight of the difference of magnitude spectra.
    ssim : float
        Weight of 1 - SSIM.
    perceptual : float
        Weight of the perceptual term; needs `perceptual_weights`.
    perceptual_weights : str, optional
        A TorchScript-free safetensors file with the VGG16 feature weights, downloaded by the user.
    """

    focal: float = protocol.MOVIE_LOSS_WEIGHTS_DESCRIBED["focal"]
    l1: float = protocol.MOVIE_LOSS_WEIGHTS_DESCRIBED["l1"]
    fft: float = protocol.MOVIE_LOSS_WEIGHTS_DESCRIBED["fft"]
    ssim: float = protocol.MOVIE_LOSS_WEIGHTS_DESCRIBED["ssim"]
    perceptual: float = 0.0
    perceptual_weights: str | None = None


Task = Literal["gratings", "frame_number", "frames"]


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser, schedule and length of a training.

    Attributes
    ----------
    optimiser : {'adamw', 'lamb'}
        AdamW, or LAMB as the study used it.
    learning_rate : float
        Peak learning rate.
    weight_decay : float
        Decoupled weight decay of matrices; embeddings, biases and gains have none under AdamW.
    schedule : {'onecycle', 'cosine', 'flat_cosine'}
        OneCycle, cosine after a short warm-up, or (the study) flat for half the steps, then cosine.
    epochs : int
        Passes over the training windows.
    epoch_windows : int, optional
        Windows per pass, drawn anew without repetition; all of them by default. Validation then takes at most a
        quarter as many of each of its parts, evenly spread and always the same.
    batch_size : int
        Windows per step over all devices together.
    clip : float
        Largest norm of the gradient.
    precision : {'fp32', 'bf16'}
        Arithmetic of the training.
    """

    optimiser: Literal["adamw", "lamb"] = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    schedule: Literal["onecycle", "cosine", "flat_cosine"] = "onecycle"
    epochs: int = 10
    epoch_windows: int | None = None
    batch_size: int = 32
    clip: float = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        check(self.learning_rate > 0, f"learning_rate of {self.learning_rate}", "above 0", "raise it")
        check(self.weight_decay >= 0, f"weight_decay of {self.weight_decay}", "0 or more", "raise it")
        check(self.clip > 0, f"clip of {self.clip}", "above 0", "raise it")
        most = self.epoch_windows
        check(most is None or most >= 1, f"epoch_windows of {most}", "1 or more, or null for all", "raise it")
        for name in ("epochs", "batch_size"):
            check(getattr(self, name) >= 1, f"{name} of {getattr(self, name)}", "1 or more", "raise it")


@dataclass(frozen=True)
class PretrainConfig:
    """Pretraining by masked latent reconstruction and a small gratings loss.

    Attributes
    ----------
    model : ModelConfig
        The encoder.
    objective : ObjectiveConfig
        Masking, twin pass, loss.
    window : WindowConfig
        Input windows; 1.9 s are 57 frames.
    trial_dilation_s : float
        Windows lie inside gratings trials dilated by this much on both sides.
    trials : {'train', 'all'}
        'train': trials of the training part; 'all': the release's choice, which shows test trials and their
        labels to pretraining.
    split : SplitConfig
        Division of the trials.
    optim : OptimConfig
        Optimiser, schedule, length.
    seed : int
        Seed of initial weights, order of windows, unit dropout, masks and dropout.
    """

    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    window: WindowConfig = WindowConfig(window_s=1.9, units="selected")
    trial_dilation_s: float = protocol.PRETRAIN_TRIAL_DILATION_S
    trials: Literal["train", "all"] = "train"
    split: SplitConfig = SplitConfig()
    optim: OptimConfig = OptimConfig(epochs=protocol.PRETRAIN_EPOCHS_CODED, batch_size=32)
    seed: int = 0

    def __post_init__(self) -> None:
        check(self.trial_dilation_s >= 0, f"trial_dilation_s of {self.trial_dilation_s}", "0 or more", "raise it")
        check(self.seed >= 0, f"seed of {self.seed}", "0 or more", "change it")


@dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tuning of encoder and readout on one task, or training from scratch.

    Attributes
    ----------
    task : {'gratings', 'frame_number', 'frames'}
        Direction of drifting gratings, number of the movie frame, or the frame itself.
    movies : list of str
        Movies to decode; 'frame_number' takes one.
    readout : {'classes', 'position'}
        For 'frame_number': one class per frame, or one position in the movie.
    frame_height : int
        Height of decoded frames; movies are resized to it with antialiasing.
    frame_width : int
        Width of decoded frames.
    skips : bool
        Project the latent into every scale of the frame decoder.
    label_spread_frames : float
        For classes of 'frame_number': standard deviation, in movie frames, of the soft label around the
        true frame; 0 gives one-hot labels.
    tolerance_s : float
        For classes of 'frame_number': the decoder names the frame with the largest probability within this
        distance; 0 names the most probable frame.
    value_skip_bins : int
        For tasks with classes: add the logits of a linear path from dF/F, averaged in this many time bins, to those
        of the encoder; it starts from prototypes measured on the training part. 0 (as published) for none.
    value_skip_dim : int
        Width of that path, at most the number of classes.
    model : ModelConfig
        The encoder, when trained from scratch; a pretrained encoder brings its own.
    window : WindowConfig
        Input windows.
    split : SplitConfig
        Division into train, valid and test.
    movie_loss : MovieLossConfig
        Loss of 'frames'.
    optim : OptimConfig
        Optimiser, schedule, length.
    adapt : {'all', 'embeddings', 'readout'}
        What is fitted. 'embeddings': nothing but unit and session embeddings of recordings that a fine-tuned run
        does not know; everything else, settings of model, window and split included, is that run's. 'readout':
        the encoder stays as it is: as pretrained, or random (a control) where there is no pretrained run.
    freeze : list of str
        Parameters whose name begins with one of these do not train.
    keep : {'best', 'last'}
        Weights to keep: of the epoch with the lowest validation loss, or of the last one.
    seed : int
        Seed of initial weights, order of windows, unit dropout and dropout.
    """

    task: Task = "gratings"
    movies: tuple[str, ...] = ("natural_movie_one",)
    readout: Literal["classes", "position"] = "classes"
    frame_height: int = 64
    frame_width: int = 128
    skips: bool = True
    label_spread_frames: float = 10.0
    tolerance_s: float = 1.0
    value_skip_bins: int = 0
    value_skip_dim: int = 256
    model: ModelConfig = ModelConfig()
    window: WindowConfig = WindowConfig(units="unselected")
    split: SplitConfig = SplitConfig()
    movie_loss: MovieLossConfig = MovieLossConfig()
    optim: OptimConfig = OptimConfig(epochs=protocol.FINETUNE_EPOCHS_CODED)
    adapt: Literal["all", "embeddings", "readout"] = "all"
    freeze: tuple[str, ...] = ()
    keep: Literal["best", "last"] = "best"
    seed: int = 0

    def __post_init__(self) -> None:
        check(self.seed >= 0, f"seed of {self.seed}", "0 or more", "change it")
        check(self.label_spread_frames >= 0, f"label_spread_frames of {self.label_spread_frames}", "0 or more", "raise")
        check(self.value_skip_bins >= 0, f"value_skip_bins of {self.value_skip_bins}", "0 or more", "raise it")
        check(self.value_skip_dim >= 1, f"value_skip_dim of {self.value_skip_dim}", "1 or more", "raise it")
        without_classes = self.task == "frames" or (self.task == "frame_number" and self.readout == "position")
        check(
            not (self.value_skip_bins and without_classes),
            f"value_skip_bins of {self.value_skip_bins} without classes",
            "task gratings, or frame_number with readout 'classes'",
            "leave it out",
        )
        check(self.tolerance_s >= 0, f"tolerance_s of {self.tolerance_s}", "0 or more", "raise it")
        for name in ("frame_height", "frame_width"):
            value = getattr(self, name)
            check(value >= 8 and value % 2 == 0, f"{name} of {value}", "even, 8 or more", "change it")
        check(
            self.task != "frame_number" or len(self.movies) == 1,
            f"task frame_number on {len(self.movies)} movies",
            "one movie",
            "pass --config.movies with one name",
        )
        check(len(self.movies) > 0, "no movies", "one or more", "pass --config.movies")


def from_plain(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """Rebuild a settings dataclass from the plain values that YAML holds.

    Raises
    ------
    ConfigError
        If a field is unknown.

    Examples
    --------
    >>> from_plain(WindowConfig, {"window_s": 0.5}).window_s
    0.5
    """
    types = get_type_hints(kind)
    known = {f.name for f in fields(kind)}
    for name in values:
        if name not in known:
            raise ConfigError(
                f"unknown field '{name}'{suggest(name, known)}", fix=f"allowed: {', '.join(sorted(known))}"
            )
    built = {}
    for name, value in values.items():
        if is_dataclass(types[name]) and isinstance(value, Mapping):
            value = from_plain(types[name], value)
        built[name] = tuple(value) if isinstance(value, list) else value
    return kind(**built)
