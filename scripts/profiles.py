"""Puts the profiles of encoder and decoder, as `localgp.bench` measured them, into docs/performance.md.

    python -m localgp.bench bench=encoder
    python -m localgp.bench bench=decoder
    python scripts/profiles.py

Replaces what stands between ``<!-- encoder-profile:begin -->`` and ``<!-- encoder-profile:end -->``, and likewise
``decoder-profile``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from localgp.errors import ConfigError, LocalGPError
from localgp.report.markdown import replace_between_markers
from localgp.report.speed import COMMANDS, Benchmark, read_benchmarks
from localgp.tables import Column, Table, render

INSIDE = "depthwise"  # a part of other parts
_STEP_PART = Column("part", lambda row: row["part"].replace("_", " "))
_MS = Column("ms", lambda row: 1e3 * row["seconds"], ".1f")
ENCODER = [
    Column("part", "part"),
    _MS,
    Column("ESPnet, ms", lambda row: 1e3 * row["against_seconds"], ".1f"),
    Column("time / ESPnet", "time_ratio_vs_espnet", ".2f"),
    Column("share of our time", "time_share", ".1%"),
    Column("share of the FLOPs", "flop_share", ".1%"),
    Column("product rate", "of_product_rate", ".2f"),
]
STEP = [
    _STEP_PART,
    _MS,
    Column("share of the time", "time_share", ".1%"),
    Column("share of the FLOPs", "flop_share", ".1%"),
    Column("product rate", "of_product_rate", ".2f"),
    Column("memory rate", "of_memory_rate", ".2f"),
    Column("gated, ms", lambda row: 1e3 * row["gated_seconds"], ".1f"),
    Column(
        "gated / dense", lambda row: row["gated_seconds"] / row["seconds"] if row["seconds"] else None, ".2f"
    ),
]


def encoder_section(encoder: Benchmark | None) -> str:
    """Markdown: a table for each backbone and type that was profiled."""
    rows = [row for row in encoder.rows if row.get("measure") == "profile"] if encoder else []
    if encoder is None or not rows:
        return f"Not measured yet: `{COMMANDS['encoder']}` measures it, and `python scripts/profiles.py` fills it in."
    parts = [f"`{encoder.command}` on {encoder.machine}; commit {encoder.commit[:12]}."]
    for backbone, dtype in dict.fromkeys((row["backbone"], row["dtype"]) for row in rows):
        own = [row for row in rows if (row["backbone"], row["dtype"]) == (backbone, dtype)]
        parts += [
            f"**{backbone}, {dtype}**, {own[0]['padded_to']:g} s of audio",
            profile_table(own).markdown(),
        ]
    return "\n\n".join(parts)


def profile_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Parts of one encoder, all of them together, and what lies inside of two of them."""
    whole = [row for row in rows if row["part"] != INSIDE]
    total = {name: sum(row[name] for row in whole) for name in ("seconds", "against_seconds")}
    at_rate = sum(row["of_product_rate"] * row["seconds"] for row in whole)
    encoder: dict[str, Any] = {
        **total,
        "part": "all",
        "time_ratio_vs_espnet": total["seconds"] / total["against_seconds"],
        "time_share": 1.0,
        "flop_share": 1.0,
        "of_product_rate": at_rate / total["seconds"],
    }
    inside = [{**row, "part": f"of these: {INSIDE}"} for row in rows if row["part"] == INSIDE]
    return render([*whole, encoder, *inside], ENCODER)


def decoder_section(decoder: Benchmark | None) -> str:
    """Markdown: a table for each backbone, type and batch whose step was profiled."""
    rows = [row for row in decoder.rows if row.get("measure") == "profile"] if decoder else []
    if decoder is None or not rows:
        return f"Not measured yet: `{COMMANDS['decoder']}` measures it, and `python scripts/profiles.py` fills it in."
    parts = [f"`{decoder.command}` on {decoder.machine}; commit {decoder.commit[:12]}."]
    for setting in dict.fromkeys(map(_setting, rows)):
        own = [row for row in rows if _setting(row) == setting]
        backbone, dtype, utterances = setting
        first = own[0]
        parts += [
            f"**{backbone}, {dtype}**, {utterances} utterance{'s' if utterances > 1 else ''} x beam {first['beam']}, "
            f"{first['frames']} encoder frames; gated: {first['skipped']:.0%} of the modules skipped, decided per "
            f"{first['decided_per']}",
            step_table(own).markdown(),
        ]
    return "\n\n".join(parts)


def _setting(row: Mapping[str, Any]) -> tuple[str, str, int]:
    return row["backbone"], row["dtype"], row["utterances"]


def step_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Parts of one step, and all of them together."""
    both = {name: sum(row[name] for row in rows) for name in ("seconds", "gated_seconds")}
    whole = {"part": "all", "time_share": 1.0, "flop_share": 1.0, **both}
    return render([*rows, whole], STEP)


def fill(exp_dir: Path, document: Path) -> None:
    """Replaces both sections of a document.

    Raises:
        ConfigError: The document is not there or lacks a marker, or a benchmark's file is not one.
    """
    found = read_benchmarks(exp_dir)
    sections = {
        "encoder-profile": encoder_section(found.get("encoder")),
        "decoder-profile": decoder_section(found.get("decoder")),
    }
    text = document.read_text(encoding="utf-8") if document.is_file() else ""
    for name in sections:
        marker = f"<!-- {name}:begin -->"
        if marker not in text:
            raise ConfigError(
                f"{document} has no line {marker}; name a file that has, such as docs/performance.md"
            )
    replace_between_markers(document, sections)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--exp-dir", type=Path, default=Path("exp"), help="where bench/*.json are")
    parser.add_argument("--document", type=Path, default=Path("docs/performance.md"))
    given = parser.parse_args(argv)
    try:
        fill(given.exp_dir, given.document)
    except LocalGPError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"written: {given.document}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
