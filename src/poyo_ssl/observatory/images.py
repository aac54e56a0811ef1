"""Still stimuli of the observatory: 118 natural scenes and locally sparse noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from poyo_ssl.observatory.allen_schedule import NOISE_TEMPLATES, NUM_SCENES
from poyo_ssl.observatory.pictures import DEAD_LEAVES, SCENE_PHOTOGRAPHS, load_picture, sample_view, to_grey

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

    Parameters
    ----------
    seed : int
        Seed of the data folder.
    count : int
        Number of scenes.
    shape : tuple of int
        Height and width in pixels.

    Returns
    -------
    ndarray
        ``(count, height, width)`` uint8, each with mean 127.

    Examples
    --------
    >>> render_scenes(0, count=2, shape=(20, 26)).shape
    (2, 20, 26)
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
    """Draw a locally sparse noise: black and white pixels on gray, as many as fit at a distance from one another.

    Parameters
    ----------
    name : str
        ``locally_sparse_noise``, ``locally_sparse_noise_4deg`` or ``locally_sparse_noise_8deg``.
    seed : int
        Seed of the data folder.

    Returns
    -------
    ndarray
        ``(frames, rows, columns)`` uint8: 0, 127 or 255.

    Examples
    --------
    >>> noise = draw_noise("locally_sparse_noise_8deg", seed=0)
    >>> noise.shape, np.unique(noise).tolist()
    ((5584, 8, 14), [0, 127, 255])
    """
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
