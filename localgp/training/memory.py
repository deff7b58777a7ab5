"""Activation checkpointing: keep a module's input, and compute the rest again when its gradient is wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from localgp.model import GatedS2T

_ENCODER_PARTS = (".feed_forward_macaron", ".attn", ".cgmlp", ".feed_forward")
_DECODER_PARTS = (".self_attn", ".src_attn", ".feed_forward")


def checkpoint_activations(model: GatedS2T) -> list[str]:
    """Lets the large modules forget what happens inside of them, in training alone. What they compute, and with
    which random numbers, stays the same.

    The encoder and a gated decoder call a layer's modules one by one, so these are what is checkpointed; a dense
    decoder's layers are taken whole.

    Returns:
        Names of the modules.
    """
    encoder, decoder = model.espnet.encoder.encoders, model.espnet.decoder.decoders
    names = [f"encoder.encoders.{i}{part}" for i in range(len(encoder)) for part in _ENCODER_PARTS]
    parts = _DECODER_PARTS if model.decoder_policy is not None else ("",)
    names += [f"decoder.decoders.{i}{part}" for i in range(len(decoder)) for part in parts]
    for name in names:
        module = model.espnet.get_submodule(name)
        module.forward = _forgetful(module, module.forward)
    return names


def _forgetful(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not module.training:
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run
