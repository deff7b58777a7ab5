"""A gate policy of the training path, asked token by token.

The decoder's predictors look at a token's own layer inputs and at its sequence's context, so asking them row by row
gives every token the gates that it has when all tokens are there at once.

Shape legend: Q sequences of the call, N rows (tokens being decoded), D model size, C context size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from localgp.decoding.gate_state import GateState


class StepGates:
    """`localgp.decoding.gate_state.DecoderGates` of one call of the search.

    Args:
        policy: `LocalGates`, `GlobalGates` or a control, in eval mode.
        contexts: What the policy needs, name to (Q, 1, C).

    Example:
        >>> gates = StepGates(model.decoder_policy, contexts)                      # doctest: +SKIP
        >>> search(memory_BTD, lengths_B, primers, gates)                          # doctest: +SKIP
    """

    def __init__(self, policy: Any, contexts: dict[str, Tensor]) -> None:
        self._policy, self._contexts = policy, contexts
        self._state: Any = None

    @torch.no_grad()
    def __call__(self, layer: int, x_ND: Tensor, state: GateState) -> dict[str, Tensor]:
        if layer == 0:  # a new token: its memory of earlier layers begins empty
            rows = state.utterance_N
            self._state = self._policy.begin(
                {name: value.index_select(0, rows) for name, value in self._contexts.items()}
            )
        gates = self._policy.gate(layer, x_ND.unsqueeze(1), self._state)
        return {name: gate.mask.squeeze(1) for name, gate in gates.items()}
