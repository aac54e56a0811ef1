"""What this room's tests share: a recording in memory, and runs with random weights that know it."""

from pathlib import Path

import numpy as np
import torch

from poyo_ssl.config import FinetuneConfig, ModelConfig, ReadoutConfig, WindowConfig
from poyo_ssl.data.recording import Recording, RecordingMetadata
from poyo_ssl.data.units import Vocabulary
from poyo_ssl.data.windows import Normalisation
from poyo_ssl.models.poyo_ssl import PoyoSSL
from poyo_ssl.training.run_folder import TrainedRun

RATE_HZ = 30.08
NUM_UNITS = 7
READOUTS = {
    "gratings": ReadoutConfig("classes", num_classes=8),
    "skip": ReadoutConfig("classes", num_classes=8, value_skip_bins=4, value_skip_dim=5),
    "frame_number": ReadoutConfig("classes", num_classes=20),
    "position": ReadoutConfig("position"),
    "frames": ReadoutConfig("frames", height=16, width=32),
}


def make_recording() -> Recording:
    """Return 60 frames of seven neurons on a clock with jitter."""
    rng = np.random.default_rng(1)
    stamps = 3.0 + np.arange(60) / RATE_HZ + rng.uniform(-2e-3, 2e-3, 60)
    return Recording("one", rng.gamma(1.0, size=(60, NUM_UNITS)).astype(np.float32), stamps, RecordingMetadata("m"))


def make_run(output="gratings", *, num_frames=12, dtype=torch.float64, normalise=True, window=None, **model):
    """Return a run that nobody trained, in float64 unless asked otherwise."""
    task = {"position": "frame_number", "skip": "gratings"}.get(output, output)
    settings = {"dim": 16, "dim_head": 8, "depth": 2, "num_latents_per_step": 3, **model}
    config = FinetuneConfig(
        task=task,
        readout="position" if output == "position" else "classes",
        model=ModelConfig(**settings),
        window=WindowConfig(units="all", **(window or {})),
    )
    weights = torch.Generator().manual_seed(0)
    readouts = {task: READOUTS[output]}
    net = PoyoSSL(config.model, num_units=9, num_sessions=2, readouts=readouts, generator=weights).to(dtype).eval()
    with torch.no_grad():
        for tensor in [*net.parameters(), *net.buffers()]:
            # Convolutions of one sign would saturate every pixel.
            if tensor is not net.rotary.omega and tensor.is_floating_point() and tensor.ndim < 4:
                tensor += 0.3 * torch.rand(tensor.shape, generator=weights).to(tensor)
    rng = np.random.default_rng(2)
    normalisation = Normalisation.identity(NUM_UNITS, compress=normalise)
    if normalise:
        for name in ("centre", "scale", "mean", "spread"):
            getattr(normalisation, name)[:] = rng.uniform(0.5, 1.5, NUM_UNITS)
    # Rows in another order than columns, as after growing a vocabulary.
    rows = {f"one/roi_{i:04d}": int(row) for i, row in enumerate(rng.permutation(9)[:NUM_UNITS] + 1)}
    return TrainedRun(
        folder=Path("untrained"),
        config=config,
        task=task,
        model=net,
        vocabulary=Vocabulary(rows, {"one": 2}),
        class_values=None if output == "frames" else np.arange(READOUTS[output].num_classes) * 45.0,
        num_frames=num_frames,
        normalisation={"one": normalisation},
        columns={"one": np.arange(NUM_UNITS)},
        movie_frame_s=1 / 30,
    )
