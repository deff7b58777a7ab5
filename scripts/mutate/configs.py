"""Configurations, as every command reads them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from mutate.damage import damage_yaml
from mutate.target import Target


def make_config(directory: Path) -> None:
    from omegaconf import OmegaConf

    from localgp.hub.load import base_config

    (directory / "config.yaml").write_text(OmegaConf.to_yaml(base_config("conf=row05"), resolve=True))


def read_values(directory: Path) -> int:
    """What every command does with its configuration before it does anything else."""
    from omegaconf import OmegaConf

    from localgp.build import build_policy
    from localgp.hub.load import decode_options
    from localgp.run import Run
    from localgp.settings import check
    from localgp.stored import read_yaml_mapping
    from localgp.world import check_launch

    read_yaml_mapping(directory / "config.yaml")
    cfg = OmegaConf.create(read_yaml_mapping(directory / "config.yaml"))
    check(cfg)
    for section in ("pruning", "decode", "training", "trainer", "corpus", "backbone", "evaluate"):
        if section not in cfg:  # Hydra's composition always has them
            return 1
    expected = _expected_keys()
    if not expected <= set(_keys(OmegaConf.to_container(cfg))):
        return 1
    check_launch(cfg, {}, multirun=False)
    decode_options(cfg)
    Run(cfg)
    build_policy(cfg, _backbone())
    return 0


def _keys(tree: Any, prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")


@cache
def _expected_keys() -> set[str]:
    from omegaconf import OmegaConf

    from localgp.hub.load import base_config

    return set(_keys(OmegaConf.to_container(base_config("conf=row05"))))


@cache
def _backbone() -> Any:
    from localgp.backbones import open_backbone

    return open_backbone({"name": "mini", "path": "embedded", "weights": "random"})


TARGETS = {"config": Target(make_config, read_values, ("config.yaml",), {"config.yaml": damage_yaml})}
