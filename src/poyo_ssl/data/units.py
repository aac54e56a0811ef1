"""Which row of the embeddings a unit or session has, and how each unit is normalised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from poyo_ssl.data.intervals import Intervals, as_intervals, subtract
from poyo_ssl.data.recording import Recording
from poyo_ssl.data.windows import Normalisation, UnitSet
from poyo_ssl.errors import RecordingError

# Scales the median absolute deviation to the standard deviation of a normal distribution.
MAD_TO_SD = 1.4826


@dataclass(frozen=True)
class Vocabulary:
    """Rows of the unit and session embeddings by identity; row 0 is padding in both."""

    units: Mapping[str, int] = field(default_factory=dict)
    sessions: Mapping[str, int] = field(default_factory=dict)

    @property
    def num_units(self) -> int:
        """Rows of the unit table, padding not counted."""
        return len(self.units)

    @property
    def num_sessions(self) -> int:
        """Rows of the session table, padding not counted."""
        return len(self.sessions)

    def grow(self, units_by_recording: Mapping[str, Sequence[str]]) -> Vocabulary:
        """Return a vocabulary with the old rows where they were and new ones after them."""
        units, sessions = dict(self.units), dict(self.sessions)
        for recording_id, unit_ids in units_by_recording.items():
            sessions.setdefault(recording_id, len(sessions) + 1)
            for unit_id in unit_ids:
                units.setdefault(f"{recording_id}/{unit_id}", len(units) + 1)
        return Vocabulary(units, sessions)


@dataclass(frozen=True)
class Neurons:
    """The neurons that a model reads: columns of dF/F, rows of the embeddings and normalisation."""

    vocabulary: Vocabulary
    columns: Mapping[str, NDArray[np.int64]]  # (C,) by recording id
    normalisation: Mapping[str, Normalisation]  # by recording id

    @classmethod
    def fit(
        cls,
        recordings: Sequence[Recording],
        columns: Mapping[str, NDArray[np.int64]],
        domains: Mapping[str, Intervals],
        *,
        method: str,
        known: Vocabulary,
    ) -> Neurons:
        """Give the chosen neurons rows after the `known` ones, and their normalisation from the domains in seconds."""
        ids = {r.recording_id: [str(u) for u in r.unit_ids[columns[r.recording_id]]] for r in recordings}
        fitted = {
            r.recording_id: fit_normalisation(r, columns[r.recording_id], domains[r.recording_id], method=method)
            for r in recordings
        }
        return cls(known.grow(ids), columns, fitted)

    def unit_set(self, recording: Recording) -> UnitSet:
        """Return the neurons of one of the recordings."""
        name = recording.recording_id
        columns = self.columns[name]
        return UnitSet(
            columns=columns,
            rows=np.array([self.vocabulary.units[f"{name}/{recording.unit_ids[unit]}"] for unit in columns], np.int64),
            normalisation=self.normalisation[name],
            session_row=self.vocabulary.sessions[name],
        )


def fit_normalisation(
    recording: Recording, columns: NDArray[np.int64], domain: Intervals, *, method: str, block: int = 64
) -> Normalisation:
    """Return how the units at some columns are normalised, from a domain in seconds; `block` units at once.

    'robust_z': median and scaled median absolute deviation, or the standard deviation where that is 0; 'robust_asinh':
    the same, compressed and brought to mean 0 and standard deviation 1; 'raw': 0 and 1.
    """
    fitted = Normalisation.identity(len(columns), compress=method == "robust_asinh")
    edges = np.searchsorted(recording.timestamps, domain)
    whole = as_intervals([[recording.timestamps[0], np.inf]])
    readable = np.searchsorted(recording.timestamps, subtract(whole, recording.masked_domain))
    bad: list[str] = []
    for start in range(0, len(columns), block):
        part = columns[start : start + block]
        finite = np.all([np.isfinite(recording.read_dff(low, high)[:, part]).all(axis=0) for low, high in readable], 0)
        values = np.concatenate([recording.read_dff(low, high)[:, part] for low, high in edges])
        # Not by the standard deviation: rounding gives a constant such as 0.1 a positive one.
        changes = values.min(axis=0) < values.max(axis=0)
        bad += [str(recording.unit_ids[unit]) for unit in part[~(finite & changes)]]
        if method != "raw" and not bad:
            middle = np.median(values, axis=0)
            deviation = MAD_TO_SD * np.median(np.abs(values - middle), axis=0)
            fitted.centre[start : start + block] = middle
            fitted.scale[start : start + block] = np.where(deviation > 0, deviation, values.std(axis=0))
            if method == "robust_asinh":
                squeezed = np.arcsinh((values - middle) / fitted.scale[start : start + block])
                fitted.mean[start : start + block] = squeezed.mean(axis=0)
                fitted.spread[start : start + block] = squeezed.std(axis=0)
    if bad:
        raise RecordingError(
            f"recording {recording.recording_id}: NaN or constant traces in {len(bad)} of {len(columns)} units: "
            f"{', '.join(bad[:10])}{' ...' if len(bad) > 10 else ''}",
            fix="run 'poyo-ssl select' and pass --selection, which leaves such units out, or repair the source",
        )
    return fitted
