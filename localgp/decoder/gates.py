"""What decides which decoder module runs on which row, what it may know, and a gate policy asked token by token.

The decoder's predictors look at a token's own layer inputs and at its sequence's context, so asking them row by row
gives every token the gates that it has when all tokens are there at once.

Shape legend: N rows (tokens being decoded), Q sequences of the call, D model size, C context size, P passes, L layers,
M gated modules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from localgp.decoder.rows import Rows
from localgp.gates.base import GatePolicy
from localgp.gates.folded import FoldedLocalGates
from localgp.gates.local import LocalGates
from localgp.pruning import DECODER_MODULES, check_gated

DecoderGates = Callable[[int, Tensor, "GateState"], dict[str, Tensor]]
"""``gates(layer, x_ND, state)``: module name to boolean (N,), True where the module runs; a module that is not
named runs everywhere. ``x_ND`` is the layer's input."""


class GateState:
    """What gates may know of the rows besides the layer's input.

    Attributes:
        utterance_N: Utterance of each row, as numbered in the call of the search (not among those left).
        position_N: Position of the row's token, counted from the start of the primer.
        history_NPLM: What ran so far: True where a module M of layer L ran in the pass that wrote the P-th token
            after the primer. Its first pass is that of the primer's last token.
        rows: The hypotheses of each utterance, the best first; None in the primer's pass, whose rows are tokens that
            follow each other.
    """

    rows: Rows | None = None

    def __init__(self, utterance_N: Tensor, position_N: Tensor) -> None:
        self.utterance_N = utterance_N
        self.position_N = position_N
        self._passes: list[tuple[Tensor, list[Tensor]]] = []  # what ran, and whom its rows were continued by

    def follow(self, parents_N: Tensor, utterance_N: Tensor) -> None:
        self.utterance_N = utterance_N
        self.position_N = self.position_N.index_select(0, parents_N)
        if self._passes:
            self._passes[-1][1].append(parents_N)

    def record(self, open_NLM: Tensor) -> None:
        """Adds a pass to the history."""
        self._passes.append((open_NLM, []))

    @property
    def history_NPLM(self) -> Tensor | None:
        """Put together when asked for, which is where a hypothesis ends."""
        if not self._passes:
            return None
        found, row_N = [], None
        for open_NLM, parents in reversed(self._passes):
            for parents_N in reversed(parents):
                row_N = parents_N if row_N is None else parents_N.index_select(0, row_N)
            found.append(open_NLM if row_N is None else open_NLM.index_select(0, row_N))
        return torch.stack(found[::-1], dim=1)


class StepGates:
    """`DecoderGates` of one call of the search.

    LocalGP's predictors are folded (`localgp.gates.folded`) and its contexts projected once, not at every token.

    Args:
        policy: `LocalGates`, `GlobalGates` or a control, in eval mode.
        contexts: What the policy needs, name to (Q, 1, C).
        decides: ``hypothesis``: each has its own gates. ``utterance``: all have those of the best one, so that what is
            closed is closed for all of them. One alone, the text of training among them, has its own either way.

    Examples:
        >>> gates = StepGates(model.decoder_policy, contexts)                      # doctest: +SKIP
        >>> search(memory_BTD, lengths_B, primers, gates)                          # doctest: +SKIP
    """

    @torch.no_grad()
    def __init__(self, policy: GatePolicy, contexts: dict[str, Tensor], decides: str = "hypothesis") -> None:
        self._decides = decides
        self._policy, self._contexts = policy, contexts
        self._state: Any = None
        self._folded: FoldedLocalGates | None = None
        if type(policy) is LocalGates:
            self._folded = FoldedLocalGates(policy)
            self._projected = self._folded.project([contexts[name].squeeze(1) for name in policy.needs])

    @torch.no_grad()
    def __call__(self, layer: int, x_ND: Tensor, state: GateState) -> dict[str, Tensor]:
        rows = state.rows
        if self._decides == "hypothesis" or rows is None:
            return self._of_rows(layer, x_ND, state.utterance_N)
        best_U = rows.first_U
        gates = self._of_rows(layer, x_ND.index_select(0, best_U), state.utterance_N.index_select(0, best_U))
        return {name: open_U.index_select(0, rows.utterance_N) for name, open_U in gates.items()}

    def _of_rows(self, layer: int, x_ND: Tensor, rows: Tensor) -> dict[str, Tensor]:
        """Gates of rows by what each of them is; ``rows`` are their utterances."""
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
