"""What the decoder and the CTC are shown of an encoder's output: all frames, or those that its last gates kept.

Frames that the last gated layer did not run on have nothing new to say behind it; without them there are fewer keys and
values to make and to read at every step, and fewer frames for the CTC prefix scores. The decoder knows no positions of
frames but what is in them, so that taking them out is the same as masking them.

Shape legend: B utterances, T encoder frames, M gated modules, K frames of the utterance that keeps most, D model size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from localgp.gates.base import Gates


def shown_by(gates: list[Gates], own_BT: Tensor) -> Tensor:
    """1 for the frames that any module of the last gated layer ran on, 0 for others, (B, T); with the gates' gradient.

    An utterance that would be shown nothing is shown whole: there is no attention over nothing.
    """
    last = next(layer for layer in reversed(gates) if layer)
    closed_BT = torch.ones_like(own_BT, dtype=next(iter(last.values())).value.dtype)
    for gate in last.values():
        closed_BT = closed_BT * (1 - gate.value)
    shown_BT = (1 - closed_BT) * own_BT
    nothing_B1 = (shown_BT.detach() <= 0.5).all(1, keepdim=True)
    return torch.where(nothing_B1, own_BT.to(shown_BT.dtype), shown_BT)


def only(x_BTD: Tensor, shown_BT: Tensor) -> tuple[Tensor, Tensor]:
    """The frames that are shown, in order (B, K, D), padded with zeros, and how many there are (B,)."""
    kept_BT = shown_BT.detach() > 0.5
    counts_B = kept_BT.sum(1)
    order_BK = kept_BT.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, : int(counts_B.max())]
    frames_BTD = x_BTD * shown_BT.unsqueeze(2).to(x_BTD.dtype)
    return frames_BTD.gather(1, order_BK.unsqueeze(2).expand(-1, -1, x_BTD.shape[2])), counts_B
