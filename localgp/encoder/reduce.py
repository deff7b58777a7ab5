"""A shorter sequence after a layer, as a `localgp.gates.reduce.Reduction` wants it.

Shape legend: N frames of all utterances, D model size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from localgp.gates.reduce import Reduction
from localgp.kernels.ragged import Ragged


class Shortening:
    """Of one batch, layer after layer.

    Args:
        layout: Of the encoder's input.
    """

    def __init__(self, policy: Reduction, layout: Ragged) -> None:
        self._policy, self._plan = policy, [policy.left(count) for count in layout.lengths]
        self._sizes_N = torch.ones(layout.total, device=layout.device)
        self._places_N = torch.arange(layout.total, device=layout.device)
        self._layout = self._last = layout

    def __call__(self, layer: int, x_ND: Tensor, layout: Ragged) -> Shortened:
        """After a layer, counted from 0."""
        counts = [plan[layer + 1] for plan in self._plan]
        if counts == layout.lengths:
            return Shortened(x_ND, layout)
        after = Ragged(counts, layout.device)
        places = [
            torch.where(group >= 0, group + offset, group)
            for segment, count, offset in zip(layout.segments(), counts, after.offsets, strict=False)
            for group in [self._policy.regroup(layer, x_ND[segment], count)]
        ]
        place_N = torch.cat(places)
        seen_N = self._places_N >= 0
        self._places_N = torch.where(seen_N, place_N[self._places_N.clamp(min=0)], self._places_N)
        self._last = after
        stays = (place_N >= 0).nonzero().squeeze(1)
        place, sizes = place_N[stays], self._sizes_N[stays]
        weighted = x_ND[stays] * sizes.unsqueeze(1).to(x_ND.dtype)
        self._sizes_N = sizes.new_zeros(after.total).index_add(0, place, sizes)
        summed = x_ND.new_zeros(after.total, x_ND.shape[1]).index_add(0, place, weighted)
        return Shortened(summed / self._sizes_N.unsqueeze(1).to(x_ND.dtype), after)

    def places(self) -> Tensor:
        """(B, T) of the encoder's input: where in its utterance's output each frame is now, -1 for one that has gone,
        -2 for none."""
        begin_N = torch.tensor(self._last.offsets[:-1], device=self._layout.device)[self._layout.owner_N]
        own_N = torch.where(self._places_N >= 0, self._places_N - begin_N, self._places_N)
        return self._layout.unpack(own_N + 2) - 2


class Shortened(NamedTuple):
    """Frames after some were merged or dropped.

    Attributes:
        x: (N, D).
        layout: Of it.
    """

    x: Tensor
    layout: Ragged
