"""LayerNorm with what follows it, and the feed-forward block, for one window at a time.

A row that LayerNorm has standardised sums to zero. With 1 added to every entry it sums to its width, and so a weight
that does not see the mean can carry its bias there: a product needs no bias added, and no memory that holds it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from poyo_ssl.models.pieces import FeedForwardPieces, NormedProjection


def lift(z: Tensor, ones: Tensor, eps: float) -> Tensor:
    """Bring every row of `z` ``(L, D)`` to mean 1 and variance 1; `ones` is ``(D,)``."""
    return F.layer_norm(z, ones.shape, bias=ones, eps=eps)


def carry_bias(projection: NormedProjection) -> Tensor:
    """Return the weight ``(out, D)`` that gives a lifted row what `projection` gives a standardised one.

    Examples
    --------
    >>> z, ones = torch.randn(2, 4), torch.ones(4)
    >>> projection = NormedProjection(torch.randn(3, 4), torch.randn(3), eps=1e-5)
    >>> plain = F.linear(F.layer_norm(z, (4,), eps=1e-5), projection.weight, projection.bias)
    >>> torch.allclose(lift(z, ones, 1e-5) @ carry_bias(projection).T, plain, atol=1e-5)
    True
    """
    weight = projection.weight
    return (weight - weight.mean(1, keepdim=True) + projection.bias.unsqueeze(1) / weight.shape[1]).contiguous()


class FoldedFeedForward:
    """The branch of `poyo_ssl.models.attention.FeedForward` in evaluation, added in place.

    Parameters
    ----------
    pieces : FeedForwardPieces
        Its weights.
    num_rows : int
        Rows L of a window.

    Examples
    --------
    >>> from poyo_ssl.models.attention import FeedForward
    >>> from poyo_ssl.models.pieces import feed_forward_pieces
    >>> module, z = FeedForward(8, dropout=0.0), torch.randn(3, 8)
    >>> with torch.no_grad():
    ...     plain = z + module(z)
    >>> torch.allclose(FoldedFeedForward(feed_forward_pieces(module), num_rows=3)(z), plain, atol=1e-5)
    True
    """

    @torch.no_grad()
    def __init__(self, pieces: FeedForwardPieces, num_rows: int) -> None:
        # gelu(g) v = (1 + erf(g')) g' v / sqrt(2) with g' = g / sqrt(2); the constants go into the weights.
        self.expand = carry_bias(pieces.expand)
        self.expand[len(self.expand) // 2 :] *= math.sqrt(0.5)
        self.contract = (pieces.contract.mT * math.sqrt(0.5)).contiguous()
        self.bias, self.eps, self.ones = pieces.contract_bias, pieces.expand.eps, torch.ones_like(pieces.contract_bias)
        self.hidden = self.expand.new_empty(len(self.expand), num_rows)
        self.value, self.gate = self.hidden.chunk(2)
        self.erf = torch.empty_like(self.gate)
        self.rows = self.value.mT

    @torch.no_grad()
    def __call__(self, z: Tensor) -> Tensor:
        """Add the branch to `z` ``(L, D)`` and return it."""
        torch.mm(self.expand, lift(z, self.ones, self.eps).mT, out=self.hidden)
        torch.erf(self.gate, out=self.erf)
        self.value.mul_(self.gate)
        self.value.addcmul_(self.value, self.erf)
        return z.add_(self.bias).addmm_(self.rows, self.contract)
