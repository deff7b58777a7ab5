"""The published shapes of OWSM and OWSM-CTC and the mini backbone's, as ESPnet training configurations.

With them a model can be built, and its cost counted, without any download.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from localgp.backbones.owsm.tokens import HEAD, TAIL, special_symbols
from localgp.corpora.languages import OWSM


@dataclass(frozen=True)
class Dimensions:
    """What sets one OWSM apart from another.

    Attributes:
        size: D, width of encoder and decoder.
        heads: Attention heads.
        encoder_layers, decoder_layers: Number of layers; without a decoder it is an OWSM-CTC.
        units: Hidden units of every feed-forward module and of cgMLP.
        vocabulary: Number of tokens; 0 where the BPE model decides.
        padded_seconds: Every input is padded to this.
        dropout: Of everything.
        init_silence: Seconds of silence that ESPnet's preprocessor may put on the left in training.
        input_layer: ESPnet's name of the subsampling.
        mels: F.
        transformer: The encoder is a Transformer, as before v3.1.
        letters: Of a language's code, two up to v2.
    """

    size: int
    heads: int
    encoder_layers: int
    decoder_layers: int
    units: int
    vocabulary: int = 50_002
    padded_seconds: float = 30.0
    dropout: float = 0.1
    init_silence: float = 30.0
    input_layer: str = "conv2d"
    mels: int = 80
    transformer: bool = False
    letters: int = 3


DIMENSIONS = {
    "owsm_v2": Dimensions(1024, 16, 18, 18, 4096, transformer=True, letters=2),
    "owsm_v3": Dimensions(1024, 16, 24, 24, 4096, transformer=True),
    "owsm_v3.1_base": Dimensions(384, 6, 6, 6, 1536),
    "owsm_v3.1_small": Dimensions(768, 12, 9, 9, 3072),
    "owsm_v3.1_medium": Dimensions(1024, 16, 18, 18, 4096),
    "owsm_v4_base": Dimensions(384, 6, 6, 6, 1536, input_layer="conv2d8", mels=128),
    "owsm_v4_small": Dimensions(768, 12, 9, 9, 3072, input_layer="conv2d8", mels=128),
    "owsm_v4_medium": Dimensions(1024, 16, 18, 18, 4096, input_layer="conv2d8", mels=128),
    "owsm_ctc_v3.1": Dimensions(1024, 16, 27, 0, 4096, input_layer="conv2d8"),
    "owsm_ctc_v3.2": Dimensions(1024, 16, 27, 0, 4096, input_layer="conv2d8"),
    "owsm_ctc_v4": Dimensions(1024, 16, 27, 0, 4096, input_layer="conv2d8", mels=128),
    # 4 M parameters see too little data to overfit, and dropout is a tenth of a CPU step.
    "mini": Dimensions(128, 4, 4, 3, 512, vocabulary=0, padded_seconds=8.0, dropout=0.0, init_silence=0.5),
}


def train_config(
    dimensions: Dimensions, token_list: list[str], bpe_model: str | None, stats_file: str | None
) -> dict[str, Any]:
    """A configuration as ESPnet's S2T training writes it, as far as building and decoding need it.

    Args:
        token_list: In the order of ids.
        bpe_model: Path to the SentencePiece model as it shall stand in the file.
        stats_file: Path to the feature statistics, likewise; None for no normalisation.
    """
    d = dimensions
    encoder: dict[str, Any] = {
        "output_size": d.size,
        "attention_heads": d.heads,
        "attention_layer_type": "selfattn",
        "pos_enc_layer_type": "abs_pos",
        "rel_pos_type": "latest",
        "cgmlp_linear_units": d.units,
        "cgmlp_conv_kernel": 31,
        "use_linear_after_conv": False,
        "gate_activation": "identity",
        "num_blocks": d.encoder_layers,
        "dropout_rate": d.dropout,
        "positional_dropout_rate": d.dropout,
        "attention_dropout_rate": d.dropout,
        "input_layer": d.input_layer,
        "layer_drop_rate": 0.0,
        "linear_units": d.units,
        "positionwise_layer_type": "linear",
        "use_ffn": True,
        "macaron_ffn": True,
        "merge_conv_kernel": 31,
        "use_flash_attn": False,
    }
    config: dict[str, Any] = {
        "token_list": token_list,
        "init": None,
        "input_size": None,
        "use_preprocessor": True,
        "token_type": "bpe",
        "bpemodel": bpe_model,
        "non_linguistic_symbols": None,
        "cleaner": None,
        "g2p": None,
        "frontend": "default",
        "frontend_conf": {
            "n_fft": 512,
            "win_length": 400,
            "hop_length": 160,
            "fs": "16k",
            **({} if d.mels == 80 else {"n_mels": d.mels}),
        },
        "specaug": None,
        "specaug_conf": {},
        "normalize": None if stats_file is None else "global_mvn",
        "normalize_conf": {} if stats_file is None else {"stats_file": stats_file},
        "preencoder": None,
        "preencoder_conf": {},
        "encoder": "e_branchformer",
        "encoder_conf": encoder,
        "postencoder": None,
        "postencoder_conf": {},
        "decoder": "transformer",
        "decoder_conf": {
            "attention_heads": d.heads,
            "linear_units": d.units,
            "num_blocks": d.decoder_layers,
            "dropout_rate": d.dropout,
            "positional_dropout_rate": d.dropout,
            "self_attention_dropout_rate": d.dropout,
            "src_attention_dropout_rate": d.dropout,
            "use_flash_attn": False,
        },
        "ctc_conf": {},
        "model": "espnet",
        "model_conf": {
            "ctc_weight": 0.3,
            "lsm_weight": 0.1,
            "length_normalized_loss": False,
            "sym_na": "<na>",
        },
        "preprocessor": "s2t",
        "preprocessor_conf": {
            "text_prev_name": "text_prev",
            "text_ctc_name": "text_ctc",
            "fs": 16000,
            "na_symbol": "<na>",
            "speech_length": d.padded_seconds,
            "speech_resolution": 0.02,
            "speech_init_silence": d.init_silence,
            "text_prev_apply_prob": 0.5,
            "time_apply_prob": 0.5,
            "notime_symbol": "<notimestamps>",
            "first_time_symbol": "<0.00>",
            "last_time_symbol": f"<{d.padded_seconds:.2f}>",
        },
    }
    if d.transformer:
        names = ("output_size", "attention_heads", "linear_units", "num_blocks", "input_layer")
        rates = ("dropout_rate", "positional_dropout_rate", "attention_dropout_rate")
        kept = {name: encoder[name] for name in (*names, *rates)}
        return config | {"encoder": "transformer", "encoder_conf": kept | {"normalize_before": True}}
    return config if d.decoder_layers else config | _without_decoder(d, encoder)


def _without_decoder(d: Dimensions, encoder: Any) -> dict[str, Any]:
    """What sets OWSM-CTC apart: in every third layer attention to the text before, and an intermediate CTC in four,
    of which the first three write the transcript (ESPnet's egs2/owsm_ctc_v3.1)."""
    added = {
        "interctc_layer_idx": [layer for layer in (6, 12, 15, 21) if layer < d.encoder_layers],
        "interctc_use_conditioning": True,
        "use_cross_attention": [int(layer % 3 == 2) for layer in range(d.encoder_layers)],
    }
    return {
        "encoder": "e_branchformer_ctc",
        "encoder_conf": {**encoder, **added},
        "decoder": None,
        "promptencoder": "transformer",
        "promptencoder_conf": {
            "output_size": d.size // 2,
            "attention_heads": d.heads // 2,
            "linear_units": d.units // 2,
            "num_blocks": 4,
        },
        "model": "espnet_ctc",
        "model_conf": {
            "interctc_weight": 0.8,
            "sym_na": "<na>",
            "ctc_asr_only": [True, True, True, False, False],
        },
        "preprocessor": "s2t_ctc",
        "preprocessor_conf": {
            "text_prev_name": "text_prev",
            "text_ctc_name": "text_ctc",
            "fs": 16000,
            "na_symbol": "<na>",
            "nolang_symbol": "<nolang>",
            "speech_length": d.padded_seconds,
            "speech_init_silence": d.init_silence,
            "text_prev_apply_prob": 0.5,
            "lang_apply_prob": 0.5,
        },
    }


def placeholder_token_list(dimensions: Dimensions, text_pieces: list[str]) -> list[str]:
    """A vocabulary of the published size without the published BPE: OWSM's special symbols and the given text
    pieces, so that prompts and texts encode, and named rows for the rest."""
    languages = sorted(set(OWSM.values()) if dimensions.letters == 3 else OWSM)
    seconds = dimensions.padded_seconds if dimensions.decoder_layers else None
    known = [*special_symbols(languages, seconds), *text_pieces]
    unused = dimensions.vocabulary - len(HEAD) - len(known) - len(TAIL)
    return [*HEAD, *known, *(f"<unused_{i}>" for i in range(unused)), *TAIL]
