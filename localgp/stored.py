"""Reading what a run or a packed model has stored: configurations and scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from localgp.errors import CheckpointError
from localgp.window import upgraded


def read_yaml_mapping(path: Path, remedy: str = "copy it again") -> dict[str, Any]:
    """A YAML mapping from a file.

    Raises:
        CheckpointError: Not YAML, or not a mapping; ``remedy`` ends the message.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError, TypeError) as error:
        raise CheckpointError(f"{path}: not a readable YAML file ({short(error)}); {remedy}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds no configuration; {remedy}")
    return content


def run_config(run: Path) -> dict[str, Any]:
    """A run directory's config.yaml; empty where it has none.

    Raises:
        CheckpointError: It is damaged.
    """
    path = run / "config.yaml"
    if not path.exists():
        return {}
    return upgraded(read_yaml_mapping(path, "restore it, or remove the run's directory and train it again"))


def runs_below(directory: Path) -> list[Path]:
    """Run directories in a directory, however many of corpus, backbone, experiment and seed are below it."""
    places = ("*/" * depth + "config.yaml" for depth in range(5))
    found = {path.parent for place in places for path in directory.glob(place)}
    return sorted(run for run in found if run.name.startswith("seed"))


def section(config: dict[str, Any], name: str) -> dict[str, Any]:
    """A section of a stored configuration; empty where it has none."""
    value = config.get(name)
    return value if isinstance(value, dict) else {}


# What every reader of a metrics.json relies on; None stands for figures by name.
_METRICS: dict[str, dict[str, type | tuple[type, ...]] | None] = {
    "wer": None,
    "bleu": None,
    "data": {"corpus": str, "split": str, "utterances": int, "whole_split": bool},
    "gflops": {"encoder": (int, float), "convention": str},
    "backbone": {"name": str},
    "kept": None,
    "decode": None,
    "signature": {"wer": str, "bleu": str},
}


def read_metrics(path: Path) -> dict[str, Any]:
    """A run's metrics.json.

    Raises:
        FileNotFoundError: It has none.
        CheckpointError: It is damaged.
    """
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        problem = _problem_of(metrics)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        problem = short(error)
    if problem:
        raise CheckpointError(f"{path} is not a metrics.json ({problem}); evaluate that run again")
    return metrics


def _problem_of(metrics: Any) -> str:
    if not isinstance(metrics, dict):
        return "it holds no mapping"
    optional = ("kept_real", "kept_layers", "sparsity", "seconds", "asked", "evaluation")
    for name in (*_METRICS, *(key for key in optional if metrics.get(key) is not None)):
        value = metrics.get(name)
        if not isinstance(value, dict):
            return f"{name} is {type(value).__name__}, not a mapping"
        for key, kind in (_METRICS.get(name) or {}).items():
            if not isinstance(value.get(key), kind):
                return f"{name}.{key} is {value.get(key)!r}"
    split = metrics["data"]["split"]
    if Path(split).name != split:
        return f"data.split is {split!r}, a path"
    for name, default in (("name", ""), ("device", ""), ("commit", None)):
        if not isinstance(metrics.get(name, default), str):
            return f"{name} is {metrics.get(name)!r}"
    for name in ("wer", "bleu"):
        for key, value in metrics[name].items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                return f"{name}.{key} is {value!r}"
    return ""


def short(error: BaseException) -> str:
    """An error's kind and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
