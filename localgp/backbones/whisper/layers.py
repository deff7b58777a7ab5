"""Whisper's layers, as `transformers` has them.

Its own modules do the work, so with every gate open the result is `transformers`'.

Shape legend: B utterances, T encoder frames, Q sequences, L tokens, D model size, X queries, K keys.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from localgp.backbones.base import Branch, Branches, Runner


def encoder_branches(layer: Any) -> Branches:
    """Of a ``WhisperEncoderLayer``."""
    return {
        "attention": _attention("attention", layer.self_attn, layer.self_attn_layer_norm),
        "ffn": _feed_forward(layer),
    }


def decoder_branches(layer: Any) -> Branches:
    """Of a ``WhisperDecoderLayer``."""
    return {
        "self_attention": _attention("attention", layer.self_attn, layer.self_attn_layer_norm),
        "source_attention": _attention("source", layer.encoder_attn, layer.encoder_attn_layer_norm),
        "ffn": _feed_forward(layer),
    }


def _attention(kind: Any, attention: Any, norm: nn.Module) -> Branch:
    linears = attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj
    return Branch(kind, linears, norm=norm, module=attention, heads=attention.num_heads)


def _feed_forward(layer: Any) -> Branch:
    return Branch(
        "ffn", (layer.fc1, layer.fc2), norm=layer.final_layer_norm, activation=activation_module(layer)
    )


def activation_module(layer: Any) -> nn.Module:
    """The activation as PyTorch calls it, which has fast kernels for it."""
    if type(layer.activation_fn).__name__ == "GELUActivation":  # the exact one, of all that are published
        return nn.GELU()
    return layer.activation_fn


def run_encoder_layer(layer: Any, x_BTD: Tensor, mask_B1T: Tensor, run: Runner) -> Tensor:
    """One pre-norm layer (``WhisperEncoderLayer``).

    x ─ + attention ─ + FFN
    """

    def attend(frames: Tensor, mask: Tensor | None) -> Tensor:
        normed = layer.self_attn_layer_norm(frames)
        return _dropped(layer, layer.self_attn(normed, attention_mask=_bias(mask, frames))[0])

    x_BTD = x_BTD + run.attention("attention", attend, x_BTD, mask_B1T)
    return x_BTD + run.frames("ffn", lambda frames: _feed(layer, frames), x_BTD)


def run_decoder_layer(
    layer: Any, x_QLD: Tensor, mask_QLL: Tensor, memory_QTD: Tensor, source_Q1T: Tensor, run: Runner
) -> Tensor:
    """One pre-norm layer (``WhisperDecoderLayer``).

    x ─ + self-attention ─ + source attention ─ + FFN
    """

    def attend(tokens: Tensor, mask: Tensor | None) -> Tensor:
        normed = layer.self_attn_layer_norm(tokens)
        return _dropped(layer, layer.self_attn(normed, attention_mask=_bias(mask, tokens))[0])

    def attend_source(tokens: Tensor) -> Tensor:
        normed = layer.encoder_attn_layer_norm(tokens)
        mask = _bias(source_Q1T, tokens)
        attended = layer.encoder_attn(normed, key_value_states=memory_QTD, attention_mask=mask)[0]
        return _dropped(layer, attended)

    x_QLD = x_QLD + run.attention("self_attention", attend, x_QLD, mask_QLL)
    x_QLD = x_QLD + run.frames("source_attention", attend_source, x_QLD)
    return x_QLD + run.frames("ffn", lambda tokens: _feed(layer, tokens), x_QLD)


def _feed(layer: Any, x: Tensor) -> Tensor:
    hidden = layer.activation_fn(layer.fc1(layer.final_layer_norm(x)))
    hidden = F.dropout(hidden, layer.activation_dropout, layer.training)
    return _dropped(layer, layer.fc2(hidden))


def _dropped(layer: Any, x: Tensor) -> Tensor:
    return F.dropout(x, layer.dropout, layer.training)


def _bias(mask_BXK: Tensor | None, x: Tensor) -> Tensor | None:
    """What is added to the scores (B, 1, X, K), X 1 where it is the same for all queries: the least finite number where
    a key may not be seen, so that a query that sees none has finite numbers too; None where all may be."""
    if mask_BXK is None:
        return None
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    bias = torch.zeros(mask_BXK.shape, dtype=dtype, device=x.device)
    return bias.masked_fill_(~mask_BXK, torch.finfo(dtype).min).unsqueeze(1)
