"""Triton versions of `localgp.kernels.rows`: one program per row.

Shape legend: N rows, K kept rows, D model size.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _gather_norm(
    x_ptr,
    index_ptr,
    count_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    size,
    stride,
    eps,
    INDEXED: tl.constexpr,
    COUNTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    exists = True
    if COUNTED:
        exists = row < tl.load(count_ptr)
    if exists:
        source = row.to(tl.int64)
        if INDEXED:
            source = tl.load(index_ptr + row).to(tl.int64)
        columns = tl.arange(0, BLOCK)
        inside = columns < size
        x = tl.load(x_ptr + source * stride + columns, mask=inside, other=0.0).to(tl.float32)
        mean = tl.sum(x, axis=0) / size
        centred = tl.where(inside, x - mean, 0.0)
        scale = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=0) / size + eps)
        weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
        bias = tl.load(bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)
        y = centred * scale * weight + bias
        tl.store(out_ptr + row.to(tl.int64) * size + columns, y.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _scatter_add(x_ptr, index_ptr, y_ptr, size, x_stride, y_stride, scale, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    target = tl.load(index_ptr + row).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    address = x_ptr + target * x_stride + columns
    x = tl.load(address, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(y_ptr + row.to(tl.int64) * y_stride + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(address, (x + scale * y).to(x_ptr.dtype.element_ty), mask=inside)


def gather_norm(
    x_ND: Tensor,
    index_K: Tensor | None,
    weight_D: Tensor,
    bias_D: Tensor,
    eps: float,
    dtype: torch.dtype,
    count: Tensor | None = None,
) -> Tensor:
    """See `localgp.kernels.rows.gather_norm`."""
    rows, size = len(x_ND) if index_K is None else len(index_K), x_ND.shape[1]
    out_KD = torch.empty(rows, size, dtype=dtype, device=x_ND.device)
    if rows:
        x_ND = x_ND if x_ND.stride(1) == 1 else x_ND.contiguous()
        _gather_norm[(rows,)](
            x_ND,
            x_ND if index_K is None else index_K.contiguous(),
            x_ND if count is None else count,
            weight_D.contiguous(),
            bias_D.contiguous(),
            out_KD,
            size,
            x_ND.stride(0),
            eps,
            INDEXED=index_K is not None,
            COUNTED=count is not None,
            BLOCK=triton.next_power_of_2(size),
        )
    return out_KD


def scatter_add(x_ND: Tensor, index_K: Tensor, y_KD: Tensor, scale: float = 1.0) -> Tensor:
    """See `localgp.kernels.rows.scatter_add`; ``x_ND`` has contiguous rows."""
    rows, size = y_KD.shape
    if rows:
        y_KD = y_KD if y_KD.stride(1) == 1 else y_KD.contiguous()
        _scatter_add[(rows,)](
            x_ND,
            index_K.contiguous(),
            y_KD,
            size,
            x_ND.stride(0),
            y_KD.stride(0),
            scale,
            BLOCK=triton.next_power_of_2(size),
        )
    return x_ND
