"""Arrays of dF/F, fluorescence or events as npy, npz, csv or MATLAB files.

One recording is a file, or a folder with ``dff.*``, ``fluorescence.*`` (and ``neuropil.*``) or ``events.*``; beside it
lies what `poyo_ssl.sources.companions` describes. A folder of such folders holds many.
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
from poyo_ssl.errors import ConfigError, RecordingError, suggest
from poyo_ssl.sources.array_files import SUFFIXES, load_array
from poyo_ssl.sources.base import Source, name_rows, trim_to_clock
from poyo_ssl.sources.companions import Companions, check_line

KINDS = ("dff", "fluorescence", "events")
NEUROPIL = "neuropil"
MANY_FLOORED = 0.05
"""Share of frames without a usable baseline above which a unit is named in a warning."""

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
        if not found:
            wanted = ", ".join(f"{kind}.{suffix}" for kind in KINDS for suffix in ("npy", "npz", "csv", "mat"))
            raise RecordingError(
                f"no traces in {input}", allowed=f"a file of arrays, or a folder with {wanted}", fix="give one"
            )
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
        folder, warnings = _folder(path), list[str]()
        traces = load_array(traces_file, self.key)
        if traces.ndim != 2 or 0 in traces.shape:
            raise RecordingError(
                f"{traces_file} holds an array of shape {traces.shape}", allowed="(time, units)", fix="reshape it"
            )
        clock = self.companions.read_clock(folder)
        turned = self._is_turned(traces.shape, clock, str(traces_file), warnings)
        traces = traces.T if turned else traces
        if clock is None:
            if self.companions.rate_hz is None:
                raise RecordingError(
                    f"{traces_file} has no clock", fix="give --rate_hz, --timestamps, or timestamps.npy beside it"
                )
            clock = self.companions.make_clock(len(traces), self.companions.rate_hz)
        traces, timestamps, trimmed = trim_to_clock(traces, clock, str(traces_file))
        warnings += trimmed
        if len(timestamps) < 2:
            raise RecordingError(f"{traces_file} has {len(timestamps)} frames", allowed="2 or more", fix="check it")
        rate_hz = float(1 / np.median(np.diff(timestamps)))
        events = None
        if kind == "fluorescence":
            dff = self._from_fluorescence(path, traces, rate_hz, turned, warnings)
        elif kind == "events":
            dff, events = _from_events(traces, rate_hz, str(traces_file), self.seed)
        else:
            dff = np.asarray(traces, np.float32)
        stimuli, epochs = self.companions.read_stimuli(folder, timestamps, warnings)
        name = self.recording_id(path)
        metadata = self.companions.read_metadata(folder, {"subject_id": name, "origin": ORIGINS[kind]})
        return Recording(
            name,
            dff,
            timestamps,
            metadata,
            stimuli=stimuli,
            epochs=epochs,
            events=events,
            warnings=tuple(warnings + check_line(metadata)),
        )

    def _find_traces(self, path: Path) -> tuple[Path, str]:
        """Return the file of the traces and what they are."""
        if path.is_dir():
            kinds = KINDS if self.kind == "auto" else (self.kind,)
            found = [(file, kind) for kind in kinds if (file := _find_file(path, kind))]
            if len(found) != 1:
                what = " and ".join(file.name for file, _ in found) or "no traces"
                raise RecordingError(
                    f"{path} holds {what}", allowed=", ".join(KINDS), fix="say which with --kind, or add one of them"
                )
            return found[0]
        stem = path.stem.lower()
        named = [kind for kind in KINDS if kind in stem]
        if self.kind == "auto" and len(named) != 1:
            raise RecordingError(
                f"whether {path} holds dF/F, fluorescence or events is not in its name",
                allowed=", ".join(KINDS),
                fix="say so with --kind",
            )
        return path, named[0] if self.kind == "auto" else self.kind

    def _is_turned(
        self, shape: tuple[int, ...], clock: NDArray[np.float64] | None, what: str, warnings: list[str]
    ) -> bool:
        """Tell whether the first axis is units."""
        if self.axes != "auto":
            turned = self.axes == "unit_first"
            if shape[int(turned)] < shape[int(not turned)]:
                warnings.append(f"{what}: more units than frames; are the axes right?")
            return turned
        if clock is not None:
            fits = [abs(size - len(clock)) <= 1 for size in shape]
            if fits == [True, True]:
                raise RecordingError(
                    f"{what} has shape {shape}, of which either axis could be the {len(clock)} frames",
                    allowed="time_first, unit_first",
                    fix="say which with --axes",
                )
            if fits == [False, True]:
                warnings.append(f"{what} has shape {shape}: taken as (units, time), by the {len(clock)} timestamps")
            return fits == [False, True]
        if shape[0] == shape[1]:
            raise RecordingError(
                f"{what} has shape {shape}", allowed="time_first, unit_first", fix="say which with --axes"
            )
        if shape[0] < shape[1]:
            warnings.append(f"{what} has shape {shape}: taken as (units, time), the longer axis being time")
        return shape[0] < shape[1]

    def _from_fluorescence(
        self, path: Path, traces: NDArray, rate_hz: float, turned: bool, warnings: list[str]
    ) -> NDArray[np.float32]:
        neuropil_file = _find_file(path, NEUROPIL) if path.is_dir() else None
        neuropil = None
        if neuropil_file is None:
            warnings.append("no neuropil beside the fluorescence: none is subtracted")
        else:
            neuropil = load_array(neuropil_file, self.key)
            neuropil = neuropil.T if turned and neuropil.ndim == 2 else neuropil
        return dff_of_fluorescence(
            traces, neuropil, self.neuropil_ratio, self.dff_procedure, rate_hz, str(neuropil_file), warnings
        )


def check_dff_settings(procedure: str, neuropil_ratio: float) -> None:
    """Refuse settings of dF/F that do not exist.

    Raises
    ------
    ConfigError
        If there is no such procedure, or the ratio is not from 0 to 2.
    """
    if procedure not in PROCEDURES:
        raise ConfigError(
            f"no dF/F procedure '{procedure}'{suggest(procedure, PROCEDURES)}",
            allowed=", ".join(PROCEDURES),
            fix="choose one of these",
        )
    if not 0 <= neuropil_ratio <= 2:
        raise ConfigError(f"neuropil_ratio of {neuropil_ratio}", allowed="0 to 2", fix="0.7 is usual")


def dff_of_fluorescence(
    fluorescence: NDArray,
    neuropil: NDArray | None,
    ratio: float | NDArray[np.float64],
    procedure: str,
    rate_hz: float,
    what: str,
    warnings: list[str],
) -> NDArray[np.float32]:
    """Return dF/F of F - r Fneu, ``(T, N)``; units without a usable baseline are named in the warnings.

    Parameters
    ----------
    fluorescence : ndarray
        ``(T, N)``.
    neuropil : ndarray, optional
        As many units; one frame more or less than the fluorescence's, which was trimmed to its clock, is cut off.
    ratio : float or ndarray
        r, one for all or ``(N,)``.
    procedure : str
        Baseline.
    rate_hz : float
        Imaging rate.
    what : str
        File of the neuropil, for messages.
    warnings : list of str
        Is appended to.

    Raises
    ------
    RecordingError
        If the neuropil has another shape.
    """
    corrected: NDArray = fluorescence
    if neuropil is not None:
        extra = neuropil.shape[0] - fluorescence.shape[0] if neuropil.ndim == 2 else -1
        if neuropil.ndim != 2 or neuropil.shape[1] != fluorescence.shape[1] or not 0 <= extra <= 1:
            raise RecordingError(
                f"{what} has shape {neuropil.shape}, the fluorescence {fluorescence.shape}",
                allowed="one neuropil trace per ROI",
                fix="give those that belong together",
            )
        neuropil = neuropil[: len(fluorescence)]
        corrected = np.empty(fluorescence.shape, np.float32)
        factors = np.broadcast_to(np.asarray(ratio, np.float64), fluorescence.shape[1:])
        for unit, factor in enumerate(factors):
            corrected[:, unit] = fluorescence[:, unit] - factor * neuropil[:, unit]
    dff, floored = compute_dff(corrected, procedure, rate_hz=rate_hz)
    weak = np.flatnonzero(floored > MANY_FLOORED)
    if len(weak):
        warnings.append(
            f"the baseline of {name_rows(weak)} lies at or below the noise in over {MANY_FLOORED:.0%} of the frames: "
            "dF/F there is not a ratio to resting light"
        )
    return dff


def _from_events(traces: NDArray, rate_hz: float, what: str, seed: int) -> tuple[NDArray[np.float32], SparseEvents]:
    from poyo_ssl.sources.events import GCaMPConfig, simulate_dff

    bad = np.argwhere(~(np.isfinite(traces) & (traces >= 0)))
    if len(bad):
        frame, unit = bad[0]
        raise RecordingError(
            f"{what}: event of unit {unit} in frame {frame} is {traces[frame, unit]}",
            allowed="0 or more",
            fix="correct it",
        )
    frame, unit = np.nonzero(traces)
    events = SparseEvents(frame.astype(np.int64), unit.astype(np.int64), traces[frame, unit].astype(np.float32))
    num_frames, num_units = traces.shape
    dff = simulate_dff(events, num_frames, num_units, rate_hz, indicator=GCaMPConfig(), seed=seed)
    return dff, events


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _find_file(folder: Path, stem: str) -> Path | None:
    return next((path for suffix in SUFFIXES if (path := folder / f"{stem}{suffix}").is_file()), None)
