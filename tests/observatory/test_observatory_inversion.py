"""From the responses of known neurons back to pictures."""

from dataclasses import replace

import numpy as np
import pytest
from population_samples import make_population
from spectra import amplitude_slope

from poyo_ssl.data.stimuli import load_movie
from poyo_ssl.observatory import CellClass
from poyo_ssl.observatory.cells import draw_population
from poyo_ssl.observatory.drives import control_gain, movie_drive, picture_responses, undo_gain_control
from poyo_ssl.observatory.inversion import KnownNeurons, PictureInversion, draw_footage, has_known_neurons

MOVIE = "natural_movie_one"


@pytest.fixture(scope="module")
def footage():
    return draw_footage(16, 32, 0)


def correlations(a, b):
    """Pearson correlation of flattened frames, by numpy's own; 0 for plain grey."""
    pairs = zip(a, b, strict=True)
    return np.array([np.corrcoef(x.ravel(), y.ravel())[0, 1] if np.ptp(x) else 0.0 for x, y in pairs])


def test_footage_looks_like_movies_and_depends_on_its_seed_alone(footage):
    again = draw_footage.__wrapped__(16, 32, 0)
    np.testing.assert_array_equal(again.pixels, footage.pixels)
    assert not np.array_equal(draw_footage(16, 32, 1).pixels, footage.pixels)
    assert 120 < footage.pixels.mean() < 134
    assert -1.5 < amplitude_slope(draw_footage(64, 128, 0, num_pictures=6, views=4).pixels.astype(float)) < -0.8


def test_components_are_those_of_the_footage(footage):
    centred = footage.pixels.reshape(len(footage.pixels), -1) - 127.0
    np.testing.assert_allclose(footage.components @ footage.components.T, np.eye(len(footage.components)), atol=1e-6)
    left = centred - footage.scores @ footage.components
    spectrum = np.linalg.eigvalsh(centred.T @ centred)
    assert (left**2).sum() == pytest.approx(spectrum[: -len(footage.components)].sum(), rel=0.05)


def test_kernel_regression_is_that_of_scikit_learn(footage):
    from sklearn.kernel_ridge import KernelRidge

    features = np.random.default_rng(0).normal(3, 2, (len(footage.pixels), 5))
    inversion = PictureInversion(footage, features, penalty=0.3)
    z = (features - features.mean(axis=0)) / features.std(axis=0)
    reference = KernelRidge(alpha=0.3, kernel="rbf", gamma=0.1 / 5).fit(z, footage.scores)
    pictures = 127 + reference.predict(z[:7]) @ footage.components
    np.testing.assert_allclose(inversion.predict(features[:7]).reshape(7, -1), pictures.clip(0, 255), atol=0.51)


def test_a_feature_that_never_varies_is_ignored(footage):
    features = np.random.default_rng(0).normal(size=(len(footage.pixels), 2))
    with_constant = np.column_stack([features, np.full(len(features), 5.0)])
    made = PictureInversion(footage, with_constant, penalty=0.3).predict(np.array([[0.0, 0.0, 5.0], [0.0, 0.0, 9.0]]))
    np.testing.assert_array_equal(made[0], made[1])


def test_gain_control_is_undone():
    population = draw_population(CellClass(suppressed_fraction=0.3), 40, np.random.default_rng(0))
    pixels = draw_footage(16, 32, 0).pixels[:50]
    response = picture_responses(population, pixels)
    mean = response.mean(axis=0)
    drive = control_gain(population, response, mean, "natural_movie")
    back = undo_gain_control(population, drive, mean, "natural_movie")
    assert population.suppressed.any()
    np.testing.assert_allclose(
        back[:, population.tuned], response[:, population.tuned], rtol=1e-3, atol=1e-4 * mean.max()
    )
    assert np.isnan(back[:, ~population.tuned]).all()


def test_a_picture_that_stays_drives_as_a_movie_of_it_does():
    population = make_population()
    pixels = draw_footage(16, 32, 0).pixels[:3]
    held = picture_responses(population, pixels)
    # Shown long enough one after the other; the gain control leaves their ratios.
    drive = movie_drive(population, pixels.repeat(30, axis=0))[59::60]
    np.testing.assert_allclose(drive / drive[0], held / held[0], rtol=1e-4)


def test_known_neurons_see_unseen_footage_and_others_do_not(tiny_folder, tiny_recordings, footage):
    movie = load_movie(tiny_folder, MOVIE)
    found, shuffled = [], []
    for recording in tiny_recordings:
        neurons = KnownNeurons(recording, np.arange(recording.num_units))
        inversion = neurons.invert_rates(footage)
        features = neurons.true_features(MOVIE, np.arange(len(movie)), neurons.mean_response(movie))
        assert features.shape == (len(movie), int(recording.truth["tuned"].sum()))
        found.append(correlations(inversion.predict(features), movie).mean())
        order = np.roll(np.arange(features.shape[1]), 5)
        shuffled.append(correlations(inversion.predict(features[:, order]), movie).mean())
    assert np.mean(found) > 0.1
    assert np.mean(found) > np.mean(shuffled) + 0.1


def test_counts_are_those_of_the_events(tiny_recordings):
    recording = tiny_recordings[1]
    columns = np.array([9, 2, 5, 11])
    tuned = columns[recording.truth["tuned"][columns]]
    first = np.array([0, 311, len(recording.timestamps) - 15])
    counts = KnownNeurons(recording, columns).counts(first, 15)
    events = recording.events
    for window, start in enumerate(first):
        for place, unit in enumerate(tuned):
            own = (events.unit == unit) & (events.frame >= start) & (events.frame < start + 15)
            assert counts[window, place] == events.value[own].sum()
    assert counts.sum() > 0


def test_counts_tell_more_the_longer_the_window(tiny_folder, tiny_recordings, footage):
    """Events that are drawn at the true rates, read by their own inversion: one second, and a minute of a still."""
    recording = next(r for r in tiny_recordings if "Pvalb" in r.recording_id)
    neurons = KnownNeurons(recording, np.arange(recording.num_units))
    mean = neurons.mean_response(load_movie(tiny_folder, MOVIE))
    fresh = draw_footage(16, 32, 1)
    scores = []
    for seconds in (1.0, 60.0):
        inversion = neurons.invert_counts(footage, seconds, mean, np.random.default_rng(0))
        counts = neurons.draw_counts(fresh.pixels, seconds, mean, np.random.default_rng(1))
        scores.append(correlations(inversion.predict(np.sqrt(counts)), fresh.pixels).mean())
    assert 0 < scores[0] < scores[1] - 0.02


def test_the_truth_is_needed(tiny_recordings, make_recording):
    assert has_known_neurons(tiny_recordings[0])
    assert not has_known_neurons(make_recording(num_units=2))
    assert not has_known_neurons(replace(tiny_recordings[0], events=None))
