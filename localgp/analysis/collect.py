"""Everything under ``exp/``: evaluated runs, grouped over their seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localgp.errors import CheckpointError


@dataclass(frozen=True)
class Evaluated:
    """One metrics.json and where it lies."""

    path: Path
    corpus: str
    backbone: str
    name: str
    seed: int
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Group:
    """The seeds of one experiment on one part of one corpus."""

    name: str
    runs: tuple[Evaluated, ...]

    def values(self, *keys: str) -> list[float]:
        """The figure at ``metrics[key][key]...`` of every seed that has it."""
        found = []
        for run in self.runs:
            value: Any = run.metrics
            for key in keys:
                value = value.get(key) if isinstance(value, dict) else None
            if isinstance(value, int | float):
                found.append(float(value))
        return found

    def show(self, *keys: str, digits: int = 1, scale: float = 1.0) -> str:
        """Mean, and the standard deviation where there are several seeds; ``-`` where there is no figure."""
        values = [scale * v for v in self.values(*keys)]
        if not values:
            return "-"
        mean = f"{statistics.mean(values):.{digits}f}"
        return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def collect(exp_dir: Path) -> list[Evaluated]:
    """Raises:
    CheckpointError: If nothing under ``exp_dir`` has been evaluated, or a metrics.json cannot be read.
    """
    found = []
    for path in sorted(exp_dir.glob("*/*/*/seed*/metrics.json")):
        corpus, backbone, name, seed = path.parts[-5:-1]
        try:
            metrics = json.loads(path.read_text(encoding="utf-8"))
            found.append(
                Evaluated(path.parent, corpus, backbone, name, int(seed.removeprefix("seed")), metrics)
            )
        except ValueError as error:
            raise CheckpointError(
                f"{path} is not a metrics.json ({error}); evaluate that run again"
            ) from error
    if not found:
        raise CheckpointError(
            f"no evaluated run under {exp_dir}; train and evaluate one: python -m localgp.train conf=row05, then "
            "python -m localgp.evaluate conf=row05"
        )
    return found


def data_label(metrics: dict[str, Any]) -> str:
    """What was scored, so that scores on a part never stand beside scores on the whole."""
    data = metrics["data"]
    part = "whole" if data["whole_split"] else "part of the"
    return f"{data['corpus']}, {part} {data['split']} set, {data['utterances']} utterances"


def group(runs: Sequence[Evaluated]) -> dict[tuple[str, str], list[Group]]:
    """(data label, backbone) to groups, in the order of their names."""
    tables: dict[tuple[str, str], dict[str, list[Evaluated]]] = {}
    for run in runs:
        table = tables.setdefault((data_label(run.metrics), run.backbone), {})
        table.setdefault(run.name, []).append(run)
    return {
        key: [Group(name, tuple(members)) for name, members in sorted(table.items(), key=_row_first)]
        for key, table in sorted(tables.items())
    }


def _row_first(item: tuple[str, Any]) -> tuple[bool, str]:
    return (not item[0].startswith("row"), item[0])
