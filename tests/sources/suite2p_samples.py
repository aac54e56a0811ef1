"""Folders as suite2p writes them, before and after 1.0, of any size."""

from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np

NUM_ROIS, NUM_FRAMES = 6, 800


def make_traces(seed=0, num_rois=NUM_ROIS, num_frames=NUM_FRAMES):
    """Return F and Fneu, ``(ROIs, frames)`` float32."""
    rng = np.random.default_rng(seed)
    light = 300 + 20 * rng.normal(size=(num_rois, num_frames))
    light[:, 100:130] += 200
    return light.astype(np.float32), (80 + 5 * rng.normal(size=(num_rois, num_frames))).astype(np.float32)


def write_plane(folder, *, seed=0, old=True, fs=15.5, tau=0.7, neucoeff=0.6, iscell=(1, 1, 0, 1, 0, 1), **traces):
    """Write one plane (or the combined folder) and return it."""
    folder.mkdir(parents=True)
    light, neuropil = make_traces(seed)
    light, neuropil = traces.get("F", light), traces.get("Fneu", neuropil)
    np.save(folder / "F.npy", light)
    np.save(folder / "Fneu.npy", neuropil)
    np.save(folder / "spks.npy", np.zeros_like(light))
    if iscell is not None:
        labels = np.resize(np.array(iscell, float), len(light))
        np.save(folder / "iscell.npy", np.stack([labels, np.full(len(light), 0.5)], axis=1))
    stat = np.empty(len(light), object)
    for roi in range(len(light)):
        stat[roi] = {
            "ypix": np.arange(3) + roi,
            "xpix": np.arange(3) + 10,
            "lam": np.ones(3, np.float32),
            "med": [roi, 11],
        }
    np.save(folder / "stat.npy", stat, allow_pickle=True)
    # As every run of suite2p leaves it: when it was, and where its input lay.
    ran = {"date_proc": datetime(2024, 5, 1, 12, tzinfo=timezone(timedelta(hours=-7))), "data_path": [Path("raw")]}
    if old:
        ops = {"fs": fs, "tau": tau, "neucoeff": neucoeff, "nplanes": 1, "meanImg": np.zeros((8, 8), np.float32)} | ran
        np.save(folder / "ops.npy", np.array(ops, dtype=object), allow_pickle=True)
    else:
        settings = {"fs": np.float64(fs), "tau": tau, "extraction": {"neuropil_coefficient": neucoeff}} | ran
        np.save(folder / "settings.npy", np.array(settings, dtype=object), allow_pickle=True)
        np.save(folder / "db.npy", np.array({"nplanes": 1, "Ly": 32}, dtype=object), allow_pickle=True)
    return folder
