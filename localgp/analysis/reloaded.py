"""An evaluated run's model, and utterances that it encodes once more.

Shape legend: U utterances, B batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from localgp.analysis.sources import Utterances
from localgp.corpora.integrity import read_row
from localgp.errors import CorpusError
from localgp.evaluation.gates_file import GateRecord
from localgp.evaluation.trained import batch_contexts, load_trained, padded_speech

_BATCH = 8


@dataclass(frozen=True)
class Reloaded:
    """Attributes:
    model: `localgp.model.GatedS2T`, in eval mode, on its device.
    rows: Prepared rows of the chosen utterances.
    chosen: Their places (U,) in the stored gates.
    samples: Of a padded utterance.
    """

    model: Any
    rows: Any
    chosen: np.ndarray
    samples: int

    def encode(self, contexts: Any, *, dtype: Any = None, path: str = "packed") -> Iterator[Any]:
        """Batch by batch, as an evaluation encodes.

        Args:
            contexts: `localgp.contexts.extract.RowContexts` of the rows, or None where the gates see none.
            dtype: Arithmetic; None for fp32.
            path: Of `localgp.encoder.run.encode`.

        Yields:
            `localgp.encoder.run.EncoderOutput`.
        """
        import torch

        device = next(self.model.parameters()).device
        for begin in range(0, len(self.rows), _BATCH):
            items = [read_row(self.rows, i) for i in range(begin, min(begin + _BATCH, len(self.rows)))]
            speech_BN, _ = padded_speech(items, self.samples)
            given = batch_contexts(contexts, items, self.samples, device)
            lengths_B = torch.full((len(items),), self.samples, device=device)
            with (
                torch.inference_mode(),
                torch.autocast(device.type, dtype=dtype, enabled=dtype not in (None, torch.float32)),
            ):
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
    model, backbone = load_trained(cfg, weights, resolve_device(cfg.device))
    return Reloaded(model, rows, chosen, round(backbone.padded_seconds * backbone.sample_rate))
