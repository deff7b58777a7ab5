"""Depthwise convolution over time inside each utterance of a packed sequence, zeros beyond both ends of each.

It is computed as a 2-D convolution, whose channels-last layout a (T, C) sequence has as it is: nothing is transposed in
memory, and oneDNN takes its fast path, on a CPU with weights that are in its layout already.

A GPU has a kernel for utterances of any lengths in one launch (`localgp.kernels.triton_depthwise`). Elsewhere they are
convolved one by one where they lie. Neighbouring short ones are cheaper in one call, copied behind each
other with a gap of zeros as wide as the kernel reaches, which gives each what it has alone. With kernel 5:

    packed   a a a b c c
    copied   a a a . . b . . c c

Shape legend: B utterances, T frames of an utterance, N frames of all utterances, C channels, K kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import record_function

from localgp.kernels import devices
from localgp.kernels.onednn import ROWS, blocked_convolution, convolution
from localgp.kernels.ragged import RANGE, Ragged

SHORT = 160_000  # bytes of an utterance and a gap; to copy and convolve more takes a CPU longer than a call


class Depthwise:
    """A depthwise convolution over ragged rows.

    Args:
        conv: A depthwise convolution of odd width that keeps the length; read now.
        dtype: Of weights, input and output.
    """

    def __init__(self, conv: nn.Conv1d, dtype: torch.dtype) -> None:
        self._weight_CK = conv.weight.detach().squeeze(1).to(dtype)
        weight_C11K = conv.weight.detach().unsqueeze(2).to(dtype)
        self._weight = weight_C11K.contiguous(memory_format=torch.channels_last)
        self._bias = None if conv.bias is None else conv.bias.detach().to(dtype)
        self._reach = (conv.kernel_size[0] - 1) // 2
        channels = len(self._weight)
        shape = [1, channels, 1, ROWS]
        self._blocked = blocked_convolution(self._weight, [0, self._reach], channels, shape)

    def __call__(self, x_NC: Tensor, layout: Ragged) -> Iterator[tuple[slice, Tensor]]:
        """Parts of the result, and the rows that they belong to. No later part reads these rows, so that they may be
        overwritten."""
        if layout.equal:
            if layout.total:
                yield slice(0, layout.total), self._convolve(layout.unpack(x_NC)).flatten(0, 1)
            return
        frame_bytes = x_NC.shape[1] * x_NC.element_size()
        short = layout.longest  # a GPU copies faster than it starts a kernel
        if x_NC.is_cpu:
            short = SHORT // frame_bytes - self._reach
        begin = 0
        for lengths in together(layout.lengths, short):
            total = sum(lengths)
            for part_TC in self._each(x_NC[begin : begin + total], lengths):
                yield slice(begin, begin + len(part_TC)), part_TC
                begin += len(part_TC)

    def times(self, other_NC: Tensor, x_NC: Tensor, layout: Ragged) -> None:
        """``other *= conv(x)``; the two share no memory."""
        kernels = devices.triton_on(x_NC.device)
        if kernels is not None:
            kernels.times(other_NC, x_NC, self._weight_CK, self._bias, layout)
            return
        for rows, part_NC in self(x_NC, layout):
            other_NC[rows].mul_(part_NC)

    def plus(
        self, first_NC: Tensor, second_NC: Tensor, layout: Ragged, both_NC: Tensor | None = None
    ) -> Tensor:
        """``x + conv(x)`` of both side by side.

        Args:
            both_NC: Where they are halves of one tensor already, which is changed then.
        """
        kernels = devices.triton_on(first_NC.device)
        if kernels is not None:
            summed_NC: Tensor = kernels.plus(first_NC, second_NC, self._weight_CK, self._bias, layout)
            return summed_NC
        x_NC = torch.cat([first_NC, second_NC], dim=1) if both_NC is None else both_NC
        for rows, part_NC in self(x_NC, layout):
            x_NC[rows].add_(part_NC)
        return x_NC

    def _each(self, x_NC: Tensor, lengths: list[int]) -> Sequence[Tensor]:
        """Of some utterances, in one call."""
        if len(lengths) == 1:
            return [self._convolve(x_NC.unsqueeze(0)).squeeze(0)]
        # Every other part is an utterance
        parts = [x_NC.new_zeros(self._reach, x_NC.shape[1])] * (2 * len(lengths) - 1)
        parts[::2] = x_NC.split(lengths)
        y_NC = self._convolve(torch.cat(parts).unsqueeze(0)).squeeze(0)
        return y_NC.split([len(part) for part in parts])[::2]

    def _convolve(self, x_BTC: Tensor) -> Tensor:
        x_BC1T = x_BTC.transpose(1, 2).unsqueeze(2)
        channels, padding = x_BTC.shape[2], [0, self._reach]
        with record_function(f"{RANGE}depthwise"):
            if self._blocked is None:
                y_BC1T = F.conv2d(x_BC1T, self._weight, self._bias, padding=padding, groups=channels)
            else:
                y_BC1T = convolution(x_BC1T, self._blocked, self._bias, padding, channels)
        return y_BC1T.squeeze(2).transpose(1, 2)


def together(lengths: Sequence[int], short: int) -> list[list[int]]:
    """Utterances that share a call: neighbours of up to ``short`` frames; empty ones are left out.

    Examples:
        >>> together([3, 1, 0, 90, 2], short=8)
        [[3, 1], [90], [2]]
    """
    found: list[list[int]] = []
    for length in filter(None, lengths):
        if found and max(found[-1][-1], length) <= short:
            found[-1].append(length)
        else:
            found.append([length])
    return found
