"""Contexts come at rates of their own; the gates need one entry per encoder frame (paper, section 4.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor

from localgp.errors import ConfigError
from localgp.timeline import Timeline


def collect_contexts(
    names: Sequence[str],
    given: Mapping[str, Tensor],
    front_BTD: Tensor,
    feats_BSF: Tensor,
    timeline: Timeline,
) -> dict[str, Tensor]:
    """What the gates of a batch need, by name: computed here (``front``, ``energy``) or aligned to its T frames.

    Raises:
        ConfigError: A context is neither.
    """
    frames = front_BTD.shape[1]
    collected = {}
    for name in names:
        if name == "front":
            collected[name] = front_BTD
        elif name == "energy":
            collected[name] = frame_energy(feats_BSF, frames, timeline)
        elif name in given:
            collected[name] = align_frames(given[name], frames)
        else:
            raise ConfigError(f"the gates need the context {name!r}, given: {sorted(given) or 'none'}")
    return collected


def align_frames(context_BTC: Tensor, frames: int) -> Tensor:
    """To ``frames`` frames by repeating the last one or trimming.

    A context of one frame, such as a speaker embedding, stays (B, 1, C): it broadcasts, no copies are made.

    Examples:
        >>> import torch
        >>> align_frames(torch.tensor([[[1.0], [2.0]]]), 4).squeeze()
        tensor([1., 2., 2., 2.])
    """
    given = context_BTC.shape[1]
    if given == 1 or given == frames:
        return context_BTC
    if given > frames:
        return context_BTC[:, :frames]
    index = context_BTC.new_tensor(range(frames)).long().clamp(max=given - 1)
    return context_BTC.index_select(1, index)


def frame_energy(feats_BSF: Tensor, frames: int, timeline: Timeline) -> Tensor:
    """Mean log-mel of the feature frames that each encoder frame sees, (B, T); where it sees the stem's padding,
    the nearest one stands for it."""
    energy_BS = feats_BSF.mean(-1)
    if timeline.first < 0:
        energy_BS = F.pad(energy_BS, (-timeline.first, timeline.reach), mode="replicate")
    return energy_BS.unfold(1, timeline.reach, timeline.stride).mean(-1)[:, :frames]
