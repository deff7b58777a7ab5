"""Batched beam search over many utterances, with ESPnet's semantics.

Same scores, pre-beam, length bounds, end detection and ranking as ESPnet's ``BatchBeamSearch`` under
``Speech2Text``; there, utterances go one by one. Here all hypotheses of all utterances are the rows of one
batch, finished hypotheses and utterances leave it, and what an utterance yields does not depend on its
batch mates. Scores are summed in fp32 whatever the weights' type.

Shape legend: B utterances of the call, T frames, D model size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from localgp.backbones.base import Backbone
from localgp.decoder.cached import CachedDecoder
from localgp.decoder.gates import DecoderGates
from localgp.errors import ConfigError
from localgp.kernels.ragged import listed
from localgp.search.greedy import Greedy
from localgp.search.hypothesis import Hypothesis
from localgp.search.options import DecodeOptions
from localgp.search.steps import Search

__all__ = ["BeamSearch", "Hypothesis"]


class BeamSearch:
    """Beam search over a batch, with ESPnet's scores and hypotheses.

    Args:
        backbone: Whose tokens, rules and CTC are used.
        options: How to decode.
        decoder: Its decoder, if it is laid out already; two searches can share one.
        dtype: Type of weights, caches and products where it is laid out here; default: the decoder's own. Given here
            rather than by autocast, which casts weights at every step and is off inside.

    Raises:
        ConfigError: If a CTC weight is asked for without a CTC.

    Examples:
        >>> search = BeamSearch(backbone, DecodeOptions(beam=5))                       # doctest: +SKIP
        >>> best = [hypotheses[0] for hypotheses in search(x_BTD, lengths_B, primers)]  # doctest: +SKIP
    """

    def __init__(
        self,
        backbone: Backbone,
        options: DecodeOptions,
        decoder: CachedDecoder | None = None,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        if options.ctc_weight > 0 and backbone.ctc is None:
            raise ConfigError(f"ctc_weight is {options.ctc_weight}, but the model has no CTC; set it to 0")
        self.decoder = decoder or CachedDecoder(backbone, dtype=dtype)
        self.ctc = backbone.ctc if options.ctc_weight > 0 else None
        self.tokens, self.options = backbone.tokenizer, options
        self._longest = backbone.shape.longest
        lengths = (options.length_bonus, options.minlenratio)
        self._greedy = options.beam == 1 and options.ctc_weight == 0 and not any(lengths)

    def most(self, frames: Sequence[int], primers: list[list[int]]) -> list[int]:
        """The most tokens that each utterance's hypotheses may get.

        Args:
            frames: Of their encoder outputs.
        """
        most = [self.options.max_length(n) for n in frames]
        if self._longest is None:
            return most
        return [min(n, self._longest - len(primer)) for n, primer in zip(most, primers, strict=True)]

    @torch.inference_mode()
    def __call__(
        self,
        memory_BTD: Tensor,
        memory_lengths_B: Tensor,
        primers: list[list[int]],
        gates: DecoderGates | None = None,
        owners: list[int] | None = None,
        *,
        temperature: float = 0.0,
        confidence: bool = False,
    ) -> list[list[Hypothesis]]:
        """Decodes utterances together.

        Args:
            memory_BTD: Encoder output, padded.
            memory_lengths_B: Encoder frames of each.
            primers: Tokens that each hypothesis begins with, per utterance; lengths may differ.
            gates: Of the decoder's modules, for this call; they know utterances by their place in ``primers``.
            owners: The encoder output that each utterance is of, where several are of one (tasks of one recording): its
                keys and values are then made and read once for all of them. Default: each has its own, in their order.
            temperature: Draw every token at this one, whatever the beam; 0: search. The same call draws the same.
            confidence: Give ``scores["allowed"]`` too (`Hypothesis`).

        Returns:
            The best hypotheses of each utterance, best first, at most ``options.nbest``; none if the length
            bounds leave none, as in ESPnet.
        """
        with torch.autocast(memory_BTD.device.type, enabled=False):
            whose = list(range(len(primers))) if owners is None else owners
            lengths = memory_lengths_B.tolist()
            if self._greedy or temperature > 0:
                return Greedy(
                    self,
                    memory_BTD,
                    lengths,
                    whose,
                    primers,
                    gates,
                    temperature=temperature,
                    confidence=confidence,
                ).run()
            return self._decode(memory_BTD, lengths, whose, primers, gates, confidence)

    def _decode(
        self,
        memory_BTD: Tensor,
        lengths: list[int],
        owners: list[int],
        primers: list[list[int]],
        gates: DecoderGates | None,
        confidence: bool,
    ) -> list[list[Hypothesis]]:
        ratio = self.options.minlenratio
        found: list[list[Hypothesis]] = [[] for _ in primers]
        todo = list(range(len(primers)))
        while todo:
            needed = sorted({owners[u] for u in todo})
            index = listed(needed, memory_BTD.device)
            search = Search(
                self,
                memory_BTD if len(needed) == len(memory_BTD) else memory_BTD.index_select(0, index),
                [lengths[owner] for owner in needed],
                [needed.index(owners[u]) for u in todo],
                [primers[u] for u in todo],
                ratio,
                gates,
                todo,
                confidence,
            )
            for u, hypotheses in zip(todo, search.run(), strict=True):
                found[u] = hypotheses
            if ratio < 0.1:
                break
            ratio = max(0.0, ratio - 0.1)  # as ESPnet: where nothing was long enough, ask for less
            todo = [u for u in todo if not found[u]]
        ranked = (sorted(hypotheses, key=lambda h: h.score, reverse=True) for hypotheses in found)
        return [hypotheses[: self.options.nbest] for hypotheses in ranked]
