"""The predictions file: from it every score and figure can be recomputed without the model.

One HDF5 file per arm, split and seed; any decoder can write one, ours or not: docs/predictions.md has the layout and an
example. Files come from others too, so a file is checked before anything is allocated for it: no pickled objects,
no external or virtual data, and no data set larger than its file can honestly hold.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import pandas as pd

from poyo_ssl.evaluation import predictions_checks
from poyo_ssl.evaluation.predictions_layout import (
    NUMBER_FACTS,
    NUMBER_ROWS,
    TEXT_FACTS,
    TEXT_ROWS,
    Array,
    PredictionsError,
    Reader,
    StoredFrames,
    append_rows,
    create_rows,
    encode_text,
    write_array,
    write_by_recording,
    write_facts,
)

PredictionTask = Literal["gratings", "frame_number", "frames"]
ArmKind = Literal["model", "baseline", "control", "ceiling"]

MAX_BYTES = 8 * 2**30
TIME_RESOLUTION_S = predictions_checks.TIME_RESOLUTION_S


def _no_frames() -> Array:
    return np.zeros((0, 0, 0), dtype=np.uint8)


@dataclass(kw_only=True)
class Predictions:
    """Predictions of one arm on one split, one row per target.

    Attributes
    ----------
    task : {'gratings', 'frame_number', 'frames'}
        What was decoded.
    split : str
        Name of the split, such as ``repeat``.
    arm : str
        Model or baseline; free text.
    kind : {'model', 'baseline', 'control', 'ceiling'}
        What the arm is. A model is compared with all other arms; the best of the baselines is what gains refer to. A
        control (shuffled neurons, untrained) should fail, a ceiling (oracle) knows what no decoder can.
    model_id : str
        What tells this very model from others, such as a run's name; empty when unknown. A control with the id of a
        model is a control of that model, and is compared with no other.
    seed : int
        Seed of the training; -1 where nothing is random.
    data_checksum : str
        Checksum of the prepared data; empty when unknown.
    prediction : ndarray or StoredFrames
        ``(N,)`` class index (gratings) or frame number, or ``(N, H, W)`` frames of 0-255, uint8 or float. Those of a
        loaded file stay in it until rows are asked for.
    target : ndarray
        ``(N,)`` the truth: class index, frame number, or row of `target_frames`.
    time : ndarray
        ``(N,)`` float, seconds in the recording; the target's time.
    recording_id, subject_id, stimulus : ndarray
        ``(N,)`` text: recording, animal, stimulus name.
    frame_number, repeat : ndarray
        ``(N,)`` movie frame and repeat of the target; -1 for gratings.
    class_values : ndarray
        ``(K,)`` meaning of each class: directions in degrees, or the frame numbers 0 to K - 1. Empty for frames.
    probabilities : ndarray, optional
        ``(N, K)`` posterior of every class.
    target_frames : ndarray
        ``(M, H, W)`` uint8, each true frame once; empty unless the task is frames.
    mean_frames : mapping
        Recording id -> ``(H, W)`` mean training frame, for the mean-frame-subtracted metrics.
    split_intervals : mapping
        Recording id -> part (``train``, ``valid``, ``test``) -> ``(K, 2)`` seconds; empty when unknown.
    movie_rate_hz : float
        Frames per second of the movies, for errors in seconds.
    validation_metric, validation_score : str, float
        Score on the validation part, by which the best baseline is chosen without a look at the test part; empty and
        NaN when unknown.

    Examples
    --------
    >>> p = Predictions(task="gratings", split="gratings", arm="majority", kind="baseline",
    ...     prediction=np.array([0, 0]), target=np.array([0, 1]), time=np.array([1.0, 4.0]),
    ...     recording_id=np.full(2, "r"), subject_id=np.full(2, "m"), stimulus=np.full(2, "drifting_gratings"),
    ...     frame_number=np.full(2, -1), repeat=np.full(2, -1), class_values=np.array([0.0, 45.0]))
    >>> p.validate()
    >>> len(p)
    2
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     p.save(Path(folder) / "majority.h5")
    ...     Predictions.load(Path(folder) / "majority.h5").arm
    'majority'
    """

    task: PredictionTask
    split: str
    arm: str
    kind: ArmKind = "model"
    model_id: str = ""
    seed: int = -1
    data_checksum: str = ""
    prediction: Array | StoredFrames
    target: Array
    time: Array
    recording_id: Array
    subject_id: Array
    stimulus: Array
    frame_number: Array
    repeat: Array
    class_values: Array = field(default_factory=lambda: np.zeros(0))
    probabilities: Array | None = None
    target_frames: Array = field(default_factory=_no_frames)
    mean_frames: Mapping[str, Array] = field(default_factory=dict)
    split_intervals: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)
    movie_rate_hz: float = 30.0
    validation_metric: str = ""
    validation_score: float = float("nan")

    def __len__(self) -> int:
        return len(self.prediction)

    def targets(self) -> pd.DataFrame:
        """Return what was to be decoded: recording_id, stimulus, repeat, frame_number, time (s); one row each."""
        names = ("recording_id", "stimulus", "repeat", "frame_number", "time")
        return pd.DataFrame({name: getattr(self, name) for name in names})

    def validate(self, expected: pd.DataFrame | None = None) -> None:
        """Check that rows are complete, in range and unique.

        Parameters
        ----------
        expected : DataFrame, optional
            Columns ``recording_id`` and ``time`` (s) of the targets to be scored: each must be there, and no other.

        Raises
        ------
        PredictionsError
            Naming the first offender.
        """
        predictions_checks.check(self)
        if expected is not None:
            keys = predictions_checks.target_keys
            wanted = keys(expected["recording_id"].to_numpy(), expected["time"].to_numpy(dtype=np.float64))
            predictions_checks.check_expected(keys(self.recording_id, self.time), wanted)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Validate and write, complete or not at all.

        Raises
        ------
        PredictionsError
            If the rows are not valid, or the file exists and `overwrite` is False.
        """
        self.validate()
        with new_file(path, overwrite=overwrite) as file:
            write_array(file, "prediction", self.prediction, None if self.task == "frames" else np.int64)
            if self.probabilities is not None:
                write_array(file, "probabilities", self.probabilities, np.float32)
            self.write_rows(file)

    def write_rows(self, file: h5py.File) -> None:
        """Write everything but `prediction` and `probabilities` into an open file."""
        write_facts(file, self.task, {name: getattr(self, name) for name in (*TEXT_FACTS, *NUMBER_FACTS)})
        for name in NUMBER_ROWS:
            write_array(file, name, getattr(self, name), np.float64 if name == "time" else np.int64)
        for name in TEXT_ROWS:
            write_array(file, name, encode_text(getattr(self, name)))
        write_array(file, "class_values", self.class_values, np.float64)
        write_array(file, "target_frames", self.target_frames)
        means = (({"recording_id": r}, np.asarray(f, np.float32)) for r, f in self.mean_frames.items())
        write_by_recording(file, "mean_frames", means)
        intervals = (
            ({"recording_id": recording, "part": part}, np.asarray(values, np.float64))
            for recording, parts in self.split_intervals.items()
            for part, values in parts.items()
        )
        write_by_recording(file, "split_intervals", intervals)

    @classmethod
    def load(cls, path: str | Path, *, max_bytes: int = MAX_BYTES) -> Predictions:
        """Read and validate a file that may come from anybody; predicted frames stay in it until asked for.

        Parameters
        ----------
        path : str or Path
            The file.
        max_bytes : int
            Most memory that its arrays may take, predicted frames apart.

        Raises
        ------
        PredictionsError
            If the file is missing, truncated, not of this format, too large, or its rows are not valid.
        """
        path = Path(path)
        if not path.is_file():
            raise PredictionsError(f"no predictions file {path}", fix="check the path")
        try:
            with h5py.File(path, "r") as file:
                predictions = cls(**Reader(file, path, max_bytes).fields())
        except (OSError, RuntimeError, KeyError, UnicodeDecodeError, ValueError, TypeError) as error:
            raise PredictionsError(
                f"{path} is damaged or no predictions file ({error})", fix="write it as docs/predictions.md says"
            ) from error
        try:
            predictions.validate()
        except PredictionsError as error:
            raise PredictionsError(f"{path}: {error.problem}", allowed=error.allowed, fix=error.fix) from None
        for name in ("prediction", *NUMBER_ROWS):  # others may have written classes as floats or small integers
            values = getattr(predictions, name)
            if name != "time" and isinstance(values, np.ndarray):
                setattr(predictions, name, values.astype(np.int64))
        return predictions


@contextmanager
def new_file(path: str | Path, *, overwrite: bool) -> Iterator[h5py.File]:
    """Write a file beside its place and move it there once it is complete.

    Raises
    ------
    PredictionsError
        If it exists and `overwrite` is False.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise PredictionsError(f"{path} exists", fix="choose another name or pass overwrite")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        beside = Path(folder) / path.name
        with h5py.File(beside, "w") as file:
            yield file
        beside.replace(path)


class PredictionsWriter:
    """Writes predictions batch by batch, for more frames than memory holds.

    Predicted frames and probabilities go to disk as they come; the small columns of the rows are kept until
    the end, when the file is validated as a whole and moved to its place. If anything fails, nothing is left.

    Parameters
    ----------
    path : str or Path
        File to write.
    overwrite : bool
        Replace one that is there.
    **facts
        What holds for all rows: `task`, `split`, `arm` and any other attribute of `Predictions` that is not per row.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     facts = {"task": "frame_number", "split": "repeat", "arm": "mine", "class_values": np.arange(9.0)}
    ...     with PredictionsWriter(Path(folder) / "mine.h5", **facts) as writer:
    ...         for start in (0, 2):
    ...             number = np.arange(start, start + 2)
    ...             writer.append(prediction=number, target=number, frame_number=number, time=number / 30,
    ...                           repeat=np.zeros(2, int), recording_id=["r"] * 2, subject_id=["m"] * 2,
    ...                           stimulus=["natural_movie_one"] * 2)
    ...     len(Predictions.load(Path(folder) / "mine.h5"))
    4
    """

    def __init__(self, path: str | Path, *, overwrite: bool = False, **facts: Any) -> None:
        self.path, self.facts = Path(path), facts
        self._rows: dict[str, list[Array]] = {name: [] for name in (*NUMBER_ROWS, *TEXT_ROWS)}
        self._streams: dict[str, h5py.Dataset] = {}
        self._open = new_file(path, overwrite=overwrite)

    def __enter__(self) -> PredictionsWriter:
        self._file = self._open.__enter__()
        return self

    def append(self, *, prediction: Any, probabilities: Any = None, **rows: Any) -> None:
        """Add rows: `prediction`, `probabilities` if there are any, and every column of `Predictions`.

        Raises
        ------
        PredictionsError
            If a column is missing or unknown, or lengths or shapes differ.
        """
        if set(rows) != set(self._rows):
            odd = sorted(set(rows) ^ set(self._rows))
            raise PredictionsError(
                f"columns missing or unknown: {', '.join(odd)}", allowed=", ".join(self._rows), fix="mend the call"
            )
        streams = {"prediction": np.asarray(prediction)}
        if probabilities is not None:
            streams["probabilities"] = np.asarray(probabilities, np.float32)
        columns = {name: np.asarray(values) for name, values in rows.items()}
        count = len(streams["prediction"])
        for name, values in (streams | columns).items():
            shape = self._streams[name].shape[1:] if name in self._streams else values.shape[1:]
            if values.shape != (count, *shape) or (self._streams and name in streams and name not in self._streams):
                raise PredictionsError(
                    f"{name} of shape {values.shape}", allowed=str((count, *shape)), fix="append whole rows alike"
                )
        for name, values in streams.items():
            if name not in self._streams:
                self._streams[name] = create_rows(self._file, name, values.shape[1:], values.dtype)
            append_rows(self._streams[name], values)
        for name, values in columns.items():
            self._rows[name].append(values)

    def __exit__(self, *failure: Any) -> None:
        if failure[0] is None:
            try:
                self._finish()
            except BaseException as error:
                self._open.__exit__(type(error), error, error.__traceback__)
                raise
        self._open.__exit__(*failure)

    def _finish(self) -> None:
        if not self._streams:
            raise PredictionsError("predictions without rows", fix="append some before the writer is closed")
        # Frames are checked where they lie, in blocks.
        in_file = ("prediction",) if self.facts.get("task") == "frames" else ()
        values: dict[str, Any] = {n: s if n in in_file else s[()] for n, s in self._streams.items()}
        values |= {name: np.concatenate(parts) for name, parts in self._rows.items()}
        predictions = Predictions(**self.facts, **values)
        predictions.validate()
        predictions.write_rows(self._file)
