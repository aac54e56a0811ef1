"""The batch that models see: a dense (window, time, neuron) grid, never a bag of tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Windows of equal length, padded over neurons.

    Attributes
    ----------
    dff : Tensor
        ``(B, T, C)`` float, the (possibly normalised) dF/F; zero where a neuron is padding.
    unit_index : Tensor
        ``(B, C)`` long, row of each neuron in the unit vocabulary; 0 is padding.
    unit_mask : Tensor
        ``(B, C)`` bool, True for a real neuron, False for padding.
    frame_times : Tensor
        ``(B, T)`` float, seconds from the start of the window to the middle of each bin.
    session_index : Tensor
        ``(B,)`` long, row of each recording in the session vocabulary.
    target_time : Tensor
        ``(B,)`` float, seconds from the start of the window to the target; may lie outside the window.
    duration_s : float
        Length of the windows in seconds, shared by the batch.
    target : Tensor, optional
        ``(B,)`` long class indices, ``(B, H, W)`` float frames of 0-1, or None when predicting.
    window_index : Tensor, optional
        ``(B,)`` long, position of each window in the window table it came from.
    """

    dff: Tensor
    unit_index: Tensor
    unit_mask: Tensor
    frame_times: Tensor
    session_index: Tensor
    target_time: Tensor
    duration_s: float
    target: Tensor | None = None
    window_index: Tensor | None = None

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Return the batch with every tensor on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory, for asynchronous copies to a GPU."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        changed: dict[str, Any] = {
            f.name: function(value) for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **changed)

    def __len__(self) -> int:
        return self.dff.shape[0]
