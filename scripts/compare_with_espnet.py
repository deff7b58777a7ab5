"""Compares the batched beam search with ESPnet's `Speech2Text`: same weights, same speech.

    python scripts/compare_with_espnet.py --utterances 200 --ctc-weight 0 0.3

For each CTC weight, one line of JSON: how many best hypotheses are identical, by how much scores differ at
most, and the seconds that each took. The speech is generated, with speakers of the mini corpus's test split;
tasks are ASR and both translations, in turn.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

LANGUAGES = ("de", "fr", "it")
SEED = 2026


class Item(NamedTuple):
    """One utterance and what is to be written, as language codes."""

    samples: np.ndarray
    source: str
    target: str


def generate(utterances: int, seed: int = SEED) -> list[Item]:
    from localgp.corpora.mini import speakers, synthesize_split

    each = -(-utterances // len(LANGUAGES))
    spoken = [list(synthesize_split(seed, code, speakers(code, "test"), each)) for code in LANGUAGES]
    items = [
        Item(utterance.samples, utterance.language, LANGUAGES[(turn + index) % len(LANGUAGES)])
        for turn, utterances_of_turn in enumerate(zip(*spoken, strict=True))
        for index, utterance in enumerate(utterances_of_turn)
    ]
    return items[:utterances]


@torch.no_grad()
def compare(items: Sequence[Item], ctc_weight: float, *, beam: int = 5, batch: int = 16) -> dict[str, Any]:
    """Decodes ``items`` with both, from ESPnet's own encoder output, with the embedded backbone."""
    from localgp.backbone.owsm import espnet_arguments, load_backbone, quiet_espnet
    from localgp.decoding.beam import BeamSearch
    from localgp.decoding.options import DecodeOptions

    with quiet_espnet(), tempfile.TemporaryDirectory() as directory:
        from espnet2.bin.s2t_inference import Speech2Text

        arguments = espnet_arguments("embedded", Path(directory))
        espnet = Speech2Text(**arguments, beam_size=beam, ctc_weight=ctc_weight)
    backbone = load_backbone({"name": "mini", "path": "embedded", "weights": "pretrained"})
    tokenizer, model = backbone.tokenizer, backbone.model.eval()
    search = BeamSearch(
        model.decoder,
        model.ctc,
        sos=tokenizer.sos,
        eos=tokenizer.eos,
        notimestamps=tokenizer.notimestamps,
        first_time=tokenizer.first_time,
        last_time=tokenizer.last_time,
        options=DecodeOptions(beam=beam, ctc_weight=ctc_weight),
    )
    memory_of: list[torch.Tensor] = []
    encode = espnet.s2t_model.encode

    def kept_encode(**inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """ESPnet's, its output kept: what is compared is the search."""
        output, lengths = encode(**inputs)
        memory_of.append(output[0])
        return output, lengths

    espnet.s2t_model.encode = kept_encode
    primers = [[tokenizer.sos, *tokenizer.prompt(item.source, item.target)] for item in items]
    began = time.perf_counter()
    expected = []
    for item, primer in zip(items, primers, strict=True):
        language, task = (tokenizer.token_list[token] for token in primer[1:3])
        expected.append(espnet(item.samples, lang_sym=language, task_sym=task)[0][-1])
    espnet_seconds = time.perf_counter() - began
    began = time.perf_counter()
    found = []
    for start in range(0, len(items), batch):
        memory = torch.stack(memory_of[start : start + batch])
        lengths = torch.full((memory.shape[0],), memory.shape[1])
        found += [nbest[0] for nbest in search(memory, lengths, primers[start : start + batch])]
    seconds = time.perf_counter() - began
    same = [h.tokens == e.yseq.tolist() for h, e in zip(found, expected, strict=True)]
    differences = [abs(h.score - float(e.score)) for h, e in zip(found, expected, strict=True)]
    return {
        "utterances": len(items),
        "beam": beam,
        "ctc_weight": ctc_weight,
        "identical": sum(same),
        "max_score_difference": max(differences),
        "tokens": sum(len(h.tokens) for h in found),
        "seconds": round(seconds, 2),
        "espnet_seconds_with_encoder": round(espnet_seconds, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--utterances", type=int, default=200)
    parser.add_argument("--ctc-weight", type=float, nargs="+", default=[0.0, 0.3])
    parser.add_argument("--beam", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16, help="utterances decoded together")
    options = parser.parse_args()
    items = generate(options.utterances)
    for ctc_weight in options.ctc_weight:
        print(json.dumps(compare(items, ctc_weight, beam=options.beam, batch=options.batch)), flush=True)


if __name__ == "__main__":
    main()
