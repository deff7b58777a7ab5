"""What share of frames runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


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
