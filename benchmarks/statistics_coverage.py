"""Coverage, false positives and power of the statistics on simulated score tables.

    python benchmarks/statistics_coverage.py [--tables 2000] [--worlds between within skewed] [--parts tables seeds]

Every table has 3, 5, 10 or 30 animals with one to three recordings each, two repeats of six blocks per recording, and
noise that is correlated from block to block. Four arms have the same true mean; what tells them apart is scatter of the
world's kind:

- `between`: animals differ, normally (standard deviation 1; recordings 0.5, blocks 0.3);
- `within`: animals are alike, all scatter lies in the blocks (1.0);
- `skewed`: animals differ with the skewness of a gamma distribution of shape 4 (1.0), else as `between`.

The part `seeds` simulates margins, animals that are all decoded by the same trainings (crossed), and trainings alone.
Figures are shares of `--tables`; the standard error of a share of 0.95 or 0.05 of 2,000 tables is 0.005. The
published table is in docs/statistics.md.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
import pandas as pd

from poyo_ssl.evaluation import compare_arms, estimate_difference, estimate_mean
from poyo_ssl.evaluation.estimate import Estimate, t_bounds
from poyo_ssl.evaluation.simulated_scores import SCATTER, World, simulate_arms, simulate_trainings
from poyo_ssl.evaluation.statistics import estimate_over_seeds

ANIMALS = (3, 5, 10, 30)
NUM_ARMS = 4
MARGIN = 0.5
"""In the unit of the scatter between animals."""
EFFECTS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)


def check_tables(world: World, num_animals: int, num_tables: int) -> dict[str, float]:
    """Share of tables where intervals cover and where something is claimed that is not so."""
    rng = np.random.default_rng(0)
    counts = dict.fromkeys(
        ("mean covered", "difference covered", "effect size covered", "false positive", "of three, Holm"), 0
    )
    pairs = [("arm0", f"arm{i}") for i in range(1, NUM_ARMS)]
    for _ in range(num_tables):
        tables = simulate_arms(rng, num_animals, world, num_arms=NUM_ARMS)
        mean = estimate_mean(tables["arm1"], "accuracy", rng=rng).interval()
        found = compare_arms(tables, pairs, "accuracy", rng=rng)
        first = found[0].interval
        counts["mean covered"] += mean.low <= 0 <= mean.high
        counts["difference covered"] += first.low <= 0 <= first.high
        counts["effect size covered"] += found[0].effect.low <= 0 <= found[0].effect.high
        counts["false positive"] += found[0].p < 0.05
        counts["of three, Holm"] += any(c.verdict in ("better", "worse") for c in found)
    return {name: count / num_tables for name, count in counts.items()}


def check_margins(num_animals: int, num_tables: int) -> dict[str, float]:
    """Share of false "no worse" and "equivalent" where the true difference is just the margin."""
    rng = np.random.default_rng(1)
    counts = dict.fromkeys(("no worse, at the margin", "equivalent, at the margin"), 0)
    for _ in range(num_tables):
        tables = simulate_arms(rng, num_animals, "between", num_arms=2)
        shifted = tables | {"arm0": tables["arm0"].assign(value=tables["arm0"]["value"] - MARGIN)}
        [found] = compare_arms(shifted, [("arm0", "arm1")], "accuracy", rng=rng, margin=MARGIN)
        counts["no worse, at the margin"] += found.p_no_worse < 0.05
        counts["equivalent, at the margin"] += found.p_equivalent < 0.05
    return {name: count / num_tables for name, count in counts.items()}


def check_crossed(num_animals: int, num_seeds: int, num_tables: int, *, seed_scatter: float) -> dict[str, float]:
    """Share of false positives where animals and trainings both scatter, with and without the trainings' error."""
    rng = np.random.default_rng(2)
    ours = alone = 0
    for _ in range(num_tables):
        a, b = simulate_trainings(rng, num_animals, num_seeds, seed_scatter=seed_scatter)
        found = estimate_difference(a, b, "accuracy", rng=rng)
        ours += found.p_two_sided() < 0.05
        alone += Estimate.of(found.units).p_two_sided() < 0.05
    return {"false positives": ours / num_tables, "animals alone": alone / num_tables}


def check_power(num_seeds: int, num_tables: int) -> dict[str, float]:
    """Share of tables in which trainings alone show a true effect, by its size in standard deviations over seeds."""
    rng = np.random.default_rng(3)
    found = {}
    for effect in EFFECTS:
        low, high = t_bounds(effect + rng.normal(size=(num_tables, num_seeds)))
        found[f"{effect:g}"] = float(((low > 0) | (high < 0)).mean())
    return found


def check_seed_tables(num_tables: int) -> dict[str, float]:
    """Coverage and false positives of five trainings alone, through score tables."""
    rng = np.random.default_rng(4)
    covered = wrong = 0
    for _ in range(num_tables):
        a, b = simulate_trainings(rng, 1, 5, seed_scatter=1.0)
        found = estimate_over_seeds(a, b, "accuracy")
        interval = found.interval()
        covered += interval.low <= 0 <= interval.high
        wrong += found.p_two_sided() < 0.05
    return {"covered": covered / num_tables, "false positives": wrong / num_tables}


def main() -> None:
    """Print the tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", type=int, default=2000)
    parser.add_argument("--worlds", nargs="+", choices=SCATTER, default=list(SCATTER))
    parser.add_argument("--parts", nargs="+", choices=("tables", "seeds"), default=["tables", "seeds"])
    arguments = parser.parse_args()
    count = arguments.tables
    if "tables" in arguments.parts:
        rows = []
        for world in arguments.worlds:
            for animals in ANIMALS:
                rows.append({"world": world, "animals": animals, **check_tables(world, animals, count)})
                print("#", rows[-1], file=sys.stderr, flush=True)
        _print(rows)
    if "seeds" in arguments.parts:
        _print([{"animals": animals, **check_margins(animals, count)} for animals in ANIMALS])
        crossed = [(animals, scatter) for animals in (5, 10, 30) for scatter in (0.0, 0.5, 1.0)]
        _print(
            [
                {"animals": n, "seeds": 5, "scatter over seeds": s, **check_crossed(n, 5, count, seed_scatter=s)}
                for n, s in crossed
            ]
        )
        _print([{"seeds": 5, "replicate": "seeds alone", **check_seed_tables(count)}])
        _print([{"seeds": seeds, **check_power(seeds, max(count, 20_000))} for seeds in (3, 5, 10)])


def _print(rows: list[dict]) -> None:
    table = pd.DataFrame(rows)
    print("| " + " | ".join(table.columns) + " |")
    print("|" + "---|" * len(table.columns))
    for row in table.itertuples(index=False):
        print("| " + " | ".join(f"{x:.3f}" if isinstance(x, float) else str(x) for x in row) + " |")
    print(flush=True)


if __name__ == "__main__":
    main()
