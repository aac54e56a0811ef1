"""What is in a recording of any source, prepared or not, and everything about it that looks wrong."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from poyo_ssl.data.recording import Recording
from poyo_ssl.data.stimuli import Presentations, load_movie, movie_path
from poyo_ssl.errors import ConfigError, PoyoError, RecordingError
from poyo_ssl.selection.moments import UnitStatistics, measure_units
from poyo_ssl.sources.checks import check_traces
from poyo_ssl.sources.source import Source
from poyo_ssl.sources.suspicions import find_suspicions, sample_frames
from poyo_ssl.sources.workers import run_in_processes

PREPARED = "prepared recording (brainsets HDF5)"


@dataclass(frozen=True)
class StimulusSummary:
    """One stimulus of a recording.

    Attributes
    ----------
    name : str
        Its name.
    num_presentations, num_blanks : int
        Presentations, and those of them that are blank.
    content : str
        What was shown, in words: directions, images, frames and repeats.
    minutes : float
        Time of its epochs, or else of its presentations.
    pixels : str
        Size of its pixels, ``frames x height x width``; empty if there are none.
    """

    name: str
    num_presentations: int
    num_blanks: int
    content: str
    minutes: float
    pixels: str


@dataclass(frozen=True)
class Examination:
    """What `examine` found.

    Attributes
    ----------
    path : Path
        File or folder.
    kind : str
        What it is, in words.
    recording : Recording
        The recording itself; dF/F may still be on disk.
    stimuli : tuple of StimulusSummary
        By name.
    statistics : UnitStatistics
        Skewness, excess kurtosis, signal-to-noise ratio and event rate of every unit, masked spans left out.
    suspicions : tuple of str
        Everything that looks wrong, one line each: what the source says and what is found here.
    fingerprint : str
        Equal for two recordings of the same traces.
    """

    path: Path
    kind: str
    recording: Recording
    stimuli: tuple[StimulusSummary, ...]
    statistics: UnitStatistics
    suspicions: tuple[str, ...]
    fingerprint: str


def examine(path: Path, kind: type[Source] | None) -> Examination:
    """Read one recording and say what is in it.

    Parameters
    ----------
    path : path
        As `poyo_ssl.sources.registry.recognise` gives it.
    kind : type of Source, optional
        How to read it, with its default settings; None if it is prepared.

    Raises
    ------
    RecordingError
        If it cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> from poyo_ssl.data.recording import RecordingMetadata
    >>> dff = np.random.default_rng(0).gamma(1.0, 0.2, (900, 4)).astype(np.float32)
    >>> made = Recording("r", dff, np.arange(900) / 30, RecordingMetadata("m", cre_line="Sst-IRES-Cre"))
    >>> found = examine(made.save(tempfile.mkdtemp() + "/r.h5"), None)
    >>> found.kind, found.statistics.status.tolist()
    ('prepared recording (brainsets HDF5)', ['ok', 'ok', 'ok', 'ok'])
    >>> for line in found.suspicions: print(line)
    only 4 units
    only 0.5 minutes
    no stimuli: nothing can be decoded
    """
    if kind is None:
        original = Recording.open(path)
        pixels = _pixels_beside(original)
        words = PREPARED
    else:
        source = kind()
        try:
            original = source.read(path)
        except RecordingError as error:
            # What a setting could mend is a setting of the command that prepares it.
            fix = f"{error.fix} (settings: poyo-ssl prepare {source.name})" if "--" in error.fix else error.fix
            raise RecordingError(error.problem, allowed=error.allowed, fix=fix) from None
        pixels = {name: tuple(int(size) for size in stack.shape) for name, stack in source.movies(path)}
        words = f"{(kind.__doc__ or '').splitlines()[0].rstrip('.')} (poyo-ssl prepare {source.name})"
    recording = check_traces(original)
    statistics = measure_units(recording)
    sample = sample_frames(recording)
    suspicions = (*recording.warnings, *find_suspicions(recording, statistics, sample, pixels))
    names = sorted({*recording.stimuli, *recording.epochs})
    return Examination(
        path=Path(path),
        kind=words,
        recording=recording,
        stimuli=tuple(_summarise(recording, name, pixels.get(name)) for name in names),
        statistics=statistics,
        suspicions=tuple(dict.fromkeys(suspicions)),
        fingerprint=hashlib.sha256(np.ascontiguousarray(sample).tobytes()).hexdigest(),
    )


@dataclass(frozen=True)
class _Unread:
    """Stands for dF/F that has been measured and is not sent to another process."""

    shape: tuple[int, int]
    ndim: int = 2


def _examine_one(item: tuple[Path, type[Source] | None]) -> Examination | str:
    """Examine one recording; whatever is wrong with its file is a text, not an exception."""
    path, kind = item
    try:
        found = examine(path, kind)
    except PoyoError as error:
        return str(error)
    except OSError as error:
        return f"{error.strerror or error}; check the file and the disk"
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}; not foreseen, please report it"
    recording = found.recording
    light = replace(recording, dff=_Unread((recording.num_frames, recording.num_units)), roi_masks=None, truth={})
    return replace(found, recording=light)


def examine_all(
    recordings: Sequence[tuple[type[Source] | None, Path]], *, workers: int | None = 1
) -> Iterator[tuple[int, Examination | str]]:
    """Examine many recordings; give what was found as it comes.

    Parameters
    ----------
    recordings : sequence of tuple of source class and path
        As `poyo_ssl.sources.registry.recognise` gives them.
    workers : int, optional
        Processes; with None all cores. With 1 nothing is started.

    Yields
    ------
    tuple of int and Examination or str
        Position of the recording, and what is in it (without dF/F and masks), or why it cannot be read.

    Raises
    ------
    ConfigError
        If `workers` is below 1.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"{workers} workers", allowed="1 or more", fix="raise it")
    items = [(path, kind) for kind, path in recordings]
    workers = min(workers or os.cpu_count() or 1, len(items))
    if workers <= 1:
        yield from ((position, _examine_one(item)) for position, item in enumerate(items))
        return
    for position, found, reason in run_in_processes(_examine_one, items, workers):
        yield position, reason if found is None else found


def _pixels_beside(recording: Recording) -> dict[str, tuple[int, ...]]:
    folder = recording.data_folder
    assert folder is not None, recording
    return {name: load_movie(folder, name).shape for name in recording.stimuli if movie_path(folder, name).exists()}


def _summarise(recording: Recording, name: str, pixels: Sequence[int] | None) -> StimulusSummary:
    table = recording.stimuli.get(name)
    spans = recording.epochs.get(name)
    if spans is None:
        spans = np.zeros((0, 2)) if table is None else np.stack([table.start, table.end], axis=1)
    blank = np.zeros(0, bool) if table is None else np.asarray(table.columns.get("blank_sweep", ()), bool)
    return StimulusSummary(
        name=name,
        num_presentations=0 if table is None else len(table),
        num_blanks=int(blank.sum()),
        content="" if table is None else _describe_content(table),
        minutes=float((spans[:, 1] - spans[:, 0]).sum()) / 60,
        pixels=" x ".join(map(str, pixels)) if pixels else "",
    )


WORDS = {
    "orientation": "orientations",
    "temporal_frequency": "temporal frequencies",
    "spatial_frequency": "spatial frequencies",
    "phase": "phases",
}


def _describe_content(table: Presentations) -> str:
    """Say what was shown.

    Examples
    --------
    >>> columns = {"frame": np.array([0, 1, 0, 1]), "repeat": np.array([0, 0, 1, 1])}
    >>> times = np.arange(5.0)
    >>> _describe_content(Presentations.from_times("natural_movie_one", times, times[:4], times[1:], columns))
    '2 frames, 2 repeats'
    """
    parts = [_count(table.columns, key, words) for key, words in WORDS.items()]
    if "frame" in table.columns:
        frames = table.columns["frame"]
        movie = "repeat" in table.columns
        parts.append(f"{len(np.unique(frames[frames >= 0]))} {'frames' if movie else 'images'}")
        parts += [f"{len(np.unique(table.columns['repeat']))} repeats"] if movie else []
    return ", ".join(part for part in parts if part)


def _count(columns: Mapping[str, NDArray], key: str, words: str) -> str:
    if key not in columns or columns[key].dtype.kind not in "iuf":
        return ""
    values = columns[key].astype(float)
    return f"{len(np.unique(values[np.isfinite(values)]))} {words}"


def find_twins(examinations: Sequence[Examination]) -> list[str]:
    """Return a line for every recording whose traces are those of an earlier one.

    One recording under two names would train and test at once.
    """
    first: dict[str, str] = {}
    lines = []
    for one in examinations:
        name = one.recording.recording_id
        if one.fingerprint in first:
            lines.append(f"{name} has the traces of {first[one.fingerprint]}: one recording under two names")
        first.setdefault(one.fingerprint, name)
    return lines
