"""Depthwise convolution of ragged sequences against PyTorch's of each utterance, and short utterances in an encoder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import localgp
from localgp.backbones.owsm.fast import depthwise as convolved
from localgp.encoder.packed import PackedEncoder, PackedGates
from localgp.encoder.run import encode
from localgp.gates.control import ControlGates
from localgp.kernels import depthwise
from localgp.kernels.depthwise import Depthwise
from localgp.kernels.ragged import Ragged


def convolution(kernel: int = 7, channels: int = 8) -> nn.Conv1d:
    torch.manual_seed(0)
    return nn.Conv1d(channels, channels, kernel, padding=(kernel - 1) // 2, groups=channels)


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """Frames of each convolution."""
    frames: list[int] = []
    convolve = Depthwise._convolve
    monkeypatch.setattr(
        Depthwise, "_convolve", lambda self, x: (frames.append(x.shape[1]), convolve(self, x))[1]
    )
    return frames


@pytest.mark.parametrize("short", [0, 4, 1000])
@pytest.mark.parametrize(
    "lengths", [[5, 1, 9], [1], [], [0, 4, 0], [0, 0], [6, 6], [40, 3, 1, 0, 2, 60, 5], [1, 1, 1, 2]]
)
@pytest.mark.parametrize(("dtype", "kernel"), [(torch.float32, 7), (torch.float32, 1), (torch.bfloat16, 7)])
def test_each_utterance_gets_what_it_has_alone(lengths, short, dtype, kernel, monkeypatch):
    conv = convolution(kernel)
    frame_bytes = 8 * dtype.itemsize
    monkeypatch.setattr(depthwise, "SHORT", (short + kernel // 2) * frame_bytes)
    layout = Ragged(lengths)
    x = torch.randn(layout.total, 8).to(dtype)
    convolved = torch.full_like(x, torch.nan)
    for rows, part in Depthwise(conv, dtype)(x, layout):
        convolved[rows] = part
    conv = conv.to(dtype)
    for segment in layout.segments():
        if segment.stop > segment.start:
            expected = conv(x[segment].t()[None])[0].t()
            torch.testing.assert_close(convolved[segment], expected)
    assert convolved.isfinite().all()


def test_rows_may_be_overwritten_with_their_result():
    conv, layout = convolution(), Ragged([3, 1, 5000, 2, 9])
    x = torch.randn(layout.total, 8)
    expected = torch.cat([conv(part.t()[None])[0].t() for part in x.split(layout.lengths)])
    for rows, part in Depthwise(conv, torch.float32)(x, layout):
        x[rows] = part
    torch.testing.assert_close(x, expected)


def test_short_neighbours_share_a_call(calls):
    long = depthwise.SHORT // 32
    list(Depthwise(convolution(), torch.float32)(torch.randn(long + 13, 8), Ragged([2, 4, long, 7])))
    assert calls == [2 + 3 + 4, long, 7]


def test_without_onednn(monkeypatch):
    layout = Ragged([5, 1, 9])
    x = torch.randn(15, 8)
    usual = [part for _, part in Depthwise(convolution(), torch.float32)(x, layout)]
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    plain = Depthwise(convolution(), torch.float32)
    assert plain._blocked is None
    for (_, part), expected in zip(plain(x, layout), usual, strict=True):
        torch.testing.assert_close(part, expected)


class ByLength(ControlGates):
    """Skips some frames by their place; all of an utterance of some lengths, its convolution too."""

    def decide(self, layer, name, x_BTD, state):
        batch, frames = x_BTD.shape[:2]
        if name == "cgmlp":
            return torch.full((batch, 1), float((frames + layer) % 3 > 0))
        open_T = (torch.arange(frames) * 7 + layer + len(name)) % 3 > 0
        return (open_T & ((frames + layer) % 2 > 0)).float().expand(batch, -1)


@pytest.mark.parametrize("gated", [[], ["ffn1", "attention", "ffn2"], ["ffn1", "attention", "cgmlp", "ffn2"]])
@pytest.mark.parametrize("short", [0, None])
def test_short_utterances_in_a_batch_equal_each_alone(backbone, gated, short, monkeypatch):
    """One of a single frame, some whose frames are all skipped; together in a call and each in its own."""
    if short is not None:
        monkeypatch.setattr(depthwise, "SHORT", short)
    lengths = [7, 31, 240, 8, 11, 57, 12, 130, 7]
    feats = torch.randn(len(lengths), max(lengths), 80, generator=torch.Generator().manual_seed(3))
    policy = ByLength(gated).eval() if gated else None
    with torch.no_grad():
        gates = None if policy is None else PackedGates(policy)
        batch = PackedEncoder(backbone).encode(feats, torch.tensor(lengths), gates)
        for b, length in enumerate(lengths):
            alone = encode(backbone, feats[b : b + 1, :length], torch.tensor([length]), policy, path="masked")
            frames = int(alone.lengths)
            assert int(batch.lengths[b]) == frames
            assert (batch.x[b, :frames] - alone.x[0]).abs().max() <= 2e-5
            assert (batch.x[b, frames:] == 0).all()
            for ours, theirs in zip(batch.gates, alone.gates, strict=True):
                for name, gate in theirs.items():
                    kept = ours[name].value[b, : gate.value.shape[1]]
                    assert torch.equal(kept, gate.value[0])


@pytest.mark.parametrize("channels", [8, 16, 24])
def test_the_layout_of_training_is_pytorchs_convolution(channels, monkeypatch):
    """Few channels keep PyTorch's own: in bf16 the other layout's kernel would never return."""
    conv = convolution(31, channels)
    x_BTD = torch.randn(2, 40, channels)
    expected = conv(x_BTD.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(convolved(conv, x_BTD), expected, rtol=1e-5, atol=1e-5)
    if channels <= 16:
        assert torch.equal(convolved(conv, x_BTD), expected)
        assert convolved(conv.bfloat16(), x_BTD.bfloat16()).shape == expected.shape


def test_no_module_of_others_has_its_forward_replaced():
    """Benchmarks wrap them for a moment, to time them, and undo it."""
    package = Path(localgp.__file__).parent
    sources = [p for p in package.rglob("*.py") if package / "bench" not in p.parents]
    assert not [p for p in sources if re.search(r"\.forward = |, .forward., ", p.read_text(encoding="utf-8"))]
