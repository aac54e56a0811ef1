"""Baselines and controls of EVALUATION.md on one recording's split: fit on a split, predict a split.

A `SplitBaseline` sees whole parts (windows, times, running), so that controls which look at something else than
activity fit the same interface. Most are a `Reading`: a view of a part (`parts`) and a decoder of feature arrays
(`baselines`).
Controls should fail: where one does not, the score of a model means less than it seems. Ceilings know what no decoder
can know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from poyo_ssl.data.windows import WindowTable
from poyo_ssl.errors import ConfigError, suggest
from poyo_ssl.evaluation import parts
from poyo_ssl.evaluation.baselines import (
    Baseline,
    ShrunkLDAFrameNumber,
    frame_baselines,
    frame_number_baselines,
    gratings_baselines,
)
from poyo_ssl.evaluation.features import IntArray
from poyo_ssl.evaluation.frame_images import RidgeFrames, nearest_training_frame
from poyo_ssl.evaluation.parts import Part, View
from poyo_ssl.evaluation.predictions import ArmKind

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
        self, decoder: Baseline, view: View = parts.activity, *, name: str | None = None, kind: ArmKind = "baseline"
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
        from poyo_ssl.evaluation.cebra_decoders import cebra_decoder

        cebra = cebra_decoder(task, num_classes=num_classes, frames=frames, tolerance=tolerance, seed=seed)
        found.append(Reading(cebra))
    found.append(Reading(reader(), parts.time_in_session, name="time in session", kind="control"))
    if train.recording.running is not None:
        found.append(Reading(reader(), parts.running_speed, name="running speed", kind="control"))
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
        if not parts.has_truth(train.recording):
            return []
        return [Reading(reader(), parts.true_drive, name="true rates", kind="ceiling")]
    # Imports the observatory, which nothing else here needs.
    from poyo_ssl.evaluation.ceilings import TrueEvents, TrueRates, has_known_neurons

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
