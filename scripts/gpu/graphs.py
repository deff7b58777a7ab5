"""Whole encodes as one CUDA graph, and steps of a search: nothing but launches, so that a recording can stand for them.

Shape legend: B utterances, S feature frames, T encoder frames, D model size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from gpu.boxed import Found
from gpu.models import local_gates, random_backbone, windows
from gpu.right import relative
from gpu.timings import BATCHES, BF16, compare
from gpu.whole import gated
from localgp.bench.decoder import PEAK
from localgp.bench.steps import endless
from localgp.decoder.cached import CachedDecoder
from localgp.decoder.gates import StepGates
from localgp.encoder.packed import PackedEncoder, PackedGates, PackedOutput
from localgp.search.beam import BeamSearch
from localgp.search.options import DecodeOptions

STEPS = 40


def recorded(run: Callable[[], PackedOutput]) -> tuple[Callable[[], None], PackedOutput]:
    """A replay of what ``run`` does, and where its result will lie."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # compiles kernels, and lays indices out that a recording has to find
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run()
    return graph.replay, output


def graphs(name: str) -> Callable[[Found], None]:
    """Dense and gated, eager and replayed: the same result on new input, and their times."""

    @torch.no_grad()
    def run(found: Found) -> None:
        backbone = random_backbone(name, "cuda")
        packed = PackedEncoder(backbone, BF16)
        for batch in BATCHES:
            feats_BSF, lengths_B = windows(backbone, batch)
            lengths = lengths_B.tolist()
            policies: dict[str, Any] = {
                "dense": None,
                "local 30 %": PackedGates(local_gates(backbone, feats_BSF[:4], lengths_B[:4], 0.3)),
            }
            runs: dict[str, Callable[[], Any]] = {}
            for kind, gates in policies.items():
                runs[kind] = partial(packed, feats_BSF, lengths, gates)
                runs[f"{kind} as a graph"], replayed = recorded(runs[kind])
                feats_BSF.copy_(windows(backbone, batch, seed=1)[0])
                expected = runs[kind]().x.clone()
                runs[f"{kind} as a graph"]()
                found.near(
                    f"{name} x{batch} {kind}: a graph on new input", relative(replayed.x, expected), 1e-6
                )
            for what, figures in compare(runs).items():
                found.time("graph", name, batch, what, **figures)

    return run


def searches(name: str) -> Callable[[Found], None]:
    """Of `STEPS` tokens with a beam of 5, as ever and with steps as graphs: the tokens in fp32, and times in bf16."""

    @torch.no_grad()
    def run(found: Found) -> None:
        backbone = random_backbone(name, "cuda")
        policy = gated(backbone).decoder_policy
        tokens = backbone.tokenizer
        primer = [*tokens.start, *tokens.prompt(tokens.languages[0], tokens.languages[0])]
        with endless(backbone, PEAK):
            for batch in BATCHES:
                memory_BTD = torch.randn(batch, 749, backbone.shape.size, device=backbone.device)
                for dtype in (torch.float32, BF16):
                    runs = {
                        f"{kind}{' as graphs' if fixed else ''}": _search(
                            BeamSearch(
                                backbone,
                                DecodeOptions(beam=5, maxlenratio=-STEPS),
                                CachedDecoder(backbone, dtype=dtype, fixed=fixed),
                            ),
                            memory_BTD,
                            primer,
                            policy if kind == "local" else None,
                        )
                        for kind in ("dense", "local")
                        for fixed in (False, True)
                    }
                    if dtype == BF16:
                        for what, figures in compare(runs, 5).items():
                            found.time("search", name, batch, what, **figures)
                        continue
                    for kind in ("dense", "local"):
                        both = runs[kind](), runs[f"{kind} as graphs"]()
                        same = sum(one[0].tokens == other[0].tokens for one, other in zip(*both, strict=True))
                        # Gates near their threshold may fall to either side
                        enough = batch if kind == "dense" else 0.9 * batch
                        found.true(f"{name} x{batch} {kind}: tokens with graphs", same >= enough, same=same)

    return run


def _search(
    search: BeamSearch, memory_BTD: torch.Tensor, primer: list[int], policy: Any
) -> Callable[[], Any]:
    count, frames = memory_BTD.shape[:2]
    lengths_B = torch.full((count,), frames, device=memory_BTD.device)
    front = {"front": memory_BTD.mean(1, keepdim=True)}
    gates = None if policy is None else StepGates(policy, front)
    return lambda: search(memory_BTD, lengths_B, [primer] * count, gates)
