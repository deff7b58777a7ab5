"""The two memory-bound steps around a gated module, as one pass over the rows each.

`gather_norm` reads the kept rows and normalises them; `scatter_add` adds the module's result, times the residual
scale, to the rows it belongs to. In PyTorch each is a chain of passes; on CUDA a Triton kernel makes it one. Both
have the PyTorch version as reference (tests/test_kernels.py), which is what runs everywhere else.

Shape legend: N rows, K kept rows, D model size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from localgp.kernels import devices

__all__ = ["gather_norm", "gather_norm_reference", "scatter_add", "scatter_add_reference"]


def gather_norm(
    x_ND: Tensor,
    index_K: Tensor | None,
    weight_D: Tensor,
    bias_D: Tensor,
    eps: float,
    dtype: torch.dtype,
    count: Tensor | None = None,
) -> Tensor:
    """Layer norm of the rows ``index_K`` (None: all), computed in fp32, (K, D) in ``dtype``. Where a device alone knows
    how many of them there are (``count``, one number), rows behind them are not written."""
    kernels = devices.triton_on(x_ND.device)
    if kernels is not None:
        return kernels.gather_norm(x_ND, index_K, weight_D, bias_D, eps, dtype, count)
    return gather_norm_reference(x_ND, index_K, weight_D, bias_D, eps, dtype, count)


def gather_norm_reference(
    x_ND: Tensor,
    index_K: Tensor | None,
    weight_D: Tensor,
    bias_D: Tensor,
    eps: float,
    dtype: torch.dtype,
    count: Tensor | None = None,
) -> Tensor:
    if count is not None:
        index_K = index_K if index_K is not None else torch.arange(len(x_ND), device=x_ND.device)
        out_KD = x_ND.new_zeros(len(index_K), x_ND.shape[1], dtype=dtype)
        rows = slice(0, int(count))
        out_KD[rows] = gather_norm_reference(x_ND, index_K[rows], weight_D, bias_D, eps, dtype)
        return out_KD
    rows_KD = x_ND if index_K is None else x_ND.index_select(0, index_K)
    if not rows_KD.is_cpu:  # a CPU's layer norm takes bf16 rows with fp32 weights as they are
        rows_KD = rows_KD.float()
    return F.layer_norm(rows_KD, rows_KD.shape[-1:], weight_D, bias_D, eps).to(dtype)


def scatter_add(x_ND: Tensor, index_K: Tensor | None, y_KD: Tensor, scale: float = 1.0) -> Tensor:
    """``x[index] += scale * y`` in place; the rows of ``index_K`` are distinct."""
    kernels = devices.triton_on(x_ND.device)
    if kernels is not None and index_K is not None:
        return kernels.scatter_add(x_ND, index_K, y_KD, scale)
    return scatter_add_reference(x_ND, index_K, y_KD, scale)


def scatter_add_reference(x_ND: Tensor, index_K: Tensor | None, y_KD: Tensor, scale: float = 1.0) -> Tensor:
    if index_K is None:
        return x_ND.add_(y_KD, alpha=scale)
    return x_ND.index_add_(0, index_K, y_KD.to(x_ND.dtype), alpha=scale)
