"""The model of a run, one imaging frame at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poyo_ssl.data.windows import Batch
from poyo_ssl.models.pieces import (
    EncoderPieces,
    FeedForwardPieces,
    NormedProjection,
    ProcessorPieces,
    UpBlockPieces,
    encoder_pieces,
    processor_pieces,
    readout_pieces,
    up_block_pieces,
)
from poyo_ssl.models.poyo_ssl import NEGATIVE_SLOPE, FrameDecoder, Latents, PoyoSSL, Readout, rotate

SAFE_RANGE = 2.0**60
"""A softmax denominator outside ``1 / SAFE_RANGE`` to ``SAFE_RANGE`` asks for another reference."""

CLOCK_TOLERANCE_S = 1e-7
"""Times that differ by less are the same: a batch keeps them in float32, which resolves 6e-8 s."""

GROUP_BYTES = 1 << 19
"""Token times are taken together while their attention weights need no more: the second-level cache of a core."""

NUM_SUMS = 4
"""Sums over neurons beside the values: of x r, m r, r and 1, each weighted by attention."""


@dataclass(frozen=True)
class _Group:
    """Token times of a window that are computed together: n times, and l latents that see them.

    `logits` is a view of the scratch memory, the others are of what is kept for slots and places.
    """

    is_edge: bool
    seen: slice  # the latents
    logits: Tensor  # (n, H, l, C)
    flat_logits: Tensor  # (n H, l, C)
    table: Tensor  # (n, H, l, C)
    value_table: Tensor | None
    scale: Tensor  # (n, 1, 1, C)
    scaled_values: Tensor  # (n, 1, 1, C)
    present: Tensor  # (n, 1, 1, C)
    of_rows: Tensor  # (n H, l, 4)
    rows: Tensor  # (n H, 4, C)
    columns: Tensor  # (n H, C, E/2 + 4)
    sums: Tensor  # (n H, l, E/2 + 4)
    over_time: Tensor  # (H, l, C)
    over_time_values: Tensor  # (H, l, C)
    times: list[tuple[Tensor, Tensor, Tensor]]  # logits (H, l, C), scale and scaled values (1, 1, C) of each time


@dataclass(frozen=True)
class _Plan:
    """How one window is computed: edges first, for they are kept as long as they are the same.

    Made anew for every window: of places with a stride, `_Group.rows` and `_Group.columns` are copies, not views.
    """

    places: Tensor
    edges: list[_Group]
    frames: list[_Group]


@dataclass(frozen=True)
class _Place:
    """Views of what is kept for one place."""

    scale: Tensor  # (C,)
    scaled_values: Tensor  # (C,)
    rows: Tensor  # (H, 3, C), without the row of ones
    values: Tensor  # (H, C, E/2)
    sums: Tensor  # (H, C, 4)
    present: Tensor  # (C,)


class SlidingCrossAttention:
    """Cross-attention of a model's latents to the last tokens of one recording.

    Tokens are put in numbered places, a window is a list of places and their times; the result is that of
    `poyo_ssl.models.poyo_ssl.GridCrossAttention` for the same tokens. Tokens that are absent take no part; of a
    neuron that is absent throughout a window the start and end tokens are left out too, as under a unit mask.

    Shapes: H heads, E width of a head, L latents, C neurons.

    Parameters
    ----------
    model : PoyoSSL
        In evaluation mode; its parameters are read once.
    unit_index : Tensor
        ``(C,)`` long, rows of the unit vocabulary.
    num_places : int
        Tokens times that can be kept.
    duration_s : float
        Length of the window.

    Examples
    --------
    >>> from poyo_ssl.config import ModelConfig
    >>> model = PoyoSSL(ModelConfig(dim=8, dim_head=8), num_units=3, num_sessions=1, readouts={}).eval()
    >>> stream = SlidingCrossAttention(model, torch.tensor([1, 2, 3]), num_places=2, duration_s=0.1)
    >>> for place in (0, 1):
    ...     stream.put(place, torch.randn(3), torch.tensor([True, True, False]))
    >>> stream.attend([0, 1], torch.tensor([0.025, 0.075], dtype=torch.float64)).shape
    torch.Size([16, 8])
    """

    @torch.no_grad()
    def __init__(self, model: PoyoSSL, unit_index: Tensor, *, num_places: int, duration_s: float) -> None:
        pieces = encoder_pieces(model, unit_index, duration_s=duration_s)
        self.heads, self.dim_head = pieces.queries.shape[1:]
        self.dtype, self.latents, self.times_of_latents = pieces.latents.dtype, pieces.latents, pieces.times_of_latents
        self.causal, self.omega, self.to_out = pieces.causal, pieces.omega, pieces.to_out
        self.per_unit = len(pieces.value_embedding) > 1
        self._project(pieces)
        self._prepare_statistics(pieces)
        self.edge_times = torch.tensor([time for _, time in pieces.edges], dtype=torch.float64)
        self.edge_kinds = [kind for kind, _ in pieces.edges]
        self._allocate(num_places)
        self.reference: Tensor | None = None
        self.table_times = self.edge_times[:0]  # of frames
        self.edges_of: Tensor | None = None  # the neurons that have start and end tokens
        self.edges_are_summed = False
        self.table: Tensor | None = None

    def _project(self, pieces: EncoderPieces) -> None:
        """Split the projections and the queries into what turns and what is still."""
        halves = {name: row.permute(1, 2, 0, 3) for name, row in pieces.projections.items()}  # (2, H, rows, E)
        turning = self.dim_head // 2
        self.keys = {name: half[0] for name, half in halves.items()}  # (H, rows, E)
        self.moving = {name: half[1, ..., :turning].contiguous() for name, half in halves.items()}  # (H, rows, E/2)
        self.still = {name: half[1, ..., turning:].contiguous() for name, half in halves.items()}
        queries = pieces.queries.transpose(0, 1) / math.sqrt(self.dim_head)  # (H, L, E)
        self.moving_queries = torch.view_as_complex(queries[..., :turning].unflatten(-1, (-1, 2)).contiguous())
        still_keys, still_queries = {n: k[..., turning:] for n, k in self.keys.items()}, queries[..., turning:]
        self.moving_keys = {n: k[..., :turning].mT.contiguous() for n, k in self.keys.items()}  # (H, E/2, rows)
        self.still_logits = {n: still_queries @ k.mT for n, k in still_keys.items()}  # (H, L, rows)
        self.moving_rows, self.still_rows = self._rows_of(self.moving, dim=-2), self._rows_of(self.still, dim=-2)

    def _prepare_statistics(self, pieces: EncoderPieces) -> None:
        """Write a token's mean and variance as polynomials of its value, for each type and neuron."""
        own, along = pieces.units + pieces.types.unsqueeze(1), pieces.value_embedding  # (3, C, D), (1 or C, D)
        own_mean, along_mean = own.mean(-1), along.mean(-1).expand(len(pieces.units))  # (3, C), (C,)
        along_variance = along.var(-1, correction=0)  # (1 or C,)
        self.mean = own_mean / 2, along_mean / 2  # constant (3, C), linear (C,)
        constant = own.var(-1, correction=0) / 2 + own_mean.square() / 4 + pieces.eps
        quadratic = along_variance / 2 + along_mean.square() / 4
        self.variance = constant, -own_mean * along_mean / 2, quadratic  # (3, C), (3, C), (C,)

    def _allocate(self, num_places: int) -> None:
        num, H, C, L = num_places + len(self.edge_kinds), self.heads, len(self.mean[1]), len(self.latents)
        self.num_places = num_places
        width = self.dim_head // 2 + NUM_SUMS
        zeros = torch.zeros
        self.scale = zeros(num, C, dtype=self.dtype)  # r, 0 where absent
        self.scaled_values = zeros(num, C, dtype=self.dtype)  # x r
        self.rows = zeros(num, H, NUM_SUMS, C, dtype=self.dtype)  # x r, m r, r and 1, for each head
        self.columns = zeros(num, H, C, width, dtype=self.dtype)  # values, x r, m r, r and 1; 0 where absent
        self.rows[:, :, 3] = 1.0
        self.present = zeros(num, C, dtype=torch.bool)
        self.token_sums = zeros(NUM_SUMS, C, dtype=self.dtype)  # those of the token that is put
        turning = self.dim_head // 2
        self.places = [
            _Place(
                scale=self.scale[i],
                scaled_values=self.scaled_values[i],
                rows=self.rows[i, :, :3],
                values=self.columns[i, ..., :turning],
                sums=self.columns[i, ..., turning:],
                present=self.present[i],
            )
            for i in range(num)
        ]
        self.group_size = max(1, GROUP_BYTES // (H * L * C * self.scale.element_size()))
        self.scratch = zeros(min(num, self.group_size) * H * L * C, dtype=self.dtype)
        self.over_time, self.over_time_values = zeros(H, L, C, dtype=self.dtype), zeros(H, L, C, dtype=self.dtype)
        self.edge_over_time = zeros(H, L, C, dtype=self.dtype)
        self.edge_still = zeros(H, L, self.dim_head // 2, dtype=self.dtype)

    def forget(self) -> None:
        """Choose the origin of the logits anew, so that no rounding depends on windows of before."""
        self.reference = None

    @torch.no_grad()
    def put(self, place: int, values: Tensor, present: Tensor) -> None:
        """Work out the tokens of one time.

        Parameters
        ----------
        place : int
            Where they are kept.
        values : Tensor
            ``(C,)``, the model's input.
        present : Tensor
            ``(C,)`` bool; values that are not present are not looked at.
        """
        self._put(place, torch.where(present, values.to(self.dtype), 0.0), present, kind=0)

    def _put(self, place: int, values: Tensor, present: Tensor, *, kind: int) -> None:
        constant, linear, quadratic = self.variance
        variance = torch.addcmul(constant[kind], values, torch.addcmul(linear[kind], values, quadratic))
        sums, kept = self.token_sums, self.places[place]
        scaled_values, scaled_mean, scale, keep = sums.unbind()
        keep.copy_(present)
        torch.mul(variance.rsqrt_(), keep, out=scale)
        torch.mul(values, scale, out=scaled_values)
        torch.mul(torch.addcmul(self.mean[0][kind], values, self.mean[1]), scale, out=scaled_mean)
        kept.scale.copy_(scale)
        kept.scaled_values.copy_(scaled_values)
        kept.rows.copy_(sums[:3])
        kept.sums.copy_(sums.mT)
        kept.present.copy_(present)
        of_rows = sums.mT @ self.moving_rows[kind]  # (H, C, E/2)
        torch.addcmul(of_rows, self.moving["own"], scale.unsqueeze(-1), out=kept.values)
        if self.per_unit:
            kept.values.addcmul_(self.moving["along"], scaled_values.unsqueeze(-1))

    def _tabulate(self, times: Tensor) -> None:
        """Let the queries meet the neurons at every distance between a latent and a token time."""
        self.table_times, times = times, torch.cat((times, self.edge_times))
        if self.table is None or len(self.table) != len(times):
            shape = (len(times), self.heads, len(self.latents))
            self.table = torch.empty(*shape, len(self.mean[1]), dtype=self.dtype)
            self.value_table = torch.empty_like(self.table) if self.per_unit else None
            self.logits_of_rows = torch.empty(*shape, NUM_SUMS, dtype=self.dtype)
            self.sums = torch.zeros(*shape, self.columns.shape[-1], dtype=self.dtype)
            self.complex_sums = torch.view_as_complex(self.sums.unflatten(-1, (-1, 2)))
            self.turned = torch.empty_like(self.complex_sums)
        kinds = [0] * (len(times) - len(self.edge_kinds)) + self.edge_kinds
        distance = (self.times_of_latents - times.unsqueeze(-1)).unsqueeze(-1) * self.omega  # (T, L, E/4)
        turns = torch.polar(torch.ones_like(distance), distance).to(self.moving_queries.dtype)
        rows, still = self._rows_of(self.moving_keys, dim=-1), self._rows_of(self.still_logits, dim=-1)
        for j, kind in enumerate(kinds):
            queries = torch.view_as_real(self.moving_queries * turns[j]).flatten(-2)  # (H, L, E/2)
            torch.baddbmm(self.still_logits["own"], queries, self.moving_keys["own"], out=self.table[j])
            if self.value_table is not None:
                torch.baddbmm(self.still_logits["along"], queries, self.moving_keys["along"], out=self.value_table[j])
            torch.baddbmm(still[kind], queries, rows[kind], out=self.logits_of_rows[j])
        self.base_of_bias = self.logits_of_rows[..., 3].clone()  # (T, H, L)
        if self.reference is not None:
            torch.sub(self.base_of_bias, self.reference, out=self.logits_of_rows[..., 3])
        # The sums beside the values do not turn.
        angle = F.pad(times.unsqueeze(-1) * self.omega, (0, NUM_SUMS // 2))
        turns = torch.polar(torch.ones_like(angle), angle).to(self.moving_queries.dtype)
        self.turns_of_tokens = turns[:, None, None]  # (T, 1, 1, E/4 + 2)
        back = torch.polar(torch.ones(()).to(times), -self.times_of_latents.unsqueeze(-1) * self.omega)
        self.turns_back = back.to(self.moving_queries.dtype)  # (L, E/4)
        # Latents lie in order of time, so those that see a token are the last ones.
        first = torch.searchsorted(self.times_of_latents, times).tolist()
        starts = [0 if not self.causal or kind == 1 else row for row, kind in zip(first, kinds, strict=True)]
        if starts != getattr(self, "first_latent", None):
            self.sums.zero_()
        self.first_latent, self.edges_are_summed = starts, False

    def _rows_of(self, parts: dict[str, Tensor], dim: int) -> list[Tensor]:
        """Return the value, mean, type and bias rows of each token type side by side."""
        # Value embeddings per unit have a table of their own; their place here stays empty.
        along = torch.zeros_like(parts["mean"]) if self.per_unit else parts["along"]
        kinds = parts["types"].split(1, dim=dim)
        return [torch.cat((along, parts["mean"], kind, parts["bias"]), dim=dim).contiguous() for kind in kinds]

    def _plan(self, places: Sequence[int]) -> _Plan:
        groups = self._groups(places)
        return _Plan(
            places=torch.tensor(places),
            edges=[group for group in groups if group.is_edge],
            frames=[group for group in groups if not group.is_edge],
        )

    def _groups(self, places: Sequence[int]) -> list[_Group]:
        """Cut a window into runs of evenly spaced places (the ring's end breaks one) that the same latents see."""
        groups: list[_Group] = []
        start = 0
        for stop in range(1, len(places) + 1):
            if stop < len(places):
                step = places[stop] - places[stop - 1]
                goes_on = (
                    step == (places[start + 1] - places[start])
                    and step > 0
                    and self.first_latent[stop] == self.first_latent[start]
                    and stop - start < self.group_size
                )
                if goes_on:
                    continue
            step = places[start + 1] - places[start] if stop - start > 1 else 1
            groups.append(self._group(slice(start, stop), slice(places[start], places[stop - 1] + 1, step)))
            start = stop
        for i in range(len(self.edge_kinds)):
            place = self.num_places + i
            groups.append(self._group(slice(start + i, start + i + 1), slice(place, place + 1), is_edge=True))
        return [group for group in groups if group.table.numel()]

    def _group(self, slots: slice, places: slice, *, is_edge: bool = False) -> _Group:
        """Collect what the latents that see the tokens of `places` need of them."""
        assert self.table is not None
        seen = slice(self.first_latent[slots.start], None)
        table = self.table[slots, :, seen]
        logits = self.scratch[: table.numel()].view(table.shape)
        scale, scaled_values = self.scale[places, None, None], self.scaled_values[places, None, None]
        over_time = self.edge_over_time if is_edge else self.over_time
        return _Group(
            is_edge=is_edge,
            seen=seen,
            logits=logits,
            flat_logits=logits.flatten(0, 1),
            table=table,
            value_table=None if self.value_table is None else self.value_table[slots, :, seen],
            scale=scale,
            scaled_values=scaled_values,
            present=self.present[places, None, None],
            of_rows=self.logits_of_rows[slots, :, seen].flatten(0, 1),
            rows=self.rows[places].flatten(0, 1),
            columns=self.columns[places].flatten(0, 1),
            sums=self.sums[slots, :, seen].flatten(0, 1),
            over_time=over_time[:, seen],
            over_time_values=self.over_time_values[:, seen],
            times=list(zip(logits, scale, scaled_values, strict=True)),
        )

    def _logits(self, group: _Group) -> Tensor:
        """Return the logits (less the reference) of the latents that see a group: ``(n, H, l, C)``."""
        logits = torch.mul(group.table, group.scale, out=group.logits)
        if group.value_table is not None:
            logits.addcmul_(group.value_table, group.scaled_values)
        group.flat_logits.baddbmm_(group.of_rows, group.rows)
        return logits

    def _gather(self, group: _Group, *, masked: bool) -> None:
        """Add a group's weights to the sums over time, and set its sums over neurons."""
        weights = self._logits(group).exp_()
        if masked:
            weights.masked_fill_(~group.present, 0.0)
        torch.bmm(group.flat_logits, group.columns, out=group.sums)
        for each, scale, _ in group.times:
            group.over_time.addcmul_(each, scale)
        # Values of the start and end tokens are zero.
        if self.per_unit and not group.is_edge:
            for each, _, scaled_values in group.times:
                group.over_time_values.addcmul_(each, scaled_values)

    def _set_reference(self, plan: _Plan) -> None:
        """Take every latent's largest logit as the new origin of its logits."""
        self.logits_of_rows[..., 3] = self.base_of_bias
        highest = torch.full(self.over_time.shape[:2], -math.inf, dtype=self.dtype)
        for group in [*plan.edges, *plan.frames]:
            seen = self._logits(group).masked_fill(~group.present, -math.inf).amax(dim=(0, 3))
            torch.maximum(highest[:, group.seen], seen, out=highest[:, group.seen])
        self.reference = torch.where(highest.isfinite(), highest, 0.0)
        torch.sub(self.base_of_bias, self.reference, out=self.logits_of_rows[..., 3])
        self.edges_are_summed = False

    def _sum(self, plan: _Plan, *, masked: bool = False) -> Tensor:
        """Go over all slots; return the sums over all tokens, turned, ``(H, L, E/4 + 2)`` complex.

        The last imaginary parts are the denominators. What is absent has scale and columns of zero, and so no share;
        `masked` sets its weights to zero too, for the case that they are beyond the number range, where zero times
        infinity is not zero.
        """
        if not self.edges_are_summed:
            self.edge_over_time.zero_()
            self.edge_still.zero_()
            for group, kind in zip(plan.edges, self.edge_kinds, strict=True):
                self._gather(group, masked=masked)
                # Start and end tokens have a type of their own.
                rows = self.still_rows[kind] - self.still_rows[0]
                self.edge_still[:, group.seen].baddbmm_(group.sums[..., self.dim_head // 2 :], rows)
            self.edges_are_summed = True
        self.over_time.copy_(self.edge_over_time)
        if self.per_unit:
            self.over_time_values.zero_()
        for group in plan.frames:
            self._gather(group, masked=masked)
        return torch.mul(self.complex_sums, self.turns_of_tokens, out=self.turned).sum(0)

    @torch.no_grad()
    def attend(self, places: Sequence[int], times: Tensor) -> Tensor:
        """Return the attention branch ``(L, D)`` of the latents.

        Parameters
        ----------
        places : sequence of int
            Where the window's tokens are kept, in order of time.
        times : Tensor
            ``(T,)`` float64, seconds from the start of the window.
        """
        if self.table_times.shape != times.shape or torch.dist(self.table_times, times, math.inf) > CLOCK_TOLERANCE_S:
            self._tabulate(times)
        plan = self._plan(places)
        self._put_edges(self.present.index_select(0, plan.places).any(dim=0))
        if self.reference is None:
            self._set_reference(plan)
        total = self._sum(plan)
        if not self._is_safe(total[..., -1].imag):
            self._set_reference(plan)
            total = self._sum(plan, masked=True)
        return self._finish(total)

    def _put_edges(self, anywhere: Tensor) -> None:
        """Give start and end tokens to the neurons that are in the window."""
        if self.edges_of is not None and torch.equal(self.edges_of, anywhere):
            return
        for i, kind in enumerate(self.edge_kinds):
            self._put(self.num_places + i, torch.zeros_like(self.scale[0]), anywhere, kind=kind)
        self.edges_of, self.edges_are_summed = anywhere, False

    def _is_safe(self, denominators: Tensor) -> bool:
        # Zero is the denominator of a latent that sees nothing, or of weights that have all vanished.
        low, high = denominators.aminmax()
        return high.item() < SAFE_RANGE and low.item() > 1 / SAFE_RANGE

    def _finish(self, total: Tensor) -> Tensor:
        sums = torch.view_as_real(total[..., self.dim_head // 4 :]).flatten(-2)  # (H, L, 4)
        denominators = sums[..., 3:]
        moving = total[..., : self.dim_head // 4] * self.turns_back  # (H, L, E/4)
        still = torch.baddbmm(self.edge_still, sums, self.still_rows[0])  # (H, L, E/2)
        still.baddbmm_(self.over_time, self.still["own"])
        if self.per_unit:
            still.baddbmm_(self.over_time_values, self.still["along"])
        out = torch.cat((torch.view_as_real(moving).flatten(-2), still), dim=-1)  # (H, L, E)
        out = torch.where(denominators > 0, out / denominators, 0.0)
        return self.to_out(out.transpose(0, 1).flatten(-2))  # (L, D)


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
    """The branch of `poyo_ssl.models.poyo_ssl.FeedForward` in evaluation, added in place.

    Parameters
    ----------
    pieces : FeedForwardPieces
        Its weights.
    num_rows : int
        Rows L of a window.

    Examples
    --------
    >>> from poyo_ssl.models.poyo_ssl import FeedForward
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


class SingleQueryReadout:
    """Reads the latents of one window, for one task and one recording.

    Parameters
    ----------
    model : PoyoSSL
        In evaluation mode; its parameters are read once.
    task : str
        Name of a readout.
    session_index : Tensor
        ``(1,)`` long.
    latents : Latents
        Times and turns of the latents; their values are not looked at.

    Examples
    --------
    >>> from poyo_ssl.config import ModelConfig, ReadoutConfig
    >>> config = ModelConfig(dim=8, dim_head=8)
    >>> model = PoyoSSL(config, num_units=1, num_sessions=1, readouts={"gratings": ReadoutConfig()}).eval()
    >>> times, session = torch.arange(3, dtype=torch.float64) / 8, torch.tensor([1])
    >>> latents = Latents(torch.randn(1, 3, 8), times, model.rotary(times, torch.float32))
    >>> readout = SingleQueryReadout(model, "gratings", session, latents)
    >>> with torch.no_grad():
    ...     plain = model.readout("gratings", latents, session_index=session, target_time=torch.tensor([0.2]))
    >>> torch.allclose(readout(latents.values[0], 0.2), plain[0], atol=1e-5)
    True
    """

    @torch.no_grad()
    def __init__(self, model: PoyoSSL, task: str, session_index: Tensor, latents: Latents) -> None:
        pieces, head = readout_pieces(model, task, session_index), model.readouts[task]
        assert isinstance(head, Readout)
        self.rotary, self.turns, self.head = model.rotary, latents.turns, head
        self.query, self.keys = pieces.projected_query, pieces.keys
        self.gain, self.bias, self.eps = pieces.gain, pieces.bias, pieces.eps
        joined = pieces.to_out @ pieces.values  # (H, D, D)
        self.values = (joined * self.gain).permute(1, 0, 2).flatten(1).contiguous()  # (D, H D)
        self.start = pieces.query[0] + pieces.out_bias + (joined @ self.bias).sum(0)  # (D,)
        self.feed_forward = FoldedFeedForward(pieces.feed_forward, num_rows=1)
        self.target_time = math.nan

    def _aim(self, target_time: float) -> None:
        """Let the query of one target time meet the keys' projection at the time of every latent."""
        time = torch.tensor([[target_time]], dtype=self.query.dtype)
        q = rotate(self.query, self.rotary(time, self.query.dtype))  # (1, H, 1, E)
        q = q.expand(-1, -1, self.turns.shape[1], -1) / math.sqrt(q.shape[-1])
        aimed = rotate(q, self.turns.conj())[0] @ self.keys  # (H, L, D)
        self.aimed = aimed * self.gain  # (H, L, D)
        self.offset = aimed @ self.bias  # (H, L)
        self.target_time = target_time

    @torch.no_grad()
    def __call__(self, z: Tensor, target_time: float, batch: Batch | None = None) -> Tensor:
        """Return the task's output for latents ``(L, D)``, read at `target_time` in seconds of the window.

        A value skip needs the window itself, as a `batch` of one.
        """
        if not abs(target_time - self.target_time) <= CLOCK_TOLERANCE_S:
            self._aim(target_time)
        normal = F.layer_norm(z, z.shape[-1:], eps=self.eps)
        logits = torch.add(self.offset, (self.aimed * normal).sum(-1))  # (H, L)
        read = logits.softmax(-1) @ normal  # (H, D)
        query = torch.addmv(self.start, self.values, read.flatten()).unsqueeze(0)  # (1, D)
        output: Tensor = self.head(self.feed_forward(query), batch)[0]
        return output


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
    >>> from poyo_ssl.models.poyo_ssl import Latents
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
