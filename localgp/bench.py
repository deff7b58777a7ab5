"""``python -m localgp.bench bench=decoder``: speed paired in one run against ESPnet and our own dense path.

Prints a table; the last line is one JSON object ``{"bench": ..., "machine": ..., "rows": [...]}``.
"""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from localgp.cli import entry_point


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

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


def main(cfg: DictConfig) -> None:
    import torch

    from localgp.backbone.owsm import load_backbone
    from localgp.errors import ConfigError
    from localgp.evaluation.table import format_table
    from localgp.evaluation.timing_decoder import bench_decoder

    if cfg.bench.name != "decoder":
        raise ConfigError(f"bench is {cfg.bench.name!r}; valid: decoder")
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    rows = []
    for name in cfg.bench.backbones:
        backbone = load_backbone({"name": name, "path": "embedded", "weights": "random"})
        tokenizer = backbone.tokenizer
        rows += bench_decoder(
            backbone.model,
            backbone=name,
            notimestamps=tokenizer.notimestamps,
            first_time=tokenizer.first_time,
            last_time=tokenizer.last_time,
            utterances=list(cfg.bench.utterances),
            beam=cfg.bench.beam,
            steps=cfg.bench.steps,
            ctc_weights=list(cfg.bench.ctc_weights),
            skipped=list(cfg.bench.skipped),
            dtypes=list(cfg.bench.dtypes),
        )
    header = list(rows[0])
    print(format_table(header, [[_cell(row.get(key)) for key in header] for row in rows]))
    print(json.dumps({"bench": "decoder", "machine": machine(), "rows": rows}))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    entry_point(main)()
