"""What a run does on the device: kernels, their time, and where the host waits for it."""

from __future__ import annotations

import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

OURS = ("/localgp/", "/espnet")
ROOT = str(Path(__file__).resolve().parents[2]) + "/"


@contextmanager
def waits() -> Iterator[Counter[str]]:
    """Counts the calls at which the host waits for the device, by the line of ours that made them."""
    found: Counter[str] = Counter()

    def note(message: Any, *_: Any, **__: Any) -> None:
        if "synchronizing" in str(message):
            found[_line_of_ours()] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")


def count(run: Callable[[], Any]) -> dict[str, Any]:
    """``launches``, ``kernel_ms`` (their times added up), ``copies``, ``waits``, ``longest`` (of the kernels, by total
    time: name, milliseconds, calls) and ``waits_at`` of one run; run it before to leave out what is made once."""
    torch.cuda.synchronize()
    with waits() as found:
        run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    milliseconds: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    copies = 0
    for event in profiler.events() or []:
        if event.device_type != torch.autograd.DeviceType.CUDA or event.is_user_annotation:
            continue
        if event.name.startswith(("Memcpy", "Memset")):
            copies += 1
        else:
            calls[event.name] += 1
            milliseconds[event.name] += event.device_time_total / 1e3
    return {
        "launches": sum(calls.values()),
        "kernel_ms": round(sum(milliseconds.values()), 3),
        "copies": copies,
        "waits": sum(found.values()),
        "waits_at": dict(found.most_common(12)),
        "longest": [[name[:90], round(ms, 3), calls[name]] for name, ms in milliseconds.most_common(12)],
    }


def _line_of_ours() -> str:
    for frame in reversed(traceback.extract_stack(sys._getframe(2))):
        if any(part in frame.filename for part in OURS):
            name = frame.filename.removeprefix(ROOT).split("site-packages/")[-1]
            return f"{name}:{frame.lineno}"
    return "elsewhere"
