"""Weights of ESPnet's decoder layers, laid out for steps of few rows.

Shape legend: N rows, T encoder frames, D model size, H heads, K size of a head, B utterances.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from localgp.kernels.linear import Linear

ROWS = 32  # rows of a step that weights are laid out for; all counts from 5 to 256 get the same layout


class Norm:
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


def head_norm(norm: Any, dtype: torch.dtype) -> Norm | nn.Identity:
    """ESPnet's ``qk_norm`` where the model has it."""
    return norm if isinstance(norm, nn.Identity) else Norm(norm, dtype)


def fuse(dtype: torch.dtype, *linears: Any, relu: bool = False) -> Linear:
    """Several linear layers of one input as one."""
    weight = torch.cat([linear.weight.detach().to(dtype) for linear in linears])
    bias = torch.cat([linear.bias.detach().to(dtype) for linear in linears])
    return Linear(weight, bias, dtype, "relu" if relu else "none", ROWS)


class DecoderLayer:
    """One layer: projections of the same input are one product.

    Args:
        layer: ESPnet's ``DecoderLayer``.
        dtype: Type of weights and products.
    """

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        own, source, ffn = layer.self_attn, layer.src_attn, layer.feed_forward
        self.heads, self.head_size = own.h, own.d_k
        self.norm1, self.norm2, self.norm3 = (
            Norm(norm, dtype) for norm in (layer.norm1, layer.norm2, layer.norm3)
        )
        self.own_qkv = fuse(dtype, own.linear_q, own.linear_k, own.linear_v)
        self.own_out = fuse(dtype, own.linear_out)
        self.own_q_norm, self.own_k_norm = head_norm(own.q_norm, dtype), head_norm(own.k_norm, dtype)
        self.source_q = fuse(dtype, source.linear_q)
        self.source_kv = fuse(dtype, source.linear_k, source.linear_v)
        self.source_out = fuse(dtype, source.linear_out)
        self.source_q_norm = head_norm(source.q_norm, dtype)
        self.source_k_norm = head_norm(source.k_norm, dtype)
        relu = isinstance(ffn.activation, nn.ReLU)
        self.ffn_in, self.ffn_out = fuse(dtype, ffn.w_1, relu=relu), fuse(dtype, ffn.w_2)
        self.activation = nn.Identity() if relu else ffn.activation

    def heads_of(self, x_D: Tensor) -> Tensor:
        """(..., D) to (..., H, K)."""
        return x_D.unflatten(-1, (self.heads, self.head_size))

    def project_own(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (N, H, K), and keys and values (N, 2, H, K), of the tokens."""
        qkv_N3HK = self.own_qkv(x_ND).view(x_ND.shape[0], 3, self.heads, self.head_size)
        key_value_N2HK = qkv_N3HK[:, 1:]
        if isinstance(self.own_k_norm, Norm):
            key_value_N2HK = torch.stack([self.own_k_norm(qkv_N3HK[:, 1]), qkv_N3HK[:, 2]], dim=1)
        return self.own_q_norm(qkv_N3HK[:, 0]), key_value_N2HK

    def project_source(self, memory_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, T, H, K) of the encoder's output."""
        key, value = (self.heads_of(x) for x in self.source_kv(memory_BTD).chunk(2, dim=-1))
        return self.source_k_norm(key), value

    def source_query(self, x_ND: Tensor) -> Tensor:
        """Queries (N, H, K) to the encoder's output."""
        return self.source_q_norm(self.heads_of(self.source_q(x_ND)))

    def feed_forward(self, x_ND: Tensor) -> Tensor:
        return self.ffn_out(self.activation(self.ffn_in(x_ND)))
