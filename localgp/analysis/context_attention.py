"""Whom the gates listen to: LocalGP's attention over its contexts and the earlier layers' inputs.

Shape legend: L layers, K keys, B batch, T encoder frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from localgp.analysis.collect import Evaluated
from localgp.analysis.reloaded import reload
from localgp.analysis.sources import Utterances
from localgp.analysis.stored_analysis import stored_analysis
from localgp.analysis.tables import Table
from localgp.evaluation.gates_file import GateRecord


@dataclass(frozen=True)
class ContextAttention:
    """Attributes:
    keys: The contexts' names, then ``layer 1`` and so on for the layers' inputs.
    utterances: How many were encoded for it.
    weights: Mean over frames with signal, (L, K); 0 for keys that a layer does not have yet.
    """

    keys: tuple[str, ...]
    utterances: int
    weights: np.ndarray

    def summary(self) -> dict[str, Any]:
        return {
            "utterances": self.utterances,
            "weights": {key: np.round(self.weights[:, k], 5).tolist() for k, key in enumerate(self.keys)},
        }

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Percent, a row for every layer."""
        rows = [
            [str(layer + 1), *(f"{100 * weight:.2f}" for weight in weights)]
            for layer, weights in enumerate(self.weights)
        ]
        return ["layer", *self.keys], rows


def listens(cfg: DictConfig) -> bool:
    """Whether the encoder's gates attend to a context from outside of the encoder."""
    return cfg.pruning.encoder == "local" and any(name != "front" for name in cfg.pruning.context)


def context_attention(
    cfg: DictConfig, weights: Path, record: GateRecord, utterances: Utterances | None, limit: int
) -> ContextAttention:
    """Encodes up to ``limit`` utterances once more; arguments and errors as of `reload`."""
    import torch

    from localgp.contexts.extract import row_contexts
    from localgp.gates import LocalGates

    again = reload(cfg, weights, record, utterances, limit)
    assert utterances is not None
    policy = again.model.policy
    assert isinstance(policy, LocalGates)
    predictors: list[Any] = list(policy.layers)
    seen: list[list[torch.Tensor]] = [[] for _ in predictors]
    for predictor, found in zip(predictors, seen, strict=True):
        predictor.register_forward_pre_hook(
            lambda _, inputs, found=found: found.append(inputs[1].weights(inputs[0]).cpu())
        )
    for _ in again.encode(row_contexts(cfg, (again.rows, utterances.rows)), path="gathered"):
        pass
    keys = [*policy.needs, *(f"layer {index + 1}" for index in range(len(predictors) - 1))]
    real_BT = torch.from_numpy(record.real_mask()[again.chosen])
    means = np.zeros((len(predictors), len(keys)))
    for layer, found in enumerate(seen):
        weights_BTC = torch.cat(found)
        means[layer, : weights_BTC.shape[-1]] = weights_BTC[real_BT].mean(0).numpy()
    return ContextAttention(tuple(keys), len(again.chosen), means)


def attention_table(runs: Sequence[Evaluated]) -> Table | None:
    """A row for every run of which it is known: the mean weight of each context over the layers, in percent."""
    known = [(run, kept["weights"]) for run in runs if (kept := stored_analysis(run, "context_attention"))]
    contexts = list(dict.fromkeys(k for _, weights in known for k in weights if not k.startswith("layer ")))
    if not contexts:
        return None
    rows = []
    for run, weights in known:
        layers = np.sum([values for key, values in weights.items() if key.startswith("layer ")], axis=0)
        cells = [f"{100 * np.mean(weights[c]):.2f}" if c in weights else "-" for c in contexts]
        rows.append([f"{run.name}, seed {run.seed}", *cells, f"{100 * np.mean(layers):.2f}"])
    return Table(["run", *contexts, "earlier layers' inputs"], rows)
