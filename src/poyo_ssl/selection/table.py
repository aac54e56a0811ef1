"""Which neurons are predictable: one row of statistics per neuron, thresholds, and the mask.

A neuron (or the mean of its Cre line) is predictable where skewness and kurtosis both lie strictly below their
thresholds. Recordings without a known line share the line ``unknown``, which counts as one line.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from kneed import KneeLocator
from numpy.typing import NDArray

from poyo_ssl import protocol
from poyo_ssl.config import SelectionConfig
from poyo_ssl.data.intervals import as_intervals
from poyo_ssl.data.recording import Recording
from poyo_ssl.errors import SelectionError, suggest
from poyo_ssl.files import write_beside
from poyo_ssl.selection.moments import measure_units

SENSITIVITY = 1.0
DIRECTION = "increasing"


def knee_threshold(line_means: Sequence[float] | NDArray[np.float64], *, name: str, curve: str = "concave") -> float:
    """Return the value at the knee of line means.

    The means are sorted ascending and set against their rank; Kneedle runs with sensitivity 1 on an increasing
    curve (the paper gives only the resulting thresholds; this is ours). Lines strictly below the value at the knee
    are predictable.
    """
    values = np.sort(np.asarray(line_means, float))
    fix = (
        f"use thresholds 'published' (skewness {protocol.SKEWNESS_THRESHOLD}, kurtosis "
        f"{protocol.KURTOSIS_THRESHOLD}) or 'given'"
    )
    if len(values) < protocol.MIN_LINES_FOR_KNEE:
        raise SelectionError(
            f"{len(values)} Cre lines are too few for a knee of {name}",
            allowed=f"{protocol.MIN_LINES_FOR_KNEE} or more",
            fix=fix,
        )
    knee = None
    # Equal means have no curve to normalise.
    if values[0] < values[-1]:
        with warnings.catch_warnings():
            # The library warns where we raise.
            warnings.simplefilter("ignore")
            knee = KneeLocator(np.arange(len(values)), values, S=SENSITIVITY, curve=curve, direction=DIRECTION).knee
    # On a curve of another shape the library may name an end, where the curve meets its chord by definition.
    if knee is None or knee in (0, len(values) - 1):
        raise SelectionError(f"the {len(values)} line means of {name} have no knee", fix=fix)
    return float(values[int(knee)])


MOMENTS = ("skewness", "kurtosis")
TABLE_FILE, SETTINGS_FILE = "selection.csv", "selection.json"
NUMBER_COLUMNS = ("skewness", "kurtosis", "snr", "event_rate_hz")
COUNT_COLUMNS = ("unit_index", "cell_specimen_id", "num_samples")


@dataclass(frozen=True)
class Selection:
    """The predictable neurons of some recordings.

    Attributes
    ----------
    table : DataFrame
        One row per neuron: recording_id, unit_id, unit_index, cell_specimen_id, cre_line, skewness, kurtosis, snr,
        event_rate_hz, num_samples, status ('ok', 'nan', 'constant'), selected. `UnitStatistics` defines the measures.
    thresholds : dict
        ``skewness`` and ``kurtosis``; empty with `keep_fraction`.
    config : SelectionConfig
        How they were chosen.
    intervals : dict
        ``(K, 2)`` seconds of each recording that were measured; empty where all of it was.

    Examples
    --------
    >>> import numpy as np
    >>> from poyo_ssl.data.recording import RecordingMetadata
    >>> dff = np.random.default_rng(0).gamma([10.0, 0.05], size=(5000, 2)).astype(np.float32)
    >>> recording = Recording("r", dff, np.arange(5000) / 30, RecordingMetadata("mouse"))
    >>> selection = fit_selection([recording], intervals=None, config=SelectionConfig(level="neuron"))
    >>> selection.mask(recording).tolist()
    [True, False]
    """

    table: pd.DataFrame
    thresholds: Mapping[str, float]
    config: SelectionConfig
    intervals: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    @property
    def lines(self) -> pd.DataFrame:
        """Per Cre line: means over usable neurons and counts (num_neurons, num_usable, num_selected), sorted."""
        return line_table(self.table)

    def mask(self, recording: Recording) -> NDArray[np.bool_]:
        """Return ``(N,)``, True where the unit is predictable.

        Raises
        ------
        SelectionError
            If the selection was made without this recording, or its units are others.
        """
        return self._rows(recording)["selected"].to_numpy(bool)

    def usable(self, recording: Recording) -> NDArray[np.bool_]:
        """Return ``(N,)``, True where the unit's trace is finite and not constant; errors as in `mask`."""
        return (self._rows(recording)["status"] == "ok").to_numpy(bool)

    def _rows(self, recording: Recording) -> pd.DataFrame:
        rows = self.table[self.table["recording_id"] == recording.recording_id]
        if rows.empty:
            known = sorted(set(self.table["recording_id"]))
            raise SelectionError(
                f"the selection knows no recording '{recording.recording_id}'{suggest(recording.recording_id, known)}",
                fix="run 'poyo-ssl select' on all recordings you use",
            )
        rows = rows.sort_values("unit_index")
        if rows["unit_id"].tolist() != recording.unit_ids.tolist():
            raise SelectionError(
                f"recording {recording.recording_id} has other units than when the selection was made",
                fix="run 'poyo-ssl select' again",
            )
        return rows

    def save(self, folder: Path | str) -> Path:
        """Write ``selection.csv`` and ``selection.json`` into `folder`, each beside its name and then renamed."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"config": asdict(self.config), "thresholds": dict(self.thresholds)}
        settings["intervals"] = {name: np.asarray(spans).tolist() for name, spans in self.intervals.items()}
        write_beside(folder / TABLE_FILE, self.table.to_csv(index=False))
        write_beside(folder / SETTINGS_FILE, json.dumps(settings, indent=2) + "\n")
        return folder

    @classmethod
    def load(cls, folder: Path | str) -> Selection:
        """Read what `save` wrote.

        Raises
        ------
        SelectionError
            If a file is missing or damaged.
        """
        folder = Path(folder)
        for name in (TABLE_FILE, SETTINGS_FILE):
            if not (folder / name).is_file():
                raise SelectionError(f"no {name} in {folder}", fix="run 'poyo-ssl select' first or check the path")
        try:
            settings = json.loads((folder / SETTINGS_FILE).read_text())
            config, thresholds = SelectionConfig(**settings["config"]), settings["thresholds"]
            intervals = {name: as_intervals(spans) for name, spans in settings.get("intervals", {}).items()}
            table = _read_table(folder / TABLE_FILE)
        except (ValueError, KeyError, TypeError) as error:
            raise SelectionError(
                f"{folder} holds no complete selection ({error})", fix="run 'poyo-ssl select' again"
            ) from None
        return cls(table, thresholds, config, intervals)


def _read_table(path: Path) -> pd.DataFrame:
    # Read as text: an id may be '007' or 'NA', and Python's float gives back every bit that was written.
    text = pd.read_csv(path, dtype=str, keep_default_na=False)
    columns: dict[str, list] = {name: text[name].tolist() for name in text.columns}
    columns |= {name: [float(value or "nan") for value in columns[name]] for name in NUMBER_COLUMNS}
    columns |= {name: [int(value) for value in columns[name]] for name in COUNT_COLUMNS}
    columns["selected"] = [{"True": True, "False": False}[value] for value in columns["selected"]]
    return pd.DataFrame(columns)


def line_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return the means of `Selection.lines` from the table of neurons; every neuron weighs the same.

    Lines without a usable neuron have NaN means and come last.
    """
    counts = table.groupby("cre_line").agg(num_neurons=("status", "size"), num_selected=("selected", "sum"))
    usable = table[table["status"] == "ok"].groupby("cre_line")
    lines = usable[list(MOMENTS)].mean().reindex(counts.index)
    lines["num_neurons"] = counts["num_neurons"]
    lines["num_usable"] = usable.size().reindex(counts.index, fill_value=0)
    lines["num_selected"] = counts["num_selected"].astype(int)
    return lines.sort_values(list(MOMENTS)).reset_index()


def fit_selection(
    recordings: Sequence[Recording],
    *,
    intervals: Mapping[str, NDArray[np.float64]] | None,
    config: SelectionConfig,
    progress: Callable[[int, int], None] | None = None,
) -> Selection:
    """Measure every neuron and choose the predictable ones.

    Parameters
    ----------
    recordings : sequence of Recording
        A cell that was recorded in several sessions counts once in each.
    intervals : dict, optional
        ``(K, 2)`` seconds per recording id: the training split. None takes the whole recordings, for data that
        nothing is evaluated on.
    config : SelectionConfig
        Level and thresholds.
    progress : callable, optional
        Called with (recordings done, recordings in total).

    Raises
    ------
    SelectionError
        If a recording has no intervals, ids are not unique, a knee cannot be fitted, or nothing is selected.

    Examples
    --------
    >>> import numpy as np
    >>> from poyo_ssl.data.recording import RecordingMetadata
    >>> rng = np.random.default_rng(0)
    >>> times, lines = np.arange(5000) / 30, {"Sst-IRES-Cre": 10.0, "Cux2-CreERT2": 0.05}
    >>> recordings = [
    ...     Recording(line, rng.gamma(shape, size=(5000, 3)), times, RecordingMetadata("mouse", cre_line=line))
    ...     for line, shape in lines.items()]
    >>> fit_selection(recordings, intervals=None, config=SelectionConfig()).lines[["cre_line", "num_selected"]]
           cre_line  num_selected
    0  Sst-IRES-Cre             3
    1  Cux2-CreERT2             0
    """
    ids = [recording.recording_id for recording in recordings]
    missing = [name for name in ids if intervals is not None and name not in intervals]
    if not ids or missing or len(set(ids)) < len(ids):
        raise SelectionError(
            f"no intervals for recording {missing[0]}" if missing else f"recordings {', '.join(ids) or '(none)'}",
            allowed="one or more recordings of different ids, each with its training intervals",
            fix="check the data folder and the split",
        )
    parts = []
    for i, recording in enumerate(recordings):
        parts.append(_measure(recording, None if intervals is None else intervals[recording.recording_id]))
        if progress:
            progress(i + 1, len(recordings))
    table = pd.concat(parts, ignore_index=True)
    if not (table["status"] == "ok").any():
        counts = ", ".join(f"{count} {status}" for status, count in table["status"].value_counts().items())
        raise SelectionError(f"no neuron has a usable trace ({counts})", fix="check the traces of the recordings")
    thresholds = _thresholds(table, config)
    table["selected"] = _select(table, thresholds, config)
    if not table["selected"].any():
        nearest = line_table(table).iloc[0] if config.level == "line" else table[list(MOMENTS)].min()
        limits = " and ".join(f"{name} below {value:.4g}" for name, value in thresholds.items())
        raise SelectionError(
            f"no {config.level} is predictable: the lowest has skewness {nearest['skewness']:.4g} and kurtosis "
            f"{nearest['kurtosis']:.4g}",
            allowed=limits,
            fix="raise the thresholds (--thresholds given) or pass --level neuron --keep_fraction 0.3",
        )
    return Selection(table, thresholds, config, dict(intervals or {}))


def _measure(recording: Recording, intervals: NDArray[np.float64] | None) -> pd.DataFrame:
    found = measure_units(recording, intervals)
    num_units = recording.num_units
    return pd.DataFrame(
        {
            "recording_id": [recording.recording_id] * num_units,
            "unit_id": recording.unit_ids.tolist(),
            "unit_index": np.arange(num_units),
            "cell_specimen_id": recording.cell_specimen_ids,
            "cre_line": [recording.metadata.cre_line] * num_units,
            **{name: getattr(found, name) for name in NUMBER_COLUMNS},
            "num_samples": found.num_samples,
            "status": found.status.tolist(),
            "selected": np.zeros(num_units, bool),
        }
    )


def _thresholds(table: pd.DataFrame, config: SelectionConfig) -> dict[str, float]:
    if config.keep_fraction is not None:
        return {}
    if config.thresholds == "published":
        return {"skewness": protocol.SKEWNESS_THRESHOLD, "kurtosis": protocol.KURTOSIS_THRESHOLD}
    if config.thresholds == "knee":
        means = line_table(table).dropna(subset=list(MOMENTS))
        return {name: knee_threshold(means[name].to_numpy(), name=name, curve=config.knee_curve) for name in MOMENTS}
    return {name: float(getattr(config, f"{name}_threshold")) for name in MOMENTS}


def _select(table: pd.DataFrame, thresholds: Mapping[str, float], config: SelectionConfig) -> NDArray[np.bool_]:
    usable = (table["status"] == "ok").to_numpy(bool)
    if config.keep_fraction is not None:
        selected = np.zeros(len(table), bool)
        ranks = table.loc[usable, list(MOMENTS)].rank().sum(axis=1).to_numpy()
        num_kept = max(round(config.keep_fraction * len(ranks)), 1)
        selected[np.flatnonzero(usable)[np.argsort(ranks, kind="stable")[:num_kept]]] = True
        return selected
    judged = line_table(table) if config.level == "line" else table
    # NaN (a line without a usable neuron) is below nothing.
    below = (judged["skewness"] < thresholds["skewness"]) & (judged["kurtosis"] < thresholds["kurtosis"])
    if config.level == "line":
        return usable & table["cre_line"].isin(judged.loc[below, "cre_line"]).to_numpy(bool)
    return usable & below.to_numpy(bool)
