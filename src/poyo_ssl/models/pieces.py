"""What a model consists of, for code that computes it in another order (`poyo_ssl.online`).

The names of its parameters are known here and nowhere in that code. LayerNorm's gain and bias are already in the
weights of the projection that follows it. D is the width of the model, H the heads, E the width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poyo_ssl.models.poyo_ssl import (
    FeedForward,
    FrameDecoder,
    GridTokens,
    PoyoSSL,
    ProcessorBlock,
    Readout,
    UpBlock,
    latent_times,
    split_heads,
)


@dataclass(frozen=True)
class EncoderPieces:
    """The first cross-attention of a model for one recording, before any value or time is known.

    Every key and value is a sum of the projections below, as `poyo_ssl.models.token_grid` explains. L latents, C
    neurons.

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


@dataclass(frozen=True)
class NormedProjection:
    """A linear layer behind LayerNorm: ``weight @ normal + bias`` of a row with mean 0 and variance 1.

    Attributes
    ----------
    weight : Tensor
        ``(out, D)``.
    bias : Tensor
        ``(out,)``.
    eps : float
        Added to the variance of a row.
    """

    weight: Tensor
    bias: Tensor
    eps: float


@dataclass(frozen=True)
class FeedForwardPieces:
    """A feed-forward block: ``(gelu(gate) * value) @ contract.T + contract_bias``.

    Attributes
    ----------
    expand : NormedProjection
        8D rows, first those of `value`, then those of `gate`.
    contract, contract_bias : Tensor
        ``(D, 4D)`` and ``(D,)``.
    """

    expand: NormedProjection
    contract: Tensor
    contract_bias: Tensor


@dataclass(frozen=True)
class ProcessorPieces:
    """One block of self-attention.

    Attributes
    ----------
    to_qkv : NormedProjection
        3HE rows: queries, keys and values of every head.
    to_out, out_bias : Tensor
        ``(D, H E)`` and ``(D,)``.
    feed_forward : FeedForwardPieces
        What follows.
    """

    to_qkv: NormedProjection
    to_out: Tensor
    out_bias: Tensor
    feed_forward: FeedForwardPieces


@dataclass(frozen=True)
class ReadoutPieces:
    """The cross-attention of one query for one task and one recording.

    Attributes
    ----------
    query : Tensor
        ``(1, D)``.
    projected_query : Tensor
        ``(1, H, 1, E)``, neither rotated nor scaled.
    keys, values : Tensor
        ``(H, E, D)`` each, to be used on latents behind LayerNorm.
    gain, bias : Tensor
        ``(D,)`` of that LayerNorm.
    eps : float
        Added to the variance of a latent.
    to_out, out_bias : Tensor
        ``(H, D, E)`` and ``(D,)``.
    feed_forward : FeedForwardPieces
        What follows.
    """

    query: Tensor
    projected_query: Tensor
    keys: Tensor
    values: Tensor
    gain: Tensor
    bias: Tensor
    eps: float
    to_out: Tensor
    out_bias: Tensor
    feed_forward: FeedForwardPieces


@dataclass(frozen=True)
class UpBlockPieces:
    """A block of the frame decoder; BatchNorm is in the convolution before it.

    Attributes
    ----------
    weight, bias : Tensor
        ``(out, in, 3, 3)`` and ``(out,)``.
    project : Sequential, optional
        The latent's own map; without skips there is none.
    fuse, fuse_bias : Tensor, optional
        ``(out, out + skip channels)`` and ``(out,)``.
    """

    weight: Tensor
    bias: Tensor
    project: nn.Sequential | None
    fuse: Tensor | None
    fuse_bias: Tensor | None


@torch.no_grad()
def feed_forward_pieces(module: nn.Module) -> FeedForwardPieces:
    """Read the pieces of a `FeedForward`.

    Examples
    --------
    >>> feed_forward_pieces(FeedForward(8, dropout=0.0)).expand.weight.shape
    torch.Size([64, 8])
    """
    assert isinstance(module, FeedForward)
    contract = module.contract
    return FeedForwardPieces(_behind_norm(module.norm, module.expand), contract.weight.detach(), contract.bias.detach())


def encoder_feed_forward(model: PoyoSSL) -> FeedForwardPieces:
    """Read what follows the first cross-attention of `model`."""
    return feed_forward_pieces(model.encoder.feed_forward)


@torch.no_grad()
def processor_pieces(model: PoyoSSL) -> list[ProcessorPieces]:
    """Read the blocks of a model's processor, first to last.

    Examples
    --------
    >>> from poyo_ssl.config import ModelConfig
    >>> model = PoyoSSL(ModelConfig(dim=8, dim_head=4, depth=2), num_units=3, num_sessions=1, readouts={}).eval()
    >>> [tuple(block.to_qkv.weight.shape) for block in processor_pieces(model)]
    [(96, 8), (96, 8)]
    """
    blocks = []
    for block in model.processor:
        assert isinstance(block, ProcessorBlock)
        attention = block.self_attention
        blocks.append(
            ProcessorPieces(
                to_qkv=_behind_norm(attention.norm, attention.to_qkv),
                to_out=attention.to_out.weight.detach(),
                out_bias=attention.to_out.bias.detach(),
                feed_forward=feed_forward_pieces(block.feed_forward),
            )
        )
    return blocks


@torch.no_grad()
def readout_pieces(model: PoyoSSL, task: str, session_index: Tensor) -> ReadoutPieces:
    """Read the pieces of the readout `task` for the recording `session_index` ``(1,)``.

    Examples
    --------
    >>> from poyo_ssl.config import ModelConfig, ReadoutConfig
    >>> config = ModelConfig(dim=8, dim_head=4)
    >>> model = PoyoSSL(config, num_units=3, num_sessions=1, readouts={"gratings": ReadoutConfig()}).eval()
    >>> readout_pieces(model, "gratings", torch.tensor([1])).projected_query.shape
    torch.Size([1, 2, 1, 4])
    """
    attention, head = model.readout_attention, model.readouts[task]
    assert isinstance(head, Readout)
    query = model.sessions(session_index) + head.query  # (1, D)
    keys, values = attention.to_kv.weight.detach().unflatten(0, (2, attention.heads, -1))
    norm = attention.norm_context
    return ReadoutPieces(
        query=query,
        projected_query=split_heads(attention.to_q(attention.norm(query.unsqueeze(1))), attention.heads),
        keys=keys,
        values=values,
        gain=norm.weight.detach(),
        bias=norm.bias.detach(),
        eps=norm.eps,
        to_out=attention.to_out.weight.detach().unflatten(1, (attention.heads, -1)).permute(1, 0, 2),
        out_bias=attention.to_out.bias.detach(),
        feed_forward=feed_forward_pieces(model.readout_feed_forward),
    )


@torch.no_grad()
def up_block_pieces(decoder: FrameDecoder) -> list[UpBlockPieces]:
    """Read the blocks of a frame decoder in evaluation, coarsest first.

    Examples
    --------
    >>> blocks = up_block_pieces(FrameDecoder(8, height=16, width=32, skips=True).eval())
    >>> [tuple(block.weight.shape[:2]) for block in blocks]
    [(32, 128), (16, 32), (32, 16)]
    """
    pieces = []
    for block in decoder.blocks:
        assert isinstance(block, UpBlock)
        _, convolution, norm, _ = block.grow
        assert isinstance(convolution, nn.Conv2d)
        assert convolution.bias is not None
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        assert block.project is None or isinstance(block.project, nn.Sequential)
        fuse = block.fuse
        assert fuse is None or isinstance(fuse, nn.Conv2d)
        pieces.append(
            UpBlockPieces(
                weight=convolution.weight * gain.view(-1, 1, 1, 1),
                bias=(convolution.bias - norm.running_mean) * gain + norm.bias,
                project=block.project,
                fuse=None if fuse is None else fuse.weight.detach().flatten(1),
                fuse_bias=None if fuse is None or fuse.bias is None else fuse.bias.detach(),
            )
        )
    return pieces


def _behind_norm(norm: nn.LayerNorm, linear: nn.Linear) -> NormedProjection:
    bias = F.linear(norm.bias, linear.weight, linear.bias)
    return NormedProjection((linear.weight * norm.weight).contiguous(), bias, norm.eps)
