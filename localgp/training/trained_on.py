"""What a run is trained on, by content: it goes on with the same data, or not at all."""

from __future__ import annotations

import json
from typing import Any

from omegaconf import DictConfig

from localgp.corpora.fits import split_of
from localgp.corpora.integrity import rows_digest
from localgp.corpora.prepared import limit_per_language
from localgp.errors import CheckpointError
from localgp.io import write_atomically
from localgp.run import Run

FILE = "data.json"


def digests_of(cfg: DictConfig, splits: dict[str, Any]) -> dict[str, str]:
    """Of the prepared rows that training learns from and is watched by."""
    used = {"train": cfg.training.limit, "dev": cfg.training.val_limit}
    return {name: rows_digest(limit_per_language(split_of(splits, name), n)) for name, n in used.items()}


def changed(run: Run, digests: dict[str, str]) -> list[str]:
    """The splits that have changed since the run was begun; none for a run that has not written down what it had."""
    try:
        before = json.loads((run.path / FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return []
    if not isinstance(before, dict):
        return []
    return [split for split, digest in digests.items() if before.get(split) != digest]


def check_data(run: Run, digests: dict[str, str]) -> None:
    """Refuses to resume on other data.

    Raises:
        CheckpointError: The run has checkpoints of a training on other data.
    """
    if not any(run.checkpoints.glob("*")):
        return
    others = changed(run, digests)
    if others:
        raise CheckpointError(
            f"{run.path} was begun with other data: texts, audio or segments of {' and '.join(others)} have changed "
            "since. To go on, put the corpus back as it was. Else train on the new data under another name (name=...) "
            "or in another place (exp_dir=...), or start over: remove the run's directory."
        )


def write_data(run: Run, digests: dict[str, str]) -> None:
    """Writes down what the run is trained on."""
    write_atomically(run.path / FILE, json.dumps(digests, indent=1) + "\n")
