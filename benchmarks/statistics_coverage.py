"""Coverage, false positives and power of the statistics on simulated score tables.

    python benchmarks/statistics_coverage.py [--tables 2000] [--parts between within skewed ...] [--animals 3 5 ...]

Every table has 3, 5, 10 or 30 animals with one to three recordings each, two repeats of six blocks per recording, and
noise that is correlated from block to block. Four arms have the same true mean; what tells them apart is scatter of the
world's kind:

- `between`: animals differ, normally (standard deviation 1; recordings 0.5, blocks 0.3);
- `within`: animals are alike, all scatter lies in the blocks (1.0);
- `skewed`: animals differ with the skewness of a gamma distribution of shape 4 (1.0), else as `between`.

Then margins ("no worse", "equivalent"), animals that are all decoded by the same five trainings (crossed), trainings
alone, and the power of both. Figures are shares of `--tables`; the standard error of a share of 0.95 or 0.05 of 2,000
tables is 0.005. The published table is in docs/statistics.md. On one core all parts take about 40 minutes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from poyo_ssl.evaluation.leaderboard import compare_arms
from poyo_ssl.evaluation.statistics import FloatArray, crossed_error, estimate_mean

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
    """Simulate score tables of arms whose true means are all 0, on the same animals with one to three recordings each.

    All share the animals' difficulty (standard deviation 1) and have noise of their own, correlated from block to
    block; each but the first has scatter of the world's kind besides.
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
    """``(tables, animals, seeds)`` paired differences of two trained arms whose true difference is 0.

    Scatters are standard deviations of a training's luck, shared by all animals, and of an animal's own difference.
    """
    animal = animal_scatter * rng.normal(size=(num_tables, num_animals, 1))
    training = seed_scatter * rng.normal(size=(num_tables, 1, num_seeds))
    return animal + training + 0.4 * rng.normal(size=(num_tables, num_animals, num_seeds))


NUM_ARMS = 4
MARGIN = 0.5
"""In units of the standard deviation over animals."""
ALPHA = 0.05

Shares = dict[str, float]
"""Share of the simulated tables in which each thing happened."""


def check_tables(world: World, num_animals: int, num_tables: int, rng: np.random.Generator) -> Shares:
    """Count how often intervals cover the truth, and how often a difference is claimed that is not there."""
    counts = dict.fromkeys(("mean", "difference", "effect size", "p < 0.05", "claim"), 0)
    pairs = [("arm0", f"arm{index}") for index in range(1, NUM_ARMS)]
    for _ in range(num_tables):
        tables = simulate_arms(rng, num_animals, world, num_arms=NUM_ARMS)
        mean = estimate_mean(tables["arm1"], "accuracy", rng=rng).interval()
        found = compare_arms(tables, pairs, "accuracy", rng=rng)
        counts["mean"] += mean.low <= 0 <= mean.high
        counts["difference"] += found[0].low <= 0 <= found[0].high
        counts["effect size"] += found[0].effect_low <= 0 <= found[0].effect_high
        counts["p < 0.05"] += found[0].p < ALPHA
        counts["claim"] += any(comparison.verdict in ("better", "worse") for comparison in found)
    return _shares(counts, num_tables)


def check_margins(num_animals: int, num_tables: int, rng: np.random.Generator) -> Shares:
    """Count false "no worse" and "equivalent" where the true difference is just the margin."""
    counts = dict.fromkeys(("no worse", "equivalent"), 0)
    for _ in range(num_tables):
        tables = simulate_arms(rng, num_animals, "between", num_arms=2)
        tables["arm0"] = tables["arm0"].assign(value=tables["arm0"]["value"] - MARGIN)
        [found] = compare_arms(tables, [("arm0", "arm1")], "accuracy", rng=rng, margin=MARGIN)
        counts["no worse"] += found.p_no_worse < ALPHA
        counts["equivalent"] += found.p_equivalent < ALPHA
    return _shares(counts, num_tables)


def check_trainings(
    num_animals: int,
    num_tables: int,
    rng: np.random.Generator,
    *,
    seed_scatter: float,
    num_seeds: int = 5,
    effect: float = 0.0,
) -> Shares:
    """Count significant differences between two trained arms, and how often their interval covers the truth.

    With an `effect` the share of significant ones is the power. With one animal trainings alone are the replicate and
    the claim is about that animal, so it has no difference of its own here. 'animals alone' leaves the trainings' error
    out.
    """
    scatter = {"seed_scatter": seed_scatter, "animal_scatter": 0.5 if num_animals > 1 else 0.0}
    difference = effect + simulate_trainings(rng, num_tables, num_animals, num_seeds, **scatter)
    animals, trainings = difference.mean(axis=2), difference.mean(axis=1)
    if num_animals == 1:
        low, high = stats.ttest_1samp(trainings, 0, axis=-1).confidence_interval()
        alone = float("nan")
    else:
        # What `estimate_difference` makes of a score table with seeds, of all tables at once.
        error, degrees = crossed_error(animals, trainings)
        reach = stats.t.ppf(1 - ALPHA / 2, degrees) * error
        low, high = animals.mean(axis=1) - reach, animals.mean(axis=1) + reach
        alone = _share_beside(*stats.ttest_1samp(animals, 0, axis=-1).confidence_interval(), 0.0)
    covered, significant = 1 - _share_beside(low, high, effect), _share_beside(low, high, 0.0)
    return {"covered": covered, "significant": significant, "animals alone": alone}


def _share_beside(low: FloatArray, high: FloatArray, truth: float) -> float:
    """Share of intervals that do not hold the truth."""
    return float(((low > truth) | (high < truth)).mean())


def seed_power(num_seeds: int, effect: float, num_tables: int, rng: np.random.Generator) -> float:
    """Share of comparisons over trainings alone that show a true effect, in standard deviations of the differences."""
    differences = effect + rng.normal(size=(num_tables, num_seeds))
    return _share_beside(*stats.ttest_1samp(differences, 0, axis=-1).confidence_interval(), 0.0)


def _shares(counts: dict[str, int], num_tables: int) -> Shares:
    return {name: float(count) / num_tables for name, count in counts.items()}


ANIMALS = (3, 5, 10, 30)
SEED_EFFECTS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
SEED_SCATTERS = (0.0, 0.5, 1.0)
CROSSED_EFFECTS = (0.5, 1.0, 1.5)
PARTS = (*SCATTER, "margins", "trainings", "seed_power", "crossed_power")


def rows_of(part: str, tables: int, animals: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yield the rows of one published table; each has a generator of its own, so rows can be made one by one."""
    if part == "seed_power":
        for seeds in (3, 5, 10):
            rng = np.random.default_rng(seeds)
            shares = {f"{effect:g} sd": seed_power(seeds, effect, max(tables, 20_000), rng) for effect in SEED_EFFECTS}
            yield {"replicates": f"{seeds} seeds, paired", **shares}
        return
    for number in animals:
        if part in SCATTER:
            rng = np.random.default_rng([number, PARTS.index(part)])
            yield {"world": part, "animals": number, **check_tables(part, number, tables, rng)}
        elif part == "margins":
            yield {"animals": number, **check_margins(number, tables, np.random.default_rng([number, 3]))}
        elif part == "trainings":
            yield from _trainings(number, tables)
        elif number > min(ANIMALS):
            shares = {}
            for effect in CROSSED_EFFECTS:
                rng = np.random.default_rng([number, int(10 * effect)])
                found = check_trainings(number, max(tables, 20_000), rng, seed_scatter=0.5, effect=effect)
                shares[f"difference {effect:g}"] = found["significant"]
            yield {"animals": number, "seeds": 5, "scatter over seeds": 0.5, **shares}


def _trainings(animals: int, tables: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of crossed animals and trainings; those of trainings alone in the place of three animals."""
    animals = 1 if animals == min(ANIMALS) else animals
    for scatter in (1.0,) if animals == 1 else SEED_SCATTERS:
        rng = np.random.default_rng([animals, int(10 * scatter)])
        found = check_trainings(animals, max(tables, 20_000), rng, seed_scatter=scatter)
        yield {"animals": animals, "seeds": 5, "scatter over seeds": scatter, **found}


def main() -> None:
    """Print the tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", type=int, default=2000)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--animals", nargs="+", type=int, choices=ANIMALS, default=list(ANIMALS))
    arguments = parser.parse_args()
    for part in arguments.parts:
        rows = []
        for row in rows_of(part, arguments.tables, arguments.animals):
            rows.append(row)
            print("#", row, file=sys.stderr, flush=True)
        if rows:
            print_table(rows)


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print rows as a Markdown table; NaN as '-'."""
    table = pd.DataFrame(rows)
    print("| " + " | ".join(table.columns) + " |")
    print("|" + "---|" * len(table.columns))
    for row in table.itertuples(index=False):
        cells = ("-" if x != x else f"{x:.3f}" if isinstance(x, float) else str(x) for x in row)
        print("| " + " | ".join(cells) + " |")
    print(flush=True)


if __name__ == "__main__":
    main()
