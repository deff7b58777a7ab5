"""A backbone together with the policies that gate its encoder and its decoder.

Shape legend: B utterances, N samples, T encoder frames, D model size, Q sequences (an utterance has one per task),
L tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from localgp.backbones.base import Backbone
from localgp.contexts.lang2vec import LanguageVectors
from localgp.decoder.gates import StepGates
from localgp.decoder.train import decode_tokens
from localgp.encoder.packed import PackedEncoder, PackedGates
from localgp.encoder.run import EncoderOutput, States, encode
from localgp.errors import ConfigError
from localgp.gates.base import GatePolicy, Gates
from localgp.window import Window

_BEYOND = 4  # hops behind a window that its last features see: half of an analysis frame, at most


class Losses(NamedTuple):
    """The recognition loss with the decoder's gates beside it.

    Attributes:
        total, attention, attention_weight, accuracy, ctc: See `localgp.backbones.base.Loss`.
        decoder_gates: Per decoder layer, module name to `Gate`, (Q, L) or (Q, 1); empty without gates there.
        tokens: (Q, L), 1 for the tokens that the decoder was given, 0 for padding.
        states: See `localgp.decoder.train.DecoderOutput`.
    """

    total: Tensor
    attention: Tensor
    attention_weight: float
    accuracy: Tensor
    ctc: Tensor | None
    decoder_gates: list[Gates]
    tokens: Tensor
    states: States


class GatedS2T(nn.Module):
    """The third-party model is a part of this one under the family's name, beside the gates: stored tensors begin with
    `Backbone.key`, ``policy`` or ``decoder_policy``.

    Args:
        backbone: The model that is gated.
        policy: Gate policy of the encoder, or None.
        decoder_policy: Gate policy of the decoder, or None.
        languages: If the decoder's gates see them.
        window: What it is given of the padding behind a recording.
        keys_felt: See `localgp.encoder.run.encode`.
        source: What decoder and CTC are shown: ``all`` frames, or those ``kept`` (`localgp.encoder.shown`).
        decoder_decides: See `localgp.decoder.gates.StepGates`.
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
        window: Window | None = None,
        forget: bool = False,
        keys_felt: bool = False,
        decoder_decides: str = "hypothesis",
        source: str = "all",
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.add_module(backbone.key, backbone.net)
        self.policy = policy
        self.decoder_policy = decoder_policy
        self.languages = languages
        self.window = window or Window()
        self.forget = forget
        self.keys_felt = keys_felt
        self.decoder_decides = decoder_decides
        self.source = source

    def gate_parameters(self) -> Iterator[nn.Parameter]:
        """Of both policies."""
        for policy in (self.policy, self.decoder_policy):
            if policy is not None:
                yield from policy.parameters()

    @property
    def samples(self) -> int:
        """N, of the longest input."""
        return self.window.longest(self.backbone.samples, self.backbone.sample_rate)

    @property
    def window_seconds(self) -> float:
        """What it hears at once."""
        return self.samples / self.backbone.sample_rate

    def heard(self, ends_B: Tensor) -> Tensor:
        """Samples that are encoded of each recording, (B,), from where it ends."""
        return self.window.lengths(ends_B, self.samples, self.backbone.sample_rate)

    def features(self, speech_BN: Tensor, ends_B: Tensor) -> tuple[Tensor, Tensor]:
        """What the encoder is given: the features of padded recordings, up to where each one's window ends.

        Args:
            speech_BN: Zeros behind each signal.
            ends_B: Where that is.
        """
        backbone, window = self.backbone, self.window
        if not window.ragged:
            return backbone.features(speech_BN, ends_B.new_full(ends_B.shape, speech_BN.shape[1]))
        lengths_B, beyond = self.heard(ends_B), _BEYOND * backbone.timeline.hop
        needed = min(int(lengths_B.max()) + beyond, self.samples)
        speech_BN = F.pad(speech_BN[:, :needed], (0, max(0, needed - speech_BN.shape[1])))
        feats_BSF, _ = backbone.features(speech_BN, (lengths_B + beyond).clamp(max=needed))
        frames_B = backbone.timeline.feature_frames(lengths_B)
        return feats_BSF[:, : int(frames_B.max())], frames_B

    def encode(
        self,
        speech_BN: Tensor,
        ends_B: Tensor,
        contexts: dict[str, Tensor] | None = None,
        *,
        path: str = "gathered",
        keep: Collection[int] = (),
        primers: Sequence[list[int]] | None = None,
    ) -> EncoderOutput:
        """Speech to encoder output and gates; see `localgp.encoder.run.encode`. For inference there is `packed`.

        Args:
            speech_BN: Zeros behind each signal.
            ends_B: Where that is.
        """
        feats, lengths = self.features(speech_BN, ends_B)
        encoded = encode(
            self.backbone,
            feats,
            lengths,
            self.policy,
            contexts,
            path=path,
            forget=self.forget and self.training,
            ragged=self.window.ragged,
            whole=not self.window.ragged,
            keep={*keep, *self.backbone.loss_states},
            keys_felt=self.keys_felt and self.training,
            primers=primers,
        )
        return encoded.showing(self.source)

    def packed(self, dtype: torch.dtype = torch.float32, budget: float | None = None) -> PackedModel:
        """The encoder and its gates laid out for inference as they are now; to be dropped before weights change.

        Args:
            budget: See `localgp.gates.base.GatePolicy.set_budget`.

        Raises:
            ConfigError: A budget for gates that know but one, or for none.
        """
        if budget is not None and not isinstance(self.policy, GatePolicy):
            raise ConfigError(
                f"decode.budget is {budget}, and this model's encoder has no gates that know of one; leave it out"
            )
        return PackedModel(self, dtype, budget)

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
        floats = {name: value.float() for name, value in contexts.items()}
        return StepGates(self.decoder_policy, floats, self.decoder_decides)

    def losses(self, encoded: EncoderOutput, batch: dict[str, Any], keep: Collection[int] = ()) -> Losses:
        """The family's loss, with one encoder pass serving all sequences of an utterance.

        Args:
            batch: ``text_ctc`` (B, L) and ``text_ctc_lengths`` (B,), transcripts; ``text`` (Q, L) and
                ``text_lengths`` (Q,), prompt and target, padded with -1; ``text_prev`` and
                ``text_prev_lengths`` likewise; ``utterance`` (Q,), the utterance each sequence belongs to;
                ``tasks``, the sequences' names, if the decoder has gates.
            keep: The decoder's layers whose states are wanted.
        """
        if not self.backbone.shape.decoder_layers:
            loss = self.backbone.encoder_losses(encoded.x, encoded.lengths, encoded.states, batch)
            return Losses(*loss, [], encoded.x.new_zeros(len(batch["text"]), 0), {})
        owner_Q = batch["utterance"]
        contexts = None
        if self.decoder_policy is not None:
            contexts = self.decoder_contexts(encoded, owner_Q, batch["tasks"], batch["text"][:, :2])
        given = self.backbone.decoder_input(batch)
        memory_BTD, frames_B = encoded.memory()
        logits_QLV, gates, states = decode_tokens(
            self.backbone,
            memory_BTD.index_select(0, owner_Q),
            frames_B.index_select(0, owner_Q),
            given.tokens,
            given.lengths,
            self.decoder_policy,
            contexts,
            forget=self.forget and self.training,
            keep=keep,
            keys_felt=self.keys_felt and self.training,
        )
        loss = self.backbone.losses(memory_BTD, frames_B, logits_QLV, given.targets, batch)
        positions_L = torch.arange(given.tokens.shape[1], device=given.tokens.device)
        real_QL = (positions_L < given.lengths.unsqueeze(1)).float()
        return Losses(*loss, gates, real_QL, states)


class PackedModel:
    """Speech to encoder output, packed (`localgp.encoder.packed`); made by `GatedS2T.packed`."""

    def __init__(self, model: GatedS2T, dtype: torch.dtype, budget: float | None = None) -> None:
        self._policy, self._budget = model.policy, budget
        self._set_budget()
        self._features, self._source = model.features, model.source
        self._encoder = PackedEncoder(model.backbone, dtype)
        self._gates = None if model.policy is None else PackedGates(model.policy)

    def encode(
        self,
        speech_BN: Tensor,
        ends_B: Tensor,
        contexts: dict[str, Tensor] | None = None,
        primers: Sequence[list[int]] | None = None,
    ) -> EncoderOutput:
        """As `GatedS2T.encode`."""
        return self.encode_features(*self._features(speech_BN, ends_B), contexts, primers)

    def encode_features(
        self,
        feats_BSF: Tensor,
        lengths_B: Tensor,
        contexts: dict[str, Tensor] | None = None,
        primers: Sequence[list[int]] | None = None,
    ) -> EncoderOutput:
        self._set_budget()  # of others that were laid out since, another
        encoded = self._encoder.encode(feats_BSF, lengths_B, self._gates, contexts, primers)
        return encoded.showing(self._source)

    def _set_budget(self) -> None:
        if isinstance(self._policy, GatePolicy):
            self._policy.set_budget(self._budget)


def _mean_front(encoded: EncoderOutput) -> Tensor:
    """``front`` averaged over each utterance's own frames, (B, 1, D): behind a shorter one's are its batch mates'."""
    assert encoded.front is not None
    return (encoded.front * encoded.own().unsqueeze(-1)).sum(1, keepdim=True) / encoded.lengths.view(-1, 1, 1)
