"""Everything under ``exp/``: evaluated runs, grouped over their seeds."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localgp.errors import CheckpointError
from localgp.stored import read_metrics


@dataclass(frozen=True)
class Evaluated:
    """One metrics.json and where it lies."""

    path: Path
    corpus: str
    backbone: str
    name: str
    seed: int
    metrics: dict[str, Any]

    @property
    def key(self) -> str:
        return f"{self.corpus}/{self.backbone}/{self.name}/seed{self.seed}"

    @property
    def gates(self) -> Path:
        """Its stored gates of the split that was scored; a dense run has none."""
        return self.path / "gates" / f"{self.metrics['data']['split']}.npz"


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

    def mean(self, *keys: str) -> float | None:
        values = self.values(*keys)
        return statistics.mean(values) if values else None

    def show(self, *keys: str, digits: int = 1, scale: float = 1.0, unit: str = "") -> str:
        """Mean, and the standard deviation where there are several seeds; ``-`` where there is no figure."""
        values = [scale * v for v in self.values(*keys)]
        if not values:
            return "-"
        mean = f"{statistics.mean(values):.{digits}f}"
        spread = "" if len(values) == 1 else f" ± {statistics.stdev(values):.{digits}f}"
        return mean + spread + unit


def read_run(path: Path) -> Evaluated:
    """Raises:
    CheckpointError: If the run has not been evaluated, or its metrics.json cannot be read.
    """
    corpus, backbone, name, seed = path.parts[-4:]
    try:
        metrics = read_metrics(path / "metrics.json")
        return Evaluated(path, corpus, backbone, name, int(seed.removeprefix("seed")), metrics)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} has not been evaluated (no metrics.json); run python -m localgp.evaluate with the same options"
        ) from error
    except ValueError as error:
        raise CheckpointError(
            f"{path} is not the directory of a run: seed<number> is its last part"
        ) from error


def collect(exp_dir: Path) -> list[Evaluated]:
    """Raises:
    CheckpointError: If nothing under ``exp_dir`` has been evaluated, or a metrics.json cannot be read.
    """
    paths = sorted(exp_dir.glob("*/*/*/seed*/metrics.json"))
    if not paths:
        raise CheckpointError(
            f"no evaluated run under {exp_dir}; train and evaluate one: python -m localgp.train conf=row05, then "
            "python -m localgp.evaluate conf=row05"
        )
    return [read_run(path.parent) for path in paths]


def data_label(metrics: dict[str, Any]) -> str:
    """What was scored, so that scores on a part never stand beside scores on the whole."""
    data = metrics["data"]
    part = "whole" if data["whole_split"] else "part of the"
    return f"{data['corpus']}, {part} {data['split']} set, {data['utterances']} utterances"


def group(runs: Sequence[Evaluated]) -> dict[tuple[str, str], list[Group]]:
    """(data label, backbone) to groups: the paper's rows by number, each before its variants, then ours."""
    tables: dict[tuple[str, str], dict[str, list[Evaluated]]] = {}
    for run in runs:
        table = tables.setdefault((data_label(run.metrics), run.backbone), {})
        table.setdefault(run.name, []).append(run)
    return {
        key: [
            Group(name, tuple(sorted(table[name], key=lambda run: run.seed)))
            for name in sorted(table, key=_place)
        ]
        for key, table in sorted(tables.items())
    }


def in_order(runs: Sequence[Evaluated]) -> list[Evaluated]:
    """As in the tables: the paper's rows first, seeds in order."""
    return sorted(runs, key=lambda run: (run.corpus, run.backbone, _place(run.name), run.seed))


def _place(name: str) -> tuple[bool, list[tuple[bool, float, str]]]:
    """Rows first, and numbers in names by value, so that 10 comes after 9 and 0.5 before 0.75."""
    parts = re.findall(r"\d+(?:\.\d+)?|[^\d]+", name)
    return not name.startswith("row"), [
        (part[0].isdigit(), float(part) if part[0].isdigit() else 0.0, part) for part in parts
    ]
