"""What this room's tests share: two small recordings on disk and settings that train in a second."""

import shutil
from pathlib import Path

import pytest

from poyo_ssl.config import FinetuneConfig, OptimConfig, PretrainConfig, SplitConfig, WindowConfig
from poyo_ssl.models.poyo_ssl import model_config
from poyo_ssl.training.train import finetune, pretrain

MODEL = model_config("tiny", latent_step_s=0.25, num_latents_per_step=2, attention_dropout=0.0)
OPTIM = OptimConfig(epochs=2, batch_size=16)


@pytest.fixture(scope="session")
def pair(tiny, tmp_path_factory) -> Path:
    """Return a data folder with two of the tiny recordings."""
    folder = tmp_path_factory.mktemp("training") / "pair"
    shutil.copytree(tiny / "stimuli", folder / "stimuli")
    for path in sorted(tiny.glob("*.h5"))[:2]:
        shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="session")
def pretrain_config() -> PretrainConfig:
    return PretrainConfig(model=MODEL, window=WindowConfig(window_s=1.9, units="all"), optim=OPTIM)


@pytest.fixture(scope="session")
def finetune_config() -> FinetuneConfig:
    return FinetuneConfig(
        frame_height=16,
        frame_width=32,
        model=MODEL,
        window=WindowConfig(window_s=0.5, units="all"),
        # A short decay and clip leave the tiny movie of 150 frames some training frames.
        split=SplitConfig(clip_fraction=0.1, decay_s=0.1),
        optim=OPTIM,
    )


@pytest.fixture(scope="session")
def pretrained(pair, pretrain_config, tmp_path_factory) -> Path:
    """Return the folder of a finished pretraining; not to be written to."""
    return pretrain(pair, tmp_path_factory.mktemp("runs") / "pretrained", config=pretrain_config, progress=False)


@pytest.fixture(scope="session")
def finetuned(pair, finetune_config, pretrained, tmp_path_factory) -> Path:
    """Return the folder of a finished fine-tuning of the pretrained encoder; not to be written to."""
    out = tmp_path_factory.mktemp("runs") / "finetuned"
    return finetune(pair, out, config=finetune_config, pretrained=pretrained, progress=False)
