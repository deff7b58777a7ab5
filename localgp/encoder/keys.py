"""Self-attention whose gates feel what a frame is worth to the others.

A skipped frame is nobody's key. Where keys are left out by a mask, a gate gets a gradient for its own frame's output
alone and none for what the others lose, so that it closes too readily. Here a gate is the weight of its frame in every
softmax: the same numbers, and a gradient for both, also where it is closed.

Shape legend: B utterances or sequences, T frames or tokens, D model size, H heads, d size of a head, Q queries, 1 or T.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from localgp.backbones.base import Branch


def attend_felt(branch: Branch, x_BTD: Tensor, mask_BQT: Tensor, gate: Tensor) -> Tensor:
    """The attention's output with its norm, (B, T, D), before its own gate.

    The third-party attention's dropout inside is left out.

    Args:
        branch: Self-attention.
        mask_BQT: True where a key may be seen.
        gate: (B, T) or (B, 1).
    """
    made: Any = branch
    batch, frames = x_BTD.shape[:2]
    normed_BTD = made.norm(x_BTD)
    query, key, value = (
        linear(normed_BTD).unflatten(-1, (made.heads, -1)).transpose(1, 2) for linear in made.linears[:3]
    )
    if made.head_norms is not None:
        query, key = (norm(x) for norm, x in zip(made.head_norms, (query, key), strict=True))
    scores_BHTT = (query @ key.transpose(2, 3)).float() / query.shape[-1] ** 0.5
    weight_BTT = gate.expand(batch, frames).unsqueeze(1).expand(batch, frames, frames).float()
    # Each keeps itself: the output of a closed one is multiplied by 0, and it must not be that of no key at all.
    itself_TT = torch.eye(frames, device=x_BTD.device)
    weight_BTT = mask_BQT * (weight_BTT + itself_TT * (1 - weight_BTT).detach())
    scores_BHTT = scores_BHTT.masked_fill(~mask_BQT.unsqueeze(1), torch.finfo(torch.float32).min)
    # The largest of all that may be seen, closed ones too: none overflows
    weighted_BHTT = (scores_BHTT - scores_BHTT.amax(-1, keepdim=True).detach()).exp() * weight_BTT.unsqueeze(
        1
    )
    shares_BHTT = weighted_BHTT / weighted_BHTT.sum(-1, keepdim=True).clamp(min=1e-30)
    attended_BTD = (shares_BHTT.to(value.dtype) @ value).transpose(1, 2).flatten(2)
    output: Tensor = made.linears[3](attended_BTD)
    return output
