"""Inputs for `same_results.py`: samples of every source, damaged ones, and old runs and predictions.

Runs with the code and the test helpers of one checkout, whose files both sides then get::

    PYTHONPATH=CHECKOUT/src:CHECKOUT:CHECKOUT/tests/sources python -P benchmarks/same_results_inputs.py FOLDER
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import numpy as np

SMALL = ["--model.dim", "16", "--model.dim_head", "16", "--model.depth", "1", "--model.self_heads", "2"]
SHORT = ["--optim.epochs", "2", "--optim.epoch_windows", "64", "--optim.batch_size", "16", "--window.units", "all"]


def helper(name: str) -> Any:
    """Import a module of the checkout's tests."""
    return import_module(f"tests.{name}")


def cases(test: Any) -> list[Any]:
    """Return the parameters of a parametrised test."""
    return list(next(mark for mark in test.pytestmark if mark.name == "parametrize").args[1])


def slug(name: str) -> str:
    """Turn a case's name into that of a file."""
    return re.sub(r"\W+", "_", name)


def spoil(
    original: Path, folder: Path, changes: Mapping[str, Any], after: Callable[[h5py.File, str], None] | None = None
) -> None:
    """Write a changed copy of an HDF5 file for every change, or ``(change, message)``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, change in changes.items():
        path = folder / f"{slug(name)}{original.suffix}"
        shutil.copy(original, path)
        with h5py.File(path, "a") as file:
            (change[0] if isinstance(change, tuple) else change)(file)
            if after:
                after(file, path.stem)


def poyo(*arguments: str | Path) -> None:
    """Run one command."""
    command = [sys.executable, "-m", "poyo_ssl", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")


def write_samples(good: Path) -> None:
    """Write whole recordings as every source has them."""
    allen, nwb, brainsets = (helper(f"sources.{name}_samples") for name in ("allen", "nwb", "brainsets"))
    suite2p, arrays, events = (
        helper(f"sources.{name}") for name in ("suite2p_samples", "test_arrays_source", "test_events_source")
    )
    (good / "allen").mkdir(parents=True)
    for number, kind in enumerate(("A", "B", "C", "C2")):
        allen.write_session(good / "allen", f"three_session_{kind}", recording_id=str(501574836 + number), seed=number)
    for number, kind in enumerate(("A", "B", "C2")):
        nwb.write_dandi(
            good / "nwb" / "dandi", f"three_session_{kind}", recording_id=str(501574836 + number), seed=number
        )
    nwb.write_laboratory(good / "nwb" / "laboratory")
    nwb.write_laboratory(good / "nwb" / "fluorescence", series=("Raw", "Neuropil"), masks=False, seed=1)
    for number in range(2):
        brainsets.write_brainset(
            good / "brainsets" / "allen_visual_coding_ophys_2016",
            recording_id=str(501574836 + number),
            seed=number,
            masks=number == 1,
        )
    for number, old in enumerate((True, False)):
        suite2p.write_plane(good / "suite2p" / f"mouse{number}" / "suite2p" / "plane0", old=old, seed=number)
    for number in range(2):
        suite2p.write_plane(good / "suite2p" / "planes" / "suite2p" / f"plane{number}", seed=number)
    light = 100 + 20 * arrays.DFF
    spikes = np.zeros((900, 3))
    spikes[[10, 400, 410], [0, 2, 1]] = 1.0, 2.5, 1.0
    arrays.write_folder(good / "arrays" / "dff")
    arrays.write_folder(good / "arrays" / "turned", traces={"dff": arrays.DFF.T}, metadata={"subject_id": "m8"})
    arrays.write_folder(good / "arrays" / "light", traces={"fluorescence": light, "neuropil": 30 + arrays.DFF[::-1]})
    arrays.write_folder(good / "arrays" / "events", traces={"events": spikes})
    helper("sources.test_array_files").write_all(good / "arrays" / "dff")
    for name in ("a.npy", "fortran.npy", "a.npz", "b.npz", "names.csv", "a.mat", "four.mat", "new.mat"):
        (good / "files").mkdir(exist_ok=True)
        shutil.move(good / "arrays" / "dff" / name, good / "files" / name)
    (good / "arrays" / "dff" / "a.csv").unlink()
    for number in range(2):
        events.write_folder(good / "events" / f"mouse{number}", cell=[0, 2, 1 + number])


def write_damaged(bad: Path, good: Path) -> None:
    """Write damaged and odd files of every source, from the tables of the tests."""
    allen, nwb, brainsets = (
        helper(f"sources.test_{name}") for name in ("allen_malformed", "nwb_malformed", "brainsets_source")
    )
    arrays, events, suite2p = (helper(f"sources.test_{name}_source") for name in ("arrays", "events", "suite2p"))
    a, b = (good / "allen" / f"{501574836 + number}.nwb" for number in range(2))
    spoil(a, bad / "allen", allen.ERRORS | allen.WARNINGS)
    (bad / "allen" / "cut.nwb").write_bytes(a.read_bytes()[:9000])
    scenes = "stimulus/presentation/natural_scenes_stimulus/data"
    spoil(b, bad / "allen", {f"scene {value}": allen.put_item(scenes, 5, value) for value in (118, -2)})
    dandi = next((good / "nwb" / "dandi").rglob("*501574836*.nwb"))
    spoil(dandi, bad / "dandi", nwb.DANDI_ERRORS | nwb.DANDI_WARNINGS)
    spoil(good / "nwb" / "laboratory" / "mouse7.nwb", bad / "laboratory", nwb.LABORATORY_ERRORS)
    original = good / "brainsets" / "allen_visual_coding_ophys_2016" / "501574836.h5"

    def rename(file: h5py.File, stem: str) -> None:
        if stem != "another_session" and "session" in file:
            file["session"].attrs["id"] = stem

    spoil(original, bad / "brainsets", brainsets.MALFORMED, rename)
    for number, (table, _) in enumerate(cases(arrays.test_bad_tables_get_a_named_error)):
        arrays.write_folder(bad / "arrays" / f"table{number:02d}", table=table)
    for number, (table, _) in enumerate(cases(arrays.test_suspicious_tables_get_a_warning)):
        arrays.write_folder(bad / "arrays" / f"odd_table{number:02d}", table=table)
    for number, (metadata, _) in enumerate(cases(arrays.test_bad_metadata_gets_a_named_error)):
        arrays.write_folder(bad / "arrays" / f"metadata{number}", metadata=metadata)
    for number, (traces, clock, axes, _) in enumerate(cases(arrays.test_axes_and_clock_are_checked)):
        where = bad / (f"arrays_{axes}" if clock is not None else "arrays_rate") / f"axes{number:02d}"
        arrays.write_folder(where, traces={"dff": traces}, clock=clock, table=None)
    arrays.write_folder(bad / "arrays" / "two_kinds", traces={"dff": arrays.DFF, "events": arrays.DFF})
    arrays.write_folder(bad / "arrays" / "negative_events", traces={"events": -np.ones((900, 3))})
    arrays.write_folder(
        bad / "arrays" / "neuropil_shape", traces={"fluorescence": arrays.DFF, "neuropil": arrays.DFF[:, :4]}
    )
    write_hostile(bad / "files")
    for number, (change, _) in enumerate(cases(events.test_bad_input_gets_one_line_and_no_file)):
        events.write_folder(bad / "events" / f"case{number:02d}", **change)
    whole = events.write_folder(bad / "events" / "cut") / "events.npz"
    whole.write_bytes(whole.read_bytes()[:200])
    (events.write_folder(bad / "events" / "field") / "recording.json").write_text(json.dumps({"cre_lin": "x"}))
    write_bad_planes(bad / "suite2p", suite2p)


def write_hostile(folder: Path) -> None:
    """Write arrays that claim, hide or lack something, each as the dff of a folder."""
    module, flat = helper("sources.test_array_files"), folder / "flat"
    flat.mkdir(parents=True)
    module.write_all(flat)
    module.bomb(flat)
    np.save(flat / "pickle.npy", np.array([{}]), allow_pickle=True)
    np.savez(flat / "pickled.npz", a=np.array([{}]))
    np.save(flat / "text.npy", np.array(["x"]))
    np.save(flat / "complex.npy", np.array([1j]))
    for name, text in {"words": "x,y\n1,2\n3,oops\n", "empty": "", "names_only": "x,y\n"}.items():
        (flat / f"{name}.csv").write_text(text)
    (flat / "binary.csv").write_bytes(bytes(range(256)))
    for path in [*flat.glob("a.np*"), flat / "a.mat"]:
        (flat / f"short{path.suffix}").write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for path in sorted(flat.iterdir()):
        where = folder / slug(path.name)
        where.mkdir()
        path.rename(where / f"dff{path.suffix}")
    flat.rmdir()


def write_bad_planes(folder: Path, suite2p: Any) -> None:
    """Write folders of suite2p that lack something or contradict themselves."""
    for name, _ in cases(suite2p.test_missing_files_are_named):
        (suite2p.write_plane(folder / f"no_{slug(name)}" / "suite2p" / "plane0") / name).unlink()
    for number, (change, _) in enumerate(cases(suite2p.test_inconsistent_files_are_named)):
        suite2p.write_plane(folder / f"inconsistent{number}" / "suite2p" / "plane0", **change)
    plane = suite2p.write_plane(folder / "iscell" / "suite2p" / "plane0")
    np.save(plane / "iscell.npy", np.ones((5, 2)))
    for number, (content, _) in enumerate(cases(suite2p.test_nothing_is_run_or_allocated_by_a_pickle)):
        plane = suite2p.write_plane(folder / f"pickle{number}" / "suite2p" / "plane0")
        np.save(plane / "ops.npy", np.array({"fs": 30.0, "evil": content}, dtype=object), allow_pickle=True)
    for number, (content, _) in enumerate(cases(suite2p.test_settings_without_a_rate_say_why)):
        plane = suite2p.write_plane(folder / f"settings{number}" / "suite2p" / "plane0", old=False)
        np.save(plane / "settings.npy", np.array(content, dtype=object), allow_pickle=True)


def write_runs(folder: Path) -> None:
    """Write a simulated data folder, its selection and splits, two runs and their predictions."""
    data, runs = folder / "data", folder / "runs"
    poyo("prepare", "observatory", data, "--size", "tiny", "--workers", "1")
    poyo("split", data, "--clip_fraction", "0.1", "--decay_s", "0.1")
    poyo("select", "--data", data, "--out", folder / "selection", "--level", "neuron", "--keep_fraction", "0.5")
    poyo("pretrain", "--data", data, "--out", runs / "encoder", *SMALL, *SHORT)
    common = ["finetune", "--data", data, *SMALL, *SHORT, "--window.window_s"]
    poyo(*common, "1.9", "--out", runs / "gratings", "--value_skip_bins", "2", "--window.bin_frames", "3")
    poyo(*common, "0.5", "--out", runs / "number", "--task", "frame_number")
    poyo("evaluate", runs / "gratings", "--out", folder / "results", "--baselines", "core", "--controls", "false")
    rng = np.random.default_rng(0)
    for run in ("gratings", "number"):
        known = json.loads((runs / run / "recordings.json").read_text())
        name = sorted(known)[0]
        frames = rng.gamma(0.5, 0.3, (100, len(known[name]["unit_ids"]))).astype("<f4")
        frames[5, 2] = frames[80:, 1] = np.nan
        messages = [
            struct.pack("<I", 0 if row in (40, 61) else 4 * len(frame)) + (b"" if row in (40, 61) else frame.tobytes())
            for row, frame in enumerate(frames)
        ]
        (folder / f"frames_{run}.bin").write_bytes(b"".join(messages) + struct.pack("<I", 7) + bytes(7))
        (folder / f"recording_{run}.txt").write_text(name)


def write_bad_runs(bad: Path, folder: Path) -> None:
    """Write runs, selections, data folders and predictions with one file or array each missing or damaged."""
    runs = {
        "gratings": (
            "run.json",
            "config.yaml",
            "splits.json",
            "vocabulary.json",
            "recordings.json",
            "model.safetensors",
            "normalisation.safetensors",
            "checkpoints/last.ckpt",
        )
    }
    runs["encoder"] = ("run.json", "vocabulary.json", "model.safetensors")
    for run, names in runs.items():
        for name in names:
            for how in ("gone", "cut", "list"):
                where = bad / "runs" / f"{run}_{slug(name)}_{how}"
                shutil.copytree(folder / "runs" / run, where, ignore=shutil.ignore_patterns("log"))
                path = where / name
                if how == "gone":
                    path.unlink()
                else:
                    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if how == "cut" else b"[]")
    predictions = sorted((folder / "results" / "predictions").rglob("*.h5"))[0]
    with h5py.File(predictions) as file:
        arrays = [name for name, item in file.items() if isinstance(item, h5py.Dataset)]
        attributes = list(file.attrs)
    changes: dict[str, Callable[[h5py.File], None]] = {}
    for name in arrays:
        changes[f"no {name}"] = lambda f, name=name: f.__delitem__(name)
        changes[f"short {name}"] = lambda f, name=name: _replace(f, name, f[name][()][:-1])
        changes[f"text {name}"] = lambda f, name=name: _replace(f, name, np.full(f[name].shape, b"x"))
    for name in attributes:
        changes[f"without {name}"] = lambda f, name=name: f.attrs.__delitem__(name)
        changes[f"odd {name}"] = lambda f, name=name: f.attrs.__setitem__(name, "odd")
    spoil(predictions, bad / "predictions", changes)
    (bad / "predictions" / "cut.h5").write_bytes(predictions.read_bytes()[:5000])
    (bad / "predictions" / "text.h5").write_text("no")
    for name in ("selection.csv", "selection.json"):
        for how, content in {"gone": None, "odd": "a,b\n1,2\n"}.items():
            where = bad / "selection" / f"{slug(name)}_{how}"
            shutil.copytree(folder / "selection", where)
            (where / name).unlink(missing_ok=True)
            if content:
                (where / name).write_text(content)
    first = sorted((folder / "data").glob("*.h5"))[0]
    with h5py.File(first) as file:
        groups = list(file)
    spoil(first, bad / "data", {f"no {name}": lambda f, name=name: f.__delitem__(name) for name in groups})
    for path in list((bad / "data").glob("*.h5")):
        (bad / "data" / path.stem).mkdir()
        path.rename(bad / "data" / path.stem / first.name)


def _replace(file: h5py.File, name: str, values: np.ndarray) -> None:
    attributes = dict(file[name].attrs)
    del file[name]
    file[name] = values
    file[name].attrs.update(attributes)


def main() -> None:
    """Write everything."""
    folder = Path(sys.argv[1])
    write_samples(folder / "good")
    write_damaged(folder / "bad", folder / "good")
    write_runs(folder)
    write_bad_runs(folder / "bad", folder)


if __name__ == "__main__":
    main()
