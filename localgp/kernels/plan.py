"""Where the parts of a layer run in a packed sequence.

Shape legend: N frames of all utterances, B utterances, K kept frames, M gated modules.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor

from localgp.errors import ConfigError
from localgp.kernels.fill import Filled, sources
from localgp.kernels.kept import Kept, available, compact
from localgp.kernels.ragged import Ragged, nonzero, sent


def only_per_utterance(name: str) -> str:
    return f"{name} can only be gated per utterance (its convolution needs neighbouring frames)"


class LayerPlan:
    """The frames each module of a layer runs on: index lists, made once for the layer.

    Args:
        gates: Module to bool, (N,) or (B,); a decision per utterance may be on the host.
        layout: Of the packed sequence.
        whole: Modules that see their neighbours, so that they run on all frames of an utterance or on none.
        dtype: Of the products.
        fill: A part adds to a frame that it skips what it adds to the one before (`localgp.kernels.fill`).

    Attributes:
        frames: Module to its kept frames in order, (K,), or what is known of them besides; None for all of them.
        layouts: Module to the layout of its kept frames.
    """

    def __init__(
        self,
        gates: dict[str, Tensor],
        layout: Ragged,
        whole: Collection[str] = (),
        dtype: torch.dtype = torch.float32,
        *,
        fill: bool = False,
    ) -> None:
        self.frames: dict[str, Tensor | Kept | Filled | None] = {}
        self.layouts: dict[str, Ragged] = {}
        count = len(layout.lengths)
        by_utterance = {name: open_ for name, open_ in gates.items() if len(open_) == count}
        by_frame = {name: open_ for name, open_ in gates.items() if name not in by_utterance}
        for name in whole:
            if name in by_frame:
                raise ConfigError(only_per_utterance(name))
        if by_utterance:
            runs_MB = torch.stack(list(by_utterance.values())).tolist()
            kept = [
                [n if run else 0 for n, run in zip(layout.lengths, runs_B, strict=True)] for runs_B in runs_MB
            ]
            places = _listed(layout, kept)
            for name, index_K, lengths in zip(by_utterance, places, kept, strict=True):
                self._set(name, index_K, lengths, layout)
        if not by_frame:
            return
        masks_MN = torch.stack(list(by_frame.values()))
        if not fill and available(layout.device, dtype):
            self.frames.update(zip(by_frame, compact(masks_MN, layout), strict=True))
            return
        ends = F.pad(masks_MN.cumsum(1), (1, 0)).index_select(1, layout.ends_B1)
        kept = ends.diff(dim=1).tolist()  # per module and utterance; the one wait for a GPU
        counts = [sum(row) for row in kept]
        places = nonzero(masks_MN, sum(counts))[:, 1].split(counts)
        for name, index_K, lengths in zip(by_frame, places, kept, strict=True):
            self._set(name, index_K, lengths, layout)
        if fill:
            for name, source_N in zip(by_frame, sources(masks_MN), strict=True):
                where = self.frames[name]
                if isinstance(where, Tensor):
                    self.frames[name] = Filled(where, source_N)

    def _set(self, name: str, index_K: Tensor, lengths: list[int], layout: Ragged) -> None:
        everything = lengths == layout.lengths
        self.frames[name] = None if everything else index_K
        self.layouts[name] = layout if everything else Ragged(lengths, layout.device)

    def of(self, name: str, layout: Ragged) -> tuple[Tensor | Kept | Filled | None, Ragged]:
        return self.frames.get(name), self.layouts.get(name, layout)


def _listed(layout: Ragged, kept: list[list[int]]) -> list[Tensor]:
    """The frames of each part, of whose utterances all are kept or none: in one copy, and none for a part that keeps
    all or nothing."""
    some = [lengths if 0 < sum(lengths) < layout.total else [] for lengths in kept]
    frames = [
        torch.arange(segment.start, segment.stop)
        for lengths in some
        for segment, count in zip(layout.segments(), lengths, strict=False)
        if count
    ]
    index = torch.zeros(0, dtype=torch.long, device=layout.device)
    if frames:
        index = sent(torch.cat(frames), layout.device)
    return list(index.split([sum(lengths) for lengths in some]))
