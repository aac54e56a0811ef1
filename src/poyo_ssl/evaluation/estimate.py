"""A mean over independent units and its error: intervals and p values, by Student's t or by resampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from poyo_ssl.errors import ConfigError

FloatArray = npt.NDArray[np.float64]
Method = Literal["t", "bootstrap", "none"]

TINY = 1e-12
"""Scatter below this share of the values is rounding."""


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval.

    Attributes
    ----------
    value : float
        The mean.
    low, high : float
        Bounds; NaN where there are too few values for any, or a few that are all equal.
    n : int
        Number of independent values.
    method : {'t', 'bootstrap', 'none'}
        How the bounds were made.
    unit : str
        What the independent values are: animals, recordings, repeats or seeds; empty when not known.

    Examples
    --------
    >>> print(Interval(0.5, 0.25, 0.75, 3, "t", "animals"))
    0.500 [0.250, 0.750] (n=3 animals, t)
    """

    value: float
    low: float
    high: float
    n: int
    method: Method
    unit: str = ""

    def __str__(self) -> str:
        count = f"{self.n} {self.unit}".strip()
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] (n={count}, {self.method})"


@dataclass(frozen=True)
class Estimate:
    """A mean over independent units, its standard error, and how far off it may be.

    Units that are all equal have no scatter to judge by: scores of a few trials are coarse, and two animals with the
    same difference are no proof. There the exact sign test takes the place of Student's t: n equal values on one side
    of a bound have a one-sided p of ``2 ** -n``, and there are no bounds where that cannot exclude anything (below six
    values at 95 %).

    Attributes
    ----------
    value, error : float
        Mean and its standard error; the error is NaN where nothing tells it.
    units : ndarray
        ``(n,)`` value of every independent unit.
    unit : str
        What they are.
    degrees : float
        Degrees of freedom of Student's t.
    pivots : ndarray, optional
        ``(B,)`` sorted studentised bootstrap errors, in the place of Student's t.
    num_seeds : int
        Trainings behind each unit.

    Examples
    --------
    >>> print(Estimate.of([1.0, 2.0, 3.0]).interval())
    2.000 [-0.484, 4.484] (n=3, t)
    >>> round(Estimate.of([1.0, 2.0, 3.0]).p_two_sided(), 4)
    0.0742
    """

    value: float
    error: float
    units: FloatArray
    unit: str = ""
    degrees: float = 0.0
    pivots: FloatArray | None = None
    num_seeds: int = 1

    @classmethod
    def of(cls, values: npt.ArrayLike, unit: str = "") -> Estimate:
        """Return the mean of ``(n,)`` independent values.

        Raises
        ------
        ConfigError
            If there are no values or one is NaN.
        """
        x = np.asarray(values, dtype=np.float64).ravel()
        if len(x) == 0:
            raise ConfigError("no scores to average", fix="check the metric's name and the recordings")
        if np.isnan(x).any():
            raise ConfigError(f"score {int(np.argmax(np.isnan(x)))} is NaN", fix="leave it out on purpose or mend it")
        error = float(x.std(ddof=1) / np.sqrt(len(x))) if len(x) > 1 else float("nan")
        if error <= TINY * max(1.0, float(np.abs(x).max())):
            error = 0.0
        return cls(float(x.mean()), error, x, unit, degrees=len(x) - 1.0)

    @property
    def method(self) -> Method:
        """How bounds and p values are made."""
        return "none" if np.isnan(self.error) else "t" if self.pivots is None else "bootstrap"

    def interval(self, level: float = 0.95) -> Interval:
        """Return the mean with its two-sided interval.

        Raises
        ------
        ConfigError
            If `level` is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise ConfigError(f"confidence level {level}", allowed="above 0, below 1", fix="pass 0.95")
        n, half = len(self.units), (1 - level) / 2
        if self.method == "none" or (self.error == 0 and 2.0**-n > half):
            return Interval(self.value, np.nan, np.nan, n, "none", self.unit)
        if self.pivots is None:
            reach = float(stats.t.ppf(1 - half, self.degrees))
            below, above = -reach, reach
        else:
            below, above = np.quantile(self.pivots, [half, 1 - half])
        low, high = self.value - above * self.error, self.value - below * self.error
        return Interval(self.value, float(low), float(high), n, self.method, self.unit)

    def p_above(self, bound: float = 0.0) -> float:
        """One-sided p of "the mean is not above `bound`"; NaN without an error."""
        return self._p(self.value - bound, upper=True)

    def p_below(self, bound: float = 0.0) -> float:
        """One-sided p of "the mean is not below `bound`"; NaN without an error."""
        return self._p(self.value - bound, upper=False)

    def p_two_sided(self, bound: float = 0.0) -> float:
        """Two-sided p of "the mean equals `bound`", equal-tailed as the interval is; NaN without an error."""
        p = 2 * min(self.p_above(bound), self.p_below(bound))
        return p if np.isnan(p) else min(1.0, p)

    def _p(self, distance: float, *, upper: bool) -> float:
        if self.method == "none":
            return float("nan")
        if self.error == 0:
            at = abs(distance) <= TINY * max(1.0, abs(self.value))
            return 2.0 ** -len(self.units) if not at and (distance > 0) == upper else 1.0
        t = distance / self.error
        if self.pivots is None:
            return float(stats.t.sf(t if upper else -t, self.degrees))
        left = np.searchsorted(self.pivots, t, side="left" if upper else "right")
        beyond = len(self.pivots) - left if upper else left
        return float((1 + beyond) / (1 + len(self.pivots)))


def t_bounds(values: npt.ArrayLike, level: float = 0.95) -> tuple[FloatArray, FloatArray]:
    """Bounds of Student's t interval for the mean, along the last axis.

    Parameters
    ----------
    values : array_like
        ``(..., n)`` independent values, n of 2 or more.
    level : float
        Coverage.

    Returns
    -------
    low, high : ndarray
        ``(...)``.

    Examples
    --------
    >>> low, high = t_bounds([1.0, 2.0, 3.0])
    >>> round(float(low), 3), round(float(high), 3)
    (-0.484, 4.484)
    """
    x = np.asarray(values, dtype=np.float64)
    n = x.shape[-1]
    half = stats.t.ppf((1 + level) / 2, n - 1) * x.std(axis=-1, ddof=1) / np.sqrt(n)
    mean = x.mean(axis=-1)
    return mean - half, mean + half


def t_interval(values: npt.ArrayLike, level: float = 0.95) -> Interval:
    """Mean of independent values with Student's t interval.

    Parameters
    ----------
    values : array_like
        ``(n,)``; NaN is an error, one value gives no bounds.
    level : float
        Coverage.

    Raises
    ------
    ConfigError
        If there are no values, one is NaN, or the level is not between 0 and 1.

    Examples
    --------
    >>> print(t_interval([1.0, 2.0, 3.0]))
    2.000 [-0.484, 4.484] (n=3, t)
    >>> print(t_interval([1.0]))
    1.000 [nan, nan] (n=1, none)
    """
    return Estimate.of(values).interval(level)


def paired_interval(a: npt.ArrayLike, b: npt.ArrayLike, level: float = 0.95) -> Interval:
    """Mean of ``a - b`` with Student's t interval, for arms measured on the same units (repeats, sessions).

    Examples
    --------
    >>> print(paired_interval([0.9, 0.8, 0.7], [0.5, 0.5, 0.5]))
    0.300 [0.052, 0.548] (n=3, t)
    """
    return t_interval(_differences(a, b), level)


def _differences(a: npt.ArrayLike, b: npt.ArrayLike) -> FloatArray:
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape:
        raise ConfigError(f"{x.size} scores paired with {y.size}", fix="score both arms on the same units")
    return x - y


def paired_p_value(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Two-sided p of the paired t-test, of the sign test where all differences are equal; NaN for fewer than two pairs.

    Examples
    --------
    >>> round(paired_p_value([0.9, 0.8, 0.7], [0.5, 0.5, 0.5]), 4)
    0.0351
    """
    return Estimate.of(_differences(a, b)).p_two_sided()
