"""Triton versions of `localgp.kernels.kept`.

Shape legend: N frames of all utterances, B utterances, M gated modules, D model size, K inputs and U outputs of a
product.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from localgp.kernels.kept import Kept
from localgp.kernels.ragged import Ragged

FILLED = 120  # tiles that keep a card's multiprocessors busy
LEAST_SHARED = 101_376  # bytes that a program may have on any card with bf16
DEPTH = 128  # bytes of a row that a tile reads at a time


class Tile(NamedTuple):
    """What a program of a product computes, and how.

    Attributes:
        stages: Of its reading, which goes on while it multiplies.
    """

    rows: int
    columns: int
    warps: int
    stages: int


TILES = (Tile(128, 256, 8, 3), Tile(128, 128, 8, 3), Tile(64, 128, 4, 3), Tile(64, 64, 4, 3))


@functools.cache
def tiles(shared: int) -> list[Tile]:
    """Those that fit into so many bytes of shared memory: what is read, and then the sums in fp32."""
    needed = [max(t.stages * (t.rows + t.columns) * DEPTH, 4 * t.rows * t.columns) for t in TILES]
    return [tile for tile, size in zip(TILES, needed, strict=True) if size <= shared]


@triton.jit
def _compact(mask_ptr, offsets_ptr, index_ptr, ends_ptr, frames, utterances, BLOCK: tl.constexpr):
    module, utterance = tl.program_id(0), tl.program_id(1)
    mask_ptr += module * frames
    begin = tl.load(offsets_ptr + utterance)
    columns = tl.arange(0, BLOCK)
    place = 0
    for at in range(0, begin, BLOCK):
        inside = at + columns < begin
        place += tl.sum(tl.load(mask_ptr + at + columns, mask=inside, other=0).to(tl.int32), axis=0)
    tl.store(ends_ptr + module * (utterances + 1) + utterance, place)
    if utterance < utterances:
        end = tl.load(offsets_ptr + utterance + 1)
        for at in range(begin, end, BLOCK):
            inside = at + columns < end
            kept = tl.load(mask_ptr + at + columns, mask=inside, other=0).to(tl.int32)
            where = place + tl.cumsum(kept, axis=0) - 1
            tl.store(index_ptr + module * frames + where, at + columns, mask=inside & (kept != 0))
            place += tl.sum(kept, axis=0)


@triton.jit
def _product(
    x_ptr,
    w_ptr,
    b_ptr,
    out_ptr,
    index_ptr,
    count_ptr,
    inputs,
    outputs,
    x_stride,
    w_stride,
    out_stride,
    ACTIVATION: tl.constexpr,
    BIASED: tl.constexpr,
    PLACE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
):
    rows = tl.load(count_ptr)
    row_tiles, column_tiles = tl.cdiv(rows, ROWS), tl.cdiv(outputs, COLUMNS)
    program = tl.program_id(0)
    if program < row_tiles * column_tiles:
        # Neighbouring programs share rows of x and of the weights, which then come from the cache
        group = program // (GROUP * column_tiles)
        first = group * GROUP
        height = tl.minimum(row_tiles - first, GROUP)
        inside = program % (GROUP * column_tiles)
        row = (first + inside % height) * ROWS + tl.arange(0, ROWS)
        column = (inside // height) * COLUMNS + tl.arange(0, COLUMNS)
        depth = tl.arange(0, DEPTH)
        real_row, real_column = row < rows, column < outputs
        safe_row, safe_column = tl.where(real_row, row, 0), tl.where(real_column, column, 0)
        x_at = x_ptr + safe_row.to(tl.int64)[:, None] * x_stride + depth[None, :]
        w_at = w_ptr + safe_column.to(tl.int64)[None, :] * w_stride + depth[:, None]
        total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for at in range(0, inputs, DEPTH):
            left = inputs - at
            x = tl.load(x_at, mask=depth[None, :] < left, other=0.0)
            w = tl.load(w_at, mask=depth[:, None] < left, other=0.0)
            total = tl.dot(x, w, total, input_precision="ieee")
            x_at += DEPTH
            w_at += DEPTH
        if BIASED:
            total += tl.load(b_ptr + column, mask=real_column, other=0.0).to(tl.float32)[None, :]
        if ACTIVATION == "relu":
            total = tl.maximum(total, 0.0)
        elif ACTIVATION == "swish":
            total = total * tl.sigmoid(total)
        elif ACTIVATION == "gelu":
            total = 0.5 * total * (1.0 + tl.erf(total * 0.7071067811865476))
        if PLACE == "rows":
            target = row
        else:
            target = tl.load(index_ptr + row, mask=real_row, other=0)
        out_at = out_ptr + target.to(tl.int64)[:, None] * out_stride + column[None, :]
        real = real_row[:, None] & real_column[None, :]
        if PLACE == "add":
            total += tl.load(out_at, mask=real, other=0.0).to(tl.float32)
        tl.store(out_at, total.to(out_ptr.dtype.element_ty), mask=real)


def compact(masks_MN: Tensor, layout: Ragged) -> list[Kept]:
    """See `localgp.kernels.kept.compact`."""
    modules, frames = masks_MN.shape
    utterances = len(layout.lengths)
    index_MN = torch.empty(modules, frames, dtype=torch.int32, device=masks_MN.device)
    ends_MB1 = torch.empty(modules, utterances + 1, dtype=torch.int32, device=masks_MN.device)
    masks = masks_MN.contiguous().view(torch.uint8)
    _compact[(modules, utterances + 1)](
        masks, layout.ends_B1, index_MN, ends_MB1, frames, utterances, BLOCK=1024
    )
    return [Kept(*pair, layout.longest) for pair in zip(index_MN, ends_MB1, strict=True)]


def product(
    x_NK: Tensor, weight_UK: Tensor, bias_U: Tensor | None, kept: Kept, activation: str = "none"
) -> Tensor:
    """See `localgp.kernels.kept.product`."""
    out_NU = x_NK.new_empty(len(x_NK), len(weight_UK))
    _multiply(x_NK, weight_UK, bias_U, kept, out_NU, activation, "rows")
    return out_NU


def product_to_rows(
    x_NK: Tensor, weight_UK: Tensor, bias_U: Tensor | None, kept: Kept, out_NU: Tensor, *, add: bool
) -> Tensor:
    """See `localgp.kernels.kept.product_to_rows`."""
    _multiply(x_NK, weight_UK, bias_U, kept, out_NU, "none", "add" if add else "copy")
    return out_NU


def _multiply(
    x_NK: Tensor,
    weight_UK: Tensor,
    bias_U: Tensor | None,
    kept: Kept,
    out_NU: Tensor,
    activation: str,
    place: str,
) -> None:
    rows, (outputs, inputs) = len(x_NK), weight_UK.shape
    if not rows:
        return
    for tile in tiles(_shared(x_NK.device)):
        programs = triton.cdiv(rows, tile.rows) * triton.cdiv(outputs, tile.columns)
        if programs >= FILLED:
            break
    _product[(programs,)](
        x_NK,
        weight_UK,
        weight_UK if bias_U is None else bias_U,
        out_NU,
        kept.index_N,
        kept.count,
        inputs,
        outputs,
        x_NK.stride(0),
        weight_UK.stride(0),
        out_NU.stride(0),
        ACTIVATION=activation,
        BIASED=bias_U is not None,
        PLACE=place,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        DEPTH=DEPTH // x_NK.element_size(),
        GROUP=8,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def _shared(device: torch.device) -> int:
    """Bytes of shared memory that a program may have."""
    if device.type != "cuda":  # the interpreter
        return LEAST_SHARED
    properties = torch.cuda.get_device_properties(device)
    return getattr(properties, "shared_memory_per_block_optin", LEAST_SHARED)  # older PyTorch does not say
