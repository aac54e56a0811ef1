"""Every source there is, and which of them a path is for."""

from __future__ import annotations

from pathlib import Path

from poyo_ssl.data.hdf5 import get_dataset, open_hdf5
from poyo_ssl.errors import RecordingError
from poyo_ssl.sources.allen import AllenSource
from poyo_ssl.sources.arrays import ArraysSource
from poyo_ssl.sources.base import Source
from poyo_ssl.sources.brainsets import BrainsetsSource
from poyo_ssl.sources.events import EventsSource
from poyo_ssl.sources.nwb import NwbSource
from poyo_ssl.sources.run import record_path
from poyo_ssl.sources.suite2p import Suite2pSource

SOURCES: tuple[type[Source], ...] = (
    AllenSource,
    NwbSource,
    BrainsetsSource,
    Suite2pSource,
    # Before arrays, which would take their events for an array too.
    EventsSource,
    ArraysSource,
)
"""In the order in which a path is offered to them; a new source is one more line."""

HDF5_SUFFIXES = (".nwb", ".h5", ".hdf5")


def is_prepared(path: Path) -> bool:
    """Tell whether a file is of ``poyo-ssl prepare``: it has a record of that, or dF/F with the exact imaging clock."""
    if path.suffix != ".h5" or not path.is_file():
        return False
    if record_path(path.parent, path.stem).is_file():
        return True
    try:
        with open_hdf5(path) as file:
            wanted = ("calcium_traces/df_over_f", "imaging_clock/timestamps")
            return all(get_dataset(file, name) is not None for name in wanted)
    except RecordingError:
        return False


def recognise(path: Path) -> list[tuple[type[Source] | None, Path]]:
    """Return source (None for a prepared recording) and path of every recording of a path, sorted by path.

    The path is a recording of any source, a prepared one, or a folder of some, even of different sources.
    """
    if not path.exists():
        raise RecordingError(f"nothing at {path}", fix="check the path")
    # Where one file is known, the others of the folder are examined too: a damaged one must not go unseen.
    files = [path] if path.is_file() else sorted(path.glob("*.h5"))
    if any(is_prepared(item) for item in files):
        return [(None, item) for item in files]
    if kind := _kind_of(path):
        return [(kind, path)]
    if path.is_dir() and (found := _search(path)):
        return found
    if path.suffix.lower() in HDF5_SUFFIXES and path.is_file():
        # A file that cannot be opened at all is answered with the reason.
        with open_hdf5(path) as file:
            held = ", ".join(sorted(file)[:12]) or "nothing"
        raise RecordingError(f"{path} is HDF5 (holds {held}), but of no kind that is known", allowed=_known())
    raise RecordingError(f"{path} holds no recording of any kind that is known", allowed=_known())


def _kind_of(path: Path) -> type[Source] | None:
    return next((kind for kind in SOURCES if kind.recognises(path)), None)


def _search(folder: Path) -> list[tuple[type[Source] | None, Path]]:
    """Return what the sources find in a folder; what none recognises goes to the first that found it beside others."""
    found: dict[Path, type[Source] | None] = {}
    for kind in SOURCES:
        try:
            paths = kind().find(folder)
        except RecordingError:
            continue
        if any(kind.recognises(item) for item in paths):
            for item in paths:
                found.setdefault(item, _kind_of(item) or kind)
    return [(found[item], item) for item in sorted(found)]


def _known() -> str:
    return ", ".join(["prepared recordings", *(kind.name for kind in SOURCES)])
