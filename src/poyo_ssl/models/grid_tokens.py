"""Keys and values of a recording's tokens without building the tokens.

Token ``(t, c)`` of POYO+ is ``[u ; x w]`` with u = unit_c + type_t, x the dF/F value and w the value embedding,
each D wide. LayerNorm (gain g, bias b, over 2D) and a bias-free projection W give exactly ::

    K_tc = (A_c + T_t + x p - m h) r + s       A_c = W_u (g_u * unit_c)    T_t = W_u (g_u * type_t)
                                                p = W_w (g_w * w)    h = W g    s = W b

with m and 1 / r^2 the token's mean and variance (+ eps), themselves sums of one part per neuron and one per value.
So W multiplies C + T + 3 rows, not C x T. Rotating K by its time t is linear too: the rows T, p, h and s
are rotated once per t, and A_c inside one pass over the result.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def token_statistics(
    units: Tensor, types: Tensor, values: Tensor, value_embedding: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return mean and reciprocal standard deviation of every token, without the tokens.

    The variance over both halves of a token is the mean of the halves' variances plus a quarter of the squared
    difference of their means: a sum of squares, so nothing cancels.

    Parameters
    ----------
    units : Tensor
        ``(B, C, D)``.
    types : Tensor
        ``(T, D)``.
    values : Tensor
        ``(B, T, C)``.
    value_embedding : Tensor
        ``(D,)``.
    eps : float
        Added to the variance, as in LayerNorm.

    Returns
    -------
    mean, scale : Tensor
        ``(B, T, C)`` each.

    Examples
    --------
    >>> unit, kind, w = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[0.5, 0.0]]), torch.tensor([1.0, -1.0])
    >>> mean, scale = token_statistics(unit, kind, torch.tensor([[[2.0]]]), w, 0.0)
    >>> token = torch.tensor([1.5, 2.0, 2.0, -2.0])
    >>> torch.allclose(mean, token.mean()), torch.allclose(scale, 1 / token.std(correction=0))
    (True, True)
    """
    D = units.shape[-1]
    unit_mean, type_mean, w_mean = units.mean(-1), types.mean(-1), value_embedding.mean()
    units, types = units - unit_mean.unsqueeze(-1), types - type_mean.unsqueeze(-1)
    covariance = types @ units.transpose(1, 2) / D  # (B, T, C)
    own_mean = unit_mean.unsqueeze(1) + type_mean.unsqueeze(-1)  # (B, T, C)
    own_variance = units.square().mean(-1).unsqueeze(1) + types.square().mean(-1).unsqueeze(-1) + 2 * covariance
    value_mean = values * w_mean
    value_variance = values.square() * value_embedding.var(correction=0)
    variance = (own_variance + value_variance) / 2 + (own_mean - value_mean).square() / 4
    return (own_mean + value_mean) / 2, torch.rsqrt(variance + eps)


def project_grid(
    *,
    units: Tensor,
    types: Tensor,
    values: Tensor,
    value_embedding: Tensor,
    norm: nn.LayerNorm,
    weight: Tensor,
    num_heads: int,
    turns: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return keys and values of all tokens: normalised, projected and rotated.

    Parameters
    ----------
    units : Tensor
        ``(B, C, D)`` unit embeddings.
    types : Tensor
        ``(T, D)`` token-type embedding of each token time.
    values : Tensor
        ``(B, T, C)`` dF/F.
    value_embedding : Tensor
        ``(D,)``.
    norm : LayerNorm
        Over 2D.
    weight : Tensor
        ``(2 * num_heads * E, 2D)``, bias-free: keys above values.
    num_heads : int
        Heads H of the keys, and of the values.
    turns : Tensor
        ``(B or 1, T, E / 2)`` complex, by which the pairs of a head are multiplied at each token time.

    Returns
    -------
    keys, values : Tensor
        ``(B, H, T, C, E)`` each, in float32 at least.

    Examples
    --------
    >>> keys, values = project_grid(
    ...     units=torch.randn(2, 5, 8), types=torch.randn(3, 8), values=torch.randn(2, 3, 5),
    ...     value_embedding=torch.randn(8), norm=nn.LayerNorm(16), weight=torch.randn(8, 16), num_heads=1,
    ...     turns=torch.ones(1, 3, 2, dtype=torch.complex64))
    >>> keys.shape
    torch.Size([2, 1, 3, 5, 4])
    """
    B, T, D = len(units), len(types), units.shape[-1]
    gain_unit, gain_value = norm.weight.split(D)
    per_unit = F.linear(units * gain_unit, weight[:, :D])  # (B, C, 2H * E), the A above
    before = torch.stack((F.pad(gain_value * value_embedding, (D, 0)), -norm.weight, norm.bias))
    before = torch.cat((before, F.pad(types * gain_unit, (0, D))))  # (3 + T, 2D)
    value_row, mean_row, bias_row, *type_rows = F.linear(before, weight).unbind(0)  # p, -h, s and the T above
    fixed = [row.expand(T, -1) for row in (value_row, mean_row, bias_row)]
    rows = torch.stack((fixed[0], fixed[1], torch.stack(type_rows), fixed[2]), dim=1)  # (T, 4, 2H * E)
    with torch.autocast(units.device.type, enabled=False):
        mean, scale = token_statistics(units, types, values, value_embedding, norm.eps)  # (B, T, C) each
        coefficients = torch.stack((values * scale, mean * scale, scale, torch.ones_like(scale)), -1)  # (B, T, C, 4)
        per_unit = _pairs(per_unit.to(scale.dtype), 2 * num_heads).transpose(1, 2)  # (B, 2H, C, E/2)
        rows = _pairs(rows.to(scale.dtype), 2 * num_heads).permute(2, 0, 1, 3)  # (2H, T, 4, E/2)
        rows = (rows * turns[:, None, :, None]).expand(B, -1, -1, -1, -1)  # (B, 2H, T, 4, E/2)
        # Keys and values apart: as views of one tensor, their gradients would be copied together again.
        keys, values = (
            _GridTokens.apply(unit_half, torch.view_as_real(row_half).flatten(-2), coefficients, turns)
            for unit_half, row_half in zip(per_unit.chunk(2, 1), rows.chunk(2, 1), strict=True)
        )
    return keys, values


class _GridTokens(torch.autograd.Function):
    """``scale_tc * turns_t * per_unit_c + coefficients_tc @ rows_t``, with no temporary of the result's size.

    Plain autograd would keep or build several tensors as large as all keys and values, and this block's time
    is memory traffic. On a CPU it goes window by window, so that the work stays in the cache.
    """

    @staticmethod
    def forward(ctx: Any, per_unit: Tensor, rows: Tensor, coefficients: Tensor, turns: Tensor) -> Tensor:
        ctx.save_for_backward(per_unit, rows, coefficients, turns)
        (B, H, C, num_pairs), T = per_unit.shape, rows.shape[2]
        out = rows.new_empty(B, H, T, C, 2 * num_pairs)
        for window in _window_slices(B, out.device):
            torch.matmul(coefficients[window].unsqueeze(1), rows[window], out=out[window])
            scaled = _scaled_turns(coefficients[window], turns, window)  # (b, 1, T, C, E/2)
            _complex(out[window]).addcmul_(scaled, per_unit[window].unsqueeze(2))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        per_unit, rows, coefficients, turns = ctx.saved_tensors
        grad_unit, grad_rows = torch.empty_like(per_unit), torch.empty_like(rows)
        grad_coefficients = torch.empty_like(coefficients)
        for window in _window_slices(len(grad), grad.device):
            g, coefficient = grad[window].contiguous(), coefficients[window]  # (b, H, T, C, E), (b, T, C, 4)
            g_pairs = _complex(g)  # (b, H, T, C, E/2)
            grad_rows[window] = coefficient.transpose(-1, -2).unsqueeze(1) @ g
            grad_unit[window] = (g_pairs * _scaled_turns(coefficient, turns, window).conj()).sum(2)
            grad_coefficients[window] = (g @ rows[window].transpose(-1, -2)).sum(1)
            # The scale also enters through the rotated unit part, as a real factor.
            along_unit = (g_pairs * per_unit[window].unsqueeze(2).conj()).sum(1)  # (b, T, C, E/2)
            turn = turns[_shared(turns, window)].unsqueeze(2)  # (b|1, T, 1, E/2)
            grad_coefficients[window][..., 2] += (along_unit * turn.conj()).real.sum(-1)  # (b, T, C)
        return grad_unit, grad_rows, grad_coefficients, None


def _pairs(x: Tensor, heads: int) -> Tensor:
    """Return ``(..., heads * E)`` as complex ``(..., heads, E / 2)``."""
    return _complex(x.unflatten(-1, (heads, -1)))


def _complex(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def _window_slices(batch_size: int, device: torch.device) -> list[slice]:
    step = 1 if device.type == "cpu" else max(1, batch_size)
    return [slice(start, start + step) for start in range(0, batch_size, step)]


def _shared(turns: Tensor, window: slice) -> slice:
    return window if len(turns) > 1 else slice(None)


def _scaled_turns(coefficient: Tensor, turns: Tensor, window: slice) -> Tensor:
    scale = coefficient[..., 2].unsqueeze(-1)  # (b, T, C, 1)
    return (scale * turns[_shared(turns, window)].unsqueeze(2)).unsqueeze(1)  # (b, 1, T, C, E/2)
