"""Stimulus tables of laboratories (csv): one row per presentation, in seconds on the recording's clock."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poyo_ssl import protocol
from poyo_ssl.data.intervals import merge
from poyo_ssl.data.stimuli import MOVIE_PREFIX, Presentations
from poyo_ssl.errors import RecordingError, suggest
from poyo_ssl.sources.base import clean_name, name_rows
from poyo_ssl.sources.coding import count_occurrences

SPONTANEOUS = "spontaneous"

ALIASES = {
    "start": ("start_time", "onset"),
    "stop": ("stop_time", "end", "end_time", "offset"),
    "name": ("stimulus", "stimulus_name"),
    "orientation": ("orientation_in_degrees", "direction"),
    "spatial_frequency": ("spatial_frequency_in_cycles_per_degree",),
    "temporal_frequency": ("temporal_frequency_in_hz",),
    "blank_sweep": ("is_blank_sweep",),
}
"""Other spellings of the columns."""

NEEDED = {"drifting_gratings": "orientation", MOVIE_PREFIX: "frame"}
"""What the stimuli whose name begins so must say of each presentation to be decoded."""

INTEGERS = ("frame", "repeat")
GRATINGS = {
    "orientation": protocol.GRATING_DIRECTIONS_DEG,
    "temporal_frequency": protocol.GRATING_TEMPORAL_FREQUENCIES_HZ,
}


class StimulusTable:
    """Rows of all stimuli of one recording, before they meet its clock.

    Parameters
    ----------
    start, stop : ndarray
        ``(K,)`` seconds.
    name : ndarray
        ``(K,)`` text.
    columns : dict
        ``(K,)`` arrays, NaN or an empty text where a column is not the row's.
    what : str
        File, for messages.
    """

    def __init__(
        self,
        start: NDArray[np.float64],
        stop: NDArray[np.float64],
        name: NDArray[np.str_],
        columns: Mapping[str, NDArray],
        what: str,
    ) -> None:
        self.start, self.stop, self.name, self.columns, self.what = start, stop, name, dict(columns), what
        bad = np.flatnonzero(~(np.isfinite(start) & np.isfinite(stop) & (stop >= start)))
        if len(bad):
            row = int(bad[0])
            raise RecordingError(
                f"{what}: row {row} ({name[row]}) runs from {start[row]:g} s to {stop[row]:g} s",
                allowed="finite seconds, stop not before start",
                fix="correct the table",
            )

    def place(
        self, timestamps: NDArray[np.float64], movie_frames: Mapping[str, int], warnings: list[str]
    ) -> tuple[dict[str, Presentations], dict[str, NDArray[np.float64]]]:
        """Put the rows on a recording's clock.

        Parameters
        ----------
        timestamps : ndarray
            ``(T,)`` seconds.
        movie_frames : dict
            Number of frames of each movie whose pixels are known: a movie without the column `frame` has one row per
            repeat, over which its frames are laid evenly.
        warnings : list of str
            What is repaired or left out is appended.

        Returns
        -------
        tuple of dict
            Presentations by stimulus, without ``spontaneous``; ``(K, 2)`` seconds of epochs by stimulus.

        Raises
        ------
        RecordingError
            If no row lies in the recording, or a column is not what it must be.
        """
        step = float(np.median(np.diff(timestamps)))
        inside = (self.start >= timestamps[0] - step) & (self.stop <= timestamps[-1] + 1.5 * step)
        if len(inside) and not inside.any():
            raise RecordingError(
                f"{self.what}: none of {len(inside)} rows ({self.start.min():g} to {self.stop.max():g} s) lies within "
                f"the recording ({timestamps[0]:g} to {timestamps[-1]:g} s)",
                fix="give the table on the recording's clock, in seconds",
            )
        if not inside.all():
            outside = np.flatnonzero(~inside)
            warnings.append(f"{self.what}: {name_rows(outside)} reach outside the recording: left out")
        if inside.any() and self.stop[inside].max() < timestamps[0] + 0.1 * (timestamps[-1] - timestamps[0]):
            warnings.append(
                f"{self.what}: all stimuli lie in the first tenth of the recording; is the table in seconds?"
            )
        stimuli, epochs = {}, {}
        for raw in dict.fromkeys(self.name[inside].tolist()):
            rows = np.flatnonzero(inside & (self.name == raw))
            rows = rows[np.argsort(self.start[rows], kind="stable")]
            name = SPONTANEOUS if raw == SPONTANEOUS else clean_name(raw)
            if name != raw:
                warnings.append(f"{self.what}: stimulus '{raw}' is called '{name}'")
            if name in epochs:
                raise RecordingError(f"{self.what}: two stimuli would be called '{name}'", fix="rename one of them")
            start, stop = self.start[rows], self.stop[rows]
            epochs[name] = merge(np.stack([start, stop], axis=1), gap_s=protocol.BLOCK_PAUSE_S)
            if name == SPONTANEOUS:
                continue
            overlap = np.flatnonzero(start[1:] < stop[:-1] - step)
            if len(overlap):
                warnings.append(f"{name}: {len(overlap)} presentations begin before the one before them ends")
            columns = {key: values[rows] for key, values in self.columns.items() if _has_any(values[rows])}
            if "frame" not in columns and name in movie_frames:
                start, stop, columns = _lay_frames(name, start, stop, columns, movie_frames[name])
            columns = finish_columns(name, columns, self.what, len(start), movie_frames.get(name))
            stimuli[name] = Presentations.from_times(name, timestamps, start, stop, columns)
            needed = next((key for prefix, key in NEEDED.items() if name.startswith(prefix)), None)
            if needed is not None and needed not in columns:
                warnings.append(f"{name} has no '{needed}' in {self.what}: it cannot be decoded")
        return stimuli, epochs


def read_table(path: Path) -> StimulusTable:
    r"""Read a csv table: `start`, `stop` (seconds), `name`, and any other columns.

    Raises
    ------
    RecordingError
        If it is missing, not a table, lacks a column, or a time is not a number.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "stimuli.csv"
    >>> _ = path.write_text("start,stop,name,orientation\n1,3,drifting_gratings,45\n4,6,drifting_gratings,\n")
    >>> stimuli, epochs = read_table(path).place(np.arange(300) / 30, {}, [])
    >>> stimuli["drifting_gratings"].columns["blank_sweep"].tolist(), epochs["drifting_gratings"].tolist()
    ([False, True], [[1.0, 6.0]])
    """
    import pandas as pd

    if not path.is_file():
        raise RecordingError(f"no stimulus table {path}", fix="check the path")
    try:
        table = pd.read_csv(path, encoding="utf-8-sig", skipinitialspace=True)
    except (ValueError, UnicodeDecodeError, OverflowError) as error:
        raise RecordingError(
            f"{path} is not a table ({' '.join(str(error).split())[:200]})", fix="write it as comma-separated values"
        ) from None
    return make_table({str(key): table[key].to_numpy() for key in table}, str(path))


def make_table(columns: Mapping[str, NDArray], what: str) -> StimulusTable:
    """Make a table from columns by name, in any of their known spellings.

    Raises
    ------
    RecordingError
        If a column is missing, or a time is not a number.
    """
    spelled = {key.strip().lower(): np.asarray(values) for key, values in columns.items()}
    for wanted, others in ALIASES.items():
        present = [key for key in (wanted, *others) if key in spelled]
        if present:
            spelled[wanted] = spelled.pop(present[0])
    for wanted in ("start", "stop", "name"):
        if wanted not in spelled:
            raise RecordingError(
                f"{what} has no column '{wanted}'{suggest(wanted, spelled)} (found: {', '.join(columns)[:80]})",
                allowed="start, stop (seconds), name, and any others, with commas between them",
                fix="correct the table",
            )
    if len(spelled["start"]) == 0:
        raise RecordingError(f"{what} has no rows", fix="add the stimuli, or leave the table out")
    start, stop = (_numbers(spelled.pop(key), key, what) for key in ("start", "stop"))
    name = np.array([str(value).strip() for value in spelled.pop("name")], dtype=np.str_)
    return StimulusTable(start, stop, name, {key: _plain(values) for key, values in spelled.items()}, what)


def _numbers(values: NDArray, key: str, what: str) -> NDArray[np.float64]:
    import pandas as pd

    numbers = pd.to_numeric(pd.Series(values), errors="coerce").to_numpy(np.float64)
    bad = np.flatnonzero(~np.isfinite(numbers))
    if len(bad):
        raise RecordingError(
            f"{what}: '{key}' of row {bad[0]} is '{values[bad[0]]}'", allowed="seconds", fix="correct the table"
        )
    return numbers


def _plain(values: NDArray) -> NDArray:
    """Return a column as numbers, or else as text."""
    if values.dtype.kind in "biuf":
        return values
    import pandas as pd

    series = pd.Series(values)
    words = series.dropna().astype(str).str.strip().str.lower()
    if len(words) and words.isin(["true", "false"]).all():
        return (series.astype(str).str.strip().str.lower() == "true").to_numpy(bool)
    numbers = pd.to_numeric(series, errors="coerce")
    if numbers.notna().sum() == series.notna().sum():
        return numbers.to_numpy(np.float64)
    return np.array(["" if missing else str(value) for value, missing in zip(values, series.isna(), strict=True)])


def _has_any(values: NDArray) -> bool:
    return bool((values != "").any()) if values.dtype.kind == "U" else bool((~np.isnan(values.astype(float))).any())


def _lay_frames(
    name: str, start: NDArray[np.float64], stop: NDArray[np.float64], columns: dict[str, NDArray], num_frames: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], dict[str, NDArray]]:
    """Turn one row per repeat into one per movie frame."""
    if (stop <= start).any():
        raise RecordingError(f"{name}: a repeat lasts no time", fix="correct its row")
    edges = np.arange(num_frames + 1) / num_frames
    spans = start[:, None] + edges * (stop - start)[:, None]
    columns = {key: np.repeat(values, num_frames) for key, values in columns.items()}
    columns["frame"] = np.tile(np.arange(num_frames), len(start))
    if "repeat" not in columns:
        columns["repeat"] = np.repeat(np.arange(len(start)), num_frames)
    return spans[:, :-1].reshape(-1), spans[:, 1:].reshape(-1), columns


def finish_columns(
    name: str, columns: Mapping[str, NDArray], what: str, length: int, num_images: int | None = None
) -> dict[str, NDArray]:
    """Give the columns of one stimulus the types that the tasks expect, and add those that follow from others.

    Gratings get `blank_sweep` (True where the orientation is missing) and ids of orientation and temporal frequency;
    movies get `repeat`, counted per frame, if the table has none.

    Raises
    ------
    RecordingError
        If `frame` or `repeat` are not whole numbers, or a frame lies outside the movie.
    """
    done = dict(columns)
    blank = np.asarray(done.get("blank_sweep", np.zeros(length)))
    if blank.dtype.kind == "U" or not np.isin(np.nan_to_num(blank.astype(float)), (0, 1)).all():
        raise RecordingError(f"{what}: blank_sweep of {name} is not 0 or 1", fix="correct the table")
    blank = np.nan_to_num(blank.astype(float)).astype(bool)
    for key in INTEGERS:
        if key not in done:
            continue
        values = done[key]
        if values.dtype.kind == "U" or not (np.isfinite(values.astype(float)) & (values.astype(float) % 1 == 0)).all():
            raise RecordingError(f"{what}: '{key}' of {name} is not a whole number everywhere", fix="correct the table")
        done[key] = values.astype(np.int64)
    if "frame" in done:
        frame = done["frame"]
        allowed = f"0 to {num_images - 1}" if num_images else "0 or more"
        bad = np.flatnonzero((frame < -1) | (frame >= (num_images or np.iinfo(np.int64).max)))
        if name.startswith(MOVIE_PREFIX):
            bad = np.flatnonzero((frame < 0) | (frame >= (num_images or np.iinfo(np.int64).max)))
        if len(bad):
            raise RecordingError(
                f"{what}: presentation {bad[0]} of {name} shows frame {frame[bad[0]]}",
                allowed=allowed,
                fix="correct the table or give the stimulus that was shown",
            )
        if name.startswith(MOVIE_PREFIX) and "repeat" not in done:
            done["repeat"] = count_occurrences(frame)
    if "orientation" in done:
        orientation = done["orientation"]
        if orientation.dtype.kind == "U":
            raise RecordingError(f"{what}: orientation of {name} is not a number everywhere", fix="give degrees")
        done["blank_sweep"] = blank | ~np.isfinite(orientation.astype(float))
        for key, usual in GRATINGS.items():
            if key in done and done[key].dtype.kind != "U":
                done |= _identify(key, done[key].astype(float), done["blank_sweep"], usual)
    elif "blank_sweep" in done:
        done["blank_sweep"] = blank
    return done


def _identify(
    key: str, values: NDArray[np.float64], blank: NDArray[np.bool_], usual: tuple[float, ...]
) -> dict[str, Any]:
    """Return a column with NaN for blanks, and its id: place among the Allen's values, or among its own."""
    values = np.where(blank, np.nan, values)
    shown = np.isfinite(values)
    choices = np.asarray(usual) if np.isin(values[shown], usual).all() else np.unique(values[shown])
    ids = np.full(len(values), -1, np.int64)
    ids[shown] = np.searchsorted(choices, values[shown])
    return {key: values, f"{key}_id": ids}
