"""OWSM's layers: the E-Branchformer's and the Transformer decoder's, as ESPnet has them.

ESPnet's own modules do the work; nothing of them is copied or subclassed, so with every gate open the result is
ESPnet's.

Shape legend: B utterances, T encoder frames, N frames of all utterances, K kept frames, Q sequences, L tokens, D model
size, U hidden units.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from localgp.backbones.base import Branch, Branches, Run
from localgp.backbones.blocks import PackedAttention, PackedFeedForward, PackedNorm, fill
from localgp.kernels.depthwise import Depthwise
from localgp.kernels.linear import Linear, activation_of
from localgp.kernels.plan import LayerPlan
from localgp.kernels.ragged import RANGE, Ragged


def encoder_branches(layer: Any) -> Branches:
    """Of ESPnet's EBranchformerEncoderLayer."""
    cgmlp, unit = layer.cgmlp, layer.cgmlp.csgu
    after = () if unit.linear is None else (unit.linear,)
    return {
        "ffn1": _feed_forward(layer.feed_forward_macaron, layer.norm_ff_macaron, layer.ff_scale),
        "attention": _attention("attention", layer.attn, layer.norm_mha),
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


def decoder_branches(layer: Any) -> Branches:
    """Of ESPnet's DecoderLayer."""
    return {
        "self_attention": _attention("attention", layer.self_attn, layer.norm1),
        "source_attention": _attention("source", layer.src_attn, layer.norm2),
        "ffn": _feed_forward(layer.feed_forward, layer.norm3, 1.0),
    }


def _feed_forward(ffn: Any, norm: nn.Module, scale: float) -> Branch:
    return Branch("ffn", (ffn.w_1, ffn.w_2), norm=norm, module=ffn, scale=scale, activation=ffn.activation)


def _attention(kind: Any, attention: Any, norm: nn.Module) -> Branch:
    linears = attention.linear_q, attention.linear_k, attention.linear_v, attention.linear_out
    normed = not isinstance(attention.q_norm, nn.Identity)
    head_norms = (attention.q_norm, attention.k_norm) if normed else None
    return Branch(kind, linears, norm=norm, module=attention, heads=attention.h, head_norms=head_norms)


def run_encoder_layer(layer: Any, x_BTD: Tensor, mask_B1T: Tensor, run: Run) -> Tensor:
    """One E-Branchformer layer (ESPnet's EBranchformerEncoderLayer).

    x ─ +0.5 FFN1 ─┬─ attention ─┐
                   └─ cgMLP ─────┴ merge ─ + ─ +0.5 FFN2 ─ norm
    """
    drop = layer.dropout

    def ffn1(frames: Tensor) -> Tensor:
        return drop(layer.feed_forward_macaron(layer.norm_ff_macaron(frames)))

    def ffn2(frames: Tensor) -> Tensor:
        return drop(layer.feed_forward(layer.norm_ff(frames)))

    def attend(frames: Tensor, mask: Tensor) -> Tensor:
        normed = layer.norm_mha(frames)
        return drop(layer.attn(normed, normed, normed, mask))

    def convolve(frames: Tensor) -> Tensor:
        return drop(layer.cgmlp(layer.norm_mlp(frames), None))

    x_BTD = x_BTD + run.frames("ffn1", ffn1, x_BTD, layer.ff_scale)
    attended = run.attention("attention", attend, x_BTD, mask_B1T)
    convolved = run.utterance("cgmlp", convolve, x_BTD)
    both = torch.cat([attended, convolved], dim=-1)
    fused = layer.depthwise_conv_fusion(both.transpose(1, 2)).transpose(1, 2)
    x_BTD = x_BTD + drop(layer.merge_proj(both + fused))
    x_BTD = x_BTD + run.frames("ffn2", ffn2, x_BTD, layer.ff_scale)
    return layer.norm_final(x_BTD)


def run_decoder_layer(
    layer: Any, x_QLD: Tensor, mask_QLL: Tensor, memory_QTD: Tensor, source_Q1T: Tensor, run: Run
) -> Tensor:
    """One pre-norm decoder layer (ESPnet's DecoderLayer).

    x ─ + self-attention ─ + source attention ─ + FFN
    """
    drop = layer.dropout

    def attend(tokens: Tensor, mask: Tensor) -> Tensor:
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
    """cgMLP with its norm. Its hidden units are two products, so that neither half is copied out of a whole."""

    def __init__(self, norm: nn.LayerNorm, cgmlp: Any, dtype: torch.dtype) -> None:
        self._norm = PackedNorm(norm, dtype)
        linear, unit = cgmlp.channel_proj1[0], cgmlp.csgu
        activation = activation_of(cgmlp.channel_proj1[1])
        (kept_w, gated_w), (kept_b, gated_b) = linear.weight.chunk(2), linear.bias.chunk(2)
        self._kept = Linear(kept_w, kept_b, dtype, activation)
        self._gated = Linear(gated_w, gated_b, dtype, activation)
        self._unit_norm = PackedNorm(unit.norm, dtype)
        self._conv = Depthwise(unit.conv, dtype)
        self._linear = None
        if unit.linear is not None:
            self._linear = Linear(unit.linear.weight, unit.linear.bias, dtype)
        self._activation = None if isinstance(unit.act, nn.Identity) else unit.act
        self._out = Linear(cgmlp.channel_proj2.weight, cgmlp.channel_proj2.bias, dtype)

    def __call__(self, x_ND: Tensor, index_K: Tensor | None, layout: Ragged) -> Tensor:
        normed = self._norm(x_ND, index_K)
        kept_KU = self._kept(normed)
        gated_KU = self._unit_norm(self._gated(normed))
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
        self._fusion = Depthwise(layer.depthwise_conv_fusion, dtype)
        self._merge = Linear(layer.merge_proj.weight, layer.merge_proj.bias, dtype)
        self._final = PackedNorm(layer.norm_final, torch.float32)
        self._dtype = dtype

    def __call__(self, x_ND: Tensor, layout: Ragged, plan: LayerPlan) -> Tensor:
        """Changes ``x_ND`` on the way; the result is another tensor."""
        with record_function(f"{RANGE}ffn1"):
            self._ffn1.add_to(x_ND, plan.frames.get("ffn1"))
        both_N2D = x_ND.new_empty(len(x_ND), 2 * x_ND.shape[1], dtype=self._dtype)
        attended_ND, convolved_ND = both_N2D.chunk(2, dim=1)
        with record_function(f"{RANGE}attention"):
            fill(attended_ND, self._attention, x_ND, *plan.of("attention", layout))
        with record_function(f"{RANGE}cgmlp"):
            fill(convolved_ND, self._cgmlp, x_ND, *plan.of("cgmlp", layout))
        with record_function(f"{RANGE}merge"):
            for rows, fused in self._fusion(both_N2D, layout):
                both_N2D[rows].add_(fused)
            x_ND.add_(self._merge(both_N2D))
        with record_function(f"{RANGE}ffn2"):
            self._ffn2.add_to(x_ND, plan.frames.get("ffn2"))
        with record_function(f"{RANGE}norm"):
            return self._final(x_ND)
