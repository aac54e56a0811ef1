"""The model on a CUDA device: the CPU's numbers, bf16 close to them, and a step that never waits."""

import pytest
import torch

from poyo_ssl.config import ModelConfig, ObjectiveConfig, OptimConfig, ReadoutConfig
from poyo_ssl.models import PoyoSSL, TwinPretrainer
from poyo_ssl.training.modules import make_optimizer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def build(**settings):
    config = ModelConfig(**{"dim": 32, "dim_head": 16, "self_heads": 4, "depth": 2, "latent_step_s": 0.05, **settings})
    return PoyoSSL(
        config,
        num_units=9,
        num_sessions=3,
        readouts={"gratings": ReadoutConfig()},
        generator=torch.Generator().manual_seed(0),
    )


def output_and_gradients(model, batch):
    model.zero_grad()
    out = model(batch, "gratings")
    (out * torch.arange(out.numel(), device=out.device, dtype=out.dtype).view_as(out).cos()).sum().backward()
    return [out.detach().cpu(), *(p.grad.cpu() for p in model.parameters())]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("settings", [{}, {"causal_cross_attention": True}, {"value_embedding": "per_unit"}])
def test_gpu_gives_the_numbers_of_the_cpu(make_batch, settings, padded):
    batch = make_batch(padded=padded)
    model = build(**settings).double().eval()
    on_cpu = output_and_gradients(model, batch)
    on_gpu = output_and_gradients(model.cuda(), batch.to("cuda"))
    for one, other in zip(on_gpu, on_cpu, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("form", ["grid", "plain", "streamed"])
def test_every_form_runs_in_bf16(make_batch, form):
    batch, model = make_batch().to("cuda"), build().cuda().eval()
    exact = model.encode(batch, form="plain").values
    with torch.autocast("cuda", torch.bfloat16):
        values = model.encode(batch, form=form).values
    assert (values - exact).abs().max() / exact.abs().max() < 0.05


@pytest.mark.parametrize("masked_pass_residuals", [True, False])
@pytest.mark.parametrize("masking", ["causal", "random", "block"])
def test_a_training_step_never_waits_for_the_gpu(make_batch, masking, masked_pass_residuals):
    target = torch.tensor([1, -1, 3])
    batch = make_batch(target=target).pin_memory().to("cuda", non_blocking=True)
    objective = ObjectiveConfig(masking=masking, masked_pass_residuals=masked_pass_residuals)
    twin = TwinPretrainer(build(), objective).cuda().train()
    optimizer = make_optimizer(twin, OptimConfig())
    generator = torch.Generator().manual_seed(0)

    def step():
        with torch.autocast("cuda", torch.bfloat16):
            loss = twin(batch, generator).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # workspaces are made in the first one
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
