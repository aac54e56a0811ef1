"""Write a whole data folder of the observatory, in parallel and resumably."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from poyo_ssl.config import check
from poyo_ssl.data.stimuli import load_movie, movie_path, save_movie
from poyo_ssl.errors import RecordingError, ResourceError
from poyo_ssl.observatory.schedule import SIZES, ObservatorySize, get_size
from poyo_ssl.observatory.sessions import recording_ids, simulate_recording
from poyo_ssl.observatory.stimuli import render_movie
from poyo_ssl.observatory.worlds import get_world

MANIFEST = "observatory.json"
BYTES_PER_VALUE = 5
"""dF/F takes 4 bytes per neuron and frame; tables, events and truth take less than one more."""


def generate_observatory(
    output: Path | str,
    *,
    world: str = "allen_like",
    size: str = "small",
    seed: int = 0,
    workers: int = 1,
    overwrite: bool = False,
    progress: Callable[[Path], None] | None = None,
) -> list[Path]:
    """Generate a simulated data folder: one brainsets HDF5 file per recording, movies once.

    The same seed gives the same bytes whatever the number of workers. A generation that was interrupted
    continues: recordings that are complete are kept.

    Parameters
    ----------
    output : path
        Data folder; made if missing.
    world : str
        One of `WORLDS`.
    size : str
        One of `SIZES`.
    seed : int
        0 or more.
    workers : int
        Processes, one recording at a time each.
    overwrite : bool
        Replace what an earlier generation left in the folder.
    progress : callable, optional
        Called with the path of each recording once it is there.

    Returns
    -------
    list of Path
        The recordings, in order of their ids.

    Raises
    ------
    ConfigError
        If world or size do not exist, or seed or workers are out of range.
    RecordingError
        If the folder holds another generation (without `overwrite`) or recordings from elsewhere.
    ResourceError
        If the disk has less room than the folder will take.

    Examples
    --------
    >>> import tempfile
    >>> paths = generate_observatory(tempfile.mkdtemp(), size="tiny")
    >>> len(paths), paths[0].name
    (4, 'obs_000_Cux2-CreERT2.h5')
    """
    get_world(world)
    spec = get_size(size)
    check(seed >= 0, f"seed of {seed}", "0 or more", "change it")
    check(workers >= 1, f"{workers} workers", "1 or more", "raise it")
    output = Path(output)
    wanted: dict[str, str | int] = {"world": world, "size": size, "seed": seed}
    earlier = _find_earlier(output, wanted, overwrite)
    paths = [output / f"{name}.h5" for name in recording_ids(spec)]
    missing = [index for index, path in enumerate(paths) if overwrite or not path.exists()]
    _check_disk(output, spec, len(missing))
    _claim_folder(output, wanted, earlier if overwrite else None)
    for movie in spec.movies:
        if not movie_path(output, movie.name).exists():
            save_movie(output, movie.name, render_movie(movie, spec.movies, seed))
    for index, path in enumerate(paths):
        if index not in missing and progress:
            progress(path)
    tasks = [(output, world, size, seed, index) for index in missing]
    if workers == 1 or len(tasks) < 2:
        for task in tasks:
            path = _write_one(*task)
            if progress:
                progress(path)
    else:
        _write_parallel(tasks, min(workers, len(tasks)), progress)
    return paths


def _write_parallel(
    tasks: list[tuple[Path, str, str, int, int]], workers: int, progress: Callable[[Path], None] | None
) -> None:
    # Forking a process that has started threads can hang it: start fresh ones.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = [pool.submit(_write_one, *task) for task in tasks]
        try:
            for future in as_completed(futures):
                path = future.result()
                if progress:
                    progress(path)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _write_one(output: Path, world: str, size: str, seed: int, index: int) -> Path:
    spec = get_size(size)
    movies = {movie.name: load_movie(output, movie.name) for movie in spec.movies}
    recording = simulate_recording(world=get_world(world), size=spec, seed=seed, index=index, movies=movies)
    return recording.save(output / f"{recording.recording_id}.h5", overwrite=True)


def _find_earlier(output: Path, wanted: dict[str, str | int], overwrite: bool) -> ObservatorySize | None:
    """Return the size of an earlier generation in the folder; refuse a folder that holds something else."""
    if output.exists() and not output.is_dir():
        raise RecordingError(f"{output} is a file", fix="choose a folder")
    manifest = output / MANIFEST
    if not manifest.exists():
        if any(output.glob("*.h5")):
            raise RecordingError(f"{output} holds recordings from elsewhere", fix="choose an empty folder")
        return None
    try:
        found = json.loads(manifest.read_text())
        earlier = SIZES[found["size"]]
    except (ValueError, KeyError, TypeError):
        raise RecordingError(f"{manifest} is damaged or from another version", fix="choose another folder") from None
    if found != wanted and not overwrite:
        raise RecordingError(
            f"{output} holds world '{found.get('world')}', size '{found.get('size')}', seed {found.get('seed')}",
            fix="choose another folder or pass --overwrite",
        )
    return earlier


def _claim_folder(output: Path, wanted: dict[str, str | int], replaced: ObservatorySize | None) -> None:
    """Note in the folder what it will hold, after removing what is to be replaced."""
    if replaced is not None:
        _remove_generation(output, replaced)
    output.mkdir(parents=True, exist_ok=True)
    manifest = output / MANIFEST
    beside = manifest.with_suffix(".partial")
    beside.write_text(json.dumps(wanted, indent=2) + "\n")
    beside.replace(manifest)


def _remove_generation(output: Path, size: ObservatorySize) -> None:
    """Delete the recordings and movies that a generation of `size` makes, and nothing else."""
    for name in recording_ids(size):
        (output / f"{name}.h5").unlink(missing_ok=True)
    for movie in size.movies:
        movie_path(output, movie.name).unlink(missing_ok=True)
    (output / MANIFEST).unlink(missing_ok=True)


def foreseen_bytes(size: ObservatorySize, num_recordings: int) -> int:
    """Return an upper estimate of the disk space of `num_recordings` recordings and the movies.

    Examples
    --------
    >>> foreseen_bytes(get_size("small"), 13) // 2**20 < 150
    True
    """
    frames = size.duration_s * 30.2
    movies = sum(movie.num_frames * movie.height * movie.width for movie in size.movies)
    rows = sum(movie.num_frames * movie.repeats for movie in size.movies)
    return int(num_recordings * (frames * (size.num_units[1] * BYTES_PER_VALUE + 32) + rows * 80)) + movies


def _check_disk(output: Path, size: ObservatorySize, num_recordings: int) -> None:
    needed = foreseen_bytes(size, num_recordings)
    existing = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ResourceError(
            f"size '{size.name}' takes {needed / 2**20:.0f} MB, {free / 2**20:.0f} MB are free in {output}",
            fix="free some space or choose a smaller size",
        )
