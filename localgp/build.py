"""From a configuration to a model with gates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from omegaconf import DictConfig

from localgp.backbones import open_backbone
from localgp.contexts import context_size
from localgp.contexts.lang2vec import LanguageVectors
from localgp.errors import ConfigError
from localgp.extensions import is_dotted
from localgp.gates import (
    EnergyGates,
    GlobalGates,
    LayerDropGates,
    LocalGates,
    OpenGates,
    RandomGates,
    SimilarGates,
    SpeechPruneGates,
    TopKGates,
)
from localgp.gates.own import build_own
from localgp.gates.reduce import AdjacentMerging, AttentiveSparsification
from localgp.model import GatedS2T
from localgp.pruning import REDUCTIONS
from localgp.window import window_of

if TYPE_CHECKING:
    from localgp.backbones.base import Backbone, Branch, Side
    from localgp.gates.base import GatePolicy


def build_policy(cfg: DictConfig, backbone: Backbone) -> GatePolicy | None:
    """The encoder's gate policy that ``cfg.pruning`` describes, or None for the dense encoder.

    Args:
        backbone: That the policy is for.

    Raises:
        ConfigError: Gates on parts that the backbone does not have.
    """
    policy = _policy(cfg, backbone)
    if policy is not None:
        policy.fill = cfg.pruning.fill
    return policy


def _policy(cfg: DictConfig, backbone: Backbone) -> GatePolicy | None:
    pruning = cfg.pruning
    layers, size = backbone.shape.encoder_layers, backbone.shape.size
    if pruning.encoder is None:
        return None
    _check_parts("encoder", pruning.encoder_modules, backbone)
    modules = list(pruning.encoder_modules)
    if pruning.encoder == "open":
        return OpenGates(modules)
    if pruning.encoder == "random":
        return RandomGates(modules, pruning.target, cfg.seed)
    if pruning.encoder == "vad":
        return EnergyGates(modules, pruning.target)
    if pruning.encoder == "similar":
        return SimilarGates(modules, pruning.target, size)
    if pruning.encoder == "speechprune":
        return SpeechPruneGates(modules, pruning.target, _attention(backbone, 0))
    if pruning.encoder in REDUCTIONS:
        attention = [_attention(backbone, index) for index in range(layers)]
        if pruning.encoder == "atome":
            return AdjacentMerging(attention, pruning.target)
        return AttentiveSparsification(attention, pruning.target, after=max(1, layers // 4))
    if pruning.encoder == "topk":
        return TopKGates(layers, size, modules, 1 - pruning.target, once=pruning.decided == "once")
    if pruning.encoder == "layerdrop":
        return LayerDropGates(layers, modules, pruning.target)
    predictor = {
        "temperature": pruning.temperature,
        "threshold": pruning.threshold,
        "bias": pruning.gate_bias,
    }
    if pruning.encoder == "global":
        return GlobalGates(layers, size, modules, **predictor)
    contexts = {name: context_size(name, cfg, size) for name in pruning.context}
    if is_dotted(pruning.encoder):
        offered = {
            "layers": layers,
            "size": size,
            "modules": modules,
            "context_sizes": contexts,
            "backbone": backbone,
        }
        offered |= {"target": pruning.target, "attention": pruning.attention, "seed": cfg.seed}
        return build_own(pruning.encoder, offered | predictor)
    predictor |= {
        "attention": pruning.attention,
        "kept": 1 - pruning.target if pruning.budgets else None,
        "once": pruning.decided == "once",
    }
    return LocalGates(layers, size, modules, contexts, **predictor)


def _attention(backbone: Backbone, index: int) -> Branch:
    parts = backbone.branches("encoder", index).values()
    return next(part for part in parts if part.kind == "attention")


def build_decoder_policy(cfg: DictConfig, backbone: Backbone) -> GatePolicy | None:
    """The decoder's gate policy that ``cfg.pruning`` describes, or None for the dense decoder.

    Args:
        backbone: That the policy is for.

    Raises:
        ConfigError: Gates on parts, or a context, that the backbone does not have.
    """
    pruning = cfg.pruning
    if pruning.decoder is None:
        return None
    _check_parts("decoder", pruning.decoder_modules, backbone)
    layers, size = backbone.shape.decoder_layers, backbone.shape.size
    modules, names = list(pruning.decoder_modules), list(pruning.decoder_context)
    if pruning.decoder == "open":
        return OpenGates(modules)
    tokens = backbone.tokenizer
    if "task" in names and len(tokens.prompt(tokens.languages[0], tokens.languages[0], timestamps=True)) < 2:
        raise ConfigError(
            f"pruning.decoder_context has task, and {backbone.name} has one task and no symbols of it; leave task out"
        )
    sizes = {"front": size, "task": 2 * size}
    languages = build_languages(cfg)
    if languages is not None:
        sizes["lang2vec"] = languages.size
    chosen = {name: sizes[name] for name in names}
    predictor = {
        "temperature": pruning.temperature,
        "threshold": pruning.threshold,
        "bias": pruning.gate_bias,
    }
    if pruning.decoder == "global":
        return GlobalGates(layers, size, modules, chosen, **predictor)
    return LocalGates(layers, size, modules, chosen, attention=pruning.attention, **predictor)


def build_languages(cfg: DictConfig) -> LanguageVectors | None:
    """What the decoder's gates see of the languages, or None where the decoder's gates see none."""
    if cfg.pruning.decoder is None or "lang2vec" not in cfg.pruning.decoder_context:
        return None

    return LanguageVectors(list(cfg.contexts.lang2vec.features))


def build_model(cfg: DictConfig) -> GatedS2T:
    """Reads the backbone and puts the gates on it."""
    return gated(cfg, open_backbone(cfg.backbone))


def gated(cfg: DictConfig, backbone: Backbone) -> GatedS2T:
    """Puts the gates on a backbone."""
    with torch.random.fork_rng():
        torch.manual_seed(cfg.seed)  # the gates' initial weights depend on the seed alone
        policy = build_policy(cfg, backbone)
        decoder_policy = build_decoder_policy(cfg, backbone)
    backbone.use_fast_kernels()
    return GatedS2T(
        backbone,
        policy,
        decoder_policy,
        languages=build_languages(cfg),
        window=window_of(cfg),
        keys_felt=cfg.pruning.keys_felt,
        source=cfg.pruning.source,
        decoder_decides=cfg.pruning.decoder_decides,
    )


def _check_parts(side: Side, wanted: Sequence[str], backbone: Backbone) -> None:
    """Refuses gates on parts that are not there.

    Raises:
        ConfigError: Gates on parts that this backbone's layers do not have.
    """
    there = backbone.part_names(side)
    unknown = [name for name in wanted if name not in there]
    if unknown:
        raise ConfigError(
            f"pruning.{side}_modules has {', '.join(unknown)}, which the {side} of backbone {backbone.name} does not "
            f"have; valid: {', '.join(there) or 'none'}"
        )
