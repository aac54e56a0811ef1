"""What makes a recording look wrong: traces that are no dF/F, units that are copies, stimuli that do not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from poyo_ssl import protocol
from poyo_ssl.data.intervals import contains
from poyo_ssl.data.recording import Recording
from poyo_ssl.data.stimuli import MOVIE_PREFIX, Presentations
from poyo_ssl.errors import suggest
from poyo_ssl.selection.moments import UnitStatistics
from poyo_ssl.sources.checks import name_rows

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
