"""The predictions file: from it every score and figure can be recomputed without the model.

One HDF5 file per arm, split and seed; any decoder can write one, ours or not: docs/predictions.md has the layout and an
example. Files come from others too, so a file is checked before anything is allocated for it: no pickled objects,
no external or virtual data, and no data set larger than its file can honestly hold.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd

from poyo_ssl.errors import PoyoError

Array = npt.NDArray[Any]

FORMAT = "poyo_ssl.predictions"
FORMAT_VERSION = 2
MAX_DEFLATE_RATIO = 1032
"""No deflate stream expands by more; a data set that claims to is not stored in its file."""
CHUNK_BYTES = 2**20
READ_ROWS = 256
"""Frames read at a time, which bounds what a scattered choice of rows costs."""

TEXT_ROWS = ("recording_id", "subject_id", "stimulus")
NUMBER_ROWS = ("target", "time", "frame_number", "repeat")
TEXT_FACTS = {"split": None, "arm": None, "kind": "model", "model_id": "", "data_checksum": "", "validation_metric": ""}
"""Text attributes and what an absent one means; None: it may not be absent."""
NUMBER_FACTS = {"seed": -1, "movie_rate_hz": 30.0, "validation_score": float("nan")}


class PredictionsError(PoyoError):
    """A predictions file that is missing, damaged, inconsistent or not about the expected targets."""


@dataclass(frozen=True)
class StoredFrames:
    """Predicted frames that stay in their file; indexing reads the rows asked for.

    Attributes
    ----------
    path : Path
        The predictions file. It is opened for each reading, so none stays open.
    shape : tuple of int
        ``(N, H, W)``.
    dtype : dtype
        Of the frames.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | Array) -> Array:
        """Read ``(K, H, W)`` frames at a slice or at ``(K,)`` rows in any order."""
        wanted = np.arange(len(self))[rows]
        found = np.empty((wanted.size, *self.shape[1:]), self.dtype)
        flat = wanted.reshape(-1)
        order = np.argsort(flat, kind="stable")
        with h5py.File(self.path, "r") as file:
            stored = file["prediction"]
            for start in range(0, len(order), READ_ROWS):
                places = order[start : start + READ_ROWS]
                # Neighbours in the file are read in one piece, unless what lies between them is more than they are.
                for run in np.split(places, np.flatnonzero(np.diff(flat[places]) > READ_ROWS) + 1):
                    first, last = int(flat[run[0]]), int(flat[run[-1]])
                    for low in range(first, last + 1, READ_ROWS):
                        here = run[(flat[run] >= low) & (flat[run] < low + READ_ROWS)]
                        if len(here):
                            high = int(flat[here[-1]]) + 1
                            found[here] = stored[low:high][flat[here] - low]
        return found.reshape(*wanted.shape, *self.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.asarray(self[:], dtype=dtype)


def encode_text(text: Array) -> Array:
    """Unicode text as fixed-length UTF-8."""
    encoded = [str(t).encode() for t in text]
    width = max(1, *map(len, encoded)) if encoded else 1
    return np.asarray(encoded, dtype=h5py.string_dtype("utf-8", width))


def create_rows(file: h5py.File, name: str, row_shape: tuple[int, ...], dtype: Any) -> h5py.Dataset:
    """Create an empty data set that grows by rows: chunks of about 1 MiB, deflated."""
    row_bytes = int(np.prod(row_shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    rows = max(1, CHUNK_BYTES // max(1, row_bytes))
    return file.create_dataset(
        name,
        shape=(0, *row_shape),
        maxshape=(None, *row_shape),
        dtype=dtype,
        chunks=(rows, *row_shape),
        compression="gzip",
        compression_opts=1,  # nearly as small as 9 on images and many times faster
        shuffle=True,
    )


def append_rows(dataset: h5py.Dataset, values: Any) -> None:
    """Write ``(K, ...)`` values behind the rows that are there, a chunk at a time."""
    start = len(dataset)
    dataset.resize(start + len(values), axis=0)
    step = dataset.chunks[0]
    for low in range(0, len(values), step):
        part = values[low : low + step]
        dataset[start + low : start + low + len(part)] = part


def write_array(file: h5py.File, name: str, values: Any, dtype: Any = None) -> None:
    """Write a whole array, deflated; an empty one as it is."""
    if values.size == 0:
        file.create_dataset(name, data=values)
        return
    append_rows(create_rows(file, name, values.shape[1:], dtype or values.dtype), values)


def write_facts(file: h5py.File, task: str, facts: Mapping[str, Any]) -> None:
    """Write format, version and the attributes that hold for all rows."""
    file.attrs.update({"format": FORMAT, "format_version": FORMAT_VERSION, "task": task, **facts})


def write_by_recording(file: h5py.File, name: str, entries: Iterator[tuple[Mapping[str, str], Array]]) -> None:
    """Write one small array per entry; ids become attributes, not paths: an id may hold a slash."""
    group = file.create_group(name)
    for index, (facts, values) in enumerate(entries):
        group.create_dataset(str(index), data=values).attrs.update(facts)


class Reader:
    """Reads arrays of an untrusted file within a memory limit.

    Parameters
    ----------
    file : h5py.File
        Open for reading.
    path : Path
        Its path, for messages and for frames that are read later.
    max_bytes : int
        Most memory that arrays may take.

    Raises
    ------
    PredictionsError
        If it is no predictions file of this version.
    """

    def __init__(self, file: h5py.File, path: Path, max_bytes: int) -> None:
        self.file, self.path, self.left = file, path, max_bytes
        self.honest = MAX_DEFLATE_RATIO * path.stat().st_size
        for name, value in (("format", FORMAT), ("format_version", FORMAT_VERSION)):
            if (found := file.attrs.get(name)) != value:
                raise PredictionsError(
                    f"{path} has {name} {found}", allowed=str(value), fix="write it as docs/predictions.md says"
                )

    def fields(self) -> dict[str, Any]:
        """Everything that the constructor of `Predictions` takes."""
        found: dict[str, Any] = {"task": self._text_fact(self.file.attrs, "task", None)}
        found |= {name: self._text_fact(self.file.attrs, name, default) for name, default in TEXT_FACTS.items()}
        found |= {name: self._number_fact(name, default) for name, default in NUMBER_FACTS.items()}
        found["prediction"] = self._frames() if found["task"] == "frames" else self._numbers(self.file, "prediction")
        for name in NUMBER_ROWS:
            found[name] = self._numbers(self.file, name)
        for name in TEXT_ROWS:
            found[name] = self._text_rows(name)
        for name in ("class_values", "target_frames", "probabilities"):
            if name in self.file:
                found[name] = self._numbers(self.file, name)
        found["mean_frames"] = {facts["recording_id"]: frame for facts, frame in self._entries("mean_frames")}
        intervals: dict[str, dict[str, Array]] = {}
        for facts, values in self._entries("split_intervals", "part"):
            intervals.setdefault(facts["recording_id"], {})[facts["part"]] = values
        return found | {"split_intervals": intervals}

    def _frames(self) -> StoredFrames:
        dataset = self._dataset(self.file, "prediction", "iuf", in_memory=False)
        return StoredFrames(self.path, dataset.shape, dataset.dtype)

    def _text_rows(self, name: str) -> Array:
        raw = self._dataset(self.file, name, "S")[()]
        return np.asarray([value.decode("utf-8") for value in raw.ravel()], dtype=np.str_).reshape(raw.shape)

    def _entries(self, name: str, *more: str) -> Iterator[tuple[dict[str, str], Array]]:
        if name not in self.file:
            return
        group = self._member(self.file, name, h5py.Group)
        for key in group:
            dataset = self._member(group, key, h5py.Dataset)
            facts = {fact: self._text_fact(dataset.attrs, fact, None) for fact in ("recording_id", *more)}
            yield facts, self._numbers(group, key)

    def _text_fact(self, attributes: Any, name: str, default: str | None) -> str:
        value = attributes.get(name, default)
        if isinstance(value, bytes):
            value = value.decode("utf-8")
        if not isinstance(value, str):
            problem = f"lacks attribute '{name}'" if value is None else f"has attribute '{name}' that is no text"
            raise PredictionsError(f"{self.path} {problem}", fix="write it as docs/predictions.md says")
        return value

    def _number_fact(self, name: str, default: float) -> float:
        value = np.asarray(self.file.attrs.get(name, default))
        if value.shape != () or value.dtype.kind not in "iuf" or (name == "seed" and value % 1 != 0):
            raise PredictionsError(
                f"{self.path} has attribute '{name}' {value!s}", allowed="a number", fix="write it again"
            )
        return int(value) if name == "seed" else float(value)

    def _member(self, group: h5py.Group, name: str, kind: type) -> Any:
        """Take a member by a plain link only: soft and external links may point anywhere."""
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink) or not isinstance(group[name], kind):
            raise PredictionsError(f"{self.path}: '{name}' is missing or not stored in the file", fix="write it again")
        return group[name]

    def _numbers(self, group: h5py.Group, name: str) -> Array:
        return np.asarray(self._dataset(group, name, "iuf")[()])

    def _dataset(self, group: h5py.Group, name: str, kinds: str, *, in_memory: bool = True) -> h5py.Dataset:
        dataset = self._member(group, name, h5py.Dataset)
        if dataset.dtype.kind not in kinds or dataset.shape is None:
            allowed = "fixed-length text, numpy's dtype 'S'" if kinds == "S" else "integers or floats"
            raise PredictionsError(f"{self.path}: '{name}' has type {dataset.dtype}", allowed=allowed, fix="convert it")
        if dataset.external or dataset.is_virtual:
            raise PredictionsError(f"{self.path}: '{name}' is stored in another file", fix="write it again")
        limit = min(self.left, self.honest) if in_memory else self.honest
        if dataset.nbytes > limit:
            raise PredictionsError(
                f"{self.path}: '{name}' claims {dataset.nbytes} bytes",
                allowed=f"at most {limit}",
                fix="raise max_bytes if the file is really that large",
            )
        if in_memory:
            self.left -= dataset.nbytes
        return dataset


TIME_RESOLUTION_S = 1e-6
"""Times closer than this are the same."""
TASKS = ("gratings", "frame_number", "frames")
KINDS = ("model", "baseline", "control", "ceiling")
PARTS = ("train", "valid", "test")


def check(predictions: Predictions) -> None:
    """Check facts, shapes, values, uniqueness, intervals and gaps, in this order.

    Raises
    ------
    PredictionsError
        Naming the first offender.
    """
    _check_facts(predictions)
    _check_shapes(predictions)
    _check_values(predictions)
    if predictions.task == "frames":
        _check_frame_values(predictions)
    _check_unique(predictions)
    _check_intervals(predictions)
    _check_gaps(predictions)


def _check_facts(p: Predictions) -> None:
    for name, allowed in (("task", TASKS), ("kind", KINDS)):
        if getattr(p, name) not in allowed:
            raise PredictionsError(
                f"predictions of {name} '{getattr(p, name)}'", allowed=", ".join(allowed), fix="change it"
            )
    for name in ("arm", "split"):
        if not getattr(p, name).strip():
            raise PredictionsError(f"predictions with an empty {name}", fix="name it")
    if not (np.isfinite(p.movie_rate_hz) and p.movie_rate_hz > 0):
        raise PredictionsError(f"movie_rate_hz {p.movie_rate_hz}", allowed="above 0", fix="change it")
    if p.seed < -1:
        raise PredictionsError(f"seed {p.seed}", allowed="-1 (no seed) or more", fix="change it")
    if bool(p.validation_metric) == np.isnan(p.validation_score) or np.isinf(p.validation_score):
        raise PredictionsError(
            f"validation_score {p.validation_score} of metric '{p.validation_metric}'",
            allowed="a number and a name, or neither",
            fix="write both",
        )


def _check_shapes(p: Predictions) -> None:
    count = len(p.prediction)
    if count == 0:
        raise PredictionsError("predictions without rows", fix="check the split's intervals")
    for name in ("target", "time", "frame_number", "repeat", *TEXT_ROWS):
        if getattr(p, name).shape != (count,):
            raise _wrong_shape(name, getattr(p, name), f"({count},)")
    if p.task == "frames":
        size = p.target_frames.shape[1:]
        if p.target_frames.ndim != 3 or p.target_frames.dtype != np.uint8 or not len(p.target_frames):
            raise _wrong_shape("target_frames", p.target_frames, "(M, H, W) uint8")
        wrong_type = p.prediction.dtype != np.uint8 and p.prediction.dtype.kind != "f"
        if p.prediction.shape != (count, *size) or wrong_type:
            raise _wrong_shape("prediction", p.prediction, f"({count}, {size[0]}, {size[1]}) uint8 or float")
        for recording, frame in p.mean_frames.items():
            if frame.shape != size:
                raise _wrong_shape(f"mean frame of {recording}", frame, str(size))
    elif p.prediction.ndim != 1:
        raise _wrong_shape("prediction", p.prediction, f"({count},)")
    classes = len(p.class_values)
    if p.probabilities is not None and p.probabilities.shape != (count, classes):
        raise _wrong_shape("probabilities", p.probabilities, f"({count}, {classes})")
    for recording, parts in p.split_intervals.items():
        for part, intervals in parts.items():
            if part not in PARTS:
                raise PredictionsError(
                    f"split_intervals of {recording} for part '{part}'", allowed=", ".join(PARTS), fix="rename it"
                )
            if intervals.ndim != 2 or intervals.shape[1] != 2:
                raise _wrong_shape(f"split_intervals of {recording}, {part},", intervals, "(K, 2)")


def _wrong_shape(name: str, values: Array | StoredFrames, allowed: str) -> PredictionsError:
    return PredictionsError(f"{name} of shape {values.shape} and type {values.dtype}", allowed=allowed, fix="mend it")


def _check_values(p: Predictions) -> None:
    _reject(p, "time", ~np.isfinite(p.time), "finite seconds")
    for name in ("frame_number", "repeat"):
        values = getattr(p, name)
        _reject(p, name, _not_integer(values) | (values < -1), "an integer of -1 or more")
    if p.task == "frames":
        limits = {"target": len(p.target_frames)}
    else:
        limits = dict.fromkeys(("prediction", "target"), len(p.class_values))
        if not np.isfinite(p.class_values).all():
            raise PredictionsError("NaN among class_values", fix="write a number for every class")
    for name, limit in limits.items():
        values = getattr(p, name)
        wrong = _not_integer(values) | (values < 0) | (values >= limit)
        _reject(p, name, wrong, f"an integer of 0 to {limit - 1}")
    if p.probabilities is not None:
        inside = ((p.probabilities >= 0) & (p.probabilities <= 1 + 1e-6)).all(axis=1)
        _reject(p, "probabilities", np.logical_not(inside), "0 to 1")
    for recording, frame in p.mean_frames.items():
        if not ((frame >= 0) & (frame <= 255)).all():
            raise PredictionsError(
                f"mean frame of {recording} is NaN or out of range", allowed="0 to 255", fix="write it again"
            )


def _check_frame_values(p: Predictions) -> None:
    """Frames of float type may hold anything; a file of frames is read in blocks."""
    if p.prediction.dtype == np.uint8:
        return
    largest = 0.0
    for start in range(0, len(p.prediction), READ_ROWS):
        block = p.prediction[start : start + READ_ROWS].reshape(min(READ_ROWS, len(p.prediction) - start), -1)
        wrong = ~((block >= 0) & (block <= 255))
        if wrong.any():
            row = int(np.argmax(wrong.any(axis=1)))
            value = block[row][np.argmax(wrong[row])]
            raise PredictionsError(
                f"prediction holds {value:g} in row {start + row} ({_where(p, start + row)})",
                allowed="0 to 255",
                fix="clip or mend the decoder's frames",
            )
        largest = max(largest, float(block.max()))
    if largest <= 1 < p.target_frames.max():
        raise PredictionsError(
            f"predicted frames reach from 0 to {largest:g}", allowed="grey levels of 0 to 255", fix="multiply by 255"
        )


def _reject(p: Predictions, name: str, wrong: npt.NDArray[np.bool_], allowed: str) -> None:
    if wrong.any():
        row = int(np.argmax(wrong))
        raise PredictionsError(
            f"{name} {getattr(p, name)[row]} in row {row} ({_where(p, row)})",
            allowed=allowed,
            fix="correct the decoder that wrote it",
        )


def _where(p: Predictions, row: int) -> str:
    return f"recording {p.recording_id[row]}, {p.time[row]:.6f} s"


def _not_integer(values: Array) -> npt.NDArray[np.bool_]:
    """Find where a number is NaN, infinite or has a fraction."""
    if values.dtype.kind in "iu":
        return np.zeros(values.shape, dtype=bool)
    finite = np.isfinite(values)
    return np.asarray(~finite | (np.where(finite, values, 0.0) % 1 != 0))


def target_keys(recording_id: Array, time: Array) -> pd.DataFrame:
    """Return ``recording_id`` and ``tick``, the time in microseconds, of every target."""
    ticks = np.rint(np.asarray(time, dtype=np.float64) / TIME_RESOLUTION_S).astype(np.int64)
    return pd.DataFrame({"recording_id": np.asarray(recording_id).astype(str), "tick": ticks})


def _check_unique(p: Predictions) -> None:
    keys = target_keys(p.recording_id, p.time)
    # One moment may not be scored twice, nor one frame of one repeat at two moments.
    frames = p.targets().drop(columns="time")
    again = keys.duplicated() | (frames.duplicated() & (p.repeat >= 0) & (p.frame_number >= 0))
    if again.any():
        row = int(np.argmax(again))
        raise PredictionsError(f"row {row} repeats a target ({_where(p, row)})", fix="predict every target once")
    animals = pd.DataFrame({"recording": p.recording_id, "animal": p.subject_id}).drop_duplicates()
    shared = animals["recording"].duplicated()
    if shared.any():
        raise PredictionsError(
            f"recording {animals[shared]['recording'].iloc[0]} has more than one subject_id",
            fix="name one animal per recording",
        )


def _check_intervals(p: Predictions) -> None:
    for recording, parts in p.split_intervals.items():
        for part, intervals in parts.items():
            bad = ~(intervals[:, 0] < intervals[:, 1])
            if bad.any():
                raise PredictionsError(
                    f"interval {intervals[np.argmax(bad)].tolist()} of part '{part}' of {recording}",
                    allowed="start below end, in seconds",
                    fix="mend it",
                )
        check_disjoint(recording, parts)
        if "test" not in parts:
            continue
        rows = np.flatnonzero(p.recording_id == recording)
        if len(rows) == 0 and len(parts["test"]):
            raise PredictionsError(
                f"no prediction of recording {recording}, which has test intervals of split '{p.split}'",
                fix="predict the test part of every recording",
            )
        outside = interval_index(p.time[rows], parts["test"]) < 0
        if outside.any():
            row = int(rows[np.argmax(outside)])
            raise PredictionsError(
                f"row {row} ({_where(p, row)}) lies outside the test intervals of split '{p.split}'",
                fix="predict the test part only",
            )


def check_disjoint(recording: str, parts: Mapping[str, Array]) -> None:
    """Reject a leak: a moment that trains may not test.

    Parameters
    ----------
    recording : str
        Id of the recording.
    parts : mapping
        ``(K, 2)`` seconds by name of the part.

    Raises
    ------
    PredictionsError
        Naming the first two parts that share more than `TIME_RESOLUTION_S`, and where.
    """
    for index, (first, one) in enumerate(parts.items()):
        for second, other in list(parts.items())[index + 1 :]:
            shared_start = np.maximum(one[:, None, 0], other[None, :, 0])
            shared_end = np.minimum(one[:, None, 1], other[None, :, 1])
            leak = np.argwhere(shared_end - shared_start > TIME_RESOLUTION_S)
            if len(leak):
                a, b = leak[0]
                raise PredictionsError(
                    f"parts '{first}' and '{second}' of {recording} share {shared_start[a, b]:.6f} to "
                    f"{shared_end[a, b]:.6f} s",
                    fix="train and test on disjoint intervals",
                )


def interval_index(time: Array, intervals: Array) -> npt.NDArray[np.int64]:
    """``(N,)`` which interval holds each time, -1 for none.

    Examples
    --------
    >>> interval_index(np.array([0.5, 1.5, 2.5]), np.array([[2.0, 3.0], [0.0, 1.0]]))
    array([ 1, -1,  0])
    """
    inside = (time[:, None] >= intervals[:, 0] - TIME_RESOLUTION_S) & (
        time[:, None] <= intervals[:, 1] + TIME_RESOLUTION_S
    )
    if not inside.size:
        return np.full(len(time), -1)
    return np.where(inside.any(axis=1), inside.argmax(axis=1), -1)


def _check_gaps(p: Predictions) -> None:
    """Within one test interval every frame of a repeat is predicted, or every k-th.

    Only a file that has its test intervals can be checked alone: between intervals frames are missing on purpose.
    """
    where = np.full(len(p), -1)
    for recording, parts in p.split_intervals.items():
        if "test" in parts:
            rows = np.flatnonzero(p.recording_id == recording)
            where[rows] = interval_index(p.time[rows], parts["test"])
    rows = np.flatnonzero((where >= 0) & (p.repeat >= 0) & (p.frame_number >= 0))
    if len(rows) < 3:
        return
    table = p.targets().iloc[rows].assign(interval=where[rows], row=rows)
    group = ["recording_id", "stimulus", "repeat", "interval"]
    table = table.sort_values([*group, "time"], kind="stable")
    step = table.groupby(group, sort=False)["frame_number"].diff()
    known = step.dropna()
    if known.empty:
        return
    usual = known.mode().iloc[0]
    odd = step.notna() & (step != usual)
    if usual <= 0 or not odd.any():
        return
    last = table[odd].iloc[0]
    missing = int(last["frame_number"] - step[odd].iloc[0] + usual)
    raise PredictionsError(
        f"frame {missing} of {last['stimulus']}, repeat {last['repeat']}, of recording {last['recording_id']} is "
        f"missing before {last['time']:.6f} s ({int(odd.sum())} gaps)",
        fix="predict every target of the test intervals once",
    )


def check_expected(found: pd.DataFrame, wanted: pd.DataFrame) -> None:
    """Check that exactly the expected targets are predicted.

    Parameters
    ----------
    found, wanted : DataFrame
        See `target_keys`.

    Raises
    ------
    PredictionsError
        Naming the first recording, else the first moment, that is missing or too much.
    """
    recordings = [list(dict.fromkeys(keys["recording_id"])) for keys in (wanted, found)]
    texts = ("is missing", "is not among those to be scored")
    for (own, other), text in zip((recordings, recordings[::-1]), texts, strict=True):
        alone = [name for name in own if name not in other]
        if alone:
            raise PredictionsError(
                f"recording {alone[0]} {text} ({len(alone)} such)",
                fix="predict the recordings of the split",
            )
    both = wanted.merge(found, how="outer", indicator=True)
    for side, text in zip(("left_only", "right_only"), texts, strict=True):
        offenders = both[both["_merge"] == side]
        if not offenders.empty:
            first = offenders.iloc[0]
            raise PredictionsError(
                f"target of recording {first['recording_id']} at {first['tick'] * TIME_RESOLUTION_S:.6f} s {text}"
                f" ({len(offenders)} such)",
                fix="predict every target of the split exactly once",
            )


def check_same_targets(arms: Mapping[str, pd.DataFrame]) -> None:
    """Check that arms predict the same targets; the odd ones out are those that differ from most.

    Parameters
    ----------
    arms : mapping
        Targets by arm, see `target_keys`.

    Raises
    ------
    PredictionsError
        Naming the first such arm and its first offence.
    """
    prints = {name: tuple(sorted(keys.itertuples(index=False, name=None))) for name, keys in arms.items()}
    counts = Counter(prints.values())
    # Among equally common sets the largest counts: predictions are rather missing than invented.
    usual = max(counts, key=lambda keys: (counts[keys], len(keys)))
    like = next(name for name, keys in prints.items() if keys == usual)
    for name, keys in arms.items():
        if prints[name] != usual:
            try:
                check_expected(keys, arms[like])
            except PredictionsError as error:
                raise PredictionsError(f"{name} against {like}: {error.problem}", fix=error.fix) from None


PredictionTask = Literal["gratings", "frame_number", "frames"]
ArmKind = Literal["model", "baseline", "control", "ceiling"]

MAX_BYTES = 8 * 2**30


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
        check(self)
        if expected is not None:
            keys = target_keys
            wanted = keys(expected["recording_id"].to_numpy(), expected["time"].to_numpy(dtype=np.float64))
            check_expected(keys(self.recording_id, self.time), wanted)

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
