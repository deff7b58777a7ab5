"""The likeliest token at every step, or one drawn at a temperature: `localgp.search.steps` for a beam of one, without
what a beam needs.

Shape legend: S encoder outputs, N utterances left, one row each, P tokens, V vocabulary, T frames, D model size,
E utterances that end in a step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from localgp.decoder.gates import DecoderGates
from localgp.decoder.rows import Rows
from localgp.kernels.ragged import listed, sent
from localgp.search.hypothesis import Hypothesis
from localgp.search.topk import likeliest, normalizer

if TYPE_CHECKING:
    from localgp.search.beam import BeamSearch

SEED = 0  # of every utterance's draws, so that they depend on nothing but it


class Greedy:
    """Greedy decoding of a batch.

    Args:
        parent: Whose decoder and options are used.
        memory_STD: Encoder outputs, padded.
        lengths: Encoder frames of each.
        owners: The encoder output of each utterance.
        primers: Tokens that each output begins with, per utterance.
        gates: Of the decoder's modules.
        temperature: Draw tokens from the scores divided by it; 0: take the best.
        confidence: Sum up ``allowed`` too: the score among the tokens that the rules leave.
    """

    def __init__(
        self,
        parent: BeamSearch,
        memory_STD: Tensor,
        lengths: list[int],
        owners: list[int],
        primers: list[list[int]],
        gates: DecoderGates | None,
        *,
        temperature: float = 0.0,
        confidence: bool = False,
    ) -> None:
        device, count = memory_STD.device, len(primers)
        self._decoder, self._eos = parent.decoder, parent.tokens.eos
        self._forbid = parent.tokens.rules(primers)
        self._temperature, self._confidence = temperature, confidence
        lengths_S = listed(lengths, device)
        self._state, self._hidden_ND = self._decoder.start(
            memory_STD, lengths_S, primers, gates, list(range(count)), owners
        )
        most = parent.most([lengths[owner] for owner in owners], primers)
        self._steps = max(most)
        self._number = list(range(count))
        self._max_N = listed(most, device)
        self._length_N = listed([len(primer) for primer in primers], device)
        room = max(len(primer) + n for primer, n in zip(primers, most, strict=True))
        padded = [[*primer, *[self._eos] * (room - len(primer))] for primer in primers]
        self._tokens_NP = listed(padded, device)
        self._scores = {
            name: torch.zeros(count, device=device) for name in ("decoder", "allowed")[: 1 + confidence]
        }
        self._draws = [torch.Generator(device).manual_seed(SEED) for _ in primers if temperature > 0]
        self._found: dict[int, Hypothesis] = {}

    def run(self) -> list[list[Hypothesis]]:
        """One hypothesis of each utterance."""
        count = len(self._number)
        rows = Rows(torch.arange(count, device=self._max_N.device), count, [1] * count)
        for written in range(self._steps):
            label_N = self._next(written)
            ended_N = (label_N == self._eos) | (self._max_N == written + 1)
            ended = ended_N.tolist()  # the step's one wait for a GPU
            parents_N = rows.index_N
            if any(ended):
                self._record([n for n, end in enumerate(ended) if end], written)
                if all(ended):
                    break
                parents_N = self._leave([not end for end in ended])
                label_N = label_N.index_select(0, parents_N)
                count = len(self._number)
                rows = Rows(torch.arange(count, device=label_N.device), count, [1] * count)
            self._hidden_ND = self._state.step(label_N, parents_N, rows)
        return [[self._found[u]] for u in sorted(self._found)]

    def _next(self, written: int) -> Tensor:
        """Appends a token to every row; the tokens."""
        logits_NV = self._decoder.logits(self._hidden_ND)
        normalizer_N1 = normalizer(logits_NV)
        self._forbid(logits_NV, self._tokens_NP, self._length_N, written)
        if self._temperature > 0:
            share_NV = (logits_NV / self._temperature).softmax(1)
            drawn = [
                share_V.multinomial(1, generator=draw)
                for share_V, draw in zip(share_NV, self._draws, strict=True)
            ]
            label_N = torch.cat(drawn)
            logit_N = logits_NV.gather(1, label_N.unsqueeze(1)).squeeze(1)
        else:
            exact = self._decoder.exact(self._hidden_ND)
            logit_N1, label_N1, normalizer_N1 = likeliest(logits_NV, normalizer_N1, 1, exact)
            logit_N, label_N = logit_N1.squeeze(1), label_N1.squeeze(1)
        self._scores["decoder"] = self._scores["decoder"] + logit_N - normalizer_N1.squeeze(1)
        if self._confidence:
            self._scores["allowed"] = self._scores["allowed"] + logit_N - logits_NV.logsumexp(1)
        self._tokens_NP.scatter_(1, self._length_N.unsqueeze(1), label_N.unsqueeze(1))
        self._length_N = self._length_N + 1
        return label_N

    def _record(self, ended: list[int], written: int) -> None:
        index_E = sent(torch.tensor(ended), self._max_N.device)
        tokens = self._tokens_NP.index_select(0, index_E).tolist()
        length = self._length_N.index_select(0, index_E).tolist()
        forced = (self._max_N.index_select(0, index_E) == written + 1).tolist()
        scores = {name: score_N.index_select(0, index_E).tolist() for name, score_N in self._scores.items()}
        history_NPLM = self._state.history_NPLM
        for e, row in enumerate(ended):
            self._found[self._number[row]] = Hypothesis(
                # As in the beam: eos follows what had no more room, also if it has just ended.
                [*tokens[e][: length[e]], *([self._eos] if forced[e] else [])],
                scores["decoder"][e],
                {name: of_name[e] for name, of_name in scores.items()},
                None if history_NPLM is None else history_NPLM[row].cpu(),
            )

    def _leave(self, keep_N: list[bool]) -> Tensor:
        """Lets utterances leave; the rows before of those left, in their new order."""
        order = self._state.keep_utterances(keep_N)
        index_N = sent(torch.tensor(order), self._max_N.device)
        self._number = [self._number[n] for n in order]
        self._draws = [self._draws[n] for n in order] if self._draws else []
        self._max_N, self._length_N, self._tokens_NP = (
            table.index_select(0, index_N) for table in (self._max_N, self._length_N, self._tokens_NP)
        )
        self._scores = {name: score_N.index_select(0, index_N) for name, score_N in self._scores.items()}
        return index_N
