"""Gates on a model that one already has.

Behind `localgp.gate`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from localgp.backbones import adopt, families
from localgp.build import gated
from localgp.contexts.extract import build_extractor, needed_contexts
from localgp.errors import CheckpointError
from localgp.hub.load import EXTRAS, GATES, base_config, decode_options
from localgp.paths import expanded
from localgp.precision import resolve_precision
from localgp.settings import check, require
from localgp.transcription.transcriber import Transcriber
from localgp.weights import load_state


def gate(
    model: Any,
    conf: str = "row05",
    *overrides: str,
    gates: str | Path | None = None,
    vocabulary: Any = None,
    precision: str = "fp32",
) -> Any:
    """See `localgp.gate`."""
    require({"decode.precision": precision})
    backbone = adopt(model, vocabulary)
    family = next(family for family in families().values() if backbone.key == family.KEY)
    # Which parts there are to gate goes by the name of any of the family's models.
    cfg = base_config(
        "backbone=path", f"backbone.name={family.NAMES[-1]}", "backbone.path=-", f"conf={conf}", *overrides
    )
    named = OmegaConf.to_container(cfg.pruning, resolve=False)["encoder_modules"]  # type: ignore[index, call-overload]
    if isinstance(named, str):  # not by name: what this very model has, whatever its family's others do
        parts = {"${parts:frames}": backbone.frame_parts(), "${parts:all}": backbone.part_names("encoder")}
        cfg.pruning.encoder_modules = parts.get(named, named)
    if gates is None and not any(override.startswith("window") for override in overrides):
        cfg.window.length = "full"  # a short one has to be learnt, and this model is as it is
    check(cfg)

    made = gated(cfg, backbone)
    if gates is not None:
        load_state(made, _gates_file(gates), only_gates=True, remedy="Give the folder of a packed model.")
    made.to(backbone.device).eval()
    return Transcriber(
        made,
        decode_options(cfg),
        dtype=resolve_precision(precision, backbone.device),
        extractors={name: build_extractor(name, cfg, backbone.device) for name in needed_contexts(cfg)},
        name=backbone.source,
        config=OmegaConf.to_container(cfg, resolve=True),  # type: ignore[arg-type]
    )


def _gates_file(given: str | Path) -> Path:
    """Of a packed model's folder, or the file itself.

    Raises:
        CheckpointError: There are none.
    """
    path = expanded(str(given))
    found = [file for file in (path, path / EXTRAS / GATES, path / GATES) if file.is_file()]
    if not found:
        raise CheckpointError(
            f"no gates at {path}; give {GATES}, or the folder of a packed Whisper or an unpacked ESPnet archive, which "
            f"has it under {EXTRAS}/"
        )
    return found[0]
