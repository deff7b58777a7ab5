"""Decode and score a trained run."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from localgp.errors import CheckpointError
from localgp.run import Run, commit, write_atomically
from localgp.stored import read_metrics
from localgp.weights import load_state


def load_weights(model: Any, path: Path) -> None:
    """Raises:
    CheckpointError: If the file is missing, damaged or of another model.
    """
    load_state(
        model,
        path,
        remedy="Use the conf, backbone and pruning options it was trained with (config.yaml of its run), restore it, "
        "or train again.",
    )


def weights_of(run: Run) -> Path:
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


def evaluate(cfg: DictConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Decodes all tasks of ``cfg.evaluate.split`` and writes hypotheses, gates and metrics.json.

    Returns:
        The metrics as written, and the objects ``run``, ``model``, ``decoded``; the last two are None where the run
        had been evaluated before, from the same weights with the same options, and nothing was done. With several
        processes, the first one's; the others return no metrics.
    """
    import torch

    from localgp.build import build_model
    from localgp.contexts.cost import with_contexts
    from localgp.contexts.extract import row_contexts
    from localgp.corpora.fits import check_fits, split_of
    from localgp.corpora.prepared import limit_per_language, load_prepared
    from localgp.evaluation.decode import decode_rows
    from localgp.evaluation.decoder_gates_file import write_decoder_gates
    from localgp.evaluation.gates_file import write_gates
    from localgp.evaluation.measured import kept_ratios, measured_gflops
    from localgp.evaluation.score import references_of, score_tasks
    from localgp.evaluation.share import merge_decoded, share_of
    from localgp.precision import resolve_device, resolve_precision
    from localgp.search.options import DecodeOptions
    from localgp.training.data import list_tasks
    from localgp.training.world import connect, first_then_others, gather_to_first, world_from

    run = Run(cfg)
    weights = weights_of(run)
    asked = {
        "decode": OmegaConf.to_container(cfg.decode, resolve=True),
        "split": cfg.evaluate.split,
        "limit": cfg.evaluate.limit,
        "normalizer": cfg.evaluate.normalizer,
        "checkpoint": cfg.evaluate.checkpoint,
    }
    done = None if cfg.evaluate.force else evaluated(run, weights, asked)
    if done is not None:
        if world_from(os.environ).is_first:
            print(f"{run.path} is evaluated; evaluate.force=true decodes it again")
            return done, {"run": run, "model": None, "decoded": None}
        return {}, {"run": run, "model": None, "decoded": None}
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    device = resolve_device(cfg.device)
    world = world_from(os.environ)  # several processes share the work; the first one scores and writes
    connect(world, device.type)
    splits = first_then_others(world, lambda: load_prepared(cfg))
    split = cfg.evaluate.split
    whole = split_of(splits, split)
    model, backbone = build_model(cfg)
    load_weights(model, weights)
    dtype = resolve_precision(cfg.decode.precision, device)
    model.to(device).eval()

    rows = limit_per_language(whole, cfg.evaluate.limit)
    check_fits(rows, backbone)
    tasks = list_tasks(rows)
    contexts = first_then_others(world, lambda: row_contexts(cfg, (rows, whole)))
    settings: dict[str, Any] = dict(OmegaConf.to_container(cfg.decode, resolve=True))  # type: ignore[arg-type]
    options = DecodeOptions(**{k: v for k, v in settings.items() if k not in ("batch", "precision")})
    began = time.perf_counter()
    decoded = decode_rows(
        model,
        backbone,
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
    pairs = {}
    for task, texts in decoded.text.items():
        ids = sorted(texts)
        pairs[task] = ([references[task][i] for i in ids], [texts[i] for i in ids])
        source, _, target = task.partition("-")
        lines = "".join(f"{i} {texts[i]}\n" for i in ids)
        write_atomically(run.path / "hyp" / f"{split}.{source}-{target or source}.txt", lines)
    if decoded.gates is not None:
        write_gates(run.path / "gates" / f"{split}.npz", decoded.gates)
    if decoded.decoder_gates is not None:
        write_decoder_gates(run.path / "gates" / f"{split}.decoder.npz", decoded.decoder_gates)
    lengths = [
        round(seconds * backbone.sample_rate) for seconds in rows.select_columns(["seconds"])["seconds"]
    ]
    scores = score_tasks(pairs, cfg.evaluate.normalizer)
    metrics = {
        **scores,
        **kept_ratios(decoded.gates, decoded.decoder_gates),
        "gflops": with_contexts(
            measured_gflops(
                model, backbone, decoded.gates, decoded.decoder_gates, lengths if model.trim else None
            ),
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
        "backbone": {"name": backbone.name, "source": backbone.source},
        "name": cfg.name,
        "target": cfg.pruning.target if cfg.pruning.encoder or cfg.pruning.decoder else None,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "commit": commit(),
        "seed": cfg.seed,
        "asked": asked,
    }
    run.write_metrics(metrics)
    return metrics, {"run": run, "model": model, "decoded": decoded}


def evaluated(run: Run, weights: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
    """The run's metrics, if they were made from these weights with these options; else None."""
    path = run.path / "metrics.json"
    try:
        metrics = read_metrics(path)
        fresh = path.stat().st_mtime >= weights.stat().st_mtime
    except (OSError, CheckpointError):  # none, or a damaged one: it is made again
        return None
    same = _deciding(metrics.get("asked") or {}) == _deciding(asked)
    return metrics if fresh and same else None


def _deciding(asked: dict[str, Any]) -> dict[str, Any]:
    """Without how many utterances are decoded together, which changes nothing that is written."""
    decode = asked.get("decode")
    kept = {k: v for k, v in decode.items() if k != "batch"} if isinstance(decode, dict) else decode
    return {**asked, "decode": kept}
