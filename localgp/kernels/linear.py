"""Linear layers with weights laid out once, and their activation in the same kernel where there is one.

PyTorch's linear layer on a CPU is made for many rows and plain weights. oneDNN on weights in its own blocked layout is
faster, for the few rows of a decoding step too. PyTorch lays weights out so when it freezes a compiled model; here the
same operators are called directly.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = 749  # rows the blocked layout is chosen for: 30 s of speech
_FUSED = {"none": ("none", ""), "relu": ("relu", ""), "swish": ("swish", ""), "gelu": ("gelu", "none")}
_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "relu": torch.relu_,
    "swish": lambda y: F.silu(y, inplace=True),
    "gelu": F.gelu,
}


class Linear:
    """``activation(x W^T + b)`` for inference.

    On a CPU the weights are copied into oneDNN's blocked layout at construction and the activation is part of
    the product; elsewhere, and where PyTorch is built without oneDNN, it is the plain linear layer.

    Args:
        weight: (out, in).
        bias: (out,) or None.
        dtype: Of weights, input and output.
        activation: ``none``, ``relu``, ``swish``, ``gelu``, or a function of the product.
        rows: That the layout is chosen for.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        activation: str | Callable[[Tensor], Tensor] = "none",
        rows: int = ROWS,
    ) -> None:
        self._after = None if isinstance(activation, str) else activation
        self._activation = activation if isinstance(activation, str) else "none"
        self._weight = weight.detach().to(dtype)
        self._bias = None if bias is None else bias.detach().to(dtype)
        self._blocked = blocked(self._weight, rows)
        if self._blocked is not None:
            self._weight = self._weight[:0]  # one copy is enough

    def __call__(self, x: Tensor) -> Tensor:
        if self._blocked is not None:
            name, algorithm = _FUSED[self._activation]
            y = torch.ops.mkldnn._linear_pointwise(x, self._blocked, self._bias, name, [], algorithm)
        else:
            y = _PLAIN[self._activation](F.linear(x, self._weight, self._bias))
        return y if self._after is None else self._after(y)

    def add(self, x: Tensor, total: Tensor | None) -> Tensor:
        """``total + x W^T + b``, rows of x, in one kernel where there is one; the activation is left out."""
        if self._blocked is None:
            y = F.linear(x, self._weight, self._bias)
            return y if total is None else y.add_(total)
        if total is None:
            return torch.ops.mkldnn._linear_pointwise(x, self._blocked, self._bias, "none", [], "")
        return torch.ops.mkldnn._linear_pointwise.binary(x, total, self._blocked, self._bias, "add")


def blocked(weight: Tensor, rows: int = ROWS) -> Tensor | None:
    """The weight in oneDNN's layout for products with so many rows, or None where that is of no use."""
    if not takes_blocked(weight):
        return None
    try:
        return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
    except (AttributeError, RuntimeError):  # not part of PyTorch's stable interface
        return None


def takes_blocked(weight: Tensor) -> bool:
    """Whether oneDNN computes with weights of this device and type."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


def activation_of(module: nn.Module) -> str | Callable[[Tensor], Tensor]:
    """The name of an activation module where a kernel has it, else the module itself.

    Example:
        >>> activation_of(nn.SiLU())
        'swish'
    """
    names = {"Swish": "swish", "SiLU": "swish", "ReLU": "relu", "Identity": "none"}
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else module
    return names.get(type(module).__name__, module)
