"""Where the encoder's time goes: seconds by part, ours and ESPnet's on the same input.

Ours are the ranges that the packed encoder names for PyTorch's profiler; ESPnet's modules are timed by hooks. On a CPU
only: a GPU is still at work when a module returns.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from localgp.evaluation.flops import EncoderCost
from localgp.evaluation.timing import paired
from localgp.kernels.linear import Linear
from localgp.kernels.ragged import RANGE

PARTS = ("subsampling", "ffn1", "attention", "cgmlp", "merge", "ffn2", "norm")
INSIDE = "depthwise"  # both depthwise convolutions; part of cgmlp and of merge


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


def espnet_seconds(encoder: Any, run: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Part to median seconds of a call of ESPnet's encoder."""
    run()
    rounds = []
    for _ in range(repeats):
        with _timed(_modules(encoder)) as seconds:
            run()
        rounds.append(dict(seconds))
    return _medians(rounds)


def product_rate(rows: int, size: int, dtype: torch.dtype, repeats: int) -> float:
    """Multiply-adds per second of one plain product, the FFN's first: what a part's FLOPs can take at best, if
    nothing is left out of them."""
    linear = Linear(torch.randn(4 * size, size), None, dtype)
    x = torch.randn(rows, size).to(dtype)
    times = paired({"product": lambda: linear(x)}, 4 * repeats, torch.device("cpu"), warmup=4)
    return rows * size * 4 * size / times.median("product")


def flop_shares(cost: EncoderCost, feature_frames: int) -> dict[str, float]:
    """Part to its share of the encoder's FLOPs."""
    frames, layers = cost.frames, cost.layers
    total = cost.encoder(feature_frames)
    norm = frames * 5 * cost.size * layers
    flops = {name: layers * cost.module_on(name, frames) for name in ("ffn1", "attention", "cgmlp", "ffn2")}
    flops |= {
        "subsampling": cost.subsampling(feature_frames),
        "merge": layers * cost.merge() - norm,
        "norm": norm,
    }
    kernels = cost.cgmlp // 2 * cost.cgmlp_kernel + 2 * cost.size * cost.merge_kernel
    flops[INSIDE] = layers * frames * kernels
    return {name: value / total for name, value in flops.items()}


def _modules(encoder: Any) -> Iterator[tuple[str, nn.Module]]:
    yield "subsampling", encoder.embed
    for layer in encoder.encoders:
        yield "ffn1", layer.norm_ff_macaron
        yield "ffn1", layer.feed_forward_macaron
        yield "attention", layer.norm_mha
        yield "attention", layer.attn
        yield "cgmlp", layer.norm_mlp
        yield "cgmlp", layer.cgmlp
        yield "merge", layer.depthwise_conv_fusion
        yield "merge", layer.merge_proj
        yield "ffn2", layer.norm_ff
        yield "ffn2", layer.feed_forward
        yield "norm", layer.norm_final
        yield INSIDE, layer.cgmlp.csgu.conv
        yield INSIDE, layer.depthwise_conv_fusion


@contextmanager
def _timed(modules: Iterator[tuple[str, nn.Module]]) -> Iterator[dict[str, float]]:
    seconds: dict[str, float] = defaultdict(float)
    handles = []
    for part, module in modules:
        started: list[float] = []

        def begin(module: nn.Module, args: Any, started: list[float] = started) -> None:
            started.append(time.perf_counter())

        def end(
            module: nn.Module, args: Any, output: Any, part: str = part, started: list[float] = started
        ) -> None:
            seconds[part] += time.perf_counter() - started.pop()

        handles += [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
    try:
        yield seconds
    finally:
        for handle in handles:
            handle.remove()


def _medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(one.get(name, 0.0) for one in rounds) for name in rounds[0]}
