"""The frame decoder for one latent vector at a time, with everything folded that is linear.

The same numbers as `poyo_ssl.models.unet.FrameDecoder` in evaluation: BatchNorm goes into the convolution before it,
and the last fusion and the last convolution, between which there is no activation, become one. Images lie with channels
last, so that a fusion is one matrix product without joining its two inputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poyo_ssl.models.unet import NEGATIVE_SLOPE, FrameDecoder, UpBlock


class FoldedBlock:
    """An `UpBlock` in evaluation; `skip` is None without skips."""

    def __init__(self, block: nn.Module) -> None:
        assert isinstance(block, UpBlock)
        convolution, norm = block.grow[1], block.grow[2]
        assert isinstance(convolution, nn.Conv2d)
        assert convolution.bias is not None
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        weight = convolution.weight * gain.view(-1, 1, 1, 1)
        self.bias = (convolution.bias - norm.running_mean) * gain + norm.bias
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.skip: tuple[Tensor, Tensor] | None = None
        if block.fuse is not None:
            assert isinstance(block.project, nn.Sequential)
            assert isinstance(block.fuse, nn.Conv2d)
            assert block.fuse.bias is not None
            self.skip = _channels_last(block.project)
            fuse = block.fuse.weight.flatten(1)  # (out, out + skip)
            self.of_image, self.of_skip = fuse[:, : len(weight)].mT.contiguous(), fuse[:, len(weight) :].mT.contiguous()
            self.fuse_bias = block.fuse.bias

    def grow(self, x: Tensor) -> Tensor:
        """Return ``(1, out, 2h, 2w)`` before the fusion."""
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return F.leaky_relu_(F.conv2d(x, self.weight, self.bias, padding=1), NEGATIVE_SLOPE)

    def project(self, latent: Tensor) -> Tensor:
        """Return the latent's own map ``(h * w, skip channels)``."""
        assert self.skip is not None
        weight, bias = self.skip
        return torch.addmv(bias, weight, latent).view(-1, self.of_skip.shape[0])

    def __call__(self, x: Tensor, latent: Tensor) -> Tensor:
        """Return ``(1, out, 2h, 2w)`` from ``(1, in, h, w)``, both with channels last, and ``(D,)``."""
        x = self.grow(x)
        if self.skip is None:
            return x
        flat = _flat(x)  # (h w, out)
        fused = torch.addmm(self.fuse_bias, self.project(latent), self.of_skip).addmm_(flat, self.of_image)
        return fused.view(1, *x.shape[2:], -1).permute(0, 3, 1, 2)


class FoldedFrameDecoder(nn.Module):
    """A `FrameDecoder` in evaluation.

    Parameters
    ----------
    decoder : FrameDecoder
        Its parameters are read once.

    Examples
    --------
    >>> decoder, latent = FrameDecoder(8, height=16, width=32, skips=True).eval(), torch.randn(1, 8)
    >>> with torch.no_grad():
    ...     torch.allclose(FoldedFrameDecoder(decoder)(latent), decoder(latent), atol=1e-6)
    True
    """

    @torch.no_grad()
    def __init__(self, decoder: FrameDecoder) -> None:
        super().__init__()
        self.grid = _grid(decoder.start)
        self.start_weight, self.start_bias = _channels_last(decoder.start)
        *self.blocks, self.last = [FoldedBlock(block) for block in decoder.blocks]
        last, grey = self.last, decoder.to_grey
        assert grey.bias is not None
        taps = grey.weight[0].flatten(1).mT  # (9, channels)
        # A map for each of the nine taps; the fusion's bias belongs to it, for it ends where the image ends.
        self.image_taps = taps if last.skip is None else taps @ last.of_image.mT  # (9, out)
        self.skip_taps = None if last.skip is None else taps @ last.of_skip.mT  # (9, skip)
        self.tap_bias = torch.zeros(9, 1).to(taps) if last.skip is None else (taps @ last.fuse_bias).unsqueeze(1)
        self.grey_bias = grey.bias

    @torch.no_grad()
    def forward(self, latent: Tensor) -> Tensor:
        """Return the frame ``(1, H, W)`` of `latent` ``(1, D)``."""
        vector = latent[0]
        channels, height, width = self.grid
        x = torch.addmv(self.start_bias, self.start_weight, vector).view(1, height, width, channels)
        x = x.permute(0, 3, 1, 2)
        for block in self.blocks:
            x = block(x, vector)
        last = self.last
        x = last.grow(x)
        maps = torch.addmm(self.tap_bias, self.image_taps, _flat(x).mT)  # (9, H W)
        if self.skip_taps is not None:
            maps.addmm_(self.skip_taps, last.project(vector).mT)
        height, width = x.shape[2:]
        maps = F.pad(maps.view(3, 3, height, width), (1, 1, 1, 1))
        grey = self.grey_bias.expand(height, width).clone()
        for i in range(3):
            for j in range(3):
                grey += maps[i, j, i : i + height, j : j + width]
        return torch.sigmoid_(grey).unsqueeze(0)


def _flat(x: Tensor) -> Tensor:
    """View ``(1, C, h, w)`` with channels last as ``(h * w, C)``."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _grid(projection: nn.Sequential) -> tuple[int, int, int]:
    """Return the shape ``(channels, h, w)`` that a projection of the latent is given."""
    unflatten = projection[1]
    assert isinstance(unflatten, nn.Unflatten)
    channels, height, width = unflatten.unflattened_size
    return int(channels), int(height), int(width)


def _channels_last(projection: nn.Sequential) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a projection whose output is ``(h, w, channels)`` instead of ``(channels, h, w)``."""
    linear, shape = projection[0], _grid(projection)
    assert isinstance(linear, nn.Linear)
    weight = linear.weight.unflatten(0, shape).permute(1, 2, 0, 3).flatten(0, 2).contiguous()
    return weight, linear.bias.unflatten(0, shape).permute(1, 2, 0).flatten().contiguous()
