"""Parts of layers laid out for inference, for all families: on packed frames, and on the few rows of a decoding step.

Each reads a `Branch`'s weights when it is made. Products are in the type asked for; norms and residuals are in fp32.

Shape legend: N frames of all utterances, K kept frames, R rows, T encoder frames, D model size, H heads, d size of a
head, B utterances.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from localgp.backbones.base import Branch, Branches
from localgp.kernels.linear import Linear, activation_of, fused
from localgp.kernels.ragged import Ragged, attend
from localgp.kernels.rows import gather_norm, scatter_add

ROWS = 32  # rows of a step that weights are laid out for; all counts from 5 to 256 get the same layout


class PackedNorm:
    """A layer norm's parameters, applied to some rows."""

    def __init__(self, norm: Any, dtype: torch.dtype) -> None:
        self._weight, self._bias = norm.weight.detach().float(), norm.bias.detach().float()
        self._eps, self._dtype = norm.eps, dtype

    def __call__(self, x_ND: Tensor, index_K: Tensor | None = None) -> Tensor:
        return gather_norm(x_ND, index_K, self._weight, self._bias, self._eps, self._dtype)


class PackedFeedForward:
    """FFN with its norm, its residual scale (the macaron's 0.5) folded into the second weight."""

    def __init__(self, branch: Branch, dtype: torch.dtype) -> None:
        first, second = _linears(branch)
        self._norm = PackedNorm(branch.norm, dtype)
        self._first = fused([first], dtype, _activation(branch))
        bias = None if second.bias is None else second.bias * branch.scale
        self._second = Linear(second.weight * branch.scale, bias, dtype)

    def add_to(self, x_ND: Tensor, index_K: Tensor | None) -> None:
        """Adds its output to the rows ``index_K``, in place."""
        if index_K is not None and len(index_K) == 0:
            return
        scatter_add(x_ND, index_K, self._second(self._first(self._norm(x_ND, index_K))))


class PackedAttention:
    """Self-attention with its norm; queries, keys and values are one product."""

    def __init__(self, branch: Branch, dtype: torch.dtype) -> None:
        query, key, value, out = _linears(branch)
        self._norm = PackedNorm(branch.norm, dtype)
        self._qkv = fused([query, key, value], dtype)
        self._out = fused([out], dtype)
        self._heads, self._head_norms = branch.heads, branch.head_norms

    def __call__(self, x_ND: Tensor, index_K: Tensor | None, layout: Ragged) -> Tensor:
        """Of the kept frames, (K, D)."""
        normed = self._norm(x_ND, index_K)
        qkv_K3Hd = self._qkv(normed).view(len(normed), 3, self._heads, -1)
        if self._head_norms is not None:
            query, key = (
                norm(qkv_K3Hd[:, part].float()).to(qkv_K3Hd.dtype)
                for part, norm in enumerate(self._head_norms)
            )
            qkv_K3Hd = torch.stack([query, key, qkv_K3Hd[:, 2]], dim=1)
        return self._out(attend(qkv_K3Hd, layout))


def fill(
    into_ND: Tensor,
    part: Callable[[Tensor, Tensor | None, Ragged], Tensor],
    x_ND: Tensor,
    index_K: Tensor | None,
    kept: Ragged,
) -> None:
    """Writes a part's result where it runs, and zeros elsewhere."""
    if index_K is None:
        into_ND.copy_(part(x_ND, None, kept))
        return
    into_ND.zero_()
    if kept.total:
        into_ND.index_copy_(0, index_K, part(x_ND, index_K, kept))


class StepNorm:
    """Layer normalisation in fp32, whatever the weights' type.

    Args:
        norm: ``nn.LayerNorm``; its weights are read here.
        dtype: Type of the result.
    """

    def __init__(self, norm: Any, dtype: torch.dtype) -> None:
        self._shape, self._eps, self._dtype = norm.normalized_shape, norm.eps, dtype
        self._weight, self._bias = norm.weight.detach().float(), norm.bias.detach().float()

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), self._shape, self._weight, self._bias, self._eps).to(self._dtype)


class StepLayer:
    """A pre-norm decoder layer for steps of few rows: projections of the same input are one product.

    Args:
        parts: Self-attention, attention to the encoder's output, FFN, in this order.
        dtype: Type of weights and products.
    """

    def __init__(self, parts: Branches, dtype: torch.dtype) -> None:
        own, source, ffn = parts.values()
        self.heads = own.heads
        self.own_norm, self.source_norm, self.ffn_norm = (
            StepNorm(part.norm, dtype) for part in (own, source, ffn)
        )
        query, key, value, out = _linears(own)
        self._own_qkv, self.own_out = (
            fused([query, key, value], dtype, rows=ROWS),
            fused([out], dtype, rows=ROWS),
        )
        self.head_size = query.out_features // own.heads
        query, key, value, out = _linears(source)
        self._source_q, self._source_kv = (
            fused([query], dtype, rows=ROWS),
            fused([key, value], dtype, rows=ROWS),
        )
        self.source_out = fused([out], dtype, rows=ROWS)
        self._own_q_norm, self._own_k_norm = _head_norms(own, dtype)
        self._source_q_norm, self._source_k_norm = _head_norms(source, dtype)
        first, second = _linears(ffn)
        relu = isinstance(ffn.activation, nn.ReLU)
        self._ffn_in = fused([first], dtype, "relu" if relu else "none", ROWS)
        self._ffn_out = fused([second], dtype, rows=ROWS)
        self._activation = None if relu else ffn.activation

    def project_own(self, x_RD: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (R, H, d), and keys and values (R, 2, H, d), of the tokens."""
        qkv_R3Hd = self._own_qkv(x_RD).view(x_RD.shape[0], 3, self.heads, self.head_size)
        query, key_value = qkv_R3Hd[:, 0], qkv_R3Hd[:, 1:]
        if self._own_k_norm is not None and self._own_q_norm is not None:
            key_value = torch.stack([self._own_k_norm(qkv_R3Hd[:, 1]), qkv_R3Hd[:, 2]], dim=1)
            query = self._own_q_norm(query)
        return query, key_value

    def project_source(self, memory_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, T, H, d) of the encoder's output."""
        key, value = (self._by_head(x) for x in self._source_kv(memory_BTD).chunk(2, dim=-1))
        return key if self._source_k_norm is None else self._source_k_norm(key), value

    def source_query(self, x_RD: Tensor) -> Tensor:
        """Queries (R, H, d) to the encoder's output."""
        query = self._by_head(self._source_q(x_RD))
        return query if self._source_q_norm is None else self._source_q_norm(query)

    def feed_forward(self, x_RD: Tensor) -> Tensor:
        hidden = self._ffn_in(x_RD)
        return self._ffn_out(hidden if self._activation is None else self._activation(hidden))

    def _by_head(self, x_D: Tensor) -> Tensor:
        """(..., D) to (..., H, d)."""
        return x_D.unflatten(-1, (self.heads, self.head_size))


def _linears(branch: Branch) -> tuple[Any, ...]:
    return branch.linears


def _activation(branch: Branch) -> str | Callable[[Tensor], Tensor]:
    return "none" if branch.activation is None else activation_of(branch.activation)


def _head_norms(branch: Branch, dtype: torch.dtype) -> tuple[StepNorm | None, StepNorm | None]:
    if branch.head_norms is None:
        return None, None
    query, key = branch.head_norms
    return StepNorm(query, dtype), StepNorm(key, dtype)
