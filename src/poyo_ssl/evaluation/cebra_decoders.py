"""CEBRA (Schneider, Lee and Mathis, Nature 2023) as an encoder before simple decoders, or before our frame decoder.

Every window's features are one sample. The embedding is learned by CEBRA's own contrastive loss with the training
targets as labels (CEBRA-Behavior); a decoder is then fitted on the embedded training part. Size of the embedding and
transform of the features are chosen on the validation part, like all that the decoder itself chooses.

Needs the package `cebra`: ``pip install 'poyo-ssl[cebra]'``.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from sklearn.neighbors import KNeighborsClassifier

from poyo_ssl.errors import ConfigError
from poyo_ssl.evaluation.baselines import Baseline, ClassBaseline
from poyo_ssl.evaluation.features import Array, FloatArray
from poyo_ssl.evaluation.frame_images import FrameLookup
from poyo_ssl.evaluation.frame_number import KNNFrameNumber, Score, candidate_transforms, within_tolerance
from poyo_ssl.evaluation.unet_frames import UNetFrames

ITERATIONS = 500
BATCH_SIZE = 512
HIDDEN_UNITS = 64
LEARNING_RATE = 3e-3
TEMPERATURE = 0.5
DIMENSIONS = (8, 32)
FRAMES_PER_LABEL = 5
"""Successive movie frames that share a label: with one each, a window would be paired with few others."""


def load_cebra() -> Any:
    """Import CEBRA.

    Raises
    ------
    ConfigError
        If it is not installed.
    """
    try:
        with warnings.catch_warnings():
            # Its losses are compiled on import, which torch deprecates.
            warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", DeprecationWarning)
            import cebra
    except ImportError:
        raise ConfigError(
            "baselines with CEBRA need cebra, which is not installed", fix="pip install 'poyo-ssl[cebra]'"
        ) from None
    return cebra


class CebraEmbedding:
    """One CEBRA model from features to a unit sphere; windows with the same label are drawn together.

    Parameters
    ----------
    dim : int
        Dimensions of the embedding.
    seed : int
        Seed of weights and batches.
    iterations : int
        Steps of training.
    """

    def __init__(self, *, dim: int, seed: int, iterations: int = ITERATIONS) -> None:
        self.dim, self.seed, self.iterations = dim, seed, iterations

    def fit(self, x: FloatArray, label: Array) -> CebraEmbedding:
        """Learn from ``(N, F)`` features and ``(N,)`` integer labels of 0 and up."""
        cebra = load_cebra()
        with _seeded(self.seed):
            data = cebra.data.TensorDataset(x.astype(np.float32), discrete=label.astype(np.int64))
            model = cebra.models.init("offset1-model", x.shape[1], HIDDEN_UNITS, self.dim)
            data.configure_for(model)
            self._solver = cebra.solver.init(
                "single-session",
                model=model,
                criterion=cebra.models.FixedCosineInfoNCE(temperature=TEMPERATURE),
                optimizer=torch.optim.Adam(model.parameters(), lr=LEARNING_RATE),
                tqdm_on=False,
            )
            batch_size = min(BATCH_SIZE, len(label))
            self._solver.fit(cebra.data.DiscreteDataLoader(data, num_steps=self.iterations, batch_size=batch_size))
        return self

    def __call__(self, x: FloatArray) -> FloatArray:
        """Embed ``(N, F)`` features: ``(N, dim)``, each of length 1."""
        with torch.inference_mode():
            return self._solver.transform(torch.from_numpy(x).float()).numpy().astype(np.float64)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators, which CEBRA draws from, and give them back as they were."""
    before = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(before)  # noqa: NPY002


class CebraDecoder:
    """A decoder on CEBRA's embedding of the features.

    Parameters
    ----------
    name : str
        Text for tables.
    decoder : callable
        Makes an unfitted decoder; of those on all embeddings, the one with the best validation score is kept.
    score : callable
        How good predictions are for the true targets; larger is better.
    label_width : int
        Targets of so many successive numbers are one label of the embedding.
    seed : int
        Seed of the embedding.
    final : callable, optional
        Makes the decoder that is fitted on the chosen embedding in the end, where that is another, slower one.
    iterations : int
        Steps of training of each embedding.

    Attributes
    ----------
    chosen : dict
        Hyper-parameters that the validation part chose.
    """

    def __init__(
        self,
        name: str,
        decoder: Callable[[], Baseline],
        score: Score,
        *,
        label_width: int = 1,
        seed: int,
        final: Callable[[], Baseline] | None = None,
        iterations: int = ITERATIONS,
    ) -> None:
        self.name, self.label_width, self.seed, self.iterations = name, label_width, seed, iterations
        self._make, self._score, self._final = decoder, score, final
        self.chosen: dict[str, Any] = {}

    def fit(self, x_train: Array, y_train: Array, x_valid: Array, y_valid: Array) -> CebraDecoder:
        """Learn an embedding of each size and transform, and keep the best."""
        best = -np.inf
        # Unscaled features would only slow the training.
        transforms = {name: t for name, t in candidate_transforms(x_train).items() if name != "none"}
        for (name, transform), dim in itertools.product(transforms.items(), DIMENSIONS):
            embedding = CebraEmbedding(dim=dim, seed=self.seed, iterations=self.iterations)
            embedding.fit(transform(x_train), y_train // self.label_width)
            train, valid = embedding(transform(x_train)), embedding(transform(x_valid))
            decoder = self._make().fit(train, y_train, valid, y_valid)
            score = self._score(decoder.predict(valid), y_valid)
            if score > best:
                best, parts = score, (train, valid)
                self._transform, self._embedding, self._decoder = transform, embedding, decoder
                of_embedding = {"embedding_transform": name, "dim": dim}
        if self._final is not None:
            self._decoder = self._final().fit(parts[0], y_train, parts[1], y_valid)
        # A decoder may choose a transform of its own.
        self.chosen = of_embedding | self._decoder.chosen
        return self

    def predict(self, x: Array) -> Array:
        """Decode the embedding of ``(N, F)`` features."""
        return self._decoder.predict(self._embedding(self._transform(x)))


def cebra_decoder(
    task: str,
    *,
    num_classes: int = 0,
    frames: Array | None = None,
    tolerance: int = 30,
    seed: int = 0,
    iterations: int = ITERATIONS,
) -> CebraDecoder:
    """Return CEBRA's baseline of a task: with k nearest neighbours for classes, with our U-Net for frames.

    Parameters
    ----------
    task : {'gratings', 'frame_number', 'frames'}
        What is decoded.
    num_classes : int
        Directions, or frames of the movie; not for 'frames'.
    frames : ndarray, optional
        ``(L, H, W)`` uint8, for 'frames'; targets are rows of it.
    tolerance : int
        Movie frames in one second.
    seed : int
        Seed of embedding and U-Net.
    iterations : int
        Steps of training of each embedding.
    """
    settings: dict[str, Any] = {"seed": seed, "iterations": iterations}
    if task == "gratings":

        def make() -> ClassBaseline:
            neighbours = {f"k {k}": KNeighborsClassifier(k, metric="cosine") for k in (1, 3, 5, 10)}
            return ClassBaseline(name="knn", num_classes=num_classes, candidates=neighbours)

        return CebraDecoder("cebra_knn", make, lambda found, true: float((found == true).mean()), **settings)
    if frames is None:
        return CebraDecoder(
            "cebra_knn",
            lambda: KNNFrameNumber(num_frames=num_classes, tolerance=tolerance),
            within_tolerance(tolerance),
            label_width=FRAMES_PER_LABEL,
            **settings,
        )
    return CebraDecoder(
        "cebra_unet",
        lambda: FrameLookup(frames, decoder=KNNFrameNumber, tolerance=tolerance),
        lambda found, true: -float(((found.astype(np.float32) - frames[true]) ** 2).mean()),
        label_width=FRAMES_PER_LABEL,
        final=lambda: UNetFrames(frames, seed=seed),
        **settings,
    )
