"""NWB 2 files: a session as DANDI 000728 has it, defects and all, and a laboratory's own."""

import re
import warnings
from datetime import datetime, timedelta, timezone

import numpy as np
from pynwb import NWBHDF5IO, NWBFile, TimeSeries
from pynwb.base import Images
from pynwb.behavior import BehavioralTimeSeries, EyeTracking, PupilTracking, SpatialSeries
from pynwb.core import DynamicTable
from pynwb.epoch import TimeIntervals
from pynwb.file import Subject
from pynwb.image import GrayscaleImage, ImageSeries, IndexSeries
from pynwb.ophys import DfOverF, Fluorescence, ImageSegmentation, OpticalChannel, RoiResponseSeries
from tests.sources.allen_samples import draw_templates, make_session

UNITS = {
    "orientation": "orientation_in_degrees",
    "spatial_frequency": "spatial_frequency_in_cycles_per_degree",
    "temporal_frequency": "temporal_frequency_in_hz",
    "phase": "phase",
}
NOISES = {4.65: "locally_sparse_noise_4deg", 9.3: "locally_sparse_noise_8deg"}
PACIFIC = timezone(timedelta(hours=-8))


def new_file(recording, **fields):
    values = {
        "session_description": "a session",
        "identifier": recording.recording_id,
        "session_start_time": datetime.fromisoformat("2016-02-04 10:25:24").replace(tzinfo=PACIFIC),
    }
    return NWBFile(**values | fields)


def add_rois(nwbfile, recording, *, ids=None, masks=True):
    """Add an imaging plane and a table of ROIs, and return its region of all rows."""
    device = nwbfile.create_device(name="Microscope", description="Nikon A1R-MP multiphoton microscope")
    plane = nwbfile.create_imaging_plane(
        name="ImagingPlane",
        optical_channel=OpticalChannel(name="channel", description="", emission_lambda=520.0),
        description="imaging depth: {depth}",
        device=device,
        excitation_lambda=910.0,
        indicator="GCaMP6f",
        location="VISp",
        imaging_rate=30.0,
    )
    module = nwbfile.create_processing_module("ophys", "two-photon")
    segmentation = ImageSegmentation()
    module.add(segmentation)
    table = segmentation.create_plane_segmentation(name="PlaneSegmentation", description="ROIs", imaging_plane=plane)
    for unit in range(recording.num_units):
        row = {"id": unit if ids is None else int(ids[unit])}
        if masks:
            # x is the image's row.
            place = recording.roi_masks.unit == unit
            pixels = zip(recording.roi_masks.row[place], recording.roi_masks.column[place], strict=True)
            row["pixel_mask"] = [(int(x), int(y), 1.0) for x, y in pixels]
        else:
            row["image_mask"] = recording.roi_masks.dense(unit).astype(np.uint8)
        table.add_roi(**row)
    return module, table.create_roi_table_region(region=list(range(recording.num_units)), description="all")


def write(nwbfile, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with NWBHDF5IO(path, "w") as io:
        io.write(nwbfile)
    return path


def write_dandi(
    folder,
    session_type="three_session_A",
    *,
    intervals=True,
    demixed=True,
    dff=True,
    truncated=True,
    genotype="Cux2-CreERT2/wt;Camk2a-tTA/wt;Ai93(TITL-GCaMP6f)/wt",
    **fields,
):
    """Write a session as DANDI 000728 has it and return the recording that it was made of, and the file."""
    recording = make_session(session_type, **fields)
    letter = session_type.rpartition("_")[2]
    nwbfile = new_file(
        recording,
        session_id=f"{recording.recording_id}-Stim{letter}",
        institution="Allen Institute for Brain Science",
        notes=f"Container ID: 511510667; Session type: {session_type}",
        subject=Subject(
            subject_id="503292439",
            genotype=genotype,
            age="P114D",
            sex="M",
            species="Mus musculus",
            strain="Cux2-CreERT2;Camk2a-tTA;Ai93-222426",
        ),
    )
    module, rois = add_rois(nwbfile, recording, ids=recording.cell_specimen_ids)
    light = Fluorescence()
    module.add(light)
    dff_values = np.asarray(recording.dff)
    raw = light.create_roi_response_series(
        name="Corrected", data=500 * (1 + dff_values) + 70, rois=rois, unit="a.u.", timestamps=recording.timestamps
    )
    parts = {"Neuropil": np.full(dff_values.shape, 100.0)}
    parts |= {"Demixed": 500 * (1 + dff_values) + 60} if demixed else {}
    for name, values in parts.items():
        light.create_roi_response_series(name=name, data=values, rois=rois, unit="a.u.", timestamps=raw)
    ratios = DynamicTable(name="ContaminationRatios", description="r")
    ratios.add_column("ratios", "r")
    for unit in range(recording.num_units):
        ratios.add_row(ratios=0.5 + 0.1 * unit)
    module.add(ratios)
    if dff:
        container = DfOverF()
        module.add(container)
        for name in ("DfOverF", "DfOverFEvents"):
            values = dff_values if name == "DfOverF" else np.zeros_like(dff_values)
            container.create_roi_response_series(name=name, data=values, rois=rois, unit="a.u.", timestamps=raw)
    _add_behaviour(nwbfile, recording)
    _add_stimuli(nwbfile, recording, draw_templates(), truncated)
    if intervals:
        for spans in recording.epochs.values():
            for start, stop in spans:
                nwbfile.add_epoch(start_time=start, stop_time=stop, tags=[])
        nwbfile.epochs.add_column(
            "stimulus_type", "what", data=[name for name, spans in recording.epochs.items() for _ in spans]
        )
    name = f"sub-503292439_ses-{recording.recording_id}-Stim{letter}_behavior+image+ophys.nwb"
    return recording, write(nwbfile, folder / "sub-503292439" / name)


def _add_behaviour(nwbfile, recording):
    module = nwbfile.create_processing_module("behavior", "behaviour")
    running, pupil = recording.running, recording.pupil
    speed = TimeSeries(name="running_speed", data=running.values, unit="cm/s", timestamps=running.timestamps)
    module.add(BehavioralTimeSeries(time_series=speed))
    frame = {"reference_frame": "monitor", "unit": "m", "timestamps": pupil.timestamps}
    module.add(EyeTracking(spatial_series=SpatialSeries(name="pupil_location", data=pupil.location, **frame)))
    size = TimeSeries(name="pupil_size", data=pupil.size, unit="pixels", timestamps=pupil.timestamps)
    module.add(PupilTracking(time_series=size))


def _add_stimuli(nwbfile, recording, templates, truncated):
    for name, table in recording.stimuli.items():
        if name.endswith("gratings"):
            _add_gratings(nwbfile, name, table, truncated)
        elif name == "locally_sparse_noise" and name not in recording.epochs:
            for size, part in NOISES.items():
                mine = np.isclose(table.columns["pixel_size"], size)
                _add_images(nwbfile, part, table.start[mine], table.columns["frame"][mine], templates[part])
        else:
            # The converter stores indices without a sign, in which a blank became 0.
            _add_images(nwbfile, name, table.start, np.maximum(table.columns["frame"], 0), templates[name])
    spontaneous = TimeIntervals(name="spontaneous_stimulus", description="gray")
    for start, stop in recording.epochs["spontaneous"]:
        spontaneous.add_interval(start_time=start, stop_time=stop)
    nwbfile.add_stimulus(spontaneous)


def _add_gratings(nwbfile, name, table, truncated):
    shown = TimeIntervals(name=name, description="gratings")
    features = [key for key in UNITS if key in table.columns]
    for key in features:
        shown.add_column(UNITS[key], key)
    shown.add_column("is_blank_sweep", "blank")
    length = 2.0 if name == "drifting_gratings" else 0.25
    rows = 3 if truncated and name == "static_gratings" else len(table)
    for row in range(rows):
        values = {UNITS[key]: float(table.columns[key][row]) for key in features}
        start = float(table.start[row])
        blank = bool(table.columns["blank_sweep"][row])
        shown.add_interval(start_time=start, stop_time=start + length, is_blank_sweep=blank, **values)
    nwbfile.add_stimulus(shown)


def _add_images(nwbfile, name, onset, frame, pixels):
    common = {"name": f"{name}_stimulus", "data": frame.astype(np.uint32), "unit": "N/A", "timestamps": onset}
    if name.startswith("natural_movie"):
        template = ImageSeries(name=name, data=pixels, unit="n.a.", rate=np.nan)
        nwbfile.add_stimulus_template(template)
        # pynwb no longer makes such series, which the release is full of; it still reads and writes them.
        series = IndexSeries.__new__(IndexSeries, in_construct_mode=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            series.__init__(indexed_timeseries=template, **common)
        nwbfile.add_stimulus(series)
        return
    word = "NaturalScene" if name == "natural_scenes" else "LocallySparseImage"
    images = [GrayscaleImage(name=f"{word}{place}", data=image) for place, image in enumerate(pixels)]
    template = Images(name=f"{name}_template", images=images)
    nwbfile.add_stimulus_template(template)
    nwbfile.add_stimulus(IndexSeries(indexed_images=template, **common))


def write_laboratory(folder, *, series=("DfOverF",), change=None, masks=True, seed=0, name="mouse7.nwb", clock=None):
    """Write 60 s of a laboratory's file with gratings and a movie; `change` may add to it. Return values and file."""
    rng = np.random.default_rng(seed)
    recording = make_session("three_session_A", num_units=4, seed=seed)
    times = 2.0 + np.arange(1800) / 30 if clock is None else clock
    dff = rng.gamma(0.5, 0.3, (1800, 4)).astype(np.float32)
    nwbfile = new_file(recording, subject=Subject(subject_id="mouse7", genotype="Sst-IRES-Cre/wt;Ai148(TIT2L-GC6f)/wt"))
    module, rois = add_rois(nwbfile, recording, ids=[3, 5, 8, 13], masks=masks)
    for name_of_series in series:
        kind = DfOverF if re.search("DfOverF|dff", name_of_series) else Fluorescence
        existing = [item for item in module.data_interfaces.values() if isinstance(item, kind)]
        container = existing[0] if existing else kind()
        if not existing:
            module.add(container)
        values = dff if kind is DfOverF else 100 * (1 + dff) + (50 if name_of_series == "Neuropil" else 0)
        container.add_roi_response_series(
            RoiResponseSeries(name=name_of_series, data=values, rois=rois, unit="n.a.", timestamps=times)
        )
    nwbfile.add_trial_column("orientation", "degrees")
    nwbfile.add_trial_column("stimulus_name", "what")
    for trial in range(16):
        start = 5.0 + 3 * trial
        nwbfile.add_trial(
            start_time=start, stop_time=start + 2, orientation=45.0 * (trial % 8), stimulus_name="drifting_gratings"
        )
    if change:
        change(nwbfile, module, rois)
    return dff, times, write(nwbfile, folder / name)
