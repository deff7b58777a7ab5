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
from torch.profiler import record_function

from localgp.backbones.base import Branch, Branches
from localgp.kernels.fill import Filled
from localgp.kernels.int8 import rows_type
from localgp.kernels.kept import Kept
from localgp.kernels.kept import attend as attend_kept
from localgp.kernels.linear import Linear, activation_of, fused
from localgp.kernels.plan import LayerPlan
from localgp.kernels.ragged import LONG, RANGE, Ragged, attend
from localgp.kernels.rows import gather_norm, scatter_add
from localgp.precision import cpu_multiplies_bf16

Where = Tensor | Kept | Filled | None
"""The rows that a part runs on: their indices, or what a GPU alone knows of them, or with what the others get; None for
all."""

ROWS = 32  # rows of a step that weights are laid out for; all counts from 5 to 256 get the same layout
SOME = 512  # rows whose activations stay in a CPU's cache: 8 bits pass over them several times for a product


class PackedNorm:
    """A layer norm's parameters, applied to some rows."""

    def __init__(self, norm: Any, dtype: torch.dtype) -> None:
        self._weight, self._bias = norm.weight.detach().float(), norm.bias.detach().float()
        self._eps, self._dtype = norm.eps, rows_type(dtype)

    def __call__(self, x_ND: Tensor, where: Tensor | Kept | None = None) -> Tensor:
        index, count = (where.index_N, where.count) if isinstance(where, Kept) else (where, None)
        return gather_norm(x_ND, index, self._weight, self._bias, self._eps, self._dtype, count)


class PackedFeedForward:
    """FFN with its norm, its residual scale (the macaron's 0.5) folded into the second weight."""

    def __init__(self, branch: Branch, dtype: torch.dtype) -> None:
        first, second = _linears(branch)
        self._norm, self._some = PackedNorm(branch.norm, dtype), SOME if dtype == torch.int8 else None
        self._first = fused([first], dtype, _activation(branch))
        bias = None if second.bias is None else second.bias * branch.scale
        behind = _activation(branch)
        self._second = Linear(second.weight * branch.scale, bias, dtype, behind=behind)

    def add_to(self, x_ND: Tensor, where: Where) -> None:
        """Adds its output to the rows where it runs, in place."""
        if isinstance(where, Kept):
            self._second.to_rows(self._first(self._norm(x_ND, where), where), where, x_ND, add=True)
        elif isinstance(where, Filled):
            some = where.index_K.split(self._some or len(where.index_K))
            y_KD = torch.cat([self._second(self._first(self._norm(x_ND, where_R))) for where_R in some])
            x_ND.add_(where.of_all(y_KD))
        elif where is None:
            for x_RD in x_ND.split(self._some or max(1, len(x_ND))):
                scatter_add(x_RD, None, self._second(self._first(self._norm(x_RD))))
        elif len(where):
            for where_R in where.split(self._some or len(where)):
                scatter_add(x_ND, where_R, self._second(self._first(self._norm(x_ND, where_R))))


class PackedAttention:
    """Self-attention with its norm; queries, keys and values are one product. Beside weights in 8 bits, attention among
    many frames is in bf16, where a CPU multiplies it."""

    def __init__(self, branch: Branch, dtype: torch.dtype) -> None:
        query, key, value, out = _linears(branch)
        self._norm, self._dtype = PackedNorm(branch.norm, dtype), rows_type(dtype)
        self._qkv = fused([query, key, value], dtype)
        self._out = fused([out], dtype)
        self._heads, self._head_norms = branch.heads, branch.head_norms
        self._short = dtype == torch.int8 and cpu_multiplies_bf16()

    def __call__(self, x_ND: Tensor, index_K: Tensor | None, layout: Ragged) -> Tensor:
        """Of the kept frames, (K, D)."""
        qkv_K3Hd = self._by_head(self._qkv(self._norm(x_ND, index_K)))
        if self._short and layout.longest * qkv_K3Hd.shape[3] >= LONG:
            qkv_K3Hd = qkv_K3Hd.bfloat16()
        return self._out(attend(qkv_K3Hd, layout).to(self._dtype))

    def add_to(self, x_ND: Tensor, where: Where, layout: Ragged) -> None:
        """Adds its output to the rows where it runs, in place; ``layout`` is theirs."""
        if isinstance(where, Kept):
            self._out.to_rows(self._attended(x_ND, where), where, x_ND, add=True)
        elif isinstance(where, Filled):
            x_ND.add_(where.of_all(self(x_ND, where.index_K, layout)))
        elif where is None or len(where):
            scatter_add(x_ND, where, self(x_ND, where, layout))

    def spread(self, x_ND: Tensor, where: Where, layout: Ragged, into_ND: Tensor | None = None) -> Tensor:
        """See `spread`."""
        if not isinstance(where, Kept):
            return spread(self, x_ND, where, layout, self._dtype, into_ND)
        if into_ND is None:
            into_ND = torch.empty_like(x_ND, dtype=self._dtype)
        self._out.to_rows(self._attended(x_ND, where), where, into_ND.zero_(), add=False)
        return into_ND

    def _attended(self, x_ND: Tensor, kept: Kept) -> Tensor:
        return attend_kept(self._by_head(self._qkv(self._norm(x_ND, kept), kept)), kept)

    def _by_head(self, qkv_KC: Tensor) -> Tensor:
        qkv_K3Hd = qkv_KC.view(len(qkv_KC), 3, self._heads, -1)
        if self._head_norms is None:
            return qkv_K3Hd
        query, key = (
            norm(qkv_K3Hd[:, part].float()).to(qkv_K3Hd.dtype) for part, norm in enumerate(self._head_norms)
        )
        return torch.stack([query, key, qkv_K3Hd[:, 2]], dim=1)


class PackedTransformerLayer:
    """x ─ + attention ─ + FFN: a pre-norm Transformer encoder's layer. A frame that neither needs stays as it is, and
    nothing is computed for it.

    Args:
        parts: Of the layer; their weights are read now.
        dtype: Of the products.
    """

    def __init__(self, parts: Branches, dtype: torch.dtype) -> None:
        self._attention = PackedAttention(parts["attention"], dtype)
        self._ffn = PackedFeedForward(parts["ffn"], dtype)

    def __call__(self, x_ND: Tensor, layout: Ragged, plan: LayerPlan) -> Tensor:
        """Changes ``x_ND``, and returns it."""
        with record_function(f"{RANGE}attention"):
            self._attention.add_to(x_ND, *plan.of("attention", layout))
        with record_function(f"{RANGE}ffn"):
            self._ffn.add_to(x_ND, plan.frames.get("ffn"))
        return x_ND


def spread(
    part: Callable[[Tensor, Tensor | None, Ragged], Tensor],
    x_ND: Tensor,
    where: Where,
    layout: Ragged,
    dtype: torch.dtype,
    into_ND: Tensor | None = None,
) -> Tensor:
    """A part's result where it runs, and zeros elsewhere.

    Args:
        part: Of x, the indices of the rows where it runs, and their layout, the result for these rows.
        dtype: Of the result.
        into_ND: Where to write it.
    """
    assert not isinstance(where, Kept), "the rows of a part that has neighbours are known on the host"
    if where is None:
        y_ND = part(x_ND, None, layout)
        return y_ND if into_ND is None else into_ND.copy_(y_ND)
    if isinstance(where, Filled):
        y_ND = where.of_all(part(x_ND, where.index_K, layout))
        return y_ND if into_ND is None else into_ND.copy_(y_ND)
    if into_ND is None:
        into_ND = torch.empty_like(x_ND, dtype=dtype)
    into_ND.zero_()
    return into_ND.index_copy_(0, where, part(x_ND, where, layout)) if layout.total else into_ND


class StepNorm:
    """Layer normalisation in fp32, whatever the weights' type.

    Args:
        norm: ``nn.LayerNorm``; its weights are read here.
        dtype: Of the weights that the result is multiplied with.
    """

    def __init__(self, norm: Any, dtype: torch.dtype) -> None:
        self._shape, self._eps, self._dtype = norm.normalized_shape, norm.eps, rows_type(dtype)
        self._weight, self._bias = norm.weight.detach().float(), norm.bias.detach().float()

    def __call__(self, x: Tensor) -> Tensor:
        if x.is_cuda:
            rows = gather_norm(x.flatten(0, -2), None, self._weight, self._bias, self._eps, self._dtype)
            return rows.view(x.shape)
        return F.layer_norm(x.float(), self._shape, self._weight, self._bias, self._eps).to(self._dtype)


class StepLayer:
    """A pre-norm decoder layer for steps of few rows: projections of the same input are one product.

    Args:
        parts: Self-attention, attention to the encoder's output, FFN, in this order.
        dtype: Type of weights and products.

    Attributes:
        sizes: Multiplications that a row has with the weights of each part.
        source_key_value: Weights of the source attention's keys and values by themselves, see `_apart`; None where keys
            are normalised.
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
        self.source_key_value = None if source.head_norms else self._apart(key, value, dtype)
        first, second = _linears(ffn)
        self.sizes = [
            sum(one.weight.numel() for one in linears)
            for linears in (_linears(own), (query, out), (first, second))
        ]
        self._ffn_in = fused([first], dtype, _activation(ffn), ROWS)
        self._ffn_out = fused([second], dtype, rows=ROWS, behind=_activation(ffn))

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

    def _apart(
        self, key: nn.Linear, value: nn.Linear, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Weights of keys and of values (H, d, D), and the values' bias (D,), for attention without either."""
        kind = rows_type(dtype)
        weights = (one.weight.detach().to(kind).unflatten(0, (self.heads, -1)) for one in (key, value))
        return *weights, None if value.bias is None else value.bias.detach().to(kind)

    def source_query(self, x_RD: Tensor) -> Tensor:
        """Queries (R, H, d) to the encoder's output."""
        query = self._by_head(self._source_q(x_RD))
        return query if self._source_q_norm is None else self._source_q_norm(query)

    def feed_forward(self, x_RD: Tensor) -> Tensor:
        return self._ffn_out(self._ffn_in(x_RD))

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
