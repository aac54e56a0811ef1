"""The predictions file: from it every score and figure can be recomputed without the model.

One HDF5 file per arm and split; any decoder can write one, ours or not. See `Predictions` for what it holds. Files
come from others too, so a file is checked before anything is allocated for it: no pickled objects,
no external or virtual data, and no data set larger than its file can honestly hold.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd

from poyo_ssl.errors import PoyoError

Array = npt.NDArray[Any]
PredictionTask = Literal["gratings", "frame_number", "frames"]

FORMAT = "poyo_ssl.predictions"
FORMAT_VERSION = 1
MAX_DEFLATE_RATIO = 1032
"""No deflate stream expands by more; a data set that claims to is not stored in its file."""
MAX_BYTES = 8 * 2**30
TIME_RESOLUTION_S = 1e-6
"""Times closer than this are the same."""

TEXT_ROWS = ("recording_id", "subject_id", "stimulus")
NUMBER_ROWS = ("prediction", "target", "time", "frame_number", "repeat")


class PredictionsError(PoyoError):
    """A predictions file that is missing, damaged, inconsistent or not about the expected targets."""


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
    data_checksum : str
        Checksum of the prepared data; empty when unknown.
    prediction : ndarray
        ``(N,)`` class index (gratings) or frame number, or ``(N, H, W)`` uint8 frames.
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
    scored_split_intervals : mapping
        Recording id -> ``(K, 2)`` test intervals in seconds; empty when unknown.

    Examples
    --------
    >>> p = Predictions(task="gratings", split="gratings", arm="majority", data_checksum="",
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
    data_checksum: str
    prediction: Array
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
    scored_split_intervals: Mapping[str, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prediction)

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
        self._check_shapes()
        self._check_values()
        self._check_unique()
        self._check_intervals()
        if expected is not None:
            self._check_expected(expected)

    def _check_shapes(self) -> None:
        if self.task not in get_args(PredictionTask):
            raise PredictionsError(
                f"predictions of task '{self.task}'", allowed=", ".join(get_args(PredictionTask)), fix="change it"
            )
        count = len(self.prediction)
        if count == 0:
            raise PredictionsError("predictions without rows", fix="check the split's intervals")
        for name in ("target", "time", "frame_number", "repeat", *TEXT_ROWS):
            if getattr(self, name).shape != (count,):
                raise _wrong_shape(name, getattr(self, name), f"({count},)")
        if self.task == "frames":
            size = self.target_frames.shape[1:]
            if self.target_frames.ndim != 3 or self.target_frames.dtype != np.uint8 or not len(self.target_frames):
                raise _wrong_shape("target_frames", self.target_frames, "(M, H, W) uint8")
            if self.prediction.shape != (count, *size) or self.prediction.dtype != np.uint8:
                raise _wrong_shape("prediction", self.prediction, f"({count}, {size[0]}, {size[1]}) uint8")
            for recording, frame in self.mean_frames.items():
                if frame.shape != size:
                    raise _wrong_shape(f"mean frame of {recording}", frame, str(size))
        elif self.prediction.ndim != 1:
            raise _wrong_shape("prediction", self.prediction, f"({count},)")
        classes = len(self.class_values)
        if self.probabilities is not None and self.probabilities.shape != (count, classes):
            raise _wrong_shape("probabilities", self.probabilities, f"({count}, {classes})")
        for recording, intervals in self.scored_split_intervals.items():
            if intervals.ndim != 2 or intervals.shape[1] != 2:
                raise _wrong_shape(f"scored_split_intervals of {recording}", intervals, "(K, 2)")

    def _check_values(self) -> None:
        self._reject("time", ~np.isfinite(self.time), "finite seconds")
        for name in ("frame_number", "repeat"):
            values = getattr(self, name)
            self._reject(name, _not_integer(values) | (values < -1), "an integer of -1 or more")
        if self.task == "frames":
            limits = {"target": len(self.target_frames)}
        else:
            limits = dict.fromkeys(("prediction", "target"), len(self.class_values))
            if not np.isfinite(self.class_values).all():
                raise PredictionsError("NaN among class_values", fix="write a number for every class")
        for name, limit in limits.items():
            values = getattr(self, name)
            wrong = _not_integer(values) | (values < 0) | (values >= limit)
            self._reject(name, wrong, f"an integer of 0 to {limit - 1}")
        if self.probabilities is not None:
            inside = ((self.probabilities >= 0) & (self.probabilities <= 1 + 1e-6)).all(axis=1)
            self._reject("probabilities", np.logical_not(inside), "0 to 1")
        for recording, frame in self.mean_frames.items():
            if not ((frame >= 0) & (frame <= 255)).all():
                raise PredictionsError(
                    f"mean frame of {recording} is NaN or out of range", allowed="0 to 255", fix="write it again"
                )

    def _reject(self, name: str, wrong: npt.NDArray[np.bool_], allowed: str) -> None:
        if wrong.any():
            row = int(np.argmax(wrong))
            raise PredictionsError(
                f"{name} {getattr(self, name)[row]} in row {row} ({self._where(row)})",
                allowed=allowed,
                fix="correct the decoder that wrote it",
            )

    def _where(self, row: int) -> str:
        return f"recording {self.recording_id[row]}, {self.time[row]:.6f} s"

    def _keys(self) -> pd.DataFrame:
        return _target_keys(self.recording_id, self.time)

    def _check_unique(self) -> None:
        repeated = self._keys().duplicated().to_numpy()
        if repeated.any():
            row = int(np.argmax(repeated))
            raise PredictionsError(
                f"row {row} repeats a target ({self._where(row)})", fix="predict every target exactly once"
            )
        animals = pd.DataFrame({"recording": self.recording_id, "animal": self.subject_id}).drop_duplicates()
        shared = animals["recording"].duplicated()
        if shared.any():
            raise PredictionsError(
                f"recording {animals[shared]['recording'].iloc[0]} has more than one subject_id",
                fix="name one animal per recording",
            )

    def _check_intervals(self) -> None:
        for recording, intervals in self.scored_split_intervals.items():
            rows = np.flatnonzero(self.recording_id == recording)
            times = self.time[rows, None]
            inside = (times >= intervals[:, 0] - TIME_RESOLUTION_S) & (times <= intervals[:, 1] + TIME_RESOLUTION_S)
            outside = ~inside.any(axis=1)
            if outside.any():
                row = int(rows[np.argmax(outside)])
                raise PredictionsError(
                    f"row {row} ({self._where(row)}) lies outside the test intervals of split '{self.split}'",
                    fix="predict the test part only",
                )

    def _check_expected(self, expected: pd.DataFrame) -> None:
        wanted = _target_keys(expected["recording_id"].to_numpy(), expected["time"].to_numpy(dtype=np.float64))
        found = self._keys()
        both = wanted.merge(found, how="outer", indicator=True)
        for side, text in (("left_only", "is missing"), ("right_only", "is not among those to be scored")):
            offenders = both[both["_merge"] == side]
            if not offenders.empty:
                first = offenders.iloc[0]
                raise PredictionsError(
                    f"target of recording {first['recording_id']} at {first['tick'] * TIME_RESOLUTION_S:.6f} s {text}"
                    f" ({len(offenders)} such)",
                    fix="predict every target of the split exactly once",
                )

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Validate and write, complete or not at all.

        Raises
        ------
        PredictionsError
            If the rows are not valid, or the file exists and `overwrite` is False.
        """
        self.validate()
        path = Path(path)
        if path.exists() and not overwrite:
            raise PredictionsError(f"{path} exists", fix="choose another name or pass overwrite")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            beside = Path(folder) / path.name
            with h5py.File(beside, "w") as file:
                self._write(file)
            beside.replace(path)

    def _write(self, file: h5py.File) -> None:
        file.attrs.update({"format": FORMAT, "version": FORMAT_VERSION})
        for name in ("task", "split", "arm", "data_checksum"):
            file.attrs[name] = getattr(self, name)
        for name in NUMBER_ROWS:
            values = getattr(self, name)
            if values.ndim == 1:
                values = values.astype(np.float64 if name == "time" else np.int64)
            _write_array(file, name, values)
        for name in TEXT_ROWS:
            _write_array(file, name, _encode(getattr(self, name)))
        _write_array(file, "class_values", self.class_values.astype(np.float64))
        _write_array(file, "target_frames", self.target_frames)
        if self.probabilities is not None:
            _write_array(file, "probabilities", self.probabilities.astype(np.float32))
        for name, kind in (("mean_frames", np.float32), ("scored_split_intervals", np.float64)):
            group = file.create_group(name)
            # Ids become values, not paths: an id may hold a slash.
            for index, (recording, values) in enumerate(getattr(self, name).items()):
                group.create_dataset(str(index), data=np.asarray(values, dtype=kind))
                group[str(index)].attrs["recording_id"] = recording

    @classmethod
    def load(cls, path: str | Path, *, max_bytes: int = MAX_BYTES) -> Predictions:
        """Read and validate a file that may come from anybody.

        Parameters
        ----------
        path : str or Path
            The file.
        max_bytes : int
            Most memory that its arrays may take.

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
                predictions = cls(**_Reader(file, path, max_bytes).fields())
        except (OSError, RuntimeError, KeyError, UnicodeDecodeError, ValueError, TypeError) as error:
            raise PredictionsError(
                f"{path} is damaged or no predictions file ({error})", fix="write it again with Predictions.save"
            ) from error
        predictions.validate()
        for name in NUMBER_ROWS:  # another decoder may have written classes as floats or small integers
            values = getattr(predictions, name)
            if name != "time" and values.ndim == 1:
                setattr(predictions, name, values.astype(np.int64))
        return predictions


def _wrong_shape(name: str, values: Array, allowed: str) -> PredictionsError:
    return PredictionsError(f"{name} of shape {values.shape} and type {values.dtype}", allowed=allowed, fix="mend it")


def _not_integer(values: Array) -> npt.NDArray[np.bool_]:
    """Find where a number is NaN, infinite or has a fraction."""
    if values.dtype.kind in "iu":
        return np.zeros(values.shape, dtype=bool)
    finite = np.isfinite(values)
    return np.asarray(~finite | (np.where(finite, values, 0.0) % 1 != 0))


def _target_keys(recording_id: Array, time: Array) -> pd.DataFrame:
    ticks = np.rint(np.asarray(time, dtype=np.float64) / TIME_RESOLUTION_S).astype(np.int64)
    return pd.DataFrame({"recording_id": np.asarray(recording_id).astype(str), "tick": ticks})


def _encode(text: Array) -> Array:
    """Unicode text as fixed-length UTF-8."""
    encoded = [str(t).encode() for t in text]
    width = max(1, *map(len, encoded)) if encoded else 1
    return np.asarray(encoded, dtype=h5py.string_dtype("utf-8", width))


def _write_array(file: h5py.File, name: str, values: Array) -> None:
    if values.size == 0:
        file.create_dataset(name, data=values)
        return
    # One chunk is about 1 MiB of whole rows; level 1 is nearly as small as 9 on images and many times faster.
    rows = max(1, min(len(values), 2**20 * len(values) // max(1, values.nbytes)))
    file.create_dataset(
        name, data=values, chunks=(rows, *values.shape[1:]), compression="gzip", compression_opts=1, shuffle=True
    )


class _Reader:
    """Reads arrays of an untrusted file within a memory limit."""

    def __init__(self, file: h5py.File, path: Path, max_bytes: int) -> None:
        self.file, self.path, self.left = file, path, max_bytes
        self.honest = MAX_DEFLATE_RATIO * path.stat().st_size
        for name, value in (("format", FORMAT), ("version", FORMAT_VERSION)):
            if (found := file.attrs.get(name)) != value:
                raise PredictionsError(
                    f"{path} has {name} {found!r}", allowed=repr(value), fix="write it with Predictions.save"
                )

    def fields(self) -> dict[str, Any]:
        """Everything that the constructor of `Predictions` takes."""
        text = {name: self._attribute(self.file.attrs, name) for name in ("task", "split", "arm", "data_checksum")}
        found: dict[str, Any] = {**text, "task": cast(PredictionTask, text["task"])}
        for name in (*NUMBER_ROWS, "class_values", "target_frames"):
            found[name] = self._numbers(self.file, name)
        for name in TEXT_ROWS:
            raw = self._array(self.file, name, "S")
            found[name] = np.asarray([value.decode("utf-8") for value in raw.ravel()], dtype=np.str_).reshape(raw.shape)
        found["probabilities"] = self._numbers(self.file, "probabilities") if "probabilities" in self.file else None
        for name in ("mean_frames", "scored_split_intervals"):
            found[name] = dict(self._by_recording(name))
        return found

    def _by_recording(self, name: str) -> Iterator[tuple[str, Array]]:
        group = self._hard_link(self.file, name, h5py.Group)
        for key in group:
            dataset = self._hard_link(group, key, h5py.Dataset)
            yield self._attribute(dataset.attrs, "recording_id"), self._numbers(group, key)

    def _attribute(self, attributes: Any, name: str) -> str:
        value = attributes[name]
        if not isinstance(value, str):
            raise PredictionsError(f"{self.path}: attribute {name} is no text", fix="write it again")
        return value

    def _hard_link(self, group: h5py.Group, name: str, kind: type) -> Any:
        """Take a member by a plain link only: soft and external links may point anywhere."""
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink) or not isinstance(group[name], kind):
            raise PredictionsError(f"{self.path}: '{name}' is missing or not stored in the file", fix="write it again")
        return group[name]

    def _numbers(self, group: h5py.Group, name: str) -> Array:
        return self._array(group, name, "iuf")

    def _array(self, group: h5py.Group, name: str, kinds: str) -> Array:
        dataset = self._hard_link(group, name, h5py.Dataset)
        if dataset.dtype.kind not in kinds or dataset.shape is None:
            raise PredictionsError(f"{self.path}: '{name}' has type {dataset.dtype}", fix="write it again")
        if dataset.external or dataset.is_virtual:
            raise PredictionsError(f"{self.path}: '{name}' is stored in another file", fix="write it again")
        if dataset.nbytes > min(self.left, self.honest):
            raise PredictionsError(
                f"{self.path}: '{name}' claims {dataset.nbytes} bytes",
                allowed=f"at most {min(self.left, self.honest)}",
                fix="raise max_bytes if the file is really that large",
            )
        self.left -= dataset.nbytes
        return np.asarray(dataset[()])
