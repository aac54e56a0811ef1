"""The recording as the encoder sees it, before any token is built, and its keys and values without the tokens.

Token (t, c) is ``[unit_c + type_t ; x_tc w]``. LayerNorm (gain g, bias b, width 2D) and a projection W make it ::

    K_tc = (A_c + x_tc p + T_t - m_tc h) r_tc + s
    A = W (g * unit),  p = W (g * w),  T = W (g * type),  h = W g,  s = W b

with the token's mean m and reciprocal standard deviation r. So the projection costs C rows instead of T x C.
Shapes: B windows, T token times (frames, start and end), C neurons, L latents, D width, H heads, E width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class TokenGrid:
    """What the tokens of a batch are made of."""

    units: Tensor  # (B, C, D)
    types: Tensor  # (3, D): of frames, of the start, of the end
    kinds: Tensor  # (T,) long, the row of `types`
    values: Tensor  # (B, T, C) dF/F, 0 for start and end
    value_embedding: Tensor  # (1, 1, D), or (B, C, D) with one for each neuron
    turns: Tensor  # (1 or B, T, E/2) complex, the rotations of the token times
    unit_mask: Tensor | None = None  # (B, C) bool, True for a neuron that is there; None when all are
    time_mask: Tensor | None = None  # (B, L, T) bool, True where a latent may look; None when everywhere

    def token_mask(self) -> Tensor | None:
        """Return ``(B, 1, 1 or L, T * C)`` bool, True where a latent may look; None when it may look everywhere."""
        if self.time_mask is None and self.unit_mask is None:
            return None
        (B, T, C), device = self.values.shape, self.values.device
        by_unit = torch.ones(B, C, dtype=torch.bool, device=device) if self.unit_mask is None else self.unit_mask
        by_time = torch.ones(B, 1, T, dtype=torch.bool, device=device) if self.time_mask is None else self.time_mask
        return (by_time.unsqueeze(-1) & by_unit[:, None, None]).flatten(2).unsqueeze(1)


def token_statistics(
    units: Tensor, types: Tensor, values: Tensor, value_embedding: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return mean and reciprocal standard deviation ``(B, T, C)`` of every token; `types` is ``(T, D)``."""
    # The variance over both halves of a token is the mean of the halves' variances plus a quarter of the squared
    # difference of their means: a sum of squares, so nothing cancels.
    D = units.shape[-1]
    unit_mean, type_mean = units.mean(-1), types.mean(-1)  # (B, C), (T,)
    units, types = units - unit_mean.unsqueeze(-1), types - type_mean.unsqueeze(-1)
    covariance = types @ units.transpose(1, 2) / D  # (B, T, C)
    own_mean = unit_mean.unsqueeze(1) + type_mean.unsqueeze(-1)  # (B, T, C)
    own_variance = units.square().mean(-1).unsqueeze(1) + types.square().mean(-1).unsqueeze(-1) + 2 * covariance
    value_mean = values * value_embedding.mean(-1).unsqueeze(1)
    value_variance = values.square() * value_embedding.var(-1, correction=0).unsqueeze(1)
    variance = (own_variance + value_variance) / 2 + (own_mean - value_mean).square() / 4
    return (own_mean + value_mean) / 2, torch.rsqrt(variance + eps)


@dataclass(frozen=True)
class TokenRows:
    """The projections that keys and values are sums of, keys above values: ``(..., rows, 2HE)`` each."""

    own: Tensor  # A, a row per neuron
    along: Tensor  # p, one row or a row per neuron
    types: Tensor  # T
    mean: Tensor  # -h
    bias: Tensor  # s


def token_rows(units: Tensor, types: Tensor, value_embedding: Tensor, norm: nn.LayerNorm, weight: Tensor) -> TokenRows:
    """Project what tokens are made of with `weight` ``(2HE, 2D)``; `norm` is over 2D."""
    D = units.shape[-1]
    gain_unit, gain_value = norm.weight.split(D)
    own = F.linear(units * gain_unit, weight[:, :D])
    along = F.linear(value_embedding * gain_value, weight[:, D:])
    of_types = F.linear(types * gain_unit, weight[:, :D])
    mean, bias = F.linear(torch.stack((-norm.weight, norm.bias)), weight).unsqueeze(1)
    return TokenRows(own, along, of_types, mean, bias)


def project_grid(grid: TokenGrid, *, norm: nn.LayerNorm, weight: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """Return keys and values of all tokens, normalised, projected and rotated: ``(B, H, T, C, E)`` each."""
    types, values = grid.types[grid.kinds], grid.values  # (T, D), (B, T, C)
    row = token_rows(grid.units, types, grid.value_embedding, norm, weight)
    with torch.autocast(grid.units.device.type, enabled=False):
        mean, scale = token_statistics(grid.units, types, values, grid.value_embedding, norm.eps)  # (B, T, C) each
        rows = [row.types, row.mean.expand_as(row.types), row.bias.expand_as(row.types)]
        of_rows = [scale, mean * scale, torch.ones_like(scale)]
        parts, of_parts = [row.own], [scale]
        if row.along.shape[:2] == (1, 1):
            rows, of_rows = [*rows, row.along[0].expand_as(row.types)], [*of_rows, values * scale]
        else:
            parts, of_parts = [*parts, row.along], [*of_parts, values * scale]
        all_parts = by_head(torch.stack(parts, 1).to(scale.dtype), 2 * num_heads).transpose(1, 2)  # (B, 2H, J, C, E)
        all_rows = by_head(torch.stack(rows, 1).to(scale.dtype), 2 * num_heads).transpose(0, 1)  # (2H, T, R, E)
        amplitudes, coefficients = torch.stack(of_parts, -1), torch.stack(of_rows, -1)  # (B, T, C, J), (B, T, C, R)
        # Keys and values apart: as views of one tensor, their gradients would be copied together again.
        keys, values = (
            _GridTokens.apply(part_half, amplitudes, row_half, coefficients, grid.turns)
            for part_half, row_half in zip(all_parts.chunk(2, 1), all_rows.chunk(2, 0), strict=True)
        )
    return keys, values


def by_head(x: Tensor, heads: int) -> Tensor:
    """Return ``(..., N, heads * E)`` as ``(..., heads, N, E)``."""
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


class _GridTokens(torch.autograd.Function):
    """``turns_t (sum_j amplitudes_tcj parts_cj + coefficients_tc @ rows_t)`` with few temporaries of its size.

    Plain autograd would keep or build several tensors as large as all keys and values, and this block's time
    is memory traffic. On a CPU it goes window by window, so that the work stays in the cache.
    """

    @staticmethod
    def forward(
        ctx: Any, parts: Tensor, amplitudes: Tensor, rows: Tensor, coefficients: Tensor, turns: Tensor
    ) -> Tensor:
        ctx.save_for_backward(parts, amplitudes, rows, coefficients, turns)
        (B, H, num_parts, C, E), T = parts.shape, rows.shape[1]
        out = rows.new_empty(B, H, T, C, E)
        for window in _window_slices(B, out.device):
            into, amplitude = out[window], amplitudes[window].unsqueeze(1)  # (b, 1, T, C, J)
            torch.matmul(coefficients[window].unsqueeze(1), rows, out=into)
            for j in range(num_parts):
                into.addcmul_(parts[window, :, j].unsqueeze(2), amplitude[..., j, None])
            _complex(into).mul_(_turns_of(window, turns))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        parts, amplitudes, rows, coefficients, turns = ctx.saved_tensors
        grad_parts, grad_amplitudes = torch.empty_like(parts), torch.empty_like(amplitudes)
        grad_rows, grad_coefficients = torch.zeros_like(rows), torch.empty_like(coefficients)
        for window in _window_slices(len(grad), grad.device):
            g = _complex(grad[window].contiguous()) * _turns_of(window, turns).conj()
            g = torch.view_as_real(g).flatten(-2)  # (b, H, T, C, E), rotated back
            grad_rows += (coefficients[window].mT.unsqueeze(1) @ g).sum(0)
            grad_coefficients[window] = (g @ rows.mT).sum(1)
            for j in range(parts.shape[2]):
                amplitude = amplitudes[window, ..., j].unsqueeze(1).unsqueeze(-1)  # (b, 1, T, C, 1)
                grad_parts[window, :, j] = (g * amplitude).sum(2)
                grad_amplitudes[window, ..., j] = (g * parts[window, :, j].unsqueeze(2)).sum((1, -1))
        return grad_parts, grad_amplitudes, grad_rows, grad_coefficients, None


def _complex(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def _turns_of(window: slice, turns: Tensor) -> Tensor:
    return turns[window if len(turns) > 1 else slice(None)][:, None, :, None]  # (1|b, 1, T, 1, E/2)


def _window_slices(batch_size: int, device: torch.device) -> list[slice]:
    step = 1 if device.type == "cpu" else max(1, batch_size)
    return [slice(start, start + step) for start in range(0, batch_size, step)]
