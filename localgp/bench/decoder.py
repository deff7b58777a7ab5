"""Seconds of the decoder: ours against ESPnet's, gated against dense, paired in one run.

Every row compares runs that alternate, and gives the median of their ratios, so that a machine that is slow for
a while is slow for both. Random encoder output stands in for speech: neither decoder looks at what it says. (What
trained gates skip does: see `bench_learnt_decoder`.)

Shape legend: B utterances, N samples, T frames, D model size, Q sequences.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from localgp.backbones.base import Backbone
from localgp.bench.encoder import saved_share
from localgp.bench.harness import peak_mib, timed
from localgp.bench.steps import PATTERNS, STEP_DTYPES, StepBench, endless, random_gates
from localgp.corpora.rows import Task
from localgp.decoder.cached import CachedDecoder
from localgp.gates.cost import gates_cost
from localgp.model import GatedS2T
from localgp.search.beam import BeamSearch, Hypothesis
from localgp.search.options import DecodeOptions

STEP = "step_time_ratio_vs_dense"
PEAK = 8.0  # random output layers are flat; this far apart, the best are no matter of rounding


def bench_decoder(
    backbone: Backbone,
    *,
    name: str,
    utterances: Sequence[int] = (1, 8),
    beam: int = 5,
    steps: int = 60,
    ctc_weights: Sequence[float] = (0.0, 0.3),
    skipped: Sequence[float] = (0.3, 0.5, 0.7),
    patterns: Sequence[str] = PATTERNS,
    dtypes: Sequence[str] = ("fp32",),
    frames: int = 749,
    left_out: float = 0.7,
    repeats: int = 3,
    espnet_repeats: int = 1,
    seed: int = 0,
    progress: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Times the beam search of a model with random weights.

    Args:
        backbone: Its decoder and CTC are timed on the device they are on.
        name: For the rows.
        utterances: Batch sizes. ESPnet decodes one utterance at a time, so it is timed on one, and a batch of
            n is compared with n times that.
        beam: Beam size.
        steps: Tokens of every output; no hypothesis ends earlier.
        ctc_weights: Weights of the CTC score.
        skipped: Shares of modules that random gates skip, for every module, layer and token by itself.
        patterns: Whether an utterance's hypotheses are decided on each by itself or together, of
            `localgp.bench.steps.PATTERNS`.
        dtypes: ``fp32``, ``bf16``, ``int8``. ESPnet runs in the same type, and not at all beside 8 bits.
        frames: Encoder frames of an utterance; 749 are 30 s.
        left_out: Share of the frames that the decoder is not shown, of rows ``kept``; 0 for none.
        repeats: Alternating runs of ours against ours.
        espnet_repeats: Alternating runs of ESPnet against ours; each takes ESPnet's time.
        seed: Of inputs and gates.
        progress: Called with a line after each row.

    Returns:
        Rows: without gates, ``speedup_vs_espnet`` (in utterances per second) and ``identical_hypotheses``;
        with gates, those of `localgp.bench.steps.StepBench`; on a CPU, a step by part, dense and with the
        first of the gates.
    """
    rows = []
    device = backbone.device
    tokens = backbone.tokenizer
    primer = [*tokens.start, *tokens.prompt(tokens.languages[0], tokens.languages[0])]
    generator = torch.Generator().manual_seed(seed)
    memory = torch.randn(max(utterances), frames, backbone.shape.size, generator=generator).to(device)
    with endless(backbone, PEAK):
        for kind in dtypes:
            dense = CachedDecoder(backbone, dtype=STEP_DTYPES[kind])
            # Others are timed on their own (`localgp.bench.peers`)
            for ctc_weight in () if backbone.peers or kind == "int8" else ctc_weights:
                options = DecodeOptions(beam=beam, ctc_weight=ctc_weight, maxlenratio=-steps)
                search = BeamSearch(backbone, options, dense)
                reference = backbone.reference_search(options, STEP_DTYPES[kind])
                for count in utterances:
                    compared = _against_espnet(search, reference, memory[:count], primer, espnet_repeats)
                    row = make_row("dense", name, kind, count, options, frames)
                    rows.append(row | {"steps": steps} | compared)
                    progress(describe(rows[-1]))
            bench = StepBench(backbone, dense, beam, steps, repeats)
            if skipped and patterns and device.type == "cpu":
                gates = random_gates(skipped[0], seed, patterns[0])
                for count in utterances:
                    row = make_row("profile", name, kind, count, DecodeOptions(beam=beam), frames)
                    row |= {"steps": steps, "skipped": skipped[0], "decided_per": patterns[0]}
                    rows += [row | part for part in bench.profile(memory[:count], [primer] * count, gates)]
            if left_out and device.type == "cpu":
                for count in utterances:
                    row = make_row("kept", name, kind, count, DecodeOptions(beam=beam), frames) | {
                        "steps": steps
                    }
                    rows.append(row | bench.with_fewer_frames(memory[:count], [primer] * count, left_out))
            for share in skipped:
                for pattern in patterns:
                    gates = random_gates(share, seed, pattern)
                    for count in utterances:
                        found = bench.against_dense(memory[:count], [primer] * count, gates)
                        row = make_row("pruned", name, kind, count, DecodeOptions(beam=beam), frames)
                        row |= {"steps": steps, "decided_per": pattern} | found | {"skipped": share}
                        rows.append(row | saved_share(row, STEP))
                        progress(describe(rows[-1]))
    return rows


@torch.no_grad()
def bench_learnt_decoder(
    model: GatedS2T,
    speech_BN: Tensor,
    lengths_B: Tensor,
    contexts: dict[str, Tensor],
    tasks: Sequence[Task],
    *,
    backbone: str,
    utterances: Sequence[int] = (1, 8),
    beam: int = 5,
    steps: int = 60,
    dtype: str = "fp32",
    repeats: int = 3,
) -> list[dict[str, Any]]:
    """Steps of trained gates on real speech against the same decoder without gates.

    Both write ``steps`` tokens, so that they differ in nothing but what runs.

    Args:
        model: With trained decoder gates, in eval mode.
        speech_BN, lengths_B, contexts: Of padded utterances, as `localgp.model.GatedS2T.encode` takes them.
        tasks: One for each utterance, in their order.
        backbone: Name for the rows, with the run's.
        utterances: Batch sizes, of the first utterances.
        dtype: Of the decoder.
    """
    encoded = model.packed().encode(speech_BN, lengths_B, contexts)
    tokenizer = model.backbone.tokenizer
    prompts = [tokenizer.prompt(task.source, task.target) for task in tasks]
    primers = [[*tokenizer.start, *prompt] for prompt in prompts]
    prompt_Q2 = torch.tensor([prompt[:2] for prompt in prompts], device=speech_BN.device)
    owner_Q = torch.arange(len(tasks), device=speech_BN.device)
    gates = model.step_gates(encoded, owner_Q, [task.name for task in tasks], prompt_Q2)
    assert gates is not None
    cost = gates_cost(model.decoder_policy, steps, decoder=True)
    rows = []
    with endless(model.backbone):
        dense = CachedDecoder(model.backbone, dtype=STEP_DTYPES[dtype])
        bench = StepBench(model.backbone, dense, beam, steps, repeats)
        for count in utterances:
            found = bench.against_dense(encoded.x[:count], primers[:count], gates, cost)
            frames = encoded.x.shape[1]
            row = make_row("learnt", backbone, dtype, count, DecodeOptions(beam=beam), frames)
            rows.append(
                row | {"steps": steps, "decided_per": "hypothesis"} | found | saved_share(row | found, STEP)
            )
    return rows


def _against_espnet(
    search: BeamSearch,
    espnet: Callable[[Tensor, list[int]], list[int]],
    memory_BTD: Tensor,
    primer: list[int],
    repeats: int,
) -> dict[str, Any]:
    count, frames = memory_BTD.shape[:2]
    lengths_B = torch.full((count,), frames, device=memory_BTD.device)

    def ours() -> list[list[Hypothesis]]:
        return search(memory_BTD, lengths_B, [primer] * count)

    ours()  # the first run makes oneDNN's kernels
    ratios, identical = [], True
    seconds, espnet_seconds = [], []
    for repeat in range(repeats):
        u = repeat % count
        theirs_s, theirs = timed(functools.partial(espnet, memory_BTD[u], primer), memory_BTD.device)
        ours_s, found = timed(ours, memory_BTD.device)
        identical &= found[u][0].tokens == theirs
        ratios.append(count * theirs_s / ours_s)
        seconds.append(ours_s)
        espnet_seconds.append(theirs_s)
    return {
        "speedup_vs_espnet": round(statistics.median(ratios), 2),
        "identical_hypotheses": identical,
        "seconds": round(statistics.median(seconds), 4),
        "espnet_seconds_per_utterance": round(statistics.median(espnet_seconds), 4),
        "flop_ratio": 1.0,
        "peak_mib": peak_mib(ours, memory_BTD.device),
    }


def make_row(
    measure: str, backbone: str, dtype: str, utterances: int, options: DecodeOptions, frames: int
) -> dict[str, Any]:
    """The keys that every row has; None where a figure does not apply.

    ``flop_ratio``: FLOPs of the steps over those of the dense decoder's.
    """
    return {
        "measure": measure,
        "backbone": backbone,
        "dtype": dtype,
        "utterances": utterances,
        "frames": frames,
        "beam": options.beam,
        "steps": None,
        "ctc_weight": options.ctc_weight,
        "skipped": 0.0,
        "decided_per": None,
        "speedup_vs_espnet": None,
        "identical_hypotheses": None,
        "flop_ratio": None,
        "step_time_ratio_vs_dense": None,
        "peak_mib": None,
    }


def describe(row: dict[str, Any]) -> str:
    what = f"{row['measure']} {row['backbone']} {row['dtype']} x{row['utterances']} ctc {row['ctc_weight']}"
    if row["speedup_vs_espnet"] is not None:
        same = "identical" if row["identical_hypotheses"] else "other hypotheses"
        return f"{what}: {row['speedup_vs_espnet']} x ESPnet, {same} ({row['peak_mib']} MiB)"
    saved = f"FLOPs {row['flop_ratio']}, {row['peak_mib']} MiB"
    return f"{what}, {row['skipped']:.0%} skipped per {row['decided_per']}: {row[STEP]} of dense ({saved})"
