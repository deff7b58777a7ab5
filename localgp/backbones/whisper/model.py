"""Whisper, as `transformers` has it, behind the seam."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from localgp.backbones.base import (
    Backbone,
    Branches,
    DecoderInput,
    Front,
    Loss,
    Packed,
    Peer,
    Runner,
    Shape,
    Side,
)
from localgp.backbones.blocks import PackedNorm, PackedTransformerLayer
from localgp.backbones.sequences import accuracy, joined
from localgp.backbones.whisper.features import HOP, RATE, LogMel
from localgp.backbones.whisper.files import build_whisper, locate, tokens_of, write_directory
from localgp.backbones.whisper.layers import (
    decoder_branches,
    encoder_branches,
    run_decoder_layer,
    run_encoder_layer,
)
from localgp.backbones.whisper.peers import PEERS
from localgp.backbones.whisper.stem import CONVOLUTIONS, PackedStem, convolve, stem_flops
from localgp.backbones.whisper.tokens import WhisperTokens
from localgp.errors import BackboneError, ConfigError
from localgp.failures import explained
from localgp.kernels.int8 import rows_type
from localgp.timeline import Timeline

IGNORE = -1  # padding of token sequences


class WhisperBackbone(Backbone):
    """Whisper of `transformers` behind the seam.

    Args:
        net: ``WhisperForConditionalGeneration``.
        tokenizer: Its vocabulary.
        name: See `Backbone`.
        source: See `Backbone`.
    """

    key = "whisper"
    library, saves_hub_folder = "transformers", True
    peers = tuple(PEERS)
    net: Any
    tokenizer: WhisperTokens

    def __init__(self, net: nn.Module, tokenizer: WhisperTokens, *, name: str, source: str) -> None:
        self.net, self.tokenizer = net, tokenizer
        self.name, self.source = name, source
        config = self.net.config
        if len(tokenizer) > config.vocab_size:
            raise BackboneError(
                f"{source}: its tokenizer has {len(tokenizer)} tokens, its model {config.vocab_size}; use the "
                "tokenizer that lies beside the weights"
            )
        self.timeline = Timeline(HOP, CONVOLUTIONS, extra=0)
        self.sample_rate = RATE
        self.padded_seconds = config.max_source_positions * self.timeline.stride * HOP / RATE
        self.shape = Shape(
            size=config.d_model,
            encoder_layers=config.encoder_layers,
            decoder_layers=config.decoder_layers,
            vocabulary=config.vocab_size,
            mels=config.num_mel_bins,
            longest=config.max_target_positions,
        )
        self._log_mel = LogMel(config.num_mel_bins)
        self._encoder.embed_positions.requires_grad_(
            False
        )  # sinusoids; loading makes them a parameter like others

    @property
    def _encoder(self) -> Any:
        return self.net.model.encoder

    @property
    def _decoder(self) -> Any:
        return self.net.model.decoder

    @property
    def stem(self) -> tuple[nn.Module, ...]:
        return self._encoder.conv1, self._encoder.conv2

    @property
    def encoder_norm(self) -> nn.Module:
        return self._encoder.layer_norm

    @property
    def decoder_norm(self) -> nn.Module:
        return self._decoder.layer_norm

    @property
    def output_layer(self) -> nn.Linear:
        return self.net.proj_out

    def features(self, speech_BN: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """As ``WhisperFeatureExtractor`` makes them, with SpecAugment in training where the model has it."""
        with torch.autocast(speech_BN.device.type, enabled=False):
            feats_BSF = self._log_mel(speech_BN)
            if self.net.training and self.net.config.apply_spec_augment:
                feats_BSF = self.net.model._mask_input_features(feats_BSF.transpose(1, 2)).transpose(1, 2)
        return feats_BSF, self.timeline.feature_frames(lengths_B)

    def front(self, feats_BSF: Tensor, lengths_B: Tensor) -> Front:
        front_BTD = convolve(self._encoder, feats_BSF, lengths_B)
        frames_T = torch.arange(front_BTD.shape[1], device=front_BTD.device)
        own_BT = frames_T < self.timeline.frames_of(lengths_B).to(front_BTD.device).unsqueeze(1)
        x_BTD = F.dropout(self._placed(front_BTD), self._encoder.dropout, self.net.training)
        return Front(x_BTD, front_BTD, own_BT.unsqueeze(1))

    def _placed(self, front_BTD: Tensor) -> Tensor:
        return front_BTD + self._encoder.embed_positions.weight[: front_BTD.shape[1]]

    def encoder_layer(self, index: int, x_BTD: Tensor, mask_B1T: Tensor, run: Runner) -> Tensor:
        return run_encoder_layer(self._encoder.layers[index], x_BTD, mask_B1T, run)

    def embed(self, tokens_QL: Tensor) -> Tensor:
        decoder, count = self._decoder, tokens_QL.shape[1]
        if count > self.net.config.max_target_positions:
            raise ConfigError(
                f"a text has {count} tokens with its prompt, and {self.name} has positions for "
                f"{self.net.config.max_target_positions}; cut its recording into shorter segments"
            )
        x_QLD = decoder.embed_tokens(tokens_QL) + decoder.embed_positions.weight[:count]
        return F.dropout(x_QLD, decoder.dropout, self.net.training)

    def embed_at(self, tokens_R: Tensor, position_R: Tensor, longest: int) -> Tensor:
        decoder = self._decoder
        return decoder.embed_tokens(tokens_R).float() + decoder.embed_positions.weight[position_R].float()

    def task_embedding(self, prompt_Q2: Tensor) -> Tensor:
        return self._decoder.embed_tokens(prompt_Q2).flatten(1)

    def decoder_layer(
        self, index: int, x_QLD: Tensor, mask_QLL: Tensor, memory_QTD: Tensor, source_Q1T: Tensor, run: Runner
    ) -> Tensor:
        layer = self._decoder.layers[index]
        return run_decoder_layer(layer, x_QLD, mask_QLL, memory_QTD, source_Q1T, run)

    def branches(self, side: Side, index: int) -> Branches:
        if side == "encoder":
            return encoder_branches(self._encoder.layers[index])
        return decoder_branches(self._decoder.layers[index])

    def stem_flops(self, feature_frames: int) -> int:
        return stem_flops(self._encoder, self.timeline, feature_frames)

    def packed(self, dtype: torch.dtype) -> Packed:
        return Packed(
            stem=PackedStem(self._encoder, self.timeline, rows_type(dtype)),
            positions=self._placed,
            layers=[PackedTransformerLayer(encoder_branches(layer), dtype) for layer in self._encoder.layers],
            end=PackedNorm(self._encoder.layer_norm, torch.float32),
        )

    def decoder_input(self, batch: dict[str, Any]) -> DecoderInput:
        """``<|startofprev|> previous <|startoftranscript|> prompt text``; targets are ``text <|endoftext|>``: the
        prompt is given, and not to be learnt."""
        tokens = self.tokenizer
        given = joined(
            batch["text"],
            batch["text_prev"],
            begins=tokens.prev,
            start=tokens.start[-1],
            eos=tokens.eos,
            none=tokens.na,
            ignore=IGNORE,
        )
        # Symbols that are no times lie between the text's pieces, <|endoftext|> the last, and the times.
        prompt_QL = (given.targets > tokens.eos) & (given.targets < tokens.first_time)
        return given._replace(targets=given.targets.masked_fill(prompt_QL, IGNORE))

    def losses(
        self, x_BTD: Tensor, lengths_B: Tensor, logits_QLV: Tensor, targets_QL: Tensor, batch: dict[str, Any]
    ) -> Loss:
        """Cross-entropy, a sum over tokens, averaged over sequences."""
        total = F.cross_entropy(
            logits_QLV.flatten(0, 1).float(), targets_QL.flatten(), ignore_index=IGNORE, reduction="sum"
        )
        loss = total / len(targets_QL)
        return Loss(loss, loss, 1.0, accuracy(logits_QLV, targets_QL, IGNORE))

    def reference_encoder(self, feats_BSF: Tensor, lengths_B: Tensor) -> Tensor:
        """With the attention that `transformers` takes if nothing is said."""
        given = self.net.config._attn_implementation
        self.net.set_attn_implementation("sdpa")
        try:
            return self._encoder(feats_BSF.transpose(1, 2)).last_hidden_state
        finally:
            self.net.set_attn_implementation(given)

    def peer(self, name: str) -> Peer:
        peer: Peer = PEERS[name](self.net, self.tokenizer)
        return peer

    def use_fast_kernels(self) -> None:
        """Attention through PyTorch's fused one instead of an explicit softmax."""
        self.net.set_attn_implementation("sdpa")

    def save(self, folder: Path, *, weights: bool = True) -> None:
        write_directory(self.net, self.tokenizer, folder, weights=weights)


def load_backbone(cfg: Mapping[str, Any]) -> WhisperBackbone:
    """See `localgp.backbones.open_backbone`."""
    with explained(cfg["path"]):
        files = locate(cfg)
        source = files.source if files.weights else "random weights"
        return WhisperBackbone(build_whisper(files), files.tokens(), name=str(cfg["name"]), source=source)


def adopt(net: Any, vocabulary: Any = None) -> WhisperBackbone:
    """See `localgp.backbones.Family.adopt`.

    Args:
        net: ``WhisperForConditionalGeneration``.
        vocabulary: Its processor or tokenizer of `transformers`, or a directory that has its files; None: where the
            model says that it came from.
    """
    name = str(getattr(net, "name_or_path", "") or "whisper")
    if net.dtype != torch.float32:
        raise BackboneError(
            f"the model is in {net.dtype}; give it in fp32: model.float(). What it then computes in is precision="
        )
    with explained(name):
        return WhisperBackbone(net, tokens_of(net, vocabulary), name=Path(name).name, source=name)
