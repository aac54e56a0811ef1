"""How fast recordings are converted, and in how much memory.

    OMP_NUM_THREADS=1 python benchmarks/convert.py      # 64 minutes of 400 neurons, Allen NWB 1 in three storages
    OMP_NUM_THREADS=1 python benchmarks/convert.py --input nwb arrays fluorescence suite2p --repeats 1

Writes a synthetic input once per kind, then converts it again and again in fresh processes of one core: median MB of
uncompressed dF/F per second, reading, checks and writing included, by the wall clock and by processor time (other
programs slow down the first more than the second), and the peak memory of a process. Beside it stands a plain copy of
as many bytes, interleaved. The file comes from the page cache, as right after a download.

Contiguous, chunked and gzip are Allen NWB 1; nwb is NWB 2, compressed by frames; arrays is dF/F in a npy file; for
fluorescence (npy files) and suite2p, dF/F is computed from F and neuropil, which takes nearly all of the time.
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
from poyo_ssl.observatory.cells import draw_roi_masks

TRACES = f"{PIPELINE}/DfOverF/imaging_plane_1/data"
STORAGES = {
    "contiguous": {},
    "chunked": {"chunks": True},
    "gzip": {"chunks": True, "compression": "gzip", "compression_opts": 4},
}
OTHERS = ("nwb", "arrays", "fluorescence", "suite2p")


def write_allen(folder: Path, storage: str, minutes: float, units: int) -> Path:
    """Write a session A without its movies, whose pixels are converted once per folder and not once per recording."""
    rng = np.random.default_rng(0)
    times, dff = draw_traces(minutes, units)
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


def write_nwb(folder: Path, minutes: float, units: int) -> Path:
    """Write the dF/F of a laboratory's NWB 2 file, compressed by frames as pynwb's users do it."""
    from datetime import UTC, datetime

    from pynwb import NWBHDF5IO, H5DataIO, NWBFile
    from pynwb.ophys import DfOverF, ImageSegmentation, OpticalChannel, RoiResponseSeries

    times, dff = draw_traces(minutes, units)
    nwbfile = NWBFile("a session", "mouse7", datetime(2024, 5, 1, tzinfo=UTC))
    plane = nwbfile.create_imaging_plane(
        name="plane",
        optical_channel=OpticalChannel(name="channel", description="", emission_lambda=520.0),
        description="",
        device=nwbfile.create_device(name="microscope"),
        excitation_lambda=910.0,
        indicator="GCaMP6f",
        location="VISp",
    )
    module = nwbfile.create_processing_module("ophys", "two-photon")
    segmentation = ImageSegmentation()
    module.add(segmentation)
    table = segmentation.create_plane_segmentation(name="rois", description="", imaging_plane=plane)
    for _ in range(units):
        table.add_roi(pixel_mask=[(3, 4, 1.0)])
    region = table.create_roi_table_region(region=list(range(units)), description="all")
    data = H5DataIO(dff, compression=True, chunks=True)
    series = RoiResponseSeries(name="DfOverF", data=data, rois=region, unit="n.a.", timestamps=times)
    module.add(DfOverF(roi_response_series=series))
    with NWBHDF5IO(folder / "nwb.nwb", "w") as io:
        io.write(nwbfile)
    return folder / "nwb.nwb"


def write_arrays(folder: Path, kind: str, minutes: float, units: int) -> Path:
    """Write dF/F, or fluorescence and neuropil, as npy files with a clock, or as a plane of suite2p."""
    times, dff = draw_traces(minutes, units)
    plane = folder / kind / "suite2p" / "plane0" if kind == "suite2p" else folder / kind
    plane.mkdir(parents=True)
    np.save(folder / kind / "timestamps.npy", times)
    if kind == "arrays":
        np.save(plane / "dff.npy", dff)
        return folder / kind
    light, neuropil = 300 * (1 + dff.T), np.full(dff.T.shape, 100, np.float32)
    names = ("F", "Fneu") if kind == "suite2p" else ("fluorescence", "neuropil")
    for name, traces in zip(names, (light, neuropil), strict=True):
        np.save(plane / f"{name}.npy", traces)
    if kind == "suite2p":
        np.save(plane / "iscell.npy", np.ones((units, 2)))
        np.save(plane / "ops.npy", np.array({"fs": 30.08, "neucoeff": 0.7}, dtype=object), allow_pickle=True)
    return folder / kind


def draw_traces(minutes: float, units: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(T,)`` seconds and ``(T, units)`` float32 dF/F, positive and sparse."""
    times = np.round((26.7 + np.arange(int(minutes * 60 * 30.08)) / 30.08) * 1e5) / 1e5
    return times, np.random.default_rng(0).gamma(0.3, 0.2, (len(times), units)).astype(np.float32)


def write_input(folder: Path, kind: str, minutes: float, units: int) -> Path:
    """Write an input of one kind and return what to convert."""
    if kind in STORAGES:
        return write_allen(folder, kind, minutes, units)
    return write_nwb(folder, minutes, units) if kind == "nwb" else write_arrays(folder, kind, minutes, units)


def convert_once(path: Path, output: Path) -> dict[str, float]:
    """Convert in this process and say how long it took and what memory the process has ever used."""
    from poyo_ssl.sources.registry import recognise
    from poyo_ssl.sources.run import convert

    kind, path = recognise(path)[0]
    if kind.name == "nwb":
        # Importing it takes longer than the conversion.
        import pynwb  # noqa: F401
    started, busy = time.perf_counter(), time.process_time()
    outcome = convert(kind(), path, output)[0]
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
    """Parse the arguments and print one line per kind of input."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=64.0)
    parser.add_argument("--units", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--input", nargs="+", choices=[*STORAGES, *OTHERS], default=list(STORAGES))
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder by default")
    parser.add_argument("--once", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.once:
        print(json.dumps(convert_once(*arguments.once)))
        return
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        for kind in arguments.input:
            path = write_input(folder, kind, arguments.minutes, arguments.units)
            size = int(arguments.minutes * 60 * 30.08) * arguments.units * 4
            traces = path if path.is_file() else max(path.rglob("*.npy"), key=lambda item: item.stat().st_size)
            runs, copies = [], []
            for number in range(arguments.repeats):
                output = folder / f"{kind}_{number}"
                command = [sys.executable, __file__, "--once", str(path), str(output)]
                runs.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
                copies.append(copy_once(size, traces, output))
                shutil.rmtree(output)
            rate, busy = (size / 1e6 / statistics.median(run[key] for run in runs) for key in ("seconds", "busy"))
            plain = size / 1e6 / statistics.median(copies)
            print(
                f"{kind:>12}: {rate:4.0f} MB/s of dF/F ({size / 1e6:.0f} MB; {busy:.0f} by processor time), "
                f"peak memory {max(run['peak_mb'] for run in runs):.0f} MB; plain copy {plain:.0f} MB/s"
            )
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
