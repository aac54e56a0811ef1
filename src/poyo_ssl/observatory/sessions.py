"""One simulated session: schedule, neurons, fluorescence, the animal, and everything that is true of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from poyo_ssl.data.recording import Recording, RecordingMetadata
from poyo_ssl.data.series import PupilTrace, TimeSeries
from poyo_ssl.observatory import calcium
from poyo_ssl.observatory.allen_schedule import ALLEN_SESSIONS, NOISE_TEMPLATES
from poyo_ssl.observatory.animals import Container, draw_container, simulate_behaviour
from poyo_ssl.observatory.cells import Population, draw_population, drift_population, paint_discs
from poyo_ssl.observatory.drives import Rates, drive_at_frames, gray_drive, simulate_rates
from poyo_ssl.observatory.movies import movie_cuts
from poyo_ssl.observatory.schedule import build_schedule
from poyo_ssl.observatory.sizes import ObservatorySize, SessionPlan
from poyo_ssl.observatory.worlds import CellClass, World

FOUND_SHARE = 0.6
"""Share of a container's cells that one session finds, so that sessions match in part."""

DAYS_BETWEEN_SESSIONS = (1, 5)
RATE_BIN_FRAMES = 3
"""Imaging frames over which true rates are averaged before they are saved."""


def recording_ids(size: ObservatorySize) -> list[str]:
    """Return the ids of a folder's recordings, in order."""
    return [session.recording_id for session in size.sessions]


def shown_templates(size: ObservatorySize, session: SessionPlan) -> tuple[str, ...]:
    """Return the names of the movies, scenes and noises whose pixels a session shows."""
    if size.short:
        return tuple(sorted(set(size.short.blocks) & {movie.name for movie in size.movies}))
    blocks = {block.stimulus for block in ALLEN_SESSIONS[session.session_type].blocks}
    return tuple(sorted(blocks & {"natural_scenes", *NOISE_TEMPLATES, *(movie.name for movie in size.movies)}))


def simulate_recording(
    *,
    world: World,
    size: ObservatorySize,
    seed: int,
    index: int,
    templates: Mapping[str, NDArray[np.uint8]],
    dff_procedure: str = "allen_median",
) -> Recording:
    """Simulate one recording of a data folder.

    Everything random is drawn from generators keyed on `seed` and the container or recording, so that a recording
    does not depend on the others. Clock, schedule, animal, behaviour and receptive-field places are the same in every
    world.
    """
    session = size.sessions[index]
    streams = np.random.SeedSequence(seed, spawn_key=(3, index)).spawn(5)
    clock, animal, modulation, imaging, days = (np.random.default_rng(stream) for stream in streams)
    container = draw_container(seed, session.container, session.cre_line, session.place, session.of)
    cell = world.cell_class(session.cre_line, container.reporter_line)
    schedule = build_schedule(size, session, clock)
    rate_hz = float(1 / np.median(np.diff(schedule.timestamps)))
    population, identity, day = _draw_cells(cell, size, session, container, seed, days)
    behaviour = simulate_behaviour(len(schedule.timestamps), rate_hz, animal)
    shown = {name: templates[name] for name in shown_templates(size, session)}
    drive, means = drive_at_frames(population, schedule.stimuli, shown, schedule.timestamps)
    rates = simulate_rates(cell, drive, behaviour, rate_hz, modulation, relative_rate=population.relative_rate)
    del drive
    imaged = calcium.simulate_fluorescence(
        cell,
        rates.rate_hz,
        rate_hz,
        imaging,
        rows_px=population.roi_row_px,
        columns_px=population.roi_column_px,
        procedure=dff_procedure,
    )
    cuts = {f"{name}_cuts": frames for name, frames in movie_cuts(size.movies, seed).items() if name in shown}
    return Recording(
        recording_id=session.recording_id,
        dff=imaged.dff,
        timestamps=schedule.timestamps,
        metadata=_make_metadata(container, session, world, cell, seed, day),
        unit_ids=np.array([f"{session.recording_id}_{unit:04d}" for unit in range(len(population))]),
        cell_specimen_ids=identity,
        stimuli=schedule.stimuli,
        epochs=schedule.epochs,
        running=TimeSeries(schedule.timestamps, behaviour.running),
        pupil=PupilTrace(
            schedule.timestamps[behaviour.eye_open],
            behaviour.gaze_cm[behaviour.eye_open],
            behaviour.pupil_size[behaviour.eye_open],
        ),
        roi_masks=paint_discs(population.roi_row_px, population.roi_column_px, population.roi_radius_px),
        events=imaged.events,
        truth=_collect_truth(cell, population, rates, imaged, means) | cuts,
    )


def _draw_cells(
    cell: CellClass,
    size: ObservatorySize,
    session: SessionPlan,
    container: Container,
    seed: int,
    rng: np.random.Generator,
) -> tuple[Population, NDArray[np.int64], int]:
    """Return the neurons that a session finds, their identities, and the day after the container's first session."""
    shared = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(4, session.container)))
    low, high = size.unit_range(session)
    num_units = int(shared.integers(low, high + 1))
    later = np.cumsum(shared.integers(*DAYS_BETWEEN_SESSIONS, endpoint=True, size=3))
    day = int(later[session.order - 1]) if session.order else 0
    num_cells = num_units if size.short else int(num_units / FOUND_SHARE)
    population = draw_population(cell, num_cells, shared, area=container.area)
    if session.order:
        population = drift_population(population, cell, float(day), rng)
    rows = np.sort(rng.permutation(num_cells)[:num_units])
    identity = seed * 10**8 + session.container * 10**4 + rows.astype(np.int64)
    return population.select(rows), identity, day


def _make_metadata(
    container: Container, session: SessionPlan, world: World, cell: CellClass, seed: int, day: int
) -> RecordingMetadata:
    first = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(5, session.container))).integers(0, 700)
    date = np.datetime64("2016-01-04") + int(first) + day
    return RecordingMetadata(
        subject_id=container.subject_id,
        container_id=container.container_id,
        cre_line=container.cre_line,
        reporter_line=container.reporter_line,
        indicator=cell.indicator.name,
        sex=container.sex,
        age_days=float(container.age_days + day),
        session_type=session.session_type,
        targeted_structure=container.area,
        depth_um=container.depth_um,
        recording_date=f"{date} 10:00:00",
        description=world.description,
        origin=f"simulated (poyo-ssl observatory, world {world.name}, seed {seed})",
    )


def _collect_truth(
    cell: CellClass,
    population: Population,
    rates: Rates,
    imaged: calcium.Fluorescence,
    means: Mapping[str, NDArray[np.float32]],
) -> dict[str, NDArray]:
    """Gather what is true of each neuron, ``(N,)`` by name, its rates over time and its response to each stimulus."""
    num_units = len(population)
    truth: dict[str, NDArray] = {
        **{name: np.asarray(values) for name, values in vars(population).items()},
        **{name: np.asarray(values) for name, values in vars(rates).items() if name != "rate_hz"},
        "noise_level": imaged.noise_level,
        "signal_share": imaged.signal_share,
        "neuropil_ratio": imaged.neuropil_ratio,
        "neuropil_ratio_found": imaged.neuropil_ratio_found,
        "burstiness": np.full(num_units, cell.burstiness),
        "event_amplitude": np.full(num_units, cell.indicator.amplitude),
        "kernel_rise_s": np.full(num_units, cell.indicator.rise_s),
        "kernel_decay_s": np.full(num_units, cell.indicator.decay_s),
        "rate_hz": _average_bins(rates.rate_hz, RATE_BIN_FRAMES),
        # Readers of the brainsets ecosystem slice every dataset: none may be a scalar.
        "rate_bin_frames": np.array([RATE_BIN_FRAMES]),
        "gray_rate_hz": rates.expected_hz(gray_drive(population)),
    }
    for name, drive in means.items():
        truth[f"{name}_drive"] = drive
        truth[f"{name}_rate_hz"] = rates.expected_hz(drive)
    return truth


def _average_bins(values: NDArray[np.float32], num_frames: int) -> NDArray[np.float16]:
    """Average ``(T, N)`` over bins of frames; the last bin takes what is left."""
    starts = np.arange(0, len(values), num_frames)
    sizes = np.diff(np.append(starts, len(values)))
    return (np.add.reduceat(values, starts, axis=0) / sizes[:, None]).astype(np.float16)
