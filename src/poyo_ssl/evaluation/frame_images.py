"""Simple decoders of movie frames: constants, lookups of a decoded frame number, ridge to components.

Targets are rows of a stack of movie frames given to the constructor. Of that stack a baseline uses the rows
that the training targets name, and those of the validation targets to score its hyper-parameters.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from poyo_ssl.config import MovieLossConfig
from poyo_ssl.errors import ConfigError
from poyo_ssl.evaluation import features
from poyo_ssl.evaluation.features import Array, FeatureScaler, FloatArray, IntArray, Part, check_parts
from poyo_ssl.evaluation.frame_number import FrameNumberBaseline, Score
from poyo_ssl.evaluation.predictions import ArmKind
from poyo_ssl.models.losses import MovieLoss
from poyo_ssl.models.poyo_ssl import FrameDecoder
from poyo_ssl.observatory.inversion import KnownNeurons, draw_footage


def to_uint8(frames: Array) -> Array:
    """Round and clip to the range of images on disk.

    Examples
    --------
    >>> to_uint8(np.array([-3.0, 1.6, 300.0]))
    array([  0,   2, 255], dtype=uint8)
    """
    return np.clip(np.rint(frames), 0, 255).astype(np.uint8)


class _FrameStack:
    """Holds the movie frames ``(L, H, W)`` uint8 and checks targets against them."""

    def __init__(self, frames: Array) -> None:
        if frames.ndim != 3 or frames.dtype != np.uint8:
            raise ConfigError(
                f"movie frames of shape {frames.shape} and type {frames.dtype}",
                allowed="(L, H, W) uint8",
                fix="pass the pixels of data.stimuli.load_movie",
            )
        self.frames = frames
        self.chosen: dict[str, Any] = {}

    def _check(self, x_train: Array, y_train: Array, x_valid: Array, y_valid: Array) -> None:
        check_parts(x_train, y_train, x_valid, y_valid, num_classes=len(self.frames))


class ConstantFrame(_FrameStack):
    """Predicts the same image for every window; base of the three below.

    Parameters
    ----------
    frames : ndarray
        ``(L, H, W)`` uint8 movie frames.
    """

    def _mean(self, y_train: Array) -> FloatArray:
        return mean_training_frame(self.frames, y_train)

    def _set(self, image: FloatArray) -> None:
        self.image = to_uint8(image)

    def predict(self, x: Array) -> Array:
        """Return ``(N, H, W)`` uint8 frames."""
        return np.repeat(self.image[None], len(x), axis=0)


def mean_training_frame(frames: Array, y_train: Array) -> FloatArray:
    """Mean of the frames shown in the training part, each as often as it was a target.

    Parameters
    ----------
    frames : ndarray
        ``(L, H, W)`` movie frames.
    y_train : ndarray
        ``(N,)`` rows.

    Returns
    -------
    ndarray
        ``(H, W)`` float64, 0-255.

    Examples
    --------
    >>> mean_training_frame(np.array([[[0]], [[9]]], dtype=np.uint8), np.array([0, 1, 1]))
    array([[6.]])
    """
    rows, counts = np.unique(y_train, return_counts=True)
    # Summed before it is divided: whole numbers are exact, so a mean halfway between grey levels always rounds alike.
    total = np.tensordot(counts.astype(np.float64), frames[rows].astype(np.float64), axes=1)
    return np.asarray(total / counts.sum())


class MeanFrame(ConstantFrame):
    """The mean training frame.

    Examples
    --------
    >>> frames = np.array([[[0]], [[10]]], dtype=np.uint8)
    >>> x, y = np.zeros((2, 1)), np.array([0, 1])
    >>> MeanFrame(frames).fit(x, y, x, y).predict(x[:1])
    array([[[5]]], dtype=uint8)
    """

    name = "mean_frame"

    def fit(self, x_train: Array, y_train: Array, x_valid: Array, y_valid: Array) -> MeanFrame:
        """Average the training targets."""
        self._check(x_train, y_train, x_valid, y_valid)
        self._set(self._mean(y_train))
        return self


class GreyFrame(ConstantFrame):
    """Every pixel at the mean grey level of the training frames.

    It knows nothing of any picture. On unseen footage it correlates with what is left of a frame once the mean training
    frame is subtracted, since minus that mean is a part of it; a score that does not exceed its is none.

    Examples
    --------
    >>> frames = np.array([[[0, 4]], [[10, 10]]], dtype=np.uint8)
    >>> x, y = np.zeros((2, 1)), np.array([0, 1])
    >>> GreyFrame(frames).fit(x, y, x, y).predict(x[:1])
    array([[[6, 6]]], dtype=uint8)
    """

    name = "grey_frame"

    def fit(self, x_train: Array, y_train: Array, x_valid: Array, y_valid: Array) -> GreyFrame:
        """Average the training targets over all pixels."""
        self._check(x_train, y_train, x_valid, y_valid)
        mean = self._mean(y_train)
        self._set(np.full_like(mean, mean.mean()))
        return self


class PixelMedian(ConstantFrame):
    """The median of every pixel over the training targets.

    Examples
    --------
    >>> frames = np.array([[[0]], [[10]], [[90]]], dtype=np.uint8)
    >>> x, y = np.zeros((3, 1)), np.arange(3)
    >>> PixelMedian(frames).fit(x, y, x, y).predict(x[:1])
    array([[[10]]], dtype=uint8)
    """

    name = "pixel_median"

    def fit(self, x_train: Array, y_train: Array, x_valid: Array, y_valid: Array) -> PixelMedian:
        """Take the median of the frames that the training part showed."""
        self._check(x_train, y_train, x_valid, y_valid)
        # Every frame once: repeats are equally long, so weights would be (nearly) equal anyway.
        self._set(np.median(self.frames[np.unique(y_train)], axis=0))
        return self


class BlurredMean(ConstantFrame):
    """The mean training frame, blurred; the width is chosen on the validation part by squared error.

    Examples
    --------
    >>> frames = np.full((1, 8, 8), 7, dtype=np.uint8)
    >>> x, y = np.zeros((2, 1)), np.zeros(2, dtype=int)
    >>> int(BlurredMean(frames).fit(x, y, x, y).predict(x[:1]).max())
    7
    """

    name = "blurred_mean"
    widths_px = (1.0, 2.0, 4.0, 8.0)

    def fit(self, x_train: Array, y_train: Array, x_valid: Array, y_valid: Array) -> BlurredMean:
        """Blur the mean of the training targets."""
        self._check(x_train, y_train, x_valid, y_valid)
        mean, held_out = self._mean(y_train), self._mean(y_valid)
        # The squared error of a constant differs from that to the mean target by the targets' variance.
        errors = {w: ((gaussian_filter(mean, w) - held_out) ** 2).mean() for w in self.widths_px}
        width = min(errors, key=errors.__getitem__)
        self.chosen = {"width_px": width}
        self._set(gaussian_filter(mean, width))
        return self


class FrameLookup(_FrameStack):
    """Decodes the frame number, then returns the stored training frame.

    The decoder's hyper-parameters are chosen by the squared error of the frames it would return, which also
    makes sense where the validation part holds frames that were never shown in training.

    Parameters
    ----------
    frames : ndarray
        ``(L, H, W)`` uint8 movie frames; targets are rows of it.
    decoder : type of FrameNumberBaseline
        Which frame number decoder.
    tolerance : int
        Its tolerance in frames (1 s).

    Examples
    --------
    >>> from poyo_ssl.evaluation.frame_number import KNNFrameNumber
    >>> frames = np.arange(4, dtype=np.uint8).reshape(4, 1, 1)
    >>> x, y = np.eye(4).repeat(3, axis=0), np.arange(4).repeat(3)
    >>> lookup = FrameLookup(frames, decoder=KNNFrameNumber, tolerance=0)
    >>> lookup.name, lookup.fit(x, y, x, y).predict(np.eye(4)[2:3]).item()
    ('knn_lookup', 2)
    """

    def __init__(self, frames: Array, *, decoder: type[FrameNumberBaseline], tolerance: int) -> None:
        super().__init__(frames)
        self.name = f"{decoder.name}_lookup"
        self._decoder_type, self._tolerance = decoder, tolerance

    def fit(self, x_train: Array, y_train: Array, x_valid: Array, y_valid: Array) -> FrameLookup:
        """Fit the decoder of the frame number."""
        self._check(x_train, y_train, x_valid, y_valid)
        self._decoder = self._decoder_type(
            num_frames=len(self.frames),
            tolerance=self._tolerance,
            score=_negative_squared_error(self.frames, np.unique(np.concatenate([y_train, y_valid]))),
        )
        self._decoder.fit(x_train, y_train, x_valid, y_valid)
        self.chosen = self._decoder.chosen
        return self

    def predict(self, x: Array) -> Array:
        """Return ``(N, H, W)`` uint8 frames, all of them from the training part."""
        return self.frames[self._decoder.predict(x)]


def _negative_squared_error(frames: Array, rows: IntArray) -> Score:
    """Score of predicted rows by minus the mean squared pixel difference of the frames they stand for."""
    position = np.full(len(frames), -1)
    position[rows] = np.arange(len(rows))
    distance = _squared_distances(frames[rows], frames[rows])

    def score(predicted: IntArray, true: IntArray) -> float:
        return -float(distance[position[predicted], position[true]].mean())

    return score


def _squared_distances(a: Array, b: Array) -> FloatArray:
    """Mean squared pixel difference of all pairs of ``(M, H, W)`` and ``(N, H, W)``: ``(M, N)``."""
    # Centred at mid-grey, so that single precision loses nothing that matters in a difference of squares.
    flat_a = a.reshape(len(a), -1).astype(np.float32) - np.float32(127.5)
    flat_b = b.reshape(len(b), -1).astype(np.float32) - np.float32(127.5)
    squares = (flat_a**2).mean(axis=1, dtype=np.float64)[:, None] + (flat_b**2).mean(axis=1, dtype=np.float64)
    return np.maximum(squares - 2.0 * (flat_a @ flat_b.T).astype(np.float64) / flat_a.shape[1], 0.0)


def nearest_training_frame(frames: Array, y_train: Array, y_test: Array) -> Array:
    """Oracle: the training frame nearest to the true one, the ceiling of any lookup on unseen frames.

    Nearest in squared pixel difference. It looks at the test targets, so it is no baseline and is shown as
    a ceiling only; on frames that were in training it is the truth itself.

    Parameters
    ----------
    frames : ndarray
        ``(L, H, W)`` uint8 movie frames.
    y_train, y_test : ndarray
        ``(N,)`` and ``(M,)`` rows shown in training and to be reconstructed.

    Returns
    -------
    ndarray
        ``(M, H, W)`` uint8.

    Examples
    --------
    >>> frames = np.array([[[0]], [[40]], [[50]]], dtype=np.uint8)
    >>> nearest_training_frame(frames, np.array([0, 1]), np.array([2])).item()
    40
    """
    seen = np.unique(y_train)
    wanted, back = np.unique(y_test, return_inverse=True)
    nearest = seen[np.argmin(_squared_distances(frames[wanted], frames[seen]), axis=1)]
    return frames[nearest][back]


class RidgeFrames(_FrameStack):
    """Ridge regression from z-scored features to the principal components of the training frames.

    Penalty and number of components (reduced rank) are chosen on the validation part by squared pixel error.
    Unlike a lookup it can compose frames that were never shown.

    Parameters
    ----------
    frames : ndarray
        ``(L, H, W)`` uint8 movie frames; targets are rows of it.

    Examples
    --------
    >>> frames = np.array([[[0, 200]], [[200, 0]]], dtype=np.uint8)
    >>> x, y = np.array([[0.0], [1.0]] * 20), np.array([0, 1] * 20)
    >>> bool(abs(RidgeFrames(frames).fit(x, y, x, y).predict(np.array([[0.0]])) - [0, 200]).max() <= 1)
    True
    """

    name = "ridge"
    penalties = tuple(10.0**p for p in (-2, -1, 0, 0.5, 1, 1.5, 2, 2.5, 3, 4))
    """In units of the mean squared singular value of the features."""
    num_components = (1, 2, 4, 8, 16, 32, 64, 128, 256)

    def fit(self, x_train: Array, y_train: Array, x_valid: Array, y_valid: Array) -> RidgeFrames:
        """Regress component scores; choose penalty and rank."""
        self._check(x_train, y_train, x_valid, y_valid)
        self._mean = mean_training_frame(self.frames, y_train)
        components, scores_train, scores_valid = self._components(y_train, y_valid)
        self._scaler = FeatureScaler.fit(x_train)
        u, s, vt = _thin_svd(self._scaler(x_train))
        projected, held_out = u.T @ scores_train, self._scaler(x_valid) @ vt.T
        scale = float((s**2).mean()) if len(s) else 1.0  # no feature varies: the mean frame
        best = np.inf
        for penalty in self.penalties:
            coefficients = (s / (s**2 + penalty * scale))[:, None] * projected
            predicted = held_out @ coefficients
            # Leaving out component k adds scores_valid_k^2, keeping it adds (predicted_k - scores_valid_k)^2.
            change = ((predicted - scores_valid) ** 2 - scores_valid**2).sum(axis=0)
            for rank in self.num_components:
                rank = min(rank, len(components))
                if (error := float(change[:rank].sum())) < best:
                    best, self.chosen = error, {"penalty": penalty, "num_components": rank}
                    self._coefficients = vt.T @ coefficients[:, :rank]
        self._basis = components[: self.chosen["num_components"]]
        return self

    def predict(self, x: Array) -> Array:
        """Return ``(N, H, W)`` uint8 frames."""
        scores = self._scaler(x) @ self._coefficients
        return to_uint8((scores @ self._basis).reshape(len(x), *self._mean.shape) + self._mean)

    def _components(self, y_train: Array, y_valid: Array) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Components ``(K, H * W)`` of the distinct training frames and both parts' scores on them."""
        rows, back = np.unique(y_train, return_inverse=True)
        valid_rows, valid_back = np.unique(y_valid, return_inverse=True)
        centred = (self.frames[rows] - self._mean).reshape(len(rows), -1)
        _, _, components = _thin_svd(centred)
        components = components[: max(self.num_components)]
        valid = (self.frames[valid_rows] - self._mean).reshape(len(valid_rows), -1)
        return components, (centred @ components.T)[back], (valid @ components.T)[valid_back]


def _thin_svd(a: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Singular values that are not rounding noise, with their vectors, from the smaller Gram matrix."""
    wide = a.shape[0] < a.shape[1]
    values, vectors = np.linalg.eigh(a @ a.T if wide else a.T @ a)
    keep = values > 1e-10 * max(float(values[-1]), 1e-300)
    values, vectors = values[keep][::-1], vectors[:, keep][:, ::-1]
    s = np.sqrt(values)
    if wide:
        return vectors, s, (vectors.T @ a) / s[:, None]
    return (a @ vectors) / s, s, vectors.T


Frames = NDArray[np.uint8]


class TrueRates:
    """The true rates, read by the better of two decoders: ridge, and the inversion of the true tuning.

    Ridge learns from the training part, as the baseline does, and knows known frames. The inversion
    (`poyo_ssl.observatory.inversion`) learns from footage of its own, and composes unseen ones. The squared error on
    the validation part decides between them.

    Parameters
    ----------
    frames : ndarray
        ``(L, H, W)`` uint8 movie frames; targets are rows of it.
    seed : int
        Seed of the footage.
    """

    name = "true rates"

    def __init__(self, frames: Frames, *, seed: int) -> None:
        self.kind: ArmKind = "ceiling"
        self.chosen: dict[str, Any] = {}
        self._frames, self._seed = frames, seed

    def fit(self, train: Part, valid: Part) -> TrueRates:
        """Fit both and choose."""
        self._ridge = RidgeFrames(self._frames)
        self._ridge.fit(features.true_drive(train), train.target, features.true_drive(valid), valid.target)
        self._neurons = KnownNeurons(train.recording, train.columns)
        self._inversion = self._neurons.invert_rates(draw_footage(*self._frames.shape[1:], self._seed))
        truth = self._frames[valid.target].astype(np.float32)
        made = {"ridge": self._ridge.predict(features.true_drive(valid)), "inversion": self._invert(valid)}
        errors = {name: float(((frames - truth) ** 2).mean()) for name, frames in made.items()}
        self.chosen = {"decoder": min(errors, key=errors.__getitem__)}
        return self

    def predict(self, part: Part) -> Frames:
        """Return ``(N, H, W)`` uint8 frames."""
        if self.chosen["decoder"] == "ridge":
            return self._ridge.predict(features.true_drive(part))
        return self._invert(part)

    def _invert(self, part: Part) -> Frames:
        made = np.empty((len(part), *self._frames.shape[1:]), np.uint8)
        for movie in np.unique(part.table.stimulus):
            own = part.table.stimulus == movie
            # Every repeat of a frame has the same true rates.
            shown, back = np.unique(part.table.frame_number[own], return_inverse=True)
            mean = self._neurons.mean_response(whole_movie(part, str(movie), self._frames))
            made[own] = self._inversion.predict(self._neurons.true_features(str(movie), shown, mean))[back]
        return made


class TrueEvents:
    """The true numbers of events in each window, read by the inversion of the true tuning: the ceiling of one trial.

    Parameters
    ----------
    frames : ndarray
        ``(L, H, W)`` uint8 movie frames; targets are rows of it.
    seed : int
        Seed of the footage and of the events that it draws.
    """

    name = "true events"
    only_unseen_frames = True
    """It knows no frame of the training part, so on known ones it would be no ceiling."""

    def __init__(self, frames: Frames, *, seed: int) -> None:
        self.kind: ArmKind = "ceiling"
        self.chosen: dict[str, Any] = {}
        self._frames, self._seed = frames, seed

    def fit(self, train: Part, valid: Part) -> TrueEvents:
        """Learn from footage alone; of the training part only the gain control's means are taken."""
        del valid
        self._neurons = KnownNeurons(train.recording, train.columns)
        movies = [whole_movie(train, str(name), self._frames) for name in np.unique(train.table.stimulus)]
        seconds = train.table.num_frames / train.recording.rate_hz
        self._inversion = self._neurons.invert_counts(
            draw_footage(*self._frames.shape[1:], self._seed),
            seconds,
            np.mean([self._neurons.mean_response(movie) for movie in movies], axis=0),
            np.random.default_rng(self._seed),
        )
        return self

    def predict(self, part: Part) -> Frames:
        """Return ``(N, H, W)`` uint8 frames."""
        counts: FloatArray = self._neurons.counts(part.table.first_low, part.table.num_frames)
        return self._inversion.predict(np.sqrt(counts))


def whole_movie(part: Part, movie: str, frames: Frames) -> Frames:
    """Return all frames of a movie of a part, of which it may show some, out of the stack that its targets count."""
    first = int(np.flatnonzero(part.table.stimulus == movie)[0])
    start = int(part.table.target[first] - part.table.frame_number[first])
    return frames[start : start + len(part.recording.truth[f"{movie}_drive"])]


BATCH_SIZE = 64
LEARNING_RATE = 2e-3
STEPS, ROUND = 250, 50
"""Steps of training at most, and after how many of them the validation part is looked at."""


class UNetFrames:
    """Our Skip-Connection U-Net from feature vectors to frames, trained with the movie loss of the models.

    The number of steps is chosen on the validation part by squared error.

    Parameters
    ----------
    frames : ndarray
        ``(L, H, W)`` uint8 movie frames; targets are rows of it.
    seed : int
        Seed of weights and batches.
    steps : int
        Steps at most.

    Examples
    --------
    >>> frames = np.stack([np.zeros((8, 8)), np.full((8, 8), 200)]).astype(np.uint8)
    >>> x, y = np.array([[-1.0], [1.0]] * 32), np.array([0, 1] * 32)
    >>> found = UNetFrames(frames, seed=0, steps=50).fit(x, y, x, y).predict(np.array([[-1.0], [1.0]]))
    >>> bool(found[0].mean() < 50 and found[1].mean() > 150)
    True
    """

    name = "unet"

    def __init__(self, frames: Array, *, seed: int, steps: int = STEPS) -> None:
        self.frames, self.seed, self.steps = frames, seed, steps
        self.chosen: dict[str, Any] = {}

    def fit(self, x_train: Array, y_train: Array, x_valid: Array, y_valid: Array) -> UNetFrames:
        """Train on random batches of the training part; keep the weights that did best on the validation part."""
        check_parts(x_train, y_train, x_valid, y_valid, num_classes=len(self.frames))
        self._scaler = FeatureScaler.fit(x_train)
        rng = np.random.default_rng(self.seed)
        height, width = self.frames.shape[1:]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self._model = FrameDecoder(x_train.shape[1], height=height, width=width, skips=True)
        loss = MovieLoss(MovieLossConfig())
        optimizer = torch.optim.AdamW(self._model.parameters(), lr=LEARNING_RATE)
        x = torch.from_numpy(self._scaler(x_train)).float()
        best, kept = np.inf, self._model.state_dict()
        for step in range(1, self.steps + 1):
            rows = rng.integers(len(x), size=BATCH_SIZE)
            target = torch.from_numpy(self.frames[y_train[rows]]).float() / 255
            total, _ = loss(self._model.train()(x[rows]), target)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            if step % ROUND == 0 or step == self.steps:
                error = float(((self.predict(x_valid).astype(np.float32) - self.frames[y_valid]) ** 2).mean())
                if error < best:
                    best, kept, self.chosen = error, deepcopy(self._model.state_dict()), {"steps": step}
        self._model.load_state_dict(kept)
        return self

    @torch.inference_mode()
    def predict(self, x: Array) -> Array:
        """Return ``(N, H, W)`` uint8 frames."""
        self._model.eval()
        found = [self._decode(self._scaler(x[i : i + BATCH_SIZE])) for i in range(0, len(x), BATCH_SIZE)]
        return np.concatenate(found)

    def _decode(self, x: FloatArray) -> Array:
        frames = self._model(torch.from_numpy(x).float())
        return (frames * 255).round().clamp(0, 255).to(torch.uint8).numpy()
