"""Where a decoding step's time goes, and what would be the least of it.

Methods are timed by wrapping them while a profile is taken, so that they cost nothing otherwise. On a CPU only: a GPU
is still at work when a method returns.

Shape legend: L layers, D model size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from localgp.backbones.cost import DecoderCost
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
    with _clock() as clock:
        run(None if gates is None else clock.wrapped(gates, "gates"))
    seconds = {part: clock.seconds.get(part, 0.0) / clock.steps for part in PARTS}
    seconds["source_attention"] -= seconds["source_reading"]
    seconds["rest"] = clock.seconds["step"] / clock.steps - sum(seconds.values())
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


class _Clock:
    """Seconds by part, counted inside of steps alone: what is done once per search is not."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.steps = 0
        self._inside = False

    def wrapped(self, method: Callable[..., Any], part: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if not self._inside:
                return method(*args, **kwargs)
            began = time.perf_counter()
            result = method(*args, **kwargs)
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - began
            return result

        return timed

    def step(self, method: Callable[..., Any]) -> Callable[..., Any]:
        timed = self.wrapped(method, "step")

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.steps += 1
            self._inside = True
            try:
                return timed(*args, **kwargs)
            finally:
                self._inside = False

        return counted


@contextmanager
def _clock() -> Iterator[_Clock]:
    clock = _Clock()
    own = [(kind, name, getattr(kind, name)) for kind, name, _ in _METHODS]
    step = Search._step
    for (kind, name, method), (_, _, part) in zip(own, _METHODS, strict=True):
        setattr(kind, name, clock.wrapped(method, part))
    Search._step = clock.step(step)  # type: ignore[method-assign]
    try:
        yield clock
    finally:
        Search._step = step  # type: ignore[method-assign]
        for kind, name, method in own:
            setattr(kind, name, method)
