"""Settings: frozen dataclasses whose documented fields are the flags of the commands."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_type_hints

from poyo_ssl import protocol
from poyo_ssl.errors import ConfigError, SelectionError, check, choose

Settings = TypeVar("Settings")


def _check_range(
    settings: object,
    *names: str,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
) -> None:
    """Raise `ConfigError` unless the fields lie between the bounds, of which `above` and `below` are excluded."""
    words = {
        f"{least:g} or more": least,
        f"above {above:g}": above,
        f"at most {most:g}": most,
        f"below {below:g}": below,
    }
    allowed = ", ".join(text for text, bound in words.items() if math.isfinite(bound))
    for name in names:
        value = getattr(settings, name)
        check(least <= value <= most and above < value < below, f"{name} of {value}", allowed)


@dataclass(frozen=True)
class SelectionConfig:
    """How predictable neurons are chosen.

    Examples
    --------
    >>> SelectionConfig(thresholds="given", skewness_threshold=2.0)
    Traceback (most recent call last):
    poyo_ssl.errors.ConfigError: thresholds 'given' without kurtosis_threshold (allowed: both thresholds, finite); ...
    """

    level: Literal["line", "neuron"] = "line"
    """'line' (as published): all neurons of the Cre lines whose mean moments lie below both thresholds. 'neuron': each
    neuron by its own moments; no Cre line is needed."""
    thresholds: Literal["published", "knee", "given"] = "published"
    """'published': skewness 3.51 and excess kurtosis 22.62. 'knee': the knee of the line means of these data. 'given':
    the two settings below."""
    knee_curve: Literal["concave", "convex"] = "concave"
    """Bend of the curve for 'knee': 'concave' where a few low lines end, 'convex' where a few high lines begin."""
    skewness_threshold: float | None = None
    """Upper limit of the skewness for thresholds 'given'."""
    kurtosis_threshold: float | None = None
    """Upper limit of the excess kurtosis for thresholds 'given'."""
    keep_fraction: float | None = None
    """For level 'neuron': keep this share of the usable neurons and ignore the thresholds. Neurons are ranked by the
    sum of their ranks in skewness and kurtosis over all recordings."""

    def __post_init__(self) -> None:
        choose("level", self.level, ("line", "neuron"))
        choose("thresholds", self.thresholds, ("published", "knee", "given"))
        for name in ("skewness_threshold", "kurtosis_threshold"):
            value = getattr(self, name)
            if self.thresholds == "given":
                check(
                    value is not None and math.isfinite(value),
                    f"thresholds 'given' without {name}",
                    "both thresholds, finite",
                    f"pass --{name}",
                )
            elif value is not None:
                raise ConfigError(
                    f"{name} of {value} with thresholds '{self.thresholds}'", fix="pass --thresholds given or omit it"
                )
        if self.keep_fraction is not None:
            _check_range(self, "keep_fraction", above=0, most=1)
            check(
                self.level == "neuron" and self.thresholds == "published",
                f"keep_fraction with level '{self.level}' and thresholds '{self.thresholds}'",
                "level 'neuron' and no other thresholds",
            )


@dataclass(frozen=True)
class SplitConfig:
    """How presentations are divided into training, validation and test parts."""

    repeat_train: tuple[int, ...] = protocol.REPEAT_TRAIN
    """Training repeats of every movie, counted from 0."""
    repeat_valid: tuple[int, ...] = protocol.REPEAT_VALID
    """Validation repeats of every movie."""
    repeat_test: tuple[int, ...] = protocol.REPEAT_TEST
    """Test repeats of every movie (split 'repeat': known frames)."""
    num_clips: int = 1
    """Held-out test clips per movie (split 'clip': unseen frames); 0 holds none out."""
    clip_fraction: float = 0.15
    """Share of a movie's frames in its test clips."""
    valid_clip_fraction: float = 0.1
    """Share of a movie's frames in validation clips, one beside each test clip. They choose hyper-parameters for unseen
    frames; with 0 the validation repeats do, which favours memorised frames."""
    decay_s: float = 0.4
    """Decay time of the indicator in seconds. Clips keep a gap of the window plus three decay times on each side."""
    near_duplicate_correlation: float = protocol.NEAR_DUPLICATE_CORRELATION
    """Training frames with a higher correlation to any frame of a clip are dropped."""
    gratings_fractions: tuple[float, float, float] = protocol.GRATINGS_SPLIT_FRACTIONS
    """Shares of training, validation and test among the trials of each direction."""
    gratings_valid_repeats: tuple[int, ...] = ()
    """Validation repeats of the gratings table; only with `gratings_test_repeats`."""
    gratings_test_repeats: tuple[int, ...] = ()
    """Test repeats of the gratings table's column `repeat`; empty: divide by `gratings_fractions`."""
    gratings_by_block: bool = False
    """Test on the session's last block of gratings and train on the earlier ones (split 'gratings_block'). Neighbouring
    trials are then always in the same part."""
    test_movies: tuple[str, ...] = ()
    """Movies that are used for tests only (split 'movie'). Training frames that resemble any of theirs are dropped."""
    test_subjects: tuple[str, ...] = ()
    """Animals that are used for tests only (split 'subject'). 'finetune --adapt embeddings' fits embeddings to them."""
    test_subject_fraction: float = 0.0
    """Share of the animals that are used for tests only, drawn by `seed`; instead of `test_subjects`."""
    seed: int = 0
    """Seed of the division of gratings trials and of the drawn animals."""

    def __post_init__(self) -> None:
        repeats = (*self.repeat_train, *self.repeat_valid, *self.repeat_test)
        check(len(set(repeats)) == len(repeats), f"repeats {repeats}", "each in one part of split.repeat_*")
        both = set(self.gratings_valid_repeats) & set(self.gratings_test_repeats)
        check(not both, f"gratings repeats {sorted(both)} in two parts", "each in one part")
        check(
            not (self.gratings_by_block and self.gratings_test_repeats),
            f"gratings_by_block with gratings_test_repeats {self.gratings_test_repeats}",
            "one of the two",
        )
        check(
            not (self.test_subject_fraction and self.test_subjects),
            f"test_subject_fraction of {self.test_subject_fraction} with test_subjects {self.test_subjects}",
            "one of the two",
        )
        _check_range(self, "seed", "decay_s", "num_clips", least=0)
        _check_range(self, "test_subject_fraction", least=0, below=1)
        _check_range(self, "near_duplicate_correlation", above=0, most=1)
        _check_range(self, "clip_fraction", above=0, below=0.5)
        _check_range(self, "valid_clip_fraction", least=0, below=0.5)
        total, lowest = sum(self.gratings_fractions), min(self.gratings_fractions)
        check(
            abs(total - 1) < 1e-6 and lowest > 0,
            f"gratings_fractions {self.gratings_fractions}, sum {total:g}",
            "above 0, with a sum of 1",
        )

    def without_clips(self) -> SplitConfig:
        """Return the same split without held-out clips."""
        return replace(self, num_clips=0)

    def known_frames_only(self) -> SplitConfig:
        """Return the same split without tests on unseen frames, which a decoder of frame numbers cannot name."""
        return replace(self, num_clips=0, test_movies=())


@dataclass(frozen=True)
class WindowConfig:
    """What a model sees of a recording."""

    window_s: float = 1.0
    """Length of the input in seconds; at least one imaging frame."""
    lag_s: float = 0.0
    """Response lag in seconds. For movies the input ends this long after the middle of the frame; for gratings it
    begins this long after the start of the trial."""
    bin_frames: int = 1
    """Imaging frames that are averaged into one input step."""
    normalisation: Literal["robust_z", "robust_asinh", "raw"] = "robust_z"
    """'robust_z': per neuron, (dF/F - median) / scaled MAD of the training part. 'robust_asinh': asinh of robust_z,
    standardised, which compresses large transients. 'raw': dF/F."""
    unit_dropout: bool = True
    """Draw a random number of neurons for each training window (10 to 300, most often 50)."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise that training adds to the normalised, binned input."""
    units: Literal["all", "selected", "unselected"] = "all"
    """Which neurons to use, by the selection."""

    def __post_init__(self) -> None:
        check(0 < self.window_s <= 10, f"window_s of {self.window_s}", "0.033 to 2 s, at most 10")
        _check_range(self, "lag_s", least=-2, most=2)
        _check_range(self, "noise", least=0)
        _check_range(self, "bin_frames", least=1)


@dataclass(frozen=True)
class ModelConfig:
    """The encoder."""

    dim: int = 64
    """Width of latents, unit embeddings and session embeddings."""
    dim_head: int = 64
    """Width of an attention head; a multiple of 4."""
    cross_heads: int = 2
    """Heads of the cross-attention from latents to the recording, and of the readout's."""
    self_heads: int = 8
    """Heads of the self-attention among latents."""
    depth: int = 6
    """Number of self-attention blocks."""
    num_latents_per_step: int = protocol.NUM_LATENTS_PER_STEP
    """Learned latents, repeated at every latent step."""
    latent_step_s: float = protocol.LATENT_STEP_S
    """Seconds between latent steps."""
    latent_grid: Literal["window", "unit_second"] = "window"
    """'window': latent steps at (k + 1/2) x latent_step_s within the window. 'unit_second': the released code's fixed
    grid of 0-1 s for any window."""
    start_end_tokens: bool = True
    """Add a start token and an end token per neuron at the two ends of the window."""
    value_embedding: Literal["shared", "per_unit"] = "shared"
    """What multiplies dF/F in a token. 'shared' (as published): one vector for all neurons. 'per_unit' (ours): one
    vector per neuron, so that attention values carry a population code. Unknown neurons then contribute no dF/F."""
    causal_cross_attention: bool = False
    """Let each latent see frames up to its own time only. The masked task becomes a prediction; there is no end
    token."""
    rotary_t_min_s: float = 2 / protocol.IMAGING_RATE_HZ
    """Shortest rotary period in seconds; two imaging frames by default."""
    rotary_t_max_s: float = protocol.ROTARY_T_MAX_S
    """Longest rotary period in seconds."""
    ffn_dropout: float = 0.2
    """Dropout within feed-forward blocks."""
    attention_dropout: float = 0.2
    """Dropout on attention probabilities; fused attention kernels need 0."""
    residual_dropout: float = 0.4
    """Dropout on each residual branch of the self-attention blocks."""
    readout_dropout: float = 0.0
    """Dropout on the vector that the task's head reads."""

    def __post_init__(self) -> None:
        sizes = ("dim", "dim_head", "cross_heads", "self_heads", "depth", "num_latents_per_step")
        _check_range(self, *sizes, least=1)
        check(self.dim_head % 4 == 0, f"dim_head of {self.dim_head}", "a multiple of 4")
        _check_range(self, "latent_step_s", above=0)
        check(
            0 < self.rotary_t_min_s < self.rotary_t_max_s,
            f"rotary periods {self.rotary_t_min_s} to {self.rotary_t_max_s} s",
            "0 < rotary_t_min_s < rotary_t_max_s",
        )
        dropouts = ("ffn_dropout", "attention_dropout", "residual_dropout", "readout_dropout")
        _check_range(self, *dropouts, least=0, below=1)


def _size(dim: int, dim_head: int, depth: int, self_heads: int = 8) -> dict[str, int]:
    return {"dim": dim, "dim_head": dim_head, "cross_heads": 2, "self_heads": self_heads, "depth": depth}


MODEL_SIZES: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "tiny": _size(32, 16, 2, self_heads=4),
        "1M": _size(64, 64, 6),
        "3M": _size(128, 64, 6),
        "6M": _size(192, 64, 6),
        "13M": _size(256, 128, 6),
        "31M": _size(384, 128, 8),
        "50M": _size(512, 128, 8),
        "98M": _size(768, 128, 8),
        "323M": _size(1024, 1024, 6),
    }
)
"""Named sizes; their true counts are in docs/sizes.md."""


@dataclass(frozen=True)
class ReadoutConfig:
    """What one task reads from the latents."""

    kind: Literal["classes", "position", "frames"] = "classes"
    """'classes': logits over classes. 'position': one number in 0-1. 'frames': a grey image."""
    num_classes: int = len(protocol.GRATING_DIRECTIONS_DEG)
    """Number of classes for 'classes'."""
    height: int = 64
    """Height of the image for 'frames'; even, 8 or more."""
    width: int = 128
    """Width of the image for 'frames'; even, 8 or more."""
    skips: bool = True
    """Feed the latent into every scale of the frame decoder (the published U-Net); False is the paper's ablation."""
    value_skip_bins: int = 0
    """Time bins of the linear path from dF/F to the logits of 'classes'; 0: no such path."""
    value_skip_dim: int = 256
    """Width of that path."""

    def __post_init__(self) -> None:
        _check_range(self, "value_skip_bins", least=0)
        _check_range(self, "value_skip_dim", least=1)
        check(
            self.kind == "classes" or not self.value_skip_bins,
            f"value_skip_bins of {self.value_skip_bins} with a readout of '{self.kind}'",
            "0, or a readout of classes",
        )
        check(self.num_classes >= 2, f"{self.num_classes} classes", "2 or more")
        for name in ("height", "width"):
            value = getattr(self, name)
            check(value >= 8 and value % 2 == 0, f"frame {name} of {value}", "even, 8 or more")


@dataclass(frozen=True)
class ObjectiveConfig:
    """Masked latent reconstruction and the small gratings loss."""

    masking: Literal["causal", "random", "block", "feature"] = "causal"
    """Which latents are masked: the later part of the window, random ones, one random block of latent steps, or
    ('feature', the released code) some features of every latent."""
    mask_ratio: float = 0.5
    """Share of latents that are masked; of features for 'feature'."""
    mode: Literal["joint", "stopgrad", "ema"] = "joint"
    """Target of the reconstruction: the same weights with gradient ('joint') or without ('stopgrad'), or a moving
    average of the weights ('ema')."""
    ema_decay: float = 0.996
    """Decay of the moving average per step, for 'ema'."""
    reconstruction: Literal["l1", "mse"] = "l1"
    """Distance between the masked and the unmasked output."""
    reconstruct: Literal["masked", "all"] = "masked"
    """Latents that the distance covers."""
    masked_pass_residuals: bool = True
    """Keep the encoder's two residual branches in the masked pass; the released code has none there."""
    gratings_weight: float = protocol.GRATINGS_LOSS_WEIGHT_DESCRIBED
    """Weight of the gratings cross-entropy."""
    times_batch_size: bool = False
    """Multiply the loss by the batch size, as the released code does."""

    def __post_init__(self) -> None:
        _check_range(self, "mask_ratio", above=0, below=1)
        _check_range(self, "ema_decay", least=0, below=1)
        _check_range(self, "gratings_weight", least=0)
        check(
            self.masking != "feature" or self.reconstruct == "all",
            "objective.reconstruct 'masked' with masking 'feature'",
            "'all' (feature masking hides part of every latent)",
        )


@dataclass(frozen=True)
class MovieLossConfig:
    """Weights of the frame loss on images of 0-1; 0 turns a term off."""

    focal: float = protocol.MOVIE_LOSS_WEIGHTS_DESCRIBED["focal"]
    """Weight of the focal term."""
    l1: float = protocol.MOVIE_LOSS_WEIGHTS_DESCRIBED["l1"]
    """Weight of the mean absolute difference."""
    fft: float = protocol.MOVIE_LOSS_WEIGHTS_DESCRIBED["fft"]
    """Weight of the difference of magnitude spectra."""
    ssim: float = protocol.MOVIE_LOSS_WEIGHTS_DESCRIBED["ssim"]
    """Weight of 1 - SSIM."""
    perceptual: float = 0.0
    """Weight of the perceptual term; needs `perceptual_weights`."""
    perceptual_weights: str | None = None
    """Safetensors file with the weights of VGG16's feature layers, which you download."""


Task = Literal["gratings", "frame_number", "frames"]


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser, schedule and length of a training."""

    optimiser: Literal["adamw", "lamb"] = "adamw"
    """AdamW, or LAMB as in the study."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 1e-2
    """Decoupled weight decay. AdamW applies it to matrices only, not to embeddings, biases and gains."""
    schedule: Literal["onecycle", "cosine", "flat_cosine"] = "onecycle"
    """OneCycle; cosine after a short warm-up; or flat for half the steps, then cosine (the study's)."""
    epochs: int = 10
    """Passes over the training windows."""
    epoch_windows: int | None = None
    """Windows per pass, drawn anew without replacement; all by default. Each validation part then uses a fixed subset
    of at most a quarter as many."""
    batch_size: int = 32
    """Windows per step, over all devices together."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the training."""

    def __post_init__(self) -> None:
        _check_range(self, "learning_rate", "clip", above=0)
        _check_range(self, "weight_decay", least=0)
        most = self.epoch_windows
        check(most is None or most >= 1, f"epoch_windows of {most}", "1 or more, or null for all")
        _check_range(self, "epochs", "batch_size", least=1)


@dataclass(frozen=True)
class PretrainConfig:
    """Pretraining by masked latent reconstruction and a small gratings loss."""

    model: ModelConfig = ModelConfig()
    """The encoder."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """Masking, reconstruction and gratings loss."""
    window: WindowConfig = WindowConfig(window_s=1.9, units="selected")
    """Input windows; 1.9 s are 57 frames."""
    trial_dilation_s: float = protocol.PRETRAIN_TRIAL_DILATION_S
    """Windows lie within gratings trials that are extended by this many seconds on both sides."""
    trials: Literal["train", "all"] = "train"
    """'train': gratings trials of the training part. 'all': the released code's choice, which shows test trials and
    their labels to pretraining."""
    split: SplitConfig = SplitConfig()
    """Training, validation and test parts."""
    optim: OptimConfig = OptimConfig(epochs=protocol.PRETRAIN_EPOCHS_CODED, batch_size=32)
    """Optimiser, schedule, length."""
    seed: int = 0
    """Seed of initial weights, window order, unit dropout, masks and dropout."""

    def __post_init__(self) -> None:
        _check_range(self, "trial_dilation_s", "seed", least=0)


@dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tuning of encoder and readout on one task, or training from scratch."""

    task: Task = "gratings"
    """Decode the direction of drifting gratings, the number of a movie frame, or the frame itself."""
    movies: tuple[str, ...] = ("natural_movie_one",)
    """Movies to decode; exactly one for 'frame_number'."""
    readout: Literal["classes", "position"] = "classes"
    """For 'frame_number': one class per frame, or the position in the movie as one number."""
    frame_height: int = 64
    """Height of decoded frames; movies are resized to it with antialiasing."""
    frame_width: int = 128
    """Width of decoded frames."""
    skips: bool = True
    """Feed the latent into every scale of the frame decoder."""
    label_spread_frames: float = 10.0
    """For classes of 'frame_number': standard deviation of the soft label around the true frame, in movie frames; 0
    gives one-hot labels."""
    tolerance_s: float = 1.0
    """For classes of 'frame_number': choose the frame with the largest total probability within this many seconds; 0
    chooses the most probable frame."""
    value_skip_bins: int = 0
    """For tasks with classes: add a linear path from dF/F, averaged in this many time bins, to the encoder's logits. It
    starts from class means of the training part; 0 (as published): no such path."""
    value_skip_dim: int = 256
    """Width of that path; at most the number of classes is used."""
    model: ModelConfig = ModelConfig()
    """The encoder, if trained from scratch; a pretrained encoder brings its own settings."""
    window: WindowConfig = WindowConfig(units="unselected")
    """Input windows."""
    split: SplitConfig = SplitConfig()
    """Training, validation and test parts."""
    movie_loss: MovieLossConfig = MovieLossConfig()
    """Loss of 'frames'."""
    optim: OptimConfig = OptimConfig(epochs=protocol.FINETUNE_EPOCHS_CODED)
    """Optimiser, schedule, length."""
    adapt: Literal["all", "embeddings", "readout"] = "all"
    """What to fit. 'embeddings': only embeddings of recordings that the fine-tuned run has not seen; all other weights
    and settings are that run's. 'readout': only the readout, on a pretrained or (as a control) random encoder."""
    freeze: tuple[str, ...] = ()
    """Do not train parameters whose names begin with one of these."""
    keep: Literal["best", "last"] = "best"
    """Keep the weights of the epoch with the lowest validation loss, or of the last epoch."""
    seed: int = 0
    """Seed of initial weights, window order, unit dropout and dropout."""

    def __post_init__(self) -> None:
        _check_range(self, "seed", "label_spread_frames", "value_skip_bins", "tolerance_s", least=0)
        _check_range(self, "value_skip_dim", least=1)
        without_classes = self.task == "frames" or (self.task == "frame_number" and self.readout == "position")
        check(
            not (self.value_skip_bins and without_classes),
            f"value_skip_bins of {self.value_skip_bins} without classes",
            "task gratings, or frame_number with readout 'classes'",
        )
        for name in ("frame_height", "frame_width"):
            value = getattr(self, name)
            check(value >= 8 and value % 2 == 0, f"{name} of {value}", "even, 8 or more")
        check(
            self.task != "frame_number" or len(self.movies) == 1,
            f"task frame_number on {len(self.movies)} movies",
            "one movie",
        )
        check(len(self.movies) > 0, "no movies", "one or more")


@dataclass(frozen=True)
class CompanionPaths:
    """Where clock, stimuli and metadata of traces are, if not beside them."""

    rate_hz: float | None = None
    """Imaging rate in Hz, if there are no timestamps."""
    timestamps: Path | None = None
    """Times of the imaging frames in seconds, one per frame, as npy, npz, csv or mat."""
    stimuli: Path | None = None
    """Table with the columns start and stop (seconds), name, and any others."""
    pixels: Path | None = None
    """Folder with the pixels of each stimulus under its name: npy, mp4, gif or a folder of pictures."""
    metadata: Path | None = None
    """JSON file with any of subject_id, container_id, cre_line, reporter_line, indicator, sex, age_days, species,
    session_type, targeted_structure, depth_um, recording_date, device_id, description, origin."""

    def __post_init__(self) -> None:
        if self.rate_hz is not None:
            check(0 < self.rate_hz < math.inf, f"rate_hz of {self.rate_hz}", "above 0 Hz")
            check(self.timestamps is None, "a rate and timestamps", "one of them", "omit --rate_hz")


@dataclass(frozen=True)
class NwbConfig:
    """What to take from an NWB 2 file."""

    series: str | None = None
    """Path of the traces, for example ophys/DfOverF/DfOverF; by default the only dF/F, or the only fluorescence."""
    kind: Literal["auto", "dff", "fluorescence"] = "auto"
    """What the traces are; 'auto' goes by names."""
    tables: tuple[str, ...] | None = None
    """Interval tables that are stimuli, for example [trials]; by default all but epochs and invalid_times."""
    cells: Literal["iscell", "all"] = "iscell"
    """'iscell' omits ROIs that the ROI table (column iscell, accepted or valid_roi) does not call cells."""
    dff_procedure: str = "allen_median"
    """For fluorescence: allen_median, allen_mode, maximin (suite2p's) or percentile."""
    neuropil_ratio: float = 0.7
    """For fluorescence with neuropil beside it: F - ratio x neuropil. DANDI 000728 has ratios of its own."""


@dataclass(frozen=True)
class Suite2pConfig:
    """What to take from a suite2p folder."""

    cells: Literal["iscell", "all"] = "iscell"
    """'iscell' keeps the ROIs that suite2p or its user called cells."""
    dff_procedure: str = "allen_median"
    """allen_median, allen_mode, maximin (suite2p's) or percentile."""
    neuropil_ratio: float | None = None
    """r of F - r Fneu; by default what suite2p used, or 0.7."""


@dataclass(frozen=True)
class ArraysConfig:
    """How to read arrays."""

    kind: Literal["auto", "dff", "fluorescence", "events"] = "auto"
    """What the numbers are; 'auto' goes by the file's name."""
    key: str | None = None
    """Name of the array in an npz or mat file."""
    axes: Literal["auto", "time_first", "unit_first"] = "auto"
    """Order of the axes; 'auto' finds time by the timestamps, or takes the longer axis."""
    dff_procedure: str = "allen_median"
    """For fluorescence: allen_median, allen_mode, maximin (suite2p's) or percentile."""
    neuropil_ratio: float = 0.7
    """For fluorescence with neuropil beside it: F - ratio x neuropil."""
    seed: int = 0
    """For events: seed of the noise of the simulated dF/F."""


@dataclass(frozen=True)
class ConversionConfig:
    """How to convert."""

    workers: int | None = None
    """Parallel processes; all cores by default."""
    ray: str | None = None
    """Address of a Ray cluster to convert on, or 'local'; needs 'poyo-ssl[ray]'."""
    overwrite: bool = False
    """Convert again what is there."""


def check_selection(units: str, selection: object) -> None:
    """Raise `SelectionError` if `window.units` needs a selection and there is none."""
    if units != "all" and selection is None:
        raise SelectionError(
            f"window.units '{units}' without a selection",
            allowed="a selection, or units 'all'",
            fix="run 'poyo-ssl select' and pass --selection, or --window.units all",
        )


def from_plain(kind: type[Settings], values: Mapping[str, Any]) -> Settings:
    """Rebuild a settings dataclass from the plain values that YAML holds; raise `ConfigError` on unknown fields."""
    types = get_type_hints(kind)
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    built = {}
    for name, value in values.items():
        choose("unknown field", name, known)
        if is_dataclass(types[name]) and isinstance(value, Mapping):
            value = from_plain(types[name], value)
        built[name] = tuple(value) if isinstance(value, list) else value
    return kind(**built)
