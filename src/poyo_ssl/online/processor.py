"""The processor's blocks for one window at a time.

The same numbers as `poyo_ssl.models.poyo_ssl.PoyoSSL.process` in evaluation. Latents are rows ``(L, D)`` for LayerNorm;
within a branch they are columns, for then each head is contiguous and the pairs that rotate lie as real parts,
imaginary parts and the rest, so that rotation is real arithmetic on whole slices. LayerNorm's gain and bias go into the
weights after it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poyo_ssl.models.poyo_ssl import PoyoSSL, ProcessorBlock


@dataclass(frozen=True)
class BlockWeights:
    """One block's weights with LayerNorm folded in and the features of its heads in the order of this module."""

    to_qkv: Tensor
    qkv_bias: Tensor
    to_out: Tensor
    out_bias: Tensor
    expand: Tensor
    expand_bias: Tensor
    contract: Tensor
    contract_bias: Tensor
    eps: tuple[float, float]


class FoldedProcessor:
    """Self-attention among the latents of one window.

    Parameters
    ----------
    model : PoyoSSL
        In evaluation mode; its parameters are read once.
    times_of_latents : Tensor
        ``(L,)`` float64 seconds.

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
        self.heads, self.dim_head, self.pairs = config.self_heads, config.dim_head, config.dim_head // 4
        angle = model.rotary.omega[: self.pairs, None] * times_of_latents  # (E/4, L)
        self.cos, self.sin = angle.cos().to(dtype), angle.sin().to(dtype)
        turning = torch.arange(2 * self.pairs)
        self.order = torch.cat((turning[::2], turning[1::2], torch.arange(2 * self.pairs, config.dim_head)))
        self.blocks = [self._read(block) for block in model.processor]

    def _read(self, block: nn.Module) -> BlockWeights:
        assert isinstance(block, ProcessorBlock)
        attention, feed_forward = block.self_attention, block.feed_forward
        qkv, qkv_bias = _fold(attention.norm, attention.to_qkv)
        # (3HE, ...) with the features of each head in our order, queries scaled.
        qkv = qkv.unflatten(0, (3, self.heads, -1))[:, :, self.order].clone()
        qkv_bias = qkv_bias.unflatten(0, (3, self.heads, -1))[:, :, self.order].clone()
        qkv[0] /= math.sqrt(self.dim_head)
        qkv_bias[0] /= math.sqrt(self.dim_head)
        out = attention.to_out.weight.unflatten(1, (self.heads, -1))[:, :, self.order].flatten(1)
        expand, expand_bias = _fold(feed_forward.norm, feed_forward.expand)
        return BlockWeights(
            to_qkv=qkv.flatten(0, 2).contiguous(),
            qkv_bias=qkv_bias.reshape(-1, 1),
            to_out=out.mT.contiguous(),
            out_bias=attention.to_out.bias,
            expand=expand,
            expand_bias=expand_bias.unsqueeze(1),
            contract=feed_forward.contract.weight.mT.contiguous(),
            contract_bias=feed_forward.contract.bias,
            eps=(attention.norm.eps, feed_forward.norm.eps),
        )

    @torch.no_grad()
    def __call__(self, z: Tensor) -> Tensor:
        """Return the latents ``(L, D)`` after all blocks."""
        for block in self.blocks:
            z = self._attend(block, z)
            value, gate = torch.addmm(block.expand_bias, block.expand, standardise(z, block.eps[1]).mT).chunk(2)
            z = torch.addmm(z + block.contract_bias, F.gelu(gate).mul_(value).mT, block.contract)
        return z

    def _attend(self, block: BlockWeights, z: Tensor) -> Tensor:
        qkv = torch.addmm(block.qkv_bias, block.to_qkv, standardise(z, block.eps[0]).mT)  # (3HE, L)
        qkv = qkv.unflatten(0, (3, self.heads, self.dim_head))  # (3, H, E, L)
        self._turn(qkv, self.sin)
        q, k, v = qkv
        probabilities = torch.bmm(q.mT, k).softmax(dim=-1)  # (H, L, L)
        out = torch.bmm(v, probabilities.mT)  # (H, E, L)
        self._turn(out, -self.sin)
        return torch.addmm(z + block.out_bias, out.flatten(0, 1).mT, block.to_out)  # (L, D)

    def _turn(self, x: Tensor, sin: Tensor) -> None:
        """Rotate ``(..., E, L)`` in place."""
        real, imaginary = x[..., : self.pairs, :], x[..., self.pairs : 2 * self.pairs, :]
        moved = real * sin
        real.mul_(self.cos).addcmul_(imaginary, sin, value=-1)
        imaginary.mul_(self.cos).add_(moved)


def _fold(norm: nn.LayerNorm, linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """Return weight and bias of LayerNorm's gain and bias followed by a linear layer."""
    bias = F.linear(norm.bias, linear.weight, linear.bias)
    return (linear.weight * norm.weight).contiguous(), bias


def standardise(z: Tensor, eps: float) -> Tensor:
    """Bring every row to mean 0 and variance 1."""
    return F.layer_norm(z, z.shape[-1:], eps=eps)
