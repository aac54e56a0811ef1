"""The predictions file: from it every score and figure can be recomputed without the model.

One HDF5 file per arm, split and seed; any decoder can write one: docs/predictions.md has the layout and an example.
Files come from others too, so a file is checked before anything is allocated for it: no pickled objects, no external
or virtual data, and no data set larger than its file can honestly hold.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd

from poyo_ssl.evaluation.checks import BLOCK_ROWS, TEXT_ROWS, PredictionsError, check

Array = npt.NDArray[Any]
PredictionTask = Literal["gratings", "frame_number", "frames"]
ArmKind = Literal["model", "baseline", "control", "ceiling"]

FORMAT = "poyo_ssl.predictions"
FORMAT_VERSION = 2
VERSION_BESIDE = 3
"""As 2, with the target frames in a file beside."""
MAX_BYTES = 8 * 2**30
MAX_DEFLATE_RATIO = 1032
"""No deflate stream expands by more; a data set that claims to is not stored in its file."""
CHUNK_BYTES = 2**20

NUMBER_ROWS = ("target", "time", "frame_number", "repeat")
TEXT_FACTS = {"split": None, "arm": None, "kind": "model", "model_id": "", "data_checksum": "", "validation_metric": ""}
"""Text attributes and what an absent one means; None: it may not be absent."""
NUMBER_FACTS = {"seed": -1, "movie_rate_hz": 30.0, "validation_score": float("nan")}
AS_DOCUMENTED = "write it as docs/predictions.md says"


@dataclass(frozen=True)
class StoredFrames:
    """Predicted frames ``(N, H, W)`` that stay in their file, which is opened for each reading."""

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
            for start in range(0, len(order), BLOCK_ROWS):
                places = order[start : start + BLOCK_ROWS]
                # Neighbours in the file are read in one piece, unless what lies between them is more than they are.
                for run in np.split(places, np.flatnonzero(np.diff(flat[places]) > BLOCK_ROWS) + 1):
                    first, last = int(flat[run[0]]), int(flat[run[-1]])
                    for low in range(first, last + 1, BLOCK_ROWS):
                        here = run[(flat[run] >= low) & (flat[run] < low + BLOCK_ROWS)]
                        if len(here):
                            high = int(flat[here[-1]]) + 1
                            found[here] = stored[low:high][flat[here] - low]
        return found.reshape(*wanted.shape, *self.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.asarray(self[:], dtype=dtype)


@dataclass(kw_only=True)
class Predictions:
    """Predictions of one arm on one split, one row per target (N).

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
    target_frames: Array = field(default_factory=lambda: np.zeros((0, 0, 0), dtype=np.uint8))
    mean_frames: Mapping[str, Array] = field(default_factory=dict)
    split_intervals: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)
    movie_rate_hz: float = 30.0
    validation_metric: str = ""
    validation_score: float = float("nan")

    def __len__(self) -> int:
        return len(self.prediction)

    def targets(self) -> pd.DataFrame:
        """Return what was to be decoded, one row each."""
        names = ("recording_id", "stimulus", "repeat", "frame_number", "time")
        return pd.DataFrame({name: getattr(self, name) for name in names})

    def validate(self) -> None:
        """Check that rows are complete, in range and unique; the first offender is named."""
        check(self)

    def save(self, path: str | Path, *, overwrite: bool = False, frames_beside: bool = False) -> None:
        """Validate and write, complete or not at all.

        Parameters
        ----------
        path : str or Path
            File to write.
        overwrite : bool
            Replace one that is there.
        frames_beside : bool
            Write the target frames to ``targets_<checksum>.npy`` beside; all files of the folder with the same ones
            share it.

        Raises
        ------
        PredictionsError
            If the rows are not valid, or the file exists and `overwrite` is False.
        """
        self.validate()
        path = Path(path)
        beside = frames_beside and self.task == "frames"
        with new_file(path, overwrite=overwrite) as file:
            write_array(file, "prediction", self.prediction, None if self.task == "frames" else np.int64)
            if self.probabilities is not None:
                write_array(file, "probabilities", self.probabilities, np.float32)
            file.attrs.update({"format": FORMAT, "format_version": VERSION_BESIDE if beside else FORMAT_VERSION})
            file.attrs.update({name: getattr(self, name) for name in ("task", *TEXT_FACTS, *NUMBER_FACTS)})
            for name in NUMBER_ROWS:
                write_array(file, name, getattr(self, name), np.float64 if name == "time" else np.int64)
            for name in TEXT_ROWS:
                write_array(file, name, encode_text(getattr(self, name)))
            write_array(file, "class_values", self.class_values, np.float64)
            if beside:
                name, checksum = write_frames_beside(path.parent, self.target_frames)
                file.attrs.update({"target_frames_file": name, "target_frames_sha256": checksum})
            else:
                write_array(file, "target_frames", self.target_frames)
            # Ids become attributes, not paths: an id may hold a slash.
            group = file.create_group("mean_frames")
            for index, (recording, frame) in enumerate(self.mean_frames.items()):
                made = group.create_dataset(str(index), data=np.asarray(frame, np.float32))
                made.attrs["recording_id"] = recording
            group = file.create_group("split_intervals")
            for recording, parts in self.split_intervals.items():
                for part, spans in parts.items():
                    made = group.create_dataset(str(len(group)), data=np.asarray(spans, np.float64))
                    made.attrs.update({"recording_id": recording, "part": part})

    @classmethod
    def load(cls, path: str | Path, *, max_bytes: int = MAX_BYTES) -> Predictions:
        """Read and validate a file that may come from anybody; predicted frames stay in it until asked for.

        Parameters
        ----------
        path : str or Path
            The file. One that was written with `frames_beside` needs its target frames in the same folder.
        max_bytes : int
            Most memory that its arrays may take, predicted frames apart.

        Raises
        ------
        PredictionsError
            If the file is missing, truncated, not of this format, too large, its rows are not valid, or its target
            frames are missing or others.
        """
        path = Path(path)
        if not path.is_file():
            raise PredictionsError(f"no predictions file {path}", fix="check the path")
        try:
            with h5py.File(path, "r") as file:
                predictions = _Reader(file, path, max_bytes).read()
        except (OSError, RuntimeError, KeyError, UnicodeDecodeError, ValueError, TypeError) as error:
            raise PredictionsError(f"{path} is damaged or no predictions file ({error})", fix=AS_DOCUMENTED) from error
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
def new_file(path: Path, *, overwrite: bool) -> Iterator[h5py.File]:
    """Write a file beside its place and move it there once it is complete."""
    if path.exists() and not overwrite:
        raise PredictionsError(f"{path} exists", fix="choose another name or pass overwrite")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        beside = Path(folder) / path.name
        with h5py.File(beside, "w") as file:
            yield file
        beside.replace(path)


def encode_text(text: Array) -> Array:
    """Unicode text as fixed-length UTF-8."""
    encoded = [str(t).encode() for t in text]
    width = max(1, *map(len, encoded)) if encoded else 1
    return np.asarray(encoded, dtype=h5py.string_dtype("utf-8", width))


def write_array(file: h5py.File, name: str, values: Array | StoredFrames, dtype: npt.DTypeLike | None = None) -> None:
    """Write an array by rows, deflated in chunks of about 1 MiB; an empty one as it is."""
    row_shape, dtype = values.shape[1:], np.dtype(dtype or values.dtype)
    if 0 in values.shape:
        file.create_dataset(name, data=values)
        return
    rows = max(1, CHUNK_BYTES // (int(np.prod(row_shape, dtype=np.int64)) * dtype.itemsize))
    dataset = file.create_dataset(
        name,
        shape=values.shape,
        maxshape=(None, *row_shape),
        dtype=dtype,
        chunks=(rows, *row_shape),
        compression="gzip",
        compression_opts=1,  # nearly as small as 9 on images and many times faster
        shuffle=True,
    )
    for low in range(0, len(values), rows):
        dataset[low : low + rows] = values[low : low + rows]


def write_frames_beside(folder: Path, frames: Array) -> tuple[str, str]:
    """Write frames unless their file is there; return its name and SHA-256."""
    stream = io.BytesIO()
    np.save(stream, frames, allow_pickle=False)
    content = stream.getvalue()
    checksum = hashlib.sha256(content).hexdigest()
    path = folder / f"targets_{checksum[:12]}.npy"
    if not path.is_file() or path.stat().st_size != len(content):
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(content)
        partial.replace(path)
    return path.name, checksum


class _Reader:
    """Reads arrays of an untrusted file within a memory limit."""

    def __init__(self, file: h5py.File, path: Path, max_bytes: int) -> None:
        self.file, self.path, self.left = file, path, max_bytes
        self.honest = MAX_DEFLATE_RATIO * path.stat().st_size
        for name, allowed in (("format", (FORMAT,)), ("format_version", (FORMAT_VERSION, VERSION_BESIDE))):
            if (found := file.attrs.get(name)) not in allowed:
                given = f"{path} has {name} {found}"
                raise PredictionsError(given, allowed=" or ".join(map(str, allowed)), fix=AS_DOCUMENTED)

    def read(self) -> Predictions:
        task = self._text_fact(self.file.attrs, "task", None)
        found: dict[str, Any] = {n: self._text_fact(self.file.attrs, n, value) for n, value in TEXT_FACTS.items()}
        found |= {name: self._number_fact(name, default) for name, default in NUMBER_FACTS.items()}
        found |= {name: self._numbers(self.file, name) for name in NUMBER_ROWS}
        found |= {name: self._text_rows(name) for name in TEXT_ROWS}
        for name in ("class_values", "target_frames", "probabilities"):
            if name in self.file:
                found[name] = self._numbers(self.file, name)
        if "target_frames_file" in self.file.attrs:
            found["target_frames"] = self._frames_beside()
        found["mean_frames"] = {facts["recording_id"]: frame for facts, frame in self._entries("mean_frames")}
        intervals: dict[str, dict[str, Array]] = {}
        for facts, values in self._entries("split_intervals", "part"):
            intervals.setdefault(facts["recording_id"], {})[facts["part"]] = values
        if task == "frames":
            dataset = self._dataset(self.file, "prediction", "iuf", in_memory=False)
            found["prediction"] = StoredFrames(self.path, dataset.shape, dataset.dtype)
        else:
            found["prediction"] = self._numbers(self.file, "prediction")
        return Predictions(task=task, split_intervals=intervals, **found)  # type: ignore[arg-type]

    def _frames_beside(self) -> Array:
        name, checksum = (self._text_fact(self.file.attrs, f"target_frames_{n}", None) for n in ("file", "sha256"))
        if Path(name).name != name or not name.endswith(".npy"):
            raise PredictionsError(
                f"{self.path} has target_frames_file '{name}'", allowed="an .npy file beside it", fix=AS_DOCUMENTED
            )
        path = self.path.with_name(name)
        if not path.is_file():
            raise PredictionsError(f"{self.path} lacks its target frames, {path}", fix="keep both files in one folder")
        self._take(name, path.stat().st_size, self.left)
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != checksum:
                given = f"{path} does not hold the target frames of {self.path.name}"
                raise PredictionsError(given, fix="take it from the folder that the file was written to")
        # Mapped first: a header that claims more than the file holds is refused before memory is taken.
        return np.array(np.load(path, mmap_mode="r", allow_pickle=False))

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

    def _text_fact(self, attributes: h5py.AttributeManager, name: str, default: str | None) -> str:
        value = attributes.get(name, default)
        if isinstance(value, bytes):
            value = value.decode("utf-8")
        if not isinstance(value, str):
            problem = f"lacks attribute '{name}'" if value is None else f"has attribute '{name}' that is no text"
            raise PredictionsError(f"{self.path} {problem}", fix=AS_DOCUMENTED)
        return value

    def _number_fact(self, name: str, default: float) -> float:
        value = np.asarray(self.file.attrs.get(name, default))
        if value.shape != () or value.dtype.kind not in "iuf" or (name == "seed" and value % 1 != 0):
            given = f"{self.path} has attribute '{name}' {value!s}"
            raise PredictionsError(given, allowed="a number", fix=AS_DOCUMENTED)
        return int(value) if name == "seed" else float(value)

    def _numbers(self, group: h5py.Group, name: str) -> Array:
        return np.asarray(self._dataset(group, name, "iuf")[()])

    def _member(self, group: h5py.Group, name: str, kind: type) -> Any:
        """Take a member by a plain link only: soft and external links may point anywhere."""
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink) or not isinstance(group[name], kind):
            raise PredictionsError(f"{self.path}: '{name}' is missing or not stored in the file", fix=AS_DOCUMENTED)
        return group[name]

    def _dataset(self, group: h5py.Group, name: str, kinds: str, *, in_memory: bool = True) -> h5py.Dataset:
        dataset = self._member(group, name, h5py.Dataset)
        if dataset.dtype.kind not in kinds or dataset.shape is None:
            allowed = "fixed-length text, numpy's dtype 'S'" if kinds == "S" else "integers or floats"
            raise PredictionsError(f"{self.path}: '{name}' has type {dataset.dtype}", allowed=allowed, fix="convert it")
        if dataset.external or dataset.is_virtual:
            raise PredictionsError(f"{self.path}: '{name}' is stored in another file", fix=AS_DOCUMENTED)
        self._take(name, dataset.nbytes, self.honest, in_memory=in_memory)
        return dataset

    def _take(self, name: str, num_bytes: int, limit: int, *, in_memory: bool = True) -> None:
        """Refuse an array that is too large, and count one that is read."""
        if in_memory:
            limit = min(limit, self.left)
            self.left -= num_bytes
        if num_bytes > limit:
            given = f"{self.path}: '{name}' claims {num_bytes} bytes"
            fix = "raise max_bytes if the file is really that large"
            raise PredictionsError(given, allowed=f"at most {limit}", fix=fix)
