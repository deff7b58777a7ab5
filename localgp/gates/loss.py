"""The loss that pulls the share of skipped frames toward its target."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from localgp.gates.gumbel import Gate


def kept_ratio(gate: Tensor, frames_BT: Tensor, total: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Share of the frames marked in ``frames_BT`` that run; every frame of the batch weighs the same, so
    utterances of different lengths are counted right.

    Args:
        gate: (B, T) or (B, 1).
        total: Sums over the processes of a run (`localgp.training.world.sum_over_ranks`), so that the batch is
            that of all of them; None for this one's alone.
    """
    run, counted = (gate * frames_BT).sum(), frames_BT.sum()
    if total is not None:
        run, counted = total(torch.stack([run, counted.to(run.dtype)])).unbind()
    return run / counted.clamp(min=1)


def sparsity_loss(
    layers: Sequence[dict[str, Gate]],
    target: float,
    frames_BT: Tensor,
    *,
    per: str = "global",
    total: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Squared plus absolute distance between kept ratio and 1 - target.

    The square alone has a vanishing pull near the target, the absolute value alone was found not to reach
    it (GlobalGP); together they do both.

    Args:
        layers: Per layer, module name to gate.
        target: Share of frames to skip, in [0, 1].
        frames_BT: 1 for the frames that count.
        per: ``global``: one ratio over all layers and modules, which may then differ from each other;
            ``module``: each kind of module has the target.
        total: As in `kept_ratio`: the distance is not linear, so its mean over processes would be another loss.
    """
    names = sorted({name for layer in layers for name in layer})
    ratios = torch.stack(
        [
            torch.stack(
                [kept_ratio(layer[name].decision, frames_BT, total) for layer in layers if name in layer]
            ).mean()
            for name in names
        ]
    )
    distance = (ratios if per == "module" else ratios.mean(dim=0, keepdim=True)) - (1 - target)
    return (distance.square() + distance.abs()).mean()
