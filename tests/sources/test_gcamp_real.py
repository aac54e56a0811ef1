"""The defaults of the forward model, each found again in the real data beside the checkout."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kurtosis, skew
from tests.sources.decay_fit import fit_decay, read_cascade

from poyo_ssl.data.recording import Recording
from poyo_ssl.sources.events import EventsSource, GCaMPConfig, fluorescence

REAL = Path(__file__).parents[3] / "shared" / "data" / "real"
pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not REAL.is_dir(), reason=f"no real recordings in {REAL}"),
]
ALLEN = REAL / "allen_501574836"


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("real") / "501574836.h5"
    return Recording.open(EventsSource(seed=3).read(ALLEN).save(path))


@pytest.fixture(scope="module")
def measured():
    with np.load(ALLEN / "cell0_trace.npz") as file:
        return (file["calcium_over_mean"] / file["drift"] - 1).astype(float)


def test_default_decay_is_the_cascade_fit():
    decay_s, explained = fit_decay(*read_cascade(REAL / "cascade_v1_celltypes"))
    assert np.isfinite(decay_s).sum() == 81
    assert np.nanmedian(decay_s) == pytest.approx(GCaMPConfig().decay_s, abs=0.01)
    assert np.nanmedian(explained) > 0.7


def test_default_noise_spread_is_that_of_cascade_cells():
    traces, _, _ = read_cascade(REAL / "cascade_v1_celltypes")
    noise = [np.median(np.abs(np.diff(trace))) for trace in traces]
    assert np.std(np.log(noise)) == pytest.approx(GCaMPConfig().noise_spread, abs=0.05)


def test_default_response_fits_the_measured_cell(measured):
    with np.load(ALLEN / "events.npz") as file:
        events = np.bincount(file["frame"][file["cell"] == 0], minlength=len(measured)).astype(float)
        rate = float(file["fps"])

    def fit(indicator):
        model = fluorescence(events, rate, indicator=replace(indicator, max_dff=1.0))
        slope, offset = np.polyfit(model, measured, 1)
        return slope, 1 - np.var(measured - slope * model - offset) / np.var(measured)

    gain, explained = fit(GCaMPConfig())
    assert explained > 0.865
    assert gain == pytest.approx(GCaMPConfig().max_dff, abs=0.05)
    for half_events in (5.0, 11.0):
        assert fit(GCaMPConfig(half_events=half_events))[1] < explained
    # The reason for the exponent: binary events through a linear model stay below the measured skewness.
    assert skew(fluorescence(events, rate, indicator=GCaMPConfig(hill=1.0, half_events=1e6))) < 5.0 < skew(measured)


def test_default_noise_gives_the_skewness_of_the_measured_cell(recording, measured):
    simulated = recording.read_dff(0, recording.num_frames)[:, 0].astype(float)
    assert skew(measured) == pytest.approx(5.84, abs=0.01)
    assert skew(simulated) == pytest.approx(skew(measured), abs=0.1)
    assert kurtosis(simulated) == pytest.approx(kurtosis(measured), rel=0.05)


def test_recording_says_what_it_is(recording):
    meta = recording.metadata
    assert meta.origin == "real events, simulated fluorescence"
    assert (meta.cre_line, meta.indicator, meta.depth_um) == ("Cux2-CreERT2", "GCaMP6f", 275)
    assert (meta.targeted_structure, meta.subject_id, meta.container_id) == ("VISp", "222420", "511510667")
    assert recording.recording_id == "501574836"
    assert (recording.num_frames, recording.num_units) == (115_730, 242)
    assert len(recording.events.frame) == 181_672


def test_stimuli_of_the_real_recording(recording):
    rate = recording.rate_hz
    movie = recording.stimulus("natural_movie_one")
    assert len(movie) == 9000
    # Frame 450 of repeat 3 by hand: 38752 + 3150 x 905.1 / 900 = 41919.85.
    row = int(np.flatnonzero((movie.columns["frame"] == 450) & (movie.columns["repeat"] == 3))[0])
    assert movie.start[row] * rate == pytest.approx(41_919.85, abs=0.01)
    assert movie.start_frame[row] == 41_920
    masked = movie.start >= recording.masked_domain[0, 0]
    assert set(movie.columns["repeat"][masked]) == {8, 9}

    three = recording.stimulus("natural_movie_three")
    second = three.columns["repeat"] >= 5
    assert len(three) == 36_000
    assert three.start_frame[second].min() == 75_863

    gratings = recording.stimulus("drifting_gratings")
    known, blank = gratings.columns["label_known"], gratings.columns["blank_sweep"]
    assert (len(gratings), int(known.sum()), int(blank.sum())) == (628, 60, 2)
    assert np.isnan(gratings.columns["orientation"][~known | blank]).all()
    assert np.isfinite(gratings.columns["orientation"][known & ~blank]).all()
    assert {name: len(spans) for name, spans in recording.epochs.items()} == {
        "drifting_gratings": 3,
        "natural_movie_one": 1,
        "natural_movie_three": 2,
        "spontaneous": 1,
        "spontaneous_gray": 1,
    }
