"""An ESPnet S2T model together with the policies that gate its encoder and its decoder.

The ESPnet model is kept whole as `GatedS2T.espnet`, so its checkpoints load and save as they are; the gates
are modules beside it.

Shape legend: B utterances, N samples, T encoder frames, D model size, Q sequences (an utterance has one per task),
L tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from localgp.decoder.train import decode_tokens
from localgp.encoder.run import EncoderOutput, check_supported, encode
from localgp.errors import ConfigError
from localgp.gates.gumbel import Gate

SHORTEST_SECONDS = 0.2  # of an input that is not padded: below it the subsampling has nothing to give


class Losses(NamedTuple):
    """Attributes:
    total: What ESPnet's S2T model calls its loss: ctc_weight x ctc + (1 - ctc_weight) x attention.
    decoder_gates: Per decoder layer, module name to `Gate`, (Q, L) or (Q, 1); empty without gates there.
    tokens: (Q, L), 1 for the tokens that the decoder was given, 0 for padding; None without gates there.
    """

    total: Tensor
    ctc: Tensor
    attention: Tensor
    accuracy: float
    decoder_gates: list[dict[str, Gate]]
    tokens: Tensor | None


class GatedS2T(nn.Module):
    """Args:
    espnet: ``ESPnetS2TModel`` with an E-Branchformer encoder.
    policy: Gate policy of the encoder, or None.
    decoder_policy: Gate policy of the decoder, or None.
    languages: `localgp.contexts.lang2vec.LanguageVectors`, if the decoder's gates see them.
    trim: Encode every utterance at its own length, alone, instead of padded: the control of what padding costs.
        For a dense encoder.
    """

    espnet: Any  # ESPnet has no type annotations to go by
    policy: Any
    decoder_policy: Any

    def __init__(
        self,
        espnet: nn.Module,
        policy: nn.Module | None = None,
        decoder_policy: nn.Module | None = None,
        *,
        languages: Any = None,
        trim: bool = False,
    ) -> None:
        super().__init__()
        check_supported(espnet.encoder)  # which is run here module by module, dense or gated
        if decoder_policy is not None:
            from localgp.decoder.cached import check_supported as check_decoder

            check_decoder(espnet.decoder)
        self.espnet = espnet
        self.policy = policy
        self.decoder_policy = decoder_policy
        self.languages = languages
        self.trim = trim
        self.espnet.error_calculator = None  # scoring is done on decoded text, not inside the loss

    @property
    def size(self) -> int:
        return self.espnet.encoder.output_size()

    def gate_parameters(self) -> Iterator[nn.Parameter]:
        """Of both policies."""
        for policy in (self.policy, self.decoder_policy):
            if policy is not None:
                yield from policy.parameters()

    def features(self, speech_BN: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """ESPnet's front end, SpecAugment in training where the backbone has it, and normalisation; in fp32."""
        espnet = self.espnet
        with torch.autocast(speech_BN.device.type, enabled=False):
            feats, lengths = espnet._extract_feats(speech_BN, lengths_B)
            if espnet.specaug is not None and self.training:
                feats, lengths = espnet.specaug(feats, lengths)
            if espnet.normalize is not None:
                feats, lengths = espnet.normalize(feats, lengths)
        return feats, lengths

    def encode(
        self,
        speech_BN: Tensor,
        lengths_B: Tensor,
        contexts: dict[str, Tensor] | None = None,
        *,
        path: str = "gathered",
    ) -> EncoderOutput:
        """Speech to encoder output and gates; see `localgp.encoder.run.encode`.

        Args:
            lengths_B: Samples to encode: N for OWSM's padded inputs; with ``trim``, where each signal ends.
        """
        if self.trim:
            return self._encode_each(speech_BN, lengths_B, path)
        feats, feat_lengths = self.features(speech_BN, lengths_B)
        return encode(self.espnet.encoder, feats, feat_lengths, self.policy, contexts, path=path)

    def _encode_each(self, speech_BN: Tensor, lengths_B: Tensor, path: str) -> EncoderOutput:
        """One by one, or packed: ESPnet's convolutions look into a batch's padding, so that an utterance's result
        would depend on its batch mates."""
        from torch.nn.utils.rnn import pad_sequence

        shortest = round(SHORTEST_SECONDS * getattr(self.espnet.frontend, "fs", 16_000))
        features = []
        for speech_N, length in zip(speech_BN, lengths_B.tolist(), strict=True):
            end = min(max(length, shortest), speech_N.shape[0])
            features.append(self.features(speech_N[None, :end], lengths_B.new_tensor([end])))
        if path == "packed":
            padded = pad_sequence([feats[0] for feats, _ in features], batch_first=True)
            return encode(self.espnet.encoder, padded, torch.cat([n for _, n in features]), path=path)
        found = [encode(self.espnet.encoder, *features_of_one) for features_of_one in features]
        fronts = [output.front[0] for output in found if output.front is not None]
        return EncoderOutput(
            pad_sequence([output.x[0] for output in found], batch_first=True),
            torch.cat([output.lengths for output in found]),
            [],
            pad_sequence(fronts, batch_first=True) if fronts else None,
        )

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
        for name in self.decoder_policy.needs:
            if name == "front":
                contexts[name] = _mean_front(encoded).index_select(0, owner_Q)
            elif name == "task":
                contexts[name] = self.espnet.decoder.embed[0](prompt_Q2).flatten(1).unsqueeze(1)
            elif name == "lang2vec" and self.languages is not None:
                contexts[name] = self.languages.of(tasks).to(encoded.x.device)
            else:
                raise ConfigError(f"the decoder's gates need the context {name!r}, which this model lacks")
        return contexts

    def step_gates(
        self, encoded: EncoderOutput, owner_Q: Tensor, tasks: Sequence[str], prompt_Q2: Tensor
    ) -> Any:
        """The decoder's gates for one call of the beam search, `localgp.decoder.step_gates.StepGates`, or None
        for a dense decoder; arguments as of `decoder_contexts`."""
        from localgp.decoder.step_gates import StepGates

        if self.decoder_policy is None:
            return None
        contexts = self.decoder_contexts(encoded, owner_Q, tasks, prompt_Q2)
        return StepGates(self.decoder_policy, {name: value.float() for name, value in contexts.items()})

    def losses(self, encoded: EncoderOutput, batch: dict[str, Any]) -> Losses:
        """ESPnet's hybrid CTC/attention loss, with one encoder pass serving all sequences of an utterance.

        Args:
            batch: ``text_ctc`` (B, L) and ``text_ctc_lengths`` (B,), transcripts; ``text`` (Q, L) and
                ``text_lengths`` (Q,), prompt and target, padded with -1; ``text_prev`` and
                ``text_prev_lengths`` likewise; ``utterance`` (Q,), the utterance each sequence belongs to;
                ``tasks``, the sequences' names, if the decoder has gates.
        """
        espnet, owner_Q = self.espnet, batch["utterance"]
        loss_ctc, _ = espnet._calc_ctc_loss(
            encoded.x, encoded.lengths, batch["text_ctc"], batch["text_ctc_lengths"]
        )
        memory_QTD = encoded.x.index_select(0, owner_Q)
        memory_lengths_Q = encoded.lengths.index_select(0, owner_Q)
        gates: list[dict[str, Gate]] = []
        tokens_QL = None
        if self.decoder_policy is None:
            names = ("text", "text_lengths", "text_prev", "text_prev_lengths")
            loss_att, accuracy, _, _ = espnet._calc_att_loss(
                memory_QTD, memory_lengths_Q, *(batch[name] for name in names)
            )
        else:
            contexts = self.decoder_contexts(encoded, owner_Q, batch["tasks"], batch["text"][:, :2])
            loss_att, accuracy, gates, tokens_QL = self._gated_attention_loss(
                memory_QTD, memory_lengths_Q, batch, contexts
            )
        total = espnet.ctc_weight * loss_ctc + (1 - espnet.ctc_weight) * loss_att
        return Losses(total, loss_ctc, loss_att, float(accuracy), gates, tokens_QL)

    def _gated_attention_loss(
        self,
        memory_QTD: Tensor,
        memory_lengths_Q: Tensor,
        batch: dict[str, Any],
        contexts: dict[str, Tensor],
    ) -> tuple[Tensor, float, list[dict[str, Gate]], Tensor]:
        """ESPnet's ``_calc_att_loss`` with gates: loss, accuracy, gates, and which tokens are real (Q, L)."""
        from espnet.nets.pytorch_backend.nets_utils import th_accuracy

        espnet = self.espnet
        tokens_QL, lengths_Q, targets_QL = self.decoder_input(batch["text"], batch["text_prev"])
        logits_QLV, gates = decode_tokens(
            espnet.decoder,
            memory_QTD,
            memory_lengths_Q,
            tokens_QL,
            lengths_Q,
            self.decoder_policy,
            contexts,
        )
        loss = espnet.criterion_att(logits_QLV, targets_QL)
        accuracy = th_accuracy(logits_QLV.flatten(0, 1), targets_QL, ignore_label=espnet.ignore_id)
        positions_L = torch.arange(tokens_QL.shape[1], device=tokens_QL.device)
        return loss, float(accuracy), gates, (positions_L < lengths_Q.unsqueeze(1)).float()

    def decoder_input(self, text_QL: Tensor, previous_QL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """OWSM's sequences, ``<sop> previous <sos> text``, or ``<sos> text`` where there is no previous text.

        Returns:
            Input (Q, L), its lengths (Q,), and targets (Q, L): ``text <eos>``, ``ignore_id`` for the rest.
        """
        espnet, ignore = self.espnet, self.espnet.ignore_id
        count_Q1 = (text_QL != ignore).sum(1, keepdim=True)
        before_Q1 = (previous_QL != ignore).sum(1, keepdim=True) + 1  # with <sop>
        before_Q1 = before_Q1.masked_fill((previous_QL == espnet.na).any(1, keepdim=True), 0)
        lengths_Q1 = before_Q1 + 1 + count_Q1
        longest = int(lengths_Q1.max())  # the one wait for a GPU
        place_L = torch.arange(longest, device=text_QL.device)
        from_sos_QL = place_L - before_Q1
        text_from = (from_sos_QL - 1).clamp(0, text_QL.shape[1] - 1)
        inputs_QL = text_QL.gather(1, text_from)
        previous_from = (place_L - 1).clamp(0, previous_QL.shape[1] - 1).expand_as(from_sos_QL)
        inputs_QL = torch.where(from_sos_QL < 0, previous_QL.gather(1, previous_from), inputs_QL)
        inputs_QL = inputs_QL.masked_fill((from_sos_QL < 0) & (place_L == 0), espnet.sop)
        inputs_QL = inputs_QL.masked_fill(from_sos_QL == 0, espnet.sos)
        inputs_QL = inputs_QL.masked_fill(from_sos_QL > count_Q1, espnet.eos)
        targets_QL = text_QL.gather(1, from_sos_QL.clamp(0, text_QL.shape[1] - 1))
        targets_QL = targets_QL.masked_fill(from_sos_QL == count_Q1, espnet.eos)
        targets_QL = targets_QL.masked_fill((from_sos_QL < 0) | (from_sos_QL > count_Q1), ignore)
        return inputs_QL, lengths_Q1.squeeze(1), targets_QL


def _mean_front(encoded: EncoderOutput) -> Tensor:
    """``front`` averaged over each utterance's own frames, (B, 1, D): behind a shorter one's are its batch mates'."""
    assert encoded.front is not None
    frames_T = torch.arange(encoded.front.shape[1], device=encoded.front.device)
    own_BT1 = (frames_T < encoded.lengths.unsqueeze(1)).unsqueeze(-1)
    return (encoded.front * own_BT1).sum(1, keepdim=True) / encoded.lengths.view(-1, 1, 1)


def use_fast_kernels(espnet: nn.Module) -> None:
    """The same numbers from faster kernels: attention through PyTorch's fused one instead of an explicit softmax,
    and on a CPU convolutions on the channels-last layouts that oneDNN runs several times faster.

    ESPnet's modules and parameters stay as they are; only how they compute changes.
    """
    for child in espnet.modules():
        if hasattr(child, "use_sdpa"):
            child.use_sdpa = True  # type: ignore[assignment]
        if isinstance(child, nn.Conv2d):
            child.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if isinstance(child, nn.Conv1d) and child.groups == child.in_channels > 1:
            child.forward = partial(_depthwise, child)  # type: ignore[method-assign]


def _depthwise(conv: nn.Conv1d, x_BDT: Tensor) -> Tensor:
    """A depthwise 1-D convolution as a 2-D one: ESPnet calls it with a transposed (B, T, D) tensor, which as
    (B, D, 1, T) is channels-last already."""
    return F.conv2d(
        x_BDT.unsqueeze(2),
        conv.weight.unsqueeze(2),
        conv.bias,
        padding=(0, int(conv.padding[0])),
        groups=conv.groups,
    ).squeeze(2)
