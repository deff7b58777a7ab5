"""What `python -m localgp.speechprune` prints: one report per question, each a table and one line of JSON."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from localgp.errors import ConfigError
from localgp.tables import Column, render

RATES = (0.2, 0.4, 0.6, 0.8)  # the paper's


def report(cfg: DictConfig) -> dict[str, Any]:
    """Runs the report that ``cfg.report`` names, prints it, and returns what its last line says."""
    reports: dict[str, Callable[[DictConfig], dict[str, Any]]] = {
        "accuracy": accuracy,
        "flops": flops,
        "prefill": prefill,
        "planted": planted,
    }
    if cfg.report not in reports:
        raise ConfigError(f"report is {cfg.report!r}; valid: {', '.join(reports)}")
    if cfg.threads:
        import torch

        torch.set_num_threads(cfg.threads)
    result = {"report": cfg.report, "model": cfg.model, **reports[cfg.report](cfg)}
    print(json.dumps(result, allow_nan=False))
    return result


def accuracy(cfg: DictConfig) -> dict[str, Any]:
    """SPIRAL by method and rate."""
    from localgp.speechprune import spiral_accuracy
    from localgp.speechprune.spiral import always_one_letter, shuffled

    pruners = _pruners(cfg)
    spiral_accuracy.check(cfg.answer, cfg.query)
    questions = _questions(cfg)
    if cfg.shuffle:
        questions = [shuffled(question, cfg.seed) for question in questions]
    speech = _speech(cfg)
    rows = spiral_accuracy.evaluate(
        speech,
        questions,
        pruners,
        answer=cfg.answer,
        query=cfg.query,
        batch=cfg.batch,
        progress=_progress("questions answered", len(questions)),
    )
    hard = [question for question in questions if question.hard]
    letters, letters_hard = always_one_letter(questions), always_one_letter(hard) if hard else None
    letter = max(letters, key=lambda name: letters[name])
    baseline = {
        "method": f"always {letter}",
        "accuracy": letters[letter],
        "accuracy_hard": letters_hard[letter] if letters_hard else None,
    }
    columns = [
        Column("method", "method", ">"),
        Column("rate", "rate"),
        Column("tokens", "kept_tokens", ".0f"),
        Column("accuracy", "accuracy", ".1%"),
        Column("hard", "accuracy_hard", ".1%"),
        Column("key kept", "key_recall", ".1%"),
        Column("all kept", "kept_share", ".1%"),
        Column("TFLOPs", "tflops", ".3g"),
        Column("+quadratic", "tflops_with_quadratic", ".3g"),
        Column("end to end", "tflops_end_to_end", ".3g"),
        Column("audio s", "seconds_audio", ".3f"),
        Column("prune s", "seconds_prune", ".3f"),
        Column("prefill s", "seconds_prefill", ".3f"),
        Column("peak MiB", "peak_mib", ".0f"),
    ]
    print(f"{len(questions)} questions, {len(hard)} of them hard; model {cfg.model}, answers by {cfg.answer}")
    print(render([baseline, *rows], columns))
    if cfg.model in ("tiny", "mid"):
        print(
            "The weights are random: accuracy is chance; report=planted trains a small model that can answer."
        )
    return {
        "questions": len(questions),
        "hard": len(hard),
        "shuffled": bool(cfg.shuffle),
        "answer": cfg.answer,
        "query": cfg.query,
        "positions": cfg.positions,
        "pruner": OmegaConf.to_container(cfg.pruner),
        "always_one_letter": {"all": letters, "hard": letters_hard},
        "convention": _convention(),
        "machine": _machine(cfg),
        "rows": rows,
    }


def flops(cfg: DictConfig) -> dict[str, Any]:
    """The paper's TFLOPs column from dimensions alone, and what it leaves out."""
    from localgp.speechprune.dimensions import (
        OTHER_TOKENS,
        PAPER_TFLOPS,
        QWEN2_AUDIO_7B,
        Dimensions,
        flops_row,
    )

    if cfg.model == "qwen2_audio_7b":
        dims = QWEN2_AUDIO_7B
    else:
        dims = Dimensions.of(_config(cfg.model))
    tokens = round(cfg.prefill.seconds * 25)
    rows = []
    for pruner in _pruners(cfg):
        audio = min(tokens, dims.audio.tokens) if pruner.untouched else tokens
        kept = audio if pruner.untouched else pruner.keep(audio)
        method = None if pruner.untouched else pruner.method
        cost = flops_row(dims, audio, kept, method=method, budget=pruner.budget)
        paper = (
            PAPER_TFLOPS.get(pruner.rate) if cfg.model == "qwen2_audio_7b" and pruner.budget == 750 else None
        )
        named = {
            "method": method or "original",
            "rate": pruner.rate,
            "audio_tokens": audio,
            "kept_tokens": kept,
        }
        rows.append({**named, "paper_tflops": paper, **cost})
    columns = [
        Column("method", "method", ">"),
        Column("rate", "rate"),
        Column("audio tokens", "kept_tokens"),
        Column("TFLOPs", "tflops", ".4g"),
        Column("paper", "paper_tflops", ".2f"),
        Column("+quadratic", "tflops_with_quadratic", ".4g"),
        Column("audio tower", "tflops_audio_tower", ".4g"),
        Column("pruner", "tflops_pruner", ".3g"),
        Column("end to end", "tflops_end_to_end", ".4g"),
        Column("KV cache MiB", "kv_cache_mib", ".0f"),
    ]
    print(
        f"{cfg.model}: prefill of the audio tokens and {OTHER_TOKENS} others; {cfg.prefill.seconds} s of audio, "
        f"of which the original hears 30 s; {_convention()}"
    )
    print(render(rows, columns))
    return {
        "other_tokens": OTHER_TOKENS,
        "seconds": cfg.prefill.seconds,
        "convention": _convention(),
        "rows": rows,
    }


def prefill(cfg: DictConfig) -> dict[str, Any]:
    """Time and memory against FLOPs, in one run."""
    from localgp.speechprune.prefill import measure

    rows = measure(_speech(cfg), _pruners(cfg), cfg.prefill.seconds, cfg.prefill.rounds)
    columns = [
        Column("method", "method", ">"),
        Column("rate", "rate"),
        Column("audio tokens", "kept_tokens"),
        Column("TFLOPs", "tflops_with_quadratic", ".4g"),
        Column("FLOP ratio", "flop_ratio", ".3f"),
        Column("time ratio", "time_ratio", ".3f"),
        Column("prefill s", "seconds_prefill", ".3f"),
        Column("peak MiB", "peak_mib", ".0f"),
        Column("audio s", "seconds_audio", ".3f"),
        Column("prune s", "seconds_prune", ".3f"),
        Column("end-to-end FLOPs", "end_to_end_flop_ratio", ".3f"),
        Column("time", "end_to_end_time_ratio", ".3f"),
    ]
    print(
        f"{cfg.model}, {cfg.precision}, {cfg.prefill.seconds} s of audio; ratios to the original, paired by round"
    )
    print(render(rows, columns))
    return {
        "seconds": cfg.prefill.seconds,
        "machine": _machine(cfg),
        "convention": _convention(),
        "rows": rows,
    }


def planted(cfg: DictConfig) -> dict[str, Any]:
    """A small model trained to retrieve: methods, positions and the choices the paper leaves open."""
    from localgp.speechprune.checkpoint import require_transformers
    from localgp.speechprune.planted import compare

    require_transformers()
    steps = cfg.planted.steps

    def log(step: int, loss: float) -> None:
        if step % 50 == 0 or step == steps:
            print(f"step {step}/{steps}  loss {loss:.3f}", file=sys.stderr, flush=True)

    rows = compare(_listed(cfg.method), _rates(cfg), steps, cfg.planted.trials, cfg.seed, log)
    columns = [
        Column("method", "method", ">"),
        Column("rate", "rate"),
        Column("positions", "positions"),
        Column("remainder", "remainder"),
        Column("scale", "scale"),
        Column("tokens", "kept_tokens", ".0f"),
        Column("accuracy", "accuracy", ".1%"),
        Column("key kept", "key_recall", ".1%"),
    ]
    print("A two-layer model trained to retrieve (chance 25 %), on audio three times as long as in training")
    print(render(rows, columns))
    return {"model": "planted", "steps": steps, "trials": cfg.planted.trials, "seed": cfg.seed, "rows": rows}


def _pruners(cfg: DictConfig) -> list[Any]:
    """The untouched model, then every method at every rate."""
    from localgp.speechprune.methods import Pruner

    common = {**cfg.pruner, "seed": cfg.seed}
    pruners = [
        Pruner(method=method, rate=rate, **common) for method in _listed(cfg.method) for rate in _rates(cfg)
    ]
    return [Pruner(rate=0.0, **common), *(pruner for pruner in pruners if not pruner.untouched)]


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, ListConfig) else [value]


def _rates(cfg: DictConfig) -> list[float]:
    rates = RATES if cfg.rate is None else _listed(cfg.rate)
    try:
        return [float(rate) for rate in rates]
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"rate is {cfg.rate!r}; valid: a number from 0 to below 1, or a list of them"
        ) from error


def _questions(cfg: DictConfig) -> Sequence[Any]:
    from localgp.speechprune import speak
    from localgp.speechprune.spiral import read

    kept = Path(cfg.data_dir) / "spiral"
    if cfg.limit is not None and cfg.limit < 1:
        raise ConfigError(f"limit is {cfg.limit}; valid: null for all questions, or a number above 0")
    if cfg.spiral is None:
        return speak.embedded(kept / "embedded")[: cfg.limit]
    root = Path(cfg.spiral)
    if cfg.speak:
        progress = _progress("transcripts spoken", cfg.limit)
        return speak.spoken(root, kept / f"{root.resolve().name}-spoken", cfg.limit, progress)
    return read(root)[: cfg.limit]


def _speech(cfg: DictConfig) -> Any:
    from localgp.precision import resolve_device, resolve_precision
    from localgp.speechprune.checkpoint import load
    from localgp.speechprune.qwen2_audio import SpeechPrune

    device = resolve_device(cfg.device)
    model, processor = load(cfg.model, device, resolve_precision(cfg.precision, device), cfg.seed)
    return SpeechPrune(model, processor, positions=cfg.positions, chat=cfg.chat)


def _config(name: str) -> Any:
    from localgp.speechprune.checkpoint import load_config

    return load_config(name)


def _progress(what: str, total: int | None) -> Callable[[int], None]:
    """A line on standard error every 50, so that standard output stays the table."""

    def show(done: int) -> None:
        if done % 50 == 0 or (done == total and done > 50):
            print(f"{done}{f'/{total}' if total else ''} {what}", file=sys.stderr, flush=True)

    return show


def _convention() -> str:
    from localgp.speechprune.dimensions import CONVENTION

    return (
        f"{CONVENTION}, linear and output layers as in the paper; the quadratic term counts the full matrix"
    )


def _machine(cfg: DictConfig) -> dict[str, Any]:
    import torch

    from localgp.precision import resolve_device

    device = resolve_device(cfg.device)
    name = (
        torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    )
    return {
        "device": device.type,
        "name": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
