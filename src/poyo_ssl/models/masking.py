"""Which latents the masked pass may keep."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from poyo_ssl.errors import ConfigError

MaskKind = Literal["causal", "random", "block", "feature"]


def keep_mask(
    times: Tensor,
    *,
    duration_s: float,
    kind: MaskKind,
    ratio: float,
    batch_size: int,
    dim: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw which latents (or features) stay; True = keep.

    Parameters
    ----------
    times : Tensor
        ``(L,)`` seconds from the start of the window, ascending; on the CPU.
    duration_s : float
        Length of the window; 'causal' hides the last `ratio` of this time, whatever the number of latents there.
    kind : {'causal', 'random', 'block', 'feature'}
        'causal': the window's later part. 'random': a random set of latents, another for each window. 'block':
        one run of consecutive latent steps, placed at random. 'feature': a random set of features, the same
        for all latents of a window (the release hides one of 1024).
    ratio : float
        Share that is hidden, at least one latent, step or feature and never all.
    batch_size, dim : int
        Windows B, width D.
    generator : Generator, optional
        On the CPU; not used by 'causal'.

    Returns
    -------
    Tensor
        Bool on the CPU: ``(B, L, 1)``, or ``(B, 1, D)`` for 'feature'.

    Raises
    ------
    ConfigError
        If nothing would be hidden or nothing kept.

    Examples
    --------
    >>> times = torch.tensor([0.1, 0.3, 0.5, 0.7])
    >>> keep_mask(times, duration_s=0.8, kind="causal", ratio=0.5, batch_size=1, dim=2).flatten().tolist()
    [True, True, False, False]
    """
    if kind == "feature":
        return _random(batch_size, dim, ratio, generator).unsqueeze(1)  # (B, 1, D)
    if kind == "causal":
        keep = (times < (1 - ratio) * duration_s).expand(batch_size, -1)
    elif kind == "random":
        keep = _random(batch_size, len(times), ratio, generator)
    else:
        keep = _block(times, batch_size, ratio, generator)
    if keep.all() or not keep.any():
        raise ConfigError(
            f"{kind} masking of {ratio} of a window of {duration_s:.3f} s hides {'none' if keep.all() else 'all'} "
            f"of its {len(times)} latents",
            allowed="a window and a share that hide some latents and keep some",
            fix="use longer windows, a shorter --model.latent_step_s or another --objective.mask_ratio",
        )
    return keep.unsqueeze(-1)  # (B, L, 1)


def _random(batch_size: int, count: int, ratio: float, generator: torch.Generator | None) -> Tensor:
    num_hidden = _num_hidden(count, ratio)
    order = torch.rand(batch_size, count, generator=generator).argsort(dim=1)
    return torch.ones(batch_size, count, dtype=torch.bool).scatter_(1, order[:, :num_hidden], False)


def _block(times: Tensor, batch_size: int, ratio: float, generator: torch.Generator | None) -> Tensor:
    _, step_of_latent = times.unique(return_inverse=True)  # (L,)
    num_steps = int(step_of_latent.max()) + 1
    num_hidden = _num_hidden(num_steps, ratio)
    first = torch.randint(num_steps - num_hidden + 1, (batch_size, 1), generator=generator)
    return (step_of_latent < first) | (step_of_latent >= first + num_hidden)  # (B, L)


def _num_hidden(count: int, ratio: float) -> int:
    return min(max(1, round(ratio * count)), max(1, count - 1))
