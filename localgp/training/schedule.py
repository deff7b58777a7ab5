"""Optimizers and learning-rate schedules by name."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig
from torch.optim.lr_scheduler import LambdaLR

from localgp.errors import ConfigError
from localgp.model import GatedS2T


def warmup_factor(step: int, warmup: int) -> float:
    """ESPnet's WarmupLR, relative to its peak at ``step == warmup``: linear up, then step^-0.5 down.

    Examples:
        >>> warmup_factor(3000, 6000), warmup_factor(6000, 6000), warmup_factor(24000, 6000)
        (0.5, 1.0, 0.5)
    """
    step, warmup = max(step, 1), max(warmup, 1)
    return warmup**0.5 * min(step**-0.5, step * warmup**-1.5)


def linear_factor(step: int, warmup: int, total: int) -> float:
    """Linear up over ``warmup`` steps, then linear down to 0 at ``total``.

    Examples:
        >>> linear_factor(5, 10, 110), linear_factor(10, 10, 110), linear_factor(60, 10, 110)
        (0.5, 1.0, 0.5)
    """
    if step < warmup:
        return max(step, 1) / warmup
    return max(0.0, (total - step) / max(1, total - warmup))


def optimizer_kind(name: str, device_type: str) -> tuple[Any, dict[str, Any]]:
    """The class for ``training.optimizer`` and its further arguments; fused on a GPU.

    Raises:
        ConfigError: 8-bit states cannot be had here.
    """
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    if name in kinds:
        return kinds[name], {"fused": True} if device_type == "cuda" else {}
    eight_bit = {"adam8bit": "Adam8bit", "adamw8bit": "AdamW8bit"}
    if device_type != "cuda":
        raise ConfigError(f"training.optimizer={name} needs a GPU; use {name.removesuffix('8bit')}")
    try:
        import bitsandbytes
    except ImportError as error:
        raise ConfigError(
            f"training.optimizer={name} needs bitsandbytes: in the checkout of localgp: pip install -e '.[memory]'"
        ) from error
    return getattr(bitsandbytes.optim, eight_bit[name]), {}


def build_optimizer(model: GatedS2T, training: DictConfig, max_steps: int) -> dict[str, Any]:
    """Two groups: the backbone at ``training.lr``, the gates at ``training.gate_lr``, which start from nothing.

    Raises:
        ConfigError: For an optimizer that cannot be had here.
    """
    groups = [{"params": [p for p in model.backbone.net.parameters() if p.requires_grad], "lr": training.lr}]
    gates = list(model.gate_parameters())
    if gates:
        groups.append({"params": gates, "lr": training.gate_lr})
    kind, extra = optimizer_kind(str(training.optimizer), next(model.parameters()).device.type)
    optimizer = kind(groups, weight_decay=training.weight_decay, **extra)
    schedules = {
        "warmup": lambda step: warmup_factor(step + 1, training.warmup_steps),
        "linear": lambda step: linear_factor(step, training.warmup_steps, max_steps),
        "constant": lambda step: 1.0,
    }
    scheduler = LambdaLR(optimizer, schedules[training.scheduler])
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
