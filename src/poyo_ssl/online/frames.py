"""The frame decoder for one latent vector at a time, with everything folded that is linear.

The same numbers as `poyo_ssl.models.unet.FrameDecoder` in evaluation: BatchNorm goes into the convolution before it,
and the last fusion and the last convolution, between which there is no activation, become one, so that the latent's own
map of the last block reaches the frame in one product. Images lie with channels last, so that a fusion is one matrix
product without joining its two inputs.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poyo_ssl.models.pieces import UpBlockPieces, up_block_pieces
from poyo_ssl.models.unet import NEGATIVE_SLOPE, FrameDecoder


class FoldedBlock:
    """An `UpBlock` in evaluation; `skip` is None without skips."""

    def __init__(self, pieces: UpBlockPieces) -> None:
        self.weight = pieces.weight.contiguous(memory_format=torch.channels_last)
        self.bias = pieces.bias
        self.skip: tuple[Tensor, Tensor] | None = None
        if pieces.project is not None:
            assert pieces.fuse is not None
            assert pieces.fuse_bias is not None
            self.skip = _channels_last(pieces.project)
            of_image, of_skip = pieces.fuse.tensor_split([len(self.weight)], dim=1)  # of (out, out + skip)
            self.of_image, self.of_skip = of_image.mT.contiguous(), of_skip.mT.contiguous()
            self.fuse_bias = pieces.fuse_bias

    def grow(self, x: Tensor) -> Tensor:
        """Return ``(1, out, 2h, 2w)`` before the fusion."""
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return F.leaky_relu_(F.conv2d(x, self.weight, self.bias, padding=1), NEGATIVE_SLOPE)

    def __call__(self, x: Tensor, latent: Tensor) -> Tensor:
        """Return ``(1, out, 2h, 2w)`` from ``(1, in, h, w)``, both with channels last, and ``(D,)``."""
        x = self.grow(x)
        if self.skip is None:
            return x
        weight, bias = self.skip
        own = torch.addmv(bias, weight, latent).view(-1, len(self.of_skip))  # (h w, skip)
        fused = torch.addmm(self.fuse_bias, own, self.of_skip).addmm_(_flat(x), self.of_image)  # (h w, out)
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
        pieces = up_block_pieces(decoder)
        *self.blocks, self.last = [FoldedBlock(block) for block in pieces]
        _, height, width = self.grid
        self._fold_last(decoder.to_grey, height << len(pieces), width << len(pieces))

    def _fold_last(self, to_grey: nn.Conv2d, height: int, width: int) -> None:
        """Join what follows the last activation: a map for each of the nine taps, which are then shifted and added."""
        assert to_grey.bias is not None
        last, taps = self.last, to_grey.weight[0].flatten(1).mT  # (9, channels)
        self.image_taps = taps if last.skip is None else taps @ last.of_image.mT  # (9, out)
        self.maps = taps.new_empty(9, height * width)
        self.grey = taps.new_empty(height, width)
        maps = self.maps.view(9, height, width)
        self.shifts = [(self.grey[to], maps[tap][of]) for tap, to, of in _shifted(height, width)]
        self.of_latent: Tensor | None = None
        self.base = to_grey.bias.expand(height * width).clone()  # (H W,)
        if last.skip is not None:
            weight, bias = last.skip
            own = torch.cat((weight, bias.unsqueeze(1)), dim=1)  # (H W skip, D + 1)
            own = own.view(height, width, -1, own.shape[1])
            skip_taps, bias_taps = taps @ last.of_skip.mT, taps @ last.fuse_bias  # (9, skip), (9,)
            total = own.new_zeros(height, width, own.shape[-1])
            for tap, to, of in _shifted(height, width):
                total[to] += skip_taps[tap] @ own[of]
                total[(*to, -1)] += bias_taps[tap]  # it ends where the image ends
            self.of_latent = total[..., :-1].flatten(0, 1).contiguous()  # (H W, D)
            self.base += total[..., -1].flatten()

    @torch.no_grad()
    def forward(self, latent: Tensor) -> Tensor:
        """Return the frame ``(1, H, W)`` of `latent` ``(1, D)``."""
        vector = latent[0]
        channels, height, width = self.grid
        x = torch.addmv(self.start_bias, self.start_weight, vector).view(1, height, width, channels)
        x = x.permute(0, 3, 1, 2)
        for block in self.blocks:
            x = block(x, vector)
        torch.mm(self.image_taps, _flat(self.last.grow(x)).mT, out=self.maps)
        if self.of_latent is None:
            self.grey.view(-1).copy_(self.base)
        else:
            torch.addmv(self.base, self.of_latent, vector, out=self.grey.view(-1))
        for grey, shifted in self.shifts:
            grey.add_(shifted)
        return torch.sigmoid(self.grey).unsqueeze(0)


def _shifted(height: int, width: int) -> Iterator[tuple[int, tuple[slice, slice], tuple[slice, slice]]]:
    """Yield every tap of a 3 x 3 convolution with the pixels that it reaches, and where these look."""
    for tap in range(9):
        down, right = divmod(tap, 3)
        to, of = zip(_overlap(down - 1, height), _overlap(right - 1, width), strict=True)
        yield tap, to, of


def _overlap(shift: int, size: int) -> tuple[slice, slice]:
    return slice(max(0, -shift), size - max(0, shift)), slice(max(0, shift), size - max(0, -shift))


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
