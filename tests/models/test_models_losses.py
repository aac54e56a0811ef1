"""Each loss against a second implementation."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from skimage.metrics import structural_similarity

from poyo_ssl.config import MovieLossConfig
from poyo_ssl.errors import ConfigError
from poyo_ssl.models.losses import MovieLoss, PerceptualLoss, fft_loss, focal_loss, ssim


@pytest.fixture
def frames():
    rng = np.random.default_rng(0)
    target = rng.random((3, 20, 34)).cumsum(1)
    target /= target.max()
    return np.clip(target + 0.1 * rng.standard_normal(target.shape), 0, 1), target


def as_tensors(frames, dtype=torch.float64):
    return [torch.tensor(x, dtype=dtype) for x in frames]


def test_focal_against_numpy(frames):
    error = np.abs(frames[0] - frames[1])
    assert focal_loss(*as_tensors(frames)).item() == pytest.approx(np.mean(error**2 / error.max()), rel=1e-12)


def test_focal_of_equal_frames_is_zero_with_a_finite_gradient():
    prediction = torch.full((1, 8, 8), 0.5, requires_grad=True)
    loss = focal_loss(prediction, prediction.detach())
    loss.backward()
    assert loss.item() == 0
    assert (prediction.grad == 0).all()


def test_fft_against_numpy(frames):
    spectra = [np.abs(np.fft.fft2(x, norm="ortho")) for x in frames]
    wanted = np.abs(spectra[0] - spectra[1]).mean()
    assert fft_loss(*as_tensors(frames)).item() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("data_range", [1.0, 255.0])
def test_ssim_against_scikit_image(frames, dtype, tolerance, data_range):
    frames = [x * data_range for x in frames]
    found = ssim(*as_tensors(frames, dtype), data_range=data_range)
    for i, (prediction, target) in enumerate(zip(*frames, strict=True)):
        wanted = structural_similarity(
            prediction,
            target,
            data_range=data_range,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert found[i].item() == pytest.approx(wanted, abs=tolerance)


def test_ssim_has_the_gradient_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(1, 12, 11, generator=generator, dtype=torch.float64) for _ in range(2))
    assert torch.autograd.gradcheck(lambda x: ssim(x, y), (x.requires_grad_(),), fast_mode=True)


def test_ssim_of_frames_smaller_than_its_window():
    frames = torch.rand(2, 8, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(ssim(frames, frames), torch.ones(2, dtype=torch.float64))


def test_movie_loss_is_the_weighted_sum_of_its_terms(frames):
    prediction, target = as_tensors(frames)
    total, terms = MovieLoss(MovieLossConfig())(prediction, target)
    assert set(terms) == {"focal", "l1", "fft", "ssim"}
    torch.testing.assert_close(terms["l1"], (prediction - target).abs().mean())
    torch.testing.assert_close(terms["ssim"], 1 - ssim(prediction, target).mean())
    wanted = 50 * terms["focal"] + 50 * terms["l1"] + 50 * terms["fft"] + 0.1 * terms["ssim"]
    torch.testing.assert_close(total, wanted)


def test_movie_loss_computes_in_float32_under_autocast(frames):
    prediction, target = as_tensors(frames, torch.float32)
    loss = MovieLoss(MovieLossConfig())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(prediction.bfloat16(), target).total
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(prediction.bfloat16().float(), target).total)


def test_a_movie_loss_needs_a_term():
    with pytest.raises(ConfigError, match="every weight 0"):
        MovieLoss(MovieLossConfig(focal=0, l1=0, fft=0, ssim=0))


def vgg16_weights(path, **other):
    generator = torch.Generator().manual_seed(0)
    tensors, channels = {}, 3
    for index, out in ((0, 64), (2, 64), (5, 128), (7, 128), (10, 256), (12, 256), (14, 256)):
        scale = (2 / (9 * channels)) ** 0.5
        tensors[f"features.{index}.weight"] = torch.randn(out, channels, 3, 3, generator=generator) * scale
        tensors[f"features.{index}.bias"] = torch.randn(out, generator=generator)
        channels = out
    tensors |= other
    save_file(tensors, path)
    return tensors


def test_a_weighted_sum_by_hand():
    total, terms = MovieLoss(MovieLossConfig(focal=0, l1=2, fft=0, ssim=0))(
        torch.full((1, 8, 8), 0.25), torch.zeros(1, 8, 8)
    )
    assert (total.item(), {name: term.item() for name, term in terms.items()}) == (0.5, {"l1": 0.25})


def test_perceptual_against_layers_put_together_by_hand(tmp_path, frames):
    tensors = vgg16_weights(tmp_path / "vgg.safetensors")
    layers: list[torch.nn.Module] = []
    for index, pool in ((0, 0), (2, 1), (5, 0), (7, 1), (10, 0), (12, 0), (14, 0)):
        weight = tensors[f"features.{index}.weight"]
        conv = torch.nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
        conv.weight.data, conv.bias.data = weight, tensors[f"features.{index}.bias"]
        layers += [conv, torch.nn.ReLU()] + [torch.nn.MaxPool2d(2)] * pool
    network = torch.nn.Sequential(*layers)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    prediction, target = as_tensors(frames, torch.float32)
    outputs = [network((x.unsqueeze(1).expand(-1, 3, -1, -1) - mean) / std) for x in (prediction, target)]
    config = MovieLossConfig(perceptual=2.0, perceptual_weights=str(tmp_path / "vgg.safetensors"))
    loss = MovieLoss(config)
    terms = loss(prediction, target).terms
    torch.testing.assert_close(terms["perceptual"], F.mse_loss(*outputs).detach(), rtol=1e-4, atol=0)
    assert loss.state_dict() == {}
    assert list(loss.parameters()) == []


def test_perceptual_weights_that_do_not_serve_are_named(tmp_path):
    with pytest.raises(ConfigError, match="without VGG16 weights"):
        MovieLoss(MovieLossConfig(perceptual=1.0))
    with pytest.raises(ConfigError, match="do not exist"):
        PerceptualLoss(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors here")
    with pytest.raises(ConfigError, match="no safetensors file"):
        PerceptualLoss(tmp_path / "text.safetensors")
    vgg16_weights(tmp_path / "odd.safetensors", **{"features.2.bias": torch.zeros(3)})
    with pytest.raises(ConfigError, match=r"features.2.bias .* is \(3,\)"):
        PerceptualLoss(tmp_path / "odd.safetensors")
