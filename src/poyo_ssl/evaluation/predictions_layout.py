"""How a predictions file lies on disk: reading what others wrote without believing it, writing in bounded memory.

docs/predictions.md describes the layout for those who write such a file without this package.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

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
