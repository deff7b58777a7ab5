"""Global Gate Predictor: one decision per module for the whole utterance (the baseline of rows 2 to 4).

After "Context-aware Dynamic Pruning for Speech Foundation Models" (Someki et al., ICLR 2025): the time average of
the front-end features, with the embedding of language and task beside it, goes through a predictor G whose output is
reshaped to (modules, 2). Depth and width of G are not published; here it has one hidden layer of the model's width.
The encoder's predictor has the features alone, since one encoder pass serves all tasks of an utterance.

Shape legend: B utterances (encoder) or sequences (decoder), T frames, D model size, L layers, M gated modules of a
layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from localgp.gates.base import GatePolicy, Gates
from localgp.gates.gumbel import RUN, Gate, gumbel_gate


class GlobalGates(GatePolicy):
    """GlobalGP: one decision for an utterance, from averaged contexts.

    Args:
        layers: L.
        size: D.
        modules: Gated modules of every layer.
        context_sizes: Context name to its dimension; each is averaged over time, and they stand side by side.
            Default: ``front`` alone.
        temperature: See `gumbel_gate`.
        threshold: See `gumbel_gate`.
        bias: Initial logit of "run".
    """

    ahead = True

    def __init__(
        self,
        layers: int,
        size: int,
        modules: Sequence[str],
        context_sizes: dict[str, int] | None = None,
        *,
        temperature: float = 1.0,
        threshold: float = 0.5,
        bias: float = 4.0,
    ) -> None:
        super().__init__()
        sizes = {"front": size} if context_sizes is None else context_sizes
        self.needs = tuple(sizes)
        inputs = sum(sizes.values())
        self.modules_gated = tuple(modules)
        self.temperature, self.threshold = temperature, threshold
        self.shape = (layers, len(self.modules_gated), 2)
        self.predictor = nn.Sequential(
            nn.LayerNorm(inputs),
            nn.Linear(inputs, size),
            nn.ReLU(),
            nn.Linear(size, layers * len(modules) * 2),
        )
        last: Any = self.predictor[-1]
        nn.init.normal_(last.weight, std=0.1 * size**-0.5)
        with torch.no_grad():
            last.bias.view(self.shape)[..., RUN] = bias
            last.bias.view(self.shape)[..., 1 - RUN] = 0.0

    def begin(self, contexts: dict[str, Tensor]) -> Gate:
        """All decisions at once, (B, L, M), Equation 1."""
        pooled = torch.cat([contexts[name].mean(1) for name in self.needs], dim=-1)
        logits = self.predictor(pooled).view(-1, *self.shape)
        return gumbel_gate(
            logits, training=self.training, temperature=self.temperature, threshold=self.threshold
        )

    def gate(self, layer: int, x_BTD: Tensor, state: Gate) -> Gates:
        """The layer's decisions, (B, 1) each."""
        return {
            name: Gate(state.value[:, layer, m : m + 1], state.decision[:, layer, m : m + 1])
            for m, name in enumerate(self.modules_gated)
        }
