"""Fit of the calcium decay to segments with known spikes, by which the defaults of the forward model were found."""

import numpy as np
import pandas as pd
from scipy.fft import dct
from scipy.optimize import minimize_scalar

from poyo_ssl.sources.events import GCaMPConfig, fluorescence

OVERSAMPLING = 4
SLOWEST_PERIOD_S = 20.0
DECAY_BOUNDS_S = (0.05, 3.0)
MIN_SPIKES = 10


def fit_decay(dff, spike_times, rates_hz):
    """Return the decay (s) and the share of variance explained of every segment, NaN where it has too few spikes.

    The decay and a free gain minimise the squared error between dF/F and the model of the spikes (s from the segment's
    start). Components slower than 20 s are left out of both, so drift and baseline do not matter.
    """
    fits = np.full((len(dff), 2), np.nan)
    for row, (trace, spikes, rate) in enumerate(zip(dff, spike_times, rates_hz, strict=True)):
        if len(spikes) >= MIN_SPIKES and np.isfinite(trace).all():
            fits[row] = _fit_segment(np.asarray(trace, float), spikes, rate)
    return fits[:, 0], fits[:, 1]


def _fit_segment(trace, spikes, rate_hz):
    num_frames, fine_rate = len(trace), rate_hz * OVERSAMPLING
    fine = np.histogram(spikes, np.arange(num_frames * OVERSAMPLING + 1) / fine_rate)[0]
    num_slow = int(2 * num_frames / (rate_hz * SLOWEST_PERIOD_S)) + 1
    target = dct(trace, norm="ortho")[num_slow:]

    def error(log_decay):
        indicator = GCaMPConfig(decay_s=float(np.exp(log_decay)))
        model = fluorescence(fine, fine_rate, indicator=indicator).reshape(num_frames, OVERSAMPLING).mean(1)
        model = dct(model, norm="ortho")[num_slow:]
        return 1 - float(target @ model) ** 2 / float((model @ model) * (target @ target))

    found = minimize_scalar(error, bounds=tuple(np.log(DECAY_BOUNDS_S)), method="bounded", options={"xatol": 0.01})
    return np.exp(found.x), 1 - found.fun


def read_cascade(folder):
    """Return dF/F, spike times (s) and imaging rates of CASCADE's excitatory cells with GCaMP6f in vivo."""
    index = pd.read_csv(folder / "index.csv")
    wanted = (index.indicator == "GCaMP6f") & (index.cell_type == "exc") & (index.preparation == "in vivo")
    with np.load(folder / "cascade_v1_celltypes_30hz.npz") as file:
        rows = index.trace[wanted].tolist()
        return [file[f"f{i}"] for i in rows], [file[f"e{i}"] for i in rows], index.fps[wanted].tolist()
