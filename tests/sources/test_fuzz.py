"""Mutated files of every source: a recording that equals the truth or has a warning, or a named error, and no more.

Visible damage (to arrays, groups, sizes) must never give another recording in silence. Flipped bits and cleared bytes
can fall into values, which no reader can tell from true ones: there the recording only has to be sound.

Twenty times as much, and other mutations in every run: ``pytest tests/sources/test_fuzz.py --hypothesis-profile slow``
"""

import resource
import shutil
import signal
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat
from tests.sources.allen_samples import draw_templates, make_session
from tests.sources.brainsets_samples import write_brainset
from tests.sources.mutations import in_arrays, in_bytes, in_groups, mutate
from tests.sources.nwb_samples import write_dandi, write_laboratory
from tests.sources.suite2p_samples import write_plane
from tests.sources.test_events_source import write_folder

from poyo_ssl.data.recording import Recording
from poyo_ssl.errors import PoyoError
from poyo_ssl.observatory.allen_nwb import write_allen_nwb
from poyo_ssl.sources.allen import AllenSource
from poyo_ssl.sources.arrays import ArraysSource
from poyo_ssl.sources.brainsets import BrainsetsSource
from poyo_ssl.sources.events import EventsSource
from poyo_ssl.sources.nwb import NwbSource
from poyo_ssl.sources.run import convert
from poyo_ssl.sources.suite2p import Suite2pSource

EXAMPLES = {"allen": 20, "nwb": 20, "dandi": 8, "brainsets": 40, "suite2p": 30, "arrays": 40}
EXAMPLES |= {"tables": 20, "matlab": 20, "events": 40}
"""Of the short test; reading an NWB 2 file takes pynwb half a second."""

LONGEST_S = 60
"""Far more than any of these files takes: a reader that is not done by then hangs."""

MORE_BYTES = 2 << 30
"""Address space beyond what the process has: enough for libraries, far too little for what damaged headers claim."""


@dataclass(frozen=True)
class Sample:
    """A valid input: everything below `folder`, of which `input` is given to the source, and what it gives."""

    source: object
    folder: Path
    input: str
    truth: Recording
    warnings: frozenset
    strategy: object
    """Of mutations."""


def _write_allen(folder):
    made = make_session("three_session_A", num_units=3)
    return write_allen_nwb(made, folder / "501574836.nwb", templates=draw_templates())


def _write_arrays(folder):
    rng = np.random.default_rng(0)
    (folder / "mouse7").mkdir(parents=True)
    np.save(folder / "mouse7" / "dff.npy", rng.gamma(0.5, 0.3, (600, 4)).astype(np.float32))
    np.save(folder / "mouse7" / "timestamps.npy", 2.0 + np.arange(600) / 30)
    rows = [f"{3 + 2 * k},{4 + 2 * k},drifting_gratings,{45 * k}" for k in range(8)]
    (folder / "mouse7" / "stimuli.csv").write_text("\n".join(["start,stop,name,orientation", *rows]) + "\n")
    return folder / "mouse7"


def _write_tables(folder):
    """Everything that a laboratory would write by hand: numbers as text, a gif, metadata."""
    _write_arrays(folder)
    mouse = folder / "mouse7"
    for name in ("dff", "timestamps"):
        np.savetxt(mouse / f"{name}.csv", np.load(mouse / f"{name}.npy")[:300], delimiter=",", fmt="%.5f")
        (mouse / f"{name}.npy").unlink()
    (mouse / "stimuli.csv").write_text("start,stop,name\n3,5,natural_movie_one\n6,8,natural_movie_one\n")
    (mouse / "recording.json").write_text('{"subject_id": "mouse7", "cre_line": "Vip-IRES-Cre", "depth_um": 175}')
    (mouse / "pixels").mkdir()
    pictures = [Image.new("L", (6, 4), 20 * number) for number in range(8)]
    pictures[0].save(mouse / "pixels" / "natural_movie_one.gif", save_all=True, append_images=pictures[1:])
    return mouse


def _write_matlab(folder):
    _write_arrays(folder)
    mouse = folder / "mouse7"
    savemat(mouse / "dff.mat", {"dff": np.load(mouse / "dff.npy").astype(float)}, do_compression=True)
    np.savez_compressed(mouse / "timestamps.npz", clock=np.load(mouse / "timestamps.npy"))
    for name in ("dff", "timestamps"):
        (mouse / f"{name}.npy").unlink()
    return mouse


SAMPLES = {
    "allen": (AllenSource(), _write_allen),
    "nwb": (NwbSource(), lambda folder: write_laboratory(folder)[2]),
    "dandi": (NwbSource(), lambda folder: write_dandi(folder, num_units=3)[1]),
    "brainsets": (BrainsetsSource(), lambda folder: write_brainset(folder)[1]),
    "suite2p": (Suite2pSource(), lambda folder: write_plane(folder / "mouse7" / "suite2p" / "plane0").parent.parent),
    "arrays": (ArraysSource(), _write_arrays),
    "tables": (ArraysSource(), _write_tables),
    "matlab": (ArraysSource(), _write_matlab),
    "events": (EventsSource(), lambda folder: write_folder(folder / "mouse7")),
}


def _list_hdf5(path):
    """Return dtype kind and shape of every dataset of numbers, and the names of all groups, of an HDF5 file."""
    arrays, groups = {}, []

    def look(name, item):
        if name.startswith("specifications"):
            return
        if isinstance(item, h5py.Group):
            groups.append(name)
        elif item.dtype.kind in "iufb" and item.size:
            arrays[name] = (item.dtype.kind, item.shape)

    with h5py.File(path) as file:
        file.visititems(look)
    return arrays, groups


def _strategy_of(folder):
    """Return the strategy of mutations of the files in a folder."""
    found = []
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        name = str(path.relative_to(folder))
        found.append(in_bytes(name))
        if path.suffix in (".nwb", ".h5"):
            arrays, groups = _list_hdf5(path)
            found += [in_arrays(name, arrays)] * 3 + [in_groups(name, groups)]
        elif path.suffix == ".npy":
            with path.open("rb") as stream:
                np.lib.format.read_magic(stream)
                shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
            if not dtype.hasobject:
                found += [in_arrays(name, {path.stem: (dtype.kind, shape)})] * 3
    return st.one_of(found)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Return a function that gives the sample of a source, made once."""
    made = {}

    def get(name):
        if name not in made:
            source, write = SAMPLES[name]
            folder = tmp_path_factory.mktemp(name)
            input = write(folder / "in")
            outcome = convert(source, input, folder / "out")[0]
            assert outcome.status == "written", outcome
            truth = Recording.open(folder / "out" / f"{outcome.recording_id}.h5")
            made[name] = Sample(
                source,
                folder / "in",
                str(input.relative_to(folder / "in")),
                truth,
                frozenset(outcome.warnings),
                _strategy_of(folder / "in"),
            )
        return made[name]

    return get


@contextmanager
def limits():
    """Raise if the body takes too long, and let it have only so much memory."""

    def stop(*_):
        raise AssertionError(f"not done after {LONGEST_S} s")

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LONGEST_S)
    resource.setrlimit(resource.RLIMIT_AS, (used + MORE_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)


def read_mutated(sample, mutations):
    """Convert a mutated copy of a sample; return the outcome, and the recording if there is one."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        shutil.copytree(sample.folder, folder / "in")
        # Bytes last: what is damaged there cannot be opened for the others.
        for mutation in sorted(mutations, key=lambda one: one.item == ""):
            mutate(folder / "in", mutation)
        try:
            with limits():
                outcome = convert(sample.source, folder / "in" / sample.input, folder / "out")[0]
        except PoyoError as error:
            # The input is no longer recognised as one.
            return str(error), (), None
        written = sorted(path.name for path in (folder / "out").rglob("*.h5*"))
        if outcome.status == "failed":
            assert written == [], written
            return outcome.error, (), None
        assert written == [f"{outcome.recording_id}.h5"]
        recording = Recording.open(folder / "out" / written[0])
        recording = replace(recording, dff=recording.read_dff(0, recording.num_frames))
        return "", outcome.warnings, recording


def assert_sound(recording):
    assert recording.dff.shape == (len(recording.timestamps), len(recording.unit_ids))
    assert np.isfinite(recording.dff).all()
    assert np.isfinite(recording.timestamps).all()
    assert (np.diff(recording.timestamps) > 0).all()
    for table in recording.stimuli.values():
        assert np.isfinite(table.start).all()
        assert np.isfinite(table.end).all()
        assert table.end_frame.max(initial=0) <= recording.num_frames


def differs(found, truth):
    """Say in which respect a recording is not the true one; empty if it is."""
    parts = {
        "dff": (found.dff, truth.read_dff(0, truth.num_frames)),
        "timestamps": (found.timestamps, truth.timestamps),
        "unit_ids": (found.unit_ids, truth.unit_ids),
        "cells": (found.cell_specimen_ids, truth.cell_specimen_ids),
        "masked": (found.masked_domain, truth.masked_domain),
        "stimuli": (sorted(found.stimuli), sorted(truth.stimuli)),
        "epochs": (sorted(found.epochs), sorted(truth.epochs)),
    }
    for name in set(found.stimuli) & set(truth.stimuli):
        one, other = found.stimuli[name], truth.stimuli[name]
        parts[name] = (sorted(one.columns), sorted(other.columns))
        parts |= {f"{name}.{key}": (getattr(one, key), getattr(other, key)) for key in ("start", "end", "start_frame")}
        parts |= {
            f"{name}.{key}": (one.columns[key], other.columns[key]) for key in one.columns if key in other.columns
        }
    parts |= {
        f"{name} epochs": (found.epochs[name], truth.epochs[name]) for name in set(found.epochs) & set(truth.epochs)
    }
    for name, (one, other) in parts.items():
        if not np.array_equal(np.asarray(one), np.asarray(other), equal_nan=np.asarray(one).dtype.kind == "f"):
            return name
    return ""


def check(sample, mutations):
    error, warnings, recording = read_mutated(sample, mutations)
    if recording is None:
        assert "not foreseen" not in error, error
        assert "does not fit in memory" not in error, error
        assert error.count("\n") == 0
        # What is allowed, or what to do.
        assert "; " in error or "(allowed: " in error, error
        return
    assert_sound(recording)
    if all(mutation.is_visible for mutation in mutations) and not set(warnings) - sample.warnings:
        assert differs(recording, sample.truth) == ""


@pytest.mark.parametrize("name", SAMPLES)
def test_mutated_files(name, samples):
    sample = samples(name)
    times = settings.default.max_examples / settings().get_profile("default").max_examples

    @settings(
        max_examples=round(times * EXAMPLES[name]),
        deadline=None,
        # The short test does the same every time.
        derandomize=times == 1,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(sample.strategy, min_size=1, max_size=2))
    def run(mutations):
        check(sample, mutations)

    run()
