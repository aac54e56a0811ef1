"""Movies of the observatory: smooth pans and zooms with hard cuts over photographs and dead-leaves scenes.

The photographs are those inside the installed scikit-image and scikit-learn packages (nothing is downloaded).
Every scene of every movie of a data folder shows a picture of its own, so that no picture is in two movies nor
on both sides of a cut, and a held-out clip that begins at a cut shows a picture never seen before.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from poyo_ssl.config import check
from poyo_ssl.errors import RecordingError

MOVIE_RATE_HZ = 30.0
SCENE_SECONDS = (2.0, 3.4)
MEAN_GREY = 127.0
GREY_SPREAD = 52.0

PHOTOGRAPHS = (
    ("skimage", "data/astronaut.png"),
    ("skimage", "data/brick.png"),
    ("skimage", "data/camera.png"),
    ("skimage", "data/chelsea.png"),
    ("skimage", "data/coffee.png"),
    ("skimage", "data/coins.png"),
    ("skimage", "data/grass.png"),
    ("skimage", "data/gravel.png"),
    ("skimage", "data/hubble_deep_field.jpg"),
    ("skimage", "data/ihc.png"),
    ("skimage", "data/moon.png"),
    ("skimage", "data/rocket.jpg"),
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
)
"""Package and file of the photographs that ship inside the wheels."""

DEAD_LEAVES_EVERY = 4
"""Every fourth scene is a dead-leaves scene, and every one after the photographs are used up."""


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
class Scene:
    """One shot between two cuts: frames ``[start, stop)`` over one picture.

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


def plan_scenes(movies: Sequence[MovieSpec], seed: int) -> dict[str, list[Scene]]:
    """Divide movies into scenes and give every scene a picture of its own.

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
    >>> plan = plan_scenes([MovieSpec("natural_movie_one", 300), MovieSpec("natural_movie_two", 300)], seed=0)
    >>> pictures = [scene.picture for scenes in plan.values() for scene in scenes]
    >>> len(pictures) == len(set(pictures)), plan["natural_movie_two"][-1].stop
    (True, 300)
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0, 0)))
    photographs = [f"{package}/{file}" for package, file in PHOTOGRAPHS]
    rng.shuffle(photographs)
    plan: dict[str, list[Scene]] = {}
    number = 0
    for movie in movies:
        edges = _scene_edges(movie.num_frames, rng)
        plan[movie.name] = []
        for start, stop in itertools.pairwise(edges):
            number += 1
            leaves = number % DEAD_LEAVES_EVERY == 0 or not photographs
            picture = f"dead_leaves_{number:03d}" if leaves else photographs.pop()
            plan[movie.name].append(Scene(start, stop, picture))
    return plan


def _scene_edges(num_frames: int, rng: np.random.Generator) -> list[int]:
    """Cut a movie into scenes of `SCENE_SECONDS`; the last takes what is left."""
    low, high = (round(seconds * MOVIE_RATE_HZ) for seconds in SCENE_SECONDS)
    edges = [0]
    while num_frames - edges[-1] >= 2 * low:
        longest = min(high, num_frames - edges[-1] - low)
        edges.append(edges[-1] + int(rng.integers(low, longest + 1)))
    return [*edges, num_frames]


def movie_cuts(movies: Sequence[MovieSpec], seed: int) -> dict[str, NDArray[np.int64]]:
    """Return, for each movie, the frames at which a new scene begins (frame 0 is not a cut).

    Examples
    --------
    >>> cuts = movie_cuts([MovieSpec("natural_movie_one", 300)], seed=0)["natural_movie_one"]
    >>> 3 <= len(cuts) + 1 <= 5
    True
    """
    plan = plan_scenes(movies, seed)
    return {name: np.array([scene.start for scene in scenes[1:]], np.int64) for name, scenes in plan.items()}


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
        ``(num_frames, height, width)`` uint8 grey, every scene with mean 127.

    Examples
    --------
    >>> specs = [MovieSpec("natural_movie_one", 60, 16, 32)]
    >>> pixels = render_movie(specs[0], specs, seed=0)
    >>> pixels.shape, pixels.dtype
    ((60, 16, 32), dtype('uint8'))
    """
    scenes = plan_scenes(movies, seed)[movie.name]
    order = [spec.name for spec in movies].index(movie.name)
    pixels = np.empty((movie.num_frames, movie.height, movie.width), np.uint8)
    for number, scene in enumerate(scenes):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0, 1, order, number)))
        picture = load_picture(scene.picture, rng)
        pixels[scene.start : scene.stop] = _pan(picture, scene.stop - scene.start, movie, rng)
    return pixels


def load_picture(name: str, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a picture by its name in a `Scene`: a photograph in grey, or a new dead-leaves scene.

    Raises
    ------
    RecordingError
        If the photograph is not inside the installed package.
    """
    if name.startswith("dead_leaves"):
        return draw_dead_leaves(rng)
    from skimage import color, io  # slow to import

    package, file = name.split("/", 1)
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent / file if spec and spec.origin else Path(name)
    if not path.is_file():
        raise RecordingError(
            f"the photograph {file} is not inside the installed package {package}",
            fix="reinstall scikit-image and scikit-learn from their wheels",
        )
    picture = io.imread(path)
    return color.rgb2gray(picture[..., :3]) if picture.ndim == 3 else picture / 255.0


def draw_dead_leaves(
    rng: np.random.Generator, *, height: int = 256, width: int = 448, num_leaves: int = 2500
) -> NDArray[np.float64]:
    """Draw a dead-leaves scene: discs of random grey that occlude one another.

    Radii follow the density r^-3, which gives the 1/f^2 power spectrum of natural images (Lee, Mumford and
    Huang 2001, "Occlusion models for natural images").

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of radii, places and grey levels.
    height, width : int
        Pixels.
    num_leaves : int
        Discs drawn, each over those before.

    Returns
    -------
    ndarray
        ``(height, width)`` in 0-1.

    Examples
    --------
    >>> draw_dead_leaves(np.random.default_rng(0), height=20, width=40, num_leaves=50).shape
    (20, 40)
    """
    smallest, largest = 5.0, height / 2
    uniform = rng.random(num_leaves)
    radii = 1 / np.sqrt(smallest**-2 - uniform * (smallest**-2 - largest**-2))
    rows, columns = rng.uniform(0, height, num_leaves), rng.uniform(0, width, num_leaves)
    greys = rng.random(num_leaves)
    scene = np.full((height, width), 0.5)
    for row, column, radius, grey in zip(rows, columns, radii, greys, strict=True):
        top, bottom = max(int(row - radius), 0), min(int(row + radius) + 2, height)
        left, right = max(int(column - radius), 0), min(int(column + radius) + 2, width)
        y, x = np.ogrid[top:bottom, left:right]
        scene[top:bottom, left:right][(y - row) ** 2 + (x - column) ** 2 <= radius**2] = grey
    return scene


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
    smooth = ndimage.gaussian_filter(picture, 0.4 * span.mean() / movie.width)
    unit_x = (np.arange(movie.width) + 0.5) / movie.width
    unit_y = (np.arange(movie.height) + 0.5) / movie.height
    frames = np.empty((num_frames, movie.height, movie.width))
    for index in range(num_frames):
        x = x_share[index] * free_x[index] + unit_x * span[index]
        y = y_share[index] * free_y[index] + unit_y * span[index] / aspect
        frames[index] = ndimage.map_coordinates(smooth, np.meshgrid(y, x, indexing="ij"), order=1, mode="nearest")
    grey = MEAN_GREY + GREY_SPREAD * (frames - frames.mean()) / max(frames.std(), 1e-9)
    return np.clip(np.round(grey), 0, 255).astype(np.uint8)
