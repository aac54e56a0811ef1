"""One simulated session: schedule, neurons, fluorescence, the animal, and everything that is true of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from poyo_ssl import protocol
from poyo_ssl.data.recording import Recording, RecordingMetadata
from poyo_ssl.data.series import TimeSeries
from poyo_ssl.data.stimuli import MOVIE_PREFIX
from poyo_ssl.observatory import calcium, cells
from poyo_ssl.observatory.schedule import GRATING_ON_S, ObservatorySize, Schedule, build_schedule
from poyo_ssl.observatory.stimuli import movie_cuts
from poyo_ssl.observatory.worlds import CellClass, World


@dataclass(frozen=True)
class LineFacts:
    """Where the Allen images a line and with which reporter.

    Attributes
    ----------
    reporter : str
        Reporter line.
    depths_um : tuple of int
        Shallowest and deepest imaging plane.
    areas : tuple of str
        Visual areas.
    """

    reporter: str
    depths_um: tuple[int, int]
    areas: tuple[str, ...] = ("VISp", "VISl", "VISal", "VISpm")


_AI93, _AI148, _AI162 = "Ai93(TITL-GCaMP6f)", "Ai148(TIT2L-GC6f-ICL-tTA2)", "Ai162(TIT2L-GC6s-ICL-tTA2)"

LINE_FACTS: Mapping[str, LineFacts] = MappingProxyType(
    {
        "Cux2-CreERT2": LineFacts(_AI93, (175, 275)),
        "Emx1-IRES-Cre": LineFacts(_AI93, (175, 375)),
        "Fezf2-CreER": LineFacts(_AI148, (375, 400)),
        "Nr5a1-Cre": LineFacts(_AI93, (300, 350)),
        "Ntsr1-Cre_GN220": LineFacts(_AI148, (550, 625)),
        "Pvalb-IRES-Cre": LineFacts(_AI162, (175, 375), ("VISp", "VISl")),
        "Rbp4-Cre_KL100": LineFacts(_AI93, (375, 375)),
        "Rorb-IRES2-Cre": LineFacts(_AI93, (275, 275)),
        "Scnn1a-Tg3-Cre": LineFacts(_AI93, (275, 350), ("VISp",)),
        "Slc17a7-IRES2-Cre": LineFacts(_AI93, (175, 375)),
        "Sst-IRES-Cre": LineFacts(_AI148, (250, 375)),
        "Tlx3-Cre_PL56": LineFacts(_AI148, (375, 375)),
        "Vip-IRES-Cre": LineFacts(_AI148, (175, 275)),
    }
)
"""Reporter, depth and areas by line (Allen Brain Observatory, Visual Coding, published container lists)."""


def recording_ids(size: ObservatorySize) -> list[str]:
    """Return the ids of a folder's recordings, in order.

    Examples
    --------
    >>> from poyo_ssl.observatory.schedule import get_size
    >>> recording_ids(get_size("tiny"))[0]
    'obs_000_Cux2-CreERT2'
    """
    return [f"obs_{index:03d}_{line}" for index, line in enumerate(size.lines)]


def simulate_recording(
    *, world: World, size: ObservatorySize, seed: int, index: int, movies: Mapping[str, NDArray[np.uint8]]
) -> Recording:
    """Simulate one recording of a data folder.

    Everything random is drawn from generators keyed on `seed` and `index`, so that a recording does not depend
    on the others. Clock, schedule, animal, behaviour and receptive-field places are the same in every world.

    Parameters
    ----------
    world : World
        Dials by line.
    size : ObservatorySize
        Schedule and number of neurons.
    seed : int
        Seed of the data folder.
    index : int
        Number of the recording in the folder.
    movies : mapping
        Pixels of the folder's movies, ``(L, H, W)`` uint8 by name.
    """
    line = size.lines[index]
    cell = world.classes[line]
    streams = np.random.SeedSequence(seed, spawn_key=(1, index)).spawn(5)
    clock_rng, animal_rng, tuning_rng, rate_rng, calcium_rng = (np.random.default_rng(stream) for stream in streams)
    schedule = build_schedule(size, clock_rng)
    rate_hz = float(1 / np.median(np.diff(schedule.timestamps)))
    metadata = _draw_metadata(line, world, seed, index, cell, animal_rng)
    running = cells.simulate_running(len(schedule.timestamps), rate_hz, animal_rng)

    num_units = int(tuning_rng.integers(size.num_units[0], size.num_units[1] + 1))
    population = cells.draw_population(cell, num_units, tuning_rng)
    drives = _stimulus_drives(population, size, movies)
    drive = _drive_at_frames(schedule, drives, population, size)
    rates = cells.simulate_rates(cell, drive, running, rate_hz, rate_rng)
    imaged = calcium.simulate_fluorescence(cell, rates.rate_hz, rate_hz, calcium_rng)
    return Recording(
        recording_ids(size)[index],
        imaged.dff,
        schedule.timestamps,
        metadata,
        unit_ids=np.array([f"{recording_ids(size)[index]}_{unit:04d}" for unit in range(num_units)]),
        cell_specimen_ids=seed * 10**8 + index * 10**4 + np.arange(num_units, dtype=np.int64),
        stimuli=schedule.stimuli,
        epochs=schedule.epochs,
        running=TimeSeries(schedule.timestamps, running),
        events=imaged.events,
        truth=_collect_truth(cell, population, rates, imaged, drives) | _cuts(size, seed),
    )


def _draw_metadata(
    line: str, world: World, seed: int, index: int, cell: CellClass, rng: np.random.Generator
) -> RecordingMetadata:
    facts = LINE_FACTS[line]
    day = np.datetime64("2016-01-04") + int(rng.integers(0, 700))
    shallow, deep = facts.depths_um[0] // 25, facts.depths_um[1] // 25
    return RecordingMetadata(
        subject_id=f"mouse_{seed}_{index:03d}",
        container_id=f"container_{seed}_{index:03d}",
        cre_line=line,
        reporter_line=facts.reporter,
        indicator=cell.indicator.name,
        sex=str(rng.choice(["male", "female"])),
        age_days=float(rng.integers(80, 140)),
        session_type="observatory_demo",
        targeted_structure=str(rng.choice(facts.areas)),
        depth_um=25 * int(rng.integers(shallow, deep + 1)),
        recording_date=f"{day} 10:00:00",
        description=world.description,
        origin=f"simulated (poyo-ssl observatory, world {world.name}, seed {seed})",
    )


def _stimulus_drives(
    population: cells.Population, size: ObservatorySize, movies: Mapping[str, NDArray[np.uint8]]
) -> dict[str, NDArray[np.float64]]:
    """Drive by each stimulus at 60 Hz, as `cells` returns it."""
    drives = {movie.name: cells.movie_drive(population, movies[movie.name]) for movie in size.movies}
    drives["drifting_gratings"] = cells.grating_drive(
        population,
        protocol.GRATING_DIRECTIONS_DEG,
        size.temporal_frequencies_hz,
        duration_s=GRATING_ON_S,
        height=size.movies[0].height,
        width=size.movies[0].width,
    )
    return drives


def _drive_at_frames(
    schedule: Schedule,
    drives: Mapping[str, NDArray[np.float64]],
    population: cells.Population,
    size: ObservatorySize,
) -> NDArray[np.float64]:
    """Drive ``(T, N)`` at the imaging frames; 0 on grey, constant 1 for untuned neurons."""
    times = schedule.timestamps
    drive = np.where(population.tuned, 0.0, np.ones((len(times), 1)))
    for name, table in schedule.stimuli.items():
        row = np.searchsorted(table.start, times, side="right") - 1
        elapsed = times - table.start[np.maximum(row, 0)]
        # A time that falls on a tick must not slip below it by rounding.
        tick = np.floor(elapsed * cells.MONITOR_RATE_HZ + 1e-6).astype(np.int64)
        if name.startswith(MOVIE_PREFIX):
            on = (row >= 0) & (times < table.end[np.maximum(row, 0)])
            frame = table.columns["frame"][row[on]]
            drive[on] = drives[name][2 * frame + np.minimum(tick[on], 1)]
        else:
            responses = drives[name]
            blank = table.columns["blank_sweep"][np.maximum(row, 0)]
            on = (row >= 0) & (tick < responses.shape[2]) & ~blank
            direction = table.columns["orientation_id"][row[on]]
            frequency = table.columns["temporal_frequency"][row[on]]
            column = np.searchsorted(np.array(size.temporal_frequencies_hz), frequency)
            drive[on] = responses[direction, column, tick[on]]
    return drive


def _collect_truth(
    cell: CellClass,
    population: cells.Population,
    rates: cells.Rates,
    imaged: calcium.Fluorescence,
    drives: Mapping[str, NDArray[np.float64]],
) -> dict[str, NDArray]:
    """Gather what is true of each neuron, ``(N,)`` by name, and its mean drive by each stimulus."""
    num_units = len(population)
    truth: dict[str, NDArray] = {
        **{name: np.asarray(values) for name, values in vars(population).items()},
        "mean_rate_hz": rates.mean_rate_hz,
        "stimulus_information": rates.stimulus_information,
        "stimulus_depth": rates.stimulus_depth,
        "running_gain": rates.running_gain,
        "noise_level": imaged.noise_level,
        "signal_share": imaged.signal_share,
        "burstiness": np.full(num_units, cell.burstiness),
        "event_amplitude": np.full(num_units, cell.indicator.amplitude),
        "kernel_rise_s": np.full(num_units, cell.indicator.rise_s),
        "kernel_decay_s": np.full(num_units, cell.indicator.decay_s),
    }
    on = int(GRATING_ON_S * cells.MONITOR_RATE_HZ)
    for name, drive in drives.items():
        # Gratings: (directions, temporal frequencies, N); movies: (frames, N).
        mean = drive[:, :, :on].mean(2) if drive.ndim == 4 else drive.reshape(-1, 2, num_units).mean(1)
        truth[f"{name}_drive"] = mean.astype(np.float32)
    return truth


def _cuts(size: ObservatorySize, seed: int) -> dict[str, NDArray]:
    return {f"{name}_cuts": cuts for name, cuts in movie_cuts(size.movies, seed).items()}
