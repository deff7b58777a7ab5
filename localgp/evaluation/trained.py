"""A trained run loaded back for measuring: its configuration, model and inputs, as its evaluation has them.

Shape legend: B utterances, N samples.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from localgp.errors import CheckpointError, ConfigError
from localgp.stored import read_yaml_mapping, section

if TYPE_CHECKING:
    from localgp.analysis.collect import Evaluated
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


def load_trained(trained: DictConfig, weights: Path, device: Any) -> GatedS2T:
    """A trained model with its weights, in eval mode on the device."""
    from localgp.build import build_model
    from localgp.evaluation.evaluate import load_weights

    model = build_model(trained)
    load_weights(model, weights)
    return model.to(device).eval()
