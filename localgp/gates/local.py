"""Local Gate Predictor: Algorithm 1 of the paper, and the same with attention that no key can dominate.

Shape legend: B batch, T frames (encoder) or tokens (decoder), D model size, C number of contexts seen so
far (the paper's D^C).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from localgp.errors import ConfigError
from localgp.gates.base import GatePolicy, Gates
from localgp.gates.gumbel import RUN, gumbel_gate

ATTENTIONS = ("dot", "cosine")
_STEEP = 10.0  # logits from none kept to all, at first; slopes are learnt in this unit


class ContextMemory:
    """The growing keys and values that the layers' predictors attend to.

    A list instead of a tensor that is concatenated anew at every layer: appending copies nothing, so memory
    is linear in the number of layers, and keys are the layers' inputs themselves, not copies of them.
    Entries are (B, T, D), or (B, 1, D) for a context that is the same for the whole utterance.

    Args:
        attention: ``dot``: products as they are, unscaled, as in Algorithm 1. Layer inputs are long vectors (the
            first is scaled by sqrt(D)), so the softmax picks one key and shorter ones are never seen.
            ``cosine``: keys, and what values are projected from, have unit mean square; scores are cosines.
    """

    def __init__(self, attention: str = "dot") -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.decided: Gates | None = None  # by the first layer for all others, where it does
        self._cosine = attention == "cosine"

    def key_of(self, x_BTD: Tensor) -> Tensor:
        """What stands for a context or a layer's input as a key, and what its value is projected from."""
        return F.rms_norm(x_BTD, x_BTD.shape[-1:]) if self._cosine else x_BTD

    def append(self, key_BTD: Tensor, value_BTD: Tensor) -> None:
        self.keys.append(key_BTD)
        self.values.append(value_BTD)

    def weights(self, query_BTD: Tensor) -> Tensor:
        """Softmax(x C_key^T), each frame over its own C entries, (B, T, C) in fp32."""
        asked_BTD = self.key_of(query_BTD) / query_BTD.shape[-1] if self._cosine else query_BTD
        scores_BTC = torch.stack([(asked_BTD * key).sum(-1) for key in self.keys], dim=-1)
        return torch.softmax(scores_BTC.float(), dim=-1)

    def attend(self, query_BTD: Tensor) -> Tensor:
        """Softmax(x C_key^T) C_value + x."""
        weights_BTC = self.weights(query_BTD).to(query_BTD.dtype)
        attended = query_BTD
        for index, value in enumerate(self.values):
            attended = attended + weights_BTC[..., index : index + 1] * value
        return attended


class LocalGatePredictor(nn.Module):
    """The predictor of one layer.

    Args:
        size: D.
        modules: Names of the gated modules, one two-class linear head each.
        bias: Initial logit of "run", so that training begins at the dense model's quality.
        feeds_next: Whether a later layer reads what this one appends; the last layer's projection is left out.
    """

    def __init__(
        self, size: int, modules: Sequence[str], *, bias: float = 4.0, feeds_next: bool = True
    ) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({name: nn.Linear(size, 2) for name in modules})
        self.value = nn.Linear(size, size) if feeds_next else None
        head: Any
        for head in self.heads.values():
            # Small weights: at the start the bias decides, yet frames differ enough to be told apart.
            nn.init.normal_(head.weight, std=0.1 * size**-0.5)
            head.bias.data = torch.tensor([bias, 0.0])

    def forward(self, x_BTD: Tensor, memory: ContextMemory) -> dict[str, Tensor]:
        """Algorithm 1 up to the logits; appends the layer's input and its projection to ``memory``.

        Returns:
            Module name to logits (B, T, 2).
        """
        attended_BTD = memory.attend(x_BTD) if memory.keys else x_BTD
        logits = {name: head(attended_BTD) for name, head in self.heads.items()}
        if self.value is not None:
            key_BTD = memory.key_of(x_BTD)
            memory.append(key_BTD, self.value(key_BTD))
        return logits


class LocalGates(GatePolicy):
    """One `LocalGatePredictor` per layer, and the projections of the contexts they begin with.

    Args:
        layers: Number of layers.
        size: D.
        modules: Gated modules of every layer.
        context_sizes: Context name to its dimension, in the order in which they become keys. ``front`` is of
            size D and taken as it is; the others come from other models and are projected to D.
        temperature: See `gumbel_gate`.
        threshold: See `gumbel_gate`.
        bias: See `LocalGatePredictor`.
        attention: Over the contexts: ``dot`` as in Algorithm 1, or ``cosine``; see `ContextMemory`.
        kept: For one model for all budgets: the share kept that it decides for unless told otherwise. Each gate's logit
            then moves with the budget, by a slope of its own. None: one budget.
        once: The first layer decides for all parts of all layers together: a frame runs everywhere or nowhere.
    """

    framewise = True

    def __init__(
        self,
        layers: int,
        size: int,
        modules: Sequence[str],
        context_sizes: dict[str, int],
        *,
        temperature: float = 1.0,
        threshold: float = 0.5,
        bias: float = 4.0,
        attention: str = "dot",
        kept: float | None = None,
        once: bool = False,
    ) -> None:
        super().__init__()
        if attention not in ATTENTIONS:
            raise ConfigError(f"attention is {attention!r}; valid: {', '.join(ATTENTIONS)}")
        self.modules_gated, self.needs = tuple(modules), tuple(context_sizes)
        self.attention, self.once = attention, once
        predictors, heads = (1, ["frame"]) if once else (layers, modules)
        self.temperature, self.threshold = temperature, threshold
        self.align = nn.ModuleDict(
            {
                name: nn.Identity() if name == "front" else nn.Linear(dim, size)
                for name, dim in context_sizes.items()
            }
        )
        # Without contexts it takes no part, and processes that train together would wait for its gradient
        self.context_value = nn.Linear(size, size).requires_grad_(bool(context_sizes))
        self.layers = nn.ModuleList(
            LocalGatePredictor(size, heads, bias=bias, feeds_next=index < predictors - 1)
            for index in range(predictors)
        )

        self._kept = self._budget = kept
        self.slope = None if kept is None else nn.Parameter(torch.ones(predictors, len(heads)))

    def set_budget(self, budget: float | None) -> None:
        if self._kept is None:
            super().set_budget(budget)
        self._budget = self._kept if budget is None else budget

    def shift(self) -> Tensor | None:
        """What the budget adds to each gate's logit of "run", (L, M); None for one budget."""
        if self.slope is None or self._budget is None or self._kept is None:
            return None
        return _STEEP * (self._budget - self._kept) * self.slope

    def begin(self, contexts: dict[str, Tensor]) -> ContextMemory:
        """Keys and values of the contexts, each (B, T, size) or (B, 1, size), before the first layer."""
        memory = ContextMemory(self.attention)
        for name, align in self.align.items():
            key = memory.key_of(align(contexts[name]))
            memory.append(key, self.context_value(key))
        return memory

    def gate(self, layer: int, x_BTD: Tensor, memory: ContextMemory) -> Gates:
        """Gates of one layer's modules from its input, Equation 3."""
        if memory.decided is not None:
            return memory.decided
        logits = self.layers[layer](x_BTD, memory)
        shift_LM = self.shift()
        if shift_LM is not None:
            for value, more in zip(logits.values(), shift_LM[layer], strict=True):
                value[..., RUN] += more
        gates = {
            name: gumbel_gate(
                value, training=self.training, temperature=self.temperature, threshold=self.threshold
            )
            for name, value in logits.items()
        }
        if self.once:
            gates = memory.decided = dict.fromkeys(self.modules_gated, gates["frame"])
        return gates
