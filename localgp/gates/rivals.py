"""Other methods' ways of skipping, as gates: what a learnt gate is compared with (docs/decisions.md, "Rivals")."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from localgp.gates.base import GatePolicy, Gates
from localgp.gates.control import ControlGates
from localgp.gates.gumbel import Gate, straight_through


class TopKGates(GatePolicy):
    """Fixed top-k routing (Mixture-of-Depths, arXiv 2404.02258): a linear router for every part of every layer, and the
    ``ceil(kept * T)`` frames of each utterance that it scores highest run.

    There the router's score also scales what the part gives, so that it gets a gradient. Gates here are 0 or 1, and it
    gets the straight-through one of its sigmoid.

    Args:
        layers: Number of layers.
        size: D.
        modules: Gated modules of every layer.
        kept: Share of frames that run.
        once: The first layer's router decides for all parts of all layers together.
    """

    exact = True

    def __init__(
        self, layers: int, size: int, modules: Sequence[str], kept: float, *, once: bool = False
    ) -> None:
        super().__init__()
        self.modules_gated, self._once = tuple(modules), once
        self._kept = self._budget = kept
        routers, scores = (1, 1) if once else (layers, len(modules))
        self.routers = nn.ModuleList(nn.Linear(size, scores) for _ in range(routers))

    def set_budget(self, budget: float | None) -> None:
        self._budget = self._kept if budget is None else budget

    def begin(self, contexts: dict[str, Tensor]) -> Gates:
        return {}

    def gate(self, layer: int, x_BTD: Tensor, state: Gates) -> Gates:
        if state:
            return state
        scores_BTM = self.routers[layer](x_BTD)
        count = math.ceil(self._budget * int(x_BTD.shape[1]) - 1e-9)
        best_BKM = scores_BTM.topk(count, dim=1).indices
        open_BTM = torch.zeros_like(scores_BTM).scatter(1, best_BKM, 1.0)
        if self.training:
            open_BTM = straight_through(open_BTM, scores_BTM.sigmoid())
        gates = [Gate(open_BT, open_BT) for open_BT in open_BTM.unbind(-1)]
        if not self._once:
            return dict(zip(self.modules_gated, gates, strict=True))
        state |= dict.fromkeys(self.modules_gated, gates[0])
        return state

    def flops(self, frames: int) -> float:
        """Of the routers."""
        return float(frames * sum(p.numel() for p in self.routers.parameters() if p.ndim == 2))


class LayerDropGates(ControlGates):
    """Layer dropping (as in arXiv 2601.16117): ``round(target * L)`` whole layers never run, spread evenly over those
    between the first and the last; what is left is fine-tuned. Nothing is decided.

    What cannot be gated of a layer, such as its merging convolution and norms, runs all the same.
    """

    framewise = True

    def __init__(self, layers: int, modules: Sequence[str], target: float) -> None:
        super().__init__(modules)
        count = min(round(target * layers), max(0, layers - 2))
        self.dropped = {round((i + 1) * (layers - 1) / (count + 1)) for i in range(count)}

    def decide(self, layer: int, name: str, x_BTD: Tensor, state: Any) -> Tensor:
        return x_BTD.new_full((int(x_BTD.shape[0]), 1), float(layer not in self.dropped))
