"""The encoder's cross-attention on a window that slides by one imaging frame.

With the notation of `poyo_ssl.models.grid_tokens`, a token's key is ``(A_c + T + x p - m h) r + s``, rotated by its
time, so a latent's logit for it is ::

    r_tc a_ltc + x_tc r_tc (q_lt . p) - m_tc r_tc (q_lt . h) + r_tc (q_lt . T) + q_lt . s        a_ltc = q_lt . A_c

where q_lt is the latent's query rotated by its own time less the token's. On a regular clock these differences are the
same in every window, and so is the table a: no key is ever built and no query meets a key again. What a new frame
brings (x, m, r and the rotating half of its values, at time zero) is worked out once and kept while the frame is in
the window; the start and end tokens' share of every sum is constant. What cannot be kept are the attention weights of
a frame: its distance to every latent changes by one frame with every window.

Half of each head does not rotate, so for it the weights are first summed over time and meet the C neurons once.
Weights are powers of two: ``exp2`` is half the price of ``exp``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from poyo_ssl.models.attention import GridCrossAttention
from poyo_ssl.models.encoder import GridTokens, latent_times
from poyo_ssl.models.poyo_ssl import PoyoSSL

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
    """Slots of a window that are computed together, where their tokens are kept, and the first latent to see them."""

    slots: slice
    places: slice
    first: int


class SlidingCrossAttention:
    """Cross-attention of a model's latents to the last tokens of one recording.

    Tokens are put in numbered places, a window is a list of places and their times; the result is that of
    `poyo_ssl.models.attention.GridCrossAttention` for the same tokens. Tokens that are absent take no part; of a
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
        tokens, attention, config = model.tokens, model.encoder.cross_attention, model.config
        self.heads, self.dim_head = attention.heads, config.dim_head
        self.dtype = model.latents.dtype
        self.times_of_latents = latent_times(config, duration_s)  # (L,)
        self.causal = tokens.causal
        self.omega = model.rotary.omega[: config.dim_head // 4]
        self.to_out = attention.to_out
        num_steps = len(self.times_of_latents) // len(model.latents)
        self.latents = model.latents.detach().repeat(num_steps, 1)  # (L, D)
        self.per_unit = tokens.value is None
        units, along = self._read_tokens(tokens, unit_index)
        self._project(attention, units, along, tokens.types)
        self._prepare_statistics(units, along, tokens.types, attention.norm_context.eps)
        edges = [(tokens.START, 0.0)] * tokens.start + [(tokens.END, duration_s)] * tokens.end
        self.edge_times = torch.tensor([time for _, time in edges], dtype=torch.float64)
        self.edge_kinds = [kind for kind, _ in edges]
        self._allocate(num_places)
        self.reference: Tensor | None = None
        self.table_times = torch.full((0,), math.nan, dtype=torch.float64)
        self.edges_of: Tensor | None = None
        self.table: Tensor | None = None

    def _read_tokens(self, tokens: GridTokens, unit_index: Tensor) -> tuple[Tensor, Tensor]:
        """Return unit ``(C, D)`` and value embeddings, ``(1, D)`` or ``(C, D)``."""
        units = tokens.units(unit_index)
        if tokens.value is None:
            own, along = units.chunk(2, dim=-1)
            return own, along
        return units, tokens.value.unsqueeze(0)

    def _project(self, attention: GridCrossAttention, units: Tensor, along: Tensor, types: Tensor) -> None:
        """Split what the projection makes of neurons, value, types and LayerNorm into heads, moving and still."""
        norm, weight, D = attention.norm_context, attention.to_kv.weight, units.shape[-1]
        gain_unit, gain_value = norm.weight.split(D)
        rows = {
            "own": F.linear(units * gain_unit, weight[:, :D]),  # A: (C, 2HE)
            "along": F.linear(along * gain_value, weight[:, D:]),  # p: (1 or C, 2HE)
            "types": F.linear(types * gain_unit, weight[:, :D]),  # T: (3, 2HE)
            "mean": F.linear(-norm.weight, weight).unsqueeze(0),  # -h: (1, 2HE)
            "bias": F.linear(norm.bias, weight).unsqueeze(0),  # s: (1, 2HE)
        }
        halves = {name: row.unflatten(-1, (2, self.heads, -1)).permute(1, 2, 0, 3) for name, row in rows.items()}
        turning = self.dim_head // 2
        self.keys = {name: half[0] for name, half in halves.items()}  # (H, rows, E)
        # Values as columns, real parts of the pairs above imaginary ones: (H, E/2, rows).
        order = torch.cat((torch.arange(0, turning, 2), torch.arange(1, turning, 2)))
        self.moving = {name: half[1][..., order].mT.contiguous() for name, half in halves.items()}
        self.still = {name: half[1, ..., turning:].contiguous() for name, half in halves.items()}
        queries = attention.to_q(attention.norm(self.latents)).unflatten(-1, (self.heads, -1)).transpose(0, 1)
        queries = queries * (math.log2(math.e) / math.sqrt(self.dim_head))  # (H, L, E)
        self.moving_queries = torch.view_as_complex(queries[..., :turning].unflatten(-1, (-1, 2)).contiguous())
        still_keys, still_queries = {n: k[..., turning:] for n, k in self.keys.items()}, queries[..., turning:]
        self.moving_keys = {n: k[..., :turning].mT.contiguous() for n, k in self.keys.items()}  # (H, E/2, rows)
        self.still_logits = {n: still_queries @ k.mT for n, k in still_keys.items()}  # (H, L, rows)

    def _prepare_statistics(self, units: Tensor, along: Tensor, types: Tensor, eps: float) -> None:
        own = units + types.unsqueeze(1)  # (3, C, D)
        self.own_mean, self.own_variance = own.mean(-1), own.var(-1, correction=0)  # (3, C) each
        self.along_mean, self.along_variance = along.mean(-1), along.var(-1, correction=0)  # (1 or C,) each
        self.eps = eps

    def _allocate(self, num_places: int) -> None:
        num, H, C, L = num_places + len(self.edge_kinds), self.heads, self.own_mean.shape[1], len(self.latents)
        self.num_places = num_places
        width = self.dim_head // 2 + NUM_SUMS
        zeros = torch.zeros
        self.scale = zeros(num, C, dtype=self.dtype)  # r, 0 where absent
        self.scaled_values = zeros(num, C, dtype=self.dtype)  # x r
        self.rows = zeros(num, H, NUM_SUMS, C, dtype=self.dtype)  # x r, m r, r and 1, for each head
        self.columns = zeros(num, H, width, C, dtype=self.dtype)  # values, x r, m r, r and 1; 0 where absent
        self.present = zeros(num, C, dtype=torch.bool)
        self.group_size = max(1, GROUP_BYTES // (H * L * C * self.scale.element_size()))
        self.scratch = zeros(min(num, self.group_size) * H * L * C, dtype=self.dtype)
        self.over_time, self.over_time_values = zeros(H, L, C, dtype=self.dtype), zeros(H, L, C, dtype=self.dtype)
        self.edge_over_time = zeros(H, L, C, dtype=self.dtype)

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
        value_mean = values * self.along_mean
        variance = (self.own_variance[kind] + values.square() * self.along_variance) / 2
        variance = variance + (self.own_mean[kind] - value_mean).square() / 4
        keep = present.to(self.dtype)
        scale = torch.rsqrt(variance + self.eps) * keep
        mean = (self.own_mean[kind] + value_mean) / 2
        self.scale[place], self.scaled_values[place] = scale, values * scale
        sums = torch.stack((values * scale, mean * scale, scale, keep))  # (4, C)
        self.rows[place] = sums
        self.rows[place, :, 3] = 1.0
        turning = self.dim_head // 2
        rows = torch.cat((self.moving["mean"], self.moving["types"][..., kind : kind + 1], self.moving["bias"]), -1)
        values_of_token = self.columns[place, :, :turning]  # (H, E/2, C)
        values_of_token.copy_(rows @ sums[1:])
        values_of_token.addcmul_(self.moving["own"], scale).addcmul_(self.moving["along"], values * scale)
        self.columns[place, :, turning:] = sums
        self.present[place] = present

    def _tabulate(self, times: Tensor) -> None:
        """Let the queries meet the neurons at every distance between a latent and a token time."""
        if self.table is None or self.table_times.shape != times.shape:
            shape = (len(times), self.heads, len(self.latents))
            self.table = torch.empty(*shape, len(self.own_mean[0]), dtype=self.dtype)
            self.value_table = torch.empty_like(self.table) if self.per_unit else None
            self.logits_of_rows = torch.empty(*shape, NUM_SUMS, dtype=self.dtype)
            self.sums = torch.zeros(len(times), *self.columns.shape[1:3], len(self.latents), dtype=self.dtype)
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
        angle = (times.unsqueeze(-1) * self.omega)[:, None, :, None]
        self.turns_of_tokens = angle.cos().to(self.dtype), angle.sin().to(self.dtype)  # (T, 1, E/4, 1) each
        back = torch.polar(torch.ones(()).to(times), -self.times_of_latents.unsqueeze(-1) * self.omega)
        self.turns_back = back.to(self.moving_queries.dtype).mT  # (E/4, L)
        # Latents lie in order of time, so those that see a token are the last ones.
        first = torch.searchsorted(self.times_of_latents, times).tolist()
        starts = [0 if not self.causal or kind == 1 else row for row, kind in zip(first, kinds, strict=True)]
        if starts != getattr(self, "first_latent", None):
            self.sums.zero_()
        self.first_latent, self.table_times, self.edges_of = starts, times, None

    def _rows_of(self, parts: dict[str, Tensor], dim: int) -> list[Tensor]:
        """Return the value, mean, type and bias rows of each token type side by side."""
        # Value embeddings per unit have a table of their own; their place here stays empty.
        along = torch.zeros_like(parts["mean"]) if self.per_unit else parts["along"]
        kinds = parts["types"].split(1, dim=dim)
        return [torch.cat((along, parts["mean"], kind, parts["bias"]), dim=dim).contiguous() for kind in kinds]

    def _groups(self, places: Sequence[int]) -> list[_Group]:
        """Cut a window into runs of evenly spaced places (the ring's end breaks one) that the same latents see."""
        groups: list[_Group] = []
        start, num_latents = 0, len(self.latents)
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
            if self.first_latent[start] < num_latents:
                step = places[start + 1] - places[start] if stop - start > 1 else 1
                kept = slice(places[start], places[stop - 1] + 1, step)
                groups.append(_Group(slice(start, stop), kept, self.first_latent[start]))
            start = stop
        edges = range(len(self.edge_kinds))
        return groups + [
            _Group(slice(start + i, start + i + 1), slice(self.num_places + i, self.num_places + i + 1), first)
            for i, first in zip(edges, self.first_latent[start:], strict=True)
            if first < num_latents
        ]

    def _logits(self, group: _Group) -> Tensor:
        """Return the logits (base 2, less the reference) of the latents that see a group: ``(n, H, l, C)``."""
        assert self.table is not None
        table = self.table[group.slots, :, group.first :]
        logits = self.scratch[: table.numel()].view(table.shape)
        torch.mul(table, self.scale[group.places, None, None], out=logits)
        if self.value_table is not None:
            along = self.value_table[group.slots, :, group.first :]
            logits.addcmul_(along, self.scaled_values[group.places, None, None])
        of_rows = self.logits_of_rows[group.slots, :, group.first :].flatten(0, 1)  # (n H, l, 4)
        logits.flatten(0, 1).baddbmm_(of_rows, self.rows[group.places].flatten(0, 1))
        return logits

    def _gather(self, group: _Group, over_time: Tensor, *, masked: bool) -> None:
        """Add a group's weights to the sums over time, and set its sums over neurons."""
        weights = self._logits(group).exp2_()
        if masked:
            weights.masked_fill_(~self.present[group.places, None, None], 0.0)
        sums = self.sums[group.slots, ..., group.first :].flatten(0, 1)  # (n H, E/2 + 4, l)
        torch.bmm(self.columns[group.places].flatten(0, 1), weights.flatten(0, 1).mT, out=sums)
        seen = over_time[:, group.first :]
        for each, scale in zip(weights.unbind(), self.scale[group.places].unbind(), strict=True):
            seen.addcmul_(each, scale)
        if self.value_table is not None:
            seen = self.over_time_values[:, group.first :]
            for each, value in zip(weights.unbind(), self.scaled_values[group.places].unbind(), strict=True):
                seen.addcmul_(each, value)

    def _set_reference(self, groups: Sequence[_Group]) -> None:
        """Take every latent's largest logit as the new origin of its logits."""
        self.logits_of_rows[..., 3] = self.base_of_bias
        highest = torch.full(self.over_time.shape[:2], -math.inf, dtype=self.dtype)
        for group in groups:
            absent = ~self.present[group.places, None, None]
            seen = self._logits(group).masked_fill(absent, -math.inf).amax(dim=(0, 3))
            torch.maximum(highest[:, group.first :], seen, out=highest[:, group.first :])
        self.reference = torch.where(highest.isfinite(), highest, 0.0)
        torch.sub(self.base_of_bias, self.reference, out=self.logits_of_rows[..., 3])
        self.edges_of = None

    def _sum(self, groups: Sequence[_Group], present: Tensor, *, masked: bool = False) -> Tensor:
        """Go over all slots; return the softmax denominators ``(H, L)``.

        What is absent has scale and columns of zero, and so no share; `masked` sets its weights to zero too, for the
        case that they are beyond the number range, where zero times infinity is not zero.
        """
        num_frames = len(self.table_times) - len(self.edge_kinds)
        if self.edges_of is None or not torch.equal(self.edges_of, present):
            self.edge_over_time.zero_()
            for group in groups:
                if group.slots.start >= num_frames:
                    self._gather(group, self.edge_over_time, masked=masked)
            self.edges_of = present
        self.over_time.copy_(self.edge_over_time)
        if self.per_unit:
            self.over_time_values.zero_()
        for group in groups:
            if group.slots.start < num_frames:
                self._gather(group, self.over_time, masked=masked)
        return self.sums[:, :, -1].sum(0)

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
        times = torch.cat((times, self.edge_times))
        if self.table_times.shape != times.shape or (self.table_times - times).abs().max() > CLOCK_TOLERANCE_S:
            self._tabulate(times)
        anywhere = self.present[list(places)].any(dim=0)
        if self.edges_of is None or not torch.equal(self.edges_of, anywhere):
            for i, kind in enumerate(self.edge_kinds):
                self._put(self.num_places + i, torch.zeros_like(self.scale[0]), anywhere, kind=kind)
        groups = self._groups(places)
        if self.reference is None:
            self._set_reference(groups)
        denominators = self._sum(groups, anywhere)
        if not self._is_safe(denominators):
            self._set_reference(groups)
            denominators = self._sum(groups, anywhere, masked=True)
        return self._finish(denominators)

    def _is_safe(self, denominators: Tensor) -> bool:
        # Zero is the denominator of a latent that sees nothing, or of weights that have all vanished.
        low, high = denominators.aminmax()
        return bool(high < SAFE_RANGE) and bool(low > 1 / SAFE_RANGE)

    def _finish(self, denominators: Tensor) -> Tensor:
        turning, num_edges = self.dim_head // 2, len(self.edge_kinds)
        pairs = turning // 2
        real, imaginary = self.sums[:, :, :pairs], self.sums[:, :, pairs:turning]  # (T, H, E/4, L)
        cos, sin = self.turns_of_tokens  # (T, 1, E/4, 1) each
        moving = torch.complex(
            (real * cos).sub_(imaginary * sin).sum(0), (real * sin).add_(imaginary * cos).sum(0)
        )  # (H, E/4, L)
        moving = (moving * self.turns_back).mT  # (H, L, E/4)
        still = torch.bmm(self.over_time, self.still["own"])  # (H, L, E/2)
        if self.per_unit:
            still.baddbmm_(self.over_time_values, self.still["along"])
        rows = self._rows_of(self.still, dim=-2)  # (H, 4, E/2) of each type
        sums = self.sums[:, :, turning:].mT  # (T, H, L, 4)
        still.baddbmm_(sums[: len(sums) - num_edges].sum(0), rows[0])
        for j, kind in enumerate(self.edge_kinds, start=len(sums) - num_edges):
            still.baddbmm_(sums[j], rows[kind])
        out = torch.cat((torch.view_as_real(moving.contiguous()).flatten(-2), still), dim=-1)  # (H, L, E)
        out = torch.where(denominators.unsqueeze(-1) > 0, out / denominators.unsqueeze(-1), 0.0)
        return self.to_out(out.transpose(0, 1).flatten(-2))  # (L, D)
