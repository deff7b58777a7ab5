"""Ending a training between two steps, with a checkpoint of the very step it has come to."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from localgp.signals import Signals, Stopped
from localgp.training.callbacks import ResumeCheckpoint
from localgp.world import highest_over_ranks


class StopAtSignal(Callback):
    """Saves and ends where a process of the run was asked to; the last of the callbacks.

    All processes agree at the end of each step, so that none waits for another that has left. A dev scoring that is
    cut off is done again by the run that goes on.

    Args:
        signals: Those of this process, deferred.
        saving: Where it saves.
        dev_batches: Batches of a dev scoring that every process has.
    """

    def __init__(self, signals: Signals, saving: ResumeCheckpoint, dev_batches: int) -> None:
        self.signals, self.saving, self.dev_batches = signals, saving, dev_batches

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.signals.take()  # Lightning has taken SIGTERM by now
        self.saving.score_if_due(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        if (index + 1) % trainer.accumulate_grad_batches == 0:
            self._stop_if_asked(trainer)

    def on_validation_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, index: int, loader: int = 0
    ) -> None:
        if index < self.dev_batches:
            self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._stop_if_asked(trainer)

    def _stop_if_asked(self, trainer: L.Trainer) -> None:
        step = trainer.global_step
        if step >= trainer.max_steps:  # little is left to do, and no step from which to go on
            return
        signum = int(highest_over_ranks(Signals.asked or 0))
        if not signum:
            return
        if step != self.saving.saved:
            self.saving.save(trainer)
        if not trainer.is_global_zero:
            raise Stopped(signum, "")
        said = f"the same command goes on from step {step} of {trainer.max_steps}"
        raise Stopped(signum, said)
