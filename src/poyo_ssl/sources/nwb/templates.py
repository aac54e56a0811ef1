"""Pixels of the stimuli of an NWB 2 file, with h5py: pynwb takes 17 s for the 9000 images of a sparse noise."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from poyo_ssl.errors import RecordingError
from poyo_ssl.sources.allen.read import GreyImages
from poyo_ssl.sources.hdf5 import get, get_dataset, get_group, name_of, read_numbers, require_numbers

PRESENTATIONS = "stimulus/presentation"
TARGETS = ("indexed_timeseries", "indexed_images")
MAX_IMAGE_PIXELS = 1 << 24


def find_templates(file: h5py.File) -> Iterator[tuple[str, Any]]:
    """Give the pixels that each index series points to, ``(images, height, width)`` uint8, by the series' name.

    Colour images are left out.

    Raises
    ------
    RecordingError
        If images are no 8-bit grey levels or differ in size.
    """
    presentations = get_group(file, PRESENTATIONS)
    for key in presentations if presentations is not None else ():
        series = get_group(presentations, key)
        target = next((get_group(series, name) for name in TARGETS if series is not None and name in series), None)
        if target is None:
            continue
        stack = get_dataset(target, "data")
        name = key.removesuffix("_stimulus")
        if stack is not None and stack.ndim == 3 and stack.shape[0]:
            require_numbers(stack, 3, whole=False)
            yield name, GreyImages(stack)
        elif stack is None:
            images = [item for item in _order_images(target) if item.ndim == 2]
            if images:
                yield name, ImageStack(images)


def _order_images(group: h5py.Group) -> list[h5py.Dataset]:
    """Return images by the order that the file gives, or else by the number at the end of their name.

    HDF5 lists names alphabetically, in which Image10 comes before Image2.
    """
    order = get_dataset(group, "order_of_images")
    if order is not None and h5py.check_ref_dtype(order.dtype) is h5py.Reference:
        return [item for ref in order[()] if isinstance(item := group.file[ref], h5py.Dataset)]
    names = [name for name in group if isinstance(get(group, name), h5py.Dataset) and name != "order_of_images"]

    def place(name: str) -> tuple[int, str]:
        found = re.search(r"(\d+)$", name)
        return (int(found[1]) if found else -1, name)

    return [group[name] for name in sorted(names, key=place)]


class ImageStack:
    """Images of one size that are stored one by one, as ``(images, height, width)`` uint8, read by slices or index."""

    dtype = np.dtype(np.uint8)
    ndim = 3

    def __init__(self, images: list[h5py.Dataset]) -> None:
        sizes = {item.shape for item in images}
        if len(sizes) > 1 or int(np.prod(images[0].shape)) > MAX_IMAGE_PIXELS:
            raise RecordingError(
                f"{name_of(images[0].parent)} has images of {' and '.join(map(str, sorted(sizes)[:3]))}",
                allowed="one size",
                fix="repair the file",
            )
        self.shape = (len(images), *images[0].shape)
        self._images = images

    def __getitem__(self, place: Any) -> NDArray[np.uint8]:
        if isinstance(place, slice):
            return np.stack([self._read(item) for item in self._images[place]])
        return self._read(self._images[place])

    @staticmethod
    def _read(dataset: h5py.Dataset) -> NDArray[np.uint8]:
        values = read_numbers(dataset, 2)
        if values.dtype == np.uint8:
            return values
        # NaN compares false.
        if not ((values >= 0) & (values <= 255) & (values == np.trunc(values))).all():
            raise RecordingError(
                f"{name_of(dataset)} holds pixels that are no grey levels",
                allowed="whole numbers 0 to 255",
                fix="repair the file",
            )
        return values.astype(np.uint8)
