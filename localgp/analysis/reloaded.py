"""An evaluated run's model, and utterances that it encodes once more.

Shape legend: U utterances, B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig

from localgp.analysis.collect import Evaluated, collect, in_order
from localgp.analysis.sources import Utterances
from localgp.corpora.integrity import read_row
from localgp.corpora.rows import padded_speech
from localgp.errors import ConfigError, CorpusError
from localgp.evaluation.gates_file import GateRecord
from localgp.evaluation.trained import load_trained, weights_of
from localgp.stored import section

if TYPE_CHECKING:
    import torch

    from localgp.contexts.extract import RowContexts
    from localgp.encoder.run import EncoderOutput
    from localgp.model import GatedS2T

_BATCH = 8


@dataclass(frozen=True)
class Reloaded:
    """Attributes:
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
        device, samples = backbone.device, backbone.samples
        for begin in range(0, len(self.rows), _BATCH):
            items = [read_row(self.rows, i) for i in range(begin, min(begin + _BATCH, len(self.rows)))]
            speech_BN, _ = padded_speech(items, samples)
            given = batch_contexts(contexts, items, samples, backbone.timeline, device)
            lengths_B = torch.full((len(items),), samples, device=device)
            with torch.inference_mode():
                if packed is not None:
                    yield packed.encode(speech_BN.to(device), lengths_B, given)
                else:
                    yield self.model.encode(speech_BN.to(device), lengths_B, given, path=path)


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


def first_seeds(cfg: DictConfig, progress: Callable[[str], None]) -> list[tuple[Evaluated, Path]]:
    """Every experiment of ``bench.confs`` on the configured corpus and backbone: its evaluated run of the lowest seed,
    and the weights that were evaluated.

    Raises:
        ConfigError: One that is asked for has not been evaluated.
        CheckpointError: None has been.
    """
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
