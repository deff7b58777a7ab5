"""Models: ESPnet directories, and packed archives of them."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from mutate.damage import damage_yaml, damage_zip
from mutate.target import Target


def tiny_espnet(directory: Path) -> None:
    """An OWSM-style model of a few thousand parameters."""
    from localgp.backbones.owsm.build import build_model
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
    write_espnet_directory(build_model(config), config, directory)


def read_espnet(directory: Path) -> int:
    from localgp.backbones.owsm.model import load_backbone

    load_backbone({"name": "path", "path": str(directory), "weights": "pretrained"})
    return 0


def make_archive(directory: Path) -> None:
    from localgp.hub.archive import write_zip

    tiny_espnet(directory / "model")
    write_zip(directory / "model.zip", directory / "model", first="meta.yaml")
    shutil.rmtree(directory / "model")


def read_archive(directory: Path) -> int:
    import localgp

    with tempfile.TemporaryDirectory() as cache:
        os.environ["LOCALGP_CACHE"] = cache
        localgp.load(str(directory / "model.zip"), device="cpu")
    return 0


TARGETS = {
    "espnet": Target(
        tiny_espnet,
        read_espnet,
        ("*",),
        {"config.yaml": damage_yaml, "meta.yaml": damage_yaml},
        optional=("meta.yaml",),
    ),
    "archive": Target(make_archive, read_archive, ("model.zip",), {"model.zip": damage_zip}),
}
