"""Finished hypotheses of a search, and when an utterance has enough of them.

Shape legend: U utterances left, W beam, N rows (hypotheses running), E hypotheses that end in a step, S steps,
P tokens, L layers and M gated modules of the decoder.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from localgp.backbones.rules import NEVER
from localgp.kernels.ragged import nonzero

END_MARGIN = -10.0  # end detection: the lengths just tried are this much worse than the best (ESPnet's D_end)
END_LENGTHS = 3  # ... for so many successive lengths


@dataclass
class Hypothesis:
    """What a search wrote, with its scores.

    Attributes:
        tokens: With primer and eos, as ESPnet's ``yseq``.
        score: What it is ranked by: the weighted sum of ``scores``, per token with ``ranking=transformers``.
        scores: Sum over tokens of each unweighted score: decoder, ctc, length_bonus; and, where that was asked for,
            ``allowed``, the decoder's among the tokens that the rules leave.
        open_PLM: Which decoder modules ran in the pass that wrote each token after the primer, eos included; None
            without gates.
    """

    tokens: list[int]
    score: float
    scores: dict[str, float] = field(default_factory=dict)
    open_PLM: Tensor | None = None


class Ended:
    """Gathers what ends in each step.

    Args:
        primer_U: Length of each utterance's primer.
        steps: The most steps there can be.
        eos: Token that ends a hypothesis.
    """

    def __init__(self, primer_U: Tensor, steps: int, eos: int) -> None:
        self._eos, self._utterances = eos, primer_U.shape[0]
        device = primer_U.device
        self._number_U = torch.arange(self._utterances, device=device)  # in the call, of those left
        # ESPnet compares ``len(yseq)``, which has the primer and eos, with the step's number, so it looks at
        # hypotheses that ended a primer's length earlier than the equation says. Kept, for the same results.
        back_3 = torch.arange(1, END_LENGTHS + 1, device=device)
        self._offset_U3 = -primer_U.unsqueeze(1) - back_3
        # Best score of the hypotheses that ended at each step, NaN where none did; and so far.
        self._best_US = torch.full((self._utterances, steps), float("nan"), device=device)
        self._best_U1 = torch.full((self._utterances, 1), NEVER, device=device)
        self._tables: list[dict[str, Tensor]] = []
        self._gates: list[Tensor | None] = []

    def note(self, step: int, ended_UW: Tensor, score_UW: Tensor) -> None:
        """Of step number ``step``: where in the beam a hypothesis ends, and what it scores."""
        best_U1 = score_UW.masked_fill(~ended_UW, NEVER).amax(1, keepdim=True)
        self._best_U1 = torch.maximum(self._best_U1, best_U1)
        none_U1 = ~ended_UW.any(1, keepdim=True)
        self._best_US[:, step : step + 1] = best_U1.masked_fill(none_U1, float("nan"))

    def record(
        self,
        ended_UW: Tensor,
        count: int,
        row_UW: Tensor,
        tables_UW: dict[str, Tensor],
        rows_NP: dict[str, Tensor],
        history_NPLM: Tensor | None,
    ) -> None:
        """Hypotheses of the beams that ended.

        Args:
            ended_UW: Where in the beam a hypothesis ends.
            count: How many do.
            row_UW: The row it continues.
            tables_UW: ``score``, ``label``, ``forced`` (whether eos has to follow) and ``part.<scorer>`` of the beam.
            rows_NP: ``tokens`` and ``length`` of the rows, before the label.
            history_NPLM: Gates of the rows, if the decoder has any.
        """
        where = nonzero(ended_UW, count).unbind(1)
        row_E = row_UW[where]
        self._gates.append(None if history_NPLM is None else history_NPLM.index_select(0, row_E).cpu())
        self._tables.append(
            {
                "utterance": self._number_U.index_select(0, where[0]),
                **{name: table.index_select(0, row_E) for name, table in rows_NP.items()},
                **{name: table[where] for name, table in tables_UW.items()},
            }
        )

    def ranked_by(self, step: int, score_UW: Tensor) -> Tensor:
        """What hypotheses that end in a step are ranked by."""
        return score_UW

    def enough(self, step: int, score_UW: Tensor, running_UW: Tensor) -> Tensor:
        """Whether longer hypotheses of an utterance stopped paying: eq. 50 of Watanabe et al., "Hybrid
        CTC/Attention Architecture for End-to-End Speech Recognition".

        Args:
            score_UW, running_UW: Of the beam, and what of it goes on.
        """
        ended_at_U3 = self._offset_U3 + step
        then_U3 = self._best_US.gather(1, ended_at_U3.clamp(min=0))
        # Where none ended (NaN) the comparison is false.
        return ((ended_at_U3 >= 0) & (then_U3 - self._best_U1 < END_MARGIN)).all(1)

    def keep_utterances(self, index_U: Tensor) -> None:
        """Utterance u is what was ``index_U[u]``; those not named leave."""
        self._number_U = self._number_U.index_select(0, index_U)
        self._offset_U3 = self._offset_U3.index_select(0, index_U)
        self._best_US = self._best_US.index_select(0, index_U)
        self._best_U1 = self._best_U1.index_select(0, index_U)

    def hypotheses(self) -> list[list[Hypothesis]]:
        """All that ended, of each utterance of the call."""
        found: list[list[Hypothesis]] = [[] for _ in range(self._utterances)]
        if not self._tables:
            return found
        longest = max(table["tokens"].shape[1] for table in self._tables)
        for table in self._tables:
            table["tokens"] = F.pad(table["tokens"], (0, longest - table["tokens"].shape[1]))
        every = {name: torch.cat([table[name] for table in self._tables]) for name in self._tables[0]}
        tokens_EP = every.pop("tokens").tolist()
        # In one copy from a GPU; fp64 holds all of them exactly
        numbers = torch.stack([column.double() for column in every.values()]).tolist()
        columns = dict(zip(every, numbers, strict=True))
        parts = [name for name in columns if name.startswith("part.")]
        gates = [one for of_step in self._gates if of_step is not None for one in of_step]
        for e, u in enumerate(columns["utterance"]):
            tokens = [*tokens_EP[e][: int(columns["length"][e])], int(columns["label"][e])]
            if columns["forced"][e]:  # ESPnet appends eos to all, also to what has just ended
                tokens.append(self._eos)
            scores = {name.removeprefix("part."): columns[name][e] for name in parts}
            found[int(u)].append(Hypothesis(tokens, columns["score"][e], scores, gates[e] if gates else None))
        return found


class EndedByLength(Ended):
    """The same with `transformers`' ranking (`localgp.search.options.DecodeOptions.ranking`).

    Args:
        primer_U, steps, eos: See `Ended`.
        beam: Hypotheses that have to end.
    """

    def __init__(self, primer_U: Tensor, steps: int, eos: int, beam: int) -> None:
        super().__init__(primer_U, steps, eos)
        self._best_UB = torch.full((self._utterances, beam), NEVER, device=primer_U.device)

    def ranked_by(self, step: int, score_UW: Tensor) -> Tensor:
        return score_UW / (step + 1)

    def note(self, step: int, ended_UW: Tensor, score_UW: Tensor) -> None:
        new_UW = self.ranked_by(step, score_UW).masked_fill(~ended_UW, NEVER)
        self._best_UB = torch.cat([self._best_UB, new_UW], dim=1).topk(self._best_UB.shape[1], dim=1)[0]

    def enough(self, step: int, score_UW: Tensor, running_UW: Tensor) -> Tensor:
        """Whether as many ended as the beam is wide, and what runs is no better than the worst of them."""
        best_U = self.ranked_by(step, score_UW).masked_fill(~running_UW, NEVER).amax(1)
        worst_U = self._best_UB[:, -1]
        return (worst_U > NEVER) & (best_U <= worst_U)

    def keep_utterances(self, index_U: Tensor) -> None:
        super().keep_utterances(index_U)
        self._best_UB = self._best_UB.index_select(0, index_U)
