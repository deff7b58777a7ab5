"""OWSM: ESPnet's S2T models, untouched. Checkpoints of the published ones load, and what is written here loads in
ESPnet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from localgp.backbones.owsm.model import OwsmBackbone
    from localgp.backbones.owsm.tokens import OwsmTokenizer

KEY = "espnet"
PARTS = ("ffn1", "attention", "cgmlp", "ffn2")
WHOLE = ("cgmlp",)
NAMES = ("mini", "owsm_v3.1_base", "owsm_v3.1_small", "owsm_v3.1_medium")


def recognises(directory: Path) -> bool:
    """ESPnet's configuration, at the top or in ``exp/<name>/``."""
    return any(directory.glob("config.yaml")) or any(directory.glob("exp/*/config.yaml"))


def read_vocabulary(cfg: Mapping[str, Any]) -> tuple[OwsmTokenizer, float]:
    from localgp.backbones.owsm.files import read_vocabulary

    return read_vocabulary(cfg)


def open_model(cfg: Mapping[str, Any]) -> OwsmBackbone:
    from localgp.backbones.owsm.model import load_backbone

    return load_backbone(cfg)
