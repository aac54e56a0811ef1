"""A recording: dF/F, exact timestamps, units, stimuli and the animal, from arrays or lazily from a file.

On disk it is brainsets HDF5 (the layout that ``brainsets prepare allen_visual_coding_ophys_2016`` writes), with
what that layout lacks beside it, in groups that its tools read as well: `imaging_clock` (exact timestamps),
`masked_domain`, blank sweeps, start and end frames, cell specimen ids, events, and the truth of simulations.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from poyo_ssl.data import recording_file
from poyo_ssl.data.series import PupilTrace, RoiMasks, SparseEvents, TimeSeries
from poyo_ssl.data.stimuli import Presentations
from poyo_ssl.errors import RecordingError, suggest
from poyo_ssl.files import written_whole


@dataclass(frozen=True)
class RecordingMetadata:
    """Who was recorded, where and how.

    Attributes
    ----------
    subject_id : str
        The animal; subject splits go by it. (The brainsets layout keeps the container id under this name;
        ours is stored beside it as ``animal_id``.)
    container_id : str
        Groups recordings of one field of view.
    cre_line : str
        Allen spelling of the driver line, or ``unknown``.
    reporter_line, indicator, sex, species, session_type, targeted_structure, recording_date : str
        As the source gives them; empty when not known.
    age_days : float, optional
        Age of the animal.
    depth_um : int, optional
        Imaging depth in micrometres.
    device_id : str
        Microscope.
    description : str
        Free text.
    origin : str
        Where the numbers come from, for example ``real events, simulated fluorescence``.
    """

    subject_id: str
    container_id: str = ""
    cre_line: str = "unknown"
    reporter_line: str = ""
    indicator: str = ""
    sex: str = ""
    age_days: float | None = None
    species: str = "MUS_MUSCULUS"
    session_type: str = ""
    targeted_structure: str = ""
    depth_um: int | None = None
    recording_date: str = ""
    device_id: str = "two_photon"
    description: str = ""
    origin: str = ""


def _no_intervals() -> NDArray[np.float64]:
    return np.zeros((0, 2))


@dataclass
class Recording:
    """One imaging session.

    Attributes
    ----------
    recording_id : str
        Identity of the session; the file's stem.
    dff : array
        ``(T, N)`` float32 dF/F, dimensionless: an array, a memory map or an h5py dataset.
    timestamps : ndarray
        ``(T,)`` seconds, increasing.
    metadata : RecordingMetadata
        Animal, line, place.
    unit_ids : ndarray
        ``(N,)`` text, one ROI of this session each; made from the row number if not given.
    cell_specimen_ids : ndarray
        ``(N,)`` identity of the cell across sessions, -1 unknown.
    stimuli : dict
        Stimulus tables by name.
    epochs : dict
        ``(K, 2)`` seconds for each stimulus name, ``spontaneous`` included.
    masked_domain : ndarray
        ``(K, 2)`` seconds that no split, statistic or window may touch.
    running : TimeSeries, optional
        Running speed in cm/s.
    pupil : PupilTrace, optional
        Gaze and pupil size.
    motion : TimeSeries, optional
        ``(T, 2)`` shift of the imaging plane in pixels, x and y, as the motion correction found it.
    roi_masks : RoiMasks, optional
        Pixels of the units.
    events : SparseEvents, optional
        Events that the dF/F was made from or that were inferred from it.
    split_domains : dict
        ``(K, 2)`` seconds for ``train``, ``valid`` and ``test``, for readers of the brainsets ecosystem.
    truth : mapping
        What a simulation knows: arrays by name, read from the file when asked for.
    warnings : tuple of str
        What the source of the recording repaired, left out or found suspicious, one line each.
    path : Path, optional
        The file behind the recording.

    Raises
    ------
    RecordingError
        If shapes disagree, or timestamps are not finite and increasing.

    Examples
    --------
    A recording from arrays, written and read back:

    >>> import tempfile, numpy as np
    >>> made = Recording("demo", np.zeros((60, 3), np.float32), np.arange(60) / 30, RecordingMetadata("mouse1"))
    >>> path = made.save(tempfile.mkdtemp() + "/demo.h5")
    >>> again = Recording.open(path)
    >>> again.num_units, round(again.rate_hz, 2), again.metadata.subject_id
    (3, 30.0, 'mouse1')
    """

    recording_id: str
    dff: Any
    timestamps: NDArray[np.float64]
    metadata: RecordingMetadata
    unit_ids: NDArray[np.str_] = None  # type: ignore[assignment]
    cell_specimen_ids: NDArray[np.int64] = None  # type: ignore[assignment]
    stimuli: Mapping[str, Presentations] = field(default_factory=dict)
    epochs: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    masked_domain: NDArray[np.float64] = field(default_factory=_no_intervals)
    running: TimeSeries | None = None
    pupil: PupilTrace | None = None
    motion: TimeSeries | None = None
    roi_masks: RoiMasks | None = None
    events: SparseEvents | None = None
    split_domains: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    truth: Mapping[str, NDArray] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    path: Path | None = None

    def __post_init__(self) -> None:
        if self.dff.ndim != 2:
            self._refuse(f"dF/F has shape {self.dff.shape}", "(time, units)", "reshape it")
        num_units = self.dff.shape[1]
        if self.unit_ids is None:
            self.unit_ids = np.array([f"roi_{i:04d}" for i in range(num_units)], dtype=np.str_)
        if self.cell_specimen_ids is None:
            self.cell_specimen_ids = np.full(num_units, -1, np.int64)
        self.timestamps = np.asarray(self.timestamps, np.float64)
        if self.timestamps.shape != (self.dff.shape[0],):
            self._refuse(
                f"{self.timestamps.shape[0]} timestamps for dF/F of shape {tuple(self.dff.shape)}",
                f"{self.dff.shape[0]} timestamps",
                "give dF/F as (time, units), one timestamp per row",
            )
        if len(self.timestamps) < 2:
            self._refuse(f"{len(self.timestamps)} imaging frames", "2 or more", "check the source")
        steps = np.diff(self.timestamps)
        bad = np.flatnonzero(~(steps > 0))
        if len(bad):
            self._refuse(f"timestamps do not increase at frame {int(bad[0]) + 1}", None, "sort or repair them")
        for name, values in {"unit_ids": self.unit_ids, "cell_specimen_ids": self.cell_specimen_ids}.items():
            if values.shape != (num_units,):
                self._refuse(f"{len(values)} {name} for {num_units} units", f"{num_units}", "give one per unit")
        if len(np.unique(self.unit_ids)) != num_units:
            self._refuse("unit ids are not unique", "one id per unit", "rename the units")
        if self.roi_masks is not None and len(self.roi_masks.unit) and self.roi_masks.unit.max() >= num_units:
            self._refuse(
                f"a mask of unit {self.roi_masks.unit.max()}", f"units 0 to {num_units - 1}", "give one mask per unit"
            )
        for table in self.stimuli.values():
            if len(table) and table.end_frame.max() > self.num_frames:
                self._refuse(
                    f"{table.name} ends at imaging frame {table.end_frame.max()}",
                    f"0 to {self.num_frames}",
                    "check that table and traces belong together",
                )

    def _refuse(self, problem: str, allowed: str | None, fix: str) -> None:
        raise RecordingError(f"recording {self.recording_id}: {problem}", allowed=allowed, fix=fix)

    @property
    def num_frames(self) -> int:
        """Number of imaging frames, T."""
        return int(self.dff.shape[0])

    @property
    def num_units(self) -> int:
        """Number of units, N."""
        return int(self.dff.shape[1])

    @property
    def rate_hz(self) -> float:
        """Imaging rate in Hz: the inverse of the median step between timestamps."""
        return float(1 / np.median(np.diff(self.timestamps)))

    @property
    def duration_s(self) -> float:
        """Length in seconds, the last frame included."""
        return float(self.timestamps[-1] - self.timestamps[0] + 1 / self.rate_hz)

    @property
    def data_folder(self) -> Path | None:
        """Folder of the file, where the movies' pixels lie too."""
        return self.path.parent if self.path else None

    def stimulus(self, name: str) -> Presentations:
        """Return one stimulus table.

        Raises
        ------
        RecordingError
            If the recording has no such stimulus; it names those that it has.
        """
        if name not in self.stimuli:
            self._refuse(
                f"no stimulus '{name}'{suggest(name, self.stimuli)}",
                ", ".join(sorted(self.stimuli)) or "the recording has none",
                "ask for one of these or take another recording",
            )
        return self.stimuli[name]

    def read_dff(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return dF/F of imaging frames ``[start, stop)``, ``(stop - start, N)`` float32."""
        return np.asarray(self.dff[start:stop], np.float32)

    def with_units(self, rows: NDArray[np.int64], *, dff: Any = None) -> Recording:
        """Return the recording of some units only; a simulation's truth, which is of all, is left behind.

        Parameters
        ----------
        rows : ndarray
            Increasing indices of the units to keep.
        dff : array, optional
            ``(T, len(rows))`` traces of these units; by default they are read into memory.
        """
        events, masks = self.events, self.roi_masks
        if events is not None:
            mine = np.isin(events.unit, rows)
            events = SparseEvents(events.frame[mine], np.searchsorted(rows, events.unit[mine]), events.value[mine])
        if masks is not None:
            mine = np.isin(masks.unit, rows)
            unit = np.searchsorted(rows, masks.unit[mine]).astype(masks.unit.dtype)
            masks = RoiMasks(unit, masks.row[mine], masks.column[mine], masks.image_shape)
        return replace(
            self,
            dff=self.read_dff(0, self.num_frames)[:, rows] if dff is None else dff,
            unit_ids=self.unit_ids[rows],
            cell_specimen_ids=self.cell_specimen_ids[rows],
            events=events,
            roi_masks=masks,
            truth={},
            path=None,
        )

    def save(self, path: Path | str, *, overwrite: bool = False) -> Path:
        """Write the recording as brainsets HDF5: beside its final name, then renamed.

        Parameters
        ----------
        path : path
            File to write, ``<recording_id>.h5`` by convention.
        overwrite : bool
            Replace a file that is there.

        Raises
        ------
        RecordingError
            If the file is there and `overwrite` is False.
        """
        path = Path(path)
        if path.exists() and not overwrite:
            raise RecordingError(f"{path} exists", fix="choose another name or pass --overwrite")
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without modification times the same recording gives the same bytes.
        with written_whole(path) as beside, h5py.File(beside, "w", track_order=False) as file:
            recording_file.write_recording(file, self)
        self.path = path
        return path

    @classmethod
    def open(cls, path: Path | str) -> Recording:
        """Open a brainsets HDF5 file; dF/F stays on disk (memory-mapped where it is contiguous).

        Raises
        ------
        RecordingError
            If the file is missing, damaged, or not a calcium recording of this layout.
        """
        path = Path(path)
        if not path.is_file():
            raise RecordingError(f"no recording file {path}", fix="check the path or run 'poyo-ssl prepare' first")
        try:
            with h5py.File(path, "r") as file:
                contents = recording_file.read_recording(file, path)
        except OSError as error:
            raise RecordingError(
                f"{path} is not a complete HDF5 file ({error})", fix="copy or prepare it again"
            ) from None
        except (KeyError, TypeError, ValueError) as error:
            # What h5py and the readers say of groups, fields or attributes that are missing or of another kind.
            raise RecordingError(f"{path} is not in the brainsets layout ({error})", fix="prepare it again") from None
        metadata = RecordingMetadata(**contents.pop("metadata"))
        return cls(metadata=metadata, path=path, **contents)

    def checksum(self) -> str:
        """Return the SHA-256 of the file, or of dF/F and timestamps for a recording in memory."""
        if self.path:
            facts = self.path.stat()
            return _file_checksum(self.path.resolve(), facts.st_size, facts.st_mtime_ns)
        digest = hashlib.sha256()
        for start in range(0, self.num_frames, 4096):
            digest.update(self.read_dff(start, start + 4096).tobytes())
        digest.update(self.timestamps.tobytes())
        return digest.hexdigest()


@functools.lru_cache(maxsize=4096)
def _file_checksum(path: Path, size: int, modified_ns: int) -> str:
    del size, modified_ns  # parts of the cache's key: a file that was replaced is read again
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def open_recordings(folder: Path | str) -> list[Recording]:
    """Open every recording (``*.h5``) of a data folder, sorted by id.

    Raises
    ------
    RecordingError
        If the folder is missing or holds no recording.
    """
    folder = Path(folder)
    if folder.is_file():
        return [Recording.open(folder)]
    paths = sorted(folder.glob("*.h5")) if folder.is_dir() else []
    if not paths:
        raise RecordingError(f"no recordings (*.h5) in {folder}", fix="run 'poyo-ssl prepare' first or check the path")
    return [Recording.open(path) for path in paths]


METADATA_FIELDS = tuple(f.name for f in fields(RecordingMetadata))
