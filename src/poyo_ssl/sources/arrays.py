"""Arrays of dF/F, fluorescence or events as npy, npz, csv or MATLAB files.

One recording is a file, or a folder with ``dff.*``, ``fluorescence.*`` (and ``neuropil.*``) or ``events.*``; beside it
lies what `poyo_ssl.sources.tables` describes. A folder of such folders holds many.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from poyo_ssl.config import ArraysConfig
from poyo_ssl.data.dff import PROCEDURES, compute_dff
from poyo_ssl.data.recording import Recording
from poyo_ssl.data.series import SparseEvents
from poyo_ssl.errors import RecordingError, check, choose
from poyo_ssl.sources.base import Notes, Source, name_rows, require, trim_to_clock
from poyo_ssl.sources.tables import SUFFIXES, Companions, check_line, load_array

KINDS = ("dff", "fluorescence", "events")
NEUROPIL = "neuropil"
MANY_FLOORED = 0.05  # Share of frames without a usable baseline above which a unit is named in a note

ORIGINS = {
    "dff": "given dF/F",
    "fluorescence": "dF/F computed from given fluorescence",
    "events": "given events, simulated fluorescence",
}


@dataclass(frozen=True)
class ArraysSource(ArraysConfig, Source):
    """Files of arrays.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp()) / "mouse7"
    >>> folder.mkdir()
    >>> np.save(folder / "dff.npy", np.random.default_rng(0).normal(size=(900, 4)))
    >>> recording = ArraysSource(companions=Companions(rate_hz=30.0)).read(folder)
    >>> recording.recording_id, recording.dff.shape, recording.warnings[0]
    ('mouse7', (900, 4), 'no stimulus table: nothing can be decoded (give --stimuli or stimuli.csv)')
    """

    name: ClassVar[str] = "arrays"

    companions: Companions = field(default_factory=Companions)

    def __post_init__(self) -> None:
        check_dff_settings(self.dff_procedure, self.neuropil_ratio)
        check(self.seed >= 0, f"seed of {self.seed}", "0 or more")

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Tell whether `path` is a file of arrays, or a folder with traces in one."""
        if path.is_file():
            return path.suffix.lower() in SUFFIXES
        return path.is_dir() and any(_find_file(path, kind) for kind in KINDS)

    def find(self, input: Path) -> list[Path]:
        """Return the file, the folder, or the folders in the folder that hold traces."""
        if self.recognises(input):
            return [input]
        folders = sorted(item for item in input.iterdir() if self.recognises(item)) if input.is_dir() else []
        found = [folder for folder in folders if folder.is_dir()]
        wanted = ", ".join(f"{kind}{suffix}" for kind in KINDS for suffix in SUFFIXES)
        require(found, f"no traces in {input}", f"a file of arrays, or a folder with {wanted}")
        return found

    def files(self, path: Path) -> list[Path]:
        """Return traces and companions."""
        traces, _ = self._find_traces(path)
        neuropil = _find_file(_folder(path), NEUROPIL) if path.is_dir() else None
        return [traces, *([neuropil] if neuropil else []), *self.companions.files(_folder(path))]

    def movies(self, path: Path) -> Iterator[tuple[str, Any]]:
        """Give the pixels that lie beside the traces."""
        yield from self.companions.read_movies(_folder(path))

    def read(self, path: Path) -> Recording:
        """Return the recording of a file or folder."""
        traces_file, kind = self._find_traces(path)
        folder, what, notes = _folder(path), str(traces_file), Notes()
        traces = load_array(traces_file, self.key)
        fits = traces.ndim == 2 and 0 not in traces.shape
        require(fits, f"{what} holds an array of shape {traces.shape}", "(time, units)")
        clock = self.companions.read_clock(folder)
        turned = self._is_turned(traces.shape, clock, what, notes)
        traces = traces.T if turned else traces
        if clock is None:
            if self.companions.rate_hz is None:
                fix = "give --rate_hz, --timestamps, or timestamps.npy beside it"
                raise RecordingError(f"{what} has no clock", fix=fix)
            clock = np.arange(len(traces)) / self.companions.rate_hz
        traces, timestamps = trim_to_clock(traces, clock, what, notes)
        require(len(timestamps) >= 2, f"{what} has {len(timestamps)} frames", "2 or more")
        rate_hz = float(1 / np.median(np.diff(timestamps)))
        events = None
        if kind == "fluorescence":
            dff = self._from_fluorescence(path, traces, rate_hz, turned, notes)
        elif kind == "events":
            from poyo_ssl.sources.events import GCaMPConfig, simulate_dff

            events = _read_events(traces, what)
            num_frames, num_units = traces.shape
            dff = simulate_dff(events, num_frames, num_units, rate_hz, indicator=GCaMPConfig(), seed=self.seed)
        else:
            dff = np.asarray(traces, np.float32)
        stimuli, epochs = self.companions.read_stimuli(folder, timestamps, notes)
        name = self.recording_id(path)
        metadata = self.companions.read_metadata(folder, {"subject_id": name, "origin": ORIGINS[kind]})
        check_line(metadata, notes)
        return Recording(
            name, dff, timestamps, metadata, stimuli=stimuli, epochs=epochs, events=events, warnings=tuple(notes)
        )

    def _find_traces(self, path: Path) -> tuple[Path, str]:
        """Return the file of the traces and what they are."""
        if path.is_dir():
            kinds = KINDS if self.kind == "auto" else (self.kind,)
            found = [(file, kind) for kind in kinds if (file := _find_file(path, kind))]
            what = " and ".join(file.name for file, _ in found) or "no traces"
            fix = "say which with --kind, or add one of them"
            require(len(found) == 1, f"{path} holds {what}", ", ".join(KINDS), fix)
            return found[0]
        stem = path.stem.lower()
        named = [kind for kind in KINDS if kind in stem]
        problem = f"whether {path} holds dF/F, fluorescence or events is not in its name"
        require(self.kind != "auto" or len(named) == 1, problem, ", ".join(KINDS), "say so with --kind")
        return path, named[0] if self.kind == "auto" else self.kind

    def _is_turned(self, shape: tuple[int, ...], clock: NDArray[np.float64] | None, what: str, notes: Notes) -> bool:
        """Tell whether the first axis is units."""
        choose = {"allowed": "time_first, unit_first", "fix": "say which with --axes"}
        if self.axes != "auto":
            turned = self.axes == "unit_first"
            if shape[int(turned)] < shape[int(not turned)]:
                notes.add(f"{what}: more units than frames; are the axes right?")
            return turned
        if clock is not None:
            time_first, unit_first = (abs(size - len(clock)) <= 1 for size in shape)
            if time_first and unit_first:
                either = f"of which either axis could be the {len(clock)} frames"
                raise RecordingError(f"{what} has shape {shape}, {either}", **choose)
            reason = f"by the {len(clock)} timestamps"
        else:
            if shape[0] == shape[1]:
                raise RecordingError(f"{what} has shape {shape}", **choose)
            unit_first, reason = shape[0] < shape[1], "the longer axis being time"
        if unit_first:
            notes.add(f"{what} has shape {shape}: taken as (units, time), {reason}")
        return unit_first

    def _from_fluorescence(
        self, path: Path, traces: NDArray, rate_hz: float, turned: bool, notes: Notes
    ) -> NDArray[np.float32]:
        file = _find_file(path, NEUROPIL) if path.is_dir() else None
        neuropil = None
        if file is None:
            notes.add("no neuropil beside the fluorescence: none is subtracted")
        else:
            neuropil = load_array(file, self.key)
            neuropil = neuropil.T if turned and neuropil.ndim == 2 else neuropil
        return dff_of_fluorescence(traces, neuropil, self.neuropil_ratio, self.dff_procedure, rate_hz, str(file), notes)


def check_dff_settings(procedure: str, neuropil_ratio: float) -> None:
    """Refuse a procedure that does not exist, and a ratio outside 0 to 2."""
    choose("dF/F procedure", procedure, PROCEDURES)
    check(0 <= neuropil_ratio <= 2, f"neuropil_ratio of {neuropil_ratio}", "0 to 2", "0.7 is usual")


def dff_of_fluorescence(
    fluorescence: NDArray,  # (T, N)
    neuropil: NDArray | None,  # (T, N); one frame more, since the fluorescence is trimmed to its clock, is cut off
    ratio: float | NDArray[np.float64],  # r, one for all or (N,)
    procedure: str,
    rate_hz: float,
    what: str,  # File of the neuropil, for messages
    notes: Notes,
) -> NDArray[np.float32]:
    """Return dF/F of F - r Fneu, ``(T, N)``; units without a usable baseline are noted."""
    corrected: NDArray = fluorescence
    if neuropil is not None:
        extra = neuropil.shape[0] - fluorescence.shape[0] if neuropil.ndim == 2 else -1
        fits = neuropil.ndim == 2 and neuropil.shape[1] == fluorescence.shape[1] and 0 <= extra <= 1
        problem = f"{what} has shape {neuropil.shape}, the fluorescence {fluorescence.shape}"
        require(fits, problem, "one neuropil trace per ROI", "give those that belong together")
        neuropil = neuropil[: len(fluorescence)]
        corrected = np.empty(fluorescence.shape, np.float32)
        factors = np.broadcast_to(np.asarray(ratio, np.float64), fluorescence.shape[1:])
        for unit, factor in enumerate(factors):
            corrected[:, unit] = fluorescence[:, unit] - factor * neuropil[:, unit]
    dff, floored = compute_dff(corrected, procedure, rate_hz=rate_hz)
    weak = np.flatnonzero(floored > MANY_FLOORED)
    if len(weak):
        notes.add(
            f"the baseline of {name_rows(weak)} lies at or below the noise in over {MANY_FLOORED:.0%} of the frames: "
            "dF/F there is not a ratio to resting light"
        )
    return dff


def _read_events(traces: NDArray, what: str) -> SparseEvents:
    bad = np.argwhere(~(np.isfinite(traces) & (traces >= 0)))
    if len(bad):
        frame, unit = bad[0]
        problem = f"{what}: event of unit {unit} in frame {frame} is {traces[frame, unit]}"
        raise RecordingError(problem, allowed="0 or more", fix="write 0 where there is no event")
    frame, unit = np.nonzero(traces)
    return SparseEvents(frame.astype(np.int64), unit.astype(np.int64), traces[frame, unit].astype(np.float32))


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _find_file(folder: Path, stem: str) -> Path | None:
    return next((path for suffix in SUFFIXES if (path := folder / f"{stem}{suffix}").is_file()), None)
