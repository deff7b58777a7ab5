"""What a part adds to frames that it skips, where that is not nothing: what it adds to the frame before.

A part's output changes little from one frame to the next, and a frame that goes without it may be one that later layers
do not know what to do with (docs/decisions.md, "Gates on Whisper"). Frames are in pairs from an utterance's first one
on: the first of a pair runs always, so that the second, where it is skipped, has a neighbour to take from.

Shape legend: N frames of all utterances, K kept frames, D model size, B utterances, T frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def is_first(frame: Tensor) -> Tensor:
    """True for the first frames of pairs, given places in an utterance.

    Examples:
        >>> is_first(torch.arange(5)).tolist()
        [True, False, True, False, True]
    """
    return frame % 2 == 0


def fill(y_BTD: Tensor, gate_BT: Tensor) -> Tensor:
    """A part's output where its gate is open, and that of the frame before where it is closed.

    A gate's gradient is what the frame's own output is worth more than its neighbour's.

    Args:
        y_BTD: Of all frames, or of the open ones and zeros.
        gate_BT: 0 or 1, with a straight-through gradient; 1 for the first frames of pairs.
    """
    before_BTD = torch.cat([y_BTD[:, :1], y_BTD[:, :-1]], dim=1)
    gate_BT1 = gate_BT.unsqueeze(-1)
    return y_BTD * gate_BT1 + before_BTD * (1 - gate_BT1)


@dataclass(frozen=True)
class Filled:
    """The frames of a packed sequence that a part runs on, and which of them every frame has the output of.

    Attributes:
        index_K: In order.
        source_N: Places among them.
    """

    index_K: Tensor
    source_N: Tensor

    def of_all(self, y_KD: Tensor) -> Tensor:
        """The output for every frame, (N, D)."""
        return y_KD.index_select(0, self.source_N)


def sources(open_MN: Tensor) -> Tensor:
    """Of each part, the place among the open frames of the last one up to each frame; see `Filled`."""
    return open_MN.cumsum(1) - 1
