"""The network while it is pretrained: ESPnet's model, a phone head, and the losses.

Shape legend: B utterances, F feature frames, T encoder frames, M mel bins, D size, P phones, Q sequences.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from batches import Batches
from guides import Guides, ctc_spans, guide_loss, guided_frames
from torch import Tensor, nn

GUIDED_HEADS = 2  # of every decoder layer but the first
PHONE_WEIGHT_ALONE, PHONE_WEIGHT_JOINT = 1.0, 0.2
POSITION_WEIGHT = 1.0
SECOND = 25  # encoder frames; the unit of the position head


class Pretraining(nn.Module):
    """Args:
    espnet: ``ESPnetS2TModel``.
    phones: Number of phones, silence among them.
    batches: The training set; its utterances are guided.
    guides: Where the decoder should look.

    The phone head gives the encoder the alignment that CTC alone does not find in this time. The position head
    keeps the time in the encoder's output: CTC and phones have no use for it and train it away, and without it
    cross-attention cannot tell one "der" from the next. Both heads are thrown away.
    """

    def __init__(self, espnet: nn.Module, phones: int, batches: Batches, guides: Guides) -> None:
        super().__init__()
        self.espnet = espnet
        self.phone_head = nn.Linear(espnet.encoder.output_size(), phones)
        self.position_head = nn.Linear(espnet.encoder.output_size(), 1)
        self.espnet.error_calculator = None
        self._batches, self._guides = batches, guides

    def forward(
        self, batch: dict[str, Any], dtype: torch.dtype, guidance: float
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss of a batch, and its terms. CTC and attention losses are per token, so that long sentences do not
        outweigh the phones."""
        espnet = self.espnet
        feats_BFM = batch["feats"]
        lengths = torch.full((len(feats_BFM),), feats_BFM.shape[1])
        feats_BFM, _ = espnet.normalize(feats_BFM, lengths)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            encoded_BTD, encoded_lengths, _ = espnet.encoder(feats_BFM, lengths)
        encoded_BTD = encoded_BTD.float()
        phones_BTP = self.phone_head(encoded_BTD)
        phone = F.cross_entropy(phones_BTP.transpose(1, 2), batch["phones"])
        time_T = torch.arange(encoded_BTD.shape[1]) / SECOND
        position = F.smooth_l1_loss(
            self.position_head(encoded_BTD).squeeze(-1), time_T.expand(len(feats_BFM), -1)
        )
        ctc, _ = espnet._calc_ctc_loss(
            encoded_BTD, encoded_lengths, batch["text_ctc"], batch["text_ctc_lengths"]
        )
        ctc = ctc * len(feats_BFM) / batch["text_ctc_lengths"].sum()
        right = (phones_BTP.detach().argmax(-1) == batch["phones"])[batch["phones"] > 0]
        terms = {"phone": phone.item(), "position": position.item(), "ctc": ctc.item()}
        terms["phone_accuracy"] = right.float().mean().item()
        if "text" not in batch:
            return 0.3 * ctc + PHONE_WEIGHT_ALONE * phone + POSITION_WEIGHT * position, terms
        owner = batch["utterance"]
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            attention, accuracy, _, _ = espnet._calc_att_loss(
                encoded_BTD.index_select(0, owner),
                encoded_lengths.index_select(0, owner),
                *(batch[key] for key in ("text", "text_lengths", "text_prev", "text_prev_lengths")),
            )
        attention = attention.float() * len(owner) / (batch["text_lengths"].sum() + len(owner))
        terms |= {"attention": attention.item(), "accuracy": float(accuracy)}
        loss = 0.3 * ctc + 0.7 * attention + PHONE_WEIGHT_JOINT * phone + POSITION_WEIGHT * position
        if guidance > 0:
            guide = self._guide(batch, encoded_BTD.detach())
            terms["guide"] = guide.item()
            loss = loss + guidance * guide
        return loss, terms

    def _guide(self, batch: dict[str, Any], encoded_BTD: Tensor) -> Tensor:
        """Of the attention that the decoder has just computed."""
        transcripts = [
            row[:length].tolist()
            for row, length in zip(batch["text_ctc"], batch["text_ctc_lengths"].tolist(), strict=True)
        ]
        with torch.no_grad():
            spans = ctc_spans(self.espnet.ctc.log_softmax(encoded_BTD), transcripts)
        heads = [layer.src_attn.attn[:, :GUIDED_HEADS] for layer in self.espnet.decoder.decoders[1:]]
        frames = guided_frames(self._batches, self._guides, batch["indices"], spans, batch)
        return guide_loss(torch.cat(heads, 1), frames)


def make_fast_on_cpu(espnet: nn.Module) -> None:
    """The same numbers at 1.6 times the speed: convolutions on channels-last layouts. ESPnet's explicit attention
    is kept, whose backward pass in bf16 is faster here than the fused kernel's."""
    espnet.encoder.embed.conv.to(memory_format=torch.channels_last)
    for module in espnet.encoder.modules():
        if isinstance(module, nn.Conv1d) and module.groups > 1:
            module.forward = _depthwise(module)  # type: ignore[method-assign]


def _depthwise(conv: nn.Conv1d) -> Any:
    def forward(x_BDT: Tensor) -> Tensor:
        """As a 2-D convolution: the transposed (B, T, D) tensor it is called with is channels-last already."""
        weight = conv.weight.unsqueeze(2)
        padding = (0, conv.padding[0])
        return F.conv2d(x_BDT.unsqueeze(2), weight, conv.bias, padding=padding, groups=conv.groups).squeeze(2)

    return forward
