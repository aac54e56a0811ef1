"""The amplitude spectrum of pictures."""

import numpy as np


def amplitude_slope(pictures):
    """Slope of log amplitude over log frequency, 1/16 to 1/4 cycles per pixel, Hann window; natural images: -1."""
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
