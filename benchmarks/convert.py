"""How fast recordings are converted, and in how much memory.

    OMP_NUM_THREADS=1 python benchmarks/convert.py                        # 64 minutes of 400 neurons, Allen NWB 1
    python benchmarks/convert.py --storage contiguous chunked gzip --repeats 10

Writes a synthetic file once per storage, then converts it again and again in fresh processes of one core: median MB of
uncompressed dF/F per second, reading, checks and writing included, by the wall clock and by processor time (other
programs slow down the first more than the second), and the peak memory of a process. Beside it stands a plain copy of
as many bytes, interleaved. The file comes from the page cache, as right after a download.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

from poyo_ssl.data.recording import Recording, RecordingMetadata
from poyo_ssl.data.series import TimeSeries
from poyo_ssl.data.stimuli import Presentations
from poyo_ssl.observatory.allen_nwb import PIPELINE, write_allen_nwb
from poyo_ssl.observatory.rois import draw_roi_masks

TRACES = f"{PIPELINE}/DfOverF/imaging_plane_1/data"
STORAGES = {
    "contiguous": {},
    "chunked": {"chunks": True},
    "gzip": {"chunks": True, "compression": "gzip", "compression_opts": 4},
}


def write_input(folder: Path, storage: str, minutes: float, units: int) -> Path:
    """Write a session A without its movies, whose pixels are converted once per folder and not once per recording."""
    rng = np.random.default_rng(0)
    times = np.round((26.7 + np.arange(int(minutes * 60 * 30.08)) / 30.08) * 1e5) / 1e5
    dff = rng.gamma(0.3, 0.2, (len(times), units)).astype(np.float32)
    start = np.arange(700, len(times) - 100, 90)
    blank = np.arange(len(start)) % 21 == 4
    gratings = Presentations.from_frames(
        "drifting_gratings",
        times,
        start,
        start + 60,
        {
            "orientation": np.where(blank, np.nan, 45.0 * rng.integers(0, 8, len(start))),
            "temporal_frequency": np.where(blank, np.nan, rng.choice([1.0, 2, 4, 8, 15], len(start))),
            "blank_sweep": blank,
        },
    )
    recording = Recording(
        "501574836",
        dff,
        times,
        RecordingMetadata(
            "222426",
            container_id="511510667",
            cre_line="Cux2-CreERT2",
            age_days=114.0,
            session_type="three_session_A",
            targeted_structure="VISp",
            depth_um=275,
            recording_date="2016-02-04 10:25:24",
        ),
        stimuli={"drifting_gratings": gratings},
        running=TimeSeries(times, rng.gamma(1, 5, len(times)).astype(np.float32)),
        roi_masks=draw_roi_masks(units, rng),
    )
    path = write_allen_nwb(recording, folder / f"{storage}.nwb", templates={})
    if STORAGES[storage]:
        with h5py.File(path, "a") as file:
            del file[TRACES]
            file.create_dataset(TRACES, data=np.ascontiguousarray(dff.T), **STORAGES[storage])
    return path


def convert_once(path: Path, output: Path) -> dict[str, float]:
    """Convert in this process and say how long it took and what memory the process has ever used."""
    from poyo_ssl.sources.allen import AllenSource
    from poyo_ssl.sources.convert import convert

    started, busy = time.perf_counter(), time.process_time()
    outcome = convert(AllenSource(), path, output)[0]
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    assert outcome.status == "written", outcome.error
    return {"seconds": seconds, "busy": busy, "peak_mb": peak_mb()}


def peak_mb() -> float:
    """Return the most memory that this process has ever used, mapped files included."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not `getrusage`, which on Linux begins with what the parent used.
        return int(re.search(r"VmHWM:\s*(\d+)", status.read_text())[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def copy_once(size: int, source: Path, output: Path) -> float:
    """Copy `size` bytes by plain reads and writes; return seconds."""
    started = time.perf_counter()
    with source.open("rb") as reader, (output / "copy").open("wb") as writer:
        for _ in range(size >> 20):
            writer.write(reader.read(1 << 20))
    return time.perf_counter() - started


def main() -> None:
    """Parse the arguments and print one line per storage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=64.0)
    parser.add_argument("--units", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--storage", nargs="+", choices=STORAGES, default=list(STORAGES))
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder by default")
    parser.add_argument("--once", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.once:
        print(json.dumps(convert_once(*arguments.once)))
        return
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        for storage in arguments.storage:
            path = write_input(folder, storage, arguments.minutes, arguments.units)
            size = int(arguments.minutes * 60 * 30.08) * arguments.units * 4
            runs, copies = [], []
            for number in range(arguments.repeats):
                output = folder / f"{storage}_{number}"
                command = [sys.executable, __file__, "--once", str(path), str(output)]
                runs.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
                copies.append(copy_once(size, path, output))
                shutil.rmtree(output)
            rate, busy = (size / 1e6 / statistics.median(run[key] for run in runs) for key in ("seconds", "busy"))
            plain = size / 1e6 / statistics.median(copies)
            print(
                f"{storage:>10}: {rate:4.0f} MB/s of dF/F ({size / 1e6:.0f} MB; {busy:.0f} by processor time), "
                f"peak memory {max(run['peak_mb'] for run in runs):.0f} MB; plain copy {plain:.0f} MB/s"
            )
            path.unlink()
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
