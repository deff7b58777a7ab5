"""Products in 8 bits on a CPU: weights are quantised once, by output channel, and activations as they come, by row.

    y = a s (round(127 x / a) round(W / s)^T) + b       a: the row's largest number; s: the channel's, over 127

A row's numbers depend on no other row, so what is written of an utterance does not depend on its batch mates. PyTorch's
dynamic quantisation has one scale for all rows; so rows are divided by their largest number first, and then one fixed
scale fits all. FBGEMM multiplies, with the VNNI instructions of a CPU that has them: without, it saturates in 16 bits.

These operators are no part of PyTorch's stable interface: nothing outside this file calls them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ENGINE = "fbgemm"
LEVELS = 127  # of a sign
ZERO = 128  # activations are unsigned


def rows_type(dtype: torch.dtype) -> torch.dtype:
    """What products with weights of ``dtype`` are given, and give: in 8 bits are the weights alone.

    >>> rows_type(torch.int8), rows_type(torch.bfloat16)
    (torch.float32, torch.bfloat16)
    """
    return torch.float32 if dtype == torch.int8 else dtype


class Weight8:
    """A linear layer's weight (out, in) and bias (out,), quantised now.

    Args:
        least: What no input is below. Then all levels are for what is above it, instead of half of them, which inputs
            behind an activation would hardly use; what that adds to every output is taken off in the bias.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, least: float | None = None) -> None:
        weight = weight.detach().float()
        scale = weight.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / LEVELS
        zero = torch.zeros(len(weight), dtype=torch.long)
        quantised = torch.quantize_per_channel(weight, scale.double(), zero, 0, torch.qint8)
        self._bias = None if bias is None else bias.detach().float()
        self._least = least
        if least is not None:
            given = torch.zeros(len(weight)) if self._bias is None else self._bias
            self._bias = given + least * (quantised.int_repr().sum(1) * scale)
        self._packed = _packed(quantised)
        self.nbytes = weight.numel() + 4 * len(weight) * (1 if self._bias is None else 2)

    def __call__(self, x: Tensor) -> Tensor:
        """``x W^T + b`` (..., out), of fp32 and in fp32; for inference."""
        x = x.detach()
        tiny = torch.finfo(torch.float32).tiny
        if self._least is None:
            scale, zero, largest = 1 / LEVELS, ZERO, x.abs().amax(-1, keepdim=True).clamp_min_(tiny)
            x = x / largest
        else:
            x = x - self._least
            scale, zero, largest = 1 / (2 * LEVELS + 1), 0, x.amax(-1, keepdim=True).clamp_min_(tiny)
            x /= largest
        multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        y: Tensor = multiply(x, scale, zero, self._packed)
        return y.mul_(largest) if self._bias is None else torch.addcmul(self._bias, y, largest, out=y)


def _packed(quantised: Tensor) -> Any:
    """In FBGEMM's layout; which engine lays out is a setting of the whole process."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = ENGINE
    try:
        return torch.ops.quantized.linear_prepack(quantised, None)
    finally:
        torch.backends.quantized.engine = before
