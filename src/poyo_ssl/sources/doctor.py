"""What is in a recording of any source, prepared or not, and everything about it that looks wrong.

A new check is a function below, named in `CHECKS` (of a recording) or `STIMULUS_CHECKS`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from poyo_ssl import protocol
from poyo_ssl.data.intervals import contains
from poyo_ssl.data.recording import Recording
from poyo_ssl.data.stimuli import MOVIE_PREFIX, Presentations, load_movie, movie_path
from poyo_ssl.errors import RecordingError
from poyo_ssl.selection.moments import UnitStatistics, measure_units
from poyo_ssl.sources.base import Notes, Source, check_traces, name_rows
from poyo_ssl.sources.run import describe_failure, run_in_processes
from poyo_ssl.sources.tables import check_line

PREPARED = "prepared recording (brainsets HDF5)"
SAMPLE_BLOCKS, BLOCK_FRAMES = 16, 256  # Runs of frames, evenly spread, by which traces are judged

FEW_UNITS, SHORT_MINUTES, MASKED_SHARE = 10, 5.0, 0.1
RESTING_DFF = 1.0  # A median unit above this at rest (its median), and never near 0, holds fluorescence, not dF/F
LARGE_DFF = 15.0  # A median unit whose 99th percentile is above this (1500 %) is given in percent
Z_SCORE_TOLERANCE = 0.25
HIGH_CORRELATION = 0.5  # On average between units: an artefact or uncorrected neuropil reaches it, neurons hardly
LOW_SNR = 2.5  # White noise has 2.3: its 99th percentile lies so many deviations above its median
FROZEN_SHARE = 0.001
UNEVEN_RATIO = 2.0
UNEVEN_DURATION = 0.2

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Evidence:
    """What checks of a recording judge by."""

    recording: Recording  # With finite dF/F
    statistics: UnitStatistics
    sample: NDArray[np.float32]  # (frames, N), see `sample_frames`
    pixels: Mapping[str, Shape]  # (frames, height, width) of the stimuli whose pixels are there


def sample_frames(recording: Recording) -> NDArray[np.float32]:
    """Return runs of neighbouring frames, evenly spread over a recording, ``(frames, N)``."""
    if recording.num_frames <= SAMPLE_BLOCKS * BLOCK_FRAMES:
        return recording.read_dff(0, recording.num_frames)
    starts = np.unique(np.linspace(0, recording.num_frames - BLOCK_FRAMES, SAMPLE_BLOCKS).astype(int))
    return np.concatenate([recording.read_dff(int(start), int(start) + BLOCK_FRAMES) for start in starts])


def _check_size(found: Evidence) -> Iterator[str]:
    recording, masked = found.recording, found.recording.masked_domain
    if recording.num_units < FEW_UNITS:
        yield f"only {recording.num_units} units"
    if recording.duration_s < 60 * SHORT_MINUTES:
        yield f"only {recording.duration_s / 60:.1f} minutes"
    share = float((masked[:, 1] - masked[:, 0]).sum()) / recording.duration_s
    if share > MASKED_SHARE:
        yield f"{share:.0%} of the recording is masked"


def _check_scale(found: Evidence) -> Iterator[str]:
    """Whether the numbers are dF/F as a ratio."""
    sample = found.sample
    low, rest, high = np.quantile(sample, [0.01, 0.5, 0.99], axis=0)
    resting, reached = float(np.median(rest)), float(np.median(high - rest))
    # Of nine units in ten, how far they are from a mean of 0 and a standard deviation of 1.
    off_score = max(float(np.quantile(np.abs(off), 0.9)) for off in (sample.mean(axis=0), sample.std(axis=0) - 1))
    if resting > RESTING_DFF and np.median(low) > 0:
        yield f"the median unit rests at dF/F {resting:.3g}: fluorescence rather than dF/F?"
    elif reached > LARGE_DFF:
        yield f"the median unit reaches dF/F {reached:.3g} (99th percentile): percent rather than a ratio?"
    elif off_score < Z_SCORE_TOLERANCE:
        yield "units have mean 0 and standard deviation 1: z-scored rather than dF/F?"


def _check_signal(found: Evidence) -> Iterator[str]:
    snr = found.statistics.snr[np.isfinite(found.statistics.snr)]
    if len(snr) and np.median(snr) < LOW_SNR:
        yield f"the median signal-to-noise ratio is {np.median(snr):.1f}, that of noise alone"
    frozen = float((found.sample[1:] == found.sample[:-1]).all(axis=1).mean())
    if frozen > FROZEN_SHARE:
        yield f"{frozen:.1%} of the frames are copies of the frame before them: dropped frames?"


def _check_units(found: Evidence) -> Iterator[str]:
    """Whether units are copies of each other or move together."""
    varies = np.flatnonzero(found.sample.std(axis=0) > 0)
    if len(varies) < 2:
        return
    columns = found.sample[:, varies].T
    _, first, group = np.unique(columns, axis=0, return_index=True, return_inverse=True)
    copies = varies[np.setdiff1d(np.arange(len(varies)), first)]
    if len(copies):
        original = varies[first[group.reshape(-1)[np.searchsorted(varies, copies[0])]]]
        yield f"{name_rows(copies)} copy other units (the first copies row {original})"
    scaled = columns - columns.mean(axis=1, keepdims=True)
    scaled /= np.linalg.norm(scaled, axis=1, keepdims=True)
    # The mean over all pairs, without the matrix of pairs.
    count = len(scaled)
    mean = (float(np.square(scaled.sum(axis=0)).sum()) - count) / (count * (count - 1))
    if mean > HIGH_CORRELATION:
        yield f"units correlate by {mean:.2f} on average: a shared artefact, or neuropil that was not subtracted?"


def _check_metadata(found: Evidence) -> Iterator[str]:
    about, warnings = found.recording.metadata, found.recording.warnings
    if "simulated" in about.origin:
        yield f"not measured: {about.origin}"
    if not any(about.cre_line in text for text in warnings):
        check_line(about, notes := Notes())
        yield from notes
    if not found.recording.stimuli and not any("nothing can be decoded" in text for text in warnings):
        yield "no stimuli: nothing can be decoded"


def _check_times(recording: Recording, table: Presentations, pixels: Shape | None) -> Iterator[str]:
    del pixels
    first, last = recording.timestamps[[0, -1]]
    outside = np.flatnonzero((table.start < first - 1) | (table.end > last + 1))
    if len(outside):
        yield f"{name_rows(outside)} reach outside the recording"
    masked = int(contains(table.midpoint, recording.masked_domain).sum())
    if masked:
        yield f"{masked} of {len(table)} presentations lie in masked spans and will not be used"
    overlapping = int((table.start[1:] < table.end[:-1] - 1.5 / recording.rate_hz).sum())
    if overlapping:
        yield f"{overlapping} presentations begin before the one before them ends"
    length = table.end - table.start
    usual = float(np.median(length))
    odd = np.flatnonzero(np.abs(length - usual) > max(UNEVEN_DURATION * usual, 1.5 / recording.rate_hz))
    if len(odd):
        yield f"{name_rows(odd)} last {length[odd].min():.2f} to {length[odd].max():.2f} s, the others {usual:.2f} s"


def _check_gratings(recording: Recording, table: Presentations, pixels: Shape | None) -> Iterator[str]:
    del recording, pixels
    if "orientation" not in table.columns or table.columns["orientation"].dtype.kind not in "iuf":
        return
    known = np.asarray(table.columns.get("label_known", np.ones(len(table))), bool)
    if not known.all():
        yield f"the orientation of {int((~known).sum())} of {len(table)} presentations is not known"
    orientation = table.columns["orientation"].astype(float)
    values, counts = np.unique(orientation[np.isfinite(orientation)], return_counts=True)
    if len(values) < 2:
        yield f"{len(values)} orientation{'s' * (len(values) != 1)}: nothing to tell apart"
    elif counts.max() > UNEVEN_RATIO * counts.min():
        few = values[counts.argmin()]
        yield f"orientations are shown {counts.min()} ({few:g} degrees) to {counts.max()} times"


def _check_frames(recording: Recording, table: Presentations, pixels: Shape | None) -> Iterator[str]:
    del recording
    if "frame" not in table.columns:
        return
    frame = table.columns["frame"]
    if pixels is None:
        yield "its pixels are not there: frame numbers can be decoded, frames cannot"
    elif frame.max() >= pixels[0]:
        yield f"shows frame {frame.max()} of {pixels[0]}: the pixels are of another stimulus"
    if not table.name.startswith(MOVIE_PREFIX) or "repeat" not in table.columns:
        return
    repeat = table.columns["repeat"]
    numbers, counts = np.unique(repeat, return_counts=True)
    usual = int(np.median(counts))
    for number in numbers[counts != usual][:3]:
        yield f"repeat {number} has {counts[numbers == number][0]} frames, the others {usual}"
    needed = protocol.REPEAT_TEST[-1] + 1
    if len(numbers) < needed:
        yield f"{len(numbers)} of the {needed} repeats that the published split needs"


CHECKS: tuple[Callable[[Evidence], Iterator[str]], ...] = (
    *(_check_size, _check_scale, _check_signal, _check_units, _check_metadata),
)
STIMULUS_CHECKS: tuple[Callable[[Recording, Presentations, Shape | None], Iterator[str]], ...] = (
    *(_check_times, _check_gratings, _check_frames),
)


def find_suspicions(found: Evidence) -> list[str]:
    """Return everything that looks wrong, one line each, beyond what sources and `check_traces` warn of."""
    lines = [line for check in CHECKS for line in check(found)]
    for name, table in found.recording.stimuli.items():
        if len(table) == 0:
            lines.append(f"{name}: is empty")
            continue
        for check in STIMULUS_CHECKS:
            lines += [f"{name}: {line}" for line in check(found.recording, table, found.pixels.get(name))]
    return lines


@dataclass(frozen=True)
class StimulusSummary:
    """One stimulus of a recording."""

    name: str
    num_presentations: int
    num_blanks: int  # Of the presentations
    content: str  # What was shown, in words: directions, images, frames and repeats
    minutes: float  # Of its epochs, or else of its presentations
    pixels: str  # 'frames x height x width'; empty if there are none


@dataclass(frozen=True)
class Examination:
    """What `examine` found."""

    path: Path
    kind: str  # What it is, in words
    recording: Recording  # dF/F may still be on disk
    stimuli: tuple[StimulusSummary, ...]  # By name
    statistics: UnitStatistics  # Of every unit, masked spans left out
    suspicions: tuple[str, ...]  # What the source says and what is found here, one line each
    fingerprint: str  # Equal for two recordings of the same traces


def examine(path: Path, kind: type[Source] | None) -> Examination:
    """Read one recording with the default settings of a source (None: it is prepared) and say what is in it."""
    pixels: dict[str, Shape]
    if kind is None:
        original, words = Recording.open(path), PREPARED
        folder = Path(path).parent
        names = [name for name in original.stimuli if movie_path(folder, name).exists()]
        pixels = {name: load_movie(folder, name).shape for name in names}
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
    found = Evidence(recording, measure_units(recording), sample_frames(recording), pixels)
    names = sorted({*recording.stimuli, *recording.epochs})
    return Examination(
        path=Path(path),
        kind=words,
        recording=recording,
        stimuli=tuple(_summarise(recording, name, pixels.get(name)) for name in names),
        statistics=found.statistics,
        suspicions=tuple(dict.fromkeys((*recording.warnings, *find_suspicions(found)))),
        fingerprint=hashlib.sha256(np.ascontiguousarray(found.sample).tobytes()).hexdigest(),
    )


@dataclass(frozen=True)
class _Unread:
    """Stands for dF/F that has been measured and is not sent to another process."""

    shape: tuple[int, int]
    ndim: int = 2


def _examine_one(item: tuple[type[Source] | None, Path]) -> Examination | str:
    """Examine one recording; whatever is wrong with its file is a text, not an exception."""
    kind, path = item
    try:
        found = examine(path, kind)
    except Exception as error:
        return describe_failure(error, path)
    size = found.recording.num_frames, found.recording.num_units
    return replace(found, recording=replace(found.recording, dff=_Unread(size), roi_masks=None, truth={}))


def examine_all(
    recordings: Sequence[tuple[type[Source] | None, Path]], *, workers: int | None = 1
) -> Iterator[tuple[int, Examination | str]]:
    """Examine the recordings of `registry.recognise` in up to `workers` processes (None: all cores).

    Gives, as it comes, the position of a recording and what is in it (without dF/F and masks), or why it cannot be
    read.
    """
    for position, found, reason in run_in_processes(_examine_one, recordings, workers):
        yield position, reason if found is None else found


def _summarise(recording: Recording, name: str, pixels: Shape | None) -> StimulusSummary:
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
    """Say what was shown: '8 orientations, 5 temporal frequencies' or '900 frames, 10 repeats'."""
    parts = []
    for key, words in WORDS.items():
        values = table.columns.get(key)
        if values is not None and values.dtype.kind in "iuf":
            parts.append(f"{len(np.unique(values[np.isfinite(values)]))} {words}")
    if "frame" in table.columns:
        frames = table.columns["frame"]
        movie = "repeat" in table.columns
        parts.append(f"{len(np.unique(frames[frames >= 0]))} {'frames' if movie else 'images'}")
        parts += [f"{len(np.unique(table.columns['repeat']))} repeats"] if movie else []
    return ", ".join(parts)


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
