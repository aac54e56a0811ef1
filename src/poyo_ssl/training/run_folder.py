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
    checkpoints/last.ckpt      state of the training, for resuming; previous.ckpt is that of the epoch before
    log/                       metrics.csv; that of a resumed run in resumed_1 and so on
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch import Tensor

from poyo_ssl.config import FinetuneConfig, PretrainConfig, from_plain
from poyo_ssl.data.recording import Recording
from poyo_ssl.data.splits import VALID_CLIP, Split
from poyo_ssl.data.task import Task, make_readout, task_name
from poyo_ssl.data.units import Neurons, Vocabulary
from poyo_ssl.data.windows import Normalisation, UnitSet
from poyo_ssl.errors import CheckpointError, RecordingError
from poyo_ssl.files import check_ours, plain, read_json, versions, write_beside
from poyo_ssl.models.poyo_ssl import INIT_STD, PoyoSSL
from poyo_ssl.selection.table import Selection

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


def write_facts(folder: Path, **facts: Any) -> None:
    """Add facts to run.json."""
    path = folder / "run.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    write_beside(path, json.dumps(known | plain(facts), indent=1))


def write_inputs(folder: Path, task: Task, neurons: Neurons) -> None:
    """Write splits, vocabulary, normalisation and what the online decoder must know of the recordings."""
    facts = {
        r.recording_id: {
            "rate_hz": r.rate_hz,
            "unit_ids": [str(u) for u in r.unit_ids[neurons.columns[r.recording_id]]],
        }
        for r in task.recordings
    }
    write_beside(folder / "recordings.json", json.dumps(facts))
    parts = {name: split.to_plain() for name, split in task.splits.items()}
    write_beside(folder / "splits.json", json.dumps(parts))
    words = {"units": neurons.vocabulary.units, "sessions": neurons.vocabulary.sessions}
    write_beside(folder / "vocabulary.json", json.dumps(plain(words | {"class_values": task.class_values})))
    tensors: dict[str, NDArray] = {}
    for name, fitted in neurons.normalisation.items():
        tensors |= {f"{name}/{key}": getattr(fitted, key) for key in NORMALISATION}
        tensors |= {f"{name}/compress": np.array(fitted.compress), f"{name}/columns": neurons.columns[name]}
    content = save({key: np.ascontiguousarray(value) for key, value in tensors.items()})
    write_beside(folder / "normalisation.safetensors", content)


def read_splits(folder: Path) -> dict[str, Split]:
    """Read the parts of every recording that a run used."""
    stored = read_json(folder, "splits.json")
    try:
        return {name: Split.from_plain(item) for name, item in stored.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / 'splits.json'} is damaged ({error!r})", fix="train again") from None


def read_neurons(folder: Path | str) -> Neurons:
    """Read rows, columns and normalisation of the neurons that a run reads."""
    words = read_json(Path(folder), "vocabulary.json")
    tensors = read_tensors(Path(folder) / "normalisation.safetensors")
    names = {key.removesuffix("/centre") for key in tensors if key.endswith("/centre")}
    normalisation = {
        name: Normalisation(
            **{key: tensors[f"{name}/{key}"] for key in NORMALISATION}, compress=bool(tensors[f"{name}/compress"])
        )
        for name in names
    }
    columns = {name: tensors[f"{name}/columns"] for name in names}
    return Neurons(Vocabulary(words["units"], words["sessions"]), columns, normalisation)


def read_class_values(folder: Path | str) -> NDArray[np.float64] | None:
    """Read what the classes of a run mean: directions in degrees or frame numbers."""
    values = read_json(Path(folder), "vocabulary.json")["class_values"]
    return None if values is None else np.array(values, float)


def read_tensors(path: Path) -> dict[str, NDArray]:
    """Read a safetensors file; nothing in it is ever executed."""
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
    ConfigError
        If it holds a file that is not the run's.
    """
    read_json(Path(folder), "run.json")
    check_ours(Path(folder), "run")
    shutil.rmtree(folder)


Data = Path | str | Sequence[Recording]
CONFIGS: dict[str, type[PretrainConfig | FinetuneConfig]] = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}


@dataclass(frozen=True)
class RunSettings:
    """What a run was asked for, as config.yaml keeps it; recordings and selections in memory leave null there."""

    config: PretrainConfig | FinetuneConfig
    data: Data | None
    selection: Selection | Path | str | Mapping[str, NDArray] | None = None
    pretrained: Path | str | None = None
    devices: int = 1
    nodes: int = 1
    allow_unfinished: bool = False

    @property
    def command(self) -> str:
        """Name of the command that asks for such a run."""
        return "pretrain" if isinstance(self.config, PretrainConfig) else "finetune"


def write_start(folder: Path, settings: RunSettings, recordings: Sequence[Recording], facts: Mapping[str, Any]) -> None:
    """Write config.yaml and run.json of a run that begins."""
    stored: dict[str, Any] = {"data": settings.data, "selection": settings.selection}
    if settings.command == "finetune":
        stored["pretrained"] = settings.pretrained
    paths = {k: str(Path(v).resolve()) if isinstance(v, (str, Path)) else None for k, v in stored.items()}
    stored = paths | {"devices": settings.devices, "nodes": settings.nodes} | plain(settings.config)
    write_beside(folder / "config.yaml", yaml.safe_dump(stored, sort_keys=False))
    data = [
        {
            "recording_id": r.recording_id,
            "subject_id": r.metadata.subject_id,
            "path": str(r.path.resolve()) if r.path else None,
            "sha256": r.checksum(),
        }
        for r in recordings
    ]
    allowed = {"allow_unfinished": True} if settings.allow_unfinished else {}
    state = {"command": settings.command, "state": "running", "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    made = {"versions": versions(), "git_commit": git_commit(), "data": data}
    write_facts(folder, **facts, **state, **made, **allowed)


def read_settings(folder: Path | str) -> RunSettings:
    """Read what a run was asked for."""
    folder = Path(folder)
    facts = read_json(folder, "run.json")
    command = facts.get("command")
    if command not in CONFIGS:
        raise CheckpointError(f"{folder} is a run of '{command}'", allowed=" or ".join(CONFIGS), fix="give another")
    try:
        stored = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        names = {f.name for f in fields(CONFIGS[command])}
        config = from_plain(CONFIGS[command], {name: stored.pop(name) for name in list(stored) if name in names})
        return RunSettings(config, **stored, allow_unfinished=facts.get("allow_unfinished", False))
    except (OSError, yaml.YAMLError, TypeError, KeyError) as error:
        raise CheckpointError(f"{folder / 'config.yaml'} is damaged ({error})", fix="train again") from None


def require_finished(folder: Path | str, *, allow: bool = False) -> None:
    """Refuse a run whose training was stopped or still goes on, unless that is allowed."""
    state = read_json(Path(folder), "run.json").get("state")
    if state != "finished" and not allow:
        raise CheckpointError(
            f"the training of {folder} is not finished (state '{state}')",
            fix=f"finish it with 'poyo-ssl resume {folder}', or pass --allow-unfinished",
        )


def load_encoder(model: PoyoSSL, folder: Path | str) -> dict[str, Any]:
    """Copy everything but the readouts from a run into `model`, in place.

    `model` must have the run's vocabulary; grow it afterwards.
    """
    path = Path(folder) / WEIGHTS["valid"]
    stored = {k: v for k, v in read_tensors(path).items() if not k.startswith("readouts.")}
    wanted = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("readouts.")}
    _check_match(path, stored, wanted)
    tensors = {name: torch.from_numpy(value) for name, value in stored.items()}
    model.load_state_dict(tensors, strict=False)
    fresh = [name for name in model.state_dict() if name not in stored]
    count = sum(value.size for value in stored.values())
    return {"from": str(folder), "tensors": len(stored), "parameters": int(count), "fresh": fresh}


EMBEDDING_TABLES = ("tokens.units.weight", "sessions.weight")
SKIP_TABLES = (".skip.units.weight", ".skip.centres.weight")
"""How the names of a value skip's tables end; `fit_value_skip` fills those of new recordings."""


def load_all_but_embeddings(model: PoyoSSL, source: TrainedRun) -> dict[str, Any]:
    """Copy everything but the unit and session embeddings into `model`, in place.

    The embeddings' drawn rows are brought to the mean and standard deviation of the source's rows, per dimension: where
    trained embeddings lie, the trained attention can read them.
    """
    stored, own = source.model.state_dict(), model.state_dict()
    fresh = [name for name in stored if name in EMBEDDING_TABLES or name.endswith(SKIP_TABLES)]
    loaded = {name: tensor for name, tensor in stored.items() if name not in fresh}
    model.load_state_dict(loaded, strict=False)
    for name in EMBEDDING_TABLES:
        rows, known = own[name][1:], stored[name][1:]
        # One row has no spread; a session embedding then starts as the only one there is.
        spread = known.std(dim=0) if len(known) > 1 else torch.zeros_like(known[0])
        rows.copy_(known.mean(dim=0) + rows / INIT_STD * spread)
    count = sum(tensor.numel() for tensor in loaded.values())
    return {"from": str(source.folder), "tensors": len(loaded), "parameters": count, "fresh": fresh}


def seen_animals(folder: Path | str) -> set[str]:
    """Return the animals that a run or any run that it started from was trained on."""
    facts = read_json(Path(folder), "run.json")
    animals = {item["subject_id"] for item in facts["data"] if "subject_id" in item}
    before = read_settings(folder).pretrained
    return animals | (seen_animals(before) if before else set())


def _check_match(path: Path, stored: dict[str, NDArray], wanted: dict[str, torch.Tensor]) -> None:
    odd = sorted(set(stored) ^ set(wanted))
    odd += [name for name in set(stored) & set(wanted) if stored[name].shape != tuple(wanted[name].shape)]
    if odd:
        raise CheckpointError(
            f"{path} is of another model: {len(odd)} tensors differ, '{odd[0]}' first",
            fix="give the run that belongs to these settings",
        )


def build_model(
    config: PretrainConfig | FinetuneConfig,
    vocabulary: Vocabulary,
    class_values: NDArray[np.float64] | None,
    *,
    generator: torch.Generator | None = None,
) -> PoyoSSL:
    """Build the model of a run, with a readout named like its task."""
    return PoyoSSL(
        config.model,
        num_units=vocabulary.num_units,
        num_sessions=vocabulary.num_sessions,
        readouts={task_name(config): make_readout(config, class_values)},
        generator=generator,
    )


def weights_for(folder: Path, validation: str) -> str:
    """Name the file with the weights of the epoch that a validation part chose."""
    return str(read_json(folder, "run.json").get("weights", {}).get(validation, WEIGHTS["valid"]))


@dataclass(frozen=True)
class TrainedRun:
    """A trained model with all it needs to predict.

    Attributes
    ----------
    folder : Path
        The run folder.
    config : PretrainConfig or FinetuneConfig
        Its settings.
    task : str
        ``gratings``, ``frame_number`` or ``frames``.
    model : PoyoSSL
        In evaluation mode, on the CPU.
    vocabulary : Vocabulary
        Known units and sessions.
    class_values : ndarray, optional
        What the classes mean.
    num_frames : int
        Imaging frames per window.
    normalisation, columns : dict
        How each recording's units are normalised, and which columns of dF/F they are, by recording id.
    movie_frame_s : float
        How long a movie frame is shown; 0 for gratings.
    weights : str
        File of the weights.
    """

    folder: Path
    config: PretrainConfig | FinetuneConfig
    task: str
    model: PoyoSSL
    vocabulary: Vocabulary
    class_values: NDArray[np.float64] | None
    num_frames: int
    normalisation: dict[str, Normalisation]
    columns: dict[str, NDArray]
    movie_frame_s: float = 0.0
    weights: str = WEIGHTS["valid"]

    @classmethod
    def open(cls, folder: Path | str, *, validation: str = "valid", allow_unfinished: bool = False) -> TrainedRun:
        """Load a run's model.

        Parameters
        ----------
        folder : path
            The run folder.
        validation : {'valid', 'valid_clip'}
            Validation part whose best epoch is wanted: 'valid_clip' for the decoding of frames that never trained.
            A run that kept one epoch only gives that one.
        allow_unfinished : bool
            Take a run whose training was stopped or still goes on.

        Raises
        ------
        CheckpointError
            If the folder holds no complete run, or its training is not finished.
        """
        folder = Path(folder)
        config, facts = read_settings(folder).config, read_json(folder, "run.json")
        require_finished(folder, allow=allow_unfinished)
        neurons, class_values = read_neurons(folder), read_class_values(folder)
        model = build_model(config, neurons.vocabulary, class_values)
        weights = weights_for(folder, validation)
        path = folder / weights
        stored = read_tensors(path)
        _check_match(path, stored, model.state_dict())
        model.load_state_dict({name: torch.from_numpy(value) for name, value in stored.items()})
        return cls(
            folder,
            config,
            task_name(config),
            model.eval(),
            neurons.vocabulary,
            class_values,
            facts["num_imaging_frames"],
            dict(neurons.normalisation),
            dict(neurons.columns),
            facts.get("movie_frame_s", 0.0),
            weights,
        )

    @property
    def has_random_encoder(self) -> bool:
        """Whether a readout was fitted to an encoder that nothing ever trained: a control, not a decoder."""
        alone = isinstance(self.config, FinetuneConfig) and self.config.adapt == "readout"
        return alone and read_json(self.folder, "run.json").get("loaded") is None

    def untrained(self, seed: int) -> TrainedRun:
        """Return the same model with weights drawn anew; only the normalisation of its inputs was ever fitted."""
        generator = torch.Generator().manual_seed(seed)
        model = build_model(self.config, self.vocabulary, self.class_values, generator=generator)
        return replace(self, model=model.eval())

    def model_id(self) -> str:
        """Return the first 16 hexadecimal digits of the SHA-256 of the run's weights."""
        with (self.folder / self.weights).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]

    def unit_set(self, recording: Recording) -> UnitSet:
        """Return the units of a known recording as this run saw them.

        Raises
        ------
        RecordingError
            If the run never saw the recording, or its units have changed.
        """
        name = recording.recording_id
        columns = self.columns.get(name)
        if columns is None:
            raise RecordingError(
                f"recording {name} is not known to {self.folder}",
                allowed=", ".join(sorted(self.columns)[:8]) + (" ..." if len(self.columns) > 8 else ""),
                fix="fine-tune on it first: its units have no embedding",
            )
        ids = [f"{name}/{unit}" for unit in recording.unit_ids]
        if any(column >= len(ids) or ids[column] not in self.vocabulary.units for column in columns):
            raise RecordingError(f"recording {name} has other units than in training", fix="give the same file")
        return Neurons(self.vocabulary, self.columns, self.normalisation).unit_set(recording)


def decide(run: TrainedRun, probabilities: NDArray) -> NDArray[np.int64]:
    """Turn class probabilities ``(B, K)`` into classes ``(B,)``, by the run's rule."""
    reach = 0
    if isinstance(run.config, FinetuneConfig) and run.task == "frame_number":
        reach = round(run.config.tolerance_s / run.movie_frame_s)
    return decide_frame(torch.from_numpy(probabilities), reach=reach).numpy()


def decide_frame(probabilities: Tensor, *, reach: int) -> Tensor:
    """Name the movie frame with the most probability within `reach` frames on either side.

    It maximises the expected rate of answers within the tolerance.
    """
    summed = F.pad(probabilities.double().cumsum(dim=-1), (1, 0))
    place = torch.arange(probabilities.shape[-1], device=probabilities.device)
    high = (place + reach + 1).clamp(max=probabilities.shape[-1])
    return (summed[:, high] - summed[:, (place - reach).clamp(min=0)]).argmax(dim=-1)
