"""Simple decoders of movie frames: constants, lookups of a decoded frame number, ridge to components, a U-Net.

Targets are rows of a stack of movie frames. A decoder uses the rows that are fitted, and those of held-out windows to
score its hyper-parameters.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from poyo_ssl.config import MovieLossConfig
from poyo_ssl.errors import ConfigError
from poyo_ssl.evaluation.features import Array, FeatureScaler, FloatArray, IntArray
from poyo_ssl.evaluation.frame_number import FrameNumberBaseline, Scores, Settings
from poyo_ssl.models.losses import MovieLoss
from poyo_ssl.models.poyo_ssl import FrameDecoder

Frames = NDArray[np.uint8]


def to_uint8(frames: Array) -> Frames:
    """Round and clip to the range of images on disk."""
    return np.clip(np.rint(frames), 0, 255).astype(np.uint8)


def mean_training_frame(frames: Frames, rows: IntArray) -> FloatArray:  # (H, W), 0-255
    """Mean of the frames at some rows, each as often as it occurs."""
    shown, counts = np.unique(rows, return_counts=True)
    # Summed before it is divided: whole numbers are exact, so a mean halfway between grey levels always rounds alike.
    total = np.tensordot(counts.astype(np.float64), frames[shown].astype(np.float64), axes=1)
    return np.asarray(total / counts.sum())


class FrameStack:
    """Movie frames ``(L, H, W)`` that targets are rows of, with what all baselines and recordings share."""

    def __init__(self, frames: Frames) -> None:
        if frames.ndim != 3 or frames.dtype != np.uint8:
            raise ConfigError(
                f"movie frames of shape {frames.shape} and type {frames.dtype}",
                allowed="(L, H, W) uint8",
                fix="pass the pixels of data.stimuli.load_movie",
            )
        self.frames = frames
        self._components_of = lru_cache(maxsize=4)(self._components)

    @cached_property
    def distances(self) -> NDArray[np.float32]:  # (L, L)
        """Mean squared pixel difference of all pairs of frames."""
        return _squared_distances(self.frames, self.frames).astype(np.float32)

    def components(self, rows: IntArray) -> tuple[FloatArray, FloatArray]:  # (H * W,), (K, H * W)
        """Mean and leading principal components of the distinct frames among some rows."""
        return self._components_of(np.unique(rows).tobytes())

    def _components(self, rows: bytes) -> tuple[FloatArray, FloatArray]:
        flat = self.frames[np.frombuffer(rows, np.int64)].reshape(len(rows) // 8, -1).astype(np.float64)
        mean = flat.mean(axis=0)
        return mean, thin_svd(flat - mean)[2][: max(RidgeFrames.num_components)]


def _squared_distances(a: Frames, b: Frames) -> FloatArray:  # (M, N)
    """Mean squared pixel difference of all pairs of ``(M, H, W)`` and ``(N, H, W)``."""
    # Centred at mid-grey, so that single precision loses nothing that matters in a difference of squares.
    flat_a = a.reshape(len(a), -1).astype(np.float32) - np.float32(127.5)
    flat_b = b.reshape(len(b), -1).astype(np.float32) - np.float32(127.5)
    squares = (flat_a**2).mean(axis=1, dtype=np.float64)[:, None] + (flat_b**2).mean(axis=1, dtype=np.float64)
    return np.maximum(squares - 2.0 * (flat_a @ flat_b.T).astype(np.float64) / flat_a.shape[1], 0.0)


def nearest_training_frame(frames: Frames, y_train: IntArray, y_test: IntArray) -> Frames:  # (M, H, W)
    """Oracle: of the frames at `y_train` the one nearest to the true one at `y_test`, in squared pixel difference.

    It looks at the test targets, so it is the ceiling of any lookup; on frames that were fitted it is the truth itself.
    """
    seen = np.unique(y_train)
    wanted, back = np.unique(y_test, return_inverse=True)
    nearest = seen[np.argmin(_squared_distances(frames[wanted], frames[seen]), axis=1)]
    return frames[nearest][back]


class StackDecoder:
    """A decoder of rows of a stack of frames, which is given as such or as ``(L, H, W)`` uint8."""

    name: str

    def __init__(self, frames: Frames | FrameStack) -> None:
        self.stack = frames if isinstance(frames, FrameStack) else FrameStack(frames)
        self.frames, self.num_targets = self.stack.frames, len(self.stack.frames)


class ConstantFrame(StackDecoder):
    """Predicts the same image for every window, from the training part: the metrics subtract that mean, no other."""

    training_part_alone = True

    @abstractmethod
    def _image(self, y: IntArray) -> FloatArray: ...

    def scores(self, x: Array, y: IntArray, x_held: Array, y_held: IntArray) -> Scores:
        """Nothing to choose."""
        return {(): 0.0}

    def fit(self, x: Array, y: IntArray, settings: Settings) -> ConstantFrame:
        """Make the image from the frames shown."""
        self.settings = dict(settings)
        self.image = to_uint8(self._image(y))
        return self

    def predict(self, x: Array) -> Frames:
        """Repeat it."""
        return np.repeat(self.image[None], len(x), axis=0)


class GreyFrame(ConstantFrame):
    """Every pixel at the mean grey level.

    It knows nothing of any picture. On unseen footage it correlates with what is left of a frame once the mean training
    frame is subtracted, since minus that mean is a part of it; a score that does not exceed its is none.
    """

    name = "grey_frame"

    def _image(self, y: IntArray) -> FloatArray:
        mean = mean_training_frame(self.frames, y)
        return np.full_like(mean, mean.mean())


class MeanFrame(ConstantFrame):
    """The mean frame."""

    name = "mean_frame"

    def _image(self, y: IntArray) -> FloatArray:
        return mean_training_frame(self.frames, y)


class PixelMedian(ConstantFrame):
    """The median of every pixel over the distinct frames: repeats are equally long, so weights would be alike."""

    name = "pixel_median"

    def _image(self, y: IntArray) -> FloatArray:
        return np.asarray(np.median(self.frames[np.unique(y)], axis=0))


class BlurredMean(ConstantFrame):
    """The mean frame, blurred; the width is chosen by squared error."""

    name = "blurred_mean"
    widths_px = (1.0, 2.0, 4.0, 8.0)

    def scores(self, x: Array, y: IntArray, x_held: Array, y_held: IntArray) -> Scores:
        """Squared error by width, less the variance of the held-out frames, which all widths share."""
        mean, held_out = (mean_training_frame(self.frames, rows) for rows in (y, y_held))
        errors = {w: float(((gaussian_filter(mean, w) - held_out) ** 2).mean()) for w in self.widths_px}
        return {(("width_px", width),): -error * len(y_held) for width, error in errors.items()}

    def _image(self, y: IntArray) -> FloatArray:
        return np.asarray(gaussian_filter(mean_training_frame(self.frames, y), self.settings["width_px"]))


class FrameLookup(StackDecoder):
    """Decodes the frame number, then returns the stored frame.

    The decoder is chosen by the squared error of the frames it would return, which also makes sense where held-out
    frames were never fitted.
    """

    def __init__(self, frames: Frames | FrameStack, *, decoder: type[FrameNumberBaseline], tolerance: int) -> None:
        super().__init__(frames)
        self.name = f"{decoder.name}_lookup"
        self._decoder = decoder(num_frames=self.num_targets, tolerance=tolerance, score=self._score)

    def _score(self, predicted: IntArray, true: IntArray) -> float:
        return -float(self.stack.distances[predicted, true].sum(dtype=np.float64))

    def scores(self, x: Array, y: IntArray, x_held: Array, y_held: IntArray) -> Scores:
        """Score the candidates of the decoder of the frame number."""
        return self._decoder.scores(x, y, x_held, y_held)

    def fit(self, x: Array, y: IntArray, settings: Settings) -> FrameLookup:
        """Fit the decoder of the frame number."""
        self._decoder.fit(x, y, settings)
        return self

    def predict(self, x: Array) -> Frames:
        """Look the decoded frames up."""
        return self.frames[self._decoder.predict(x)]


class RidgeFrames(StackDecoder):
    """Ridge regression from z-scored features to the leading principal components of the frames.

    Penalty and number of components (reduced rank) are chosen by squared pixel error. Unlike a lookup it can compose
    frames that were never shown.
    """

    name = "ridge"
    penalties = tuple(10.0**p for p in (-2, -1, 0, 0.5, 1, 1.5, 2, 2.5, 3, 4))  # in mean squared singular values of x
    num_components = (1, 2, 4, 8, 16, 32, 64, 128, 256)

    def scores(self, x: Array, y: IntArray, x_held: Array, y_held: IntArray) -> Scores:
        """Squared error by penalty and rank, less that of the mean frame, which all candidates share."""
        self._prepare(x, y)
        held_out = self._scaler(x_held) @ self._right.T
        truth = self._on_components(y_held)
        found: Scores = {}
        for penalty in self.penalties:
            predicted = held_out @ self._solve(penalty) + self._offset
            # Leaving out component k adds truth_k^2, keeping it adds (predicted_k - truth_k)^2.
            change = ((predicted - truth) ** 2 - truth**2).sum(axis=0)
            for rank in self.num_components:
                found[("penalty", penalty), ("num_components", rank)] = -float(change[:rank].sum())
        return found

    def fit(self, x: Array, y: IntArray, settings: Settings) -> RidgeFrames:
        """Regress the component scores on the features."""
        self._prepare(x, y)
        (_, penalty), (_, rank) = settings
        self._weights = (self._right.T @ self._solve(penalty))[:, :rank]
        return self

    def predict(self, x: Array) -> Frames:
        """Compose frames of the components."""
        rank = self._weights.shape[1]
        scores = self._scaler(x) @ self._weights + self._offset[:rank]
        return to_uint8((scores @ self._basis[:rank] + self._mean).reshape(len(x), *self.frames.shape[1:]))

    def _prepare(self, x: Array, y: IntArray) -> None:
        self._mean, self._basis = self.stack.components(y)
        scores = self._on_components(y)
        self._offset = scores.mean(axis=0)
        self._scaler = FeatureScaler.fit(x)
        left, self._singular, self._right = thin_svd(self._scaler(x))
        self._projected = left.T @ (scores - self._offset)

    def _on_components(self, y: IntArray) -> FloatArray:  # (N, K)
        rows, back = np.unique(y, return_inverse=True)
        return ((self.frames[rows].reshape(len(rows), -1) - self._mean) @ self._basis.T)[back]

    def _solve(self, penalty: float) -> FloatArray:
        s = self._singular
        scale = float((s**2).mean()) if len(s) else 1.0  # no feature varies: the mean frame
        return np.asarray((s / (s**2 + penalty * scale))[:, None] * self._projected)


def thin_svd(a: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Singular values that are not rounding noise, with their vectors, from the smaller Gram matrix."""
    wide = a.shape[0] < a.shape[1]
    values, vectors = np.linalg.eigh(a @ a.T if wide else a.T @ a)
    keep = values > 1e-10 * max(float(values[-1]), 1e-300)
    values, vectors = values[keep][::-1], vectors[:, keep][:, ::-1]
    s = np.sqrt(values)
    if wide:
        return vectors, s, (vectors.T @ a) / s[:, None]
    return (a @ vectors) / s, s, vectors.T


BATCH_SIZE = 64
LEARNING_RATE = 2e-3
STEPS, ROUND = 250, 50
"""Steps of training at most, and after how many of them held-out windows are looked at."""


class UNetFrames(StackDecoder):
    """Our Skip-Connection U-Net from feature vectors to frames, trained with the movie loss of the models.

    The number of steps is chosen by squared error.
    """

    name = "unet"

    def __init__(self, frames: Frames | FrameStack, *, seed: int, steps: int = STEPS) -> None:
        super().__init__(frames)
        self.seed, self.steps = seed, steps

    def scores(self, x: Array, y: IntArray, x_held: Array, y_held: IntArray) -> Scores:
        """Train once, looking at held-out windows from time to time."""
        found: Scores = {}
        for step in self._train(x, y, self.steps):
            if step % ROUND == 0 or step == self.steps:
                error = ((self.predict(x_held).astype(np.float32) - self.frames[y_held]) ** 2).mean(axis=(1, 2))
                found[(("steps", step),)] = -float(error.sum())
        return found

    def fit(self, x: Array, y: IntArray, settings: Settings) -> UNetFrames:
        """Train for the steps chosen."""
        for _ in self._train(x, y, dict(settings)["steps"]):
            pass
        return self

    def _train(self, x: Array, y: IntArray, steps: int) -> Any:
        """Train on random batches, from weights of the seed; yield after every step."""
        self._scaler = FeatureScaler.fit(x)
        rng = np.random.default_rng(self.seed)
        height, width = self.frames.shape[1:]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self._model = FrameDecoder(x.shape[1], height=height, width=width, skips=True)
        loss = MovieLoss(MovieLossConfig())
        optimizer = torch.optim.AdamW(self._model.parameters(), lr=LEARNING_RATE)
        inputs = torch.from_numpy(self._scaler(x)).float()
        for step in range(1, steps + 1):
            rows = rng.integers(len(inputs), size=BATCH_SIZE)
            target = torch.from_numpy(self.frames[y[rows]]).float() / 255
            total, _ = loss(self._model.train()(inputs[rows]), target)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            yield step

    @torch.inference_mode()
    def predict(self, x: Array) -> Frames:
        """Draw frames."""
        self._model.eval()
        batches = [self._scaler(x[start : start + BATCH_SIZE]) for start in range(0, len(x), BATCH_SIZE)]
        drawn = torch.cat([self._model(torch.from_numpy(batch).float()) for batch in batches])
        return (drawn * 255).round().clamp(0, 255).to(torch.uint8).numpy()
