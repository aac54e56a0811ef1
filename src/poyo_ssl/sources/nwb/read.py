"""The source `nwb`: NWB 2 files, read with pynwb; dF/F stays on disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from poyo_ssl.data.recording import Recording, RecordingMetadata
from poyo_ssl.errors import RecordingError
from poyo_ssl.sources.arrays import check_dff_settings, dff_of_fluorescence
from poyo_ssl.sources.companions import TABLE, Companions
from poyo_ssl.sources.hdf5 import is_hdf5, open_hdf5
from poyo_ssl.sources.nwb import about, behaviour, dandi, stimuli, templates
from poyo_ssl.sources.nwb.opening import nwb_version, open_nwb
from poyo_ssl.sources.nwb.traces import (
    FrameTraces,
    Series,
    choose_series,
    dataset_of,
    find_neuropil,
    is_turned,
    list_series,
    read_stamps,
)
from poyo_ssl.sources.nwb.units import Units, count_rois, read_units
from poyo_ssl.sources.source import Source, clean_name, trim_to_clock

PERCENT = ("percent", "%", "pct")


@dataclass(frozen=True)
class NwbSource(Source):
    """NWB 2 files: DANDI 000728 (Allen Visual Coding), or any laboratory's with traces of ROIs.

    Attributes
    ----------
    companions : Companions
        Clock, stimuli, pixels and metadata that overrule what the file says.
    series : str, optional
        Place of the traces, for example ophys/DfOverF/DfOverF; by default the only dF/F, or the only fluorescence.
    kind : {'auto', 'dff', 'fluorescence'}
        What the traces are; 'auto' goes by names.
    tables : list of str, optional
        Tables of intervals to take as stimuli, for example [trials]; by default all but epochs and invalid_times.
    cells : {'iscell', 'all'}
        'iscell' leaves out ROIs that a column of the ROI table (iscell, accepted, valid_roi) does not call cells.
    dff_procedure : str
        For fluorescence: allen_median, allen_mode, maximin (suite2p's) or percentile; see `poyo_ssl.data.dff`.
    neuropil_ratio : float
        For fluorescence with neuropil beside it: F - ratio x neuropil. DANDI 000728 has ratios of its own.
    """

    name: ClassVar[str] = "nwb"

    companions: Companions = field(default_factory=Companions)
    series: str | None = None
    kind: Literal["auto", "dff", "fluorescence"] = "auto"
    tables: tuple[str, ...] | None = None
    cells: Literal["iscell", "all"] = "iscell"
    dff_procedure: str = "allen_median"
    neuropil_ratio: float = 0.7

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
        if not dandi.FILE.fullmatch(stem) or not stem.endswith(dandi.RAW) or stem.endswith(dandi.WHOLE):
            return None
        return path.with_name(stem.removesuffix(dandi.RAW) + dandi.WHOLE + path.suffix)

    def recording_id(self, path: Path) -> str:
        """Return the experiment id of DANDI 000728, as the source `allen` does, or the names of file and series."""
        found = dandi.FILE.fullmatch(path.stem)
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
            for name, pixels in templates.find_templates(file):
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
        warnings: list[str] = []
        session_type = dandi.session_type_of(nwbfile)
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
        _, timestamps, trimmed = trim_to_clock(no_traces, stamps, what)
        warnings += trimmed
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
            masked_domain=stimuli.read_invalid_times(nwbfile, path, warnings),
            running=behaviour.read_running(nwbfile, path, warnings),
            pupil=behaviour.read_pupil(nwbfile, path, warnings) if session_type else None,
            roi_masks=units.masks,
            warnings=tuple(warnings),
        )

    def _choose(
        self, nwbfile: Any, found: list[Series], session_type: str | None, path: Path, warnings: list[str]
    ) -> Series:
        if not found and session_type and not nwbfile.processing:
            raise RecordingError(
                f"{path} is the raw half of a session of DANDI 000728, without dF/F",
                fix=f"give the file that ends in {dandi.WHOLE}.nwb",
            )
        has_dff = any(item.kind == "dff" for item in found)
        automatic = self.series is None and (self.kind == "fluorescence" or (self.kind == "auto" and not has_dff))
        if session_type and automatic and found:
            return dandi.choose_fluorescence(found, path, warnings)
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
            return self.companions.make_clock(num_frames, self.companions.rate_hz)
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
            own = dandi.read_ratios(nwbfile, stored.shape[0 if turned else 1], path) if session_type else None
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
            return dandi.read_stimuli(nwbfile, timestamps, session_type, path, warnings)
        return stimuli.read_stimuli(nwbfile, timestamps, self.tables, path, warnings)

    def _read_metadata(
        self, nwbfile: Any, chosen: Series, session_type: str | None, path: Path, warnings: list[str]
    ) -> RecordingMetadata:
        defaults = {"subject_id": self.recording_id(path), "origin": "NWB 2 file"}
        fields = defaults | about.read_fields(nwbfile, chosen.series, warnings)
        if session_type:
            fields = dandi.correct_fields(fields, nwbfile, session_type, warnings)
        if chosen.kind == "fluorescence":
            fields["origin"] += f", dF/F of {chosen.name} by {self.dff_procedure}"
        return self.companions.read_metadata(_home(path), fields)


def _open_traces(
    item: Series, num_frames: int, units: Units, turned: bool, path: Path, warnings: list[str]
) -> FrameTraces:
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
    return FrameTraces(dataset_of(item, path), num_frames, keep=units.keep, turned=turned, factor=factor, offset=offset)


def _home(path: Path) -> Path:
    """Return the folder of a file's companions: of its own name, or its own folder if it is alone there."""
    own = path.with_suffix("")
    return own if own.is_dir() or len(list(path.parent.glob("*.nwb"))) > 1 else path.parent
