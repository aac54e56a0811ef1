"""From the mass that a decoder gives every movie frame to the frame it names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from poyo_ssl.evaluation.blocks import in_blocks
from poyo_ssl.evaluation.features import FloatArray, IntArray


def decide(mass: FloatArray, half_width: int, seen: npt.NDArray[np.bool_]) -> IntArray:
    """Choose the seen frame with the most mass within +- `half_width` frames of it.

    Parameters
    ----------
    mass : ndarray
        ``(N, L)`` non-negative.
    half_width : int
        Frames on either side.
    seen : ndarray
        ``(L,)`` bool, frames that may be chosen.

    Returns
    -------
    ndarray
        ``(N,)`` int64.

    Examples
    --------
    >>> decide(np.array([[0.4, 0.0, 0.1, 0.3, 0.2]]), 1, np.ones(5, dtype=bool))
    array([3])
    """
    return decide_each(lambda rows: [mass[rows]], len(mass), (half_width,), seen)[0, 0]


def decide_each(
    masses: Callable[[slice], Iterable[FloatArray]],
    num_rows: int,
    half_widths: Sequence[int],
    seen: npt.NDArray[np.bool_],
) -> IntArray:
    """Decide by every mass and every half width, block by block, so that no whole mass is ever held.

    Parameters
    ----------
    masses : callable
        From a slice of rows to S arrays of mass, ``(rows, L)`` each; called by several threads.
    num_rows : int
        Number of windows N.
    half_widths : sequence of int
        H numbers of frames on either side.
    seen : ndarray
        ``(L,)`` bool, frames that may be chosen.

    Returns
    -------
    ndarray
        ``(S, H, N)`` int64.

    Examples
    --------
    >>> mass = np.array([[0.4, 0.0, 0.1, 0.3, 0.2]])
    >>> decide_each(lambda rows: [mass[rows], mass[rows] ** 9], 1, (0, 1), np.ones(5, dtype=bool))[..., 0]
    array([[0, 3],
           [0, 1]])
    """
    unseen = np.flatnonzero(~seen)

    def block(rows: slice) -> IntArray:
        return np.array([_decide_block(mass, half_widths, unseen) for mass in masses(rows)], np.int64)

    return np.concatenate(in_blocks(block, num_rows, len(seen)), axis=-1)


def _decide_block(mass: FloatArray, half_widths: Sequence[int], unseen: IntArray) -> list[IntArray]:
    import torch  # here, since reports need the scores of decoders but no torch

    num_rows, num_frames = mass.shape
    pad = min(max(half_widths), num_frames)
    total = np.zeros((num_rows, num_frames + 1 + 2 * pad))  # mass before a frame, also of frames beyond either end
    # numpy's running sum takes four times as long.
    torch.cumsum(torch.from_numpy(mass), dim=1, out=torch.from_numpy(total)[:, pad + 1 : pad + 1 + num_frames])
    total[:, pad + 1 + num_frames :] = total[:, pad + num_frames, None]
    # A hair of the frame's own mass chooses the peak on the plateau that a box sum makes of it.
    hair = 1e-6 * mass
    found = []
    for half_width in half_widths:
        low, high = pad - min(half_width, pad), pad + 1 + min(half_width, pad)
        gain = total[:, high : high + num_frames] - total[:, low : low + num_frames]
        gain += hair
        gain[:, unseen] = -np.inf
        found.append(gain.argmax(axis=1))
    return found
