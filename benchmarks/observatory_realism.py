"""How real the observatory is: the same measures on simulated and on small real recordings, side by side.

    python benchmarks/observatory_realism.py --data ../shared/data/real [--out docs/observatory] [--seed 0]

Real events are those of Allen experiment 501574836 (Cux2, session A, MLspike: at most one event in a frame), real
gratings responses those of 501724959 (Rorb), real dF/F the in-vivo V1 segments of the ground truth of CASCADE.
Simulated sessions have the same line, schedule and number of neurons; one function takes each measure on both.
Prints a Markdown table, and one of the real sets; with `--out`, writes the pictures of `docs/observatory.md` there.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import signal, stats
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.model_selection import StratifiedKFold, cross_val_score

from poyo_ssl.data.dff import estimate_noise
from poyo_ssl.data.recording import Recording
from poyo_ssl.evaluation.frame_number import NaiveBayesFrameNumber
from poyo_ssl.observatory import CellClass, get_size, get_world
from poyo_ssl.observatory.calcium import expected_moments, simulate_fluorescence
from poyo_ssl.observatory.movies import render_movie
from poyo_ssl.observatory.sessions import simulate_recording
from poyo_ssl.observatory.sizes import ObservatorySize, SessionPlan
from poyo_ssl.observatory.worlds import GCAMP6F, GCAMP6S

RATE_HZ = 30.0
MOVIE, MOVIE_REPEATS, MOVIE_FRAMES = "natural_movie_one", 8, 900
"""Repeats 8 and 9 of the real recording are masked."""

MOVIE_SHAPE = (76, 152)
"""Neurons see pixels averaged to about this size anyway."""

WINDOW_FRAMES, TOLERANCE, BIN_FRAMES = 30, 30, 10
FOLDS = (0, 4)
BANDS_HZ = ((0.02, 0.1), (0.1, 0.5), (0.5, 2.0), (2.0, 15.0))
SEGMENT_FRAMES = 6000
"""Median length of the real excitatory segments: sample moments of heavy tails grow with it."""


@dataclass(frozen=True)
class Row:
    """One line of the table: what, on the real and on the simulated side, and how far they may differ."""

    what: str
    real: float
    simulated: float
    allowed: str
    met: bool

    def __str__(self) -> str:
        return (
            f"| {self.what} | {self.real:.3g} | {self.simulated:.3g} | {self.allowed} | {'yes' if self.met else 'no'} |"
        )


def within_share(what: str, real: float, simulated: float, share: float) -> Row:
    """Compare by ratio."""
    return Row(what, real, simulated, f"within {share:.0%}", abs(simulated / real - 1) <= share)


def within_range(what: str, real: float, simulated: float, low: float, high: float) -> Row:
    """Compare with the range of the real neurons."""
    return Row(what, real, simulated, f"{low:.3g} to {high:.3g}", low <= simulated <= high)


def within(what: str, real: float, simulated: float, difference: float) -> Row:
    """Compare by difference."""
    return Row(what, real, simulated, f"within {difference:g}", abs(simulated - real) <= difference)


@dataclass(frozen=True)
class Events:
    """Events of one session.

    Attributes
    ----------
    binary : ndarray
        ``(T, N)`` bool, one event in a frame at most.
    movie_frame : ndarray
        ``(R, 900)`` imaging frame at which each frame of natural movie one comes on.
    spontaneous : slice
        Imaging frames of the spontaneous block.
    """

    binary: NDArray[np.bool_]
    movie_frame: NDArray[np.int64]
    spontaneous: slice


def read_real_events(folder: Path) -> Events:
    """Return the events of experiment 501574836."""
    with np.load(folder / "events.npz", allow_pickle=False) as file:
        num_cells, num_frames = file["shape"].tolist()
        binary = np.zeros((num_frames, num_cells), bool)
        binary[file["frame"], file["cell"]] = True
    with (folder / "epochs.csv").open() as text:
        rows = {row["stimulus"]: row for row in csv.DictReader(text)}
    movie, rest = rows[MOVIE], rows["spontaneous"]
    repeat, frame = np.divmod(np.arange(MOVIE_REPEATS * MOVIE_FRAMES), MOVIE_FRAMES)
    per_repeat = float(movie["frames_per_repeat_imaging"])
    onset = int(movie["start_frame"]) + per_repeat * (repeat + frame / MOVIE_FRAMES)
    spontaneous = slice(int(rest["start_frame"]), int(rest["end_frame"]))
    return Events(binary, np.round(onset).astype(np.int64).reshape(MOVIE_REPEATS, -1), spontaneous)


def simulated_events(recording: Recording) -> Events:
    """Return the true events as a spike finder would that knows one event in a frame: a burst takes more frames."""
    assert recording.events is not None
    counts = recording.events.dense(recording.num_frames, recording.num_units)
    binary = np.zeros(counts.shape, bool)
    waiting = np.zeros(counts.shape[1])
    for frame, arriving in enumerate(counts):
        waiting += arriving
        binary[frame] = waiting > 0
        np.maximum(waiting - 1, 0, out=waiting)
    shown = recording.stimulus(MOVIE).start_frame.reshape(-1, MOVIE_FRAMES)[:MOVIE_REPEATS]
    first, last = np.searchsorted(recording.timestamps, recording.epochs["spontaneous"][0])
    return Events(binary, shown, slice(int(first), int(last)))


class Simulator:
    """Simulates sessions A of the world ``allen_like``; movies are rendered once."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.movies = tuple(
            replace(movie, height=MOVIE_SHAPE[0], width=MOVIE_SHAPE[1]) for movie in get_size("paper").movies
        )
        self.templates = {movie.name: render_movie(movie, self.movies, seed) for movie in self.movies}

    def simulate(self, line: str, num_units: int, reporter: str = "") -> Recording:
        """Simulate a session of so many neurons; a `reporter` takes the place of the line's own."""
        world = get_world("allen_like")
        if reporter:
            world = replace(world, classes={**world.classes, line: world.cell_class(line, reporter)})
        session = SessionPlan(f"realism_{line}", line, 0, 0, 1, 0, "three_session_A")
        size = ObservatorySize("realism", (session,), self.movies, num_units=(num_units, num_units))
        return simulate_recording(world=world, size=size, seed=self.seed, index=0, templates=self.templates)


def count_events(events: Events, start: NDArray[np.int64], length: int) -> NDArray[np.float64]:
    """Return the events within `length` frames from each of `start`, ``(..., N)``."""
    nothing = np.zeros((1, events.binary.shape[1]), np.int32)
    total = np.concatenate([nothing, np.cumsum(events.binary, axis=0, dtype=np.int32)])
    return (total[start + length] - total[start]).astype(float)


def measure_reliability(events: Events) -> NDArray[np.float64]:
    """Return each neuron's correlation of the mean response to movie one in odd and even repeats, ``(N,)``."""
    counts = count_events(events, events.movie_frame[:, ::BIN_FRAMES], BIN_FRAMES)
    odd, even = counts[0::2].mean(0), counts[1::2].mean(0)
    active = (odd.std(0) > 0) & (even.std(0) > 0)
    return np.array([np.corrcoef(odd[:, unit], even[:, unit])[0, 1] for unit in np.flatnonzero(active)])


def measure_rates(events: Events) -> NDArray[np.float64]:
    """Return each neuron's rate over the session in Hz, ``(N,)``."""
    return events.binary.mean(0) * RATE_HZ


def compare_events(real: Events, simulated: Events) -> Iterator[Row]:
    """Rates and their tail, bursts, shared noise, reliability."""
    rates = [measure_rates(events) for events in (real, simulated)]
    yield within_share("event rate, median over neurons (Hz)", *map(np.median, rates), 0.25)
    yield within_share("event rate, standard deviation of the logarithm", *(np.log(rate).std() for rate in rates), 0.25)
    yield within_share("event rate, 95th percentile over median", *(_tail(rate) for rate in rates), 0.25)
    seconds = [
        count_events(events, np.arange(events.spontaneous.start, events.spontaneous.stop - 30, 30), 30)
        for events in (real, simulated)
    ]
    fano = [float(np.nanmedian(_fano(counts))) for counts in seconds]
    yield within_share("Fano factor of one-second counts at rest", *fano, 0.25)
    yield within("mean correlation of pairs at rest, one-second counts", *map(_pair_correlation, seconds), 0.02)
    reliability = [measure_reliability(events) for events in (real, simulated)]
    for quantile in (25, 50, 90):
        found = (float(np.percentile(values, quantile)) for values in reliability)
        yield within(f"split-half reliability of movie one, percentile {quantile}", *found, 0.1)
    decoded = [decode_movie(events) for events in (real, simulated)]
    yield within(f"naive Bayes, movie one within 1 s, {real.binary.shape[1]} neurons", *decoded, 0.1)


def _tail(rate: NDArray) -> float:
    return float(np.percentile(rate, 95) / np.median(rate))


def _fano(counts: NDArray) -> NDArray:
    mean = counts.mean(0)
    return counts.var(0) / np.where(mean > 0, mean, np.nan)


def _pair_correlation(counts: NDArray) -> float:
    matrix = np.corrcoef(counts[:, counts.std(0) > 0].T)
    return float(matrix[np.triu_indices(len(matrix), 1)].mean())


def decode_movie(events: Events, folds: Sequence[int] = FOLDS) -> float:
    """Return the share of frames found within a second: a repeat tests, the next validates, six train.

    Windows are causal, one second in three bins.
    """
    last = events.movie_frame + 1  # the imaging frame on which a window ends is in it
    starts = [last - WINDOW_FRAMES + low for low in range(0, WINDOW_FRAMES, BIN_FRAMES)]
    features = np.concatenate([count_events(events, start, BIN_FRAMES) for start in starts], axis=2)
    frame = np.arange(MOVIE_FRAMES)
    scores = []
    for fold in folds:
        valid = (fold + 1) % MOVIE_REPEATS
        train = [repeat for repeat in range(MOVIE_REPEATS) if repeat not in (fold, valid)]
        decoder = NaiveBayesFrameNumber(num_frames=MOVIE_FRAMES, tolerance=TOLERANCE)
        shown = np.tile(frame, len(train))
        fitted = decoder.fit(features[train].reshape(len(shown), -1), shown, features[valid], frame)
        scores.append(np.mean(np.abs(fitted.predict(features[fold]) - frame) <= TOLERANCE))
    return float(np.mean(scores))


def compare_gratings(folder: Path, recording: Recording) -> Iterator[Row]:
    """Decode direction from the mean dF/F of each sweep, five folds of shrunk linear discriminants."""
    with np.load(folder / "trials.npz", allow_pickle=False) as file:
        shown = ~file["blank"]
        real = file["mean_dff_percent"][shown], file["orientation"][shown].astype(int)
    table = recording.stimulus("drifting_gratings")
    table = table.select(~table.columns["blank_sweep"])
    dff = recording.read_dff(0, recording.num_frames)
    mean = np.stack([dff[a:b].mean(0) for a, b in zip(table.start_frame, table.end_frame, strict=True)])
    accuracy = [decode_direction(*real), decode_direction(mean, table.columns["orientation_id"])]
    yield within(f"gratings direction, shrunk LDA, {dff.shape[1]} neurons (chance 0.125)", *accuracy, 0.1)


def decode_direction(mean: NDArray, direction: NDArray) -> float:
    """Return the accuracy of shrunk linear discriminants in five folds."""
    decoder = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    return float(cross_val_score(decoder, mean, direction, cv=folds).mean())


def read_segments(folder: Path, cell_type: str, indicator: str) -> dict[str, list[list[NDArray]]]:
    """Return the in-vivo segments of each neuron of a kind, by data set."""
    cells: dict[str, dict[str, list[NDArray]]] = {}
    with (
        (folder / "index.csv").open() as text,
        np.load(folder / "cascade_v1_celltypes_30hz.npz", allow_pickle=False) as file,
    ):
        for row in csv.DictReader(text):
            if (row["cell_type"], row["indicator"], row["preparation"]) == (cell_type, indicator, "in vivo"):
                of_set = cells.setdefault(row["dataset"].split("-")[0], {})
                of_set.setdefault(row["file"], []).append(file[f"f{row['trace']}"].astype(float))
    return {name: list(of_set.values()) for name, of_set in sorted(cells.items())}


def cut(recording: Recording) -> list[list[NDArray]]:
    """Return a piece of each neuron's dF/F as long as the real segments, one after another through the session."""
    pieces = recording.num_frames // SEGMENT_FRAMES
    found = []
    for unit in range(recording.num_units):
        low = unit % pieces * SEGMENT_FRAMES
        found.append([recording.dff[low : low + SEGMENT_FRAMES, unit].astype(float)])
    return found


MOMENTS = {"skewness": stats.skew, "kurtosis": stats.kurtosis}


def measure_moment(what: str, cells: list[list[NDArray]]) -> NDArray[np.float64]:
    """Return skewness or excess kurtosis of each neuron, ``(N,)``."""
    return np.array([MOMENTS[what](np.concatenate(cell)) for cell in cells])


def compare_moments(
    name: str, real: Mapping[str, list[list[NDArray]]], simulated: list[list[NDArray]]
) -> Iterator[Row]:
    """Compare medians of skewness and excess kurtosis with the middle half of the real neurons of all sets."""
    for what in MOMENTS:
        values = [measure_moment(what, cells) for cells in (pool(real), simulated)]
        yield within_range(f"{what}, {name}", *map(np.median, values), *np.percentile(values[0], [25, 75]))


def pool(sets: Mapping[str, list[list[NDArray]]]) -> list[list[NDArray]]:
    """Return the neurons of all sets."""
    return [cell for cells in sets.values() for cell in cells]


def describe_sets(segments: Mapping[str, Mapping[str, list[list[NDArray]]]]) -> Iterator[str]:
    """Say how far the real sets of one kind lie apart."""
    yield "| kind | real set | neurons | skewness, median | kurtosis, median |\n|---|---|---|---|---|"
    for name, sets in segments.items():
        for dataset, cells in sets.items():
            skewness, kurtosis = (np.median(measure_moment(what, cells)) for what in MOMENTS)
            yield f"| {name} | {dataset} | {len(cells)} | {skewness:.3g} | {kurtosis:.3g} |"


def measure_spectrum(cells: list[list[NDArray]]) -> tuple[NDArray, NDArray]:
    """Return frequencies and the median over segments of the power spectrum that sums to 1."""
    spectra = []
    for segment in (piece for cell in cells for piece in cell if len(piece) >= 1024):
        frequency, power = signal.welch(segment, RATE_HZ, nperseg=1024)
        spectra.append(power[1:] / power[1:].sum())
    return frequency[1:], np.median(spectra, axis=0)


def compare_spectra(real: list[list[NDArray]], simulated: list[list[NDArray]]) -> Iterator[Row]:
    """Compare shares of power in bands, and the noise level."""
    spectra = [measure_spectrum(cells) for cells in (real, simulated)]
    for low, high in BANDS_HZ:
        shares = [power[(at >= low) & (at < high)].sum() / power.sum() for at, power in spectra]
        yield within(f"share of power, {low:g} to {high:g} Hz, excitatory GCaMP6f", *shares, 0.1)
    noise = [np.median([estimate_noise(p, RATE_HZ) for cell in cells for p in cell]) for cells in (real, simulated)]
    yield within_share("noise of one frame (dF/F), excitatory GCaMP6f", *noise, 0.5)


def compare_cumulants(seed: int) -> Iterator[Row]:
    """Compare simulated moments with the cumulants of filtered counts: 48 neurons, 60 minutes, linear, no detrend."""
    for rate, fano, noise, indicator in (
        (1.0, 1.0, 0.05, GCAMP6F),
        (4.0, 3.0, 0.3, GCAMP6F),
        (0.7, 1.5, 0.15, GCAMP6S),
    ):
        cell = CellClass(
            mean_rate_hz=rate,
            burstiness=fano,
            noise_level=noise,
            noise_spread=0.0,
            indicator=indicator,
            saturation=None,
            neuropil_error=0.0,
        )
        rates = np.full((108_000, 48), rate, np.float32)
        dff = simulate_fluorescence(cell, rates, RATE_HZ, np.random.default_rng(seed), procedure=None).dff
        expected = expected_moments(
            mean_rate_hz=rate, burstiness=fano, indicator=indicator, noise_level=noise, rate_hz=RATE_HZ
        )
        for what, moment, value in zip(("skewness", "kurtosis"), (stats.skew, stats.kurtosis), expected, strict=True):
            name = f"{what} by the cumulants, {rate:g} Hz, Fano factor {fano:g}, {indicator.name}"
            yield within_share(name, value, float(np.median(moment(dff, axis=0))), 0.1)


def draw_pictures(out: Path, real: Events, simulated: Events, traces: Recording, segments: list[list[NDArray]]) -> None:
    """Write the pictures of the documentation."""
    from matplotlib.figure import Figure

    out.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    for axes, measure, label in zip(
        figure.subplots(1, 2),
        (measure_rates, measure_reliability),
        ("event rate (Hz)", "split-half reliability of movie one"),
        strict=True,
    ):
        for events, name in ((real, "real (501574836)"), (simulated, "simulated")):
            values = np.sort(measure(events))
            axes.plot(values, np.linspace(0, 1, len(values)), label=name)
        axes.set(xlabel=label, ylabel="share of neurons", ylim=(0, 1))
    axes.legend(frameon=False)
    figure.savefig(out / "events.png", dpi=80)
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    seconds = np.arange(3600) / RATE_HZ
    best = np.argsort([np.std(cell[0]) for cell in cut(traces)])[-4:]
    longest = sorted((cell[0] for cell in segments), key=np.std)[-4:]
    for row, (cells, colour) in enumerate(((longest, "C0"), ([cut(traces)[unit][0] for unit in best], "C1"))):
        for number, trace in enumerate(cells):
            shown = trace[:3600] / np.ptp(trace[:3600])
            left.plot(seconds[: len(shown)], shown - number - 4 * row, colour, linewidth=0.6)
    left.set(xlabel="time (s)", yticks=[], title="dF/F, each scaled: real (CASCADE) above, simulated below")
    for cells, name in ((segments, "real"), (cut(traces), "simulated")):
        right.loglog(*measure_spectrum(cells), label=name)
    right.set(xlabel="frequency (Hz)", ylabel="share of power")
    right.legend(frameon=False)
    figure.savefig(out / "traces.png", dpi=80)


def main() -> None:
    """Print the table; write the pictures if asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the small real recordings")
    parser.add_argument("--out", type=Path, help="folder for the pictures")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    cascade = given.data / "cascade_v1_celltypes"
    kinds = {
        "excitatory GCaMP6f": ("exc", "GCaMP6f"),
        "excitatory GCaMP6s": ("exc", "GCaMP6s"),
        "Pvalb": ("PV", "GCaMP6f"),
        "other interneurons": ("interneuron", "GCaMP8/XCaMP"),
    }
    segments = {name: read_segments(cascade, *kind) for name, kind in kinds.items()}
    real = read_real_events(given.data / "allen_501574836")
    simulator = Simulator(given.seed)
    print("| measure | real | simulated | allowed | met |\n|---|---|---|---|---|")
    cux2 = simulator.simulate("Cux2-CreERT2", real.binary.shape[1])
    simulated = simulated_events(cux2)
    if given.out:
        draw_pictures(given.out, real, simulated, cux2, pool(segments["excitatory GCaMP6f"]))
    report(compare_moments("excitatory GCaMP6f", segments["excitatory GCaMP6f"], cut(cux2)))
    report(compare_spectra(pool(segments["excitatory GCaMP6f"]), cut(cux2)))
    report(compare_events(real, simulated))
    del cux2, simulated
    rorb = simulator.simulate("Rorb-IRES2-Cre", 172)
    report(compare_gratings(given.data / "allen_501724959_gratings", rorb))
    del rorb
    slow = simulator.simulate("Slc17a7-IRES2-Cre", 60, "Ai94(TITL-GCaMP6s)")
    report(compare_moments("excitatory GCaMP6s", segments["excitatory GCaMP6s"], cut(slow)))
    report(compare_moments("Pvalb", segments["Pvalb"], cut(simulator.simulate("Pvalb-IRES-Cre", 30))))
    others = cut(simulator.simulate("Sst-IRES-Cre", 30)) + cut(simulator.simulate("Vip-IRES-Cre", 30))
    report(compare_moments("other interneurons", segments["other interneurons"], others))
    report(compare_cumulants(given.seed))
    print()
    report(describe_sets(segments))


def report(rows: Iterator[Row | str]) -> None:
    """Print rows as they come."""
    for row in rows:
        print(row, flush=True)


if __name__ == "__main__":
    main()
