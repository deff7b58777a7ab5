"""One E-Branchformer layer on a packed sequence, with the gates' skipped frames left out.

Shape legend: N frames of all utterances, B utterances, K kept frames, M gated modules, D model size, U hidden units,
H heads, d size of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import record_function

from localgp.errors import ConfigError
from localgp.kernels.depthwise import Depthwise
from localgp.kernels.linear import Linear, activation_of
from localgp.kernels.ragged import RANGE, Ragged, attend
from localgp.kernels.rows import gather_norm, scatter_add


class LayerPlan:
    """The frames each module of a layer runs on: index lists, made once for the layer.

    Args:
        gates: Module to bool, (N,) or (B,).
        layout: Of the packed sequence.

    Attributes:
        frames: Module to its kept frames in order, (K,); None for all of them.
        layouts: Module to the layout of its kept frames.
    """

    def __init__(self, gates: dict[str, Tensor], layout: Ragged) -> None:
        self.frames: dict[str, Tensor | None] = {}
        self.layouts: dict[str, Ragged] = {}
        if not gates:
            return
        count = len(layout.lengths)
        if "cgmlp" in gates and len(gates["cgmlp"]) != count:
            raise ConfigError(
                "cgmlp can only be gated per utterance (its convolution needs neighbouring frames)"
            )
        per_frame = [
            open_ if len(open_) == layout.total else open_.index_select(0, layout.owner_N)
            for open_ in gates.values()
        ]
        masks_MN = torch.stack(per_frame)
        ends = F.pad(masks_MN.cumsum(1), (1, 0))[:, layout.offsets]
        kept = ends.diff(dim=1).tolist()  # per module and utterance; the one wait for a GPU
        places = masks_MN.nonzero()[:, 1].split([sum(row) for row in kept])
        for name, index, lengths in zip(gates, places, kept, strict=True):
            everything = lengths == layout.lengths
            self.frames[name] = None if everything else index
            self.layouts[name] = layout if everything else Ragged(lengths, layout.device)

    def of(self, name: str, layout: Ragged) -> tuple[Tensor | None, Ragged]:
        return self.frames.get(name), self.layouts.get(name, layout)


class Norm:
    """A layer norm's parameters, applied to some rows."""

    def __init__(self, norm: nn.LayerNorm, dtype: torch.dtype) -> None:
        self._weight, self._bias = norm.weight.detach().float(), norm.bias.detach().float()
        self._eps, self._dtype = norm.eps, dtype

    def __call__(self, x_ND: Tensor, index_K: Tensor | None = None) -> Tensor:
        return gather_norm(x_ND, index_K, self._weight, self._bias, self._eps, self._dtype)


class _FeedForward:
    """FFN with its norm, its residual scale (the macaron's 0.5) folded into the second weight."""

    def __init__(self, norm: nn.LayerNorm, ffn: Any, scale: float, dtype: torch.dtype) -> None:
        self._norm = Norm(norm, dtype)
        self._first = Linear(ffn.w_1.weight, ffn.w_1.bias, dtype, activation_of(ffn.activation))
        self._second = Linear(ffn.w_2.weight * scale, ffn.w_2.bias * scale, dtype)

    def add_to(self, x_ND: Tensor, index_K: Tensor | None) -> None:
        if index_K is not None and len(index_K) == 0:
            return
        scatter_add(x_ND, index_K, self._second(self._first(self._norm(x_ND, index_K))))


class _Attention:
    """Self-attention with its norm; queries, keys and values are one product."""

    def __init__(self, norm: nn.LayerNorm, attn: Any, dtype: torch.dtype) -> None:
        self._norm = Norm(norm, dtype)
        projections = (attn.linear_q, attn.linear_k, attn.linear_v)
        self._qkv = Linear(
            torch.cat([linear.weight for linear in projections]),
            torch.cat([linear.bias for linear in projections]),
            dtype,
        )
        self._out = Linear(attn.linear_out.weight, attn.linear_out.bias, dtype)
        self._heads = attn.h
        self._head_norms = None if isinstance(attn.q_norm, nn.Identity) else (attn.q_norm, attn.k_norm)

    def __call__(self, x_ND: Tensor, index_K: Tensor | None, layout: Ragged) -> Tensor:
        """Of the kept frames, (K, D)."""
        normed = self._norm(x_ND, index_K)
        qkv_K3HD = self._qkv(normed).view(len(normed), 3, self._heads, -1)
        if self._head_norms is not None:
            query, key = (
                norm(qkv_K3HD[:, part].float()).to(qkv_K3HD.dtype)
                for part, norm in enumerate(self._head_norms)
            )
            qkv_K3HD = torch.stack([query, key, qkv_K3HD[:, 2]], dim=1)
        return self._out(attend(qkv_K3HD, layout))


class _ConvolutionalGating:
    """cgMLP with its norm. Its hidden units are two products, so that neither half is copied out of a whole."""

    def __init__(self, norm: nn.LayerNorm, cgmlp: Any, dtype: torch.dtype) -> None:
        self._norm = Norm(norm, dtype)
        linear, unit = cgmlp.channel_proj1[0], cgmlp.csgu
        activation = activation_of(cgmlp.channel_proj1[1])
        (kept_w, gated_w), (kept_b, gated_b) = linear.weight.chunk(2), linear.bias.chunk(2)
        self._kept = Linear(kept_w, kept_b, dtype, activation)
        self._gated = Linear(gated_w, gated_b, dtype, activation)
        self._unit_norm = Norm(unit.norm, dtype)
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
        scale = layer.ff_scale
        self._ffn1 = _FeedForward(layer.norm_ff_macaron, layer.feed_forward_macaron, scale, dtype)
        self._ffn2 = _FeedForward(layer.norm_ff, layer.feed_forward, scale, dtype)
        self._attention = _Attention(layer.norm_mha, layer.attn, dtype)
        self._cgmlp = _ConvolutionalGating(layer.norm_mlp, layer.cgmlp, dtype)
        self._fusion = Depthwise(layer.depthwise_conv_fusion, dtype)
        self._merge = Linear(layer.merge_proj.weight, layer.merge_proj.bias, dtype)
        self._final = Norm(layer.norm_final, torch.float32)
        self._dtype = dtype

    def __call__(self, x_ND: Tensor, layout: Ragged, plan: LayerPlan) -> Tensor:
        """Changes ``x_ND`` on the way; the result is another tensor."""
        with record_function(f"{RANGE}ffn1"):
            self._ffn1.add_to(x_ND, plan.frames.get("ffn1"))
        both_N2D = x_ND.new_empty(len(x_ND), 2 * x_ND.shape[1], dtype=self._dtype)
        attended_ND, convolved_ND = both_N2D.chunk(2, dim=1)
        with record_function(f"{RANGE}attention"):
            _fill(attended_ND, self._attention, x_ND, *plan.of("attention", layout))
        with record_function(f"{RANGE}cgmlp"):
            _fill(convolved_ND, self._cgmlp, x_ND, *plan.of("cgmlp", layout))
        with record_function(f"{RANGE}merge"):
            for rows, fused in self._fusion(both_N2D, layout):
                both_N2D[rows].add_(fused)
            x_ND.add_(self._merge(both_N2D))
        with record_function(f"{RANGE}ffn2"):
            self._ffn2.add_to(x_ND, plan.frames.get("ffn2"))
        with record_function(f"{RANGE}norm"):
            return self._final(x_ND)


def _fill(
    into_ND: Tensor,
    module: Callable[[Tensor, Tensor | None, Ragged], Tensor],
    x_ND: Tensor,
    index_K: Tensor | None,
    kept: Ragged,
) -> None:
    """Writes a module's result where it runs, and zeros elsewhere."""
    if index_K is None:
        into_ND.copy_(module(x_ND, None, kept))
        return
    into_ND.zero_()
    if kept.total:
        into_ND.index_copy_(0, index_K, module(x_ND, index_K, kept))
