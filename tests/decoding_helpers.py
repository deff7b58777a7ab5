"""Small ESPnet decoders, and ESPnet's own search over them, set up as its ``Speech2Text`` does."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from localgp.backbones.base import Backbone
from localgp.search.options import DecodeOptions
from tests.conftest import SmallTokens, make_backbone

VOCABULARY = len(SmallTokens.token_list)
SOS, EOS, NOTIMESTAMPS = SmallTokens.sos, SmallTokens.eos, SmallTokens.notimestamps
TOKENS = {
    name: getattr(SmallTokens, name) for name in ("sos", "eos", "notimestamps", "first_time", "last_time")
}
PRIMER = [SOS, 4, 5, NOTIMESTAMPS]


@dataclass
class Model:
    decoder: nn.Module
    ctc: nn.Module | None

    @cached_property
    def backbone(self) -> Backbone:
        return make_backbone(decoder=self.decoder, ctc=self.ctc)


def make_model(
    seed: int, *, size: int = 32, eos_bias: float = 2.0, blank_bias: float = 2.0, **changes: Any
) -> Model:
    """Random weights whose scores are peaked, and whose eos is likely enough for hypotheses to end."""
    from espnet2.asr.ctc import CTC
    from espnet2.asr.decoder.transformer_decoder import TransformerDecoder

    logging.disable(logging.WARNING)
    torch.manual_seed(seed)
    settings: dict[str, Any] = {"attention_heads": 4, "linear_units": 64, "num_blocks": 2, **changes}
    decoder = TransformerDecoder(VOCABULARY, size, use_flash_attn=False, **settings)
    ctc = CTC(VOCABULARY, size)
    with torch.no_grad():
        decoder.output_layer.weight.mul_(6)
        decoder.output_layer.bias[EOS] += eos_bias
        ctc.ctc_lo.weight.mul_(4)
        ctc.ctc_lo.bias[0] += blank_bias
    return Model(decoder.eval(), ctc.eval())


def make_memory(seed: int, lengths: list[int], size: int = 32) -> tuple[Tensor, Tensor]:
    """Encoder outputs; what lies beyond a length is noise that must not matter."""
    generator = torch.Generator().manual_seed(seed)
    memory = torch.randn(len(lengths), max(lengths), size, generator=generator)
    return memory, torch.tensor(lengths)


@torch.no_grad()
def espnet_search(model: Model, memory_TD: Tensor, primer: list[int], options: DecodeOptions) -> list[Any]:
    """Hypotheses of ESPnet's BatchBeamSearch with the scorers of ``espnet2.bin.s2t_inference.Speech2Text``."""
    from espnet.nets.batch_beam_search import BatchBeamSearch
    from espnet.nets.scorers.ctc import CTCPrefixScorer
    from espnet.nets.scorers.length_bonus import LengthBonus
    from espnet2.bin.s2t_inference import ScoreFilter

    vocabulary = model.decoder.output_layer.out_features
    scorers = {
        "decoder": model.decoder,
        "ctc": CTCPrefixScorer(ctc=model.ctc, eos=TOKENS["eos"]),
        "length_bonus": LengthBonus(vocabulary),
        "scorefilter": ScoreFilter(vocab_size=vocabulary, **TOKENS),
    }
    weights = {
        "decoder": 1.0 - options.ctc_weight,
        "ctc": options.ctc_weight,
        "length_bonus": options.length_bonus,
        "scorefilter": 1.0,
    }
    search = BatchBeamSearch(
        beam_size=options.beam,
        weights=weights,
        scorers=scorers,
        sos=SOS,
        eos=EOS,
        vocab_size=vocabulary,
        pre_beam_score_key=None if options.ctc_weight == 1.0 else "full",
        hyp_primer=primer,
    ).eval()
    return search(memory_TD, maxlenratio=options.maxlenratio, minlenratio=options.minlenratio)
