"""Movies of the observatory: smooth pans and zooms with hard cuts over photographs and dead-leaves pictures.

Every shot of every movie of a data folder shows a picture of its own, so that no picture is in two movies nor
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
from poyo_ssl.observatory.allen_schedule import NOISE_TEMPLATES, NUM_SCENES

MEAN_GREY = 127.0
GREY_SPREAD = 52.0

MOVIE_PHOTOGRAPHS = (
    "skimage/data/astronaut.png",
    "skimage/data/camera.png",
    "skimage/data/chelsea.png",
    "skimage/data/coffee.png",
    "skimage/data/gravel.png",
    "skimage/data/hubble_deep_field.jpg",
    "skimage/data/ihc.png",
    "skimage/data/moon.png",
    "sklearn/datasets/images/flower.jpg",
)
SCENE_PHOTOGRAPHS = (
    "skimage/data/coins.png",
    "skimage/data/grass.png",
    "skimage/data/rocket.jpg",
    "sklearn/datasets/images/china.jpg",
)
DEAD_LEAVES = "dead_leaves"

SMALLEST_LEAF_PX = 2.0
LEAF_COVERAGE = 3.5
"""Total area of the leaves over that of the picture: 3 % stays the grey behind them."""


def load_picture(name: str, rng: np.random.Generator, *, height: int = 256, width: int = 448) -> NDArray[np.float64]:
    """Return a picture in 0-1: a photograph in grey by its name, or a new dead-leaves picture."""
    if name.startswith(DEAD_LEAVES):
        return draw_dead_leaves(rng, height=height, width=width)
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


def draw_dead_leaves(rng: np.random.Generator, *, height: int = 256, width: int = 448) -> NDArray[np.float64]:
    """Draw a dead-leaves picture: discs of random grey that occlude one another.

    Radii follow the density r^-3, which gives the 1/f amplitude spectrum of natural images (Lee, Mumford and
    Huang 2001, "Occlusion models for natural images").
    """
    smallest, largest = SMALLEST_LEAF_PX, max(height / 2, 2 * SMALLEST_LEAF_PX)
    in_square = smallest**-2 - largest**-2
    mean_area = 2 * np.pi * np.log(largest / smallest) / in_square
    num_leaves = int(LEAF_COVERAGE * height * width / mean_area) + 1
    radii = 1 / np.sqrt(smallest**-2 - rng.random(num_leaves) * in_square)
    rows, columns = rng.uniform(0, height, num_leaves), rng.uniform(0, width, num_leaves)
    greys = rng.random(num_leaves)
    picture = np.full((height, width), 0.5)
    y, x = np.arange(height)[:, None], np.arange(width)[None, :]
    for row, column, radius, grey in zip(rows, columns, radii, greys, strict=True):
        down = slice(max(int(row - radius), 0), int(row + radius) + 2)
        across = slice(max(int(column - radius), 0), int(column + radius) + 2)
        inside = (y[down] - row) ** 2 + (x[:, across] - column) ** 2 <= radius**2
        picture[down, across][inside] = grey
    return picture


def sample_view(
    picture: NDArray[np.float64], rows: NDArray[np.float64], columns: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Interpolate a picture bilinearly at rows ``(H,)`` and columns ``(W,)`` inside it; return ``(H, W)``."""
    above = np.minimum(rows.astype(np.int64), picture.shape[0] - 2)
    down = (rows - above)[:, None]
    down = down.astype(picture.dtype)
    lines = picture[above] * (1 - down) + picture[above + 1] * down
    left = np.minimum(columns.astype(np.int64), picture.shape[1] - 2)
    across = (columns - left).astype(picture.dtype)
    return np.take(lines, left, axis=1) * (1 - across) + np.take(lines, left + 1, axis=1) * across


def to_grey(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Scale a view or a shot to a mean of 127 and the contrast of natural footage, as uint8."""
    gain = GREY_SPREAD / max(float(values.std()), 1e-9)
    grey = np.round(values * gain + (MEAN_GREY - gain * float(values.mean())))
    return np.clip(grey, 0, 255, out=grey).astype(np.uint8)


MOVIE_RATE_HZ = 30.0
SHOT_SECONDS = (2.0, 3.4)
SMALLEST_PICTURE = (256, 448)
PICTURE_OVER_FRAME = 1.8
"""Pixels of a dead-leaves picture over those of the frame, so that views are hardly ever enlarged."""


@dataclass(frozen=True)
class MovieSpec:
    """One movie of a data folder."""

    name: str  # Allen name, for example ``natural_movie_one``
    num_frames: int  # Frames at 30 Hz
    height: int = 32  # Pixels
    width: int = 64  # Pixels
    repeats: int = 10  # Times that it is shown in a session

    def __post_init__(self) -> None:
        for field in ("num_frames", "height", "width", "repeats"):
            value = getattr(self, field)
            check(value >= 1, f"movie {self.name}: {field} of {value}", "1 or more", "raise it")


@dataclass(frozen=True)
class Shot:
    """What is between two cuts: frames ``[start, stop)`` over one picture."""

    start: int  # Movie frames, half-open
    stop: int  # Movie frames, half-open
    picture: str  # File of the photograph, or ``dead_leaves_<number>``


def plan_shots(movies: Sequence[MovieSpec], seed: int) -> dict[str, list[Shot]]:
    """Divide movies into shots and give every shot a picture of its own."""
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
    """Return, for each movie, the frames at which a new shot begins (frame 0 is not a cut)."""
    plan = plan_shots(movies, seed)
    return {name: np.array([shot.start for shot in shots[1:]], np.int64) for name, shots in plan.items()}


def render_movie(movie: MovieSpec, movies: Sequence[MovieSpec], seed: int) -> NDArray[np.uint8]:
    """Render one movie of a data folder."""
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


SCENE_SHAPE = (459, 587)
"""Half of the Allen's 918 x 1174 on each side: the photographs hold no more."""

SCENE_PICTURE_SHAPE = (520, 660)
PHOTOGRAPH_EVERY = 4
VIEW_SHARE = (0.45, 0.9)
BLACK, GREY, WHITE = 0, 127, 255
EXCLUSION_DEG = 23.25
"""Distance that spots of one noise frame keep from one another: five pixels of 4.65 degrees."""


def render_scenes(seed: int, *, count: int = NUM_SCENES, shape: tuple[int, int] = SCENE_SHAPE) -> NDArray[np.uint8]:
    """Render the natural scenes of a data folder: every fourth a view of a photograph, the others dead leaves.

    The photographs are not those of the movies.
    """
    scenes = np.empty((count, *shape), np.uint8)
    for number in range(count):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0, 2, number)))
        turn, rest = divmod(number, PHOTOGRAPH_EVERY)
        name = DEAD_LEAVES if rest else SCENE_PHOTOGRAPHS[turn % len(SCENE_PHOTOGRAPHS)]
        picture = load_picture(name, rng, height=SCENE_PICTURE_SHAPE[0], width=SCENE_PICTURE_SHAPE[1])
        widest = min(picture.shape[1], picture.shape[0] * shape[1] / shape[0]) - 1
        across = widest * rng.uniform(*VIEW_SHARE)
        down = across * shape[0] / shape[1]
        left, top = rng.uniform(0, picture.shape[1] - 1 - across), rng.uniform(0, picture.shape[0] - 1 - down)
        rows, columns = (np.arange(size) / max(size - 1, 1) for size in shape)
        scenes[number] = to_grey(sample_view(picture, top + down * rows, left + across * columns))
    return scenes


def draw_noise(name: str, seed: int) -> NDArray[np.uint8]:
    """Draw a locally sparse noise: black and white pixels on gray, as many as fit at a distance from one another."""
    num_frames, height, width, pixel_deg = NOISE_TEMPLATES[name]
    place = list(NOISE_TEMPLATES).index(name)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0, 3, place)))
    row, column = np.indices((height, width)).reshape(2, -1)
    distance = pixel_deg * np.hypot(row[:, None] - row, column[:, None] - column)
    crowded = distance < EXCLUSION_DEG
    free = np.ones((num_frames, height * width), bool)
    frames = np.full((num_frames, height * width), GREY, np.uint8)
    while len(open_frames := np.flatnonzero(free.any(1))):
        # The free pixel with the largest random number is drawn evenly from the free ones.
        lottery = rng.random((len(open_frames), height * width), dtype=np.float32) * free[open_frames]
        spot = lottery.argmax(1)
        frames[open_frames, spot] = np.where(rng.random(len(open_frames)) < 0.5, BLACK, WHITE)
        free[open_frames] &= ~crowded[spot]
    return frames.reshape(num_frames, height, width)
