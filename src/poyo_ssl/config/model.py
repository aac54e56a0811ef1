"""Settings of the encoder, its readouts and its losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from poyo_ssl import protocol
from poyo_ssl.config.checks import check


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
        Time bins of the linear path from dF/F to the logits of 'classes' (`poyo_ssl.models.value_skip`); 0 for none.
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
