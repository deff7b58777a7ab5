"""One run of the beam search over a batch; `localgp.search.beam` says what it does.

Shape legend: S encoder outputs, U utterances left, W beam, N rows (hypotheses running), K candidates of
a row, C cells of an utterance (rows x candidates), P tokens, V vocabulary, T frames, D model size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from localgp.backbones.rules import NEVER
from localgp.decoder.gates import DecoderGates
from localgp.decoder.rows import Rows
from localgp.decoder.state import DecoderState
from localgp.kernels.ragged import listed, nonzero, sent
from localgp.search.ctc_prefix import CTCPrefixScorer
from localgp.search.hypothesis import Ended, EndedByLength, Hypothesis
from localgp.search.topk import likeliest, normalizer

if TYPE_CHECKING:
    from localgp.search.beam import BeamSearch

PRE_BEAM_RATIO = 1.5  # ESPnet's: CTC scores 1.5 x beam candidates per hypothesis


class Search:
    """One batch's beam search, step by step.

    Args:
        parent: Whose decoder, scorers and options are used.
        memory_STD: Encoder outputs, padded.
        lengths: Encoder frames of each.
        owners: The encoder output of each utterance.
        primers: Tokens that each hypothesis begins with, per utterance.
        minlenratio: In place of the option's.
        gates: Of the decoder's modules.
        numbers: What the gates know the utterances by.
        confidence: Sum up ``allowed`` too (`Hypothesis`).
    """

    def __init__(
        self,
        parent: BeamSearch,
        memory_STD: Tensor,
        lengths: list[int],
        owners: list[int],
        primers: list[list[int]],
        minlenratio: float,
        gates: DecoderGates | None,
        numbers: list[int],
        confidence: bool = False,
    ) -> None:
        options, device = parent.options, memory_STD.device
        self._decoder, self._options = parent.decoder, options
        self._eos, self._forbid = parent.tokens.eos, parent.tokens.rules(primers)
        lengths_S = listed(lengths, device)
        self._ctc = None
        if parent.ctc is not None:
            owner_U = listed(owners, device)
            self._ctc = CTCPrefixScorer(
                parent.ctc,
                memory_STD.to(self._decoder.dtype).index_select(0, owner_U),
                lengths_S.index_select(0, owner_U),
                blank=parent.tokens.blank,
                eos=self._eos,
            )
        self._state: DecoderState | None = None
        if options.ctc_weight < 1:
            self._state, self._hidden_ND = self._decoder.start(
                memory_STD, lengths_S, primers, gates, numbers, owners, options.beam
            )
        frames = [lengths[owner] for owner in owners]
        most = parent.most(frames, primers)
        self._max_U = listed(most, device)
        self._min_U = listed([options.min_length(n, minlenratio) for n in frames], device)
        self._steps = max(most)
        primer_U = listed([len(primer) for primer in primers], device)
        self._width, self._ended = options.beam, Ended(primer_U, self._steps, self._eos)
        self._detects = options.maxlenratio == 0
        if options.ranking == "transformers":  # which looks at twice as many, so that enough go on
            self._width, self._detects = 2 * options.beam, True
            self._ended = EndedByLength(primer_U, self._steps, self._eos, options.beam)
        self._rows = Rows(torch.arange(len(primers), device=device), len(primers), [1] * len(primers))
        longest = max(len(primer) for primer in primers)
        padded = [[*primer, *[self._eos] * (longest + 1 - len(primer))] for primer in primers]
        self._tokens_NP = listed(padded, device)
        self._length_N, self._written = primer_U, 0
        self._score_N = torch.zeros(len(primers), device=device)
        self._confidence = confidence and options.ctc_weight < 1
        wanted = {
            "decoder": options.ctc_weight < 1,
            "ctc": options.ctc_weight > 0,
            "length_bonus": options.length_bonus != 0,
            "allowed": self._confidence,
        }
        self._parts = {name: torch.zeros_like(self._score_N) for name, so in wanted.items() if so}

    def run(self) -> list[list[Hypothesis]]:
        for step in range(self._steps):
            if not self._step(step):
                break
        return self._ended.hypotheses()

    def _step(self, step: int) -> bool:
        """Extends every hypothesis by a token; False when no utterance is left."""
        labels_NK, total_NK, parts = self._candidates()
        count = total_NK.shape[1]
        cell_UW, score_UW, exists_UW = self._best(total_NK)
        row_UW = cell_UW // count
        label_UW = labels_NK.take(cell_UW)

        forced_U1 = (self._max_U == step + 1).unsqueeze(1)
        is_eos_UW = exists_UW & ((label_UW == self._eos) | forced_U1)
        ended_UW = is_eos_UW & (step >= self._min_U).unsqueeze(1)
        running_UW = exists_UW & ~is_eos_UW
        new_parts = {
            name: self._parts[name].take(row_UW) + part.take(cell_UW) for name, part in parts.items()
        }
        if (
            self._width > self._options.beam
        ):  # what ends has to be among the best; of the others, the best go on
            ended_UW[:, self._options.beam :] = False
            running_UW &= running_UW.cumsum(1) <= self._options.beam
        self._ended.note(step, ended_UW, score_UW)
        going_U = running_UW.any(1)
        if self._detects:
            going_U &= ~self._ended.enough(step, score_UW, running_UW)
        alive_UW = running_UW & going_U.unsqueeze(1)
        ended, alive = torch.stack([ended_UW, alive_UW]).tolist()  # the step's one wait for a GPU
        if any(map(any, ended)):
            ranked_by_UW = self._ended.ranked_by(step, score_UW)
            tables = {"label": label_UW, "forced": forced_U1.expand_as(label_UW), "score": ranked_by_UW}
            self._ended.record(
                ended_UW,
                sum(map(sum, ended)),
                row_UW,
                tables | {f"part.{name}": value for name, value in new_parts.items()},
                {"tokens": self._tokens_NP, "length": self._length_N},
                None if self._state is None else self._state.history_NPLM,
            )
        counts = [sum(row) for row in alive]
        if not any(counts):
            return False
        choice_UW = cell_UW - row_UW * count
        tables = {"row": row_UW, "choice": choice_UW, "label": label_UW, "score": score_UW, **new_parts}
        self._follow(alive_UW, counts, tables)
        return True

    def _candidates(self) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Candidates (N, K) of every row, their total scores, and what each scorer adds."""
        options, rows = self._options, self._rows
        if self._state is None:
            labels_NK, total_NK, parts = self._every_label()
        else:
            labels_NK, logp_NK, allowed_NK = self._likely_labels()
            total_NK = (1.0 - options.ctc_weight) * logp_NK
            parts = {"decoder": logp_NK}
            if allowed_NK is not None:
                parts["allowed"] = allowed_NK
        if self._ctc is not None:
            ctc_NK = self._ctc.score(labels_NK, self._last(), self._length_N, rows)
            total_NK = total_NK + options.ctc_weight * ctc_NK
            parts["ctc"] = ctc_NK
        if options.length_bonus != 0:
            total_NK = total_NK + options.length_bonus
            parts["length_bonus"] = torch.ones_like(total_NK)
        return labels_NK, total_NK + self._score_N.unsqueeze(1), parts

    def _every_label(self) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Candidates of a search by CTC alone, which has nothing to choose them by."""
        vocabulary = self._ctc.vocabulary  # type: ignore[union-attr]
        every_V = torch.arange(vocabulary, device=self._score_N.device)
        allowed_NK = torch.zeros(self._rows.size, vocabulary, device=self._score_N.device)
        self._forbid(allowed_NK, self._tokens_NP, self._length_N, self._written)
        return every_V.expand(self._rows.size, -1), allowed_NK, {}

    def _likely_labels(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """The labels that the decoder finds best, their log-probabilities, and those among what the rules leave."""
        logits_NV = self._decoder.logits(self._hidden_ND)
        normalizer_N1 = normalizer(logits_NV)
        wanted = self._width if self._ctc is None else int(PRE_BEAM_RATIO * self._width)
        count = min(wanted, logits_NV.shape[1])
        # CTC scores eos always, wanted by the pre-beam or not.
        adds_eos = self._ctc is not None and count < logits_NV.shape[1]
        exact = self._decoder.exact(self._hidden_ND)
        eos_logit_N1 = logits_NV[:, self._eos : self._eos + 1].clone() if adds_eos else None
        if eos_logit_N1 is not None and exact is not None:
            eos_logit_N1 = exact(torch.full_like(eos_logit_N1, self._eos, dtype=torch.long))
        self._forbid(logits_NV, self._tokens_NP, self._length_N, self._written)
        logit_NK, labels_NK, normalizer_N1 = likeliest(logits_NV, normalizer_N1, count, exact)
        if eos_logit_N1 is not None:
            wanted_N1 = (labels_NK == self._eos).any(1, keepdim=True)
            eos_logit_N1 = torch.where(wanted_N1, NEVER, eos_logit_N1)
            labels_NK = torch.cat([labels_NK, torch.full_like(labels_NK[:, :1], self._eos)], dim=1)
            logit_NK = torch.cat([logit_NK, eos_logit_N1], dim=1)
        allowed_NK = logit_NK - logits_NV.logsumexp(1, keepdim=True) if self._confidence else None
        return labels_NK, logit_NK - normalizer_N1, allowed_NK

    def _last(self) -> Tensor:
        return self._tokens_NP.gather(1, (self._length_N - 1).unsqueeze(1)).squeeze(1)

    def _best(self, total_NK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The beam of every utterance: where in ``total_NK`` flattened, score, and whether it exists."""
        rows, count = self._rows, total_NK.shape[1]
        # An impossible candidate of a hypothesis is still preferred to a hypothesis that is not there.
        lowest = torch.finfo(total_NK.dtype).min
        key_UC = rows.to_grid(total_NK.clamp(min=lowest), fill=NEVER).flatten(1)
        width = min(self._width, key_UC.shape[1])
        best_UW, cell_UW = key_UC.topk(width, dim=1)
        # Rows of an utterance follow each other; a slot without a row (row 0 then, to be valid) does not exist.
        exists_UW = best_UW > NEVER
        cell_UW = (cell_UW + (rows.first_U * count).unsqueeze(1)).where(exists_UW, 0)
        score_UW = torch.where(best_UW <= lowest, NEVER, best_UW)
        return cell_UW, score_UW, exists_UW

    def _follow(self, alive_UW: Tensor, counts: list[int], tables: dict[str, Tensor]) -> None:
        """Makes the living hypotheses the rows, lets finished utterances leave, and runs the decoder.

        Args:
            counts: How many each utterance has.
        """
        if not all(counts):
            order = self._leave([count > 0 for count in counts])
            counts = [counts[u] for u in order]
            index = sent(torch.tensor(order), alive_UW.device)
            alive_UW = alive_UW.index_select(0, index)
            tables = {name: table.index_select(0, index) for name, table in tables.items()}
        where_N = nonzero(alive_UW.flatten(), sum(counts)).squeeze(1)
        table_N = {name: table.flatten().index_select(0, where_N) for name, table in tables.items()}
        parents_N, label_N = table_N["row"], table_N["label"]
        self._rows = Rows(where_N // alive_UW.shape[1], len(counts), counts)
        self._score_N = table_N["score"]
        self._parts = {name: table_N[name] for name in self._parts}
        self._length_N = self._length_N.index_select(0, parents_N) + 1
        self._written += 1
        tokens_NP = self._tokens_NP.index_select(0, parents_N)
        self._tokens_NP = torch.cat([tokens_NP, label_N.unsqueeze(1)], dim=1)
        self._tokens_NP.scatter_(1, (self._length_N - 1).unsqueeze(1), label_N.unsqueeze(1))
        if self._ctc is not None:
            self._ctc.advance(parents_N, table_N["choice"], self._rows)
        if self._state is not None:
            self._hidden_ND = self._state.step(label_N, parents_N, self._rows)

    def _leave(self, keep_U: list[bool]) -> list[int]:
        """Lets utterances leave; those left, by their numbers before, in their new order."""
        if self._state is not None:
            order = self._state.keep_utterances(keep_U)
        else:
            order = [u for u, keep in enumerate(keep_U) if keep]
        index_U = sent(torch.tensor(order), self._score_N.device)
        if self._ctc is not None:
            self._ctc.keep_utterances(order)
        self._ended.keep_utterances(index_U)
        self._max_U, self._min_U = self._max_U.index_select(0, index_U), self._min_U.index_select(0, index_U)
        return order
