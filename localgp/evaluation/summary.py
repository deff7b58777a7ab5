"""An evaluation in words, and several in a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from localgp.search.options import DecodeOptions
from localgp.tables import Column, in_percent, render


def part_of(metrics: Mapping[str, Any]) -> str:
    """Which utterances were scored: ``test set, whole, 45 utterances``."""
    data, limit = metrics["data"], (metrics.get("asked") or {}).get("limit")
    part = f"first {limit} per language" if limit else "a part"
    return f"{data['split']} set, {'whole' if data['whole_split'] else part}, {data['utterances']} utterances"


def describe_evaluation(metrics: Mapping[str, Any]) -> str:
    """What was scored and how: the utterances, the decoding, the text's normalisation, the weights."""
    plain = asdict(DecodeOptions())
    decode = {k: v for k, v in metrics["decode"].items() if k not in ("batch", "normalizer", "precision")}
    said = [f"{k} {v}" for k, v in decode.items() if k == "beam" or v != plain.get(k)]
    said += [str(metrics["decode"][k]) for k in ("precision",) if k in metrics["decode"]]
    said.append(f"normalizer {metrics['decode'].get('normalizer', 'none')}")
    checkpoint = (metrics.get("asked") or {}).get("checkpoint")
    if checkpoint:
        said.append(f"weights {checkpoint}")
    return f"{metrics['data']['corpus']}: {part_of(metrics)}; {', '.join(said)}"


def varying(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The decode options in which evaluations differ."""
    names = dict.fromkeys(name for m in runs for name in m["decode"] if name != "batch")
    return [name for name in names if len({str(m["decode"].get(name)) for m in runs}) > 1]


def scores_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """One line per metrics.json: the decode options that vary, WER and BLEU by task and averaged, shares skipped,
    GFLOPs of the encoder and of its contexts."""
    tasks = sorted({t for m in runs for t in m["wer"] if t != "average"})
    pairs = sorted({t for m in runs for t in m["bleu"] if t != "average"})

    columns = [
        Column("run", "name"),
        *(Column(name, ("decode", name), str) for name in varying(runs)),
        *(Column(f"WER {task}", ("wer", task), ".1f") for task in tasks),
        Column("WER", ("wer", "average"), ".1f"),
        *(Column(f"BLEU {pair}", ("bleu", pair), ".1f") for pair in pairs),
        Column("BLEU", ("bleu", "average"), ".1f"),
    ]
    for heading, name in _SKIPPED.items():
        if any((m.get("sparsity") or {}).get(name) is not None for m in runs):
            columns.append(Column(heading, ("sparsity", name), in_percent(1)))
    columns.append(Column("encoder GFLOPs", ("gflops", "encoder"), ".3f"))
    if any(m["gflops"].get("context") for m in runs):
        columns.append(Column("contexts' GFLOPs", lambda m: m["gflops"].get("context") or 0.0, ".3f"))
    return str(render(runs, columns))


_SKIPPED = {
    "frames skipped, %": "all_frames",
    "of frames with signal, %": "real_frames",
    "tokens skipped, %": "decoder_tokens",
}
