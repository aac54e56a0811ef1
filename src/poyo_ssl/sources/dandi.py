"""DANDI 000728: the Allen's Visual Coding recordings as NWB 2, as far as its conversion kept what NWB 1 files hold."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poyo_ssl.data.hdf5 import read_numbers, require_inside
from poyo_ssl.data.stimuli import Presentations
from poyo_ssl.errors import RecordingError
from poyo_ssl.sources.allen import FIX, frame_edges, merge_noises, parse_donor
from poyo_ssl.sources.base import Notes
from poyo_ssl.sources.coding import (
    EXPECTED,
    GRATINGS,
    KNOWN,
    NOISE,
    NOISE_FRAMES,
    SCENES,
    SPONTANEOUS,
    code_gratings,
    code_images,
    find_blocks,
)
from poyo_ssl.sources.tables import StimulusTable

SESSION = re.compile(r"\d+-Stim(\w+)")
SESSION_NOTE = re.compile(r"Session type:\s*(\w+)")
CONTAINER_NOTE = re.compile(r"Container ID:\s*(\d+)")
FILE = re.compile(r"sub-\w+_ses-(\d+)-Stim(?:A|B|C2|C)_.*")
RAW, PROCESSED = "_ophys", "_behavior+image+ophys"
FEWEST_GRATINGS = 100
"""Every static_gratings table of the release has three rows of some 6000."""

OFFERED = "the NWB 1 file has it: 'prepare allen'"


def experiment_of(path: Path) -> str | None:
    """Return the experiment id in a file's name, or None if the name is not of this release."""
    found = FILE.fullmatch(path.stem)
    return found[1] if found else None


def processed_half(path: Path) -> Path | None:
    """Return the processed file of a session for its raw one, which has nothing to decode; None for other files."""
    stem = path.stem
    if not FILE.fullmatch(stem) or not stem.endswith(RAW) or stem.endswith(PROCESSED):
        return None
    return path.with_name(stem.removesuffix(RAW) + PROCESSED + path.suffix)


def session_type_of(nwbfile: Any) -> str | None:
    """Return the Allen's session type if the file is of this release, by session id or notes, else None."""
    by_id = SESSION.fullmatch(str(nwbfile.session_id or ""))
    by_notes = SESSION_NOTE.search(str(nwbfile.notes or ""))
    return f"three_session_{by_id[1]}" if by_id else by_notes[1] if by_notes else None


def correct_fields(nwbfile: Any, session_type: str, notes: Notes) -> dict[str, str]:
    """Return the fields of `RecordingMetadata` that this release keeps in places of its own."""
    text = str(nwbfile.notes or "")
    container, named = CONTAINER_NOTE.search(text), SESSION_NOTE.search(text)
    if session_type not in EXPECTED:
        notes.add(f"unknown session type '{session_type}': stimuli and blocks are taken as they are found")
    elif named and named[1] != session_type:
        notes.add(f"the notes say session type '{named[1]}', the session id {session_type}; the id's is taken")
    if container is None:
        notes.add("the notes name no container: sessions of one field of view cannot be matched")
    donor = parse_donor(str(getattr(nwbfile.subject, "strain", None) or ""))
    if not donor:
        notes.add("the strain names no six-digit mouse; subject_id is taken as the animal")
    notes.add(f"DANDI 000728 keeps neither ROI ids (units are called by cell), nor depth, nor rig; {OFFERED}")
    fields = {
        "session_type": session_type,
        "container_id": container[1] if container else "",
        # The device is always called after one of the two kinds of microscope.
        "device_id": "two_photon",
        "origin": "DANDI 000728 (Allen Visual Coding, NWB 2)",
    }
    return fields | ({"subject_id": donor} if donor else {})


def read_ratios(nwbfile: Any, num_rois: int, path: Path) -> NDArray[np.float64] | None:
    """Return the neuropil ratios ``(N,)`` of the file, or None if it has none of this number."""
    module = nwbfile.processing.get("ophys") if nwbfile.processing else None
    table = module.data_interfaces.get("ContaminationRatios") if module is not None else None
    if table is None or "ratios" not in getattr(table, "colnames", ()):
        return None
    ratios = read_numbers(require_inside(table["ratios"].data, path, "ratios"), 1).astype(np.float64)
    return ratios if len(ratios) == num_rois and np.isfinite(ratios).all() else None


@dataclass
class Shown:
    """What a file says was shown: tables by stimulus (None: without rows), images with their number, and epochs."""

    tables: dict[str, StimulusTable | None] = field(default_factory=dict)
    images: Sequence[tuple[StimulusTable, int | None]] = ()
    epochs: Mapping[str, NDArray] | None = None  # columns of the table of epochs


def code_stimuli(
    shown: Shown, timestamps: NDArray[np.float64], session_type: str, path: Path, notes: Notes
) -> tuple[dict[str, Presentations], dict[str, NDArray[np.float64]]]:
    """Return presentations and blocks ``(K, 2)`` in seconds, named and coded as those of NWB 1 files."""
    stimuli: dict[str, Presentations] = {}
    blocks: dict[str, NDArray[np.float64]] = {}
    for name, table in shown.tables.items():
        rows = 0 if table is None else len(table.start)
        if name == "static_gratings" and rows < FEWEST_GRATINGS:
            defect = f"static_gratings has {rows} rows of some 6000, a known defect of DANDI 000728"
            notes.add(f"{defect}: left out; {OFFERED}")
        elif name in GRATINGS and table is not None:
            blocks[name] = _find_blocks(name, table, timestamps, session_type, path, notes)
            flags = table.columns.get("blank_sweep")
            flags = None if flags is None or flags.dtype.kind == "U" else flags
            columns = code_gratings(name, _features(name, table), flags, table.what, notes)
            stimuli[name] = Presentations.from_times(name, timestamps, table.start, table.stop, columns)
    noises = []
    for table, num_images in shown.images:
        name = str(table.name[0])
        if name not in KNOWN:
            notes.add(f"stimulus '{name[:80]}' is not one of the Allen's; left out")
            continue
        blocks[name] = _find_blocks(name, table, timestamps, session_type, path, notes)
        columns = code_images(name, table.columns["frame"], num_images, table.what, notes)
        part = Presentations.from_times(name, timestamps, table.start, table.stop, columns)
        if name == SCENES:
            part = _drop_blanks(part, notes)
        if name in NOISE_FRAMES:
            noises.append(part)
        elif len(part):
            stimuli[name] = part
    if noises:
        stimuli[NOISE] = merge_noises(noises)
    # Blocks of stimuli whose presentations are lost.
    blocks = {name: spans for name, spans in _read_epochs(shown.epochs, notes).items() if name in KNOWN} | blocks
    if (table := shown.tables.get(SPONTANEOUS)) is not None:
        blocks[SPONTANEOUS] = _read_spontaneous(table, timestamps, path)
    found = {*shown.tables, *(str(table.name[0]) for table, _ in shown.images)}
    for name in EXPECTED.get(session_type, ()):
        if name not in found:
            notes.add(f"no '{name}' among the stimuli, which {session_type} should have")
    return stimuli, blocks


def _features(name: str, table: StimulusTable) -> dict[str, NDArray[np.float64]]:
    for key in GRATINGS[name]:
        if key not in table.columns or table.columns[key].dtype.kind not in "iuf":
            problem = f"{table.what} has no numbers of '{key}'"
            raise RecordingError(problem, allowed=", ".join(GRATINGS[name]), fix=FIX)
    return {key: table.columns[key].astype(np.float64) for key in GRATINGS[name]}


def _find_blocks(
    name: str, table: StimulusTable, timestamps: NDArray[np.float64], session_type: str, path: Path, notes: Notes
) -> NDArray[np.float64]:
    """Return the blocks of a stimulus in seconds; refuse one that is not in order or reaches outside the recording."""
    step = float(np.median(np.diff(timestamps)))
    bad = np.flatnonzero((table.start < timestamps[0] - step) | (table.start > timestamps[-1] + step))
    if len(bad):
        problem = f"{path}: row {bad[0]} of {name} begins at {table.start[bad[0]]:g} s"
        raise RecordingError(problem, allowed=f"{timestamps[0]:g} to {timestamps[-1]:g} s", fix=FIX)
    bad = np.flatnonzero(np.diff(table.start) < 0)
    if len(bad):
        raise RecordingError(f"{path}: row {bad[0] + 1} of {name} begins before row {bad[0]}", fix=FIX)
    frames = np.searchsorted(timestamps, np.stack([table.start, table.stop], axis=1) - 0.5 * step)
    return frame_edges(timestamps)[find_blocks(name, frames, session_type, notes)]


def _drop_blanks(scenes: Presentations, notes: Notes) -> Presentations:
    ambiguous = scenes.columns["frame"] == 0
    if ambiguous.any():
        lost = f"{int(ambiguous.sum())} presentations of either are left out"
        notes.add(f"natural_scenes: DANDI 000728 turned blanks into image 0; {lost}; {OFFERED}")
    return scenes.select(~ambiguous)


def _read_epochs(columns: Mapping[str, NDArray] | None, notes: Notes) -> dict[str, NDArray[np.float64]]:
    """Return the blocks of the table of epochs, by stimulus."""
    if columns is None:
        notes.add("no table of epochs, a known defect of some files: blocks are found in the presentations")
        return {}
    if not {"start_time", "stop_time", "stimulus_type"} <= set(columns):
        notes.add(f"the table of epochs has columns {', '.join(columns)}: not used")
        return {}
    spans = np.stack([columns["start_time"], columns["stop_time"]], axis=1).astype(np.float64)
    names = np.array([str(name).removesuffix("_stimulus") for name in columns["stimulus_type"]])
    good = np.isfinite(spans).all(axis=1) & (spans[:, 1] >= spans[:, 0])
    return {str(name): spans[good & (names == name)] for name in np.unique(names[good])}


def _read_spontaneous(table: StimulusTable, timestamps: NDArray[np.float64], path: Path) -> NDArray[np.float64]:
    step = float(np.median(np.diff(timestamps)))
    first, last = table.start.min(), table.stop.max()
    if first < timestamps[0] - step or last > timestamps[-1] + 1.5 * step:
        problem = f"{path}: {SPONTANEOUS} runs from {first:g} to {last:g} s"
        raise RecordingError(problem, allowed=f"{timestamps[0]:g} to {timestamps[-1]:g} s", fix=FIX)
    return np.stack([table.start, table.stop], axis=1)
