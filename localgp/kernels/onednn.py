"""oneDNN's operators on weights in its own layout.

PyTorch has them for models that it compiles; they are not part of its stable interface, so nothing outside this file
calls them, and every layout is None where they cannot be had.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ROWS = 749  # rows that a layout is chosen for: 30 s of speech
_FUSED = {"none": ("none", ""), "relu": ("relu", ""), "swish": ("swish", ""), "gelu": ("gelu", "none")}
_ONE = [1, 1]


def takes_blocked(weight: Tensor) -> bool:
    """Whether oneDNN computes with weights of this device and type."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


def blocked_linear(weight: Tensor, rows: int = ROWS) -> Tensor | None:
    """The weight (out, in) in oneDNN's layout for products with so many rows, or None where that is of no use."""
    if not takes_blocked(weight):
        return None
    try:
        return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
    except (AttributeError, RuntimeError):
        return None


def linear(x: Tensor, blocked: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """``activation(x W^T + b)``, one of ``none``, ``relu``, ``swish``, ``gelu``."""
    name, algorithm = _FUSED[activation]
    return torch.ops.mkldnn._linear_pointwise(x, blocked, bias, name, [], algorithm)


def linear_add(x: Tensor, total: Tensor, blocked: Tensor, bias: Tensor | None) -> Tensor:
    """``total + x W^T + b``."""
    return torch.ops.mkldnn._linear_pointwise.binary(x, total, blocked, bias, "add")


def blocked_convolution(
    weight: Tensor, padding: Sequence[int], groups: int, shape: list[int]
) -> Tensor | None:
    """The weight of a convolution of stride 1 in oneDNN's layout for inputs of ``shape``, or None."""
    if not takes_blocked(weight):
        return None
    try:
        return torch.ops.mkldnn._reorder_convolution_weight(weight, list(padding), _ONE, _ONE, groups, shape)
    except (AttributeError, RuntimeError):
        return None


def convolution(
    x: Tensor, blocked: Tensor, bias: Tensor | None, padding: Sequence[int], groups: int
) -> Tensor:
    return torch.ops.mkldnn._convolution_pointwise(
        x, blocked, bias, list(padding), _ONE, _ONE, groups, "none", [], ""
    )


def takes_convolutions(weight: Tensor) -> bool:
    """Whether `blocked_convolution` gives a layout for such weights."""
    operators = ("_convolution_pointwise", "_reorder_convolution_weight")
    return takes_blocked(weight) and all(hasattr(torch.ops.mkldnn, name) for name in operators)
