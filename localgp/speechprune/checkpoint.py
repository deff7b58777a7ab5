"""Qwen2-Audio models: random ones of any size, built offline, and real ones by hub id or directory."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from localgp.errors import BackboneError

HUB_IDS = {"qwen2_audio_7b": "Qwen/Qwen2-Audio-7B-Instruct"}

# Random models. `mid` is large enough that its language model's prefill is bound by matrix products, as in the
# real one, and small enough for a CPU.
_SIZES: dict[str, dict[str, dict[str, int]]] = {
    "tiny": {
        "text": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "heads": 4,
            "kv_heads": 2,
        },
        "audio": {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64},
    },
    "mid": {
        "text": {
            "hidden_size": 1024,
            "intermediate_size": 2816,
            "num_hidden_layers": 8,
            "heads": 16,
            "kv_heads": 16,
        },
        "audio": {"d_model": 384, "encoder_layers": 6, "encoder_attention_heads": 6, "encoder_ffn_dim": 1536},
    },
}
_MELS = {"tiny": 40, "mid": 128}
_VOCABULARY = {"tiny": None, "mid": 32_000}  # None: as many as the tokenizer has
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>")


def load(
    name: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 1
) -> Any:
    """A Qwen2-Audio model in eval mode and its processor.

    Args:
        name: ``tiny`` or ``mid`` (random weights, offline), ``qwen2_audio_7b``, a hub id with a slash, or a
            directory that ``save_pretrained`` wrote (model and processor).
        device: Where to.
        dtype: Weights' type.
        seed: Of random weights.

    Returns:
        ``(model, processor)``.

    Raises:
        BackboneError: The package `transformers` is missing; or the name is none of these, cannot be found here
            and the hub cannot be reached, is not a Qwen2-Audio model, or its files are damaged.
    """
    require_transformers()
    if name in _SIZES:
        model, processor = build(name, seed)
    else:
        model, processor = _pretrained(name, dtype)
    return model.to(device=device, dtype=dtype).eval(), processor


def require_transformers() -> None:
    """Says how to install the extra where `transformers` is missing."""
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise BackboneError(
            f"SpeechPrune needs the package transformers ({error}); in the checkout of localgp: "
            "pip install -e '.[speechprune]'"
        ) from error


def build(size: str, seed: int = 1, window: int = 30) -> Any:
    """A randomly initialised model and a processor of its own, without any download.

    Args:
        size: ``tiny`` or ``mid``.
        seed: Of the weights.
        window: Seconds of audio that the tower sees at once; 30 as in the real model.
    """
    from transformers import Qwen2AudioForConditionalGeneration

    processor = _processor(mels=_MELS[size], window=window)
    tokenizer = processor.tokenizer
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2AudioForConditionalGeneration(_random_config(size, tokenizer, window))
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    return model.eval(), processor


def _random_config(size: str, tokenizer: Any, window: int) -> Any:
    from transformers import Qwen2AudioConfig

    text = dict(_SIZES[size]["text"])
    return Qwen2AudioConfig(
        audio_config={
            **_SIZES[size]["audio"],
            "model_type": "qwen2_audio_encoder",
            "num_mel_bins": _MELS[size],
            "max_source_positions": 50 * window,
        },
        text_config={
            "model_type": "qwen2",
            "num_attention_heads": text.pop("heads"),
            "num_key_value_heads": text.pop("kv_heads"),
            **text,
            "vocab_size": _VOCABULARY[size] or len(tokenizer),
            "max_position_embeddings": 8192,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": None,
            "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
        },
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )


def _processor(mels: int, window: int) -> Any:
    """Whisper's feature extractor, and a byte-level BPE trained on the embedded samples' text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2AudioProcessor, WhisperFeatureExtractor

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=list(_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    lines = files("localgp.speechprune").joinpath("samples", "data.jsonl").read_text("utf-8").split("\n")
    entries = [json.loads(line) for line in lines if line]
    bpe.train_from_iterator(
        (text for entry in entries for turn in entry["transcript"] for text in turn["text"]), trainer
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<|endoftext|>", eos_token="<|im_end|>", padding_side="left"
    )
    extractor = WhisperFeatureExtractor(feature_size=mels, chunk_length=window, return_attention_mask=True)
    return Qwen2AudioProcessor(feature_extractor=extractor, tokenizer=tokenizer)


def load_config(name: str) -> Any:
    """The configuration alone, as in `load`: nothing large is read or fetched.

    Raises:
        BackboneError: As `load`.
    """
    require_transformers()
    if name in _SIZES:
        return _random_config(name, _processor(_MELS[name], window=30).tokenizer, window=30)
    return _from_files(name, _read_config)


def _pretrained(name: str, dtype: torch.dtype) -> Any:
    from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

    def read(source: str) -> Any:
        _read_config(source)  # first, so that a model of another kind is named before gigabytes are fetched
        processor = AutoProcessor.from_pretrained(source)
        # Only safetensors: a pickled checkpoint can run code when it is read.
        model = Qwen2AudioForConditionalGeneration.from_pretrained(source, dtype=dtype, use_safetensors=True)
        return model, processor

    return _from_files(name, read)


def _read_config(source: str) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source)
    if config.model_type != "qwen2_audio":
        raise BackboneError(
            f"{source}: a model of type {config.model_type!r}; SpeechPrune runs on 'qwen2_audio' models, such as "
            f"{HUB_IDS['qwen2_audio_7b']}"
        )
    return config


def _from_files(name: str, read: Callable[[str], Any]) -> Any:
    """``read(directory or hub id)``, with errors that say what to do."""
    source = HUB_IDS.get(name, name)
    local = Path(source).is_dir()
    if not local and "/" not in source:
        raise BackboneError(
            f"model is {name!r}; valid: {', '.join([*_SIZES, *HUB_IDS])}, a hub id such as "
            f"{HUB_IDS['qwen2_audio_7b']}, or a directory with a model and its processor"
        )
    if local and not (Path(source) / "config.json").is_file():
        raise BackboneError(
            f"{source}: no config.json; a model directory is what save_pretrained writes for the model and for the "
            "processor (config.json, *.safetensors, preprocessor_config.json, tokenizer files)"
        )
    # The hub's library logs every retry through a handler of its own; without this Hydra's would print it again.
    logging.getLogger("huggingface_hub").propagate = False
    try:
        return read(source)
    except (
        OSError,
        ValueError,
        RuntimeError,
    ) as error:  # transformers raises these for all that can go wrong
        first = str(error).strip().split("\n")[0]
        action = (
            "write it again with save_pretrained, model and processor"
            if local
            else f"without a network, fetch it elsewhere (hf download {source} --local-dir DIR) and give model=DIR; "
            "or use model=tiny"
        )
        raise BackboneError(f"{source}: cannot be loaded: {first}; {action}") from error
