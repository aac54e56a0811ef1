"""Rotary attention: latents among themselves, latents to the recording, a readout query to the latents.

All blocks are pre-LayerNorm and return the branch only; the residual is added where they are used. Shapes in
the comments: B windows, L latents, T token times, C neurons, N tokens, H heads, E width of a head. Rotations
are complex factors of the E / 2 pairs of a head, computed once per batch.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poyo_ssl.models.dropout import Dropout, drop
from poyo_ssl.models.grid_tokens import project_grid
from poyo_ssl.models.streamed_attention import streamed_attention
from poyo_ssl.models.token_grid import TokenGrid

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

    Parameters
    ----------
    dim_head : int
        Width E of a head, a multiple of 4.
    t_min_s, t_max_s : float
        Shortest period and the limit of the longest, in seconds.

    Examples
    --------
    >>> turns = RotaryTime(8, t_min_s=1.0, t_max_s=4.0)(torch.tensor([0.0, 0.5]), torch.float32)
    >>> turns.shape
    torch.Size([1, 2, 4])
    >>> turns[0, 1].angle().div(torch.pi).tolist()  # half a turn of 1 s, a quarter turn of 2 s, and none
    [1.0, 0.5, 0.0, 0.0]
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
        """Return the turns of `times`, ``(N,)`` or ``(B, N)`` in seconds.

        Returns
        -------
        Tensor
            ``(1 or B, N, E / 2)``, complex with parts of `dtype` (of float32 at least): the factor of each pair.
        """
        angle = times.to(torch.float64).reshape(-1, times.shape[-1], 1) * self.omega  # (1|B, N, E/2)
        dtype = torch.promote_types(dtype, torch.float32)
        return torch.complex(angle.cos().to(dtype), angle.sin().to(dtype))


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Rotate the interleaved pairs ``(0, 1), (2, 3), ...`` of each head by its time.

    Parameters
    ----------
    x : Tensor
        ``(B, H, N, E)``.
    turns : Tensor
        ``(1 or B, N, E / 2)`` complex; their conjugate rotates back.

    Returns
    -------
    Tensor
        ``(B, H, N, E)``.

    Examples
    --------
    >>> turns = RotaryTime(4, t_min_s=1.0, t_max_s=4.0)(torch.tensor([0.25]), torch.float32)
    >>> rotate(torch.tensor([2.0, 0.0, 5.0, 6.0]).view(1, 1, 1, 4), turns).round().abs().flatten().tolist()
    [0.0, 2.0, 5.0, 6.0]
    """
    pairs = torch.view_as_complex(x.to(turns.real.dtype).unflatten(-1, (-1, 2)))  # (B, H, N, E/2)
    return torch.view_as_real(pairs * turns.unsqueeze(1)).flatten(-2).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, dropout: float) -> Tensor:
    """Softmax attention; a query that may see nothing gets zeros instead of NaN.

    Parameters
    ----------
    q : Tensor
        ``(B, H, L, E)``.
    k, v : Tensor
        ``(B, H, N, E)``.
    mask : Tensor, optional
        ``(B, 1, 1 or L, N)`` bool, True where a query may look.
    dropout : float
        Dropout of the attention probabilities.

    Returns
    -------
    Tensor
        ``(B, H, L, E)``.

    Examples
    --------
    >>> q, v = torch.zeros(1, 1, 1, 4), torch.arange(8.0).view(1, 1, 2, 4)
    >>> attend(q, v, v, mask=None, dropout=0.0).flatten().tolist()
    [2.0, 3.0, 4.0, 5.0]
    >>> attend(q, v, v, mask=torch.zeros(1, 1, 1, 2, dtype=torch.bool), dropout=0.0).flatten().tolist()
    [0.0, 0.0, 0.0, 0.0]
    """
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


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Return ``(B, N, H * E)`` as ``(B, H, N, E)``."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Return ``(B, H, N, E)`` as ``(B, N, H * E)``."""
    return x.transpose(1, 2).flatten(-2)


class FeedForward(nn.Module):
    """LayerNorm, Linear D to 8D, GEGLU, dropout, Linear 4D to D.

    Parameters
    ----------
    dim : int
        Width D.
    dropout : float
        Dropout on the gated activations.

    Examples
    --------
    >>> FeedForward(8, dropout=0.0)(torch.zeros(2, 3, 8)).shape
    torch.Size([2, 3, 8])
    """

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
    """Attention among latents; values rotate with their time and are rotated back by the query's.

    Parameters
    ----------
    dim, heads, dim_head : int
        Width of the latents, number of heads, width of a head.
    dropout : float
        Dropout of the attention probabilities.

    Examples
    --------
    >>> turns = RotaryTime(8, t_min_s=0.1, t_max_s=4.0)(torch.arange(3.0), torch.float32)
    >>> RotarySelfAttention(16, heads=2, dim_head=8, dropout=0.0)(torch.zeros(2, 3, 16), turns).shape
    torch.Size([2, 3, 16])
    """

    def __init__(self, dim: int, *, heads: int, dim_head: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm = nn.LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, 3 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim)

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:
        """Return the branch for `x` ``(B, L, D)`` whose latents turn by `turns` ``(1 or B, L, E / 2)``."""
        qkv = split_heads(self.to_qkv(self.norm(x)), 3 * self.heads)  # (B, 3H, L, E)
        q, k, v = rotate(qkv, turns).chunk(3, dim=1)  # (B, H, L, E) each
        out = attend(q, k, v, mask=None, dropout=self.dropout if self.training else 0.0)  # (B, H, L, E)
        return self.to_out(merge_heads(rotate(out, turns.conj())))  # (B, L, D)


class ReadoutAttention(nn.Module):
    """Cross-attention of one query per window to the latents; values are not rotated.

    Parameters
    ----------
    dim, heads, dim_head : int
        Width of query and latents, number of heads, width of a head.
    dropout : float
        Dropout of the attention probabilities.

    Examples
    --------
    >>> rotary = RotaryTime(8, t_min_s=0.1, t_max_s=4.0)
    >>> at_query, at_latents = rotary(torch.ones(2, 1), torch.float32), rotary(torch.arange(3.0), torch.float32)
    >>> readout = ReadoutAttention(16, heads=2, dim_head=8, dropout=0.0)
    >>> readout(torch.zeros(2, 1, 16), torch.zeros(2, 3, 16), at_query, at_latents).shape
    torch.Size([2, 1, 16])
    """

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
        q = rotate(split_heads(self.to_q(self.norm(query)), self.heads), at_query)  # (B, H, Q, E)
        k, v = split_heads(self.to_kv(self.norm_context(latents)), 2 * self.heads).chunk(2, dim=1)
        k = rotate(k, at_latents)  # (B, H, L, E)
        out = attend(q, k, v, mask=None, dropout=self.dropout if self.training else 0.0)  # (B, H, Q, E)
        return self.to_out(merge_heads(out))  # (B, Q, D)


def choose_form(
    device: torch.device, *, num_latents: int, num_tokens: int, dim_head: int, dropout: float
) -> CrossAttentionForm:
    """Return the form whose step was measured to be the fastest.

    Parameters
    ----------
    device : device
        Where the attention runs; off the CPU torch's fused attention takes all keys and values at once.
    num_latents, num_tokens, dim_head : int
        Latents and tokens per window, width of a head.
    dropout : float
        Dropout of the attention probabilities.

    Examples
    --------
    >>> cpu = torch.device("cpu")
    >>> choose_form(cpu, num_latents=128, num_tokens=11_800, dim_head=64, dropout=0.2)
    'streamed'
    >>> choose_form(cpu, num_latents=128, num_tokens=600, dim_head=64, dropout=0.0)
    'grid'
    """
    if device.type != "cpu" or torch.compiler.is_compiling():
        return "grid"
    large = num_tokens >= MIN_STREAMED_TOKENS and dim_head >= MIN_STREAMED_WIDTH
    return "streamed" if dropout or large or num_latents <= FEW_LATENTS else "grid"


class GridCrossAttention(nn.Module):
    """Cross-attention of latents to all tokens of a recording, in three forms with the same parameters and results.

    Form ``"plain"`` builds every token, normalises it and projects it: the reference. ``"grid"`` uses that a token's
    LayerNorm and projection separate into a part per neuron and a part per value, so the projection costs C rows
    instead of T x C (`poyo_ssl.models.grid_tokens`). ``"streamed"`` makes keys and values a few tokens at a time, and
    only the half of them that turns (`poyo_ssl.models.streamed_attention`).

    Parameters
    ----------
    dim, heads, dim_head : int
        Width of the latents (tokens are twice as wide), number of heads, width of a head.
    dropout : float
        Dropout of the attention probabilities; above 0 torch's fused kernels cannot be used in training on a CPU.

    Examples
    --------
    >>> rotary = RotaryTime(8, t_min_s=0.1, t_max_s=4.0)
    >>> grid = TokenGrid(
    ...     units=torch.randn(2, 5, 16), types=torch.randn(3, 16), kinds=torch.tensor([1, 0, 2]),
    ...     values=torch.randn(2, 3, 5), value_embedding=torch.randn(1, 1, 16),
    ...     turns=rotary(torch.arange(3.0), torch.float32))
    >>> attention = GridCrossAttention(16, heads=2, dim_head=8, dropout=0.0)
    >>> latents, at_latents = torch.randn(1, 4, 16), rotary(torch.arange(4.0), torch.float32)
    >>> streamed, plain = (attention(latents, grid, at_latents, form=form) for form in ("streamed", "plain"))
    >>> streamed.shape, torch.allclose(streamed, plain, atol=1e-5)
    (torch.Size([2, 4, 16]), True)
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
        q = split_heads(self.to_q(self.norm(latents)), self.heads)  # (B|1, H, L, E)
        q = rotate(q, at_latents)
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

    def _plain_keys_values(self, grid: TokenGrid) -> tuple[Tensor, Tensor]:
        num_neurons = grid.values.shape[-1]
        own = grid.units.unsqueeze(1) + grid.types[grid.kinds].unsqueeze(1)  # (B, T, C, D)
        tokens = torch.cat((own, grid.values.unsqueeze(-1) * grid.value_embedding.unsqueeze(1)), dim=-1)
        kv = split_heads(self.to_kv(self.norm_context(tokens.flatten(1, 2))), 2 * self.heads)  # (B, 2H, T*C, E)
        turns = grid.turns.repeat_interleave(num_neurons, dim=1)  # (B|1, T*C, E/2)
        k, v = rotate(kv, turns).chunk(2, dim=1)
        return k, v

    def _grid_keys_values(self, grid: TokenGrid) -> tuple[Tensor, Tensor]:
        keys, values = project_grid(
            units=grid.units,
            types=grid.types[grid.kinds],
            values=grid.values,
            value_embedding=grid.value_embedding,
            norm=self.norm_context,
            weight=self.to_kv.weight,
            num_heads=self.heads,
            turns=grid.turns,
        )  # (B, H, T, C, E) each
        return keys.flatten(2, 3), values.flatten(2, 3)
