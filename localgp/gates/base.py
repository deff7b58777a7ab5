"""What a gate policy is.

Shape legend: B utterances or sequences, T frames or tokens, D model size, C context size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

from localgp.errors import ConfigError
from localgp.gates.gumbel import Gate

Gates = dict[str, Gate]
"""Of one layer: part to gate; a part that is not named runs everywhere."""


class GatePolicy(nn.Module, ABC):
    """Decides which part of a layer runs where, layer after layer.

    Attributes:
        needs: Names of the contexts that `begin` reads.
        modules_gated: Parts of a layer that it decides on.
        framewise: A frame's gates depend on that frame and its contexts alone, so that utterances of different lengths
            can be asked about together.
        exact: It keeps the share that it is made for by itself, so that no loss has to see to it.
        ahead: The gates do not depend on the layers' inputs, so that those of all layers can be asked for before the
            first one runs.
        fill: What a part adds to frames that it skips: ``zero``, or to the second of a ``pair`` what it adds to the
            first (`localgp.kernels.fill`).
    """

    needs: tuple[str, ...] = ()
    modules_gated: tuple[str, ...] = ()
    framewise: ClassVar[bool] = False
    exact: ClassVar[bool] = False
    ahead: ClassVar[bool] = False
    fill: str = "zero"

    def set_budget(self, budget: float | None) -> None:
        """Decides from now on for another share kept than it was trained for; None: for that one.

        Raises:
            ConfigError: It knows but one.
        """
        if budget is not None:
            raise ConfigError(
                f"decode.budget is {budget}, and these gates were trained for one share alone; leave it out, or train "
                "them for many, with pruning.budgets=[0.4,1.0]"
            )

    @abstractmethod
    def begin(self, contexts: dict[str, Tensor]) -> Any:
        """What it remembers from layer to layer, from contexts (B, T, C) or (B, 1, C); its own affair."""

    @abstractmethod
    def gate(self, layer: int, x_BTD: Tensor, state: Any) -> Gates:
        """A layer's gates from its input."""


def fills(policy: Any) -> bool:
    """Whether the second of a pair gets what the first does; a policy of the user's own need not say."""
    return getattr(policy, "fill", "zero") == "pair"
