"""Every number of the published study, once, with where it comes from.

Source: Bae, Azabou, Cha and Richards, "Decoding Dynamic Visual Experience from Calcium Imaging via
Cell-Pattern-Aware SSL" (arXiv 2510.18516, POYO-SSL, later POYO-CAP). "Described" is what the paper says,
"coded" what the authors' release does; where the two differ the name says which one is meant.
"""

from __future__ import annotations

from types import MappingProxyType

# Selection (section "Cell-pattern-aware selection"): a line is predictable strictly below both thresholds.
SKEWNESS_THRESHOLD = 3.51
KURTOSIS_THRESHOLD = 22.62
MIN_LINES_FOR_KNEE = 8
"""Ours: a knee of fewer line means than this is not fitted."""

CRE_LINES = (
    "Cux2-CreERT2",
    "Emx1-IRES-Cre",
    "Fezf2-CreER",
    "Nr5a1-Cre",
    "Ntsr1-Cre_GN220",
    "Pvalb-IRES-Cre",
    "Rbp4-Cre_KL100",
    "Rorb-IRES2-Cre",
    "Scnn1a-Tg3-Cre",
    "Slc17a7-IRES2-Cre",
    "Sst-IRES-Cre",
    "Tlx3-Cre_PL56",
    "Vip-IRES-Cre",
)
"""The 13 driver lines of the Allen Brain Observatory, in the Allen's spelling."""

PUBLISHED_PREDICTABLE_LINES = ("Sst-IRES-Cre", "Vip-IRES-Cre", "Pvalb-IRES-Cre", "Ntsr1-Cre_GN220")

# Drifting gratings of the Allen Brain Observatory.
GRATING_DIRECTIONS_DEG = (0.0, 45.0, 90.0, 135.0, 180.0, 225.0, 270.0, 315.0)
GRATING_TEMPORAL_FREQUENCIES_HZ = (1.0, 2.0, 4.0, 8.0, 15.0)

# Imaging and windows.
IMAGING_RATE_HZ = 30.08
PRETRAIN_TRIAL_DILATION_S = 0.5
LATENT_STEP_S = 0.125
NUM_LATENTS_PER_STEP = 16

# Unit dropout (triangular-trapezoidal density over the number of units).
UNIT_DROPOUT_KNOTS = ((10, 1.0), (50, 50.0), (100, 1.0), (300, 1.0))

# Rotary time embedding, as coded; ours is two frames: 2 / rate.
ROTARY_T_MIN_CODED_S = 1e-4
ROTARY_T_MAX_S = 4.0

# Losses.
GRATINGS_LOSS_WEIGHT_DESCRIBED = 0.01
MOVIE_LOSS_WEIGHTS_DESCRIBED = MappingProxyType({"focal": 50.0, "l1": 50.0, "fft": 50.0, "ssim": 0.1})
MOVIE_LOSS_WEIGHTS_CODED_255 = MappingProxyType({"l1": 0.368, "ssim": 20.1})
"""On images of 0-255; the release's other terms are below 1 % of the total."""

# Length of the trainings, as coded.
PRETRAIN_EPOCHS_CODED = 50
FINETUNE_EPOCHS_CODED = 25

# Splits.
GRATINGS_SPLIT_FRACTIONS = (0.7, 0.1, 0.2)
REPEAT_TRAIN = (0, 1, 2, 3, 4, 5, 6, 7)
REPEAT_VALID = (8,)
REPEAT_TEST = (9,)
NEAR_DUPLICATE_CORRELATION = 0.95
NEAR_DUPLICATE_SIZE = (64, 128)
"""Height and width at which frames are compared."""
BLOCK_PAUSE_S = 10.0
"""Ours: a longer pause separates two blocks of a stimulus (300 imaging frames)."""

# Metrics.
SSIM_SIGMA = 1.5
SSIM_DATA_RANGE = 255.0
