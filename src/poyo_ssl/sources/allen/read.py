"""The source `allen`: Allen Brain Observatory NWB 1 files, read with h5py alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from poyo_ssl.data.recording import Recording
from poyo_ssl.data.series import PupilTrace, RoiMasks, TimeSeries
from poyo_ssl.errors import RecordingError
from poyo_ssl.sources.allen.about import read_metadata
from poyo_ssl.sources.allen.stimuli import KNOWN, TEMPLATES, Clock, read_stimuli
from poyo_ssl.sources.allen.traces import DFF, PIPELINE, RoiTraces, find_traces, read_clock
from poyo_ssl.sources.behaviour import make_pupil, make_running
from poyo_ssl.sources.checks import name_rows
from poyo_ssl.sources.hdf5 import (
    get,
    get_dataset,
    get_group,
    is_hdf5,
    name_of,
    open_hdf5,
    read_numbers,
    read_small,
    read_text,
    read_texts,
    require_numbers,
)
from poyo_ssl.sources.source import Source

SEGMENTATION = f"{PIPELINE}/ImageSegmentation"
PLANE = f"{SEGMENTATION}/imaging_plane_1"
DATA_FOLDER = "ophys_experiment_data"
PLANE_SHAPE = (512, 512)
MAX_PLANE_PIXELS = 4096


@dataclass(frozen=True)
class AllenSource(Source):
    """Allen Brain Observatory, Visual Coding two-photon: NWB 1 files of pipelines 0.9 to 3.0.

    Attributes
    ----------
    max_trim_frames : int
        dF/F and timestamps may differ by so many frames, which are trimmed with a warning.
    """

    max_trim_frames: int = 1
    name = "allen"

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Tell whether `path` is an HDF5 file with the Allen's pipeline module or a text of NWB 1."""
        return is_hdf5(
            path,
            ".nwb",
            lambda file: get(file, PIPELINE) is not None or read_text(file, "nwb_version").startswith("NWB-1"),
        )

    def find(self, input: Path) -> list[Path]:
        """Return the file itself, or every ``*.nwb`` of a folder or of its ``ophys_experiment_data``."""
        if input.is_file():
            return [input]
        for folder in (input / DATA_FOLDER, input):
            paths = sorted(folder.glob("*.nwb"))
            if paths:
                return paths
        raise RecordingError(
            f"no *.nwb in {input} or its {DATA_FOLDER}",
            fix="give a folder of Allen files, or get some with 'prepare allen --download'",
        )

    def read(self, path: Path) -> Recording:
        """Return the recording of one file; its dF/F stays on disk where it is stored contiguously.

        Raises
        ------
        RecordingError
            If the file is damaged or of another layout, or traces, ROIs, clock and stimuli do not fit together.
        """
        with open_hdf5(path) as file:
            _require_pipeline(file, path)
            return self._read(file, path)

    def _read(self, file: h5py.File, path: Path) -> Recording:
        warnings: list[str] = []
        times = read_clock(file)
        ids = _read_identities(file)
        dataset = find_traces(file, DFF, len(times), ids.count, self.max_trim_frames)
        ids.check(file, dataset.shape[0], warnings)
        longest = max(len(times), dataset.shape[1])
        num_frames = min(len(times), dataset.shape[1])
        if num_frames < 2:
            raise RecordingError(
                f"{name_of(dataset)}: {num_frames} imaging frames", allowed="2 or more", fix="check it"
            )
        if longest > num_frames:
            warnings.append(f"{dataset.shape[1]} frames of dF/F and {len(times)} timestamps: trimmed to {num_frames}")
        times = times[:num_frames]
        metadata = read_metadata(file, warnings)
        recording_id = self.recording_id(path)
        named = read_text(file, "general/session_id") or read_text(file, "general/ophys_experiment_id")
        if named != recording_id:
            warnings.append(f"the file says that it is experiment '{named}'; called {recording_id} after its name")
        stimuli = read_stimuli(file, Clock(times, longest), metadata.session_type, warnings)
        masks = _read_masks(file, ids.roi_list, warnings)
        motion = _read_motion(file, warnings)
        running = _read_running(file, warnings)
        pupil = _read_pupil(file, warnings)
        return Recording(
            recording_id,
            RoiTraces(dataset, num_frames),
            times,
            metadata,
            unit_ids=np.array(ids.roi_ids, dtype=np.str_),
            cell_specimen_ids=ids.cell_specimen_ids,
            stimuli=stimuli.tables,
            epochs=stimuli.epochs,
            running=running,
            pupil=pupil,
            motion=motion,
            roi_masks=masks,
            warnings=tuple(warnings),
        )

    def movies(self, path: Path) -> Iterator[tuple[str, Any]]:
        """Give the templates of movies, scenes and sparse noises by name, each sliced by images.

        Raises
        ------
        RecordingError
            If a template is no stack of 8-bit grey images.
        """
        with open_hdf5(path) as file:
            templates = get_group(file, TEMPLATES)
            for key in templates if templates is not None else ():
                name = key.removesuffix("_image_stack")
                dataset = get_dataset(file, f"{TEMPLATES}/{key}/data")
                if dataset is not None and name in KNOWN:
                    require_numbers(dataset, 3, whole=False)
                    yield name, GreyImages(dataset)


class GreyImages:
    """A stack of grey images as uint8, read by slices; scenes are stored as floats that hold whole numbers."""

    dtype = np.dtype(np.uint8)
    ndim = 3

    def __init__(self, dataset: h5py.Dataset) -> None:
        self.shape = tuple(int(size) for size in dataset.shape)
        self._dataset = dataset

    def __getitem__(self, images: Any) -> NDArray[np.uint8]:
        values = np.asarray(self._dataset[images])
        if values.dtype == np.uint8:
            return values
        # NaN compares false.
        if not ((values >= 0) & (values <= 255) & (values == np.trunc(values))).all():
            raise RecordingError(
                f"{name_of(self._dataset)} holds pixels that are no grey levels",
                allowed="whole numbers 0 to 255",
                fix="download the file again",
            )
        return values.astype(np.uint8)


def _require_pipeline(file: h5py.File, path: Path) -> None:
    if get_group(file, PIPELINE) is None:
        modules = get_group(file, "processing")
        found = ", ".join(modules) if modules is not None else f"no 'processing'; {', '.join(list(file)[:12])}"
        raise RecordingError(
            f"{path}: no group '{PIPELINE}' (found: {found})",
            fix="give an Allen Brain Observatory NWB 1 file; for NWB 2 use 'prepare nwb'",
        )
    if get_group(file, DFF) is None:
        raise RecordingError(
            f"{path}: no group '{DFF}' (found: {', '.join(file[PIPELINE])})", fix="give a file with dF/F"
        )


@dataclass
class _Identities:
    """The names that a file gives its ROIs; empty where it has none."""

    cell_specimen_ids: NDArray[np.int64]
    roi_ids: list[str]
    roi_list: list[str]

    @property
    def count(self) -> int | None:
        return next((len(values) for values in vars(self).values() if len(values)), None)

    def check(self, file: h5py.File, num_rois: int, warnings: list[str]) -> None:
        """Compare the lengths, refuse names that are given twice, and fill in what is missing."""
        lengths = {name: len(values) for name, values in vars(self).items() if len(values)}
        if any(length != num_rois for length in lengths.values()):
            found = ", ".join(f"{length} {name}" for name, length in lengths.items())
            raise RecordingError(
                f"{file.filename}: {num_rois} dF/F traces, {found}",
                allowed="one of each per ROI",
                fix="download the file again",
            )
        for name, values in vars(self).items():
            unique, count = np.unique([value for value in values if value != -1], return_counts=True)
            if (count > 1).any():
                raise RecordingError(
                    f"{file.filename}: {name} {unique[count > 1][0]} occurs {count.max()} times",
                    allowed="each once",
                    fix="download the file again",
                )
        if not len(self.cell_specimen_ids):
            warnings.append("no cell specimen ids: cells cannot be matched with other sessions")
            self.cell_specimen_ids = np.full(num_rois, -1, np.int64)
        if not self.roi_ids:
            warnings.append("no roi_ids: units are called by their row")
            self.roi_ids = self.roi_list or [f"roi_{row:04d}" for row in range(num_rois)]


def _read_identities(file: h5py.File) -> _Identities:
    cells = get_dataset(file, f"{SEGMENTATION}/cell_specimen_ids")
    specimens = read_numbers(cells, 1) if cells is not None else np.zeros(0, np.int64)
    if specimens.dtype.kind not in "iu":
        raise RecordingError(
            f"{name_of(cells)} holds {specimens.dtype}", allowed="whole numbers", fix="download the file again"
        )
    texts = [get_dataset(file, name) for name in (f"{SEGMENTATION}/roi_ids", f"{PLANE}/roi_list")]
    return _Identities(specimens.astype(np.int64), *[[] if t is None else read_texts(t) for t in texts])


def _read_masks(file: h5py.File, roi_list: list[str], warnings: list[str]) -> RoiMasks | None:
    """Read the pixel list of each ROI, or its image where it has none or the first of them disagrees with its image.

    A list is read much faster than an image that is nearly all zero, and opening each image alone takes longer than
    everything else together.
    """
    pixels: list[NDArray] = []
    shape, lists_hold = None, True
    plane = get_group(file, PLANE)
    for key in roi_list:
        mask = f"{PLANE}/{key}"
        safe = plane is not None and re.fullmatch(r"[\w.-]+", key)
        listed = _read_pixel_list(plane, key, shape) if safe and lists_hold else None
        if safe and (listed is None or shape is None):
            image = _read_image(file, mask)
            if image is not None:
                if shape is not None and image.shape != shape:
                    raise RecordingError(
                        f"{file.filename}: masks of {shape} and of {image.shape} pixels",
                        allowed="one size",
                        fix="download the file again",
                    )
                shape = image.shape
                if listed is not None and not _same_pixels(listed, image):
                    warnings.append("pixel lists of the ROIs are not those of their images; the images are taken")
                    lists_hold, listed = False, None
                listed = np.stack(np.nonzero(image)) if listed is None else listed
        pixels.append(np.zeros((2, 0), np.int64) if listed is None else listed)
    empty = [row for row, part in enumerate(pixels) if part.shape[1] == 0]
    if len(empty) == len(pixels):
        warnings.append("no ROI masks: positions are unknown")
        return None
    if empty:
        warnings.append(f"the mask is empty in {name_rows(empty)}: position unknown")
    unit = np.repeat(np.arange(len(pixels), dtype=np.int32), [part.shape[1] for part in pixels])
    rows, columns = np.concatenate(pixels, axis=1).astype(np.int32)
    return RoiMasks(unit, rows, columns, shape or PLANE_SHAPE)


def _read_pixel_list(plane: h5py.Group, key: str, shape: tuple[int, int] | None) -> NDArray | None:
    """Return rows and columns ``(2, P)`` of a list of x and y; None if there is none inside the plane."""
    listed = read_small(plane, f"{key}/pix_mask")
    if listed is None or listed.ndim != 2 or listed.shape[1] != 2 or listed.dtype.kind not in "iu":
        return None
    columns, rows = listed.T.astype(np.int64)
    height, width = shape or PLANE_SHAPE
    if len(rows) and (min(rows.min(), columns.min()) < 0 or rows.max() >= height or columns.max() >= width):
        return None
    return np.stack([rows, columns])


def _read_image(file: h5py.File, mask: str) -> NDArray[np.bool_] | None:
    """Return the image of a mask, True inside."""
    image = get_dataset(file, f"{mask}/img_mask")
    if image is None:
        return None
    require_numbers(image, 2)
    if max(image.shape) > MAX_PLANE_PIXELS:
        raise RecordingError(
            f"{name_of(image)} has shape {image.shape}",
            allowed=f"up to {MAX_PLANE_PIXELS} pixels a side",
            fix="download the file again",
        )
    return np.nan_to_num(read_numbers(image, 2)) != 0


def _same_pixels(listed: NDArray, image: NDArray[np.bool_]) -> bool:
    drawn = np.zeros_like(image)
    inside = (listed < np.array(image.shape)[:, None]).all(axis=0)
    drawn[tuple(listed[:, inside])] = True
    return bool(inside.all() and np.array_equal(drawn, image))


def _read_series(file: h5py.File, name: str, warnings: list[str]) -> tuple[NDArray, NDArray] | None:
    """Return timestamps and data ``(n, k)`` of a behavioural trace; samples that are not finite stay in."""
    group = get_group(file, name)
    if group is None:
        return None
    data, stamps = get_dataset(group, "data"), get_dataset(group, "timestamps")
    what = name.rpartition("/")[2]
    if data is None or stamps is None:
        warnings.append(f"{what} lacks its {'data' if data is None else 'timestamps'}; left out")
        return None
    times = read_numbers(stamps, 1).astype(np.float64)
    values = read_numbers(data, 2 if data.ndim == 2 else 1)
    if len(values) != len(times):
        warnings.append(f"{what}: {len(values)} samples for {len(times)} timestamps; left out")
        return None
    if not (np.isfinite(times).all() and (np.diff(times) > 0).all()):
        warnings.append(f"{what}: timestamps are not finite and increasing; left out")
        return None
    return times, values.reshape(len(values), -1)


def _read_running(file: h5py.File, warnings: list[str]) -> TimeSeries | None:
    """Return the running speed; the oldest files keep it as a column."""
    series = _read_series(file, f"{PIPELINE}/BehavioralTimeSeries/running_speed", warnings)
    if series is None:
        return None
    if series[1].shape[1] != 1:
        warnings.append(f"running_speed has {series[1].shape[1]} columns; left out")
        return None
    return make_running(series, warnings)


def _read_pupil(file: h5py.File, warnings: list[str]) -> PupilTrace | None:
    """Return gaze and pupil size; most files have none. Samples that the eye tracker rejected are NaN."""
    place = _read_series(file, f"{PIPELINE}/EyeTracking/pupil_location", warnings)
    area = _read_series(file, f"{PIPELINE}/PupilTracking/pupil_size", warnings)
    if place is None or place[1].shape[1] != 2:
        if place is not None or area is not None:
            warnings.append("pupil: no gaze on the monitor; left out")
        return None
    return make_pupil(place, area, warnings)


def _read_motion(file: h5py.File, warnings: list[str]) -> TimeSeries | None:
    """Return the shift of the imaging plane in pixels, x and y."""
    folder = f"{PIPELINE}/MotionCorrection/2p_image_series"
    # The oldest files have the plural.
    name = next(
        (f"{folder}/{key}" for key in ("xy_translation", "xy_translations") if get(file, f"{folder}/{key}")), ""
    )
    series = _read_series(file, name, warnings) if name else None
    if series is None:
        return None
    stamps, shift = series
    if shift.shape[1] != 2 or not np.isfinite(shift).all():
        warnings.append(f"motion of shape {shift.shape} is not x and y of every frame; left out")
        return None
    features = get_dataset(file, f"{name}/feature_description")
    names = read_texts(features) if features is not None else []
    if names == ["y_motion", "x_motion"]:
        shift = shift[:, ::-1]
    return TimeSeries(stamps, shift.astype(np.float32))
