"""Thresholds from the knee of the Cre-line means (Kneedle, Satopaa et al. 2011)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from kneed import KneeLocator
from numpy.typing import NDArray

from poyo_ssl import protocol
from poyo_ssl.errors import SelectionError

SENSITIVITY = 1.0
CURVE = "convex"
DIRECTION = "increasing"


def knee_threshold(line_means: Sequence[float] | NDArray[np.float64], *, name: str) -> float:
    """Return the value at the knee of line means.

    The means are sorted ascending and set against their rank; Kneedle runs with sensitivity 1 on a convex,
    increasing curve (the paper gives only the resulting thresholds; this is ours). Lines strictly below the
    value at the knee are predictable.

    Parameters
    ----------
    line_means : sequence of float
        One mean per Cre line, in any order, finite.
    name : str
        What the means are of, for the error.

    Raises
    ------
    SelectionError
        If there are fewer than 8 lines, or the curve has no knee.

    Examples
    --------
    Ten lines on a gentle slope and three far above:

    >>> knee_threshold([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 40, 80, 120], name="kurtosis")
    10.0
    """
    values = np.sort(np.asarray(line_means, float))
    fix = (
        f"use thresholds 'published' (skewness {protocol.SKEWNESS_THRESHOLD}, kurtosis "
        f"{protocol.KURTOSIS_THRESHOLD}) or 'given'"
    )
    if len(values) < protocol.MIN_LINES_FOR_KNEE:
        raise SelectionError(
            f"{len(values)} Cre lines are too few for a knee of {name}",
            allowed=f"{protocol.MIN_LINES_FOR_KNEE} or more",
            fix=fix,
        )
    knee = None
    # Equal means have no curve to normalise.
    if values[0] < values[-1]:
        with warnings.catch_warnings():
            # The library warns where we raise.
            warnings.simplefilter("ignore")
            knee = KneeLocator(np.arange(len(values)), values, S=SENSITIVITY, curve=CURVE, direction=DIRECTION).knee
    if knee is None:
        raise SelectionError(f"the {len(values)} line means of {name} have no knee", fix=fix)
    return float(values[int(knee)])
