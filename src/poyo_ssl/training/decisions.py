"""From class probabilities to classes; it needs no training code, so that decoding online starts quickly."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from poyo_ssl.training.restore import TrainedRun


def decide(run: TrainedRun, probabilities: NDArray) -> NDArray[np.int64]:
    """Turn class probabilities ``(B, K)`` into classes ``(B,)``, by the run's rule."""
    reach = round(run.config.tolerance_s / run.movie_frame_s) if run.task == "frame_number" else 0
    return decide_frame(torch.from_numpy(probabilities), reach=reach).numpy()


def decide_frame(probabilities: Tensor, *, reach: int) -> Tensor:
    """Name the movie frame with the most probability within `reach` frames on either side.

    It maximises the expected rate of answers within the tolerance.

    Parameters
    ----------
    probabilities : Tensor
        ``(B, K)``.
    reach : int
        Frames on either side; 0 names the most probable frame.

    Examples
    --------
    >>> decide_frame(torch.tensor([[0.4, 0.0, 0.1, 0.25, 0.25]]), reach=1).tolist()
    [3]
    """
    summed = F.pad(probabilities.double().cumsum(dim=-1), (1, 0))
    place = torch.arange(probabilities.shape[-1], device=probabilities.device)
    high = (place + reach + 1).clamp(max=probabilities.shape[-1])
    return (summed[:, high] - summed[:, (place - reach).clamp(min=0)]).argmax(dim=-1)
