"""How far gates change when the speaker context is swapped: the encoder decides again, with another voice's embedding.

Shape legend: U utterances, L layers, M gated modules, T encoder frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from localgp.analysis.collect import Evaluated
from localgp.analysis.reloaded import Reloaded, reload
from localgp.analysis.sources import Utterances
from localgp.analysis.stored_analysis import stored_analysis
from localgp.analysis.tables import Table
from localgp.evaluation.gates_file import GateRecord

if TYPE_CHECKING:
    import torch

    from localgp.contexts.extract import RowContexts


@dataclass(frozen=True)
class SpeakerSwap:
    """Attributes:
    modules: As the gates file names them.
    utterances: How many were decided again.
    trained_with: Whose embeddings the run is trained and evaluated with: ``own``, or ``wrong`` for the control; the
        other ones are what they are swapped for.
    swapped: Share of frames with signal whose gate is not the stored one under the other embedding, (L, M).
    unchanged: The same under the run's own kind of embedding: what rounding alone flips, (L, M).
    """

    modules: tuple[str, ...]
    utterances: int
    trained_with: str
    swapped: np.ndarray
    unchanged: np.ndarray

    def summary(self) -> dict[str, Any]:
        return {
            "utterances": self.utterances,
            "trained_with": self.trained_with,
            **{
                name: {m: np.round(share[:, i], 5).tolist() for i, m in enumerate(self.modules)}
                for name, share in (("swapped", self.swapped), ("unchanged", self.unchanged))
            },
        }

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Percent, a row for every gate and one for their average."""
        rows = [
            [module, str(layer + 1), f"{100 * swapped:.2f}", f"{100 * unchanged:.2f}"]
            for m, module in enumerate(self.modules)
            for layer, (swapped, unchanged) in enumerate(
                zip(self.swapped[:, m], self.unchanged[:, m], strict=True)
            )
        ]
        average = ["average", "", f"{100 * self.swapped.mean():.2f}", f"{100 * self.unchanged.mean():.2f}"]
        return ["module", "layer", "flipped, speaker swapped", "flipped, same speaker"], [*rows, average]


def swap_table(runs: Sequence[Evaluated]) -> Table | None:
    """A row for every run of which it is known: the share of gates that flip, in percent, by module."""
    known = [(run, swap) for run in runs if (swap := stored_analysis(run, "speaker_swap")) is not None]
    modules = list(dict.fromkeys(module for _, swap in known for module in swap["swapped"]))
    if not modules:
        return None
    rows = []
    for run, swap in known:
        cells = [
            f"{100 * np.mean(share[m]):.2f}" if m in share else "-"
            for share in (swap["swapped"], swap["unchanged"])
            for m in modules
        ]
        rows.append([f"{run.name}, seed {run.seed}", swap["trained_with"], str(swap["utterances"]), *cells])
    spans = (("", 3), ("speaker swapped", len(modules)), ("same speaker", len(modules)))
    return Table(["run", "trained with", "utterances", *modules, *modules], rows, spans)


def sees_speaker(cfg: DictConfig) -> bool:
    from localgp.contexts.extract import needed_contexts

    return "spk" in needed_contexts(cfg)


def speaker_swap(
    cfg: DictConfig, weights: Path, record: GateRecord, utterances: Utterances | None, limit: int
) -> SpeakerSwap:
    """Decides again on up to ``limit`` utterances; arguments and errors as of `reload`."""
    from localgp.contexts.extract import row_contexts
    from localgp.precision import resolve_device, resolve_precision

    again = reload(cfg, weights, record, utterances, limit)
    assert utterances is not None
    dtype = resolve_precision(cfg.decode.precision, resolve_device(cfg.device))
    wrong = bool(cfg.contexts.spk.shuffle)
    real_UT = record.real_mask()[again.chosen]
    flipped = {}
    for shuffle in (wrong, not wrong):
        given = OmegaConf.merge(cfg, {"contexts": {"spk": {"shuffle": shuffle}}})
        assert isinstance(given, DictConfig)
        contexts = row_contexts(given, (again.rows, utterances.rows))
        decided = _decide(again, contexts, record.modules, dtype)
        changed = (decided != record.open[again.chosen]) & real_UT[:, None, None, :]
        flipped[shuffle] = changed.sum((0, 3)) / max(1, int(real_UT.sum()))
    return SpeakerSwap(
        tuple(record.modules),
        len(again.chosen),
        "wrong" if wrong else "own",
        swapped=flipped[not wrong],
        unchanged=flipped[wrong],
    )


def _decide(
    again: Reloaded, contexts: RowContexts | None, modules: Sequence[str], dtype: torch.dtype
) -> np.ndarray:
    """The gates as an evaluation decides them, bool (U, L, M, T)."""
    import torch

    decided = []
    for encoded in again.encode(contexts, dtype=dtype):
        masks = [
            torch.stack([layer[name].mask.expand(encoded.x.shape[:2]) for name in modules])
            for layer in encoded.gates
        ]
        decided.append(torch.stack(masks).permute(2, 0, 1, 3).cpu().numpy().astype(bool))
    return np.concatenate(decided)
