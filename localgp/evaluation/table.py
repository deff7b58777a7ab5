"""A plain table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned, first one to the left, the others to the right.

    Example:
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


def scores_table(runs: Sequence[dict]) -> str:
    """One line per metrics.json: WER and BLEU averages, kept ratios, GFLOPs of the encoder and of its contexts."""
    tasks = sorted({t for m in runs for t in m["wer"] if t != "average"})
    pairs = sorted({t for m in runs for t in m["bleu"] if t != "average"})
    header = [
        "run",
        *(f"WER {t}" for t in tasks),
        "WER",
        *(f"{t}" for t in pairs),
        "BLEU",
        "skipped",
        "of real",
        "of tokens",
        "GFLOPs",
        "contexts",
    ]
    rows = []
    for m in runs:
        cells = [_score(m["wer"].get(t)) for t in [*tasks, "average"]]
        cells += [_score(m["bleu"].get(t)) for t in [*pairs, "average"]]
        sparsity = m.get("sparsity") or {}
        cells += [percent(sparsity.get("all_frames")), percent(sparsity.get("real_frames"))]
        cells.append(percent(sparsity.get("decoder_tokens")))
        gflops = m["gflops"]
        rows.append([m["name"], *cells, f"{gflops['encoder']:.3f}", f"{gflops.get('context') or 0:.3f}"])
    return format_table(header, rows)
