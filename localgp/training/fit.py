"""One fine-tuning run, from its configuration to its averaged weights."""

from __future__ import annotations

import importlib.util
import json
import logging
import platform
import sys
import time
import warnings
import zipfile
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
from omegaconf import DictConfig
from torch.utils.data import DataLoader

from localgp import __version__
from localgp.backbones.base import Backbone, Side
from localgp.build import build_model
from localgp.contexts.extract import row_contexts
from localgp.corpora.fits import check_fits, split_of
from localgp.corpora.prepared import limit_per_language, load_prepared
from localgp.errors import CheckpointError, ConfigError, CorpusError
from localgp.failures import is_of_machine
from localgp.io import sweep, write_atomically
from localgp.locks import held
from localgp.model import GatedS2T
from localgp.precision import resolve_device, resolve_precision
from localgp.run import Run, commit
from localgp.signals import Signals, Stopped, leave_to_parent
from localgp.training.callbacks import BestWeights, DenseLog, ResumeCheckpoint, WriteInPlace
from localgp.training.data import Collate, StepBatches, TrainingExamples, check_enough, rows_in
from localgp.training.dev_scores import DevScores
from localgp.training.distil import Layers, Teacher, written_by
from localgp.training.mask_image import MaskImage
from localgp.training.module import TrainingModule
from localgp.training.stop import StopAtSignal
from localgp.training.trained_on import FILE, changed, check_data, digests_of, write_data
from localgp.window import Window
from localgp.world import World, check_launch, connect, first_then_others, from_first


def fit(cfg: DictConfig) -> tuple[dict[str, float], dict[str, Any]]:
    """Trains, resuming by itself.

    Returns:
        The last dev metrics, and the objects: ``run``, ``model``, ``trainer`` (None if it was finished before).
    """
    world = check_launch(cfg, multirun=_is_multirun())
    run = Run(cfg)
    run.check()
    if run.finished and not run.extends:
        if world.is_first:
            print(f"{run.path} is finished{_on_other_data(cfg, run)}; remove it to train again")
        return {}, {"run": run, "model": None, "trainer": None}
    if world.is_first and run.path.is_dir():
        with _held(run):  # one that is being trained is refused before anything is loaded
            pass
    with ExitStack() as owned:
        return _fit(cfg, world, run, owned)


def _held(run: Run) -> AbstractContextManager[None]:
    return held(run.path / ".train.lock", f"training {run.path}")


def _fit(
    cfg: DictConfig, world: World, run: Run, owned: ExitStack
) -> tuple[dict[str, float], dict[str, Any]]:
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):  # tips and device notes
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")  # deprecations inside of it
    warnings.filterwarnings("ignore", message="Grad strides do not match")  # of channels-last convolutions
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    L.seed_everything(cfg.seed, verbose=False)

    device = resolve_device(cfg.device)
    connect(world, device.type)
    splits = first_then_others(world, lambda: load_prepared(cfg))
    train_split, dev_split = split_of(splits, "train"), split_of(splits, "dev")
    model = build_model(cfg)
    backbone, training = model.backbone, cfg.training
    silence = round(training.init_silence * backbone.sample_rate)
    train_rows = limit_per_language(train_split, training.limit)
    dev_rows = limit_per_language(dev_split, training.val_limit)
    scored_rows = limit_per_language(dev_split, training.val_decode)
    for used in (train_rows, dev_rows, scored_rows):
        check_fits(used, backbone, model.window_seconds)
    digests = digests_of(cfg, splits)
    if training.resume == "auto":
        check_data(run, digests)
    if not training.lr:
        if not any(True for _ in model.gate_parameters()):
            raise ConfigError(
                "training.lr is 0 and there are no gates to train; give either (pruning.encoder=local)"
            )
        backbone.net.requires_grad_(False)
    teacher = build_teacher(cfg, backbone, model.window, repeats=not silence)
    examples = TrainingExamples(
        train_rows,
        backbone,
        model.samples,
        group_tasks=training.group_tasks,
        init_silence=silence,
        seed=cfg.seed,
    )
    dev = TrainingExamples(dev_rows, backbone, model.samples, group_tasks=True)
    if not len(examples) or not len(dev):
        raise ConfigError("the corpus has no training or no dev examples; see `python -m localgp.prepare`")
    check_enough(len(examples), training.batch_size, world.ranks)
    steps_per_epoch = max(1, len(examples) // (training.batch_size * training.accumulate * world.ranks))
    max_steps = cfg.trainer.max_steps or training.max_steps or training.max_epochs * steps_per_epoch
    val_every = min(training.val_every or steps_per_epoch, max_steps)
    batches = StepBatches(
        len(examples), training.batch_size * world.ranks, max_steps * training.accumulate, seed=cfg.seed
    )
    seen_rows = train_rows.select(rows_in(examples, batches))  # a short training needs few contexts
    parts = ((seen_rows, train_split), (dev_rows, dev_split), (scored_rows, dev_split))
    contexts = first_then_others(world, lambda: row_contexts(cfg, *parts))
    examples.contexts = dev.contexts = contexts

    strategy = build_strategy(cfg, world, device, backbone)
    if world.is_first:  # only now: a configuration that fails above leaves no directory behind
        owned.enter_context(_held(run))
        if run.extends:
            extend(run, max_steps)
        run.start()
        write_data(run, digests)
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        sweep(run.checkpoints)
    if training.transcripts == "teacher":
        # Before there is a gate or a step: what the backbone itself writes.
        examples.texts = first_then_others(
            world, lambda: kept_texts(run.path / "teacher.json", backbone, seen_rows, device)
        )
    model.forget = training.checkpointing
    module = TrainingModule(model, cfg, sample_rate=backbone.sample_rate, teacher=teacher)
    dtype = resolve_precision(training.precision, device)
    best = BestWeights(run.checkpoints, training.average)
    saving = ResumeCheckpoint(run.checkpoints, training.checkpoint_every, val_every)
    callbacks: list[Callback] = [
        DenseLog(run.path / "metrics.jsonl", training.log_every),
        best,
        saving,
    ]
    progress_bar = sys.stderr.isatty() and world.is_first  # a log file gets the dense lines alone
    if progress_bar:
        callbacks.append(TQDMProgressBar(refresh_rate=10))
    if training.val_decode and cfg.trainer.strategy != "fsdp":  # decoding needs all weights in one place
        callbacks.append(DevScores(scored_rows, cfg.evaluate.normalizer, contexts))
    pictured = training.logger != "none" and cfg.trainer.strategy != "fsdp"  # as for the scores above
    if model.policy is not None and pictured and world.is_first:
        callbacks.append(MaskImage(dev_rows, model, contexts))
    signals = Signals(defer=True)
    dev_count = -(-len(dev) // training.batch_size)
    callbacks.append(StopAtSignal(signals, saving, max(1, dev_count // world.ranks)))
    # Variables of SLURM are also there where it started this process alone.
    plugins: list[Any] = [WriteInPlace(), *([LightningEnvironment()] if world.ranks == 1 else [])]
    trainer = L.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=world.devices,
        num_nodes=world.nodes,
        strategy=strategy,
        plugins=plugins,
        precision="bf16-mixed" if dtype == torch.bfloat16 else "32-true",
        max_steps=max_steps,
        max_epochs=-1,
        val_check_interval=val_every * training.accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        accumulate_grad_batches=training.accumulate,
        gradient_clip_val=training.grad_clip,
        logger=build_logger(training.logger, run.path) if world.is_first else False,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=progress_bar,
        log_every_n_steps=1,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=run.path,
    )
    checkpoint = None
    if world.is_first:
        checkpoint = newest_checkpoint(run.checkpoints) if training.resume == "auto" else None
        print(banner(cfg, run, backbone, model, device, dtype, max_steps, steps_per_epoch), flush=True)
        if checkpoint is not None:
            step = checkpoint[1]
            print(f"resuming from {checkpoint[0]} at step {step} of {max_steps}", flush=True)
    checkpoint = from_first(world, checkpoint)
    start = checkpoint[1] if checkpoint else 0
    collate = Collate(backbone.tokenizer.na)
    train_loader: DataLoader = DataLoader(
        examples,
        batch_sampler=StepBatches(
            len(examples),
            training.batch_size,
            max_steps * training.accumulate,
            start=start * training.accumulate,
            seed=cfg.seed,
            rank=world.rank,
            ranks=world.ranks,
        ),
        collate_fn=collate,
        num_workers=training.workers,
        worker_init_fn=leave_to_parent,
        pin_memory=device.type == "cuda",
        persistent_workers=False,
    )
    dev_batches = [
        [(0, i) for i in range(begin, min(begin + training.batch_size, len(dev)))]
        for begin in range(0, len(dev), training.batch_size)
    ]
    # Every rank needs a batch, or the others would wait for its part of the mean.
    share = slice(world.rank, None, world.ranks) if len(dev_batches) >= world.ranks else slice(None)
    dev_loader: DataLoader = DataLoader(
        dev, batch_sampler=dev_batches[share], collate_fn=collate, pin_memory=device.type == "cuda"
    )
    began = time.perf_counter()
    with signals:
        try:
            trainer.fit(
                module,
                train_loader,
                dev_loader,
                ckpt_path=str(checkpoint[0]) if checkpoint else None,
                weights_only=True,
            )
        except RuntimeError as error:
            if Signals.asked is None:
                raise
            # What was to be ended had helpers or other processes that the same signal ended first.
            raise Stopped(Signals.asked, "the same command goes on from the last checkpoint") from error
        asked = Signals.asked
    seconds = time.perf_counter() - began
    if world.is_first:
        if trainer.global_step >= max_steps:
            best.finish()
        print(f"trained to step {trainer.global_step} in {seconds:.0f} s: {run.weights}", flush=True)
    if asked is not None:
        raise Stopped(asked, f"{run.path} is finished")
    metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
    return metrics, {"run": run, "model": model, "trainer": trainer}


def build_teacher(cfg: DictConfig, backbone: Backbone, window: Window, *, repeats: bool) -> Teacher | None:
    """What the training looks up to: the backbone as it is now; None where it learns from texts alone.

    Raises:
        ConfigError: Layers that it has not.
    """
    training = cfg.training
    if training.objective == "task":
        return None
    if backbone.is_told:
        raise ConfigError(
            f"training.objective={training.objective} is for models whose encoder is not told what to write, and "
            f"that of {backbone.name} is; valid: task"
        )
    layers = Layers(tuple(training.distil_encoder), tuple(training.distil_decoder))
    heard = window if training.teacher_window == "own" else Window()
    return Teacher(backbone, layers, heard, repeats=repeats)


def kept_texts(path: Path, backbone: Backbone, rows: Any, device: torch.device) -> dict[str, dict[str, str]]:
    """What the backbone writes of the training rows, from the file that it is kept in, where it was written before."""
    try:
        found: dict[str, dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
        known = {utt_id for texts in found.values() for utt_id in texts}
        if known >= set(rows.select_columns(["utt_id"])["utt_id"]):
            return found
    except (OSError, ValueError, AttributeError):  # none yet, or not to be read: written again
        pass
    found = written_by(backbone, rows, device)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(found, ensure_ascii=False, indent=0) + "\n")
    return found


def _on_other_data(cfg: DictConfig, run: Run) -> str:
    """What to say of a finished run whose corpus is another by now."""
    if not (run.path / FILE).exists():
        return ""
    try:
        others = changed(run, digests_of(cfg, load_prepared(cfg)))
    except (CorpusError, ConfigError):  # the corpus has gone, and the run is finished all the same
        return ""
    return f", on other data than there are now ({' and '.join(others)} changed)" if others else ""


def extend(run: Run, max_steps: int) -> None:
    """Makes a run unfinished, so that it goes on to ``max_steps``; the weights that it had stay beside.

    Raises:
        CheckpointError: It is as long already.
    """
    newest = newest_checkpoint(run.checkpoints)
    reached = newest[1] if newest else 0
    if reached > max_steps or (reached == max_steps and run.finished):
        raise CheckpointError(
            f"{run.path} is trained to step {reached}, and {max_steps} were asked for (trainer.max_steps goes before "
            "training.max_steps, that before max_epochs); give more, or give this run its own name (name=...) or place "
            "(exp_dir=...)"
        )
    if run.finished:
        run.weights.rename(run.weights.with_name(f"model-until-step{reached}.safetensors"))


def _is_multirun() -> bool:

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def build_strategy(cfg: DictConfig, world: World, device: torch.device, backbone: Backbone) -> Any:
    """Lightning's strategy for ``trainer.strategy``.

    Raises:
        ConfigError: FSDP without a GPU.
    """
    if cfg.trainer.strategy == "fsdp":
        if device.type != "cuda":
            raise ConfigError("trainer.strategy=fsdp needs GPUs; use trainer.strategy=ddp on CPUs")
        return _fsdp(backbone)
    if world.ranks == 1:
        return "auto"

    return DDPStrategy(
        broadcast_buffers=False,  # there are none that training changes
        gradient_as_bucket_view=True,  # one copy of the gradients less
        # A closed module has no gradient on this rank, and an output layer none where only states are compared.
        find_unused_parameters=cfg.pruning.path == "gathered" or cfg.training.objective == "distil",
    )


def _fsdp(backbone: Backbone) -> Any:

    # A layer's parts are called one by one, so these, and not the layer, are what is sharded.
    sides: tuple[Side, ...] = ("encoder", "decoder") if backbone.shape.decoder_layers else ("encoder",)
    parts = [part for side in sides for part in backbone.branches(side, 0).values()]
    units = {type(part.module) for part in parts if part.module is not None}
    return FSDPStrategy(auto_wrap_policy=units, state_dict_type="full")


def newest_checkpoint(directory: Path) -> tuple[Path, int] | None:
    """The newest checkpoint that can be read, and its step; None where there is none yet. A damaged one is named, and
    kept aside where the one before can be used.

    Raises:
        CheckpointError: There are checkpoints, and none of them can be read.
    """
    damaged: dict[Path, str] = {}
    for path in (directory / "last.ckpt", directory / "previous.ckpt"):
        if not path.exists():
            continue
        try:
            with zipfile.ZipFile(path) as parts:  # PyTorch itself does not compare the checksums
                part = parts.testzip()
            if part is not None:
                raise CheckpointError(f"checksum of {part}")
            step = int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"])
        except Exception as error:  # any unreadable file is the same to the user: use the one before
            if is_of_machine(error):
                raise
            damaged[path] = error.__class__.__name__
            continue
        for other, why in damaged.items():
            print(f"{other} cannot be read ({why}); kept as {_set_aside(other).name}, using the one before")
        return path, step
    if damaged:
        named = ", ".join(f"{path} ({why})" for path, why in damaged.items())
        raise CheckpointError(
            f"this run was begun, and no checkpoint of it can be read: {named}. Put back a copy of one, or start over "
            f"from step 0, with training.resume=never or by removing {directory.parent}."
        )
    return None


def _set_aside(path: Path) -> Path:
    """Renames a file to ``.damaged``, with a number where there is one of an earlier time."""
    aside = path.with_suffix(".damaged")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_suffix(f".damaged{number}")
    return path.rename(aside)


def build_logger(name: str, directory: Path) -> Any:
    """Lightning's logger, or False for none.

    Args:
        name: ``tensorboard``, ``wandb`` or ``none``.
        directory: Where it writes.

    Raises:
        ConfigError: Its package is not installed.
    """
    if name == "none":
        return False
    if name == "tensorboard":
        return TensorBoardLogger(directory, name="tensorboard", version="")
    if importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            "training.logger=wandb needs a package that is not installed: pip install 'localgp[wandb]', in a "
            "checkout pip install -e '.[wandb]'; or training.logger=tensorboard"
        )

    return WandbLogger(project="localgp", save_dir=directory)


def banner(
    cfg: DictConfig,
    run: Run,
    backbone: Backbone,
    model: GatedS2T,
    device: torch.device,
    dtype: torch.dtype,
    max_steps: int,
    steps_per_epoch: int,
) -> str:
    """What is about to be trained, on what, and how."""
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    gates = sum(p.numel() for p in model.gate_parameters())
    training = cfg.training
    processes = cfg.trainer.devices * cfg.trainer.num_nodes
    ranks = f" x {processes} processes" if processes > 1 else ""
    return "\n".join(
        [
            f"localgp {__version__} ({commit()[:12]}), torch {torch.__version__}, lightning {L.__version__}, "
            f"Python {platform.python_version()}",
            f"  run       {run.path} (config.yaml)",
            f"  backbone  {backbone.name} from {backbone.source}, padded to {backbone.padded_seconds:g} s, "
            f"window {model.window}",
            f"  gates     encoder {cfg.pruning.encoder or 'none'}, decoder {cfg.pruning.decoder or 'none'}, "
            f"context {[*cfg.pruning.context, *cfg.pruning.decoder_context]}, "
            f"target sparsity {cfg.pruning.target:.0%}, {cfg.pruning.path} path",
            f"  size      {total / 1e6:.2f} M parameters, {trainable / 1e6:.2f} M trainable, "
            f"{gates / 1e6:.3f} M in gates",
            f"  training  {max_steps} steps ({max_steps / steps_per_epoch:.1f} epochs) of {training.batch_size} x "
            f"{training.accumulate}{ranks}, {training.optimizer} lr {training.lr:g} (gates {training.gate_lr:g}), "
            f"{str(dtype).removeprefix('torch.')} on {device}, seed {cfg.seed}",
        ]
    )
