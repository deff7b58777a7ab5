"""Linear layers for few rows.

A decoding step multiplies few rows (beams x utterances) with many weights. PyTorch's linear layer on a CPU is
made for many rows; oneDNN on weights in its own blocked layout is faster for few. PyTorch lays weights out so when it
freezes a compiled model; here the same operators are called directly. On other devices, and where PyTorch was
built without them, it is the plain linear layer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 32  # rows that the blocked layout is chosen for; all counts from 5 to 256 get the same one


class PackedLinear:
    """``activation(x W^T + b)`` with weights read once, at construction.

    Args:
        weight: (out, in).
        bias: (out,) or None.
        relu: Whether the activation is ReLU instead of none.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, relu: bool = False) -> None:
        self._weight = weight.detach()
        self._bias = None if bias is None else bias.detach()
        self._relu = relu
        self._packed = _pack(self._weight)
        if self._packed is not None:
            self._weight = self._weight[:0]  # the blocked copy is enough

    def __call__(self, x: Tensor) -> Tensor:
        if self._packed is not None:
            activation = "relu" if self._relu else "none"
            return torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, activation, [], "")
        y = F.linear(x, self._weight, self._bias)
        return y.relu_() if self._relu else y


def _pack(weight: Tensor) -> Tensor | None:
    """The weight in oneDNN's layout, or None where oneDNN has no use here."""
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
        return None
    if not torch.backends.mkldnn.is_available() or (weight.dtype == torch.bfloat16 and not _native_bf16()):
        return None
    try:
        return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS)
    except (AttributeError, RuntimeError):  # not part of PyTorch's stable interface
        return None


def _native_bf16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
