"""ESPnet's Transformer decoder with caches, over the same weights.

ESPnet projects the keys and values of the whole prefix, and of every encoder frame, again at every step and for
every hypothesis. Here the encoder's are projected once per utterance and shared by its hypotheses, and those
of the prefix once per token (`localgp.decoder.cache`). The primer is consumed in one pass.

Shape legend: N rows, T encoder frames, D model size, V vocabulary, P positions, B utterances of the whole batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from localgp.backbones.owsm.positions import position_table
from localgp.decoder.gates import DecoderGates, GateState
from localgp.decoder.layer import DecoderLayer, Norm, fuse
from localgp.decoder.state import DecoderState
from localgp.decoder.train import MODULES
from localgp.errors import BackboneError

__all__ = ["MODULES", "CachedDecoder", "DecoderGates", "DecoderState", "GateState", "check_supported"]


class CachedDecoder:
    """Args:
    decoder: ``espnet2.asr.decoder.transformer_decoder.TransformerDecoder`` in eval mode. Its weights are
        read here (some are fused), so make a new wrapper after changing them.
    gates: Per-token gates of every layer, or None for the dense decoder, where `start` is given none.
    dtype: Type that weights and caches are held in; default: the decoder's own. Norms and the residual
        stream are fp32 always.

    Raises:
        BackboneError: If the decoder is not of the kind OWSM has.
    """

    def __init__(
        self, decoder: Any, gates: DecoderGates | None = None, *, dtype: torch.dtype | None = None
    ) -> None:
        check_supported(decoder)
        self.dtype: torch.dtype = dtype or decoder.output_layer.weight.dtype
        self.layers = [DecoderLayer(layer, self.dtype) for layer in decoder.decoders]
        self.embedding, self._encoding = decoder.embed[0], decoder.embed[1]
        self._positions_PD = position_table(self._encoding, 1, self.embedding.weight.device)
        self.after_norm = Norm(decoder.after_norm, self.dtype)
        self.output_layer = fuse(self.dtype, decoder.output_layer)
        self.vocabulary = decoder.output_layer.out_features
        self.gates = gates

    def embed(self, tokens_N: Tensor, position_N: Tensor, longest: int) -> Tensor:
        """Embeddings scaled and with positions below ``longest``, in fp32 (as is the residual stream)."""
        if longest > self._positions_PD.shape[0]:
            self._positions_PD = position_table(self._encoding, 2 * longest, self._positions_PD.device)
        positions_ND = self._positions_PD.index_select(0, position_N)
        return self.embedding(tokens_N).float() * self._encoding.xscale + positions_ND

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Unnormalised scores (N, V) in fp32 of the next token."""
        return self.output_layer(self.after_norm(hidden_ND)).float()

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
            gates: In place of the decoder's own.
            numbers: What the gates shall know the utterances by; default: 0 to B - 1.
            owners: The row of ``memory_BTD`` that each primer belongs to; default: each has its own, in their order.
            beam: Rows that an utterance will have in a step, at most. Decides how the encoder's keys and values are
                laid out, not what comes out.

        Returns:
            The state, with one row per utterance, and the hidden vector (B, D) of each primer's last token.
        """
        state = DecoderState(
            self, memory_BTD.to(self.dtype), lengths_B, gates or self.gates, numbers, owners, beam
        )
        return state, state.consume(primers)


def check_supported(decoder: Any) -> None:
    """Raises:
    BackboneError: If the decoder is not of the kind that OWSM has.
    """
    from espnet.nets.pytorch_backend.transformer.attention import MultiHeadedAttention
    from espnet2.asr.decoder.transformer_decoder import TransformerDecoder

    if not isinstance(decoder, TransformerDecoder):
        raise BackboneError(
            f"decoder is {type(decoder).__name__}, supported: ESPnet's TransformerDecoder, which OWSM models have"
        )
    problems = []
    first = decoder.decoders[0]
    if not isinstance(decoder.embed[0], nn.Embedding):
        problems.append("input_layer is not embed")
    if not decoder.normalize_before or first.concat_after:
        problems.append("layers are not pre-norm without concat_after")
    if type(first.self_attn) is not MultiHeadedAttention:
        problems.append(
            f"self-attention is {type(first.self_attn).__name__}, supported: MultiHeadedAttention"
        )
    if decoder.output_layer is None:
        problems.append("there is no output layer")
    if problems:
        raise BackboneError("this decoder cannot be cached: " + "; ".join(problems) + ". Use an OWSM model.")
