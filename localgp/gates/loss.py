"""The loss that pulls the share of skipped frames toward its target."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from localgp.gates.gumbel import Gate


def kept_ratio(gate: Tensor, frames_BT: Tensor) -> Tensor:
    """Share of the frames marked in ``frames_BT`` that run; every frame of the batch weighs the same, so
    utterances of different lengths are counted right.

    Args:
        gate: (B, T) or (B, 1).
    """
    return kept_ratios([gate], frames_BT)[0]


def kept_ratios(
    gates: Sequence[Tensor], frames_BT: Tensor, total: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """`kept_ratio` of each gate.

    Args:
        total: Sums over the processes of a run (`localgp.world.sum_over_ranks`), so that the batch is
            that of all of them; None for this one's alone. Called once.
    """
    run = torch.stack([(gate * frames_BT).sum() for gate in gates])
    counted = frames_BT.sum()
    if total is not None:
        sums = total(torch.cat([run, counted.to(run.dtype).view(1)]))
        run, counted = sums[:-1], sums[-1]
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
        total: As in `kept_ratios`: the distance is not linear, so its mean over processes would be another loss.
    """
    names = sorted({name for layer in layers for name in layer})
    of_names = [[layer[name].decision for layer in layers if name in layer] for name in names]
    every = kept_ratios([gate for gates in of_names for gate in gates], frames_BT, total)
    ratios = torch.stack([part.mean() for part in every.split([len(gates) for gates in of_names])])
    distance = (ratios if per == "module" else ratios.mean(dim=0, keepdim=True)) - (1 - target)
    return (distance.square() + distance.abs()).mean()
