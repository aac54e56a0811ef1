"""poyo-ssl: decode what a mouse saw from two-photon calcium imaging, and know whether the decoding is real.

Everything the commands do is a call:

>>> import poyo_ssl
>>> sorted(poyo_ssl.__all__)[:4]
['FinetuneConfig', 'ModelConfig', 'PoyoError', 'Presentations']

Names are imported on first use, so that ``import poyo_ssl`` does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poyo_ssl.config import (
        FinetuneConfig,
        ModelConfig,
        PretrainConfig,
        SelectionConfig,
        SplitConfig,
        WindowConfig,
    )
    from poyo_ssl.data.recording import Recording, RecordingMetadata, open_recordings
    from poyo_ssl.data.stimuli import Presentations
    from poyo_ssl.data.task import allowed_domain
    from poyo_ssl.errors import PoyoError
    from poyo_ssl.evaluation.evaluate import evaluate
    from poyo_ssl.observatory import generate_observatory
    from poyo_ssl.report import write_report
    from poyo_ssl.selection.table import Selection, fit_selection
    from poyo_ssl.sources import prepare_events
    from poyo_ssl.training.predict import predict
    from poyo_ssl.training.run_folder import TrainedRun, delete_run, list_runs
    from poyo_ssl.training.train import finetune, pretrain, resume

_HOMES = {
    "FinetuneConfig": "config",
    "ModelConfig": "config",
    "PretrainConfig": "config",
    "SelectionConfig": "config",
    "SplitConfig": "config",
    "WindowConfig": "config",
    "Recording": "data.recording",
    "RecordingMetadata": "data.recording",
    "open_recordings": "data.recording",
    "Presentations": "data.stimuli",
    "PoyoError": "errors",
    "generate_observatory": "observatory",
    "write_report": "report",
    "Selection": "selection.table",
    "fit_selection": "selection.table",
    "prepare_events": "sources",
    "evaluate": "evaluation.evaluate",
    "predict": "training.predict",
    "TrainedRun": "training.run_folder",
    "finetune": "training.train",
    "pretrain": "training.train",
    "resume": "training.train",
    "delete_run": "training.run_folder",
    "list_runs": "training.run_folder",
    "allowed_domain": "data.task",
}

__all__ = [
    "FinetuneConfig",
    "ModelConfig",
    "PoyoError",
    "Presentations",
    "PretrainConfig",
    "Recording",
    "RecordingMetadata",
    "Selection",
    "SelectionConfig",
    "SplitConfig",
    "TrainedRun",
    "WindowConfig",
    "allowed_domain",
    "delete_run",
    "evaluate",
    "finetune",
    "fit_selection",
    "generate_observatory",
    "list_runs",
    "open_recordings",
    "predict",
    "prepare_events",
    "pretrain",
    "resume",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'poyo_ssl' has no attribute '{name}'")
    return getattr(import_module(f"poyo_ssl.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
