"""A backbone together with the policies that gate its encoder and its decoder.

Shape legend: B utterances, N samples, T encoder frames, D model size, Q sequences (an utterance has one per task),
L tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from localgp.backbones.base import Backbone
from localgp.contexts.lang2vec import LanguageVectors
from localgp.decoder.gates import StepGates
from localgp.decoder.train import decode_tokens
from localgp.encoder.packed import PackedEncoder, PackedGates
from localgp.encoder.run import EncoderOutput, encode
from localgp.errors import ConfigError
from localgp.gates.base import GatePolicy, Gates

SHORTEST_SECONDS = 0.2  # of an input that is not padded: below it the stem has nothing to give


class Losses(NamedTuple):
    """Attributes:
    total, attention, attention_weight, accuracy, ctc: See `localgp.backbones.base.Loss`.
    decoder_gates: Per decoder layer, module name to `Gate`, (Q, L) or (Q, 1); empty without gates there.
    tokens: (Q, L), 1 for the tokens that the decoder was given, 0 for padding.
    """

    total: Tensor
    attention: Tensor
    attention_weight: float
    accuracy: float
    ctc: Tensor | None
    decoder_gates: list[Gates]
    tokens: Tensor


class GatedS2T(nn.Module):
    """The third-party model is a part of this one under the family's name, beside the gates: stored tensors begin with
    `Backbone.key`, ``policy`` or ``decoder_policy``.

    Args:
        backbone: The model that is gated.
        policy: Gate policy of the encoder, or None.
        decoder_policy: Gate policy of the decoder, or None.
        languages: If the decoder's gates see them.
        trim: Encode every utterance at its own length, alone, instead of padded: the control of what padding costs.
            For a dense encoder.
        forget: Forget activations in training, and compute them again when they are wanted
            (`localgp.encoder.run.Masked`).
    """

    policy: GatePolicy | None
    decoder_policy: GatePolicy | None

    def __init__(
        self,
        backbone: Backbone,
        policy: GatePolicy | None = None,
        decoder_policy: GatePolicy | None = None,
        *,
        languages: LanguageVectors | None = None,
        trim: bool = False,
        forget: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.add_module(backbone.key, backbone.net)
        self.policy = policy
        self.decoder_policy = decoder_policy
        self.languages = languages
        self.trim = trim
        self.forget = forget

    def gate_parameters(self) -> Iterator[nn.Parameter]:
        """Of both policies."""
        for policy in (self.policy, self.decoder_policy):
            if policy is not None:
                yield from policy.parameters()

    def features(self, speech_BN: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """What the encoder is given; with ``trim``, of every utterance alone, padded afterwards."""
        if not self.trim:
            return self.backbone.features(speech_BN, lengths_B)
        shortest = round(SHORTEST_SECONDS * self.backbone.sample_rate)
        found = []
        for speech_N, length in zip(speech_BN, lengths_B.tolist(), strict=True):
            end = min(max(length, shortest), speech_N.shape[0])
            found.append(self.backbone.features(speech_N[None, :end], lengths_B.new_tensor([end])))
        feats = pad_sequence([feats[0] for feats, _ in found], batch_first=True)
        return feats, torch.cat([lengths for _, lengths in found])

    def encode(
        self,
        speech_BN: Tensor,
        lengths_B: Tensor,
        contexts: dict[str, Tensor] | None = None,
        *,
        path: str = "gathered",
    ) -> EncoderOutput:
        """Speech to encoder output and gates; see `localgp.encoder.run.encode`. For inference there is `packed`.

        Args:
            lengths_B: Samples to encode: N for padded inputs; with ``trim``, where each signal ends.
        """
        feats, feat_lengths = self.features(speech_BN, lengths_B)
        if self.trim:
            return self._encode_each(feats, feat_lengths)
        forget = self.forget and self.training
        return encode(self.backbone, feats, feat_lengths, self.policy, contexts, path=path, forget=forget)

    def _encode_each(self, feats_BSF: Tensor, lengths_B: Tensor) -> EncoderOutput:
        """One by one: convolutions look into a batch's padding, so that an utterance's result would depend on its batch
        mates."""
        found = [
            encode(self.backbone, feats[None, :length], lengths_B.new_tensor([length]))
            for feats, length in zip(feats_BSF, lengths_B.tolist(), strict=True)
        ]
        fronts = [output.front[0] for output in found if output.front is not None]
        return EncoderOutput(
            pad_sequence([output.x[0] for output in found], batch_first=True),
            torch.cat([output.lengths for output in found]),
            [],
            pad_sequence(fronts, batch_first=True) if fronts else None,
        )

    def packed(self, dtype: torch.dtype = torch.float32) -> PackedModel:
        """The encoder and its gates laid out for inference as they are now; to be dropped before weights change."""
        return PackedModel(self, dtype)

    def decoder_contexts(
        self, encoded: EncoderOutput, owner_Q: Tensor, tasks: Sequence[str], prompt_Q2: Tensor
    ) -> dict[str, Tensor]:
        """What the decoder's gates see of each sequence, (Q, 1, C) by name.

        Args:
            owner_Q: The utterance of each sequence.
            tasks: Their names, ``de`` or ``de-fr``.
            prompt_Q2: Their language and task symbols.
        """
        contexts: dict[str, Tensor] = {}
        for name in self.decoder_policy.needs if self.decoder_policy is not None else ():
            if name == "front":
                contexts[name] = _mean_front(encoded).index_select(0, owner_Q)
            elif name == "task":
                contexts[name] = self.backbone.task_embedding(prompt_Q2).unsqueeze(1)
            elif name == "lang2vec" and self.languages is not None:
                contexts[name] = self.languages.of(tasks).to(encoded.x.device)
            else:
                raise ConfigError(f"the decoder's gates need the context {name!r}, which this model lacks")
        return contexts

    def step_gates(
        self, encoded: EncoderOutput, owner_Q: Tensor, tasks: Sequence[str], prompt_Q2: Tensor
    ) -> StepGates | None:
        """The decoder's gates for one call of the beam search, or None for a dense decoder; arguments as of
        `decoder_contexts`."""
        if self.decoder_policy is None:
            return None
        contexts = self.decoder_contexts(encoded, owner_Q, tasks, prompt_Q2)
        return StepGates(self.decoder_policy, {name: value.float() for name, value in contexts.items()})

    def losses(self, encoded: EncoderOutput, batch: dict[str, Any]) -> Losses:
        """The family's loss, with one encoder pass serving all sequences of an utterance.

        Args:
            batch: ``text_ctc`` (B, L) and ``text_ctc_lengths`` (B,), transcripts; ``text`` (Q, L) and
                ``text_lengths`` (Q,), prompt and target, padded with -1; ``text_prev`` and
                ``text_prev_lengths`` likewise; ``utterance`` (Q,), the utterance each sequence belongs to;
                ``tasks``, the sequences' names, if the decoder has gates.
        """
        owner_Q = batch["utterance"]
        contexts = None
        if self.decoder_policy is not None:
            contexts = self.decoder_contexts(encoded, owner_Q, batch["tasks"], batch["text"][:, :2])
        given = self.backbone.decoder_input(batch)
        logits_QLV, gates = decode_tokens(
            self.backbone,
            encoded.x.index_select(0, owner_Q),
            encoded.lengths.index_select(0, owner_Q),
            given.tokens,
            given.lengths,
            self.decoder_policy,
            contexts,
            forget=self.forget and self.training,
        )
        loss = self.backbone.losses(encoded.x, encoded.lengths, logits_QLV, given.targets, batch)
        positions_L = torch.arange(given.tokens.shape[1], device=given.tokens.device)
        real_QL = (positions_L < given.lengths.unsqueeze(1)).float()
        return Losses(*loss, gates, real_QL)


class PackedModel:
    """Speech to encoder output, packed (`localgp.encoder.packed`); made by `GatedS2T.packed`."""

    def __init__(self, model: GatedS2T, dtype: torch.dtype) -> None:
        self._features = model.features
        self._encoder = PackedEncoder(model.backbone, dtype)
        self._gates = None if model.policy is None else PackedGates(model.policy)

    def encode(
        self, speech_BN: Tensor, lengths_B: Tensor, contexts: dict[str, Tensor] | None = None
    ) -> EncoderOutput:
        """As `GatedS2T.encode`."""
        return self.encode_features(*self._features(speech_BN, lengths_B), contexts)

    def encode_features(
        self, feats_BSF: Tensor, lengths_B: Tensor, contexts: dict[str, Tensor] | None = None
    ) -> EncoderOutput:
        return self._encoder.encode(feats_BSF, lengths_B, self._gates, contexts)


def _mean_front(encoded: EncoderOutput) -> Tensor:
    """``front`` averaged over each utterance's own frames, (B, 1, D): behind a shorter one's are its batch mates'."""
    assert encoded.front is not None
    frames_T = torch.arange(encoded.front.shape[1], device=encoded.front.device)
    own_BT1 = (frames_T < encoded.lengths.unsqueeze(1)).unsqueeze(-1)
    return (encoded.front * own_BT1).sum(1, keepdim=True) / encoded.lengths.view(-1, 1, 1)
