"""A forward model of GCaMP6f: events to dF/F, and the fit of its decay to ground-truth recordings.

Every event adds one double exponential, (1 - exp(-t / rise)) exp(-t / decay), scaled to a peak of 1, to a calcium
signal c counted in events. Fluorescence is the Hill curve max_dff c^h / (c^h + half_events^h): supralinear for bursts,
as GCaMP6f binds calcium cooperatively (Chen et al. 2013, Nature 499), and saturating. Without the exponent no amount of
noise gives the skewness of real traces: binary events through a linear model stay below it (4.4 against 5.8 for cell 0
of Allen experiment 501574836), and noise only lowers it.

How the defaults were found (``tests/sources/test_gcamp_real.py`` repeats each):

decay_s
    Median over the 81 in-vivo GCaMP6f segments of excitatory V1 cells of CASCADE (Rupprecht et al. 2021)::

        python -c "from poyo_ssl.sources.gcamp import *;
        print(fit_decay(*read_cascade('../shared/data/real/cascade_v1_celltypes')).decay_s)"

hill
    In vitro the exponent of GCaMP6f is a little above 2. The data agree: with the exponent the model explains 0.87 of
    the variance of cell 0's measured dF/F, without it 0.81.
half_events, max_dff
    Least squares of the measured dF/F of cell 0 of experiment 501574836 on the model of its
    binary events (flat between 6 and 9, where 7 also gives its kurtosis).
noise_std
    The level at which the simulated cell 0 has the skewness 5.8 of the measured one (both over the whole session,
    population definition; measured dF/F is F / MLspike's drift - 1).
noise_spread
    Standard deviation of the log noise level over the same CASCADE cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.fft import dct
from scipy.optimize import minimize_scalar
from scipy.signal import lfilter

from poyo_ssl.config import check
from poyo_ssl.errors import RecordingError

OVERSAMPLING = 4
SLOWEST_PERIOD_S = 20.0
DECAY_BOUNDS_S = (0.05, 3.0)
MIN_SPIKES = 10


@dataclass(frozen=True)
class GCaMPConfig:
    """The indicator and its noise.

    Attributes
    ----------
    rise_s : float
        Time constant of the rise in seconds (GCaMP6f in vivo: 0.05 to 0.075).
    decay_s : float
        Time constant of the calcium decay in seconds; fluorescence falls faster by up to the Hill exponent.
    hill : float
        Exponent of the Hill curve; 1 is plain saturation.
    half_events : float
        Calcium, in simultaneous events, at which fluorescence is half of its maximum.
    max_dff : float
        dF/F at saturation, a ratio (1.0 doubles the fluorescence).
    noise_std : float
        Median over neurons of the standard deviation of the noise per imaging frame, in dF/F.
    noise_spread : float
        Standard deviation of the logarithm of the noise level over neurons; 0 gives all the same.

    Raises
    ------
    ConfigError
        If a time constant, exponent or amplitude is not above 0, or a noise setting below 0.
    """

    rise_s: float = 0.06
    decay_s: float = 0.41
    hill: float = 2.27
    half_events: float = 7.0
    max_dff: float = 3.9
    noise_std: float = 0.063
    noise_spread: float = 0.36

    def __post_init__(self) -> None:
        for name in ("rise_s", "decay_s", "hill", "half_events", "max_dff"):
            check(getattr(self, name) > 0, f"indicator.{name} of {getattr(self, name)}", "above 0", "raise it")
        for name in ("noise_std", "noise_spread"):
            check(getattr(self, name) >= 0, f"indicator.{name} of {getattr(self, name)}", "0 or more", "raise it")


def calcium(events: NDArray, rate_hz: float, *, rise_s: float, decay_s: float) -> NDArray[np.float64]:
    """Filter events with the double exponential, averaged over each imaging frame.

    Parameters
    ----------
    events : ndarray
        ``(T, ...)`` event sizes; an event happens when its frame begins.
    rate_hz : float
        Imaging rate.
    rise_s, decay_s : float
        Time constants in seconds.

    Returns
    -------
    ndarray
        ``(T, ...)`` calcium; one event of size 1 peaks at 1 (a little less where a frame averages the peak away).

    Examples
    --------
    >>> import numpy as np
    >>> trace = calcium(np.eye(1, 200)[0], 100.0, rise_s=0.06, decay_s=0.41)
    >>> round(float(trace.max()), 2), int(trace.argmax())  # 0.06 ln(1 + 0.41 / 0.06) = 0.123 s
    (1.0, 12)
    """
    peak_s = rise_s * np.log1p(decay_s / rise_s)
    peak = (1 - np.exp(-peak_s / rise_s)) * np.exp(-peak_s / decay_s)
    difference = np.zeros(events.shape)
    for tau, sign in ((decay_s, 1.0), (1 / (1 / rise_s + 1 / decay_s), -1.0)):
        step = np.exp(-1 / (rate_hz * tau))
        # The mean of exp(-t / tau) over a frame, so that an event is seen in the frame in which it happens.
        gain = sign * tau * rate_hz * (1 - step) / peak
        difference += lfilter([gain], [1.0, -step], np.asarray(events, np.float64), axis=0)
    return np.maximum(difference, 0.0, out=difference)


def fluorescence(events: NDArray, rate_hz: float, *, indicator: GCaMPConfig) -> NDArray[np.float64]:
    """Return noiseless dF/F of events.

    Parameters
    ----------
    events : ndarray
        ``(T, ...)`` event sizes.
    rate_hz : float
        Imaging rate.
    indicator : GCaMPConfig
        Time constants, exponent and saturation.

    Returns
    -------
    ndarray
        ``(T, ...)`` dF/F as a ratio, 0 without events.

    Examples
    --------
    >>> import numpy as np
    >>> burst = np.zeros((60, 2)); burst[10, 0] = 1; burst[10, 1] = 2
    >>> single, double = fluorescence(burst, 30.0, indicator=GCaMPConfig()).max(axis=0)
    >>> bool(double > 3 * single)
    True
    """
    concentration = calcium(events, rate_hz, rise_s=indicator.rise_s, decay_s=indicator.decay_s)
    power = (concentration / indicator.half_events) ** indicator.hill
    return indicator.max_dff * power / (1 + power)


@dataclass(frozen=True)
class DecayFit:
    """Result of `fit_decay`.

    Attributes
    ----------
    decay_s : float
        Median over the segments.
    segment_decay_s : ndarray
        ``(S,)`` seconds, NaN where a segment was not used.
    variance_explained : ndarray
        ``(S,)`` share of the detrended segment's variance, NaN where not used.
    num_used : int
        Segments with enough spikes and finite dF/F.
    """

    decay_s: float
    segment_decay_s: NDArray[np.float64]
    variance_explained: NDArray[np.float64]
    num_used: int


def fit_decay(
    dff: Sequence[NDArray],
    spike_times: Sequence[NDArray],
    rates_hz: Sequence[float],
    *,
    indicator: GCaMPConfig | None = None,
) -> DecayFit:
    """Fit the decay of calcium to segments of dF/F with known spikes.

    For each segment the decay (0.05 to 3 s) and a free gain minimise the squared error between dF/F and the model of
    the spikes; components slower than 20 s are left out of both, so drift and baseline do not matter.

    Parameters
    ----------
    dff : sequence of ndarray
        ``(T_i,)`` dF/F.
    spike_times : sequence of ndarray
        ``(M_i,)`` seconds from each segment's start.
    rates_hz : sequence of float
        Imaging rate of each segment.
    indicator : GCaMPConfig, optional
        Rise, exponent and saturation, which stay as they are.

    Raises
    ------
    RecordingError
        If no segment has 10 spikes and finite dF/F.

    Examples
    --------
    >>> import numpy as np
    >>> spikes = np.random.default_rng(0).uniform(0, 100, 60)
    >>> grid = np.histogram(spikes, np.arange(3001) / 30)[0]
    >>> trace = fluorescence(grid, 30.0, indicator=GCaMPConfig(decay_s=0.5))
    >>> round(fit_decay([trace], [spikes], [30.0]).decay_s, 1)
    0.5
    """
    indicator = indicator or GCaMPConfig()
    decays, explained = np.full(len(dff), np.nan), np.full(len(dff), np.nan)
    for i, (trace, spikes, rate) in enumerate(zip(dff, spike_times, rates_hz, strict=True)):
        if len(spikes) >= MIN_SPIKES and np.isfinite(trace).all():
            decays[i], explained[i] = _fit_segment(np.asarray(trace, float), np.asarray(spikes), rate, indicator)
    if not np.isfinite(decays).any():
        raise RecordingError(
            "no segment to fit the decay to", allowed="finite dF/F and 10 spikes or more", fix="add segments"
        )
    return DecayFit(float(np.nanmedian(decays)), decays, explained, int(np.isfinite(decays).sum()))


def _fit_segment(
    trace: NDArray[np.float64], spikes: NDArray, rate_hz: float, indicator: GCaMPConfig
) -> tuple[float, float]:
    num_frames, fine_rate = len(trace), rate_hz * OVERSAMPLING
    fine = np.histogram(spikes, np.arange(num_frames * OVERSAMPLING + 1) / fine_rate)[0]
    num_slow = int(2 * num_frames / (rate_hz * SLOWEST_PERIOD_S)) + 1
    target = dct(trace, norm="ortho")[num_slow:]

    def error(log_decay: float) -> float:
        settings = GCaMPConfig(
            rise_s=indicator.rise_s,
            decay_s=float(np.exp(log_decay)),
            hill=indicator.hill,
            half_events=indicator.half_events,
        )
        model = fluorescence(fine, fine_rate, indicator=settings).reshape(num_frames, OVERSAMPLING).mean(1)
        model = dct(model, norm="ortho")[num_slow:]
        return 1 - float(target @ model) ** 2 / float((model @ model) * (target @ target))

    found = minimize_scalar(error, bounds=tuple(np.log(DECAY_BOUNDS_S)), method="bounded", options={"xatol": 0.01})
    return float(np.exp(found.x)), 1 - float(found.fun)


def read_cascade(
    folder: Path | str, *, indicator: str = "GCaMP6f", cell_type: str = "exc", preparation: str = "in vivo"
) -> tuple[list[NDArray], list[NDArray], list[float]]:
    """Read ground-truth segments of CASCADE: dF/F, spike times in seconds, and imaging rates.

    Parameters
    ----------
    folder : path
        Holds ``index.csv`` and ``cascade_v1_celltypes_30hz.npz``.
    indicator, cell_type, preparation : str
        Rows of the index to take.

    Raises
    ------
    RecordingError
        If a file is missing or no row fits.
    """
    folder = Path(folder)
    index_path, traces_path = folder / "index.csv", folder / "cascade_v1_celltypes_30hz.npz"
    for path in (index_path, traces_path):
        if not path.is_file():
            raise RecordingError(f"no file {path}", fix="give the folder with the CASCADE segments")
    index = pd.read_csv(index_path)
    wanted = (index.indicator == indicator) & (index.cell_type == cell_type) & (index.preparation == preparation)
    if not wanted.any():
        raise RecordingError(
            f"no {preparation} {indicator} segment of {cell_type} cells in {index_path}", fix="relax it"
        )
    with np.load(traces_path) as file:
        rows = index.trace[wanted].tolist()
        return [file[f"f{i}"] for i in rows], [file[f"e{i}"] for i in rows], index.fps[wanted].tolist()
