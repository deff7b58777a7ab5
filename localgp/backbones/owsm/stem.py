"""The conv2d subsampling: its time, its cost, and for inference itself at the rate of matrix products.

ESPnet's Conv2dSubsampling is two 3x3 stride-2 convolutions with ReLU and a linear layer over (channel, frequency).
Packed, they are matrix products (`localgp.kernels.convolutions`), some frames at a time, with channels last, as the
linear layer then reads them.

Where an utterance ends in a stretch of identical frames (the zeros that it was padded with), one output frame of that
stretch is computed, and repeated.

Shape legend: B utterances, S feature frames, F mel bins, R rows (one per output frame to compute, and one more for
each utterance), Q output frequencies, C channels, T output frames, N those of all utterances, D model size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from localgp.backbones.base import Front
from localgp.backbones.owsm.positions import add_positions
from localgp.kernels.convolutions import convolutions
from localgp.kernels.linear import Linear
from localgp.kernels.ragged import Ragged
from localgp.timeline import Convolution, Timeline

CONVOLUTIONS = (Convolution(3, 2), Convolution(3, 2))  # along time and along frequency


def subsample(embed: Any, feats_BSF: Tensor, lengths_B: Tensor) -> Front:
    """ESPnet's Conv2dSubsampling, with its output before the positions beside the one after."""
    frames_S = torch.arange(feats_BSF.shape[1], device=feats_BSF.device)
    mask_B1S = (frames_S < lengths_B.unsqueeze(1)).unsqueeze(1)
    conv_BCTF = embed.conv(feats_BSF.unsqueeze(1))
    batch, channels, frames, bins = conv_BCTF.shape
    linear, positions = embed.out[0], embed.out[1]
    front_BTD = linear(conv_BCTF.transpose(1, 2).reshape(batch, frames, channels * bins))
    return Front(add_positions(positions, front_BTD), front_BTD, mask_B1S[:, :, :-2:2][:, :, :-2:2])


def stem_flops(embed: Any, timeline: Timeline, feature_frames: int, bins: int) -> int:
    """Multiply-adds, as fvcore counts them."""
    total, channels = 0, 1
    for done, convolution in enumerate(timeline.convolutions, 1):
        frames = Timeline(timeline.hop, timeline.convolutions[:done]).frames(feature_frames)
        bins = (bins - convolution.width) // convolution.stride + 1
        out = embed.conv[0].out_channels
        total += frames * bins * convolution.width**2 * channels * out
        channels = out
    return total + timeline.frames(feature_frames) * embed.out[0].weight.numel()


class PackedSubsampling:
    """Args:
    embed: ESPnet's Conv2dSubsampling.
    timeline: Its.
    dtype: Of the products.
    """

    def __init__(self, embed: Any, timeline: Timeline, dtype: torch.dtype) -> None:
        first, second, linear = embed.conv[0], embed.conv[2], embed.out[0]
        channels = first.out_channels
        bins = linear.in_features // channels  # Q, 19 of 80 mel bins
        self.dtype, self._timeline = dtype, timeline
        self._convolve = convolutions(first, second, bins, dtype)
        self._block = self._convolve.block
        weight = linear.weight.view(-1, channels, bins).transpose(1, 2)
        self._linear = Linear(weight.reshape(len(weight), -1), linear.bias, dtype)

    def __call__(self, feats_BSF: Tensor, lengths: list[int]) -> tuple[Tensor, Ragged]:
        """Returns:
        The paper's "front", (N, D), each utterance as if it were alone, and its layout.
        """
        layout = Ragged([self._timeline.frames(n) for n in lengths], feats_BSF.device)
        computed = self._frames_to_compute(feats_BSF, lengths, layout)
        rows = Ragged([n + 1 for n in computed], feats_BSF.device)
        base = rows.owner_N * feats_BSF.shape[1] + self._timeline.stride * rows.frame_N
        limit = feats_BSF.shape[0] * feats_BSF.shape[1] - 1
        taps = torch.arange(5, device=feats_BSF.device)
        windows_R5 = (base.unsqueeze(1) + taps).clamp_(max=limit)
        flat = feats_BSF.flatten(0, 1).to(self.dtype)
        blocks = [
            # The last row of a block only lends its even half frame
            self._linear(self._convolve(flat[windows_R5[begin : begin + self._block + 1]]).flatten(1))
            for begin in range(0, rows.total - 1, self._block)
        ]
        front_RD = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
        if computed == layout.lengths and len(lengths) == 1:
            return front_RD, layout
        last = torch.tensor([n - 1 for n in computed], device=feats_BSF.device)
        first = torch.tensor(rows.offsets[:-1], device=feats_BSF.device)
        owner = layout.owner_N
        return front_RD.index_select(0, first[owner] + torch.minimum(layout.frame_N, last[owner])), layout

    def _frames_to_compute(self, feats_BSF: Tensor, lengths: list[int], layout: Ragged) -> list[int]:
        """Output frames of each utterance up to the first that sees nothing but the constant end."""
        ends = torch.tensor(lengths, device=feats_BSF.device)
        frames = torch.arange(feats_BSF.shape[1], device=feats_BSF.device)
        last_BF = feats_BSF[torch.arange(len(lengths), device=ends.device), ends - 1]
        differs_BS = (feats_BSF != last_BF.unsqueeze(1)).any(-1) & (frames < ends.unsqueeze(1))
        constant_from = ((frames + 1) * differs_BS).amax(1).tolist()
        stride = self._timeline.stride
        return [
            min(n, -(-start // stride) + 1) for n, start in zip(layout.lengths, constant_from, strict=True)
        ]
