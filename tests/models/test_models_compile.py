"""The model under torch.compile: the same numbers, and never needed."""

from dataclasses import replace

import pytest
import torch

from poyo_ssl.config import ModelConfig, ReadoutConfig
from poyo_ssl.models import PoyoSSL


# Dynamo makes an instance of autograd's Function, which warns about it.
@pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning")
@pytest.mark.slow
def test_compiled_model_gives_the_same_output_and_gradients(make_batch):
    config = ModelConfig(dim=12, dim_head=8, self_heads=3, depth=1, num_latents_per_step=3, latent_step_s=0.05)
    model = PoyoSSL(
        config,
        num_units=9,
        num_sessions=3,
        readouts={"gratings": ReadoutConfig()},
        generator=torch.Generator().manual_seed(0),
    )
    model = model.double().eval()
    batch = make_batch()
    results = []
    # Traced and differentiated ahead of time, but not turned into machine code: that would take a minute.
    for run in (model, torch.compile(model, backend="aot_eager")):
        dff = batch.dff.clone().requires_grad_()
        out = run(replace(batch, dff=dff), "gratings")
        weights = torch.arange(out.numel(), dtype=out.dtype).view_as(out).cos()
        leaves = [dff, *(p for p in model.parameters())]
        results.append([out, *torch.autograd.grad((out * weights).sum(), leaves)])
    for compiled, plain in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(compiled, plain, rtol=0, atol=1e-12)
