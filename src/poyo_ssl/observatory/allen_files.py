"""Recordings of the observatory as Allen NWB 1 files, beside the data folder's own.

AllenSDK takes nothing but whole numbers for experiments, containers and ROIs, so these get numbers here; cells
keep their ids, by which a file is matched with the truth in the recording that it was made from.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from poyo_ssl.data.recording import Recording
from poyo_ssl.observatory.allen_nwb import write_allen_nwb
from poyo_ssl.observatory.sizes import SessionPlan

NWB_FOLDER = "ophys_experiment_data"
"""By the Allen's convention."""


def experiment_id(seed: int, index: int) -> str:
    """Return the number of a recording: 9, the seed (four digits at least), its position (three digits).

    Examples
    --------
    >>> experiment_id(0, 12), experiment_id(12345, 432)
    ('90000012', '912345432')
    """
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
