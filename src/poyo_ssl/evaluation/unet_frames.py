"""The model's own frame decoder on any features: what tells an encoder from another when the decoder is the same."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import torch

from poyo_ssl.config import MovieLossConfig
from poyo_ssl.evaluation.features import Array, FeatureScaler, FloatArray, check_parts
from poyo_ssl.models.losses import MovieLoss
from poyo_ssl.models.unet import FrameDecoder

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
