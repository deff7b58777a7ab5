"""From a configuration to a model with gates."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig
from torch import nn

from localgp.errors import ConfigError
from localgp.pruning.encoder import MODULES

POLICIES = ("local", "global", "random", "vad", "speechprune", "open")


def build_policy(cfg: DictConfig, encoder: Any) -> nn.Module | None:
    """The encoder's gate policy that ``cfg.pruning`` describes, or None for the dense encoder.

    Args:
        encoder: ESPnet's E-Branchformer encoder that the policy is for.
    """
    from localgp.contexts import context_size
    from localgp.gates import EnergyGates, GlobalGates, LocalGates, OpenGates, RandomGates, SpeechPruneGates

    pruning = cfg.pruning
    layers, size = len(encoder.encoders), encoder.output_size()
    if pruning.encoder is None:
        return None
    modules = list(pruning.encoder_modules)
    unknown = [name for name in modules if name not in MODULES]
    if unknown or not modules:
        raise ConfigError(f"pruning.encoder_modules is {modules}; valid: {', '.join(MODULES)}")
    if not 0 <= pruning.target < 1:
        raise ConfigError(
            f"pruning.target is {pruning.target}; valid: a share of frames to skip, 0 <= target < 1"
        )
    if "cgmlp" in modules and pruning.encoder not in ("global", "open"):
        raise ConfigError(
            "pruning.encoder_modules has cgmlp, whose convolution needs neighbouring frames: it cannot be gated "
            "frame by frame (paper, section 3.2); leave it out"
        )
    if pruning.encoder == "open":
        return OpenGates(modules)
    if pruning.encoder == "random":
        return RandomGates(modules, pruning.target, cfg.seed)
    if pruning.encoder == "vad":
        return EnergyGates(modules, pruning.target)
    if pruning.encoder == "speechprune":
        return SpeechPruneGates(modules, pruning.target, encoder)
    predictor = {
        "temperature": pruning.temperature,
        "threshold": pruning.threshold,
        "bias": pruning.gate_bias,
    }
    if pruning.encoder == "global":
        if list(pruning.context) != ["front"]:
            raise ConfigError(
                f"pruning.context is {list(pruning.context)}; GlobalGP pools [front] and nothing else"
            )
        return GlobalGates(layers, size, modules, **predictor)
    if pruning.encoder == "local":
        return LocalGates(
            layers,
            size,
            modules,
            {name: context_size(name, cfg, size) for name in pruning.context},
            **predictor,
        )
    raise ConfigError(f"pruning.encoder is {pruning.encoder!r}; valid: null, {', '.join(POLICIES)}")


def build_model(cfg: DictConfig) -> tuple[Any, Any]:
    """Reads the backbone and puts the gates on it.

    Returns:
        `localgp.model.GatedS2T` and `localgp.backbone.owsm.Backbone`.
    """
    import torch

    from localgp.backbone.owsm import load_backbone
    from localgp.model import GatedS2T, use_fast_kernels

    backbone = load_backbone(cfg.backbone)
    with torch.random.fork_rng():
        torch.manual_seed(cfg.seed)  # the gates' initial weights depend on the seed alone
        policy = build_policy(cfg, backbone.model.encoder)
    use_fast_kernels(backbone.model)
    return GatedS2T(backbone.model, policy), backbone
