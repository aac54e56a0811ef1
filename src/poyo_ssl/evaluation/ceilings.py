"""Ceilings of unseen frames: decoders that are told what no decoder of dF/F can know.

A recording of the observatory holds the truth about its neurons. With it, footage to learn from is unlimited, so what
these ceilings miss is not for want of training frames: `TrueRates` misses what the neurons' noise-free rates do not
tell, `TrueEvents` what one trial does not tell, however well its events are inferred from fluorescence.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from poyo_ssl.evaluation import parts
from poyo_ssl.evaluation.features import FloatArray
from poyo_ssl.evaluation.frame_images import RidgeFrames
from poyo_ssl.evaluation.parts import Part
from poyo_ssl.evaluation.predictions import ArmKind
from poyo_ssl.observatory.inversion import KnownNeurons, draw_footage, has_known_neurons

__all__ = ["TrueEvents", "TrueRates", "has_known_neurons"]

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
        self._ridge.fit(parts.true_drive(train), train.target, parts.true_drive(valid), valid.target)
        self._neurons = KnownNeurons(train.recording, train.columns)
        self._inversion = self._neurons.invert_rates(draw_footage(*self._frames.shape[1:], self._seed))
        truth = self._frames[valid.target].astype(np.float32)
        made = {"ridge": self._ridge.predict(parts.true_drive(valid)), "inversion": self._invert(valid)}
        errors = {name: float(((frames - truth) ** 2).mean()) for name, frames in made.items()}
        self.chosen = {"decoder": min(errors, key=errors.__getitem__)}
        return self

    def predict(self, part: Part) -> Frames:
        """Return ``(N, H, W)`` uint8 frames."""
        if self.chosen["decoder"] == "ridge":
            return self._ridge.predict(parts.true_drive(part))
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
