"""Seconds of encoder and search against what else computes the same weights, paired in one run.

The encoder is given noise: no encoder's time depends on what is said. The search is given sentences that eSpeak speaks,
so that hypotheses end where a model with its real weights ends them, and can be compared.

Shape legend: B utterances, S feature frames, F mel bins, T encoder frames, D model size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from localgp.backbones.base import Backbone
from localgp.bench.harness import Paired, paired
from localgp.bench.steps import STEP_DTYPES, endless
from localgp.decoder.cached import CachedDecoder
from localgp.encoder.packed import PackedEncoder
from localgp.search.beam import BeamSearch
from localgp.search.options import DecodeOptions

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


def bench_encoder_peers(
    backbone: Backbone,
    *,
    name: str,
    peers: Sequence[str],
    batches: Sequence[int],
    seconds: float,
    repeats: int,
    progress: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Rows ``peer encoder``: ours, dense and packed in fp32, against each peer's."""
    packed, device = PackedEncoder(backbone), backbone.device
    frames = backbone.timeline.feature_frames(round(seconds * backbone.sample_rate))
    generator = torch.Generator().manual_seed(0)
    feats_BSF = torch.randn(max(batches), frames, backbone.shape.mels, generator=generator).to(device)
    rows = []
    for peer in peers:
        other = backbone.peer(peer)
        for batch in batches:
            given, lengths = feats_BSF[:batch], [frames] * batch
            ours, theirs = partial(_encode, packed, given, lengths), partial(other.encode, given)
            times = paired({"ours": ours, "peer": theirs}, repeats, device)
            own, their = ours().cpu(), theirs().flatten(0, 1).cpu()
            row = _row("peer encoder", name, peer, batch, times.median("ours"), times.median("peer"))
            row["time_ratio"] = round(times.ratio("ours", "peer"), 4)
            row["relative_error"] = float(f"{float((own - their).abs().max() / their.abs().max()):.2g}")
            rows.append(row)
            progress(_described(row, f"{row['time_ratio']} of its time"))
    return rows


def bench_decoder_peers(
    backbone: Backbone,
    *,
    name: str,
    peers: Sequence[str],
    utterances: Sequence[int],
    beams: Sequence[int],
    repeats: int,
    progress: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Rows ``peer search``: our search with `transformers`' ranking against each peer's, on the same encoder output,
    with how many hypotheses are identical."""
    if not peers:
        return []
    device, tokens = backbone.device, backbone.tokenizer
    memory_BTD = _encoded(backbone, max(utterances))
    primer = [*tokens.start, *tokens.prompt(LANGUAGE, LANGUAGE)]
    rows = []
    for beam in beams:
        search = BeamSearch(backbone, DecodeOptions(beam=beam, ranking="transformers"), dtype=torch.float32)
        for peer in peers:
            other = backbone.peer(peer)
            for count in utterances:
                memory, primers = memory_BTD[:count], [primer] * count
                lengths_B = torch.full((count,), memory.shape[1], device=device)
                ours = partial(_write, search, memory, lengths_B, primers, tokens.eos)
                theirs = other.search(memory, primers, beam)
                times = paired({"ours": ours, "peer": theirs}, repeats, device)
                pairs = list(zip(ours(), theirs(), strict=True))
                row = _row("peer search", name, peer, count, times.median("ours"), times.median("peer"))
                row |= {
                    "beam": beam,
                    "speed_ratio": round(times.ratio("peer", "ours"), 3),
                    "tokens": round(float(np.mean([len(a) for a, _ in pairs])), 1),
                    "identical": sum(a == b for a, b in pairs),
                }
                rows.append(row)
                same = f"{row['identical']} of {count} hypotheses the same"
                progress(_described(row, f"beam {beam}, {row['speed_ratio']} x its speed, {same}"))
    return rows


STEP_PEERS = {"fp32": "float32", "int8": "int8"}  # our arithmetic, and CTranslate2's


def bench_step_peers(
    backbone: Backbone,
    *,
    name: str,
    utterances: Sequence[int],
    beam: int,
    steps: int,
    dtypes: Sequence[str],
    repeats: int,
    frames: int = 749,
    progress: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Rows ``peer step``: a step of our search against one of CTranslate2's, of a decoder of equal size with random
    weights, in the same arithmetic. A search of ``steps`` tokens less one of a single token, so that what is done once
    is not counted."""
    from localgp.backbones.whisper.peers import EqualSteps

    parts, device = backbone.branches("decoder", 0), backbone.device
    ffn: Any = parts["ffn"].linears[0]
    generator = torch.Generator().manual_seed(0)
    memory_BTD = torch.randn(max(utterances), frames, backbone.shape.size, generator=generator).to(device)
    tokens = backbone.tokenizer
    primer = [*tokens.start, *tokens.prompt(tokens.languages[0], tokens.languages[0])]
    rows = []
    for dtype in dtypes:
        other = EqualSteps(
            size=backbone.shape.size,
            layers=backbone.shape.decoder_layers,
            heads=parts["self_attention"].heads,
            units=ffn.out_features,
            vocabulary=backbone.shape.vocabulary,
            frames=frames,
            arithmetic=STEP_PEERS[dtype],
        )
        with endless(backbone):
            decoder = CachedDecoder(backbone, dtype=STEP_DTYPES[dtype])
            for count in utterances:
                memory, lengths_B = memory_BTD[:count], torch.full((count,), frames, device=device)
                runs: dict[str, Callable[[], Any]] = {}
                for long in (1, steps):
                    options = DecodeOptions(beam=beam, maxlenratio=-long)
                    search = BeamSearch(backbone, options, decoder)
                    runs[f"ours {long}"] = partial(search, memory, lengths_B, [primer] * count)
                    runs[f"peer {long}"] = other.search(memory, beam, long)
                written = {long: len(runs[f"peer {long}"]()[0]) for long in (1, steps)}
                times = paired(runs, repeats, device).seconds
                per_step = {
                    who: [
                        (whole - first) / count_of
                        for whole, first in zip(times[f"{who} {steps}"], times[f"{who} 1"], strict=True)
                    ]
                    for who, count_of in (("ours", steps - 1), ("peer", written[steps] - written[1]))
                }
                found = Paired(per_step)
                row = _row(
                    "peer step", name, "ctranslate2", count, found.median("ours"), found.median("peer")
                )
                row |= {"dtype": dtype, "beam": beam, "time_ratio": round(found.ratio("ours", "peer"), 4)}
                rows.append(row)
                progress(_described(row, f"{row['time_ratio']} of its time a step, {dtype}"))
    return rows


def _encode(packed: PackedEncoder, feats_BSF: Tensor, lengths: list[int]) -> Tensor:
    return packed(feats_BSF, lengths).x


def _write(
    search: BeamSearch, memory_BTD: Tensor, lengths_B: Tensor, primers: list[list[int]], end: int
) -> list[list[int]]:
    found = search(memory_BTD, lengths_B, primers)
    texts = [nbest[0].tokens[len(primer) :] for nbest, primer in zip(found, primers, strict=True)]
    return [ids[: ids.index(end)] if end in ids else ids for ids in texts]


def _row(
    measure: str, name: str, peer: str, batch: int, seconds: float, against_seconds: float
) -> dict[str, Any]:
    return {
        "measure": measure,
        "backbone": name,
        "dtype": "fp32",
        "batch": batch,
        "seconds": round(seconds, 5),
        "against": peer,
        "against_seconds": round(against_seconds, 5),
    }


def _described(row: dict[str, Any], figures: str) -> str:
    against = f"{row['against']} {row['against_seconds']:.3f} s"
    return f"{row['measure']} {row['backbone']} x{row['batch']}: {row['seconds']:.3f} s, {against}: {figures}"


def _encoded(backbone: Backbone, count: int) -> Tensor:
    """Of spoken sentences, in full windows, (B, T, D)."""
    from localgp.corpora.mini.utterance import resample
    from localgp.corpora.mini.voices import ESPEAK_RATE, speak

    speech_BN = torch.zeros(count, backbone.samples)
    for b, row_N in enumerate(speech_BN):
        spoken = speak(SENTENCES[b % len(SENTENCES)], "en-us+f3", 150, 50).samples
        samples = torch.from_numpy(resample(spoken, ESPEAK_RATE, backbone.sample_rate)).float()[
            : backbone.samples
        ]
        row_N[: len(samples)] = samples
    lengths_B = torch.full((count,), backbone.samples)
    feats_BSF, frames_B = backbone.features(speech_BN.to(backbone.device), lengths_B)
    return PackedEncoder(backbone).encode(feats_BSF, frames_B).x
