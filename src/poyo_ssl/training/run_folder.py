"""A run folder: everything a run was made from and everything it left.

::

    config.yaml                every setting, resolved; the command reads it back with --config
    run.json                   command, inputs with checksums, versions, git commit, state
    splits.json                parts of every recording in seconds
    vocabulary.json            rows of the embeddings, class values
    normalisation.safetensors  centre and scale of every unit
    model.safetensors          weights
    checkpoints/last.ckpt      state of the training, for resuming
    log/                       TensorBoard events and metrics.csv; that of a resumed run in resumed_1 and so on
"""

from __future__ import annotations

import dataclasses
import json
import platform
import shutil
import subprocess
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from poyo_ssl.data.intervals import as_intervals
from poyo_ssl.data.recording import Recording
from poyo_ssl.data.splits import Split
from poyo_ssl.data.vocabulary import Vocabulary
from poyo_ssl.data.windows import Normalisation
from poyo_ssl.errors import CheckpointError, ConfigError

PACKAGES = ("poyo-ssl", "torch", "lightning", "numpy", "scipy", "h5py", "scikit-learn", "scikit-image", "safetensors")

NORMALISATION = ("centre", "scale", "mean", "spread")


def process_rank() -> int:
    """Return this process's number among those that Lightning or a cluster started; 0 writes the files."""
    return int(getattr(rank_zero_only, "rank", 0))


def write_beside(path: Path, text: str) -> None:
    """Write a text file so that a reader, or a kill, never finds half of it."""
    beside = path.with_name(path.name + ".partial")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def plain(value: Any) -> Any:
    """Turn dataclasses, tuples, paths and numpy numbers into what JSON and YAML can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    return str(value) if isinstance(value, Path) else value


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_commit() -> str | None:
    """Return the commit that the package's source is at (with ``+changes``), or None outside a checkout."""
    here = Path(__file__).parent

    def ask(*arguments: str) -> str | None:
        try:
            answer = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None

    commit = ask("rev-parse", "HEAD")
    # An installed copy may lie inside somebody else's checkout, whose commit says nothing about us.
    if commit is None or not ask("ls-files", str(here / "run_folder.py")):
        return None
    return commit + ("+changes" if ask("status", "--porcelain") else "")


def check_new(path: Path, *, overwrite: bool) -> None:
    """Refuse a folder that may not be written to.

    Raises
    ------
    ConfigError
        If it exists and holds anything, unless `overwrite`; a folder that holds neither a run nor results of ours
        is never removed.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not overwrite:
        raise ConfigError(f"output folder {path} exists", fix="choose another or pass --overwrite")
    if not path.is_dir() or not any((path / mark).exists() for mark in ("run.json", "results.json", "run")):
        raise ConfigError(f"{path} is no folder of a run", fix="choose another output folder")


def new_folder(path: Path, *, overwrite: bool) -> Path:
    """Make an empty folder for results, in place of an earlier one if `check_new` lets it pass."""
    path = Path(path)
    check_new(path, overwrite=overwrite)
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)
    return path


def write_start(
    folder: Path, *, command: str, arguments: Mapping[str, Any], recordings: list[Recording], **facts: Any
) -> None:
    """Write config.yaml and run.json of a run that begins."""
    write_beside(folder / "config.yaml", yaml.safe_dump(plain(arguments), sort_keys=False))
    data = [
        {
            "recording_id": r.recording_id,
            "subject_id": r.metadata.subject_id,
            "path": str(r.path.resolve()) if r.path else None,
            "sha256": r.checksum(),
        }
        for r in recordings
    ]
    facts |= {"command": command, "state": "running", "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    write_facts(folder, **facts, versions=versions(), git_commit=git_commit(), data=data)


def write_facts(folder: Path, **facts: Any) -> None:
    """Add facts to run.json."""
    path = folder / "run.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    write_beside(path, json.dumps(known | plain(facts), indent=1))


def read_json(folder: Path, name: str) -> Any:
    """Read one of a run's JSON files.

    Raises
    ------
    CheckpointError
        If the folder is no run, or the file is missing or damaged.
    """
    try:
        return json.loads((Path(folder) / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not a complete run: no {name}", fix="give the folder of a run") from None
    except (json.JSONDecodeError, UnicodeDecodeError, NotADirectoryError) as error:
        raise CheckpointError(f"{Path(folder) / name} is damaged ({error})", fix="train again") from None


def write_inputs(
    folder: Path,
    *,
    splits: Mapping[str, Split],
    vocabulary: Vocabulary,
    class_values: NDArray[np.float64] | None,
    normalisation: Mapping[str, Normalisation],
    units: Mapping[str, NDArray],
) -> None:
    """Write splits, vocabulary and normalisation."""
    parts = {name: {"parts": plain(dict(s.parts)), "unused": dict(s.unused)} for name, s in splits.items()}
    write_beside(folder / "splits.json", json.dumps(parts))
    words = {"units": vocabulary.units, "sessions": vocabulary.sessions, "class_values": class_values}
    write_beside(folder / "vocabulary.json", json.dumps(plain(words)))
    tensors: dict[str, NDArray] = {}
    for name, fitted in normalisation.items():
        tensors |= {f"{name}/{key}": getattr(fitted, key) for key in NORMALISATION}
        tensors |= {f"{name}/compress": np.array(fitted.compress), f"{name}/columns": units[name]}
    beside = folder / "normalisation.partial"
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, beside)
    beside.replace(folder / "normalisation.safetensors")


def read_splits(folder: Path) -> dict[str, Split]:
    """Read the parts of every recording that a run used."""
    stored = read_json(folder, "splits.json")
    return {
        name: Split({part: as_intervals(spans) for part, spans in item["parts"].items()}, item["unused"])
        for name, item in stored.items()
    }


def read_inputs(
    folder: Path,
) -> tuple[Vocabulary, NDArray[np.float64] | None, dict[str, Normalisation], dict[str, NDArray]]:
    """Read vocabulary, class values, normalisation and columns of the units that a run used."""
    words = read_json(folder, "vocabulary.json")
    tensors = read_tensors(folder / "normalisation.safetensors")
    names = {key.removesuffix("/centre") for key in tensors if key.endswith("/centre")}
    normalisation = {
        name: Normalisation(
            **{key: tensors[f"{name}/{key}"] for key in NORMALISATION}, compress=bool(tensors[f"{name}/compress"])
        )
        for name in names
    }
    columns = {name: tensors[f"{name}/columns"] for name in names}
    values = None if words["class_values"] is None else np.array(words["class_values"], float)
    return Vocabulary(words["units"], words["sessions"]), values, normalisation, columns


def read_tensors(path: Path) -> dict[str, NDArray]:
    """Read a safetensors file; nothing in it is ever executed.

    Raises
    ------
    CheckpointError
        If the file is missing or damaged.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"no {path}", fix="let the run finish an epoch, or resume it") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error})", fix="train again") from None


def list_runs(folder: Path | str) -> list[dict[str, Any]]:
    """List the runs below a folder: path, command, state, start and task of each, oldest first.

    Examples
    --------
    >>> import tempfile
    >>> list_runs(tempfile.mkdtemp())
    []
    """
    runs = []
    for path in Path(folder).rglob("run.json"):
        facts = read_json(path.parent, "run.json")
        keys = ("command", "task", "state", "started", "finished")
        runs.append({"path": path.parent} | {key: facts.get(key) for key in keys})
    return sorted(runs, key=lambda run: str(run["started"]))


def delete_run(folder: Path | str) -> None:
    """Delete a run's folder.

    Raises
    ------
    CheckpointError
        If the folder holds no run.
    """
    read_json(Path(folder), "run.json")
    shutil.rmtree(folder)
