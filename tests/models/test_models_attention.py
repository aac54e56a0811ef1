"""Every attention against an independent one in float64."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from poyo_ssl.config import ModelConfig
from poyo_ssl.models.poyo_ssl import (
    EncoderBlock,
    FeedForward,
    GridTokens,
    ReadoutAttention,
    RotarySelfAttention,
    RotaryTime,
    attend,
    latent_times,
    rotate,
)
from poyo_ssl.models.token_grid import TokenGrid, project_grid

SMALL = {
    "dim": 12,
    "dim_head": 8,
    "cross_heads": 2,
    "self_heads": 3,
    "depth": 2,
    "num_latents_per_step": 3,
    "latent_step_s": 0.05,
}


def rotation_matrix(time: float, dim_head: int, t_min: float, t_max: float) -> torch.Tensor:
    """Build the rotation of one time entry by entry from the published periods."""
    matrix = torch.eye(dim_head, dtype=torch.float64)
    for i in range(dim_head // 4):
        period = t_min * (t_max / t_min) ** (i / (dim_head / 4))
        c, s = math.cos(2 * math.pi * time / period), math.sin(2 * math.pi * time / period)
        matrix[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    return matrix


def softmax_attention(q, k, v, times_q, times_k, *, rotate_values, sees=None):
    """One head, row by row: q (L, E), k and v (N, E), times in seconds, `sees` (L, N) bool."""
    rotation = {t: rotation_matrix(t, q.shape[1], 0.1, 4.0) for t in {*times_q, *times_k}}
    keys = torch.stack([rotation[t] @ key for t, key in zip(times_k, k, strict=True)])
    values = torch.stack([rotation[t] @ x for t, x in zip(times_k, v, strict=True)]) if rotate_values else v
    rows = []
    for i, t in enumerate(times_q):
        logits = keys @ (rotation[t] @ q[i]) / math.sqrt(q.shape[1])
        if sees is not None:
            logits = logits.masked_fill(~sees[i], -torch.inf)
        weights = logits.exp() / logits.exp().sum()
        row = weights @ values
        rows.append(rotation[t].T @ row if rotate_values else row)
    return torch.stack(rows)


def reference_layer_norm(x, norm):
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-5) * norm.weight + norm.bias


def randomised(module):
    """Leave no parameter at a special value such as 0 or 1."""
    generator = torch.Generator().manual_seed(5)
    module = module.double()
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data += 0.3 * noise
    for child in module.modules():
        if hasattr(child, "num_entries"):
            child.weight.data[0] = 0
    return module


def test_rotation_is_the_published_matrix():
    rotary = RotaryTime(16, t_min_s=0.1, t_max_s=4.0)
    times = torch.tensor([0.0, 0.013, 1.9], dtype=torch.float64)
    x = torch.randn(2, 3, 3, 16, dtype=torch.float64)
    wanted = torch.stack([rotation_matrix(float(t), 16, 0.1, 4.0) for t in times])
    torch.testing.assert_close(
        rotate(x, rotary(times, torch.float64)), torch.einsum("nij,bhnj->bhni", wanted, x), rtol=0, atol=1e-13
    )


def test_rotary_frequencies_stay_exact_when_the_model_is_cast():
    rotary = RotaryTime(64, t_min_s=1e-4, t_max_s=4.0)
    before = rotary.omega.clone()
    assert torch.equal(rotary.half().float().omega, before)
    assert rotary(torch.tensor([1.9]), torch.bfloat16).dtype == torch.complex64


def test_attend_gives_zeros_and_finite_gradients_to_a_query_that_sees_nothing():
    q, k, v = (torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    mask = torch.ones(2, 1, 3, 3, dtype=torch.bool)
    mask[1, :, 1] = False
    out = attend(q, k, v, mask=mask, dropout=0.0)
    out.square().sum().backward()
    assert torch.equal(out[1, :, 1], torch.zeros(2, 4, dtype=torch.float64))
    assert all(x.grad.isfinite().all() for x in (q, k, v))
    assert torch.equal(q.grad[1, :, 1], torch.zeros(2, 4, dtype=torch.float64))
    torch.testing.assert_close(out[0], attend(q, k, v, mask=None, dropout=0.0)[0])


def test_feed_forward_is_geglu():
    block = randomised(FeedForward(6, dropout=0.5)).eval()
    x = torch.randn(4, 6, dtype=torch.float64)
    hidden = reference_layer_norm(x, block.norm) @ block.expand.weight.T + block.expand.bias
    value, gate = hidden[:, :24], hidden[:, 24:]
    gated = value * gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2)))
    torch.testing.assert_close(block(x), gated @ block.contract.weight.T + block.contract.bias)


def test_self_attention_against_softmax_attention():
    times = [0.05, 0.05, 0.4, 1.1]
    rotary = RotaryTime(8, t_min_s=0.1, t_max_s=4.0)
    block = randomised(RotarySelfAttention(6, heads=2, dim_head=8, dropout=0.3)).eval()
    x = torch.randn(1, 4, 6, dtype=torch.float64)
    qkv = (reference_layer_norm(x[0], block.norm) @ block.to_qkv.weight.T).view(4, 3, 2, 8)
    heads = [softmax_attention(*qkv[:, :, h].unbind(1), times, times, rotate_values=True) for h in range(2)]
    wanted = torch.cat(heads, -1) @ block.to_out.weight.T + block.to_out.bias
    turns = rotary(torch.tensor(times, dtype=torch.float64), torch.float64)
    torch.testing.assert_close(block(x, turns)[0], wanted, rtol=0, atol=1e-12)


def test_readout_attention_against_softmax_attention():
    times = [0.05, 0.4, 1.1]
    rotary = RotaryTime(8, t_min_s=0.1, t_max_s=4.0)
    block = randomised(ReadoutAttention(6, heads=2, dim_head=8, dropout=0.3)).eval()
    query, latents = torch.randn(1, 1, 6, dtype=torch.float64), torch.randn(1, 3, 6, dtype=torch.float64)
    q = (reference_layer_norm(query[0], block.norm) @ block.to_q.weight.T).view(1, 2, 8)
    kv = (reference_layer_norm(latents[0], block.norm_context) @ block.to_kv.weight.T).view(3, 2, 2, 8)
    heads = [softmax_attention(q[:, h], *kv[:, :, h].unbind(1), [0.9], times, rotate_values=False) for h in range(2)]
    wanted = torch.cat(heads, -1) @ block.to_out.weight.T + block.to_out.bias
    at_query = rotary(torch.tensor([[0.9]], dtype=torch.float64), torch.float64)
    at_latents = rotary(torch.tensor(times, dtype=torch.float64), torch.float64)
    torch.testing.assert_close(block(query, latents, at_query, at_latents)[0], wanted, rtol=0, atol=1e-12)


def encoder_parts(**settings):
    config = ModelConfig(**SMALL, rotary_t_min_s=0.1, **settings)
    tokens, encoder = randomised(GridTokens(config, num_units=9)), randomised(EncoderBlock(config))
    return config, tokens, encoder, RotaryTime(8, t_min_s=0.1, t_max_s=4.0)


def encode(parts, batch, latents, form):
    config, tokens, encoder, rotary = parts
    times = latent_times(config, batch.duration_s)
    grid = tokens(batch, times, rotary)
    return encoder(latents, grid, rotary(times, torch.float64), form=form)


@pytest.mark.parametrize("form", ["plain", "grid", "streamed"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("edges", [False, True])
@pytest.mark.parametrize("value_embedding", ["shared", "per_unit"])
def test_cross_attention_against_tokens_made_one_by_one(make_batch, causal, edges, form, value_embedding):
    parts = config, tokens, encoder, _ = encoder_parts(
        causal_cross_attention=causal, start_end_tokens=edges, value_embedding=value_embedding
    )
    encoder.eval()
    batch = make_batch(windows=2, frames=5, neurons=4)
    times = latent_times(config, batch.duration_s).tolist()
    latents = torch.randn(1, len(times), 12, dtype=torch.float64)
    attention = encoder.cross_attention
    wanted = []
    for b in range(2):
        moments = [(float(t), 0, batch.dff[b, i]) for i, t in enumerate(batch.frame_times[b])]
        if edges:
            moments += [(0.0, 1, torch.zeros(4)), (batch.duration_s, 2, torch.zeros(4))]
        rows, token_times, token_kinds = [], [], []
        for time, kind, values in moments:
            for c in range(4):
                if batch.unit_mask[b, c]:
                    unit = tokens.units.weight[batch.unit_index[b, c]]
                    direction = tokens.value if value_embedding == "shared" else unit[12:]
                    rows.append(torch.cat((unit[:12] + tokens.types[kind], values[c] * direction)))
                    token_times.append(time)
                    token_kinds.append(kind)
        normed = reference_layer_norm(torch.stack(rows), attention.norm_context)
        kv = (normed @ attention.to_kv.weight.T).view(len(rows), 2, 2, 8)
        q = (reference_layer_norm(latents[0], attention.norm) @ attention.to_q.weight.T).view(-1, 2, 8)
        sees = torch.tensor(
            [
                [
                    not causal or kind == 1 or (kind == 0 and t <= tau)
                    for t, kind in zip(token_times, token_kinds, strict=True)
                ]
                for tau in times
            ]
        )
        heads = [
            softmax_attention(q[:, h], *kv[:, :, h].unbind(1), times, token_times, rotate_values=True, sees=sees)
            for h in range(2)
        ]
        z = latents[0] + torch.cat(heads, -1) @ attention.to_out.weight.T + attention.to_out.bias
        wanted.append(z + encoder.feed_forward(z))
    torch.testing.assert_close(encode(parts, batch, latents, form), torch.stack(wanted), rtol=0, atol=1e-11)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("edges", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
@pytest.mark.parametrize("value_embedding", ["shared", "per_unit"])
def test_grid_form_equals_plain_form_with_all_gradients(make_batch, causal, edges, padded, backend, value_embedding):
    parts = _, tokens, encoder, _ = encoder_parts(
        causal_cross_attention=causal, start_end_tokens=edges, value_embedding=value_embedding
    )
    encoder.eval()
    batch = make_batch(padded=padded)
    # Starts below the first frame: without a start token and causally, the first latents see nothing.
    batch = replace(batch, frame_times=batch.frame_times + 0.04)
    num_latents = len(latent_times(parts[0], batch.duration_s))
    results = []
    for form in ("streamed", "grid", "plain"):
        leaves = [*tokens.parameters(), *encoder.parameters()]
        dff = batch.dff.clone().requires_grad_()
        latents = torch.randn(
            1, num_latents, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
        ).requires_grad_()
        with sdpa_kernel(backend):
            out = encode(parts, replace(batch, dff=dff), latents, form)
            weights = torch.arange(out.numel()).view_as(out).cos()
            grads = torch.autograd.grad((out * weights).sum(), [dff, latents, *leaves])
        results.append([out.detach(), *grads])
    for streamed, grid, plain in zip(*results, strict=True):
        scale = plain.abs().max().clamp_min(1)
        for ours in (streamed, grid):
            torch.testing.assert_close(ours / scale, plain / scale, rtol=0, atol=1e-12)
    assert torch.equal(results[0][2].isfinite(), torch.ones_like(results[0][2], dtype=torch.bool))


@pytest.mark.parametrize("shape", [(1, 1, 4), (2, 3, 4)])
def test_grid_tokens_pass_finite_differences(shape):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)

    norm = torch.nn.LayerNorm(8).double()
    turns = RotaryTime(4, t_min_s=0.1, t_max_s=4.0)(torch.tensor([[0.0, 0.3], [0.1, 0.4]]), torch.float64)

    def keys_and_values(units, types, values, value_embedding, weight):
        grid = TokenGrid(units, types, torch.tensor([0, 1]), values, value_embedding, turns)
        return project_grid(grid, norm=norm, weight=weight, num_heads=1)

    inputs = (draw(2, 3, 4), draw(2, 4), draw(2, 2, 3), draw(*shape), draw(8, 8))
    assert torch.autograd.gradcheck(keys_and_values, inputs)


def test_attention_dropout_is_honoured_in_both_forms(make_batch):
    batch = make_batch(padded=False)
    for form in ("streamed", "grid", "plain"):
        parts = _, _, encoder, _ = encoder_parts(attention_dropout=0.5, ffn_dropout=0.0)
        latents = torch.randn(1, len(latent_times(parts[0], batch.duration_s)), 12, dtype=torch.float64)
        torch.manual_seed(0)
        with torch.no_grad():
            drawn = torch.stack([encoder_attention(parts, batch, latents, form) for _ in range(400)])
            encoder.eval()
            certain = encoder_attention(parts, batch, latents, form)
        standard_error = drawn.std(0) / math.sqrt(400)
        assert (standard_error > 0).all()
        assert ((drawn.mean(0) - certain).abs() < 5 * standard_error).all()


def encoder_attention(parts, batch, latents, form):
    config, tokens, encoder, rotary = parts
    times = latent_times(config, batch.duration_s)
    grid = tokens(batch, times, rotary)
    return encoder.cross_attention(latents, grid, rotary(times, torch.float64), form=form)


def test_fused_kernel_is_possible_without_dropout_and_padding():
    q, k = torch.randn(1, 2, 4, 8), torch.randn(1, 2, 6, 8)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        fused = attend(q, k, k, mask=None, dropout=0.0)
    torch.testing.assert_close(fused, F.softmax(q @ k.mT / math.sqrt(8), -1) @ k)
