"""Simple decoders that every model is compared with, behind one small interface.

A baseline is fitted on feature arrays of one recording, ``fit(x_train, y_train, x_valid, y_valid)``, and
predicts with ``predict(x)``. What it learns comes from the training part alone; the validation part only
chooses between hyper-parameters, as it does for a model. Features are windows of dF/F (or events) averaged in
a few time bins (`bin_features`); a baseline scales them itself, with the training part's moments.

Targets are integers: a class for gratings, a frame number for movies, and for reconstruction the row of
the true frame in the stack of movie frames that the baseline was given.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

from poyo_ssl.data.windows import WindowTable
from poyo_ssl.errors import ConfigError, suggest
from poyo_ssl.evaluation import features
from poyo_ssl.evaluation.features import (
    Array,
    FeatureScaler,
    FloatArray,
    IntArray,
    Part,
    View,
    check_parts,
)
from poyo_ssl.evaluation.frame_images import (
    BlurredMean,
    FrameLookup,
    GreyFrame,
    MeanFrame,
    PixelMedian,
    RidgeFrames,
    UNetFrames,
    nearest_training_frame,
)
from poyo_ssl.evaluation.frame_number import (
    CosineLDAFrameNumber,
    FrameNumberBaseline,
    KNNFrameNumber,
    NaiveBayesFrameNumber,
    Score,
    ShrunkLDAFrameNumber,
    WhitenedKNNFrameNumber,
    candidate_transforms,
    within_tolerance,
)
from poyo_ssl.evaluation.predictions import ArmKind


class Baseline(Protocol):
    """What every baseline offers.

    Attributes
    ----------
    name : str
        Text for tables and predictions files.
    chosen : dict
        Hyper-parameters that the validation part chose, after `fit`.
    """

    name: str
    chosen: dict[str, Any]

    def fit(self, x_train: Array, y_train: Array, x_valid: Array, y_valid: Array) -> Baseline:
        """Fit on ``(N, F)`` features and ``(N,)`` targets; the validation part chooses hyper-parameters."""
        ...

    def predict(self, x: Array) -> Array:
        """Predict ``(N,)`` integers, or ``(N, H, W)`` uint8 frames, for ``(N, F)`` features."""
        ...


class MajorityClass:
    """The most frequent class of the training part; the lowest among equals.

    Parameters
    ----------
    num_classes : int
        Number of classes.

    Examples
    --------
    >>> x, y = np.zeros((3, 1)), np.array([2, 1, 2])
    >>> MajorityClass(num_classes=8).fit(x, y, x, y).predict(x)
    array([2, 2, 2])
    """

    name = "majority"

    def __init__(self, *, num_classes: int) -> None:
        self.num_classes = num_classes
        self.chosen: dict[str, Any] = {}

    def fit(self, x_train: Array, y_train: Array, x_valid: Array, y_valid: Array) -> MajorityClass:
        """Count the classes of the training part."""
        check_parts(x_train, y_train, x_valid, y_valid, num_classes=self.num_classes)
        self._class = int(np.bincount(y_train).argmax())
        return self

    def predict(self, x: Array) -> IntArray:
        """Return ``(N,)`` times the same class."""
        return np.full(len(x), self._class, dtype=np.int64)


class ClassBaseline:
    """A scikit-learn classifier on z-scored features, its one hyper-parameter chosen by validation accuracy.

    Parameters
    ----------
    name : str
        Text for tables.
    num_classes : int
        Number of classes.
    candidates : mapping
        Text of the hyper-parameter -> unfitted classifier.

    Examples
    --------
    >>> x, y = np.eye(4).repeat(3, axis=0), np.arange(4).repeat(3)
    >>> nearly = ClassBaseline(name="nb", num_classes=4, candidates={"default": GaussianNB()})
    >>> nearly.fit(x, y, x, y).predict(np.eye(4))
    array([0, 1, 2, 3])
    """

    def __init__(self, *, name: str, num_classes: int, candidates: Mapping[str, ClassifierMixin]) -> None:
        self.name, self.num_classes, self._candidates = name, num_classes, candidates
        self.chosen: dict[str, Any] = {}

    def fit(self, x_train: Array, y_train: Array, x_valid: Array, y_valid: Array) -> ClassBaseline:
        """Fit every candidate and keep the first of the best."""
        check_parts(x_train, y_train, x_valid, y_valid, num_classes=self.num_classes)
        self._scaler = FeatureScaler.fit(x_train)
        train, valid = self._scaler(x_train), self._scaler(x_valid)
        best = -np.inf
        for text, candidate in self._candidates.items():
            fitted = candidate.fit(train, y_train)
            accuracy = float((fitted.predict(valid) == y_valid).mean())
            if accuracy > best:
                best, self._model, self.chosen = accuracy, fitted, {"hyper_parameter": text}
        return self

    def predict(self, x: Array) -> IntArray:
        """Predict ``(N,)`` classes."""
        return np.asarray(self._model.predict(self._scaler(x)), dtype=np.int64)


def gratings_baselines(*, num_classes: int) -> tuple[Baseline, ...]:
    """Fresh baselines for the direction of gratings, the simplest first.

    Parameters
    ----------
    num_classes : int
        Number of directions.

    Returns
    -------
    tuple of Baseline
        majority, naive_bayes, shrunk_lda, logistic_regression, linear_svm.

    Examples
    --------
    >>> [b.name for b in gratings_baselines(num_classes=8)]
    ['majority', 'naive_bayes', 'shrunk_lda', 'logistic_regression', 'linear_svm']
    """
    strengths = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    candidates: Mapping[str, Mapping[str, ClassifierMixin]] = MappingProxyType(
        {
            "naive_bayes": {f"var_smoothing {v:g}": GaussianNB(var_smoothing=v) for v in (1e-2, 1e-1, 1.0)},
            "shrunk_lda": {
                "Ledoit-Wolf": LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"),
                **{f"shrinkage {s}": LinearDiscriminantAnalysis(solver="lsqr", shrinkage=s) for s in (0.5, 0.9)},
            },
            "logistic_regression": {f"C {c:g}": LogisticRegression(C=c, max_iter=2000) for c in strengths},
            "linear_svm": {f"C {c:g}": SVC(kernel="linear", C=c) for c in strengths},
        }
    )
    return (
        MajorityClass(num_classes=num_classes),
        *(ClassBaseline(name=n, num_classes=num_classes, candidates=c) for n, c in candidates.items()),
    )


def frame_number_baselines(*, num_frames: int, tolerance: int) -> tuple[Baseline, ...]:
    """Fresh baselines for the frame number of one movie.

    Parameters
    ----------
    num_frames : int
        Number of frames of the movie.
    tolerance : int
        Error in frames that still counts as right (1 s).

    Returns
    -------
    tuple of Baseline
        knn, naive_bayes, shrunk_lda, whitened_knn, cosine_lda.

    Examples
    --------
    >>> [b.name for b in frame_number_baselines(num_frames=900, tolerance=30)]
    ['knn', 'naive_bayes', 'shrunk_lda', 'whitened_knn', 'cosine_lda']
    """
    decoders: tuple[type[FrameNumberBaseline], ...] = (
        KNNFrameNumber,
        NaiveBayesFrameNumber,
        ShrunkLDAFrameNumber,
        WhitenedKNNFrameNumber,
        CosineLDAFrameNumber,
    )
    return tuple(decoder(num_frames=num_frames, tolerance=tolerance) for decoder in decoders)


def frame_baselines(frames: Array, *, tolerance: int) -> tuple[Baseline, ...]:
    """Fresh baselines for the reconstruction of movie frames.

    Parameters
    ----------
    frames : ndarray
        ``(L, H, W)`` uint8 movie frames that targets are rows of; only those in the training (and, to choose
        hyper-parameters, validation) part are used.
    tolerance : int
        Frames in one second.

    Returns
    -------
    tuple of Baseline
        grey_frame, mean_frame, pixel_median, blurred_mean, knn_lookup, naive_bayes_lookup, shrunk_lda_lookup, ridge.

    Examples
    --------
    >>> [b.name for b in frame_baselines(np.zeros((3, 16, 16), dtype=np.uint8), tolerance=30)][4:]
    ['knn_lookup', 'naive_bayes_lookup', 'shrunk_lda_lookup', 'ridge']
    """
    lookups = (KNNFrameNumber, NaiveBayesFrameNumber, ShrunkLDAFrameNumber)
    return (
        GreyFrame(frames),
        MeanFrame(frames),
        PixelMedian(frames),
        BlurredMean(frames),
        *(FrameLookup(frames, decoder=decoder, tolerance=tolerance) for decoder in lookups),
        RidgeFrames(frames),
    )


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


BaselineSet = Literal["all", "core", "none", "with_cebra"]

CORE = ("majority", "shrunk_lda", "grey_frame", "mean_frame", "knn_lookup", "ridge", "knn", "naive_bayes")
"""The baselines that EVALUATION.md asks for most often and that fit in seconds."""
LEAST_SHIFT = 0.1
"""A shift moves activity by at least this share of a repeat (or of all trials), in either direction."""


class SplitBaseline(Protocol):
    """What every baseline, control and ceiling offers.

    Attributes
    ----------
    name : str
        Text for tables and predictions files.
    kind : {'baseline', 'control', 'ceiling'}
        What its score means.
    chosen : dict
        Hyper-parameters that the validation part chose, after `fit`.
    """

    name: str
    kind: ArmKind

    @property
    def chosen(self) -> dict[str, Any]:
        """What the validation part chose, after `fit`."""
        ...

    def fit(self, train: Part, valid: Part) -> SplitBaseline:
        """Learn from the training part; the validation part only chooses hyper-parameters."""
        ...

    def predict(self, part: Part) -> NDArray:
        """Predict ``(N,)`` classes or frame numbers, or ``(N, H, W)`` uint8 frames."""
        ...


class Reading:
    """A decoder of feature arrays that reads one view of the parts.

    Parameters
    ----------
    decoder : Baseline
        Unfitted.
    view : callable
        From a part to ``(N, F)`` features.
    name : str, optional
        Text for tables; the decoder's name by default.
    kind : {'baseline', 'control', 'ceiling'}
        What the score means.
    """

    def __init__(
        self, decoder: Baseline, view: View = features.activity, *, name: str | None = None, kind: ArmKind = "baseline"
    ) -> None:
        self.decoder, self.view, self.name, self.kind = decoder, view, name or decoder.name, kind
        self._fitted_on: tuple[Part, Part] | None = None

    @property
    def chosen(self) -> dict[str, Any]:
        """What the decoder's validation chose."""
        return self.decoder.chosen

    def fit(self, train: Part, valid: Part) -> Reading:
        """Fit the decoder on the view of the training part."""
        self.decoder.fit(self.view(train), train.target, self.view(valid), valid.target)
        self._fitted_on = (train, valid)
        return self

    def is_fitted_on(self, train: Part, valid: Part) -> bool:
        """Tell whether the last fit was on these two objects."""
        return self._fitted_on is not None and self._fitted_on[0] is train and self._fitted_on[1] is valid

    def predict(self, part: Part) -> NDArray:
        """Decode the view of a part."""
        return self.decoder.predict(self.view(part))


class ShuffledNeurons(Reading):
    """A decoder fitted on intact activity that then sees every neuron in another's place.

    Parameters
    ----------
    intact : Reading
        The same decoder on intact activity; once it is fitted on the same parts, its fit is taken as it is.
    seed : int
        Seed of the permutation.
    """

    def __init__(self, intact: Reading, *, seed: int) -> None:
        super().__init__(intact.decoder, name="shuffled neurons", kind="control")
        self._intact, self._seed = intact, seed

    def fit(self, train: Part, valid: Part) -> ShuffledNeurons:
        """Fit the decoder, unless that has been done on these very parts."""
        if not self._intact.is_fitted_on(train, valid):
            self._intact.fit(train, valid)
        return self

    def predict(self, part: Part) -> NDArray:
        """Decode with the neurons permuted, the same way in every window."""
        order = np.random.default_rng(self._seed).permutation(part.columns)
        return super().predict(Part(part.recording, order, part.table))


class ShiftedActivity(Reading):
    """A decoder fitted and tested on activity that has been shifted against the stimulus.

    Within every repeat of a movie (or all trials of a part) the windows are moved on circularly by a random number of
    targets, each repeat by its own. Activity keeps its autocorrelation and the stimulus its order; what is
    lost is which belongs to which. One shift for all would lose nothing, since repeats follow each other.

    Parameters
    ----------
    decoder : Baseline
        Unfitted.
    seed : int
        Seed of the shifts.
    """

    def __init__(self, decoder: Baseline, *, seed: int) -> None:
        super().__init__(decoder, name="shifted activity", kind="control")
        self._seed = seed

    def fit(self, train: Part, valid: Part) -> ShiftedActivity:
        """Fit on shifted parts."""
        rng = np.random.default_rng(self._seed)
        super().fit(shift_activity(train, rng), shift_activity(valid, rng))
        return self

    def predict(self, part: Part) -> NDArray:
        """Decode a shifted part."""
        return super().predict(shift_activity(part, np.random.default_rng([self._seed, 1])))


def shift_activity(part: Part, rng: np.random.Generator) -> Part:
    """Shift the windows of a part against its targets, as `shift_windows` does."""
    return replace(part, table=shift_windows(part.table, rng))


def shift_windows(table: WindowTable, rng: np.random.Generator) -> WindowTable:
    """Move windows on circularly within each recording, stimulus and repeat, by at least a tenth of its targets.

    Returns
    -------
    WindowTable
        The same targets in the same order, with other windows.
    """
    rows = np.arange(len(table))
    groups = np.stack([table.recording_index, _codes(table.stimulus), table.repeat])
    group_of = np.unique(groups, axis=1, return_inverse=True)[1]
    for group in range(group_of.max() + 1):
        own = np.flatnonzero(group_of == group)
        own = own[np.argsort(table.target_time[own], kind="stable")]
        least = max(int(np.ceil(LEAST_SHIFT * len(own))), 1)
        # Below three targets there is no choice; a single one cannot be moved.
        shift = int(rng.integers(least, max(len(own) - least, least) + 1))
        rows[own] = np.roll(own, shift)
    return replace(table, first_low=table.first_low[rows], first_high=table.first_high[rows])


def _codes(text: NDArray[np.str_]) -> IntArray:
    return np.unique(text, return_inverse=True)[1]


class ShuffledLabels(Reading):
    """A decoder fitted on training labels in random order.

    Parameters
    ----------
    decoder : Baseline
        Unfitted.
    seed : int
        Seed of the order.
    """

    def __init__(self, decoder: Baseline, *, seed: int) -> None:
        super().__init__(decoder, name="shuffled labels", kind="control")
        self._seed = seed

    def fit(self, train: Part, valid: Part) -> ShuffledLabels:
        """Fit on shuffled targets of both parts."""
        rng = np.random.default_rng(self._seed)
        targets = [rng.permutation(part.target) for part in (train, valid)]
        self.decoder.fit(self.view(train), targets[0], self.view(valid), targets[1])
        return self


class NearestTrainingFrame:
    """Oracle: the training frame nearest to the true one, the ceiling of any lookup.

    Parameters
    ----------
    frames : ndarray
        ``(L, H, W)`` uint8 movie frames; targets are rows of it.
    """

    name = "nearest training frame"

    def __init__(self, frames: NDArray[np.uint8]) -> None:
        self._frames = frames
        self.kind: ArmKind = "ceiling"
        self.chosen: dict[str, Any] = {}

    def fit(self, train: Part, valid: Part) -> NearestTrainingFrame:
        """Remember which frames were shown in training."""
        del valid
        self._seen = np.unique(train.target)
        return self

    def predict(self, part: Part) -> NDArray[np.uint8]:
        """Look the true frames up among those of training."""
        return nearest_training_frame(self._frames, self._seen, part.target)


def split_baselines(
    task: str,
    train: Part,
    *,
    which: BaselineSet = "all",
    num_classes: int = 0,
    frames: NDArray[np.uint8] | None = None,
    tolerance: int = 30,
    seed: int = 0,
) -> list[SplitBaseline]:
    """Fresh baselines, controls and ceilings of a task for one recording, the simplest first.

    Parameters
    ----------
    task : {'gratings', 'frame_number', 'frames'}
        What is decoded.
    train : Part
        Training part; whether the recording has running speed and truth decides about controls and ceilings.
    which : {'all', 'core', 'none', 'with_cebra'}
        'core' leaves the slower baselines and all controls out, 'with_cebra' adds CEBRA's embedding to 'all'.
    num_classes : int
        Directions, or frames of the movie; not for 'frames'.
    frames : ndarray, optional
        ``(L, H, W)`` uint8, for 'frames'.
    tolerance : int
        Movie frames in one second.
    seed : int
        Seed of shuffles, shifts and of CEBRA.

    Raises
    ------
    ConfigError
        If the task is unknown, or CEBRA is wanted and not installed.
    """
    if which == "none":
        return []
    simple, reader = _decoders(task, num_classes=num_classes, frames=frames, tolerance=tolerance)
    readings = [Reading(decoder) for decoder in simple]
    ceilings = _ceilings(train, reader, frames=frames, seed=seed)
    if which == "core":
        return [*(reading for reading in readings if reading.name in CORE), *ceilings]
    found: list[SplitBaseline] = list(readings)
    if which == "with_cebra":
        cebra = cebra_decoder(task, num_classes=num_classes, frames=frames, tolerance=tolerance, seed=seed)
        found.append(Reading(cebra))
    found.append(Reading(reader(), features.time_in_session, name="time in session", kind="control"))
    if train.recording.running is not None:
        found.append(Reading(reader(), features.running_speed, name="running speed", kind="control"))
    intact = next(reading for reading in readings if reading.name == reader().name)
    found += [ShuffledNeurons(intact, seed=seed), ShiftedActivity(reader(), seed=seed)]
    if task == "gratings":
        found.append(ShuffledLabels(reader(), seed=seed))
    return [*found, *ceilings]


def _ceilings(
    train: Part, reader: Callable[[], Baseline], *, frames: NDArray[np.uint8] | None, seed: int
) -> list[SplitBaseline]:
    """Return what knows the target, or the truth of a simulated recording."""
    if frames is None:
        if not features.has_truth(train.recording):
            return []
        return [Reading(reader(), features.true_drive, name="true rates", kind="ceiling")]
    # Imports the observatory, which nothing else here needs.
    from poyo_ssl.evaluation.frame_images import TrueEvents, TrueRates
    from poyo_ssl.observatory.inversion import has_known_neurons

    found: list[SplitBaseline] = [NearestTrainingFrame(frames)]
    if has_known_neurons(train.recording):
        found += [TrueRates(frames, seed=seed), TrueEvents(frames, seed=seed)]
    return found


def _decoders(
    task: str, *, num_classes: int, frames: NDArray[np.uint8] | None, tolerance: int
) -> tuple[Sequence[Baseline], Callable[[], Baseline]]:
    """Return the simple decoders of a task, and a maker of the one that reads the controls' views."""
    if task == "gratings":
        simple = gratings_baselines(num_classes=num_classes)
        return simple, lambda: next(b for b in gratings_baselines(num_classes=num_classes) if b.name == "shrunk_lda")
    if task == "frame_number":
        simple = frame_number_baselines(num_frames=num_classes, tolerance=tolerance)
        return simple, lambda: ShrunkLDAFrameNumber(num_frames=num_classes, tolerance=tolerance)
    if task == "frames" and frames is not None:
        return frame_baselines(frames, tolerance=tolerance), lambda: RidgeFrames(frames)
    tasks = ("gratings", "frame_number", "frames")
    raise ConfigError(f"baselines of task '{task}'{suggest(task, tasks)}", allowed=", ".join(tasks), fix="change it")
