"""What a gate policy is.

Shape legend: B utterances or sequences, T frames or tokens, D model size, C context size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from localgp.gates.gumbel import Gate

Gates = dict[str, Gate]
"""Of one layer: part to gate; a part that is not named runs everywhere."""


class GatePolicy(nn.Module, ABC):
    """Decides which part of a layer runs where, layer after layer.

    Attributes:
        needs: Names of the contexts that `begin` reads.
        modules_gated: Parts of a layer that it decides on.
    """

    needs: tuple[str, ...] = ()
    modules_gated: tuple[str, ...] = ()

    @abstractmethod
    def begin(self, contexts: dict[str, Tensor]) -> Any:
        """What it remembers from layer to layer, from contexts (B, T, C) or (B, 1, C); its own affair."""

    @abstractmethod
    def gate(self, layer: int, x_BTD: Tensor, state: Any) -> Gates:
        """A layer's gates from its input."""
