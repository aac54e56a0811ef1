"""The online decoder: one imaging frame at a time, the same answer as offline for the same window."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from poyo_ssl.config import ReadoutConfig
from poyo_ssl.data.recording import Recording
from poyo_ssl.data.windows import Batch
from poyo_ssl.errors import CheckpointError, ConfigError, RecordingError, StreamError, suggest
from poyo_ssl.models.poyo_ssl import FrameDecoder, Readout
from poyo_ssl.online.network import FoldedFeedForward, FoldedFrameDecoder, FoldedProcessor, SlidingCrossAttention
from poyo_ssl.training import run_folder
from poyo_ssl.training.run_folder import TrainedRun, decide

Status = Literal["ok", "filling", "sparse"]


@dataclass(frozen=True)
class Prediction:
    """What the decoder says after one imaging frame.

    Attributes
    ----------
    time : float
        Seconds of the newest frame, on the clock of the frames.
    status : {'ok', 'filling', 'sparse'}
        'filling': the window is not full yet; 'sparse': less of it is there than `min_coverage`. Only 'ok' has an
        output.
    coverage : float
        Share of the window's (frame, neuron) values that were there.
    output : ndarray, optional
        ``(K,)`` float class probabilities; ``()`` float position of 0-1; or ``(H, W)`` uint8 movie frame.
    class_value : float, optional
        The class that the run's rule picks, in its own value: direction in degrees or movie frame number.
    """

    time: float
    status: Status
    coverage: float
    output: NDArray[Any] | None = None
    class_value: float | None = None


@dataclass
class Counts:
    """What a decoder has seen: `frames` given, `dropped` frames, `missing` values that were not finite."""

    frames: int = 0
    dropped: int = 0
    missing: int = 0


@dataclass
class _Window:
    """Rings over the last frames."""

    values: NDArray[np.float32]  # (N, C), normalised; NaN where absent
    times: NDArray[np.float64]  # (N,)
    present: NDArray[np.int64]  # (N,), number of values there
    num_seen: int = 0


class Decoder:
    """Decodes a recording frame by frame.

    After each frame the answer is that of `poyo_ssl.predict` for the window that ends with it. Values that are not
    there take no part in the attention: a dropped frame (told by `skip`, or by a gap between times) has no tokens,
    a value that is NaN or infinite is left out alone, and a neuron may join late by being NaN until then. Nothing is
    held, interpolated or set to zero.

    Parameters
    ----------
    run : TrainedRun or path
        A trained run.
    recording : str or Recording, optional
        The recording (its id) whose neurons are coming; needed if the run knows several. A `Recording` also gives
        the imaging rate, for runs that have not written it down.
    rate_hz : float, optional
        Imaging rate; by default that of the recording in training.
    min_coverage : float
        Share of the window's values that must be there for a prediction.

    Attributes
    ----------
    unit_ids : list of str
        The neurons that a frame must hold, in order.
    columns : ndarray
        Where these are among the recording's neurons.
    num_frames : int
        Frames in a window; the first prediction comes with this one.
    counts : Counts
        Frames given, dropped frames, missing values.

    Raises
    ------
    RecordingError
        If the run does not know the recording, or several recordings and none is named.
    CheckpointError
        If the run has not written down units and rate, and no `Recording` is given.
    ConfigError
        If `rate_hz` or `min_coverage` is out of range.

    Examples
    --------
    >>> import tempfile, poyo_ssl as ps
    >>> from poyo_ssl.config import OptimConfig
    >>> folder = tempfile.mkdtemp()
    >>> _ = ps.generate_observatory(f"{folder}/data", size="tiny")
    >>> config = ps.FinetuneConfig(
    ...     model=ps.ModelConfig(dim=8, dim_head=8, depth=1),
    ...     window=ps.WindowConfig(window_s=0.5, units="all"), optim=OptimConfig(epochs=1))
    >>> recording = ps.open_recordings(f"{folder}/data")[0]
    >>> decoder = Decoder(ps.finetune([recording], f"{folder}/run", config=config, progress=False))
    >>> answers = [decoder.step(frame) for frame in recording.read_dff(0, 15)]
    >>> [answer.status for answer in answers[-2:]], answers[-1].output.shape
    (['filling', 'ok'], (8,))
    """

    def __init__(
        self,
        run: TrainedRun | Path | str,
        recording: str | Recording | None = None,
        *,
        rate_hz: float | None = None,
        min_coverage: float = 0.5,
    ) -> None:
        self.run = run if isinstance(run, TrainedRun) else TrainedRun.open(run)
        self.recording_id = _name(self.run, recording)
        self.unit_ids, rate = _units_and_rate(self.run, recording, self.recording_id)
        self.rate_hz = rate if rate_hz is None else rate_hz
        if not (math.isfinite(self.rate_hz) and self.rate_hz > 0):
            raise ConfigError(f"rate_hz of {self.rate_hz}", allowed="above 0", fix="give the imaging rate in Hz")
        if not 0 <= min_coverage <= 1:
            raise ConfigError(f"min_coverage of {min_coverage}", allowed="0 to 1")
        self.min_coverage = min_coverage
        self.columns = self.run.columns[self.recording_id]
        self.num_frames, self.bin_frames = self.run.num_frames, self.run.config.window.bin_frames
        self.duration_s = self.num_frames / self.rate_hz
        self.normalisation = self.run.normalisation[self.recording_id]
        self._build_model()
        self.reset()

    def _build_model(self) -> None:
        words = self.run.vocabulary
        self.unit_index = torch.tensor([words.units[f"{self.recording_id}/{unit}"] for unit in self.unit_ids])
        self.session_index = torch.tensor([words.sessions[self.recording_id]])
        self.model = copy.deepcopy(self.run.model)
        readout = self.model.readouts[self.run.task]
        assert isinstance(readout, Readout)
        self.has_value_skip = readout.skip is not None
        if isinstance(readout.head, FrameDecoder):
            readout.head = FoldedFrameDecoder(readout.head)
        self.attention = SlidingCrossAttention(
            self.model, self.unit_index, num_places=self.num_frames, duration_s=self.duration_s
        )
        self.feed_forward = FoldedFeedForward(self.model.encoder.feed_forward, len(self.attention.latents))
        self.processor = FoldedProcessor(self.model, self.attention.times_of_latents)
        with torch.no_grad():
            self.latents = self.model.initial_latents(self.duration_s)  # (1, L, D)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of `Prediction.output`: ``(K,)``, ``()`` or ``(H, W)``."""
        config = self.run.model.readouts[self.run.task].config
        assert isinstance(config, ReadoutConfig)
        if config.kind == "frames":
            return config.height, config.width
        return (config.num_classes,) if config.kind == "classes" else ()

    @property
    def time(self) -> float:
        """Seconds of the newest frame, dropped ones included; NaN before the first."""
        seen = self.window.num_seen
        return float(self.window.times[(seen - 1) % self.num_frames]) if seen else math.nan

    @property
    def coverage(self) -> float:
        """Share of the window's (frame, neuron) values that are there."""
        return float(self.window.present.sum()) / (self.num_frames * len(self.unit_ids))

    def reset(self) -> None:
        """Forget every frame, as before the first one; the counts start again."""
        self.window = _Window(
            values=np.full((self.num_frames, len(self.unit_ids)), np.nan, np.float32),
            times=np.zeros(self.num_frames),
            present=np.zeros(self.num_frames, np.int64),
        )
        self.counts = Counts()
        self.attention.forget()

    def skip(self, num_frames: int = 1) -> None:
        """Say that the next imaging frames were dropped."""
        if num_frames < 1:
            raise StreamError(f"{num_frames} dropped frames", allowed="1 or more")
        self.counts.dropped += num_frames
        start = self._next_time()
        # Of a long gap only what the window can still hold matters.
        for i in range(max(0, num_frames - self.num_frames), num_frames):
            self._push(np.full(len(self.unit_ids), np.nan, np.float32), start + i / self.rate_hz)

    def step(self, frame: ArrayLike, time: float | None = None) -> Prediction:
        """Take one imaging frame and predict.

        Parameters
        ----------
        frame : array
            ``(C,)`` dF/F of the neurons `unit_ids`, as in the recording (not normalised).
        time : float, optional
            Seconds of the frame's start on a clock of the rig's; without it the frame follows the one before it at
            the imaging rate. A gap of more than one and a half frames counts as dropped frames.

        Raises
        ------
        StreamError
            If the frame has another shape, is not numeric, or its time is not later than that of the one before it.
        """
        values = self._checked(frame)
        time = self._next_time() if time is None else self._fill_gap(float(time))
        finite = self.normalisation.apply(np.where(np.isfinite(values), values, np.nan), np.arange(len(values)))
        finite = np.where(np.isfinite(finite), finite, np.nan).astype(np.float32)
        self.counts.frames += 1
        self.counts.missing += int(np.isnan(finite).sum())
        self._push(finite, time)
        coverage = self.coverage
        if self.window.num_seen < self.num_frames:
            return Prediction(time, "filling", coverage)
        if coverage < self.min_coverage or coverage == 0:
            return Prediction(time, "sparse", coverage)
        return self._predict(time, coverage)

    def _checked(self, frame: ArrayLike) -> NDArray[np.float32]:
        try:
            values = np.asarray(frame, np.float32)
        except (TypeError, ValueError):
            raise StreamError("a frame that is not numeric", allowed="float32 dF/F", fix="convert it") from None
        if values.shape != (len(self.unit_ids),):
            raise StreamError(
                f"a frame of shape {values.shape} for {len(self.unit_ids)} neurons of {self.recording_id}",
                allowed=f"({len(self.unit_ids)},), one value per neuron of Decoder.unit_ids",
                fix="send NaN for neurons that are not there",
            )
        return values

    def _next_time(self) -> float:
        return self.time + 1 / self.rate_hz if self.window.num_seen else 0.0

    def _fill_gap(self, time: float) -> float:
        if not math.isfinite(time):
            raise StreamError(f"a frame at {time} s", allowed="a finite time", fix="give seconds")
        if self.window.num_seen:
            last = self.time
            if time <= last:
                raise StreamError(
                    f"a frame at {time:.6f} s after one at {last:.6f} s",
                    allowed="a later time",
                    fix="send frames in order, or reset the decoder",
                )
            missing = math.floor((time - last) * self.rate_hz - 0.5)
            if missing >= 1:
                self.skip(missing)
        return time

    def _push(self, values: NDArray[np.float32], time: float) -> None:
        window, bins = self.window, self.bin_frames
        place = window.num_seen % self.num_frames
        window.values[place], window.times[place] = values, time
        window.present[place] = len(values) - np.isnan(values).sum()
        window.num_seen += 1
        if window.num_seen < bins:
            return
        if bins > 1:
            values = _mean_of_known(window.values[np.arange(place - bins + 1, place + 1)])
        tensor = torch.from_numpy(values)
        self.attention.put(self._place_of(place), tensor, ~tensor.isnan())

    def _place_of(self, frame: int | NDArray[np.int64]) -> Any:
        """Return where the attention keeps the bin that ends with a frame of the ring: bins of one window together."""
        return frame % self.bin_frames * (self.num_frames // self.bin_frames) + frame // self.bin_frames

    def _predict(self, time: float, coverage: float) -> Prediction:
        window = self.window
        newest = (window.num_seen - 1) % self.num_frames
        order = np.arange(newest + 1, newest + 1 + self.num_frames) % self.num_frames
        stamps = window.times[order]
        times = stamps.reshape(-1, self.bin_frames).mean(axis=1) - stamps[0] + 0.5 / self.rate_hz
        target_time = time - self.run.config.window.lag_s
        if self.run.task == "gratings":
            # In training the target was the middle of a trial that the window covers.
            target_time = time - 0.5 * self.num_frames / self.rate_hz
        places = self._place_of(order[self.bin_frames - 1 :: self.bin_frames]).tolist()
        with torch.inference_mode():
            batch = self._window_batch(order, times) if self.has_value_skip else None
            output = self._run_model(places, torch.from_numpy(times), target_time - stamps[0], batch)
        return self._answer(time, coverage, output)

    def _window_batch(self, order: NDArray[np.int64], times: NDArray[np.float64]) -> Batch:
        """Return the window for a value skip, to which a missing value adds nothing."""
        steps = self.window.values[order].reshape(-1, self.bin_frames, len(self.unit_ids))
        values = torch.from_numpy(_mean_of_known(steps.swapaxes(0, 1))).nan_to_num_()
        return Batch(
            dff=values.to(self.attention.dtype).unsqueeze(0),
            unit_index=self.unit_index.unsqueeze(0),
            unit_mask=torch.ones(1, len(self.unit_ids), dtype=torch.bool),
            frame_times=torch.from_numpy(times).unsqueeze(0),
            session_index=self.session_index,
            target_time=torch.zeros(1),
            duration_s=self.duration_s,
        )

    def _run_model(
        self, places: list[int], times: torch.Tensor, target_time: float, batch: Batch | None
    ) -> torch.Tensor:
        """Return the readout's output for the window, without its batch dimension."""
        # A batch holds times in the model's precision; so do we.
        attended = self.attention.attend(places, times.to(self.attention.dtype).double())  # (L, D)
        z = self.processor(self.feed_forward(self.attention.latents + attended))
        latents = self.latents.with_values(z.unsqueeze(0))
        output = self.model.readout(
            self.run.task,
            latents,
            session_index=self.session_index,
            target_time=torch.tensor([target_time], dtype=torch.float64),
            batch=batch,
        )
        return output[0]

    def _answer(self, time: float, coverage: float, output: torch.Tensor) -> Prediction:
        if self.run.task == "frames":
            frame = (output * 255).round().clamp(0, 255).to(torch.uint8)
            return Prediction(time, "ok", coverage, frame.numpy())
        if output.ndim == 0:
            return Prediction(time, "ok", coverage, output.numpy())
        probabilities = output.softmax(dim=-1).numpy()
        assert self.run.class_values is not None
        decided = decide(self.run, probabilities[None])[0]
        return Prediction(time, "ok", coverage, probabilities, float(self.run.class_values[decided]))


def _mean_of_known(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean over the first axis of what is not NaN; NaN where nothing is known."""
    there = ~np.isnan(values)
    count = there.sum(axis=0)
    return np.asarray(np.where(there, values, 0).sum(axis=0) / np.where(count, count, np.nan).astype(np.float32))


def _name(run: TrainedRun, recording: str | Recording | None) -> str:
    known = sorted(run.columns)
    name = recording.recording_id if isinstance(recording, Recording) else recording
    if name is None and len(known) == 1:
        return known[0]
    allowed = ", ".join(known[:8]) + (" ..." if len(known) > 8 else "")
    if name is None:
        raise RecordingError(f"{run.folder} knows {len(known)} recordings", allowed=allowed, fix="name one of them")
    if name not in known:
        raise RecordingError(
            f"recording {name} is not known to {run.folder}{suggest(name, known)}",
            allowed=allowed,
            fix="fine-tune on it first: its units have no embedding",
        )
    return name


def _units_and_rate(run: TrainedRun, recording: str | Recording | None, name: str) -> tuple[list[str], float]:
    if isinstance(recording, Recording):
        run.unit_set(recording)  # refuses a recording whose units have changed
        return [str(unit) for unit in recording.unit_ids[run.columns[name]]], recording.rate_hz
    try:
        facts = run_folder.read_json(run.folder, "recordings.json")[name]
    except CheckpointError as error:
        raise CheckpointError(error.problem, fix="give the Recording itself instead of its id") from None
    return list(facts["unit_ids"]), float(facts["rate_hz"])
