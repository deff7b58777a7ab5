"""Runs that alternate, so that a machine that is slow for a while is slow for all of them."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any
from unittest.mock import patch

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

    seconds: dict[Any, list[float]]

    def median(self, name: Any) -> float:
        return statistics.median(self.seconds[name])

    def ratio(self, over: Any, under: Any) -> float:
        """Median over the rounds of the one's time over the other's.

        Examples:
            >>> Paired({"ours": [1.0, 2.0, 9.0], "theirs": [2.0, 4.0, 6.0]}).ratio("ours", "theirs")
            0.5
        """
        return statistics.median(a / b for a, b in zip(self.seconds[over], self.seconds[under], strict=True))


def paired(
    runs: Mapping[Any, Callable[[], Any]], repeats: int, device: torch.device, *, warmup: int = 1
) -> Paired:
    """Times every run ``repeats`` times, in turns; CUDA by events on the stream, anything else by the clock.

    Every round begins with the run after the one that began the last, so that none has always the same one before it.

    Args:
        warmup: Rounds before that are not counted: the first run makes kernels and lays weights out.
    """
    for _ in range(warmup):
        for run in runs.values():
            run()
    seconds: dict[Any, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for turn in range(repeats):
        begin = turn % len(names) if names else 0
        for name in names[begin:] + names[:begin]:
            seconds[name].append(timed(runs[name], device)[0])
    return Paired(seconds)


def per_step(
    runs: Mapping[str, Callable[[int], Callable[[], Any]]], steps: int, repeats: int, device: torch.device
) -> Paired:
    """Seconds of a step: of a run of so many less one of a single step, so that what is done once is not counted.

    Args:
        runs: Each takes a number of steps and gives what runs them.
    """
    every = {(name, n): run(n) for name, run in runs.items() for n in (1, steps)}
    times = paired(every, repeats, device).seconds
    return Paired(
        {
            name: [
                (whole - first) / max(1, steps - 1)
                for whole, first in zip(times[name, steps], times[name, 1], strict=True)
            ]
            for name in runs
        }
    )


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


class Clock:
    """Seconds by part of a run, by wrapping what computes the parts, so that they cost nothing otherwise.

    On a CPU only: a GPU is still at work when a method returns.

    Attributes:
        seconds: Of each part; what parts inside of it take is in them.
        counts: Whether it runs.
    """

    def __init__(self, counts: bool = True) -> None:
        self.seconds: dict[str, float] = {}
        self.counts = counts

    def wrapped(self, method: Callable[..., Any], part: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if not self.counts:
                return method(*args, **kwargs)
            began = time.perf_counter()
            result = method(*args, **kwargs)
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - began
            return result

        return timed


@contextmanager
def in_place_of(methods: Iterable[tuple[Any, str, Callable[..., Any]]]) -> Iterator[None]:
    """Other methods of objects or classes, undone afterwards: (owner, name, method)."""
    with ExitStack() as undone:
        for owner, name, method in methods:
            undone.enter_context(patch.object(owner, name, method))
        yield
