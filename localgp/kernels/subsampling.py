"""The conv2d subsampling at the rate of matrix products, for inference.

ESPnet's Conv2dSubsampling is two 3x3 stride-2 convolutions with ReLU and a linear layer over (channel, frequency).
Here they are matrix products (`localgp.kernels.convolutions`), some frames at a time, with channels last, as the linear
layer then reads them.

Where an utterance ends in a stretch of identical frames (the zeros that it was padded with), one output frame of that
stretch is computed, and repeated.

Shape legend: B utterances, S feature frames, F mel bins, R rows (one per output frame to compute, and one more for
each utterance), Q output frequencies, C channels, N output frames of all utterances, D model size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from localgp.kernels.convolutions import convolutions
from localgp.kernels.linear import Linear
from localgp.kernels.ragged import Ragged


def output_frames(feature_frames: int) -> int:
    """Frames that two convolutions of width 3 and stride 2 make.

    Example:
        >>> output_frames(3001)
        749
    """
    return max(0, ((feature_frames - 1) // 2 - 1) // 2)


class PackedSubsampling:
    """Args:
    embed: ESPnet's Conv2dSubsampling.
    dtype: Of the products.
    """

    def __init__(self, embed: Any, dtype: torch.dtype) -> None:
        first, second, linear = embed.conv[0], embed.conv[2], embed.out[0]
        channels = first.out_channels
        bins = linear.in_features // channels  # Q, 19 of 80 mel bins
        self.dtype = dtype
        self._convolve = convolutions(first, second, bins, dtype)
        self._block = self._convolve.block
        weight = linear.weight.view(-1, channels, bins).transpose(1, 2)
        self._linear = Linear(weight.reshape(len(weight), -1), linear.bias, dtype)

    def __call__(self, feats_BSF: Tensor, lengths: list[int]) -> tuple[Tensor, Ragged]:
        """Returns:
        The paper's "front", (N, D), each utterance as if it were alone, and its layout.
        """
        layout = Ragged([output_frames(n) for n in lengths], feats_BSF.device)
        computed = self._frames_to_compute(feats_BSF, lengths, layout)
        rows = Ragged([n + 1 for n in computed], feats_BSF.device)
        base = rows.owner_N * feats_BSF.shape[1] + 4 * rows.frame_N
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
        return [min(n, -(-start // 4) + 1) for n, start in zip(layout.lengths, constant_from, strict=True)]
