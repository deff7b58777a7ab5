"""The subsampling in matrix products against ESPnet's and PyTorch's convolutions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from localgp.backbones.owsm.stem import CONVOLUTIONS, PackedSubsampling, subsample
from localgp.kernels.convolutions import ShortConvolutions, WindowConvolutions, convolutions
from localgp.timeline import Timeline
from tests.conftest import SIZE, make_encoder

FRAMES = 59  # of 240 feature frames
TIMELINE = Timeline(160, CONVOLUTIONS)


@pytest.fixture
def full():
    """Three utterances of one length."""
    return torch.randn(3, 240, 80, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("frames", [7, 8, 9, 10, 131, 240])
@pytest.mark.parametrize("bins", [10, 80, 83, 87])
def test_subsampling(frames, bins):
    from espnet.nets.pytorch_backend.transformer.subsampling import Conv2dSubsampling

    torch.manual_seed(0)
    encoder = make_encoder() if bins == 80 else nn.Module()
    if bins != 80:
        encoder.embed = Conv2dSubsampling(bins, SIZE, 0.0).eval()
    feats = torch.randn(2, frames, bins)
    _, front, mask = subsample(encoder.embed, TIMELINE, feats, torch.tensor([frames, frames]))
    packed, layout = PackedSubsampling(encoder.embed, TIMELINE, torch.float32)(feats, [frames, frames])
    assert layout.lengths == [mask.shape[2]] * 2
    assert (layout.unpack(packed) - front).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", [ShortConvolutions, WindowConvolutions])
@pytest.mark.parametrize("bins", [3, 4, 18, 19, 20])
@pytest.mark.parametrize("rows", [2, 3, 4, 9])
def test_both_ways_to_convolve(kind, bins, rows):
    """Threes of outputs that lack one or two, in time and in frequency."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(1, 8, 3, 2), nn.Conv2d(8, 8, 3, 2)
    feats = torch.randn(4 * rows + 1, 4 * bins + 3, generator=torch.Generator().manual_seed(rows))
    windows = torch.stack([feats[4 * row : 4 * row + 5] for row in range(rows)])
    expected = second(first(feats[None, None, : 4 * rows - 1]).relu()).relu()[0].permute(1, 2, 0)
    convolved = kind(first, second, bins, torch.float32)(windows)
    assert expected.shape == (rows - 1, bins, 8)
    torch.testing.assert_close(convolved.view_as(expected), expected, rtol=0, atol=2e-6)


def test_fewer_products():
    first, second = nn.Conv2d(1, 8, 3, 2), nn.Conv2d(8, 8, 3, 2)
    exact, rounded = (convolutions(first, second, 19, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert isinstance(exact, ShortConvolutions)
    assert isinstance(rounded, WindowConvolutions)
    assert isinstance(convolutions(first, second, 2, torch.float32), WindowConvolutions)
    assert sum(map(len, exact._second)) == 25


def test_fewer_products_are_nearly_as_exact():
    """Against float64, beside PyTorch's convolution in float32."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(1, 64, 3, 2), nn.Conv2d(64, 64, 3, 2)
    feats = torch.randn(4 * 30 + 1, 80)
    windows = torch.stack([feats[4 * row : 4 * row + 5] for row in range(30)])
    few = ShortConvolutions(first, second, 19, torch.float32)(windows)

    def defined(dtype: torch.dtype) -> torch.Tensor:
        convolve = nn.Sequential(first, nn.ReLU(), second, nn.ReLU()).to(dtype)
        return convolve(feats[None, None, :119].to(dtype))[0].permute(1, 2, 0)

    direct, exact = defined(torch.float32), defined(torch.float64)
    errors = [float((y - exact).square().mean().sqrt()) for y in (few, direct)]
    assert errors[0] <= 3 * errors[1]


@pytest.mark.parametrize("kind", [ShortConvolutions, WindowConvolutions])
def test_blocks_of_rows_make_no_difference(encoder, full, kind, monkeypatch):
    subsampling = PackedSubsampling(encoder.embed, TIMELINE, torch.float32)
    embed = encoder.embed
    subsampling._convolve = kind(embed.conv[0], embed.conv[2], 19, torch.float32)
    expected, layout = subsampling(full, [240, 131, 7])
    monkeypatch.setattr(subsampling, "_block", 11)
    assert layout.lengths == [59, 32, 1]
    assert (subsampling(full, [240, 131, 7])[0] - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("speech", [0, 3, 64, 101, 236, 240])
def test_a_constant_end_is_computed_once_and_exactly(encoder, speech, monkeypatch):
    feats = torch.full((2, 240, 80), -1.5)
    feats[0, :speech] = torch.randn(speech, 80, generator=torch.Generator().manual_seed(0))
    feats[1, : speech // 2] = 1.0
    _, front, _ = subsample(encoder.embed, TIMELINE, feats, torch.tensor([240, 240]))
    subsampling = PackedSubsampling(encoder.embed, TIMELINE, torch.float32)
    rows = []
    convolve = subsampling._convolve
    monkeypatch.setattr(
        subsampling, "_convolve", lambda frames: (rows.append(len(frames)), convolve(frames))[1]
    )
    packed, layout = subsampling(feats, [240, 240])
    assert (layout.unpack(packed) - front).abs().max() <= 1e-5
    needed = [min(FRAMES, -(-n // 4) + 1) for n in (speech, speech // 2)]
    assert sum(rows) - len(rows) == sum(needed) + 1  # the row between two utterances counts nothing
