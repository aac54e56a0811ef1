"""What a laboratory keeps beside its traces: clock, stimulus table, stimulus pixels, and who was recorded.

Every one is a setting (a path, or the rate), or else a file of a fixed name in the recording's folder:
``timestamps.npy`` (or npz, csv, mat), ``stimuli.csv``, ``pixels`` (a folder), ``recording.json``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poyo_ssl import protocol
from poyo_ssl.data.recording import METADATA_FIELDS, RecordingMetadata
from poyo_ssl.data.stimuli import Presentations
from poyo_ssl.errors import ConfigError, RecordingError, suggest
from poyo_ssl.sources.array_files import SUFFIXES, load_array
from poyo_ssl.sources.pictures import find_pixels, read_pixels
from poyo_ssl.sources.source import clean_name
from poyo_ssl.sources.tables import read_table

CLOCK, TABLE, PIXELS, METADATA = "timestamps", "stimuli.csv", "pixels", "recording.json"
NUMBERS = ("age_days", "depth_um")


@dataclass(frozen=True)
class Companions:
    """Where clock, stimuli and metadata of traces are, if not beside them.

    Attributes
    ----------
    rate_hz : float, optional
        Imaging rate, where there are no timestamps.
    timestamps : path, optional
        Seconds of the imaging frames, one per frame, as npy, npz, csv or mat.
    stimuli : path, optional
        Table with start, stop (seconds), name and any other columns.
    pixels : path, optional
        Folder with the pixels of the stimuli by name, as npy, mp4, gif or a folder of pictures.
    metadata : path, optional
        JSON file with any of subject_id, container_id, cre_line, reporter_line, indicator, sex, age_days, species,
        session_type, targeted_structure, depth_um, recording_date, device_id, description, origin.
    """

    rate_hz: float | None = None
    timestamps: Path | None = None
    stimuli: Path | None = None
    pixels: Path | None = None
    metadata: Path | None = None

    def __post_init__(self) -> None:
        if self.rate_hz is not None and not (np.isfinite(self.rate_hz) and self.rate_hz > 0):
            raise ConfigError(f"rate_hz of {self.rate_hz}", allowed="above 0 Hz", fix="give frames per second")
        if self.rate_hz is not None and self.timestamps is not None:
            raise ConfigError("a rate and timestamps", allowed="one of them", fix="leave the rate out")

    def files(self, folder: Path) -> list[Path]:
        """Return those that are there."""
        found = [
            self._clock_file(folder),
            self._find(folder, "stimuli", TABLE),
            self._find(folder, "metadata", METADATA),
        ]
        pixels = self._find(folder, "pixels", PIXELS)
        inside = sorted(item for item in pixels.rglob("*") if item.is_file()) if pixels else []
        return [path for path in found if path is not None] + inside

    def _find(self, folder: Path, setting: str, name: str) -> Path | None:
        given: Path | None = getattr(self, setting)
        if given is not None:
            if not given.exists():
                raise RecordingError(f"no {given}", fix=f"correct --{setting}")
            return given
        return folder / name if (folder / name).exists() else None

    def _clock_file(self, folder: Path) -> Path | None:
        if self.timestamps is not None or self.rate_hz is not None:
            return self.timestamps
        return next((path for suffix in SUFFIXES if (path := folder / f"{CLOCK}{suffix}").is_file()), None)

    def read_clock(self, folder: Path) -> NDArray[np.float64] | None:
        """Return ``(T,)`` seconds, or None if there is no file of timestamps.

        Raises
        ------
        RecordingError
            If the file is damaged or holds something else.
        """
        path = self._clock_file(folder)
        if path is None:
            return None
        values = load_array(path)
        if values.size != max(values.shape, default=0):
            raise RecordingError(
                f"{path} holds an array of shape {values.shape}", allowed="one second per frame", fix="save one column"
            )
        return np.asarray(values, np.float64).reshape(-1)

    def make_clock(self, num_frames: int, rate_hz: float) -> NDArray[np.float64]:
        """Return ``(num_frames,)`` seconds from 0 on."""
        return np.arange(num_frames) / rate_hz

    def read_stimuli(
        self, folder: Path, timestamps: NDArray[np.float64], warnings: list[str]
    ) -> tuple[dict[str, Presentations], dict[str, NDArray[np.float64]]]:
        """Return presentations and epochs; none, with a warning, if there is no table.

        Raises
        ------
        RecordingError
            If table or pixels are damaged or do not belong to the recording.
        """
        path = self._find(folder, "stimuli", TABLE)
        if path is None:
            warnings.append(f"no stimulus table: nothing can be decoded (give --stimuli or {TABLE})")
            return {}, {}
        movie_frames = {name: len(pixels) for name, pixels in self.read_movies(folder)}
        stimuli, epochs = read_table(path).place(timestamps, movie_frames, warnings)
        for name in movie_frames:
            if name not in stimuli:
                warnings.append(f"pixels of '{name}', which the table does not mention")
        return stimuli, epochs

    def read_movies(self, folder: Path) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        """Give the pixels of every stimulus by name.

        Raises
        ------
        RecordingError
            If one is damaged.
        """
        pixels = self._find(folder, "pixels", PIXELS)
        if pixels is None:
            return
        if not pixels.is_dir():
            raise RecordingError(
                f"{pixels} is a file", allowed="a folder with one item per stimulus", fix="move it there"
            )
        for name, path in find_pixels(pixels).items():
            yield clean_name(name), read_pixels(path)

    def read_metadata(self, folder: Path, defaults: dict[str, Any]) -> RecordingMetadata:
        """Return `defaults`, overruled by the metadata file.

        Raises
        ------
        RecordingError
            If the file is damaged or has an unknown field.
        """
        path = self._find(folder, "metadata", METADATA)
        return RecordingMetadata(**(defaults | (read_metadata_file(path) if path else {})))


def read_metadata_file(path: Path) -> dict[str, Any]:
    """Return the fields of a ``recording.json``.

    Raises
    ------
    RecordingError
        If it is not JSON, has an unknown field, or a field's value is not text (or a number, for age and depth).

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "recording.json"
    >>> _ = path.write_text('{"subject_id": "mouse7", "depth_um": 175}')
    >>> read_metadata_file(path)
    {'subject_id': 'mouse7', 'depth_um': 175}
    """
    try:
        values = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise RecordingError(f"{path} is not JSON ({error})", fix="correct it") from None
    if not isinstance(values, dict):
        raise RecordingError(f"{path} holds a {type(values).__name__}", allowed="fields by name", fix="correct it")
    for key, value in values.items():
        if key not in METADATA_FIELDS:
            raise RecordingError(
                f"{path} has an unknown field '{key}'{suggest(key, METADATA_FIELDS)}",
                allowed=", ".join(METADATA_FIELDS),
                fix="rename or remove it",
            )
        wanted = (int, float) if key in NUMBERS else str
        if isinstance(value, bool) or not isinstance(value, wanted) or "\0" in str(value):
            kind = "a number" if key in NUMBERS else "text"
            raise RecordingError(f"{path}: '{key}' is {json.dumps(value)[:80]}", allowed=kind, fix="correct it")
    if "depth_um" in values:
        if not abs(values["depth_um"]) < 1e6:
            raise RecordingError(f"{path}: 'depth_um' is {values['depth_um']}", allowed="micrometres", fix="correct it")
        values["depth_um"] = round(values["depth_um"])
    return values


def check_line(metadata: RecordingMetadata) -> list[str]:
    """Return a warning if the Cre line is not one of the Allen's 13, by which neurons are selected per line.

    Examples
    --------
    >>> check_line(RecordingMetadata("m", cre_line="Sst-IRES-Cre"))
    []
    """
    if metadata.cre_line in protocol.CRE_LINES:
        return []
    close = suggest(metadata.cre_line, protocol.CRE_LINES)
    return [f"Cre line '{metadata.cre_line}' is not one of the Allen's 13{close}; selection per line does not know it"]
