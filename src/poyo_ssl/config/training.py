"""Settings of whole trainings, and settings from plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, get_type_hints

from poyo_ssl import protocol
from poyo_ssl.config.checks import check
from poyo_ssl.config.data import SplitConfig, WindowConfig
from poyo_ssl.config.model import ModelConfig, MovieLossConfig, ObjectiveConfig
from poyo_ssl.errors import ConfigError, suggest

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
