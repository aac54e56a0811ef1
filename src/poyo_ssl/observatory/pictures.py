"""What movies and scenes are made of: photographs inside installed packages, and dead-leaves pictures.

Nothing is downloaded: the photographs ship in the wheels of scikit-image and scikit-learn. Movies and natural scenes
have photographs of their own, so that none is in both.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from poyo_ssl.errors import RecordingError

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
    """Return a picture in 0-1: a photograph in grey by its name, or a new dead-leaves picture.

    Parameters
    ----------
    name : str
        ``<package>/<file>``, or a name that begins with ``dead_leaves``.
    rng : numpy.random.Generator
        Source of a dead-leaves picture.
    height, width : int
        Pixels of a dead-leaves picture; photographs have their own.

    Raises
    ------
    RecordingError
        If the photograph is not inside the installed package.
    """
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

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of radii, places and grey levels.
    height, width : int
        Pixels.

    Returns
    -------
    ndarray
        ``(height, width)`` in 0-1.

    Examples
    --------
    >>> draw_dead_leaves(np.random.default_rng(0), height=20, width=40).shape
    (20, 40)
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
    """Interpolate a picture bilinearly at rows ``(H,)`` and columns ``(W,)`` inside it; return ``(H, W)``.

    Examples
    --------
    >>> sample_view(np.array([[0.0, 1.0], [2.0, 3.0]]), np.array([0.5]), np.array([0.0, 0.5])).tolist()
    [[1.0, 1.5]]
    """
    above = np.minimum(rows.astype(np.int64), picture.shape[0] - 2)
    down = (rows - above)[:, None]
    down = down.astype(picture.dtype)
    lines = picture[above] * (1 - down) + picture[above + 1] * down
    left = np.minimum(columns.astype(np.int64), picture.shape[1] - 2)
    across = (columns - left).astype(picture.dtype)
    return np.take(lines, left, axis=1) * (1 - across) + np.take(lines, left + 1, axis=1) * across


def to_grey(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Scale a view or a shot to a mean of 127 and the contrast of natural footage, as uint8.

    Examples
    --------
    >>> to_grey(np.array([[0.0, 1.0]])).tolist()
    [[75, 179]]
    """
    gain = GREY_SPREAD / max(float(values.std()), 1e-9)
    grey = np.round(values * gain + (MEAN_GREY - gain * float(values.mean())))
    return np.clip(grey, 0, 255, out=grey).astype(np.uint8)


def amplitude_slope(pictures: NDArray[np.number]) -> float:
    """Return the slope of the logarithm of the amplitude spectrum on that of the frequency; natural images: about -1.

    Over 1/16 to 1/4 cycles per pixel, under a Hann window.

    Parameters
    ----------
    pictures : ndarray
        ``(K, H, W)`` grey.

    Examples
    --------
    >>> white = np.random.default_rng(0).standard_normal((8, 64, 64))
    >>> abs(amplitude_slope(white)) < 0.1
    True
    """
    _, height, width = pictures.shape
    window = np.hanning(height)[:, None] * np.hanning(width)
    centred = pictures - pictures.mean((1, 2), keepdims=True)
    amplitude = np.sqrt((np.abs(np.fft.fft2(centred * window)) ** 2).mean(0))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    edges = np.geomspace(1 / 16, 1 / 4, 9)
    band = np.digitize(frequency, edges)
    centres = np.sqrt(edges[1:] * edges[:-1])
    radial = [np.sqrt((amplitude[band == number] ** 2).mean()) for number in range(1, len(edges))]
    return float(np.polyfit(np.log(centres), np.log(radial), 1)[0])
