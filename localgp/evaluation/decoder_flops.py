"""Decoder cost in the paper's convention (1 multiply-add = 1 FLOP), with cached keys and values.

The paper's column is the encoder's alone, since a decoder's cost depends on hypotheses and end detection. So this is
counted for one hypothesis of a stated number of tokens, its best one: what the beam's others cost comes on top.

Shape legend: N tokens, L layers, M gated modules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from localgp.decoder.train import MODULES
from localgp.evaluation.flops import global_gates
from localgp.gates import GlobalGates, LocalGates


@dataclass(frozen=True)
class DecoderCost:
    """Cost of a Transformer decoder over one hypothesis, in FLOPs.

    Attributes:
        frames: Encoder frames; size: D; ffn: hidden units; vocabulary: V; layers: number of blocks.
    """

    frames: int
    size: int
    ffn: int
    vocabulary: int
    layers: int

    @classmethod
    def of(cls, decoder: Any, frames: int) -> DecoderCost:
        """Reads the dimensions off an ESPnet decoder."""
        return cls(
            frames=frames,
            size=decoder.output_layer.in_features,
            ffn=decoder.decoders[0].feed_forward.w_1.out_features,
            vocabulary=decoder.output_layer.out_features,
            layers=len(decoder.decoders),
        )

    @classmethod
    def of_config(cls, config: dict[str, Any], frames: int) -> DecoderCost:
        """The same from ESPnet's training configuration, without a model."""
        conf = config["decoder_conf"]
        return cls(
            frames=frames,
            size=int(config["encoder_conf"]["output_size"]),
            ffn=int(conf["linear_units"]),
            vocabulary=len(config["token_list"]),
            layers=int(conf["num_blocks"]),
        )

    def _norm(self) -> int:
        return 5 * self.size  # fvcore's figure for an affine layer norm, per element

    def source(self) -> float:
        """Keys and values of the encoder's output, once per utterance in every layer."""
        return float(self.layers * self.frames * 2 * self.size**2)

    def self_attention(self, tokens: float, keys: float) -> float:
        """Self-attention of ``tokens`` with ``keys`` query-key pairs in all."""
        return tokens * (4 * self.size**2 + self._norm()) + 2 * keys * self.size

    def source_attention(self, tokens: float) -> float:
        return tokens * (2 * self.size**2 + 2 * self.frames * self.size + self._norm())

    def feed_forward(self, tokens: float) -> float:
        return tokens * (2 * self.size * self.ffn + self._norm())

    def output(self, tokens: float) -> float:
        return tokens * (self.size * self.vocabulary + self._norm())

    def terms(self, tokens: int, kept: float = 1.0) -> dict[str, float]:
        """By kind of module, at the share ``kept`` of (token, layer) pairs for each, spread evenly."""
        pairs = (kept * tokens) * (kept * tokens + 1) / 2
        return {
            "source keys and values": self.source(),
            "self_attention": self.layers * self.self_attention(kept * tokens, pairs),
            "source_attention": self.layers * self.source_attention(kept * tokens),
            "ffn": self.layers * self.feed_forward(kept * tokens),
            "output": self.output(tokens),
        }

    def passes(self, tokens: float, run_LM: np.ndarray) -> float:
        """What is computed for ``tokens``, of which ``run_LM`` ran in each module of each layer, spread evenly."""
        total = self.output(tokens)
        for own, source, ffn in run_LM:
            total += self.self_attention(own, own * (own + 1) / 2)
            total += self.source_attention(source) + self.feed_forward(ffn)
        return float(total)

    def measured(self, open_NLM: np.ndarray, modules: list[str]) -> float:
        """One hypothesis, with the modules that really ran."""
        place = {name: modules.index(name) for name in MODULES if name in modules}
        opened = np.ones((*open_NLM.shape[:2], len(MODULES)), dtype=bool)
        for m, name in enumerate(MODULES):
            if name in place:
                opened[..., m] = open_NLM[..., place[name]]
        return self.source() + self.passes(len(opened), opened.sum(0).astype(float))

    def gates(self, policy: Any, tokens: int) -> float:
        """What deciding costs: LocalGP at every token, GlobalGP once; contexts are projected once per sequence."""
        if isinstance(policy, GlobalGates):
            return float(global_gates(policy))
        if not isinstance(policy, LocalGates):
            return 0.0
        contexts, modules = len(policy.needs), len(policy.modules_gated)
        each = sum(2 * (contexts + layer) * self.size for layer in range(self.layers))
        each += self.layers * modules * 2 * self.size + (self.layers - 1) * self.size**2
        aligned = sum(parameter.numel() for parameter in policy.align.parameters())
        return float(tokens * each + aligned + contexts * self.size**2)
