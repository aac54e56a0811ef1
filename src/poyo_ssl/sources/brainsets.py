"""Files of ``brainsets prepare allen_visual_coding_ophys_2016``: checked, then linked to or copied, never rewritten.

What that layout has not, a recording lacks: exact timestamps (there is a mean rate), the animal (there is the
container), blank sweeps and pixels.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from poyo_ssl.data.hdf5 import (
    decode,
    get_dataset,
    get_group,
    is_hdf5,
    name_of,
    open_hdf5,
    read_numbers,
    read_texts,
    refuse_links_outside,
    require_dataset,
    require_numbers,
)
from poyo_ssl.data.recording import BLANKS_SUFFIX, BRAINSET_ID, Recording
from poyo_ssl.errors import RecordingError
from poyo_ssl.files import written_whole
from poyo_ssl.sources.base import FilledTraces, Notes, Source, require_increasing
from poyo_ssl.sources.tables import Companions, check_line

KINDS = ("Data", "ArrayDict", "Interval", "RegularTimeSeries", "IrregularTimeSeries")
NUMBERS = ("orientation", "temporal_frequency", "spatial_frequency", "phase", "frame", "repeat", "pixel_size")
"""Columns of stimuli that are numbers, as are those whose name ends in ``_id``."""

COLUMNS = {
    "drifting_gratings": ("orientation", "temporal_frequency"),
    "static_gratings": ("orientation", "spatial_frequency", "phase"),
    "natural_scenes": ("frame",),
    "natural_movie": ("frame", "repeat"),
    "locally_sparse_noise": ("frame",),
}
"""What the stimuli whose name begins so must say of each presentation."""

REQUIRED = {"calcium_traces": "RegularTimeSeries", "rois": "ArrayDict", "domain": "Interval", "session": "Data"}
FIX = "prepare it again with brainsets"


@dataclass(frozen=True)
class BrainsetsSource(Source):
    """Files of ``brainsets prepare allen_visual_coding_ophys_2016``.

    Parameters
    ----------
    how : {'link', 'copy', 'rewrite'}
        'link' makes a hard link, or a copy on another disk; 'copy' always copies; 'rewrite' writes the recording
        anew, which is needed where something has to be left out.
    pixels : path, optional
        Folder with the pixels of the stimuli by name, as npy, mp4, gif or a folder of pictures.

    Examples
    --------
    >>> from poyo_ssl import BrainsetsSource, convert
    >>> outcomes = convert(BrainsetsSource(how="copy"), Path("processed"), Path("data"))  # doctest: +SKIP
    """

    name: ClassVar[str] = "brainsets"

    how: Literal["link", "copy", "rewrite"] = "link"
    pixels: Path | None = None

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Tell whether `path` is an HDF5 file with calcium traces in the layout."""

        def has_traces(file: h5py.File) -> bool:
            return _kind(file) == "Data" and get_group(file, "calcium_traces") is not None

        return is_hdf5(path, ".h5", has_traces)

    def find(self, input: Path) -> list[Path]:
        """Return the file, or every ``*.h5`` of the folder or of the brainset's folder in it."""
        if input.is_file():
            return [input]
        for folder in (input, input / BRAINSET_ID):
            paths = sorted(folder.glob("*.h5"))
            if paths:
                return paths
        raise RecordingError(f"no *.h5 in {input} or its {BRAINSET_ID}", fix="give a folder that brainsets prepared")

    def files(self, path: Path) -> list[Path]:
        """Return the file and the pixels."""
        pixels = self.pixels.rglob("*") if self.pixels is not None else ()
        return [path, *sorted(item for item in pixels if item.is_file())]

    def movies(self, path: Path) -> Iterator[tuple[str, Any]]:
        """Give the pixels of the folder that was named, if any; the layout has none."""
        if self.pixels is not None:
            yield from Companions(pixels=self.pixels).read_movies(path.parent)

    def read(self, path: Path) -> Recording:
        """Return the recording of one file; its dF/F stays where it is."""
        notes = Notes()
        with open_hdf5(path) as file:
            refuse_links_outside(file)
            _check_objects(file)
            _check_traces(file)
            _check_tables(file, notes)
            exact, animal = "imaging_clock" in file, "animal_id" in file.get("subject", file).attrs
        recording = Recording.open(path)
        if recording.recording_id != path.stem:
            raise RecordingError(
                f"{path} holds session '{recording.recording_id[:80]}'",
                allowed="a file called after its session",
                fix=f"rename it to {recording.recording_id[:80]}.h5",
            )
        if not exact:
            notes.add("no exact timestamps: those of the mean rate are used")
        if not animal:
            notes.add("no animal: the container, of which an animal may have several, is taken as one")
        check_line(recording.metadata, notes)
        return replace(recording, warnings=(*recording.warnings, *notes))

    def save(self, recording: Recording, path: Path, target: Path) -> None:
        """Link to the file or copy it; write a recording anew only if that was asked for."""
        if self.how == "rewrite":
            recording.save(target, overwrite=True)
            return
        if isinstance(recording.dff, FilledTraces):
            found = next(line for line in recording.warnings if line.endswith((": left out", ": masked")))
            raise RecordingError(
                f"{path} cannot be taken as it is: {found.rpartition(':')[0]}",
                fix="pass --how rewrite to write it without them",
            )
        _place(path.resolve(), target, link=self.how == "link")


def _place(path: Path, target: Path, *, link: bool) -> None:
    """Make `target` the same file or the same bytes, whole or not at all."""
    if target.resolve() == path or (link and target.exists() and target.samefile(path)):
        # Renaming one link to another of the same file would do nothing and leave both.
        return
    with written_whole(target) as beside:
        try:
            if not link:
                raise OSError
            os.link(path, beside)
        except OSError:
            # Another disk, or one without hard links.
            shutil.copyfile(path, beside)


def _kind(group: h5py.Group) -> str:
    return decode(group.attrs.get("object", ""))


def _refuse(item: h5py.Group | h5py.Dataset, problem: str, allowed: str | None = None) -> RecordingError:
    return RecordingError(f"{name_of(item)}{problem}", allowed=allowed, fix=FIX)


def _check_objects(file: h5py.File) -> None:
    """Refuse groups without a known `object`, missing ones, and arrays that are kept elsewhere or claim too much."""
    if _kind(file) != "Data":
        problem = f"{file.filename} is no object 'Data' but '{_kind(file)[:40]}'"
        raise RecordingError(problem, fix="give a file that brainsets prepared")
    for name, kind in REQUIRED.items():
        group = get_group(file, name)
        if group is None:
            raise RecordingError(f"{file.filename}: no group '{name}' (found: {', '.join(file)})", fix=FIX)
        if _kind(group) != kind:
            raise _refuse(group, f" is an object '{_kind(group)[:40]}'", kind)
    for group in _groups(file).values():
        if _kind(group) not in KINDS:
            has = f"object {_kind(group)[:40]!r}" if _kind(group) else "no attribute object"
            raise _refuse(group, f" has {has}", ", ".join(KINDS))
        for key in group:
            dataset = get_dataset(group, key)
            if dataset is None:
                continue
            if dataset.dtype.kind != "S":
                whole = dataset.name != "/calcium_traces/df_over_f"
                require_numbers(dataset, dataset.ndim or 1, whole=whole)
            elif dataset.ndim != 1:
                raise _refuse(dataset, f" has shape {dataset.shape}", "a list of texts")
            else:
                read_texts(dataset)


def _groups(file: h5py.File) -> dict[str, h5py.Group]:
    return {name: group for name in file if (group := get_group(file, name)) is not None}


def _require(group: h5py.Group, name: str, ndim: int) -> h5py.Dataset:
    dataset = require_dataset(group, name, fix=FIX)
    require_numbers(dataset, ndim, whole=False)
    return dataset


def _check_traces(file: h5py.File) -> None:
    """Refuse traces that do not fit to their rate and domain, or to the ROIs."""
    group = file["calcium_traces"]
    dataset = _require(group, "df_over_f", 2)
    rate = group.attrs.get("sampling_rate")
    if not isinstance(rate, (float, int, np.floating, np.integer)) or not (np.isfinite(rate) and rate > 0):
        raise _refuse(group, f": sampling_rate is {rate!r}", "above 0 Hz")
    num_frames, num_units = dataset.shape
    domain = get_group(group, "domain")
    if domain is None:
        raise _refuse(group, " has no 'domain'")
    spans = _read_domain(domain)
    rois = require_dataset(file["rois"], "id", fix=FIX)
    claimed = float(spans[-1, 1] - spans[0, 0]) * float(rate)
    if abs(claimed - num_frames) > 1.5:
        turned = abs(claimed - num_units) <= 1.5 and rois.shape == (num_frames,)
        problem = f" has shape {dataset.shape} for a domain of {claimed:.6g} frames{': transposed' if turned else ''}"
        raise _refuse(dataset, problem, "(frames, ROIs)")
    for key in file["rois"]:
        column = get_dataset(file["rois"], key)
        if column is not None and column.shape[:1] != (num_units,):
            raise _refuse(column, f" has shape {column.shape} for {num_units} traces", "one per ROI")


def _read_domain(group: h5py.Group) -> NDArray[np.float64]:
    """Return the intervals of a domain, of which there must be some."""
    spans = _read_spans(group)
    if not len(spans):
        raise _refuse(group, " is empty", "the time that was imaged")
    return spans


def _read_spans(group: h5py.Group) -> NDArray[np.float64]:
    """Return the intervals of a group ``(K, 2)``; refuse those that are not finite or not in order."""
    start, end = (read_numbers(_require(group, name, 1), 1).astype(np.float64) for name in ("start", "end"))
    if len(start) != len(end):
        raise _refuse(group, f" has {len(start)} starts and {len(end)} ends", "as many")
    bad = np.flatnonzero(~(np.isfinite(start) & np.isfinite(end) & (end >= start)))
    if not len(bad):
        bad = np.flatnonzero(np.diff(start) < 0) + 1
    if len(bad):
        problem = f": row {bad[0]} runs from {start[bad[0]]:g} to {end[bad[0]]:g} s"
        raise _refuse(group, problem, "finite times in their order, end not before start")
    return np.stack([start, end], axis=1)


def _check_tables(file: h5py.File, notes: Notes) -> None:
    """Refuse intervals and series that are out of order, of unequal length or outside the recording."""
    whole = _read_domain(file["domain"])
    first, last = whole[0, 0], whole[:, 1].max()
    frame_s = 1 / float(file["calcium_traces"].attrs["sampling_rate"])
    if "spontaneous_domain" not in file:
        # Every session of the Allen's has some.
        notes.add("no spontaneous_domain: when the screen was gray is not known")
    for name, group in _groups(file).items():
        if _kind(group) == "IrregularTimeSeries":
            times = read_numbers(_require(group, "timestamps", 1), 1)
            require_increasing(times, name_of(group), FIX)
            _check_lengths(group, len(times))
        if _kind(group) != "Interval" or name == "domain":
            continue
        spans = _read_spans(group)
        _check_lengths(group, len(spans))
        # A recording that was prepared here has an empty one as a rule.
        if not len(spans) and name != "masked_domain":
            notes.add(f"{name} is empty")
        if name.endswith("_domain"):
            shown = name.removesuffix("_domain")
            if shown.startswith(tuple(COLUMNS)) and not any(shown.startswith(key) for key in file):
                notes.add(f"no table {shown}: {name} says that it was shown")
            continue
        bad = np.flatnonzero((spans[:, 0] < first - frame_s) | (spans[:, 1] > last + frame_s))
        if len(bad):
            start, end = spans[bad[0]]
            problem = f": row {bad[0]} ({start:g} to {end:g} s) lies outside the recording"
            raise _refuse(group, problem, f"{first:g} to {last:g} s")
        # The two noises of session C2 share a table and have a domain each.
        known = name.removesuffix(BLANKS_SUFFIX)
        if not any(key.startswith(known) and key.endswith("_domain") for key in file):
            notes.add(f"no {name}_domain: the blocks of {name} are not known")
        _check_columns(name, group, notes)


def _check_columns(name: str, group: h5py.Group, notes: Notes) -> None:
    """Refuse a stimulus that lacks a column, or has a text where a number belongs; note missing codes of classes."""
    wanted = {key for kind, keys in COLUMNS.items() if name.startswith(kind) for key in keys}
    numbers = {key for key in group if key in NUMBERS or key.endswith("_id")}
    for key in sorted(wanted | numbers):
        _require(group, key, 1)
    codes = sorted(f"{key}_id" for key in wanted if name.endswith("_gratings"))
    missing = [key for key in codes if key not in group]
    if missing:
        notes.add(f"{name} has no {', '.join(missing)}: what was shown cannot be decoded by them")


def _check_lengths(group: h5py.Group, length: int) -> None:
    for key in group:
        column = get_dataset(group, key)
        if column is not None and not key.startswith("timestamp_indices") and column.shape[:1] != (length,):
            raise _refuse(column, f" has shape {column.shape} for {length} rows", "one value per row")
