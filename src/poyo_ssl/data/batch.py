"""The batch that models see: a dense (window, time, neuron) grid, never a bag of tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from poyo_ssl.errors import BatchError

SHAPES = {
    "dff": "BTC",
    "unit_index": "BC",
    "unit_mask": "BC",
    "frame_times": "BT",
    "session_index": "B",
    "target_time": "B",
    "window_index": "B",
}
INDICES = ("unit_index", "session_index", "window_index")


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
    padded : bool
        Whether any neuron is padding; found once, so that no step must ask the GPU.

    Raises
    ------
    BatchError
        If a tensor has another shape or type.

    Examples
    --------
    >>> batch = Batch(
    ...     dff=torch.zeros(2, 30, 3), unit_index=torch.tensor([[1, 2, 3], [4, 5, 0]]),
    ...     unit_mask=torch.tensor([[True, True, True], [True, True, False]]),
    ...     frame_times=torch.linspace(0, 0.97, 30).expand(2, -1), session_index=torch.tensor([1, 1]),
    ...     target_time=torch.full((2,), 0.5), duration_s=1.0)
    >>> len(batch), batch.padded
    (2, True)
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
    padded: bool = field(init=False)

    def __post_init__(self) -> None:
        sizes = self._sizes()
        for name, axes in SHAPES.items():
            value = getattr(self, name)
            if value is not None:
                _check_shape(name, value, axes, sizes)
                _check_type(name, value)
        if self.target is not None and (self.target.ndim == 0 or len(self.target) != sizes["B"]):
            raise BatchError(
                f"batch.target is of shape {tuple(self.target.shape)}",
                allowed=f"{sizes['B']} windows first",
                fix="give one target per window, or none",
            )
        if not self.duration_s > 0:
            raise BatchError(f"batch.duration_s is {self.duration_s}", allowed="above 0 s", fix="give it in seconds")
        object.__setattr__(self, "padded", not bool(self.unit_mask.all()))

    def _sizes(self) -> dict[str, int]:
        shape = tuple(self.dff.shape)
        if len(shape) != 3 or 0 in shape:
            raise BatchError(
                f"batch.dff is of shape {shape}",
                allowed="(windows, frames, neurons), one of each or more",
                fix="add the missing axis, or leave the batch out if it is empty",
            )
        return dict(zip("BTC", shape, strict=True))

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Return the batch with every tensor on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory, for asynchronous copies to a GPU."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        # Not built anew: what was checked once is not checked on the GPU, where a look means waiting.
        changed = copy.copy(self)
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                object.__setattr__(changed, f.name, function(value))
        return changed

    def __len__(self) -> int:
        return self.dff.shape[0]


def _check_shape(name: str, value: Tensor, axes: str, sizes: dict[str, int]) -> None:
    wanted = tuple(sizes[axis] for axis in axes)
    if tuple(value.shape) != wanted:
        raise BatchError(
            f"batch.{name} is of shape {tuple(value.shape)}",
            allowed=f"{wanted}, as dff has {sizes['B']} windows, {sizes['T']} frames and {sizes['C']} neurons",
            fix="give every window its own row, padded with neurons of unit_mask False",
        )


def _check_type(name: str, value: Tensor) -> None:
    if name in INDICES:
        right, allowed = value.dtype == torch.int64, "torch.int64"
    elif name == "unit_mask":
        right, allowed = value.dtype == torch.bool, "torch.bool"
    else:
        right, allowed = value.is_floating_point(), "a floating-point type"
    if not right:
        raise BatchError(f"batch.{name} is of type {value.dtype}", allowed=allowed, fix="convert it")
