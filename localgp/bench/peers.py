"""Search and its steps against what else computes the same weights, or weights of the same size, paired in one run.

The search is given sentences that eSpeak speaks, so that hypotheses end where a model with its real weights ends them,
and can be compared.

Shape legend: B utterances, T encoder frames, D model size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from localgp.backbones.base import Backbone
from localgp.bench.decoder import DecoderBench
from localgp.bench.harness import per_step
from localgp.bench.rows import PEER
from localgp.bench.steps import STEP_DTYPES, StepBench, endless
from localgp.decoder.cached import CachedDecoder
from localgp.encoder.packed import PackedEncoder
from localgp.model import GatedS2T
from localgp.search.beam import BeamSearch
from localgp.search.options import DecodeOptions
from localgp.window import Window

LANGUAGE = "en"
SENTENCES = (
    "The committee will meet again on Thursday morning to look at the new budget.",
    "Please leave your name and your number, and we will call you back tomorrow.",
    "Nobody had told the driver that the bridge was closed for the whole weekend.",
    "She read the letter twice before she understood what her brother wanted.",
    "Most of the farmers in this valley grow apples, and some of them keep bees.",
    "After a long winter the first warm days came suddenly at the end of March.",
    "The library opens at nine, but the reading room is only open after lunch.",
    "We have enough water for three days if everybody drinks as little as possible.",
)
BRIEF = (  # under 3 s
    "Please hold the line.",
    "The office is closed today.",
    "Your call is important to us.",
    "I will be home at seven.",
    "The train leaves in ten minutes.",
    "Thank you for calling again.",
    "There are two new messages.",
    "Please enter your number now.",
)
STEP_PEERS = {"fp32": "float32", "int8": "int8"}  # our arithmetic, and CTranslate2's
SYMBOLS = 2000  # Whisper's own, bytes among them: a smaller vocabulary has no Whisper of equal size


def search_peers(bench: DecoderBench) -> None:
    """Rows ``peer search``: our search with `transformers`' ranking against each peer's, greedy and with the beam, on
    the same encoder output, with how many hypotheses are identical."""
    backbone, wanted = bench.backbone, bench.wanted
    peers = {name: backbone.peer(name) for name in wanted.peers if name in backbone.peers}
    if not peers:
        return
    tokens = backbone.tokenizer
    memory_BTD = _encoded(backbone, max(wanted.utterances))
    primer = [*tokens.start, *tokens.prompt(LANGUAGE, LANGUAGE)]
    for beam in dict.fromkeys((1, wanted.beam)):
        options = DecodeOptions(beam=beam, ranking="transformers")
        search = BeamSearch(backbone, options, dtype=torch.float32)
        for peer, other in peers.items():
            for count in wanted.utterances:
                memory, primers = memory_BTD[:count], [primer] * count
                ours = partial(_write, search, memory, primers, tokens.eos)
                theirs = other.search(memory, primers, beam)
                figures, times = bench.compare({"ours": ours, peer: theirs}, wanted.repeats)
                pairs = list(zip(ours(), theirs(), strict=True))
                bench.add(
                    "peer search",
                    "fp32",
                    schema=PEER,
                    batch=count,
                    **figures,
                    beam=beam,
                    speed_ratio=times.ratio(peer, "ours"),
                    tokens=float(np.mean([len(a) for a, _ in pairs])),
                    identical=sum(a == b for a, b in pairs),
                )


def recording_peers(bench: DecoderBench) -> None:
    """Rows ``peer recording``: encoder and beam search of one short recording after the other, ours in windows of their
    own length, which the weights should have been trained for, against CTranslate2 in full ones, in its best
    arithmetic on a CPU (int8)."""
    backbone, wanted = bench.backbone, bench.wanted
    if "ctranslate2" not in wanted.peers or "ctranslate2" not in backbone.peers:
        return
    from localgp.backbones.whisper.peers import CTranslate2

    tokens: Any = backbone.tokenizer  # a Whisper's: no other has this peer
    rate = backbone.sample_rate
    primer = [*tokens.start, *tokens.prompt(LANGUAGE, LANGUAGE)]
    other: Any = CTranslate2(backbone.net, tokens, "int8")
    ends_1 = torch.tensor([round(wanted.recording_seconds * rate)])
    own, full = GatedS2T(backbone, window=Window("utterance", 0.5)), GatedS2T(backbone)
    speech_BN = _spoken(backbone, max(wanted.utterances), BRIEF)
    speech_BN[:, int(ends_1) :] = 0
    short = [own.features(one_1N, ends_1) for one_1N in speech_BN.split(1)]
    padded = [full.features(one_1N, ends_1)[0] for one_1N in speech_BN.split(1)]

    def theirs() -> list[list[int]]:
        return [other.search(other.encode(feats_1SF), [primer], wanted.beam)()[0] for feats_1SF in padded]

    options = DecodeOptions(beam=wanted.beam, ranking="transformers")
    for dtype in bench.dtypes():
        encoder = PackedEncoder(backbone, STEP_DTYPES[dtype])
        search = BeamSearch(backbone, options, dtype=STEP_DTYPES[dtype])

        def ours(encoder: PackedEncoder = encoder, search: BeamSearch = search) -> list[list[int]]:
            return [_write(search, encoder.encode(*given).x, [primer], tokens.eos)[0] for given in short]

        figures, _ = bench.compare({"ours": ours, "ctranslate2": theirs}, wanted.repeats, "time_ratio")
        found = {"tokens": ours(), "against_tokens": theirs()}
        written = {key: float(np.mean([len(ids) for ids in texts])) for key, texts in found.items()}
        bench.add(
            "peer recording",
            dtype,
            schema=PEER,
            batch=1,
            recordings=len(speech_BN),
            seconds_of_audio=wanted.recording_seconds,
            beam=wanted.beam,
            **figures,
            **written,
            as_long=abs(written["tokens"] - written["against_tokens"]) <= 0.2 * written["against_tokens"],
        )


def step_peers(bench: DecoderBench) -> None:
    """Rows ``peer step``: a step of our search against one of CTranslate2's, of a decoder of equal size with random
    weights, in the same arithmetic."""
    backbone, wanted = bench.backbone, bench.wanted
    if "ctranslate2" not in wanted.peers or backbone.shape.vocabulary <= SYMBOLS:
        return
    from localgp.backbones.whisper.peers import EqualSteps

    parts = backbone.branches("decoder", 0)
    ffn: Any = parts["ffn"].linears[0]
    for dtype in [dtype for dtype in bench.dtypes() if dtype in STEP_PEERS]:
        other = EqualSteps(
            size=backbone.shape.size,
            layers=backbone.shape.decoder_layers,
            heads=parts["self_attention"].heads,
            units=ffn.out_features,
            vocabulary=backbone.shape.vocabulary,
            frames=bench.frames,
            arithmetic=STEP_PEERS[dtype],
        )
        with endless(backbone):
            decoder = CachedDecoder(backbone, dtype=STEP_DTYPES[dtype])
            for count in wanted.utterances:
                memory_BTD, primers = bench.memory(count)
                ours = partial(StepBench(backbone, decoder, wanted, memory_BTD, primers).of, None)
                theirs = partial(other.search, memory_BTD, wanted.beam)
                times = per_step({"ours": ours, "peer": theirs}, wanted.steps, wanted.repeats, bench.device)
                bench.add(
                    "peer step",
                    dtype,
                    schema=PEER,
                    batch=count,
                    seconds=times.median("ours"),
                    against="ctranslate2",
                    against_seconds=times.median("peer"),
                    beam=wanted.beam,
                    time_ratio=times.ratio("ours", "peer"),
                )


def _write(search: BeamSearch, memory_BTD: Tensor, primers: list[list[int]], end: int) -> list[list[int]]:
    lengths_B = torch.full((len(memory_BTD),), memory_BTD.shape[1], device=memory_BTD.device)
    found = search(memory_BTD, lengths_B, primers)
    texts = [nbest[0].tokens[len(primer) :] for nbest, primer in zip(found, primers, strict=True)]
    return [ids[: ids.index(end)] if end in ids else ids for ids in texts]


def _encoded(backbone: Backbone, count: int) -> Tensor:
    """Of spoken sentences, in full windows, (B, T, D)."""
    lengths_B = torch.full((count,), backbone.samples)
    feats_BSF, frames_B = backbone.features(_spoken(backbone, count).to(backbone.device), lengths_B)
    return PackedEncoder(backbone).encode(feats_BSF, frames_B).x


def _spoken(backbone: Backbone, count: int, sentences: Sequence[str] = SENTENCES) -> Tensor:
    """Sentences and the silence behind them, (B, N)."""
    from localgp.corpora.mini.utterance import resample
    from localgp.corpora.mini.voices import ESPEAK_RATE, speak

    speech_BN = torch.zeros(count, backbone.samples)
    for b, row_N in enumerate(speech_BN):
        spoken = speak(sentences[b % len(sentences)], "en-us+f3", 150, 50).samples
        samples = torch.from_numpy(resample(spoken, ESPEAK_RATE, backbone.sample_rate)).float()[: len(row_N)]
        row_N[: len(samples)] = samples
    return speech_BN
