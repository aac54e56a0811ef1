"""The model, its pretraining objective and its losses."""

from poyo_ssl.models.losses import MovieLoss
from poyo_ssl.models.poyo_ssl import PoyoSSL, count_parameters, model_config
from poyo_ssl.models.pretraining import TwinPretrainer, is_collapsed, latent_diagnostics

__all__ = [
    "MovieLoss",
    "PoyoSSL",
    "TwinPretrainer",
    "count_parameters",
    "is_collapsed",
    "latent_diagnostics",
    "model_config",
]
