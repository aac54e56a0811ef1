"""Room `evaluation`: predictions files, their scores, simple baselines and the statistics of comparisons.

It knows no model: everything here works on a predictions file or on plain arrays.
"""

from poyo_ssl.evaluation.baselines import (
    Baseline,
    frame_baselines,
    frame_number_baselines,
    gratings_baselines,
    nearest_training_frame,
)
from poyo_ssl.evaluation.features import bin_features
from poyo_ssl.evaluation.predictions import Predictions, PredictionsError
from poyo_ssl.evaluation.scores import score_table
from poyo_ssl.evaluation.statistics import (
    Interval,
    animal_interval,
    cohens_dz,
    holm,
    paired_animal_interval,
    paired_interval,
    paired_p_value,
    t_interval,
)

__all__ = [
    "Baseline",
    "Interval",
    "Predictions",
    "PredictionsError",
    "animal_interval",
    "bin_features",
    "cohens_dz",
    "frame_baselines",
    "frame_number_baselines",
    "gratings_baselines",
    "holm",
    "nearest_training_frame",
    "paired_animal_interval",
    "paired_interval",
    "paired_p_value",
    "score_table",
    "t_interval",
]
