import numpy as np
import pytest
from kneed import KneeLocator

from poyo_ssl.errors import SelectionError
from poyo_ssl.selection.table import knee_threshold


def kneedle_by_hand(values):
    """Satopaa et al. 2011 for convex increasing curves: the largest difference of the flipped, normalised curve."""
    y = np.sort(values)
    x = np.arange(len(y)) / (len(y) - 1)
    y_flipped = (y.max() - y)[::-1] / (y.max() - y.min())
    x_flipped = 1 - x[::-1]
    return y[len(y) - 1 - int(np.argmax(y_flipped - x_flipped))]


@pytest.mark.parametrize(
    ("values", "threshold"),
    [
        # The straight line from (0, 1) to (9, 60) is furthest above the points at rank 7: 1 + 7 x 59 / 9 - 8 = 38.9.
        ([1, 2, 3, 4, 5, 6, 7, 8, 30, 60], 8.0),
        # Rank 4: 0 + 4 x 100 / 7 - 4 = 53.1 above; rank 5: 71.4 - 40 = 31.4.
        ([100, 0, 1, 2, 3, 4, 40, 70], 4.0),
    ],
)
def test_hand_examples(values, threshold):
    assert knee_threshold(values, name="kurtosis", curve="convex") == threshold
    assert kneedle_by_hand(np.array(values, float)) == threshold


def test_equals_the_library_on_random_curves():
    rng = np.random.default_rng(0)
    for _ in range(20):
        values = np.sort(rng.lognormal(1, 1, 13))
        expected = KneeLocator(range(13), values, S=1.0, curve="convex", direction="increasing").knee_y
        assert knee_threshold(rng.permutation(values), name="skewness", curve="convex") == expected


def test_too_few_lines_or_no_knee_name_the_thresholds():
    with pytest.raises(SelectionError, match=r"7 Cre lines are too few.*3\.51.*22\.62"):
        knee_threshold(np.arange(7.0) ** 3, name="skewness", curve="convex")
    for values in (np.full(9, 2.0), np.arange(9.0), np.sqrt(np.arange(9.0))):
        with pytest.raises(SelectionError, match=r"no knee.*published"):
            knee_threshold(values, name="skewness", curve="convex")
