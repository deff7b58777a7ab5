"""An ESPnet S2T model together with the policy that gates it.

The ESPnet model is kept whole as `GatedS2T.espnet`, so its checkpoints load and save as they are; the gates
are a module beside it.

Shape legend: B utterances, N samples, Q sequences (an utterance has one per task), L tokens.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from localgp.pruning.encoder import EncoderOutput, check_supported, encode


class Losses(NamedTuple):
    """``total`` is what ESPnet's S2T model calls its loss: ctc_weight x ctc + (1 - ctc_weight) x attention."""

    total: Tensor
    ctc: Tensor
    attention: Tensor
    accuracy: float


class GatedS2T(nn.Module):
    """Args:
    espnet: ``ESPnetS2TModel`` with an E-Branchformer encoder.
    policy: Gate policy of the encoder, or None.
    """

    espnet: Any  # ESPnet has no type annotations to go by
    policy: Any

    def __init__(self, espnet: nn.Module, policy: nn.Module | None = None) -> None:
        super().__init__()
        if policy is not None:
            check_supported(espnet.encoder)
        self.espnet = espnet
        self.policy = policy
        self.espnet.error_calculator = None  # scoring is done on decoded text, not inside the loss

    @property
    def size(self) -> int:
        return self.espnet.encoder.output_size()

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
        """Speech to encoder output and gates; see `localgp.pruning.encoder.encode`."""
        feats, feat_lengths = self.features(speech_BN, lengths_B)
        return encode(self.espnet.encoder, feats, feat_lengths, self.policy, contexts, path=path)

    def losses(self, encoded: EncoderOutput, batch: dict[str, Any]) -> Losses:
        """ESPnet's hybrid CTC/attention loss, with one encoder pass serving all sequences of an utterance.

        Args:
            batch: ``text_ctc`` (B, L) and ``text_ctc_lengths`` (B,), transcripts; ``text`` (Q, L) and
                ``text_lengths`` (Q,), prompt and target, padded with -1; ``text_prev`` and
                ``text_prev_lengths`` likewise; ``utterance`` (Q,), the utterance each sequence belongs to.
        """
        espnet = self.espnet
        owner = batch["utterance"]
        loss_ctc, _ = espnet._calc_ctc_loss(
            encoded.x, encoded.lengths, batch["text_ctc"], batch["text_ctc_lengths"]
        )
        loss_att, accuracy, _, _ = espnet._calc_att_loss(
            encoded.x.index_select(0, owner),
            encoded.lengths.index_select(0, owner),
            batch["text"],
            batch["text_lengths"],
            batch["text_prev"],
            batch["text_prev_lengths"],
        )
        total = espnet.ctc_weight * loss_ctc + (1 - espnet.ctc_weight) * loss_att
        return Losses(total, loss_ctc, loss_att, float(accuracy))


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
