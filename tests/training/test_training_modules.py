"""Labels, decisions and steps of the training modules."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from poyo_ssl.config import FinetuneConfig, ObjectiveConfig, PretrainConfig, ReadoutConfig
from poyo_ssl.data.windows import Batch
from poyo_ssl.errors import ConfigError
from poyo_ssl.models.poyo_ssl import PoyoSSL, model_config
from poyo_ssl.training.modules import (
    FinetuneModule,
    Lamb,
    PretrainModule,
    is_better,
    is_embedding,
    make_optimizer,
    spread_labels,
)
from poyo_ssl.training.run_folder import decide_frame


@given(st.integers(1, 40), st.floats(0.3, 20.0), st.integers(0, 39))
@settings(max_examples=40, deadline=None)
def test_soft_labels_are_a_normal_density_made_to_sum_to_one(num_classes, spread, target):
    target = min(target, num_classes - 1)
    density = norm.pdf(np.arange(num_classes), loc=target, scale=spread)
    found = spread_labels(torch.tensor([target, 0]), num_classes, spread=spread)
    np.testing.assert_allclose(found[0].numpy(), density / density.sum(), atol=1e-6)
    np.testing.assert_allclose(found.sum(dim=1).numpy(), 1, atol=1e-5)


@given(st.integers(1, 30), st.integers(0, 35), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_the_decision_maximises_the_mass_within_reach(num_classes, reach, seed):
    probabilities = np.random.default_rng(seed).dirichlet(np.full(num_classes, 0.3), size=3)
    found = decide_frame(torch.tensor(probabilities), reach=reach)
    for row, place in zip(probabilities, found.tolist(), strict=True):
        mass = [sum(row[max(k - reach, 0) : k + reach + 1]) for k in range(num_classes)]
        assert mass[place] == pytest.approx(max(mass))
    if reach == 0:
        assert found.tolist() == probabilities.argmax(axis=1).tolist()


def test_nothing_is_better_than_nan():
    assert is_better(1.0, float("inf"))
    assert not is_better(float("nan"), 2.0)
    assert not is_better(2.0, 2.0)


def make_batch(*, frames=None, classes=8, windows=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, classes, (windows,), generator=generator)
    return Batch(
        dff=torch.randn(windows, 30, 5, generator=generator),
        unit_index=torch.arange(1, 6).expand(windows, -1),
        unit_mask=torch.ones(windows, 5, dtype=torch.bool),
        frame_times=((torch.arange(30) + 0.5) / 30).expand(windows, -1),
        session_index=torch.ones(windows, dtype=torch.long),
        target_time=torch.full((windows,), 0.5),
        duration_s=1.0,
        target=target if frames is None else torch.rand(windows, *frames, generator=generator),
    )


def make_model(task="gratings", readout=None, seed=0):
    config = model_config("tiny", latent_step_s=0.25, num_latents_per_step=2, attention_dropout=0.0)
    readouts = {task: readout or ReadoutConfig()}
    return PoyoSSL(
        config, num_units=5, num_sessions=1, readouts=readouts, generator=torch.Generator().manual_seed(seed)
    )


def one_step(module, batch):
    """Take one optimiser step without a trainer; return the loss."""
    module.log_dict = lambda *_, **__: None
    optimizer = make_optimizer(module, module.config.optim)
    loss = module.training_step(batch, 0)
    loss.backward()
    optimizer.step()
    module.on_train_batch_end(None, batch, 0)
    return loss


@pytest.mark.parametrize("masking", ["causal", "random", "block", "feature"])
@pytest.mark.parametrize("mode", ["joint", "stopgrad", "ema"])
def test_every_mode_and_masking_trains_all_it_should_and_reloads(mode, masking):
    reconstruct = "all" if masking == "feature" else "masked"
    config = PretrainConfig(objective=ObjectiveConfig(mode=mode, masking=masking, reconstruct=reconstruct))
    module = PretrainModule(make_model(), config)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    assert torch.isfinite(one_step(module, make_batch()))
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    unmoved = {name for name in trained if torch.equal(before[name], module.state_dict()[name])}
    assert not unmoved
    target = {name for name in before if name.startswith("twin.target")}
    assert bool(target) == (mode == "ema")
    for name in target:
        fast, slow = before[name.replace("target", "model")], before[name]
        assert torch.equal(fast, slow)
        moved = module.state_dict()[name.replace("target", "model")]
        expected = slow + (1 - config.objective.ema_decay) * (moved - slow)
        torch.testing.assert_close(module.state_dict()[name], expected)
    other = PretrainModule(make_model(seed=9), config)
    other.load_state_dict(module.state_dict())
    batch = make_batch(seed=3)
    outputs = []
    for each in (module.eval(), other.eval()):
        outputs.append(each.twin(batch, torch.Generator().manual_seed(1)).loss)
    assert outputs[0] == outputs[1]


TASKS = {
    "gratings": ({}, ReadoutConfig(num_classes=8), 8),
    "soft": ({"task": "frame_number"}, ReadoutConfig(num_classes=20), 20),
    "hard": ({"task": "frame_number", "label_spread_frames": 0.0}, ReadoutConfig(num_classes=20), 20),
    "position": ({"task": "frame_number", "readout": "position"}, ReadoutConfig("position"), 20),
    "frames": ({"task": "frames"}, ReadoutConfig("frames", height=8, width=16), 0),
}


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_a_loss_that_falls(name):
    settings_, readout, num_targets = TASKS[name]
    config = FinetuneConfig(**settings_)
    module = FinetuneModule(make_model(config.task, readout), config, num_targets=num_targets)
    batch = make_batch(frames=(8, 16) if name == "frames" else None)
    module.log_dict = lambda *_, **__: None
    optimizer = make_optimizer(module, config.optim)
    module.eval()
    start = module.losses(batch)["loss"].item()
    for _ in range(25):
        module.train()
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        optimizer.step()
    module.eval()
    # Soft labels have an entropy that no decoder gets below.
    assert module.losses(batch)["loss"].item() < (0.99 if name == "soft" else 0.9) * start


def test_losses_by_hand():
    batch = make_batch(classes=20)
    readout = ReadoutConfig(num_classes=20)
    soft = FinetuneModule(
        make_model("frame_number", readout), FinetuneConfig(task="frame_number"), num_targets=20
    ).eval()
    logits = soft.predict(batch).detach().double().numpy()
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    weights = norm.pdf(np.arange(20)[None], loc=batch.target.numpy()[:, None], scale=10.0)
    weights /= weights.sum(axis=1, keepdims=True)
    assert soft.losses(batch)["loss"].item() == pytest.approx(-(weights * log_p).sum(axis=1).mean(), rel=1e-5)
    hard = replace(soft.config, label_spread_frames=0.0)
    soft.config = hard
    expected = -log_p[np.arange(4), batch.target.numpy()].mean()
    assert soft.losses(batch)["loss"].item() == pytest.approx(expected, rel=1e-5)
    assert soft.losses(batch)["accuracy"].item() == np.mean(logits.argmax(axis=1) == batch.target.numpy())
    config = FinetuneConfig(task="frame_number", readout="position")
    place = FinetuneModule(make_model("frame_number", ReadoutConfig("position")), config, num_targets=20).eval()
    expected = np.abs(place.predict(batch).detach().numpy() - batch.target.numpy() / 19).mean()
    assert place.losses(batch)["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_frozen_parameters_stay():
    config = FinetuneConfig(freeze=("tokens", "latents", "encoder", "processor.0"))
    module = FinetuneModule(make_model(), config, num_targets=8)
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    one_step(module, make_batch())
    moved = {name for name, value in module.model.state_dict().items() if not torch.equal(value, before[name])}
    assert not {name for name in moved if name.startswith(config.freeze)}
    assert {name.split(".")[0] for name in moved} >= {"processor", "readouts", "readout_attention", "sessions"}


def test_a_name_that_freezes_nothing_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'processor'"):
        FinetuneModule(make_model(), FinetuneConfig(freeze=("procesor",)), num_targets=8)


def test_masking_that_hides_nothing_says_so():
    module = PretrainModule(make_model(), PretrainConfig(objective=ObjectiveConfig(mask_ratio=0.05)))
    with pytest.raises(ConfigError, match="hides none"):
        one_step(module, make_batch())


def test_values_worked_out_by_hand():
    # The moments are 0.1 g and 0.001 g^2, their ratio is sqrt(10), the trust ratio 2 / sqrt(10).
    weight = torch.nn.Parameter(torch.tensor([2.0]))
    weight.grad = torch.tensor([1.0])
    Lamb([weight], lr=0.1, eps=0.0).step()
    assert round(weight.item(), 4) == 1.8
    assert is_embedding("model.tokens.units.weight")
    assert not is_embedding("encoder.cross_attention.to_q.weight")
    soft = spread_labels(torch.tensor([0]), 3, spread=1.0)
    assert soft.double().numpy().round(3).tolist() == [[0.574, 0.348, 0.078]]
    assert decide_frame(torch.tensor([[0.4, 0.0, 0.1, 0.25, 0.25]]), reach=1).tolist() == [3]
