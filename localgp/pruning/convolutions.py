"""The subsampling's two 3x3 stride-2 convolutions as matrix products, channels last, in one of two ways.

`WindowConvolutions` copies out the 9 inputs of each of the second convolution's outputs and multiplies once.
`ShortConvolutions` has 25 products for every 2 x 2 outputs where the definition has 36. Along one axis two neighbouring
outputs see five inputs, e0 o0 e1 o1 e2:

    y0 = a e0 + b o0 + c e1                    y1 = a e1 + b o1 + c e2
       = a (e0 - e1) + b o0 + (a + c) e1          = c (e2 - e1) + b o1 + (a + c) e1

and the last product serves both: five for six (Winograd's F(2, 2) on the even inputs), over time and frequency
25 for 36. The sums are of two terms and none is scaled, so that fp32 results are as exact as those of the definition.

Shape legend: R rows (an output frame sees the five feature frames of its row and the first three of the next), F mel
bins, Q output frequencies, C channels, I pairs of output frames, J a quarter of the first convolution's frequencies.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from localgp.pruning.linear import Linear

FIRST, SHARED, SECOND = range(3)  # the sums of a pair of outputs, along one axis


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
    few = first.weight.device.type == "cpu" and dtype == torch.float32
    return (ShortConvolutions if few else WindowConvolutions)(first, second, bins, dtype)


class WindowConvolutions:
    """Both convolutions with their ReLU, (R, 5, F) to ((R - 1) * Q, C)."""

    def __init__(self, first: nn.Conv2d, second: nn.Conv2d, bins: int, dtype: torch.dtype) -> None:
        self._bins, self._channels = bins, first.out_channels
        # Rows at a time: on a CPU, what lies between the convolutions stays in the cache
        self.chunk = 32 if first.weight.device.type == "cpu" else 512
        self._first = _first_of(first, dtype)
        columns = second.weight.permute(0, 2, 3, 1).reshape(second.out_channels, -1)
        self._second = Linear(columns, second.bias, dtype, "relu")

    def __call__(self, frames_R5F: Tensor) -> Tensor:
        rows, bins, channels = frames_R5F.shape[0], self._bins, self._channels
        half = 2 * bins + 1  # frequencies between the convolutions that the second one sees
        windows = frames_R5F.unfold(2, 3, 2)[:, :, :half].transpose(1, 2)  # (R, half, 5, 3)
        even = self._first(windows[:, :, 0:3].reshape(-1, 9)).view(rows, half, channels)
        odd = self._first(windows[:-1, :, 2:5].reshape(-1, 9)).view(rows - 1, half, channels)
        columns = even.new_empty(rows - 1, bins, 3, 3, channels)
        for time, frames in enumerate((even[:-1], odd, even[1:])):
            columns[:, :, time] = frames.unfold(1, 3, 2).transpose(2, 3)
        return self._second(columns.view(-1, 9 * channels))


class ShortConvolutions:
    """The same from fewer products.

    What the first convolution yields is kept apart by its frequency modulo 4, so that every factor of a product is a
    tensor as it lies or the difference of two.
    """

    chunk = 128  # rows at a time: the 25 weights are read once for so many

    def __init__(self, first: nn.Conv2d, second: nn.Conv2d, bins: int, dtype: torch.dtype) -> None:
        self._bins, self._channels = bins, first.out_channels
        self._first = _first_of(first, dtype)
        self._second: dict[tuple[int, int], list[Linear]] = {}  # by the sums over time and over frequency
        for time, rows in enumerate(_weights(second.weight.detach().permute(2, 3, 0, 1))):
            for frequency in (FIRST, SHARED, SECOND):
                bias = second.bias if time == frequency == SHARED else None  # once for each output
                taps = [tap for row in rows for tap in _weights(row)[frequency]]
                self._second[time, frequency] = [Linear(tap, bias, dtype) for tap in taps]

    def __call__(self, frames_R5F: Tensor) -> Tensor:
        rows, bins, channels = len(frames_R5F), self._bins, self._channels
        if rows % 2 == 0:  # a pair lacks its second frame
            frames_R5F = torch.cat([frames_R5F, frames_R5F[-1:]])
        even, middle = self._quarters(frames_R5F[0::2, 0:3]), self._quarters(frames_R5F[1::2, 0:3])
        odd = [self._quarters(frames_R5F[begin:-1:2, 2:5]) for begin in (0, 1)]
        before, after = [q[:-1] for q in even], [q[1:] for q in even]
        fives = list(zip(before, odd[0], middle, odd[1], after, strict=True))

        def inputs(time: int) -> list[tuple[Tensor, ...]]:
            return list(zip(*(_terms(time, *five) for five in fives), strict=True))

        shared = [self._sum(SHARED, frequency, inputs(SHARED)) for frequency in (FIRST, SHARED, SECOND)]
        pairs = len(middle[0])
        out = frames_R5F.new_empty(pairs, 2, bins, channels)
        for row, time in enumerate((FIRST, SECOND)):
            frames = inputs(time)
            both = self._sum(time, SHARED, frames, shared[SHARED])
            for column, frequency in enumerate((FIRST, SECOND)):
                own = self._sum(time, frequency, frames, shared[frequency])
                torch.add(own, both[:, : own.shape[1]], out=out[:, row, column::2])
        return out.view(-1, channels)[: (rows - 1) * bins].relu_()

    def _quarters(self, frames_R3F: Tensor) -> list[Tensor]:
        """The first convolution, (R, J, C) for each remainder of its frequencies modulo 4."""
        quarters = []
        for begin in range(4):
            count = (2 * self._bins + 4 - begin) // 4  # of the 2 Q + 1 that the second convolution sees
            windows = frames_R3F[:, :, 2 * begin :].unfold(2, 3, 8)[:, :, :count].transpose(1, 2)
            quarters.append(self._first(windows.reshape(-1, 9)).view(-1, count, self._channels))
        return quarters

    def _sum(
        self, time: int, frequency: int, inputs: Sequence[Sequence[Tensor]], plus: Tensor | None = None
    ) -> Tensor:
        """One sum of products, (I, J, C), with another one added."""
        pairs = (self._bins + 1) // 2
        terms = [
            term
            for zero, one, two, three in inputs
            for term in _terms(frequency, zero[:, :pairs], one, two, three, zero[:, 1:])
        ]
        total = None if plus is None else plus.flatten(0, 1)
        for term, linear in zip(terms, self._second[time, frequency], strict=True):
            total = linear.add(term.flatten(0, 1), total)
        assert total is not None
        return total.unflatten(0, (len(terms[0]), -1))


def _weights(taps: Tensor) -> list[list[Tensor]]:
    """Those of the first, the shared and the second sum, from the three taps along the first axis."""
    a, b, c = taps
    return [[a, b], [a + c], [c, b]]


def _terms(which: int, e0: Tensor, o0: Tensor, e1: Tensor, o1: Tensor, e2: Tensor) -> list[Tensor]:
    """What these weights multiply; where the last pair lacks its second output, ``e2`` and ``o1`` are one shorter."""
    if which == SHARED:
        return [e1]
    return [e0 - e1, o0] if which == FIRST else [e2 - e1[:, : e2.shape[1]], o1]


def _first_of(first: nn.Conv2d, dtype: torch.dtype) -> Linear:
    """As a product with windows of (time, frequency)."""
    return Linear(first.weight.reshape(first.out_channels, 9), first.bias, dtype, "relu")
