import itertools

import numpy as np
import pytest
from spectra import amplitude_slope

from poyo_ssl.errors import ConfigError, RecordingError
from poyo_ssl.observatory import SIZES, MovieSpec, movie_cuts
from poyo_ssl.observatory.movies import (
    MOVIE_PHOTOGRAPHS,
    SCENE_PHOTOGRAPHS,
    SHOT_SECONDS,
    draw_dead_leaves,
    draw_noise,
    load_picture,
    plan_shots,
    render_movie,
    render_scenes,
    sample_view,
)

MOVIES = SIZES["small"].movies


@pytest.mark.parametrize("seed", range(5))
def test_shots_cover_the_movie_and_last_two_to_four_seconds(seed):
    for movie, shots in zip(MOVIES, plan_shots(MOVIES, seed).values(), strict=True):
        assert shots[0].start == 0
        assert shots[-1].stop == movie.num_frames
        assert [shot.stop for shot in shots[:-1]] == [shot.start for shot in shots[1:]]
        assert 3 <= len(shots) <= 5
        assert all(30 * SHOT_SECONDS[0] <= shot.stop - shot.start < 120 for shot in shots)


@pytest.mark.parametrize("seed", range(5))
def test_no_picture_is_shown_twice_in_a_folder(seed):
    # Longer movies than there are photographs for: dead leaves take over.
    movies = (*MOVIES, MovieSpec("natural_movie_three", 3600))
    pictures = [shot.picture for shots in plan_shots(movies, seed).values() for shot in shots]
    assert len(set(pictures)) == len(pictures)
    photographs = [picture for picture in pictures if not picture.startswith("dead_leaves")]
    assert len(photographs) == len(MOVIE_PHOTOGRAPHS)


def test_photographs_ship_inside_the_packages():
    assert not set(MOVIE_PHOTOGRAPHS) & set(SCENE_PHOTOGRAPHS)
    for name in MOVIE_PHOTOGRAPHS + SCENE_PHOTOGRAPHS:
        picture = load_picture(name, np.random.default_rng(0))
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
    # Gravel and stars decorrelate fastest as they pass.
    assert neighbour[inside].min() > 0.7


def test_shots_pan_and_zoom_smoothly(monkeypatch):
    # Over a ramp from left to right, grey says where a view is and its slope how wide: pan and zoom up to one factor.
    ramp = np.linspace(0, 1, 448) * np.ones((256, 1))
    monkeypatch.setattr("poyo_ssl.observatory.movies.load_picture", lambda *given, **sizes: ramp)
    zooms = []
    for movie in MOVIES:
        pixels = render_movie(movie, MOVIES, seed=0).astype(float)
        for start, stop in itertools.pairwise([0, *movie_cuts(MOVIES, seed=0)[movie.name], movie.num_frames]):
            shot = pixels[start:stop, :, 8:-8]
            width = np.polyfit(np.arange(48), shot.mean(1).T, 1)[0]
            place = shot.mean((1, 2)) / width.mean()
            zooms.append(width[-1] / width[0])
            # Steadily wider or narrower, steadily on its way (in pixels), rounding to grey levels aside.
            steps, pan = np.diff(width) / width.mean(), np.diff(place)
            assert np.abs(steps - steps.mean()).max() < 0.01
            assert np.abs(steps).max() < 0.02
            assert np.abs(pan - pan.mean()).max() < 0.5
            assert 3 < abs(place[-1] - place[0]) < 64
    zooms = np.array(zooms)
    assert (zooms > 1).any()
    assert (zooms < 1).any()
    assert ((np.abs(np.log(zooms)) > np.log(1.15)) & (np.abs(np.log(zooms)) < np.log(1.85))).all()


def test_movies_are_grey_contrasted_and_repeatable():
    pixels = render_movie(MOVIES[1], MOVIES, seed=3)
    assert pixels.shape == (300, 32, 64)
    assert pixels.dtype == np.uint8
    assert abs(pixels.mean() - 127) < 5
    assert 35 < pixels.std() < 60
    np.testing.assert_array_equal(pixels, render_movie(MOVIES[1], MOVIES, seed=3))
    assert not np.array_equal(pixels, render_movie(MOVIES[1], MOVIES, seed=4))


def test_dead_leaves_have_a_natural_spectrum():
    # Amplitude spectra of natural images fall as f^-0.8 to f^-1.5 (Tolhurst et al. 1992). Independent of
    # `amplitude_slope`: a fit to the full two-dimensional spectrum over two octaves.
    shots = np.stack([draw_dead_leaves(np.random.default_rng(seed), height=256, width=256) for seed in range(4)])
    window = np.hanning(256)[:, None] * np.hanning(256)
    amplitude = np.abs(np.fft.fft2((shots - shots.mean((1, 2), keepdims=True)) * window)).mean(0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(256), np.fft.fftfreq(256)))
    keep = (frequency > 1 / 32) & (frequency < 1 / 8)
    slope = np.polyfit(np.log(frequency[keep]), np.log(amplitude[keep]), 1)[0]
    assert -1.5 < slope < -0.8
    assert -1.6 < amplitude_slope(shots) < -0.8


def test_movies_have_natural_spectra_at_the_eyes_resolution():
    spec = MovieSpec("natural_movie_one", 150, 76, 152)
    pixels = render_movie(spec, [spec], seed=0)
    assert -1.5 < amplitude_slope(pixels[::15]) < -0.8


def test_scenes_have_natural_spectra():
    # -0.93 for seeds 0 and 1.
    assert -1.4 < amplitude_slope(render_scenes(0, count=12, shape=(115, 147))) < -0.7


def test_views_are_interpolated_bilinearly():
    from scipy import ndimage

    rng = np.random.default_rng(0)
    picture = rng.random((40, 60))
    rows, columns = np.sort(rng.uniform(0, 39, 15)), np.sort(rng.uniform(0, 59, 25))
    expected = ndimage.map_coordinates(picture, np.meshgrid(rows, columns, indexing="ij"), order=1)
    np.testing.assert_allclose(sample_view(picture, rows, columns), expected)


def test_scenes_are_grey_different_and_repeatable():
    scenes = render_scenes(0, count=6, shape=(60, 78))
    assert scenes.dtype == np.uint8
    assert (np.abs(scenes.mean((1, 2)) - 127) < 6).all()
    flat = scenes.reshape(6, -1).astype(float)
    assert np.abs(np.corrcoef(flat)[np.triu_indices(6, 1)]).max() < 0.5
    np.testing.assert_array_equal(scenes, render_scenes(0, count=6, shape=(60, 78)))


@pytest.mark.parametrize(
    ("name", "shape", "pixel_deg"),
    [("locally_sparse_noise_4deg", (5812, 16, 28), 4.65), ("locally_sparse_noise_8deg", (5584, 8, 14), 9.3)],
)
def test_noise_is_locally_sparse(name, shape, pixel_deg):
    noise = draw_noise(name, seed=0)
    assert noise.shape == shape
    assert set(np.unique(noise).tolist()) == {0, 127, 255}
    assert abs((noise == 255).sum() / (noise == 0).sum() - 1) < 0.05
    for frame in noise[:50]:
        spots = np.argwhere(frame != 127) * pixel_deg
        apart = np.hypot(*(spots[:, None] - spots).transpose(2, 0, 1))
        assert apart[np.triu_indices(len(spots), 1)].min() >= 23.25 - 1e-9
    # Pixels away from the border, which have as many neighbours, are used equally often.
    far = int(23.25 / pixel_deg) + 1
    use = (noise != 127).mean(0)[far:-far, far:-far]
    assert use.min() > 0.6 * use.max()


def test_movie_of_no_frames_is_refused():
    with pytest.raises(ConfigError, match="num_frames of 0"):
        MovieSpec("natural_movie_one", 0)
