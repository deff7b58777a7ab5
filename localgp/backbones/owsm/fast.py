"""Faster kernels for the same numbers in ESPnet's own modules, as training runs them.

The one place where a third-party module is changed: which function computes it, never its parameters.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# oneDNN's bf16 kernel for this layout never returns on 8 or 16 channels (PyTorch 2.12, AVX-512 with bf16).
_FEW_CHANNELS = 16


def use_fast_kernels(net: nn.Module) -> None:
    """Attention through PyTorch's fused one instead of an explicit softmax, and convolutions on the channels-last
    layouts that oneDNN runs several times faster on a CPU."""
    for child in net.modules():
        if hasattr(child, "use_sdpa"):
            child.use_sdpa = True  # type: ignore[assignment]
        if isinstance(child, nn.Conv2d):
            child.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if isinstance(child, nn.Conv1d) and child.groups == child.in_channels > _FEW_CHANNELS:
            child.forward = partial(_depthwise, child)  # type: ignore[method-assign]


def _depthwise(conv: nn.Conv1d, x_BDT: Tensor) -> Tensor:
    """A depthwise 1-D convolution as a 2-D one: ESPnet calls it with a transposed (B, T, D) tensor, which as
    (B, D, 1, T) is channels-last already."""
    return F.conv2d(
        x_BDT.unsqueeze(2),
        conv.weight.unsqueeze(2),
        conv.bias,
        padding=(0, int(conv.padding[0])),
        groups=conv.groups,
    ).squeeze(2)
