"""The published computation of pretraining on the weights of our model: what `encoder.py` compares with.

Tokens are built, normalised and projected one by one (our plain form), both passes encode the window anew and run
through the self-attention one after the other, attention is an explicit softmax and dropout is torch's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from poyo_ssl.data.windows import Batch
from poyo_ssl.models import cpu_attention, poyo_ssl
from poyo_ssl.models.pretraining import TwinOutput, TwinPretrainer


def explicit_attention(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, dropout: float) -> Tensor:
    """Return softmax attention with every probability in memory; all tokens are there."""
    assert mask is None, "the benchmark pads nothing"
    probabilities = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
    return F.dropout(probabilities, dropout) @ v


@contextmanager
def published_arithmetic(*, fused: bool) -> Iterator[None]:
    """Dropout of torch's own and, unless `fused`, attention with every probability in memory."""
    attend = poyo_ssl.attend if fused else explicit_attention
    with mock.patch.object(poyo_ssl, "attend", attend), mock.patch.object(cpu_attention, "drop", F.dropout):
        yield


class PublishedTwin(TwinPretrainer):
    """The two passes as they were published: each encodes the window and runs through the processor by itself."""

    def forward(self, batch: Batch, generator: torch.Generator | None = None) -> TwinOutput:
        """Return what `TwinPretrainer` returns."""
        model, objective = self.model, self.objective
        unmasked = model.encode(batch, form="plain")  # (B, L, D)
        again = model.encode(batch, residuals=objective.masked_pass_residuals, form="plain")
        masked, keep = self.masked_latents(batch, again, generator)
        predicted = model.process(unmasked.with_values(masked)).values
        output = model.process(unmasked).values
        reconstruction = self._distance(predicted, output, keep)
        gratings, accuracy, num_labelled = self._gratings(batch, unmasked.with_values(output))
        loss = reconstruction + objective.gratings_weight * gratings
        if objective.times_batch_size:
            loss = loss * len(batch)
        return TwinOutput(loss, reconstruction, gratings, accuracy, num_labelled, output.detach())
