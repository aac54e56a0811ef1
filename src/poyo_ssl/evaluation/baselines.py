"""Simple decoders that every model is compared with, their choice by cross-validation, controls and ceilings.

A new baseline: a `Decoder`, and its place among those of its task, from the simplest on. Inputs and settings are chosen
by cross-validation over the training and validation parts, then the decoder is fitted on both (docs/evaluation.md).
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin, clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

from poyo_ssl.data.windows import WindowTable
from poyo_ssl.errors import ConfigError, SplitError, suggest
from poyo_ssl.evaluation import features
from poyo_ssl.evaluation.features import Array, FeatureScaler, FloatArray, IntArray, RecordingWindows, View
from poyo_ssl.evaluation.frame_images import (
    BlurredMean,
    FrameLookup,
    Frames,
    FrameStack,
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
    Scores,
    Settings,
    ShrunkLDAFrameNumber,
    WhitenedKNNFrameNumber,
    fit_transform,
    transform_names,
)
from poyo_ssl.evaluation.predictions import ArmKind


class Decoder(Protocol):
    """From features ``(N, F)`` to classes, frame numbers ``(N,)`` or frames ``(N, H, W)``; targets are integers."""

    name: str
    num_targets: int

    def scores(self, x: Array, y: IntArray, x_held: Array, y_held: IntArray) -> Scores:
        """Score every candidate for hyper-parameters, fitted on `x`, on held-out windows; the simplest first."""
        ...

    def fit(self, x: Array, y: IntArray, settings: Settings) -> Decoder:
        """Fit with the hyper-parameters of one candidate."""
        ...

    def predict(self, x: Array) -> Array:
        """Decode."""
        ...


class ClassDecoder:
    """A scikit-learn classifier on z-scored features, of which there are several candidates."""

    def __init__(self, name: str, num_classes: int, candidates: Mapping[str, ClassifierMixin]) -> None:
        self.name, self.num_targets, self.candidates = name, num_classes, candidates

    def scores(self, x: Array, y: IntArray, x_held: Array, y_held: IntArray) -> Scores:
        """Count the hits of every candidate."""
        scaler = FeatureScaler.fit(x)
        fitted = {text: _fit_classifier(candidate, scaler(x), y) for text, candidate in self.candidates.items()}
        held = scaler(x_held)
        return {(("hyper_parameter", t),): float((own.predict(held) == y_held).sum()) for t, own in fitted.items()}

    def fit(self, x: Array, y: IntArray, settings: Settings) -> ClassDecoder:
        """Fit one candidate."""
        self._scaler = FeatureScaler.fit(x)
        self._model = _fit_classifier(self.candidates[dict(settings)["hyper_parameter"]], self._scaler(x), y)
        return self

    def predict(self, x: Array) -> IntArray:  # (N,)
        """Decode classes."""
        return np.asarray(self._model.predict(self._scaler(x)), dtype=np.int64)


def _fit_classifier(candidate: ClassifierMixin, x: FloatArray, y: IntArray) -> ClassifierMixin:
    with warnings.catch_warnings():
        # A rare direction may have one trial outside a fold; its covariance then counts as zero.
        warnings.filterwarnings("ignore", "Only one sample available", UserWarning)
        return clone(candidate).fit(x, y)


def gratings_baselines(*, num_classes: int) -> tuple[Decoder, ...]:
    """Fresh decoders of the direction of gratings, the simplest first."""
    strengths = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    lda = {text: LinearDiscriminantAnalysis(solver="lsqr", shrinkage=s) for text, s in SHRINKAGES.items()}
    candidates: dict[str, Mapping[str, ClassifierMixin]] = {
        "majority": {"": DummyClassifier(strategy="most_frequent")},  # the lowest class among equals
        "naive_bayes": {f"var_smoothing {v:g}": GaussianNB(var_smoothing=v) for v in (1e-2, 1e-1, 1.0)},
        "shrunk_lda": lda,
        "logistic_regression": {f"C {c:g}": LogisticRegression(C=c, max_iter=2000) for c in strengths},
        "linear_svm": {f"C {c:g}": SVC(kernel="linear", C=c) for c in strengths},
    }
    return tuple(ClassDecoder(name, num_classes, own) for name, own in candidates.items())


SHRINKAGES = {"Ledoit-Wolf": "auto", "shrinkage 0.5": 0.5, "shrinkage 0.9": 0.9}


def frame_number_baselines(*, num_frames: int, tolerance: int) -> tuple[Decoder, ...]:
    """Fresh decoders of the frame number of one movie; an error of `tolerance` frames (1 s) counts as right."""
    decoders: tuple[type[FrameNumberBaseline], ...] = (
        KNNFrameNumber,
        NaiveBayesFrameNumber,
        ShrunkLDAFrameNumber,
        WhitenedKNNFrameNumber,
        CosineLDAFrameNumber,
    )
    return tuple(decoder(num_frames=num_frames, tolerance=tolerance) for decoder in decoders)


def frame_baselines(frames: Frames | FrameStack, *, tolerance: int) -> tuple[Decoder, ...]:
    """Fresh decoders of movie frames, rows of the stack ``(L, H, W)``; `tolerance` is one second in frames."""
    stack = frames if isinstance(frames, FrameStack) else FrameStack(frames)
    lookups = (KNNFrameNumber, NaiveBayesFrameNumber, ShrunkLDAFrameNumber)
    return (
        GreyFrame(stack),
        MeanFrame(stack),
        PixelMedian(stack),
        BlurredMean(stack),
        *(FrameLookup(stack, decoder=decoder, tolerance=tolerance) for decoder in lookups),
        RidgeFrames(stack),
    )


Fold = tuple[IntArray, IntArray]
"""Rows that are fitted, and rows held out."""

TRIAL_FOLDS, REPEAT_FOLDS = 5, 3
SEARCH_WINDOWS = 1000
"""About how many held-out windows choose, where there are twice as many or more.

Windows of one second at 30 Hz share all but a frame with the next, so that every second or third says nearly the same.
"""


def make_folds(target: IntArray, repeat: IntArray, validates: NDArray[np.bool_], *, unseen: bool) -> list[Fold]:
    """Divide the windows of the training and validation parts into folds.

    Frames that are to be unseen are held out once: the validation clips. Frames of a movie are held out by whole
    repeats, neighbours together, so that no window is judged by one that shares input with it. Trials are stratified by
    class. Where that is impossible, the validation part is held out.
    """
    rows = np.arange(len(target))
    repeats = np.unique(repeat)
    fold_of = np.where(validates, 1, 0)
    if unseen:
        fold_of -= 1  # nothing of the training part is held out
    elif len(repeats) > 1:
        num_folds = min(REPEAT_FOLDS, len(repeats))
        fold_of = (np.arange(len(repeats)) * num_folds // len(repeats))[np.searchsorted(repeats, repeat)]
    elif (fewest := int(np.unique(target, return_counts=True)[1].min())) > 1:
        splitter = StratifiedKFold(min(TRIAL_FOLDS, fewest), shuffle=True, random_state=0)
        for number, (_, held_out) in enumerate(splitter.split(rows, target)):
            fold_of[held_out] = number
    else:
        fold_of -= 1
    step = max(int((fold_of >= 0).sum()) // SEARCH_WINDOWS, 1)
    return [(rows[fold_of != n], rows[fold_of == n][::step]) for n in range(fold_of.max() + 1)]


def choose(
    decoder: Decoder, inputs: Mapping[str, Array], y: IntArray, folds: Sequence[Fold]
) -> tuple[str, Settings, float]:
    """Choose one of the inputs ``(N, F)``, and hyper-parameters, by the score on all held-out windows.

    The first of equals is taken. The score is a sum over the held-out windows.
    """
    best: tuple[str, Settings, float] | None = None
    for name, x in inputs.items():
        check_features(x, y, decoder.num_targets)
        of_folds = [decoder.scores(x[fitted], y[fitted], x[held], y[held]) for fitted, held in folds]
        for settings in of_folds[0]:
            # Candidates that not every fold allows cannot be compared.
            if all(settings in found for found in of_folds):
                score = sum(found[settings] for found in of_folds)
                if best is None or score > best[2]:
                    best = name, settings, score
    assert best is not None, "a decoder has candidates"
    return best


def fit_chosen(decoder: Decoder, x: Array, y: IntArray, folds: Sequence[Fold]) -> Decoder:
    """Choose hyper-parameters of a decoder of one input and fit it on all rows."""
    return decoder.fit(x, y, choose(decoder, {"": x}, y, folds)[1])


def decode_held_out(decoder: Decoder, x: Array, y: IntArray, folds: Sequence[Fold], settings: Settings) -> Array:
    """Decode the held-out windows, fold by fold, each by a fit on the others."""
    return np.concatenate([decoder.fit(x[fitted], y[fitted], settings).predict(x[held]) for fitted, held in folds])


def check_features(x: Array, y: IntArray, num_targets: int) -> None:
    """Check features ``(N, F)`` and integer targets ``(N,)``; the error names the first offender."""
    if len(y) == 0:
        raise SplitError("no windows to fit a baseline on", fix="check the split's intervals")
    if x.ndim != 2 or len(x) != len(y):
        raise ConfigError(
            f"features of shape {x.shape} for {len(y)} targets",
            allowed=f"({len(y)}, features)",
            fix="give one row per target",
        )
    finite = np.isfinite(x).all(axis=1)
    if not finite.all():
        raise ConfigError(f"NaN or infinite feature in window {int(np.argmin(finite))}", fix="leave it out")
    wrong = (y < 0) | (y >= num_targets) | (y != np.floor(y))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ConfigError(f"target {y[row]} of window {row}", allowed=f"0 to {num_targets - 1}", fix="check the labels")


@dataclass(frozen=True)
class KnownWindows:
    """Windows of the training and validation parts of one recording, the folds that choose, and the validation part."""

    windows: RecordingWindows
    folds: list[Fold]
    validation: list[Fold]  # one: the validation part held out, where a fold costs much

    @classmethod
    def of(cls, train: RecordingWindows, valid: RecordingWindows, *, unseen: bool = False) -> KnownWindows:
        """Join two parts; with `unseen` the frames of the validation part are not among those of training."""
        table = WindowTable.concatenate([train.table, valid.table])
        validates = np.arange(len(table)) >= len(train)
        repeat = np.where(table.frame_number < 0, -1, table.repeat)  # trials have none, whatever their table calls so
        folds = [make_folds(table.target, repeat, validates, unseen=one) for one in (unseen, True)]
        return cls(replace(train, table=table), *folds)

    @property
    def held_out(self) -> IntArray:
        """Rows that the folds hold out, in their order."""
        return np.concatenate([held for _, held in self.folds])


class Arm(Protocol):
    """What every baseline, control and ceiling offers."""

    name: str
    kind: ArmKind

    def fit(self, known: KnownWindows) -> Arm:
        """Choose and fit."""
        ...

    def predict(self, windows: RecordingWindows) -> Array:
        """Predict classes or frame numbers ``(N,)``, or frames ``(N, H, W)`` uint8."""
        ...


class Reading:
    """A decoder that reads one of several views of the windows."""

    def __init__(
        self,
        decoder: Decoder,
        views: Mapping[str, View],
        *,
        name: str | None = None,
        kind: ArmKind = "baseline",
        choose_by_validation: bool = False,
    ) -> None:
        self.decoder, self.views, self.name, self.kind = decoder, views, name or decoder.name, kind
        self.by_validation = choose_by_validation  # the validation part alone: what is slow to fit
        self.fitted_on: KnownWindows | None = None

    def fit(self, known: KnownWindows) -> Reading:
        """Choose view and settings; a baseline also decodes what the folds hold out (`held_out`)."""
        inputs = {name: known.windows.features(name, view) for name, view in self.views.items()}
        y, folds = known.windows.target, known.validation if self.by_validation else known.folds
        self.input, self.settings, _ = choose(self.decoder, inputs, y, folds)
        x = inputs[self.input]
        if self.kind == "baseline":
            self.held_out = decode_held_out(self.decoder, x, y, known.folds, self.settings)
        rows = known.validation[0][0] if getattr(self.decoder, "training_part_alone", False) else np.arange(len(y))
        self.decoder.fit(x[rows], y[rows], self.settings)
        self.fitted_on = known
        return self

    def predict(self, windows: RecordingWindows) -> Array:
        """Decode the view chosen."""
        return self.decoder.predict(windows.features(self.input, self.views[self.input]))


class BrokenReading:
    """A control: what a reading has chosen, on activity or labels that have lost what is decoded.

    Without a `decoder` of its own it takes over the fit on intact windows.
    """

    kind: ArmKind = "control"

    def __init__(
        self,
        name: str,
        intact: Reading,
        decoder: Decoder | None = None,
        *,
        fitted: Callable[[RecordingWindows], RecordingWindows] = lambda windows: windows,
        tested: Callable[[RecordingWindows], RecordingWindows] = lambda windows: windows,
    ) -> None:
        self.name, self._intact, self._decoder, self._fitted, self._tested = name, intact, decoder, fitted, tested

    def fit(self, known: KnownWindows) -> BrokenReading:
        """Fit on broken windows, unless the intact fit is the control's."""
        if self._intact.fitted_on is not known:
            self._intact.fit(known)
        if self._decoder is not None:
            windows = self._fitted(known.windows)
            fit_chosen(self._decoder, self._read(windows), windows.target, known.folds)
        return self

    def predict(self, windows: RecordingWindows) -> Array:
        """Decode broken windows."""
        return (self._decoder or self._intact.decoder).predict(self._read(self._tested(windows)))

    def _read(self, windows: RecordingWindows) -> FloatArray:
        return windows.features(self._intact.input, self._intact.views[self._intact.input])


LEAST_SHIFT = 0.1
"""A shift moves activity by at least this share of a repeat (or of all trials), in either direction."""


def shift_windows(table: WindowTable, rng: np.random.Generator) -> WindowTable:
    """Move windows on circularly within each recording, stimulus and repeat, by at least a tenth of its targets.

    Targets keep their order. Activity keeps its autocorrelation; which belongs to which is lost. One shift for all
    repeats would lose nothing, since they follow each other.
    """
    rows = np.arange(len(table))
    stimulus = np.unique(table.stimulus, return_inverse=True)[1]
    groups = np.stack([table.recording_index, stimulus, table.repeat])
    group_of = np.unique(groups, axis=1, return_inverse=True)[1]
    for group in range(group_of.max() + 1):
        own = np.flatnonzero(group_of == group)
        own = own[np.argsort(table.target_time[own], kind="stable")]
        least = max(int(np.ceil(LEAST_SHIFT * len(own))), 1)
        # Below three targets there is no choice; a single one cannot be moved.
        shift = int(rng.integers(least, max(len(own) - least, least) + 1))
        rows[own] = np.roll(own, shift)
    return replace(table, first_low=table.first_low[rows], first_high=table.first_high[rows])


def shift_activity(windows: RecordingWindows, seed: int | Sequence[int]) -> RecordingWindows:
    """Shift the windows of a recording against its targets."""
    return replace(windows, table=shift_windows(windows.table, np.random.default_rng(seed)))


def shuffle_labels(windows: RecordingWindows, seed: int) -> RecordingWindows:
    """Put the targets of a recording in random order."""
    shuffled = np.random.default_rng(seed).permutation(windows.target)
    return replace(windows, table=replace(windows.table, target=shuffled))


class NearestTrainingFrame:
    """Oracle: of the frames fitted the one nearest to the true one, the ceiling of any lookup."""

    name = "nearest training frame"
    kind: ArmKind = "ceiling"

    def __init__(self, frames: Frames) -> None:
        self._frames = frames

    def fit(self, known: KnownWindows) -> NearestTrainingFrame:
        """Remember which frames were shown."""
        self._seen = np.unique(known.windows.target)
        return self

    def predict(self, windows: RecordingWindows) -> Frames:
        """Look the true frames up among them."""
        return nearest_training_frame(self._frames, self._seen, windows.target)


class TrueRates:
    """The true rates, read by the better of two decoders: ridge, and the inversion of the true tuning.

    Ridge learns from the recording, as the baseline does, and knows known frames. The inversion
    (`poyo_ssl.observatory.inversion`) learns from footage of its own, and composes unseen ones. The squared error on
    held-out windows decides between them.
    """

    name = "true rates"
    kind: ArmKind = "ceiling"

    def __init__(self, stack: FrameStack, *, seed: int) -> None:
        self._stack, self._frames, self._seed = stack, stack.frames, seed
        self.decoder = ""

    def fit(self, known: KnownWindows) -> TrueRates:
        """Fit both and choose."""
        # Imports the observatory, which nothing else here needs.
        from poyo_ssl.observatory.inversion import KnownNeurons, draw_footage

        windows = known.windows
        self._ridge = Reading(RidgeFrames(self._stack), {"true rates": features.true_drive}).fit(known)
        self._neurons = KnownNeurons(windows.recording, windows.columns)
        self._inversion = self._neurons.invert_rates(draw_footage(*self._frames.shape[1:], self._seed))
        held_out = replace(windows, table=windows.table.select(known.held_out))
        truth = self._frames[held_out.target].astype(np.float32)
        made = {"ridge": self._ridge.held_out, "inversion": self._invert(held_out)}
        errors = {name: float(((frames - truth) ** 2).mean()) for name, frames in made.items()}
        self.decoder = min(errors, key=errors.__getitem__)
        return self

    def predict(self, windows: RecordingWindows) -> Frames:
        """Draw frames."""
        return self._ridge.predict(windows) if self.decoder == "ridge" else self._invert(windows)

    def _invert(self, windows: RecordingWindows) -> Frames:
        made = np.empty((len(windows), *self._frames.shape[1:]), np.uint8)
        for movie in np.unique(windows.table.stimulus):
            own = windows.table.stimulus == movie
            # Every repeat of a frame has the same true rates.
            shown, back = np.unique(windows.table.frame_number[own], return_inverse=True)
            mean = self._neurons.mean_response(whole_movie(windows, str(movie), self._frames))
            made[own] = self._inversion.predict(self._neurons.true_features(str(movie), shown, mean))[back]
        return made


class TrueEvents:
    """The true numbers of events in each window, read by the inversion of the true tuning: the ceiling of one trial."""

    name = "true events"
    kind: ArmKind = "ceiling"
    only_unseen_frames = True
    """It knows no frame of the training part, so on known ones it would be no ceiling."""

    def __init__(self, frames: Frames, *, seed: int) -> None:
        self._frames, self._seed = frames, seed

    def fit(self, known: KnownWindows) -> TrueEvents:
        """Learn from footage alone; of the recording only the gain control's means are taken."""
        from poyo_ssl.observatory.inversion import KnownNeurons, draw_footage

        windows = known.windows
        self._neurons = KnownNeurons(windows.recording, windows.columns)
        movies = [whole_movie(windows, str(name), self._frames) for name in np.unique(windows.table.stimulus)]
        self._inversion = self._neurons.invert_counts(
            draw_footage(*self._frames.shape[1:], self._seed),
            windows.table.num_frames / windows.recording.rate_hz,
            np.mean([self._neurons.mean_response(movie) for movie in movies], axis=0),
            np.random.default_rng(self._seed),
        )
        return self

    def predict(self, windows: RecordingWindows) -> Frames:
        """Draw frames."""
        counts: FloatArray = self._neurons.counts(windows.table.first_low, windows.table.num_frames)
        return self._inversion.predict(np.sqrt(counts))


def whole_movie(windows: RecordingWindows, movie: str, frames: Frames) -> Frames:
    """Return all frames of a movie, of which the windows may show some, out of the stack that their targets count."""
    first = int(np.flatnonzero(windows.table.stimulus == movie)[0])
    start = int(windows.table.target[first] - windows.table.frame_number[first])
    return frames[start : start + len(windows.recording.truth[f"{movie}_drive"])]


ITERATIONS = 500
BATCH_SIZE = 512
HIDDEN_UNITS = 64
LEARNING_RATE = 3e-3
TEMPERATURE = 0.5
DIMENSIONS = (8, 32)
FRAMES_PER_LABEL = 5
"""Successive movie frames that share a label: with one each, a window would be paired with few others."""


def load_cebra() -> Any:
    """Import CEBRA, or say what to install."""
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
    """One CEBRA model from features to a unit sphere; windows with the same label are drawn together."""

    def __init__(self, *, dim: int, seed: int, iterations: int = ITERATIONS) -> None:
        self.dim, self.seed, self.iterations = dim, seed, iterations

    def fit(self, x: FloatArray, label: IntArray) -> CebraEmbedding:
        """Learn from features ``(N, F)`` and labels ``(N,)`` of 0 and up."""
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

    def __call__(self, x: FloatArray) -> FloatArray:  # (N, dim), each of length 1
        """Embed features ``(N, F)``."""
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
    """A decoder on CEBRA's embedding of the features, in which targets of some successive numbers share a label.

    With `final`, `decoder` chooses the embedding, and the slower `final` is fitted on it.
    """

    def __init__(
        self,
        name: str,
        decoder: Decoder,
        *,
        final: Decoder | None = None,
        label_width: int = 1,
        seed: int,
        iterations: int = ITERATIONS,
    ) -> None:
        self.name, self.num_targets, self._decoder, self._final = name, decoder.num_targets, decoder, final
        self._label_width, self._seed, self._iterations = label_width, seed, iterations

    def scores(self, x: Array, y: IntArray, x_held: Array, y_held: IntArray) -> Scores:
        """Score the decoder's candidates on an embedding of each size and transform."""
        found: Scores = {}
        embedded: dict[Settings, tuple[FloatArray, FloatArray]] = {}
        # Unscaled features would only slow the training.
        names = (name for name in transform_names(x) if name != "none")
        for transform, dim in itertools.product(names, DIMENSIONS):
            of_embedding = (("embedding_transform", transform), ("dim", dim))
            embed = self._embed(x, y, transform, dim)
            embedded[of_embedding] = embed(x), embed(x_held)
            of_decoder = self._decoder.scores(embedded[of_embedding][0], y, embedded[of_embedding][1], y_held)
            found |= {of_embedding + settings: score for settings, score in of_decoder.items()}
        if self._final is None:
            return found
        best = max(found, key=found.__getitem__)[:2]
        own, held = embedded[best]
        return {best + settings: score for settings, score in self._final.scores(own, y, held, y_held).items()}

    def fit(self, x: Array, y: IntArray, settings: Settings) -> CebraDecoder:
        """Embed, and fit the last decoder."""
        (_, transform), (_, dim), *of_decoder = settings
        self._embedding = self._embed(x, y, transform, dim)
        (self._final or self._decoder).fit(self._embedding(x), y, tuple(of_decoder))
        return self

    def predict(self, x: Array) -> Array:
        """Decode the embedding."""
        return (self._final or self._decoder).predict(self._embedding(x))

    def _embed(self, x: Array, y: IntArray, transform: str, dim: int) -> Callable[[Array], FloatArray]:
        scale = fit_transform(transform, x)
        embedding = CebraEmbedding(dim=dim, seed=self._seed, iterations=self._iterations)
        embedding.fit(scale(x), y // self._label_width)
        return lambda values: embedding(scale(values))


def cebra_decoder(
    task: str,
    *,
    num_classes: int = 0,
    frames: Frames | FrameStack | None = None,
    tolerance: int = 30,
    seed: int = 0,
    iterations: int = ITERATIONS,
) -> CebraDecoder:
    """Return CEBRA's baseline of a task: with k nearest neighbours for classes, with our U-Net for frames."""
    if task == "gratings":
        neighbours = {f"k {k}": KNeighborsClassifier(k, metric="cosine") for k in (1, 3, 5, 10)}
        by_class = ClassDecoder("knn", num_classes, neighbours)
        return CebraDecoder("cebra_knn", by_class, seed=seed, iterations=iterations)
    if frames is None:
        by_number = KNNFrameNumber(num_frames=num_classes, tolerance=tolerance)
        return CebraDecoder("cebra_knn", by_number, label_width=FRAMES_PER_LABEL, seed=seed, iterations=iterations)
    return CebraDecoder(
        "cebra_unet",
        FrameLookup(frames, decoder=KNNFrameNumber, tolerance=tolerance),
        final=UNetFrames(frames, seed=seed),
        label_width=FRAMES_PER_LABEL,
        seed=seed,
        iterations=iterations,
    )


BaselineSet = Literal["all", "core", "none", "with_cebra"]

CORE = ("majority", "shrunk_lda", "grey_frame", "mean_frame", "knn_lookup", "ridge", "knn", "naive_bayes")
"""The usual baselines that fit in seconds."""


def make_arms(
    task: str,
    windows: RecordingWindows,
    *,
    which: BaselineSet = "all",
    inputs: Mapping[str, View] | None = None,
    num_classes: int = 0,
    frames: Frames | FrameStack | None = None,
    tolerance: int = 30,
    seed: int = 0,
) -> list[Arm]:
    """Fresh baselines, controls and ceilings of a task for one recording, the simplest first.

    'core' leaves the slower baselines and all controls out; running speed and truth of the recording decide about
    others. `inputs` is what baselines may read, raw dF/F by default.
    """
    if which == "none":
        return []
    inputs = inputs or {"dF/F": features.Activity()}
    stack = FrameStack(frames) if isinstance(frames, np.ndarray) else frames
    tasks: dict[str, tuple[Callable[[], Sequence[Decoder]], str]] = {
        "gratings": (lambda: gratings_baselines(num_classes=num_classes), "shrunk_lda"),
        "frame_number": (lambda: frame_number_baselines(num_frames=num_classes, tolerance=tolerance), "shrunk_lda"),
    }
    if stack is not None:
        tasks["frames"] = lambda: frame_baselines(stack, tolerance=tolerance), "ridge"
    if task not in tasks:
        raise ConfigError(
            f"baselines of task '{task}'{suggest(task, tasks)}", allowed=", ".join(tasks), fix="change it"
        )
    decoders, reads_controls = tasks[task]

    def reader() -> Decoder:
        return next(decoder for decoder in decoders() if decoder.name == reads_controls)

    baselines = [Reading(decoder, inputs) for decoder in decoders()]
    ceilings = _ceilings(windows, reader, stack, seed=seed)
    if which == "core":
        return [*(baseline for baseline in baselines if baseline.name in CORE), *ceilings]
    arms: list[Arm] = list(baselines)
    if which == "with_cebra":
        cebra = cebra_decoder(task, num_classes=num_classes, frames=stack, tolerance=tolerance, seed=seed)
        arms.append(Reading(cebra, inputs, choose_by_validation=True))
    others: dict[str, View] = {"time in session": features.time_in_session}
    if windows.recording.running is not None:
        others["running speed"] = features.running_speed
    arms += [Reading(reader(), {name: view}, name=name, kind="control") for name, view in others.items()]
    intact = next(baseline for baseline in baselines if baseline.name == reads_controls)
    arms += [
        BrokenReading("shuffled neurons", intact, tested=lambda own: own.shuffled(np.random.default_rng(seed))),
        BrokenReading(
            "shifted activity",
            intact,
            reader(),
            fitted=lambda own: shift_activity(own, seed),
            tested=lambda own: shift_activity(own, [seed, 1]),
        ),
    ]
    if task == "gratings":
        arms.append(BrokenReading("shuffled labels", intact, reader(), fitted=lambda own: shuffle_labels(own, seed)))
    return [*arms, *ceilings]


def _ceilings(
    windows: RecordingWindows, reader: Callable[[], Decoder], stack: FrameStack | None, *, seed: int
) -> list[Arm]:
    """Return what knows the target, or the truth of a simulated recording."""
    if stack is None:
        if not features.has_truth(windows.recording):
            return []
        return [Reading(reader(), {"true rates": features.true_drive}, name="true rates", kind="ceiling")]
    from poyo_ssl.observatory.inversion import has_known_neurons

    found: list[Arm] = [NearestTrainingFrame(stack.frames)]
    if has_known_neurons(windows.recording):
        found += [TrueRates(stack, seed=seed), TrueEvents(stack.frames, seed=seed)]
    return found
