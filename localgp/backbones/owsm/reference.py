"""ESPnet's own beam search, to compare with.

Shape legend: T encoder frames, D model size.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor


class EspnetSearch:
    """ESPnet's search, set up as its ``Speech2Text`` does."""

    def __init__(self, net: Any, tokenizer: Any, options: Any, dtype: torch.dtype) -> None:
        from espnet.nets.batch_beam_search import BatchBeamSearch
        from espnet.nets.scorers.ctc import CTCPrefixScorer
        from espnet.nets.scorers.length_bonus import LengthBonus
        from espnet2.bin.s2t_inference import ScoreFilter

        self._options, self._dtype = options, dtype
        names = ("sos", "eos", "notimestamps", "first_time", "last_time")
        tokens = {name: getattr(tokenizer, name) for name in names}
        decoder, ctc = net.decoder, net.ctc
        if next(decoder.parameters()).dtype != dtype:  # a copy: casting back would not give the weights back
            decoder, ctc = copy.deepcopy(decoder).to(dtype), copy.deepcopy(ctc).to(dtype)
        vocabulary = net.decoder.output_layer.out_features
        self._search = BatchBeamSearch(
            beam_size=options.beam,
            weights={
                "decoder": 1.0 - options.ctc_weight,
                "ctc": options.ctc_weight,
                "length_bonus": options.length_bonus,
                "scorefilter": 1.0,
            },
            scorers={
                "decoder": decoder,
                "ctc": CTCPrefixScorer(ctc=ctc, eos=tokens["eos"]),
                "length_bonus": LengthBonus(vocabulary),
                "scorefilter": ScoreFilter(vocab_size=vocabulary, **tokens),
            },
            sos=tokens["sos"],
            eos=tokens["eos"],
            vocab_size=vocabulary,
            pre_beam_score_key=None if options.ctc_weight == 1.0 else "full",
        ).eval()
        self._search.to(next(decoder.parameters()).device)

    @torch.no_grad()
    def __call__(self, memory_TD: Tensor, primer: list[int]) -> list[int]:
        """The best hypothesis's tokens."""
        self._search.set_hyp_primer(primer)
        found = self._search(memory_TD.to(self._dtype), maxlenratio=self._options.maxlenratio)
        return found[0].yseq.tolist()
