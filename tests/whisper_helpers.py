"""A tiny random Whisper, made and saved by `transformers`."""

from __future__ import annotations

from pathlib import Path

import torch

VOCABULARY = 256 + 1608  # bytes and Whisper's symbols


def make_tiny_whisper(*, mels: int = 80, seed: int = 0, **more):
    """The model, two layers a side."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    shape = {
        "vocab_size": VOCABULARY,
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "num_mel_bins": mels,
        "bos_token_id": 256,
        "eos_token_id": 256,
        "pad_token_id": 256,
        "decoder_start_token_id": 257,
        "init_std": 0.2,  # large enough for attention to choose
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = WhisperForConditionalGeneration(WhisperConfig(**shape | more)).eval()
    model.generation_config.begin_suppress_tokens = None
    return model


def tiny_whisper(**more):
    """The same behind the seam."""
    from localgp.backbones.whisper.model import WhisperBackbone
    from localgp.backbones.whisper.tokens import WhisperTokens

    tokens = WhisperTokens.placeholder(VOCABULARY)
    return WhisperBackbone(make_tiny_whisper(**more), tokens, name="tiny", source="random weights")


def save_tiny_whisper(folder: Path, *, mels: int = 80, seed: int = 0, **more) -> Path:
    """Its directory."""
    from transformers import WhisperFeatureExtractor

    from localgp.backbones.whisper.tokens import WhisperTokens

    model = make_tiny_whisper(mels=mels, seed=seed, **more)
    model.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=mels).save_pretrained(folder)
    WhisperTokens.placeholder(VOCABULARY).write(folder)
    return folder
