"""Batched beam search over many utterances, with ESPnet's semantics.

Same scores, pre-beam, length bounds, end detection and ranking as ESPnet's ``BatchBeamSearch`` under
``Speech2Text``; there, utterances go one by one. Here all hypotheses of all utterances are the rows of one
batch, finished hypotheses and utterances leave it, and what an utterance yields does not depend on its
batch mates. Scores are summed in fp32 whatever the weights' type.

Shape legend: B utterances of the call, U utterances left, W beam, N rows (hypotheses running), K candidates of
a row, P tokens, V vocabulary, T frames, D model size, L layers and M gated modules of the decoder.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from localgp.decoding.cached_decoder import CachedDecoder, DecoderGates, DecoderState
from localgp.decoding.ctc_prefix import CTCPrefixScorer
from localgp.decoding.options import DecodeOptions
from localgp.decoding.rows import Rows
from localgp.decoding.timestamps import NEVER, TimestampRules
from localgp.decoding.topk import topk_of_groups
from localgp.errors import ConfigError

PRE_BEAM_RATIO = 1.5  # ESPnet's: CTC scores 1.5 x beam candidates per hypothesis
END_MARGIN = -10.0  # end detection: the lengths just tried are this much worse than the best (ESPnet's D_end)
END_LENGTHS = 3  # ... for so many successive lengths


@dataclass
class Hypothesis:
    """Attributes:
    tokens: With primer and eos, as ESPnet's ``yseq``.
    score: Weighted sum of ``scores``.
    scores: Sum over tokens of each unweighted score: decoder, ctc, length_bonus.
    open_PLM: Which decoder modules ran in the pass that wrote each token after the primer, eos included; None
        without gates.
    """

    tokens: list[int]
    score: float
    scores: dict[str, float] = field(default_factory=dict)
    open_PLM: Tensor | None = None


class BeamSearch:
    """Args:
    decoder: ESPnet's ``TransformerDecoder``, or a `CachedDecoder` over one (with gates, for instance).
    ctc: ESPnet's ``CTC``; needed if ``options.ctc_weight`` is above 0.
    sos, eos, notimestamps, first_time, last_time: Token ids.
    options: How to decode.
    blank: CTC's blank, 0 in ESPnet.
    dtype: Type of weights, caches and products; default: the decoder's own, and a `CachedDecoder` keeps its
        own. Given here rather than by autocast, which casts weights at every step and is off inside.

    Raises:
        ConfigError: If a CTC weight is asked for without a CTC.

    Example:
        >>> search = BeamSearch(model.decoder, model.ctc, sos=1, eos=2, notimestamps=3, first_time=4,
        ...                     last_time=1504, options=DecodeOptions(beam=5))      # doctest: +SKIP
        >>> best = [hypotheses[0] for hypotheses in search(x_BTD, lengths_B, primers)]  # doctest: +SKIP
    """

    def __init__(
        self,
        decoder: nn.Module | CachedDecoder,
        ctc: nn.Module | None,
        *,
        sos: int,
        eos: int,
        notimestamps: int,
        first_time: int,
        last_time: int,
        options: DecodeOptions,
        blank: int = 0,
        dtype: torch.dtype | None = None,
    ) -> None:
        if options.ctc_weight > 0 and ctc is None:
            raise ConfigError(f"ctc_weight is {options.ctc_weight}, but the model has no CTC; set it to 0")
        self.decoder = decoder if isinstance(decoder, CachedDecoder) else CachedDecoder(decoder, dtype=dtype)
        self.ctc = ctc if options.ctc_weight > 0 else None
        self.rules = TimestampRules(sos, eos, notimestamps, first_time, last_time)
        self.eos, self.blank, self.options = eos, blank, options

    @torch.inference_mode()
    def __call__(
        self,
        memory_BTD: Tensor,
        memory_lengths_B: Tensor,
        primers: list[list[int]],
        gates: DecoderGates | None = None,
    ) -> list[list[Hypothesis]]:
        """Decodes utterances together.

        Args:
            memory_BTD: Encoder output, padded.
            memory_lengths_B: Encoder frames of each utterance.
            primers: Tokens that each hypothesis begins with, per utterance; lengths may differ.
            gates: Of the decoder's modules, for this call; they know utterances by their row here.

        Returns:
            The best hypotheses of each utterance, best first, at most ``options.nbest``; none if the length
            bounds leave none, as in ESPnet.
        """
        with torch.autocast(memory_BTD.device.type, enabled=False):
            return self._decode(memory_BTD, memory_lengths_B.tolist(), primers, gates)

    def _decode(
        self, memory_BTD: Tensor, lengths: list[int], primers: list[list[int]], gates: DecoderGates | None
    ) -> list[list[Hypothesis]]:
        ratio = self.options.minlenratio
        found: list[list[Hypothesis]] = [[] for _ in primers]
        todo = list(range(len(primers)))
        while todo:
            index = torch.tensor(todo, device=memory_BTD.device)
            everyone = len(todo) == len(primers)
            search = _Search(
                self,
                memory_BTD if everyone else memory_BTD.index_select(0, index),
                [lengths[u] for u in todo],
                [primers[u] for u in todo],
                ratio,
                gates,
                todo,
            )
            for u, hypotheses in zip(todo, search.run(), strict=True):
                found[u] = hypotheses
            if ratio < 0.1:
                break
            ratio = max(0.0, ratio - 0.1)  # as ESPnet: where nothing was long enough, ask for less
            todo = [u for u in todo if not found[u]]
        return [self._ranked(hypotheses)[: self.options.nbest] for hypotheses in found]

    def _ranked(self, hypotheses: list[Hypothesis]) -> list[Hypothesis]:
        if self.options.normalize_length:
            return sorted(hypotheses, key=lambda h: h.score / (len(h.tokens) - 1), reverse=True)
        return sorted(hypotheses, key=lambda h: h.score, reverse=True)


class _Search:
    """One run over a batch."""

    def __init__(
        self,
        parent: BeamSearch,
        memory_BTD: Tensor,
        lengths: list[int],
        primers: list[list[int]],
        minlenratio: float,
        gates: DecoderGates | None,
        numbers: list[int],
    ) -> None:
        options, device = parent.options, memory_BTD.device
        self._decoder, self._rules, self._options = parent.decoder, parent.rules, options
        self._eos = parent.eos
        self._primers = primers
        self._timed = not parent.rules.never_needed(primers)
        lengths_B = torch.tensor(lengths, device=device)
        self._ctc = None
        if parent.ctc is not None:
            self._ctc = CTCPrefixScorer(
                parent.ctc,
                memory_BTD.to(self._decoder.dtype),
                lengths_B,
                blank=parent.blank,
                eos=parent.eos,
            )
        self._state: DecoderState | None = None
        if options.ctc_weight < 1:
            self._state, self._hidden_ND = self._decoder.start(memory_BTD, lengths_B, primers, gates, numbers)
        self._left = list(range(len(primers)))  # utterances left, by their number in the call
        self._max_U = torch.tensor([options.max_length(n) for n in lengths], device=device)
        self._min_U = torch.tensor([options.min_length(n, minlenratio) for n in lengths], device=device)
        self._primer_U = torch.tensor([len(primer) for primer in primers], device=device)
        self._steps = int(self._max_U.max())
        shape = (len(primers), self._steps)
        # Best score of the hypotheses that ended at each step; NaN where none did.
        self._ended_best_US = torch.full(shape, float("nan"), device=device)
        self._rows = Rows(torch.arange(len(primers), device=device), len(primers), [1] * len(primers))
        longest = max(len(primer) for primer in primers)
        self._tokens_NP = torch.full((len(primers), longest + 1), self._eos, device=device)
        for u, primer in enumerate(primers):
            self._tokens_NP[u, : len(primer)] = torch.tensor(primer, device=device)
        self._length_N = self._primer_U.clone()
        self._score_N = torch.zeros(len(primers), device=device)
        self._parts = {name: torch.zeros_like(self._score_N) for name in self._weights()}
        self._ended: list[dict[str, Tensor]] = []
        self._ended_gates: list[Tensor | None] = []

    def _weights(self) -> dict[str, float]:
        options = self._options
        weights = {
            "decoder": 1.0 - options.ctc_weight,
            "ctc": options.ctc_weight,
            "length_bonus": options.length_bonus,
        }
        return {name: weight for name, weight in weights.items() if weight != 0}

    def run(self) -> list[list[Hypothesis]]:
        for step in range(self._steps):
            if not self._step(step):
                break
        return self._collect()

    def _step(self, step: int) -> bool:
        """Extends every hypothesis by a token; False when no utterance is left."""
        labels_NK, total_NK, parts = self._candidates()
        chosen_UW, score_UW, exists_UW = self._best(total_NK)
        row_UW = self._row_of_cell()[chosen_UW // total_NK.shape[1]]
        choice_UW = chosen_UW % total_NK.shape[1]
        label_UW = labels_NK[row_UW, choice_UW]

        forced_U1 = (self._max_U == step + 1).unsqueeze(1)
        is_eos_UW = exists_UW & ((label_UW == self._eos) | forced_U1)
        ended_UW = is_eos_UW & (step >= self._min_U).unsqueeze(1)
        running_UW = exists_UW & ~is_eos_UW
        new_parts = {
            name: self._parts[name][row_UW] + value[row_UW, choice_UW] for name, value in parts.items()
        }
        self._record_ended(step, ended_UW, row_UW, label_UW, score_UW, new_parts, forced_U1)
        finished_U = ~running_UW.any(1)
        if self._options.maxlenratio == 0:
            finished_U |= self._end_detected(step)
        keep_U = (~finished_U).tolist()
        if not any(keep_U):
            return False
        alive_UW = running_UW & ~finished_U.unsqueeze(1)
        tables = {"row": row_UW, "choice": choice_UW, "label": label_UW, "score": score_UW, **new_parts}
        self._follow(alive_UW, tables, keep_U)
        return True

    def _candidates(self) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Candidates (N, K) of every row, their total scores, and what each scorer adds."""
        options, rows = self._options, self._rows
        last_N = self._last()
        bonus = options.length_bonus
        if self._state is None:
            vocabulary = self._ctc.vocabulary  # type: ignore[union-attr]
            every_V = torch.arange(vocabulary, device=last_N.device)
            labels_NK = every_V.expand(rows.size, -1)
            allowed_NK = torch.zeros(rows.size, vocabulary, device=last_N.device)
            self._forbid(allowed_NK)
            total_NK = allowed_NK + bonus
            parts = {}
        else:
            logits_NV = self._decoder.logits(self._hidden_ND)
            normalizer_N1 = logits_NV.logsumexp(1, keepdim=True)
            eos_logit_N1 = logits_NV[:, self._eos : self._eos + 1].clone()
            self._forbid(logits_NV)
            count = options.beam if self._ctc is None else int(PRE_BEAM_RATIO * options.beam)
            logit_NK, labels_NK = topk_of_groups(logits_NV, min(count, logits_NV.shape[1]))
            if self._ctc is not None and count < logits_NV.shape[1]:
                # CTC scores eos always, wanted by the pre-beam or not.
                wanted_N1 = (labels_NK == self._eos).any(1, keepdim=True)
                eos_logit_N1 = torch.where(wanted_N1, NEVER, eos_logit_N1)
                labels_NK = torch.cat([labels_NK, torch.full_like(labels_NK[:, :1], self._eos)], dim=1)
                logit_NK = torch.cat([logit_NK, eos_logit_N1], dim=1)
            logp_NK = logit_NK - normalizer_N1
            total_NK = (1.0 - options.ctc_weight) * logp_NK + bonus
            parts = {"decoder": logp_NK}
        if self._ctc is not None:
            ctc_NK = self._ctc.score(labels_NK, last_N, self._length_N, rows)
            total_NK = total_NK + options.ctc_weight * ctc_NK
            parts["ctc"] = ctc_NK
        if bonus != 0:
            parts["length_bonus"] = torch.ones_like(total_NK)
        return labels_NK, total_NK + self._score_N.unsqueeze(1), parts

    def _last(self) -> Tensor:
        return self._tokens_NP.gather(1, (self._length_N - 1).unsqueeze(1)).squeeze(1)

    def _forbid(self, scores_NV: Tensor) -> None:
        if self._timed:
            self._rules.apply(scores_NV, self._tokens_NP, self._length_N)
        else:
            self._rules.apply_simple(scores_NV)

    def _row_of_cell(self) -> Tensor:
        rows = self._rows
        return rows.to_grid(rows.index_N).flatten()

    def _best(self, total_NK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The beam of every utterance: index among its (slot, candidate) cells, score, and whether it exists."""
        # An impossible candidate of a hypothesis is still preferred to a hypothesis that is not there.
        lowest = torch.finfo(total_NK.dtype).min
        key_UWK = self._rows.to_grid(total_NK.clamp(min=lowest), fill=NEVER)
        key_UC = key_UWK.flatten(1)
        width = min(self._options.beam, key_UC.shape[1])
        best_UW, cell_UW = key_UC.topk(width, dim=1)
        exists_UW = best_UW > NEVER
        chosen_UW = cell_UW + (
            torch.arange(self._rows.utterances, device=cell_UW.device).unsqueeze(1) * key_UC.shape[1]
        )
        score_UW = torch.where(best_UW <= lowest, NEVER, best_UW)
        return chosen_UW, score_UW, exists_UW

    def _record_ended(
        self,
        step: int,
        ended_UW: Tensor,
        row_UW: Tensor,
        label_UW: Tensor,
        score_UW: Tensor,
        parts: dict[str, Tensor],
        forced_U1: Tensor,
    ) -> None:
        none_U1 = ~ended_UW.any(1, keepdim=True)
        best_U1 = score_UW.masked_fill(~ended_UW, NEVER).amax(1, keepdim=True)
        self._ended_best_US[:, step : step + 1] = best_U1.masked_fill(none_U1, float("nan"))
        where = ended_UW.nonzero(as_tuple=True)
        if where[0].shape[0] == 0:
            return
        row_E = row_UW[where]
        history = None if self._state is None else self._state.history_NPLM
        self._ended_gates.append(None if history is None else history.index_select(0, row_E).cpu())
        left_U = torch.tensor(self._left, device=row_E.device)
        self._ended.append(
            {
                "utterance": left_U[where[0]],
                "tokens": self._tokens_NP.index_select(0, row_E),
                "length": self._length_N.index_select(0, row_E),
                "label": label_UW[where],
                "forced": forced_U1.squeeze(1)[where[0]],
                "score": score_UW[where],
                **{f"part.{name}": value[where] for name, value in parts.items()},
            }
        )

    def _end_detected(self, step: int) -> Tensor:
        """Eq. 50 of Watanabe et al., "Hybrid CTC/Attention Architecture": longer hypotheses stopped paying.

        ESPnet compares ``len(yseq)``, which has the primer and eos, with the step's number, so it looks at
        hypotheses that ended a primer's length earlier than the equation says. Kept, for the same results.
        """
        best_U = self._ended_best_US.nan_to_num(nan=NEVER, neginf=NEVER).amax(1)
        finished_U = torch.ones_like(best_U, dtype=torch.bool)
        for back in range(END_LENGTHS):
            ended_at_U = step - back - self._primer_U - 1
            then_U = self._ended_best_US.gather(1, ended_at_U.clamp(min=0).unsqueeze(1)).squeeze(1)
            finished_U &= (ended_at_U >= 0) & (then_U - best_U < END_MARGIN)  # false where none ended (NaN)
        return finished_U

    def _follow(self, alive_UW: Tensor, tables: dict[str, Tensor], keep_U: list[bool]) -> None:
        """Makes the living hypotheses the rows, lets finished utterances leave, and runs the decoder."""
        last_N, length_N = self._last(), self._length_N
        order = list(range(len(keep_U)))
        if not all(keep_U):
            order = self._leave(keep_U)
            index = torch.tensor(order, device=alive_UW.device)
            alive_UW = alive_UW.index_select(0, index)
            tables = {name: table.index_select(0, index) for name, table in tables.items()}
        where = alive_UW.nonzero(as_tuple=True)
        parents_N, choice_N = tables["row"][where], tables["choice"][where]
        label_N = tables["label"][where]
        self._rows = Rows(where[0], len(order))
        self._score_N = tables["score"][where]
        self._parts = {name: tables[name][where] for name in self._parts}
        self._length_N = length_N.index_select(0, parents_N) + 1
        room = torch.full_like(label_N, self._eos).unsqueeze(1)
        tokens_NP = self._tokens_NP.index_select(0, parents_N)
        self._tokens_NP = torch.cat([tokens_NP, room], dim=1)
        self._tokens_NP.scatter_(1, (self._length_N - 1).unsqueeze(1), label_N.unsqueeze(1))
        if self._ctc is not None:
            self._ctc.advance(parents_N, choice_N, last_N, length_N, self._rows)
        if self._state is not None:
            self._hidden_ND = self._state.step(label_N, parents_N, self._rows)

    def _leave(self, keep_U: list[bool]) -> list[int]:
        if self._state is not None:
            order = self._state.keep_utterances(keep_U)
        else:
            order = [u for u, keep in enumerate(keep_U) if keep]
        index = torch.tensor(order, device=self._score_N.device)
        if self._ctc is not None:
            self._ctc.keep_utterances(order)
        self._left = [self._left[u] for u in order]
        self._max_U, self._min_U = self._max_U.index_select(0, index), self._min_U.index_select(0, index)
        self._primer_U = self._primer_U.index_select(0, index)
        self._ended_best_US = self._ended_best_US.index_select(0, index)
        return order

    def _collect(self) -> list[list[Hypothesis]]:
        found: list[list[Hypothesis]] = [[] for _ in self._primers]
        for ended, gates in zip(self._ended, self._ended_gates, strict=True):
            columns = {name: value.tolist() for name, value in ended.items()}
            parts = [name for name in columns if name.startswith("part.")]
            for e, u in enumerate(columns["utterance"]):
                tokens = [*columns["tokens"][e][: columns["length"][e]], columns["label"][e]]
                if columns["forced"][e]:  # ESPnet appends eos to all, also to what has just ended
                    tokens.append(self._eos)
                scores = {name.removeprefix("part."): columns[name][e] for name in parts}
                open_PLM = None if gates is None else gates[e]
                found[u].append(Hypothesis(tokens, columns["score"][e], scores, open_PLM))
        return found
