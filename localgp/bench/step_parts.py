"""Where a decoding step's time goes, and what would be the least of it.

Shape legend: L layers, D model size.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from localgp.backbones.cost import DecoderCost
from localgp.bench.harness import Clock, in_place_of
from localgp.decoder.cached import CachedDecoder
from localgp.decoder.gates import DecoderGates
from localgp.decoder.source import SharedSource
from localgp.decoder.state import DecoderState
from localgp.search.steps import Search

# A part's time does not have in it what another part takes inside of it
PARTS = ("self_attention", "source_attention", "source_reading", "ffn", "output", "gates", "rest")
_METHODS: tuple[tuple[type, str, str], ...] = (
    (DecoderState, "_grow", "self_attention"),
    (DecoderState, "_attend_own", "self_attention"),
    (DecoderState, "_attend_source", "source_attention"),
    (SharedSource, "attend", "source_reading"),
    (DecoderState, "_feed_forward", "ffn"),
    (CachedDecoder, "logits", "output"),
)
_READ = 1 << 28  # bytes; no cache holds them


def step_seconds(run: Callable[[DecoderGates | None], Any], gates: DecoderGates | None) -> dict[str, float]:
    """Part to seconds of a step, the mean over the steps of a search.

    Args:
        run: Runs a search with given gates.
        gates: Of that search; None for a dense one.
    """
    clock, steps = Clock(counts=False), 0
    own_step = clock.wrapped(Search._step, "step")

    def step(*args: Any, **kwargs: Any) -> Any:
        nonlocal steps
        steps += 1
        clock.counts = True  # inside of steps alone: what is done once per search is not counted
        try:
            return own_step(*args, **kwargs)
        finally:
            clock.counts = False

    parts = [(kind, name, clock.wrapped(getattr(kind, name), part)) for kind, name, part in _METHODS]
    with in_place_of([*parts, (Search, "_step", step)]):
        run(None if gates is None else clock.wrapped(gates, "gates"))
    seconds = {part: clock.seconds.get(part, 0.0) / steps for part in PARTS}
    seconds["source_attention"] -= seconds["source_reading"]
    seconds["rest"] = clock.seconds["step"] / steps - sum(seconds.values())
    return seconds


def step_flops(cost: DecoderCost, rows: int, tokens: int) -> dict[str, float]:
    """Part to the FLOPs of a dense step of ``rows`` hypotheses, at the mean length of outputs of ``tokens``."""
    found = {name: rows * cost.part(name, 1, (tokens + 1) / 2) for name in cost.modules}
    found["source_reading"] = rows * cost.reading()
    found["source_attention"] -= found["source_reading"]
    return found | {"output": rows * cost.output(1)}


def step_bytes(cost: DecoderCost, utterances: int, dtype: torch.dtype) -> dict[str, float]:
    """Part to the bytes that a dense step reads at least: weights once, source keys and values of every utterance."""
    numbers: dict[str, float] = {
        name: sum(layer[name].weights for layer in cost.parts) for name in cost.modules
    }
    numbers |= {"source_reading": utterances * cost.reading(), "output": cost.size * cost.vocabulary}
    return {part: float(count * dtype.itemsize) for part, count in numbers.items()}


def read_rate(repeats: int) -> float:
    """Bytes per second at which a tensor in memory is read."""
    numbers = torch.ones(_READ // 4)
    seconds = []
    for _ in range(2 + 2 * repeats):
        began = time.perf_counter()
        numbers.sum()
        seconds.append(time.perf_counter() - began)
    return _READ / sorted(seconds)[len(seconds) // 2]
