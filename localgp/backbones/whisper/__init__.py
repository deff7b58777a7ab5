"""Whisper: `transformers`' model, untouched. Directories and hub repositories that it reads load, and what is written
here loads there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from localgp.backbones.base import Tokens
    from localgp.backbones.whisper.model import WhisperBackbone

KEY = "whisper"
PARTS = ("attention", "ffn")
WHOLE: tuple[str, ...] = ()
CTC = False
RANKING = "transformers"
NAMES = (
    *(f"whisper_{size}{only}" for size in ("tiny", "base", "small", "medium") for only in ("", ".en")),
    "whisper_large_v2",
    "whisper_large_v3",
    "whisper_large_v3_turbo",
)
HUB = ("whisper",)


def recognises(directory: Path) -> bool:
    """A ``config.json`` of `transformers` that says so."""
    file = directory / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") == "whisper"


def read_vocabulary(cfg: Mapping[str, Any]) -> tuple[Tokens, float]:
    from localgp.backbones.whisper.files import read_vocabulary

    return read_vocabulary(cfg)


def open_model(cfg: Mapping[str, Any]) -> WhisperBackbone:
    from localgp.backbones.whisper.model import load_backbone

    return load_backbone(cfg)


def holds(model: Any) -> bool:
    return any(kind.__name__ == "WhisperForConditionalGeneration" for kind in type(model).__mro__)


def adopt(model: Any, vocabulary: Any = None) -> WhisperBackbone:
    from localgp.backbones.whisper.model import adopt

    return adopt(model, vocabulary)
