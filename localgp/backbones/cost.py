"""FLOPs of any family, from its table of branches, in the paper's convention: fvcore's, 1 multiply-add = 1 FLOP.

The count is a formula of how many rows each part of each layer runs on, so that a model pruned on real data is counted
exactly for every utterance without tracing each. fvcore itself, run on the real modules, agrees to the last digit
(tests/test_flops.py).

The paper's column is the encoder's alone, since a decoder's cost depends on hypotheses and end detection. So a decoder,
with cached keys and values, is counted for one hypothesis of a stated number of tokens, its best one: what the beam's
others cost comes on top.

Shape legend: N tokens, L layers, M gated modules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from localgp.backbones.base import Backbone, Branch

CONVENTION = "fvcore, 1 MAC = 1 FLOP"


def norm_cost(size: int) -> int:
    return 5 * size  # fvcore's figure for an affine layer norm, per element


@dataclass(frozen=True)
class PartCost:
    """Of one part of a layer, in FLOPs.

    Attributes:
        row: For each row that it runs on.
        pair: For each pair of a row and one that it attends to.
        source: For each row of the encoder's output, or of what an encoder is told, once per utterance.
        weights: Numbers that it reads to run at all.
        gated: Whether it can be skipped.
    """

    row: int
    pair: int = 0
    source: int = 0
    weights: int = 0
    gated: bool = True

    @classmethod
    def of(cls, part: Branch) -> PartCost:
        linears: Sequence[Any] = part.linears
        counts = [linear.weight.numel() for linear in linears]
        norms: list[Any] = [norm for norm in (part.norm, *part.inner_norms) if norm is not None]
        row = sum(norm_cost(norm.weight.numel()) for norm in norms)
        row += sum(norm_cost(norm.weight.numel()) * part.heads for norm in _of_heads(part))
        pair = source = 0
        if part.kind in ("attention", "source", "prompt"):
            pair = 2 * linears[0].out_features
        if part.kind in ("source", "prompt"):  # keys and values
            source = counts.pop(1) + counts.pop(1)
        return cls(row + sum(counts), pair, source, sum(counts), part.gated)

    def on(self, rows: float, pairs: float) -> float:
        """On so many rows, with so many pairs in all."""
        return rows * self.row + pairs * self.pair


def _of_heads(part: Branch) -> tuple[Any, ...]:
    """Norms of queries and keys, each as often as there are heads."""
    return part.head_norms or ()


class EncoderCost:
    """Cost of an encoder as a function of how many frames each part runs on, in FLOPs; one that is told of the text
    before is told that there is none, which is one row.

    Args:
        feature_frames: Of the input.

    Attributes:
        frames: T, encoder frames of it.
        parts: Per layer, name to cost.
    """

    def __init__(self, backbone: Backbone, feature_frames: int) -> None:
        self.frames = backbone.timeline.frames(feature_frames)
        self.size, self.layers = backbone.shape.size, backbone.shape.encoder_layers
        self.stem = backbone.stem_flops(feature_frames)
        self.parts = [
            {name: PartCost.of(part) for name, part in backbone.branches("encoder", index).items()}
            for index in range(self.layers)
        ]
        self.end = self.frames * norm_cost(self.size)

    def part(self, name: str, kept: float | None = None) -> float:
        """One kind of part in all layers, on ``kept`` frames of each, which attend to each other; None: on all."""
        return sum(self._on(layer[name], kept) for layer in self.parts)

    def always(self) -> float:
        """What cannot be gated, with the last norm; the stem apart."""
        return self.end + sum(self._on(p) for layer in self.parts for p in layer.values() if not p.gated)

    def encoder(self, kept: Sequence[Mapping[str, float]] | None = None) -> float:
        """The whole encoder without gates.

        Args:
            kept: Per layer, part to frames it runs on; one that is not named runs on all.
        """
        total = float(self.stem) + self.always()
        for index, layer in enumerate(self.parts):
            counts = kept[index] if kept else {}
            total += sum(self._on(cost, counts.get(name)) for name, cost in layer.items() if cost.gated)
        return total

    def shortened(self, left: Sequence[int]) -> float:
        """The whole encoder on fewer frames from some layer on.

        Args:
            left: Frames that each layer runs on, and then those of the output.
        """
        total = float(self.stem) + left[-1] * norm_cost(self.size)
        for layer, frames in zip(self.parts, left[:-1], strict=True):
            total += sum(self._on(cost, frames) for cost in layer.values())
        return total

    def _on(self, cost: PartCost, kept: float | None = None) -> float:
        kept = self.frames if kept is None else kept
        return cost.on(kept, kept) + cost.source if cost.source else cost.on(kept, kept**2)


class DecoderCost:
    """Cost of a decoder with caches over one hypothesis, in FLOPs.

    Args:
        frames: Of the encoder's output.
    """

    def __init__(self, backbone: Backbone, frames: int) -> None:
        self.frames = frames
        self.size, self.layers = backbone.shape.size, backbone.shape.decoder_layers
        self.vocabulary = backbone.shape.vocabulary
        self.parts = [
            {name: PartCost.of(part) for name, part in backbone.branches("decoder", index).items()}
            for index in range(self.layers)
        ]
        self.modules = list(self.parts[0])

    def source(self) -> float:
        """Keys and values of the encoder's output, once per utterance in every layer."""
        return float(self.frames * sum(cost.source for layer in self.parts for cost in layer.values()))

    def reading(self) -> float:
        """Of a token, in all layers, with the encoder's keys and values: part of what `part` counts."""
        costs = [cost for layer in self.parts for cost in layer.values() if cost.source]
        return float(sum(cost.pair * self.frames for cost in costs))

    def part(self, name: str, tokens: float, keys: float) -> float:
        """One kind of part in all layers on ``tokens``, with ``keys`` pairs of tokens in all."""
        return sum(self._on(layer[name], tokens, keys) for layer in self.parts)

    def output(self, tokens: float) -> float:
        return tokens * (self.size * self.vocabulary + norm_cost(self.size))

    def terms(self, tokens: int, kept: float = 1.0) -> dict[str, float]:
        """By kind of part, at the share ``kept`` of (token, layer) pairs for each, spread evenly."""
        pairs = (kept * tokens) * (kept * tokens + 1) / 2
        return {
            "source keys and values": self.source(),
            **{name: self.part(name, kept * tokens, pairs) for name in self.modules},
            "output": self.output(tokens),
        }

    def passes(self, tokens: float, run_LM: np.ndarray) -> float:
        """What is computed for ``tokens``, of which ``run_LM`` ran in each part of each layer, spread evenly."""
        total = self.output(tokens)
        for layer, run_M in zip(self.parts, run_LM, strict=True):
            for cost, run in zip(layer.values(), run_M, strict=True):
                total += self._on(cost, run, run * (run + 1) / 2)
        return float(total)

    def measured(self, open_NLM: np.ndarray, modules: list[str]) -> float:
        """One hypothesis, with the parts that really ran; those not among ``modules`` always do."""
        opened = np.ones((*open_NLM.shape[:2], len(self.modules)), dtype=bool)
        for m, name in enumerate(self.modules):
            if name in modules:
                opened[..., m] = open_NLM[..., modules.index(name)]
        return self.source() + self.passes(len(opened), opened.sum(0).astype(float))

    def _on(self, cost: PartCost, tokens: float, keys: float) -> float:
        return cost.on(tokens, tokens * self.frames if cost.source else keys)
