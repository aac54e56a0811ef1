"""Cross-attention to a recording whose keys and values exist for a few tokens at a time only.

With the names of `poyo_ssl.models.token_grid`, centred so that no mean appears, key (and value) of token (t, c) is ::

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

from poyo_ssl.models.token_grid import TokenGrid, by_head, token_statistics

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
    """`torch.nn.Dropout` with `draw_keep_mask` on a CPU; elsewhere torch's own."""

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
    """Return `x` with values zeroed at `rate` and the rest scaled."""
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


SCORES_PER_PIECE = 1 << 18
"""Logits that exist at a time for each thread: 1 MB in float32 (docs/log.md)."""

HIDDEN = -1e30
"""Added to the logit of a token that may not be seen; far below any logit, and finite so that nothing is NaN."""

MAX_RISE = 60.0
"""How far a logit in base 2 may lie above the level that 2^x is taken from; float32 ends at 127."""

LN_2 = math.log(2)

NUM_EXTRA = 4
"""Columns after the turning half: x r, r at the start, r at the end, and what hides (keys) or 1 (values)."""

NUM_FEATURES = 5
"""What the rows of a token are weighted by: x r, r at the start token, r at the end token, 1, what hides."""


def streamed_attention(q: Tensor, grid: TokenGrid, *, norm: nn.LayerNorm, weight: Tensor, dropout: float) -> Tensor:
    """Attend to all tokens of a recording without ever holding all keys or values."""
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
        rows = by_head(torch.cat((shared_row, type_rows, bias_row)).to(dtype), 2 * H)  # (2H, 4, E)
        parts = torch.stack((own, along.expand_as(own)) if per_unit else (own,), 1)  # (B, P, C, 2HE)
        parts = by_head(parts.to(dtype), 2 * H)  # (B, P, 2H, C, E)
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

    Inside, the heads of all windows are N = B H problems of their own; a piece is some times of n of them.
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
        q, still = queries.flatten(0, 1), fixed.flatten(1, 2)  # (N, L, X), (P, N, L, C)
        tokens = _Tokens(q.shape[1], parts, rows, scale, scaled, edges, turns, unit_mask, time_mask)
        turned, per_unit = torch.zeros_like(q), torch.zeros_like(still)
        level = q.new_full((*q.shape[:2], 1), 2 * HIDDEN)
        total = torch.zeros_like(level)
        keeps: list[Tensor] = []
        for piece in tokens.pieces():
            n, views = piece.problems, piece.views
            scores = tokens.logits(piece, q, still)  # (n, L, t C)
            top = scores.amax(-1, keepdim=True)
            if bool((top - level[n] > MAX_RISE).any()):  # never after the first piece, unless a logit is far larger
                risen = torch.maximum(level[n], top)
                fade = torch.exp2(level[n] - risen)
                level[n] = risen
                for sums in (total[n], turned[n], *per_unit[:, n]):
                    sums.mul_(fade)
            scores.sub_(level[n]).exp2_()
            total[n] += scores.sum(-1, keepdim=True)
            if rate:
                keeps.append(tokens.draw(piece, rate))
                scores = views.kept.copy_(keeps[-1]).mul_(scores)
            turned[n].baddbmm_(scores, tokens.make(piece, 1))
            tokens.sum_times(piece, scores, per_unit, views.scores if rate else views.kept)
        sees = level > HIDDEN / 2
        weight = torch.where(sees, 1 / (total * (1 - rate)), 0)
        turned *= weight
        per_unit *= weight
        # A probability is 2^(logit - level); a latent that sees nothing has none.
        level = torch.where(sees, level + total.log2(), math.inf)
        ctx.save_for_backward(
            queries, fixed, parts, rows, scale, scaled, edges, turns, unit_mask, time_mask, level, turned, per_unit
        )
        ctx.rate, ctx.keeps = rate, keeps
        return turned.view_as(queries), per_unit.view_as(fixed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_turned: Tensor, grad_per_unit: Tensor) -> tuple[Tensor | None, ...]:
        """Return a gradient for each input of `forward` that has one."""
        queries, fixed, *of_tokens, level, turned, per_unit = ctx.saved_tensors
        q, still = queries.flatten(0, 1), fixed.flatten(1, 2)  # (N, L, X), (P, N, L, C)
        tokens = _Tokens(q.shape[1], *of_tokens)
        kept_share = 1 - ctx.rate
        above, above_units = (grad_turned / kept_share).flatten(0, 1), (grad_per_unit / kept_share).flatten(1, 2)
        delta = (above * turned).sum(-1, keepdim=True) + (above_units * per_unit).sum((0, -1)).unsqueeze(-1)
        # Logits are in base 2: their gradient carries ln 2, put on the small factors.
        base, base_units, delta = above * LN_2, above_units * LN_2, delta * (LN_2 * kept_share)
        # The gradient of a softmax: its probability times (pull - delta). The values' last column is 1 and subtracts
        # delta, unless dropout comes between.
        if not ctx.rate:
            base[..., -1:] -= delta
        grad_queries, grad_fixed = torch.zeros_like(q), torch.zeros_like(still)
        for number, piece in enumerate(tokens.pieces()):
            n, views = piece.problems, piece.views
            chances = tokens.logits(piece, q, still).sub_(level[n]).exp2_()  # (n, L, t C)
            kept = views.kept.copy_(ctx.keeps[number]).mul_(chances) if ctx.rate else chances
            pull = tokens.products(piece, tokens.make(piece, 1), base, base_units, views.pull)  # (n, L, t C)
            tokens.backward(piece, 1, kept, above)
            pull.mul_(kept)
            if ctx.rate:
                pull.addcmul_(chances, delta[n], value=-1)
            grad_queries[n].baddbmm_(pull, views.tokens[0])
            tokens.backward(piece, 0, pull, q)
            spare = views.scores if ctx.rate else views.kept
            tokens.backward_amplitudes(piece, (kept, above_units), (pull, still), spare)
            tokens.sum_times(piece, pull, grad_fixed, spare)
        gradients = tokens.gradients()
        return grad_queries.view_as(queries), grad_fixed.view_as(fixed), *gradients, None, None, None, None, None


class _Views:
    """The memory that pieces of one shape use in turns: logits, tokens and what becomes of them."""

    def __init__(self, memory: dict[str, Tensor], like: Tensor, n: int, t: int, L: int, C: int, X: int) -> None:
        def take(name: str, *shape: int) -> Tensor:
            size = math.prod(shape)
            if name not in memory or len(memory[name]) < size:
                memory[name] = like.new_empty(size)
            return memory[name][:size].view(shape)

        R = X - NUM_EXTRA
        self.times = t
        self.scores, self.kept, self.pull = (take(name, n, L, t * C) for name in ("scores", "kept", "pull"))
        self.tokens = [take(name, n, t * C, X) for name in ("keys", "values")]
        self.grad = take("grad", n, t * C, X)
        self.turning = [x.unflatten(1, (t, C))[..., :R] for x in (*self.tokens, self.grad)]  # (n, t, C, R) each
        self.complex = [torch.view_as_complex(x.unflatten(-1, (-1, 2))) for x in self.turning]

    def grid(self, x: Tensor) -> Tensor:
        """Return ``(n, L, t C)`` as ``(n, L, t, C)``."""
        return x.view(*x.shape[:2], self.times, -1)


@dataclass(frozen=True)
class _Piece:
    """Some problems at some times: its memory, and what it needs of everything (`_Tokens` says what each is).

    Sizes: n problems, t times; amplitudes ``(n, t, C)``, features ``(n, t C, 5)``, turns ``(1 or n, t, 1, R / 2)``.
    """

    problems: slice
    views: _Views
    amplitudes: list[Tensor]
    features: Tensor
    turns: Tensor
    turns_back: Tensor
    hiding: Tensor | None
    grad_amplitudes: list[Tensor]
    grad_features: Tensor


class _Tokens:
    """Turning halves of keys and values of one piece at a time, and the gradients of what they are made of."""

    def __init__(
        self,
        num_latents: int,
        parts: Tensor,
        rows: Tensor,
        scale: Tensor,
        scaled: Tensor,
        edges: Tensor,
        turns: Tensor,
        unit_mask: Tensor | None,
        time_mask: Tensor | None,
    ) -> None:
        (B, P, _, C, _), T, H = parts.shape, scale.shape[1], rows.shape[0] // 2
        self.shape, self.num_latents, self.edges = (B, H, T, C), num_latents, edges
        # Of keys, of values: P times (N, 1, C, R).
        self.parts = [[x.flatten(0, 1).unsqueeze(1) for x in half.unbind(1)] for half in parts.chunk(2, dim=2)]
        hides = torch.zeros_like(scale[:, 0]) if unit_mask is None else _hiding(unit_mask, scale)  # (B, C)
        # What the rows and the extra columns are weighted by.
        at_edges = scale.unsqueeze(-1) * edges.T.unsqueeze(1)  # (B, T, C, 2)
        rest = torch.stack((torch.ones_like(hides), hides), -1).unsqueeze(1).expand(*scale.shape, 2)
        features = torch.cat((scaled.unsqueeze(-1), at_edges, rest), -1).flatten(1, 2)  # (B, T C, 5)
        self.features = features.repeat_interleave(H, 0)  # (N, T C, 5)
        self.mixers = [
            _mixer(half, last).repeat(B, 1, 1) for half, last in zip(rows.chunk(2), (4, 3), strict=True)
        ]  # (N, 5, X)
        self.amplitudes = [x.repeat_interleave(H, 0) for x in (scale, scaled)[:P]]  # r, x r: (N, T, C)
        turns = (turns.repeat_interleave(H, 0) if len(turns) > 1 else turns).unsqueeze(2)  # (1|N, T, 1, R/2)
        self.turns, self.turns_back = turns, turns.conj().resolve_conj()
        self.hiding: Tensor | None = None  # (N, L, T, 1)
        if time_mask is not None:
            self.hiding = _hiding(time_mask, scale).repeat_interleave(H, 0).unsqueeze(-1)
        self.grad_parts = [[torch.zeros_like(part[:, 0]) for part in half] for half in self.parts]  # (N, C, R)
        self.grad_mixers = [torch.zeros_like(half) for half in self.mixers]
        self.grad_amplitudes = [torch.zeros_like(x) for x in self.amplitudes]
        self.grad_features = features.new_zeros(*self.features.shape[:2], 3)
        self.keep = torch.empty(0)

    def pieces(self) -> Iterator[_Piece]:
        """Yield several problems if all their times fit, else some of the times of as many as there are threads."""
        B, H, T, C = self.shape
        per_time = self.num_latents * C
        times = min(T, max(1, SCORES_PER_PIECE // per_time))
        # A problem for each core, so that products are shared out whole.
        problems = max(torch.get_num_threads(), SCORES_PER_PIECE // (per_time * T))
        memory: dict[str, Tensor] = {}
        views: dict[tuple[int, int], _Views] = {}
        for first in range(0, B * H, problems):
            n = min(problems, B * H - first)
            for start in range(0, T, times):
                t = min(times, T - start)
                if (n, t) not in views:
                    views[n, t] = _Views(memory, self.features, n, t, self.num_latents, C, self.mixers[0].shape[-1])
                yield self._piece(slice(first, first + n), slice(start, start + t), views[n, t])

    def _piece(self, n: slice, t: slice, views: _Views) -> _Piece:
        C, own = self.shape[-1], n if len(self.turns) > 1 else slice(None)
        return _Piece(
            n,
            views,
            amplitudes=[amplitude[n, t] for amplitude in self.amplitudes],
            features=self.features[n, t.start * C : t.stop * C],
            turns=self.turns[own, t],
            turns_back=self.turns_back[own, t],
            hiding=None if self.hiding is None else self.hiding[n, :, t],
            grad_amplitudes=[grad[n, t] for grad in self.grad_amplitudes],
            grad_features=self.grad_features[n, t.start * C : t.stop * C],
        )

    def draw(self, piece: _Piece, rate: float) -> Tensor:
        """Return which probabilities stay, ``(n, L, t C)``; drawn for all times of a problem at once."""
        scores, (_, _, T, C) = piece.views.scores, self.shape
        if not len(self.keep):
            self.keep = draw_keep_mask((len(scores) * self.num_latents * T * C,), rate, scores.device)
        now, self.keep = self.keep[: scores.numel()], self.keep[scores.numel() :]
        return now.view(scores.shape)

    def logits(self, piece: _Piece, queries: Tensor, fixed: Tensor) -> Tensor:
        """Return ``(n, L, t C)``, hidden ones far below any other."""
        scores = self.products(piece, self.make(piece, 0), queries, fixed, piece.views.scores)
        if piece.hiding is not None:
            piece.views.grid(scores).add_(piece.hiding)
        return scores

    def make(self, piece: _Piece, half: int) -> Tensor:
        """Make the keys (0) or values (1): ``(n, t C, X)``."""
        n, views = piece.problems, piece.views
        made, turning = views.tokens[half], views.turning[half]
        torch.bmm(piece.features, self.mixers[half][n], out=made)
        for amplitude, part in zip(piece.amplitudes, self.parts[half], strict=True):
            turning.addcmul_(amplitude.unsqueeze(-1), part[n])
        views.complex[half].mul_(piece.turns)
        return made

    def products(self, piece: _Piece, tokens: Tensor, left: Tensor, of_units: Tensor, into: Tensor) -> Tensor:
        """Return ``(n, L, t C)``: `left` times `tokens`, and r times what each unit adds."""
        n = piece.problems
        torch.bmm(left[n], tokens.mT, out=into)
        grid = piece.views.grid(into)
        for amplitude, part in zip(piece.amplitudes, of_units, strict=True):
            grid.addcmul_(amplitude.unsqueeze(1), part[n].unsqueeze(2))
        return into

    def sum_times(self, piece: _Piece, weights: Tensor, into: Tensor, spare: Tensor) -> None:
        """Add the sums over times of `weights` times r (and x r) to `into` ``(P, N, L, C)``, by way of `spare`."""
        grid = piece.views.grid
        for amplitude, sums in zip(piece.amplitudes, into, strict=True):
            product = torch.mul(grid(weights), amplitude.unsqueeze(1), out=grid(spare))
            sums[piece.problems].add_(product.sum(2))

    def backward(self, piece: _Piece, half: int, weights: Tensor, left: Tensor) -> None:
        """Take up the gradient of keys (0) or values (1), ``weights^T left``; their memory is used for it."""
        n, views = piece.problems, piece.views
        grad, turning, free = views.grad, views.turning[2], views.turning[half]
        torch.bmm(weights.mT, left[n], out=grad)
        views.complex[2].mul_(piece.turns_back)
        self.grad_mixers[half][n].baddbmm_(piece.features.mT, grad)
        piece.grad_features.baddbmm_(grad, self.mixers[half][n, :3].mT)
        for j, amplitude in enumerate(piece.amplitudes):
            piece.grad_amplitudes[j].add_(torch.mul(turning, self.parts[half][j][n], out=free).sum(-1))
            self.grad_parts[half][j][n].add_(torch.mul(turning, amplitude.unsqueeze(-1), out=free).sum(1))

    def backward_amplitudes(
        self, piece: _Piece, values: tuple[Tensor, Tensor], keys: tuple[Tensor, Tensor], spare: Tensor
    ) -> None:
        """Take up the gradient of r (and x r) from the half that does not turn: sums of weights times `fixed`."""
        n, grid = piece.problems, piece.views.grid
        for j, total in enumerate(piece.grad_amplitudes):
            product = torch.mul(grid(values[0]), values[1][j, n].unsqueeze(2), out=grid(spare))
            total.add_(product.addcmul_(grid(keys[0]), keys[1][j, n].unsqueeze(2)).sum(1))

    def gradients(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the gradients of `parts`, `rows`, `scale` and `scaled`."""
        B, H, T, C = self.shape
        parts = torch.cat([torch.stack(half, 1).unflatten(0, (B, H)).transpose(1, 2) for half in self.grad_parts], 2)
        rows = torch.cat([half.unflatten(0, (B, H)).sum(0)[:, :4, :-NUM_EXTRA] for half in self.grad_mixers])
        features = self.grad_features.view(B, H, T, C, 3).sum(1)  # (B, T, C, 3)
        amplitudes = [x.unflatten(0, (B, H)).sum(1) for x in self.grad_amplitudes]  # (B, T, C) each
        scale = amplitudes[0] + (features[..., 1:] * self.edges.T.unsqueeze(1)).sum(-1)
        scaled = features[..., 0] + amplitudes[1] if len(amplitudes) > 1 else features[..., 0]
        return parts, rows, scale, scaled


def _mixer(rows: Tensor, last: int) -> Tensor:
    """Return ``(H, 5, X)``, what features are multiplied by; feature `last` fills the last extra column."""
    mixer = rows.new_zeros(len(rows), NUM_FEATURES, rows.shape[-1] + NUM_EXTRA)
    mixer[:, :4, : rows.shape[-1]] = rows
    for feature, column in ((0, 0), (1, 1), (2, 2), (last, 3)):
        mixer[:, feature, rows.shape[-1] + column] = 1
    return mixer


def _hiding(mask: Tensor, like: Tensor) -> Tensor:
    return like.new_zeros(()).where(mask, HIDDEN)
