"""What OWSM-CTC's layers have besides an E-Branchformer's: attention to a prompt, and what an intermediate CTC wrote.

Shape legend: B utterances, T encoder frames, N frames of all utterances, M tokens of the text before, D model size,
V vocabulary, H heads, d size of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from localgp.backbones.base import Branch, Branches
from localgp.backbones.blocks import PackedNorm
from localgp.backbones.owsm.layers import PackedLayer, attention_branch, encoder_branches
from localgp.kernels.int8 import rows_type
from localgp.kernels.linear import Linear, fused
from localgp.kernels.plan import LayerPlan
from localgp.kernels.ragged import Ragged

ROWS = 512  # of which CTC's probabilities are in memory at a time: 100 MB of 50,000 tokens


class Told(NamedTuple):
    """What the encoder is told of each utterance.

    Attributes:
        symbols: (B, 2, D), language and task, which stand before the frames.
        memory: (B, M, D), the text before, encoded.
        mask: (B, 1, M), True for its tokens.
    """

    symbols: Tensor
    memory: Tensor
    mask: Tensor


def told_branches(layer: Any, conditioned: tuple[nn.Linear, nn.Linear] | None) -> Branches:
    """Of ESPnet's EBranchformerEncoderLayer for CTC.

    Args:
        conditioned: CTC's output layer and the one that makes frames of its probabilities, where they are added to
            the layer's input.
    """
    parts = encoder_branches(layer)
    norm = parts.pop("norm")
    if layer.cross_attn is not None:
        parts["prompt"] = attention_branch("prompt", layer.cross_attn, layer.norm_cross_attn)
    first: Branches = {} if conditioned is None else {"conditioning": Branch("always", conditioned)}
    return first | parts | {"norm": norm}


def attend_prompt(layer: Any, told: Told, x_BTD: Tensor) -> Tensor:
    """ESPnet's attention to the prompt."""
    normed = layer.norm_cross_attn(x_BTD)
    attended: Tensor = layer.dropout(layer.cross_attn(normed, told.memory, told.memory, told.mask))
    return attended


class PackedPrompt:
    """Attention to the prompt with its norm. Where no text comes before, there is one token to attend to, and what
    comes of it is the same for all frames of an utterance."""

    def __init__(self, branch: Branch, dtype: torch.dtype) -> None:
        linears: tuple[Any, ...] = branch.linears
        query, key, value, out = linears
        self._norm = PackedNorm(branch.norm, dtype)
        self._query, self._out = fused([query], dtype), fused([out], dtype)
        self._key_value = fused([key, value], dtype)
        self._heads, self._dtype = branch.heads, rows_type(dtype)

    def add_to(self, x_ND: Tensor, layout: Ragged, told: Told) -> None:
        """In place."""
        tokens = told.memory.shape[1]
        key_BMD, value_BMD = self._key_value(told.memory.to(self._dtype)).chunk(2, dim=-1)
        if tokens == 1:
            x_ND.add_(self._out(value_BMD[:, 0].contiguous()).index_select(0, layout.owner_N))
            return
        query_BTD = layout.unpack(self._query(self._norm(x_ND)))
        query, key, value = (
            part.unflatten(-1, (self._heads, -1)).transpose(1, 2) for part in (query_BTD, key_BMD, value_BMD)
        )
        attended_BHTd = F.scaled_dot_product_attention(query, key, value, attn_mask=told.mask.unsqueeze(1))
        x_ND.add_(self._out(layout.pack(attended_BHTd.transpose(1, 2).flatten(2))))


class PackedConditioning:
    """What an intermediate CTC wrote, as frames; the same layers wherever it is added."""

    def __init__(self, ctc: nn.Linear, conditioning: nn.Linear, dtype: torch.dtype) -> None:
        self._ctc, self._frames = (Linear(one.weight, one.bias, dtype) for one in (ctc, conditioning))
        self._dtype = rows_type(dtype)

    def add_to(self, x_ND: Tensor) -> None:
        """In place."""
        for rows_ND in x_ND.split(ROWS):
            probability_NV = self._ctc(rows_ND.to(self._dtype)).float().softmax(-1)
            rows_ND.add_(self._frames(probability_NV.to(self._dtype)))


class PackedToldLayer:
    """An E-Branchformer layer with what OWSM-CTC adds to it.

    Args:
        layer: ESPnet's, whose weights are read now.
        conditioning: None where nothing is added to its input.
        dtype: Of the products.
    """

    def __init__(self, layer: Any, conditioning: PackedConditioning | None, dtype: torch.dtype) -> None:
        self._layer, self._conditioning, self._prompt = PackedLayer(layer, dtype), conditioning, None
        if layer.cross_attn is not None:
            branch = attention_branch("prompt", layer.cross_attn, layer.norm_cross_attn)
            self._prompt = PackedPrompt(branch, dtype)

    def of(self, told: Told) -> Callable[[Tensor, Ragged, LayerPlan], Tensor]:
        """The layer for a batch."""
        return partial(self._run, told)

    def _run(self, told: Told, x_ND: Tensor, layout: Ragged, plan: LayerPlan) -> Tensor:
        if self._conditioning is not None:
            self._conditioning.add_to(x_ND)
        last = None if self._prompt is None else partial(self._prompt.add_to, told=told)
        return self._layer(x_ND, layout, plan, last)
