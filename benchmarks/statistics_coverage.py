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
from typing import Any

import numpy as np
import pandas as pd

from poyo_ssl.evaluation.calibration import check_margins, check_tables, check_trainings, seed_power
from poyo_ssl.evaluation.simulated_scores import SCATTER

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
