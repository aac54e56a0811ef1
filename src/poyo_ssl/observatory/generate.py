"""Write a whole data folder of the observatory, in parallel and resumably."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poyo_ssl.config import check
from poyo_ssl.data.dff import PROCEDURES
from poyo_ssl.data.recording import Recording
from poyo_ssl.data.stimuli import load_movie, movie_path, save_movie
from poyo_ssl.errors import RecordingError, ResourceError
from poyo_ssl.files import write_beside
from poyo_ssl.observatory.allen_nwb import nwb_path, write_nwb_copy
from poyo_ssl.observatory.allen_schedule import NOISE_TEMPLATES, NUM_SCENES
from poyo_ssl.observatory.movies import SCENE_SHAPE, draw_noise, render_movie, render_scenes
from poyo_ssl.observatory.sessions import recording_ids, shown_templates, simulate_recording
from poyo_ssl.observatory.sizes import SIZES, ObservatorySize, SessionPlan, get_size
from poyo_ssl.observatory.worlds import get_world
from poyo_ssl.sources.run import run_in_processes

MANIFEST = "observatory.json"
SCENES = "natural_scenes"
BYTES_PER_VALUE = 6
"""dF/F takes 4 bytes per neuron and frame, true rates two thirds of one, events (12 bytes each) the rest at most."""

BYTES_PER_FRAME = 40
BYTES_PER_PRESENTATION = 80
BYTES_PER_NWB_VALUE = 16
"""dF/F, raw, demixed and neuropil, 4 bytes each."""

BYTES_PER_NWB_FRAME, BYTES_PER_NWB_UNIT = 130, 40_000
LARGEST_SEED = 2**32 - 1
"""Cell ids and the whole numbers that AllenSDK wants are made of the seed and have 64 bits."""


def generate_observatory(
    output: Path | str,
    *,
    world: str = "allen_like",
    size: str = "small",
    seed: int = 0,
    dff_procedure: str = "allen_median",
    as_nwb: bool = False,
    workers: int = 1,
    overwrite: bool = False,
    progress: Callable[[Path], None] | None = None,
) -> list[Path]:
    """Generate a simulated data folder: one brainsets HDF5 file per recording; movies, scenes and noise once.

    The same seed gives the same bytes whatever the number of workers, on processors that round alike; elsewhere traces
    differ in their last bits, and now and then in an event. A generation that was interrupted continues: recordings,
    movies and scenes that are complete are kept.

    Parameters
    ----------
    output : path
        Data folder; made if missing.
    world : str
        One of `WORLDS`.
    size : str
        One of `SIZES`.
    seed : int
        0 to 4294967295.
    dff_procedure : str
        How dF/F is computed, by name (`poyo_ssl.data.dff`): ``allen_median`` or ``allen_mode``, say, the Allen's
        recent and earlier procedure.
    as_nwb : bool
        Write every recording as an Allen NWB 1 file too, into the folder ``ophys_experiment_data``. Those hold the
        movies' pixels and no truth.
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
    check(0 <= seed <= LARGEST_SEED, f"seed of {seed}", f"0 to {LARGEST_SEED}", "change it")
    check(workers >= 1, f"{workers} workers", "1 or more", "raise it")
    check(dff_procedure in PROCEDURES, f"no dF/F procedure '{dff_procedure}'", ", ".join(PROCEDURES), "choose one")
    output = Path(output)
    wanted: dict[str, str | int] = {"world": world, "size": size, "seed": seed, "dff_procedure": dff_procedure}
    earlier = _find_earlier(output, wanted, overwrite)
    paths = [output / f"{name}.h5" for name in recording_ids(spec)]
    copies = [nwb_path(output, seed, index) if as_nwb else paths[index] for index in range(len(paths))]
    missing = [
        n for n, files in enumerate(zip(paths, copies, strict=True)) if overwrite or not all(map(Path.exists, files))
    ]
    # An earlier generation is replaced with its movies.
    stimuli = _template_names(spec)
    unrendered = stimuli if overwrite else [name for name in stimuli if not movie_path(output, name).exists()]
    _check_disk(output, spec, missing, unrendered, as_nwb)
    _claim_folder(output, wanted, earlier if overwrite else None)
    for index, path in enumerate(paths):
        if index not in missing and progress:
            progress(path)
    for name in unrendered:
        # What a process left that was killed while it wrote; nobody would come back to it.
        for rest in movie_path(output, name).parent.glob(f"{name}.*.partial"):
            rest.unlink()
    for _ in _run(_render_one, [(output, size, seed, name) for name in unrendered], workers):
        pass
    # Closed at once when something goes wrong here, so that no process goes on writing.
    with closing(_run(_write_one, [(output, *wanted.values(), as_nwb, index) for index in missing], workers)) as made:
        for path in made:
            if progress:
                progress(path)
    return paths


def _run(work: Callable[..., Path], tasks: Sequence[tuple], workers: int) -> Generator[Path, None, None]:
    """Do the tasks in parallel processes and yield results as they come; in this process if there is one worker."""
    with closing(run_in_processes(partial(_attempt, work), tasks, workers)) as answers:
        for _, made, death in answers:
            if death:
                raise ResourceError(death, fix="what is complete stays: the same command goes on from there")
            if isinstance(made, Exception):
                raise made
            yield made


def _attempt(work: Callable[..., Path], task: tuple) -> Path | Exception:
    """Return what goes wrong instead of raising it, which would end the process."""
    try:
        return work(*task)
    except Exception as error:
        return error


def _template_names(size: ObservatorySize) -> list[str]:
    names = (name for session in size.sessions for name in shown_templates(size, session))
    return list(dict.fromkeys(names))


def _render_one(output: Path, size: str, seed: int, name: str) -> Path:
    """Render one movie, the scenes or a noise."""
    movies = get_size(size).movies
    if name == SCENES:
        pixels: NDArray[np.uint8] = render_scenes(seed)
    elif name in NOISE_TEMPLATES:
        pixels = draw_noise(name, seed)
    else:
        pixels = render_movie(next(movie for movie in movies if movie.name == name), movies, seed)
    return save_movie(output, name, pixels)


def _write_one(output: Path, world: str, size: str, seed: int, dff_procedure: str, as_nwb: bool, index: int) -> Path:
    """Write what a recording lacks of its files: an interruption may have left the first of two."""
    spec = get_size(size)
    session = spec.sessions[index]
    path = output / f"{session.recording_id}.h5"
    if not path.exists():
        _simulate_one(output, world, spec, seed, dff_procedure, index).save(path)
    if as_nwb and not nwb_path(output, seed, index).exists():
        write_nwb_copy(output, session, seed, index)
    return path


def _simulate_one(
    output: Path, world: str, size: ObservatorySize, seed: int, dff_procedure: str, index: int
) -> Recording:
    from threadpoolctl import threadpool_limits

    templates = {name: load_movie(output, name) for name in shown_templates(size, size.sessions[index])}
    # One thread each: processes do not crowd one another, and sums do not depend on the number of cores.
    with threadpool_limits(1):
        return simulate_recording(
            world=get_world(world), size=size, seed=seed, index=index, templates=templates, dff_procedure=dff_procedure
        )


def _find_earlier(output: Path, wanted: dict[str, str | int], overwrite: bool) -> tuple[ObservatorySize, int] | None:
    """Return size and seed of an earlier generation in the folder; refuse a folder that holds something else."""
    if output.exists() and not output.is_dir():
        raise RecordingError(f"{output} is a file", fix="choose a folder")
    manifest = output / MANIFEST
    if not manifest.exists():
        if any(output.glob("*.h5")):
            raise RecordingError(f"{output} holds recordings from elsewhere", fix="choose an empty folder")
        return None
    try:
        found = json.loads(manifest.read_text())
        earlier = SIZES[found["size"]], int(found["seed"])
    except (ValueError, KeyError, TypeError):
        raise RecordingError(f"{manifest} is damaged or from another version", fix="choose another folder") from None
    if found != wanted and not overwrite:
        raise RecordingError(
            f"{output} holds world '{found.get('world')}', size '{found.get('size')}', seed {found.get('seed')}",
            fix="choose another folder or pass --overwrite",
        )
    return earlier


def _claim_folder(output: Path, wanted: dict[str, str | int], replaced: tuple[ObservatorySize, int] | None) -> None:
    """Note in the folder what it will hold, after removing what is to be replaced."""
    if replaced is not None:
        _remove_generation(output, *replaced)
    output.mkdir(parents=True, exist_ok=True)
    write_beside(output / MANIFEST, json.dumps(wanted, indent=2) + "\n")


def _remove_generation(output: Path, size: ObservatorySize, seed: int) -> None:
    """Delete the recordings and stimuli that a generation of `size` makes, and nothing else."""
    for index, name in enumerate(recording_ids(size)):
        (output / f"{name}.h5").unlink(missing_ok=True)
        nwb_path(output, seed, index).unlink(missing_ok=True)
    for name in _template_names(size):
        movie_path(output, name).unlink(missing_ok=True)
    (output / MANIFEST).unlink(missing_ok=True)


def foreseen_bytes(size: ObservatorySize, indices: Iterable[int] | None = None, *, as_nwb: bool = False) -> int:
    """Return an upper estimate of the disk space of recordings of a size (all by default) and of its stimuli."""
    chosen = range(size.num_recordings) if indices is None else indices
    return _recording_bytes(size, chosen, as_nwb) + _template_bytes(size, _template_names(size))


def _recording_bytes(size: ObservatorySize, indices: Iterable[int], as_nwb: bool) -> int:
    return sum(_session_bytes(size, size.sessions[index], as_nwb) for index in indices)


def _session_bytes(size: ObservatorySize, session: SessionPlan, as_nwb: bool) -> int:
    num_frames = size.duration_s(session) * 30.3
    num_units = size.unit_range(session)[1]
    rows = sum(movie.num_frames * movie.repeats for movie in size.movies) + 12_000
    # Drives and expected rates of every movie frame.
    responses = 8 * num_units * sum(movie.num_frames for movie in size.movies)
    recording = num_frames * (num_units * BYTES_PER_VALUE + BYTES_PER_FRAME) + rows * BYTES_PER_PRESENTATION
    copy = 0.0
    if as_nwb:
        copy = num_frames * (num_units * BYTES_PER_NWB_VALUE + BYTES_PER_NWB_FRAME) + num_units * BYTES_PER_NWB_UNIT
        copy += rows * BYTES_PER_PRESENTATION + _template_bytes(size, shown_templates(size, session), scene_bytes=4)
    return int(recording + copy) + responses


def _template_bytes(size: ObservatorySize, names: Iterable[str], *, scene_bytes: int = 1) -> int:
    shapes: dict[str, Any] = {movie.name: (movie.num_frames, movie.height, movie.width) for movie in size.movies}
    shapes |= {name: shape[:3] for name, shape in NOISE_TEMPLATES.items()}
    shapes[SCENES] = (scene_bytes, NUM_SCENES, *SCENE_SHAPE)
    return sum(int(np.prod(shapes[name])) for name in names)


def _check_disk(
    output: Path, size: ObservatorySize, indices: Sequence[int], stimuli: Sequence[str], as_nwb: bool
) -> None:
    """Compare the free space with what recordings and stimuli that are not there yet will take."""
    needed = _recording_bytes(size, indices, as_nwb) + _template_bytes(size, stimuli)
    existing = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ResourceError(
            f"size '{size.name}' takes {needed / 2**20:.0f} MB more, {free / 2**20:.0f} MB are free in {output}",
            fix="free some space or choose a smaller size",
        )
