"""From a run folder back to settings and models; nothing in a checkpoint is ever executed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from poyo_ssl.config import FinetuneConfig, ModelConfig, PretrainConfig, from_plain
from poyo_ssl.data.recording import Recording
from poyo_ssl.data.vocabulary import Vocabulary, make_unit_set
from poyo_ssl.data.windows import Normalisation, UnitSet
from poyo_ssl.errors import CheckpointError, RecordingError
from poyo_ssl.models.embeddings import INIT_STD
from poyo_ssl.models.poyo_ssl import PoyoSSL
from poyo_ssl.training import run_folder
from poyo_ssl.training.tasks import make_readout

CONFIGS = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}


def read_arguments(folder: Path | str) -> dict[str, Any]:
    """Read a run's resolved settings, as keyword arguments of the function that made it.

    Raises
    ------
    CheckpointError
        If the folder holds no run or its settings are damaged.
    """
    folder = Path(folder)
    command = run_folder.read_json(folder, "run.json").get("command")
    if command not in CONFIGS:
        raise CheckpointError(f"{folder} is a run of '{command}'", allowed=" or ".join(CONFIGS), fix="give another")
    try:
        stored = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        names = {f.name for f in fields(CONFIGS[command])}
        config = from_plain(CONFIGS[command], {name: stored.pop(name) for name in list(stored) if name in names})
        stored["config"] = config
    except (OSError, yaml.YAMLError, TypeError, KeyError) as error:
        raise CheckpointError(f"{folder / 'config.yaml'} is damaged ({error})", fix="train again") from None
    return stored


def load_model_config(folder: Path | str) -> ModelConfig:
    """Return the encoder's settings of a run."""
    return read_arguments(folder)["config"].model


def load_encoder(model: PoyoSSL, folder: Path | str) -> dict[str, Any]:
    """Copy everything but the readouts from a run into `model`, in place.

    `model` must have the run's vocabulary; grow it afterwards.

    Returns
    -------
    dict
        What was loaded and what stayed fresh: ``from``, ``tensors``, ``parameters``, ``fresh`` (names).

    Raises
    ------
    CheckpointError
        If the weights are missing, damaged, or of another model.
    """
    path = Path(folder) / run_folder.WEIGHTS["valid"]
    stored = {k: v for k, v in run_folder.read_tensors(path).items() if not k.startswith("readouts.")}
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

    Returns
    -------
    dict
        What was loaded and what stayed fresh: ``from``, ``tensors``, ``parameters``, ``fresh`` (names).
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
    facts = run_folder.read_json(Path(folder), "run.json")
    animals = {item["subject_id"] for item in facts["data"] if "subject_id" in item}
    before = read_arguments(folder).get("pretrained")
    return animals | (seen_animals(before) if before else set())


def _check_match(path: Path, stored: dict[str, NDArray], wanted: dict[str, torch.Tensor]) -> None:
    odd = sorted(set(stored) ^ set(wanted))
    odd += [name for name in set(stored) & set(wanted) if stored[name].shape != tuple(wanted[name].shape)]
    if odd:
        raise CheckpointError(
            f"{path} is of another model: {len(odd)} tensors differ, '{odd[0]}' first",
            fix="give the run that belongs to these settings",
        )


def _make_model(
    config: Any,
    task: str,
    vocabulary: Vocabulary,
    class_values: NDArray[np.float64] | None,
    *,
    generator: torch.Generator | None = None,
) -> PoyoSSL:
    finetuning = config if isinstance(config, FinetuneConfig) else FinetuneConfig()
    return PoyoSSL(
        config.model,
        num_units=vocabulary.num_units,
        num_sessions=vocabulary.num_sessions,
        readouts={task: make_readout(finetuning, class_values)},
        generator=generator,
    )


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
    config: Any
    task: str
    model: PoyoSSL
    vocabulary: Vocabulary
    class_values: NDArray[np.float64] | None
    num_frames: int
    normalisation: dict[str, Normalisation]
    columns: dict[str, NDArray]
    movie_frame_s: float = 0.0
    weights: str = run_folder.WEIGHTS["valid"]

    @classmethod
    def open(cls, folder: Path | str, *, validation: str = "valid") -> TrainedRun:
        """Load a run's model.

        Parameters
        ----------
        folder : path
            The run folder.
        validation : {'valid', 'valid_clip'}
            Validation part whose best epoch is wanted: 'valid_clip' for the decoding of frames that never trained.
            A run that kept one epoch only gives that one.

        Raises
        ------
        CheckpointError
            If the folder holds no complete run.
        """
        folder = Path(folder)
        arguments = read_arguments(folder)
        facts = run_folder.read_json(folder, "run.json")
        config = arguments["config"]
        vocabulary, class_values, normalisation, columns = run_folder.read_inputs(folder)
        task = "gratings" if facts["command"] == "pretrain" else config.task
        model = _make_model(config, task, vocabulary, class_values)
        weights = facts.get("weights", {}).get(validation, run_folder.WEIGHTS["valid"])
        path = folder / weights
        stored = run_folder.read_tensors(path)
        _check_match(path, stored, model.state_dict())
        model.load_state_dict({name: torch.from_numpy(value) for name, value in stored.items()})
        frames = facts["num_imaging_frames"]
        step = facts.get("movie_frame_s", 0.0)
        model.eval()
        return cls(folder, config, task, model, vocabulary, class_values, frames, normalisation, columns, step, weights)

    @property
    def has_random_encoder(self) -> bool:
        """Whether a readout was fitted to an encoder that nothing ever trained: a control, not a decoder."""
        alone = isinstance(self.config, FinetuneConfig) and self.config.adapt == "readout"
        return alone and run_folder.read_json(self.folder, "run.json").get("loaded") is None

    def untrained(self, seed: int) -> TrainedRun:
        """Return the same model with weights drawn anew; only the normalisation of its inputs was ever fitted."""
        generator = torch.Generator().manual_seed(seed)
        model = _make_model(self.config, self.task, self.vocabulary, self.class_values, generator=generator)
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
        missing = [ids[c] if c < len(ids) else f"column {c}" for c in columns if c >= len(ids)]
        missing += [ids[c] for c in columns if c < len(ids) and ids[c] not in self.vocabulary.units]
        if missing:
            raise RecordingError(f"recording {name} has other units than in training", fix="give the same file")
        return make_unit_set(recording, columns, self.vocabulary, self.normalisation)
