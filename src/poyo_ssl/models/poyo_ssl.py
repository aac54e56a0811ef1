"""The whole model, top to bottom: a window of dF/F in, a class, a position or a movie frame out.

POYO+ calcium encoder (Azabou et al. 2023, 2025) on a dense (time, neuron) grid, with the readouts of POYO-SSL
(Bae et al., arXiv 2510.18516). Shapes: B windows, T frames, C neurons, L latents, D width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from poyo_ssl.config import MODEL_SIZES, ModelConfig, ReadoutConfig
from poyo_ssl.data.batch import Batch
from poyo_ssl.errors import ConfigError, suggest
from poyo_ssl.models.attention import (
    CrossAttentionForm,
    FeedForward,
    ReadoutAttention,
    RotarySelfAttention,
    RotaryTime,
)
from poyo_ssl.models.dropout import Dropout
from poyo_ssl.models.embeddings import GrowingEmbedding, normal_parameter
from poyo_ssl.models.encoder import EncoderBlock, GridTokens, Latents, latent_times, send
from poyo_ssl.models.token_grid import TokenGrid
from poyo_ssl.models.unet import FrameDecoder
from poyo_ssl.models.value_skip import ValueSkip


class ProcessorBlock(nn.Module):
    """Self-attention among latents and a feed-forward block, both residual with dropout on the branch.

    Parameters
    ----------
    config : ModelConfig
        Widths, heads and dropouts.

    Examples
    --------
    >>> sum(p.numel() for p in ProcessorBlock(ModelConfig()).parameters())
    181120
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attention = RotarySelfAttention(
            config.dim, heads=config.self_heads, dim_head=config.dim_head, dropout=config.attention_dropout
        )
        self.feed_forward = FeedForward(config.dim, dropout=config.ffn_dropout)
        self.dropout = Dropout(config.residual_dropout)

    def forward(self, latents: Latents) -> Latents:
        """Return the latents after the block."""
        z = latents.values  # (B, L, D)
        z = z + self.dropout(self.self_attention(z, latents.turns))
        return latents.with_values(z + self.dropout(self.feed_forward(z)))


class Readout(nn.Module):
    """What one task adds to the shared model: its query embedding and its head.

    Parameters
    ----------
    config : ReadoutConfig
        Kind and size of the output.
    dim : int
        Width of the model.

    num_units, num_sessions : int
        Known units and recordings, for the value skip.

    Examples
    --------
    >>> Readout(ReadoutConfig(num_classes=12), dim=8)(torch.zeros(2, 8)).shape
    torch.Size([2, 12])
    """

    def __init__(self, config: ReadoutConfig, *, dim: int, num_units: int = 0, num_sessions: int = 0) -> None:
        super().__init__()
        self.config = config
        self.query = normal_parameter(dim)
        self.skip: ValueSkip | None = None
        if config.value_skip_bins:
            self.skip = ValueSkip(
                num_bins=config.value_skip_bins,
                dim=config.value_skip_dim,
                num_classes=config.num_classes,
                num_units=num_units,
                num_sessions=num_sessions,
            )
        self.head: nn.Module
        if config.kind == "frames":
            self.head = FrameDecoder(dim, height=config.height, width=config.width, skips=config.skips)
        else:
            self.head = nn.Linear(dim, config.num_classes if config.kind == "classes" else 1)

    def forward(self, vector: Tensor, batch: Batch | None = None) -> Tensor:
        """Return logits ``(B, K)``, positions ``(B,)`` of 0-1 or frames ``(B, H, W)`` of 0-1.

        With a value skip, `batch` is needed and the logits are the sum of both.
        """
        out = self.head(vector)
        if self.skip is not None:
            if batch is None:
                raise ConfigError("a readout with a value skip got no windows", fix="pass the batch to readout()")
            return out + self.skip(batch)
        return torch.sigmoid(out.squeeze(-1)) if self.config.kind == "position" else out

    def silence_head(self) -> None:
        """Set weights and bias of the head of a value skip's readout to 0, so that the skip speaks alone at first."""
        assert isinstance(self.head, nn.Linear)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)


class PoyoSSL(nn.Module):
    """Encoder, processor and readouts.

    Parameters
    ----------
    config : ModelConfig
        The encoder.
    num_units, num_sessions : int
        Known units and recordings; their rows are 1 and up. Row 0 is zero: padding, or a unit or recording
        that is not known.
    readouts : mapping of str to ReadoutConfig
        Tasks by name.
    generator : Generator, optional
        Where the weights are drawn from, on the CPU; None uses torch's global state.

    Examples
    --------
    >>> model = PoyoSSL(
    ...     model_config("tiny"), num_units=5, num_sessions=1,
    ...     readouts={"gratings": ReadoutConfig()}, generator=torch.Generator().manual_seed(0))
    >>> batch = Batch(
    ...     dff=torch.zeros(2, 30, 3), unit_index=torch.tensor([[1, 2, 3], [4, 5, 0]]),
    ...     unit_mask=torch.tensor([[True, True, True], [True, True, False]]),
    ...     frame_times=torch.linspace(0, 0.97, 30).expand(2, -1), session_index=torch.tensor([1, 1]),
    ...     target_time=torch.full((2,), 0.5), duration_s=1.0)
    >>> model(batch, "gratings").shape
    torch.Size([2, 8])
    >>> model.encode(batch).values.shape
    torch.Size([2, 128, 32])
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        num_units: int,
        num_sessions: int,
        readouts: Mapping[str, ReadoutConfig],
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        with _drawn_from(generator):
            self.rotary = RotaryTime(config.dim_head, t_min_s=config.rotary_t_min_s, t_max_s=config.rotary_t_max_s)
            self.tokens = GridTokens(config, num_units=num_units)
            self.latents = normal_parameter(config.num_latents_per_step, config.dim)
            self.encoder = EncoderBlock(config)
            self.processor = nn.ModuleList(ProcessorBlock(config) for _ in range(config.depth))
            self.sessions = GrowingEmbedding(num_sessions, config.dim)
            # The published 1.27 M count holds for a readout with the heads of the encoder's cross-attention.
            self.readout_attention = ReadoutAttention(
                config.dim, heads=config.cross_heads, dim_head=config.dim_head, dropout=config.attention_dropout
            )
            self.readout_feed_forward = FeedForward(config.dim, dropout=config.ffn_dropout)
            self.readout_dropout = Dropout(config.readout_dropout)
            self.readouts = nn.ModuleDict(
                {
                    task: Readout(readout, dim=config.dim, num_units=num_units, num_sessions=num_sessions)
                    for task, readout in readouts.items()
                }
            )

    def encode(self, batch: Batch, *, residuals: bool = True, form: CrossAttentionForm | None = None) -> Latents:
        """Let the latents read the recording.

        Parameters
        ----------
        batch : Batch
            Windows; `target` is not looked at.
        residuals : bool
            False leaves the block's two residual branches out: the release's masked pass.
        form : {'streamed', 'grid', 'plain'}, optional
            How the cross-attention is computed, with equal results; 'plain' is the slow reference. None takes the
            form that was measured to be the fastest (`poyo_ssl.models.attention.choose_form`).

        Returns
        -------
        Latents
            Values ``(B, L, D)``.
        """
        learned, grid = self._encoder_inputs(batch)
        values = self.encoder(learned.values, grid, learned.turns, residuals=residuals, form=form)  # (B, L, D)
        return learned.with_values(values)

    def encode_twins(self, batch: Batch) -> tuple[Latents, Latents]:
        """Return `encode` with and without residuals, from one cross-attention; values ``(B, L, D)`` each."""
        learned, grid = self._encoder_inputs(batch)
        with_residuals, without = self.encoder.both(learned.values, grid, learned.turns)
        return learned.with_values(with_residuals), learned.with_values(without)

    def _encoder_inputs(self, batch: Batch) -> tuple[Latents, TokenGrid]:
        times = latent_times(self.config, batch.duration_s)  # (L,), on the CPU
        on_device = send(times, batch.dff.device)
        turns = self.rotary(on_device, self.latents.dtype)  # (1, L, E/2)
        num_steps = len(times) // len(self.latents)
        learned = self.latents.repeat(num_steps, 1).unsqueeze(0)  # (1, L, D)
        return Latents(learned, times, turns), self.tokens(batch, on_device, self.rotary)  # T + 2 times x C neurons

    def process(self, latents: Latents) -> Latents:
        """Let the latents attend to one another, `depth` times; shapes stay."""
        for block in self.processor:
            latents = block(latents)
        return latents

    def readout(
        self,
        task: str,
        latents: Latents,
        *,
        session_index: Tensor,
        target_time: Tensor,
        batch: Batch | None = None,
    ) -> Tensor:
        """Read a task's output at one time per window.

        Parameters
        ----------
        task : str
            Name of a readout.
        latents : Latents
            Processed latents.
        session_index : Tensor
            ``(B,)`` long.
        target_time : Tensor
            ``(B,)`` seconds from the start of the window; may lie outside it.
        batch : Batch, optional
            The windows themselves, for a readout with a value skip.

        Returns
        -------
        Tensor
            Logits ``(B, K)``, positions ``(B,)`` or frames ``(B, H, W)``.

        Raises
        ------
        ConfigError
            If the model has no such readout, or it has a value skip and `batch` is not given.
        """
        if task not in self.readouts:
            raise ConfigError(
                f"no readout named {task!r}{suggest(task, self.readouts)}",
                allowed=", ".join(self.readouts) or "none: the model was built without readouts",
                fix="name one of the model's readouts or build the model with this one",
            )
        head = self.readouts[task]
        query = (self.sessions(session_index) + head.query).unsqueeze(1)  # (B, 1, D)
        at_query = self.rotary(target_time.unsqueeze(1), query.dtype)  # (B, 1, E/2)
        query = query + self.readout_attention(query, latents.values, at_query, latents.turns)  # (B, 1, D)
        query = query + self.readout_feed_forward(query)  # (B, 1, D)
        return head(self.readout_dropout(query.squeeze(1)), batch)

    def forward(self, batch: Batch, task: str) -> Tensor:
        """Return the output of `task` for `batch`: encode, process, readout."""
        latents = self.process(self.encode(batch))  # (B, L, D)
        return self.readout(
            task, latents, session_index=batch.session_index, target_time=batch.target_time, batch=batch
        )

    def grow(self, *, num_units: int, num_sessions: int, generator: torch.Generator | None = None) -> None:
        """Make room for more units and recordings; the old ones keep their rows and predictions.

        Parameters
        ----------
        num_units, num_sessions : int
            Known units and recordings afterwards.
        generator : Generator, optional
            Where the new rows are drawn from, on the CPU.

        Raises
        ------
        ConfigError
            If either number is below the present one.
        """
        self.tokens.units.grow(num_units, generator)
        self.sessions.grow(num_sessions, generator)
        for readout in self.readouts.values():
            assert isinstance(readout, Readout)
            if readout.skip is not None:
                readout.skip.units.grow(num_units, generator)
                readout.skip.centres.grow(num_sessions, generator)

    def num_parameters(self) -> dict[str, int]:
        """Count the parameters: `core`, `units`, `sessions`, `readouts` (queries and heads) and `total`.

        The core is encoder, processor, readout attention and the embeddings of latents, types and (if shared)
        value; value embeddings per unit count as units.

        Examples
        --------
        >>> PoyoSSL(ModelConfig(), num_units=0, num_sessions=0, readouts={}).num_parameters()["core"]
        1270400
        """
        total = sum(p.numel() for p in self.parameters())
        parts = {
            "units": self.tokens.units.weight.numel(),
            "sessions": self.sessions.weight.numel(),
            "readouts": sum(p.numel() for p in self.readouts.parameters()),
        }
        return {"core": total - sum(parts.values()), **parts, "total": total}


def model_config(size: str, **settings: Any) -> ModelConfig:
    """Return the configuration of a named size.

    Parameters
    ----------
    size : str
        A name in `poyo_ssl.config.MODEL_SIZES`.
    **settings
        Other fields of `ModelConfig`; they win over the size's.

    Raises
    ------
    ConfigError
        If there is no such size.

    Examples
    --------
    >>> model_config("1M", causal_cross_attention=True).dim
    64
    """
    if size not in MODEL_SIZES:
        raise ConfigError(
            f"unknown model size {size!r}{suggest(size, MODEL_SIZES)}",
            allowed=", ".join(MODEL_SIZES),
            fix="name one of these",
        )
    return ModelConfig(**{**MODEL_SIZES[size], **settings})


def count_parameters(size: str) -> int:
    """Return the core parameters of a named size, without building its weights.

    Parameters
    ----------
    size : str
        A name in `poyo_ssl.config.MODEL_SIZES`.

    Raises
    ------
    ConfigError
        If there is no such size.

    Examples
    --------
    >>> count_parameters("1M")
    1270400
    """
    with torch.device("meta"):
        model = PoyoSSL(model_config(size), num_units=0, num_sessions=0, readouts={})
    return model.num_parameters()["core"]


@contextlib.contextmanager
def _drawn_from(generator: torch.Generator | None) -> Iterator[None]:
    """Let torch's initialisers draw from `generator`, and leave the global state as it was."""
    if generator is None:
        yield
        return
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
