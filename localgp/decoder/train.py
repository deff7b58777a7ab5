"""ESPnet's Transformer decoder with gates, all tokens of a sequence at once: the training path.

The decoder's own modules do the work; with every gate open the result is ESPnet's. Every module is computed for
every token and multiplied by its gate, so that closed gates get a gradient. In decoding, token by token and without
computing what is skipped, `localgp.decoder.cached` does the same: the gates of a token are a function of its
own layer inputs and of its sequence's context, never of later tokens.

Shape legend: Q sequences, L tokens, D model size, V vocabulary, T encoder frames, B utterances.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from localgp.gates.gumbel import Gate
from localgp.pruning.options import DECODER_MODULES, check_gated
from localgp.pruning.options import DECODER_MODULES as MODULES

__all__ = ["MODULES", "DecoderOutput", "decode_tokens"]


class DecoderOutput(NamedTuple):
    """Attributes:
    logits: (Q, L, V), the scores of the token after each.
    gates: Per layer, module name to `Gate`, (Q, L) or (Q, 1); empty without gates.
    """

    logits: Tensor
    gates: list[dict[str, Gate]]


def decode_tokens(
    decoder: Any,
    memory_QTD: Tensor,
    memory_lengths_Q: Tensor,
    tokens_QL: Tensor,
    lengths_Q: Tensor,
    policy: Any = None,
    contexts: dict[str, Tensor] | None = None,
) -> DecoderOutput:
    """Scores the next token after every prefix.

    Args:
        decoder: ESPnet's ``TransformerDecoder``.
        memory_QTD: Encoder output of each sequence's utterance.
        memory_lengths_Q: Its frames.
        tokens_QL: Decoder input, padded.
        lengths_Q: Tokens of each sequence.
        policy: A gate policy (`localgp.gates`), or None for the dense decoder.
        contexts: What the policy needs, (Q, 1, C) each.
    """
    count, device = tokens_QL.shape[1], tokens_QL.device
    real_QL = torch.arange(count, device=device) < lengths_Q.to(device).unsqueeze(1)
    causal_LL = torch.ones(count, count, dtype=torch.bool, device=device).tril()
    mask_QLL = real_QL.unsqueeze(1) & causal_LL
    frames_T = torch.arange(memory_QTD.shape[1], device=device)
    source_Q1T = (frames_T < memory_lengths_Q.to(device).unsqueeze(1)).unsqueeze(1)
    state = policy.begin(contexts or {}) if policy is not None else None
    x_QLD = decoder.embed(tokens_QL)
    record: list[dict[str, Gate]] = []
    for index, layer in enumerate(decoder.decoders):
        gates = policy.gate(index, x_QLD, state) if policy is not None else {}
        check_gated(gates, DECODER_MODULES)
        x_QLD = run_layer(layer, x_QLD, mask_QLL, memory_QTD, source_Q1T, gates)
        record.append(gates)
    logits_QLV = decoder.output_layer(decoder.after_norm(x_QLD))
    return DecoderOutput(logits_QLV, record if policy is not None else [])


def run_layer(
    layer: Any,
    x_QLD: Tensor,
    mask_QLL: Tensor,
    memory_QTD: Tensor,
    source_Q1T: Tensor,
    gates: dict[str, Gate],
) -> Tensor:
    """One pre-norm decoder layer (ESPnet's DecoderLayer) with its gates.

    x ─ + self-attention ─ + source attention ─ + FFN
    """

    def gated(name: str, output_QLD: Tensor) -> Tensor:
        output_QLD = layer.dropout(output_QLD)
        return output_QLD if name not in gates else output_QLD * gates[name].value.unsqueeze(-1)

    normed = layer.norm1(x_QLD)
    if "self_attention" in gates:
        mask_QLL = without_closed(mask_QLL, gates["self_attention"].mask)
    x_QLD = x_QLD + gated("self_attention", layer.self_attn(normed, normed, normed, mask_QLL))
    normed = layer.norm2(x_QLD)
    x_QLD = x_QLD + gated("source_attention", layer.src_attn(normed, memory_QTD, memory_QTD, source_Q1T))
    return x_QLD + gated("ffn", layer.feed_forward(layer.norm3(x_QLD)))


def without_closed(mask_QLL: Tensor, open_QL: Tensor) -> Tensor:
    """Closed tokens are nobody's keys, not even later tokens'.

    Each token keeps itself: a closed one's output is multiplied by 0, and a softmax over no key at all would make
    that NaN.

    Args:
        mask_QLL: True where a query (row) may see a key (column).
        open_QL: Tokens whose self-attention runs, (Q, L) or (Q, 1).
    """
    count = mask_QLL.shape[-1]
    itself_LL = torch.eye(count, dtype=torch.bool, device=mask_QLL.device)
    return (mask_QLL & open_QL.unsqueeze(1)) | itself_LL
