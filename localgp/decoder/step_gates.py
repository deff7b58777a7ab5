"""A gate policy of the training path, asked token by token.

The decoder's predictors look at a token's own layer inputs and at its sequence's context, so asking them row by row
gives every token the gates that it has when all tokens are there at once.

Shape legend: Q sequences of the call, N rows (tokens being decoded), D model size, C context size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from localgp.decoder.gates import GateState
from localgp.gates.base import GatePolicy
from localgp.gates.folded import FoldedLocalGates
from localgp.gates.local import LocalGates
from localgp.pruning import DECODER_MODULES, check_gated


class StepGates:
    """`localgp.decoder.gates.DecoderGates` of one call of the search.

    LocalGP's predictors are folded (`localgp.gates.folded`) and its contexts projected once, not at every token.

    Args:
        policy: `LocalGates`, `GlobalGates` or a control, in eval mode.
        contexts: What the policy needs, name to (Q, 1, C).

    Example:
        >>> gates = StepGates(model.decoder_policy, contexts)                      # doctest: +SKIP
        >>> search(memory_BTD, lengths_B, primers, gates)                          # doctest: +SKIP
    """

    @torch.no_grad()
    def __init__(self, policy: GatePolicy, contexts: dict[str, Tensor]) -> None:
        self._policy, self._contexts = policy, contexts
        self._state: Any = None
        self._folded: FoldedLocalGates | None = None
        if type(policy) is LocalGates:
            self._folded = FoldedLocalGates(policy)
            self._projected = self._folded.project([contexts[name].squeeze(1) for name in policy.needs])

    @torch.no_grad()
    def __call__(self, layer: int, x_ND: Tensor, state: GateState) -> dict[str, Tensor]:
        rows = state.utterance_N
        if self._folded is not None:
            if layer == 0:  # a new token: its memory of earlier layers begins empty
                own = [[part.index_select(0, rows) for part in pair] for pair in self._projected]
                self._state = self._folded.remember(own, len(rows))
            return dict(zip(self._folded.modules, self._folded.gate(layer, x_ND, self._state), strict=True))
        if layer == 0:
            contexts = {name: value.index_select(0, rows) for name, value in self._contexts.items()}
            self._state = self._policy.begin(contexts)
        gates = self._policy.gate(layer, x_ND.unsqueeze(1), self._state)
        check_gated(gates, DECODER_MODULES)
        return {name: gate.mask.squeeze(1) for name, gate in gates.items()}
