"""The published shapes of Whisper, so that a model can be built, and its cost counted, without any download."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ENGLISH = 51_864  # tokens of those that know English alone


@dataclass(frozen=True)
class Dimensions:
    """What sets one Whisper apart from another.

    Attributes:
        size: D, width of encoder and decoder.
        heads: Attention heads.
        encoder_layers, decoder_layers: Number of layers.
        vocabulary: Number of tokens: 51,864 of the English ones, 51,865 of 99 languages, one more since Cantonese.
        mels: F.
    """

    size: int
    heads: int
    encoder_layers: int
    decoder_layers: int
    vocabulary: int = 51_865
    mels: int = 80


DIMENSIONS = {
    "whisper_tiny": Dimensions(384, 6, 4, 4),
    "whisper_base": Dimensions(512, 8, 6, 6),
    "whisper_small": Dimensions(768, 12, 12, 12),
    "whisper_medium": Dimensions(1024, 16, 24, 24),
    "whisper_tiny.en": Dimensions(384, 6, 4, 4, ENGLISH),
    "whisper_base.en": Dimensions(512, 8, 6, 6, ENGLISH),
    "whisper_small.en": Dimensions(768, 12, 12, 12, ENGLISH),
    "whisper_medium.en": Dimensions(1024, 16, 24, 24, ENGLISH),
    "whisper_large_v2": Dimensions(1280, 20, 32, 32),
    "whisper_large_v3": Dimensions(1280, 20, 32, 32, 51_866, mels=128),
    "whisper_large_v3_turbo": Dimensions(1280, 20, 32, 4, 51_866, mels=128),
}


def arguments(dimensions: Dimensions) -> dict[str, Any]:
    """Of `transformers.WhisperConfig`."""
    d = dimensions
    end = 50_256 if d.vocabulary == ENGLISH else 50_257  # behind all pieces of text
    return {
        "d_model": d.size,
        "encoder_layers": d.encoder_layers,
        "decoder_layers": d.decoder_layers,
        "encoder_attention_heads": d.heads,
        "decoder_attention_heads": d.heads,
        "encoder_ffn_dim": 4 * d.size,
        "decoder_ffn_dim": 4 * d.size,
        "vocab_size": d.vocabulary,
        "num_mel_bins": d.mels,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": end + 1,
    }
