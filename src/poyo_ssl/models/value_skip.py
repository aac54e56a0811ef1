"""A linear path from dF/F to class logits, beside the encoder: population vector, then cosines to class prototypes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poyo_ssl.data.batch import Batch
from poyo_ssl.models.embeddings import GrowingEmbedding, normal_parameter

SCALE_AT_START = 25.0
"""Logit of a window that points exactly at a prototype, before training."""


class ValueSkip(nn.Module):
    """Logits ``scale * cos(h - centre, prototype_k)`` of the population vector h, the sum over bins and neurons of x w.

    Every neuron has a vector w in each time bin, every recording a centre. The cosine does not see how large a
    population's response is, which varies with the animal's state, only its direction. It starts best from what
    `poyo_ssl.training.value_skip.fit_value_skip` measures on the training part; drawn weights are small and train too.

    Parameters
    ----------
    num_bins : int
        Time bins P of equal length that a window is averaged in.
    dim : int
        Width R of the population vector.
    num_classes : int
        Number of prototypes K.
    num_units, num_sessions : int
        Known units and recordings; row 0 is padding or the unknown, and contributes nothing.

    Examples
    --------
    >>> skip = ValueSkip(num_bins=3, dim=16, num_classes=8, num_units=5, num_sessions=1)
    >>> batch = Batch(
    ...     dff=torch.randn(2, 30, 3), unit_index=torch.tensor([[1, 2, 3], [4, 5, 0]]),
    ...     unit_mask=torch.tensor([[True, True, True], [True, True, False]]),
    ...     frame_times=torch.linspace(0, 0.97, 30).expand(2, -1), session_index=torch.tensor([1, 1]),
    ...     target_time=torch.full((2,), 0.5), duration_s=1.0)
    >>> skip(batch).shape
    torch.Size([2, 8])
    """

    def __init__(self, *, num_bins: int, dim: int, num_classes: int, num_units: int, num_sessions: int) -> None:
        super().__init__()
        self.num_bins = num_bins
        self.units = GrowingEmbedding(num_units, num_bins * dim)
        self.centres = GrowingEmbedding(num_sessions, dim)
        self.prototypes = normal_parameter(num_classes, dim)
        self.log_scale = nn.Parameter(torch.tensor(SCALE_AT_START).log())

    def forward(self, batch: Batch) -> Tensor:
        """Return logits ``(B, K)``."""
        binned = bin_values(batch, self.num_bins).to(self.prototypes.dtype)  # (B, C, P)
        index = batch.unit_index
        if bool((index == index[:1]).all()):
            # The usual case, windows of one recording: one table for all of them.
            h = binned.flatten(1) @ self.units(index[0]).reshape(binned[0].numel(), -1)  # (B, R)
        else:
            rows = self.units(index).unflatten(-1, (self.num_bins, -1))  # (B, C, P, R)
            h = torch.einsum("bcp,bcpr->br", binned, rows)
        h = h - self.centres(batch.session_index)
        return self.log_scale.exp() * (F.normalize(h, dim=-1) @ F.normalize(self.prototypes, dim=-1).T)


def bin_values(batch: Batch, num_bins: int) -> Tensor:
    """Average dF/F in time bins, neuron by neuron.

    Parameters
    ----------
    batch : Batch
        Windows.
    num_bins : int
        Bins P. Where the steps of a window are no multiple of it, neighbouring bins share a step.

    Returns
    -------
    Tensor
        ``(B, C, P)``, zero where a neuron is padding.
    """
    dff = batch.dff.masked_fill(~batch.unit_mask.unsqueeze(1), 0.0)
    return F.adaptive_avg_pool1d(dff.mT, num_bins)
