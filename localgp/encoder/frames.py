"""Run a module on some frames only: gather, compute, pad back (paper, Equation 4).

The frames of a batch are gathered as rows of one matrix, and as no row is gathered twice, the gradient of a gather
is a copy and not a sum: both directions are one pass over the kept rows.

Shape legend: B batch, T frames, N = B T, D model size, K kept frames of the whole batch, M the most kept frames of
one utterance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from localgp.kernels.ragged import nonzero


class _Gather(torch.autograd.Function):
    """Distinct rows of a matrix."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, index_K: Tensor) -> Tensor:
        ctx.save_for_backward(index_K)
        ctx.rows = x_ND.shape[0]
        return x_ND.index_select(0, index_K)

    @staticmethod
    def backward(ctx: Any, grad_KD: Tensor) -> tuple[Tensor, None]:
        (index_K,) = ctx.saved_tensors
        return _spread(grad_KD, index_K, ctx.rows), None


class _Scatter(torch.autograd.Function):
    """Rows to distinct places, zeros elsewhere, times a scale and a gate that is 1 at every one of them: the gate
    costs nothing forwards and gets its gradient backwards."""

    @staticmethod
    def forward(
        ctx: Any, kept_KD: Tensor, gate_K: Tensor, index_K: Tensor, rows: int, scale: float
    ) -> Tensor:
        ctx.save_for_backward(index_K, kept_KD if gate_K.requires_grad else None)
        ctx.scale = scale
        return _spread(kept_KD if scale == 1.0 else kept_KD * scale, index_K, rows)

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        index_K, kept_KD = ctx.saved_tensors
        grad_KD = grad_ND.index_select(0, index_K)
        if ctx.scale != 1.0:
            grad_KD = grad_KD * ctx.scale
        gate_K = None if kept_KD is None else (grad_KD.float() * kept_KD).sum(-1)
        return grad_KD, gate_K, None, None, None


def _spread(kept_KD: Tensor, index_K: Tensor, rows: int) -> Tensor:
    return kept_KD.new_zeros(rows, *kept_KD.shape[1:]).index_copy_(0, index_K, kept_KD)


def gather(x_ND: Tensor, index_K: Tensor) -> Tensor:
    """Rows ``index_K`` of x, all distinct."""
    if torch.is_grad_enabled():
        return _Gather.apply(x_ND, index_K)
    return x_ND.index_select(0, index_K)


def scatter(kept_KD: Tensor, gate_N: Tensor, index_K: Tensor, scale: float = 1.0) -> Tensor:
    """The opposite, (N, D): ``scale * gate * kept`` where a row was kept, and zero elsewhere.

    A kept row's gate is 1; what passes through it is the straight-through gradient. A closed gate's is lost with its
    frame.
    """
    if torch.is_grad_enabled():
        gate_K = gate_N.index_select(0, index_K)
        return _Scatter.apply(kept_KD, gate_K, index_K, len(gate_N), scale)
    return _spread(kept_KD if scale == 1.0 else kept_KD * scale, index_K, len(gate_N))


def run_gathered(
    module: Callable[[Tensor], Tensor],
    x_BTD: Tensor,
    gate: Tensor,
    scale: float = 1.0,
    counts: Sequence[int] | None = None,
) -> Tensor:
    """Only frames with an open gate are computed; the others are exactly zero.

    An open gate's straight-through gradient is that of the masked path.

    Args:
        counts: Open gates of each utterance, where known: a GPU's host need not wait for them.
    """
    batch, frames = x_BTD.shape[:2]
    gate_N = gate.expand(batch, frames).flatten()
    open_N = gate_N.detach() > 0.5
    if counts is None:
        index_K = open_N.nonzero().squeeze(1)
    else:
        index_K = nonzero(open_N, sum(counts) * (frames // gate.shape[1])).squeeze(1)
    kept_KD = module(gather(x_BTD.flatten(0, 1), index_K))
    return scatter(kept_KD, gate_N, index_K, scale).view(batch, frames, -1)


def attend_masked(
    attention: Callable[[Tensor, Tensor], Tensor], x_BTD: Tensor, gate: Tensor, mask_B1T: Tensor
) -> Tensor:
    """Self-attention in which a skipped frame is no key; what it is as a query is to be left out.

    Args:
        attention: Takes (x, mask of keys (B, 1, T)).
        gate: (B, T) or (B, 1).
        mask_B1T: True for frames of the utterance.
    """
    keys_B1T = mask_B1T & (gate.detach() > 0.5).unsqueeze(1)
    return attention(x_BTD, keys_B1T)


def attend_gathered(
    attention: Callable[[Tensor, Tensor], Tensor],
    x_BTD: Tensor,
    gate: Tensor,
    mask_B1T: Tensor,
    counts: Sequence[int] | None = None,
) -> Tensor:
    """`attend_masked` on the kept frames alone: quadratic cost falls with the square of the kept share.

    Args:
        counts: See `run_gathered`.
    """
    batch, frames, size = x_BTD.shape
    repeated = frames // gate.shape[1]
    gate = gate.expand(batch, frames)
    open_BT = gate.detach() > 0.5
    kept_B = open_BT.sum(1)
    counts = kept_B.tolist() if counts is None else [count * repeated for count in counts]
    most = max(counts)
    if most == 0:
        return torch.zeros_like(x_BTD)
    # Stable sort: an utterance's kept frames come first and stay in their order; shorter rows end in skipped ones.
    order_BM = (~open_BT).to(torch.uint8).sort(dim=1, stable=True).indices[:, :most]
    real_BM = torch.arange(most, device=x_BTD.device) < kept_B.unsqueeze(1)
    keys_B1M = (real_BM & mask_B1T.squeeze(1).gather(1, order_BM)).unsqueeze(1)
    index_BM = order_BM + frames * torch.arange(batch, device=x_BTD.device).unsqueeze(1)
    x_BMD = gather(x_BTD.flatten(0, 1), index_BM.flatten()).view(batch, most, size)
    kept_BMD = attention(x_BMD, keys_B1M)
    rows = nonzero(real_BM.flatten(), sum(counts)).squeeze(1)
    kept_KD = gather(kept_BMD.flatten(0, 1), rows)
    return scatter(kept_KD, gate.flatten(), index_BM.flatten()[rows]).view(batch, frames, size)
