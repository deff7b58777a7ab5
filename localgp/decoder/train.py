"""The decoder with gates, all tokens of a sequence at once: the training path.

Every module is computed for every token and multiplied by its gate, so that closed gates get a gradient; without gates
the result is the third-party decoder's own. In decoding, token by token and without computing what is skipped,
`localgp.decoder.cached` does the same: the gates of a token are a function of its own layer inputs and of its
sequence's context, never of later tokens.

Shape legend: Q sequences, L tokens, D model size, V vocabulary, T encoder frames.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

import torch
from torch import Tensor

from localgp.backbones.base import Backbone
from localgp.encoder.run import LAST, Masked, States
from localgp.gates.base import GatePolicy, Gates
from localgp.pruning import check_gated


class DecoderOutput(NamedTuple):
    """What a teacher-forced pass of the decoder gives.

    Attributes:
        logits: (Q, L, V), the scores of the token after each.
        gates: Per layer, module name to `Gate`, (Q, L) or (Q, 1); empty without gates.
        states: (Q, L, D) by layer, as of `localgp.encoder.run.EncoderOutput`.
    """

    logits: Tensor
    gates: list[Gates]
    states: States


class MaskedTokens(Masked):
    """`Masked` for tokens, which see those before them."""

    def _attended(
        self, name: str, part: Callable[[Tensor, Tensor], Tensor], x: Tensor, mask: Tensor
    ) -> Tensor:
        gate = self.gates[name].value
        return part(x, without_closed(mask, gate.detach() > 0.5)) * gate.unsqueeze(-1)


def decode_tokens(
    backbone: Backbone,
    memory_QTD: Tensor,
    memory_lengths_Q: Tensor,
    tokens_QL: Tensor,
    lengths_Q: Tensor,
    policy: GatePolicy | None = None,
    contexts: dict[str, Tensor] | None = None,
    *,
    forget: bool = False,
    keep: Collection[int] = (),
    keys_felt: bool = False,
) -> DecoderOutput:
    """Scores the next token after every prefix.

    Args:
        memory_QTD: Encoder output of each sequence's utterance.
        memory_lengths_Q: Its frames.
        tokens_QL: Decoder input, padded.
        lengths_Q: Tokens of each sequence.
        policy: A gate policy (`localgp.gates`), or None for the dense decoder.
        contexts: What the policy needs, (Q, 1, C) each.
        forget: See `Masked`.
        keep: Layers whose states are wanted.
        keys_felt: Let gates of self-attention feel what their tokens are worth to later ones.
    """
    count, device = tokens_QL.shape[1], tokens_QL.device
    real_QL = torch.arange(count, device=device) < lengths_Q.to(device).unsqueeze(1)
    causal_LL = torch.ones(count, count, dtype=torch.bool, device=device).tril()
    mask_QLL = real_QL.unsqueeze(1) & causal_LL
    frames_T = torch.arange(memory_QTD.shape[1], device=device)
    source_Q1T = (frames_T < memory_lengths_Q.to(device).unsqueeze(1)).unsqueeze(1)
    state = policy.begin(contexts or {}) if policy is not None else None
    x_QLD = backbone.embed(tokens_QL)
    valid = backbone.part_names("decoder")
    record: list[Gates] = []
    states = {}
    for index in range(backbone.shape.decoder_layers):
        gates = policy.gate(index, x_QLD, state) if policy is not None else {}
        check_gated(gates, valid)
        parts = backbone.branches("decoder", index) if keys_felt else None
        run = MaskedTokens(gates, forget=forget, parts=parts)
        x_QLD = backbone.decoder_layer(index, x_QLD, mask_QLL, memory_QTD, source_Q1T, run)
        record.append(gates)
        if index + 1 in keep:
            states[index + 1] = x_QLD
    x_QLD = backbone.decoder_norm(x_QLD)
    if LAST in keep:
        states[LAST] = x_QLD
    return DecoderOutput(backbone.output_layer(x_QLD), record if policy is not None else [], states)


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
