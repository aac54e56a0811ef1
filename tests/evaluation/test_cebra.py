"""CEBRA as an encoder: what its embedding holds is decoded, and its absence is said in one line."""

import importlib.util
import sys
from functools import partial

import numpy as np
import pytest
from test_baselines import fit_by

from poyo_ssl.errors import ConfigError
from poyo_ssl.evaluation.baselines import CebraEmbedding, cebra_decoder, load_cebra, make_arms

needs_cebra = pytest.mark.skipif(importlib.util.find_spec("cebra") is None, reason="cebra is not installed")
short = partial(cebra_decoder, iterations=30)


def movie_features(num_frames, repeats, seed):
    """Features on a closed curve that turns once per movie, seen through a random rotation, with noise."""
    rng = np.random.default_rng(seed)
    y = np.tile(np.arange(num_frames), repeats)
    phase = 2 * np.pi * y[:, None] / num_frames
    clean = np.concatenate([np.cos(phase), np.sin(phase), np.cos(2 * phase), np.sin(2 * phase)], axis=1)
    mixed = clean @ np.random.default_rng(99).normal(size=(4, 12))
    return mixed + 0.2 * rng.normal(size=mixed.shape), y


def splits(make):
    return [part for seed, repeats in ((0, 6), (1, 1), (2, 1)) for part in make(repeats=repeats, seed=seed)]


@needs_cebra
def test_classes_are_decoded_from_the_embedding():
    def make(repeats, seed):
        rng = np.random.default_rng(seed)
        y = rng.permutation(np.repeat(np.arange(8), 10 * repeats))
        return np.eye(8, 20)[y] * 2 + rng.normal(0, 0.5, (len(y), 20)), y

    x, y, x_valid, y_valid, x_test, y_test = splits(make)
    decoder = fit_by(short("gratings", num_classes=8), x, y, x_valid, y_valid)
    assert (decoder.predict(x_test) == y_test).mean() > 0.8
    settings = {name for name, _ in next(iter(decoder.scores(x, y, x_valid, y_valid)))}
    assert settings == {"embedding_transform", "dim", "hyper_parameter"}
    assert decoder.name == "cebra_knn"


@needs_cebra
def test_frame_numbers_and_frames_are_decoded_from_the_embedding():
    x, y, x_valid, y_valid, x_test, y_test = splits(partial(movie_features, 30))
    decoder = fit_by(short("frame_number", num_classes=30, tolerance=2), x, y, x_valid, y_valid)
    assert (np.abs(decoder.predict(x_test) - y_test) <= 2).mean() > 0.8
    # A bright bar that moves on with the frame number.
    frames = np.full((30, 8, 16), 40, np.uint8)
    frames[np.arange(30), :, np.arange(30) // 2] = 250
    decoder = fit_by(short("frames", frames=frames, tolerance=2), x, y, x_valid, y_valid)
    found = decoder.predict(x_test)
    assert found.shape == (30, 8, 16)
    assert found.dtype == np.uint8
    assert decoder.name == "cebra_unet"
    mean = frames.mean(axis=0)
    error, error_of_mean = (((image - frames[y_test].astype(float)) ** 2).mean() for image in (found, mean))
    assert error < 0.9 * error_of_mean


@needs_cebra
def test_a_seed_gives_the_same_embedding_and_leaves_the_generators_alone():
    x, y = movie_features(20, 3, seed=0)
    np.random.seed(5)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    first = CebraEmbedding(dim=3, seed=1, iterations=5).fit(x, y)(x)
    assert np.random.random() == expected  # noqa: NPY002
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(CebraEmbedding(dim=3, seed=1, iterations=5).fit(x, y)(x), first)
    assert not np.array_equal(CebraEmbedding(dim=3, seed=2, iterations=5).fit(x, y)(x), first)


def test_without_cebra_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cebra", None)
    with pytest.raises(ConfigError, match=r"cebra, which is not installed; pip install 'poyo-ssl\[cebra\]'"):
        load_cebra()


@needs_cebra
def test_it_stands_among_the_baselines(make_recording):
    from test_split_baselines import gratings_parts

    train = gratings_parts(make_recording(num_units=8))[0]
    names = [b.name for b in make_arms("gratings", train, which="with_cebra", num_classes=8) if b.kind == "baseline"]
    assert names[-1] == "cebra_knn"
