"""Pickled dictionaries of suite2p, read without running anything that is in them."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from poyo_ssl.errors import RecordingError
from poyo_ssl.sources.array_files import FIX_FILE

REMEDY = "give what is needed from it by hand (--rate_hz), and remove it"
MAX_ITEM_BYTES = 4096
"""Of one element of an array; a pickle could ask for more than the memory holds."""


class _Sealed:
    """Stands for an object that is not wanted, such as a path or a date, or for a class that must not be called."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        del state


class _DType:
    """Stands for ``numpy.dtype``: plain types only, whatever state a pickle tries to give it."""

    def __init__(self, spec: str, *_: Any) -> None:
        self.dtype = np.dtype(spec if isinstance(spec, str) else "V0")
        if self.dtype.kind not in "biufcSUO" or self.dtype.itemsize > MAX_ITEM_BYTES:
            raise pickle.UnpicklingError(f"elements of type {str(spec)[:40]}")

    def __setstate__(self, state: Any) -> None:
        _, order, subarray, names, fields, *_ = state
        if subarray or names or fields:
            raise pickle.UnpicklingError("an array of structures")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands for an array until its numbers come, as the state (version, shape, dtype, Fortran order, content)."""

    def __init__(self, *_: Any) -> None:
        self.array: np.ndarray = np.empty(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, content = state
        dtype = kind.dtype
        if dtype.hasobject:
            flat = np.empty(len(content), object)
            flat[:] = list(content)
        else:
            flat = np.frombuffer(content.encode("latin1") if isinstance(content, str) else content, dtype)
        # Refuses a shape that is not that of the content.
        self.array = flat.reshape(shape, order="F" if fortran else "C")


def _scalar(kind: _DType, content: Any = b"") -> Any:
    if kind.dtype.hasobject:
        raise pickle.UnpicklingError("a scalar of objects")
    return np.frombuffer(content.encode("latin1") if isinstance(content, str) else content, kind.dtype, count=1)[0]


def _bytes_of(text: str, encoding: str) -> bytes:
    """How protocols below 3 write bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in {encoding}")
    return text.encode("latin1")


def _unwrap(value: Any, seen: dict[int, Any]) -> Any:
    """Replace what stands for arrays by arrays; `seen` keeps what is referred to many times from being copied."""
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, _Array):
        array = value.array
        if array.dtype.hasobject:
            array = array.copy()
            seen[id(value)] = array
            for index, item in enumerate(array.flat):
                array.flat[index] = _unwrap(item, seen)
        seen[id(value)] = array
    elif isinstance(value, dict):
        seen[id(value)] = {}
        seen[id(value)].update((key, _unwrap(item, seen)) for key, item in value.items())
    elif isinstance(value, (list, tuple)):
        seen[id(value)] = []
        seen[id(value)].extend(_unwrap(item, seen) for item in value)
    else:
        return value
    return seen[id(value)]


ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Sealed,
    ("numpy", "dtype"): _DType,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _bytes_of,
    **{
        (f"numpy.{core}.{module}", name): function
        for core in ("core", "_core")
        for module in ("multiarray", "_multiarray_umath")
        for name, function in (("_reconstruct", _Array), ("scalar", _scalar))
    },
    **{
        (module, name): _Sealed
        for module in ("pathlib", "pathlib._local")
        for name in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
    },
    # suite2p notes when it ran.
    **{("datetime", name): _Sealed for name in ("datetime", "date", "time", "timedelta", "timezone")},
}
"""Everything that a pickle may name, and what stands for it."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a global, or refuse it."""
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it would run {module}.{name}")
        return ALLOWED[module, name]

    def persistent_load(self, identity: Any) -> Any:
        """Refuse references to outside of the file."""
        raise pickle.UnpicklingError(f"it refers to {identity!r} outside of it")


def load_pickled(path: Path) -> Any:
    """Return the pickled content of a npy file: dictionaries, lists, texts, numbers and arrays, and nothing else.

    Raises
    ------
    RecordingError
        If the file is missing or damaged, or names anything outside `ALLOWED`, which is then not run.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "ops.npy"
    >>> np.save(path, np.array({"fs": 30.0, "where": Path("x")}), allow_pickle=True)
    >>> load_pickled(path)["fs"]
    30.0
    >>> np.save(path, np.array({"fs": eval}), allow_pickle=True)
    >>> load_pickled(path)
    Traceback (most recent call last):
    poyo_ssl.errors.RecordingError: ...ops.npy is not unpickled: it would run builtins.eval; ...
    """
    if not path.is_file():
        raise RecordingError(f"no file {path}", fix=REMEDY)
    try:
        with path.open("rb") as stream:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(stream)
            if not dtype.hasobject:
                raise RecordingError(f"{path} holds {dtype}", allowed="a pickled dictionary", fix=REMEDY)
            content = _unwrap(_Unpickler(stream, encoding="latin1").load(), {})
        if not (isinstance(content, np.ndarray) and content.dtype == object and content.shape == tuple(shape)):
            raise RecordingError(f"{path} is damaged", fix=FIX_FILE)
    except RecordingError:
        raise
    except Exception as error:
        # A damaged pickle lets the allowed functions be called with anything.
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise RecordingError(f"{path} is not unpickled: {text}", fix=REMEDY) from None
    return content.item() if content.shape == () else list(content)
