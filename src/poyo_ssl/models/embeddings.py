"""Embedding tables: fixed ones, and vocabularies that grow with new recordings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poyo_ssl.errors import ConfigError

INIT_STD = 0.02
"""Standard deviation of every embedding at the start (as coded in POYO+)."""


def normal_parameter(*shape: int) -> nn.Parameter:
    """Return a parameter drawn from N(0, 0.02^2).

    Examples
    --------
    >>> normal_parameter(2, 3).shape
    torch.Size([2, 3])
    """
    return nn.Parameter(torch.randn(shape) * INIT_STD)


class GrowingEmbedding(nn.Module):
    """A table with one row per known entry, rows 1 and up; row 0 is zero, for padding and for the unknown.

    Parameters
    ----------
    num_entries : int
        Known entries, without row 0.
    dim : int
        Width of a row.

    Examples
    --------
    >>> table = GrowingEmbedding(2, 4)
    >>> table(torch.tensor([0])).tolist()
    [[0.0, 0.0, 0.0, 0.0]]
    >>> table.grow(5, torch.Generator().manual_seed(0))
    >>> table.num_entries, table.weight.shape
    (5, torch.Size([6, 4]))
    """

    def __init__(self, num_entries: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.pad(torch.randn(num_entries, dim) * INIT_STD, (0, 0, 1, 0)))

    @property
    def num_entries(self) -> int:
        """Known entries, without row 0."""
        return len(self.weight) - 1

    def forward(self, index: Tensor) -> Tensor:
        """Return the rows of `index` ``(...)`` as ``(..., D)``; row 0 gets no gradient."""
        return F.embedding(index, self.weight, padding_idx=0)

    def grow(self, num_entries: int, generator: torch.Generator | None = None) -> None:
        """Keep the rows and append new ones until there are `num_entries`.

        The parameter is replaced: build optimisers afterwards.

        Parameters
        ----------
        num_entries : int
            Entries wanted, without row 0; not fewer than there are.
        generator : Generator, optional
            Where the new rows are drawn from, on the CPU.

        Raises
        ------
        ConfigError
            If `num_entries` is below the present number.
        """
        missing = num_entries - self.num_entries
        if missing < 0:
            raise ConfigError(
                f"a vocabulary of {self.num_entries} entries asked to hold {num_entries}",
                allowed=f"{self.num_entries} or more",
                fix="vocabularies only grow; build a new model for fewer entries",
            )
        if missing == 0:
            return
        rows = torch.randn(missing, self.weight.shape[1], generator=generator) * INIT_STD
        weight = torch.cat((self.weight.detach(), rows.to(self.weight)))
        self.weight = nn.Parameter(weight, requires_grad=self.weight.requires_grad)
