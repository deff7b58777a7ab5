"""The conv2d subsamplings: their time, their cost, and for inference themselves at the rate of matrix products.

ESPnet's are two or three convolutions, the same along time and frequency, each with ReLU, and a linear layer over
(channel, frequency). Packed, those of two 3x3 stride-2 convolutions (``conv2d``, OWSM up to v3.2) and of a
third one (``conv2d8``, v4) are matrix products (`localgp.kernels.convolutions`), some frames at a time, with channels
last, as the linear layer then reads them. A GPU's own convolutions are better than that, and take the batch as it is;
the other subsamplings are left to PyTorch's.

Where an utterance ends in a stretch of identical frames (the zeros that it was padded with), one output frame of that
stretch is computed, and repeated.

Shape legend: B utterances, S feature frames, F mel bins, R rows (one per output frame to compute, and one more for
each utterance), Q output frequencies, C channels, T output frames, N those of all utterances, D model size.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from localgp.backbones.base import Front
from localgp.backbones.owsm.positions import add_positions
from localgp.kernels.convolutions import StridedConvolution, WholeConvolutions, convolutions
from localgp.kernels.linear import Linear
from localgp.kernels.ragged import Ragged, layout_of
from localgp.timeline import Convolution, Timeline

CONVOLUTIONS = (Convolution(3, 2), Convolution(3, 2))  # conv2d's, along time and along frequency


def layers_of(embed: Any) -> list[nn.Conv2d]:
    """The convolutions of one of ESPnet's Conv2dSubsamplings."""
    return [layer for layer in embed.conv if isinstance(layer, nn.Conv2d)]


def convolutions_of(embed: Any) -> tuple[Convolution, ...]:
    """How they lie along time."""
    return tuple(Convolution(layer.kernel_size[0], layer.stride[0]) for layer in layers_of(embed))


def linear_of(embed: Any) -> nn.Linear:
    linear: nn.Linear = embed.out if isinstance(embed.out, nn.Linear) else embed.out[0]
    return linear


def positions_of(embed: Any) -> Any:
    """ESPnet's PositionalEncoding behind it."""
    return embed.pos_enc if isinstance(embed.out, nn.Linear) else embed.out[1]


def subsample(
    embed: Any, timeline: Timeline, feats_BSF: Tensor, lengths_B: Tensor, told_BRD: Tensor | None = None
) -> Front:
    """ESPnet's Conv2dSubsampling, with its output before the positions beside the one after. Its own mask has frames
    that see beyond an utterance's end, where a batch has a longer one.

    Args:
        told_BRD: Rows that stand before it, where `Timeline.told` says so.
    """
    conv_BCTF = embed.conv(feats_BSF.unsqueeze(1))
    batch, channels, frames, bins = conv_BCTF.shape
    front_BTD = linear_of(embed)(conv_BCTF.transpose(1, 2).reshape(batch, frames, channels * bins))
    if told_BRD is not None:
        front_BTD = torch.cat([told_BRD, front_BTD], dim=1)
    places_T = torch.arange(front_BTD.shape[1], device=feats_BSF.device)
    own_BT = places_T < timeline.frames_of(lengths_B).unsqueeze(1)
    return Front(add_positions(positions_of(embed), front_BTD), front_BTD, own_BT.unsqueeze(1))


def stem_flops(embed: Any, timeline: Timeline, feature_frames: int, bins: int) -> int:
    """Multiply-adds, as fvcore counts them."""
    total = 0
    for done, layer in enumerate(layers_of(embed), 1):
        frames = Timeline(timeline.hop, timeline.convolutions[:done]).frames(feature_frames)
        bins = (bins - layer.kernel_size[1]) // layer.stride[1] + 1
        total += frames * bins * layer.weight.numel()
    return total + timeline.frames(feature_frames) * linear_of(embed).weight.numel()


class PackedSubsampling:
    """ESPnet's convolutional subsampling over a batch without padding.

    Args:
        embed: One of ESPnet's Conv2dSubsamplings.
        timeline: Its.
        dtype: Of the products.
    """

    def __init__(self, embed: Any, timeline: Timeline, dtype: torch.dtype) -> None:
        layers, linear = layers_of(embed), linear_of(embed)
        channels = layers[0].out_channels
        bins = linear.in_features // channels  # Q, 19 of 80 mel bins
        self.dtype, self._timeline = dtype, timeline
        weight = linear.weight.view(-1, channels, bins).transpose(1, 2)
        self._linear = Linear(weight.reshape(len(weight), -1), linear.bias, dtype)
        self._third = None
        self._products = not linear.weight.is_cuda and timeline.convolutions in (
            CONVOLUTIONS,
            (*CONVOLUTIONS, CONVOLUTIONS[0]),
        )
        if not self._products:
            self._whole = WholeConvolutions(layers, dtype)
            return
        if len(layers) == 3:
            self._third = StridedConvolution(layers[2], bins, dtype)
            bins = 2 * bins + 1  # that it sees
        self._convolve = convolutions(layers[0], layers[1], bins, dtype)
        self._block = self._convolve.block

    def __call__(self, feats_BSF: Tensor, lengths: list[int]) -> tuple[Tensor, Ragged]:
        """Subsamples each utterance.

        Returns:
            The paper's "front", (N, D), each utterance as if it were alone, and its layout.
        """
        layout = layout_of(tuple(self._timeline.frames(n) for n in lengths), feats_BSF.device)
        if feats_BSF.is_cuda:
            return self._linear(self._whole(feats_BSF, layout)), layout
        computed = self._frames_to_compute(feats_BSF, lengths, layout)
        if self._products:
            front_RD, starts = self._by_products(feats_BSF, computed)
        else:
            front_RD, starts = self._one_by_one(feats_BSF, computed)
        if computed == layout.lengths and len(lengths) == 1:
            return front_RD, layout
        last = torch.tensor([n - 1 for n in computed], device=feats_BSF.device)
        first = torch.tensor(starts, device=feats_BSF.device)
        owner = layout.owner_N
        return front_RD.index_select(0, first[owner] + torch.minimum(layout.frame_N, last[owner])), layout

    def _by_products(self, feats_BSF: Tensor, computed: list[int]) -> tuple[Tensor, list[int]]:
        """``computed`` output frames of each utterance, (R, D), and where each utterance's begin."""
        third = self._third
        # Output frames of the first two convolutions, each seen by a row's own feature frames and the next row's
        inner = computed if third is None else [2 * n + 1 for n in computed]
        rows = Ragged([n + 1 for n in inner], feats_BSF.device)
        base = rows.owner_N * feats_BSF.shape[1] + 4 * rows.frame_N
        limit = feats_BSF.shape[0] * feats_BSF.shape[1] - 1
        taps = torch.arange(5, device=feats_BSF.device)
        windows_R5 = (base.unsqueeze(1) + taps).clamp_(max=limit)
        flat = feats_BSF.flatten(0, 1).to(self.dtype)
        # The last row of a block only lends its even half frame
        blocks = (
            self._convolve(flat[windows_R5[begin : begin + self._block + 1]])
            for begin in range(0, rows.total - 1, self._block)
        )
        starts = list(rows.offsets[:-1])
        if third is None:
            parts = [self._linear(block.flatten(1)) for block in blocks]
            return parts[0] if len(parts) == 1 else torch.cat(parts), starts
        inner_RQC = torch.cat(list(blocks))
        parts = [
            self._linear(part.flatten(1))
            for start, n in zip(starts, computed, strict=True)
            for part in third(inner_RQC[start : start + 2 * n + 1])
        ]
        return torch.cat(parts), [0, *accumulate(computed)][:-1]

    def _one_by_one(self, feats_BSF: Tensor, computed: list[int]) -> tuple[Tensor, list[int]]:
        """The same by PyTorch's convolutions, utterance by utterance."""
        stride, reach = self._timeline.stride, self._timeline.reach
        parts = [
            self._linear(
                self._whole(feats_SF[None, : stride * (n - 1) + reach], Ragged([n], feats_SF.device))
            )
            for feats_SF, n in zip(feats_BSF, computed, strict=True)
        ]
        return torch.cat(parts), [0, *accumulate(computed)][:-1]

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
