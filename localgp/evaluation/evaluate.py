"""Decode and score a trained run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from localgp.errors import CheckpointError, ConfigError
from localgp.run import Run, commit, write_atomically


def load_weights(model: Any, path: Path) -> None:
    """Raises:
    CheckpointError: If the file is damaged or of another model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}); remove it and train again, or restore it"
        ) from error
    missing, unexpected = model.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise CheckpointError(
            f"{path} is of another model: {len(missing)} parameters are missing ({', '.join(missing[:3])}), "
            f"{len(unexpected)} are unknown ({', '.join(unexpected[:3])}). Use the conf, backbone and pruning options "
            "it was trained with (config.yaml beside it)."
        )


def evaluate(cfg: DictConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Decodes all tasks of ``cfg.evaluate.split`` and writes hypotheses, gates and metrics.json.

    Returns:
        The metrics as written, and the objects ``run``, ``model``, ``decoded``.
    """
    import torch

    from localgp.build import build_model
    from localgp.corpora.prepared import load_prepared
    from localgp.decoding.options import DecodeOptions
    from localgp.evaluation.decode import decode_rows
    from localgp.evaluation.gates_file import write_gates
    from localgp.evaluation.score import references_of, score_tasks
    from localgp.precision import resolve_device, resolve_precision
    from localgp.training.data import list_tasks
    from localgp.training.fit import limit_per_language

    run = Run(cfg)
    weights = Path(cfg.evaluate.checkpoint) if cfg.evaluate.checkpoint else run.require_weights()
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    splits = load_prepared(cfg)
    split = cfg.evaluate.split
    if split not in splits:
        raise ConfigError(f"evaluate.split is {split!r}; the prepared corpus has {', '.join(splits)}")
    model, backbone = build_model(cfg)
    load_weights(model, weights)
    device = resolve_device(cfg.device)
    dtype = resolve_precision(cfg.decode.precision, device)
    model.to(device).eval()

    rows = limit_per_language(splits[split], cfg.evaluate.limit)
    tasks = list_tasks(rows)
    settings: dict[str, Any] = dict(OmegaConf.to_container(cfg.decode, resolve=True))  # type: ignore[arg-type]
    options = DecodeOptions(**{k: v for k, v in settings.items() if k not in ("batch", "precision")})
    began = time.perf_counter()
    decoded = decode_rows(model, backbone, rows, tasks, options, batch=cfg.decode.batch, dtype=dtype)
    seconds = {**decoded.seconds, "total": time.perf_counter() - began}

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
    scores = score_tasks(pairs, cfg.evaluate.normalizer)
    metrics = {
        **scores,
        **kept_ratios(decoded.gates),
        "gflops": measured_gflops(model, backbone.train_config, backbone.padded_seconds, decoded.gates),
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
            "whole_split": len(rows) == len(splits[split]),
            "audio_seconds": round(float(sum(rows.select_columns(["seconds"])["seconds"])), 1),
        },
        "backbone": {"name": backbone.name, "source": backbone.source},
        "name": cfg.name,
        "target": cfg.pruning.target if cfg.pruning.encoder or cfg.pruning.decoder else None,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "commit": commit(),
        "seed": cfg.seed,
    }
    run.write_metrics(metrics)
    return metrics, {"run": run, "model": model, "decoded": decoded}


def kept_ratios(gates: Any) -> dict[str, Any]:
    """``kept`` and ``kept_real`` per module kind (share of all frames, and of those with signal), the same by
    layer, and the sparsity reached over all gated modules."""
    if gates is None:
        return {"kept": {}, "kept_real": {}, "kept_layers": {}, "sparsity": None}
    every_LM, real_LM = gates.kept()
    names = [f"encoder.{name}" for name in gates.modules]
    padding = ~gates.real_mask()[:, None, None, :]
    skipped = ~gates.open
    return {
        "kept": {name: round(float(every_LM[:, m].mean()), 4) for m, name in enumerate(names)},
        "kept_real": {name: round(float(real_LM[:, m].mean()), 4) for m, name in enumerate(names)},
        "kept_layers": {name: [round(float(v), 4) for v in every_LM[:, m]] for m, name in enumerate(names)},
        "sparsity": {
            "all_frames": round(1 - float(every_LM.mean()), 4),
            "real_frames": round(1 - float(real_LM.mean()), 4),
            "skipped_that_is_padding": round(float((skipped & padding).sum() / max(1, skipped.sum())), 4),
        },
    }


def measured_gflops(
    model: Any, train_config: dict[str, Any], padded_seconds: float, gates: Any
) -> dict[str, Any]:
    """Encoder GFLOPs, averaged over the utterances decoded, each with the frames it really ran on."""
    from localgp.evaluation.flops import CONVENTION, EncoderCost, feature_frames_of

    feature_frames = feature_frames_of(train_config, padded_seconds)
    cost = EncoderCost.of(model.espnet.encoder, feature_frames)
    dense = cost.encoder(feature_frames)
    gate_cost = cost.gates(model.policy)
    pruned = dense
    if gates is not None:
        kept_ULM = gates.open.sum(-1).astype(np.float64)
        pruned = float(
            np.mean(
                [
                    cost.encoder(
                        feature_frames, [dict(zip(gates.modules, layer, strict=True)) for layer in kept_LM]
                    )
                    for kept_LM in kept_ULM
                ]
            )
        )
    encoder = pruned + gate_cost
    return {
        "encoder": round(encoder / 1e9, 6),
        "gates": round(gate_cost / 1e9, 6),
        "dense": round(dense / 1e9, 6),
        "context": 0.0,
        "total": round(encoder / 1e9, 6),
        "convention": f"{CONVENTION}, {padded_seconds:g} s",
    }
