"""The source `nwb`: NWB 2 files, read with pynwb; dF/F stays on disk."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from poyo_ssl.config import NwbConfig
from poyo_ssl.data.hdf5 import StoredTraces, is_hdf5, open_hdf5, read_numbers, require_inside
from poyo_ssl.data.recording import Recording, RecordingMetadata
from poyo_ssl.data.stimuli import Presentations
from poyo_ssl.errors import RecordingError
from poyo_ssl.sources import nwb_objects
from poyo_ssl.sources.allen import (
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
    parse_donor,
)
from poyo_ssl.sources.arrays import check_dff_settings, dff_of_fluorescence
from poyo_ssl.sources.base import Notes, Source, clean_name, trim_to_clock
from poyo_ssl.sources.nwb_objects import (
    SUFFIX,
    Series,
    Units,
    choose_series,
    count_rois,
    dataset_of,
    find_neuropil,
    find_stops,
    is_turned,
    list_series,
    list_tables,
    nwb_version,
    open_nwb,
    read_columns,
    read_index_series,
    read_intervals,
    read_stamps,
    read_units,
)
from poyo_ssl.sources.tables import TABLE, Companions, StimulusTable

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


PERCENT = ("percent", "%", "pct")


@dataclass(frozen=True)
class NwbSource(NwbConfig, Source):
    """NWB 2 files: DANDI 000728 (Allen Visual Coding), or any laboratory's with traces of ROIs."""

    name: ClassVar[str] = "nwb"

    companions: Companions = field(default_factory=Companions)

    def __post_init__(self) -> None:
        check_dff_settings(self.dff_procedure, self.neuropil_ratio)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Tell whether `path` is a file of NWB 2."""
        return is_hdf5(path, ".nwb", lambda file: nwb_version(file).startswith("2"))

    def find(self, input: Path) -> list[Path]:
        """Return the file, or every ``*.nwb`` in a folder at any depth, without the raw halves of DANDI 000728."""
        if input.is_file():
            return [input]
        paths = sorted(input.rglob("*.nwb"))
        # Of one session the release has a raw file, without anything to decode, beside the processed one.
        raw = {path for path in paths if self._whole_of(path) in set(paths)}
        if not paths:
            raise RecordingError(f"no *.nwb in {input}", fix="give an NWB 2 file or a folder of them")
        return [path for path in paths if path not in raw]

    @staticmethod
    def _whole_of(path: Path) -> Path | None:
        stem = path.stem
        if not FILE.fullmatch(stem) or not stem.endswith(RAW) or stem.endswith(WHOLE):
            return None
        return path.with_name(stem.removesuffix(RAW) + WHOLE + path.suffix)

    def recording_id(self, path: Path) -> str:
        """Return the experiment id of DANDI 000728, as the source `allen` does, or the names of file and series."""
        found = FILE.fullmatch(path.stem)
        if found:
            return found[1]
        # One plane must not replace the other.
        plane = [self.series.rpartition("/")[2]] if self.series else []
        return clean_name("_".join([path.stem, *plane]))

    def files(self, path: Path) -> list[Path]:
        """Return the file and its companions."""
        return [path, *self.companions.files(_home(path))]

    def movies(self, path: Path) -> Iterator[tuple[str, Any]]:
        """Give the pixels that index series point to, and those beside the file."""
        beside = dict(self.companions.read_movies(_home(path)))
        with open_hdf5(path) as file:
            for name, pixels in nwb_objects.find_templates(file):
                if clean_name(name) not in beside:
                    yield name, pixels
        yield from beside.items()

    def read(self, path: Path) -> Recording:
        """Return the recording of one file.

        Raises
        ------
        RecordingError
            If the file is damaged, or traces, ROIs, clock and stimuli do not fit together.
        ConfigError
            If pynwb is not installed.
        """
        remarks: list[str] = []
        with open_nwb(path, remarks) as nwbfile:
            recording = self._read(nwbfile, path)
        recording.warnings += tuple(remarks)
        return recording

    def _read(self, nwbfile: Any, path: Path) -> Recording:
        warnings = Notes()
        session_type = session_type_of(nwbfile)
        found = list_series(nwbfile)
        chosen = self._choose(nwbfile, found, session_type, path, warnings)
        dataset = dataset_of(chosen, path)
        stamps = self._read_stamps(chosen, path)
        num_rois = count_rois(chosen.series)
        what = f"{path.name}: {chosen.name}"
        turned = is_turned(dataset.shape, num_rois, None if stamps is None else len(stamps), what, warnings)
        num_frames, num_units = dataset.shape[::-1] if turned else dataset.shape
        if 0 in dataset.shape:
            raise RecordingError(f"{what} has shape {dataset.shape}", allowed="frames and ROIs", fix="check the file")
        if stamps is None:
            stamps = self._make_stamps(chosen, num_frames, path)
        # An array of no size of its own: only lengths are compared here.
        no_traces = np.broadcast_to(np.float32(0), (num_frames, num_units))
        _, timestamps = trim_to_clock(no_traces, stamps, what, warnings)
        if len(timestamps) < 2:
            raise RecordingError(f"{what}: {len(timestamps)} imaging frames", allowed="2 or more", fix="check the file")
        units = read_units(chosen.series, num_units, self.cells, path, warnings)
        dff = self._read_dff(nwbfile, found, chosen, turned, timestamps, units, session_type, path, warnings)
        shown, epochs = self._read_stimuli(nwbfile, timestamps, session_type, path, warnings)
        metadata = self._read_metadata(nwbfile, chosen, session_type, path, warnings)
        cells = units.cell_specimen_ids
        if session_type:
            cells = units.unit_ids.astype(np.int64)
        return Recording(
            self.recording_id(path),
            dff,
            timestamps,
            metadata,
            unit_ids=units.unit_ids,
            cell_specimen_ids=cells,
            stimuli=shown,
            epochs=epochs,
            masked_domain=nwb_objects.read_invalid_times(nwbfile, path, warnings),
            running=nwb_objects.read_running(nwbfile, path, warnings),
            pupil=nwb_objects.read_pupil(nwbfile, path, warnings) if session_type else None,
            roi_masks=units.masks,
            warnings=tuple(warnings),
        )

    def _choose(
        self, nwbfile: Any, found: list[Series], session_type: str | None, path: Path, warnings: list[str]
    ) -> Series:
        if not found and session_type and not nwbfile.processing:
            raise RecordingError(
                f"{path} is the raw half of a session of DANDI 000728, without dF/F",
                fix=f"give the file that ends in {WHOLE}.nwb",
            )
        has_dff = any(item.kind == "dff" for item in found)
        automatic = self.series is None and (self.kind == "fluorescence" or (self.kind == "auto" and not has_dff))
        if session_type and automatic and found:
            return choose_fluorescence(found, path, warnings)
        return choose_series(found, self.series, self.kind, path)

    def _read_stamps(self, chosen: Series, path: Path) -> NDArray[np.float64] | None:
        """Return timestamps; None where they are to be made from a rate."""
        if self.companions.timestamps is not None:
            return self.companions.read_clock(path.parent)
        if self.companions.rate_hz is not None or chosen.series.timestamps is None:
            return None
        return read_stamps(chosen, 0, path)

    def _make_stamps(self, chosen: Series, num_frames: int, path: Path) -> NDArray[np.float64]:
        if self.companions.rate_hz is not None:
            return np.arange(num_frames) / self.companions.rate_hz
        return read_stamps(chosen, num_frames, path)

    def _read_dff(
        self,
        nwbfile: Any,
        found: list[Series],
        chosen: Series,
        turned: bool,
        timestamps: NDArray[np.float64],
        units: Units,
        session_type: str | None,
        path: Path,
        warnings: list[str],
    ) -> Any:
        """Return dF/F as it is stored, or computed from fluorescence."""
        num_frames = len(timestamps)
        traces = _open_traces(chosen, num_frames, units, turned, path, warnings)
        if chosen.kind == "dff":
            return traces
        beside = find_neuropil(found, chosen)
        ratio: float | NDArray[np.float64] = self.neuropil_ratio
        neuropil = None
        if beside is None:
            warnings.append("no neuropil beside the fluorescence: none is subtracted")
        else:
            stored = dataset_of(beside, path)
            if stored.shape != dataset_of(chosen, path).shape:
                raise RecordingError(
                    f"{path}: {beside.name} has shape {stored.shape}, {chosen.name} {chosen.series.data.shape}",
                    allowed="one neuropil trace per ROI",
                    fix="repair the file",
                )
            neuropil = _open_traces(beside, num_frames, units, turned, path, warnings)[0:num_frames]
            own = read_ratios(nwbfile, stored.shape[0 if turned else 1], path) if session_type else None
            if session_type and own is None:
                warnings.append(f"no neuropil ratios in the file: {ratio:g} is taken")
            if own is not None:
                ratio = own if units.keep is None else own[units.keep]
        rate_hz = float(1 / np.median(np.diff(timestamps)))
        return dff_of_fluorescence(
            traces[0:num_frames], neuropil, ratio, self.dff_procedure, rate_hz, str(path), warnings
        )

    def _read_stimuli(
        self,
        nwbfile: Any,
        timestamps: NDArray[np.float64],
        session_type: str | None,
        path: Path,
        warnings: list[str],
    ) -> tuple[dict[str, Any], dict[str, NDArray[np.float64]]]:
        home = _home(path)
        if self.companions.stimuli is not None or (home / TABLE).exists():
            if self.tables:
                raise RecordingError(
                    f"{path}: a table beside the file and --tables {' '.join(self.tables)}",
                    fix="leave one of them out",
                )
            warnings.append("stimuli are those of the table beside the file, not the file's own")
            return self.companions.read_stimuli(home, timestamps, warnings)
        if session_type and self.tables is None:
            return read_stimuli(nwbfile, timestamps, session_type, path, warnings)
        return nwb_objects.read_stimuli(nwbfile, timestamps, self.tables, path, warnings)

    def _read_metadata(
        self, nwbfile: Any, chosen: Series, session_type: str | None, path: Path, warnings: list[str]
    ) -> RecordingMetadata:
        defaults = {"subject_id": self.recording_id(path), "origin": "NWB 2 file"}
        fields = defaults | nwb_objects.read_fields(nwbfile, chosen.series, warnings)
        if session_type:
            fields = correct_fields(fields, nwbfile, session_type, warnings)
        if chosen.kind == "fluorescence":
            fields["origin"] += f", dF/F of {chosen.name} by {self.dff_procedure}"
        return self.companions.read_metadata(_home(path), fields)


def _open_traces(
    item: Series, num_frames: int, units: Units, turned: bool, path: Path, warnings: list[str]
) -> StoredTraces:
    """Return traces in their unit: stored x conversion + offset, percents as ratios."""
    factor, offset = float(item.series.conversion), float(item.series.offset or 0.0)
    if str(item.series.unit).strip().lower() in PERCENT and item.kind == "dff":
        factor, offset = factor / 100, offset / 100
    if not (np.isfinite(factor) and np.isfinite(offset) and factor != 0):
        raise RecordingError(
            f"{path}: {item.name} has conversion {factor} and offset {offset}", allowed="finite, not 0", fix="repair it"
        )
    if (factor, offset) != (1, 0):
        warnings.append(f"{item.name} is multiplied by {factor:g}{f' after which {offset:g} is added' * bool(offset)}")
    return StoredTraces(
        dataset_of(item, path), num_frames, by_roi=turned, keep=units.keep, factor=factor, offset=offset
    )


def _home(path: Path) -> Path:
    """Return the folder of a file's companions: of its own name, or its own folder if it is alone there."""
    own = path.with_suffix("")
    return own if own.is_dir() or len(list(path.parent.glob("*.nwb"))) > 1 else path.parent
