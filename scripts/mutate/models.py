"""Models: ESPnet directories, packed archives of them, and Whisper as `transformers` saves it."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from mutate.damage import damage_json, damage_yaml, damage_zip
from mutate.target import Target


def tiny_espnet(directory: Path) -> None:
    """An OWSM-style model of a few thousand parameters."""
    from localgp.backbones.owsm.build import build_espnet_model
    from localgp.backbones.owsm.files import locate, read_config, write_espnet_directory

    config = read_config(locate("embedded", need_weights=False))
    small = {
        "output_size": 8,
        "attention_heads": 2,
        "cgmlp_linear_units": 8,
        "linear_units": 8,
        "num_blocks": 1,
    }
    config["encoder_conf"] = {**config["encoder_conf"], **small}
    config["decoder_conf"] = {
        **config["decoder_conf"],
        "attention_heads": 2,
        "linear_units": 8,
        "num_blocks": 1,
    }
    write_espnet_directory(build_espnet_model(config), config, directory)


def read_espnet(directory: Path) -> int:
    from localgp.backbones.owsm.model import load_backbone

    load_backbone({"name": "path", "path": str(directory), "weights": "pretrained"})
    return 0


def make_archive(directory: Path) -> None:
    from localgp.archive import write_zip

    tiny_espnet(directory / "model")
    write_zip(directory / "model.zip", directory / "model", first="meta.yaml")
    shutil.rmtree(directory / "model")


def read_archive(directory: Path) -> int:
    import localgp

    with tempfile.TemporaryDirectory() as cache:
        os.environ["LOCALGP_CACHE"] = cache
        localgp.load(str(directory / "model.zip"), device="cpu")
    return 0


def tiny_whisper(directory: Path) -> None:
    """Of some ten thousand parameters."""
    from localgp.backbones.whisper.files import WhisperFiles, build_whisper, write_directory
    from localgp.backbones.whisper.shapes import Dimensions, arguments
    from localgp.backbones.whisper.tokens import WhisperTokens

    vocabulary = 256 + 1608  # bytes and Whisper's symbols
    config = arguments(Dimensions(8, 2, 1, 1, vocabulary)) | {"pad_token_id": 256, "bos_token_id": 256}
    config |= {"eos_token_id": 256, "decoder_start_token_id": 257}
    net = build_whisper(WhisperFiles(None, config, False, "random weights"))
    write_directory(net, WhisperTokens.placeholder(vocabulary), directory)


def read_whisper(directory: Path) -> int:
    """As whoever opens it: what its tokens are is asked first."""
    from localgp.backbones.whisper import open_model, read_vocabulary

    cfg = {"name": "path", "path": str(directory), "weights": "pretrained"}
    read_vocabulary(cfg)
    open_model(cfg)
    return 0


TARGETS = {
    "whisper": Target(
        tiny_whisper,
        read_whisper,
        ("*",),
        {
            "config.json": damage_json,
            "generation_config.json": damage_json,
            "preprocessor_config.json": damage_json,
            "tokenizer.json": damage_json,
        },
        optional=("generation_config.json", "preprocessor_config.json", "tokenizer_config.json"),
    ),
    "espnet": Target(
        tiny_espnet,
        read_espnet,
        ("*",),
        {"config.yaml": damage_yaml, "meta.yaml": damage_yaml},
        optional=("meta.yaml",),
    ),
    "archive": Target(make_archive, read_archive, ("model.zip",), {"model.zip": damage_zip}),
}
