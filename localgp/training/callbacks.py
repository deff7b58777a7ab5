"""What happens around the training step: log line, checkpoints, averaging."""

from __future__ import annotations

import json
import os
import resource
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from localgp.run import write_atomically
from localgp.training.module import TrainingModule
from localgp.training.world import mean_over_ranks
from localgp.weights import flush, save_weights


class DenseLog(Callback):
    """One line per interval on standard output, the same as JSON in metrics.jsonl, and to the logger.

    Args:
        path: metrics.jsonl.
        every: Steps between lines.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every
        self._audio = self._data_time = 0.0
        self._since = self._batch_end = time.perf_counter()

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """A resumed run replays the steps after its checkpoint: their old lines go, and a line that a kill cut
        off."""
        if trainer.is_global_zero and self.path.exists():
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
            kept = [line for line in lines if 0 <= _step_of(line) <= trainer.global_step]
            write_atomically(self.path, "".join(line + "\n" for line in kept))
        self._since = self._batch_end = time.perf_counter()

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, index: int
    ) -> None:
        self._data_time += time.perf_counter() - self._batch_end

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        assert isinstance(module, TrainingModule)
        self._batch_end = now = time.perf_counter()
        self._audio += float((batch["signal"][:, 1] - batch["signal"][:, 0]).sum()) / module.sample_rate
        if trainer.global_step % self.every and trainer.global_step != trainer.max_steps:
            return
        elapsed = now - self._since
        learning_rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
        terms = {
            **mean_over_ranks(module.terms),
            "lr": learning_rates[0],
            "audio_per_second": self._audio / elapsed * trainer.world_size,
            "data_share": self._data_time / elapsed,
            "memory_mib": _memory_mib(module.device),
        }
        self._write(trainer, "train", terms)
        if trainer.is_global_zero:
            print(_line(trainer, module, terms), flush=True)
        self._audio = self._data_time = 0.0
        self._since = now

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        terms = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("valid/")}
        self._write(trainer, "valid", {k.removeprefix("valid/"): v for k, v in terms.items()})
        shown = "  ".join(
            f"{k.removeprefix('valid/')} {v:.3f}" for k, v in sorted(terms.items()) if "real" not in k
        )
        if trainer.is_global_zero:
            print(f"step {trainer.global_step:>6}  dev  {shown}", flush=True)
        self._since = self._batch_end = time.perf_counter()

    def _write(self, trainer: L.Trainer, kind: str, terms: dict[str, float]) -> None:
        if not trainer.is_global_zero:
            return
        record = {"step": trainer.global_step, "kind": kind, **{k: _round(v) for k, v in terms.items()}}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        for logger in trainer.loggers:
            logger.log_metrics({f"{kind}/{k}": v for k, v in terms.items()}, step=trainer.global_step)


def _step_of(line: str) -> int:
    """The step of a line of metrics.jsonl; -1 for a line that is cut off."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return -1


def _round(value: float) -> float:
    return float(f"{value:.6g}")


def _memory_mib(device: torch.device) -> float:
    """Peak of this process where the model is: on the GPU, or in the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _line(trainer: L.Trainer, module: TrainingModule, t: dict[str, float]) -> str:
    parts = [
        f"step {trainer.global_step:>6}/{trainer.max_steps}",
        f"loss {t['loss']:.3f} (ctc {t['loss_ctc']:.3f}, att {t['loss_att']:.3f}"
        + (f", sparsity {t['loss_sparsity']:.4f})" if "loss_sparsity" in t else ")"),
        f"acc {t['accuracy']:.3f}",
    ]
    kept = {k.removeprefix("kept/"): v for k, v in t.items() if k.startswith("kept/") and k != "kept/all"}
    if kept:
        ratios = " ".join(f"{name} {value:.2f}" for name, value in kept.items())
        parts.append(f"kept {ratios} (target {t['target_kept']:.2f}), tau {t['temperature']:.2f}")
    parts += [
        f"grad {t.get('grad_norm', float('nan')):.2f}",
        f"lr {t['lr']:.1e}",
        f"{t['audio_per_second']:.0f} s audio/s",
        f"data {t['data_share']:.0%}",
        f"{t['memory_mib']:.0f} MiB",
    ]
    return "  ".join(parts)


class ResumeCheckpoint(Callback):
    """last.ckpt every so many steps, the one before kept as previous.ckpt.

    Each is written beside its place and renamed into it, so a kill at any moment leaves at least one whole. At a
    step with a dev scoring it is saved after that: what resumes from it takes the scoring for done.

    Args:
        every: Steps between checkpoints.
        val_every: Steps between dev scorings.
    """

    def __init__(self, directory: Path, every: int, val_every: int) -> None:
        self.directory, self.every, self.val_every = directory, every, val_every

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        step = trainer.global_step
        at_boundary = (index + 1) % trainer.accumulate_grad_batches == 0
        if step and at_boundary and step % self.every == 0 and step % self.val_every:
            self._save(trainer)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not trainer.sanity_checking and trainer.global_step % self.every == 0:
            self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        temporary = self.directory / ".last.ckpt.tmp"
        trainer.save_checkpoint(temporary, weights_only=False)  # optimizer and all
        if trainer.is_global_zero:
            flush(temporary)
            last = self.directory / "last.ckpt"
            if last.exists():
                os.replace(last, self.directory / "previous.ckpt")
            os.replace(temporary, last)


class BestWeights(Callback):
    """Keeps the n best sets of weights by dev loss; `finish` averages them, as ESPnet does.

    Args:
        directory: Where ``step<k>-loss<x>.safetensors`` go; the average is ``model.safetensors``.
        keep: n.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory, self.keep = directory, keep

    def _ranked(self) -> list[Path]:
        files = self.directory.glob("step*-loss*.safetensors")
        return sorted(files, key=lambda f: (float(f.stem.split("-loss")[1]), f.stem))

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, TrainingModule)
        if trainer.sanity_checking:
            return
        state = model_weights(trainer, module)  # of sharded weights every rank has a part
        if not trainer.is_global_zero:
            return
        loss = float(trainer.callback_metrics["valid/loss"])
        name = f"step{trainer.global_step:07d}-loss{loss:.6f}.safetensors"
        # A resumed run scores a step again: the older file of that step is of the same weights.
        for old in self.directory.glob(f"step{trainer.global_step:07d}-loss*.safetensors"):
            old.unlink()
        save_weights(state, self.directory / name)
        for worse in self._ranked()[self.keep :]:
            worse.unlink()

    def finish(self) -> None:
        """Writes the average, whose presence says that training is finished. Not a hook of the training's end:
        a run that was killed between its last step and here has no steps left, and this still to do."""
        save_weights(average(self._ranked()[: self.keep]), self.directory / "model.safetensors")


def model_weights(trainer: L.Trainer, module: TrainingModule) -> dict[str, torch.Tensor]:
    """The whole model's weights; every rank has to call this, the first gets them."""
    from lightning.pytorch.strategies import FSDPStrategy

    if isinstance(trainer.strategy, FSDPStrategy):
        whole = trainer.strategy.lightning_module_state_dict()
        return {name.removeprefix("model."): value for name, value in whole.items()}
    return module.model.state_dict()


def average(files: list[Path]) -> dict[str, torch.Tensor]:
    """Mean of several sets of weights, in double precision; integer buffers from the first."""
    from safetensors.torch import load_file

    states = [load_file(file) for file in files]
    mean = dict(states[0])
    for name, value in mean.items():
        if value.is_floating_point():
            mean[name] = torch.stack([s[name].double() for s in states]).mean(0).to(value.dtype)
    return mean
