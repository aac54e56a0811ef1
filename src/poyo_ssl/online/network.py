"""What is computed differently online: the cross-attention slides, the frame decoder is folded.

Shapes: n token times of a group, L latents (l of them see a group), C neurons, D width, H heads, E width of a head, of
which R = E / 2 features turn with time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from poyo_ssl.models.poyo_ssl import NEGATIVE_SLOPE, FeedForward, FrameDecoder, PoyoSSL, ProcessorBlock, UpBlock
from poyo_ssl.models.token_grid import TokenRows, by_head, token_rows

SAFE_RANGE = 2.0**60
"""A softmax denominator outside ``1 / SAFE_RANGE`` to ``SAFE_RANGE`` asks for another reference."""

CLOCK_TOLERANCE_S = 1e-7
"""Times that differ by less are the same: a batch keeps them in float32, which resolves 6e-8 s."""

GROUP_BYTES = 1 << 19
"""Token times are taken together while their attention weights need no more: the second-level cache of a core."""

NUM_COEFFICIENTS = 4
"""What the rows that all neurons share are weighted by: x r, m r, r and 1."""


@dataclass(frozen=True)
class _Group:
    """Token times that are computed together: neighbours in memory, seen by the same latents.

    Every tensor is a view of what is kept (`_flat` refuses to copy), so that a group serves again and again.
    """

    seen: slice  # the latents
    table: Tensor  # (n, H, l, C)
    value_table: Tensor | None  # (n, H, l, C)
    logits: Tensor  # (n, H, l, C), scratch memory
    flat_logits: Tensor  # (n H, l, C)
    of_shared: Tensor  # (n H, l, 4)
    coefficients: Tensor  # (n H, 4, C)
    columns: Tensor  # (n H, C, R + 4)
    sums: Tensor  # (n H, l, R + 4)
    present: Tensor  # (n, 1, 1, C)
    scale: Tensor  # (n, 1, 1, C)
    scaled_values: Tensor  # (n, 1, 1, C)


@dataclass(frozen=True)
class _Projection:
    """Keys and values of what tokens are made of, c rows for each head."""

    turning_keys: Tensor  # (H, R, c)
    still_logits: Tensor  # (H, L, c), of the features that do not turn
    turning: Tensor  # (H, c, R) values
    still: Tensor  # (H, c, E - R) values


class SlidingCrossAttention:
    """Cross-attention of a model's latents to the last tokens of one recording.

    Tokens are put in numbered places, a window is a list of places and their times; the result is that of
    `poyo_ssl.models.poyo_ssl.GridCrossAttention` for the same tokens. Tokens that are absent take no part; of a
    neuron that is absent throughout a window the start and end tokens are left out too, as under a unit mask.
    """

    @torch.no_grad()
    def __init__(self, model: PoyoSSL, unit_index: Tensor, *, num_places: int, duration_s: float) -> None:
        tokens, attention = model.tokens, model.encoder.cross_attention
        initial = model.initial_latents(duration_s)
        self.latents, self.times_of_latents = initial.values[0], initial.times  # (L, D), (L,)
        self.to_out, self.causal, self.dtype = attention.to_out, tokens.causal, initial.values.dtype
        self.heads, self.dim_head = attention.heads, model.config.dim_head
        self.num_turning, self.omega = self.dim_head // 2, model.rotary.omega[: self.dim_head // 4]
        units, along = (x[0] for x in tokens.embed(unit_index.unsqueeze(0)))  # (C, D), (1 or C, D)
        self.per_unit = len(along) > 1
        self._prepare_statistics(units + tokens.types.unsqueeze(1), along, attention.norm_context.eps)
        rows = token_rows(units, tokens.types, along, attention.norm_context, attention.to_kv.weight)
        self._project(rows, attention.queries(initial.values)[0] / math.sqrt(self.dim_head))
        self.edge_kinds = [tokens.START] * tokens.start + [tokens.END] * tokens.end
        edge_times = {tokens.START: 0.0, tokens.END: duration_s}
        self.edge_times = torch.tensor([edge_times[kind] for kind in self.edge_kinds], dtype=torch.float64)
        self._allocate(num_places)
        self.reference: Tensor | None = None  # (H, L), the origin of the logits
        self.table_times = self.edge_times[:0]  # of frames
        self.first_latent: list[int] = []  # that sees each slot
        self.plans: dict[tuple[int, ...], list[_Group]] = {}  # by places
        self.edges_of: Tensor | None = None  # the neurons that have start and end tokens
        self.edges_are_summed = False

    def _prepare_statistics(self, own: Tensor, along: Tensor, eps: float) -> None:
        """Write a token's mean and variance as polynomials of its value; `own` is ``(3, C, D)``."""
        own_mean, along_mean = own.mean(-1), along.mean(-1).expand(own.shape[1])  # (3, C), (C,)
        along_variance = along.var(-1, correction=0)  # (1 or C,)
        self.mean = own_mean / 2, along_mean / 2  # constant (3, C), linear (C,)
        constant = own.var(-1, correction=0) / 2 + own_mean.square() / 4 + eps
        quadratic = along_variance / 2 + along_mean.square() / 4
        self.variance = constant, -own_mean * along_mean / 2, quadratic  # (3, C), (3, C), (C,)

    def _project(self, rows: TokenRows, queries: Tensor) -> None:
        """Split keys, values and `queries` ``(H, L, E)`` into what turns and what is still."""
        R, H = self.num_turning, self.heads
        self.turning_queries = torch.view_as_complex(queries[..., :R].unflatten(-1, (-1, 2)).contiguous())

        def split(rows: Tensor) -> _Projection:
            keys, values = by_head(rows, 2 * H).chunk(2)  # (H, c, E) each
            return _Projection(
                turning_keys=keys[..., :R].mT.contiguous(),
                still_logits=queries[..., R:] @ keys[..., R:].mT,
                turning=values[..., :R].contiguous(),
                still=values[..., R:].contiguous(),
            )

        self.own, self.along = split(rows.own), split(rows.along)
        # Value embeddings per unit are not shared: their place here stays empty.
        shared = torch.zeros_like(rows.mean) if self.per_unit else rows.along
        self.shared = [split(torch.cat((shared, rows.mean, kind, rows.bias))) for kind in rows.types.split(1)]

    def _allocate(self, num_places: int) -> None:
        num, H, C, L = num_places + len(self.edge_kinds), self.heads, len(self.mean[1]), len(self.latents)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=self.dtype)

        self.num_places = num_places
        self.present = zeros(num, C).bool()
        self.scale, self.scaled_values = zeros(num, C), zeros(num, C)  # r and x r, 0 where absent
        self.coefficients = zeros(num, H, NUM_COEFFICIENTS, C)
        self.coefficients[:, :, 3] = 1.0
        self.columns = zeros(num, H, C, self.num_turning + NUM_COEFFICIENTS)  # values, coefficients; 0 where absent
        self.group_size = max(1, GROUP_BYTES // (H * L * C * self.scale.element_size()))
        self.scratch = zeros(min(num, self.group_size) * H * L * C)
        self.over_time, self.over_time_values, self.edge_over_time = zeros(H, L, C), zeros(H, L, C), zeros(H, L, C)
        self.edge_still = zeros(H, L, self.dim_head - self.num_turning)

    def forget(self) -> None:
        """Choose the origin of the logits anew, so that no rounding depends on windows of before."""
        self.reference = None

    @torch.no_grad()
    def put(self, place: int, values: Tensor, present: Tensor) -> None:
        """Work out the tokens of one time from values ``(C,)``; those not `present` are not looked at."""
        self._put(place, torch.where(present, values.to(self.dtype), 0.0), present, kind=0)

    def _put(self, place: int, values: Tensor, present: Tensor, *, kind: int) -> None:
        constant, linear, quadratic = self.variance
        variance = torch.addcmul(constant[kind], values, torch.addcmul(linear[kind], values, quadratic))
        scale = variance.rsqrt_() * present  # (C,)
        scaled_values = values * scale
        scaled_mean = torch.addcmul(self.mean[0][kind], values, self.mean[1]) * scale
        coefficients = torch.stack((scaled_values, scaled_mean, scale, present.to(self.dtype)))  # (4, C)
        self.present[place], self.scale[place], self.scaled_values[place] = present, scale, scaled_values
        self.coefficients[place, :, :3] = coefficients[:3]
        columns = self.columns[place]  # (H, C, R + 4)
        columns[..., self.num_turning :] = coefficients.mT
        turning = columns[..., : self.num_turning]
        torch.addcmul(coefficients.mT @ self.shared[kind].turning, self.own.turning, scale.unsqueeze(-1), out=turning)
        if self.per_unit:
            turning.addcmul_(self.along.turning, scaled_values.unsqueeze(-1))

    def _tabulate(self, times: Tensor) -> None:
        """Let the queries meet the neurons at every distance between a latent and a token time."""
        self.table_times, times = times, torch.cat((times, self.edge_times))
        if len(times) != len(self.first_latent):
            shape = (len(times), self.heads, len(self.latents))
            self.table = torch.empty(*shape, len(self.mean[1]), dtype=self.dtype)
            self.value_table = torch.empty_like(self.table) if self.per_unit else None
            self.logits_of_shared = torch.empty(*shape, NUM_COEFFICIENTS, dtype=self.dtype)
            self.sums = torch.zeros(*shape, self.columns.shape[-1], dtype=self.dtype)
            self.complex_sums = torch.view_as_complex(self.sums.unflatten(-1, (-1, 2)))
            self.turned = torch.empty_like(self.complex_sums)
        kinds = [0] * len(self.table_times) + self.edge_kinds
        distance = (self.times_of_latents - times.unsqueeze(-1)).unsqueeze(-1) * self.omega  # (T, L, E/4)
        turns = _turns(distance).to(self.turning_queries.dtype)
        for j, kind in enumerate(kinds):
            queries = torch.view_as_real(self.turning_queries * turns[j]).flatten(-2)  # (H, L, R)
            parts = [(self.own, self.table), (self.shared[kind], self.logits_of_shared)]
            if self.value_table is not None:
                parts.append((self.along, self.value_table))
            for part, into in parts:
                torch.baddbmm(part.still_logits, queries, part.turning_keys, out=into[j])
        self.base_of_bias = self.logits_of_shared[..., 3].clone()  # (T, H, L)
        if self.reference is not None:
            torch.sub(self.base_of_bias, self.reference, out=self.logits_of_shared[..., 3])
        # The sums beside the values do not turn.
        angle = F.pad(times.unsqueeze(-1) * self.omega, (0, NUM_COEFFICIENTS // 2))
        self.turns_of_tokens = _turns(angle).to(turns.dtype)[:, None, None]  # (T, 1, 1, E/4 + 2)
        self.turns_back = _turns(-self.times_of_latents.unsqueeze(-1) * self.omega).to(turns.dtype)  # (L, E/4)
        # Latents lie in order of time, so those that see a token are the last ones.
        first = torch.searchsorted(self.times_of_latents, times).tolist()
        starts = [0 if not self.causal or kind == 1 else row for row, kind in zip(first, kinds, strict=True)]
        self.edges_are_summed = False
        if starts != self.first_latent:
            self.first_latent = starts
            self.sums.zero_()
            self.plans.clear()
            self.edges = [
                self._group(slice(slot, slot + 1), slice(place, place + 1))
                for slot, place in enumerate(range(self.num_places, len(self.scale)), start=len(self.table_times))
            ]

    def _plan(self, places: Sequence[int]) -> list[_Group]:
        """Cut a window where its places leave off being neighbours (the ring's end) or other latents see them."""
        first, start = self.first_latent, 0
        groups = []
        for stop in range(1, len(places) + 1):
            if (
                stop == len(places)
                or places[stop] != places[stop - 1] + 1
                or first[stop] != first[start]
                or stop - start == self.group_size
            ):
                if first[start] < len(self.latents):
                    groups.append(self._group(slice(start, stop), slice(places[start], places[stop - 1] + 1)))
                start = stop
        return groups

    def _group(self, slots: slice, places: slice) -> _Group:
        seen = slice(self.first_latent[slots.start], None)
        table = self.table[slots, :, seen]
        logits = self.scratch[: table.numel()].view(table.shape)
        return _Group(
            seen=seen,
            table=table,
            value_table=None if self.value_table is None else self.value_table[slots, :, seen],
            logits=logits,
            flat_logits=_flat(logits),
            of_shared=_flat(self.logits_of_shared[slots, :, seen]),
            coefficients=_flat(self.coefficients[places]),
            columns=_flat(self.columns[places]),
            sums=_flat(self.sums[slots, :, seen]),
            present=self.present[places, None, None],
            scale=self.scale[places, None, None],
            scaled_values=self.scaled_values[places, None, None],
        )

    def _logits(self, group: _Group) -> Tensor:
        """Return the logits less the reference, ``(n, H, l, C)``."""
        logits = torch.mul(group.table, group.scale, out=group.logits)
        if group.value_table is not None:
            logits.addcmul_(group.value_table, group.scaled_values)
        group.flat_logits.baddbmm_(group.of_shared, group.coefficients)
        return logits

    def _gather(self, group: _Group, over_time: Tensor, over_time_values: Tensor | None, *, masked: bool) -> None:
        """Add a group's weights to the sums over time ``(H, L, C)``, and set its sums over neurons."""
        weights = self._logits(group).exp_()
        if masked:
            weights.masked_fill_(~group.present, 0.0)
        torch.bmm(group.flat_logits, group.columns, out=group.sums)
        for total, factors in ((over_time, group.scale), (over_time_values, group.scaled_values)):
            if total is not None:
                seen = total[:, group.seen]
                for each, factor in zip(weights.unbind(), factors.unbind(), strict=True):
                    seen.addcmul_(each, factor)

    def _set_reference(self, groups: Sequence[_Group]) -> None:
        """Take every latent's largest logit as the new origin of its logits."""
        self.logits_of_shared[..., 3] = self.base_of_bias
        highest = torch.full(self.over_time.shape[:2], -math.inf, dtype=self.dtype)
        for group in groups:
            top = self._logits(group).masked_fill(~group.present, -math.inf).amax(dim=(0, 3))  # (H, l)
            torch.maximum(highest[:, group.seen], top, out=highest[:, group.seen])
        self.reference = torch.where(highest.isfinite(), highest, 0.0)
        torch.sub(self.base_of_bias, self.reference, out=self.logits_of_shared[..., 3])
        self.edges_are_summed = False

    def _sum(self, groups: Sequence[_Group], *, masked: bool = False) -> Tensor:
        """Go over all slots; return the sums over all tokens, turned, ``(H, L, E/4 + 2)`` complex.

        The last imaginary parts are the denominators. What is absent has scale and columns of zero, and so no share;
        `masked` sets its weights to zero too, for the case that they are beyond the number range, where zero times
        infinity is not zero.
        """
        if not self.edges_are_summed:
            self.edge_over_time.zero_()
            self.edge_still.zero_()
            for group, kind in zip(self.edges, self.edge_kinds, strict=True):
                # Values of the start and end tokens are zero.
                self._gather(group, self.edge_over_time, None, masked=masked)
                # Start and end tokens have a type of their own.
                rows = self.shared[kind].still - self.shared[0].still
                self.edge_still[:, group.seen].baddbmm_(group.sums[..., self.num_turning :], rows)
            self.edges_are_summed = True
        self.over_time.copy_(self.edge_over_time)
        over_time_values = self.over_time_values.zero_() if self.per_unit else None
        for group in groups:
            self._gather(group, self.over_time, over_time_values, masked=masked)
        return torch.mul(self.complex_sums, self.turns_of_tokens, out=self.turned).sum(0)

    @torch.no_grad()
    def attend(self, places: Sequence[int], times: Tensor) -> Tensor:
        """Return the attention branch ``(L, D)`` of the latents.

        `places` hold the window's tokens in order of time, `times` ``(T,)`` are float64 seconds from its start.
        """
        if self.table_times.shape != times.shape or torch.dist(self.table_times, times, math.inf) > CLOCK_TOLERANCE_S:
            self._tabulate(times)
        self._put_edges(self.present[list(places)].any(dim=0))
        key = tuple(places)
        groups = self.plans.get(key)
        if groups is None:
            groups = self.plans[key] = self._plan(places)
        if self.reference is None:
            self._set_reference([*self.edges, *groups])
        total = self._sum(groups)
        # Zero is the denominator of a latent that sees nothing, or of weights that have all vanished.
        low, high = total[..., -1].imag.aminmax()
        if not (high.item() < SAFE_RANGE and low.item() > 1 / SAFE_RANGE):
            self._set_reference([*self.edges, *groups])
            total = self._sum(groups, masked=True)
        return self._finish(total)

    def _put_edges(self, anywhere: Tensor) -> None:
        """Give start and end tokens to the neurons that are in the window."""
        if self.edges_of is not None and torch.equal(self.edges_of, anywhere):
            return
        for i, kind in enumerate(self.edge_kinds):
            self._put(self.num_places + i, torch.zeros_like(self.scale[0]), anywhere, kind=kind)
        self.edges_of, self.edges_are_summed = anywhere, False

    def _finish(self, total: Tensor) -> Tensor:
        sums = torch.view_as_real(total[..., self.dim_head // 4 :]).flatten(-2)  # (H, L, 4)
        denominators = sums[..., 3:]
        turning = total[..., : self.dim_head // 4] * self.turns_back  # (H, L, E/4)
        still = torch.baddbmm(self.edge_still, sums, self.shared[0].still)  # (H, L, E - R)
        still.baddbmm_(self.over_time, self.own.still)
        if self.per_unit:
            still.baddbmm_(self.over_time_values, self.along.still)
        out = torch.cat((torch.view_as_real(turning).flatten(-2), still), dim=-1)  # (H, L, E)
        out = torch.where(denominators > 0, out / denominators, 0.0)
        return self.to_out(out.transpose(0, 1).flatten(-2))  # (L, D)


def _turns(angle: Tensor) -> Tensor:
    return torch.polar(torch.ones_like(angle), angle)


def _flat(x: Tensor) -> Tensor:
    """View ``(n, H, ...)`` as ``(n H, ...)``; never a copy, for some are written to."""
    return x.view(-1, *x.shape[2:])


def _lift(z: Tensor, ones: Tensor, eps: float) -> Tensor:
    """Bring every row of `z` ``(L, D)`` to mean 1 and variance 1: then a bias can lie in a weight."""
    return F.layer_norm(z, ones.shape, bias=ones, eps=eps)


def _behind_norm(norm: nn.LayerNorm, linear: nn.Linear) -> Tensor:
    """Return the weight ``(out, D)`` that gives a lifted row what `linear` gives a normalised one."""
    weight, bias = linear.weight * norm.weight, F.linear(norm.bias, linear.weight, linear.bias)
    return weight - weight.mean(1, keepdim=True) + bias.unsqueeze(1) / weight.shape[1]


class FoldedFeedForward:
    """A `FeedForward` in evaluation for `num_rows` rows, added in place."""

    @torch.no_grad()
    def __init__(self, module: FeedForward, num_rows: int) -> None:
        half = math.sqrt(0.5)  # GELU(x) = y (1 + erf(y)) sqrt(1/2) with y = x sqrt(1/2)
        self.expand = _behind_norm(module.norm, module.expand)  # (8D, D): value above gate
        self.expand[len(self.expand) // 2 :] *= half
        self.contract, self.bias = (module.contract.weight.mT * half).contiguous(), module.contract.bias
        self.ones, self.eps = torch.ones_like(self.bias), module.norm.eps
        self.hidden = self.expand.new_empty(len(self.expand), num_rows)
        self.value, self.gate = self.hidden.chunk(2)  # (4D, L) each
        self.erf = torch.empty_like(self.gate)

    @torch.no_grad()
    def __call__(self, z: Tensor) -> Tensor:
        """Add the branch to `z` ``(L, D)`` and return it."""
        torch.mm(self.expand, _lift(z, self.ones, self.eps).mT, out=self.hidden)
        torch.erf(self.gate, out=self.erf)
        self.value.mul_(self.gate)
        self.value.addcmul_(self.value, self.erf)
        return z.add_(self.bias).addmm_(self.value.mT, self.contract)


class _Rotation:
    """Rotates ``(..., E, L)`` in place; E holds the real parts of `pairs` pairs, their imaginary parts, the rest."""

    def __init__(self, x: Tensor, pairs: int) -> None:
        self.real, self.imaginary = x[..., :pairs, :], x[..., pairs : 2 * pairs, :]
        self.moved = torch.empty_like(self.real)

    def __call__(self, cos: Tensor, sin: Tensor) -> None:
        torch.mul(self.real, sin, out=self.moved)
        self.real.mul_(cos).addcmul_(self.imaginary, sin, value=-1)
        self.imaginary.mul_(cos).add_(self.moved)


@dataclass(frozen=True)
class _Block:
    """A block of the processor."""

    to_qkv: Tensor  # (3HE, D), behind LayerNorm
    to_out: Tensor  # (HE, D)
    out_bias: Tensor  # (D,)
    feed_forward: FoldedFeedForward


class FoldedProcessor:
    """A model's processor in evaluation for one window, the features of its heads in the order of `_Rotation`."""

    @torch.no_grad()
    def __init__(self, model: PoyoSSL, times_of_latents: Tensor) -> None:
        config, dtype, L = model.config, model.latents.dtype, len(times_of_latents)
        H, E, pairs = config.self_heads, config.dim_head, config.dim_head // 4
        angle = model.rotary.omega[:pairs, None] * times_of_latents  # (E/4, L)
        self.cos, self.sin, self.sin_back = angle.cos().to(dtype), angle.sin().to(dtype), -angle.sin().to(dtype)
        turning = torch.arange(2 * pairs)
        order = torch.cat((turning[::2], turning[1::2], torch.arange(2 * pairs, E)))
        self.blocks = []
        for block in model.processor:
            assert isinstance(block, ProcessorBlock)
            attention = block.self_attention
            to_qkv = _behind_norm(attention.norm, attention.to_qkv).unflatten(0, (3, H, E))[:, :, order]
            to_qkv[0] /= math.sqrt(E)
            to_out = attention.to_out.weight.unflatten(1, (H, E))[:, :, order].flatten(1).mT.contiguous()
            feed_forward = FoldedFeedForward(block.feed_forward, L)
            self.blocks.append(_Block(to_qkv.flatten(0, 2), to_out, attention.to_out.bias, feed_forward))
        self.ones, self.eps = torch.ones(config.dim, dtype=dtype), nn.LayerNorm(1).eps
        self.qkv = torch.empty(3 * H * E, L, dtype=dtype)
        heads = self.qkv.view(3, H, E, L)
        self.queries, self.keys, self.values = heads[0].mT, heads[1], heads[2]  # (H, L, E), (H, E, L), (H, E, L)
        self.weights, self.out = torch.empty(H, L, L, dtype=dtype), torch.empty(H, E, L, dtype=dtype)
        self.out_rows = self.out.flatten(0, 1).mT  # (L, HE)
        self.turn, self.turn_out = _Rotation(heads, pairs), _Rotation(self.out, pairs)

    @torch.no_grad()
    def __call__(self, z: Tensor) -> Tensor:
        """Turn the latents ``(L, D)`` into those after all blocks, in place."""
        for block in self.blocks:
            torch.mm(block.to_qkv, _lift(z, self.ones, self.eps).mT, out=self.qkv)
            self.turn(self.cos, self.sin)
            torch.bmm(self.queries, self.keys, out=self.weights)
            torch.bmm(self.values, self.weights.softmax(-1).mT, out=self.out)
            self.turn_out(self.cos, self.sin_back)
            z.add_(block.out_bias).addmm_(self.out_rows, block.to_out)
            block.feed_forward(z)
        return z


class FoldedBlock:
    """An `UpBlock` in evaluation, BatchNorm in its convolution; `skip` is None without skips."""

    def __init__(self, block: nn.Module) -> None:
        assert isinstance(block, UpBlock)
        _, convolution, norm, _ = block.grow
        assert isinstance(convolution, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        folded = fuse_conv_bn_eval(convolution, norm)
        assert folded.bias is not None
        self.weight, self.bias = folded.weight.contiguous(memory_format=torch.channels_last), folded.bias
        self.skip: tuple[Tensor, Tensor] | None = None
        if block.project is not None and block.fuse is not None:
            assert block.fuse.bias is not None
            self.skip, self.fuse_bias = _channels_last(block.project), block.fuse.bias
            of_image, of_skip = block.fuse.weight.flatten(1).tensor_split([len(self.weight)], dim=1)
            self.of_image, self.of_skip = of_image.mT.contiguous(), of_skip.mT.contiguous()

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
        fused = torch.addmm(self.fuse_bias, own, self.of_skip).addmm_(_pixels(x), self.of_image)  # (h w, out)
        return fused.view(1, *x.shape[2:], -1).permute(0, 3, 1, 2)


class FoldedFrameDecoder(nn.Module):
    """A `FrameDecoder` in evaluation."""

    @torch.no_grad()
    def __init__(self, decoder: FrameDecoder) -> None:
        super().__init__()
        self.grid = _grid(decoder.start)
        self.start_weight, self.start_bias = _channels_last(decoder.start)
        *self.blocks, self.last = [FoldedBlock(block) for block in decoder.blocks]
        _, height, width = self.grid
        num_blocks = len(decoder.blocks)
        self._fold_last(decoder.to_grey, height << num_blocks, width << num_blocks)

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
        torch.mm(self.image_taps, _pixels(self.last.grow(x)).mT, out=self.maps)
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


def _pixels(x: Tensor) -> Tensor:
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
