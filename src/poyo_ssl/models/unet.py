"""The Skip-Connection U-Net: a frame from one latent vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CHANNELS = (128, 64, 32, 16, 32)
"""Channels after each up-block of the release, coarsest first."""

START_VALUES = 4096
SKIP_VALUES = 2048
"""Ours: a projected map has as many channels as fit this many numbers, at least one."""

NEGATIVE_SLOPE = 0.2


def start_grid(height: int, width: int) -> tuple[int, int, int]:
    """Return the coarsest grid of a frame and the number of doublings that lead from it to the frame.

    Both sides are halved as long as both stay even and at least 2.

    Examples
    --------
    >>> start_grid(64, 128), start_grid(32, 64), start_grid(30, 52)
    ((2, 4, 5), (2, 4, 4), (15, 26, 1))
    """
    num_blocks = 0
    while height % 2 == 0 and width % 2 == 0 and min(height, width) >= 4:
        height, width, num_blocks = height // 2, width // 2, num_blocks + 1
    return height, width, num_blocks


def block_channels(num_blocks: int) -> tuple[int, ...]:
    """Return the channels of each up-block, coarsest first: the last of the release's, widened to the front.

    Examples
    --------
    >>> block_channels(5), block_channels(3), block_channels(6)
    ((128, 64, 32, 16, 32), (32, 16, 32), (128, 128, 64, 32, 16, 32))
    """
    return ((CHANNELS[0],) * max(0, num_blocks - len(CHANNELS)) + CHANNELS)[-num_blocks:]


class UpBlock(nn.Module):
    """Bilinear x 2, 3 x 3 convolution, BatchNorm, LeakyReLU; then the latent's own map fused by a 1 x 1.

    Parameters
    ----------
    dim : int
        Width of the latent.
    in_channels, out_channels : int
        Channels before and after.
    height, width : int
        Size after doubling.
    skips : bool
        Project the latent to this scale; the fusion has no activation.

    Examples
    --------
    >>> block = UpBlock(8, in_channels=4, out_channels=6, height=4, width=8, skips=True)
    >>> block(torch.zeros(2, 4, 2, 4), torch.zeros(2, 8)).shape
    torch.Size([2, 6, 4, 8])
    """

    def __init__(self, dim: int, *, in_channels: int, out_channels: int, height: int, width: int, skips: bool) -> None:
        super().__init__()
        self.grow = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.LeakyReLU(NEGATIVE_SLOPE),
        )
        self.project: nn.Module | None = None
        self.fuse: nn.Module | None = None
        if skips:
            skip_channels = max(1, min(out_channels, SKIP_VALUES // (height * width)))
            self.project = nn.Sequential(
                nn.Linear(dim, skip_channels * height * width), nn.Unflatten(1, (skip_channels, height, width))
            )
            self.fuse = nn.Conv2d(out_channels + skip_channels, out_channels, 1)

    def forward(self, x: Tensor, latent: Tensor) -> Tensor:
        """Return ``(B, out, 2h, 2w)`` from `x` ``(B, in, h, w)`` and `latent` ``(B, D)``."""
        x = self.grow(x)  # (B, out, 2h, 2w)
        if self.project is None or self.fuse is None:
            return x
        return self.fuse(torch.cat((x, self.project(latent)), dim=1))  # (B, out, 2h, 2w)


class FrameDecoder(nn.Module):
    """Grey frames of 0-1 from latent vectors.

    The sigmoid at the end has a gradient everywhere (the release's tanh and clamp have not).

    Parameters
    ----------
    dim : int
        Width of the latent.
    height, width : int
        Size of the frame, even.
    skips : bool
        Project the latent into every scale (the published decoder); False is the ablation.

    Examples
    --------
    >>> FrameDecoder(16, height=32, width=64, skips=True)(torch.zeros(3, 16)).shape
    torch.Size([3, 32, 64])
    """

    def __init__(self, dim: int, *, height: int, width: int, skips: bool) -> None:
        super().__init__()
        h, w, num_blocks = start_grid(height, width)
        channels = max(1, min(CHANNELS[0], START_VALUES // (h * w)))
        self.start = nn.Sequential(nn.Linear(dim, channels * h * w), nn.Unflatten(1, (channels, h, w)))
        blocks = []
        for out_channels in block_channels(num_blocks):
            h, w = 2 * h, 2 * w
            blocks.append(UpBlock(dim, in_channels=channels, out_channels=out_channels, height=h, width=w, skips=skips))
            channels = out_channels
        self.blocks = nn.ModuleList(blocks)
        self.to_grey = nn.Conv2d(channels, 1, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        """Return frames ``(B, H, W)`` from `latent` ``(B, D)``."""
        x = self.start(latent)  # (B, 128, h, w)
        for block in self.blocks:
            x = block(x, latent)  # (B, channels, 2h, 2w), doubling each time
        return torch.sigmoid(self.to_grey(x)).squeeze(1)  # (B, H, W)
