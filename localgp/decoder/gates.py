"""What decides which decoder module runs on which row, and what it may know.

Shape legend: N rows (tokens being decoded), D model size, P passes, L layers, M gated modules.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DecoderGates = Callable[[int, Tensor, "GateState"], dict[str, Tensor]]
"""``gates(layer, x_ND, state)``: module name to boolean (N,), True where the module runs; a module that is not
named runs everywhere. ``x_ND`` is the layer's input."""


class GateState:
    """What gates may know of the rows besides the layer's input.

    Attributes:
        utterance_N: Utterance of each row, as numbered in the call of the search (not among those left).
        position_N: Position of the row's token, counted from the start of the primer.
        memory: Row-aligned tensors that the gates may keep; they follow the beams. In the primer's pass the
            rows are the primer's tokens, and each utterance continues from its last one.
        history_NPLM: What ran so far: True where a module M of layer L ran in the pass that wrote the P-th token
            after the primer. Its first pass is that of the primer's last token.
    """

    def __init__(self, utterance_N: Tensor, position_N: Tensor) -> None:
        self.utterance_N = utterance_N
        self.position_N = position_N
        self.memory: dict[str, Tensor] = {}
        self.history_NPLM: Tensor | None = None

    def follow(self, parents_N: Tensor, utterance_N: Tensor) -> None:
        self.utterance_N = utterance_N
        self.position_N = self.position_N.index_select(0, parents_N)
        self.memory = {name: value.index_select(0, parents_N) for name, value in self.memory.items()}
        if self.history_NPLM is not None:
            self.history_NPLM = self.history_NPLM.index_select(0, parents_N)

    def record(self, open_NLM: Tensor) -> None:
        """Adds a pass to the history."""
        new = open_NLM.unsqueeze(1)
        known = self.history_NPLM
        self.history_NPLM = new if known is None else torch.cat([known, new], dim=1)
