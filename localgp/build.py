"""From a configuration to a model with gates."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig
from torch import nn

from localgp.errors import refuse
from localgp.pruning.options import decoder_problems, encoder_problems, padding_problems


def build_policy(cfg: DictConfig, encoder: Any) -> nn.Module | None:
    """The encoder's gate policy that ``cfg.pruning`` describes, or None for the dense encoder.

    Args:
        encoder: ESPnet's E-Branchformer encoder that the policy is for.

    Raises:
        ConfigError: Gates that cannot be.
    """
    from localgp.contexts import context_size
    from localgp.extensions import is_dotted
    from localgp.gates import EnergyGates, GlobalGates, LocalGates, OpenGates, RandomGates, SpeechPruneGates

    pruning = cfg.pruning
    refuse(encoder_problems(pruning, cfg.contexts))
    layers, size = len(encoder.encoders), encoder.output_size()
    if pruning.encoder is None:
        return None
    modules = list(pruning.encoder_modules)
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
        return GlobalGates(layers, size, modules, **predictor)
    contexts = {name: context_size(name, cfg, size) for name in pruning.context}
    if is_dotted(pruning.encoder):
        from localgp.gates.own import build_own

        offered = {
            "layers": layers,
            "size": size,
            "modules": modules,
            "context_sizes": contexts,
            "encoder": encoder,
        }
        offered |= {"target": pruning.target, "attention": context_attention(cfg), "seed": cfg.seed}
        return build_own(pruning.encoder, offered | predictor)
    return LocalGates(layers, size, modules, contexts, attention=context_attention(cfg), **predictor)


def build_decoder_policy(cfg: DictConfig, layers: int, size: int) -> nn.Module | None:
    """The decoder's gate policy that ``cfg.pruning`` describes, or None for the dense decoder.

    Args:
        layers: Of the decoder.
        size: D, of encoder and decoder.

    Raises:
        ConfigError: Gates that cannot be.
    """
    from localgp.gates import GlobalGates, LocalGates, OpenGates

    pruning = cfg.pruning
    refuse(decoder_problems(pruning))
    if pruning.decoder is None:
        return None
    modules, names = list(pruning.decoder_modules), list(pruning.decoder_context)
    if pruning.decoder == "open":
        return OpenGates(modules)
    sizes = {"front": size, "task": 2 * size}
    if "lang2vec" in names:
        sizes["lang2vec"] = build_languages(cfg).size
    chosen = {name: sizes[name] for name in names}
    predictor = {
        "temperature": pruning.temperature,
        "threshold": pruning.threshold,
        "bias": pruning.gate_bias,
    }
    if pruning.decoder == "global":
        return GlobalGates(layers, size, modules, chosen, **predictor)
    return LocalGates(layers, size, modules, chosen, attention=context_attention(cfg), **predictor)


def context_attention(cfg: DictConfig) -> str:
    """``pruning.attention``; runs older than the option followed Algorithm 1."""
    return str(cfg.pruning.get("attention", "dot"))


def build_languages(cfg: DictConfig) -> Any:
    """`localgp.contexts.lang2vec.LanguageVectors`, or None where the decoder's gates see none."""
    if cfg.pruning.decoder is None or "lang2vec" not in cfg.pruning.decoder_context:
        return None
    from localgp.contexts.lang2vec import LanguageVectors

    return LanguageVectors(list(cfg.contexts.lang2vec.features))


def is_trimmed(cfg: DictConfig) -> bool:
    """Whether every utterance is encoded at its own length.

    Raises:
        ConfigError: There is no such padding, or the encoder has gates, which are counted on padded inputs.
    """
    refuse(padding_problems(cfg))
    return str(cfg.padding) == "none"


def build_model(cfg: DictConfig) -> tuple[Any, Any]:
    """Reads the backbone and puts the gates on it.

    Returns:
        `localgp.model.GatedS2T` and `localgp.backbones.owsm.model.Backbone`.
    """
    import torch

    from localgp.backbones.owsm.model import load_backbone
    from localgp.model import GatedS2T, use_fast_kernels

    backbone = load_backbone(cfg.backbone)
    with torch.random.fork_rng():
        torch.manual_seed(cfg.seed)  # the gates' initial weights depend on the seed alone
        policy = build_policy(cfg, backbone.model.encoder)
        decoder_policy = build_decoder_policy(
            cfg, len(backbone.model.decoder.decoders), backbone.model.encoder.output_size()
        )
    use_fast_kernels(backbone.model)
    model = GatedS2T(
        backbone.model, policy, decoder_policy, languages=build_languages(cfg), trim=is_trimmed(cfg)
    )
    return model, backbone
