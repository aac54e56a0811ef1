from dataclasses import replace

import numpy as np
import pytest
from population_samples import make_population

from poyo_ssl.errors import ConfigError
from poyo_ssl.observatory import CellClass
from poyo_ssl.observatory.cells import SCREEN_DEG, build_spatial_filters, draw_population, drift_population, screen_grid


def test_uniform_grey_drives_nothing():
    population = draw_population(CellClass(), 20, np.random.default_rng(0))
    filters = build_spatial_filters(population, *screen_grid(32, 56))
    np.testing.assert_allclose(filters.sum(0), 0, atol=1e-6)


def test_a_filter_is_a_gabor_at_its_place():
    x, y = screen_grid(54, 96)
    sigma, frequency, angle = 8.0, 0.05, np.deg2rad(30.0)
    population = make_population(
        rf_x_deg=10.0, rf_y_deg=-5.0, rf_sigma_deg=sigma, direction_deg=30.0, spatial_frequency_cpd=frequency
    )
    filters = build_spatial_filters(population, x, y)[:, 0]
    envelope = np.exp(-((x - 10) ** 2 + (y + 5) ** 2) / (2 * sigma**2))
    along = np.cos(angle) * (x - 10) + np.sin(angle) * (y + 5)
    expected = envelope * np.exp(2j * np.pi * frequency * along) / envelope.sum()
    # What lets it ignore uniform grey is small beside it.
    np.testing.assert_allclose(filters, expected, atol=0.1 * np.abs(expected).max())
    assert np.hypot(x[np.abs(filters).argmax()] - 10, y[np.abs(filters).argmax()] + 5) < 1.5


def test_neighbours_see_neighbouring_places():
    # Retinotopy: receptive fields are a turned and shifted copy of the places in the plane, with scatter.
    population = draw_population(CellClass(), 200, np.random.default_rng(2))
    design = np.column_stack([population.roi_row_px, population.roi_column_px, np.ones(200)])
    places = np.column_stack([population.rf_x_deg, population.rf_y_deg])
    solution, *_ = np.linalg.lstsq(design, places, rcond=None)
    np.testing.assert_allclose((places - design @ solution).std(0), 4.0, rtol=0.2)
    # A shift by one pixel is 22 degrees / 512, whatever the turn.
    np.testing.assert_allclose(np.linalg.norm(solution[:2], axis=1), 22 / 512, rtol=0.15)


def test_receptive_fields_are_on_the_screen_and_others_refused():
    population = draw_population(CellClass(), 500, np.random.default_rng(0), area="VISam")
    assert np.abs(population.rf_x_deg).max() <= SCREEN_DEG[1] / 2
    assert np.abs(population.rf_y_deg).max() <= SCREEN_DEG[0] / 2
    with pytest.raises(ConfigError, match=r"neuron 0: receptive field at rf_x_deg 61.0, off the screen"):
        make_population(rf_x_deg=61.0)
    with pytest.raises(ConfigError, match="rf_y_deg nan, off the screen"):
        make_population(rf_y_deg=float("nan"))


def test_what_does_not_depend_on_the_class_is_the_same_for_every_class():
    one, two = (
        draw_population(cell, 30, np.random.default_rng(5))
        for cell in (CellClass(), CellClass(rf_cycles=0.2, untuned_fraction=0.9, rate_spread=1.0, mean_rate_hz=4.0))
    )
    for name in ("rf_x_deg", "direction_deg", "spatial_frequency_cpd", "temporal_frequency_hz", "roi_row_px"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert one.tuned.sum() > two.tuned.sum()


def test_drift_is_a_random_walk_of_tuning_place_and_rate():
    cell = CellClass(drift=0.2)
    before = draw_population(cell, 700, np.random.default_rng(0))
    before = replace(before, rf_x_deg=np.zeros(700), rf_y_deg=np.zeros(700))
    spreads = []
    for days in (1.0, 4.0):
        after = drift_population(before, cell, days, np.random.default_rng(1))
        spreads.append(
            [
                (after.direction_deg - before.direction_deg).std() / 45,
                (after.rf_x_deg - before.rf_x_deg).std() / 5,
                (after.rf_y_deg - before.rf_y_deg).std() / 5,
                np.log(after.relative_rate / before.relative_rate).std(),
            ]
        )
        np.testing.assert_array_equal(after.spatial_frequency_cpd, before.spatial_frequency_cpd)
    np.testing.assert_allclose(spreads, [[0.2] * 4, [0.4] * 4], rtol=0.1)
    still = drift_population(before, CellClass(drift=0.0), 9.0, np.random.default_rng(1))
    np.testing.assert_array_equal(still.direction_deg, before.direction_deg)
