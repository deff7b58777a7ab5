"""``python -m localgp.bench bench=encoder|decoder|training``: speed paired in one run against ESPnet and our own
dense path.

Prints a table and, for every promised speed that was measured, whether it is met; writes
``<exp_dir>/bench/<name>.json``; the last line is that file's content in one line: ``{"bench": ..., "machine": ...,
"commit": ..., "rows": [...], "goals": [...]}``.
"""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from localgp.cli import entry_point


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8").splitlines()
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        name = models[0] if models else name
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": gpu,
        "torch": torch.__version__,
    }


def decoder(cfg: DictConfig) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    from localgp.backbone.owsm import load_backbone
    from localgp.evaluation.timing_decoder import bench_decoder
    from localgp.evaluation.timing_goals import decoder_goals

    rows = []
    for name in cfg.bench.backbones:
        backbone = load_backbone(_random_backbone(name))
        tokenizer = backbone.tokenizer
        rows += bench_decoder(
            backbone.model,
            backbone=name,
            notimestamps=tokenizer.notimestamps,
            first_time=tokenizer.first_time,
            last_time=tokenizer.last_time,
            utterances=list(cfg.bench.utterances),
            beam=cfg.bench.beam,
            steps=cfg.bench.steps,
            ctc_weights=list(cfg.bench.ctc_weights),
            skipped=list(cfg.bench.skipped),
            dtypes=list(cfg.bench.dtypes),
        )
    return rows, decoder_goals(rows)


def encoder(cfg: DictConfig) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    from localgp.evaluation.timing_encoder import EncoderBench
    from localgp.evaluation.timing_goals import encoder_goals

    wanted, device, rows = cfg.bench, _device(cfg), []
    _check_choices(wanted)
    for name in wanted.backbones:
        bench = EncoderBench(
            _random_encoder(name).to(device),
            backbone=name,
            seconds=wanted.seconds,
            repeats=wanted.repeats,
            espnet_repeats=wanted.espnet_repeats,
            progress=_progress,
        )
        for dtype in wanted.dtypes:
            for batch in wanted.batches:
                if "dense" in wanted.measures and batch in wanted.espnet_batches:
                    bench.dense(dtype, batch)
                if "padded" in wanted.measures and batch in wanted.espnet_batches:
                    bench.dense(dtype, batch, wanted.speech_seconds)
                if "pruned" in wanted.measures:
                    for share in wanted.skipped:
                        bench.pruned(dtype, batch, share)
                if "gates" in wanted.measures:
                    bench.gates(dtype, batch)
            if "ragged" in wanted.measures:
                bench.ragged(dtype, list(wanted.ragged))
            if "profile" in wanted.measures and device.type == "cpu":
                bench.profile(dtype)
        rows += bench.rows
    if wanted.run is not None:
        rows.append(_learnt(cfg, device))
        _progress(f"learnt {rows[-1]['backbone']}: {rows[-1]['time_ratio_vs_dense']} of dense")
    return rows, encoder_goals(rows)


def training(cfg: DictConfig) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    from localgp.evaluation.timing_goals import training_goals
    from localgp.evaluation.timing_training import bench_training
    from localgp.model import use_fast_kernels

    rows = []
    for name in cfg.bench.backbones:
        model = _random_encoder(name).to(_device(cfg))
        use_fast_kernels(model)  # as in training
        rows += bench_training(
            model,
            backbone=name,
            seconds=cfg.bench.seconds,
            batches=tuple(cfg.bench.batches),
            skipped=tuple(cfg.bench.skipped),
            repeats=cfg.bench.repeats,
            progress=_progress,
        )
    return rows, training_goals(rows)


def runs(cfg: DictConfig) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The evaluated runs of the configured corpus and backbone, the first seed of each."""
    import numpy as np
    from omegaconf import OmegaConf

    from localgp.contexts.extract import build_extractor, needed_contexts, row_contexts
    from localgp.corpora.prepared import load_prepared
    from localgp.decoding.options import DecodeOptions
    from localgp.errors import ConfigError
    from localgp.evaluation.timing_runs import TrainedRun, bench_runs
    from localgp.evaluation.trained import first_seeds, load_trained, trained_config

    wanted, device = cfg.bench, _device(cfg)
    for key in ("utterances", "batch", "repeats", "decoder_repeats"):
        if not isinstance(wanted[key], int) or wanted[key] < 1:
            raise ConfigError(f"bench.{key} is {wanted[key]!r}; valid: a whole number from 1")
    chosen = first_seeds(cfg, _progress)
    whole = load_prepared(cfg)[cfg.evaluate.split]
    count = min(wanted.utterances, len(whole))
    rows = whole.select(np.unique(np.linspace(0, len(whole) - 1, count).round().astype(int)))
    extractors: dict[str, Any] = {}
    loaded = []
    for run, weights in chosen:
        trained = trained_config(run.path, weights, cfg)
        model, backbone = load_trained(trained, weights, device)
        sources = {name: f"{name} {trained.contexts[name].source}" for name in needed_contexts(trained)}
        for name, key in sources.items():
            if key not in extractors:
                extractors[key] = build_extractor(name, trained, device)
        contexts = row_contexts(trained, (rows, whole))
        loaded.append(TrainedRun(run.name, run.seed, model, backbone, contexts, tuple(sources.values())))
    settings: dict[str, Any] = dict(OmegaConf.to_container(cfg.decode, resolve=True))  # type: ignore[arg-type]
    return bench_runs(
        loaded,
        rows,
        DecodeOptions(**{k: v for k, v in settings.items() if k not in ("batch", "precision")}),
        corpus=cfg.corpus.name,
        extractors=extractors,
        batch=wanted.batch,
        repeats=wanted.repeats,
        decoder_repeats=wanted.decoder_repeats,
        progress=_progress,
    ), []


BENCHES = {"encoder": encoder, "decoder": decoder, "training": training, "runs": runs}


def _check_choices(wanted: DictConfig) -> None:
    from localgp.errors import ConfigError
    from localgp.evaluation.timing_encoder import DTYPES, MEASURES

    for key, valid in (("measures", MEASURES), ("dtypes", tuple(DTYPES))):
        unknown = [name for name in wanted[key] if name not in valid]
        if unknown:
            raise ConfigError(f"bench.{key} has {', '.join(map(str, unknown))}; valid: {', '.join(valid)}")


def _device(cfg: DictConfig) -> Any:
    from localgp.precision import resolve_device

    return resolve_device(cfg.device)


def _random_backbone(name: str) -> dict[str, str]:
    """A published shape with random weights; the path `embedded` would give the mini backbone under any name."""
    from localgp.backbone.dimensions import DIMENSIONS
    from localgp.errors import ConfigError

    if name not in DIMENSIONS:
        raise ConfigError(f"bench.backbones has {name!r}; valid: {', '.join(DIMENSIONS)}")
    return {"name": name, "path": "embedded" if name == "mini" else f"espnet/{name}", "weights": "random"}


def _random_encoder(name: str) -> Any:
    import torch

    from localgp.backbone.owsm import build_encoder, read_train_config

    torch.manual_seed(0)
    return build_encoder(read_train_config(_random_backbone(name)))


def _learnt(cfg: DictConfig, device: Any) -> dict[str, Any]:
    """A trained run's gates on the first utterances of its test set."""
    import torch

    from localgp.contexts.extract import row_contexts
    from localgp.corpora.prepared import load_prepared
    from localgp.errors import ConfigError
    from localgp.evaluation.timing_encoder import bench_learnt
    from localgp.evaluation.trained import (
        batch_contexts,
        load_trained,
        padded_speech,
        trained_config,
        weights_of,
    )

    directory = Path(cfg.bench.run)
    weights = weights_of(directory)
    trained = trained_config(directory, weights, cfg)
    model, backbone = load_trained(trained, weights, device)
    if model.policy is None:
        raise ConfigError(f"bench.run: {directory} is a dense model; give a run with gates")
    rows = load_prepared(trained)["test"]
    contexts = row_contexts(trained, (rows, rows))
    samples = round(backbone.padded_seconds * backbone.sample_rate)
    batches, said = [], []
    for begin in range(0, min(cfg.bench.run_utterances, len(rows)), cfg.bench.run_batch):
        items = [rows[i] for i in range(begin, min(begin + cfg.bench.run_batch, len(rows)))]
        speech_BN, ends_B = padded_speech(items, samples)
        said += [round(end / backbone.sample_rate, 3) for end in ends_B.tolist()]
        lengths_B = torch.full((len(items),), samples, device=device)
        batches.append((speech_BN.to(device), lengths_B, batch_contexts(contexts, items, samples, device)))
    return bench_learnt(
        model,
        batches,
        backbone=backbone.name,
        name=str(trained.name),
        seconds=backbone.padded_seconds,
        seconds_of_audio=said,
        repeats=cfg.bench.repeats,
    )


def main(cfg: DictConfig) -> None:
    import torch

    from localgp.errors import ConfigError
    from localgp.evaluation.table import format_table
    from localgp.run import commit, write_atomically

    name = cfg.bench.name
    if name not in BENCHES:
        raise ConfigError(f"bench is {name!r}; valid: {', '.join(BENCHES)}")
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    rows, goals = BENCHES[name](cfg)
    header = list(dict.fromkeys(key for row in rows for key in row))
    print(format_table(header, [[_cell(row.get(key)) for key in header] for row in rows]))
    for goal in goals:
        verdict = "met" if goal["met"] else "NOT MET"
        print(f"{verdict:8}{goal['goal']}: {goal['value']} {goal['sense']} {goal['limit']}")
    result = {"bench": name, "machine": machine(), "commit": commit(), "rows": rows, "goals": goals}
    # Learnt gates stand beside the file of random ones, not over it.
    stored = f"{name}_learnt" if cfg.bench.get("run") else name
    path = Path(cfg.exp_dir) / "bench" / f"{stored}.json"
    write_atomically(path, json.dumps(result, indent=1) + "\n")
    print(f"written: {path}")
    print(json.dumps(result))


def _progress(line: str) -> None:
    print(line, flush=True)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(map(_cell, value[:4])) + (", ..." if len(value) > 4 else "")
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    entry_point(main)()
