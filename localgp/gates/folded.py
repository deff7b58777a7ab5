"""Local Gate Predictor for inference: Algorithm 1 with the value projections folded into the heads.

A predictor's logits are linear in what its attention returns, so the softmax weights w_j may be applied to the
logits of the values instead of to the values:

    h . (x + sum_j w_j (V_j k_j + c_j))  =  h . x + sum_j w_j ((V_j^T h) . k_j + h . c_j)

The vectors V_j^T h of all later layers' heads are known beforehand. Instead of a D x D projection a layer needs one
product of D x (modules x layers to come), and no values are kept, only those few logits. Of the two classes only the
difference of their logits is computed: softmax(run) > threshold is run - skip > log(threshold / (1 - threshold)).

With cosine attention keys are the inputs at unit mean square, and the values' part of a product reads those.

The same decisions as `LocalGates` up to rounding.

Shape legend: N frames of all utterances, B utterances, D model size, C keys so far, K keys at most, L layers, M
gated modules.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from localgp.gates.gumbel import RUN
from localgp.gates.local import LocalGates
from localgp.kernels import devices

CHUNK = 128  # frames


@dataclass
class FoldedMemory:
    """Keys that the layers so far have left for later layers' gates.

    Attributes:
        keys_NKD: Keys, the first ``count`` of them filled in.
        logits_NKLM: What each key's value adds to each later layer's logits.
        count: Of the keys that are filled in.
        decided_MN: By the first layer for all others, where it does.
    """

    keys_NKD: Tensor
    logits_NKLM: Tensor
    count: int = 0
    decided_MN: Tensor | None = None


class FoldedLocalGates:
    """LocalGP for inference: its linear maps multiplied together beforehand.

    Args:
        gates: Trained gates; read at construction.
    """

    def __init__(self, gates: LocalGates) -> None:
        self.modules, self.needs = gates.modules_gated, gates.needs
        self._cosine, self._once = gates.attention == "cosine", gates.once
        self._layers = len(gates.layers)
        odds = gates.threshold / (1 - gates.threshold) if gates.threshold < 1 else math.inf
        self._least = math.log(odds) if odds > 0 else -math.inf
        aligns: list[Any] = list(gates.align.values())
        self._align = [
            (align.weight.detach(), align.bias.detach()) if hasattr(align, "weight") else None
            for align in aligns
        ]
        heads_LMD, bias_LM = _differences(gates)
        self._heads = heads_LMD.shape[1]
        predictors: list[Any] = list(gates.layers)
        values = [gates.context_value, *(layer.value for layer in predictors)]
        # Source 0 is the contexts' common projection, source l + 1 layer l's; they serve the layers from there on.
        self._weights, self._biases = [], []
        for source, value in enumerate(values):
            if value is None:  # the last layer's
                later_w, later_b = heads_LMD[self._layers :], bias_LM[self._layers :]
            else:
                later_w = heads_LMD[source:] @ value.weight.detach()
                later_b = heads_LMD[source:] @ value.bias.detach()
            own_w, own_b = heads_LMD[source - 1 : source], bias_LM[source - 1 : source]
            if source == 0:
                own_w, own_b = heads_LMD[:0], bias_LM[:0]
            self._weights.append(torch.cat([own_w, later_w]).flatten(0, 1))
            self._biases.append(torch.cat([own_b, later_b]).flatten())

    def flops(self, frames: int) -> int:
        """Multiply-adds over all layers: products with the folded heads, scores, and the weighted logits."""
        columns = sum(weight.shape[0] for weight in self._weights[1:])
        size, contexts = self._weights[0].shape[1], len(self._align)
        keys = sum(contexts + layer for layer in range(self._layers))
        folded = size * (columns + contexts * self._weights[0].shape[0])
        return frames * (folded + keys * (size + self._heads))

    def begin(self, contexts: list[Tensor], owner_N: Tensor) -> FoldedMemory:
        """The memory of a batch, with its contexts in it.

        Args:
            contexts: In the order of ``needs``, each (N, dim), or (B, dim) for one that is the same for a whole
                utterance.
            owner_N: The utterance of each frame.
        """
        frames = owner_N.shape[0]
        projected = [
            tuple(part if part.shape[0] == frames else part.index_select(0, owner_N) for part in pair)
            for pair in self.project(contexts)
        ]
        return self.remember(projected, frames)

    def project(self, contexts: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Key and logits of each context, for as many frames as it has."""
        projected = []
        for context, align in zip(contexts, self._align, strict=True):
            key = context.float() if align is None else F.linear(context.float(), *align)
            if self._cosine:
                key = F.rms_norm(key, key.shape[-1:])
            logits = F.linear(key, self._weights[0], self._biases[0]).unflatten(1, (self._layers, -1))
            projected.append((key, logits))
        return projected

    def remember(self, projected: Sequence[Sequence[Tensor]], frames: int) -> FoldedMemory:
        """A memory that begins with the contexts' keys and logits, of every frame."""
        most = len(projected) + self._layers - 1
        like = self._weights[0]
        memory = FoldedMemory(
            like.new_empty(frames, most, like.shape[-1], dtype=torch.float32),
            like.new_zeros(frames, most, self._layers, self._heads, dtype=torch.float32),
            len(projected),
        )
        for index, (key, logits) in enumerate(projected):
            memory.keys_NKD[:, index] = key
            memory.logits_NKLM[:, index] = logits
        return memory

    def gate(self, layer: int, x_ND: Tensor, memory: FoldedMemory) -> Tensor:
        """Where each module of a layer runs, (M, N), from the layer's input in fp32."""
        if memory.decided_MN is not None:
            return memory.decided_MN
        key_ND = x_ND
        if self._cosine:
            key_ND = F.rms_norm(x_ND, x_ND.shape[-1:])
            product = self._product_of_cosine(layer, x_ND, key_ND)
        else:
            product = F.linear(x_ND, self._weights[layer + 1], self._biases[layer + 1])
        keys_NKD, logits_NKLM = memory.keys_NKD, memory.logits_NKLM
        kernels = devices.triton_on(x_ND.device)
        of = decide if kernels is None else kernels.decide
        divisor = x_ND.shape[-1] if self._cosine else 1
        mask_MN: Tensor = of(
            layer, key_ND, product, keys_NKD, logits_NKLM, memory.count, self._least, divisor
        )
        memory.count += layer + 1 < self._layers
        if self._once:
            memory.decided_MN = mask_MN = mask_MN.expand(len(self.modules), -1)
        return mask_MN

    def _product_of_cosine(self, layer: int, x_ND: Tensor, key_ND: Tensor) -> Tensor:
        """The layer's own heads read its input, the values are projected from the key."""
        weight, bias, own = self._weights[layer + 1], self._biases[layer + 1], self._heads
        return torch.cat(
            [F.linear(x_ND, weight[:own], bias[:own]), F.linear(key_ND, weight[own:], bias[own:])], dim=1
        )


def decide(
    layer: int,
    key_ND: Tensor,
    product_NC: Tensor,
    keys_NKD: Tensor,
    logits_NKLM: Tensor,
    count: int,
    least: float,
    divisor: int,
) -> Tensor:
    """What follows a layer's product: its gates, (M, N), from the keys so far; its own key and logits join them.

    Args:
        key_ND: The layer's.
        product_NC: Its logits, and what its value adds to those of the layers behind it.
        count: Keys so far.
        least: Logits above it run.
        divisor: Of the scores.
    """
    layers, modules = logits_NKLM.shape[2:]
    logits_NLM = product_NC.unflatten(1, (-1, modules))
    logits_NM = logits_NLM[:, 0]
    if count:
        scores_NC = _scores(keys_NKD[:, :count], key_ND)
        if divisor != 1:
            scores_NC = scores_NC / divisor
        weights_NC1 = torch.softmax(scores_NC, dim=1).unsqueeze(2)
        logits_NM = logits_NM + (weights_NC1 * logits_NKLM[:, :count, layer]).sum(1)
    if layer + 1 < layers:
        keys_NKD[:, count] = key_ND
        logits_NKLM[:, count, layer + 1 :] = logits_NLM[:, 1:]
    return (logits_NM > least).t()


def _scores(keys_NCD: Tensor, x_ND: Tensor) -> Tensor:
    """Each frame's products with its own keys, (N, C)."""
    if keys_NCD.is_cuda:
        return torch.bmm(keys_NCD, x_ND.unsqueeze(2)).squeeze(2)
    # A CPU's batched product is made for larger matrices; so many frames at a time that the products stay in cache
    parts = zip(keys_NCD.split(CHUNK), x_ND.split(CHUNK), strict=True)
    return torch.cat([(keys * x.unsqueeze(1)).sum(-1) for keys, x in parts])


def _differences(gates: LocalGates) -> tuple[Tensor, Tensor]:
    """Weights (L, M, D) and biases (L, M) of "run" less "skip"."""
    weights, biases = [], []
    predictors: list[Any] = list(gates.layers)
    for layer in predictors:
        heads = list(layer.heads.values())
        weights.append(torch.stack([head.weight[RUN] - head.weight[1 - RUN] for head in heads]))
        biases.append(torch.stack([head.bias[RUN] - head.bias[1 - RUN] for head in heads]))
    shift_LM = gates.shift()
    bias_LM = torch.stack(biases) if shift_LM is None else torch.stack(biases) + shift_LM
    return torch.stack(weights).detach(), bias_LM.detach()
