"""What happens around the training step: log line, checkpoints, averaging."""

from __future__ import annotations

import copy
import json
import os
import resource
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import FSDPStrategy
from safetensors.torch import load_file

from localgp.io import naming, write_atomically, written
from localgp.training.module import TrainingModule
from localgp.weights import save_weights
from localgp.world import mean_over_ranks

_DUE = "localgp_dev_scoring_due"  # of a checkpoint: its step's scoring is still to be done


class DenseLog(Callback):
    """One line per interval on standard output, the same as JSON in metrics.jsonl, and to the logger.

    Args:
        path: metrics.jsonl.
        every: Steps between lines.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every
        self._due = False
        self._audio = self._data_time = 0.0
        self._since = self._batch_end = time.perf_counter()

    def on_load_checkpoint(
        self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._due = checkpoint.get(_DUE, False)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """A resumed run replays the steps after its checkpoint: their old lines go, and a line that a kill cut
        off."""
        if trainer.is_global_zero and self.path.exists():
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
            now = (trainer.global_step, "valid" if self._due else "")  # from here on all is done again
            kept = [line for line in lines if 0 <= _place_of(line)[0] <= now[0] and _place_of(line) != now]
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
        with naming(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        for logger in trainer.loggers:
            logger.log_metrics({f"{kind}/{k}": v for k, v in terms.items()}, step=trainer.global_step)


def _place_of(line: str) -> tuple[int, str]:
    """Step and kind of a line of metrics.jsonl; step -1 for a line that is cut off."""
    try:
        record = json.loads(line)
        return int(record["step"]), str(record.get("kind"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return -1, ""


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
        f"loss {t['loss']:.3f} ({_terms(t)})",
    ]
    if "accuracy" in t:  # of a decoder
        parts.append(f"acc {t['accuracy']:.3f}")
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


def _terms(t: dict[str, float]) -> str:
    digits = {"ctc": 3, "att": 3, "distil": 4, "sparsity": 4}
    return ", ".join(f"{name} {t[f'loss_{name}']:.{n}f}" for name, n in digits.items() if f"loss_{name}" in t)


class ResumeCheckpoint(Callback):
    """last.ckpt every so many steps, the one before kept as previous.ckpt.

    Each is written beside its place and renamed into it, so a kill at any moment leaves at least one whole. At a
    step with a dev scoring it is saved after that. One that has to be saved before, or in the midst of it, says that
    the scoring is due, and it is the first thing that the run does which goes on from there.

    Args:
        every: Steps between checkpoints.
        val_every: Steps between dev scorings.
    """

    def __init__(self, directory: Path, every: int, val_every: int) -> None:
        self.directory, self.every, self.val_every = directory, every, val_every
        self.saved = -1  # step of the newest one
        self._due = False
        self._progress: dict[str, Any] = {}  # Lightning's counters before the scoring that is due

    def score_if_due(self, trainer: L.Trainer) -> None:
        """The dev scoring that the checkpoint resumed from lacks."""
        if self._due:
            loop = trainer.fit_loop.epoch_loop.val_loop
            loop.restarting = False
            trainer.validating = True
            loop.run()
            trainer.training = True

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        step = trainer.global_step
        if not step or (index + 1) % trainer.accumulate_grad_batches:
            return
        self._due = step % self.val_every == 0
        if self._due:
            self._progress = copy.deepcopy(trainer.fit_loop.state_dict())
        elif step % self.every == 0:
            self.save(trainer)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._due = False
        if trainer.global_step % self.every == 0:
            self.save(trainer)

    def on_save_checkpoint(
        self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[_DUE] = self._due
        if self._due:  # Lightning would go on in the midst of the scoring, whose sums are not stored
            checkpoint["loops"]["fit_loop"] = self._progress

    def on_load_checkpoint(
        self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._due, self.saved = checkpoint.get(_DUE, False), checkpoint["global_step"]
        self._progress = copy.deepcopy(checkpoint["loops"]["fit_loop"])

    def save(self, trainer: L.Trainer) -> None:
        """Every rank has to call this, which may have a part of the weights; the first one writes."""
        last = self.directory / "last.ckpt"
        if trainer.is_global_zero:
            with written(last) as temporary:
                trainer.save_checkpoint(temporary, weights_only=False)  # optimizer and all
                if last.exists():
                    os.replace(last, self.directory / "previous.ckpt")
        else:
            trainer.save_checkpoint(last, weights_only=False)
        self.saved = trainer.global_step


class WriteInPlace(TorchCheckpointIO):
    """Writes a checkpoint where it is told to. Lightning's own makes it in memory and once more in $TMPDIR, whose
    room is not that of the run's directory."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        torch.save(checkpoint, path)


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
        save_weights(averaged_weights(self._ranked()[: self.keep]), self.directory / "model.safetensors")


def model_weights(trainer: L.Trainer, module: TrainingModule) -> dict[str, torch.Tensor]:
    """The whole model's weights; every rank has to call this, the first gets them."""

    if isinstance(trainer.strategy, FSDPStrategy):
        whole = trainer.strategy.lightning_module_state_dict()
        own = {name: value for name, value in whole.items() if name.startswith("model.")}
        return {name.removeprefix("model."): value for name, value in own.items()}
    return module.model.state_dict()


def averaged_weights(files: list[Path]) -> dict[str, torch.Tensor]:
    """Mean of several sets of weights, in double precision; integer buffers from the first."""

    states = [load_file(file) for file in files]
    mean = dict(states[0])
    for name, value in mean.items():
        if value.is_floating_point():
            mean[name] = torch.stack([s[name].double() for s in states]).mean(0).to(value.dtype)
    return mean
