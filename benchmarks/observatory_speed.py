"""Time and memory of one simulated session A (64 minutes) of 200 neurons on one core, written to disk.

    python benchmarks/observatory_speed.py [--units 200]

Movies are rendered before the clock starts, as in a data folder, where they are rendered once. CPU seconds are given
beside those on the clock: on a busy machine only the former say what the work takes.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from poyo_ssl.observatory import get_size, get_world
from poyo_ssl.observatory.sessions import shown_templates, simulate_recording


def main() -> None:
    """Print seconds and peak memory."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--units", type=int, default=200)
    given = parser.parse_args()
    size = replace(get_size("paper"), num_units=(given.units, given.units))
    # The pixels' values do not matter for time and memory, their number does.
    rng = np.random.default_rng(0)
    shapes = {movie.name: (movie.num_frames, movie.height, movie.width) for movie in size.movies}
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1):
        templates = {}
        for name in shown_templates(size, size.sessions[0]):
            # Mapped from a file, as the pixels of a data folder are.
            pixels = np.memmap(Path(folder) / name, np.uint8, "w+", shape=shapes[name])
            for frame in pixels:
                frame[:] = rng.integers(0, 255, frame.shape, dtype=np.uint8)
            templates[name] = pixels
        clock, cpu = time.perf_counter(), time.process_time()
        recording = simulate_recording(
            world=get_world("allen_like"), size=size, seed=0, index=0, templates=templates, dff_procedure="allen_median"
        )
        recording.save(Path(folder) / "session.h5")
        clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    what = f"{recording.duration_s / 60:.0f} minutes, {recording.num_units} neurons"
    print(f"{what}: {cpu:.1f} s of CPU, {clock:.1f} s on the clock, {peak:.2f} GB")


if __name__ == "__main__":
    main()
