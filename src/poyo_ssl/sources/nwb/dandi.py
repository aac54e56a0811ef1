"""DANDI 000728, the Allen's own conversion of Visual Coding to NWB 2, whose defects are worked around by name.

What the conversion lost is said in the recording's warnings; where it matters, the NWB 1 file (`prepare allen`) has it:

- every ``static_gratings`` table ends after three rows: such a table is left out;
- blank scenes became image 0: presentations of image 0 are left out, since half of them showed nothing;
- ROI ids, imaging depth and rig are not kept, the indicator is always called GCaMP6f: the reporter line tells it;
- ``Fluorescence/Corrected`` is the raw fluorescence, not corrected for neuropil;
- the group ``intervals`` is missing in some files: blocks are found in the presentations, as they are for NWB 1;
- the end of a presentation is not kept: it lasts until the next one;
- images of scenes and noises are listed alphabetically: they are read by the number in their name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poyo_ssl.data.stimuli import Presentations
from poyo_ssl.errors import RecordingError
from poyo_ssl.sources.allen.about import parse_donor
from poyo_ssl.sources.allen.stimuli import (
    EXPECTED,
    GRATINGS,
    KNOWN,
    MOVIE_FRAMES,
    MOVIE_REPEATS,
    NOISE,
    NOISE_FRAMES,
    NOISE_PIXEL_DEG,
    NUM_SCENES,
    SCENES,
    SPONTANEOUS,
    Clock,
    count_conditions,
    find_blocks,
    merge_noises,
)
from poyo_ssl.sources.hdf5 import read_numbers, require_inside
from poyo_ssl.sources.nwb.stimuli import (
    SUFFIX,
    find_stops,
    list_tables,
    read_columns,
    read_index_series,
    read_intervals,
)
from poyo_ssl.sources.nwb.traces import Series
from poyo_ssl.sources.tables import StimulusTable

SESSION = re.compile(r"\d+-Stim(\w+)")
NOTES = re.compile(r"Session type:\s*(\w+)")
FILE = re.compile(r"sub-\w+_ses-(\d+)-Stim(?:A|B|C2|C)_.*")
RAW, WHOLE = "_ophys", "_behavior+image+ophys"
FEWEST_GRATINGS = 100
"""Every static_gratings table of the release has three rows of some 6000."""

OFFERED = "the NWB 1 file has it: 'prepare allen'"


def session_type_of(nwbfile: Any) -> str | None:
    """Return the Allen's session type if the file is one of DANDI 000728, by session id or notes, else None."""
    found = SESSION.fullmatch(str(nwbfile.session_id or ""))
    told = NOTES.search(str(nwbfile.notes or ""))
    if found:
        return f"three_session_{found[1]}"
    return told[1] if told else None


def correct_fields(fields: dict[str, Any], nwbfile: Any, session_type: str, warnings: list[str]) -> dict[str, Any]:
    """Return fields of `RecordingMetadata` as the NWB 1 file has them, as far as the conversion kept them."""
    notes = str(nwbfile.notes or "")
    container = re.search(r"Container ID:\s*(\d+)", notes)
    told = NOTES.search(notes)
    if session_type not in EXPECTED:
        warnings.append(f"unknown session type '{session_type}': stimuli and blocks are taken as they are found")
    elif told and told[1] != session_type:
        warnings.append(f"the notes say session type '{told[1]}', the session id {session_type}; the id's is taken")
    if container is None:
        warnings.append("the notes name no container: sessions of one field of view cannot be matched")
    donor = parse_donor(str(getattr(nwbfile.subject, "strain", None) or ""))
    if not donor:
        warnings.append("the strain names no six-digit mouse; subject_id is taken as the animal")
    warnings.append(f"DANDI 000728 keeps neither ROI ids (units are called by cell), nor depth, nor rig; {OFFERED}")
    corrected = {"session_type": session_type, "container_id": container[1] if container else ""}
    # The device is always called after one of the two kinds of microscope.
    corrected["device_id"] = "two_photon"
    corrected["origin"] = "DANDI 000728 (Allen Visual Coding, NWB 2)"
    if donor:
        corrected["subject_id"] = donor
    return fields | corrected


def choose_fluorescence(found: list[Series], path: Path, warnings: list[str]) -> Series:
    """Return the demixed fluorescence.

    Raises
    ------
    RecordingError
        If the file lacks it, as a few do; the raw fluorescence is taken on request only.
    """
    named = {item.series.name: item for item in found if item.kind == "fluorescence"}
    if "Demixed" not in named:
        raise RecordingError(
            f"{path}: no demixed fluorescence ('Corrected' is the raw one, whatever its name says)",
            allowed=", ".join(item.name for item in named.values()) or "it has none",
            fix="pass --series Corrected to do without demixing",
        )
    warnings.append("dF/F is computed from the demixed fluorescence")
    return named["Demixed"]


def read_ratios(nwbfile: Any, num_rois: int, path: Path) -> NDArray[np.float64] | None:
    """Return ``(N,)`` neuropil ratios of the file, or None if it has none of this number."""
    module = nwbfile.processing.get("ophys") if nwbfile.processing else None
    table = module.data_interfaces.get("ContaminationRatios") if module is not None else None
    if table is None or "ratios" not in getattr(table, "colnames", ()):
        return None
    ratios = read_numbers(require_inside(table["ratios"].data, path, "ratios"), 1).astype(np.float64)
    return ratios if len(ratios) == num_rois and np.isfinite(ratios).all() else None


def read_stimuli(
    nwbfile: Any, timestamps: NDArray[np.float64], session_type: str, path: Path, warnings: list[str]
) -> tuple[dict[str, Presentations], dict[str, NDArray[np.float64]]]:
    """Return presentations and blocks ``(K, 2)`` in seconds, named and coded as those of NWB 1 files.

    Raises
    ------
    RecordingError
        If a table or index series is damaged, incomplete or reaches outside the recording.
    """
    stimuli: dict[str, Presentations] = {}
    blocks = {}
    for name, table in _list_gratings(nwbfile, path, warnings).items():
        blocks[name] = _spans(name, table, timestamps, session_type, path, warnings)
        columns = _code_gratings(name, table)
        stimuli[name] = Presentations.from_times(name, timestamps, table.start, table.stop, columns)
    noises = []
    for name, index, onset, number in read_index_series(nwbfile, path):
        if name not in KNOWN:
            warnings.append(f"stimulus '{name[:80]}' is not one of the Allen's; left out")
            continue
        shown = StimulusTable(onset, find_stops(onset), np.full(len(onset), name), {}, f"{path}: {name}")
        blocks[name] = _spans(name, shown, timestamps, session_type, path, warnings)
        columns = {"frame": index, **_code_images(name, index, number, path, warnings)}
        part = Presentations.from_times(name, timestamps, shown.start, shown.stop, columns)
        if name == SCENES:
            part = _drop_blanks(part, warnings)
        if name in NOISE_FRAMES:
            noises.append(part)
        elif len(part):
            stimuli[name] = part
    if noises:
        stimuli[NOISE] = merge_noises(noises)
    epochs = _read_epochs(nwbfile, path, warnings)
    lost = {name: spans for name, spans in epochs.items() if name not in blocks and name in KNOWN}
    there = {str(key).removesuffix(SUFFIX) for key in nwbfile.stimulus or {}}
    for name in EXPECTED.get(session_type, ()):
        if name not in there:
            warnings.append(f"no '{name}' among the stimuli, which {session_type} should have")
    return stimuli, lost | blocks | _read_spontaneous(nwbfile, timestamps, path, warnings)


def _list_gratings(nwbfile: Any, path: Path, warnings: list[str]) -> dict[str, StimulusTable]:
    found = {}
    for key, item in list_tables(nwbfile).items():
        name = key.removesuffix(SUFFIX)
        if name not in GRATINGS:
            continue
        table = read_intervals(item, path, warnings)
        rows = 0 if table is None else len(table.start)
        if name == "static_gratings" and rows < FEWEST_GRATINGS:
            warnings.append(
                f"static_gratings has {rows} rows of some 6000, a known defect of DANDI 000728: left out; {OFFERED}"
            )
        elif table is not None:
            found[name] = table
    return found


def _spans(
    name: str,
    table: StimulusTable,
    timestamps: NDArray[np.float64],
    session_type: str,
    path: Path,
    warnings: list[str],
) -> NDArray[np.float64]:
    """Return the blocks of a stimulus in seconds; refuse one that reaches outside the recording."""
    step = float(np.median(np.diff(timestamps)))
    bad = np.flatnonzero((table.start < timestamps[0] - step) | (table.start > timestamps[-1] + step))
    if len(bad):
        raise RecordingError(
            f"{path}: row {bad[0]} of {name} begins at {table.start[bad[0]]:g} s",
            allowed=f"{timestamps[0]:g} to {timestamps[-1]:g} s",
            fix="download the file again",
        )
    bad = np.flatnonzero(np.diff(table.start) < 0)
    if len(bad):
        raise RecordingError(
            f"{path}: row {bad[0] + 1} of {name} begins before row {bad[0]}", fix="download the file again"
        )
    frames = np.searchsorted(timestamps, np.stack([table.start, table.stop], axis=1) - 0.5 * step)
    return Clock(timestamps, len(timestamps)).edges(find_blocks(name, frames, session_type, warnings))


def _code_gratings(name: str, table: StimulusTable) -> dict[str, NDArray]:
    """Return features, their ids and repeats; NaN and -1 for blank sweeps."""
    values = {}
    for key in GRATINGS[name]:
        column = table.columns.get(key)
        if column is None or column.dtype.kind not in "iuf":
            raise RecordingError(
                f"{table.what} has no numbers of '{key}'",
                allowed=", ".join(GRATINGS[name]),
                fix="download the file again",
            )
        values[key] = column.astype(np.float64)
    absent = np.isnan(np.stack(list(values.values())))
    flags = table.columns.get("blank_sweep")
    blank: NDArray[np.bool_] = np.asarray(absent.all(axis=0))
    if flags is not None and flags.dtype.kind != "U":
        blank = np.asarray(flags == 1)
    bad = np.flatnonzero(absent.any(axis=0) & ~blank)
    if len(bad):
        raise RecordingError(
            f"{table.what}: row {bad[0]} has no value for a feature but is no blank", fix="download the file again"
        )
    columns: dict[str, NDArray] = {}
    for key, known in GRATINGS[name].items():
        nearest = np.abs(np.where(blank, known[0], values[key])[:, None] - np.asarray(known)).argmin(1)
        bad = np.flatnonzero(~blank & ~np.isclose(values[key], np.asarray(known)[nearest], rtol=1e-4))
        if len(bad):
            raise RecordingError(
                f"{table.what}: row {bad[0]} has {key} {values[key][bad[0]]:g}",
                allowed=", ".join(f"{value:g}" for value in known),
                fix="download the file again",
            )
        columns[key] = np.where(blank, np.nan, values[key])
        columns[f"{key}_id"] = np.where(blank, -1, nearest).astype(np.int64)
    return {**columns, "repeat": count_conditions(columns, blank), "blank_sweep": blank}


def _code_images(
    name: str, index: NDArray[np.int64], number: int | None, path: Path, warnings: list[str]
) -> dict[str, NDArray]:
    """Return the columns that follow from the images: repeats of movies by their place, pixel sizes of noises."""
    if name in NOISE_FRAMES:
        return {"pixel_size": np.full(len(index), NOISE_PIXEL_DEG[name])}
    if name == SCENES:
        limit = number or NUM_SCENES
        if index.max(initial=0) >= limit:
            raise RecordingError(
                f"{path}: {name} shows image {index.max()}", allowed=f"0 to {limit - 1}", fix="download the file again"
            )
        return {}
    length = number or MOVIE_FRAMES[name]
    place = np.arange(len(index))
    wrong = np.flatnonzero(index != place % length)
    if len(wrong) or len(index) % length:
        row = int(wrong[0]) if len(wrong) else len(index)
        shown = f"image {index[row]}" if row < len(index) else "the end of the table"
        raise RecordingError(
            f"{path}: repeat {row // length} of {name} has {shown} where image {row % length} should be",
            allowed=f"repeats of images 0 to {length - 1}",
            fix="rows are missing: the repeats after them could not be told apart",
        )
    if len(index) // length != MOVIE_REPEATS:
        warnings.append(f"{name} has {len(index) // length} repeats where {MOVIE_REPEATS} were shown")
    return {"repeat": place // length}


def _drop_blanks(scenes: Presentations, warnings: list[str]) -> Presentations:
    ambiguous = scenes.columns["frame"] == 0
    if ambiguous.any():
        warnings.append(
            f"natural_scenes: DANDI 000728 turned blanks into image 0; {int(ambiguous.sum())} presentations of either "
            f"are left out; {OFFERED}"
        )
    return scenes.select(~ambiguous)


def _read_epochs(nwbfile: Any, path: Path, warnings: list[str]) -> dict[str, NDArray[np.float64]]:
    """Return the blocks of the table ``epochs``, by stimulus."""
    if nwbfile.epochs is None:
        warnings.append("no table of epochs, a known defect of some files: blocks are found in the presentations")
        return {}
    columns = read_columns(nwbfile.epochs, path, warnings)
    if not {"start_time", "stop_time", "stimulus_type"} <= set(columns):
        warnings.append(f"the table of epochs has columns {', '.join(columns)}: not used")
        return {}
    spans = np.stack([columns["start_time"], columns["stop_time"]], axis=1).astype(np.float64)
    names = np.array([str(name).removesuffix(SUFFIX) for name in columns["stimulus_type"]])
    good = np.isfinite(spans).all(axis=1) & (spans[:, 1] >= spans[:, 0])
    return {str(name): spans[good & (names == name)] for name in np.unique(names[good])}


def _read_spontaneous(
    nwbfile: Any, timestamps: NDArray[np.float64], path: Path, warnings: list[str]
) -> dict[str, NDArray[np.float64]]:
    tables = list_tables(nwbfile)
    item = tables.get(SPONTANEOUS + SUFFIX, tables.get(SPONTANEOUS))
    table = read_intervals(item, path, warnings) if item is not None else None
    if table is None:
        return {}
    step = float(np.median(np.diff(timestamps)))
    if table.start.min() < timestamps[0] - step or table.stop.max() > timestamps[-1] + 1.5 * step:
        raise RecordingError(
            f"{path}: {SPONTANEOUS} runs from {table.start.min():g} to {table.stop.max():g} s",
            allowed=f"{timestamps[0]:g} to {timestamps[-1]:g} s",
            fix="download the file again",
        )
    return {SPONTANEOUS: np.stack([table.start, table.stop], axis=1)}
