"""OWSM: ESPnet's S2T models, untouched. Checkpoints of the published ones load, and what is written here loads in
ESPnet."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localgp.archive import opened

if TYPE_CHECKING:
    from localgp.backbones.owsm.model import OwsmBackbone
    from localgp.backbones.owsm.tokens import OwsmTokenizer

KEY = "espnet"
PARTS = ("ffn1", "attention", "cgmlp", "ffn2")
WHOLE = ("cgmlp",)
CTC = True
RANKING = "espnet"
HUB = ("owsm",)
CONFIGURATIONS = ("config.yaml", "exp*/*/config.yaml")  # of a directory
NAMES = (
    "mini",
    *(f"owsm_{version}_{size}" for version in ("v4", "v3.1") for size in ("base", "small", "medium")),
    "owsm_v2",
    "owsm_v3",
    *(f"owsm_ctc_{version}" for version in ("v4", "v3.2", "v3.1")),
)
TRANSFORMER = ("attention", "ffn")  # what can be gated of v1's, v2's and v3's encoder


def parts(path: str, name: str) -> tuple[str, ...]:
    """Of an encoder's layer, what can be gated: by a directory's configuration, else by the hub id.

    Examples:
        >>> parts("espnet/owsm_v3", ""), parts("espnet/owsm_v3.1_ebf", "")
        (('attention', 'ffn'), ('ffn1', 'attention', 'cgmlp', 'ffn2'))
    """
    directory = opened(path)
    if not directory.is_dir():
        return TRANSFORMER if re.search(r"owsm_v[123]$", path) else PARTS
    for pattern in CONFIGURATIONS:
        for file in sorted(directory.glob(pattern)):
            encoder = re.search(r"^encoder: *(\w+)", file.read_text(encoding="utf-8"), re.MULTILINE)
            if encoder is not None:
                return TRANSFORMER if encoder[1] == "transformer" else PARTS
    return PARTS


def recognises(directory: Path) -> bool:
    """ESPnet's configuration, at the top or in ``exp*/<name>/``."""
    return any(True for pattern in CONFIGURATIONS for _ in directory.glob(pattern))


def read_vocabulary(cfg: Mapping[str, Any]) -> tuple[OwsmTokenizer, float]:
    from localgp.backbones.owsm.files import read_vocabulary

    return read_vocabulary(cfg)


def open_model(cfg: Mapping[str, Any]) -> OwsmBackbone:
    from localgp.backbones.owsm.model import load_backbone

    return load_backbone(cfg)


def holds(model: Any) -> bool:
    names = {kind.__name__ for kind in type(model).__mro__}
    return bool(names & {"ESPnetS2TModel", "ESPnetS2TCTCModel"}) or hasattr(model, "s2t_model")


def adopt(model: Any, vocabulary: Any = None) -> OwsmBackbone:
    from localgp.backbones.owsm.model import adopt

    return adopt(model, vocabulary)
