"""The recording as the encoder sees it, before any token is built."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenGrid:
    """The recording as the encoder sees it: token ``(t, c)`` is ``[unit_c + type_t ; value_tc w_c]``.

    Attributes
    ----------
    units : Tensor
        ``(B, C, D)`` unit embeddings.
    types : Tensor
        ``(3, D)`` token-type embeddings: of frames, of the start and of the end.
    kinds : Tensor
        ``(T,)`` long, the row of `types` of each token time.
    values : Tensor
        ``(B, T, C)`` dF/F, 0 for start and end.
    value_embedding : Tensor
        ``(1, 1, D)`` or ``(B, C, D)``, the w above: one for all neurons or one for each.
    turns : Tensor
        ``(B, T, E / 2)`` complex, the rotation of the T token times.
    unit_mask : Tensor, optional
        ``(B, C)`` bool, True for a neuron that is there; None when all are.
    time_mask : Tensor, optional
        ``(B, L, T)`` bool, True where a latent may look; None when it may look everywhere.
    """

    units: Tensor
    types: Tensor
    kinds: Tensor
    values: Tensor
    value_embedding: Tensor
    turns: Tensor
    unit_mask: Tensor | None = None
    time_mask: Tensor | None = None

    def token_mask(self) -> Tensor | None:
        """Return ``(B, 1, 1 or L, T * C)`` bool, True where a latent may look; None when it may look everywhere."""
        if self.time_mask is None and self.unit_mask is None:
            return None
        (B, T, C), device = self.values.shape, self.values.device
        by_unit = torch.ones(B, C, dtype=torch.bool, device=device) if self.unit_mask is None else self.unit_mask
        by_time = torch.ones(B, 1, T, dtype=torch.bool, device=device) if self.time_mask is None else self.time_mask
        return (by_time.unsqueeze(-1) & by_unit[:, None, None]).flatten(2).unsqueeze(1)
