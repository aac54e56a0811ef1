"""The processor's blocks for one window at a time.

The same numbers as `poyo_ssl.models.poyo_ssl.PoyoSSL.process` in evaluation. Latents are rows ``(L, D)`` for LayerNorm;
within a branch they are columns, for then each head is contiguous and the pairs that rotate lie as real parts,
imaginary parts and the rest, so that rotation is real arithmetic on whole slices. All memory and all views of it are
made once.

Attention weights are exponentials of the logits themselves, divided by their sum after they have met the values. Should
a sum leave a safe range, the window is computed again with the largest logit subtracted, and so is every later one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from poyo_ssl.models.pieces import NormedProjection, ProcessorPieces, processor_pieces
from poyo_ssl.models.poyo_ssl import PoyoSSL
from poyo_ssl.online.cross_attention import SAFE_RANGE
from poyo_ssl.online.feed_forward import FoldedFeedForward, carry_bias, lift


@dataclass(frozen=True)
class BlockWeights:
    """One block's weights with the features of its heads in the order of this module."""

    to_qkv: Tensor
    to_out: Tensor
    out_bias: Tensor
    eps: float
    feed_forward: FoldedFeedForward


@dataclass(frozen=True)
class Turning:
    """Views of the pairs that rotate in some columns: real parts, imaginary parts, and memory for a third as large."""

    real: Tensor
    imaginary: Tensor
    moved: Tensor

    def turn(self, cos: Tensor, sin: Tensor) -> None:
        """Rotate in place."""
        torch.mul(self.real, sin, out=self.moved)
        self.real.mul_(cos).addcmul_(self.imaginary, sin, value=-1)
        self.imaginary.mul_(cos).add_(self.moved)


class FoldedProcessor:
    """Self-attention among the latents of one window.

    Parameters
    ----------
    model : PoyoSSL
        In evaluation mode; its parameters are read once.
    times_of_latents : Tensor
        ``(L,)`` float64 seconds.

    Attributes
    ----------
    needs_maximum : bool
        Logits have been too large or too small for their exponentials.

    Examples
    --------
    >>> from poyo_ssl.config import ModelConfig
    >>> from poyo_ssl.models.encoder import Latents
    >>> model = PoyoSSL(ModelConfig(dim=8, dim_head=8), num_units=1, num_sessions=1, readouts={}).eval()
    >>> times = torch.arange(3, dtype=torch.float64) / 8
    >>> z = torch.randn(3, 8)
    >>> with torch.no_grad():
    ...     plain = model.process(Latents(z[None], times, model.rotary(times, torch.float32))).values[0]
    >>> torch.allclose(FoldedProcessor(model, times)(z), plain, atol=1e-5)
    True
    """

    @torch.no_grad()
    def __init__(self, model: PoyoSSL, times_of_latents: Tensor) -> None:
        config, dtype = model.config, model.latents.dtype
        self.heads, self.dim_head, pairs = config.self_heads, config.dim_head, config.dim_head // 4
        self.num_latents = len(times_of_latents)
        angle = model.rotary.omega[:pairs, None] * times_of_latents  # (E/4, L)
        self.cos, self.sin, self.sin_back = angle.cos().to(dtype), angle.sin().to(dtype), -angle.sin().to(dtype)
        turning = torch.arange(2 * pairs)
        self.order = torch.cat((turning[::2], turning[1::2], torch.arange(2 * pairs, config.dim_head)))
        self.blocks = [self._read(block) for block in processor_pieces(model)]
        self.ones = torch.ones(config.dim, dtype=dtype)
        self._allocate(pairs, dtype)
        self.needs_maximum = False

    def _read(self, block: ProcessorPieces) -> BlockWeights:
        """Bring the features of each head into our order and scale the queries."""
        plain = block.to_qkv
        weight = plain.weight.unflatten(0, (3, self.heads, -1))[:, :, self.order].clone()  # (3, H, E, D)
        bias = plain.bias.unflatten(0, (3, self.heads, -1))[:, :, self.order].clone()
        weight[0] /= math.sqrt(self.dim_head)
        bias[0] /= math.sqrt(self.dim_head)
        out = block.to_out.unflatten(1, (self.heads, -1))[:, :, self.order].flatten(1)
        return BlockWeights(
            to_qkv=carry_bias(NormedProjection(weight.flatten(0, 2), bias.flatten(), plain.eps)),
            to_out=out.mT.contiguous(),
            out_bias=block.out_bias,
            eps=plain.eps,
            feed_forward=FoldedFeedForward(block.feed_forward, self.num_latents),
        )

    def _allocate(self, pairs: int, dtype: torch.dtype) -> None:
        H, E, L = self.heads, self.dim_head, self.num_latents
        self.qkv = torch.empty(3 * H * E, L, dtype=dtype)
        heads = self.qkv.view(3, H, E, L)
        self.queries, self.keys, self.values = heads[0], heads[1].mT, heads[2]  # (H, E, L), (H, L, E), (H, E, L)
        moved = torch.empty(3, H, pairs, L, dtype=dtype)
        self.turning = Turning(heads[:, :, :pairs], heads[:, :, pairs : 2 * pairs], moved)
        self.weights = torch.empty(H, L, L, dtype=dtype)  # of the keys (rows) for the queries
        self.denominators = torch.empty(len(self.blocks), H, L, dtype=dtype)
        self.out = torch.empty(H, E, L, dtype=dtype)
        self.turning_out = Turning(self.out[:, :pairs], self.out[:, pairs : 2 * pairs], moved[0])
        self.out_rows = self.out.view(H * E, L).mT  # (L, HE)

    @torch.no_grad()
    def __call__(self, z: Tensor) -> Tensor:
        """Return the latents ``(L, D)`` after all blocks."""
        if not self.needs_maximum:
            after = self._run(z.clone())
            low, high = self.denominators.aminmax()
            if high.item() < SAFE_RANGE and low.item() > 1 / SAFE_RANGE:
                return after
            self.needs_maximum = True
        return self._run(z.clone())

    def _run(self, z: Tensor) -> Tensor:
        for block, denominators in zip(self.blocks, self.denominators, strict=True):
            torch.mm(block.to_qkv, lift(z, self.ones, block.eps).mT, out=self.qkv)
            self.turning.turn(self.cos, self.sin)
            torch.bmm(self.keys, self.queries, out=self.weights)
            if self.needs_maximum:
                torch.bmm(self.values, self.weights.softmax(dim=1), out=self.out)
            else:
                torch.sum(self.weights.exp_(), dim=1, out=denominators)
                torch.bmm(self.values, self.weights, out=self.out).div_(denominators.unsqueeze(1))
            self.turning_out.turn(self.cos, self.sin_back)
            z.add_(block.out_bias).addmm_(self.out_rows, block.to_out)
            block.feed_forward(z)
        return z
