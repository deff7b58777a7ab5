"""What the gates see besides the layer's input."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from localgp.extensions import own_contexts


def context_shape(name: str, cfg: DictConfig) -> Any:
    """Dimensions of an extractor, with ``size`` and ``flops(samples)``; no weights are needed for published ones."""
    from localgp.contexts import event, speaker
    from localgp.contexts.own import OwnExtractor

    if name in own_contexts(cfg.contexts):
        return OwnExtractor(name, cfg)
    module: Any = {"spk": speaker, "event": event}[name]
    return module.shape_of(str(cfg.contexts[name].source))


def context_size(name: str, cfg: DictConfig, size: int) -> int:
    """Dimension of a context by name; ``front`` has the encoder's own."""
    return size if name == "front" else int(context_shape(name, cfg).size)
