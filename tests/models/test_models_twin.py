"""Masks, the twin pass, its gradients and its targets."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from poyo_ssl.config import ObjectiveConfig, ReadoutConfig
from poyo_ssl.errors import ConfigError
from poyo_ssl.models import PoyoSSL, TwinPretrainer, is_collapsed, latent_diagnostics, model_config
from poyo_ssl.models.pretraining import keep_mask

TIMES = torch.arange(10, dtype=torch.float64).repeat_interleave(2) * 0.1 + 0.05


def build(objective=None, **settings):
    config = model_config("tiny", latent_step_s=0.05, num_latents_per_step=4, **settings)
    generator = torch.Generator().manual_seed(0)
    model = PoyoSSL(config, num_units=9, num_sessions=3, readouts={"gratings": ReadoutConfig()}, generator=generator)
    torch.manual_seed(0)
    return TwinPretrainer(model, objective or ObjectiveConfig()).double().eval()


@given(ratio=st.floats(0.05, 0.95), kind=st.sampled_from(["random", "block", "feature"]), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_masks_hide_the_share_asked_for(ratio, kind, seed):
    generator = torch.Generator().manual_seed(seed)
    keep = keep_mask(TIMES, duration_s=1.0, kind=kind, ratio=ratio, batch_size=4, dim=16, generator=generator)
    count = {"random": 20, "block": 10, "feature": 16}[kind]
    hidden = min(max(1, round(ratio * count)), count - 1) * (2 if kind == "block" else 1)
    assert keep.shape == ((4, 1, 16) if kind == "feature" else (4, 20, 1))
    assert ((~keep).flatten(1).sum(1) == hidden).all()
    if kind == "block":
        steps = (~keep).view(4, 10, 2)
        assert (steps[..., 0] == steps[..., 1]).all()
        changes = steps[..., 0].int().diff(dim=1).abs().sum(1)
        assert (changes <= 2).all()


@pytest.mark.parametrize(("ratio", "first_hidden"), [(0.5, 10), (0.3, 14), (0.7, 6)])
def test_causal_mask_hides_the_later_share_of_the_time(ratio, first_hidden):
    keep = keep_mask(TIMES, duration_s=1.0, kind="causal", ratio=ratio, batch_size=2, dim=4)
    assert keep[0, :, 0].tolist() == [True] * first_hidden + [False] * (20 - first_hidden)
    with pytest.raises(ConfigError, match="hides none"):
        keep_mask(TIMES, duration_s=9.0, kind="causal", ratio=0.5, batch_size=2, dim=4)


@pytest.mark.parametrize("kind", ["causal", "random", "block"])
def test_masked_pass_has_no_gradient_to_the_latents_it_replaced(make_batch, kind):
    twin, batch = build(ObjectiveConfig(masking=kind)), make_batch()
    unmasked = twin.model.encode(batch)
    values = unmasked.values.detach().requires_grad_()
    masked, keep = twin.masked_latents(batch, unmasked.with_values(values), torch.Generator().manual_seed(0))
    twin.model.process(unmasked.with_values(masked)).values.sin().sum().backward()
    hidden = ~keep.squeeze(-1)
    assert hidden.any()
    assert (values.grad[hidden] == 0).all()
    assert (values.grad[~hidden] != 0).any(dim=-1).all()
    assert (twin.mask_token.grad != 0).all()


def test_causal_cross_attention_makes_masking_a_prediction(make_batch):
    batch = make_batch(frames=12)
    later = batch.frame_times >= 0.5 * batch.duration_s
    for causal in (True, False):
        twin = build(causal_cross_attention=causal)
        dff = batch.dff.clone().requires_grad_()
        window = replace(batch, dff=dff)
        unmasked = twin.model.encode(window)
        masked, _ = twin.masked_latents(window, unmasked)
        twin.model.process(unmasked.with_values(masked)).values.sin().sum().backward()
        assert (dff.grad[~later] != 0).any()
        assert bool((dff.grad[later] == 0).all()) == causal


def test_feature_masking_zeroes_the_same_features_of_every_latent(make_batch):
    objective = ObjectiveConfig(masking="feature", mask_ratio=1 / 32, reconstruct="all")
    twin, batch = build(objective), make_batch()
    unmasked = twin.model.encode(batch)
    masked, keep = twin.masked_latents(batch, unmasked, torch.Generator().manual_seed(0))
    assert (~keep).flatten(1).sum(1).tolist() == [1, 1, 1]
    assert torch.equal(masked, unmasked.values * keep)


@pytest.mark.parametrize("reconstruction", ["l1", "mse"])
@pytest.mark.parametrize("reconstruct", ["masked", "all"])
@pytest.mark.parametrize("residuals", [True, False])
@pytest.mark.parametrize("times_batch_size", [True, False])
def test_loss_by_hand(make_batch, reconstruction, reconstruct, residuals, times_batch_size):
    objective = ObjectiveConfig(
        reconstruction=reconstruction,
        reconstruct=reconstruct,
        masked_pass_residuals=residuals,
        gratings_weight=0.3,
        times_batch_size=times_batch_size,
    )
    twin, batch = build(objective), make_batch(target=torch.tensor([2, -1, 7]))
    model, out = twin.model, twin(batch)
    first = model.encode(batch)
    hidden = first.times >= 0.5 * batch.duration_s
    masked = model.encode(batch, residuals=residuals).values.clone()
    masked[:, hidden] = twin.mask_token
    target = model.process(first)
    difference = model.process(first.with_values(masked)).values - target.values
    if reconstruct == "masked":
        difference = difference[:, hidden]
    distance = difference.abs().mean() if reconstruction == "l1" else difference.pow(2).mean()
    logits = model.readout("gratings", target, session_index=batch.session_index, target_time=batch.target_time)
    log_probability = logits.log_softmax(-1)
    cross_entropy = -(log_probability[0, 2] + log_probability[2, 7]) / 2
    right = (logits[0].argmax() == 2).double() + (logits[2].argmax() == 7).double()
    torch.testing.assert_close(out.reconstruction, distance)
    torch.testing.assert_close(out.gratings, cross_entropy)
    assert out.accuracy.item() == pytest.approx(right.item() / 2)
    assert out.num_labelled == 2
    wanted = (distance + 0.3 * cross_entropy) * (3 if times_batch_size else 1)
    torch.testing.assert_close(out.loss, wanted)
    torch.testing.assert_close(out.latents, target.values.detach())


@pytest.mark.parametrize("target", [None, torch.full((3,), -1)])
def test_windows_without_labels_train_the_reconstruction_alone(make_batch, target):
    twin = build()
    out = twin(make_batch(target=target))
    out.loss.backward()
    assert out.gratings.item() == 0
    assert out.num_labelled == 0
    torch.testing.assert_close(out.loss, out.reconstruction)
    assert [name for name, p in twin.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in twin.parameters())


def test_stopgrad_has_the_loss_of_joint_and_another_gradient(make_batch):
    batch = make_batch()
    losses, grads = [], []
    for mode in ("joint", "stopgrad"):
        twin = build(ObjectiveConfig(mode=mode, gratings_weight=0.0))
        out = twin(batch)
        losses.append(out.loss.item())
        out.loss.backward()
        grads.append(twin.model.latents.grad)
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert (grads[0] - grads[1]).abs().max() > 1e-6


def test_moving_average_target(make_batch):
    twin, batch = build(ObjectiveConfig(mode="ema", ema_decay=0.75)), make_batch()
    assert not any(p.requires_grad for p in twin.target.parameters())
    assert not twin.train().target.training
    twin.eval()
    before = twin(batch).reconstruction.item()
    with torch.no_grad():
        twin.model.latents += 1
    old = twin.target.latents.clone()
    twin.update_ema()
    torch.testing.assert_close(twin.target.latents, old + 0.25)
    loss = twin(batch).loss
    loss.backward()
    assert before != loss.item()
    assert all(p.grad is None for p in twin.target.parameters())
    joint = build()
    joint.update_ema()
    assert joint.target is None


def test_masks_come_from_the_generator(make_batch):
    twin, batch = build(ObjectiveConfig(masking="random")), make_batch()
    losses = [twin(batch, torch.Generator().manual_seed(seed)).loss.item() for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_dropout_runs_in_training_and_autocast(make_batch):
    twin, batch = build().float().train(), make_batch()
    batch = replace(batch, dff=batch.dff.float(), target=torch.tensor([0, 1, -1]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = twin(batch).loss
    loss.backward()
    assert loss.isfinite()


def test_a_model_without_the_readout_is_refused():
    model = PoyoSSL(model_config("tiny"), num_units=1, num_sessions=1, readouts={})
    with pytest.raises(ConfigError, match="'gratings'"):
        TwinPretrainer(model, ObjectiveConfig())


def test_diagnostics_by_hand():
    # Two orthogonal directions of equal strength around the origin.
    values = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]], [[0.0, 1.0], [0.0, -1.0]]])
    found = latent_diagnostics(values)
    assert found.effective_rank == pytest.approx(2.0)
    assert found.spread == pytest.approx(math.sqrt(0.5))
    assert found.relative_spread == pytest.approx(1.0)
    assert found.pairwise_cosine == pytest.approx(-1 / 3)
    # Deviations from the mean at each position: (1, -1) / 2 and so on, 4 x 1/2 out of 4.
    assert found.input_share == pytest.approx(0.5)
    assert math.isnan(latent_diagnostics(values[:1]).input_share)


@pytest.mark.parametrize("dim", [32, 64])
def test_collapse_is_seen_and_fresh_models_are_not_called_collapsed(make_batch, dim):
    twin, batch = build(dim=dim), make_batch(windows=8)
    assert not is_collapsed(latent_diagnostics(twin(batch).latents))
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(8, 16, dim, generator=generator)
    assert is_collapsed(latent_diagnostics(1 + 1e-4 * spread))
    assert is_collapsed(latent_diagnostics(spread[..., :1] * torch.ones(dim)))
    assert not is_collapsed(latent_diagnostics(spread))
