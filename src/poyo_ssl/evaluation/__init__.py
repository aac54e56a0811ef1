"""Room `evaluation`: predictions files, their scores, simple baselines and the statistics of comparisons.

It knows no model: everything here works on a predictions file or on plain arrays.
"""

from poyo_ssl.evaluation.baselines import Baseline, frame_baselines, frame_number_baselines, gratings_baselines
from poyo_ssl.evaluation.features import bin_features
from poyo_ssl.evaluation.frame_images import nearest_training_frame
from poyo_ssl.evaluation.leaderboard import (
    Comparison,
    EffectSize,
    Scores,
    compare_arms,
    effect_size,
    evaluate_files,
    holm,
)
from poyo_ssl.evaluation.predictions import Predictions, PredictionsError, PredictionsWriter
from poyo_ssl.evaluation.scores import score_table
from poyo_ssl.evaluation.statistics import (
    Estimate,
    Interval,
    estimate_difference,
    estimate_mean,
    estimate_over_seeds,
    paired_interval,
    paired_p_value,
    t_interval,
)

__all__ = [
    "Baseline",
    "Comparison",
    "EffectSize",
    "Estimate",
    "Interval",
    "Predictions",
    "PredictionsError",
    "PredictionsWriter",
    "Scores",
    "bin_features",
    "compare_arms",
    "effect_size",
    "estimate_difference",
    "estimate_mean",
    "estimate_over_seeds",
    "evaluate_files",
    "frame_baselines",
    "frame_number_baselines",
    "gratings_baselines",
    "holm",
    "nearest_training_frame",
    "paired_interval",
    "paired_p_value",
    "score_table",
    "t_interval",
]
