"""A trained run loaded back for measuring: its configuration, model and inputs, as its evaluation has them.

Shape legend: B utterances, N samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from localgp.errors import CheckpointError, ConfigError
from localgp.stored import read_yaml_mapping, section

if TYPE_CHECKING:
    from localgp.analysis.collect import Evaluated


def trained_config(directory: Path, weights: Path, cfg: DictConfig) -> DictConfig:
    """A run's stored configuration; where data and corpus lie, and the device, are the caller's.

    Args:
        directory: Of the run.
        weights: Its own, or those that it was evaluated with.
        cfg: The caller's whole configuration.

    Raises:
        CheckpointError: No finished run is there, or its config.yaml is damaged or of something else.
    """
    stored = directory / "config.yaml"
    if not stored.exists() or not weights.exists():
        raise CheckpointError(
            f"{directory} holds no finished run (config.yaml, checkpoints/model.safetensors); "
            "give the directory that localgp.train printed"
        )
    config = read_yaml_mapping(stored, "restore it, or give another run")
    # A run that was made before contexts had options goes by the caller's.
    found = OmegaConf.create({"contexts": OmegaConf.to_container(cfg.contexts, resolve=True), **config})
    lacking = [key for key in ("name", "backbone", "pruning", "corpus", "seed") if key not in found]
    if lacking:
        raise CheckpointError(
            f"{stored}: not a run's configuration, it lacks {', '.join(lacking)}; restore it, or give another run"
        )
    found.data_dir, found.device = cfg.data_dir, cfg.device
    if found.corpus.name == cfg.corpus.name:
        found.corpus.root = cfg.corpus.root
    return found


def weights_of(directory: Path) -> Path:
    return directory / "checkpoints" / "model.safetensors"


def first_seeds(cfg: DictConfig, progress: Callable[[str], None]) -> list[tuple[Evaluated, Path]]:
    """Every experiment of ``bench.confs`` on the configured corpus and backbone: its evaluated run of the lowest seed,
    and the weights that were evaluated.

    Raises:
        ConfigError: One that is asked for has not been evaluated.
        CheckpointError: None has been.
    """
    from localgp.analysis.collect import collect, in_order

    found: dict[str, tuple[Evaluated, Path]] = {}
    for run in in_order(collect(Path(cfg.exp_dir))):
        if (run.corpus, run.backbone) != (cfg.corpus.name, cfg.backbone.name) or run.name in found:
            continue
        given = section(run.metrics, "asked").get("checkpoint")
        weights = Path(given) if given else weights_of(run.path)
        if weights.is_file():
            found[run.name] = run, weights
        else:
            progress(f"left out: {run.key}, whose weights {weights} are not there")
    missing = [name for name in cfg.bench.confs or () if name not in found]
    where = f"under {cfg.exp_dir} on corpus {cfg.corpus.name} with backbone {cfg.backbone.name}"
    remedy = "train and evaluate it (python -m localgp.train, python -m localgp.evaluate)"
    if not found:
        raise ConfigError(f"no evaluated run with its weights {where}; {remedy}")
    if missing:
        raise ConfigError(
            f"bench.confs: {', '.join(missing)} not among the evaluated runs {where}: {', '.join(found)}; {remedy}, or "
            "leave bench.confs out for all there are"
        )
    return [pair for name, pair in found.items() if cfg.bench.confs is None or name in cfg.bench.confs]


def load_trained(trained: DictConfig, weights: Path, device: Any) -> tuple[Any, Any]:
    """`localgp.model.GatedS2T` with its weights, in eval mode on the device, and its `Backbone`."""
    from localgp.build import build_model
    from localgp.evaluation.evaluate import load_weights

    model, backbone = build_model(trained)
    load_weights(model, weights)
    return model.to(device).eval(), backbone


def padded_speech(items: Sequence[Mapping[str, Any]], samples: int) -> tuple[Any, Any]:
    """Prepared rows as tensors: speech (B, N), full scale 1 and zeros behind it, and where each signal ends (B,).

    Args:
        samples: N; longer signals are cut.

    Example:
        >>> speech, ends = padded_speech([{"samples": [16384, -16384]}, {"samples": [0, 0, 0, 0, 0]}], 4)
        >>> speech[0].tolist(), ends.tolist()
        ([0.5, -0.5, 0.0, 0.0], [2, 4])
    """
    import torch

    speech_BN = torch.zeros(len(items), samples)
    ends_B = torch.zeros(len(items), dtype=torch.long)
    for index, item in enumerate(items):
        signal = np.asarray(item["samples"], dtype=np.float32)[:samples] / 32768.0
        speech_BN[index, : len(signal)] = torch.from_numpy(signal)
        ends_B[index] = len(signal)
    return speech_BN, ends_B


def batch_contexts(
    contexts: Any, items: Sequence[Mapping[str, Any]], samples: int, device: Any
) -> dict[str, Any]:
    """What the encoder's gates see of a batch besides the speech, (B, T, C) or (B, 1, C) by name.

    Args:
        contexts: `localgp.contexts.extract.RowContexts`, or None where they see nothing more.
    """
    from localgp.contexts.extract import stack_contexts

    if contexts is None:
        return {}
    stacked = stack_contexts([contexts.of(item, 0, samples) for item in items])
    return {name: context.to(device) for name, context in stacked.items()}
