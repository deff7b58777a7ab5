"""Speed and memory, paired in one run against ESPnet and our own dense path, or of evaluated runs against each other.

    python -m localgp.bench bench=encoder       (decoder, training)
    python -m localgp.bench bench=runs bench.confs=[row01,row05]
    python -m localgp.bench exp/mini/mini/row05/seed1 bench=encoder bench.measures=[]

Prints a table and, for every promised speed that was measured, whether it is met; writes
``<exp_dir>/bench/<name>.json`` (``bench.save_as``: another name); the last line is that file's content in one line:
``{"bench": ..., "command": ..., "machine": ..., "commit": ..., "rows": [...], "goals": [...]}``.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from localgp.cli import entry_point


def main(cfg: DictConfig) -> None:
    import torch

    from localgp.bench.benches import BENCHES
    from localgp.bench.goals import judge
    from localgp.bench.harness import machine
    from localgp.run import commit, write_atomically
    from localgp.tables import every_key

    name = cfg.bench.name
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    rows = BENCHES[name](cfg)
    goals = judge(rows)
    print(every_key(rows, _cell))
    for goal in goals:
        verdict = "met" if goal["met"] else "NOT MET"
        print(f"{verdict:8}{goal['goal']}: {goal['value']} {goal['sense']} {goal['limit']}")
    measured = {"command": _command(name), "machine": machine(), "commit": commit()}
    result = {"bench": name, **measured, "rows": rows, "goals": goals}
    # Learnt gates stand beside the file of random ones, not over it.
    stored = cfg.bench.save_as or (f"{name}_learnt" if cfg.bench.get("run") else name)
    path = Path(cfg.exp_dir) / "bench" / f"{stored}.json"
    write_atomically(path, json.dumps(result, indent=1) + "\n")
    print(f"written: {path}")
    print(json.dumps(result))


def _command(name: str) -> str:
    """As it was called, if from a command line."""
    from hydra.core.hydra_config import HydraConfig

    given = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else [f"bench={name}"]
    return f"python -m localgp.bench {shlex.join(given)}"


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(one)}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(_cell, value[:4])) + (", ..." if len(value) > 4 else "")
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    entry_point(main, "bench", "device", "threads", "exp_dir")()
