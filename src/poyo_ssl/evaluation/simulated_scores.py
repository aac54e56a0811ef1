"""Score tables with a known truth: what the statistics are checked on (benchmarks/statistics_coverage.py)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd

from poyo_ssl.evaluation.statistics import FloatArray

World = Literal["between", "within", "skewed"]

SCATTER: dict[World, tuple[float, float, float]] = {
    "between": (1.0, 0.5, 0.3),
    "within": (0.0, 0.0, 1.0),
    "skewed": (1.0, 0.5, 0.3),
}
"""Standard deviations over animals, recordings and blocks; a skewed world's animals follow a gamma distribution."""
GAMMA_SHAPE = 4.0
"""Its skewness is 2 / sqrt(shape), 1."""
REPEATS, BLOCKS = 2, 6
BLOCK_CORRELATION = 0.5


def simulate_arms(
    rng: np.random.Generator, num_animals: int, world: World, *, num_arms: int = 2
) -> dict[str, pd.DataFrame]:
    """Simulate arms whose true means are all 0, on the same animals with one to three recordings each.

    All arms share the animals' difficulty (standard deviation 1) and have noise of their own, correlated from block to
    block; each but the first has scatter of the world's kind besides.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of everything.
    num_animals : int
        Animals.
    world : {'between', 'within', 'skewed'}
        Where arms differ by chance, see `SCATTER`.
    num_arms : int
        Arms, named arm0, arm1 and so on.

    Returns
    -------
    dict of str to DataFrame
        Score tables of one metric, ``accuracy``.

    Examples
    --------
    >>> tables = simulate_arms(np.random.default_rng(0), 3, "within")
    >>> sorted(tables), tables["arm0"]["subject_id"].nunique()
    (['arm0', 'arm1'], 3)
    """
    animal = np.repeat(np.arange(num_animals), rng.integers(1, 4, num_animals))
    shared = rng.normal(size=num_animals)[animal]
    between, recording, within = SCATTER[world]
    frame = _frame(animal)
    tables = {}
    for index in range(num_arms):
        value = shared[:, None, None] + within * _block_noise(rng, len(animal))
        if index:
            if world == "skewed":
                own = (rng.gamma(GAMMA_SHAPE, size=num_animals) - GAMMA_SHAPE) / np.sqrt(GAMMA_SHAPE)
            else:
                own = rng.normal(size=num_animals)
            value += (between * own[animal] + recording * rng.normal(size=len(animal)))[:, None, None]
        tables[f"arm{index}"] = frame.assign(value=value.ravel())
    return tables


def _block_noise(rng: np.random.Generator, num_recordings: int) -> FloatArray:
    """Return ``(recordings, repeats, blocks)`` of unit variance, autoregressive over the blocks of a repeat."""
    noise = rng.normal(size=(num_recordings, REPEATS, BLOCKS))
    for block in range(1, BLOCKS):
        fresh = np.sqrt(1 - BLOCK_CORRELATION**2) * noise[:, :, block]
        noise[:, :, block] = BLOCK_CORRELATION * noise[:, :, block - 1] + fresh
    return noise


def _frame(animal: np.ndarray) -> pd.DataFrame:
    recording, repeat, block = (i.ravel() for i in np.indices((len(animal), REPEATS, BLOCKS)))
    columns = {"recording_id": recording, "subject_id": animal[recording], "repeat": repeat, "block": block}
    return pd.DataFrame(columns | {"stimulus": "natural_movie_one", "metric": "accuracy", "num_targets": 300})


def simulate_trainings(
    rng: np.random.Generator,
    num_tables: int,
    num_animals: int,
    num_seeds: int,
    *,
    seed_scatter: float,
    animal_scatter: float = 0.5,
) -> FloatArray:
    """Simulate paired differences of two trained arms whose true difference is 0.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of everything.
    num_tables, num_animals, num_seeds : int
        Tables, animals and trainings; every animal is decoded by the same trainings.
    seed_scatter, animal_scatter : float
        Standard deviation of a training's luck, and of an animal's own difference; that of the rest is 0.4.

    Returns
    -------
    ndarray
        ``(num_tables, num_animals, num_seeds)``.

    Examples
    --------
    >>> simulate_trainings(np.random.default_rng(0), 7, 3, 5, seed_scatter=0.5).shape
    (7, 3, 5)
    """
    animal = animal_scatter * rng.normal(size=(num_tables, num_animals, 1))
    training = seed_scatter * rng.normal(size=(num_tables, 1, num_seeds))
    return animal + training + 0.4 * rng.normal(size=(num_tables, num_animals, num_seeds))
