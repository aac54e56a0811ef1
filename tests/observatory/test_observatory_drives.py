"""Known answers of the energy models, stimulus by stimulus."""

from dataclasses import replace

import numpy as np
import pytest
from population_samples import make_population

from poyo_ssl.data.stimuli import Presentations
from poyo_ssl.observatory import CellClass
from poyo_ssl.observatory.allen_schedule import draw_conditions
from poyo_ssl.observatory.cells import SCREEN_DEG, STIMULUS_KINDS, draw_population, screen_grid
from poyo_ssl.observatory.drives import (
    GRATING_CONTRAST,
    GRATING_SPATIAL_FREQUENCY_CPD,
    drive_at_frames,
    grating_drive,
    gray_drive,
    held_drive,
    movie_drive,
    project_noise,
    project_pictures,
    static_grating_projections,
)
from poyo_ssl.observatory.movies import draw_noise

DIRECTIONS = (0.0, 45.0, 90.0, 135.0, 180.0, 225.0, 270.0, 315.0)
ON, STEADY = slice(0, 120), slice(30, 120)


def table_of_images(name, num_images, columns, *, first=1.0, hold_s=0.25):
    """Images back to back from `first` on, on an exact clock."""
    start = first + hold_s * np.arange(num_images)
    nothing = np.zeros(num_images, np.int64)
    return Presentations(name, start, start + hold_s, nothing, nothing, columns)


def test_preferred_direction_wins_and_opposite_loses():
    mean = grating_drive(make_population(), DIRECTIONS, (2.0,))[:, 0, ON, 0].mean(1)
    assert mean.argmax() == DIRECTIONS.index(90.0)
    assert mean[DIRECTIONS.index(270.0)] < 0.5 * mean.max()
    assert mean[DIRECTIONS.index(0.0)] < 0.1 * mean.max()


def test_without_direction_selectivity_both_ways_drive_alike():
    mean = grating_drive(make_population(direction_selectivity=0.0), DIRECTIONS, (2.0,))[:, 0, STEADY, 0].mean(1)
    np.testing.assert_allclose(mean[2], mean[6], rtol=0.02)


@pytest.mark.parametrize("frequency", [1.0, 4.0])
def test_the_preferred_temporal_frequency_wins(frequency):
    population = make_population(temporal_frequency_hz=frequency)
    mean = grating_drive(population, DIRECTIONS, (1.0, 4.0, 15.0))[2, :, STEADY, 0].mean(1)
    assert mean.argmax() == (1.0, 4.0, 15.0).index(frequency)


def test_simple_cells_follow_the_phase_and_complex_cells_do_not():
    simple = grating_drive(make_population(simple=True), DIRECTIONS, (2.0,))[2, 0, STEADY, 0]
    complex_ = grating_drive(make_population(), DIRECTIONS, (2.0,))[2, 0, STEADY, 0]
    assert simple.std() / simple.mean() > 0.8
    assert complex_.std() / complex_.mean() < 0.1
    # Half-squared cosine at 2 Hz: the fundamental is the largest component beside the mean.
    spectrum = np.abs(np.fft.rfft(simple[:90] - simple[:90].mean()))
    assert spectrum.argmax() == 3  # 2 Hz in 1.5 s


def test_the_response_dies_away_after_a_grating():
    drive = grating_drive(make_population(), DIRECTIONS, (2.0,))[2, 0, :, 0]
    assert drive[125] > 0.1 * drive[119]
    assert drive[-1] < 1e-3 * drive[119]


def test_mean_drive_is_affinity_and_untuned_cells_stay_at_one():
    cell = CellClass(untuned_fraction=0.3, suppressed_fraction=0.3)
    population = draw_population(cell, 60, np.random.default_rng(0))
    drive = grating_drive(population, DIRECTIONS, (2.0, 4.0))[:, :, ON]
    driven = population.tuned & ~population.suppressed
    affinity = population.affinity[driven, STIMULUS_KINDS.index("drifting_gratings")]
    np.testing.assert_allclose(drive[..., driven].mean((0, 1, 2)), affinity, rtol=1e-4)
    assert (drive[..., ~population.tuned] == 1).all()
    silenced = population.tuned & population.suppressed
    assert silenced.any()
    # Suppressed cells fire most on gray and least at what would drive others most.
    assert drive[..., silenced].max() <= 1
    others = grating_drive(replace(population, suppressed=np.zeros(60, bool)), DIRECTIONS, (2.0, 4.0))[:, :, ON]
    best = others[..., silenced].reshape(-1, silenced.sum()).argmax(0)
    worst = drive[..., silenced].reshape(-1, silenced.sum()).argmin(0)
    np.testing.assert_array_equal(best, worst)
    np.testing.assert_array_equal(gray_drive(population), np.where(driven, 0, 1))


def test_a_rendered_grating_gives_the_analytic_response():
    # Independent route: render the drifting grating as a movie at 30 Hz and send it through the movie path.
    population = draw_population(CellClass(untuned_fraction=0.0, suppressed_fraction=0.0), 30, np.random.default_rng(3))
    height, width = 36, 64
    x, y = (axis.reshape(height, width) for axis in screen_grid(height, width))
    time = np.arange(60) / 30
    movies = []
    for direction in np.deg2rad(DIRECTIONS):
        along = np.cos(direction) * x + np.sin(direction) * y
        wave = np.cos(2 * np.pi * (GRATING_SPATIAL_FREQUENCY_CPD * along - 1.0 * time[:, None, None]))
        movies.append(np.round(127 + 127 * GRATING_CONTRAST * wave).astype(np.uint8))
    rendered = movie_drive(population, np.concatenate(movies)).reshape(8, 120, 30)[:, 30:].mean(1)
    analytic = grating_drive(population, DIRECTIONS, (1.0,))[:, 0, STEADY].mean(1)
    correlation = [np.corrcoef(rendered[:, unit], analytic[:, unit])[0, 1] for unit in range(30)]
    assert np.min(correlation) > 0.97


def test_rendered_static_gratings_give_the_analytic_projections():
    population = draw_population(CellClass(), 12, np.random.default_rng(3))
    x, y = (axis.reshape(108, 192) for axis in screen_grid(108, 192))
    shown = static_grating_projections(population)
    chosen = {0: (0.0, 0.02, 0.0), 4 * 5 + 2: (30.0, 0.02, 0.5), 4 * 5 * 3 + 4 * 2 + 1: (90.0, 0.08, 0.25)}
    for row, (orientation, frequency, phase) in chosen.items():
        angle = np.deg2rad(orientation)
        wave = np.cos(2 * np.pi * (frequency * (np.cos(angle) * x + np.sin(angle) * y) + phase))
        picture = np.round(127 + 127 * GRATING_CONTRAST * wave).astype(np.uint8)[None]
        rendered = project_pictures(population, picture)[0]
        np.testing.assert_allclose(shown[row], rendered, atol=0.03 * np.abs(shown).max())


def test_the_place_of_a_spot_finds_the_receptive_field():
    rng = np.random.default_rng(0)
    population = make_population(rf_x_deg=30.0, rf_y_deg=-10.0, rf_sigma_deg=6.0)
    # A white spot of 3 x 3 pixels for 0.2 s each time, then gray for 0.2 s.
    rows, columns = rng.integers(0, 16, 400), rng.integers(0, 30, 400)
    movie = np.full((400, 12, 18, 32), 127, np.uint8)
    for number, (row, column) in enumerate(zip(rows, columns, strict=True)):
        movie[number, :6, row : row + 3, column : column + 3] = 255
    response = movie_drive(population, movie.reshape(-1, 18, 32)).reshape(400, -1).mean(1)
    x = ((columns + 1.5) / 32 - 0.5) * SCREEN_DEG[1]
    y = (0.5 - (rows + 1.5) / 18) * SCREEN_DEG[0]
    assert abs(np.average(x, weights=response) - 30.0) < 5
    assert abs(np.average(y, weights=response) - -10.0) < 5


@pytest.mark.parametrize(("name", "pixel_deg"), [("locally_sparse_noise", 4.65), ("locally_sparse_noise_8deg", 9.3)])
def test_the_energy_of_sparse_noise_finds_receptive_fields(name, pixel_deg):
    # Response-triggered average of the squared contrast: complex cells answer black and white alike.
    frames = draw_noise(name, seed=0)
    population = replace(
        draw_population(CellClass(simple_fraction=0.0), 25, np.random.default_rng(1)), rf_sigma_deg=np.full(25, 6.0)
    )
    energy = np.abs(project_noise(population, frames, pixel_deg)) ** 2
    contrast = (frames.reshape(len(frames), -1).astype(float) / 127 - 1) ** 2
    # Against the mean contrast: a pixel that is black or white more often must not win by that.
    average = energy.T @ contrast / energy.sum(0)[:, None] - contrast.mean(0)
    height, width = frames.shape[1:]
    row, column = np.divmod(average.argmax(1), width)
    x, y = (column + 0.5 - width / 2) * pixel_deg, (height / 2 - row - 0.5) * pixel_deg
    # The best pixel lies within the envelope; the Gabor's lobes keep it from being the centre.
    distance = np.hypot(x - population.rf_x_deg, y - population.rf_y_deg)
    assert np.median(distance) < pixel_deg
    assert distance.max() < 2.5 * pixel_deg


def test_held_images_are_the_movie_path_at_a_slower_rate():
    # Independent route: a picture that is shown twice in a row, 2 x 15 ticks, is 15 equal frames of a movie.
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (40, 18, 32), dtype=np.uint8)
    population = draw_population(CellClass(untuned_fraction=0.0, suppressed_fraction=0.0), 6, rng)
    population = replace(population, affinity=np.ones_like(population.affinity))
    order = np.repeat(rng.permutation(40), 2)
    table = table_of_images("natural_scenes", 80, {"frame": order})
    times = 1.0 + (np.arange(80 * 15) + 0.5) / 60
    projected = project_pictures(population, pictures)
    frames, drive, on = held_drive(population, projected, table, order, times, "natural_scenes")
    np.testing.assert_array_equal(frames, np.arange(len(times)))
    assert on.all()
    movie = movie_drive(population, pictures[order[::2]].repeat(15, axis=0))
    inner = slice(60, None)  # the movie begins where it ends, the images in gray
    correlation = [np.corrcoef(drive[inner, unit], movie[inner, unit])[0, 1] for unit in range(6)]
    assert np.min(correlation) > 0.99999


def test_a_session_s_drive_is_pieced_together_without_gaps():
    rng = np.random.default_rng(0)
    cell = CellClass(untuned_fraction=0.0, suppressed_fraction=0.0, simple_fraction=0.0)
    population = draw_population(cell, 5, rng)
    scenes = rng.integers(0, 255, (118, 18, 32), dtype=np.uint8)
    columns = {"frame": np.array([3, -1, 3, 7])}
    table = table_of_images("natural_scenes", 4, columns)
    times = np.arange(0, 5, 1 / 30)
    drive, _ = drive_at_frames(population, {"natural_scenes": table}, {"natural_scenes": scenes}, times)
    assert (drive[times < 1] == 0).all()
    assert (drive[(times > 1.05) & (times < 1.25)] > 0).all()
    assert (drive[times >= 2.5] == 0).all()  # half a second after the last image
    # The tail of image 3 reaches into the blank sweep after it and dies there.
    assert drive[(times > 1.26) & (times < 1.29)].min() > 0
    assert drive[(times > 1.45) & (times < 1.5)].max() < 0.05 * drive.max()


def test_static_gratings_go_by_their_ids():
    population = make_population(direction_deg=60.0, simple=True, spatial_frequency_cpd=0.04)
    columns = draw_conditions("static_gratings", np.random.default_rng(0))
    columns = {name: values[:600] for name, values in columns.items()}
    table = table_of_images("static_gratings", 600, columns)
    times = table.start + 0.2
    drive, _ = drive_at_frames(population, {"static_gratings": table}, {}, times)
    shown = ~columns["blank_sweep"]
    tuning = [drive[shown & (columns["orientation"] == angle), 0].mean() for angle in (0.0, 30.0, 60.0, 90.0, 120.0)]
    assert int(np.argmax(tuning)) == 2
    by_frequency = [drive[shown & (columns["spatial_frequency"] == f), 0].mean() for f in (0.02, 0.04, 0.08, 0.16)]
    assert int(np.argmax(by_frequency)) == 1
    assert drive[~shown, 0].mean() < 0.2 * drive[shown, 0].mean()


def test_large_movies_are_seen_at_the_eyes_resolution():
    small = np.random.default_rng(0).integers(0, 255, (30, 64, 128), dtype=np.uint8)
    large = small.repeat(4, axis=1).repeat(4, axis=2)
    population = draw_population(CellClass(), 5, np.random.default_rng(0))
    np.testing.assert_allclose(movie_drive(population, small), movie_drive(population, large), rtol=1e-4)


def test_broad_tuning_by_the_receptive_fields_cycles():
    def selectivity(cycles):
        cell = CellClass(untuned_fraction=0.0, simple_fraction=0.0, suppressed_fraction=0.0, affinity_spread=0.0)
        population = draw_population(replace(cell, rf_cycles=cycles), 60, np.random.default_rng(0))
        return np.median(grating_drive(population, DIRECTIONS, (2.0,))[:, 0, ON].mean(1).max(0))

    assert selectivity(0.2) < selectivity(0.5) - 0.2
