"""The streamed cross-attention and its dropout against the plain token form and known answers, in float64."""

import math
from dataclasses import replace

import pytest
import torch

from poyo_ssl.config import ModelConfig, ObjectiveConfig, ReadoutConfig
from poyo_ssl.models import PoyoSSL, TwinPretrainer, cpu_attention
from poyo_ssl.models.cpu_attention import Dropout, draw_keep_mask

SMALL = {
    "dim": 12,
    "dim_head": 8,
    "cross_heads": 2,
    "self_heads": 3,
    "depth": 1,
    "num_latents_per_step": 3,
    "latent_step_s": 0.05,
}


def build(**settings):
    config = ModelConfig(**{**SMALL, **settings})
    generator = torch.Generator().manual_seed(0)
    model = PoyoSSL(
        config, num_units=9, num_sessions=3, readouts={"gratings": ReadoutConfig()}, generator=generator
    ).double()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model.eval()


def results(model, batch, form):
    """Return the latents and the gradients of everything."""
    dff = batch.dff.clone().requires_grad_()
    out = model.encode(replace(batch, dff=dff), form=form).values
    weights = torch.arange(out.numel(), dtype=out.dtype).view_as(out).cos()
    leaves = [dff, model.latents, *model.tokens.parameters(), *model.encoder.parameters()]
    return [out, *torch.autograd.grad((out * weights).sum(), leaves)]


def assert_equal_forms(model, batch, *, atol, form="streamed"):
    for ours, plain in zip(results(model, batch, form), results(model, batch, "plain"), strict=True):
        scale = plain.abs().max().clamp_min(1)
        torch.testing.assert_close(ours / scale, plain / scale, rtol=0, atol=atol)


SWITCHES = [
    {},
    {"causal_cross_attention": True},
    {"start_end_tokens": False},
    {"causal_cross_attention": True, "start_end_tokens": False},
    {"latent_grid": "unit_second"},
]


@pytest.mark.parametrize("value_embedding", ["shared", "per_unit"])
@pytest.mark.parametrize("settings", SWITCHES)
@pytest.mark.parametrize("scores_per_piece", [1, 2000])
def test_any_cut_into_pieces_gives_the_plain_form(make_batch, monkeypatch, settings, value_embedding, scores_per_piece):
    monkeypatch.setattr(cpu_attention, "SCORES_PER_PIECE", scores_per_piece)
    model = build(value_embedding=value_embedding, **settings)
    assert_equal_forms(model, make_batch(windows=4), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_that_rise_from_piece_to_piece(monkeypatch, dtype):
    # Logits in base 2 of one neuron: -300 at the first time, which latent 0 does not see, then -200, 0 and 200.
    monkeypatch.setattr(cpu_attention, "SCORES_PER_PIECE", 1)
    T, R, logits = 4, 2, torch.tensor([-300.0, -200.0, 0.0, 200.0], dtype=dtype)
    queries = torch.zeros(1, 1, 2, R + 4, dtype=dtype)
    queries[..., -1] = 1
    queries[..., R] = 1  # times x r
    still = torch.zeros(1, 1, 1, 2, 1, dtype=dtype)
    sees = torch.ones(1, 2, T, dtype=torch.bool)
    sees[0, 0, 0] = False
    for last in (4, 3, 2):
        turned, _ = cpu_attention.StreamedAttention.apply(
            queries, still, torch.zeros(1, 1, 2, 1, R, dtype=dtype), torch.zeros(2, 4, R, dtype=dtype),
            torch.ones(1, last, 1, dtype=dtype), logits[:last].view(1, last, 1), torch.zeros(2, last, dtype=dtype),
            torch.ones(1, last, R // 2, dtype=torch.complex128 if dtype == torch.float64 else torch.complex64),
            None, sees[..., :last], 0.0,
        )  # fmt: skip
        # All weight lies on the last time; its value's column x r is its logit, and the weights sum to 1.
        expected = torch.stack((logits[last - 1], torch.ones((), dtype=dtype))).expand(2, 2)
        torch.testing.assert_close(turned[0, 0, :, [R, -1]], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("value_embedding", ["shared", "per_unit"])
@pytest.mark.parametrize("settings", SWITCHES)
@pytest.mark.parametrize("form", ["streamed", "grid"])
def test_published_rotary_periods(make_batch, settings, value_embedding, form):
    # Angles reach 1e4 rad, whose cosine float64 knows to about 1e-12.
    model = build(value_embedding=value_embedding, rotary_t_min_s=1e-4, **settings)
    assert_equal_forms(model, make_batch(), atol=1e-10, form=form)


@pytest.mark.parametrize("value_embedding", ["shared", "per_unit"])
@pytest.mark.parametrize(("frames", "neurons"), [(1, 1), (1, 5), (7, 1)])
def test_one_frame_and_one_neuron(make_batch, frames, neurons, value_embedding):
    model = build(value_embedding=value_embedding)
    assert_equal_forms(model, make_batch(frames=frames, neurons=neurons), atol=1e-12)


def test_thousands_of_neurons(make_batch):
    assert_equal_forms(build(), make_batch(windows=1, frames=3, neurons=5000), atol=1e-12)


def test_windows_of_different_counts_and_one_without_any_neuron(make_batch):
    batch = make_batch(windows=4, neurons=6, padded=False)
    counts = torch.tensor([6, 1, 0, 3])
    mask = torch.arange(6) < counts[:, None]
    batch = replace(batch, unit_mask=mask, unit_index=batch.unit_index * mask)
    model = build()
    assert_equal_forms(model, batch, atol=1e-12)
    alone = model.encode(replace(make_batch(windows=4, neurons=6, padded=False)), form="streamed").values
    torch.testing.assert_close(model.encode(batch, form="streamed").values[0], alone[0], rtol=0, atol=1e-13)


@pytest.mark.parametrize("parts", [1, 2])
def test_gradients_by_finite_differences(monkeypatch, parts):
    monkeypatch.setattr(cpu_attention, "SCORES_PER_PIECE", 10)
    B, H, L, T, C, R = 2, 1, 2, 3, 2, 2
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)

    turns = torch.polar(torch.ones(1, T, R // 2, dtype=torch.float64), torch.rand(1, T, R // 2, dtype=torch.float64))
    edges = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    unit_mask = torch.tensor([[True, True], [True, False]])
    time_mask = torch.ones(B, L, T, dtype=torch.bool)
    time_mask[0, 0, 1:] = False

    def attend(queries, *inputs):
        queries = torch.cat((queries, torch.ones(B, H, L, 1, dtype=torch.float64)), -1)
        return cpu_attention.StreamedAttention.apply(queries, *inputs, edges, turns, unit_mask, time_mask, 0.0)

    inputs = (
        draw(B, H, L, R + 3), draw(parts, B, H, L, C), draw(B, parts, 2 * H, C, R), draw(2 * H, 4, R),
        draw(B, T, C), draw(B, T, C),
    )  # fmt: skip
    assert torch.autograd.gradcheck(attend, inputs)


def test_gradients_belong_to_the_dropout_that_was_drawn(make_batch):
    model, batch = build(attention_dropout=0.4, ffn_dropout=0.0).train(), make_batch()
    leaf = model.encoder.cross_attention.to_kv.weight
    direction = torch.randn(leaf.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def loss():
        torch.manual_seed(0)
        return model.encode(batch, form="streamed").values.sin().sum()

    slope = (torch.autograd.grad(loss(), leaf)[0] * direction).sum()
    with torch.no_grad():
        leaf += 1e-5 * direction
        above = loss()
        leaf -= 2e-5 * direction
        below = loss()
    torch.testing.assert_close(slope, (above - below) / 2e-5, rtol=1e-7, atol=0)


def test_autocast_keeps_the_softmax_in_float32(make_batch):
    model, batch = build(), make_batch()
    exact = model.encode(batch, form="plain").values.float()
    model, batch = model.float(), replace(batch, dff=batch.dff.float(), frame_times=batch.frame_times.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = model.encode(batch, form="streamed").values
    assert ((values - exact).abs().max() / exact.abs().max()) < 0.05


def test_weights_do_not_depend_on_the_form(make_batch):
    model, other = build(), build(value_embedding="shared")
    other.load_state_dict(model.state_dict())
    batch = make_batch()
    torch.testing.assert_close(
        model.encode(batch, form="streamed").values, other.encode(batch, form="grid").values, rtol=0, atol=1e-12
    )


def test_twins_share_one_cross_attention(make_batch):
    model, batch = build(), make_batch()
    both = model.encode_twins(batch)
    for latents, residuals in zip(both, (True, False), strict=True):
        torch.testing.assert_close(latents.values, model.encode(batch, residuals=residuals).values, rtol=0, atol=1e-13)
    objective = ObjectiveConfig(masking="feature", mask_ratio=0.1, reconstruct="all", masked_pass_residuals=False)
    calls = []
    handle = model.encoder.cross_attention.register_forward_hook(lambda *_: calls.append(1))
    TwinPretrainer(model, objective)(batch, torch.Generator().manual_seed(0))
    handle.remove()
    assert len(calls) == 1


@pytest.mark.parametrize("rate", [0.0, 0.003, 0.2, 0.5, 0.997])
def test_keep_mask_drops_with_its_rate(rate):
    torch.manual_seed(0)
    keep = draw_keep_mask((50, 40_001), rate).double()
    n = keep.numel()
    # 512 thresholds, each a step of 1/128 or not, serve the whole mask.
    error = math.sqrt(rate * (1 - rate) / n + 0.25 / 128**2 / 512)
    assert abs(1 - keep.mean() - rate) <= (5 * error if rate else 0)
    if rate:
        pairs = torch.corrcoef(torch.stack((keep.flatten()[:-1], keep.flatten()[1:])))[0, 1]
        level = 128 * rate - int(128 * rate)
        shared = level * (1 - level) / 128**2 / (rate * (1 - rate))  # what a threshold for eight values adds
        assert abs(pairs) < 5 / math.sqrt(n) + shared


def test_dropout_repeats_with_the_seed_and_scales_the_gradient():
    layer = Dropout(0.25)
    x = torch.ones(40, 50, dtype=torch.float64, requires_grad=True)
    outputs = []
    for _ in range(2):
        torch.manual_seed(7)
        outputs.append(layer(x))
    assert torch.equal(*outputs)
    outputs[0].sum().backward()
    assert torch.equal(x.grad, outputs[0].detach())
    assert sorted(x.grad.unique().tolist()) == [0.0, 1 / 0.75]
