"""How far gates change when the speaker context is swapped: the encoder decides again, with another voice's embedding.

Shape legend: U utterances, L layers, M gated modules, T encoder frames, B batch, N samples.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from localgp.analysis.collect import Evaluated
from localgp.analysis.sources import Utterances
from localgp.analysis.tables import Table
from localgp.errors import CheckpointError, CorpusError
from localgp.evaluation.gates_file import GateRecord

_BATCH = 8


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


def stored_swap(run: Evaluated) -> dict[str, Any] | None:
    """What `localgp.analyze` found (`SpeakerSwap.summary`); None where it has not, or for older gates."""
    path = run.path / "analysis" / run.metrics["data"]["split"] / "analysis.json"
    try:
        if path.stat().st_mtime < run.gates.stat().st_mtime:
            return None
        found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")).get("speaker_swap")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); analyze that run again") from error
    return found


def swap_table(runs: Sequence[Evaluated]) -> Table | None:
    """A row for every run of which it is known: the share of gates that flip, in percent, by module."""
    known = [(run, swap) for run in runs if (swap := stored_swap(run)) is not None]
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
    """Decides again on up to ``limit`` utterances, spread evenly over the split.

    Args:
        cfg: The run's configuration.
        weights: That were evaluated.
        record: The stored gates.
        utterances: Of the same split; None where the corpus is not prepared.

    Raises:
        LocalGPError: Something that it takes is not at hand.
    """
    from localgp.build import build_model
    from localgp.contexts.extract import row_contexts
    from localgp.evaluation.evaluate import load_weights
    from localgp.precision import resolve_device, resolve_precision

    if utterances is None:
        raise CorpusError("the corpus is not prepared here; run python -m localgp.prepare")
    count = len(record.utt_ids)
    chosen = np.unique(np.linspace(0, count - 1, min(limit, count)).round().astype(int))
    rows = utterances.rows.select([utterances.index[record.utt_ids[u]] for u in chosen])
    model, backbone = build_model(cfg)
    load_weights(model, weights)
    device = resolve_device(cfg.device)
    dtype = resolve_precision(cfg.decode.precision, device)
    model.to(device).eval()
    samples = round(backbone.padded_seconds * backbone.sample_rate)
    wrong = bool(cfg.contexts.spk.shuffle)
    real_UT = record.real_mask()[chosen]
    flipped = {}
    for shuffle in (wrong, not wrong):
        given = OmegaConf.merge(cfg, {"contexts": {"spk": {"shuffle": shuffle}}})
        assert isinstance(given, DictConfig)
        contexts = row_contexts(given, (rows, utterances.rows))
        decided = _decide(model, rows, contexts, record.modules, samples, device, dtype)
        changed = (decided != record.open[chosen]) & real_UT[:, None, None, :]
        flipped[shuffle] = changed.sum((0, 3)) / max(1, int(real_UT.sum()))
    return SpeakerSwap(
        tuple(record.modules),
        len(chosen),
        "wrong" if wrong else "own",
        swapped=flipped[not wrong],
        unchanged=flipped[wrong],
    )


def _decide(
    model: Any, rows: Any, contexts: Any, modules: Sequence[str], samples: int, device: Any, dtype: Any
) -> np.ndarray:
    """The gates as an evaluation decides them, bool (U, L, M, T)."""
    import torch

    from localgp.contexts.extract import stack_contexts

    decided = []
    for begin in range(0, len(rows), _BATCH):
        items = [rows[i] for i in range(begin, min(begin + _BATCH, len(rows)))]
        speech_BN = np.zeros((len(items), samples), dtype=np.float32)
        for speech_N, item in zip(speech_BN, items, strict=True):
            signal = np.asarray(item["samples"], dtype=np.float32)[:samples] / 32768.0
            speech_N[: len(signal)] = signal
        stacked = stack_contexts([contexts.of(item, 0, samples) for item in items])
        given = {name: context.to(device) for name, context in stacked.items()}
        lengths_B = torch.full((len(items),), samples, device=device)
        with (
            torch.inference_mode(),
            torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32),
        ):
            encoded = model.encode(torch.from_numpy(speech_BN).to(device), lengths_B, given, path="packed")
        masks = [
            torch.stack([layer[name].mask.expand(encoded.x.shape[:2]) for name in modules])
            for layer in encoded.gates
        ]
        decided.append(torch.stack(masks).permute(2, 0, 1, 3).cpu().numpy().astype(bool))
    return np.concatenate(decided)
