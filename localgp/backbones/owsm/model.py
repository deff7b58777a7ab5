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
    Runner,
    Shape,
    Side,
    Tokens,
)
from localgp.backbones.blocks import PackedNorm
from localgp.backbones.owsm import layers
from localgp.backbones.owsm.build import accepted, build_espnet_model, load_espnet_weights
from localgp.backbones.owsm.fast import use_fast_kernels
from localgp.backbones.owsm.files import (
    locate,
    padded_seconds,
    read_config,
    read_files,
    tokenizer_of,
    write_espnet_directory,
)
from localgp.backbones.owsm.layers import decoder_branches, run_decoder_layer
from localgp.backbones.owsm.positions import add_positions, position_table
from localgp.backbones.owsm.reference import EspnetSearch
from localgp.backbones.owsm.stem import (
    PackedSubsampling,
    convolutions_of,
    positions_of,
    stem_flops,
    subsample,
)
from localgp.backbones.owsm.supported import check_config, check_supported, is_ctc
from localgp.backbones.sequences import accuracy, joined
from localgp.errors import BackboneError
from localgp.failures import explained
from localgp.kernels.int8 import rows_type
from localgp.timeline import Timeline


class OwsmBackbone(Backbone):
    """ESPnet's S2T models of OWSM's kind behind the seam.

    Args:
        net: ``ESPnetS2TModel``.
        tokenizer: Its vocabulary.
        train_config: ESPnet's config.yaml, paths resolved.
        sample_rate: See `Backbone`.
        padded_seconds: See `Backbone`.
        name: See `Backbone`.
        source: See `Backbone`.

    Raises:
        BackboneError: A model of ESPnet's that is not of OWSM's kind.
    """

    key = library = "espnet"
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
        self.timeline = Timeline(
            getattr(frontend, "hop_length", 160), convolutions_of(self.net.encoder.embed)
        )
        self._layer = layers.of(self.net.encoder)
        self.shape = Shape(
            size=self.net.encoder.output_size(),
            encoder_layers=len(self.net.encoder.encoders),
            decoder_layers=self._decoder_layers(),
            vocabulary=self.output_layer.out_features,
            mels=80 if frontend is None else frontend.output_size(),
        )

    def _decoder_layers(self) -> int:
        return len(self.net.decoder.decoders)

    @property
    def stem(self) -> tuple[nn.Module, ...]:
        return (self.net.encoder.embed,)

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
        return subsample(self.net.encoder.embed, self.timeline, feats_BSF, lengths_B)

    def encoder_layer(self, index: int, x_BTD: Tensor, mask_B1T: Tensor, run: Runner) -> Tensor:
        return self._layer.run(self.net.encoder.encoders[index], x_BTD, mask_B1T, run)

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
        self, index: int, x_QLD: Tensor, mask_QLL: Tensor, memory_QTD: Tensor, source_Q1T: Tensor, run: Runner
    ) -> Tensor:
        layer = self.net.decoder.decoders[index]
        return run_decoder_layer(layer, x_QLD, mask_QLL, memory_QTD, source_Q1T, run)

    def branches(self, side: Side, index: int) -> Branches:
        if side == "encoder":
            return self._layer.branches(self.net.encoder.encoders[index])
        return decoder_branches(self.net.decoder.decoders[index])

    def stem_flops(self, feature_frames: int) -> int:
        return stem_flops(self.net.encoder.embed, self.timeline, feature_frames, self.shape.mels)

    def packed(self, dtype: torch.dtype) -> Packed:
        encoder = self.net.encoder
        return Packed(
            stem=PackedSubsampling(encoder.embed, self.timeline, rows_type(dtype)),
            positions=partial(add_positions, positions_of(encoder.embed)),
            layers=[self._layer.packed(layer, dtype) for layer in encoder.encoders],
            end=PackedNorm(encoder.after_norm, torch.float32),
        )

    def decoder_input(self, batch: dict[str, Any]) -> DecoderInput:
        """OWSM's sequences, ``<sop> previous <sos> text``; targets are ``text <eos>``."""
        net = self.net
        return joined(
            batch["text"],
            batch["text_prev"],
            begins=net.sop,
            start=net.sos,
            eos=net.eos,
            none=net.na,
            ignore=net.ignore_id,
        )

    def losses(
        self, x_BTD: Tensor, lengths_B: Tensor, logits_QLV: Tensor, targets_QL: Tensor, batch: dict[str, Any]
    ) -> Loss:
        """ESPnet's hybrid CTC/attention loss: ctc_weight x ctc + (1 - ctc_weight) x attention."""
        net = self.net
        attention = net.criterion_att(logits_QLV, targets_QL)
        right = accuracy(logits_QLV, targets_QL, net.ignore_id)
        if net.ctc is None:
            return Loss(attention, attention, 1.0, right)
        ctc, _ = net._calc_ctc_loss(x_BTD, lengths_B, batch["text_ctc"], batch["text_ctc_lengths"])
        total = net.ctc_weight * ctc + (1 - net.ctc_weight) * attention
        return Loss(total, attention, 1 - net.ctc_weight, right, ctc)

    def reference_encoder(self, feats_BSF: Tensor, lengths_B: Tensor) -> Tensor:
        return self.net.encoder(feats_BSF, lengths_B)[0]

    def reference_search(self, options: Any, dtype: torch.dtype) -> EspnetSearch:
        return EspnetSearch(self.net, self.tokenizer, options, dtype)

    def use_fast_kernels(self) -> None:
        use_fast_kernels(self.net)

    def save(self, folder: Path, *, weights: bool = True) -> None:
        write_espnet_directory(self.net, self.train_config, folder, weights=weights)


def load_backbone(cfg: Mapping[str, Any]) -> OwsmBackbone:
    """See `localgp.backbones.open_backbone`."""
    with explained(cfg["path"], "config.yaml, or a file it names,"):
        config, files = read_files(cfg)
        check_config(config)
        config = accepted(config)
        net = build_espnet_model(config)
        if files is not None:
            load_espnet_weights(net, files)
        return assemble(net, config, cfg["name"], "random weights" if files is None else files.source)


def assemble(net: nn.Module, config: dict[str, Any], name: str, source: str) -> OwsmBackbone:
    """The backbone around a model built from ``config``."""
    preprocessor = config.get("preprocessor_conf") or {}
    kind = OwsmBackbone
    if is_ctc(config):
        from localgp.backbones.owsm.ctc import OwsmCtcBackbone

        kind = OwsmCtcBackbone
    return kind(
        net,
        tokenizer_of(config),
        train_config=config,
        sample_rate=int(preprocessor.get("fs", 16000)),
        padded_seconds=padded_seconds(config),
        name=name,
        source=source,
    )


def adopt(model: Any, vocabulary: Any = None) -> OwsmBackbone:
    """See `localgp.backbones.Family.adopt`.

    Args:
        model: ESPnet's ``Speech2Text`` of `espnet2.bin.s2t_inference`, or an ``ESPnetS2TModel``.
        vocabulary: Of the latter, the directory that has its config.yaml and what that names.

    Raises:
        BackboneError: There is no telling what its tokens are.
    """
    net = getattr(model, "s2t_model", model)
    if vocabulary is not None:
        source = str(vocabulary)
        with explained(source, "config.yaml, or a file it names,"):
            config = read_config(locate(source, need_weights=False))
    elif hasattr(model, "s2t_train_args"):
        config, source = dict(vars(model.s2t_train_args)), "ESPnet's Speech2Text"
    else:
        raise BackboneError(
            "an ESPnetS2TModel does not know its BPE model; give the directory that has its config.yaml: "
            "localgp.gate(model, ..., vocabulary=DIR), or ESPnet's Speech2Text instead"
        )
    if next(net.parameters()).dtype != torch.float32:
        raise BackboneError("the model is not in fp32; give it so: model.float()")
    if list(config["token_list"]) != list(net.token_list):
        raise BackboneError(
            f"{source} has another vocabulary than the model; give the directory of this model"
        )
    return assemble(net, config, "owsm", source)
