"""Decode and score a trained run."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from localgp.corpora.fits import check_fits, split_of
from localgp.corpora.integrity import rows_digest
from localgp.corpora.prepared import limit_per_language, load_prepared
from localgp.errors import CheckpointError
from localgp.evaluation.results import Identity, asked_of, find_evaluation, save, settle, tag_of
from localgp.evaluation.score import references_of, score_tasks
from localgp.io import file_digest, sweep
from localgp.locks import held
from localgp.run import Run, commit
from localgp.search.options import DecodeOptions
from localgp.stored import run_config, section
from localgp.weights import load_state
from localgp.world import connect, first_then_others, gather_to_first, world_from

if TYPE_CHECKING:
    from torch.nn import Module


def load_run_weights(model: Module, path: Path) -> None:
    """Loads a run's weights into its model.

    Raises:
        CheckpointError: If the file is missing, damaged or of another model.
    """
    load_state(
        model,
        path,
        remedy="Use the conf, backbone and pruning options it was trained with (config.yaml of its run), restore it, "
        "or train again.",
    )


def weights_used(run: Run) -> Path:
    """What is evaluated: the run's own weights, or ``evaluate.checkpoint``.

    Raises:
        CheckpointError: There are none, or the run was trained with another configuration.
    """
    given = run.cfg.evaluate.checkpoint
    weights = Path(given) if given else run.require_weights()
    if not weights.is_file():
        raise CheckpointError(
            f"evaluate.checkpoint={given}: no such file; give a model.safetensors or step*.safetensors of a run's "
            "checkpoints/, or leave it out for the run's own"
        )
    run.check(trained=True)
    return weights


def own_weights(run: Run, used: Path) -> Path:
    """What the run is evaluated with when nothing else is asked for: what it was trained to, or, where it only uses
    another's weights, those that it was first evaluated with.

    Args:
        used: What it is evaluated with now.
    """
    first = section(run_config(run.path), "evaluate").get("checkpoint")
    return run.weights if run.finished else Path(first) if first and Path(first).is_file() else used


def evaluate_run(cfg: DictConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Decodes all tasks of ``cfg.evaluate.split`` and stores hypotheses, gates and metrics.json
    (`localgp.evaluation.results`).

    Returns:
        The metrics as written, and the objects ``run``, ``model``, ``decoded``; the last two are None where the run
        had been evaluated before, on the same data from the same weights with the same options, and nothing was done.
        With several processes, the first one's; the others return no metrics.

    Raises:
        BusyError: Another process is at the same evaluation.
    """
    with ExitStack() as owned:
        return _evaluate(cfg, owned)


def _evaluate(cfg: DictConfig, owned: ExitStack) -> tuple[dict[str, Any], dict[str, Any]]:

    run = Run(cfg)
    weights = weights_used(run)
    world = world_from(os.environ)  # several processes share the work; the first one scores and writes
    if world.ranks > 1:
        from localgp.precision import resolve_device

        connect(world, resolve_device(cfg.device).type)
    splits = first_then_others(world, lambda: load_prepared(cfg))
    split = cfg.evaluate.split
    whole = split_of(splits, split)
    rows = limit_per_language(whole, cfg.evaluate.limit)
    asked = asked_of(cfg) | {"limit": cfg.evaluate.limit if len(rows) < len(whole) else None}
    identity = Identity(file_digest(weights), file_digest(own_weights(run, weights)), rows_digest(whole))
    tag = tag_of(asked, run.path, identity)
    done = None if cfg.evaluate.force else find_evaluation(run.path, tag, asked, identity)
    if done is not None:
        if not world.is_first:
            return {}, {"run": run, "model": None, "decoded": None}
        with suppress(PermissionError):  # another user's run, which is only read
            settle(run.path, done)
        print(f"{run.path} is evaluated; evaluate.force=true decodes it again")
        return done, {"run": run, "model": None, "decoded": None}
    if world.is_first:
        evaluations = run.path / "evaluations"
        owned.enter_context(held(evaluations / f".{tag}.lock", f"evaluating {run.path} ({tag})"))
        sweep(evaluations, tag)

    # PyTorch takes longer to import than all that is refused above takes together.
    import torch

    from localgp.build import build_model
    from localgp.contexts.cost import with_contexts
    from localgp.contexts.extract import row_contexts
    from localgp.corpora.rows import list_tasks
    from localgp.evaluation.decode import decode_rows
    from localgp.evaluation.hallucination import over_twice, probes, written_on_nothing
    from localgp.evaluation.measured import measured_gflops, measured_ratios
    from localgp.evaluation.share import merge_decoded, share_of
    from localgp.precision import resolve_device, resolve_precision

    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    device = resolve_device(cfg.device)
    model = build_model(cfg)
    backbone = model.backbone
    load_run_weights(model, weights)
    dtype = resolve_precision(cfg.decode.precision, device)
    model.to(device).eval()

    check_fits(rows, backbone, model.window_seconds)
    tasks = list_tasks(rows)
    contexts = first_then_others(world, lambda: row_contexts(cfg, (rows, whole)))
    settings: dict[str, Any] = dict(OmegaConf.to_container(cfg.decode, resolve=True))  # type: ignore[arg-type]
    options = DecodeOptions(**{k: v for k, v in settings.items() if k not in ("batch", "precision")})
    options.check(backbone.shape.decoder_layers)
    began = time.perf_counter()
    decoded = decode_rows(
        model,
        rows,
        share_of(world, tasks, rows),
        options,
        batch=cfg.decode.batch,
        dtype=dtype,
        contexts=contexts,
        progress=world.is_first,
    )
    parts = gather_to_first(world, decoded)
    if parts is None:
        return {}, {"run": run, "model": model, "decoded": decoded}
    decoded = merge_decoded(parts, tasks, rows)
    seconds = {**decoded.seconds, "total": time.perf_counter() - began}

    run.start(trained=True)  # a variant has a directory, and with it a configuration, of its own
    references = references_of(rows)
    pairs, lines = {}, {}
    for task, texts in decoded.text.items():
        ids = sorted(texts)
        pairs[task] = ([references[task][i] for i in ids], [texts[i] for i in ids])
        source, _, target = task.partition("-")
        lines[f"{split}.{source}-{target or source}.txt"] = "".join(f"{i} {texts[i]}\n" for i in ids)
    lengths = [
        round(seconds * backbone.sample_rate) for seconds in rows.select_columns(["seconds"])["seconds"]
    ]
    heard = None if model.window.is_full else model.heard(torch.tensor(lengths)).tolist()
    scores = score_tasks(pairs, cfg.evaluate.normalizer)
    languages = sorted({task.source for task in tasks if task.source == task.target})
    nothing = probes(languages, backbone.sample_rate, model.window_seconds) if languages else None
    unsaid: dict[str, Any] = {"over_twice": over_twice(pairs)}
    if nothing is not None:
        seen = row_contexts(cfg, (nothing, nothing))
        unsaid |= written_on_nothing(model, nothing, options, dtype=dtype, contexts=seen)
    metrics = {
        **scores,
        "hallucination": unsaid,
        **measured_ratios(decoded.gates, decoded.decoder_gates),
        "gflops": with_contexts(
            measured_gflops(model, decoded.gates, decoded.decoder_gates, heard),
            cfg,
            lengths,
        ),
        "seconds": {k: round(v, 3) for k, v in seconds.items()},
        "decode": {
            **settings,
            "normalizer": cfg.evaluate.normalizer,
            "precision": str(dtype).removeprefix("torch."),
        },
        "data": {
            "corpus": cfg.corpus.name,
            "split": split,
            "utterances": len(rows),
            "whole_split": len(rows) == len(whole),
            "audio_seconds": round(float(sum(rows.select_columns(["seconds"])["seconds"])), 1),
        },
        "window": {"length": model.window.length, "margin": model.window.margin},
        "backbone": {"name": backbone.name, "source": backbone.source},
        "name": cfg.name,
        "target": cfg.pruning.target if cfg.pruning.encoder or cfg.pruning.decoder else None,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "commit": commit(),
        "seed": cfg.seed,
        "asked": asked,
        "evaluation": {"tag": tag, **asdict(identity)},
    }
    save(run.path, metrics, lines, decoded.gates, decoded.decoder_gates)
    return metrics, {"run": run, "model": model, "decoded": decoded}
