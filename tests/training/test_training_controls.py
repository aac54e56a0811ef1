"""Controls of trained runs: what a decoder knows is gone when neurons, moments or weights are not what they were."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from poyo_ssl.config import OptimConfig, WindowConfig
from poyo_ssl.data.windows import Normalisation, UnitSet
from poyo_ssl.evaluation.evaluate import evaluate, shuffle_units
from poyo_ssl.evaluation.predictions import Predictions
from poyo_ssl.training.run_folder import TrainedRun
from poyo_ssl.training.train import finetune

CONTROLS = ("shuffled neurons", "shifted activity", "untrained")


def stored_predictions(results):
    return {p.arm: p for p in map(Predictions.load, (results / "predictions").glob("*.h5"))}


def test_controls_of_a_run_that_decodes_are_at_chance(make_recording, finetune_config, tmp_path):
    recordings = [make_recording(name, num_units=24, grating_repeats=10, seed=i) for i, name in enumerate("abc")]
    config = replace(
        finetune_config,
        window=WindowConfig(window_s=1.0, units="all", unit_dropout=False),
        optim=OptimConfig(epochs=1, batch_size=32),
        value_skip_bins=1,
        seed=3,
    )
    run = finetune(recordings, tmp_path / "run", config=config, progress=False)
    scores = evaluate({"ours": run}, tmp_path / "results", data=recordings, baselines="none")
    stored = stored_predictions(tmp_path / "results")
    assert set(stored) == {"ours"} | {f"ours ({name})" for name in CONTROLS}
    trials = len(stored["ours"])
    assert trials == 48
    hits = {arm: int((p.prediction == p.target).sum()) for arm, p in stored.items()}
    assert hits["ours"] > 0.8 * trials
    compared = {row.minus for row in scores.rows if (row.arm, row.metric) == ("ours", "accuracy")}
    for name in CONTROLS:
        control = stored[f"ours ({name})"]
        assert (control.kind, control.seed) == ("control", 3)
        np.testing.assert_array_equal(control.time, stored["ours"].time)
        np.testing.assert_array_equal(control.target, stored["ours"].target)
        assert stats.binomtest(hits[control.arm], trials, 1 / 8, alternative="greater").pvalue > 0.01, name
        assert control.arm in compared
    # With one training no claim is made between trainings, but a model may be told from what is left of it.
    verdicts = {row.minus: row.verdict for row in scores.rows if (row.arm, row.metric) == ("ours", "accuracy")}
    assert verdicts["ours (shuffled neurons)"] == "better"


@pytest.mark.parametrize("count", [1, 2, 7])
def test_every_neuron_takes_the_place_of_another(count):
    normalisation = Normalisation.identity(count, compress=False)
    units = UnitSet(np.arange(count), 10 + np.arange(count), normalisation, session_row=2)
    made = shuffle_units(units, np.random.default_rng(0))
    np.testing.assert_array_equal(np.sort(made.rows), units.rows)
    assert (made.rows != units.rows).all() or count == 1
    np.testing.assert_array_equal(made.columns, units.columns)
    assert made.normalisation is normalisation
    assert made.session_row == 2


def test_untrained_weights_are_drawn_from_the_seed_alone(finetuned):
    run = TrainedRun.open(finetuned)
    first, again, other = (run.untrained(seed).model.state_dict() for seed in (1, 1, 2))
    trained = run.model.state_dict()
    assert set(first) == set(trained)
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name, value in first.items() if not torch.equal(value, other[name])]
    assert {"tokens.units.weight", "latents", "readouts.gratings.head.weight"} <= set(drawn)
    assert all(not torch.equal(first[name], trained[name]) for name in drawn)


def test_a_readout_of_a_random_encoder_is_a_control_and_has_none(pair, pretrained, finetune_config, tmp_path):
    config = replace(finetune_config, adapt="readout", optim=OptimConfig(epochs=1, batch_size=32))
    runs = {
        arm: finetune(pair, tmp_path / arm, config=config, pretrained=source, progress=False)
        for arm, source in (("random", None), ("probe", pretrained))
    }
    scores = evaluate(runs, tmp_path / "results", baselines="none")
    kinds = {arm: p.kind for arm, p in stored_predictions(tmp_path / "results").items()}
    assert kinds == {"probe": "model", "random": "control"} | {f"probe ({name})": "control" for name in CONTROLS}
    verdicts = {row.minus: row.verdict for row in scores.rows if (row.arm, row.metric) == ("probe", "accuracy")}
    assert verdicts["random"] == "no claim: 1 of 5 seeds"


def test_controls_can_be_left_out(finetuned, tmp_path):
    evaluate({"ours": finetuned}, tmp_path / "results", baselines="none", controls=False)
    assert set(stored_predictions(tmp_path / "results")) == {"ours"}
