"""What the gates see besides the layer's input."""

from __future__ import annotations

from omegaconf import DictConfig

from localgp.errors import ConfigError

ENCODER_CONTEXTS = ("front",)


def context_size(name: str, cfg: DictConfig, size: int) -> int:
    """Dimension of a context by name; ``front`` has the encoder's own."""
    if name == "front":
        return size
    raise ConfigError(f"pruning.context has {name!r}; valid: {', '.join(ENCODER_CONTEXTS)}")
