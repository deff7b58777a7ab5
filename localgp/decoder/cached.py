"""The decoder with caches, over the same weights.

A third-party decoder may project the keys and values of the whole prefix, and of every encoder frame, again at every
step and for every hypothesis. Here the encoder's are projected once per utterance and shared by its hypotheses, and
those of the prefix once per token (`localgp.decoder.cache`). The primer is consumed in one pass.

Shape legend: N rows, T encoder frames, D model size, V vocabulary, B utterances of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from localgp.backbones.base import Backbone
from localgp.backbones.blocks import ROWS, StepLayer, StepNorm
from localgp.decoder.fixed import FixedState
from localgp.decoder.gates import DecoderGates
from localgp.decoder.state import DecoderState
from localgp.kernels.int8 import rows_type
from localgp.kernels.linear import fused
from localgp.precision import cpu_multiplies_bf16

Exact = Callable[[Tensor], Tensor]
"""``exact(labels_NK)``: their unnormalised scores."""


class CachedDecoder:
    """A backbone's decoder laid out for decoding, now: make a new one after changing weights.

    Args:
        backbone: In eval mode.
        dtype: Type that weights and caches are held in; default: the decoder's own. Norms and the residual
            stream are fp32 always, and caches where weights are in 8 bits.
        fixed: Decode in steps of fixed shapes, on a GPU as CUDA graphs (`localgp.decoder.fixed`), where each utterance
            has an encoder output of its own.

    Attributes:
        weights_dtype: Of the weights.
        dtype: Of caches and of what products are given.
        source_dtype: Of the encoder's keys and values. Beside weights in 8 bits these are bf16, where a CPU multiplies
            it: they lose less by that than the weights do, and are read in half of the time.
        modules: Names of a layer's parts that can be gated, in the order in which they run.
    """

    def __init__(self, backbone: Backbone, *, dtype: torch.dtype | None = None, fixed: bool = False) -> None:
        weights = self.weights_dtype = dtype or backbone.output_layer.weight.dtype
        self.dtype, self.fixed = rows_type(weights), fixed
        short = weights == torch.int8 and cpu_multiplies_bf16()
        self.source_dtype = torch.bfloat16 if short else self.dtype
        table = [backbone.branches("decoder", index) for index in range(backbone.shape.decoder_layers)]
        self.modules = list(table[0])
        self.layers = [StepLayer(parts, weights) for parts in table]
        self.embed = backbone.embed_at
        self._norm = StepNorm(backbone.decoder_norm, weights)
        output = backbone.output_layer
        self._output = fused([output], weights, rows=ROWS)
        bias = None if output.bias is None else output.bias.detach()
        self._exact = (output.weight.detach(), bias) if weights == torch.int8 else None
        self.vocabulary = backbone.shape.vocabulary

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Unnormalised scores (N, V) in fp32 of the next token."""
        return self._output(self._norm(hidden_ND)).float()

    def exact(self, hidden_ND: Tensor) -> Exact | None:
        """Scores as fp32 weights give them, of some labels; None where `logits` are no further off than the rest."""
        if self._exact is None:
            return None
        weight_VD, bias_V = self._exact
        x_N1D = self._norm(hidden_ND).unsqueeze(1)

        def scores(labels_NK: Tensor) -> Tensor:
            score_NK = (F.embedding(labels_NK, weight_VD) * x_N1D).sum(2)
            return score_NK if bias_V is None else score_NK + bias_V[labels_NK]

        return scores

    def start(
        self,
        memory_BTD: Tensor,
        lengths_B: Tensor,
        primers: list[list[int]],
        gates: DecoderGates | None = None,
        numbers: list[int] | None = None,
        owners: list[int] | None = None,
        beam: int = 1,
    ) -> tuple[DecoderState, Tensor]:
        """Projects the encoder's output, consumes the primers.

        Args:
            memory_BTD, lengths_B: Encoder output and its lengths.
            primers: Tokens that each utterance's hypotheses begin with.
            gates: Of every layer, token by token; None for the dense decoder.
            numbers: What the gates shall know the utterances by; default: 0 to B - 1.
            owners: The row of ``memory_BTD`` that each primer belongs to; default: each has its own, in their order.
            beam: Rows that an utterance will have in a step, at most. Decides how the encoder's keys and values are
                laid out, not what comes out.

        Returns:
            The state, with one row per utterance, and the hidden vector (B, D) of each primer's last token.
        """
        alone = owners is None or owners == list(range(len(memory_BTD)))
        kind = FixedState if self.fixed and alone else DecoderState
        state = kind(self, memory_BTD.to(self.dtype), lengths_B, gates, numbers, owners, beam)
        return state, state.consume(primers)
