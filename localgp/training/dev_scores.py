"""WER and BLEU on a few dev segments, decoded greedily, at every dev scoring."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from localgp.contexts.extract import RowContexts
from localgp.corpora.rows import list_tasks
from localgp.evaluation.decode import decode_rows
from localgp.evaluation.score import references_of, score_tasks
from localgp.search.options import DecodeOptions
from localgp.training.module import TrainingModule


class DevScores(Callback):
    """Adds ``valid/wer`` and ``valid/bleu``, averages over tasks, to the metrics of a dev scoring.

    Args:
        rows: The dev segments to decode.
        normalizer: Of the text before WER.
        contexts: Of the rows, where the gates see any.
    """

    def __init__(self, rows: Any, normalizer: str, contexts: RowContexts | None = None) -> None:
        self.rows, self.normalizer = rows, normalizer
        self.contexts = contexts

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:

        assert isinstance(module, TrainingModule)
        if not module.dev_is_finite:  # there may be nothing to decode; the module, whose turn is next, raises
            return
        decoded = decode_rows(
            module.model,
            self.rows,
            list_tasks(self.rows),
            DecodeOptions(beam=1, maxlenratio=0.4),
            progress=False,
            contexts=self.contexts,
        )
        references = references_of(self.rows)
        pairs = {
            task: ([references[task][i] for i in texts], list(texts.values()))
            for task, texts in decoded.text.items()
        }
        scores = score_tasks(pairs, self.normalizer)
        for kind in ("wer", "bleu"):
            if scores[kind]:
                module.log(f"valid/{kind}", scores[kind]["average"], rank_zero_only=True)
