"""Everything under ``exp/``: evaluated runs, grouped over their seeds."""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from localgp.errors import CheckpointError, ConfigError
from localgp.evaluation.summary import varying
from localgp.evaluation.trained import finished_weights
from localgp.stored import read_metrics, section


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
    """An evaluated run from its directory.

    Raises:
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
    """All evaluated runs below a directory.

    Raises:
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
    """(data label, backbone) to groups: the paper's rows by number, each before its variants, then ours.

    The whole test set of each corpus comes first. What was scored on other data under the same label, or decoded in
    another way than most of its table, is a group of its own that says so.
    """
    tables: dict[tuple[str, str], list[Evaluated]] = {}
    for run in sorted(runs, key=_first_the_whole_test_set):
        tables.setdefault((data_label(run.metrics), run.backbone), []).append(run)
    found = {}
    for key, table in tables.items():
        groups: dict[str, list[Evaluated]] = {}
        for run, said in zip(table, _differing(table), strict=True):
            groups.setdefault(f"{run.name} ({said})" if said else run.name, []).append(run)
        found[key] = [
            Group(name, tuple(sorted(groups[name], key=lambda run: run.seed)))
            for name in sorted(groups, key=_place)
        ]
    return found


def _first_the_whole_test_set(run: Evaluated) -> tuple[Any, ...]:
    data = run.metrics["data"]
    return run.corpus, not data["whole_split"], data["split"] != "test", data_label(run.metrics), run.backbone


def _differing(table: Sequence[Evaluated]) -> list[str]:
    """In which decode options, or on which data, each run was evaluated otherwise than most of them."""
    names = varying([run.metrics for run in table])
    said = [{name: str(run.metrics["decode"].get(name, "-")) for name in names} for run in table]
    data = [section(run.metrics, "evaluation").get("data") for run in table]
    if (
        len({digest for digest in data if digest}) > 1
    ):  # an evaluation that has not stored any may be of either
        for one, digest in zip(said, data, strict=True):
            one["data"] = str(digest)[:8] if digest else "not stored"
    usual = Counter(tuple(one.items()) for one in said).most_common(1)[0][0]
    return [", ".join(f"{k} {v}" for k, v in one.items() if (k, v) not in usual) for one in said]


def in_order(runs: Sequence[Evaluated]) -> list[Evaluated]:
    """As in the tables: the paper's rows first, seeds in order."""
    return sorted(runs, key=lambda run: (run.corpus, run.backbone, _place(run.name), run.seed))


def _place(name: str) -> tuple[bool, list[tuple[bool, float, str]]]:
    """Rows first, and numbers in names by value, so that 10 comes after 9 and 0.5 before 0.75."""
    parts = re.findall(r"\d+(?:\.\d+)?|[^\d]+", name)
    return not name.startswith("row"), [
        (part[0].isdigit(), float(part) if part[0].isdigit() else 0.0, part) for part in parts
    ]


def stored_analysis(run: Evaluated, key: str) -> dict[str, Any] | None:
    """An entry of the run's analysis.json; None where there is none, or it is of older gates.

    Raises:
        CheckpointError: The file is damaged.
    """
    path = run.path / "analysis" / run.metrics["data"]["split"] / "analysis.json"
    try:
        if path.stat().st_mtime < run.gates.stat().st_mtime:
            return None
        found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")).get(key)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); analyze that run again") from error
    return found


def first_seeds(cfg: DictConfig, progress: Callable[[str], None]) -> list[tuple[Evaluated, Path]]:
    """Every experiment of ``bench.confs`` on the configured corpus and backbone: its evaluated run of the lowest seed,
    and the weights that were evaluated.

    Raises:
        ConfigError: One that is asked for has not been evaluated.
        CheckpointError: None has been.
    """
    found: dict[str, tuple[Evaluated, Path]] = {}
    for run in in_order(collect(Path(cfg.exp_dir))):
        if (run.corpus, run.backbone) != (cfg.corpus.name, cfg.backbone.name) or run.name in found:
            continue
        given = section(run.metrics, "asked").get("checkpoint")
        weights = Path(given) if given else finished_weights(run.path)
        if weights.is_file():
            found[run.name] = run, weights
        else:
            progress(f"left out: {run.key}, whose weights {weights} are not there")
    missing = [name for name in cfg.bench.confs or () if name not in found]
    where = f"under {cfg.exp_dir} on corpus {cfg.corpus.name} with backbone {cfg.backbone.name}"
    remedy = "train and evaluate it (python -m localgp.train, python -m localgp.evaluate)"
    if not found:
        raise ConfigError(f"no evaluated run with its weights {where}; {remedy}")
    if missing:
        raise ConfigError(
            f"bench.confs: {', '.join(missing)} not among the evaluated runs {where}: {', '.join(found)}; {remedy}, or "
            "leave bench.confs out for all there are"
        )
    return [pair for name, pair in found.items() if cfg.bench.confs is None or name in cfg.bench.confs]
