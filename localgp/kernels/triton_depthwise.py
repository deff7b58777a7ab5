"""Triton version of `localgp.kernels.depthwise`, for utterances of any lengths in one launch.

Shape legend: N frames of all utterances, B utterances, C channels, K kernel.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from localgp.kernels.ragged import Ragged

FRAMES, CHANNELS = 32, 64  # of a program


@triton.jit
def _depthwise(
    first_ptr,
    second_ptr,
    other_ptr,
    weight_ptr,
    bias_ptr,
    owner_ptr,
    ends_ptr,
    out_ptr,
    frames,
    channels,
    split,
    first_stride,
    second_stride,
    other_stride,
    out_stride,
    WIDTH: tl.constexpr,
    TIMES: tl.constexpr,
    BIASED: tl.constexpr,
    FRAMES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    frame = tl.program_id(0) * FRAMES + tl.arange(0, FRAMES)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    real, used = frame < frames, channel < channels
    owner = tl.load(owner_ptr + frame, mask=real, other=0)
    begin = tl.load(ends_ptr + owner)
    end = tl.load(ends_ptr + owner + 1)
    left = channel < split
    total = tl.zeros((FRAMES, CHANNELS), dtype=tl.float32)
    centre = tl.zeros((FRAMES, CHANNELS), dtype=tl.float32)
    for tap in tl.static_range(WIDTH):
        source = frame + tap - WIDTH // 2
        inside = (real & (source >= begin) & (source < end))[:, None]
        row = source.to(tl.int64)[:, None]
        x = tl.load(first_ptr + row * first_stride + channel[None, :], mask=inside & left[None, :], other=0.0)
        right = inside & (used & (channel >= split))[None, :]
        x += tl.load(second_ptr + row * second_stride + channel[None, :] - split, mask=right, other=0.0)
        weight = tl.load(weight_ptr + channel * WIDTH + tap, mask=used, other=0.0).to(tl.float32)
        x = x.to(tl.float32)
        total += x * weight[None, :]
        if tap == WIDTH // 2:
            centre = x
    if BIASED:
        total += tl.load(bias_ptr + channel, mask=used, other=0.0).to(tl.float32)[None, :]
    both = real[:, None] & used[None, :]
    row = frame.to(tl.int64)[:, None]
    if TIMES:
        other = tl.load(other_ptr + row * other_stride + channel[None, :], mask=both, other=0.0)
        total = total * other.to(tl.float32)
    else:
        total = total + centre
    tl.store(out_ptr + row * out_stride + channel[None, :], total.to(out_ptr.dtype.element_ty), mask=both)


def times(other_NC: Tensor, x_NC: Tensor, weight_CK: Tensor, bias_C: Tensor | None, layout: Ragged) -> None:
    """``other *= conv(x)``; the two share no memory."""
    _run(x_NC, x_NC, x_NC.shape[1], other_NC, weight_CK, bias_C, layout, other_NC, True)


def plus(
    first_NC: Tensor, second_NC: Tensor, weight_CK: Tensor, bias_C: Tensor | None, layout: Ragged
) -> Tensor:
    """``x + conv(x)`` of both side by side."""
    split = first_NC.shape[1]
    out_NC = first_NC.new_empty(len(first_NC), split + second_NC.shape[1])
    _run(first_NC, second_NC, split, out_NC, weight_CK, bias_C, layout, out_NC, False)
    return out_NC


def _run(
    first_NC: Tensor,
    second_NC: Tensor,
    split: int,
    other_NC: Tensor,
    weight_CK: Tensor,
    bias_C: Tensor | None,
    layout: Ragged,
    out_NC: Tensor,
    multiply: bool,
) -> None:
    frames, (channels, width) = len(first_NC), weight_CK.shape
    if not frames:
        return
    _depthwise[(triton.cdiv(frames, FRAMES), triton.cdiv(channels, CHANNELS))](
        first_NC,
        second_NC,
        other_NC,
        weight_CK,
        weight_CK if bias_C is None else bias_C,
        layout.owner_N,
        layout.ends_B1,
        out_NC,
        frames,
        channels,
        split,
        first_NC.stride(0),
        second_NC.stride(0),
        other_NC.stride(0),
        out_NC.stride(0),
        WIDTH=width,
        TIMES=multiply,
        BIASED=bias_C is not None,
        FRAMES=FRAMES,
        CHANNELS=CHANNELS,
    )
