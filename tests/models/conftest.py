"""Batches that the tests of this room share."""

from collections.abc import Callable

import pytest
import torch

from poyo_ssl.data.windows import Batch

NUM_UNITS, NUM_SESSIONS = 9, 3


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """Return a factory of random batches; the second window is padded when `padded`."""

    def make(
        *, windows: int = 3, frames: int = 7, neurons: int = 5, padded: bool = True, seed: int = 0, **fields
    ) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        unit_index = torch.randint(1, NUM_UNITS + 1, (windows, neurons), generator=generator)
        unit_mask = torch.ones(windows, neurons, dtype=torch.bool)
        if padded and windows > 1 and neurons > 2:
            unit_index[1, -2:], unit_mask[1, -2:] = 0, False
        jitter = 1e-3 * torch.rand(windows, 1, generator=generator, dtype=torch.float64)
        dff = torch.randn(windows, frames, neurons, generator=generator, dtype=torch.float64)
        values = {
            "dff": dff * unit_mask.unsqueeze(1),
            "unit_index": unit_index,
            "unit_mask": unit_mask,
            "frame_times": (torch.arange(frames, dtype=torch.float64) + 0.5) / 30 + jitter,
            "session_index": torch.randint(0, NUM_SESSIONS + 1, (windows,), generator=generator),
            "target_time": torch.rand(windows, generator=generator, dtype=torch.float64),
            "duration_s": frames / 30 + 1e-3,
        }
        return Batch(**{**values, **fields})

    return make
