"""The value skip: its formula, padding, unknown neurons, growth, and what it refuses."""

from dataclasses import replace

import pytest
import torch

from poyo_ssl.config import FinetuneConfig, ReadoutConfig
from poyo_ssl.errors import ConfigError
from poyo_ssl.models.poyo_ssl import PoyoSSL, ValueSkip, bin_values, model_config


def make_skip(num_bins=3):
    torch.manual_seed(0)
    skip = ValueSkip(num_bins=num_bins, dim=4, num_classes=6, num_units=9, num_sessions=3).double()
    skip.centres.weight.data[1:] += 0.1
    return skip


@pytest.mark.parametrize("same_units", [True, False])
def test_logits_equal_a_loop_over_windows_bins_and_neurons(make_batch, same_units):
    skip, batch = make_skip(), make_batch(frames=6, padded=not same_units)
    if same_units:
        batch = replace(batch, unit_index=batch.unit_index[:1].expand(3, -1))
    found = skip(batch)
    for b in range(3):
        h = -skip.centres.weight[batch.session_index[b]]
        for c, unit in enumerate(batch.unit_index[b]):
            vectors = skip.units.weight[unit].view(3, 4)
            for p in range(3):
                h = h + batch.dff[b, 2 * p : 2 * p + 2, c].mean() * vectors[p]
        cosine = torch.nn.functional.cosine_similarity(h.unsqueeze(0), skip.prototypes)
        torch.testing.assert_close(found[b], 25.0 * cosine)


def test_padding_and_unknown_neurons_say_nothing(make_batch):
    skip, batch = make_skip(), make_batch()
    noisy = replace(batch, dff=batch.dff + 7.0 * ~batch.unit_mask.unsqueeze(1))
    torch.testing.assert_close(skip(noisy), skip(batch))
    unknown = replace(batch, unit_index=batch.unit_index * (torch.arange(5) != 0))
    silent = replace(batch, dff=batch.dff * (torch.arange(5) != 0))
    torch.testing.assert_close(skip(unknown), skip(silent))


def test_a_gain_of_the_whole_population_changes_nothing(make_batch):
    skip, batch = make_skip(), make_batch()
    skip.centres.weight.data.zero_()
    torch.testing.assert_close(skip(replace(batch, dff=0.3 * batch.dff)), skip(batch))


def test_bins_share_a_step_where_steps_are_no_multiple(make_batch):
    batch = make_batch(frames=7, padded=False)
    found = bin_values(batch, 2)
    torch.testing.assert_close(found[:, :, 0], batch.dff[:, :4].mean(dim=1))
    torch.testing.assert_close(found[:, :, 1], batch.dff[:, 3:].mean(dim=1))


def build(**settings):
    readouts = {"gratings": ReadoutConfig(num_classes=6, **settings)}
    generator = torch.Generator().manual_seed(0)
    return PoyoSSL(model_config("tiny"), num_units=9, num_sessions=3, readouts=readouts, generator=generator).double()


def test_the_model_adds_both_logits_and_trains_both(make_batch):
    model, batch = build(value_skip_bins=2, value_skip_dim=4).eval(), make_batch()
    readout = model.readouts["gratings"]
    both = model(batch, "gratings")
    both.sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    readout.silence_head()
    alone = model(batch, "gratings")
    torch.testing.assert_close(alone, readout.skip(batch))
    assert not torch.allclose(both, alone)


def test_growth_keeps_predictions_and_checkpoints_without_a_skip_stay_as_they_were(make_batch):
    model, batch = build(value_skip_bins=2).eval(), make_batch()
    before = model(batch, "gratings")
    model.grow(num_units=12, num_sessions=5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(model(batch, "gratings"), before)
    assert model.readouts["gratings"].skip.units.num_entries == 12
    assert not any("skip" in name for name in build().state_dict())


def test_a_readout_with_a_skip_needs_the_windows(make_batch):
    model, batch = build(value_skip_bins=2), make_batch()
    latents = model.process(model.encode(batch))
    with pytest.raises(ConfigError, match="got no windows"):
        model.readout("gratings", latents, session_index=batch.session_index, target_time=batch.target_time)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"task": "frames", "value_skip_bins": 1}, "value_skip_bins of 1 without classes"),
        ({"task": "frame_number", "readout": "position", "value_skip_bins": 2}, "value_skip_bins of 2 without classes"),
        ({"value_skip_bins": -1}, "value_skip_bins of -1"),
        ({"value_skip_dim": 0}, "value_skip_dim of 0"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings, text):
    with pytest.raises(ConfigError, match=text):
        FinetuneConfig(**settings)
    with pytest.raises(ConfigError, match="value_skip_bins of 1 with a readout of 'frames'"):
        ReadoutConfig("frames", value_skip_bins=1)
