"""Greedy scores of a model on generated speech.

Shape legend: B utterances, F feature frames, M mel bins, T encoder frames, Q sequences, L tokens.
"""

from __future__ import annotations

from typing import Any

import jiwer
import numpy as np
import sacrebleu
import torch
from speech import EDGE, MELS, SILENCE, SpeechSet
from torch import Tensor

from localgp.backbones.owsm.model import OwsmBackbone
from localgp.search.beam import BeamSearch
from localgp.search.options import DecodeOptions


@torch.inference_mode()
def score(
    backbone: OwsmBackbone, speech: SpeechSet, *, per_language: int, batch_size: int = 30
) -> dict[str, Any]:
    """WER and BLEU by task with greedy decoding of input padded to the backbone's length.

    Args:
        per_language: Utterances of each language, from the front.
    """
    model, training = backbone.net, backbone.net.training
    model.eval()
    chosen: list[int] = []
    for language in sorted({item["language"] for item in speech.items}):
        chosen += [i for i, item in enumerate(speech.items) if item["language"] == language][:per_language]
    texts: dict[tuple[str, str], tuple[list[str], list[str]]] = {}
    by_ctc: dict[str, tuple[list[str], list[str]]] = {}
    for begin in range(0, len(chosen), batch_size):
        rows = chosen[begin : begin + batch_size]
        encoded_BTD = _encode(backbone, speech, rows)
        items = [speech.items[i] for i in rows]
        for item, path in zip(items, model.ctc.argmax(encoded_BTD), strict=True):
            references, hypotheses = by_ctc.setdefault(item["language"], ([], []))
            references.append(item["texts"][item["language"]])
            hypotheses.append(backbone.tokenizer.decode(t for t in path.unique_consecutive().tolist() if t))
        tasks = [
            (row, item["language"], target) for row, item in enumerate(items) for target in item["texts"]
        ]
        primers = [
            [backbone.tokenizer.sos, *backbone.tokenizer.prompt(source, target)]
            for _, source, target in tasks
        ]
        owner = torch.tensor([row for row, _, _ in tasks])
        for (row, source, target), tokens in zip(
            tasks, _greedy(backbone, encoded_BTD[owner], primers), strict=True
        ):
            references, hypotheses = texts.setdefault((source, target), ([], []))
            references.append(items[row]["texts"][target])
            hypotheses.append(backbone.tokenizer.decode(tokens))
    model.train(training)
    wer = {s: round(100 * jiwer.wer(*pair), 2) for (s, t), pair in texts.items() if s == t}
    wer_of_ctc = {s: round(100 * jiwer.wer(*pair), 2) for s, pair in by_ctc.items()}
    bleu = {
        f"{s}-{t}": round(sacrebleu.corpus_bleu(pair[1], [pair[0]]).score, 2)
        for (s, t), pair in texts.items()
        if s != t
    }
    return {
        "wer": {**wer, "mean": round(float(np.mean(list(wer.values()))), 2)},
        "wer of ctc alone": {**wer_of_ctc, "mean": round(float(np.mean(list(wer_of_ctc.values()))), 2)},
        "bleu": {**bleu, "mean": round(float(np.mean(list(bleu.values()))), 2)},
        "utterances": len(chosen),
        "decoding": "greedy, ctc_weight 0, no text normalisation (lower-cased, punctuation kept)",
    }


def _encode(backbone: OwsmBackbone, speech: SpeechSet, indices: list[int]) -> Tensor:
    frames = round(backbone.padded_seconds * 100) + 1
    feats_BFM = np.full((len(indices), frames, MELS), SILENCE, np.float32)
    for row, index in enumerate(indices):
        span = slice(speech.starts[index] + EDGE, speech.starts[index + 1])
        feats_BFM[row, : span.stop - span.start] = speech.feats[span]
    lengths = torch.full((len(indices),), frames)
    feats, _ = backbone.net.normalize(torch.from_numpy(feats_BFM), lengths)
    return backbone.net.encoder(feats, lengths)[0]


def _greedy(
    backbone: OwsmBackbone, encoded_QTD: Tensor, primers: list[list[int]], limit: int = 90
) -> list[list[int]]:
    """The likeliest token at each step."""
    search = BeamSearch(backbone, DecodeOptions(beam=1, maxlenratio=limit / encoded_QTD.shape[1]))
    lengths = torch.full((len(primers),), encoded_QTD.shape[1])
    found = search(encoded_QTD, lengths, primers)
    return [
        nbest[0].tokens[len(primer) :] if nbest else [] for nbest, primer in zip(found, primers, strict=True)
    ]
