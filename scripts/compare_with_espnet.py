"""Compares inference with ESPnet's `Speech2Text`, end to end: same weights, same speech, fp32.

    python scripts/compare_with_espnet.py --utterances 200 --ctc-weight 0 0.3

Ours is the packed encoder and the batched beam search, as `localgp.evaluate` uses them; ESPnet's is its own encoder
and search. For each CTC weight, one line of JSON: how many best hypotheses are identical, by how much their scores and
the encoder outputs differ at most, and the seconds that each took. All lines, with command, commit and machine, are
written to ``exp/bench/espnet_agreement.json``. The speech is generated, with speakers of the mini corpus's test split;
tasks are ASR and both translations, in turn.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
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


@torch.inference_mode()
def compare(items: Sequence[Item], ctc_weight: float, *, beam: int = 5, batch: int = 16) -> dict[str, Any]:
    """Decodes ``items`` with both, with the embedded backbone."""
    from localgp.backbone.owsm import load_backbone
    from localgp.decoding.beam import BeamSearch
    from localgp.decoding.options import DecodeOptions
    from localgp.model import GatedS2T

    espnet = espnet_decoder(beam, ctc_weight)
    memory_of: list[torch.Tensor] = []
    espnet_encode = espnet.s2t_model.encode

    def kept_encode(**inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """ESPnet's, its output kept to compare ours with."""
        output, lengths = espnet_encode(**inputs)
        memory_of.append(output[0])
        return output, lengths

    espnet.s2t_model.encode = kept_encode
    backbone = load_backbone({"name": "mini", "path": "embedded", "weights": "pretrained"})
    tokenizer, model = backbone.tokenizer, GatedS2T(backbone.model).eval()
    primers = [[tokenizer.sos, *tokenizer.prompt(item.source, item.target)] for item in items]
    began = time.perf_counter()
    expected = []
    for item, primer in zip(items, primers, strict=True):
        language, task = (tokenizer.token_list[token] for token in primer[1:3])
        expected.append(espnet(item.samples, lang_sym=language, task_sym=task)[0][-1])
    espnet_seconds = time.perf_counter() - began
    began = time.perf_counter()
    search = BeamSearch(
        model.espnet.decoder,
        model.espnet.ctc,
        sos=tokenizer.sos,
        eos=tokenizer.eos,
        notimestamps=tokenizer.notimestamps,
        first_time=tokenizer.first_time,
        last_time=tokenizer.last_time,
        options=DecodeOptions(beam=beam, ctc_weight=ctc_weight),
    )
    samples = round(backbone.padded_seconds * backbone.sample_rate)
    found, encoder_differences = [], []
    for start in range(0, len(items), batch):
        speech = pad([item.samples for item in items[start : start + batch]], samples)
        encoded = model.encode(speech, torch.full((len(speech),), samples), path="packed")
        found += [nbest[0] for nbest in search(encoded.x, encoded.lengths, primers[start : start + batch])]
        memory = torch.stack(memory_of[start : start + batch])
        encoder_differences.append(float((encoded.x - memory).abs().max()))
    seconds = time.perf_counter() - began
    same = [h.tokens == e.yseq.tolist() for h, e in zip(found, expected, strict=True)]
    differences = [abs(h.score - float(e.score)) for h, e in zip(found, expected, strict=True)]
    return {
        "utterances": len(items),
        "beam": beam,
        "ctc_weight": ctc_weight,
        "identical": sum(same),
        "max_score_difference": max(differences),
        "max_encoder_difference": max(encoder_differences),
        "tokens": sum(len(h.tokens) for h in found),
        "seconds": round(seconds, 2),
        "espnet_seconds": round(espnet_seconds, 2),
    }


def espnet_decoder(beam: int, ctc_weight: float) -> Any:
    """ESPnet's `Speech2Text` of the embedded backbone."""
    from localgp.backbone.owsm import espnet_arguments, quiet_espnet

    with quiet_espnet(), tempfile.TemporaryDirectory() as directory:
        from espnet2.bin.s2t_inference import Speech2Text

        return Speech2Text(
            **espnet_arguments("embedded", Path(directory)), beam_size=beam, ctc_weight=ctc_weight
        )


def pad(pieces: Sequence[np.ndarray], samples: int) -> torch.Tensor:
    """(B, ``samples``), with zeros behind, as OWSM's inputs are."""
    padded = np.zeros((len(pieces), samples), dtype=np.float32)
    for row, piece in zip(padded, pieces, strict=True):
        row[: len(piece)] = piece[:samples]
    return torch.from_numpy(padded)


def main(arguments: Sequence[str] | None = None) -> int:
    from localgp.bench import machine
    from localgp.run import commit, write_atomically

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--utterances", type=int, default=200)
    parser.add_argument("--ctc-weight", type=float, nargs="+", default=[0.0, 0.3])
    parser.add_argument("--beam", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16, help="utterances decoded together")
    parser.add_argument("--out", type=Path, default=Path("exp/bench/espnet_agreement.json"))
    options = parser.parse_args(arguments)
    items = generate(options.utterances)
    rows = []
    for ctc_weight in options.ctc_weight:
        rows.append(compare(items, ctc_weight, beam=options.beam, batch=options.batch))
        print(json.dumps(rows[-1]), flush=True)
    given = sys.argv[1:] if arguments is None else arguments
    result = {
        "bench": "espnet_agreement",
        "command": shlex.join(["python", "scripts/compare_with_espnet.py", *given]),
        "machine": machine(),
        "commit": commit(),
        "rows": rows,
    }
    write_atomically(options.out, json.dumps(result, indent=1) + "\n")
    agreed = all(row["identical"] == row["utterances"] and row["max_score_difference"] < 1e-3 for row in rows)
    return 0 if agreed else 1


if __name__ == "__main__":
    sys.exit(main())
