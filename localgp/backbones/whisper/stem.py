"""Whisper's stem: two convolutions along time, the second with stride 2, each with GELU; and their cost.

For inference each is one matrix product for all utterances: an output frame's inputs, three neighbouring frames, lie
next to each other in memory. Where an utterance ends in a stretch of identical frames (the zeros that it was padded
with), one output frame of that stretch is computed, and repeated. A GPU's own convolutions are better than that, and
take the batch as it is: its host need not know what is constant.

Shape legend: B utterances, S feature frames, F mel bins, T output frames, N those of all utterances, D model size,
R rows of all utterances' features with what lies between them.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from localgp.kernels.linear import Linear
from localgp.kernels.ragged import Ragged, layout_of, sent
from localgp.timeline import Convolution, Timeline

CONVOLUTIONS = (Convolution(3, 1, 1), Convolution(3, 2, 1))


def convolve(encoder: Any, feats_BSF: Tensor, lengths_B: Tensor) -> Tensor:
    """Both convolutions (B, T, D), each utterance as if it were alone: zeros behind its end in what each sees.

    Args:
        encoder: ``WhisperEncoder``.
    """
    frames_S = torch.arange(feats_BSF.shape[1], device=feats_BSF.device)
    own_B1S = (frames_S < lengths_B.to(feats_BSF.device).unsqueeze(1)).unsqueeze(1)
    x_BDS = F.gelu(encoder.conv1(feats_BSF.transpose(1, 2) * own_B1S))
    return F.gelu(encoder.conv2(x_BDS * own_B1S)).transpose(1, 2)


def stem_flops(encoder: Any, timeline: Timeline, feature_frames: int) -> int:
    """Multiply-adds, as fvcore counts them."""
    first, second = encoder.conv1.weight.numel(), encoder.conv2.weight.numel()
    return feature_frames * first + timeline.frames(feature_frames) * second


class WholeConvolutions:
    """Both convolutions on whole utterances (B, S, F) to (N, D), by a GPU's own kernels.

    Args:
        encoder: ``WhisperEncoder``.
        dtype: Of the products.
    """

    def __init__(self, encoder: Any, dtype: torch.dtype) -> None:
        self._layers = [
            (conv.weight.detach().to(dtype), conv.bias.detach().to(dtype), conv.stride[0])
            for conv in (encoder.conv1, encoder.conv2)
        ]

    def __call__(self, feats_BSF: Tensor, lengths: list[int], layout: Ragged) -> Tensor:
        own_B1S: Tensor | None = None
        if set(lengths) != {feats_BSF.shape[1]}:  # zeros behind each one's end
            ends_B1 = sent(torch.tensor(lengths), feats_BSF.device).unsqueeze(1)
            frames_S = torch.arange(feats_BSF.shape[1], device=feats_BSF.device)
            own_B1S = (frames_S < ends_B1).unsqueeze(1)
        x_BDS = feats_BSF.transpose(1, 2).to(self._layers[0][0].dtype)
        for weight, bias, stride in self._layers:
            x_BDS = x_BDS if own_B1S is None else x_BDS * own_B1S
            x_BDS = F.gelu(F.conv1d(x_BDS, weight, bias, stride=stride, padding=1))
        return layout.pack(x_BDS.transpose(1, 2))


class PackedStem:
    """Whisper's two convolutions over a batch without padding.

    Args:
        encoder: ``WhisperEncoder``.
        timeline: Its.
        dtype: Of the products.
    """

    def __init__(self, encoder: Any, timeline: Timeline, dtype: torch.dtype) -> None:
        self._timeline, self._dtype = timeline, dtype
        self._whole = WholeConvolutions(encoder, dtype) if encoder.conv1.weight.is_cuda else None
        self._first, self._second = (
            Linear(conv.weight.permute(0, 2, 1).flatten(1), conv.bias, dtype, "gelu")
            for conv in (encoder.conv1, encoder.conv2)
        )

    def __call__(self, feats_BSF: Tensor, lengths: list[int]) -> tuple[Tensor, Ragged]:
        """Runs the convolutions over each utterance.

        Returns:
            "front", (N, D), each utterance as if it were alone, and its layout.
        """
        device, bins = feats_BSF.device, feats_BSF.shape[2]
        layout = layout_of(tuple(self._timeline.frames(n) for n in lengths), device)
        if self._whole is not None:
            return self._whole(feats_BSF, lengths, layout), layout
        constant = self._constant(feats_BSF, lengths)
        given = [n - 2 * (last - first) for n, (first, last) in zip(lengths, constant, strict=True)]
        # Of each utterance a zero, its features, and a zero or two, so that all begin at even rows
        starts = [0, *accumulate(n + 2 + n % 2 for n in given)]
        rows_RF = feats_BSF.new_zeros(starts[-1] + 2, bins, dtype=self._dtype)
        for feats_SF, n, start in zip(feats_BSF, given, starts, strict=False):
            rows_RF[start + 1 : start + 1 + n] = feats_SF[:n]
        hidden_RD = self._first(_windows(rows_RF, 1))  # row r is of the features around row r + 1
        between = [
            row
            for n, start, end in zip(given, starts, starts[1:], strict=False)
            for row in range(start + n, end)
        ]
        hidden_RD[torch.tensor(between, device=device)] = 0.0
        first_1D = hidden_RD.new_zeros(
            1, hidden_RD.shape[1]
        )  # what the first utterance sees before its start
        front_ND = self._second(_windows(torch.cat([first_1D, hidden_RD]), 2))
        places = torch.cat(
            [
                start // 2 + _repeated(frames, *stretch)
                for start, frames, stretch in zip(starts, layout.lengths, constant, strict=False)
            ]
        )
        return front_ND.index_select(0, places.to(device)), layout

    def _constant(self, feats_BSF: Tensor, lengths: list[int]) -> list[tuple[int, int]]:
        """The first and the last output frame of each utterance of those that see nothing but its constant end; twice
        the same number where there are none."""
        device = feats_BSF.device
        ends = torch.tensor(lengths, device=device)
        frames_S = torch.arange(feats_BSF.shape[1], device=device)
        last_BF = feats_BSF[torch.arange(len(lengths), device=device), ends - 1]
        differs_BS = (feats_BSF != last_BF.unsqueeze(1)).any(-1) & (frames_S < ends.unsqueeze(1))
        begins = ((frames_S + 1) * differs_BS).amax(1).tolist()
        found = []
        for begin, n in zip(begins, lengths, strict=True):
            first, last = (
                (begin + 3) // 2,
                (n - 3) // 2,
            )  # the outermost frames see the zeros around an utterance
            found.append((first, last) if last > first else (0, 0))
        return found


def _repeated(frames: int, first: int, last: int) -> Tensor:
    """Where the output frames of an utterance are among those computed, (T,)."""
    frame_T = torch.arange(frames)
    return torch.where(
        frame_T > last, frame_T - (last - first), frame_T.clamp(max=first) if last else frame_T
    )


def _windows(x_RC: Tensor, stride: int) -> Tensor:
    """Three neighbouring rows side by side, every ``stride`` rows."""
    rows, channels = x_RC.shape
    count = (rows - 3) // stride + 1
    return x_RC.as_strided((count, 3 * channels), (stride * channels, 1)).contiguous()
