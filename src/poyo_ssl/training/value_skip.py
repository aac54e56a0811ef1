"""Where a value skip starts: whitened mean responses of the training part, in one space for all recordings.

Features are the neurons' binned values. Per recording, the noise is whitened: its correlations are the average of those
of the residuals around each class's smoothed mean and of those of unlabelled windows of every other stimulus, and of
spontaneous activity, as far as statistics may come from there (`training_domain`), shrunk towards none. Class means of
the whitened, unit-length windows make a matrix ``M_r`` (K, F_r). The prototypes are the leading principal components of
the means of all recordings together; each recording's neurons reach them by a ridge regression of the prototypes on
``M_r``. With a single recording that is nearly the projection on the leading components of its own means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh, solve_triangular

from poyo_ssl.data.intervals import Intervals, as_intervals, merge, subtract
from poyo_ssl.data.recording import Recording
from poyo_ssl.data.responses import Responses, Whitening
from poyo_ssl.data.windows import BatchRequest, UnitSet, WindowDataset, WindowTable
from poyo_ssl.errors import ConfigError
from poyo_ssl.models.poyo_ssl import ValueSkip, bin_values

SHRINKAGE = 0.4
"""Share by which noise correlations are shrunk towards none."""
RIDGE = 0.1
"""Penalty of the regression on class means, whose rows have about unit length."""
BLOCK_GAP_S = 5.0
"""Presentations that follow within this time are one block of a stimulus."""
LEAST_WINDOWS = 100
"""Fewer windows say too little about correlations to count as much as a stimulus's."""
CHUNK = 256


@dataclass(frozen=True)
class RecordingMeans:
    """Class means of one recording in its whitened space."""

    means: NDArray[np.float64]  # (K, F) of unit-length windows, smoothed; zeros for a class that is not shown
    whitening: Whitening  # from features to that space
    unit_rows: NDArray[np.int64]  # (C,) rows in the vocabulary; F = C times bins
    session_row: int


def fit_value_skip(
    skip: ValueSkip,
    recordings: list[Recording],
    units: list[UnitSet],
    table: WindowTable,
    domains: Mapping[str, Intervals],
    *,
    bin_frames: int,
    smoothing: float,
    keep_prototypes: bool = False,
) -> None:
    """Set a skip's weights from training windows, in place.

    `smoothing` is the standard deviation, in classes, of the Gaussian over class means; 0 where neighbours are not
    alike. `keep_prototypes` fits the neurons of new recordings to the prototypes of a trained model.
    """
    if table.num_frames // bin_frames < skip.num_bins:
        raise ConfigError(
            f"value_skip_bins of {skip.num_bins} for windows of {table.num_frames // bin_frames} steps",
            allowed=f"1 to {table.num_frames // bin_frames}",
            fix="lower it, or window.bin_frames",
        )
    found = [
        _measure(skip, recording, units[r], table.select(table.recording_index == r), domains, bin_frames, smoothing)
        for r, recording in enumerate(recordings)
    ]
    with torch.no_grad():
        if not keep_prototypes:
            skip.prototypes.copy_(torch.from_numpy(_leading(found, skip.prototypes.shape[1])))
        prototypes = skip.prototypes.double().numpy()
        for recording_means in found:
            _set_rows(skip, recording_means, prototypes)


def _measure(
    skip: ValueSkip,
    recording: Recording,
    units: UnitSet,
    table: WindowTable,
    domains: Mapping[str, Intervals],
    bin_frames: int,
    smoothing: float,
) -> RecordingMeans:
    """Whiten one recording's noise and take its class means."""
    num_classes = len(skip.prototypes)
    x = _features(skip, recording, units, table, bin_frames)
    residual = x - Responses.of(x, table.target, num_classes).means(smoothing)[table.target]
    correlations = [_correlation(residual.T @ residual)]
    own = set(table.stimulus)
    for kind, spans in spans_by_stimulus(recording, domains[recording.recording_id]).items():
        unlabelled = unlabelled_windows(recording, spans, table)
        if kind not in own and len(unlabelled) >= LEAST_WINDOWS:
            values = _features(skip, recording, units, unlabelled, bin_frames)
            values -= values.mean(axis=0)
            correlations.append(_correlation(values.T @ values))
    deviation = residual.std(axis=0)
    covariance = np.mean(correlations, axis=0) * np.outer(deviation, deviation)
    whitening = Whitening.from_covariance(covariance, centre=x.mean(axis=0), shrinkage=SHRINKAGE)
    means = Responses.of(whitening.directions(x), table.target, num_classes).means(smoothing)
    means[np.bincount(table.target, minlength=num_classes) == 0] = 0
    return RecordingMeans(means, whitening, units.rows, units.session_row)


def spans_by_stimulus(recording: Recording, domain: Intervals) -> dict[str, Intervals]:
    """Divide a domain in seconds by the stimulus that was on; "" is what lies between and beyond (spontaneous)."""
    spans, rest = {}, domain
    for name, shown in recording.stimuli.items():
        blocks = merge(as_intervals(np.stack([shown.start, shown.end], axis=1)), gap_s=BLOCK_GAP_S)
        spans[name] = subtract(domain, subtract(domain, blocks))
        rest = subtract(rest, blocks)
    return {**spans, "": rest}


def unlabelled_windows(recording: Recording, domain: Intervals, like: WindowTable) -> WindowTable:
    """Return windows, half overlapping, inside the intervals of a recording from which statistics may come."""
    edges = np.searchsorted(recording.timestamps, domain)
    step = max(like.num_frames // 2, 1)
    starts = np.concatenate([np.arange(low, high - like.num_frames + 1, step) for low, high in edges])
    return WindowTable.unlabelled(starts, recording.timestamps[starts], num_frames=like.num_frames)


def _features(
    skip: ValueSkip, recording: Recording, units: UnitSet, table: WindowTable, bin_frames: int
) -> NDArray[np.float64]:
    """``(W, C * P)`` values as the skip sees them, neuron by neuron."""
    table = replace(table, recording_index=np.zeros(len(table), np.int64))
    dataset = WindowDataset([recording], [units], table, bin_frames=bin_frames)
    parts = [
        bin_values(dataset[BatchRequest(rows)], skip.num_bins).flatten(1)
        for rows in np.array_split(np.arange(len(table)), max(1, -(-len(table) // CHUNK)))
    ]
    return torch.cat(parts).double().numpy()


def _correlation(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the correlations of a covariance; a constant feature has none with any other."""
    deviation = np.sqrt(np.diag(covariance))
    scale = np.where(deviation > 0, deviation, np.inf)
    correlation = covariance / np.outer(scale, scale)
    np.fill_diagonal(correlation, 1.0)
    return np.asarray(correlation)


def _leading(found: list[RecordingMeans], dim: int) -> NDArray[np.float64]:
    """``(K, dim)`` leading principal components, with their sizes, of all recordings' class means side by side.

    Of the two Gram matrices the smaller is decomposed; where there are fewer components than `dim`, zeros follow.
    """
    means = np.concatenate([one.means for one in found], axis=1)
    num_classes, num_features = means.shape
    components = np.zeros((num_classes, dim))
    if num_features < num_classes:
        vectors = eigh(means.T @ means)[1][:, ::-1][:, :dim]
        components[:, : vectors.shape[1]] = means @ vectors
    else:
        values, vectors = eigh(means @ means.T, subset_by_index=[num_classes - dim, num_classes - 1])
        components[:] = vectors[:, ::-1] * np.sqrt(np.maximum(values[::-1], 0))
    return components


def _regress(means: NDArray[np.float64], prototypes: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(F, dim)`` ridge regression of prototypes on class means ``(K, F)``, by the smaller of two equal systems."""
    num_classes, num_features = means.shape
    if num_features < num_classes:
        return np.asarray(np.linalg.solve(means.T @ means + RIDGE * np.eye(num_features), means.T @ prototypes))
    return np.asarray(means.T @ np.linalg.solve(means @ means.T + RIDGE * np.eye(num_classes), prototypes))


def _set_rows(skip: ValueSkip, found: RecordingMeans, prototypes: NDArray[np.float64]) -> None:
    """Regress the prototypes on a recording's class means and store the map for its units, and its centre."""
    in_white_space = _regress(found.means, prototypes)
    weights = solve_triangular(found.whitening.factor, in_white_space, lower=True, trans="T")
    rows = torch.from_numpy(weights.reshape(len(found.unit_rows), -1))  # (C, P * R)
    skip.units.weight[torch.from_numpy(found.unit_rows)] = rows.to(skip.units.weight)
    skip.centres.weight[found.session_row] = torch.from_numpy(found.whitening.centre @ weights).to(skip.centres.weight)
