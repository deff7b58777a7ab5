"""The subsampling's two 3x3 stride-2 convolutions as matrix products, channels last, in one of two ways.

`WindowConvolutions` copies out the 9 inputs of each of the second convolution's outputs and multiplies once.
`ShortConvolutions` has 49 products for every 3 x 3 outputs where the definition has 81. Along one axis three
neighbouring outputs see seven inputs, e0 o0 e1 o1 e2 o2 e3:

    y0 = a e0 + b o0 + c e1 = p + (q + r) + b o0        p = a (e0 - e2)
    y1 = a e1 + b o1 + c e2 =     (q - r) + b o1        q = (a + c) / 2 (e1 + e2)
    y2 = a e2 + b o2 + c e3 = s + (q + r) + b o2        r = (a - c) / 2 (e2 - e1)
                                                        s = c (e3 - e1)

which is seven for nine (Winograd's F(3, 2) on the even inputs), over time and frequency 49 for 81. All sums are of two
terms and none is scaled but by a half, so that fp32 results are nearly as exact as those of the definition. One or two
frequencies behind the last three are computed as they are defined, a e + b o + c e'.

Shape legend: R output frames, F mel bins, Q output frequencies, C channels, T threes of output frames, H half frames
(6 T + 1, the even ones first), J frequencies that one of the products is for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from localgp.kernels.linear import Linear
from localgp.kernels.ragged import Ragged


def convolutions(
    first: nn.Conv2d, second: nn.Conv2d, bins: int, dtype: torch.dtype
) -> WindowConvolutions | ShortConvolutions:
    """Fewer products where they are what takes the time: fp32 on a CPU. (In bf16 they are fast, and the differences
    of rounded inputs would cost accuracy.)

    Args:
        first, second: The convolutions.
        bins: Output frequencies.
        dtype: Of the products.
    """
    few = first.weight.device.type == "cpu" and dtype == torch.float32 and bins >= 3
    return (ShortConvolutions if few else WindowConvolutions)(first, second, bins, dtype)


class WholeConvolutions:
    """All convolutions with their ReLU on whole utterances, by PyTorch's own kernels, which like channels last too. An
    output frame of an utterance sees nothing of what is behind it."""

    together = 4  # utterances: what lies between the convolutions is 120 MB for each of OWSM-medium's

    def __init__(self, layers: Sequence[nn.Conv2d], dtype: torch.dtype) -> None:
        self._layers = [
            (
                conv.weight.detach().to(dtype, memory_format=torch.channels_last),
                None if conv.bias is None else conv.bias.detach().to(dtype),
                conv.stride[0],
            )
            for conv in layers
        ]

    def __call__(self, feats_BSF: Tensor, layout: Ragged) -> Tensor:
        """(B, S, F) to (N, Q C)."""
        parts = []
        for part_BSF in feats_BSF.split(self.together):
            x_BCSF = part_BSF.unsqueeze(1).to(self._layers[0][0].dtype)
            for weight, bias, stride in self._layers:
                x_BCSF = F.conv2d(x_BCSF, weight, bias, stride=stride).relu_()
            parts.append(x_BCSF.permute(0, 2, 3, 1).flatten(2))
        return layout.pack(parts[0] if len(parts) == 1 else torch.cat(parts))


class WindowConvolutions:
    """Both convolutions with their ReLU, (R + 1, 5, F) to (R, Q, C): an output frame sees the five feature frames of
    its row and the first three of the next."""

    block = 768  # output frames at a time

    def __init__(self, first: nn.Conv2d, second: nn.Conv2d, bins: int, dtype: torch.dtype) -> None:
        self._bins, self._channels = bins, first.out_channels
        # Of a block: on a CPU, what lies between the convolutions stays in the cache
        self._chunk = 32 if first.weight.device.type == "cpu" else 512
        self._first = _first_of(first, dtype)
        columns = second.weight.permute(0, 2, 3, 1).reshape(second.out_channels, -1)
        self._second = Linear(columns, second.bias, dtype, "relu")

    def __call__(self, frames_15F: Tensor) -> Tensor:
        out_RQC = frames_15F.new_empty(len(frames_15F) - 1, self._bins, self._channels)
        for begin in range(0, len(out_RQC), self._chunk):
            chunk = out_RQC[begin : begin + self._chunk]
            chunk.copy_(self._convolve(frames_15F[begin : begin + len(chunk) + 1]).view_as(chunk))
        return out_RQC

    def _convolve(self, frames_15F: Tensor) -> Tensor:
        rows, bins, channels = len(frames_15F), self._bins, self._channels
        half = 2 * bins + 1  # frequencies between the convolutions that the second one sees
        windows = frames_15F.unfold(2, 3, 2)[:, :, :half].transpose(1, 2)  # (R + 1, half, 5, 3)
        even = self._first(windows[:, :, 0:3].reshape(-1, 9)).view(rows, half, channels)
        odd = self._first(windows[:-1, :, 2:5].reshape(-1, 9)).view(rows - 1, half, channels)
        columns = even.new_empty(rows - 1, bins, 3, 3, channels)
        for time, frames in enumerate((even[:-1], odd, even[1:])):
            columns[:, :, time] = frames.unfold(1, 3, 2).transpose(2, 3)
        return self._second(columns.view(-1, 9 * channels))


class ShortConvolutions:
    """The same from fewer products, for three output frequencies and more.

    The sums that are multiplied (e0 - e2, e1 + e2, ...) are taken over frequency, then over time; the products are put
    together over time, then over frequency. What the first convolution yields is a tensor for every third of the even
    inputs (e0, e1, e2), so that every sum is one of whole tensors.
    """

    # Output frames at a time: the 25 weights are read once for so many. With more, what lies between the convolutions
    # leaves the cache, and C libraries ask the system anew for every tensor of 32 MiB
    block = 192

    def __init__(self, first: nn.Conv2d, second: nn.Conv2d, bins: int, dtype: torch.dtype) -> None:
        self._bins, self._channels = bins, first.out_channels
        self._first = _first_of(first, dtype)
        kernel = second.weight.detach().permute(2, 3, 0, 1)  # (time, frequency, out, in)
        weights = zip(*(_weights(taps) for taps in _weights(kernel)), strict=True)  # by frequency, then time
        self._second = [[Linear(weight, None, dtype) for weight in over_time] for over_time in weights]
        self._second[-1][-1] = Linear(kernel[1, 1], second.bias, dtype)  # a product that each output has once

    def __call__(self, frames_15F: Tensor) -> Tensor:
        out_RQC = frames_15F.new_empty(len(frames_15F) - 1, self._bins, self._channels)
        missing = -len(out_RQC) % 3  # in the last three
        frames = torch.cat([frames_15F, frames_15F[-1:].expand(missing, -1, -1)])
        even, odd = frames[:, 0:3], frames[:-1, 2:5]
        halves_H3F = torch.cat([half[k::3] for half in (even, odd) for k in range(3)])
        parts = [
            _over_time(inputs_HJC, *linears)
            for inputs_HJC, linears in zip(self._over_frequency(halves_H3F), self._second, strict=True)
        ]
        threes = self._bins // 3
        for k, (p, q, r, s, out) in enumerate(zip(*parts, strict=True)):  # of output frames k, k + 3, ...
            middle = q + r
            y = out[:, : 3 * threes].unflatten(1, (threes, 3))
            y[:, :, 0] += p[:, :threes] + middle
            y[:, :, 1] += q - r
            y[:, :, 2] += s[:, :threes] + middle
            out[:, 3 * threes :] += p[:, threes:] + s[:, threes:]
            wanted = out_RQC[k::3]
            torch.clamp_min(out[: len(wanted)], 0, out=wanted)
        return out_RQC

    def _over_frequency(self, halves_H3F: Tensor) -> Iterator[Tensor]:
        """What p, q, r, s and b multiply, (H, J, C)."""
        threes, left = divmod(self._bins, 3)
        e0, e1, e2 = (self._between(halves_H3F[:, :, 4 * k :], 6, threes + (left >= k)) for k in range(3))
        behind = torch.cat([e[:, threes:] for e in (e0, e1, e2)], 1)  # the even inputs of what is left
        e1, e2, e3 = e1[:, :threes], e2[:, :threes], e0[:, 1 : threes + 1]
        yield _minus(e0[:, :threes], e2, behind[:, :-1])
        yield e1 + e2
        yield e2 - e1
        yield _minus(e3, e1, behind[:, 1:])
        yield self._between(halves_H3F[:, :, 2:], 2, self._bins)

    def _between(self, halves_H3F: Tensor, step: int, count: int) -> Tensor:
        """``count`` frequencies of the first convolution, each ``step`` behind the one before, (H, count, C)."""
        windows = halves_H3F.unfold(2, 3, 2 * step)[:, :, :count].transpose(1, 2)
        return self._first(windows.reshape(-1, 9)).view(-1, count, self._channels)


class StridedConvolution:
    """A 3x3 stride-2 convolution with its ReLU on what the two before it yield, (2 R + 1, 2 Q + 1 or more, C) to
    (R, Q, C), some output frames at a time."""

    block = 128

    def __init__(self, conv: nn.Conv2d, bins: int, dtype: torch.dtype) -> None:
        self._bins = bins
        columns = conv.weight.permute(0, 2, 3, 1).reshape(conv.out_channels, -1)
        self._product = Linear(columns, conv.bias, dtype, "relu")

    def __call__(self, x_HJC: Tensor) -> Iterator[Tensor]:
        windows = x_HJC.unfold(0, 3, 2).unfold(1, 3, 2)[:, : self._bins]  # (R, Q, C, time, frequency)
        for part in windows.split(self.block):
            columns = part.permute(0, 1, 3, 4, 2).reshape(len(part) * self._bins, -1)
            yield self._product(columns).view(len(part), self._bins, -1)


def _weights(taps: Tensor) -> list[Tensor]:
    """Those of p, q, r, s and of the odd inputs, from the three taps along the first axis."""
    a, b, c = taps
    return [a, (a + c) / 2, (a - c) / 2, c, b]


def _over_time(inputs_HJC: Tensor, p: Linear, q: Linear, r: Linear, s: Linear, b: Linear) -> list[Tensor]:
    """The products and their sums over time, (T, J, C): y0, y1 and y2."""
    threes = len(inputs_HJC) // 6
    e0, e1, e2, o0, o1, o2 = inputs_HJC.split([threes + 1] + [threes] * 5)
    sums, differences = q(e1 + e2), r(e2 - e1)
    middle = sums + differences
    y0 = b.add(o0, p.add(e0[:-1] - e2, middle))
    y1 = b.add(o1, sums - differences)
    y2 = b.add(o2, s.add(e0[1:] - e1, middle))
    return [y0, y1, y2]


def _minus(x: Tensor, y: Tensor, behind: Tensor) -> Tensor:
    """``torch.cat([x - y, behind], 1)`` in one pass."""
    count = x.shape[1]
    out = x.new_empty(len(x), count + behind.shape[1], x.shape[2])
    torch.sub(x, y, out=out[:, :count])
    out[:, count:] = behind
    return out


def _first_of(first: nn.Conv2d, dtype: torch.dtype) -> Linear:
    """As a product with windows of (time, frequency)."""
    return Linear(first.weight.reshape(first.out_channels, 9), first.bias, dtype, "relu")
