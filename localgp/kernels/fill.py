"""What a part adds to frames that it skips, where that is not nothing: what it adds to the nearest one it runs on.

A part's output changes little from one frame to the next, and a frame that goes without may be one that later layers do
not know what to do with (docs/decisions.md). Nothing is computed for it either way.

Shape legend: R rows of frames, N frames of a row, K kept frames, D model size, B utterances, T frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

NONE = -1  # no such frame


def nearest_other(open_RN: Tensor, begin_N: Tensor | int, end_N: Tensor | int) -> Tensor:
    """For each frame the nearest other open one of its utterance, the earlier of two; `NONE` where there is none.

    Args:
        open_RN: True where a part runs.
        begin_N: The first frame of each frame's utterance.
        end_N: Behind its last.

    Examples:
        >>> nearest_other(torch.tensor([[True, False, False, False, True]]), 0, 5).tolist()
        [[4, 0, 0, 4, 0]]
    """
    count = open_RN.shape[1]
    place_N = torch.arange(count, device=open_RN.device)
    latest_RN = place_N.where(open_RN, NONE).cummax(1).values
    soonest_RN = place_N.where(open_RN, count).flip(1).cummin(1).values.flip(1)
    before_RN = F.pad(latest_RN[:, :-1], (1, 0), value=NONE)
    after_RN = F.pad(soonest_RN[:, 1:], (0, 1), value=count)
    is_before_RN, is_after_RN = before_RN >= begin_N, after_RN < end_N
    nearer_RN = is_before_RN & (~is_after_RN | (place_N - before_RN <= after_RN - place_N))
    return before_RN.where(nearer_RN, after_RN.where(is_after_RN, NONE))


def fill(y_BTD: Tensor, gate_BT: Tensor, own_BT1: Tensor | None = None) -> Tensor:
    """A part's output where its gate is open, and that of the nearest open frame where it is closed.

    A gate's gradient is what the frame's own output is worth more than its neighbour's.

    Args:
        y_BTD: Of all frames, or of the open ones and zeros.
        gate_BT: 0 or 1, with a straight-through gradient.
        own_BT1: 1 for an utterance's own frames; None where all are.
    """
    batch, frames, size = y_BTD.shape
    open_BT = gate_BT.detach() > 0.5
    if own_BT1 is not None:
        open_BT = open_BT & own_BT1.squeeze(-1).bool()
    other_BT = nearest_other(open_BT, 0, frames)
    first_B1 = frames * torch.arange(batch, device=y_BTD.device).unsqueeze(1)
    rows = (other_BT.clamp(min=0) + first_B1).flatten()
    other_BTD = y_BTD.reshape(-1, size).index_select(0, rows).view_as(y_BTD)
    weight_BT1 = ((1 - gate_BT) * (other_BT != NONE)).unsqueeze(-1)
    return y_BTD * gate_BT.unsqueeze(-1) + other_BTD * weight_BT1


@dataclass(frozen=True)
class Filled:
    """The frames of a packed sequence that a part runs on, and which of them every frame has the output of.

    Attributes:
        index_K: In order, one or more.
        source_N: Places among them; `NONE` in an utterance that has none.
        gaps: Whether there are such utterances.
    """

    index_K: Tensor
    source_N: Tensor
    gaps: bool

    def of_all(self, y_KD: Tensor) -> Tensor:
        """The output for every frame, (N, D)."""
        y_ND = y_KD.index_select(0, self.source_N.clamp(min=0))
        return y_ND.masked_fill_((self.source_N == NONE).unsqueeze(1), 0) if self.gaps else y_ND


def sources(open_MN: Tensor, begin_N: Tensor, end_N: Tensor) -> Tensor:
    """For each frame of a packed sequence the place, among the open ones, of that whose output it has; see `Filled`."""
    place_N = torch.arange(open_MN.shape[1], device=open_MN.device)
    chosen_MN = place_N.where(open_MN, nearest_other(open_MN, begin_N, end_N))
    rank_MN = open_MN.cumsum(1) - 1
    return rank_MN.gather(1, chosen_MN.clamp(min=0)).where(chosen_MN != NONE, NONE)
