"""Optimisers against an implementation in numpy, schedules against values worked out by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from poyo_ssl.config import OptimConfig
from poyo_ssl.training.modules import Lamb, make_optimizer, make_schedule


def lamb_in_numpy(weights, gradients, *, lr, decay, beta1=0.9, beta2=0.999, eps=1e-6):
    """LAMB by the rules of the release: no bias correction, decay in the update, |w| cut at 10."""
    w = weights.astype(np.float64).copy()
    m, v = np.zeros_like(w), np.zeros_like(w)
    for g in gradients:
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        update = m / (np.sqrt(v) + eps) + decay * w
        size, length = min(np.linalg.norm(w), 10.0), np.linalg.norm(update)
        ratio = size / length if size > 0 and length > 0 else 1.0
        w = w - lr * ratio * update
    return w


@pytest.mark.parametrize("decay", [0.0, 1e-2])
@pytest.mark.parametrize("scale", [0.0, 0.3, 40.0], ids=["zero", "small", "clamped"])
def test_lamb_over_several_steps(scale, decay):
    rng = np.random.default_rng(0)
    start = scale * rng.normal(size=(4, 3))
    gradients = rng.normal(size=(6, 4, 3))
    weight = nn.Parameter(torch.tensor(start))
    optimizer = Lamb([weight], lr=0.05, weight_decay=decay)
    for gradient in gradients:
        weight.grad = torch.tensor(gradient)
        optimizer.step()
    expected = lamb_in_numpy(start, gradients, lr=0.05, decay=decay)
    np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=1e-12)


def test_lamb_takes_each_tensor_by_itself_and_leaves_those_without_gradient():
    weights = [nn.Parameter(torch.full((2,), 3.0, dtype=torch.float64)) for _ in range(3)]
    optimizer = Lamb(weights, lr=0.1)
    weights[0].grad, weights[1].grad = torch.ones(2).double(), torch.tensor([1.0, 0.0]).double()
    optimizer.step()
    for weight, gradient in zip(weights[:2], ([1.0, 1.0], [1.0, 0.0]), strict=True):
        expected = lamb_in_numpy(np.full(2, 3.0), [np.array(gradient)], lr=0.1, decay=0.0)
        np.testing.assert_allclose(weight.detach().numpy(), expected)
    assert weights[2].tolist() == [3.0, 3.0]
    assert optimizer.step(lambda: torch.tensor(2.5)) == 2.5


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.sessions = nn.Embedding(4, 3)
        self.latents = nn.Parameter(torch.ones(4, 3))
        self.layer = nn.Linear(3, 2)
        self.norm = nn.LayerNorm(2)
        self.frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)


def test_decay_is_for_matrices_only():
    toy = Toy()
    optimizer = make_optimizer(toy, OptimConfig(weight_decay=0.3))
    assert isinstance(optimizer, torch.optim.AdamW)
    decayed, rest = optimizer.param_groups
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.3, 0.0)
    assert [id(p) for p in decayed["params"]] == [id(toy.layer.weight)]
    others = [toy.sessions.weight, toy.latents, toy.layer.bias, toy.norm.weight, toy.norm.bias]
    assert {id(p) for p in rest["params"]} == {id(p) for p in others}


def test_embeddings_of_the_model_do_not_decay():
    from poyo_ssl.config import ReadoutConfig
    from poyo_ssl.models.poyo_ssl import PoyoSSL, model_config

    model = PoyoSSL(model_config("tiny"), num_units=4, num_sessions=2, readouts={"gratings": ReadoutConfig()})
    decayed, _ = make_optimizer(model, OptimConfig()).param_groups
    names = {name for name, p in model.named_parameters() if any(p is other for other in decayed["params"])}
    assert not {name for name in names if name.startswith(("tokens.units", "sessions", "latents"))}
    assert any("self_attention" in name for name in names)


def test_lamb_takes_everything_that_trains():
    toy = Toy()
    optimizer = make_optimizer(toy, OptimConfig(optimiser="lamb", learning_rate=0.2, weight_decay=0.1))
    assert isinstance(optimizer, Lamb)
    (group,) = optimizer.param_groups
    assert len(group["params"]) == 6
    assert (group["lr"], group["weight_decay"]) == (0.2, 0.1)


def rates(schedule, num_steps, peak=0.8):
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=peak)
    scheduler = make_schedule(optimizer, OptimConfig(schedule=schedule, learning_rate=peak), num_steps=num_steps)
    found = []
    for _ in range(num_steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return np.array(found)


def test_flat_cosine_is_flat_for_half_the_steps():
    found = rates("flat_cosine", 40)
    np.testing.assert_allclose(found[:21], 0.8)
    # Half way down the second half the cosine is at a half: step 30.
    assert found[30] == pytest.approx(0.4)
    assert found[25] == pytest.approx(0.8 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert found[35] == pytest.approx(0.8 * 0.5 * (1 + math.cos(3 * math.pi / 4)))


def test_cosine_warms_up_for_a_twentieth():
    found = rates("cosine", 42)
    # Two warm-up steps of a third and two thirds, the peak at step 2, half the peak at step 22.
    np.testing.assert_allclose(found[:3], [0.8 / 3, 1.6 / 3, 0.8])
    assert found[22] == pytest.approx(0.4)
    assert found[-1] < 0.01
    assert (np.diff(found[2:]) < 0).all()


def test_onecycle_rises_for_three_tenths_and_falls_to_almost_nothing():
    found = rates("onecycle", 101)
    # torch's OneCycleLR: from a 25th of the peak, peak after 30 % of the steps, end at a 250,000th.
    assert found[0] == pytest.approx(0.8 / 25)
    assert found.argmax() in (29, 30)
    assert found.max() == pytest.approx(0.8, rel=1e-2)
    assert found[-1] == pytest.approx(0.8 / 25 / 1e4)


@pytest.mark.parametrize("schedule", ["onecycle", "cosine", "flat_cosine"])
@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_very_short_trainings_have_a_schedule(schedule, num_steps):
    assert np.isfinite(rates(schedule, num_steps)).all()
