"""A run folder: everything a run was made from and everything it left.

::

    config.yaml                every setting, resolved; the command reads it back with --config
    run.json                   command, inputs with checksums, versions, git commit, state
    splits.json                parts of every recording in seconds
    vocabulary.json            rows of the embeddings, class values
    recordings.json            imaging rate and names of the units used, of every recording
    normalisation.safetensors  centre and scale of every unit
    model.safetensors          weights
    model_unseen.safetensors   weights of the epoch that decodes unseen frames best, where a validation clip tells
    checkpoints/last.ckpt      state of the training, for resuming
    log/                       TensorBoard events and metrics.csv; that of a resumed run in resumed_1 and so on
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from poyo_ssl.data.intervals import as_intervals
from poyo_ssl.data.recording import Recording
from poyo_ssl.data.splits import VALID_CLIP, Split
from poyo_ssl.data.vocabulary import Vocabulary
from poyo_ssl.data.windows import Normalisation
from poyo_ssl.errors import CheckpointError
from poyo_ssl.folders import check_new, new_folder, plain, versions, write_beside

__all__ = [
    "check_new",
    "delete_run",
    "git_commit",
    "list_runs",
    "new_folder",
    "plain",
    "process_rank",
    "read_inputs",
    "read_json",
    "read_tensors",
    "versions",
    "write_beside",
    "write_facts",
    "write_inputs",
    "write_start",
]

WEIGHTS = {"valid": "model.safetensors", VALID_CLIP: "model_unseen.safetensors"}
"""File of weights by the validation part that chose their epoch."""
NORMALISATION = ("centre", "scale", "mean", "spread")


def process_rank() -> int:
    """Return this process's number among those that Lightning or a cluster started; 0 writes the files."""
    # Imported here: it takes seconds, which decoding online does not wait for.
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    return int(getattr(rank_zero_only, "rank", 0))


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
        found = json.loads((Path(folder) / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not a complete run: no {name}", fix="give the folder of a run") from None
    except (json.JSONDecodeError, UnicodeDecodeError, NotADirectoryError) as error:
        raise CheckpointError(f"{Path(folder) / name} is damaged ({error})", fix="train again") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{Path(folder) / name} is damaged (no object)", fix="train again")
    return found


def write_inputs(
    folder: Path,
    *,
    splits: Mapping[str, Split],
    vocabulary: Vocabulary,
    class_values: NDArray[np.float64] | None,
    normalisation: Mapping[str, Normalisation],
    units: Mapping[str, NDArray],
    recordings: Sequence[Recording],
) -> None:
    """Write splits, vocabulary, normalisation and what the online decoder must know of the recordings."""
    facts = {
        r.recording_id: {"rate_hz": r.rate_hz, "unit_ids": [str(u) for u in r.unit_ids[units[r.recording_id]]]}
        for r in recordings
    }
    write_beside(folder / "recordings.json", json.dumps(facts))
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
    try:
        return {
            name: Split({part: as_intervals(spans) for part, spans in item["parts"].items()}, item["unused"])
            for name, item in stored.items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / 'splits.json'} is damaged ({error!r})", fix="train again") from None


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
