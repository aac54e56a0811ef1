"""Files of ``brainsets prepare allen_visual_coding_ophys_2016``: checked, then linked to or copied, never rewritten.

What that layout has not, a recording lacks: exact timestamps (there is a mean rate), the animal (there is the
container), blank sweeps and pixels.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from poyo_ssl.data.hdf5 import (
    get,
    get_dataset,
    get_group,
    is_hdf5,
    name_of,
    open_hdf5,
    read_numbers,
    read_texts,
    refuse_links_outside,
    require_numbers,
)
from poyo_ssl.data.recording import Recording
from poyo_ssl.data.recording_file import BLANKS_SUFFIX, BRAINSET_ID
from poyo_ssl.errors import RecordingError
from poyo_ssl.sources.base import FilledTraces, Notes, Source
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

    Attributes
    ----------
    how : {'link', 'copy', 'rewrite'}
        'link' makes a hard link, or a copy on another disk; 'copy' always copies; 'rewrite' writes the recording
        anew, which is needed where something has to be left out.
    pixels : path, optional
        Folder with the pixels of the stimuli by name, as npy, mp4, gif or a folder of pictures.

    Examples
    --------
    >>> import tempfile
    >>> from poyo_ssl.data.recording import RecordingMetadata
    >>> folder = Path(tempfile.mkdtemp())
    >>> dff = np.random.default_rng(0).normal(size=(90, 2))
    >>> made = Recording("501", dff, np.arange(90) / 30, RecordingMetadata("m"))
    >>> path = made.save(folder / "501.h5")
    >>> BrainsetsSource().read(path).dff.shape
    (90, 2)
    """

    name: ClassVar[str] = "brainsets"

    how: Literal["link", "copy", "rewrite"] = "link"
    pixels: Path | None = None

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Tell whether `path` is an HDF5 file with calcium traces in the layout."""
        return is_hdf5(
            path, ".h5", lambda file: _kind(file) == "Data" and get_group(file, "calcium_traces") is not None
        )

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
        """Return the recording of one file; its dF/F stays where it is.

        Raises
        ------
        RecordingError
            If the file is damaged or of another layout, or its groups do not fit together.
        """
        warnings = Notes()
        with open_hdf5(path) as file:
            refuse_links_outside(file)
            _check_objects(file)
            _check_traces(file)
            _check_tables(file, warnings)
            exact, animal = "imaging_clock" in file, "animal_id" in file.get("subject", file).attrs
        recording = Recording.open(path)
        if recording.recording_id != path.stem:
            raise RecordingError(
                f"{path} holds session '{recording.recording_id[:80]}'",
                allowed="a file called after its session",
                fix=f"rename it to {recording.recording_id[:80]}.h5",
            )
        if not exact:
            warnings.append("no exact timestamps: those of the mean rate are used")
        if not animal:
            warnings.append("no animal: the container, of which an animal may have several, is taken as one")
        check_line(recording.metadata, warnings)
        recording.warnings += tuple(warnings)
        return recording

    def save(self, recording: Recording, path: Path, target: Path) -> None:
        """Link to the file or copy it; a recording that had to be changed is written anew if that was asked for.

        Raises
        ------
        RecordingError
            If the file cannot be taken as it is.
        """
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
    beside = target.with_name(target.name + ".partial")
    beside.unlink(missing_ok=True)
    try:
        try:
            if not link:
                raise OSError
            os.link(path, beside)
        except OSError:
            # Another disk, or one without hard links.
            shutil.copyfile(path, beside)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def _kind(group: h5py.Group) -> str:
    value = group.attrs.get("object", "")
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _check_objects(file: h5py.File) -> None:
    """Refuse groups without a known `object`, missing ones, and arrays that are kept elsewhere or claim too much."""
    if _kind(file) != "Data":
        raise RecordingError(
            f"{file.filename} is no object 'Data' but '{_kind(file)[:40]}'", fix="give a file that brainsets prepared"
        )
    for name, kind in REQUIRED.items():
        group = get_group(file, name)
        if group is None:
            raise RecordingError(f"{file.filename}: no group '{name}' (found: {', '.join(file)})", fix=FIX)
        if _kind(group) != kind:
            raise RecordingError(f"{name_of(group)} is an object '{_kind(group)[:40]}'", allowed=kind, fix=FIX)
    for name in file:
        group = get_group(file, name)
        if group is None:
            continue
        if _kind(group) not in KINDS:
            raise RecordingError(
                f"{name_of(group)} has {f'object {_kind(group)[:40]!r}' if _kind(group) else 'no attribute object'}",
                allowed=", ".join(KINDS),
                fix=FIX,
            )
        for key in group:
            item = get(group, key)
            if isinstance(item, h5py.Dataset):
                _check_array(item)


def _check_array(dataset: h5py.Dataset) -> None:
    if dataset.dtype.kind == "S":
        if dataset.ndim != 1:
            raise RecordingError(f"{name_of(dataset)} has shape {dataset.shape}", allowed="a list of texts", fix=FIX)
        read_texts(dataset)
    else:
        require_numbers(dataset, dataset.ndim or 1, whole=dataset.name != "/calcium_traces/df_over_f")


def _require(group: h5py.Group, name: str, ndim: int) -> h5py.Dataset:
    dataset = get_dataset(group, name)
    if dataset is None:
        raise RecordingError(f"{name_of(group)} has no '{name}' (found: {', '.join(group)})", fix=FIX)
    require_numbers(dataset, ndim, whole=False)
    return dataset


def _check_traces(file: h5py.File) -> None:
    """Refuse traces that do not fit to their rate and domain, or to the ROIs."""
    group = file["calcium_traces"]
    dataset = _require(group, "df_over_f", 2)
    rate = group.attrs.get("sampling_rate")
    if not isinstance(rate, (float, int, np.floating, np.integer)) or not (np.isfinite(rate) and rate > 0):
        raise RecordingError(f"{name_of(group)}: sampling_rate is {rate!r}", allowed="above 0 Hz", fix=FIX)
    num_frames, num_units = dataset.shape
    domain = get_group(group, "domain")
    if domain is None:
        raise RecordingError(f"{name_of(group)} has no 'domain'", fix=FIX)
    spans = _read_spans(domain)
    if not len(spans):
        raise RecordingError(f"{name_of(domain)} is empty", allowed="the time that was imaged", fix=FIX)
    rois = get_dataset(file["rois"], "id")
    if rois is None:
        raise RecordingError(f"{name_of(file['rois'])} has no 'id'", fix=FIX)
    claimed = float(spans[-1, 1] - spans[0, 0]) * float(rate)
    if abs(claimed - num_frames) > 1.5:
        turned = abs(claimed - num_units) <= 1.5 and rois.shape == (num_frames,)
        raise RecordingError(
            f"{name_of(dataset)} has shape {dataset.shape} for a domain of {claimed:.6g} frames"
            + (": transposed" if turned else ""),
            allowed="(frames, ROIs)",
            fix=FIX,
        )
    for key in file["rois"]:
        column = get_dataset(file["rois"], key)
        if column is not None and column.shape[:1] != (num_units,):
            raise RecordingError(
                f"{name_of(column)} has shape {column.shape} for {num_units} traces", allowed="one per ROI", fix=FIX
            )


def _read_spans(group: h5py.Group) -> NDArray[np.float64]:
    """Return the intervals of a group ``(K, 2)`` after checking them.

    Raises
    ------
    RecordingError
        If they are not finite or not in order.
    """
    start, end = (read_numbers(_require(group, name, 1), 1).astype(np.float64) for name in ("start", "end"))
    if len(start) != len(end):
        raise RecordingError(f"{name_of(group)}: {len(start)} starts and {len(end)} ends", allowed="as many", fix=FIX)
    bad = np.flatnonzero(~(np.isfinite(start) & np.isfinite(end) & (end >= start)))
    if not len(bad):
        bad = np.flatnonzero(np.diff(start) < 0) + 1
    if len(bad):
        row = int(bad[0])
        raise RecordingError(
            f"{name_of(group)}: row {row} runs from {start[row]:g} to {end[row]:g} s",
            allowed="finite times in their order, end not before start",
            fix=FIX,
        )
    return np.stack([start, end], axis=1)


def _check_tables(file: h5py.File, warnings: list[str]) -> None:
    """Refuse intervals and series that are out of order, of unequal length or outside the recording."""
    whole = _read_spans(file["domain"])
    if not len(whole):
        raise RecordingError(f"{name_of(file['domain'])} is empty", allowed="the time that was imaged", fix=FIX)
    first, last = whole[0, 0], whole[:, 1].max()
    frame = 1 / float(file["calcium_traces"].attrs["sampling_rate"])
    if "spontaneous_domain" not in file:
        # Every session of the Allen's has some.
        warnings.append("no spontaneous_domain: when the screen was gray is not known")
    for name in file:
        group = get_group(file, name)
        if group is None or name == "domain":
            continue
        if _kind(group) == "Interval":
            spans = _read_spans(group)
            _check_lengths(group, len(spans))
            # A recording that was prepared here has an empty one as a rule.
            if not len(spans) and name != "masked_domain":
                warnings.append(f"{name} is empty")
            if name.endswith("_domain"):
                shown = name.removesuffix("_domain")
                if shown.startswith(tuple(COLUMNS)) and not any(shown.startswith(key) for key in file):
                    warnings.append(f"no table {shown}: {name} says that it was shown")
            else:
                _check_inside(group, spans, (first, last), frame)
                # The two noises of session C2 share a table and have a domain each.
                known = name.removesuffix(BLANKS_SUFFIX)
                if not any(key.startswith(known) and key.endswith("_domain") for key in file):
                    warnings.append(f"no {name}_domain: the blocks of {name} are not known")
                _check_columns(name, group, warnings)
        elif _kind(group) == "IrregularTimeSeries":
            times = read_numbers(_require(group, "timestamps", 1), 1)
            bad = np.flatnonzero(~(np.isfinite(times) & (np.diff(times, prepend=-np.inf) > 0)))
            if len(bad):
                raise RecordingError(
                    f"{name_of(group)}: timestamp {bad[0]} is {times[bad[0]]:g}",
                    allowed="finite seconds that increase",
                    fix=FIX,
                )
            _check_lengths(group, len(times))


def _check_columns(name: str, group: h5py.Group, warnings: list[str]) -> None:
    """Refuse a stimulus that lacks a column, or has a text where a number belongs; warn of missing codes of classes."""
    wanted = {key for kind, keys in COLUMNS.items() if name.startswith(kind) for key in keys}
    numbers = {key for key in group if key in NUMBERS or key.endswith("_id")}
    for key in sorted(wanted | numbers):
        _require(group, key, 1)
    codes = sorted(f"{key}_id" for key in wanted if name.endswith("_gratings"))
    missing = [key for key in codes if key not in group]
    if missing:
        warnings.append(f"{name} has no {', '.join(missing)}: what was shown cannot be decoded by them")


def _check_inside(group: h5py.Group, spans: NDArray[np.float64], whole: tuple[float, float], frame: float) -> None:
    """Refuse presentations that begin or end more than a frame outside the recording."""
    bad = np.flatnonzero((spans[:, 0] < whole[0] - frame) | (spans[:, 1] > whole[1] + frame))
    if len(bad):
        start, end = spans[bad[0]]
        raise RecordingError(
            f"{name_of(group)}: row {bad[0]} ({start:g} to {end:g} s) lies outside the recording",
            allowed=f"{whole[0]:g} to {whole[1]:g} s",
            fix=FIX,
        )


def _check_lengths(group: h5py.Group, length: int) -> None:
    for key in group:
        column = get_dataset(group, key)
        if column is not None and not key.startswith("timestamp_indices") and column.shape[:1] != (length,):
            raise RecordingError(
                f"{name_of(column)} has shape {column.shape} for {length} rows", allowed="one value per row", fix=FIX
            )
