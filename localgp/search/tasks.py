"""Searches for tasks: what is to be written of which utterance.

Shape legend: B utterances, T encoder frames, D model size, Q sequences, P tokens, L layers, M gated modules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from localgp.backbones.base import Backbone, Tokens
from localgp.corpora.rows import Task
from localgp.decoder.cached import CachedDecoder
from localgp.decoder.gates import DecoderGates
from localgp.search.beam import BeamSearch, Hypothesis
from localgp.search.ctc import CtcSearch
from localgp.search.options import DecodeOptions


@dataclass(frozen=True)
class Written:
    """The best hypothesis of a task.

    Attributes:
        tokens: Of the best hypothesis, without its prompt; eos may follow.
        open_PLM: Which decoder modules ran in the pass that wrote each of them; None without gates.
        confidence: Mean log-probability of these tokens and eos, among those that the rules left; if asked for.
    """

    tokens: list[int]
    open_PLM: Tensor | None = None
    confidence: float | None = None


GatesFor = Callable[[Tensor, Sequence[str], Tensor], DecoderGates | None]
"""``gates(owner_Q, tasks, prompt_Q2)``: the decoder's gates for a call of the search, or None
(`localgp.model.GatedS2T.step_gates` of an encoder output)."""


def primers_of(
    tokens: Tokens,
    tasks: Sequence[Task],
    previous: Sequence[list[int]] | None = None,
    *,
    timestamps: bool = False,
) -> list[list[int]]:
    """What the output of each task begins with, the text before included (`Tokens.previous`)."""
    prompts = [tokens.prompt(task.source, task.target, timestamps=timestamps) for task in tasks]
    before: Sequence[list[int]] = [[]] * len(tasks) if previous is None else previous
    return [[*b, *tokens.start, *p] for b, p in zip(before, prompts, strict=True)]


class TaskSearches:
    """One beam search for transcripts and one for translations; of a model without a decoder, CTC's.

    A CTC head, where a model has one, writes the transcript whatever the language asked for, so ``ctc_weight`` is not
    used for translations, which are decoded by attention.

    Args:
        backbone: Its weights are read now.
        options: How to decode.
        dtype: Arithmetic of the decoder.
    """

    ctc: CtcSearch | None = None  # of a model without a decoder

    def __init__(self, backbone: Backbone, options: DecodeOptions, dtype: torch.dtype) -> None:
        self._tokens = backbone.tokenizer
        if not backbone.shape.decoder_layers:
            self.ctc = CtcSearch(backbone, options, dtype)
            return
        decoder = CachedDecoder(backbone, dtype=dtype)
        self._transcripts = BeamSearch(backbone, options, decoder)
        self._translations = self._transcripts
        if options.ctc_weight > 0:
            self._translations = BeamSearch(backbone, replace(options, ctc_weight=0.0), decoder)

    def __call__(
        self,
        memory_BTD: Tensor,
        lengths_B: Tensor,
        owners: Sequence[int],
        tasks: Sequence[Task],
        *,
        timestamps: bool = False,
        gates: GatesFor | None = None,
        previous: Sequence[list[int]] | None = None,
        temperature: float = 0.0,
    ) -> list[Written]:
        """The best hypothesis of each task.

        Args:
            owners: Row of ``memory_BTD`` that each task belongs to; where the encoder was told, its task was.
            timestamps: Predict times too, by attention alone: CTC knows none. These outputs have a confidence.
            gates: Where the decoder has gates, what gives them.
            previous: Of each task, what stands before its prompt (`Tokens.previous`).
            temperature: See `BeamSearch`.
        """
        if self.ctc is not None:
            return [Written(tokens) for tokens in self.ctc(memory_BTD[owners], lengths_B[owners])]
        found_of: list[Written] = [Written([])] * len(tasks)
        kinds: dict[int, list[int]] = {}
        for index, task in enumerate(tasks):
            kinds.setdefault(id(self._search_for(task, timestamps)), []).append(index)
        for indices in kinds.values():
            rows = [owners[i] for i in indices]
            before = None if previous is None else [previous[i] for i in indices]
            primers = primers_of(self._tokens, [tasks[i] for i in indices], before, timestamps=timestamps)
            search = self._search_for(tasks[indices[0]], timestamps)
            decide = None
            if gates is not None:
                prompts = primers_of(self._tokens, [tasks[i] for i in indices])
                symbols = [primer[len(self._tokens.start) :][:2] for primer in prompts]
                prompt_Q2 = torch.tensor(symbols, device=memory_BTD.device)
                owner_Q = torch.tensor(rows, device=memory_BTD.device)
                decide = gates(owner_Q, [tasks[i].name for i in indices], prompt_Q2)
            found = search(
                memory_BTD, lengths_B, primers, decide, rows, temperature=temperature, confidence=timestamps
            )
            for index, nbest, primer in zip(indices, found, primers, strict=True):
                if nbest:
                    found_of[index] = self._written(nbest[0], len(primer))
        return found_of

    def _written(self, best: Hypothesis, begin: int) -> Written:
        tokens = best.tokens[begin:]
        if "allowed" not in best.scores:
            return Written(tokens, best.open_PLM)
        count = tokens.index(self._tokens.eos) if self._tokens.eos in tokens else len(tokens)
        return Written(tokens, best.open_PLM, best.scores["allowed"] / (count + 1))

    def _search_for(self, task: Task, timestamps: bool) -> BeamSearch:
        return self._translations if timestamps or task.translates else self._transcripts
