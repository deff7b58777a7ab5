"""OWSM's layers: those of an E-Branchformer or Transformer encoder and of a Transformer decoder, as ESPnet has them.

ESPnet's own modules do the work, so with every gate open the result is ESPnet's.

Shape legend: B utterances, T encoder frames, N frames of all utterances, K kept frames, Q sequences, L tokens, D model
size, U hidden units.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from localgp.backbones.base import Branch, Branches, Runner, Within
from localgp.backbones.blocks import (
    PackedAttention,
    PackedFeedForward,
    PackedNorm,
    PackedTransformerLayer,
    spread,
)
from localgp.backbones.owsm.fast import depthwise
from localgp.kernels.depthwise import Depthwise
from localgp.kernels.int8 import rows_type
from localgp.kernels.linear import Linear, activation_of
from localgp.kernels.plan import LayerPlan
from localgp.kernels.ragged import RANGE, Ragged


class Layer(NamedTuple):
    """One kind of encoder layer.

    Attributes:
        branches: Its parts.
        run: The layer with its gates.
        packed: The layer laid out for inference, of itself and the products' type.
    """

    branches: Callable[[Any], Branches]
    run: Callable[[Any, Tensor, Tensor, Runner], Tensor]
    packed: Callable[[Any, torch.dtype], Any]


def of(encoder: Any) -> Layer:
    """The kind that an encoder of ESPnet's has."""
    if hasattr(encoder.encoders[0], "cgmlp"):
        return Layer(encoder_branches, run_encoder_layer, PackedLayer)
    return Layer(
        transformer_branches,
        run_transformer_layer,
        lambda layer, dtype: PackedTransformerLayer(transformer_branches(layer), dtype),
    )


def encoder_branches(layer: Any) -> Branches:
    """Of ESPnet's EBranchformerEncoderLayer."""
    cgmlp, unit = layer.cgmlp, layer.cgmlp.csgu
    after = () if unit.linear is None else (unit.linear,)
    return {
        "ffn1": _feed_forward(layer.feed_forward_macaron, layer.norm_ff_macaron, layer.ff_scale),
        "attention": attention_branch("attention", layer.attn, layer.norm_mha),
        "cgmlp": Branch(
            "convolution",
            (cgmlp.channel_proj1[0], unit.conv, *after, cgmlp.channel_proj2),
            norm=layer.norm_mlp,
            module=cgmlp,
            inner_norms=(unit.norm,),
        ),
        "merge": Branch("always", (layer.depthwise_conv_fusion, layer.merge_proj)),
        "ffn2": _feed_forward(layer.feed_forward, layer.norm_ff, layer.ff_scale),
        "norm": Branch("always", (), norm=layer.norm_final),
    }


def transformer_branches(layer: Any) -> Branches:
    """Of ESPnet's EncoderLayer, the Transformer's."""
    return {
        "attention": attention_branch("attention", layer.self_attn, layer.norm1),
        "ffn": _feed_forward(layer.feed_forward, layer.norm2, 1.0),
    }


def decoder_branches(layer: Any) -> Branches:
    """Of ESPnet's DecoderLayer."""
    return {
        "self_attention": attention_branch("attention", layer.self_attn, layer.norm1),
        "source_attention": attention_branch("source", layer.src_attn, layer.norm2),
        "ffn": _feed_forward(layer.feed_forward, layer.norm3, 1.0),
    }


def _feed_forward(ffn: Any, norm: nn.Module, scale: float) -> Branch:
    return Branch("ffn", (ffn.w_1, ffn.w_2), norm=norm, module=ffn, scale=scale, activation=ffn.activation)


def attention_branch(kind: Any, attention: Any, norm: nn.Module) -> Branch:
    linears = attention.linear_q, attention.linear_k, attention.linear_v, attention.linear_out
    normed = not isinstance(attention.q_norm, nn.Identity)
    head_norms = (attention.q_norm, attention.k_norm) if normed else None
    return Branch(kind, linears, norm=norm, module=attention, heads=attention.h, head_norms=head_norms)


def run_encoder_layer(
    layer: Any, x_BTD: Tensor, mask_B1T: Tensor, run: Runner, last: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """One E-Branchformer layer (ESPnet's EBranchformerEncoderLayer).

    x ─ +0.5 FFN1 ─┬─ attention ─┐
                   └─ cgMLP ─────┴ merge ─ + ─ +0.5 FFN2 ─ norm

    Args:
        last: What is added before the norm.
    """
    drop = layer.dropout

    def ffn1(frames: Tensor) -> Tensor:
        return drop(layer.feed_forward_macaron(layer.norm_ff_macaron(frames)))

    def ffn2(frames: Tensor) -> Tensor:
        return drop(layer.feed_forward(layer.norm_ff(frames)))

    def attend(frames: Tensor, mask: Tensor | None) -> Tensor:
        normed = layer.norm_mha(frames)
        return drop(layer.attn(normed, normed, normed, mask))

    def convolve(frames: Tensor, within: Within) -> Tensor:
        return drop(_convolutional_gating(layer.cgmlp, layer.norm_mlp(frames), within))

    x_BTD = x_BTD + run.frames("ffn1", ffn1, x_BTD, layer.ff_scale)
    attended = run.attention("attention", attend, x_BTD, mask_B1T)
    convolved = run.utterance("cgmlp", convolve, x_BTD)
    both = torch.cat([attended, convolved], dim=-1)
    fused = depthwise(layer.depthwise_conv_fusion, run.within(both))
    x_BTD = x_BTD + drop(layer.merge_proj(both + fused))
    x_BTD = x_BTD + run.frames("ffn2", ffn2, x_BTD, layer.ff_scale)
    if last is not None:
        x_BTD = x_BTD + last(x_BTD)
    return layer.norm_final(x_BTD)


def run_transformer_layer(layer: Any, x_BTD: Tensor, mask_B1T: Tensor, run: Runner) -> Tensor:
    """One pre-norm Transformer layer (ESPnet's EncoderLayer).

    x ─ + attention ─ + FFN
    """
    drop = layer.dropout

    def attend(frames: Tensor, mask: Tensor | None) -> Tensor:
        normed = layer.norm1(frames)
        return drop(layer.self_attn(normed, normed, normed, mask))

    def feed_forward(frames: Tensor) -> Tensor:
        return drop(layer.feed_forward(layer.norm2(frames)))

    x_BTD = x_BTD + run.attention("attention", attend, x_BTD, mask_B1T)
    return x_BTD + run.frames("ffn", feed_forward, x_BTD)


def _convolutional_gating(cgmlp: Any, x_BTD: Tensor, within: Within) -> Tensor:
    """ESPnet's ConvolutionalGatingMLP, whose convolution sees an utterance's own frames alone."""
    unit = cgmlp.csgu
    kept_BTU, gated_BTU = cgmlp.channel_proj1(x_BTD).chunk(2, dim=-1)
    gated_BTU = depthwise(unit.conv, within(unit.norm(gated_BTU)))
    if unit.linear is not None:
        gated_BTU = unit.linear(gated_BTU)
    gated: Tensor = cgmlp.channel_proj2(unit.dropout(kept_BTU * unit.act(gated_BTU)))
    return gated


def run_decoder_layer(
    layer: Any, x_QLD: Tensor, mask_QLL: Tensor, memory_QTD: Tensor, source_Q1T: Tensor, run: Runner
) -> Tensor:
    """One pre-norm decoder layer (ESPnet's DecoderLayer).

    x ─ + self-attention ─ + source attention ─ + FFN
    """
    drop = layer.dropout

    def attend(tokens: Tensor, mask: Tensor | None) -> Tensor:
        normed = layer.norm1(tokens)
        return drop(layer.self_attn(normed, normed, normed, mask))

    def attend_source(tokens: Tensor) -> Tensor:
        return drop(layer.src_attn(layer.norm2(tokens), memory_QTD, memory_QTD, source_Q1T))

    def feed_forward(tokens: Tensor) -> Tensor:
        return drop(layer.feed_forward(layer.norm3(tokens)))

    x_QLD = x_QLD + run.attention("self_attention", attend, x_QLD, mask_QLL)
    x_QLD = x_QLD + run.frames("source_attention", attend_source, x_QLD)
    return x_QLD + run.frames("ffn", feed_forward, x_QLD)


class _ConvolutionalGating:
    """cgMLP with its norm. On a CPU its hidden units are two products, so that neither half is copied out of a whole; a
    GPU's kernels read halves."""

    def __init__(self, norm: nn.LayerNorm, cgmlp: Any, dtype: torch.dtype) -> None:
        self._norm = PackedNorm(norm, dtype)
        linear, unit = cgmlp.channel_proj1[0], cgmlp.csgu
        activation = activation_of(cgmlp.channel_proj1[1])
        parts = 1 if linear.weight.is_cuda else 2
        self._hidden = [
            Linear(weight, bias, dtype, activation)
            for weight, bias in zip(linear.weight.chunk(parts), linear.bias.chunk(parts), strict=True)
        ]
        self._unit_norm = PackedNorm(unit.norm, dtype)
        self._conv = Depthwise(unit.conv, rows_type(dtype))
        self._linear = None
        if unit.linear is not None:
            self._linear = Linear(unit.linear.weight, unit.linear.bias, dtype)
        self._activation = None if isinstance(unit.act, nn.Identity) else unit.act
        self._out = Linear(cgmlp.channel_proj2.weight, cgmlp.channel_proj2.bias, dtype)

    def __call__(self, x_ND: Tensor, index_K: Tensor | None, layout: Ragged) -> Tensor:
        normed = self._norm(x_ND, index_K)
        hidden = [product(normed) for product in self._hidden]
        kept_KU, gated_KU = hidden if len(hidden) == 2 else hidden[0].chunk(2, dim=1)
        gated_KU = self._unit_norm(gated_KU)
        if self._linear is None and self._activation is None:
            self._conv.times(kept_KU, gated_KU, layout)
            return self._out(kept_KU)
        for rows, gate in self._conv(gated_KU, layout):
            if self._linear is not None:
                gate = self._linear(gate)
            if self._activation is not None:
                gate = self._activation(gate)
            kept_KU[rows].mul_(gate)
        return self._out(kept_KU)


class PackedLayer:
    """x ─ +FFN1 ─┬─ attention ─┐
               └─ cgMLP ─────┴ merge ─ + ─ +FFN2 ─ norm

    Args:
        layer: ESPnet's EBranchformerEncoderLayer; its weights are read now.
        dtype: Of the products.
    """

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        parts = encoder_branches(layer)
        self._ffn1, self._ffn2 = (PackedFeedForward(parts[name], dtype) for name in ("ffn1", "ffn2"))
        self._attention = PackedAttention(parts["attention"], dtype)
        self._cgmlp = _ConvolutionalGating(layer.norm_mlp, layer.cgmlp, dtype)
        self._fusion = Depthwise(layer.depthwise_conv_fusion, rows_type(dtype))
        self._merge = Linear(layer.merge_proj.weight, layer.merge_proj.bias, dtype)
        self._final = PackedNorm(layer.norm_final, torch.float32)
        self._dtype = rows_type(dtype)

    def __call__(
        self,
        x_ND: Tensor,
        layout: Ragged,
        plan: LayerPlan,
        last: Callable[[Tensor, Ragged], None] | None = None,
    ) -> Tensor:
        """Changes ``x_ND`` on the way; the result is another tensor.

        Args:
            last: What is added before the norm, in place.
        """
        with record_function(f"{RANGE}ffn1"):
            self._ffn1.add_to(x_ND, plan.frames.get("ffn1"))
        both_N2D: Tensor | None = None
        halves: list[Tensor | None] = [None, None]
        if x_ND.is_cpu:  # a GPU's fusion reads them where they are
            both_N2D = x_ND.new_empty(len(x_ND), 2 * x_ND.shape[1], dtype=self._dtype)
            halves = list(both_N2D.chunk(2, dim=1))
        with record_function(f"{RANGE}attention"):
            attended_ND = self._attention.spread(x_ND, *plan.of("attention", layout), halves[0])
        with record_function(f"{RANGE}cgmlp"):
            convolved_ND = spread(self._cgmlp, x_ND, *plan.of("cgmlp", layout), self._dtype, halves[1])
        with record_function(f"{RANGE}merge"):
            x_ND.add_(self._merge(self._fusion.plus(attended_ND, convolved_ND, layout, both_N2D)))
        with record_function(f"{RANGE}ffn2"):
            self._ffn2.add_to(x_ND, plan.frames.get("ffn2"))
        if last is not None:
            with record_function(f"{RANGE}prompt"):
                last(x_ND, layout)
        with record_function(f"{RANGE}norm"):
            return self._final(x_ND)
