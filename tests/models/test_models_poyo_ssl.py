"""The whole model: invariances, growth, sizes, readouts."""

from dataclasses import replace

import pytest
import torch

from poyo_ssl.config import MODEL_SIZES, ModelConfig, ReadoutConfig
from poyo_ssl.errors import ConfigError
from poyo_ssl.models import PoyoSSL, count_parameters, model_config
from poyo_ssl.models.poyo_ssl import (
    EncoderBlock,
    GridTokens,
    GrowingEmbedding,
    ProcessorBlock,
    RotaryTime,
    attend,
    block_channels,
    choose_form,
    latent_times,
    rotate,
    start_grid,
)

READOUTS = {
    "gratings": ReadoutConfig(),
    "frame_number": ReadoutConfig(kind="position"),
    "frames": ReadoutConfig(kind="frames", height=16, width=32),
}


VALUE_EMBEDDINGS = pytest.mark.parametrize("value_embedding", ["shared", "per_unit"])


def build(seed=0, **settings):
    config = model_config("tiny", latent_step_s=0.05, num_latents_per_step=4, **settings)
    generator = torch.Generator().manual_seed(seed)
    model = PoyoSSL(config, num_units=9, num_sessions=3, readouts=READOUTS, generator=generator)
    return model.double().eval()


def test_output_shapes_and_ranges(make_batch):
    model, batch = build(), make_batch()
    assert model(batch, "gratings").shape == (3, 8)
    position, frames = model(batch, "frame_number"), model(batch, "frames")
    assert position.shape == (3,)
    assert frames.shape == (3, 16, 32)
    for x in (position, frames):
        assert 0 < x.min() <= x.max() < 1


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("form", ["grid", "plain"])
@VALUE_EMBEDDINGS
def test_padding_does_not_change_anything(make_batch, causal, form, value_embedding):
    model = build(causal_cross_attention=causal, value_embedding=value_embedding)
    batch = make_batch(padded=False)
    more = replace(
        batch,
        dff=torch.nn.functional.pad(batch.dff, (0, 3), value=torch.nan),
        unit_index=torch.nn.functional.pad(batch.unit_index, (0, 3)),
        unit_mask=torch.nn.functional.pad(batch.unit_mask, (0, 3), value=False),
    )
    torch.testing.assert_close(
        model.encode(more, form=form).values, model.encode(batch, form=form).values, rtol=0, atol=1e-13
    )


@VALUE_EMBEDDINGS
def test_order_of_neurons_does_not_matter(make_batch, value_embedding):
    model, batch = build(value_embedding=value_embedding), make_batch()
    order = torch.tensor([3, 0, 4, 2, 1])
    other = replace(
        batch,
        dff=batch.dff[:, :, order],
        unit_index=batch.unit_index[:, order],
        unit_mask=batch.unit_mask[:, order],
    )
    torch.testing.assert_close(model(other, "gratings"), model(batch, "gratings"), rtol=0, atol=1e-13)


def test_windows_of_a_batch_do_not_mix(make_batch):
    model, batch = build(), make_batch()
    changed = batch.dff.clone()
    changed[1:] += 1
    outputs = [model(replace(batch, dff=dff), "gratings") for dff in (batch.dff, changed)]
    torch.testing.assert_close(outputs[0][0], outputs[1][0], rtol=0, atol=1e-13)
    assert (outputs[0][1:] != outputs[1][1:]).any()


def test_one_neuron_and_one_frame(make_batch):
    for edges in (False, True):
        model = build(start_end_tokens=edges)
        batch = make_batch(frames=1, neurons=1, duration_s=1 / 30)
        out = model(batch, "gratings")
        assert out.shape == (3, 8)
        assert out.isfinite().all()


def test_a_window_without_any_neuron_is_finite(make_batch):
    batch = make_batch()
    mask = batch.unit_mask.clone()
    mask[0] = False
    dff = batch.dff.clone().requires_grad_()
    out = build()(replace(batch, unit_mask=mask, dff=dff), "gratings")
    out.sum().backward()
    assert out.isfinite().all()
    assert dff.grad.isfinite().all()
    assert (dff.grad[0] == 0).all()


def test_a_causal_latent_does_not_see_later_frames(make_batch):
    model, batch = build(causal_cross_attention=True), make_batch(windows=2, frames=12)
    dff = batch.dff.clone().requires_grad_()
    latents = model.encode(replace(batch, dff=dff))
    for index in (0, len(latents.times) // 2, len(latents.times) - 1):
        (grad,) = torch.autograd.grad(latents.values[:, index].sum(), dff, retain_graph=True)
        later = batch.frame_times > latents.times[index]
        assert (grad[later] == 0).all()
        assert (grad[~later].abs().sum(-1) > 0).all()


@pytest.mark.parametrize(("value_embedding", "width"), [("shared", 32), ("per_unit", 64)])
def test_growth_keeps_predictions_and_adds_rows(make_batch, value_embedding, width):
    model, batch = build(value_embedding=value_embedding), make_batch()
    before, old = model(batch, "gratings"), model.tokens.units.weight.clone()
    model.grow(num_units=12, num_sessions=5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(model(batch, "gratings"), before)
    assert torch.equal(model.tokens.units.weight[:10], old)
    assert model.tokens.units.weight.shape == (13, width)
    assert model.sessions.num_entries == 5
    assert (model.tokens.units.weight[10:] != 0).all()
    with pytest.raises(ConfigError, match="12 or more"):
        model.grow(num_units=3, num_sessions=5)


def test_new_rows_come_from_the_generator_with_the_published_spread():
    tables = [GrowingEmbedding(0, 64) for _ in range(2)]
    for table in tables:
        table.grow(500, torch.Generator().manual_seed(3))
    assert torch.equal(tables[0].weight, tables[1].weight)
    assert tables[0].weight[1:].std().item() == pytest.approx(0.02, rel=0.02)
    assert (tables[0].weight[0] == 0).all()


def test_the_padding_row_gets_no_gradient():
    table = GrowingEmbedding(3, 4)
    table(torch.tensor([0, 2, 2])).sum().backward()
    assert table.weight.grad.tolist() == [[0.0] * 4, [0.0] * 4, [2.0] * 4, [0.0] * 4]


def test_weights_come_from_the_generator_alone():
    state = torch.get_rng_state()
    first, second, other = build(seed=0), build(seed=0), build(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name])
    assert not torch.equal(first.latents, other.latents)


def test_state_dict_round_trip(make_batch):
    batch, first, second = make_batch(), build(seed=0), build(seed=1)
    second.load_state_dict(first.state_dict())
    for task in READOUTS:
        assert torch.equal(first(batch, task), second(batch, task))


def test_autocast_stays_close_to_float32(make_batch):
    model, batch = build().float().train(), make_batch()
    batch = replace(batch, dff=batch.dff.float())
    model.eval()
    wanted = model(batch, "gratings")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(batch, "gratings")
        frames = model(batch, "frames")
    (out.float().sum() + frames.float().sum()).backward()
    assert out.dtype == torch.bfloat16
    assert (out.float() - wanted).abs().max() < 0.05 * wanted.abs().max() + 0.02
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@VALUE_EMBEDDINGS
def test_every_parameter_is_trained(make_batch, value_embedding):
    model = build(value_embedding=value_embedding)
    batch = make_batch(target=torch.zeros(3, dtype=torch.long))
    sum(model(batch, task).sum() for task in READOUTS).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_whole_model_passes_finite_differences(make_batch):
    model, batch = build(), make_batch(windows=2, frames=3, neurons=3)

    def logits(dff, latents):
        state = dict(model.named_parameters()) | {"latents": latents}
        return torch.func.functional_call(model, state, (replace(batch, dff=dff), "gratings"))

    inputs = (batch.dff.clone().requires_grad_(), model.latents.detach().clone().requires_grad_())
    assert torch.autograd.gradcheck(logits, inputs, fast_mode=True)


@pytest.mark.parametrize(
    ("duration_s", "settings", "wanted"),
    [
        (0.033, {}, [0.0625]),
        (0.3, {}, [0.0625, 0.1875]),
        (1.0, {}, [0.0625 + 0.125 * k for k in range(8)]),
        (0.3, {"latent_step_s": 0.1}, [0.05, 0.15, 0.25]),
        (1.9, {"latent_grid": "unit_second"}, [0.0625 + 0.125 * k for k in range(8)]),
    ],
)
def test_latent_times(duration_s, settings, wanted):
    config = ModelConfig(num_latents_per_step=2, **settings)
    times = latent_times(config, duration_s)
    assert times.tolist() == pytest.approx([t for t in wanted for _ in range(2)])


def test_published_core_has_1_27_million_parameters():
    assert count_parameters("1M") == 1_270_400
    parts = build().num_parameters()
    assert parts["units"] == 10 * 32
    assert parts["sessions"] == 4 * 32
    assert parts["core"] + parts["units"] + parts["sessions"] + parts["readouts"] == parts["total"]


def test_value_embeddings_per_unit_count_as_units():
    shared, per_unit = build().num_parameters(), build(value_embedding="per_unit").num_parameters()
    assert per_unit["units"] == 10 * 2 * 32
    assert per_unit["core"] == shared["core"] - 32


def test_each_neuron_has_a_value_direction_of_its_own(make_batch):
    """Attention values change along one line with a shared value embedding, along C lines with one per unit."""
    ranks = {}
    for value_embedding in ("shared", "per_unit"):
        model = build(value_embedding=value_embedding, start_end_tokens=False)
        batch = make_batch(windows=1, frames=1, neurons=5, unit_index=torch.arange(1, 6).view(1, 5))
        grid = model.tokens(batch, latent_times(model.config, batch.duration_s), model.rotary)
        halves = (grid.values.unsqueeze(-1) * grid.value_embedding.unsqueeze(1)).flatten(0, 2)  # (C, D)
        ranks[value_embedding] = int(torch.linalg.matrix_rank(halves))
    assert ranks == {"shared": 1, "per_unit": 5}


def test_an_unknown_neuron_has_no_value_direction(make_batch):
    model, batch = build(value_embedding="per_unit"), make_batch(padded=False)
    dff = batch.dff.clone().requires_grad_()
    unknown = torch.zeros_like(batch.unit_index)
    (grad,) = torch.autograd.grad(model(replace(batch, dff=dff, unit_index=unknown), "gratings").sum(), dff)
    assert (grad == 0).all()


def test_docs_list_the_true_counts(request):
    table = (request.config.rootpath / "docs" / "sizes.md").read_text()
    for size in MODEL_SIZES:
        assert f"| `{size}` |" in table
        assert f"{count_parameters(size):,}" in table


def test_unknown_readouts_and_sizes_are_named(make_batch):
    with pytest.raises(ConfigError, match="did you mean 'gratings'"):
        build()(make_batch(), "grating")
    with pytest.raises(ConfigError, match="unknown model size '2M'"):
        count_parameters("2M")


def test_rotations_by_hand():
    rotary = RotaryTime(8, t_min_s=1.0, t_max_s=4.0)
    # Half a turn of 1 s, a quarter turn of 2 s, and none.
    assert rotary(torch.tensor([0.5]), torch.float32)[0, 0].angle().div(torch.pi).tolist() == [1.0, 0.5, 0.0, 0.0]
    turns = RotaryTime(4, t_min_s=1.0, t_max_s=4.0)(torch.tensor([0.25]), torch.float32)
    turned = rotate(torch.tensor([2.0, 0.0, 5.0, 6.0]).view(1, 1, 1, 4), turns)
    torch.testing.assert_close(turned.flatten(), torch.tensor([0.0, 2.0, 5.0, 6.0]), rtol=0, atol=1e-6)


def test_attention_by_hand():
    q, v = torch.zeros(1, 1, 1, 4), torch.arange(8.0).view(1, 1, 2, 4)
    assert attend(q, v, v, mask=None, dropout=0.0).flatten().tolist() == [2.0, 3.0, 4.0, 5.0]
    nothing = torch.zeros(1, 1, 1, 2, dtype=torch.bool)
    assert attend(q, v, v, mask=nothing, dropout=0.0).flatten().tolist() == [0.0, 0.0, 0.0, 0.0]


def test_the_form_follows_what_was_measured():
    sizes, cpu = {"num_latents": 128, "dim_head": 64}, torch.device("cpu")
    assert choose_form(cpu, num_tokens=11_800, dropout=0.2, **sizes) == "streamed"
    assert choose_form(cpu, num_tokens=600, dropout=0.0, **sizes) == "grid"


def test_sizes_by_hand():
    assert [start_grid(64, 128), start_grid(32, 64), start_grid(30, 52)] == [(2, 4, 5), (2, 4, 4), (15, 26, 1)]
    assert block_channels(5) == (128, 64, 32, 16, 32)
    assert block_channels(3) == (32, 16, 32)
    assert block_channels(6) == (128, 128, 64, 32, 16, 32)
    counts = [sum(p.numel() for p in block(ModelConfig()).parameters()) for block in (EncoderBlock, ProcessorBlock)]
    assert counts == [99_456, 181_120]
    times = GridTokens(ModelConfig(dim=8, dim_head=8), num_units=3).token_times(torch.tensor([[0.1]]), duration_s=0.3)
    torch.testing.assert_close(times, torch.tensor([[0.0, 0.1, 0.3]]))
