"""Whole encodes as one CUDA graph: nothing but launches, so that a recording can stand for them.

Shape legend: B utterances, S feature frames.
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
from localgp.encoder.packed import PackedEncoder, PackedGates, PackedOutput


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
