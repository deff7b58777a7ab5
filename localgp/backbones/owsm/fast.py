"""Faster kernels for the same numbers of ESPnet's modules, as training runs them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# oneDNN's bf16 kernel for this layout never returns on 8 or 16 channels (PyTorch 2.12, AVX-512 with bf16).
_FEW_CHANNELS = 16


def use_fast_kernels(net: nn.Module) -> None:
    """Attention through PyTorch's fused one instead of an explicit softmax, and 2-D convolutions on the channels-last
    layout that oneDNN runs several times faster on a CPU. Both are switches of the modules."""
    for child in net.modules():
        if hasattr(child, "use_sdpa"):
            child.use_sdpa = True  # type: ignore[assignment]
        if isinstance(child, nn.Conv2d):
            child.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def depthwise(conv: nn.Conv1d, x_BTD: Tensor) -> Tensor:
    """What a depthwise 1-D convolution makes of frames, (B, T, D) as they are: as a 2-D one of (B, D, 1, T), which is
    channels-last already and several times faster so on a CPU."""
    x_BDT = x_BTD.transpose(1, 2)
    if conv.in_channels <= _FEW_CHANNELS:
        return conv(x_BDT).transpose(1, 2)
    weight, padding = conv.weight.unsqueeze(2), (0, int(conv.padding[0]))
    convolved = F.conv2d(x_BDT.unsqueeze(2), weight, conv.bias, padding=padding, groups=conv.groups)
    return convolved.squeeze(2).transpose(1, 2)
