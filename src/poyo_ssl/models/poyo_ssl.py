"""The whole model, top to bottom: a window of dF/F in, a class, a position or a movie frame out.

POYO+ calcium encoder (Azabou et al. 2023, 2025) on a dense (time, neuron) grid, with the readouts of POYO-SSL
(Bae et al., arXiv 2510.18516). Shapes: B windows, T frames, C neurons, L latents, D width.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poyo_ssl.config import MODEL_SIZES, ModelConfig, ReadoutConfig
from poyo_ssl.data.windows import Batch
from poyo_ssl.errors import ConfigError, suggest
from poyo_ssl.models.cpu_attention import Dropout, drop, streamed_attention
from poyo_ssl.models.token_grid import TokenGrid, by_head, project_grid

INIT_STD = 0.02
"""Standard deviation of every embedding at the start (as coded in POYO+)."""


def normal_parameter(*shape: int) -> nn.Parameter:
    """Return a parameter drawn from N(0, 0.02^2)."""
    return nn.Parameter(torch.randn(shape) * INIT_STD)


class GrowingEmbedding(nn.Module):
    """A table with one row per known entry, rows 1 and up; row 0 is zero, for padding and for the unknown."""

    def __init__(self, num_entries: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.pad(torch.randn(num_entries, dim) * INIT_STD, (0, 0, 1, 0)))

    @property
    def num_entries(self) -> int:
        """Known entries, without row 0."""
        return len(self.weight) - 1

    def forward(self, index: Tensor) -> Tensor:
        """Return the rows of `index` ``(...)`` as ``(..., D)``; row 0 gets no gradient."""
        return F.embedding(index, self.weight, padding_idx=0)

    def grow(self, num_entries: int, generator: torch.Generator | None = None) -> None:
        """Keep the rows and append new ones until there are `num_entries`.

        The parameter is replaced: build optimisers afterwards.
        """
        missing = num_entries - self.num_entries
        if missing < 0:
            raise ConfigError(
                f"a vocabulary of {self.num_entries} entries asked to hold {num_entries}",
                allowed=f"{self.num_entries} or more",
                fix="vocabularies only grow; build a new model for fewer entries",
            )
        if missing == 0:
            return
        rows = torch.randn(missing, self.weight.shape[1], generator=generator) * INIT_STD
        weight = torch.cat((self.weight.detach(), rows.to(self.weight)))
        self.weight = nn.Parameter(weight, requires_grad=self.weight.requires_grad)


CrossAttentionForm = Literal["streamed", "grid", "plain"]

MIN_STREAMED_TOKENS = 1000
MIN_STREAMED_WIDTH = 32
"""Without dropout the streamed form was slower below these..."""

FEW_LATENTS = 16
"""...unless there are so few latents, whose logits cost next to nothing beside keys and values (docs/log.md)."""


class RotaryTime(nn.Module):
    """Rotations of continuous times: half of each head rotates, with log-spaced periods.

    Pair ``i`` turns by ``2 pi t / period_i`` with ``period_i = t_min (t_max / t_min)^(i / R)`` for
    ``i < R = dim_head / 4`` (POYO, Azabou et al. 2023, as coded in POYO+); the other pairs stay.
    """

    omega: Tensor

    def __init__(self, dim_head: int, *, t_min_s: float, t_max_s: float) -> None:
        super().__init__()
        num_turning = dim_head // 4
        exponent = torch.arange(num_turning, dtype=torch.float64) / num_turning
        omega = 2 * math.pi / (t_min_s * (t_max_s / t_min_s) ** exponent)
        self.register_buffer("omega", F.pad(omega, (0, num_turning)), persistent=False)

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        # Angles reach thousands of radians: the frequencies stay in float64 when the model is cast.
        omega = self.omega
        super()._apply(fn, recurse)
        self.omega = omega.to(self.omega.device)
        return self

    def forward(self, times: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the turns of `times`, ``(N,)`` or ``(B, N)`` in seconds."""
        angle = times.to(torch.float64).reshape(-1, times.shape[-1], 1) * self.omega  # (1|B, N, E/2)
        dtype = torch.promote_types(dtype, torch.float32)
        return torch.complex(angle.cos().to(dtype), angle.sin().to(dtype))


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Rotate the interleaved pairs ``(0, 1), (2, 3), ...`` of each head by its time."""
    pairs = torch.view_as_complex(x.to(turns.real.dtype).unflatten(-1, (-1, 2)))  # (B, H, N, E/2)
    return torch.view_as_real(pairs * turns.unsqueeze(1)).flatten(-2).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, dropout: float) -> Tensor:
    """Softmax attention; a query that may see nothing gets zeros instead of NaN."""
    if dropout and q.device.type == "cpu":
        return _attend_with_dropout(q, k, v, mask, dropout)
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    sees = mask.any(dim=-1, keepdim=True)  # (B, 1, 1|L, 1)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask | ~sees, dropout_p=dropout)
    return out * sees.to(out.dtype)


def _attend_with_dropout(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    # No fused kernel of a CPU knows dropout; torch's other path draws it one value at a time.
    logits = (q / math.sqrt(q.shape[-1])) @ k.mT  # (B, H, L, N)
    if mask is None:
        return drop(logits.softmax(-1), dropout) @ v
    sees = mask.any(dim=-1, keepdim=True)
    out = drop(logits.masked_fill(~(mask | ~sees), -math.inf).softmax(-1), dropout) @ v
    return out * sees.to(out.dtype)


def merge_heads(x: Tensor) -> Tensor:
    """Return ``(B, H, N, E)`` as ``(B, N, H * E)``."""
    return x.transpose(1, 2).flatten(-2)


class FeedForward(nn.Module):
    """LayerNorm, Linear D to 8D, GEGLU, dropout, Linear 4D to D."""

    def __init__(self, dim: int, *, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, 8 * dim)
        self.dropout = Dropout(dropout)
        self.contract = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branch for `x` ``(..., D)``."""
        value, gate = self.expand(self.norm(x)).chunk(2, dim=-1)  # (..., 4D) each
        return self.contract(self.dropout(value * F.gelu(gate)))  # (..., D)


class RotarySelfAttention(nn.Module):
    """Attention among latents; values rotate with their time and are rotated back by the query's."""

    def __init__(self, dim: int, *, heads: int, dim_head: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm = nn.LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, 3 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim)

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:
        """Return the branch for `x` ``(B, L, D)`` whose latents turn by `turns` ``(1 or B, L, E / 2)``."""
        qkv = by_head(self.to_qkv(self.norm(x)), 3 * self.heads)  # (B, 3H, L, E)
        q, k, v = rotate(qkv, turns).chunk(3, dim=1)  # (B, H, L, E) each
        out = attend(q, k, v, mask=None, dropout=self.dropout if self.training else 0.0)  # (B, H, L, E)
        return self.to_out(merge_heads(rotate(out, turns.conj())))  # (B, L, D)


class ReadoutAttention(nn.Module):
    """Cross-attention of one query per window to the latents; values are not rotated."""

    def __init__(self, dim: int, *, heads: int, dim_head: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm = nn.LayerNorm(dim)
        self.norm_context = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(dim, 2 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim)

    def forward(self, query: Tensor, latents: Tensor, at_query: Tensor, at_latents: Tensor) -> Tensor:
        """Return the branch for `query` ``(B, Q, D)`` reading `latents` ``(B, L, D)``."""
        q = rotate(by_head(self.to_q(self.norm(query)), self.heads), at_query)  # (B, H, Q, E)
        k, v = by_head(self.to_kv(self.norm_context(latents)), 2 * self.heads).chunk(2, dim=1)
        k = rotate(k, at_latents)  # (B, H, L, E)
        out = attend(q, k, v, mask=None, dropout=self.dropout if self.training else 0.0)  # (B, H, Q, E)
        return self.to_out(merge_heads(out))  # (B, Q, D)


def choose_form(
    device: torch.device, *, num_latents: int, num_tokens: int, dim_head: int, dropout: float
) -> CrossAttentionForm:
    """Return the form whose step was measured to be the fastest."""
    if device.type != "cpu" or torch.compiler.is_compiling():
        return "grid"
    large = num_tokens >= MIN_STREAMED_TOKENS and dim_head >= MIN_STREAMED_WIDTH
    return "streamed" if dropout or large or num_latents <= FEW_LATENTS else "grid"


class GridCrossAttention(nn.Module):
    """Cross-attention of latents to all tokens of a recording, in three forms with the same parameters and results.

    Form ``"plain"`` builds every token, normalises it and projects it: the reference. ``"grid"`` uses that a token's
    LayerNorm and projection separate into a part per neuron and a part per value, so the projection costs C rows
    instead of T x C (`poyo_ssl.models.token_grid`). ``"streamed"`` makes keys and values a few tokens at a time, and
    only the half of them that turns (`poyo_ssl.models.cpu_attention`).
    """

    def __init__(self, dim: int, *, heads: int, dim_head: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm = nn.LayerNorm(dim)
        self.norm_context = nn.LayerNorm(2 * dim)
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(2 * dim, 2 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim)

    def forward(
        self, latents: Tensor, grid: TokenGrid, at_latents: Tensor, *, form: CrossAttentionForm | None = None
    ) -> Tensor:
        """Return the branch ``(B, L, D)`` for `latents` ``(B or 1, L, D)``; `form` None leaves it to `choose_form`."""
        q = rotate(self.queries(latents), at_latents)  # (B|1, H, L, E)
        dropout = self.dropout if self.training else 0.0
        if form is None:
            num_tokens = grid.values.shape[1] * grid.values.shape[2]
            L, E = q.shape[-2:]
            form = choose_form(q.device, num_latents=L, num_tokens=num_tokens, dim_head=E, dropout=dropout)
        if form == "streamed":
            out = streamed_attention(q, grid, norm=self.norm_context, weight=self.to_kv.weight, dropout=dropout)
        else:
            k, v = self._plain_keys_values(grid) if form == "plain" else self._grid_keys_values(grid)
            out = attend(q.expand(len(grid.values), -1, -1, -1), k, v, mask=grid.token_mask(), dropout=dropout)
        return self.to_out(merge_heads(rotate(out, at_latents.conj())))  # (B, L, D)

    def queries(self, latents: Tensor) -> Tensor:
        """Return the queries ``(B or 1, H, L, E)`` of `latents`, not yet rotated."""
        return by_head(self.to_q(self.norm(latents)), self.heads)

    def _plain_keys_values(self, grid: TokenGrid) -> tuple[Tensor, Tensor]:
        num_neurons = grid.values.shape[-1]
        own = grid.units.unsqueeze(1) + grid.types[grid.kinds].unsqueeze(1)  # (B, T, C, D)
        tokens = torch.cat((own, grid.values.unsqueeze(-1) * grid.value_embedding.unsqueeze(1)), dim=-1)
        kv = by_head(self.to_kv(self.norm_context(tokens.flatten(1, 2))), 2 * self.heads)  # (B, 2H, T*C, E)
        turns = grid.turns.repeat_interleave(num_neurons, dim=1)  # (B|1, T*C, E/2)
        k, v = rotate(kv, turns).chunk(2, dim=1)
        return k, v

    def _grid_keys_values(self, grid: TokenGrid) -> tuple[Tensor, Tensor]:
        keys, values = project_grid(grid, norm=self.norm_context, weight=self.to_kv.weight, num_heads=self.heads)
        return keys.flatten(2, 3), values.flatten(2, 3)  # (B, H, T*C, E) each


UNIT_SECOND_S = 1.0
"""Span of the release's latent grid, whatever the window."""


@dataclass(frozen=True)
class Latents:
    """What the encoder makes of a batch, and when each latent is."""

    values: Tensor  # (B, L, D)
    times: Tensor  # (L,) float64 on the CPU, seconds from the start of the window
    turns: Tensor  # (1, L, E/2) complex, the rotation of `times`

    def with_values(self, values: Tensor) -> Latents:
        """Return other values at the same times."""
        return replace(self, values=values)


def latent_times(config: ModelConfig, duration_s: float) -> Tensor:
    """Return when a window's latents are, ``(L,)`` float64 seconds: each step's middle, repeated for its latents."""
    span_s = duration_s if config.latent_grid == "window" else UNIT_SECOND_S
    # The tolerance keeps 0.3 s / 0.1 s from being 2 steps.
    num_steps = max(1, int(span_s / config.latent_step_s + 1e-6))
    steps = (torch.arange(num_steps, dtype=torch.float64) + 0.5) * config.latent_step_s
    return steps.repeat_interleave(config.num_latents_per_step)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the CPU to `device`; a GPU is not waited for."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class GridTokens(nn.Module):
    """Embeddings that turn a batch into the token grid that the latents attend to.

    With start and end tokens each neuron has one more token at the window's first and one at its last
    moment, of value 0 and of their own type. With causal cross-attention a latent sees the start token and the
    frames up to its own time; nothing could see an end token, so there is none.

    Row c of `units` is the unit embedding; with value embeddings per unit it is twice as wide and its second
    half is the neuron's value embedding (there is then no shared `value`).
    """

    FRAME, START, END = 0, 1, 2

    def __init__(self, config: ModelConfig, *, num_units: int) -> None:
        super().__init__()
        self.start = config.start_end_tokens
        self.end = config.start_end_tokens and not config.causal_cross_attention
        self.causal = config.causal_cross_attention
        per_unit = config.value_embedding == "per_unit"
        self.units = GrowingEmbedding(num_units, 2 * config.dim if per_unit else config.dim)
        self.types = normal_parameter(3, config.dim)
        self.value = None if per_unit else normal_parameter(config.dim)

    def embed(self, unit_index: Tensor) -> tuple[Tensor, Tensor]:
        """Return unit embeddings ``(B, C, D)`` and value embeddings ``(1, 1, D)`` or ``(B, C, D)``."""
        units = self.units(unit_index)  # (B, C, D or 2D)
        if self.value is None:
            units, value_embedding = units.chunk(2, dim=-1)
            return units, value_embedding
        return units, self.value.view(1, 1, -1)

    def token_times(self, frame_times: Tensor, *, duration_s: float) -> Tensor:
        """Return the ``(B, T)`` times of frames `frame_times` with those of start and end around them."""
        edges = [frame_times.new_full((len(frame_times), 1), edge) for edge in (0.0, duration_s)]
        return torch.cat([edges[0]] * self.start + [frame_times] + [edges[1]] * self.end, dim=1)

    def forward(self, batch: Batch, times_of_latents: Tensor, rotary: RotaryTime) -> TokenGrid:
        """Return the grid of `batch`; T counts frames and the start and end tokens."""
        dtype = self.types.dtype
        dff = batch.dff.to(dtype).masked_fill(~batch.unit_mask.unsqueeze(1), 0.0)  # (B, F, C)
        values = nn.functional.pad(dff, (0, 0, int(self.start), int(self.end)))  # (B, T, C)
        # Filled in place: a list would be copied to a GPU while the program waits.
        kinds = torch.full((values.shape[1],), self.FRAME, device=dff.device)
        kinds[: int(self.start)] = self.START
        kinds[len(kinds) - int(self.end) :] = self.END
        times = self.token_times(batch.frame_times, duration_s=batch.duration_s)  # (B, T)
        units, value_embedding = self.embed(batch.unit_index)
        return TokenGrid(
            units=units,
            types=self.types,
            kinds=kinds,
            values=values,
            value_embedding=value_embedding,
            turns=rotary(times, dtype),
            unit_mask=batch.unit_mask if batch.padded else None,
            time_mask=self._time_mask(times, times_of_latents) if self.causal else None,
        )

    def _time_mask(self, times: Tensor, times_of_latents: Tensor) -> Tensor:
        """Return ``(B, L, T)``: a latent sees the start and what is not after it."""
        sees = times.unsqueeze(1) <= send(times_of_latents, times.device).to(times.dtype).unsqueeze(-1)
        sees[:, :, : int(self.start)] = True
        return sees


class EncoderBlock(nn.Module):
    """Cross-attention of the latents to the token grid and a feed-forward block, each with a residual."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.cross_attention = GridCrossAttention(
            config.dim, heads=config.cross_heads, dim_head=config.dim_head, dropout=config.attention_dropout
        )
        self.feed_forward = FeedForward(config.dim, dropout=config.ffn_dropout)

    def forward(
        self,
        latents: Tensor,
        grid: TokenGrid,
        at_latents: Tensor,
        *,
        residuals: bool = True,
        form: CrossAttentionForm | None = None,
    ) -> Tensor:
        """Return ``(B, L, D)`` from `latents` ``(1, L, D)``; without `residuals` both branches stand alone."""
        attended = self.cross_attention(latents, grid, at_latents, form=form)  # (B, L, D)
        return self.with_residuals(latents, attended) if residuals else self.feed_forward(attended)

    def with_residuals(self, latents: Tensor, attended: Tensor) -> Tensor:
        """Return the block's output for what the latents have `attended` to, ``(B, L, D)``."""
        z = latents + attended
        return z + self.feed_forward(z)

    def both(self, latents: Tensor, grid: TokenGrid, at_latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output with and without residuals, from one cross-attention, ``(B, L, D)`` each.

        In training the two share one draw of attention dropout, and draw that of the feed-forward block apart.
        """
        attended = self.cross_attention(latents, grid, at_latents)  # (B, L, D)
        return self.with_residuals(latents, attended), self.feed_forward(attended)


class ProcessorBlock(nn.Module):
    """Self-attention among latents and a feed-forward block, both residual with dropout on the branch."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attention = RotarySelfAttention(
            config.dim, heads=config.self_heads, dim_head=config.dim_head, dropout=config.attention_dropout
        )
        self.feed_forward = FeedForward(config.dim, dropout=config.ffn_dropout)
        self.dropout = Dropout(config.residual_dropout)

    def forward(self, latents: Latents) -> Latents:
        """Return the latents after the block."""
        z = latents.values  # (B, L, D)
        z = z + self.dropout(self.self_attention(z, latents.turns))
        return latents.with_values(z + self.dropout(self.feed_forward(z)))


CHANNELS = (128, 64, 32, 16, 32)
"""Channels after each up-block of the release, coarsest first."""

START_VALUES = 4096
SKIP_VALUES = 2048
"""Ours: a projected map has as many channels as fit this many numbers, at least one."""

NEGATIVE_SLOPE = 0.2


def start_grid(height: int, width: int) -> tuple[int, int, int]:
    """Return the coarsest grid of a frame and the number of doublings that lead from it to the frame.

    Both sides are halved as long as both stay even and at least 2.
    """
    num_blocks = 0
    while height % 2 == 0 and width % 2 == 0 and min(height, width) >= 4:
        height, width, num_blocks = height // 2, width // 2, num_blocks + 1
    return height, width, num_blocks


def block_channels(num_blocks: int) -> tuple[int, ...]:
    """Return the channels of each up-block, coarsest first: the last of the release's, widened to the front."""
    return ((CHANNELS[0],) * max(0, num_blocks - len(CHANNELS)) + CHANNELS)[-num_blocks:]


class UpBlock(nn.Module):
    """Bilinear x 2, 3 x 3 convolution, BatchNorm, LeakyReLU; then the latent's own map fused by a 1 x 1."""

    def __init__(self, dim: int, *, in_channels: int, out_channels: int, height: int, width: int, skips: bool) -> None:
        super().__init__()
        self.grow = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.LeakyReLU(NEGATIVE_SLOPE),
        )
        self.project: nn.Sequential | None = None
        self.fuse: nn.Conv2d | None = None
        if skips:
            skip_channels = max(1, min(out_channels, SKIP_VALUES // (height * width)))
            self.project = nn.Sequential(
                nn.Linear(dim, skip_channels * height * width), nn.Unflatten(1, (skip_channels, height, width))
            )
            self.fuse = nn.Conv2d(out_channels + skip_channels, out_channels, 1)

    def forward(self, x: Tensor, latent: Tensor) -> Tensor:
        """Return ``(B, out, 2h, 2w)`` from `x` ``(B, in, h, w)`` and `latent` ``(B, D)``."""
        x = self.grow(x)  # (B, out, 2h, 2w)
        if self.project is None or self.fuse is None:
            return x
        return self.fuse(torch.cat((x, self.project(latent)), dim=1))  # (B, out, 2h, 2w)


class FrameDecoder(nn.Module):
    """Grey frames of 0-1 from latent vectors.

    The sigmoid at the end has a gradient everywhere (the release's tanh and clamp have not).
    """

    def __init__(self, dim: int, *, height: int, width: int, skips: bool) -> None:
        super().__init__()
        h, w, num_blocks = start_grid(height, width)
        channels = max(1, min(CHANNELS[0], START_VALUES // (h * w)))
        self.start = nn.Sequential(nn.Linear(dim, channels * h * w), nn.Unflatten(1, (channels, h, w)))
        blocks = []
        for out_channels in block_channels(num_blocks):
            h, w = 2 * h, 2 * w
            blocks.append(UpBlock(dim, in_channels=channels, out_channels=out_channels, height=h, width=w, skips=skips))
            channels = out_channels
        self.blocks = nn.ModuleList(blocks)
        self.to_grey = nn.Conv2d(channels, 1, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        """Return frames ``(B, H, W)`` from `latent` ``(B, D)``."""
        x = self.start(latent)  # (B, 128, h, w)
        for block in self.blocks:
            x = block(x, latent)  # (B, channels, 2h, 2w), doubling each time
        return torch.sigmoid(self.to_grey(x)).squeeze(1)  # (B, H, W)


SCALE_AT_START = 25.0
"""Logit of a window that points exactly at a prototype, before training."""


class ValueSkip(nn.Module):
    """Logits ``scale * cos(h - centre, prototype_k)`` of the population vector h, the sum over bins and neurons of x w.

    Every neuron has a vector w in each time bin, every recording a centre. The cosine does not see how large a
    population's response is, which varies with the animal's state, only its direction. It starts best from what
    `poyo_ssl.training.value_skip.fit_value_skip` measures on the training part; drawn weights are small and train too.
    """

    def __init__(self, *, num_bins: int, dim: int, num_classes: int, num_units: int, num_sessions: int) -> None:
        super().__init__()
        self.num_bins = num_bins
        self.units = GrowingEmbedding(num_units, num_bins * dim)
        self.centres = GrowingEmbedding(num_sessions, dim)
        self.prototypes = normal_parameter(num_classes, dim)
        self.log_scale = nn.Parameter(torch.tensor(SCALE_AT_START).log())

    def forward(self, batch: Batch) -> Tensor:
        """Return logits ``(B, K)``."""
        binned = bin_values(batch, self.num_bins).to(self.prototypes.dtype)  # (B, C, P)
        index = batch.unit_index
        if bool((index == index[:1]).all()):
            # The usual case, windows of one recording: one table for all of them.
            h = binned.flatten(1) @ self.units(index[0]).reshape(binned[0].numel(), -1)  # (B, R)
        else:
            rows = self.units(index).unflatten(-1, (self.num_bins, -1))  # (B, C, P, R)
            h = torch.einsum("bcp,bcpr->br", binned, rows)
        h = h - self.centres(batch.session_index)
        return self.log_scale.exp() * (F.normalize(h, dim=-1) @ F.normalize(self.prototypes, dim=-1).T)


def bin_values(batch: Batch, num_bins: int) -> Tensor:
    """Average dF/F in time bins, neuron by neuron."""
    dff = batch.dff.masked_fill(~batch.unit_mask.unsqueeze(1), 0.0)
    return F.adaptive_avg_pool1d(dff.mT, num_bins)


class Readout(nn.Module):
    """What one task adds to the shared model: its query embedding and its head."""

    def __init__(self, config: ReadoutConfig, *, dim: int, num_units: int = 0, num_sessions: int = 0) -> None:
        super().__init__()
        self.config = config
        self.query = normal_parameter(dim)
        self.skip: ValueSkip | None = None
        if config.value_skip_bins:
            self.skip = ValueSkip(
                num_bins=config.value_skip_bins,
                dim=config.value_skip_dim,
                num_classes=config.num_classes,
                num_units=num_units,
                num_sessions=num_sessions,
            )
        self.head: nn.Module
        if config.kind == "frames":
            self.head = FrameDecoder(dim, height=config.height, width=config.width, skips=config.skips)
        else:
            self.head = nn.Linear(dim, config.num_classes if config.kind == "classes" else 1)

    def forward(self, vector: Tensor, batch: Batch | None = None) -> Tensor:
        """Return logits ``(B, K)``, positions ``(B,)`` of 0-1 or frames ``(B, H, W)`` of 0-1.

        With a value skip, `batch` is needed and the logits are the sum of both.
        """
        out = self.head(vector)
        if self.skip is not None:
            if batch is None:
                raise ConfigError("a readout with a value skip got no windows", fix="pass the batch to readout()")
            return out + self.skip(batch)
        return torch.sigmoid(out.squeeze(-1)) if self.config.kind == "position" else out

    def silence_head(self) -> None:
        """Set weights and bias of the head of a value skip's readout to 0, so that the skip speaks alone at first."""
        assert isinstance(self.head, nn.Linear)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)


class PoyoSSL(nn.Module):
    """Encoder, processor and readouts."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        num_units: int,
        num_sessions: int,
        readouts: Mapping[str, ReadoutConfig],
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        with _drawn_from(generator):
            self.rotary = RotaryTime(config.dim_head, t_min_s=config.rotary_t_min_s, t_max_s=config.rotary_t_max_s)
            self.tokens = GridTokens(config, num_units=num_units)
            self.latents = normal_parameter(config.num_latents_per_step, config.dim)
            self.encoder = EncoderBlock(config)
            self.processor = nn.ModuleList(ProcessorBlock(config) for _ in range(config.depth))
            self.sessions = GrowingEmbedding(num_sessions, config.dim)
            # The published 1.27 M count holds for a readout with the heads of the encoder's cross-attention.
            self.readout_attention = ReadoutAttention(
                config.dim, heads=config.cross_heads, dim_head=config.dim_head, dropout=config.attention_dropout
            )
            self.readout_feed_forward = FeedForward(config.dim, dropout=config.ffn_dropout)
            self.readout_dropout = Dropout(config.readout_dropout)
            self.readouts = nn.ModuleDict(
                {
                    task: Readout(readout, dim=config.dim, num_units=num_units, num_sessions=num_sessions)
                    for task, readout in readouts.items()
                }
            )

    def encode(self, batch: Batch, *, residuals: bool = True, form: CrossAttentionForm | None = None) -> Latents:
        """Let the latents read the recording."""
        learned, grid = self._encoder_inputs(batch)
        values = self.encoder(learned.values, grid, learned.turns, residuals=residuals, form=form)  # (B, L, D)
        return learned.with_values(values)

    def encode_twins(self, batch: Batch) -> tuple[Latents, Latents]:
        """Return `encode` with and without residuals, from one cross-attention; values ``(B, L, D)`` each."""
        learned, grid = self._encoder_inputs(batch)
        with_residuals, without = self.encoder.both(learned.values, grid, learned.turns)
        return learned.with_values(with_residuals), learned.with_values(without)

    def initial_latents(self, duration_s: float) -> Latents:
        """Return the learned latents ``(1, L, D)`` of a window, before they have read anything."""
        times = latent_times(self.config, duration_s)  # (L,), on the CPU
        num_steps = len(times) // len(self.latents)
        turns = self.rotary(send(times, self.latents.device), self.latents.dtype)  # (1, L, E/2)
        return Latents(self.latents.repeat(num_steps, 1).unsqueeze(0), times, turns)

    def _encoder_inputs(self, batch: Batch) -> tuple[Latents, TokenGrid]:
        learned = self.initial_latents(batch.duration_s)
        return learned, self.tokens(batch, learned.times, self.rotary)  # T + 2 times x C neurons

    def process(self, latents: Latents) -> Latents:
        """Let the latents attend to one another, `depth` times; shapes stay."""
        for block in self.processor:
            latents = block(latents)
        return latents

    def readout(
        self,
        task: str,
        latents: Latents,
        *,
        session_index: Tensor,
        target_time: Tensor,
        batch: Batch | None = None,
    ) -> Tensor:
        """Read a task's output at one time per window."""
        if task not in self.readouts:
            raise ConfigError(
                f"no readout named {task!r}{suggest(task, self.readouts)}",
                allowed=", ".join(self.readouts) or "none: the model was built without readouts",
                fix="name one of the model's readouts or build the model with this one",
            )
        head = self.readouts[task]
        query = (self.sessions(session_index) + head.query).unsqueeze(1)  # (B, 1, D)
        at_query = self.rotary(target_time.unsqueeze(1), query.dtype)  # (B, 1, E/2)
        query = query + self.readout_attention(query, latents.values, at_query, latents.turns)  # (B, 1, D)
        query = query + self.readout_feed_forward(query)  # (B, 1, D)
        return head(self.readout_dropout(query.squeeze(1)), batch)

    def forward(self, batch: Batch, task: str) -> Tensor:
        """Return the output of `task` for `batch`: encode, process, readout."""
        latents = self.process(self.encode(batch))  # (B, L, D)
        return self.readout(
            task, latents, session_index=batch.session_index, target_time=batch.target_time, batch=batch
        )

    def grow(self, *, num_units: int, num_sessions: int, generator: torch.Generator | None = None) -> None:
        """Make room for more units and recordings; the old ones keep their rows and predictions."""
        self.tokens.units.grow(num_units, generator)
        self.sessions.grow(num_sessions, generator)
        for readout in self.readouts.values():
            assert isinstance(readout, Readout)
            if readout.skip is not None:
                readout.skip.units.grow(num_units, generator)
                readout.skip.centres.grow(num_sessions, generator)

    def num_parameters(self) -> dict[str, int]:
        """Count the parameters: `core`, `units`, `sessions`, `readouts` (queries and heads) and `total`.

        The core is encoder, processor, readout attention and the embeddings of latents, types and (if shared)
        value; value embeddings per unit count as units.
        """
        total = sum(p.numel() for p in self.parameters())
        parts = {
            "units": self.tokens.units.weight.numel(),
            "sessions": self.sessions.weight.numel(),
            "readouts": sum(p.numel() for p in self.readouts.parameters()),
        }
        return {"core": total - sum(parts.values()), **parts, "total": total}


def model_config(size: str, **settings: Any) -> ModelConfig:
    """Return the configuration of a named size."""
    if size not in MODEL_SIZES:
        raise ConfigError(
            f"unknown model size {size!r}{suggest(size, MODEL_SIZES)}",
            allowed=", ".join(MODEL_SIZES),
            fix="name one of these",
        )
    return ModelConfig(**{**MODEL_SIZES[size], **settings})


def count_parameters(size: str) -> int:
    """Return the core parameters of a named size, without building its weights.

    Parameters
    ----------
    size : str
        A name in `poyo_ssl.config.MODEL_SIZES`.

    Raises
    ------
    ConfigError
        If there is no such size.

    Examples
    --------
    >>> count_parameters("1M")
    1270400
    """
    with torch.device("meta"):
        model = PoyoSSL(model_config(size), num_units=0, num_sessions=0, readouts={})
    return model.num_parameters()["core"]


@contextlib.contextmanager
def _drawn_from(generator: torch.Generator | None) -> Iterator[None]:
    """Let torch's initialisers draw from `generator`, and leave the global state as it was."""
    if generator is None:
        yield
        return
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
