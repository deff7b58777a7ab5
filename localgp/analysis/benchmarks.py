"""Benchmarks stored as ``<exp_dir>/bench/<name>.json``: what ``localgp.bench`` and ``compare_with_espnet.py`` write."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localgp.errors import ConfigError

COMMANDS = {
    name: f"python -m localgp.bench bench={name}" for name in ("encoder", "decoder", "training", "runs")
} | {"espnet_agreement": "python scripts/compare_with_espnet.py --utterances 200"}


@dataclass(frozen=True)
class Benchmark:
    """Attributes:
    name: As ``bench=`` takes it.
    machine: What it was measured on, as a line.
    rows: Of its table, a mapping each.
    goals: Promised speeds and whether they are met; empty where it has none.
    commit: Of the code that was measured.
    command: What measured it.
    """

    name: str
    machine: str
    rows: list[dict[str, Any]]
    goals: list[dict[str, Any]]
    commit: str
    command: str

    def runs_of(self, corpus: str, backbone: str) -> dict[str, dict[str, Any]]:
        """Of ``bench=runs``: run name to its row, of one corpus and backbone."""
        return {
            row["run"]: row
            for row in self.rows
            if (row.get("corpus"), row.get("backbone")) == (corpus, backbone)
        }


def read_benchmarks(exp_dir: Path) -> dict[str, Benchmark]:
    """By the file's name, in the order of `COMMANDS` and then others (``bench.save_as``); what has not been measured is
    not there.

    Raises:
        ConfigError: A file that ``localgp.bench`` did not write.
    """
    found = {path.stem: _read(path) for path in sorted((exp_dir / "bench").glob("*.json"))}
    return dict(sorted(found.items(), key=lambda item: (*COMMANDS, item[0]).index(item[0])))


def of_kind(found: Mapping[str, Benchmark], name: str) -> list[Benchmark]:
    """All that measured the same: the one stored under its own name first, then those with other settings."""
    return sorted((b for b in found.values() if b.name == name), key=lambda b: b is not found.get(name))


def _read(path: Path) -> Benchmark:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = [dict(row) for row in found["rows"]]
        goals = [dict(goal) for goal in found.get("goals", [])]
        if any(not {"goal", "value", "limit", "sense", "met"} <= goal.keys() for goal in goals):
            raise KeyError("goals")
        if path.stem == "runs" and any("run" not in row for row in rows):
            raise KeyError("run")
        return Benchmark(
            str(found["bench"]),
            machine_line(found["machine"]),
            rows,
            goals,
            str(found.get("commit", "unknown")),
            str(found.get("command", COMMANDS.get(str(found["bench"]), "python -m localgp.bench"))),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} is not what {COMMANDS.get(path.stem, 'python -m localgp.bench')} writes ({error!r}); write it "
            "again or remove it"
        ) from error


def machine_line(machine: Any) -> str:
    """
    Example:
        >>> machine_line({"cpu": "A", "cores": 2, "threads": 1, "capability": "AVX2", "gpu": None, "torch": "2.12"})
        'A (AVX2), 1 thread of 2 cores, PyTorch 2.12'
    """
    if not isinstance(machine, Mapping):
        return str(machine)
    threads, cores = machine.get("threads", "?"), machine.get("cores", "?")
    parts = [
        f"{machine.get('cpu', 'unknown CPU')} ({machine.get('capability', '?')})",
        f"{threads} thread{'' if threads == 1 else 's'} of {cores} core{'' if cores == 1 else 's'}",
        *([str(machine["gpu"])] if machine.get("gpu") else []),
        f"PyTorch {machine.get('torch', '?')}",
    ]
    return ", ".join(parts)
