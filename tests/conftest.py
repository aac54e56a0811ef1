"""What several rooms' tests share: a tiny observatory folder, and small recordings in memory."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from poyo_ssl.data.recording import Recording, RecordingMetadata
from poyo_ssl.data.stimuli import Presentations
from poyo_ssl.observatory import generate_observatory

settings.register_profile("slow", max_examples=2000)

MOVIE = "natural_movie_one"
MOVIE_FRAMES = 60


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data folder of four simulated recordings of 16 neurons; not to be written to."""
    folder = tmp_path_factory.mktemp("shared") / "tiny"
    generate_observatory(folder, size="tiny", seed=0)
    return folder


@pytest.fixture
def make_recording() -> Callable[..., Recording]:
    """Return a factory of recordings in memory: gratings from 5 s on, then ten repeats of a two-second movie.

    Each of 8 directions is shown `grating_repeats` times for 2 s, 1 s apart; every unit prefers one direction.
    """

    def make(
        recording_id: str = "made", *, num_units: int = 12, grating_repeats: int = 5, seed: int = 0, **fields
    ) -> Recording:
        rng = np.random.default_rng(seed)
        direction = rng.permutation(np.repeat(np.arange(8), grating_repeats))
        onset = 5.0 + 3.0 * np.arange(len(direction))
        movie_onset = onset[-1] + 8.0
        movie_start = movie_onset + np.arange(10 * MOVIE_FRAMES) / 30
        stamps = 1.5 + np.arange(int((movie_start[-1] + 6.0) * 30.08)) / 30.08
        dff = rng.normal(0, 0.3, (len(stamps), num_units)).astype(np.float32)
        for begin, shown in zip(onset, direction, strict=True):
            during = (stamps >= begin) & (stamps < begin + 2)
            dff[np.ix_(during, np.arange(num_units) % 8 == shown)] += 1.0
        gratings = _table(
            "drifting_gratings",
            stamps,
            onset,
            onset + 2,
            {
                "orientation": 45.0 * direction,
                "temporal_frequency": np.full(len(direction), 2.0),
                "orientation_id": direction,
                "temporal_frequency_id": np.ones(len(direction), np.int64),
                "repeat": _occurrence(direction),
                "blank_sweep": np.zeros(len(direction), bool),
            },
        )
        number = np.arange(10 * MOVIE_FRAMES)
        columns = {"frame": number % MOVIE_FRAMES, "repeat": number // MOVIE_FRAMES}
        edges = movie_onset + np.arange(10 * MOVIE_FRAMES + 1) / 30
        movie = _table(MOVIE, stamps, edges[:-1], edges[1:], columns)
        values = {
            "dff": dff,
            "timestamps": stamps,
            "metadata": RecordingMetadata(f"mouse_{recording_id}", cre_line="Sst-IRES-Cre"),
            "stimuli": {table.name: table for table in (gratings, movie)},
        }
        return Recording(recording_id, **{**values, **fields})

    return make


def _table(name, stamps, start, end, columns):
    frames = np.searchsorted(stamps, np.stack([start, end]) - 0.5 / 30.08)
    return Presentations(name, start, end, frames[0], frames[1], columns)


def _occurrence(values):
    """Return how often each value has occurred before."""
    return np.array([np.sum(values[:i] == value) for i, value in enumerate(values)])
