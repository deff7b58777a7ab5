"""A plain table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from localgp.search.options import DecodeOptions


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned, first one to the left, the others to the right.

    Examples:
        >>> print(format_table(["run", "WER"], [["row01", "9.1"]]))
        run    WER
        row01  9.1
    """
    widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [
            str(c).ljust(w) if i == 0 else str(c).rjust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


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
    columns: dict[str, list[str]] = {"run": [str(m["name"]) for m in runs]}
    columns |= {name: [str(m["decode"].get(name, "-")) for m in runs] for name in varying(runs)}
    columns |= {f"WER {task}": [_score(m["wer"].get(task)) for m in runs] for task in tasks}
    columns["WER"] = [_score(m["wer"].get("average")) for m in runs]
    columns |= {f"BLEU {pair}": [_score(m["bleu"].get(pair)) for m in runs] for pair in pairs}
    columns["BLEU"] = [_score(m["bleu"].get("average")) for m in runs]
    for title, name in _SKIPPED.items():
        shares = [(m.get("sparsity") or {}).get(name) for m in runs]
        if any(share is not None for share in shares):
            columns[title] = ["-" if share is None else f"{100 * share:.1f}" for share in shares]
    columns["encoder GFLOPs"] = [f"{m['gflops']['encoder']:.3f}" for m in runs]
    if any(m["gflops"].get("context") for m in runs):
        columns["contexts' GFLOPs"] = [f"{m['gflops'].get('context') or 0:.3f}" for m in runs]
    return format_table(list(columns), list(zip(*columns.values(), strict=True)))


_SKIPPED = {
    "frames skipped, %": "all_frames",
    "of frames with signal, %": "real_frames",
    "tokens skipped, %": "decoder_tokens",
}
