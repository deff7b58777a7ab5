"""Runs that alternate, so that a machine that is slow for a while is slow for all of them."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8").splitlines()
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        name = models[0] if models else name
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": gpu,
        "torch": torch.__version__,
    }


@dataclass(frozen=True)
class Paired:
    """Seconds of runs that took turns.

    Attributes:
        seconds: Name of a run to its seconds in every round.
    """

    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratio(self, over: str, under: str) -> float:
        """Median over the rounds of the one's time over the other's.

        Examples:
            >>> Paired({"ours": [1.0, 2.0, 9.0], "theirs": [2.0, 4.0, 6.0]}).ratio("ours", "theirs")
            0.5
        """
        return statistics.median(a / b for a, b in zip(self.seconds[over], self.seconds[under], strict=True))


def paired(
    runs: Mapping[str, Callable[[], Any]], repeats: int, device: torch.device, *, warmup: int = 1
) -> Paired:
    """Times every run ``repeats`` times, in turns; CUDA by events on the stream, anything else by the clock.

    Every round begins with the run after the one that began the last, so that none has always the same one before it.

    Args:
        warmup: Rounds before that are not counted: the first run makes kernels and lays weights out.
    """
    for _ in range(warmup):
        for run in runs.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for turn in range(repeats):
        begin = turn % len(names) if names else 0
        for name in names[begin:] + names[:begin]:
            seconds[name].append(timed(runs[name], device)[0])
    return Paired(seconds)


def timed(run: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds, on CUDA by events on the stream, and the result."""
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        begin.record()
        result = run()
        end.record()
        torch.cuda.synchronize(device)
        return begin.elapsed_time(end) / 1e3, result
    began = time.perf_counter()
    result = run()
    return time.perf_counter() - began, result


def peak_mib(run: Callable[[], Any], device: torch.device) -> float:
    """MiB of tensors that a run holds at most beyond those that were there before it.

    On CUDA the caching allocator's count; on a CPU a running sum over the allocations and releases that the profiler
    records, in a run of its own. (Resident memory would say little: the C library hands warm pages out again.)
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return round((torch.cuda.max_memory_allocated(device) - before) / 2**20, 3)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        run()
    recorded = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in recorded if e.name() == "[memory]")
    return round(max(accumulate((nbytes for _, nbytes in changes), initial=0)) / 2**20, 3)
