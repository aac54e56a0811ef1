"""Settings as frozen dataclasses; jsonargparse turns them into flags and YAML and back.

Every field is documented here and nowhere else; `--help` prints these lines.
"""

from poyo_ssl.config.checks import check
from poyo_ssl.config.data import SelectionConfig, SplitConfig, WindowConfig
from poyo_ssl.config.model import MODEL_SIZES, ModelConfig, MovieLossConfig, ObjectiveConfig, ReadoutConfig
from poyo_ssl.config.training import FinetuneConfig, OptimConfig, PretrainConfig, Task, from_plain

__all__ = [
    "MODEL_SIZES",
    "FinetuneConfig",
    "ModelConfig",
    "MovieLossConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "PretrainConfig",
    "ReadoutConfig",
    "SelectionConfig",
    "SplitConfig",
    "Task",
    "WindowConfig",
    "check",
    "from_plain",
]
