"""Work on blocks of rows that fit a core's cache, shared by threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

BLOCK_VALUES = 2**15
"""Values of a block: a few float64 arrays of it fit a core's cache, and torch starts no threads of its own for it."""


def in_blocks(work: Callable[[slice], T], num_rows: int, num_columns: int) -> list[T]:
    """Do some work on every block of rows and return the results in order.

    As many threads as torch uses (``OMP_NUM_THREADS``) take blocks in turns; numpy and torch let go of Python's lock.

    Parameters
    ----------
    work : callable
        From a slice of rows to a result.
    num_rows, num_columns : int
        Size of what is worked on; a block has about ``BLOCK_VALUES`` values, and at least one row.

    Examples
    --------
    >>> in_blocks(lambda rows: (rows.start, rows.stop), 3, BLOCK_VALUES // 2)
    [(0, 2), (2, 3)]
    """
    import torch  # here, since reports need the scores of decoders but no torch

    size = max(BLOCK_VALUES // num_columns, 1)
    blocks = [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]
    threads = min(torch.get_num_threads(), len(blocks))
    if threads <= 1:
        return [work(rows) for rows in blocks]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, blocks))
