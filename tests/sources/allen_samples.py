"""Small sessions A, B, C and C2 with every stimulus of the real ones, and the files that hold them."""

import numpy as np

from poyo_ssl.data.recording import Recording, RecordingMetadata
from poyo_ssl.data.series import PupilTrace, TimeSeries
from poyo_ssl.data.stimuli import Presentations
from poyo_ssl.observatory.allen_nwb import write_allen_nwb
from poyo_ssl.observatory.cells import draw_roi_masks

GAP_FRAMES = 400
MOVIE_FRAMES = {"natural_movie_one": 12, "natural_movie_two": 12, "natural_movie_three": 16}
REPEATS = 10
DRIFTING = "drifting_gratings"
STATIC = "static_gratings"
ONE = "natural_movie_one"
TWO = "natural_movie_two"
THREE = "natural_movie_three"
SCENES = "natural_scenes"
SPONTANEOUS = "spontaneous"
NOISE = "locally_sparse_noise"
FINE = "locally_sparse_noise_4deg"
COARSE = "locally_sparse_noise_8deg"
BLOCKS = {
    "three_session_A": [DRIFTING, THREE, ONE, DRIFTING, SPONTANEOUS, THREE, DRIFTING],
    "three_session_B": [STATIC, SCENES, SPONTANEOUS, SCENES, STATIC, ONE, SCENES, STATIC],
    "three_session_C": [NOISE, SPONTANEOUS, ONE, NOISE, TWO, SPONTANEOUS, NOISE],
    "three_session_C2": [FINE, COARSE, SPONTANEOUS, ONE, FINE, COARSE, TWO, SPONTANEOUS, COARSE, FINE],
}
NOISE_PIXELS = {"locally_sparse_noise_8deg": 9.3}
TEMPLATE_SHAPES = {
    **{name: (frames, 4, 8) for name, frames in MOVIE_FRAMES.items()},
    "natural_scenes": (118, 6, 8),
    "locally_sparse_noise": (60, 16, 28),
    "locally_sparse_noise_4deg": (60, 16, 28),
    "locally_sparse_noise_8deg": (60, 8, 14),
}


def draw_templates(seed=0):
    """Return pixels of every movie, of the scenes and of the noises."""
    rng = np.random.default_rng(seed)
    return {name: rng.integers(0, 256, shape, dtype=np.uint8) for name, shape in TEMPLATE_SHAPES.items()}


def make_session(session_type="three_session_A", *, num_units=5, seed=0, recording_id="501574836", **fields):
    """Return a recording with the blocks of a session in their order, 400 imaging frames of gray between them."""
    rng = np.random.default_rng(seed)
    frame, rows, spans = GAP_FRAMES, {}, {}
    for name in BLOCKS[session_type]:
        starts, length, gray = _block(name, BLOCKS[session_type].count(name))
        # A spontaneous block is only its beginning and its end.
        shown = starts[-1] + length
        rows.setdefault(name, []).append(np.stack([frame + starts, frame + starts + length], axis=1))
        spans.setdefault(name, []).append((frame, frame + shown))
        frame += shown + gray + GAP_FRAMES
    jitter = rng.normal(0, 1e-4, frame)
    stamps = np.round((26.71893 + np.arange(frame) / 30.08 + jitter) * 1e5) / 1e5
    frames = {name: np.concatenate(parts) for name, parts in rows.items()}
    tables = {name: _table(name, stamps, value, rng) for name, value in frames.items() if name != "spontaneous"}
    noise = [tables.pop(name) for name in list(tables) if name.startswith("locally_sparse")]
    if noise:
        tables["locally_sparse_noise"] = _merge(noise)
    eye = np.arange(3, frame, 2)
    values = {
        "dff": rng.gamma(0.5, 0.3, (frame, num_units)).astype(np.float32),
        "timestamps": stamps,
        "metadata": RecordingMetadata(
            subject_id="222426",
            container_id="511510667",
            cre_line="Cux2-CreERT2",
            reporter_line="Ai93(TITL-GCaMP6f)",
            indicator="GCaMP6f",
            sex="male",
            age_days=114.0,
            session_type=session_type,
            targeted_structure="VISp",
            depth_um=275,
            recording_date="2016-02-04 10:25:24",
            device_id="CAM2P.2",
        ),
        "unit_ids": np.array([str(540000000 + 7 * unit) for unit in range(num_units)]),
        "cell_specimen_ids": rng.permutation(517472360 + np.arange(num_units)),
        "stimuli": tables,
        "epochs": {name: stamps[np.array(value)] for name, value in spans.items()},
        "running": TimeSeries(stamps, rng.gamma(1.0, 5.0, frame).astype(np.float32)),
        "pupil": PupilTrace(
            stamps[eye], rng.normal(0, 5, (len(eye), 2)).astype(np.float32), rng.gamma(9, 9, len(eye)).astype("f4")
        ),
        "motion": TimeSeries(stamps, rng.integers(-3, 4, (frame, 2)).astype(np.float32)),
        "roi_masks": draw_roi_masks(num_units, rng),
    }
    return Recording(recording_id, **{**values, **fields})


def write_session(folder, session_type="three_session_A", **fields):
    """Write a session as the Allen does and return the recording and the file."""
    recording = make_session(session_type, **fields)
    path = folder / f"{recording.recording_id}.nwb"
    return recording, write_allen_nwb(recording, path, templates=draw_templates(), overwrite=True)


def _block(name, number):
    """Return the first frames of a block's presentations, their length, and the gray after the last."""
    if name in MOVIE_FRAMES:
        return np.arange(MOVIE_FRAMES[name] * REPEATS // number), 1, 0
    if name == "drifting_gratings":
        return 90 * np.arange(30), 60, 30
    if name == "spontaneous":
        return np.zeros(1, int), 500, 0
    return 7 * np.arange(40), 7, 0


def _table(name, stamps, frames, rng):
    count = len(frames)
    if name in MOVIE_FRAMES:
        number = np.arange(count)
        columns = {"frame": number % MOVIE_FRAMES[name], "repeat": number // MOVIE_FRAMES[name]}
    elif name == "drifting_gratings":
        columns = _conditions({"orientation": 45.0 * np.arange(8), "temporal_frequency": [1, 2, 4, 8, 15]}, count, rng)
    elif name == "static_gratings":
        values = {"orientation": 30.0 * np.arange(6), "spatial_frequency": [0.02, 0.04, 0.08, 0.16, 0.32]}
        columns = _conditions({**values, "phase": [0.0, 0.25, 0.5, 0.75]}, count, rng)
    elif name == "natural_scenes":
        columns = {"frame": rng.integers(-1, 118, count)}
        columns["frame"][:3] = [-1, 0, 117]
    else:
        size = np.full(count, NOISE_PIXELS.get(name, 4.65))
        columns = {"frame": rng.permutation(60)[np.arange(count) % 60], "pixel_size": size}
    return Presentations.from_frames(name, stamps, frames[:, 0], frames[:, 1], columns)


def _conditions(values, count, rng):
    """Return columns of random conditions; every ninth presentation is blank."""
    blank = np.arange(count) % 9 == 4
    columns, chosen = {}, []
    for key, known in values.items():
        index = rng.integers(0, len(known), count)
        columns[key] = np.where(blank, np.nan, np.asarray(known, float)[index])
        columns[f"{key}_id"] = np.where(blank, -1, index)
        chosen.append(columns[f"{key}_id"])
    seen: dict = {}
    repeat = []
    for condition in zip(*chosen, strict=True):
        repeat.append(seen.setdefault(condition, 0))
        seen[condition] += 1
    return {**columns, "repeat": np.where(blank, -1, repeat), "blank_sweep": blank}


def _merge(tables):
    start = np.concatenate([table.start_frame for table in tables])
    order = np.argsort(start, kind="stable")

    def joined(get):
        return np.concatenate([get(table) for table in tables])[order]

    return Presentations(
        "locally_sparse_noise",
        joined(lambda t: t.start),
        joined(lambda t: t.end),
        start[order],
        joined(lambda t: t.end_frame),
        {key: joined(lambda t, key=key: t.columns[key]) for key in tables[0].columns},
    )
