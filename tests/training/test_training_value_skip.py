"""A value skip starts from the training part: known answers, nothing from test parts, runs that restore and adapt."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from poyo_ssl.config import OptimConfig, SplitConfig
from poyo_ssl.data.recording import Recording, RecordingMetadata
from poyo_ssl.data.stimuli import Presentations
from poyo_ssl.data.windows import BatchRequest
from poyo_ssl.errors import ConfigError
from poyo_ssl.training import value_skip
from poyo_ssl.training.predict import open_task, predict_windows
from poyo_ssl.training.run_folder import RunSettings, TrainedRun
from poyo_ssl.training.train import finetune, prepare

NUM_FRAMES, NUM_UNITS, RATE_HZ, QUIET = 40, 30, 10.0, 150


def make_recording(name, *, seed, flip_test=False):
    """Ten repeats of a movie of 40 frames at 10 Hz, one direction per frame and one gain per repeat, then silence."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, NUM_FRAMES, NUM_UNITS)
    distance = np.abs(np.arange(NUM_FRAMES)[:, None] - centres)
    tuning = np.exp(-0.5 * (np.minimum(distance, NUM_FRAMES - distance) / 2) ** 2)
    number = np.tile(np.arange(NUM_FRAMES), 10)
    gain = np.repeat(np.linspace(0.5, 1.5, 10), NUM_FRAMES)[:, None]
    dff = gain * tuning[number] + 0.1 * rng.normal(size=(len(number), NUM_UNITS))
    if flip_test:
        dff[8 * NUM_FRAMES :] = -dff[8 * NUM_FRAMES :]
    dff = np.concatenate([dff, 0.1 * rng.normal(size=(QUIET, NUM_UNITS)) @ rng.normal(size=(NUM_UNITS, NUM_UNITS))])
    timestamps = np.arange(len(dff)) / RATE_HZ
    shown = Presentations.from_frames(
        "natural_movie_one",
        timestamps,
        np.arange(len(number)),
        np.arange(1, len(number) + 1),
        {"frame": number, "repeat": np.repeat(np.arange(10), NUM_FRAMES)},
    )
    metadata = RecordingMetadata(f"mouse_{name}")
    return Recording(name, dff.astype(np.float32), timestamps, metadata, stimuli={"natural_movie_one": shown})


@pytest.fixture
def config(finetune_config):
    return replace(
        finetune_config,
        task="frame_number",
        window=replace(finetune_config.window, window_s=0.2, unit_dropout=False),
        split=SplitConfig(num_clips=0),
        optim=OptimConfig(epochs=1, batch_size=32, learning_rate=1e-9),
        label_spread_frames=1.0,
        tolerance_s=0.1,
        value_skip_bins=2,
        value_skip_dim=16,
    )


def skip_of(recordings, config):
    training = prepare(RunSettings(config, recordings))
    return training.dataset("train"), training.module.model.readouts["frame_number"]


def share_within_one_frame(run, recording, config):
    table = open_task(run, [recording]).windows("test_repeat")
    found = predict_windows(TrainedRun.open(run), [recording], table).argmax(axis=1)
    return float((np.abs(found - table.target) <= 1).mean())


def test_untrained_it_decodes_recordings_that_share_no_neuron(config, tmp_path):
    recordings = [make_recording("a", seed=0), make_recording("b", seed=1)]
    run = finetune(recordings, tmp_path / "run", config=config, progress=False)
    for recording in recordings:
        assert share_within_one_frame(run, recording, config) > 0.8  # chance 0.075


def test_the_start_is_what_the_projection_of_whitened_windows_gives(config, tmp_path, monkeypatch):
    """A single recording, no ridge: cosines in the space of its own leading components, computed by hand."""
    monkeypatch.setattr(value_skip, "RIDGE", 1e-10)
    recording = make_recording("a", seed=0)
    train, readout = skip_of([recording], config)
    batch = train[BatchRequest(np.arange(len(train)))]
    x, y = batch.dff.mT.flatten(1).double().numpy(), batch.target.numpy()  # bins of one step each
    weight = np.exp(-0.5 * (np.arange(40)[:, None] - y) ** 2) * (np.abs(np.arange(40)[:, None] - y) <= 4)

    def smooth(values):
        return weight @ values / weight.sum(axis=1, keepdims=True)

    residual = x - smooth(x)[y]
    # Spontaneous activity after the movie: windows of two frames, one apart.
    rest = np.stack([x_of(train, start) for start in range(400, 400 + QUIET - 1)])
    correlation = (corr(residual.T @ residual) + np.corrcoef(rest.T)) / 2
    spread = residual.std(axis=0)
    covariance = 0.6 * correlation * np.outer(spread, spread)
    np.fill_diagonal(covariance, spread**2 + 0.05 * (spread**2).mean())
    factor = np.linalg.cholesky(covariance)
    white = np.linalg.solve(factor, (x - x.mean(axis=0)).T).T
    means = smooth(white / np.linalg.norm(white, axis=1, keepdims=True))
    axes = np.linalg.svd(means)[2][:16]
    h, prototypes = white @ axes.T, means @ axes.T
    cosine = h @ prototypes.T / np.outer(np.linalg.norm(h, axis=1), np.linalg.norm(prototypes, axis=1))
    found = readout.skip(batch).detach().numpy()
    np.testing.assert_allclose(found, 25 * cosine, atol=2e-3)
    assert (readout.head.weight == 0).all()


def x_of(train, start):
    """Features of the window that starts at an imaging frame, as the training set's units are normalised."""
    units, recording = train.units[0], train.recordings[0]
    values = units.normalisation.apply(recording.read_dff(start, start + 2), np.arange(NUM_UNITS))
    return values.T.ravel().astype(float)


def corr(covariance):
    spread = np.sqrt(np.diag(covariance))
    return covariance / np.outer(spread, spread)


def test_nothing_comes_from_the_test_and_validation_parts(config, tmp_path):
    """A leak planted on purpose: another validation and test activity must change no weight."""
    weights = [
        skip_of([make_recording("a", seed=0, flip_test=flip)], config)[1].skip.state_dict() for flip in (False, True)
    ]
    for name, first in weights[0].items():
        assert torch.equal(first, weights[1][name]), name


@pytest.mark.parametrize(("num_classes", "num_features"), [(30, 12), (12, 30)])
def test_components_and_regression_are_those_of_singular_values(num_classes, num_features):
    means = np.random.default_rng(0).normal(size=(num_classes, num_features))
    left, size, right = np.linalg.svd(means, full_matrices=False)
    halves = [value_skip.RecordingMeans(part, None, None, 0) for part in (means[:, :5], means[:, 5:])]
    prototypes = value_skip._leading(halves, 4)
    np.testing.assert_allclose(np.abs(prototypes), np.abs(left[:, :4] * size[:4]), atol=1e-9)
    expected = right.T * (size / (size**2 + value_skip.RIDGE)) @ left.T @ prototypes
    np.testing.assert_allclose(value_skip._regress(means, prototypes), expected, atol=1e-9)


def test_components_beyond_those_there_are_are_zero():
    means = value_skip.RecordingMeans(np.random.default_rng(0).normal(size=(9, 3)), None, None, 0)
    prototypes = value_skip._leading([means], 5)
    assert (prototypes[:, 3:] == 0).all()
    assert np.linalg.matrix_rank(prototypes) == 3


def test_a_run_with_a_skip_trains_and_predicts_as_it_was(config, tmp_path):
    recording = make_recording("a", seed=0)
    trained = replace(config, optim=replace(config.optim, learning_rate=1e-2, epochs=2))
    run = finetune([recording], tmp_path / "run", config=trained, progress=False)
    start = skip_of([recording], trained)[1].skip.state_dict()
    after = TrainedRun.open(run).model.readouts["frame_number"].skip.state_dict()
    assert all(not torch.equal(start[name], after[name]) for name in start)
    assert share_within_one_frame(run, recording, trained) > 0.8


def test_new_animals_are_fitted_to_the_prototypes_of_the_run(config, tmp_path):
    source = finetune([make_recording("a", seed=0)], tmp_path / "source", config=config, progress=False)
    other = make_recording("b", seed=1)
    adapted = finetune(
        [other], tmp_path / "adapted", pretrained=source, config=replace(config, adapt="embeddings"), progress=False
    )
    before, after = (TrainedRun.open(run).model.state_dict() for run in (source, adapted))
    assert torch.equal(before["readouts.frame_number.skip.prototypes"], after["readouts.frame_number.skip.prototypes"])
    table = open_task(adapted, [other]).windows("test_subject_repeat")
    found = predict_windows(TrainedRun.open(adapted), [other], table).argmax(axis=1)
    assert (np.abs(found - table.target) <= 1).mean() > 0.7  # chance 0.075


def test_more_bins_than_steps_are_named(config, tmp_path):
    with pytest.raises(ConfigError, match="value_skip_bins of 3 for windows of 2 steps"):
        finetune([make_recording("a", seed=0)], tmp_path / "run", config=replace(config, value_skip_bins=3))
    assert not (tmp_path / "run").exists()
