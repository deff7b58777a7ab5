"""Run a module on some frames only: gather, compute, pad back (paper, Equation 4).

Shape legend: B batch, T frames, D model size, K kept frames of the whole batch, M the most kept frames of one
utterance.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def run_masked(module: Callable[[Tensor], Tensor], x_BTD: Tensor, gate: Tensor) -> Tensor:
    """Every frame is computed and multiplied by its gate: closed gates get a gradient, nothing is saved."""
    return module(x_BTD) * gate.unsqueeze(-1)


def run_gathered(module: Callable[[Tensor], Tensor], x_BTD: Tensor, gate: Tensor) -> Tensor:
    """Only frames with an open gate are computed; the others are exactly zero.

    The result of the kept frames is still multiplied by their gate, which is 1, so that an open gate's
    straight-through gradient is that of `run_masked`. A closed one's is lost with the frame.
    """
    batch, frames, size = x_BTD.shape
    gate = gate.expand(batch, frames)
    index_K = (gate.detach() > 0.5).flatten().nonzero().squeeze(1)
    x_ND = x_BTD.reshape(batch * frames, size)
    kept_KD = module(x_ND.index_select(0, index_K)) * gate.reshape(-1, 1).index_select(0, index_K)
    return torch.zeros_like(x_ND, dtype=kept_KD.dtype).index_copy(0, index_K, kept_KD).view(batch, frames, -1)


def attend_masked(
    attention: Callable[[Tensor, Tensor], Tensor], x_BTD: Tensor, gate: Tensor, mask_B1T: Tensor
) -> Tensor:
    """Self-attention in which a skipped frame is neither query nor key.

    Args:
        attention: Takes (x, mask of keys (B, 1, T)).
        gate: (B, T) or (B, 1).
        mask_B1T: True for frames of the utterance.
    """
    keys_B1T = mask_B1T & (gate.detach() > 0.5).unsqueeze(1)
    return attention(x_BTD, keys_B1T) * gate.unsqueeze(-1)


def attend_gathered(
    attention: Callable[[Tensor, Tensor], Tensor], x_BTD: Tensor, gate: Tensor, mask_B1T: Tensor
) -> Tensor:
    """`attend_masked` on the kept frames alone: quadratic cost falls with the square of the kept share."""
    batch, frames, size = x_BTD.shape
    gate = gate.expand(batch, frames)
    open_BT = gate.detach() > 0.5
    kept_B = open_BT.sum(1)
    most = int(kept_B.max())
    if most == 0:
        return torch.zeros_like(x_BTD)
    # Stable sort: an utterance's kept frames come first and stay in their order.
    order_BM = (~open_BT).to(torch.uint8).sort(dim=1, stable=True).indices[:, :most]
    real_BM = torch.arange(most, device=x_BTD.device) < kept_B.unsqueeze(1)
    index_BMD = order_BM.unsqueeze(-1).expand(-1, -1, size)
    keys_B1M = (real_BM & mask_B1T.squeeze(1).gather(1, order_BM)).unsqueeze(1)
    kept_BMD = attention(x_BTD.gather(1, index_BMD), keys_B1M)
    kept_BMD = kept_BMD * (gate.gather(1, order_BM) * real_BM).unsqueeze(-1)
    return torch.zeros_like(x_BTD, dtype=kept_BMD.dtype).scatter(1, index_BMD, kept_BMD)
