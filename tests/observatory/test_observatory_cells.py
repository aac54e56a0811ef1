from dataclasses import replace

import numpy as np
import pytest

from poyo_ssl.observatory import CellClass
from poyo_ssl.observatory.cells import (
    GRATING_CONTRAST,
    GRATING_SPATIAL_FREQUENCY_CPD,
    Population,
    build_spatial_filters,
    draw_population,
    grating_drive,
    movie_drive,
    simulate_rates,
    simulate_running,
)

DIRECTIONS = (0.0, 45.0, 90.0, 135.0, 180.0, 225.0, 270.0, 315.0)


def make_population(**changes) -> Population:
    """One complex cell in the middle of the screen that prefers the grating of 90 degrees at 2 Hz."""
    values = {
        "rf_x_deg": 0.0,
        "rf_y_deg": 0.0,
        "rf_sigma_deg": 12.0,
        "direction_deg": 90.0,
        "direction_selectivity": 1.0,
        "spatial_frequency_cpd": 0.04,
        "temporal_frequency_hz": 2.0,
        "phase_rad": 0.0,
        "time_constant_s": 0.03,
        "simple": False,
        "tuned": True,
    } | changes
    return Population(**{name: np.array([value]) for name, value in values.items()})


def drive_of(population, frequencies=(2.0,)):
    return grating_drive(population, DIRECTIONS, frequencies, duration_s=2, height=32, width=64)


def test_preferred_direction_wins_and_opposite_loses():
    mean = drive_of(make_population())[:, 0, :120, 0].mean(1)
    assert mean.argmax() == DIRECTIONS.index(90.0)
    assert mean[DIRECTIONS.index(270.0)] < 0.5 * mean.max()
    assert mean[DIRECTIONS.index(0.0)] < 0.1 * mean.max()


def test_without_direction_selectivity_both_ways_drive_alike():
    mean = drive_of(make_population(direction_selectivity=0.0))[:, 0, 30:120, 0].mean(1)
    np.testing.assert_allclose(mean[2], mean[6], rtol=0.02)


def test_simple_cells_follow_the_phase_and_complex_cells_do_not():
    steady = slice(30, 120)
    simple = drive_of(make_population(simple=True))[2, 0, steady, 0]
    complex_ = drive_of(make_population())[2, 0, steady, 0]
    assert simple.std() / simple.mean() > 0.8
    assert complex_.std() / complex_.mean() < 0.1
    # Half-squared cosine at 2 Hz: the fundamental is the largest component beside the mean.
    spectrum = np.abs(np.fft.rfft(simple[:90] - simple[:90].mean()))
    assert spectrum.argmax() == 3  # 2 Hz in 1.5 s


def test_mean_drive_is_one_and_untuned_cells_stay_at_one():
    population = draw_population(CellClass(untuned_fraction=0.5), 40, np.random.default_rng(0))
    drive = drive_of(population, (2.0, 4.0))
    np.testing.assert_allclose(drive[:, :, :120].mean((0, 1, 2)), 1.0)
    assert (drive[..., ~population.tuned] == 1).all()
    assert not population.tuned.all()


def test_uniform_grey_drives_nothing():
    filters = build_spatial_filters(draw_population(CellClass(), 20, np.random.default_rng(0)), 32, 64)
    np.testing.assert_allclose(filters.sum(0), 0, atol=1e-12)


def test_a_rendered_grating_gives_the_analytic_response():
    # Independent route: render the drifting grating as a movie at 30 Hz and send it through the movie path.
    population = draw_population(CellClass(untuned_fraction=0.0), 30, np.random.default_rng(3))
    height, width = 32, 64
    x = ((np.arange(width) + 0.5) / width - 0.5) * 120
    y = (0.5 - (np.arange(height) + 0.5) / height) * 60
    time = np.arange(60) / 30
    movies = []
    for direction in np.deg2rad(DIRECTIONS):
        along = np.cos(direction) * x[None, :] + np.sin(direction) * y[:, None]
        wave = np.cos(2 * np.pi * (GRATING_SPATIAL_FREQUENCY_CPD * along - 1.0 * time[:, None, None]))
        movies.append(np.round(127 + 127 * GRATING_CONTRAST * wave).astype(np.uint8))
    rendered = movie_drive(population, np.concatenate(movies)).reshape(8, 120, 30)[:, 30:].mean(1)
    analytic = drive_of(population, (1.0,))[:, 0, 30:120].mean(1)
    correlation = [np.corrcoef(rendered[:, unit], analytic[:, unit])[0, 1] for unit in range(30)]
    assert np.min(correlation) > 0.97


def test_the_place_of_a_spot_finds_the_receptive_field():
    rng = np.random.default_rng(0)
    population = make_population(rf_x_deg=30.0, rf_y_deg=-10.0, rf_sigma_deg=6.0)
    # A white spot of 3 x 3 pixels for 0.2 s each time, then gray for 0.2 s.
    rows, columns = rng.integers(0, 14, 400), rng.integers(0, 30, 400)
    movie = np.full((400, 12, 16, 32), 127, np.uint8)
    for number, (row, column) in enumerate(zip(rows, columns, strict=True)):
        movie[number, :6, row : row + 3, column : column + 3] = 255
    response = movie_drive(population, movie.reshape(-1, 16, 32)).reshape(400, -1).mean(1)
    x, y = (columns + 1.5) / 32 * 120 - 60, 30 - (rows + 1.5) / 16 * 60
    assert abs(np.average(x, weights=response) - 30.0) < 5
    assert abs(np.average(y, weights=response) - -10.0) < 5


def test_large_movies_are_seen_at_the_eyes_resolution():
    small = np.random.default_rng(0).integers(0, 255, (30, 64, 128), dtype=np.uint8)
    large = small.repeat(4, axis=1).repeat(4, axis=2)
    population = draw_population(CellClass(), 5, np.random.default_rng(0))
    np.testing.assert_allclose(movie_drive(population, small), movie_drive(population, large))


@pytest.mark.parametrize("wanted", [0.2, 0.5, 0.8])
def test_stimulus_information_is_what_was_asked_for(wanted):
    rng = np.random.default_rng(0)
    drive = np.repeat(rng.gamma(0.5, 2.0, (3000, 200)), 10, axis=0)
    cell = CellClass(stimulus_information=wanted, rate_variance=1.5)
    rates = simulate_rates(cell, drive, simulate_running(30_000, 30.0, rng), 30.0, rng)
    assert abs(np.median(rates.stimulus_information) - wanted) < 0.05
    # Independent: squared correlation of the rate with the drive that caused it.
    explained = [np.corrcoef(rates.rate_hz[:, unit], drive[:, unit])[0, 1] ** 2 for unit in range(200)]
    assert abs(np.median(explained) - wanted) < 0.1
    np.testing.assert_allclose(rates.rate_hz.mean(0), rates.mean_rate_hz, rtol=1e-3)
    assert (rates.rate_hz >= 0).all()


def test_running_speeds_up_the_cells_of_a_class():
    rng = np.random.default_rng(0)
    running = simulate_running(60_000, 30.0, rng)
    cell = CellClass(running_sign=1.0, running_share=0.8, shared_share=0.1)
    rates = simulate_rates(cell, np.ones((60_000, 30)), running, 30.0, rng)
    fast = running > 5
    assert 0.1 < fast.mean() < 0.9
    assert (rates.rate_hz[fast].mean(0) > rates.rate_hz[~fast].mean(0)).mean() > 0.9
    assert (rates.stimulus_information == 0).all()


def test_broad_tuning_by_the_receptive_fields_cycles():
    def selectivity(cycles):
        cell = replace(CellClass(untuned_fraction=0.0, simple_fraction=0.0), rf_cycles=cycles)
        mean = drive_of(draw_population(cell, 60, np.random.default_rng(0)))[:, 0, :120].mean(1)
        return np.median(mean.max(0))

    assert selectivity(0.2) < selectivity(0.5) - 0.2
