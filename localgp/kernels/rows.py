"""The two memory-bound steps around a gated module, as one pass over the rows each.

`gather_norm` reads the kept rows and normalises them; `scatter_add` adds the module's result, times the residual
scale, to the rows it belongs to. In PyTorch each is a chain of passes; on CUDA a Triton kernel makes it one. Both
have the PyTorch version as reference (tests/test_kernels.py), which is what runs everywhere else.

Shape legend: N rows, K kept rows, D model size.
"""

from __future__ import annotations

import functools
import logging
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

log = logging.getLogger(__name__)

__all__ = ["gather_norm", "gather_norm_reference", "scatter_add", "scatter_add_reference"]


@functools.cache
def _triton(device: torch.device) -> ModuleType | None:
    """The kernels, if they can be had on a device."""
    try:
        from localgp.kernels import triton_rows
    except ImportError:  # Triton comes with PyTorch's CUDA builds only
        return None
    x_ND, index_K = torch.zeros(1, 8, device=device), torch.zeros(1, dtype=torch.long, device=device)
    try:  # the first kernel shows whether there is a compiler
        triton_rows.gather_norm(x_ND, index_K, x_ND[0], x_ND[0], 1.0, torch.float32)
        triton_rows.scatter_add(x_ND, index_K, x_ND)
    except Exception as error:  # whatever the tool chain raises
        log.warning(
            "Triton cannot compile here (%s: %s); PyTorch's own kernels are used, which are slower. Triton needs a C "
            "compiler, and a cache directory that can be written to.",
            type(error).__name__,
            str(error).strip().splitlines()[0] if str(error).strip() else "no message",
        )
        return None
    return triton_rows


def gather_norm(
    x_ND: Tensor, index_K: Tensor | None, weight_D: Tensor, bias_D: Tensor, eps: float, dtype: torch.dtype
) -> Tensor:
    """Layer norm of the rows ``index_K`` (None: all), computed in fp32, (K, D) in ``dtype``."""
    kernels = _triton(x_ND.device) if x_ND.is_cuda and index_K is not None else None
    if kernels is not None:
        return kernels.gather_norm(x_ND, index_K, weight_D, bias_D, eps, dtype)
    return gather_norm_reference(x_ND, index_K, weight_D, bias_D, eps, dtype)


def gather_norm_reference(
    x_ND: Tensor, index_K: Tensor | None, weight_D: Tensor, bias_D: Tensor, eps: float, dtype: torch.dtype
) -> Tensor:
    rows = x_ND if index_K is None else x_ND.index_select(0, index_K)
    if not rows.is_cpu:  # a CPU's layer norm takes bf16 rows with fp32 weights as they are
        rows = rows.float()
    return F.layer_norm(rows, rows.shape[-1:], weight_D, bias_D, eps).to(dtype)


def scatter_add(x_ND: Tensor, index_K: Tensor | None, y_KD: Tensor, scale: float = 1.0) -> Tensor:
    """``x[index] += scale * y`` in place; the rows of ``index_K`` are distinct."""
    kernels = _triton(x_ND.device) if x_ND.is_cuda and index_K is not None else None
    if kernels is not None:
        return kernels.scatter_add(x_ND, index_K, y_KD, scale)
    return scatter_add_reference(x_ND, index_K, y_KD, scale)


def scatter_add_reference(x_ND: Tensor, index_K: Tensor | None, y_KD: Tensor, scale: float = 1.0) -> Tensor:
    if index_K is None:
        return x_ND.add_(y_KD, alpha=scale)
    return x_ND.index_add_(0, index_K, y_KD.to(x_ND.dtype), alpha=scale)
