import numpy as np
import pytest
from poyo_ssl.observatory.stimuli import (
    PHOTOGRAPHS,
    SCENE_SECONDS,
    draw_dead_leaves,
    load_picture,
    plan_scenes,
    render_movie,
)

from poyo_ssl.errors import ConfigError, RecordingError
from poyo_ssl.observatory import SIZES, MovieSpec, movie_cuts

MOVIES = SIZES["small"].movies


@pytest.mark.parametrize("seed", range(5))
def test_scenes_cover_the_movie_and_last_two_to_four_seconds(seed):
    for movie, scenes in zip(MOVIES, plan_scenes(MOVIES, seed).values(), strict=True):
        assert scenes[0].start == 0
        assert scenes[-1].stop == movie.num_frames
        assert [scene.stop for scene in scenes[:-1]] == [scene.start for scene in scenes[1:]]
        assert 3 <= len(scenes) <= 5
        assert all(30 * SCENE_SECONDS[0] <= scene.stop - scene.start < 120 for scene in scenes)


@pytest.mark.parametrize("seed", range(5))
def test_no_picture_is_shown_twice_in_a_folder(seed):
    # Longer movies than there are photographs for: dead leaves take over.
    movies = (*MOVIES, MovieSpec("natural_movie_three", 3600))
    pictures = [scene.picture for scenes in plan_scenes(movies, seed).values() for scene in scenes]
    assert len(set(pictures)) == len(pictures)
    photographs = [picture for picture in pictures if not picture.startswith("dead_leaves")]
    assert len(photographs) == len(PHOTOGRAPHS)


def test_photographs_ship_inside_the_packages():
    for package, file in PHOTOGRAPHS:
        picture = load_picture(f"{package}/{file}", np.random.default_rng(0))
        assert picture.ndim == 2
        assert min(picture.shape) >= 170
        assert picture.min() >= 0
        assert picture.max() <= 1


def test_missing_photograph_is_named():
    with pytest.raises(RecordingError, match=r"nothing\.png is not inside the installed package skimage"):
        load_picture("skimage/data/nothing.png", np.random.default_rng(0))


def test_pixels_jump_at_cuts_only():
    pixels = render_movie(MOVIES[0], MOVIES, seed=0).astype(float)
    flat = pixels.reshape(len(pixels), -1)
    flat = flat - flat.mean(1, keepdims=True)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    neighbour = (flat[1:] * flat[:-1]).sum(1)
    cuts = movie_cuts(MOVIES, seed=0)["natural_movie_one"]
    inside = np.setdiff1d(np.arange(len(neighbour)), cuts - 1)
    assert neighbour[cuts - 1].max() < 0.6
    assert neighbour[inside].min() > 0.75


def test_movies_are_grey_contrasted_and_repeatable():
    pixels = render_movie(MOVIES[1], MOVIES, seed=3)
    assert pixels.shape == (300, 32, 64)
    assert pixels.dtype == np.uint8
    assert abs(pixels.mean() - 127) < 5
    assert 35 < pixels.std() < 60
    np.testing.assert_array_equal(pixels, render_movie(MOVIES[1], MOVIES, seed=3))
    assert not np.array_equal(pixels, render_movie(MOVIES[1], MOVIES, seed=4))


def test_dead_leaves_have_a_natural_spectrum():
    # Amplitude spectra of natural images fall as 1/f; radial average over two octaves, four scenes.
    scenes = np.stack([draw_dead_leaves(np.random.default_rng(seed), height=256, width=256) for seed in range(4)])
    window = np.hanning(256)[:, None] * np.hanning(256)
    amplitude = np.abs(np.fft.fft2((scenes - scenes.mean((1, 2), keepdims=True)) * window)).mean(0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(256), np.fft.fftfreq(256)))
    keep = (frequency > 0.015) & (frequency < 0.25)
    slope = np.polyfit(np.log(frequency[keep]), np.log(amplitude[keep]), 1)[0]
    assert -2.0 < slope < -0.8


def test_movie_of_no_frames_is_refused():
    with pytest.raises(ConfigError, match="num_frames of 0"):
        MovieSpec("natural_movie_one", 0)
