"""From the responses of neurons whose tuning is known to the picture they look at.

The encoding model of the observatory says what any picture does to known neurons, so there is as much footage to learn
the way back from as one likes, none of it from the movies of a recording. Kernel ridge regression on it approaches the
posterior mean of the picture given the responses: what the neurons tell, whatever a decoder could learn from the
footage of one session.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from sklearn.utils.extmath import randomized_svd

from poyo_ssl.data.recording import Recording
from poyo_ssl.data.stimuli import MOVIE_PREFIX
from poyo_ssl.observatory.calcium import draw_counts
from poyo_ssl.observatory.cells import Population
from poyo_ssl.observatory.drives import control_gain, picture_responses, undo_gain_control
from poyo_ssl.observatory.movies import (
    DEAD_LEAVES,
    MEAN_GREY,
    PICTURE_OVER_FRAME,
    SMALLEST_PICTURE,
    load_picture,
    sample_view,
    to_grey,
)

NUM_PICTURES, VIEWS_PER_PICTURE = 160, 15
NUM_COMPONENTS = 200
COMPRESSION = 0.25
"""Power of responses and counts: energies that are squared once more (`drive_exponent` 2) become contrasts."""
KERNEL_WIDTH = 0.1
"""Of ``exp(-width * mean squared difference of features)``."""
RATE_PENALTY, COUNT_PENALTY = 0.3, 3.0
"""Ridge penalties, chosen on footage that took no part in the fit."""

Frames = NDArray[np.uint8]
Features = NDArray[np.float64]


@dataclass(frozen=True)
class Footage:
    """Views of new dead-leaves pictures, with their principal components."""

    pixels: Frames  # ``(K, H, W)`` uint8
    components: NDArray[np.float64]  # ``(P, H * W)`` principal axes about uniform grey, the last of them approximately
    scores: NDArray[np.float64]  # ``(K, P)`` projections on them


@functools.lru_cache(maxsize=2)
def draw_footage(
    height: int, width: int, seed: int, *, num_pictures: int = NUM_PICTURES, views: int = VIEWS_PER_PICTURE
) -> Footage:
    """Draw pictures and look at each of them from several places, near and far."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(6,)))
    rows, columns = (
        max(least, round(PICTURE_OVER_FRAME * size))
        for least, size in zip(SMALLEST_PICTURE, (height, width), strict=True)
    )
    pixels = np.empty((num_pictures * views, height, width), np.uint8)
    for number in range(num_pictures):
        picture = load_picture(DEAD_LEAVES, rng, height=rows, width=columns)
        own = slice(number * views, (number + 1) * views)
        pixels[own] = _look_around(picture, height, width, views, rng)
    centred = pixels.reshape(len(pixels), -1) - MEAN_GREY
    components = randomized_svd(centred, min(NUM_COMPONENTS, *centred.shape), random_state=seed)[2]
    return Footage(pixels, components, centred @ components.T)


def _look_around(picture: NDArray[np.float64], height: int, width: int, views: int, rng: np.random.Generator) -> Frames:
    """Return views ``(views, height, width)`` as large and as far from the edges as movies', mirrored or not."""
    from scipy import ndimage

    rows, columns = picture.shape
    widest = min(columns, rows * width / height) - 1
    spans = widest * rng.uniform(0.45, 0.8, views)
    smooth = ndimage.gaussian_filter(picture.astype(np.float32), 0.4 * spans.mean() / width)
    seen = np.empty((views, height, width), np.float32)
    for view, span in enumerate(spans):
        left = rng.uniform(0.1, 0.9) * (columns - 1 - span)
        top = rng.uniform(0.1, 0.9) * (rows - 1 - span * height / width)
        x = left + (np.arange(width) + 0.5) / width * span
        y = top + (np.arange(height) + 0.5) / width * span
        seen[view] = sample_view(smooth, y, x if rng.random() < 0.5 else x[::-1])
    return to_grey(seen)


class PictureInversion:
    """Kernel ridge regression from features of footage to its pictures."""

    def __init__(self, footage: Footage, features: Features, *, penalty: float) -> None:
        self._footage = footage
        self._mean, scale = features.mean(axis=0), features.std(axis=0)
        self._scale = np.where(scale > 0, scale, np.inf)
        self._stored = (features - self._mean) / self._scale
        kernel = self._kernel(self._stored)
        kernel[np.diag_indices_from(kernel)] += penalty
        self._weights = cho_solve(cho_factor(kernel, lower=True), footage.scores)

    def _kernel(self, x: Features) -> Features:
        squares = [(a**2).sum(axis=1) for a in (x, self._stored)]
        distance = squares[0][:, None] + squares[1] - 2 * x @ self._stored.T
        return np.asarray(np.exp(-KERNEL_WIDTH / max(x.shape[1], 1) * np.maximum(distance, 0)))

    def predict(self, features: Features) -> Frames:
        """Return ``(N, H, W)`` uint8 pictures for ``(N, F)`` features."""
        scores = self._kernel((features - self._mean) / self._scale) @ self._weights
        pictures = MEAN_GREY + scores @ self._footage.components
        return np.clip(np.rint(pictures), 0, 255).astype(np.uint8).reshape(-1, *self._footage.pixels.shape[1:])


def has_known_neurons(recording: Recording) -> bool:
    """Tell whether the truth of a recording says how its neurons are tuned."""
    needed = {"mean_rate_hz", "stimulus_depth", "stimulus_mean", "burstiness", *(f.name for f in fields(Population))}
    return recording.events is not None and needed <= set(recording.truth)


class KnownNeurons:
    """Neurons of a simulated recording, with all that is true of them."""

    def __init__(self, recording: Recording, columns: NDArray[np.int64]) -> None:
        truth = recording.truth
        self._rows = columns[np.asarray(truth["tuned"], bool)[columns]]
        self.population = Population(**{f.name: truth[f.name][self._rows] for f in fields(Population)})
        self._recording = recording
        self._rate = truth["mean_rate_hz"][self._rows] / truth["stimulus_mean"][self._rows]
        self._depth = truth["stimulus_depth"][self._rows]
        self._burstiness = float(truth["burstiness"][0])

    def mean_response(self, movie: Frames) -> Features:
        """``(C,)`` mean response to a movie ``(L, H, W)``, to which the gain control of each neuron is set."""
        return np.asarray(picture_responses(self.population, movie).mean(axis=0, dtype=np.float64))

    def invert_rates(self, footage: Footage) -> PictureInversion:
        """Learn to see from noise-free responses; give it `true_features`."""
        responses = picture_responses(self.population, footage.pixels)
        return PictureInversion(footage, responses.astype(np.float64) ** COMPRESSION, penalty=RATE_PENALTY)

    def true_features(self, movie: str, frame_number: NDArray[np.int64], mean_response: Features) -> Features:
        """``(N, C)`` noise-free, compressed responses to frames of a movie, the footage before them included."""
        drive = self._recording.truth[f"{movie}_drive"][:, self._rows][frame_number]
        response = undo_gain_control(self.population, drive, mean_response, MOVIE_PREFIX)
        return np.maximum(response.astype(np.float64), 0) ** COMPRESSION

    def invert_counts(
        self, footage: Footage, seconds: float, mean_response: Features, rng: np.random.Generator
    ) -> PictureInversion:
        """Learn to see from the numbers of events in one window of that many seconds, drawn once for each view.

        Give it the roots of `counts`.
        """
        counts = self.draw_counts(footage.pixels, seconds, mean_response, rng)
        return PictureInversion(footage, np.sqrt(counts), penalty=COUNT_PENALTY)

    def draw_counts(
        self, pixels: Frames, seconds: float, mean_response: Features, rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """``(K, C)`` numbers of events in windows in which a picture stays and nothing else changes the rate."""
        responses = picture_responses(self.population, pixels)
        drive = control_gain(self.population, responses, mean_response, MOVIE_PREFIX)
        rate = self._rate * np.maximum(1 + self._depth * (drive - 1), 0)
        return draw_counts(rate, seconds, self._burstiness, rng)

    def counts(self, first: NDArray[np.int64], num_frames: int) -> Features:
        """``(N, C)`` true numbers of events in windows of imaging frames that begin at `first` ``(N,)``."""
        events = self._recording.events
        assert events is not None, "a simulated recording holds its events"
        dense = events.dense(len(self._recording.timestamps), self._recording.num_units)[:, self._rows]
        before = np.zeros((len(dense) + 1, dense.shape[1]))
        np.cumsum(dense, axis=0, out=before[1:])
        return np.asarray(before[first + num_frames] - before[first])
