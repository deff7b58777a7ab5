"""What the encoder of an evaluated run decides when it encodes some utterances once more.

With another voice's embedding, how many gates change (`speaker_swap`); and what LocalGP's attention over its contexts
and the earlier layers' inputs weighs (`context_attention`).

Shape legend: U utterances, B batch, L layers, M gated modules, K keys, T encoder frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from localgp.corpora.integrity import read_row
from localgp.corpora.rows import padded_speech
from localgp.errors import CorpusError
from localgp.evaluation.gates_file import GateRecord, with_frames
from localgp.evaluation.trained import load_trained
from localgp.report.runs import Evaluated, stored_analysis
from localgp.report.utterances import Utterances
from localgp.tables import Column, Table, in_percent, render

if TYPE_CHECKING:
    import torch

    from localgp.contexts.extract import RowContexts
    from localgp.encoder.run import EncoderOutput
    from localgp.model import GatedS2T

_BATCH = 8


@dataclass(frozen=True)
class Reloaded:
    """An evaluated run's model, with utterances to encode again.

    Attributes:
        model: In eval mode, on its device.
        rows: Prepared rows of the chosen utterances.
        chosen: Their places (U,) in the stored gates.
    """

    model: GatedS2T
    rows: Any
    chosen: np.ndarray

    def encode(
        self, contexts: RowContexts | None, *, dtype: torch.dtype | None = None, path: str = "packed"
    ) -> Iterator[EncoderOutput]:
        """Batch by batch, as an evaluation encodes.

        Args:
            contexts: Of the rows, or None where the gates see none.
            dtype: Arithmetic of the packed path; None for fp32.
            path: ``packed``, or of `localgp.encoder.run.encode`.
        """
        import torch

        from localgp.contexts.extract import batch_contexts

        backbone = self.model.backbone
        packed = self.model.packed(dtype or torch.float32) if path == "packed" else None
        device, samples = backbone.device, self.model.samples
        for begin in range(0, len(self.rows), _BATCH):
            items = [read_row(self.rows, i) for i in range(begin, min(begin + _BATCH, len(self.rows)))]
            speech_BN, ends_B = padded_speech(items, samples)
            given = batch_contexts(contexts, items, samples, backbone.timeline, device)
            ends_B = ends_B.to(device)
            with torch.inference_mode():
                if packed is not None:
                    yield packed.encode(speech_BN.to(device), ends_B, given)
                else:
                    yield self.model.encode(speech_BN.to(device), ends_B, given, path=path)


def reload(
    cfg: DictConfig, weights: Path, record: GateRecord, utterances: Utterances | None, limit: int
) -> Reloaded:
    """The model, and up to ``limit`` utterances spread evenly over the split.

    Args:
        cfg: The run's configuration.
        weights: That were evaluated.
        record: The stored gates.
        utterances: Of the same split; None where the corpus is not prepared.

    Raises:
        LocalGPError: Something that it takes is not at hand.
    """
    from localgp.precision import resolve_device

    if utterances is None:
        raise CorpusError("the corpus is not prepared here; run python -m localgp.prepare")
    count = len(record.utt_ids)
    chosen = np.unique(np.linspace(0, count - 1, min(limit, count)).round().astype(int))
    rows = utterances.rows.select([utterances.index[record.utt_ids[u]] for u in chosen])
    return Reloaded(load_trained(cfg, weights, resolve_device(cfg.device)), rows, chosen)


@dataclass(frozen=True)
class SpeakerSwap:
    """What gates decide when another speaker is named.

    Attributes:
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

    def table(self) -> Table:
        """Percent, a row for every gate and one for their average."""
        rows = [
            (module, layer + 1, self.swapped[layer, m], self.unchanged[layer, m])
            for m, module in enumerate(self.modules)
            for layer in range(len(self.swapped))
        ]
        return render(
            [*rows, ("average", "", self.swapped.mean(), self.unchanged.mean())],
            [
                Column("module", 0),
                Column("layer", 1),
                Column("flipped, speaker swapped", 2, in_percent(2)),
                Column("flipped, same speaker", 3, in_percent(2)),
            ],
        )


def swap_table(runs: Sequence[Evaluated]) -> Table | None:
    """A row for every run of which it is known: the share of gates that flip, in percent, by module."""
    known = [(run, swap) for run in runs if (swap := stored_analysis(run, "speaker_swap")) is not None]
    modules = list(dict.fromkeys(module for _, swap in known for module in swap["swapped"]))
    if not modules:
        return None

    return render(
        known,
        [
            Column("run", _label),
            Column("trained with", (1, "trained_with")),
            Column("utterances", (1, "utterances")),
            *(Column(m, (1, "swapped", m), _mean_percent, "speaker swapped") for m in modules),
            *(Column(m, (1, "unchanged", m), _mean_percent, "same speaker") for m in modules),
        ],
    )


def _label(row: tuple[Evaluated, Any]) -> str:
    return f"{row[0].name}, seed {row[0].seed}"


def _mean_percent(shares: Any) -> str:
    return f"{100 * np.mean(shares):.2f}"


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
        decided = _decide(again, contexts, record, dtype)
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
    again: Reloaded, contexts: RowContexts | None, record: GateRecord, dtype: torch.dtype
) -> np.ndarray:
    """The gates as an evaluation decides them, bool (U, L, M, T)."""
    import torch

    decided = []
    for encoded in again.encode(contexts, dtype=dtype):
        masks = [
            torch.stack([layer[name].mask & encoded.own() for name in record.modules])
            for layer in encoded.gates
        ]
        opened = torch.stack(masks).permute(2, 0, 1, 3).cpu().numpy().astype(bool)
        decided.append(with_frames(opened, record.open.shape[-1]))
    return np.concatenate(decided)


@dataclass(frozen=True)
class ContextAttention:
    """What LocalGP's attention listens to.

    Attributes:
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

    def table(self) -> Table:
        """Percent, a row for every layer."""
        columns = [Column(key, (1, k), in_percent(2)) for k, key in enumerate(self.keys)]
        return render(enumerate(self.weights, 1), [Column("layer", 0), *columns])


def listens(cfg: DictConfig) -> bool:
    """Whether the encoder's gates attend to a context from outside of the encoder."""
    return cfg.pruning.encoder == "local" and any(name != "front" for name in cfg.pruning.context)


def context_attention(
    cfg: DictConfig, weights: Path, record: GateRecord, utterances: Utterances | None, limit: int
) -> ContextAttention:
    """Encodes up to ``limit`` utterances once more; arguments and errors as of `reload`."""
    import torch
    import torch.nn.functional as F

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
        weights_BTC = torch.cat([F.pad(part, (0, 0, 0, real_BT.shape[1] - part.shape[1])) for part in found])
        means[layer, : weights_BTC.shape[-1]] = weights_BTC[real_BT].mean(0).numpy()
    return ContextAttention(tuple(keys), len(again.chosen), means)


def attention_table(runs: Sequence[Evaluated]) -> Table | None:
    """A row for every run of which it is known: the mean weight of each context over the layers, in percent."""
    known = [(run, kept["weights"]) for run in runs if (kept := stored_analysis(run, "context_attention"))]
    contexts = list(dict.fromkeys(k for _, weights in known for k in weights if not k.startswith("layer ")))
    if not contexts:
        return None

    def earlier(weights: Mapping[str, list[float]]) -> Any:
        return np.sum([values for key, values in weights.items() if key.startswith("layer ")], axis=0)

    return render(
        known,
        [
            Column("run", _label),
            *(Column(c, (1, c), _mean_percent) for c in contexts),
            Column("earlier layers' inputs", lambda row: _mean_percent(earlier(row[1]))),
        ],
    )
