"""Windows: which imaging frames a model sees for which target, and the batches made of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from poyo_ssl import protocol
from poyo_ssl.data.intervals import contains, overlaps
from poyo_ssl.data.recording import Recording
from poyo_ssl.data.splits import GRATINGS, Split, usable_trials
from poyo_ssl.data.stimuli import Presentations
from poyo_ssl.errors import BatchError, ConfigError, SplitError

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
    """Windows of equal length, padded over neurons."""

    dff: Tensor  # (B, T, C) float, normalised; 0 where a neuron is padding
    unit_index: Tensor  # (B, C) long, row in the unit vocabulary; 0 is padding
    unit_mask: Tensor  # (B, C) bool, False for padding
    frame_times: Tensor  # (B, T) float, seconds from the start of the window to the middle of each bin
    session_index: Tensor  # (B,) long, row in the session vocabulary
    target_time: Tensor  # (B,) float, seconds from the start of the window; may lie outside it
    duration_s: float
    target: Tensor | None = None  # (B,) long classes, or (B, H, W) float frames of 0-1
    window_index: Tensor | None = None  # (B,) long, row of the window table
    padded: bool = field(init=False)  # whether any neuron is padding; found once, so that no step must ask the GPU

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


@dataclass(frozen=True)
class WindowTable:
    """Windows of equal length over one or more recordings; every array is ``(W,)``."""

    num_frames: int  # imaging frames per window
    recording_index: NDArray[np.int64]  # place of the recording in its list
    # The first imaging frame is drawn from [first_low, first_high] in training and is first_low otherwise.
    first_low: NDArray[np.int64]
    first_high: NDArray[np.int64]
    target_time: NDArray[np.float64]  # seconds on the recording's clock
    target: NDArray[np.int64]  # class, or row of the frame bank; -1 without a label
    stimulus: NDArray[np.str_]
    frame_number: NDArray[np.int64]  # -1 for gratings, as is the repeat
    repeat: NDArray[np.int64]
    excluded: Mapping[str, int] = field(default_factory=dict)  # targets left out, counted by reason

    def __len__(self) -> int:
        return len(self.target)

    @classmethod
    def of_presentations(
        cls,
        table: Presentations,
        rows: NDArray[np.int64],
        first_low: NDArray[np.int64],
        first_high: NDArray[np.int64],
        target: NDArray[np.int64],
        *,
        index: int,
        num_frames: int,
    ) -> WindowTable:
        """Make one window for each of some rows of a stimulus of the recording at place `index`."""
        movie = {name: table.columns.get(name, np.full(len(table), -1)) for name in ("frame", "repeat")}
        return cls(
            num_frames=num_frames,
            recording_index=np.full(len(rows), index, np.int64),
            first_low=first_low.astype(np.int64),
            first_high=first_high.astype(np.int64),
            target_time=table.midpoint[rows],
            target=target,
            stimulus=np.full(len(rows), table.name),
            frame_number=movie["frame"][rows].astype(np.int64),
            repeat=movie["repeat"][rows].astype(np.int64),
        )

    @classmethod
    def unlabelled(cls, first: NDArray[np.int64], target_time: NDArray[np.float64], *, num_frames: int) -> WindowTable:
        """Make windows of one recording that begin at imaging frames `first` and have no target."""
        none = np.full(len(first), -1)
        zero = np.zeros(len(first), np.int64)
        return cls(num_frames, zero, first, first, target_time, none, np.full(len(first), ""), none, none)

    def select(self, keep: NDArray[np.bool_] | NDArray[np.int64]) -> WindowTable:
        """Return the windows where `keep` is True, or at the rows that it names."""
        names = [f.name for f in fields(self) if f.name not in ("num_frames", "excluded")]
        return replace(self, **{name: getattr(self, name)[keep] for name in names})

    @classmethod
    def concatenate(cls, tables: Sequence[WindowTable]) -> WindowTable:
        """Join tables of the same window length."""
        assert len({table.num_frames for table in tables}) == 1
        names = [f.name for f in fields(cls) if f.name not in ("num_frames", "excluded")]
        joined = {name: np.concatenate([getattr(table, name) for table in tables]) for name in names}
        reasons = dict.fromkeys(reason for table in tables for reason in table.excluded)
        excluded = {reason: sum(table.excluded.get(reason, 0) for table in tables) for reason in reasons}
        return cls(num_frames=tables[0].num_frames, excluded=excluded, **joined)


def window_frames(recordings: Sequence[Recording], window_s: float) -> int:
    """Return the number of imaging frames per window, one number for all recordings.

    Windows are counted in frames, not cut by time, so that batches are not ragged (at 30.08 Hz a second has 30 or
    31 frames).
    """
    rates = np.array([recording.rate_hz for recording in recordings])
    middle = float(np.median(rates))
    if np.abs(rates / middle - 1).max() > 0.05:
        raise ConfigError(
            f"imaging rates from {rates.min():.2f} to {rates.max():.2f} Hz in one training",
            allowed="rates within 5 %",
            fix="train on recordings of one rate",
        )
    return max(round(window_s * middle), 1)


def movie_windows(
    recording: Recording,
    index: int,
    table: Presentations,
    split: Split,
    part: str,
    *,
    num_frames: int,
    lag_s: float,
    targets: NDArray[np.int64],
) -> WindowTable:
    """Make one causal window for every presentation of `part`: it ends `lag_s` after the frame's middle.

    `targets` (K,) are those of all presentations of the table; `index` is the recording's place in its list.
    """
    rows = np.flatnonzero(contains(table.midpoint, split.parts[part]))
    first = np.searchsorted(recording.timestamps, table.midpoint[rows] + lag_s, side="right") - num_frames
    found = WindowTable.of_presentations(table, rows, first, first, targets[rows], index=index, num_frames=num_frames)
    return _keep_clean(found, recording, split, part)


def trial_windows(
    recording: Recording,
    index: int,
    split: Split,
    part: str,
    *,
    num_frames: int,
    lag_s: float,
    dilation_s: float,
    targets: NDArray[np.int64],
) -> WindowTable:
    """Make one window for every gratings trial of `part`.

    Without dilation the window begins `lag_s` after the trial's start. With `dilation_s` (pretraining) it may begin
    anywhere so that it stays inside the trial dilated by that much.
    """
    table = recording.stimulus(GRATINGS)
    rows = np.flatnonzero(contains(table.midpoint, split.parts[part]) & usable_trials(table))
    begin = np.searchsorted(recording.timestamps, table.start[rows] + lag_s - dilation_s - 1e-9)
    # A dilated trial shorter than the window leaves one choice: the window that begins with it.
    end = np.searchsorted(recording.timestamps, table.end[rows] + lag_s + dilation_s - 1e-9)
    last = np.maximum(end - num_frames, begin) if dilation_s else begin
    found = WindowTable.of_presentations(table, rows, begin, last, targets[rows], index=index, num_frames=num_frames)
    return _keep_clean(found, recording, split, part)


def _keep_clean(found: WindowTable, recording: Recording, split: Split, part: str) -> WindowTable:
    """Leave out and count what no model or baseline may use."""
    stamps, last_frame = recording.timestamps, recording.num_frames - 1
    low, stop = found.first_low, found.first_high + found.num_frames
    start, end = stamps[np.clip(low, 0, last_frame)], stamps[np.clip(stop - 1, 0, last_frame)]
    reasons = {
        "outside the recording": (low < 0) | (stop > recording.num_frames),
        "touches a masked span": overlaps(start, end, recording.masked_domain),
        "reaches into another part": overlaps(start, end, split.others(part)),
        "has a class that training lacks": found.target < 0,
    }
    keep, excluded = np.ones(len(found), bool), {}
    for reason, bad in reasons.items():
        if (keep & bad).any():
            excluded[reason] = int((keep & bad).sum())
        keep &= ~bad
    return replace(found.select(keep), excluded=excluded)


def require_windows(table: WindowTable, what: str) -> WindowTable:
    """Return `table`; raise `SplitError` that gives the reasons if it is empty."""
    if len(table) == 0:
        reasons = ", ".join(f"{count} {reason}" for reason, count in table.excluded.items()) or "no presentation"
        raise SplitError(f"no window left for {what}: {reasons}", fix="shorten window_s or change the split")
    return table


def draw_unit_counts(generator: np.random.Generator, size: int) -> NDArray[np.int64]:
    """Draw numbers of units with the study's density, by inversion: exact.

    The density over 10, 11, ..., 300 units is 1 at 10, rises linearly to 50 at 50, falls linearly to 1 at 100 and
    stays there; its mean is about 65.
    """
    knots, density = zip(*protocol.UNIT_DROPOUT_KNOTS, strict=True)
    counts = np.arange(knots[0], knots[-1] + 1)
    cumulative = np.cumsum(np.interp(counts, knots, density))
    return counts[np.searchsorted(cumulative, generator.random(size) * cumulative[-1], side="right")]


@dataclass(frozen=True)
class Normalisation:
    """How the values of a recording's units become the model's input.

    ``(x - centre) / scale``; then, if it compresses, the inverse hyperbolic sine of that, less `mean`, over `spread`.
    """

    centre: NDArray[np.float32]  # (C,), as the next three
    scale: NDArray[np.float32]
    mean: NDArray[np.float32]
    spread: NDArray[np.float32]
    compress: bool

    @classmethod
    def identity(cls, num_units: int, *, compress: bool) -> Normalisation:
        """Return what leaves `num_units` units as they are (compression aside)."""
        zeros, ones = np.zeros(num_units, np.float32), np.ones(num_units, np.float32)
        return cls(zeros, ones, zeros.copy(), ones.copy(), compress)

    def apply(self, values: NDArray, pick: NDArray[np.int64]) -> NDArray[np.float32]:
        """Normalise ``(T, len(pick))`` values of the units at `pick`."""
        scaled = (values - self.centre[pick]) / self.scale[pick]
        if self.compress:
            scaled = (np.arcsinh(scaled) - self.mean[pick]) / self.spread[pick]
        return scaled


@dataclass(frozen=True)
class UnitSet:
    """The neurons of one recording that take part, with their vocabulary rows and normalisation."""

    columns: NDArray[np.int64]  # (C,) of dF/F
    rows: NDArray[np.int64]  # (C,) of the unit vocabulary, 1 and up
    normalisation: Normalisation
    session_row: int


@dataclass(frozen=True)
class BatchRequest:
    """Windows of one batch and, in training, the seed of everything random about it."""

    windows: NDArray[np.int64]
    seed: tuple[int, ...] | None = None


class BatchSampler(Sampler[BatchRequest]):
    """Batches of one epoch as a pure function of (seed, epoch), each device taking its share of every batch.

    Over all ranks the batches hold each window exactly once per epoch, whatever the number of ranks; no rank is
    ever left without a window, so a batch may hold a few more than `batch_size` where that is the number of ranks.
    """

    def __init__(
        self,
        num_windows: int,
        batch_size: int,
        *,
        seed: int | None,  # None keeps the order and draws nothing (evaluation)
        epoch: int = 0,
        epoch_windows: int | None = None,  # a random subset in each epoch; without a seed one spread evenly
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        if seed is not None and batch_size % num_ranks:
            raise ConfigError(
                f"batch_size of {batch_size} on {num_ranks} processes",
                allowed=f"a multiple of {num_ranks}",
                fix="change optim.batch_size or --devices",
            )
        if num_windows < num_ranks:
            raise ConfigError(
                f"{num_windows} windows on {num_ranks} processes",
                allowed=f"{num_ranks} windows or more",
                fix="use fewer --devices",
            )
        self.num_windows, self.batch_size, self.seed, self.epoch = num_windows, batch_size, seed, epoch
        self.epoch_windows = min(num_windows, max(epoch_windows or num_windows, num_ranks))
        self.rank, self.num_ranks = rank, num_ranks

    def __len__(self) -> int:
        return min(-(-self.epoch_windows // self.batch_size), self.epoch_windows // self.num_ranks)

    def __iter__(self) -> Iterator[BatchRequest]:
        order = np.linspace(0, self.num_windows - 1, self.epoch_windows).round().astype(np.int64)
        if self.seed is not None:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_windows)[: self.epoch_windows]
        # Nearly equal batches: no step is left with a window or two, and every rank has work in each.
        for step, batch in enumerate(np.array_split(order, len(self))):
            seed = None if self.seed is None else (self.seed, self.epoch, step, self.rank)
            yield BatchRequest(batch[self.rank :: self.num_ranks], seed)


class WindowDataset(Dataset[Batch]):
    """Makes batches from recordings; dF/F is read lazily, one slice per window."""

    def __init__(
        self,
        recordings: Sequence[Recording],
        units: Sequence[UnitSet],
        table: WindowTable,
        *,
        bin_frames: int = 1,  # imaging frames averaged into one step
        unit_dropout: bool = False,  # as noise (its standard deviation), only for requests with a seed
        noise: float = 0.0,
        frame_bank: torch.Tensor | None = None,  # (F, H, W) of 0-1 that targets index; else they are classes
    ) -> None:
        if table.num_frames % bin_frames:
            raise ConfigError(
                f"windows of {table.num_frames} imaging frames in bins of {bin_frames}",
                allowed=f"a divisor of {table.num_frames}",
                fix="change window_s or bin_frames",
            )
        self.recordings, self.units, self.table = list(recordings), list(units), table
        self.bin_frames = bin_frames
        self.unit_dropout, self.noise, self.frame_bank = unit_dropout, noise, frame_bank
        self.rates = [recording.rate_hz for recording in self.recordings]

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, request: BatchRequest) -> Batch:
        table = self.table
        windows = request.windows
        generator = np.random.default_rng(request.seed) if request.seed is not None else None
        first = table.first_low[windows]
        if generator is not None:
            first = generator.integers(first, table.first_high[windows] + 1)
        which = table.recording_index[windows]
        chosen = self._choose_units(which, generator)
        width = max((len(c) for c in chosen), default=1)
        steps = table.num_frames // self.bin_frames
        dff = np.zeros((len(windows), steps, width), np.float32)
        rows = np.zeros((len(windows), width), np.int64)
        times = np.empty((len(windows), steps))
        begin = np.empty(len(windows))
        for i, (r, start, pick) in enumerate(zip(which, first, chosen, strict=True)):
            units, recording = self.units[r], self.recordings[r]
            values = recording.read_dff(start, start + table.num_frames)[:, units.columns[pick]]
            values = units.normalisation.apply(values, pick)
            dff[i, :, : len(pick)] = values.reshape(steps, self.bin_frames, -1).mean(axis=1)
            rows[i, : len(pick)] = units.rows[pick]
            if generator is not None and self.noise:
                dff[i, :, : len(pick)] += self.noise * generator.standard_normal((steps, len(pick)), np.float32)
            stamps = recording.timestamps[start : start + table.num_frames]
            # A frame's light is gathered from its stamp on, so the window begins at its first stamp.
            begin[i] = stamps[0]
            times[i] = stamps.reshape(steps, self.bin_frames).mean(axis=1) - stamps[0] + 0.5 / self.rates[r]
        target = torch.from_numpy(table.target[windows])
        return Batch(
            dff=torch.from_numpy(dff),
            unit_index=torch.from_numpy(rows),
            unit_mask=torch.from_numpy(rows > 0),
            frame_times=torch.from_numpy(times).float(),
            session_index=torch.tensor([self.units[r].session_row for r in which]),
            target_time=torch.from_numpy(table.target_time[windows] - begin).float(),
            duration_s=table.num_frames / self.rates[0],
            target=target if self.frame_bank is None else self.frame_bank[target],
            window_index=torch.from_numpy(windows),
        )

    def _choose_units(self, which: NDArray, generator: np.random.Generator | None) -> list[NDArray[np.int64]]:
        everything = [np.arange(len(self.units[r].columns)) for r in which]
        if generator is None or not self.unit_dropout:
            return everything
        counts = draw_unit_counts(generator, len(which))
        return [
            np.sort(generator.permutation(units)[:count]) if count < len(units) else units
            for units, count in zip(everything, counts, strict=True)
        ]
