"""Damage done to recording files: to single arrays and groups of HDF5 files, to npy files, and to bytes of any file."""

from dataclasses import dataclass

import h5py
import numpy as np
from hypothesis import strategies as st

TIMES = ("timestamps", "start", "end", "start_time", "stop_time", "frame_duration")
HUGE = 1 << 42


@dataclass(frozen=True)
class Mutation:
    """What is done to one file: `kind`, to which `item` in it, where, and with which number."""

    file: str
    kind: str
    item: str = ""
    place: float = 0.0
    number: int = 0

    @property
    def is_visible(self):
        """Whether a reader can see it: plausible values and tables that end early are beyond any reader."""
        return self.kind not in ("flip", "zero", "attribute") and not self.file.endswith(".csv")


def is_time(item):
    return item.rsplit("/", 1)[-1] in TIMES


def in_arrays(file, arrays):
    """Strategy of mutations of the arrays of a file; `arrays` has each one's dtype kind and shape by name."""
    choices = []
    for item, (kind, shape) in sorted(arrays.items()):
        ways = ["drop", "text", "complex", "claim"]
        if shape:
            ways += ["axis", "flatten", "cut", "cut many", "add", "empty"]
        if len(shape) == 2 and shape[0] != shape[1]:
            ways.append("turn")
        if is_time(item) and len(shape) == 1 and shape[0] > 2:
            ways += ["swap", "reverse"]
        if kind == "f" and shape and (is_time(item) or len(shape) == 2):
            ways += ["nan", "inf"]
        choices += [(item, way) for way in ways]
    return st.builds(
        lambda choice, place, number: Mutation(file, choice[1], choice[0], place, number),
        st.sampled_from(choices),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 255),
    )


def in_bytes(file):
    """Strategy of mutations of the bytes of a file."""
    return st.builds(
        lambda kind, place, number: Mutation(file, kind, "", place, number),
        st.sampled_from(["truncate", "flip", "zero"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 255),
    )


def in_groups(file, groups):
    """Strategy of mutations of groups and attributes of an HDF5 file."""
    return st.builds(
        lambda kind, item, place, number: Mutation(file, kind, item, place, number),
        st.sampled_from(["drop", "loop", "outside", "attribute"]),
        st.sampled_from(sorted(groups)),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 255),
    )


def change_array(values, mutation):
    """Return the mutated array."""
    if values.ndim and len(values) == 0:
        # Another mutation has emptied it.
        return values
    place = int(mutation.place * max(len(values) if values.ndim else 1, 1))
    match mutation.kind:
        case "text":
            return np.full(values.shape, b"x")
        case "complex":
            return values.astype(complex) if values.dtype.kind in "iufb" else values
        case "axis":
            return values[None]
        case "flatten":
            return values.ravel() if values.ndim > 1 else values[:, None]
        case "cut":
            return np.delete(values, place, axis=0)
        case "cut many":
            return values[: len(values) // 2]
        case "add":
            return np.concatenate([values, values[-1:]])
        case "empty":
            return values[:0]
        case "turn":
            return np.ascontiguousarray(values.T)
        case "swap":
            # Far enough apart to be seen, wherever it is.
            other = (place + len(values) // 2) % len(values)
            values = values.copy()
            values[[place, other]] = values[[other, place]]
            return values
        case "reverse":
            return values[::-1].copy()
        case "nan" | "inf":
            values = values.astype(float) if values.dtype.kind in "iub" else values.copy()
            values[place] = np.nan if mutation.kind == "nan" else np.inf
            return values
    raise AssertionError(mutation)


def mutate_hdf5(path, mutation):
    """Change a dataset, group or attribute."""
    with h5py.File(path, "a") as file:
        try:
            item = file[mutation.item]
        except (KeyError, OSError, RuntimeError):
            # Another mutation has removed it.
            return
        match mutation.kind:
            case "attribute":
                names = sorted(item.attrs)
                if names:
                    name = names[mutation.number % len(names)]
                    if mutation.place < 0.5:
                        del item.attrs[name]
                    else:
                        item.attrs[name] = [3.5, "text", b"\xff", [1, 2, 3]][mutation.number % 4]
                return
            case "drop":
                del file[mutation.item]
                return
            case "loop":
                del file[mutation.item]
                file[mutation.item] = h5py.SoftLink("/" + mutation.item)
                return
            case "outside":
                del file[mutation.item]
                file[mutation.item] = h5py.ExternalLink("elsewhere.h5", "/")
                return
        if item.nbytes > 1 << 28:
            # Another mutation has claimed that much.
            return
        attributes = dict(item.attrs)
        if mutation.kind == "claim":
            shape, dtype = (HUGE, *item.shape[1:]), item.dtype
            del file[mutation.item]
            file.create_dataset(mutation.item, shape, dtype, chunks=tuple(min(size, 1 << 16) for size in shape))
        else:
            values = change_array(np.asarray(item[()]), mutation)
            del file[mutation.item]
            file[mutation.item] = values
        for name, value in attributes.items():
            file[mutation.item].attrs[name] = value


def mutate_npy(path, mutation):
    """Change the array of a npy file."""
    try:
        values = np.load(path)
    except (ValueError, MemoryError):
        # Another mutation has claimed too much.
        return
    if mutation.kind == "drop":
        path.unlink()
    elif mutation.kind == "claim":
        with path.open("wb") as stream:
            header = {"descr": values.dtype.str, "fortran_order": False, "shape": (HUGE, *values.shape[1:])}
            np.lib.format.write_array_header_1_0(stream, header)
    else:
        np.save(path, change_array(values, mutation))


def mutate_bytes(path, mutation):
    """Cut a file, flip a bit, or clear some bytes."""
    content = bytearray(path.read_bytes())
    place = int(mutation.place * len(content))
    if mutation.kind == "truncate":
        content = content[:place]
    elif content and mutation.kind == "flip":
        content[place] ^= 1 << (mutation.number % 8)
    else:
        content[place : place + mutation.number] = bytes(len(content[place : place + mutation.number]))
    path.write_bytes(bytes(content))


def mutate(folder, mutation):
    """Do `mutation` to the files below `folder`."""
    path = folder / mutation.file
    if not path.exists():
        # Another mutation has removed it.
        return
    if mutation.kind in ("truncate", "flip", "zero"):
        mutate_bytes(path, mutation)
    elif path.suffix == ".npy":
        mutate_npy(path, mutation)
    else:
        mutate_hdf5(path, mutation)
