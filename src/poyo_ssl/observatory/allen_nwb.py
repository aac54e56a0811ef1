"""Write a recording as the Allen Brain Observatory publishes it: a Neurodata Without Borders 1 file.

The layout is that of the files of the Visual Coding two-photon release (processing pipeline 3.0), down to its oddities:
scalar texts are fixed-length bytes, because AllenSDK reads no others; ``frame_duration`` holds start and end frames;
templates hang off presentations by soft links.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from poyo_ssl.data.recording import Recording, RecordingMetadata
from poyo_ssl.data.stimuli import MOVIE_PREFIX, Presentations, load_movie
from poyo_ssl.errors import RecordingError
from poyo_ssl.files import written_whole
from poyo_ssl.observatory.sizes import SessionPlan

PIPELINE = "processing/brain_observatory_pipeline"
PIPELINE_VERSION = "3.0"
GRATING_FEATURES = {
    "drifting_gratings": ("temporal_frequency", "orientation", "blank_sweep"),
    "static_gratings": ("orientation", "spatial_frequency", "phase"),
}
FEATURE_UNITS = {
    "temporal_frequency": "Hz",
    "orientation": "degrees",
    "spatial_frequency": "cycles per degree",
    "phase": "cycles",
    "blank_sweep": "",
}
BASELINE_FLUORESCENCE = 500.0
NEUROPIL_RATIO = 0.7
EYE_TO_MONITOR_CM = 15.0
FRAMES_PER_BLOCK = 8192
REQUIRED = ("recording_date", "session_type", "container_id", "age_days", "targeted_structure", "depth_um")


def write_allen_nwb(
    recording: Recording,
    path: Path | str,
    *,
    templates: Mapping[str, NDArray] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write `recording` as an Allen NWB 1 file: beside its final name, then renamed.

    A recording keeps dF/F alone. The fluorescence traces that such a file holds too are made from it so that
    the neuropil-corrected trace is exactly ``500 (1 + dF/F)``: neuropil is the mean of all units with a ratio of 0.7,
    and the raw trace equals the demixed one. Without `recording.motion` the plane did not move; without `running` or
    `pupil` their groups are left out, as in the real files.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise RecordingError(f"{path} exists", fix="choose another name or pass --overwrite")
    _check(recording)
    tables = _split_noise(recording)
    pixels = {name: _find_template(recording, name, templates) for name in tables if name not in GRATING_FEATURES}
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as beside, h5py.File(beside, "w") as file:
        _write_metadata(file, recording)
        _write_traces(file, recording)
        _write_rois(file, recording)
        _write_behaviour(file, recording)
        for name, frames in pixels.items():
            # Scenes are stored as floats that hold whole numbers.
            kind = np.float32 if name == "natural_scenes" else np.uint8
            file.create_dataset(f"stimulus/templates/{name}_image_stack/data", data=np.asarray(frames, kind))
        for name, table in tables.items():
            _write_stimulus(file, name, table)
        if "spontaneous" in recording.epochs:
            _write_spontaneous(file, recording)
    return path


def _check(recording: Recording) -> None:
    who = f"recording {recording.recording_id}"
    missing = [name for name in REQUIRED if getattr(recording.metadata, name) in (None, "")]
    if missing:
        raise RecordingError(f"{who}: no {', '.join(missing)}", fix="set them: an Allen file must have them")
    if recording.roi_masks is None:
        raise RecordingError(f"{who}: no ROI masks", fix="add them: an Allen file must have them")
    running = recording.running
    if running is not None and running.timestamps[0] not in recording.timestamps:
        raise RecordingError(
            f"{who}: running starts at {running.timestamps[0]} s, which is no imaging timestamp",
            fix="bring it to the imaging clock with TimeSeries.interpolate",
        )


def _split_noise(recording: Recording) -> dict[str, Presentations]:
    """Return the stimulus tables by their names in the file; session C2 has a sparse noise of each pixel size."""
    tables = dict(recording.stimuli)
    if "locally_sparse_noise" in tables and "locally_sparse_noise_4deg" in recording.epochs:
        noise = tables.pop("locally_sparse_noise")
        for name, size in (("locally_sparse_noise_4deg", 4.65), ("locally_sparse_noise_8deg", 9.3)):
            tables[name] = noise.select(np.isclose(noise.columns["pixel_size"], size))
    return tables


def _find_template(recording: Recording, name: str, templates: Mapping[str, NDArray] | None) -> NDArray:
    if templates is not None and name in templates:
        return templates[name]
    if recording.data_folder is None or templates is not None:
        raise RecordingError(
            f"recording {recording.recording_id}: no pixels of '{name}' were given", fix="add them to 'templates'"
        )
    return load_movie(recording.data_folder, name)


def _put_texts(file: h5py.File, texts: Mapping[str, str]) -> None:
    """Write scalar texts as fixed-length bytes."""
    for name, text in texts.items():
        file[name] = np.bytes_(text.encode("utf-8"))


def _write_metadata(file: h5py.File, recording: Recording) -> None:
    about = recording.metadata
    date = datetime.fromisoformat(about.recording_date)
    simulated = about.origin.startswith("simulated")
    plane = "general/optophysiology/imaging_plane_1"
    genotype, specimen = _genotype(about)
    rig = f"Nikon A1R-MP multiphoton microscope. {about.device_id} Please see the Allen Brain Observatory overview."
    if simulated:
        rig = f"Simulated two-photon microscope. {about.device_id} Please see the documentation of poyo-ssl."
    texts = {
        "session_start_time": date.ctime(),
        "identifier": recording.recording_id,
        "session_description": "; ".join(text for text in (about.description, about.origin) if text),
        "nwb_version": "NWB-1.0.5",
        "general/session_id": recording.recording_id,
        "general/ophys_experiment_id": recording.recording_id,
        "general/ophys_experiment_name": recording.recording_id,
        "general/experiment_container_id": about.container_id,
        "general/session_type": about.session_type,
        "general/specimen_name": specimen,
        "general/targeted_structure": about.targeted_structure,
        "general/fov": "400x400 microns (512 x 512 pixels)",
        "general/pixel_size": "0.78 microns",
        "general/institution": "simulated by poyo-ssl" if simulated else "Allen Institute for Brain Science",
        "general/subject/genotype": genotype,
        "general/subject/age": f"{about.age_days:.0f} days",
        "general/subject/sex": about.sex,
        "general/subject/species": "Mus musculus",
        "general/subject/subject_id": about.subject_id,
        "general/subject/description": "",
        f"{plane}/imaging depth": f"{about.depth_um} microns",
        f"{plane}/location": about.targeted_structure,
        f"{plane}/indicator": about.indicator,
        f"{plane}/excitation_lambda": "910 nanometers",
        f"{plane}/channel-1/emission_lambda": "520 nanometers",
        "general/devices/2-photon microscope": rig,
    }
    _put_texts(file, texts)
    # The date of the recording, not of today: the same recording gives the same bytes.
    file["file_create_date"] = np.array([date.isoformat()], dtype="S")
    file["general/generated_by"] = np.array(["poyo-ssl", version("poyo-ssl"), PIPELINE_VERSION], dtype="S")
    for name in ("analysis", "epochs", "acquisition/images"):
        file.create_group(name)


def _genotype(about: RecordingMetadata) -> tuple[str, str]:
    """Return genotype and specimen name; the tTA-dependent reporters come with a second driver."""
    lines = [about.cre_line]
    if about.reporter_line.startswith(("Ai93", "Ai94")):
        lines.append("Camk2a-tTA")
    if about.reporter_line:
        lines.append(about.reporter_line)
    short = [*lines[:-1], lines[-1].split("(")[0]]
    return ";".join(f"{line}/wt" for line in lines), f"{';'.join(short)}-{about.subject_id}"


def _write_traces(file: h5py.File, recording: Recording) -> None:
    num_frames, num_units = recording.num_frames, recording.num_units
    fluorescence = f"{PIPELINE}/Fluorescence/imaging_plane_1"
    groups = {
        "dff": f"{PIPELINE}/DfOverF/imaging_plane_1",
        "raw": fluorescence,
        "neuropil": f"{fluorescence}_neuropil_response",
        "demixed": f"{fluorescence}_demixed_signal",
    }
    data = {}
    for kind, name in groups.items():
        data[kind] = file.create_dataset(f"{name}/data", (num_units, num_frames), np.float32)
        file[f"{name}/timestamps"] = recording.timestamps
        data[kind].attrs["unit"] = np.bytes_("frame")
    for start in range(0, num_frames, FRAMES_PER_BLOCK):
        stop = min(start + FRAMES_PER_BLOCK, num_frames)
        dff = np.ascontiguousarray(recording.read_dff(start, stop).T)
        corrected = np.float32(BASELINE_FLUORESCENCE) * (1 + dff)
        neuropil = np.broadcast_to(corrected.mean(0), dff.shape)
        data["dff"][:, start:stop] = dff
        data["neuropil"][:, start:stop] = neuropil
        data["raw"][:, start:stop] = data["demixed"][:, start:stop] = corrected + np.float32(NEUROPIL_RATIO) * neuropil
    for name in (groups["raw"], groups["neuropil"]):
        file[f"{name}/r"] = np.full(num_units, NEUROPIL_RATIO)
    file[f"{fluorescence}/rmse"] = np.zeros(num_units)
    file[f"{fluorescence}/roi_names"] = _roi_keys(recording)
    file["acquisition/timeseries/2p_image_series/timestamps"] = recording.timestamps


def _roi_keys(recording: Recording) -> NDArray[np.bytes_]:
    return np.array([f"roi_{index:04d}" for index in range(recording.num_units)], dtype="S")


def _write_rois(file: h5py.File, recording: Recording) -> None:
    masks = recording.roi_masks
    assert masks is not None
    segmentation = f"{PIPELINE}/ImageSegmentation"
    plane = f"{segmentation}/imaging_plane_1"
    file[f"{segmentation}/cell_specimen_ids"] = np.asarray(recording.cell_specimen_ids, np.int64)
    file[f"{segmentation}/roi_ids"] = np.char.encode(recording.unit_ids, "utf-8")
    file[f"{plane}/roi_list"] = _roi_keys(recording)
    covered = np.zeros(masks.image_shape, np.uint8)
    for index, key in enumerate(_roi_keys(recording).astype(str)):
        mask = masks.dense(index)
        covered[mask] = 255
        rows, columns = np.nonzero(mask)
        group = file.create_group(f"{plane}/{key}")
        group.create_dataset("img_mask", data=mask.astype(np.uint8), compression="gzip", compression_opts=1)
        group["pix_mask"] = np.stack([columns, rows], axis=1)
        group["pix_mask_weight"] = np.ones(len(rows))
        group["roi_description"] = np.bytes_("ROI")
    file[f"{plane}/reference_images/maximum_intensity_projection_image/data"] = covered


def _write_behaviour(file: h5py.File, recording: Recording) -> None:
    shift = f"{PIPELINE}/MotionCorrection/2p_image_series/xy_translation"
    motion, clock = recording.motion, recording.timestamps
    file[f"{shift}/data"] = np.zeros((len(clock), 2)) if motion is None else motion.values
    file[f"{shift}/timestamps"] = clock if motion is None else motion.timestamps
    file[f"{shift}/feature_description"] = np.array([b"x_motion", b"y_motion"])
    if recording.running is not None:
        speed = f"{PIPELINE}/BehavioralTimeSeries/running_speed"
        file[f"{speed}/data"] = recording.running.values
        file[f"{speed}/timestamps"] = recording.running.timestamps
    pupil = recording.pupil
    if pupil is not None:
        degrees = np.degrees(np.arctan(pupil.location / EYE_TO_MONITOR_CM))
        series = {
            "EyeTracking/pupil_location": pupil.location,
            "EyeTracking/pupil_location_spherical": degrees,
            "PupilTracking/pupil_size": pupil.size,
        }
        for name, values in series.items():
            file[f"{PIPELINE}/{name}/data"] = values
            file[f"{PIPELINE}/{name}/timestamps"] = pupil.timestamps
        file[f"{PIPELINE}/EyeTracking/pupil_location_spherical/features"] = np.array([b"azimuth", b"altitude"])


def _write_stimulus(file: h5py.File, name: str, table: Presentations) -> None:
    """Write one presentation group: gratings by their features, everything else by the index of its template."""
    group = file.create_group(f"stimulus/presentation/{name}_stimulus")
    group["frame_duration"] = np.stack([table.start_frame, table.end_frame], axis=1)
    group["timestamps"] = table.start
    group["num_samples"] = len(table)
    features = GRATING_FEATURES.get(name)
    if features is None:
        assert name.startswith((MOVIE_PREFIX, "natural_scenes", "locally_sparse_noise")), name
        group["data"] = np.asarray(table.columns["frame"], np.int64)
        target = f"/stimulus/templates/{name}_image_stack"
        # A hard link would let AllenSDK find the template's data instead of these.
        group["indexed_timeseries"] = h5py.SoftLink(target)
        group["indexed_timeseries_path"] = np.bytes_(target)
        return
    blank = np.asarray(table.columns.get("blank_sweep", np.zeros(len(table), bool)), bool)
    columns = [blank if key == "blank_sweep" else np.where(blank, np.nan, table.columns[key]) for key in features]
    group["data"] = np.stack(columns, axis=1).astype(np.float64)
    group["features"] = np.array(features, dtype="S")
    group["feature_units"] = np.array([FEATURE_UNITS[key] for key in features], dtype="S")


def _write_spontaneous(file: h5py.File, recording: Recording) -> None:
    """Write each interval as a row for its beginning (+1) and one for its end (-1)."""
    half = 0.5 / recording.rate_hz
    edges = np.searchsorted(recording.timestamps, recording.epochs["spontaneous"].ravel() - half)
    group = file.create_group("stimulus/presentation/spontaneous_stimulus")
    group["frame_duration"] = np.stack([edges, edges], axis=1)
    group["timestamps"] = recording.epochs["spontaneous"].ravel()
    group["data"] = np.tile(np.array([1, -1], np.int64), len(edges) // 2)
    group["num_samples"] = len(edges)


NWB_FOLDER = "ophys_experiment_data"
"""By the Allen's convention."""


def experiment_id(seed: int, index: int) -> str:
    """Return the number of a recording: 9, the seed (four digits at least), its position (three digits)."""
    return f"9{seed:04d}{index:03d}"


def nwb_path(output: Path, seed: int, index: int) -> Path:
    """Return the NWB file of a recording of a data folder."""
    return output / NWB_FOLDER / f"{experiment_id(seed, index)}.nwb"


def write_nwb_copy(output: Path, session: SessionPlan, seed: int, index: int) -> Path:
    """Write the NWB file of a recording that is in the data folder, movies and all."""
    recording = Recording.open(output / f"{session.recording_id}.h5")
    number, about = experiment_id(seed, index), recording.metadata
    numbered = replace(
        recording,
        recording_id=number,
        unit_ids=np.array([f"{number}{unit:04d}" for unit in range(recording.num_units)]),
        metadata=replace(
            about,
            container_id=f"8{seed:04d}{session.container:03d}",
            description=f"{session.recording_id}: {about.description}",
        ),
    )
    return write_allen_nwb(numbered, nwb_path(output, seed, index))
