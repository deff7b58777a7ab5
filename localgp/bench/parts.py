"""Where the encoder's time goes: seconds by part, ours and ESPnet's on the same input.

Ours are the ranges that the packed encoder names for PyTorch's profiler; ESPnet's modules are timed by a `Clock`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from localgp.backbones.base import Backbone
from localgp.backbones.cost import EncoderCost
from localgp.bench.harness import Clock, in_place_of, paired
from localgp.kernels.int8 import rows_type
from localgp.kernels.linear import Linear
from localgp.kernels.ragged import RANGE

STEM = "subsampling"
INSIDE = "depthwise"  # convolutions, which are part of other parts


def our_seconds(run: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Part to median seconds of a call of a `PackedEncoder`."""
    run()
    rounds = []
    for _ in range(repeats):
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            run()
        rounds.append(
            {
                event.key.removeprefix(RANGE): event.cpu_time_total / 1e6
                for event in profiler.key_averages()
                if event.key.startswith(RANGE)
            }
        )
    return _medians(rounds)


def parts_of(backbone: Backbone) -> list[str]:
    """What the time of an encoder goes to."""
    return [STEM, *backbone.branches("encoder", 0)]


def reference_seconds(backbone: Backbone, run: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Part to median seconds of a call of the third-party encoder."""
    run()
    rounds = []
    for _ in range(repeats):
        clock = Clock()
        parts = (
            (module, "forward", clock.wrapped(module.forward, part)) for part, module in _modules(backbone)
        )
        with in_place_of(parts):
            run()
        rounds.append(clock.seconds)
    return _medians(rounds)


def product_rate(rows: int, size: int, dtype: torch.dtype, repeats: int) -> float:
    """Multiply-adds per second of one plain product, the FFN's first: what a part's FLOPs can take at best, if
    nothing is left out of them."""
    linear = Linear(torch.randn(4 * size, size), None, dtype)
    x = torch.randn(rows, size).to(rows_type(dtype))
    times = paired({"product": lambda: linear(x)}, 4 * repeats, torch.device("cpu"), warmup=4)
    return rows * size * 4 * size / times.median("product")


def flop_shares(cost: EncoderCost, backbone: Backbone) -> dict[str, float]:
    """Part to its share of the encoder's FLOPs."""
    flops = {STEM: float(cost.stem)} | {name: cost.part(name) for name in backbone.branches("encoder", 0)}
    inside: list[Any] = [module for part, module in _modules(backbone) if part == INSIDE]
    flops[INSIDE] = cost.frames * sum(module.weight.numel() for module in inside)
    return {name: value / cost.encoder() for name, value in flops.items()}


def _modules(backbone: Backbone) -> Iterator[tuple[str, nn.Module]]:
    for module in backbone.stem:
        yield STEM, module
    for index in range(backbone.shape.encoder_layers):
        for name, part in backbone.branches("encoder", index).items():
            if part.norm is not None:
                yield name, part.norm
            for module in part.linears if part.module is None else (part.module,):
                yield name, module
            for module in part.linears:
                if isinstance(module, nn.Conv1d):
                    yield INSIDE, module


def _medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(one.get(name, 0.0) for one in rounds) for name in rounds[0]}
