"""Seconds of the decoder: ours against ESPnet's, gated against dense, paired in one run.

Every row compares runs that alternate, and gives the median of their ratios, so that a machine that is slow for
a while is slow for both. Random encoder output stands in for speech: neither decoder looks at what it says.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from localgp.decoding.beam import BeamSearch, Hypothesis
from localgp.decoding.cached_decoder import MODULES, CachedDecoder, DecoderGates, GateState
from localgp.decoding.options import DecodeOptions

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PEAK = 8.0  # random output layers are flat; this far apart, the best are no matter of rounding. 2^3: undone exactly


def bench_decoder(
    model: Any,
    *,
    backbone: str,
    notimestamps: int,
    first_time: int,
    last_time: int,
    utterances: Sequence[int] = (1, 8),
    beam: int = 5,
    steps: int = 60,
    ctc_weights: Sequence[float] = (0.0, 0.3),
    skipped: Sequence[float] = (0.3, 0.5, 0.7),
    dtypes: Sequence[str] = ("fp32",),
    frames: int = 749,
    repeats: int = 3,
    espnet_repeats: int = 1,
    seed: int = 0,
    progress: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Times the beam search of a model with random weights.

    Args:
        model: ``ESPnetS2TModel``; its decoder and CTC are timed on the device they are on.
        backbone: Name for the rows.
        notimestamps, first_time, last_time: Token ids.
        utterances: Batch sizes. ESPnet decodes one utterance at a time, so it is timed on one, and a batch of
            n is compared with n times that.
        beam: Beam size.
        steps: Tokens of every output; no hypothesis ends earlier.
        ctc_weights: Weights of the CTC score.
        skipped: Shares of modules that random gates skip, for every module, layer and token by itself.
        dtypes: ``fp32``, ``bf16``. ESPnet runs in the same type.
        frames: Encoder frames of an utterance; 749 are 30 s.
        repeats: Alternating runs of ours against ours.
        espnet_repeats: Alternating runs of ESPnet against ours; each takes ESPnet's time.
        seed: Of inputs and gates.
        progress: Called with a line after each row.

    Returns:
        Rows: without gates, ``speedup_vs_espnet`` (in utterances per second) and ``identical_hypotheses``;
        with gates, ``step_time_ratio_vs_dense``.
    """
    rows = []
    device = next(model.decoder.parameters()).device
    tokens: dict[str, Any] = {
        "sos": model.sos,
        "eos": model.eos,
        "notimestamps": notimestamps,
        "first_time": first_time,
        "last_time": last_time,
    }
    ordinary = list(range(last_time + 1, last_time + 3))
    primer = [model.sos, *ordinary, notimestamps]
    generator = torch.Generator().manual_seed(seed)
    size = model.decoder.output_layer.in_features
    memory = torch.randn(max(utterances), frames, size, generator=generator).to(device)
    with _endless(model):
        for name in dtypes:
            dense = CachedDecoder(model.decoder, dtype=DTYPES[name])
            for ctc_weight in ctc_weights:
                options = DecodeOptions(beam=beam, ctc_weight=ctc_weight, maxlenratio=-steps)
                search = BeamSearch(dense, model.ctc, options=options, **tokens)
                reference = _EspnetSearch(model, tokens, options, DTYPES[name])
                for count in utterances:
                    compared = _against_espnet(search, reference, memory[:count], primer, espnet_repeats)
                    rows.append(_row(backbone, name, count, options, steps) | compared | {"frames": frames})
                    progress(_describe(rows[-1]))
            for share in skipped:
                gated = CachedDecoder(model.decoder, random_gates(share, seed), dtype=DTYPES[name])
                for count in utterances:
                    ratio, seconds = _step_ratio(
                        gated, dense, memory[:count], primer, tokens, beam, steps, repeats
                    )
                    options = DecodeOptions(beam=beam, maxlenratio=-steps)
                    rows.append(
                        _row(backbone, name, count, options, steps)
                        | {"skipped": share, "step_time_ratio_vs_dense": ratio, "step_seconds": seconds}
                        | {"frames": frames}
                    )
                    progress(_describe(rows[-1]))
    return rows


def random_gates(share: float, seed: int) -> DecoderGates:
    """Gates that close with probability ``share``, independently for every module, layer and token."""
    generator = torch.Generator().manual_seed(seed)

    def gates(layer: int, x_ND: Tensor, state: GateState) -> dict[str, Tensor]:
        open_ = torch.rand(len(MODULES), x_ND.shape[0], generator=generator) >= share
        return dict(zip(MODULES, open_.to(x_ND.device), strict=True))

    return gates


@contextlib.contextmanager
def _endless(model: Any) -> Iterator[None]:
    """Peaked scores, and no hypothesis that ends before its bound; undone afterwards."""
    output = model.decoder.output_layer
    was_training = model.decoder.training
    kept = output.bias.detach().clone()
    model.eval()
    with torch.no_grad():
        output.weight.mul_(PEAK)
        output.bias[model.eos] = -1e4
    try:
        yield
    finally:
        with torch.no_grad():
            output.weight.div_(PEAK)
            output.bias.copy_(kept)
        model.train(was_training)


class _EspnetSearch:
    """ESPnet's search, set up as its ``Speech2Text`` does."""

    def __init__(
        self, model: Any, tokens: dict[str, Any], options: DecodeOptions, dtype: torch.dtype
    ) -> None:
        from espnet.nets.batch_beam_search import BatchBeamSearch
        from espnet.nets.scorers.ctc import CTCPrefixScorer
        from espnet.nets.scorers.length_bonus import LengthBonus
        from espnet2.bin.s2t_inference import ScoreFilter

        self._options, self._dtype = options, dtype
        decoder, ctc = model.decoder, model.ctc
        if next(decoder.parameters()).dtype != dtype:  # a copy: casting back would not give the weights back
            decoder, ctc = copy.deepcopy(decoder).to(dtype), copy.deepcopy(ctc).to(dtype)
        vocabulary = model.decoder.output_layer.out_features
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


def _against_espnet(
    search: BeamSearch, espnet: _EspnetSearch, memory_BTD: Tensor, primer: list[int], repeats: int
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
        theirs_s, theirs = _timed(functools.partial(espnet, memory_BTD[u], primer), memory_BTD.device)
        ours_s, found = _timed(ours, memory_BTD.device)
        identical &= found[u][0].tokens == theirs
        ratios.append(count * theirs_s / ours_s)
        seconds.append(ours_s)
        espnet_seconds.append(theirs_s)
    return {
        "speedup_vs_espnet": round(statistics.median(ratios), 2),
        "identical_hypotheses": identical,
        "seconds": round(statistics.median(seconds), 4),
        "espnet_seconds_per_utterance": round(statistics.median(espnet_seconds), 4),
    }


def _step_ratio(
    gated: CachedDecoder,
    dense: CachedDecoder,
    memory_BTD: Tensor,
    primer: list[int],
    tokens: dict[str, Any],
    beam: int,
    steps: int,
    repeats: int,
) -> tuple[float, float]:
    """Median ratio of the time a step takes, and the gated one's median seconds.

    A search of ``steps`` tokens less one of a single token, so that what is done once per utterance is not
    counted.
    """
    count, frames = memory_BTD.shape[:2]
    lengths_B = torch.full((count,), frames, device=memory_BTD.device)

    def seconds(decoder: CachedDecoder, length: int) -> float:
        search = BeamSearch(decoder, None, options=DecodeOptions(beam=beam, maxlenratio=-length), **tokens)
        return _timed(lambda: search(memory_BTD, lengths_B, [primer] * count), memory_BTD.device)[0]

    for decoder in (gated, dense):
        seconds(decoder, min(steps, 10))
    pairs = []
    for _ in range(repeats):
        pair = [(seconds(d, steps) - seconds(d, 1)) / max(1, steps - 1) for d in (dense, gated)]
        pairs.append(pair)
    ratio = statistics.median(gated_s / dense_s for dense_s, gated_s in pairs)
    return round(ratio, 4), round(statistics.median(gated_s for _, gated_s in pairs), 5)


def _timed(run: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    result = run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began, result


def _row(backbone: str, dtype: str, utterances: int, options: DecodeOptions, steps: int) -> dict[str, Any]:
    return {
        "backbone": backbone,
        "dtype": dtype,
        "utterances": utterances,
        "beam": options.beam,
        "steps": steps,
        "ctc_weight": options.ctc_weight,
        "skipped": 0.0,
        "speedup_vs_espnet": None,
        "step_time_ratio_vs_dense": None,
        "identical_hypotheses": None,
    }


def _describe(row: dict[str, Any]) -> str:
    what = f"{row['backbone']} {row['dtype']} x{row['utterances']} ctc {row['ctc_weight']}"
    if row["speedup_vs_espnet"] is not None:
        same = "identical" if row["identical_hypotheses"] else "other hypotheses"
        return f"{what}: {row['speedup_vs_espnet']} x ESPnet, {same}"
    return f"{what}, {row['skipped']:.0%} skipped: step time x {row['step_time_ratio_vs_dense']}"
