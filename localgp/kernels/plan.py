"""Where the parts of a layer run in a packed sequence.

Shape legend: N frames of all utterances, B utterances, K kept frames, M gated modules.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor

from localgp.errors import ConfigError
from localgp.kernels.ragged import Ragged


def only_per_utterance(name: str) -> str:
    return f"{name} can only be gated per utterance (its convolution needs neighbouring frames)"


class LayerPlan:
    """The frames each module of a layer runs on: index lists, made once for the layer.

    Args:
        gates: Module to bool, (N,) or (B,).
        layout: Of the packed sequence.
        whole: Modules that see their neighbours, so that they run on all frames of an utterance or on none.

    Attributes:
        frames: Module to its kept frames in order, (K,); None for all of them.
        layouts: Module to the layout of its kept frames.
    """

    def __init__(self, gates: dict[str, Tensor], layout: Ragged, whole: Collection[str] = ()) -> None:
        self.frames: dict[str, Tensor | None] = {}
        self.layouts: dict[str, Ragged] = {}
        if not gates:
            return
        count = len(layout.lengths)
        for name in whole:
            if name in gates and len(gates[name]) != count:
                raise ConfigError(only_per_utterance(name))
        per_frame = [
            open_ if len(open_) == layout.total else open_.index_select(0, layout.owner_N)
            for open_ in gates.values()
        ]
        masks_MN = torch.stack(per_frame)
        ends = F.pad(masks_MN.cumsum(1), (1, 0))[:, layout.offsets]
        kept = ends.diff(dim=1).tolist()  # per module and utterance; the one wait for a GPU
        places = masks_MN.nonzero()[:, 1].split([sum(row) for row in kept])
        for name, index, lengths in zip(gates, places, kept, strict=True):
            everything = lengths == layout.lengths
            self.frames[name] = None if everything else index
            self.layouts[name] = layout if everything else Ragged(lengths, layout.device)

    def of(self, name: str, layout: Ragged) -> tuple[Tensor | None, Ragged]:
        return self.frames.get(name), self.layouts.get(name, layout)
