"""Triton version of LocalGP's decisions: one program per frame, which reads the frame's keys once.

Shape legend: N frames, D model size, C columns of the layer's product, K keys at most, L layers, M gated modules.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _decide(
    x_ptr,
    product_ptr,
    keys_ptr,
    logits_ptr,
    mask_ptr,
    frames,
    size,
    product_stride,
    key_stride,
    logit_stride,
    keys,
    layer,
    layers,
    modules,
    least,
    divisor,
    BLOCK: tl.constexpr,
    MODULES: tl.constexpr,
    LATER: tl.constexpr,
):
    frame = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    x = tl.load(x_ptr + frame * size + columns, mask=inside, other=0.0)
    module = tl.arange(0, MODULES)
    real = module < modules
    per_key = layers * modules
    keys_ptr += frame * key_stride
    logits_ptr += frame * logit_stride
    highest = -float("inf")
    weight = 0.0
    summed = tl.zeros((MODULES,), dtype=tl.float32)
    for key in range(keys):
        score = tl.sum(x * tl.load(keys_ptr + key * size + columns, mask=inside, other=0.0), axis=0) / divisor
        logit = tl.load(logits_ptr + key * per_key + layer * modules + module, mask=real, other=0.0)
        higher = tl.maximum(highest, score)
        shrink, own = tl.exp(highest - higher), tl.exp(score - higher)
        summed = summed * shrink + own * logit
        weight = weight * shrink + own
        highest = higher
    total = tl.load(product_ptr + frame * product_stride + module, mask=real, other=0.0)
    if keys > 0:
        total += summed / weight
    tl.store(mask_ptr + module * frames + frame, (total > least).to(tl.int8), mask=real)
    if layer + 1 < layers:
        tl.store(keys_ptr + keys * size + columns, x, mask=inside)
        later = tl.arange(0, LATER)
        some = later < (layers - layer - 1) * modules
        value = tl.load(product_ptr + frame * product_stride + modules + later, mask=some, other=0.0)
        tl.store(logits_ptr + keys * per_key + (layer + 1) * modules + later, value, mask=some)


def decide(
    layer: int,
    key_ND: Tensor,
    product_NC: Tensor,
    keys_NKD: Tensor,
    logits_NKLM: Tensor,
    count: int,
    least: float,
    divisor: int,
) -> Tensor:
    """See `localgp.gates.folded.decide`."""
    frames, size = key_ND.shape
    layers, modules = logits_NKLM.shape[2:]
    mask_MN = torch.empty(modules, frames, dtype=torch.int8, device=key_ND.device)
    if frames:
        _decide[(frames,)](
            key_ND.contiguous(),
            product_NC,
            keys_NKD,
            logits_NKLM,
            mask_MN,
            frames,
            size,
            product_NC.stride(0),
            keys_NKD.stride(0),
            logits_NKLM.stride(0),
            count,
            layer,
            layers,
            modules,
            least,
            divisor,
            BLOCK=triton.next_power_of_2(size),
            MODULES=triton.next_power_of_2(modules),
            LATER=triton.next_power_of_2(max(1, (layers - layer - 1) * modules)),
        )
    return mask_MN.view(torch.bool)
