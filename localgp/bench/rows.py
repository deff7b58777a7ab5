"""The rows of all benchmarks: their keys, how figures are rounded, and what follows from others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from localgp.backbones.base import Backbone
from localgp.bench.harness import Paired, paired, peak_mib
from localgp.conf_files import CONF_DIR

# What every row of a bench has, None where it does not apply. `flop_ratio`: FLOPs of the run over those of the dense,
# padded encoder, or of the dense decoder's steps. `overhead_share`: of the dense run's time, what is spent beyond it
# (deciding, gathering, adding back).
ENCODER = {"batch": None, "seconds_of_audio": None, "padded_to": None, "skipped": 0.0, "flop_ratio": None}
ENCODER |= dict.fromkeys(("time_ratio_vs_dense", "time_ratio_vs_espnet", "overhead_share", "peak_mib"))
DECODER = {"utterances": None, "frames": None, "beam": None, "steps": None, "ctc_weight": 0.0, "skipped": 0.0}
DECODER |= dict.fromkeys(("decided_per", "speedup_vs_espnet", "identical_hypotheses", "flop_ratio"))
DECODER |= dict.fromkeys(("step_time_ratio_vs_dense", "peak_mib"))
Runs = Mapping[str, Callable[[], Any]]
PEER: dict[str, Any] = {"batch": None}


def make_row(
    schema: Mapping[str, Any], measure: str, backbone: str, dtype: str, **figures: Any
) -> dict[str, Any]:
    """A row with all keys of a schema, rounded.

    Examples:
        >>> row = make_row(ENCODER, "pruned", "b", "fp32", skipped=0.3, time_ratio_vs_dense=0.82, flop_ratio=0.8)
        >>> row["overhead_share"], row["saved_flops_became_time"], row["peak_mib"]
        (0.02, 0.9, None)
    """
    row = {"measure": measure, "backbone": backbone, "dtype": dtype, **schema, **figures}
    row = {key: _rounded(key, value) for key, value in row.items()}
    time, flops = row.get("time_ratio_vs_dense", row.get("step_time_ratio_vs_dense")), row.get("flop_ratio")
    if time is not None and flops is not None:
        if "overhead_share" in row:
            row["overhead_share"] = round(time - flops, 4)
        if row["skipped"] and flops < 1:
            row["saved_flops_became_time"] = round((1 - time) / (1 - flops), 4)
    return row


def _rounded(key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _rounded(name, one) for name, one in value.items()}
    if not isinstance(value, float):
        return value
    return float(f"{value:.2g}") if key == "relative_error" else round(value, 6 if "seconds" in key else 4)


def describe(row: Mapping[str, Any]) -> str:
    """What there is in a row, on a line.

    Examples:
        >>> describe(make_row(PEER, "peer search", "whisper_base", "fp32", batch=8, seconds=1.25, tokens=None))
        'peer search whisper_base fp32: batch 8, seconds 1.25'
    """
    named = ("measure", "backbone", "dtype")
    said = [
        f"{key} {value}"
        for key, value in row.items()
        if key not in named and value is not None and not isinstance(value, list | dict)
    ]
    return f"{' '.join(row[key] for key in named)}: {', '.join(said)}"


def settings(bench: str, **given: Any) -> DictConfig:
    """What a benchmark is to measure: ``conf/bench/<bench>.yaml``, where every setting is explained, with changes."""
    defaults = OmegaConf.load(CONF_DIR / "bench" / f"{bench}.yaml")
    OmegaConf.set_struct(defaults, True)
    found = OmegaConf.merge(defaults, given)
    assert isinstance(found, DictConfig)
    return found


class Bench:
    """Rows of one backbone.

    Args:
        backbone: What is timed, with any weights, on the device that it is on.
        name: For the rows.
        wanted: What to measure: the configuration's group ``bench``, or `settings`.
        progress: Called with a line after each row.
    """

    schema: ClassVar[Mapping[str, Any]]

    def __init__(
        self,
        backbone: Backbone,
        name: str,
        wanted: DictConfig,
        progress: Callable[[str], None] = lambda line: None,
    ) -> None:
        backbone.net.eval()
        self.backbone, self.name, self.wanted, self.progress = backbone, name, wanted, progress
        self.device = backbone.device
        self.rows: list[dict[str, Any]] = []

    def add(
        self, measure: str, dtype: str, *, schema: Mapping[str, Any] | None = None, **figures: Any
    ) -> None:
        self.rows.append(make_row(schema or self.schema, measure, self.name, dtype, **figures))
        self.progress(describe(self.rows[-1]))

    def compare(self, runs: Runs, repeats: int, ratio: str | None = None) -> tuple[dict[str, Any], Paired]:
        """Two runs that take turns: figures of the first beside the second, and all seconds.

        Args:
            ratio: Key of the first one's time over the second's.
        """
        ours, other = runs
        times = paired(runs, repeats, self.device)
        found = {"seconds": times.median(ours), "against": other, "against_seconds": times.median(other)}
        return found | ({ratio: times.ratio(ours, other)} if ratio else {}), times

    def peak(self, run: Callable[[], Any]) -> float:
        return peak_mib(run, self.device)

    def noise(self, *shape: int) -> Tensor:
        """Random numbers, the same ones every time."""
        return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(self.device)
