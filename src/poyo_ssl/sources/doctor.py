"""What is in a recording of any source, prepared or not, and everything about it that looks wrong."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from poyo_ssl import protocol
from poyo_ssl.data.intervals import contains
from poyo_ssl.data.recording import Recording
from poyo_ssl.data.stimuli import MOVIE_PREFIX, Presentations, load_movie, movie_path
from poyo_ssl.errors import ConfigError, PoyoError, RecordingError, suggest
from poyo_ssl.selection.moments import UnitStatistics, measure_units
from poyo_ssl.sources.base import Source, check_traces, name_rows
from poyo_ssl.sources.run import run_in_processes

SAMPLE_BLOCKS, BLOCK_FRAMES = 16, 256
"""Runs of frames, evenly spread, that traces are judged by."""

FEW_UNITS, SHORT_MINUTES = 10, 5.0
RESTING_DFF = 1.0
"""A median unit that is above this at rest (its median), and never near 0, holds fluorescence, not dF/F."""
LARGE_DFF = 15.0
"""A median unit whose 99th percentile is above this (1500 %) is given in percent."""
Z_SCORE_TOLERANCE = 0.25
HIGH_CORRELATION = 0.5
"""Mean correlation between units that an artefact or uncorrected neuropil makes, and neurons hardly."""
LOW_SNR = 2.5
"""White noise has 2.3: its 99th percentile lies so many deviations above its median."""
FROZEN_SHARE = 0.001
UNEVEN_RATIO = 2.0
UNEVEN_DURATION = 0.2

Shape = Sequence[int]


def sample_frames(recording: Recording) -> NDArray[np.float32]:
    """Return runs of neighbouring frames, evenly spread over a recording, ``(frames, N)``.

    Examples
    --------
    >>> from poyo_ssl.data.recording import RecordingMetadata
    >>> sample_frames(Recording("r", np.zeros((9000, 3)), np.arange(9000) / 30, RecordingMetadata("m"))).shape
    (4096, 3)
    """
    starts = np.unique(np.linspace(0, max(recording.num_frames - BLOCK_FRAMES, 0), SAMPLE_BLOCKS).astype(int))
    if recording.num_frames <= SAMPLE_BLOCKS * BLOCK_FRAMES:
        return recording.read_dff(0, recording.num_frames)
    return np.concatenate([recording.read_dff(int(start), int(start) + BLOCK_FRAMES) for start in starts])


def find_suspicions(
    recording: Recording, statistics: UnitStatistics, sample: NDArray[np.float32], pixels: Mapping[str, Shape]
) -> list[str]:
    """Return everything that looks wrong, one line each, beyond what sources and `check_traces` warn of.

    Parameters
    ----------
    recording : Recording
        With finite dF/F.
    statistics : UnitStatistics
        Of its units.
    sample : ndarray
        Of `sample_frames`.
    pixels : dict
        ``(frames, height, width)`` of the stimuli whose pixels are there.
    """
    lines = [*_judge_size(recording), *_judge_traces(sample, statistics), *_judge_units(sample)]
    if "simulated" in recording.metadata.origin:
        lines.append(f"not measured: {recording.metadata.origin}")
    line = recording.metadata.cre_line
    if line not in protocol.CRE_LINES and not any(line in text for text in recording.warnings):
        lines.append(f"Cre line '{line}' is not one of the Allen's 13{suggest(line, protocol.CRE_LINES)}")
    if not recording.stimuli and not any("nothing can be decoded" in text for text in recording.warnings):
        lines.append("no stimuli: nothing can be decoded")
    for name, table in recording.stimuli.items():
        lines += [f"{name}: {text}" for text in _judge_stimulus(recording, table, pixels.get(name))]
    return lines


def _judge_size(recording: Recording) -> list[str]:
    lines = []
    if recording.num_units < FEW_UNITS:
        lines.append(f"only {recording.num_units} units")
    if recording.duration_s < 60 * SHORT_MINUTES:
        lines.append(f"only {recording.duration_s / 60:.1f} minutes")
    masked = recording.masked_domain
    share = float((masked[:, 1] - masked[:, 0]).sum()) / recording.duration_s
    if share > 0.1:
        lines.append(f"{share:.0%} of the recording is masked")
    return lines


def _judge_traces(sample: NDArray[np.float32], statistics: UnitStatistics) -> list[str]:
    """Ask whether the numbers are dF/F as a ratio, and whether there is a signal in them."""
    low, rest, high = np.quantile(sample, [0.01, 0.5, 0.99], axis=0)
    resting, reached = float(np.median(rest)), float(np.median(high - rest))
    # Of nine units in ten, how far they are from a mean of 0 and a standard deviation of 1.
    off_score = max(float(np.quantile(np.abs(off), 0.9)) for off in (sample.mean(axis=0), sample.std(axis=0) - 1))
    lines = []
    if resting > RESTING_DFF and np.median(low) > 0:
        lines.append(f"the median unit rests at dF/F {resting:.3g}: fluorescence rather than dF/F?")
    elif reached > LARGE_DFF:
        lines.append(f"the median unit reaches dF/F {reached:.3g} (99th percentile): percent rather than a ratio?")
    elif off_score < Z_SCORE_TOLERANCE:
        lines.append("units have mean 0 and standard deviation 1: z-scored rather than dF/F?")
    snr = statistics.snr[np.isfinite(statistics.snr)]
    if len(snr) and np.median(snr) < LOW_SNR:
        lines.append(f"the median signal-to-noise ratio is {np.median(snr):.1f}, that of noise alone")
    frozen = float((sample[1:] == sample[:-1]).all(axis=1).mean())
    if frozen > FROZEN_SHARE:
        lines.append(f"{frozen:.1%} of the frames are copies of the frame before them: dropped frames?")
    return lines


def _judge_units(sample: NDArray[np.float32]) -> list[str]:
    """Ask whether units are copies of each other or move together."""
    varies = np.flatnonzero(sample.std(axis=0) > 0)
    if len(varies) < 2:
        return []
    columns = sample[:, varies].T
    _, first, group = np.unique(columns, axis=0, return_index=True, return_inverse=True)
    copies = varies[np.setdiff1d(np.arange(len(varies)), first)]
    lines = []
    if len(copies):
        original = varies[first[group.reshape(-1)[np.searchsorted(varies, copies[0])]]]
        lines.append(f"{name_rows(copies)} copy other units (the first copies row {original})")
    scaled = columns - columns.mean(axis=1, keepdims=True)
    scaled /= np.linalg.norm(scaled, axis=1, keepdims=True)
    # The mean over all pairs, without the matrix of pairs.
    count = len(scaled)
    mean = (float(np.square(scaled.sum(axis=0)).sum()) - count) / (count * (count - 1))
    if mean > HIGH_CORRELATION:
        lines.append(
            f"units correlate by {mean:.2f} on average: a shared artefact, or neuropil that was not subtracted?"
        )
    return lines


def _judge_stimulus(recording: Recording, table: Presentations, pixels: Shape | None) -> list[str]:
    if len(table) == 0:
        return ["is empty"]
    return [*_judge_times(recording, table), *_judge_gratings(table), *_judge_frames(table, pixels)]


def _judge_times(recording: Recording, table: Presentations) -> list[str]:
    lines = []
    outside = np.flatnonzero((table.start < recording.timestamps[0] - 1) | (table.end > recording.timestamps[-1] + 1))
    if len(outside):
        lines.append(f"{name_rows(outside)} reach outside the recording")
    masked = int(contains(table.midpoint, recording.masked_domain).sum())
    if masked:
        lines.append(f"{masked} of {len(table)} presentations lie in masked spans and will not be used")
    overlapping = int((table.start[1:] < table.end[:-1] - 1.5 / recording.rate_hz).sum())
    if overlapping:
        lines.append(f"{overlapping} presentations begin before the one before them ends")
    length = table.end - table.start
    usual = float(np.median(length))
    odd = np.flatnonzero(np.abs(length - usual) > max(UNEVEN_DURATION * usual, 1.5 / recording.rate_hz))
    if len(odd):
        lines.append(
            f"{name_rows(odd)} last {length[odd].min():.2f} to {length[odd].max():.2f} s, the others {usual:.2f} s"
        )
    return lines


def _judge_gratings(table: Presentations) -> list[str]:
    if "orientation" not in table.columns or table.columns["orientation"].dtype.kind not in "iuf":
        return []
    lines = []
    known = np.asarray(table.columns.get("label_known", np.ones(len(table))), bool)
    if not known.all():
        lines.append(f"the orientation of {int((~known).sum())} of {len(table)} presentations is not known")
    orientation = table.columns["orientation"].astype(float)
    values, counts = np.unique(orientation[np.isfinite(orientation)], return_counts=True)
    if len(values) < 2:
        lines.append(f"{len(values)} orientation{'s' * (len(values) != 1)}: nothing to tell apart")
    elif counts.max() > UNEVEN_RATIO * counts.min():
        few = values[counts.argmin()]
        lines.append(f"orientations are shown {counts.min()} ({few:g} degrees) to {counts.max()} times")
    return lines


def _judge_frames(table: Presentations, pixels: Shape | None) -> list[str]:
    if "frame" not in table.columns:
        return []
    frame = table.columns["frame"]
    lines = []
    if pixels is None:
        lines.append("its pixels are not there: frame numbers can be decoded, frames cannot")
    elif frame.max() >= pixels[0]:
        lines.append(f"shows frame {frame.max()} of {pixels[0]}: the pixels are of another stimulus")
    if not table.name.startswith(MOVIE_PREFIX) or "repeat" not in table.columns:
        return lines
    repeat = table.columns["repeat"]
    numbers, counts = np.unique(repeat, return_counts=True)
    usual = int(np.median(counts))
    for number in numbers[counts != usual][:3]:
        lines.append(f"repeat {number} has {counts[numbers == number][0]} frames, the others {usual}")
    needed = protocol.REPEAT_TEST[-1] + 1
    if len(numbers) < needed:
        lines.append(f"{len(numbers)} of the {needed} repeats that the published split needs")
    return lines


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
