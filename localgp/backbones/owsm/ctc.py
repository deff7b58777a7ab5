"""OWSM-CTC behind the seam: an encoder that is told language, task and the text before, and no decoder.

    <lang> <task> frames ─ layers ─ norm ─ CTC        in some layers: attention to the text before, encoded
              └─ every few layers: + what CTC would write by now

Shape legend: B utterances, T encoder frames, S feature frames, D model size, M tokens of the text before.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from localgp.backbones.base import Branches, Front, Loss, Packed, PackedLayer, Runner, Side
from localgp.backbones.blocks import PackedNorm
from localgp.backbones.cost import PartCost, norm_cost
from localgp.backbones.owsm.layers import run_encoder_layer, transformer_branches
from localgp.backbones.owsm.model import OwsmBackbone
from localgp.backbones.owsm.positions import add_positions
from localgp.backbones.owsm.stem import PackedSubsampling, positions_of, stem_flops, subsample
from localgp.backbones.owsm.tokens import CTC_PROMPT
from localgp.backbones.owsm.told import (
    PackedConditioning,
    PackedToldLayer,
    Told,
    attend_prompt,
    told_branches,
)
from localgp.errors import BackboneError
from localgp.kernels.int8 import rows_type
from localgp.kernels.ragged import Ragged, layout_of, listed


class OwsmCtcBackbone(OwsmBackbone):
    """OWSM-CTC behind the seam: an encoder that is told its task, and no decoder.

    Args:
        net: ``ESPnetS2TCTCModel``.
    """

    is_told = True
    _told: Told | None = None

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._signal = self.timeline
        self.timeline = replace(self.timeline, told=CTC_PROMPT)

    @property
    def output_layer(self) -> nn.Linear:
        linear: nn.Linear = self.net.ctc.ctc_lo
        return linear

    def told(self, primers: Sequence[list[int]] | None, count: int) -> OwsmCtcBackbone:
        backbone = copy.copy(self)
        backbone._told = self._read(primers, count)
        return backbone

    def _read(self, primers: Sequence[list[int]] | None, count: int) -> Told:
        """Primers as ESPnet's model reads them: text before, language, task."""
        net, tokens = self.net, self.tokenizer
        if primers is None:
            primers = [tokens.prompt("", "")] * count
        symbols_B2 = listed([primer[-CTC_PROMPT:] for primer in primers], self.device)
        before = [primer[:-CTC_PROMPT] or [tokens.na] for primer in primers]
        lengths_B = listed([len(text) for text in before], self.device)
        longest = max(map(len, before))
        text_BM = listed([text + [tokens.eos] * (longest - len(text)) for text in before], self.device)
        embedded_BMD = add_positions(net.pos_enc, net.embed(text_BM))
        memory_BMD, _, _ = net.prompt_encoder(embedded_BMD, lengths_B)
        mask_BM = torch.arange(longest, device=self.device) < lengths_B.unsqueeze(1)
        symbols_B2D = net.embed_proj(net.embed(symbols_B2))
        return Told(symbols_B2D, net.prompt_proj(memory_BMD), mask_BM.unsqueeze(1))

    def front(self, feats_BSF: Tensor, lengths_B: Tensor) -> Front:
        symbols_B2D = self._of(len(feats_BSF)).symbols
        return subsample(self.net.encoder.embed, self.timeline, feats_BSF, lengths_B, symbols_B2D)

    def _of(self, count: int) -> Told:
        return self._told or self._read(None, count)

    def encoder_layer(self, index: int, x_BTD: Tensor, mask_B1T: Tensor, run: Runner) -> Tensor:
        layer, told = self.net.encoder.encoders[index], self._of(len(x_BTD))
        if self._is_conditioned(index):
            x_BTD = x_BTD + self.net.encoder.conditioning_layer(self.net.ctc.softmax(x_BTD))
        last = None if layer.cross_attn is None else partial(attend_prompt, layer, told)
        return run_encoder_layer(layer, x_BTD, mask_B1T, run, last)

    def _is_conditioned(self, index: int) -> bool:
        """Whether the layer is given what CTC would write after the one before it."""
        encoder = self.net.encoder
        return bool(encoder.interctc_use_conditioning) and index in encoder.interctc_layer_idx

    def branches(self, side: Side, index: int) -> Branches:
        if side == "decoder":
            raise _no_decoder()
        encoder = self.net.encoder
        conditioned = (
            (self.net.ctc.ctc_lo, encoder.conditioning_layer) if self._is_conditioned(index) else None
        )
        return told_branches(encoder.encoders[index], conditioned)

    def stem_flops(self, feature_frames: int) -> int:
        """With the prompt's own encoder, on one token: that nothing was said before."""
        net = self.net
        total: float = stem_flops(net.encoder.embed, self._signal, feature_frames, self.shape.mels)
        for layer in net.prompt_encoder.encoders:
            total += sum(PartCost.of(part).on(1, 1) for part in transformer_branches(layer).values())
        total += norm_cost(net.prompt_encoder.output_size())
        if isinstance(net.prompt_proj, nn.Linear):
            total += net.prompt_proj.weight.numel() + CTC_PROMPT * net.embed_proj.weight.numel()
        return int(total)

    def packed(self, dtype: torch.dtype) -> Packed:
        encoder, conditioning = self.net.encoder, None
        if encoder.interctc_use_conditioning:
            conditioning = PackedConditioning(self.net.ctc.ctc_lo, encoder.conditioning_layer, dtype)
        stem = PackedSubsampling(encoder.embed, self._signal, rows_type(dtype))
        positions = partial(add_positions, positions_of(encoder.embed))
        layers = [
            PackedToldLayer(layer, conditioning if self._is_conditioned(index) else None, dtype)
            for index, layer in enumerate(encoder.encoders)
        ]
        end = PackedNorm(encoder.after_norm, torch.float32)

        def told(primers: Sequence[list[int]] | None, count: int) -> Packed:
            given = self._read(primers, count)
            bound: list[PackedLayer] = [layer.of(given) for layer in layers]
            return Packed(partial(_with_symbols, stem, given.symbols), positions, bound, end)

        return Packed(stem, positions, [], end, told)

    @property
    def loss_states(self) -> tuple[int, ...]:
        return tuple(self.net.encoder.interctc_layer_idx) if self.net.interctc_weight else ()

    def encoder_losses(
        self, x_BTD: Tensor, lengths_B: Tensor, states: Mapping[int, Tensor], batch: dict[str, Any]
    ) -> Loss:
        """ESPnet's: CTC at the end and, weighted, the mean of those in between, which are of the transcript where
        ``ctc_asr_only`` says so. Texts begin with language and task."""
        net = self.net
        text = batch["text"], batch["text_lengths"]
        spoken = (
            torch.cat([batch["text"][:, :CTC_PROMPT], batch["text_ctc"]], dim=1),
            batch["text_ctc_lengths"] + CTC_PROMPT,
        )

        def loss_of(state_BTD: Tensor, asr_only: bool) -> Tensor:
            loss: Tensor = net._calc_ctc_loss(state_BTD, lengths_B, *(spoken if asr_only else text))[0]
            return loss

        total = last = loss_of(x_BTD, net.ctc_asr_only[-1])
        if self.loss_states:
            only = net.ctc_asr_only
            between = [loss_of(states[layer], only[i]) for i, layer in enumerate(self.loss_states)]
            total = (1 - net.interctc_weight) * last + net.interctc_weight * sum(between) / len(between)
        return Loss(total, total, 1.0, x_BTD.new_zeros(()), last)

    def reference_encoder(self, feats_BSF: Tensor, lengths_B: Tensor) -> Tensor:
        told = self._of(len(feats_BSF))
        output = self.net.encoder(
            feats_BSF,
            lengths_B,
            ctc=self.net.ctc,
            prefix_embeds=told.symbols,
            memory=told.memory,
            memory_mask=told.mask,
        )[0]
        x_BTD: Tensor = output[0] if isinstance(output, tuple) else output
        return x_BTD

    def _decoder_layers(self) -> int:
        return 0


def _with_symbols(
    stem: PackedSubsampling, symbols_B2D: Tensor, feats_BSF: Tensor, lengths: list[int]
) -> tuple[Tensor, Ragged]:
    """Frames, packed, each utterance's behind its symbols."""
    front_ND, layout = stem(feats_BSF, lengths)
    parts = (
        part
        for symbols_2D, rows in zip(symbols_B2D, layout.segments(), strict=True)
        for part in (symbols_2D.to(front_ND.dtype), front_ND[rows])
    )
    told = symbols_B2D.shape[1]
    return torch.cat(list(parts)), layout_of(tuple(n + told for n in layout.lengths), feats_BSF.device)


def _no_decoder() -> BackboneError:
    return BackboneError("OWSM-CTC has no decoder: its encoder is gated alone (pruning.decoder=null)")
