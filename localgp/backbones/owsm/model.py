"""ESPnet's S2T model (OWSM) behind the seam."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from localgp.backbones.base import (
    Backbone,
    Branches,
    DecoderInput,
    Front,
    Loss,
    Packed,
    Run,
    Shape,
    Side,
    Tokens,
)
from localgp.backbones.blocks import PackedNorm
from localgp.backbones.owsm.build import build_model, load_weights
from localgp.backbones.owsm.fast import use_fast_kernels
from localgp.backbones.owsm.files import explained, padded_seconds, read_files, write_espnet_directory
from localgp.backbones.owsm.layers import (
    PackedLayer,
    decoder_branches,
    encoder_branches,
    run_decoder_layer,
    run_encoder_layer,
)
from localgp.backbones.owsm.positions import add_positions, position_table
from localgp.backbones.owsm.reference import EspnetSearch
from localgp.backbones.owsm.stem import CONVOLUTIONS, PackedSubsampling, stem_flops, subsample
from localgp.backbones.owsm.tokens import OwsmTokenizer
from localgp.errors import BackboneError
from localgp.timeline import Timeline


class OwsmBackbone(Backbone):
    """Args:
    net: ``ESPnetS2TModel``.
    tokenizer: Its vocabulary.
    train_config: ESPnet's config.yaml, paths resolved.
    sample_rate, padded_seconds, name, source: See `Backbone`.

    Raises:
        BackboneError: A model of ESPnet's that is not of OWSM's kind.
    """

    key = "espnet"
    net: Any  # ESPnet has no type annotations to go by

    def __init__(
        self,
        net: nn.Module,
        tokenizer: Tokens,
        *,
        train_config: dict[str, Any],
        sample_rate: int = 16_000,
        padded_seconds: float = 30.0,
        name: str = "",
        source: str = "",
    ) -> None:
        check_supported(net)
        self.net = net
        self.tokenizer, self.train_config = tokenizer, train_config
        self.sample_rate, self.padded_seconds = sample_rate, padded_seconds
        self.name, self.source = name, source
        self.net.error_calculator = None  # scoring is done on decoded text, not inside the loss
        frontend = self.net.frontend
        self.timeline = Timeline(getattr(frontend, "hop_length", 160), CONVOLUTIONS)
        self.shape = Shape(
            size=self.net.encoder.output_size(),
            encoder_layers=len(self.net.encoder.encoders),
            decoder_layers=len(self.net.decoder.decoders),
            vocabulary=self.output_layer.out_features,
            mels=80 if frontend is None else frontend.output_size(),
        )

    @property
    def stem(self) -> nn.Module:
        return self.net.encoder.embed

    @property
    def encoder_norm(self) -> nn.Module:
        return self.net.encoder.after_norm

    @property
    def decoder_norm(self) -> nn.Module:
        return self.net.decoder.after_norm

    @property
    def output_layer(self) -> nn.Linear:
        return self.net.decoder.output_layer

    @property
    def ctc(self) -> nn.Linear | None:
        return None if self.net.ctc is None else self.net.ctc.ctc_lo

    def features(self, speech_BN: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """ESPnet's front end, SpecAugment in training where the backbone has it, and normalisation."""
        net = self.net
        with torch.autocast(speech_BN.device.type, enabled=False):
            feats, lengths = net._extract_feats(speech_BN, lengths_B)
            if net.specaug is not None and net.training:
                feats, lengths = net.specaug(feats, lengths)
            if net.normalize is not None:
                feats, lengths = net.normalize(feats, lengths)
        return feats, lengths

    def front(self, feats_BSF: Tensor, lengths_B: Tensor) -> Front:
        return subsample(self.net.encoder.embed, feats_BSF, lengths_B)

    def encoder_layer(self, index: int, x_BTD: Tensor, mask_B1T: Tensor, run: Run) -> Tensor:
        return run_encoder_layer(self.net.encoder.encoders[index], x_BTD, mask_B1T, run)

    def embed(self, tokens_QL: Tensor) -> Tensor:
        return self.net.decoder.embed(tokens_QL)

    def embed_at(self, tokens_R: Tensor, position_R: Tensor, longest: int) -> Tensor:
        embedding, encoding = self.net.decoder.embed[0], self.net.decoder.embed[1]
        count = longest if longest <= encoding.pe.shape[1] else 2 * longest
        positions_RD = position_table(encoding, count, embedding.weight.device).index_select(0, position_R)
        return embedding(tokens_R).float() * encoding.xscale + positions_RD

    def task_embedding(self, prompt_Q2: Tensor) -> Tensor:
        return self.net.decoder.embed[0](prompt_Q2).flatten(1)

    def decoder_layer(
        self, index: int, x_QLD: Tensor, mask_QLL: Tensor, memory_QTD: Tensor, source_Q1T: Tensor, run: Run
    ) -> Tensor:
        layer = self.net.decoder.decoders[index]
        return run_decoder_layer(layer, x_QLD, mask_QLL, memory_QTD, source_Q1T, run)

    def branches(self, side: Side, index: int) -> Branches:
        if side == "encoder":
            return encoder_branches(self.net.encoder.encoders[index])
        return decoder_branches(self.net.decoder.decoders[index])

    def stem_flops(self, feature_frames: int) -> int:
        return stem_flops(self.net.encoder.embed, self.timeline, feature_frames, self.shape.mels)

    def packed(self, dtype: torch.dtype) -> Packed:
        encoder = self.net.encoder
        return Packed(
            stem=PackedSubsampling(encoder.embed, self.timeline, dtype),
            positions=partial(add_positions, encoder.embed.out[1]),
            layers=[PackedLayer(layer, dtype) for layer in encoder.encoders],
            end=PackedNorm(encoder.after_norm, torch.float32),
        )

    def decoder_input(self, batch: dict[str, Any]) -> DecoderInput:
        """OWSM's sequences, ``<sop> previous <sos> text``, or ``<sos> text`` where there is no previous text; targets
        are ``text <eos>``, and ESPnet's ``ignore_id`` for the rest."""
        net, ignore = self.net, self.net.ignore_id
        text_QL, previous_QL = batch["text"], batch["text_prev"]
        count_Q1 = (text_QL != ignore).sum(1, keepdim=True)
        before_Q1 = (previous_QL != ignore).sum(1, keepdim=True) + 1  # with <sop>
        before_Q1 = before_Q1.masked_fill((previous_QL == net.na).any(1, keepdim=True), 0)
        lengths_Q1 = before_Q1 + 1 + count_Q1
        longest = int(lengths_Q1.max())  # the one wait for a GPU
        place_L = torch.arange(longest, device=text_QL.device)
        from_sos_QL = place_L - before_Q1
        text_from = (from_sos_QL - 1).clamp(0, text_QL.shape[1] - 1)
        inputs_QL = text_QL.gather(1, text_from)
        previous_from = (place_L - 1).clamp(0, previous_QL.shape[1] - 1).expand_as(from_sos_QL)
        inputs_QL = torch.where(from_sos_QL < 0, previous_QL.gather(1, previous_from), inputs_QL)
        inputs_QL = inputs_QL.masked_fill((from_sos_QL < 0) & (place_L == 0), net.sop)
        inputs_QL = inputs_QL.masked_fill(from_sos_QL == 0, net.sos)
        inputs_QL = inputs_QL.masked_fill(from_sos_QL > count_Q1, net.eos)
        targets_QL = text_QL.gather(1, from_sos_QL.clamp(0, text_QL.shape[1] - 1))
        targets_QL = targets_QL.masked_fill(from_sos_QL == count_Q1, net.eos)
        targets_QL = targets_QL.masked_fill((from_sos_QL < 0) | (from_sos_QL > count_Q1), ignore)
        return DecoderInput(inputs_QL, lengths_Q1.squeeze(1), targets_QL)

    def losses(
        self, x_BTD: Tensor, lengths_B: Tensor, logits_QLV: Tensor, targets_QL: Tensor, batch: dict[str, Any]
    ) -> Loss:
        """ESPnet's hybrid CTC/attention loss: ctc_weight x ctc + (1 - ctc_weight) x attention."""
        from espnet.nets.pytorch_backend.nets_utils import th_accuracy

        net = self.net
        attention = net.criterion_att(logits_QLV, targets_QL)
        accuracy = th_accuracy(logits_QLV.flatten(0, 1), targets_QL, ignore_label=net.ignore_id)
        if net.ctc is None:
            return Loss(attention, attention, 1.0, float(accuracy))
        ctc, _ = net._calc_ctc_loss(x_BTD, lengths_B, batch["text_ctc"], batch["text_ctc_lengths"])
        total = net.ctc_weight * ctc + (1 - net.ctc_weight) * attention
        return Loss(total, attention, 1 - net.ctc_weight, float(accuracy), ctc)

    def reference_encoder(self, feats_BSF: Tensor, lengths_B: Tensor) -> Tensor:
        return self.net.encoder(feats_BSF, lengths_B)[0]

    def reference_search(self, options: Any, dtype: torch.dtype) -> EspnetSearch:
        return EspnetSearch(self.net, self.tokenizer, options, dtype)

    def use_fast_kernels(self) -> None:
        use_fast_kernels(self.net)

    def save(self, folder: Path, *, weights: bool = True) -> None:
        write_espnet_directory(self.net, self.train_config, folder, weights=weights)


def check_supported(net: Any) -> None:
    """Raises:
    BackboneError: If encoder or decoder are not of the kind that OWSM has.
    """
    from espnet.nets.pytorch_backend.transformer.attention import MultiHeadedAttention
    from espnet.nets.pytorch_backend.transformer.subsampling import Conv2dSubsampling
    from espnet2.asr.decoder.transformer_decoder import TransformerDecoder
    from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoder

    def named(what: str, kind: type, supported: str) -> str:
        return f"{what} is {kind.__name__}, supported: {supported}"

    problems = []
    encoder, decoder = net.encoder, net.decoder
    if not isinstance(encoder, EBranchformerEncoder):
        problems.append(named("encoder", type(encoder), "EBranchformerEncoder (e_branchformer)"))
    else:
        layer = encoder.encoders[0]
        if not isinstance(encoder.embed, Conv2dSubsampling):
            problems.append(named("input_layer", type(encoder.embed), "conv2d"))
        if type(layer.attn) is not MultiHeadedAttention:
            problems.append(named("attention", type(layer.attn), "selfattn with abs_pos"))
        if layer.feed_forward is None or layer.feed_forward_macaron is None:
            problems.append("layers lack FFNs, supported: use_ffn: true and macaron_ffn: true")
    if not isinstance(decoder, TransformerDecoder):
        problems.append(named("decoder", type(decoder), "TransformerDecoder (transformer)"))
    else:
        first = decoder.decoders[0]
        if not isinstance(decoder.embed[0], nn.Embedding):
            problems.append("the decoder's input_layer is not embed")
        if not decoder.normalize_before or first.concat_after:
            problems.append("the decoder's layers are not pre-norm without concat_after")
        if type(first.self_attn) is not MultiHeadedAttention:
            problems.append(named("the decoder's attention", type(first.self_attn), "MultiHeadedAttention"))
        if decoder.output_layer is None:
            problems.append("the decoder has no output layer")
    if problems:
        raise BackboneError(
            "this backbone is not supported: " + "; ".join(problems) + ". Use an OWSM-v3.1 model."
        )


def load_backbone(cfg: Mapping[str, Any]) -> OwsmBackbone:
    """See `localgp.backbones.open_backbone`."""
    with explained(cfg):
        config, files = read_files(cfg)
        net = build_model(config)
        if files is not None:
            load_weights(net, files)
        return assemble(net, config, cfg["name"], "random weights" if files is None else files.source)


def assemble(net: nn.Module, config: dict[str, Any], name: str, source: str) -> OwsmBackbone:
    """The backbone around a model built from ``config``."""
    preprocessor = config.get("preprocessor_conf") or {}
    return OwsmBackbone(
        net,
        OwsmTokenizer(config["token_list"], Path(config["bpemodel"])),
        train_config=config,
        sample_rate=int(preprocessor.get("fs", 16000)),
        padded_seconds=padded_seconds(config),
        name=name,
        source=source,
    )
