"""What this room's tests share."""

import itertools

import numpy as np
import pytest

from poyo_ssl.data.intervals import subtract


def moments_in_two(parts):
    """Return the seconds that any two of the named ``(K, 2)`` parts share."""
    shared = 0.0
    for one, other in itertools.combinations(parts.values(), 2):
        left = subtract(one, other)
        shared += np.diff(one).sum() - np.diff(left).sum()
    return shared


@pytest.fixture
def shared_seconds():
    """Return the check that parts are disjoint; it gives the seconds that they share."""
    return moments_in_two
