"""From a batch of dF/F to latents: the token grid, the latents' times and the encoder block."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from poyo_ssl.config import ModelConfig
from poyo_ssl.data.batch import Batch
from poyo_ssl.models.attention import (
    CrossAttentionForm,
    FeedForward,
    GridCrossAttention,
    RotaryTime,
    TokenGrid,
)
from poyo_ssl.models.embeddings import GrowingEmbedding, normal_parameter

UNIT_SECOND_S = 1.0
"""Span of the release's latent grid, whatever the window."""


@dataclass(frozen=True)
class Latents:
    """What the encoder makes of a batch, and when each latent is.

    Attributes
    ----------
    values : Tensor
        ``(B, L, D)``.
    times : Tensor
        ``(L,)`` float64 on the CPU, seconds from the start of the window.
    turns : Tensor
        ``(1, L, E / 2)`` complex rotation of `times`.
    """

    values: Tensor
    times: Tensor
    turns: Tensor

    def with_values(self, values: Tensor) -> Latents:
        """Return other values at the same times."""
        return replace(self, values=values)


def latent_times(config: ModelConfig, duration_s: float) -> Tensor:
    """Return the times of the latents of one window.

    Parameters
    ----------
    config : ModelConfig
        Its `latent_grid`, `latent_step_s` and `num_latents_per_step`.
    duration_s : float
        Length of the window.

    Returns
    -------
    Tensor
        ``(L,)`` float64 seconds: each step ``(k + 1/2) * latent_step_s``, at least one, repeated for its latents.

    Examples
    --------
    >>> latent_times(ModelConfig(num_latents_per_step=2), 0.3).tolist()
    [0.0625, 0.0625, 0.1875, 0.1875]
    >>> latent_times(ModelConfig(num_latents_per_step=1, latent_grid="unit_second"), 0.3).shape
    torch.Size([8])
    """
    span_s = duration_s if config.latent_grid == "window" else UNIT_SECOND_S
    # The tolerance keeps 0.3 s / 0.1 s from being 2 steps.
    num_steps = max(1, int(span_s / config.latent_step_s + 1e-6))
    steps = (torch.arange(num_steps, dtype=torch.float64) + 0.5) * config.latent_step_s
    return steps.repeat_interleave(config.num_latents_per_step)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the CPU to `device`; a GPU is not waited for.

    Examples
    --------
    >>> send(torch.ones(2), torch.device("cpu")).tolist()
    [1.0, 1.0]
    """
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class GridTokens(nn.Module):
    """Embeddings that turn a batch into the token grid that the latents attend to.

    With start and end tokens each neuron has one more token at the window's first and one at its last
    moment, of value 0 and of their own type. With causal cross-attention a latent sees the start token and the
    frames up to its own time; nothing could see an end token, so there is none.

    Row c of `units` is the unit embedding; with value embeddings per unit it is twice as wide and its second
    half is the neuron's value embedding (there is then no shared `value`).

    Parameters
    ----------
    config : ModelConfig
        `dim`, `start_end_tokens`, `causal_cross_attention` and `value_embedding`.
    num_units : int
        Known units.

    Examples
    --------
    >>> tokens = GridTokens(ModelConfig(dim=8, dim_head=8), num_units=3)
    >>> tokens.token_times(torch.tensor([[0.1, 0.2]]), duration_s=0.3).tolist()
    [[0.0, 0.1..., 0.2..., 0.3...]]
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
        units = self.units(batch.unit_index)  # (B, C, D or 2D)
        if self.value is None:
            units, value_embedding = units.chunk(2, dim=-1)  # (B, C, D) each
        else:
            value_embedding = self.value.view(1, 1, -1)
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
        sees = times.unsqueeze(1) <= times_of_latents.to(times.dtype).unsqueeze(-1)
        sees[:, :, : int(self.start)] = True
        return sees


class EncoderBlock(nn.Module):
    """Cross-attention of the latents to the token grid and a feed-forward block, each with a residual.

    Parameters
    ----------
    config : ModelConfig
        Widths, heads and dropouts.

    Examples
    --------
    >>> sum(p.numel() for p in EncoderBlock(ModelConfig()).parameters())
    99456
    """

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
