"""The frame decoder's grid, its blocks and its gradients."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from poyo_ssl.models.poyo_ssl import FrameDecoder, UpBlock, block_channels, start_grid


@given(height=st.integers(4, 200).map(lambda n: 2 * n), width=st.integers(4, 200).map(lambda n: 2 * n))
@settings(max_examples=200, deadline=None)
def test_start_grid_doubles_into_the_frame(height, width):
    h, w, n = start_grid(height, width)
    assert (h * 2**n, w * 2**n) == (height, width)
    assert n >= 1
    assert min(h, w) >= 2
    assert h % 2 or w % 2 or min(h, w) < 4  # cannot be halved once more
    assert len(block_channels(n)) == n


@pytest.mark.parametrize("skips", [True, False])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (10, 14), (30, 52), (32, 64), (64, 128)])
def test_any_even_size(height, width, skips):
    frames = FrameDecoder(8, height=height, width=width, skips=skips)(torch.randn(2, 8))
    assert frames.shape == (2, height, width)
    assert 0 < frames.min() <= frames.max() < 1


def test_published_size_has_the_published_channels():
    decoder = FrameDecoder(8, height=64, width=128, skips=True)
    assert [block.grow[1].out_channels for block in decoder.blocks] == [128, 64, 32, 16, 32]
    assert decoder.start(torch.zeros(1, 8)).shape == (1, 128, 2, 4)


def test_up_block_by_hand():
    torch.manual_seed(0)
    block = UpBlock(3, in_channels=2, out_channels=4, height=4, width=6, skips=True).double()
    x, latent = torch.randn(5, 2, 2, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    out = block(x, latent)
    doubled = F.interpolate(x, size=(4, 6), mode="bilinear", align_corners=False)
    grown = F.conv2d(doubled, block.grow[1].weight, block.grow[1].bias, padding=1)
    mean, variance = grown.mean((0, 2, 3), keepdim=True), grown.var((0, 2, 3), correction=0, keepdim=True)
    normed = (grown - mean) / torch.sqrt(variance + 1e-5)
    active = torch.where(normed > 0, normed, 0.2 * normed)
    projected = (latent @ block.project[0].weight.T + block.project[0].bias).view(5, 4, 4, 6)
    together = torch.cat((active, projected), dim=1)
    wanted = torch.einsum("oi,bihw->bohw", block.fuse.weight[:, :, 0, 0], together)
    torch.testing.assert_close(out, wanted + block.fuse.bias.view(1, -1, 1, 1))


def test_without_skips_the_latent_enters_at_the_start_only():
    with_skips, without = (FrameDecoder(8, height=16, width=16, skips=skips) for skips in (True, False))
    assert any("project" in name for name, _ in with_skips.named_parameters())
    assert not any("project" in name or "fuse" in name for name, _ in without.named_parameters())


def test_dark_and_bright_frames_still_have_gradients():
    decoder = FrameDecoder(8, height=16, width=16, skips=True)
    decoder.to_grey.bias.data += 8.0
    latent = torch.randn(4, 8, requires_grad=True)
    frames = decoder(latent)
    frames.sum().backward()
    assert frames.min() > 0.9
    assert (latent.grad != 0).all()
