"""Compares inference with ESPnet's `Speech2Text`, end to end: same weights, same speech.

    python scripts/compare_with_espnet.py --utterances 200 --ctc-weight 0 0.3

Ours is the packed encoder and the batched beam search, as `localgp.evaluate` uses them; ESPnet's is its own encoder
and search. For each CTC weight and precision, one line of JSON, all against ESPnet in fp32: how many best hypotheses
are identical, by how much their scores and the encoder outputs differ at most, and the seconds that each took. In
bf16 ESPnet runs under autocast, and what rounding does to its own result stands beside what it does to ours. All
lines, with command, commit and machine, are written to ``exp/bench/espnet_agreement.json``. The speech is generated,
with speakers of the mini corpus's test split; tasks are ASR and both translations, in turn.
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


class Result(NamedTuple):
    """Best hypothesis and encoder output of each utterance, and the seconds that all took."""

    tokens: list[list[int]]
    scores: list[float]
    memory: list[torch.Tensor]
    seconds: float


@torch.inference_mode()
def compare(
    items: Sequence[Item],
    ctc_weight: float,
    *,
    beam: int = 5,
    batch: int = 16,
    precisions: Sequence[str] = ("fp32",),
) -> list[dict[str, Any]]:
    """Decodes ``items`` with both, with the embedded backbone; a row for each precision."""
    rows = []
    reference = espnet_result(items, beam, ctc_weight, "fp32")
    for precision in precisions:
        espnet = reference if precision != "bf16" else espnet_result(items, beam, ctc_weight, precision)
        ours = our_result(items, beam, ctc_weight, precision, batch)
        row = {
            "utterances": len(items),
            "beam": beam,
            "ctc_weight": ctc_weight,
            "precision": precision,
            **differences(ours, reference),
            "tokens": sum(len(tokens) for tokens in ours.tokens),
            "seconds": round(ours.seconds, 2),
            "espnet_seconds": round(espnet.seconds, 2),
        }
        if precision == "bf16":
            row |= {f"espnet_{name}": value for name, value in differences(espnet, reference).items()}
        rows.append(row)
    return rows


def differences(found: Result, reference: Result) -> dict[str, Any]:
    """Scores are compared where the hypotheses are the same."""
    same = [a == b for a, b in zip(found.tokens, reference.tokens, strict=True)]
    scores = [abs(a - b) for a, b in zip(found.scores, reference.scores, strict=True)]
    memory = [float((a - b).abs().max()) for a, b in zip(found.memory, reference.memory, strict=True)]
    return {
        "identical": sum(same),
        "max_score_difference": max(
            (s for s, equal in zip(scores, same, strict=True) if equal), default=None
        ),
        "max_encoder_difference": max(memory),
    }


def espnet_result(items: Sequence[Item], beam: int, ctc_weight: float, precision: str) -> Result:
    """ESPnet's `Speech2Text` of the embedded backbone, utterance by utterance."""
    from localgp.backbones.owsm.components import quiet_espnet
    from localgp.backbones.owsm.files import espnet_arguments

    with quiet_espnet(), tempfile.TemporaryDirectory() as directory:
        from espnet2.bin.s2t_inference import Speech2Text

        espnet = Speech2Text(
            **espnet_arguments("embedded", Path(directory)), beam_size=beam, ctc_weight=ctc_weight
        )
    memory: list[torch.Tensor] = []
    encode = espnet.s2t_model.encode

    def kept_encode(**inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        output, lengths = encode(**inputs)
        memory.append(output[0].float())
        return output, lengths

    espnet.s2t_model.encode = kept_encode
    backbone = _backbone()
    names = backbone.tokenizer.token_list
    began = time.perf_counter()
    best = []
    for item, primer in zip(items, _primers(items, backbone.tokenizer), strict=True):
        language, task = (names[token] for token in primer[1:3])
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            best.append(espnet(item.samples, lang_sym=language, task_sym=task)[0][-1])
    seconds = time.perf_counter() - began
    return Result([h.yseq.tolist() for h in best], [float(h.score) for h in best], memory, seconds)


def our_result(items: Sequence[Item], beam: int, ctc_weight: float, precision: str, batch: int) -> Result:
    """Ours, ``batch`` utterances at a time."""
    from localgp.model import GatedS2T
    from localgp.search.beam import BeamSearch
    from localgp.search.options import DecodeOptions

    backbone = _backbone()
    tokenizer, model = backbone.tokenizer, GatedS2T(backbone).eval()
    primers = _primers(items, tokenizer)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}[precision]
    began = time.perf_counter()
    encoder = model.packed(dtype)
    search = BeamSearch(backbone, DecodeOptions(beam=beam, ctc_weight=ctc_weight), dtype=dtype)
    samples = backbone.samples
    best, memory = [], []
    for start in range(0, len(items), batch):
        speech = pad([item.samples for item in items[start : start + batch]], samples)
        encoded = encoder.encode(speech, torch.full((len(speech),), samples))
        best += [nbest[0] for nbest in search(encoded.x, encoded.lengths, primers[start : start + batch])]
        memory += list(encoded.x.float())
    seconds = time.perf_counter() - began
    return Result([h.tokens for h in best], [h.score for h in best], memory, seconds)


def _backbone() -> Any:
    from localgp.backbones import open_backbone

    return open_backbone({"name": "mini", "path": "embedded", "weights": "pretrained"})


def _primers(items: Sequence[Item], tokenizer: Any) -> list[list[int]]:
    return [[tokenizer.sos, *tokenizer.prompt(item.source, item.target)] for item in items]


def pad(pieces: Sequence[np.ndarray], samples: int) -> torch.Tensor:
    """(B, ``samples``), with zeros behind, as OWSM's inputs are."""
    padded = np.zeros((len(pieces), samples), dtype=np.float32)
    for row, piece in zip(padded, pieces, strict=True):
        row[: len(piece)] = piece[:samples]
    return torch.from_numpy(padded)


def main(arguments: Sequence[str] | None = None) -> int:
    from localgp.bench.harness import machine
    from localgp.run import commit, write_atomically

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--utterances", type=int, default=200)
    parser.add_argument("--ctc-weight", type=float, nargs="+", default=[0.0, 0.3])
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16", "int8"], default=["fp32", "bf16"])
    parser.add_argument("--beam", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16, help="utterances decoded together")
    parser.add_argument("--out", type=Path, default=Path("exp/bench/espnet_agreement.json"))
    options = parser.parse_args(arguments)
    items = generate(options.utterances)
    rows = []
    for ctc_weight in options.ctc_weight:
        rows += compare(
            items, ctc_weight, beam=options.beam, batch=options.batch, precisions=options.precision
        )
        print(*map(json.dumps, rows[-len(options.precision) :]), sep="\n", flush=True)
    given = sys.argv[1:] if arguments is None else arguments
    result = {
        "bench": "espnet_agreement",
        "command": shlex.join(["python", "scripts/compare_with_espnet.py", *given]),
        "machine": machine(),
        "commit": commit(),
        "rows": rows,
    }
    write_atomically(options.out, json.dumps(result, indent=1) + "\n")
    exact = [row for row in rows if row["precision"] == "fp32"]
    agreed = all(
        row["identical"] == row["utterances"] and row["max_score_difference"] < 1e-3 for row in exact
    )
    return 0 if agreed else 1


if __name__ == "__main__":
    sys.exit(main())
