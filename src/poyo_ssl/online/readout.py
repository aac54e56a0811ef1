"""The readout's cross-attention for its one query, with everything done beforehand that does not depend on the latents.

The same numbers as the attention and feed-forward part of `poyo_ssl.models.poyo_ssl.PoyoSSL.readout` in evaluation. A
query that is the same in every window meets the keys' projection once: what is left is one product with the normalised
latents per head. Values are summed over latents before they are projected, and their projection is joined with that of
the output.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from poyo_ssl.data.batch import Batch
from poyo_ssl.models.attention import rotate
from poyo_ssl.models.encoder import Latents
from poyo_ssl.models.pieces import readout_pieces
from poyo_ssl.models.poyo_ssl import PoyoSSL, Readout
from poyo_ssl.online.cross_attention import CLOCK_TOLERANCE_S
from poyo_ssl.online.feed_forward import FoldedFeedForward


class SingleQueryReadout:
    """Reads the latents of one window, for one task and one recording.

    Parameters
    ----------
    model : PoyoSSL
        In evaluation mode; its parameters are read once.
    task : str
        Name of a readout.
    session_index : Tensor
        ``(1,)`` long.
    latents : Latents
        Times and turns of the latents; their values are not looked at.

    Examples
    --------
    >>> from poyo_ssl.config import ModelConfig, ReadoutConfig
    >>> config = ModelConfig(dim=8, dim_head=8)
    >>> model = PoyoSSL(config, num_units=1, num_sessions=1, readouts={"gratings": ReadoutConfig()}).eval()
    >>> times, session = torch.arange(3, dtype=torch.float64) / 8, torch.tensor([1])
    >>> latents = Latents(torch.randn(1, 3, 8), times, model.rotary(times, torch.float32))
    >>> readout = SingleQueryReadout(model, "gratings", session, latents)
    >>> with torch.no_grad():
    ...     plain = model.readout("gratings", latents, session_index=session, target_time=torch.tensor([0.2]))
    >>> torch.allclose(readout(latents.values[0], 0.2), plain[0], atol=1e-5)
    True
    """

    @torch.no_grad()
    def __init__(self, model: PoyoSSL, task: str, session_index: Tensor, latents: Latents) -> None:
        pieces, head = readout_pieces(model, task, session_index), model.readouts[task]
        assert isinstance(head, Readout)
        self.rotary, self.turns, self.head = model.rotary, latents.turns, head
        self.query, self.keys = pieces.projected_query, pieces.keys
        self.gain, self.bias, self.eps = pieces.gain, pieces.bias, pieces.eps
        joined = pieces.to_out @ pieces.values  # (H, D, D)
        self.values = (joined * self.gain).permute(1, 0, 2).flatten(1).contiguous()  # (D, H D)
        self.start = pieces.query[0] + pieces.out_bias + (joined @ self.bias).sum(0)  # (D,)
        self.feed_forward = FoldedFeedForward(pieces.feed_forward, num_rows=1)
        self.target_time = math.nan

    def _aim(self, target_time: float) -> None:
        """Let the query of one target time meet the keys' projection at the time of every latent."""
        time = torch.tensor([[target_time]], dtype=self.query.dtype)
        q = rotate(self.query, self.rotary(time, self.query.dtype))  # (1, H, 1, E)
        q = q.expand(-1, -1, self.turns.shape[1], -1) / math.sqrt(q.shape[-1])
        aimed = rotate(q, self.turns.conj())[0] @ self.keys  # (H, L, D)
        self.aimed = aimed * self.gain  # (H, L, D)
        self.offset = aimed @ self.bias  # (H, L)
        self.target_time = target_time

    @torch.no_grad()
    def __call__(self, z: Tensor, target_time: float, batch: Batch | None = None) -> Tensor:
        """Return the task's output for latents ``(L, D)``, read at `target_time` in seconds of the window.

        A value skip needs the window itself, as a `batch` of one.
        """
        if not abs(target_time - self.target_time) <= CLOCK_TOLERANCE_S:
            self._aim(target_time)
        normal = F.layer_norm(z, z.shape[-1:], eps=self.eps)
        logits = torch.add(self.offset, (self.aimed * normal).sum(-1))  # (H, L)
        read = logits.softmax(-1) @ normal  # (H, D)
        query = torch.addmv(self.start, self.values, read.flatten()).unsqueeze(0)  # (1, D)
        output: Tensor = self.head(self.feed_forward(query), batch)[0]
        return output
