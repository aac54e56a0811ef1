"""What a model's first cross-attention consists of, for code that computes it in another order (`poyo_ssl.online`).

The names of its parameters are known here and nowhere in that code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poyo_ssl.models.encoder import GridTokens, latent_times
from poyo_ssl.models.poyo_ssl import PoyoSSL


@dataclass(frozen=True)
class EncoderPieces:
    """The first cross-attention of a model for one recording, before any value or time is known.

    Every key and value is a sum of the projections below, as `poyo_ssl.models.grid_tokens` explains. D is the width
    of the model, H the heads, E the width of a head, L latents, C neurons.

    Attributes
    ----------
    latents : Tensor
        ``(L, D)``, repeated at every latent step.
    times_of_latents : Tensor
        ``(L,)`` float64 seconds from the start of the window.
    queries : Tensor
        ``(L, H, E)``, neither rotated nor scaled.
    units, value_embedding, types : Tensor
        ``(C, D)``, ``(1 or C, D)`` and ``(3, D)``: what tokens are made of.
    projections : dict
        ``(rows, 2, H, E)`` each, keys and values: A ('own', a row per neuron), p ('along', 1 or C rows), T ('types', 3
        rows), -h ('mean') and s ('bias').
    eps : float
        Added to a token's variance.
    omega : Tensor
        ``(E / 4,)`` float64 radians per second of the pairs that rotate.
    to_out : Module
        Projection of the joined heads, ``(..., H E)`` to ``(..., D)``.
    edges : list of tuple
        Kind and time in seconds of the start and end tokens.
    causal : bool
        A latent sees the frames up to its own time only.
    """

    latents: Tensor
    times_of_latents: Tensor
    queries: Tensor
    units: Tensor
    value_embedding: Tensor
    types: Tensor
    projections: dict[str, Tensor]
    eps: float
    omega: Tensor
    to_out: nn.Module
    edges: list[tuple[int, float]]
    causal: bool


@torch.no_grad()
def encoder_pieces(model: PoyoSSL, unit_index: Tensor, *, duration_s: float) -> EncoderPieces:
    """Read the pieces of `model` for the neurons `unit_index` ``(C,)`` and windows of `duration_s`.

    Examples
    --------
    >>> from poyo_ssl.config import ModelConfig
    >>> model = PoyoSSL(ModelConfig(dim=8, dim_head=4), num_units=3, num_sessions=1, readouts={}).eval()
    >>> pieces = encoder_pieces(model, torch.tensor([1, 2, 3]), duration_s=0.1)
    >>> {name: tuple(rows.shape) for name, rows in pieces.projections.items()}["own"], pieces.edges
    ((3, 2, 2, 4), [(1, 0.0), (2, 0.1)])
    """
    tokens, attention, config = model.tokens, model.encoder.cross_attention, model.config
    times = latent_times(config, duration_s)
    latents = model.latents.detach().repeat(len(times) // len(model.latents), 1)
    units, value_embedding = tokens.units(unit_index), tokens.value
    # Value embeddings of each neuron's own are the second half of its row.
    units, along = units.chunk(2, dim=-1) if value_embedding is None else (units, value_embedding.unsqueeze(0))
    norm, weight = attention.norm_context, attention.to_kv.weight
    (gain_unit, gain_value), (of_unit, of_value) = norm.weight.chunk(2), weight.chunk(2, dim=-1)
    rows = {
        "own": F.linear(units * gain_unit, of_unit),
        "along": F.linear(along * gain_value, of_value),
        "types": F.linear(tokens.types * gain_unit, of_unit),
        "mean": F.linear(-norm.weight, weight).unsqueeze(0),
        "bias": F.linear(norm.bias, weight).unsqueeze(0),
    }
    return EncoderPieces(
        latents=latents,
        times_of_latents=times,
        queries=attention.to_q(attention.norm(latents)).unflatten(-1, (attention.heads, -1)),
        units=units,
        value_embedding=along,
        types=tokens.types.detach(),
        projections={name: row.unflatten(-1, (2, attention.heads, -1)) for name, row in rows.items()},
        eps=norm.eps,
        omega=model.rotary.omega[: config.dim_head // 4],
        to_out=attention.to_out,
        edges=[(GridTokens.START, 0.0)] * tokens.start + [(GridTokens.END, duration_s)] * tokens.end,
        causal=tokens.causal,
    )
