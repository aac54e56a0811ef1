"""The readout's cross-attention for its one query, with everything done beforehand that does not depend on the latents.

The same numbers as the attention and feed-forward part of `poyo_ssl.models.poyo_ssl.PoyoSSL.readout` in evaluation. A
query that is the same in every window meets the keys' projection once: what is left is one product with the normalised
latents per head. Values are summed over latents before they are projected, and their projection is joined with that of
the output.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from poyo_ssl.data.batch import Batch
from poyo_ssl.models.attention import rotate, split_heads
from poyo_ssl.models.encoder import Latents
from poyo_ssl.models.poyo_ssl import PoyoSSL, Readout
from poyo_ssl.online.cross_attention import CLOCK_TOLERANCE_S
from poyo_ssl.online.processor import standardise


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
        attention = model.readout_attention
        self.rotary, self.turns, self.eps = model.rotary, latents.turns, attention.norm_context.eps
        head = model.readouts[task]
        assert isinstance(head, Readout)
        self.feed_forward, self.head = model.readout_feed_forward, head
        self.query = model.sessions(session_index) + self.head.query  # (1, D)
        self.turning = split_heads(attention.to_q(attention.norm(self.query.unsqueeze(1))), attention.heads)
        norm = attention.norm_context
        keys, values = attention.to_kv.weight.unflatten(0, (2, attention.heads, -1))  # (H, E, D) each
        self.keys, self.gain, self.bias = keys, norm.weight, norm.bias
        out = attention.to_out.weight.unflatten(1, (attention.heads, -1)).permute(1, 0, 2)  # (H, D, E)
        joined = out @ values  # (H, D, D)
        self.values = (joined * self.gain).permute(1, 0, 2).flatten(1).contiguous()  # (D, H D)
        self.start = self.query[0] + attention.to_out.bias + (joined @ self.bias).sum(0)  # (D,)
        self.target_time = math.nan

    def _aim(self, target_time: float) -> None:
        """Let the query of one target time meet the keys' projection at the time of every latent."""
        time = torch.tensor([[target_time]], dtype=self.query.dtype)
        q = rotate(self.turning, self.rotary(time, self.query.dtype))  # (1, H, 1, E)
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
        normal = standardise(z, self.eps)
        logits = torch.add(self.offset, (self.aimed * normal).sum(-1))  # (H, L)
        read = logits.softmax(-1) @ normal  # (H, D)
        query = torch.addmv(self.start, self.values, read.flatten()).unsqueeze(0)  # (1, D)
        query = query + self.feed_forward(query)
        output: Tensor = self.head(query, batch)[0]
        return output
