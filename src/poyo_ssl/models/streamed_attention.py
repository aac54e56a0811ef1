"""Cross-attention to a recording whose keys and values exist for a few tokens at a time only.

With the names of `poyo_ssl.models.grid_tokens`, centred so that no mean appears, key (and value) of token (t, c) is ::

    K_tc = turn_t [ r_tc A_c + x_tc r_tc p + r_tc T_t + s ]

Only the first half of each head turns. The other half of a logit therefore needs no sum over tokens and features,

    q . K_tc = q_turning . K_tc,turning + r_tc (q . A_c) + x_tc r_tc (q . p) + r_tc (q . T_t) + q . s,

where ``q . A_c`` exists once per neuron, and the same half of the output is ``(sum_t a_tc r_tc) A_c`` + ...: half the
multiplications of attention remain. The turning half is made, used and dropped slice by slice of windows and times
(a few megabytes), in the forward and again in the backward pass, with the softmax kept up to date as in flash
attention. Logits are in base 2, because 2^x costs half of e^x on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from poyo_ssl.models.dropout import draw_keep_mask
from poyo_ssl.models.grid_tokens import token_statistics
from poyo_ssl.models.token_grid import TokenGrid

SCORES_PER_PIECE = 1 << 20
"""Logits that exist at a time, over windows and heads: 4 MB in float32. Of 0.5 to 24 MB the fastest (docs/log.md)."""

HIDDEN = -1e30
"""Added to the logit of a token that may not be seen; far below any logit, and finite so that nothing is NaN."""

NUM_EXTRA = 4
"""Columns after the turning half: x r, r at the start, r at the end, and what hides (keys) or 1 (values)."""

NUM_FEATURES = 5
"""What the rows of a token are weighted by: x r, r at the start token, r at the end token, 1, what hides."""


def streamed_attention(q: Tensor, grid: TokenGrid, *, norm: nn.LayerNorm, weight: Tensor, dropout: float) -> Tensor:
    """Attend to all tokens of a recording without ever holding all keys or values.

    Parameters
    ----------
    q : Tensor
        ``(B or 1, H, L, E)``, turned by the latents' times.
    grid : TokenGrid
        The recording.
    norm : LayerNorm
        Over the tokens' 2D.
    weight : Tensor
        ``(2 * H * E, 2D)``, bias-free projection to keys above values.
    dropout : float
        Dropout of the attention probabilities.

    Returns
    -------
    Tensor
        ``(B, H, L, E)``, still turned by the tokens' times; zero where a latent may see nothing.

    Examples
    --------
    >>> grid = TokenGrid(
    ...     units=torch.randn(2, 5, 8), types=torch.randn(3, 8), kinds=torch.tensor([1, 0, 2]),
    ...     values=torch.randn(2, 3, 5), value_embedding=torch.randn(1, 1, 8),
    ...     turns=torch.ones(1, 3, 2, dtype=torch.complex64))
    >>> q, weight = torch.randn(1, 1, 6, 4), torch.randn(8, 16)
    >>> streamed_attention(q, grid, norm=nn.LayerNorm(16), weight=weight, dropout=0.0).shape
    torch.Size([2, 1, 6, 4])
    """
    H, E, B, R = q.shape[1], q.shape[-1], len(grid.values), q.shape[-1] // 2
    own, along, type_rows, bias_row = _project(grid, norm, weight)
    with torch.autocast(q.device.type, enabled=False):
        frame_type = grid.types[:1]
        scale = token_statistics(
            grid.units + frame_type,
            (grid.types - frame_type)[grid.kinds],
            grid.values,
            grid.value_embedding,
            norm.eps,
        )[1]  # (B, T, C)
        dtype = scale.dtype
        per_unit = along.shape[:2] != (1, 1)
        shared_row = torch.zeros_like(bias_row) if per_unit else along[0]
        rows = _heads(torch.cat((shared_row, type_rows, bias_row)).to(dtype), 2 * H)  # (2H, 4, E)
        parts = torch.stack((own, along.expand_as(own)) if per_unit else (own,), 1)  # (B, P, C, 2HE)
        parts = _heads(parts.to(dtype), 2 * H)  # (B, P, 2H, C, E)
        q = q.to(dtype) * (math.log2(math.e) / math.sqrt(E))
        of_extra = q[..., R:] @ rows[:H, :3, R:].mT  # (B|1, H, L, 3)
        queries = torch.cat((q[..., :R], of_extra, torch.ones_like(of_extra[..., :1])), -1).expand(B, -1, -1, -1)
        fixed = q[..., R:] @ parts.transpose(0, 1)[:, :, :H, :, R:].mT  # (P, B, H, L, C)
        edges = torch.stack((grid.kinds == 1, grid.kinds == 2)).to(dtype)  # (2, T)
        turned, of_units = StreamedAttention.apply(
            queries.contiguous(),
            fixed.contiguous(),
            parts[..., :R].contiguous(),
            rows[..., :R],
            scale,
            grid.values * scale,
            edges,
            grid.turns[..., : R // 2],
            grid.unit_mask,
            grid.time_mask,
            dropout,
        )  # (B, H, L, R + 4), (P, B, H, L, C)
        still = (of_units @ parts.transpose(0, 1)[:, :, H:, :, R:]).sum(0) + turned[..., R:] @ rows[H:, :, R:]
        return torch.cat((turned[..., :R], still), -1)


def _project(grid: TokenGrid, norm: nn.LayerNorm, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return A of frames ``(B, C, 2HE)``, p ``(1 or B, 1 or C, 2HE)``, start's and end's T less a frame's, and s.

    LayerNorm subtracts a token's mean, half of it from each of its halves: so each row gives up its own share.
    """
    D = grid.units.shape[-1]
    gain_unit, gain_value = norm.weight.split(D)
    mean_row = F.linear(norm.weight, weight) / 2  # (2HE,)
    types = torch.cat((grid.types[:1], grid.types[1:] - grid.types[:1]))  # a frame's, and what start and end add
    units = grid.units + types[0]
    own = F.linear(units * gain_unit, weight[:, :D]) - units.mean(-1, keepdim=True) * mean_row
    along = F.linear(grid.value_embedding * gain_value, weight[:, D:])
    along = along - grid.value_embedding.mean(-1, keepdim=True) * mean_row
    type_rows = F.linear(types[1:] * gain_unit, weight[:, :D]) - types[1:].mean(-1, keepdim=True) * mean_row  # (2, 2HE)
    return own, along, type_rows, F.linear(norm.bias, weight).unsqueeze(0)


class StreamedAttention(torch.autograd.Function):
    """The softmax over all tokens; the small products before and after it are left to the caller.

    Sizes: B windows, H heads, L latents, T times, C neurons, R turning features, X = R + `NUM_EXTRA` columns, P = 1,
    or 2 with value embeddings per unit. `apply` takes, in this order:

    - `queries` ``(B, H, L, X)``: turning half of q, then what multiplies the extra columns, the last one 1; scaled
      for logits in base 2. `fixed` ``(P, B, H, L, C)``: q . A_c (and q . p_c) of the other half, scaled alike.
    - `parts` ``(B, P, 2H, C, R)``: turning half of A_c (and p_c), keys above values.
    - `rows` ``(2H, 4, R)``: turning half of p (0 if per unit), of start's and end's type less a frame's, and of s.
    - `scale` and `scaled` ``(B, T, C)``: r and x r.
    - `edges` ``(2, T)``: 1 where a time is the start, the end. `turns` ``(1 or B, T, R / 2)`` complex.
    - `unit_mask` ``(B, C)`` and `time_mask` ``(B, L, T)``, bool or None; `rate` of dropout of the probabilities.

    It returns `turned` ``(B, H, L, X)``, the probabilities' sums over values and their extra columns, and `per_unit`
    ``(P, B, H, L, C)``, their sums of r (and x r) over times.
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        fixed: Tensor,
        parts: Tensor,
        rows: Tensor,
        scale: Tensor,
        scaled: Tensor,
        edges: Tensor,
        turns: Tensor,
        unit_mask: Tensor | None,
        time_mask: Tensor | None,
        rate: float,
    ) -> tuple[Tensor, Tensor]:
        """Return the sums over turning values and over times of r; see the class."""
        tokens = _Tokens(parts, rows, scale, scaled, edges, turns, unit_mask, time_mask)
        turned, per_unit = torch.zeros_like(queries), torch.zeros_like(fixed)
        highest = queries.new_full((*queries.shape[:3], 1), 2 * HIDDEN)
        total = torch.zeros_like(highest)
        keeps: list[Tensor] = []
        for piece in tokens.pieces(queries.shape[2]):
            b = piece.windows
            scores = tokens.logits(piece, queries, fixed)  # (b, H, L, t, C)
            top = torch.maximum(highest[b], scores.amax((-2, -1)).unsqueeze(-1))
            torch.exp2_(scores.sub_(top.unsqueeze(-1)))
            fade = torch.exp2(highest[b] - top)
            highest[b], total[b] = top, total[b] * fade + scores.sum((-2, -1)).unsqueeze(-1)
            if rate:
                keeps.append(draw_keep_mask(tuple(scores.shape), rate, scores.device))
                scores = tokens.buffer("kept", scores.shape).copy_(keeps[-1]).mul_(scores)
            turned[b] = turned[b] * fade + tokens.sum_values(piece, scores)
            for j, amplitude in enumerate(tokens.amplitudes(piece)):
                product = torch.mul(scores, amplitude, out=tokens.buffer("product", scores.shape))
                per_unit[j, b] = per_unit[j, b] * fade + product.sum(-2)
        sees = highest > HIDDEN / 2
        weight = torch.where(sees, 1 / (total * (1 - rate)), 0)
        turned *= weight
        per_unit *= weight
        # A probability is 2^(logit - level); a latent that sees nothing has none.
        level = torch.where(sees, highest + total.log2(), math.inf)
        ctx.save_for_backward(
            queries, fixed, parts, rows, scale, scaled, edges, turns, unit_mask, time_mask, level, turned, per_unit
        )
        ctx.rate, ctx.keeps = rate, keeps
        return turned, per_unit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_turned: Tensor, grad_per_unit: Tensor) -> tuple[Tensor | None, ...]:
        """Return a gradient for each input of `forward` that has one."""
        queries, fixed, *of_tokens, level, turned, per_unit = ctx.saved_tensors
        tokens = _Tokens(*of_tokens)
        delta = (grad_turned * turned).sum(-1, keepdim=True) + (grad_per_unit * per_unit).sum((0, -1)).unsqueeze(-1)
        above = (grad_turned / (1 - ctx.rate)).contiguous()
        above_units = (grad_per_unit / (1 - ctx.rate)).contiguous()
        # Logits are in base 2: their gradient carries ln 2, put on the small factors.
        base, base_units, delta = (x * math.log(2) for x in (above, above_units, delta))
        grad_queries, grad_fixed = torch.zeros_like(queries), torch.zeros_like(fixed)
        for number, piece in enumerate(tokens.pieces(queries.shape[2])):
            b = piece.windows
            chances = tokens.logits(piece, queries, fixed)  # (b, H, L, t, C)
            torch.exp2_(chances.sub_(level[b].unsqueeze(-1)))
            kept = chances
            if ctx.rate:
                kept = tokens.buffer("kept", chances.shape).copy_(ctx.keeps[number]).mul_(chances)
            pull = tokens.value_products(piece, base, base_units)  # (b, H, L, t, C)
            tokens.backward_values(piece, kept, above)
            pull.mul_(kept).addcmul_(chances, delta[b].unsqueeze(-1), value=-1)  # the gradient of a softmax
            grad_queries[b] += tokens.sum_keys(piece, pull)
            tokens.backward_keys(piece, pull, queries)
            tokens.backward_amplitudes(piece, (kept, above_units), (pull, fixed))
            for j, amplitude in enumerate(tokens.amplitudes(piece)):
                grad_fixed[j, b] += torch.mul(pull, amplitude, out=tokens.buffer("product", pull.shape)).sum(-2)
        return grad_queries, grad_fixed, *tokens.gradients(), None, None, None, None, None


@dataclass(frozen=True)
class _Piece:
    """A few windows at a few times."""

    windows: slice
    times: slice


class _Tokens:
    """Turning halves of keys and values of one piece at a time, and the gradients of what they are made of."""

    def __init__(
        self,
        parts: Tensor,
        rows: Tensor,
        scale: Tensor,
        scaled: Tensor,
        edges: Tensor,
        turns: Tensor,
        unit_mask: Tensor | None,
        time_mask: Tensor | None,
    ) -> None:
        self.heads, self.turning = rows.shape[0] // 2, rows.shape[-1]
        self.halves = parts.chunk(2, dim=2)  # keys, values: (B, P, H, C, R)
        self.scale, self.scaled, self.edges, self.turns, self.time_mask = scale, scaled, edges, turns, time_mask
        hides = torch.zeros_like(scale[:, 0]) if unit_mask is None else _hiding(unit_mask, scale)  # (B, C)
        # (B, T, C, 5): what the rows and the extra columns are weighted by.
        at_edges = scale.unsqueeze(-1) * edges.T.unsqueeze(1)  # (B, T, C, 2)
        rest = torch.stack((torch.ones_like(hides), hides), -1).unsqueeze(1).expand(*scale.shape, 2)
        self.features = torch.cat((scaled.unsqueeze(-1), at_edges, rest), -1)
        self.mixers = [_mixer(half, last) for half, last in zip(rows.chunk(2), (4, 3), strict=True)]  # (H, 5, X)
        self.buffers: dict[str, Tensor] = {}
        self.grad_parts = torch.zeros_like(parts)
        self.grad_rows = torch.zeros_like(rows)
        self.grad_amplitudes = scale.new_zeros(parts.shape[1], *scale.shape)
        self.grad_features = scale.new_zeros(*scale.shape, 3)

    def pieces(self, num_latents: int) -> Iterator[_Piece]:
        """Yield whole windows if several fit, else parts of one window's times."""
        B, T, C = self.scale.shape
        per_time = self.heads * num_latents * C
        times = min(T, max(1, SCORES_PER_PIECE // per_time))
        windows = max(1, SCORES_PER_PIECE // (per_time * T)) if times == T else 1
        for b in range(0, B, windows):
            for t in range(0, T, times):
                yield _Piece(slice(b, min(b + windows, B)), slice(t, min(t + times, T)))

    def buffer(self, name: str, shape: torch.Size | tuple[int, ...]) -> Tensor:
        """Return memory that every piece uses again."""
        size = math.prod(shape)
        if name not in self.buffers or len(self.buffers[name]) < size:
            self.buffers[name] = self.scale.new_empty(size)
        return self.buffers[name][:size].view(shape)

    def amplitudes(self, piece: _Piece) -> list[Tensor]:
        """Return r, and with parts per unit x r, as ``(b, 1, 1, t, C)``."""
        return [
            a[piece.windows, None, None, piece.times] for a in (self.scale, self.scaled)[: len(self.grad_amplitudes)]
        ]

    def logits(self, piece: _Piece, queries: Tensor, fixed: Tensor) -> Tensor:
        """Return ``(b, H, L, t, C)``, hidden ones far below any other."""
        scores = self._products(piece, self._tokens(piece, 0), queries, fixed, "scores")
        if self.time_mask is not None:
            scores += _hiding(self.time_mask[piece.windows, None, :, piece.times, None], scores)
        return scores

    def value_products(self, piece: _Piece, above: Tensor, above_units: Tensor) -> Tensor:
        """Return the gradient of every kept probability, ``(b, H, L, t, C)``, times what `above` is scaled by."""
        return self._products(piece, self._tokens(piece, 1), above, above_units, "pull")

    def sum_values(self, piece: _Piece, weights: Tensor) -> Tensor:
        """Return ``(b, H, L, X)``: `weights` times the values."""
        return _flat(weights).bmm(self._tokens(piece, 1).flatten(0, 1)).unflatten(0, weights.shape[:2])

    def sum_keys(self, piece: _Piece, weights: Tensor) -> Tensor:
        """Return ``(b, H, L, X)``: `weights` times the keys that `logits` made."""
        return _flat(weights).bmm(self._made(piece, 0).flatten(0, 1)).unflatten(0, weights.shape[:2])

    def backward_values(self, piece: _Piece, weights: Tensor, above: Tensor) -> None:
        """Take up the gradient of the values, ``weights^T above``."""
        self._backward(piece, 1, weights, above)

    def backward_keys(self, piece: _Piece, weights: Tensor, queries: Tensor) -> None:
        """Take up the gradient of the keys, ``weights^T queries``."""
        self._backward(piece, 0, weights, queries)

    def backward_amplitudes(self, piece: _Piece, *pairs: tuple[Tensor, Tensor]) -> None:
        """Take up the gradient of r (and x r) from the half that does not turn: sums of weights times `fixed`."""
        (first, of_first), (second, of_second) = pairs
        for j, grad in enumerate(self.grad_amplitudes):
            product = torch.mul(
                first, of_first[j, piece.windows].unsqueeze(-2), out=self.buffer("product", first.shape)
            )
            product.addcmul_(second, of_second[j, piece.windows].unsqueeze(-2))
            grad[piece.windows, piece.times] += product.sum((1, 2))

    def gradients(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the gradients of `parts`, `rows`, `scale` and `scaled`."""
        grad_scale = self.grad_amplitudes[0] + (self.grad_features[..., 1:] * self.edges.T.unsqueeze(1)).sum(-1)
        grad_scaled = self.grad_features[..., 0]
        if len(self.grad_amplitudes) > 1:
            grad_scaled = grad_scaled + self.grad_amplitudes[1]
        return self.grad_parts, self.grad_rows, grad_scale, grad_scaled

    def _made(self, piece: _Piece, half: int) -> Tensor:
        B, T, C = self.scale[piece.windows, piece.times].shape
        return self.buffer(f"tokens {half}", (B, self.heads, T * C, self.turning + NUM_EXTRA))

    def _tokens(self, piece: _Piece, half: int) -> Tensor:
        """Make the keys (0) or values (1): ``(b, H, t C, X)``."""
        out, features = self._made(piece, half), self.features[piece.windows, piece.times].flatten(1, 2)
        torch.matmul(features.unsqueeze(1), self.mixers[half], out=out)
        turning = out.unflatten(2, (-1, self.scale.shape[-1]))[..., : self.turning]  # (b, H, t, C, R)
        for amplitude, part in zip(self.amplitudes(piece), self.halves[half][piece.windows].unbind(1), strict=True):
            turning.addcmul_(amplitude.squeeze(1).unsqueeze(-1), part.unsqueeze(2))
        _complex(turning).mul_(self._turns(piece))
        return out

    def _turns(self, piece: _Piece) -> Tensor:
        windows = piece.windows if len(self.turns) > 1 else slice(None)
        return self.turns[windows, None, piece.times, None]  # (1|b, 1, t, 1, R/2)

    def _products(self, piece: _Piece, tokens: Tensor, left: Tensor, of_units: Tensor, name: str) -> Tensor:
        left = left[piece.windows]
        out = self.buffer(name, (*left.shape[:3], tokens.shape[2]))
        torch.bmm(left.flatten(0, 1), tokens.flatten(0, 1).mT, out=out.flatten(0, 1))
        out = out.unflatten(-1, (-1, self.scale.shape[-1]))  # (b, H, L, t, C)
        for amplitude, part in zip(self.amplitudes(piece), of_units[:, piece.windows], strict=True):
            out.addcmul_(amplitude, part.unsqueeze(-2))
        return out

    def _backward(self, piece: _Piece, half: int, weights: Tensor, left: Tensor) -> None:
        b, t, H = piece.windows, piece.times, self.heads
        made = self._made(piece, half)
        grad = self.buffer("grad", made.shape)
        torch.bmm(_flat(weights).mT, left[b].flatten(0, 1), out=grad.flatten(0, 1))
        turning, free = (x.unflatten(2, (-1, self.scale.shape[-1]))[..., : self.turning] for x in (grad, made))
        _complex(turning).mul_(self._turns(piece).conj())
        features = self.features[b, t].flatten(1, 2).unsqueeze(1)  # (b, 1, t C, 5)
        of_half = slice(half * H, (half + 1) * H)
        self.grad_rows[of_half] += (features.mT @ grad).sum(0)[:, :4, : self.turning]
        of_features = (grad @ self.mixers[half][:, :3].mT).sum(1)  # (b, t C, 3)
        self.grad_features[b, t] += of_features.unflatten(1, (-1, self.scale.shape[-1]))
        for j, amplitude in enumerate(self.amplitudes(piece)):
            part = self.halves[half][b, j].unsqueeze(2)  # (b, H, 1, C, R)
            self.grad_amplitudes[j, b, t] += torch.mul(turning, part, out=free).sum((1, -1))
            self.grad_parts[b, j, of_half] += torch.mul(turning, amplitude.squeeze(1).unsqueeze(-1), out=free).sum(2)


def _mixer(rows: Tensor, last: int) -> Tensor:
    """Return ``(H, 5, X)``, what features are multiplied by; feature `last` fills the last extra column."""
    mixer = rows.new_zeros(len(rows), NUM_FEATURES, rows.shape[-1] + NUM_EXTRA)
    mixer[:, :4, : rows.shape[-1]] = rows
    for feature, column in ((0, 0), (1, 1), (2, 2), (last, 3)):
        mixer[:, feature, rows.shape[-1] + column] = 1
    return mixer


def _hiding(mask: Tensor, like: Tensor) -> Tensor:
    return like.new_zeros(()).where(mask, HIDDEN)


def _flat(weights: Tensor) -> Tensor:
    """Return ``(b, H, L, t, C)`` as ``(b H, L, t C)``."""
    return weights.flatten(-2).flatten(0, 1)


def _complex(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def _heads(x: Tensor, heads: int) -> Tensor:
    """Return ``(..., N, heads * E)`` as ``(..., heads, N, E)``."""
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)
