"""Dimensions of speech language models of Qwen2-Audio's kind, and what a prefill costs in FLOPs.

The paper's TFLOPs column is reproduced by the language model's linear layers and output layer alone, at two
FLOPs per multiply-add: for Qwen2-Audio-7B 14.23 GFLOPs per token, times (audio tokens + 107 others). Three
things are not in it and stand beside it here: the attention's quadratic term, the audio tower (which SpeechPrune
runs over the whole audio, the untouched model over 30 s), and the pruner itself.

Note the convention: `localgp.flops` follows its own paper and counts one FLOP per multiply-add.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CONVENTION = "1 MAC = 2 FLOPs"
OTHER_TOKENS = 107  # of the prompt beside the audio, with which the paper's column is met

# Table I of arXiv 2412.12009, Qwen2-Audio: pruning rate to TFLOPs. 0 is the row "Original".
PAPER_TFLOPS = {0.0: 12.20, 0.2: 10.06, 0.4: 7.93, 0.6: 5.79, 0.8: 3.66}


@dataclass(frozen=True)
class LanguageModel:
    """A decoder of Llama's kind: gated feed-forward with three matrices, keys and values shared by query heads."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int

    @property
    def head(self) -> int:
        return self.hidden // self.heads

    def linear(self, tokens: int) -> float:
        """Linear layers and output layer: the paper's count."""
        attention = 2 * self.hidden**2 + 2 * self.hidden * self.kv_heads * self.head
        layer = attention + 3 * self.hidden * self.intermediate
        return 2.0 * tokens * (self.layers * layer + self.hidden * self.vocabulary)

    def quadratic(self, tokens: int) -> float:
        """Scores and weighted sums of self-attention over the full matrix; a causal kernel does half of it."""
        return 2.0 * self.layers * 2 * tokens**2 * self.hidden

    def cache_bytes(self, tokens: int, bytes_per_value: int = 2) -> int:
        """Keys and values that generation keeps."""
        return 2 * self.layers * tokens * self.kv_heads * self.head * bytes_per_value


@dataclass(frozen=True)
class AudioTower:
    """Whisper's encoder, a pooling by two, and the projector: each window costs the same, however short."""

    mels: int
    size: int
    layers: int
    feed_forward: int
    positions: int  # after the second convolution, so twice the audio tokens of a window
    projected: int

    @property
    def tokens(self) -> int:
        """Audio tokens of a full window."""
        return self.positions // 2

    def window(self) -> float:
        """One window through tower and projector."""
        convolutions = 2 * self.positions * 3 * self.mels * self.size + self.positions * 3 * self.size**2
        layer = 4 * self.size**2 + 2 * self.size * self.feed_forward + 2 * self.positions * self.size
        return 2.0 * (
            convolutions + self.layers * self.positions * layer + self.tokens * self.size * self.projected
        )

    def windows(self, tokens: int) -> int:
        return -(-tokens // self.tokens)


@dataclass(frozen=True)
class Dimensions:
    """A speech language model."""

    language: LanguageModel
    audio: AudioTower

    @classmethod
    def of(cls, config: Any) -> Dimensions:
        """Reads them off a `transformers` `Qwen2AudioConfig`."""
        text, audio = config.text_config, config.audio_config
        language = LanguageModel(
            hidden=text.hidden_size,
            layers=text.num_hidden_layers,
            heads=text.num_attention_heads,
            kv_heads=text.num_key_value_heads,
            intermediate=text.intermediate_size,
            vocabulary=text.vocab_size,
        )
        tower = AudioTower(
            mels=audio.num_mel_bins,
            size=audio.d_model,
            layers=audio.encoder_layers,
            feed_forward=audio.encoder_ffn_dim,
            positions=audio.max_source_positions,
            projected=text.hidden_size,
        )
        return cls(language, tower)

    def pruner(self, tokens: int, query: int, method: str, budget: int | None) -> float:
        """Both phases, as written: signs multiplied as numbers. ``tokens`` is the whole audio."""
        hidden, head, heads = self.language.hidden, self.language.head, self.language.heads
        similarity = 2.0 * hidden * (tokens + query)
        seen = tokens if method == "second" or budget is None else min(tokens, budget)
        projections = 2.0 * seen * hidden * head * (heads + self.language.kv_heads)
        attention = projections + 2.0 * seen**2 * head * heads
        return (similarity if method in ("both", "first") else 0.0) + (
            attention if method in ("both", "second") else 0.0
        )


QWEN2_AUDIO_7B = Dimensions(
    LanguageModel(hidden=4096, layers=32, heads=32, kv_heads=32, intermediate=11008, vocabulary=156_032),
    AudioTower(mels=128, size=1280, layers=32, feed_forward=5120, positions=1500, projected=4096),
)


def flops_row(
    dims: Dimensions,
    audio_tokens: int,
    kept: int,
    *,
    other: int = OTHER_TOKENS,
    query: int = 20,
    method: str | None = None,
    budget: int | None = None,
) -> dict[str, float | int | None]:
    """TFLOPs of one prefill, by part.

    Args:
        dims: The model.
        audio_tokens: Tokens that the audio tower makes.
        kept: Of these, what the language model sees.
        other: Prompt tokens beside the audio.
        query: Question tokens that phase 1 compares with.
        method: None for the untouched model.
        budget: Of phase 1.
    """
    total = kept + other
    parts = {
        "tflops": dims.language.linear(total),
        "tflops_quadratic": dims.language.quadratic(total),
        "tflops_audio_tower": dims.audio.windows(audio_tokens) * dims.audio.window(),
        "tflops_pruner": dims.pruner(audio_tokens, query, method, budget) if method else 0.0,
    }
    row: dict[str, float | int | None] = {name: value / 1e12 for name, value in parts.items()}
    row["tflops_with_quadratic"] = (parts["tflops"] + parts["tflops_quadratic"]) / 1e12
    row["tflops_end_to_end"] = sum(parts.values()) / 1e12
    row["kv_cache_mib"] = dims.language.cache_bytes(total) / 2**20
    return row
