"""Dropout whose masks are cheap on a CPU.

torch draws one random number of 32 or 64 bits per value on a CPU, on one core: a quarter of the published model's
step. Seven bits per value are enough: eight values share one 64-bit word, and the comparison runs on whole words.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LANES = 0x0101010101010101
LOW_SEVEN_BITS = 0x7F * LANES
LEVELS = 128
TILE_WORDS = 512


def draw_keep_mask(shape: tuple[int, ...], rate: float, device: torch.device | None = None) -> Tensor:
    """Draw which values stay, from torch's global state of `device`.

    On a CPU every byte is kept if its seven random bits reach a threshold. `rate` rarely is a multiple of 1/128, so
    each word draws its threshold from the two neighbours of ``128 rate``: every value is dropped with exactly `rate`
    (to 53 bits) over draws. The values of a word share its threshold, and the thresholds repeat every 512 words: a
    covariance of at most 1.6e-5 between two values (a correlation of 1e-4 at 0.2), so that the share dropped in one
    draw has a standard deviation of up to 1.7e-4 however large the mask.

    Parameters
    ----------
    shape : tuple of int
        Shape of the mask.
    rate : float
        Probability of a 0, in ``[0, 1)``.
    device : device, optional
        The CPU if None.

    Returns
    -------
    Tensor
        uint8, 1 = keep.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> keep = draw_keep_mask((1000, 1000), 0.2)
    >>> keep.unique().tolist(), round(keep.float().mean().item(), 2)
    ([0, 1], 0.8)
    """
    if device is not None and device.type != "cpu":
        return (torch.rand(shape, device=device) >= rate).to(torch.uint8)
    count = math.prod(shape)
    num_words = -(-count // 8)
    tile = min(TILE_WORDS, max(num_words, 1))
    words = torch.empty(-(-num_words // tile), tile, dtype=torch.int64)
    words.random_(-(2**63), None)
    below = int(LEVELS * rate)
    above = torch.rand(tile, dtype=torch.float64) < LEVELS * rate - below
    # Adding 128 - threshold to seven bits sets a byte's top bit if they reach the threshold.
    lift = torch.where(above, _signed((LEVELS - below - 1) * LANES), _signed((LEVELS - below) * LANES))
    words.bitwise_and_(LOW_SEVEN_BITS).add_(lift).bitwise_right_shift_(7).bitwise_and_(LANES)
    return words.view(-1).view(torch.uint8)[:count].view(shape)


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


class Dropout(nn.Module):
    """`torch.nn.Dropout` with `draw_keep_mask` on a CPU; elsewhere torch's own.

    Parameters
    ----------
    rate : float
        Probability of a zero, in ``[0, 1)``.

    Examples
    --------
    >>> layer = Dropout(0.5)
    >>> sorted(layer(torch.ones(1000)).unique().tolist()), layer.eval()(torch.ones(2)).tolist()
    ([0.0, 2.0], [1.0, 1.0])
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def extra_repr(self) -> str:
        """Return the rate."""
        return f"rate={self.rate}"

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` with values zeroed and the rest scaled, in training; `x` itself otherwise."""
        return drop(x, self.rate) if self.training and self.rate else x


def drop(x: Tensor, rate: float) -> Tensor:
    """Return `x` with values zeroed at `rate` and the rest scaled.

    Examples
    --------
    >>> sorted(drop(torch.ones(1000), 0.5).unique().tolist())
    [0.0, 2.0]
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, rate)
    return _Dropped.apply(x, rate)


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float) -> Tensor:
        keep = draw_keep_mask(tuple(x.shape), rate)
        ctx.save_for_backward(keep)
        ctx.scale = 1 / (1 - rate)
        return keep.to(x.dtype).mul_(x).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return keep.to(grad.dtype).mul_(grad).mul_(ctx.scale), None
