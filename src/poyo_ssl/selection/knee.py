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
DIRECTION = "increasing"


def knee_threshold(line_means: Sequence[float] | NDArray[np.float64], *, name: str, curve: str = "concave") -> float:
    """Return the value at the knee of line means.

    The means are sorted ascending and set against their rank; Kneedle runs with sensitivity 1 on an increasing
    curve (the paper gives only the resulting thresholds; this is ours). Lines strictly below the value at the knee
    are predictable.

    Parameters
    ----------
    line_means : sequence of float
        One mean per Cre line, in any order, finite.
    name : str
        What the means are of, for the error.
    curve : {'concave', 'convex'}
        Which bend is wanted: where a steep rise levels off (a few low lines below a plateau), or where a flat curve
        begins to rise (a plateau with a few high lines above it).

    Raises
    ------
    SelectionError
        If there are fewer than 8 lines, or the curve has no knee.

    Examples
    --------
    Four regular lines below nine others, and ten lines on a gentle slope with three far above:

    >>> knee_threshold([1.1, 1.8, 2.3, 2.7, 4.6, 4.7, 4.8, 4.8, 4.8, 4.9, 4.9, 5.0, 5.1], name="skewness")
    4.6
    >>> knee_threshold([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 40, 80, 120], name="kurtosis", curve="convex")
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
            knee = KneeLocator(np.arange(len(values)), values, S=SENSITIVITY, curve=curve, direction=DIRECTION).knee
    # On a curve of another shape the library may name an end, where the curve meets its chord by definition.
    if knee is None or knee in (0, len(values) - 1):
        raise SelectionError(f"the {len(values)} line means of {name} have no knee", fix=fix)
    return float(values[int(knee)])
