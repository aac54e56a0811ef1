"""Running speed and pupil of an NWB 2 file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poyo_ssl.data.series import PupilTrace, TimeSeries
from poyo_ssl.errors import RecordingError
from poyo_ssl.sources.behaviour import make_pupil, make_running
from poyo_ssl.sources.hdf5 import read_numbers, require_inside

RUNNING = ("running_speed", "speed")
CM_PER_S = {"cm/s": 1.0, "cm s^-1": 1.0, "centimeters/second": 1.0, "m/s": 100.0, "meters/second": 100.0}


def read_running(nwbfile: Any, path: Path, warnings: list[str]) -> TimeSeries | None:
    """Return the running speed in cm/s, if one series has such a name; samples that are not finite are left out."""
    found = _find(nwbfile, RUNNING, path, warnings)
    if found is None:
        return None
    item, times, values = found
    factor = CM_PER_S.get(str(item.unit).strip().lower())
    if values.shape[1] != 1 or factor is None:
        warnings.append(
            f"{item.name} has {values.shape[1]} columns in '{str(item.unit)[:20]}' where a speed in cm/s or m/s is "
            "understood; left out"
        )
        return None
    return make_running((times, factor * values), warnings)


def read_pupil(nwbfile: Any, path: Path, warnings: list[str]) -> PupilTrace | None:
    """Return gaze (cm on the monitor, whatever unit DANDI 000728 names) and pupil size; most files have none."""
    place = _find(nwbfile, ("pupil_location",), path, warnings)
    if place is None:
        return None
    if place[2].shape[1] != 2:
        warnings.append(f"pupil_location has {place[2].shape[1]} columns; left out")
        return None
    area = _find(nwbfile, ("pupil_size",), path, warnings)
    return make_pupil(place[1:], None if area is None else area[1:], warnings)


def _find(
    nwbfile: Any, names: tuple[str, ...], path: Path, warnings: list[str]
) -> tuple[Any, NDArray[np.float64], NDArray] | None:
    """Return a series of processed data, its timestamps and its values ``(n, k)``."""
    from pynwb import TimeSeries as NwbSeries

    found = [
        item
        for module in (nwbfile.processing or {}).values()
        for item in module.all_children()
        if isinstance(item, NwbSeries) and str(item.name).lower() in names
    ]
    if len(found) > 1:
        warnings.append(f"{len(found)} series are called {found[0].name}; none is taken")
    if len(found) != 1:
        return None
    item = found[0]
    try:
        data = require_inside(item.data, path, item.name)
        values = read_numbers(data, 2 if data.ndim == 2 else 1).astype(np.float64).reshape(len(data), -1)
        if item.timestamps is not None:
            times = read_numbers(require_inside(item.timestamps, path, f"{item.name}/timestamps"), 1).astype(np.float64)
        else:
            times = (item.starting_time or 0.0) + np.arange(len(values)) / (item.rate or np.nan)
    except RecordingError as error:
        warnings.append(f"{item.name} cannot be read ({error.problem}); left out")
        return None
    scale = float(item.conversion or 1.0)
    if len(times) != len(values) or not (np.isfinite(times).all() and (np.diff(times) > 0).all()):
        warnings.append(f"{item.name}: timestamps are not finite, increasing, and one per sample; left out")
        return None
    return item, times, values * scale + float(item.offset or 0.0)
