"""From a configuration to a model with gates."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig
from torch import nn

from localgp.errors import ConfigError
from localgp.pruning.encoder import MODULES

DECODER_POLICIES = ("local", "global", "open")
DECODER_CONTEXTS = ("front", "task", "lang2vec")
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
            attention=context_attention(cfg),
            **predictor,
        )
    raise ConfigError(f"pruning.encoder is {pruning.encoder!r}; valid: null, {', '.join(POLICIES)}")


def build_decoder_policy(cfg: DictConfig, layers: int, size: int) -> nn.Module | None:
    """The decoder's gate policy that ``cfg.pruning`` describes, or None for the dense decoder.

    Args:
        layers: Of the decoder.
        size: D, of encoder and decoder.
    """
    from localgp.gates import GlobalGates, LocalGates, OpenGates
    from localgp.pruning.decoder import MODULES as DECODER_MODULES

    pruning = cfg.pruning
    if pruning.decoder is None:
        return None
    modules, names = list(pruning.decoder_modules), list(pruning.decoder_context)
    if pruning.decoder not in DECODER_POLICIES:
        raise ConfigError(
            f"pruning.decoder is {pruning.decoder!r}; valid: null, {', '.join(DECODER_POLICIES)}"
        )
    if not modules or any(name not in DECODER_MODULES for name in modules):
        raise ConfigError(f"pruning.decoder_modules is {modules}; valid: {', '.join(DECODER_MODULES)}")
    if any(name not in DECODER_CONTEXTS for name in names):
        raise ConfigError(f"pruning.decoder_context is {names}; valid: {', '.join(DECODER_CONTEXTS)}")
    if not 0 <= pruning.target < 1:
        raise ConfigError(
            f"pruning.target is {pruning.target}; valid: a share of tokens to skip, 0 <= target < 1"
        )
    if pruning.decoder == "open":
        return OpenGates(modules)
    if pruning.decoder == "global" and not names:
        raise ConfigError(
            "pruning.decoder_context is []; GlobalGP decides from it alone: give front, task or lang2vec"
        )
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
    if cfg.padding not in ("full", "none"):
        raise ConfigError(f"padding is {cfg.padding!r}; valid: full, none")
    if cfg.padding == "none" and cfg.pruning.encoder is not None:
        raise ConfigError(
            f"padding=none is for a dense encoder, pruning.encoder is {cfg.pruning.encoder!r}: kept ratios and GFLOPs "
            "are those of padded inputs. Set pruning.encoder=null, or padding=full"
        )
    return str(cfg.padding) == "none"


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
        decoder_policy = build_decoder_policy(
            cfg, len(backbone.model.decoder.decoders), backbone.model.encoder.output_size()
        )
    use_fast_kernels(backbone.model)
    model = GatedS2T(
        backbone.model, policy, decoder_policy, languages=build_languages(cfg), trim=is_trimmed(cfg)
    )
    return model, backbone
