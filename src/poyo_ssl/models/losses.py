"""The movie loss: focal, absolute, spectral, structural and optional perceptual differences of frames of 0-1."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from poyo_ssl.config import MovieLossConfig
from poyo_ssl.errors import ConfigError
from poyo_ssl.protocol import SSIM_SIGMA

SSIM_RADIUS = 5
"""Window of 11 pixels: 3.5 standard deviations of 1.5 pixels, as in scikit-image."""
SSIM_K1, SSIM_K2 = 0.01, 0.03
DATA_RANGE = 1.0

VGG16_LAYERS = ((0, 64), (2, 64), None, (5, 128), (7, 128), None, (10, 256), (12, 256), (14, 256))
"""Index and channels of VGG16's convolutions up to relu3_3; None is a 2 x 2 max pooling."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def focal_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean of ``e^2 / max|e|`` with the maximum over the batch: large errors weigh more.

    The weight ``|e| / max|e|`` is scaled by the largest error as a constant, as in focal frequency loss
    (Jiang et al. 2021) with alpha = gamma = 1: its gradient does not go through the maximum.
    """
    error = prediction - target
    largest = error.detach().abs().max().clamp_min(torch.finfo(error.dtype).tiny)
    return (error.square() / largest).mean()


def fft_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of the magnitude spectra, orthonormal two-dimensional FFT."""
    spectra = (torch.fft.fft2(x, norm="ortho").abs() for x in (prediction, target))
    return F.l1_loss(*spectra)


def ssim(prediction: Tensor, target: Tensor, *, data_range: float = DATA_RANGE) -> Tensor:
    """Structural similarity of each frame, differentiable.

    Gaussian weights of 1.5 pixels over 11 x 11, population covariance, fixed data range, mean over the windows
    that lie inside the frame: scikit-image's ``structural_similarity(gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False)``. Frames smaller than 11 pixels get the largest odd window that fits.
    """
    radius = min(SSIM_RADIUS, (min(prediction.shape[-2:]) - 1) // 2)
    offset = torch.arange(-radius, radius + 1, dtype=prediction.dtype, device=prediction.device)
    weight = torch.exp(-0.5 * (offset / SSIM_SIGMA).square())
    weight = weight / weight.sum()
    maps = torch.stack((prediction, target, prediction * prediction, target * target, prediction * target), dim=1)
    maps = maps.flatten(0, 1).unsqueeze(1)  # (5B, 1, H, W)
    maps = F.conv2d(F.conv2d(maps, weight.view(1, 1, -1, 1)), weight.view(1, 1, 1, -1))  # (5B, 1, H-10, W-10)
    x, y, xx, yy, xy = maps.unflatten(0, (-1, 5)).squeeze(2).unbind(1)  # (B, H-10, W-10) each
    c1, c2 = (SSIM_K1 * data_range) ** 2, (SSIM_K2 * data_range) ** 2
    luminance = (2 * x * y + c1) / (x * x + y * y + c1)
    structure = (2 * (xy - x * y) + c2) / (xx - x * x + yy - y * y + c2)
    return (luminance * structure).mean(dim=(1, 2))


class PerceptualLoss(nn.Module):
    """Mean squared difference of VGG16 features at relu3_3 (Johnson et al. 2016)."""

    mean: Tensor
    std: Tensor

    def __init__(self, weights: str | Path) -> None:
        super().__init__()
        tensors = _load_weights(Path(weights))
        self._names: list[tuple[str, str] | None] = []
        channels = 3
        for layer in VGG16_LAYERS:
            if layer is None:
                self._names.append(None)
                continue
            index, out_channels = layer
            names = (f"weight_{index}", f"bias_{index}")
            for name, shape in zip(names, ((out_channels, channels, 3, 3), (out_channels,)), strict=True):
                key = f"features.{index}.{name.split('_')[0]}"
                found = tuple(tensors[key].shape) if key in tensors else "missing"
                if found != shape:
                    raise ConfigError(
                        f"tensor {key} of {weights} is {found}",
                        allowed=f"{shape}, VGG16 with torchvision's names",
                        fix="save the state dict of torchvision's vgg16 with safetensors",
                    )
                # Not persistent: checkpoints need not carry downloaded weights.
                self.register_buffer(name, tensors[key].float(), persistent=False)
            self._names.append(names)
            channels = out_channels
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def features(self, frames: Tensor) -> Tensor:
        """Return relu3_3 of grey `frames` ``(B, H, W)`` of 0-1 as ``(B, 256, H / 4, W / 4)``."""
        x = (frames.unsqueeze(1) - self.mean) / self.std  # (B, 3, H, W): grey in all three
        for names in self._names:
            if names is None:
                x = F.max_pool2d(x, 2)
            else:
                x = F.relu(F.conv2d(x, self.get_buffer(names[0]), self.get_buffer(names[1]), padding=1))
        return x

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the scalar loss of frames ``(B, H, W)``."""
        with torch.no_grad():
            wanted = self.features(target)
        return F.mse_loss(self.features(prediction), wanted)


class MovieLossOutput(NamedTuple):
    """The weighted sum and each term before its weight."""

    total: Tensor
    terms: dict[str, Tensor]


class MovieLoss(nn.Module):
    """Weighted sum of the frame losses; a term of weight 0 is not computed."""

    def __init__(self, config: MovieLossConfig) -> None:
        super().__init__()
        weights = {name: getattr(config, name) for name in ("focal", "l1", "fft", "ssim", "perceptual")}
        self.weights = {name: weight for name, weight in weights.items() if weight != 0}
        if not self.weights:
            raise ConfigError(
                "a movie loss with every weight 0", allowed="one or more terms", fix="set one of its weights"
            )
        self.perceptual: PerceptualLoss | None = None
        if "perceptual" in self.weights:
            if config.perceptual_weights is None:
                raise ConfigError(
                    f"perceptual weight {config.perceptual} without VGG16 weights",
                    fix="name a safetensors file with perceptual_weights, or set the weight to 0",
                )
            self.perceptual = PerceptualLoss(config.perceptual_weights)

    def forward(self, prediction: Tensor, target: Tensor) -> MovieLossOutput:
        """Compare frames ``(B, H, W)`` of 0-1; in float32 at least, whatever the autocast."""
        with torch.autocast(prediction.device.type, enabled=False):
            dtype = torch.promote_types(prediction.dtype, torch.float32)
            prediction, target = prediction.to(dtype), target.to(dtype)
            terms = {name: self._term(name, prediction, target) for name in self.weights}
            total = torch.stack([weight * terms[name] for name, weight in self.weights.items()]).sum()
        return MovieLossOutput(total, terms)

    def _term(self, name: str, prediction: Tensor, target: Tensor) -> Tensor:
        if name == "perceptual" and self.perceptual is not None:
            return self.perceptual(prediction, target)
        if name == "ssim":
            return 1 - ssim(prediction, target).mean()
        functions: dict[str, Callable[[Tensor, Tensor], Tensor]]
        functions = {"focal": focal_loss, "l1": F.l1_loss, "fft": fft_loss}
        return functions[name](prediction, target)


def _load_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ConfigError(f"VGG16 weights {path} do not exist", fix="download them, or set the perceptual weight to 0")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ConfigError(f"{path} is no safetensors file: {error}", fix="convert it with safetensors") from error
