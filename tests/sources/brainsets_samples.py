"""A file as `brainsets prepare allen_visual_coding_ophys_2016` writes it, by the field's own library."""

from datetime import datetime

import h5py
import numpy as np

NUM_FRAMES, NUM_UNITS, RATE_HZ, BEGIN = 2400, 5, 30.0, 10.0


def write_brainset(folder, *, recording_id="501574836", masks=False, seed=0, num_units=NUM_UNITS):
    """Write 80 s with gratings and three repeats of a movie; return dF/F ``(T, N)`` and the file."""
    import torch_brain.data as b

    rng = np.random.default_rng(seed)
    dff = rng.gamma(0.5, 0.3, (NUM_FRAMES, num_units)).astype(np.float32)
    start = BEGIN + 2.0 + 3 * np.arange(16)
    direction = np.arange(16) % 4
    gratings = _interval(
        b,
        start,
        start + 2,
        orientation=45.0 * direction,
        temporal_frequency=np.full(16, 2.0),
        orientation_id=direction,
        temporal_frequency_id=np.ones(16, np.int64),
    )
    shown = BEGIN + 55.0 + np.arange(30) / 2
    movie = _interval(b, shown, shown + 0.5, frame=np.arange(30) % 3, repeat=np.arange(30) // 3)
    if masks:
        # Files from before the splits became domains.
        for name in ("train_mask", "valid_mask", "test_mask"):
            setattr(gratings, name, np.arange(16) % 2 == 0)
    clock = BEGIN + np.arange(400) / 5
    speed = rng.gamma(1.0, 5.0, (400, 1)).astype(np.float32)
    domains = {
        "drifting_gratings_domain": (start[0], start[-1] + 2),
        "natural_movie_one_domain": (shown[0], shown[-1] + 0.5),
        "spontaneous_domain": (BEGIN + 72.0, BEGIN + 79.0),
        "train_domain": (BEGIN, BEGIN + 40),
        "valid_domain": (BEGIN + 40, BEGIN + 50),
        "test_domain": (BEGIN + 50, BEGIN + 80),
    }
    place = {"imaging_plane_xy": rng.uniform(0, 512, (num_units, 2))}
    place |= {f"imaging_plane_{name}": np.full(num_units, 12.0) for name in ("area", "width", "height")}
    data = b.Data(
        brainset=b.BrainsetDescription(
            id="allen_visual_coding_ophys_2016", origin_version="x", derived_version="1", source="s", description="d"
        ),
        subject=b.SubjectDescription(
            id="511510667", species="MUS_MUSCULUS", cre_line="Scnn1a_Tg3_Cre", age=100.0, sex="MALE"
        ),
        session=b.SessionDescription(id=recording_id, recording_date=datetime(2016, 2, 4, 10, 25, 24)),
        device=b.DeviceDescription(id="d", recording_tech="TWO_PHOTON_IMAGING", imaging_depth=175, target_area="VISp"),
        calcium_traces=b.RegularTimeSeries(df_over_f=dff, sampling_rate=RATE_HZ, domain_start=BEGIN),
        rois=b.ArrayDict(id=np.array([str(540 + 7 * unit) for unit in range(num_units)]), **place),
        drifting_gratings=gratings,
        natural_movie_one=movie,
        running=b.IrregularTimeSeries(timestamps=clock, running_speed=speed, domain="auto"),
        domain=b.Interval(np.array([BEGIN]), np.array([BEGIN + NUM_FRAMES / RATE_HZ])),
        **{name: b.Interval(np.array([begin]), np.array([end])) for name, (begin, end) in domains.items()},
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{recording_id}.h5"
    with h5py.File(path, "w") as file:
        data.to_hdf5(file)
    return dff, path


def _interval(b, start, end, **columns):
    timekeys = ["start", "end", "timestamps"]
    return b.Interval(start=start, end=end, timestamps=(start + end) / 2, timekeys=timekeys, **columns)
