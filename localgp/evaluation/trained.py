"""A trained run loaded back for measuring: its configuration, model and inputs, as its evaluation has them.

Shape legend: B utterances, N samples.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from localgp.build import build_model
from localgp.config_parts import completed
from localgp.errors import CheckpointError
from localgp.evaluation.evaluate_run import load_run_weights
from localgp.stored import read_yaml_mapping

if TYPE_CHECKING:
    from localgp.model import GatedS2T


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
    config = completed(read_yaml_mapping(stored, "restore it, or give another run"))
    # A run that was made before contexts had options goes by the caller's.
    found = OmegaConf.create({"contexts": OmegaConf.to_container(cfg.contexts, resolve=True), **config})
    lacking = [key for key in ("name", "backbone", "pruning", "corpus", "seed") if key not in found]
    if lacking:
        raise CheckpointError(
            f"{stored}: not a run's configuration, it lacks {', '.join(lacking)}; restore it, or give another run"
        )
    found.data_dir, found.device = cfg.data_dir, cfg.device
    if found.corpus.name == cfg.corpus.name:
        place = "manifest" if "manifest" in cfg.corpus else "root"  # where the corpus lies, now and here
        found.corpus[place] = cfg.corpus[place]
    return found


def finished_weights(directory: Path) -> Path:
    return directory / "checkpoints" / "model.safetensors"


def load_trained(trained: DictConfig, weights: Path, device: Any) -> GatedS2T:
    """A trained model with its weights, in eval mode on the device."""

    model = build_model(trained)
    load_run_weights(model, weights)
    return model.to(device).eval()
