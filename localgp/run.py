"""A run's directory: what it is called, what is in it, and whether it may be continued.

exp/<corpus>/<backbone>/<conf>/seed<k>/
    config.yaml            what of the configuration makes it, resolved (`localgp.config_parts.stored`)
    metrics.jsonl          one line per logging interval and per dev scoring
    metrics.json           scores, kept ratios and GFLOPs of the leading evaluation (localgp.evaluation.results)
    checkpoints/           last.ckpt and previous.ckpt to resume from, step*.safetensors the best ones,
                           model.safetensors their average: its presence says that training is finished
    hyp/<split>.<src>-<tgt>.txt    `utt_id text`
    gates/<split>.npz      which module ran on which frame (localgp.evaluation.gates_file)
    evaluations/<tag>/     every evaluation, with its metrics.json, hyp/ and gates/
    data.json              digests of the data it is trained on
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from localgp.conf_files import experiment
from localgp.config_parts import LENGTH, MAKES_SCORES, MAKES_WEIGHTS, differences, stored
from localgp.errors import CheckpointError
from localgp.io import write_atomically
from localgp.stored import run_config

ENDLESS = ("warmup", "constant")  # schedules of the learning rate that do not depend on a training's length
_VARIANTS = {
    "target": 0.3,
    "attention": "dot",
    "fill": "zero",
}  # pruning keys whose change gives the run a directory of its own


def commit() -> str:
    """Git commit of the source tree with ``-dirty`` where it has changes; ``unknown`` outside of one.

    An installed package may lie in a repository that is another project's, whose commit says nothing.
    """
    here = Path(__file__).resolve().parent
    try:
        top = subprocess.run(
            ["git", "rev-parse", "--show-toplevel"], cwd=here, capture_output=True, text=True, check=True
        )
        if Path(top.stdout.strip()).resolve() != here.parent:
            return "unknown"
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        )
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"], cwd=here, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("-dirty" if dirty.stdout.strip() else "")


def variant_name(config: Any) -> str:
    """What an experiment is called by its name and the options that make it a variant: ``row05-target0.5``.

    Args:
        config: Of the run, or as a run has stored it.
    """
    name, pruning = str(config["name"]), config["pruning"]
    kinds = (pruning.get("encoder"), pruning.get("decoder"))
    if not any(kinds):
        return name
    own = experiment(name).get("pruning") or {}
    for key, paper in _VARIANTS.items():
        default = own.get(key, paper)
        if key == "attention" and "local" not in kinds:
            continue  # no other gates have any
        value = pruning.get(key, default)
        if value != default:
            name += f"-{value}" if isinstance(value, str) else f"-{key}{value}"
    return name


class Run:
    """A training run: its directory and what is stored there.

    Args:
        cfg: The whole configuration.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg
        folder = Path(cfg.exp_dir) / cfg.corpus.name / cfg.backbone.name / variant_name(cfg)
        self.path = folder / f"seed{cfg.seed}"
        self.checkpoints = self.path / "checkpoints"
        self.weights = self.checkpoints / "model.safetensors"

    @property
    def finished(self) -> bool:
        return self.weights.exists()

    def check(self, *, trained: bool = False) -> None:
        """Refuses a directory that another configuration has.

        Args:
            trained: Its weights are only used, so that options of training do not matter.

        Raises:
            CheckpointError: If the directory holds a run with another configuration, or a damaged one.
        """
        found = self._differences(trained)
        if not found or self.extends:
            return
        shown = "; ".join(f"{key}: {old!r} there, {new!r} asked for" for key, old, new in found[:6])
        if trained:
            remedy = (
                "Give the options it was trained with, or make a variant that uses its weights under another name: "
                f"name={self.cfg.name}-variant evaluate.checkpoint={self.weights}"
            )
        else:
            remedy = (
                "Remove the directory to start over, or give this run its own name (name=...) or place "
                "(exp_dir=...)."
            )
            if all(key in LENGTH for key, _, _ in found):
                remedy = (
                    f"Its learning rate falls to 0 at the end of that length (training.scheduler="
                    f"{self.cfg.training.scheduler}), so that it cannot simply go on; one with "
                    f"{' or '.join(ENDLESS)} can. {remedy}"
                )
        raise CheckpointError(f"{self.path} holds a run with another configuration ({shown}). {remedy}")

    @property
    def extends(self) -> bool:
        """Whether the directory holds this run with another length, of a schedule that has no end of its own."""
        found = self._differences()
        only_length = bool(found) and all(key in LENGTH for key, _, _ in found)
        return only_length and self.cfg.training.scheduler in ENDLESS

    def _differences(self, trained: bool = False) -> list[tuple[str, Any, Any]]:
        stored = run_config(self.path)
        resolved: Any = OmegaConf.to_container(self.cfg, resolve=True)
        parts = MAKES_SCORES if trained else MAKES_WEIGHTS
        return list(differences(stored, resolved, *parts)) if stored else []

    def start(self, *, trained: bool = False) -> None:
        """Creates the directory with its config.yaml, or checks that the run in it is this one; see `check`."""
        self.check(trained=trained)
        path = self.path / "config.yaml"
        if not path.exists() or (not trained and self.extends):
            write_atomically(path, OmegaConf.to_yaml(OmegaConf.create(stored(self.cfg))))

    def require_weights(self) -> Path:
        if not self.finished:
            known = sorted(
                str(p.parent.parent)
                for p in Path(self.cfg.exp_dir).glob("*/*/*/*/checkpoints/model.safetensors")
            )
            shown = ", ".join(known[:8]) + (f" and {len(known) - 8} more" if len(known) > 8 else "")
            raise CheckpointError(
                f"{self.path} holds no trained model. Train it first: python -m localgp.train conf={self.cfg.name}, "
                f"with the other options of this command. Finished runs under {self.cfg.exp_dir}: {shown or 'none'}."
            )
        return self.weights
