"""Linear layers with weights laid out once, and their activation in the same kernel where there is one.

PyTorch's linear layer on a CPU is made for many rows and plain weights. oneDNN on weights in its own blocked layout is
faster, for the few rows of a decoding step too. PyTorch lays weights out so when it freezes a compiled model; here the
same operators are called directly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from localgp.kernels.int8 import Weight8, rows_type
from localgp.kernels.kept import Kept, product, product_to_rows
from localgp.kernels.onednn import ROWS, blocked_linear, linear, linear_add

Activation = str | Callable[[Tensor], Tensor]
LEAST = {"relu": 0.0, "gelu": -0.17, "swish": -0.2785}  # what an activation's outputs are not below
_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "relu": torch.relu_,
    "swish": lambda y: F.silu(y, inplace=True),
    "gelu": torch.ops.aten.gelu_,
}


class Linear:
    """``activation(x W^T + b)`` for inference.

    On a CPU the weights are copied into oneDNN's blocked layout at construction and the activation is part of
    the product; elsewhere, and where PyTorch is built without oneDNN, it is the plain linear layer. In 8 bits it is
    `localgp.kernels.int8`.

    Args:
        weight: (out, in).
        bias: (out,) or None.
        dtype: Of the weights; input and output are of `localgp.kernels.int8.rows_type`.
        activation: ``none``, ``relu``, ``swish``, ``gelu``, or a function of the product.
        rows: That the layout is chosen for.
        behind: The activation that makes its inputs, where one of `LEAST` does; 8 bits make use of that.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        activation: Activation = "none",
        rows: int = ROWS,
        behind: Activation = "none",
    ) -> None:
        self._after = None if isinstance(activation, str) else activation
        self._activation = activation if isinstance(activation, str) else "none"
        self._weight8 = Weight8(weight, bias, _least(behind)) if dtype == torch.int8 else None
        self._weight = weight.detach().to(rows_type(dtype))
        self._bias = None if bias is None else bias.detach().to(rows_type(dtype))
        self._blocked = None if self._weight8 is not None else blocked_linear(self._weight, rows)
        self.nbytes = sum(part.nbytes for part in (self._weight, self._bias) if part is not None)
        if self._weight8 is not None:
            self.nbytes = self._weight8.nbytes
        if self._blocked is not None or self._weight8 is not None:
            self._weight = self._weight[:0].clone()  # one copy is enough

    def __call__(self, x: Tensor, kept: Kept | None = None) -> Tensor:
        """The product.

        Args:
            kept: Where only as many rows of ``x`` exist as it has.
        """
        if kept is not None:
            y = product(x, self._weight, self._bias, kept, self._activation)
        elif self._blocked is not None:
            y = linear(x, self._blocked, self._bias, self._activation)
        else:
            y = _PLAIN[self._activation](self._plain(x))
        return y if self._after is None else self._after(y)

    def to_rows(self, x_NK: Tensor, kept: Kept, out_NU: Tensor, *, add: bool) -> None:
        """Of the rows that exist, put or added where they came from; the activation is left out."""
        product_to_rows(x_NK, self._weight, self._bias, kept, out_NU, add=add)

    def add(self, x: Tensor, total: Tensor | None) -> Tensor:
        """``total + x W^T + b``, rows of x, in one kernel where there is one; the activation is left out."""
        if self._blocked is None:
            y = self._plain(x)
            return y if total is None else y.add_(total)
        if total is None:
            return linear(x, self._blocked, self._bias)
        return linear_add(x, total, self._blocked, self._bias)

    def _plain(self, x: Tensor) -> Tensor:
        return F.linear(x, self._weight, self._bias) if self._weight8 is None else self._weight8(x)


def fused(
    linears: Sequence[nn.Linear],
    dtype: torch.dtype,
    activation: Activation = "none",
    rows: int = ROWS,
    behind: Activation = "none",
) -> Linear:
    """Several linear layers of one input as one; those without a bias have zeros for it if another has one."""
    weight = torch.cat([one.weight.detach().to(rows_type(dtype)) for one in linears])
    bias = None
    if any(one.bias is not None for one in linears):
        parts = [
            one.weight.new_zeros(one.out_features) if one.bias is None else one.bias.detach()
            for one in linears
        ]
        bias = torch.cat([part.to(rows_type(dtype)) for part in parts])
    return Linear(weight, bias, dtype, activation, rows, behind)


def _least(activation: Activation) -> float | None:
    return LEAST.get(activation) if isinstance(activation, str) else None


def activation_of(module: nn.Module) -> str | Callable[[Tensor], Tensor]:
    """The name of an activation module where a kernel has it, else the module itself.

    Examples:
        >>> activation_of(nn.SiLU())
        'swish'
    """
    names = {"Swish": "swish", "SiLU": "swish", "ReLU": "relu", "Identity": "none"}
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else module
    return names.get(type(module).__name__, module)
