"""Peak memory of a stretch of code: the allocator's on a GPU, the process's resident peak on Linux."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


@contextmanager
def peak_memory(device: torch.device) -> Iterator[dict[str, float | None]]:
    """Yields a dict whose ``mib`` is, after the block, how far memory rose above its level before the block.

    It stays None where the system cannot tell (not Linux, or the kernel refuses to reset the peak).
    """
    result: dict[str, float | None] = {"mib": None}
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield result
        torch.cuda.synchronize(device)
        result["mib"] = (torch.cuda.max_memory_allocated(device) - before) / 2**20
        return
    resettable = _reset_resident_peak()
    kib = _status("VmRSS")
    yield result
    peak = _status("VmHWM")
    if resettable and kib is not None and peak is not None:
        result["mib"] = (peak - kib) / 1024


def _reset_resident_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")  # 5: reset VmHWM to the current resident size
    except OSError:
        return False
    return True


def _status(name: str) -> int | None:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None
