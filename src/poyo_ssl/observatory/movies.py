"""Movies of the observatory: smooth pans and zooms with hard cuts over photographs and dead-leaves pictures.

Every shot of every movie of a data folder shows a picture of its own, so that no picture is in two movies nor
on both sides of a cut, and a held-out clip that begins at a cut shows a picture never seen before.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from poyo_ssl.config import check
from poyo_ssl.observatory.pictures import DEAD_LEAVES, MOVIE_PHOTOGRAPHS, load_picture, sample_view, to_grey

MOVIE_RATE_HZ = 30.0
SHOT_SECONDS = (2.0, 3.4)
SMALLEST_PICTURE = (256, 448)
PICTURE_OVER_FRAME = 1.8
"""Pixels of a dead-leaves picture over those of the frame, so that views are hardly ever enlarged."""


@dataclass(frozen=True)
class MovieSpec:
    """One movie of a data folder.

    Attributes
    ----------
    name : str
        Allen name, for example ``natural_movie_one``.
    num_frames : int
        Frames at 30 Hz.
    height, width : int
        Pixels.
    repeats : int
        Times that it is shown in a session.
    """

    name: str
    num_frames: int
    height: int = 32
    width: int = 64
    repeats: int = 10

    def __post_init__(self) -> None:
        for field in ("num_frames", "height", "width", "repeats"):
            value = getattr(self, field)
            check(value >= 1, f"movie {self.name}: {field} of {value}", "1 or more", "raise it")


@dataclass(frozen=True)
class Shot:
    """What is between two cuts: frames ``[start, stop)`` over one picture.

    Attributes
    ----------
    start, stop : int
        Movie frames, half-open.
    picture : str
        File of the photograph, or ``dead_leaves_<number>``.
    """

    start: int
    stop: int
    picture: str


def plan_shots(movies: Sequence[MovieSpec], seed: int) -> dict[str, list[Shot]]:
    """Divide movies into shots and give every shot a picture of its own.

    Parameters
    ----------
    movies : sequence of MovieSpec
        All movies of a data folder, in order.
    seed : int
        Seed of the data folder.

    Returns
    -------
    dict
        Scenes by movie; together they cover the movie.

    Examples
    --------
    >>> plan = plan_shots([MovieSpec("natural_movie_one", 300), MovieSpec("natural_movie_two", 300)], seed=0)
    >>> pictures = [shot.picture for shots in plan.values() for shot in shots]
    >>> len(pictures) == len(set(pictures)), plan["natural_movie_two"][-1].stop
    (True, 300)
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0, 0)))
    photographs = rng.permutation(MOVIE_PHOTOGRAPHS).tolist()
    edges = [_shot_edges(movie.num_frames, rng) for movie in movies]
    total = sum(len(edge) - 1 for edge in edges)
    # At least every fourth shot is of dead leaves; photographs are spread evenly over the others.
    num_photographs = min(len(photographs), total - total // 4)
    taken = np.arange(total + 1) * num_photographs // total
    plan: dict[str, list[Shot]] = {movie.name: [] for movie in movies}
    shots = ((movie.name, span) for movie, edge in zip(movies, edges, strict=True) for span in itertools.pairwise(edge))
    for number, (name, (start, stop)) in enumerate(shots):
        is_photograph = taken[number + 1] > taken[number]
        picture = photographs[taken[number]] if is_photograph else f"{DEAD_LEAVES}_{number:03d}"
        plan[name].append(Shot(start, stop, picture))
    return plan


def _shot_edges(num_frames: int, rng: np.random.Generator) -> list[int]:
    """Cut a movie into shots of `SHOT_SECONDS`; the last takes what is left."""
    low, high = (round(seconds * MOVIE_RATE_HZ) for seconds in SHOT_SECONDS)
    edges = [0]
    while num_frames - edges[-1] >= 2 * low:
        longest = min(high, num_frames - edges[-1] - low)
        edges.append(edges[-1] + int(rng.integers(low, longest + 1)))
    return [*edges, num_frames]


def movie_cuts(movies: Sequence[MovieSpec], seed: int) -> dict[str, NDArray[np.int64]]:
    """Return, for each movie, the frames at which a new shot begins (frame 0 is not a cut).

    Examples
    --------
    >>> cuts = movie_cuts([MovieSpec("natural_movie_one", 300)], seed=0)["natural_movie_one"]
    >>> 3 <= len(cuts) + 1 <= 5
    True
    """
    plan = plan_shots(movies, seed)
    return {name: np.array([shot.start for shot in shots[1:]], np.int64) for name, shots in plan.items()}


def render_movie(movie: MovieSpec, movies: Sequence[MovieSpec], seed: int) -> NDArray[np.uint8]:
    """Render one movie of a data folder.

    Parameters
    ----------
    movie : MovieSpec
        The movie to render, one of `movies`.
    movies : sequence of MovieSpec
        All movies of the folder: which pictures one shows depends on the others.
    seed : int
        Seed of the data folder.

    Returns
    -------
    ndarray
        ``(num_frames, height, width)`` uint8 grey, every shot with mean 127.

    Examples
    --------
    >>> specs = [MovieSpec("natural_movie_one", 60, 16, 32)]
    >>> pixels = render_movie(specs[0], specs, seed=0)
    >>> pixels.shape, pixels.dtype
    ((60, 16, 32), dtype('uint8'))
    """
    shots = plan_shots(movies, seed)[movie.name]
    order = [spec.name for spec in movies].index(movie.name)
    height, width = (
        max(least, round(PICTURE_OVER_FRAME * pixels))
        for least, pixels in zip(SMALLEST_PICTURE, (movie.height, movie.width), strict=True)
    )
    pixels = np.empty((movie.num_frames, movie.height, movie.width), np.uint8)
    for number, shot in enumerate(shots):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0, 1, order, number)))
        picture = load_picture(shot.picture, rng, height=height, width=width)
        pixels[shot.start : shot.stop] = _pan(picture, shot.stop - shot.start, movie, rng)
    return pixels


def _pan(
    picture: NDArray[np.float64], num_frames: int, movie: MovieSpec, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Move a view of the movie's shape smoothly over a picture; slow pan, slow zoom."""
    from scipy import ndimage

    height, width = picture.shape
    aspect = movie.width / movie.height
    widest = min(width, height * aspect) - 1
    first, last = rng.permutation([rng.uniform(0.45, 0.55), rng.uniform(0.65, 0.8)]).tolist()
    span = widest * np.linspace(first, last, num_frames)
    free_x, free_y = width - 1 - span, height - 1 - span / aspect
    # The view crosses about half of the free room: frames a second apart differ, neighbours hardly do.
    from_x, from_y = rng.uniform(0.1, 0.35, 2)
    to_x, to_y = rng.uniform(0.65, 0.9, 2)
    phase = np.linspace(0, 1, num_frames)
    x_share, y_share = from_x + (to_x - from_x) * phase, from_y + (to_y - from_y) * phase
    if rng.random() < 0.5:
        x_share = 1 - x_share
    if rng.random() < 0.5:
        y_share = 1 - y_share
    smooth = ndimage.gaussian_filter(picture.astype(np.float32), 0.4 * span.mean() / movie.width)
    unit_x = (np.arange(movie.width) + 0.5) / movie.width
    unit_y = (np.arange(movie.height) + 0.5) / movie.height
    frames = np.empty((num_frames, movie.height, movie.width), np.float32)
    for index in range(num_frames):
        columns = x_share[index] * free_x[index] + unit_x * span[index]
        rows = y_share[index] * free_y[index] + unit_y * span[index] / aspect
        frames[index] = sample_view(smooth, rows, columns)
    return to_grey(frames)
