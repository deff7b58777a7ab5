"""Puts the encoder's profile, as `localgp.bench` measured it, into docs/performance.md.

    python -m localgp.bench bench=encoder
    python scripts/encoder_profile.py

Replaces what stands between ``<!-- profile:begin -->`` and ``<!-- profile:end -->``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from localgp.analysis.benchmarks import COMMANDS, Benchmark, read_benchmarks
from localgp.analysis.markdown import replace_between_markers
from localgp.analysis.tables import Table
from localgp.errors import ConfigError, LocalGPError

SECTION = "profile"
INSIDE = "depthwise"  # a part of other parts
HEADER = [
    "part",
    "ms",
    "ESPnet, ms",
    "time / ESPnet",
    "share of our time",
    "share of the FLOPs",
    "product rate",
]


def profile_section(encoder: Benchmark | None) -> str:
    """Markdown: a table for each backbone and type that was profiled."""
    rows = [row for row in encoder.rows if row.get("measure") == "profile"] if encoder else []
    if encoder is None or not rows:
        return (
            f"Not measured yet: `{COMMANDS['encoder']}` measures it, and `python scripts/encoder_profile.py` fills "
            "it in."
        )
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
    return Table(HEADER, [_cells(row) for row in (*whole, encoder, *inside)])


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        row["part"],
        f"{1e3 * row['seconds']:.1f}",
        f"{1e3 * row['against_seconds']:.1f}",
        f"{row['time_ratio_vs_espnet']:.2f}",
        f"{row['time_share']:.1%}",
        f"{row['flop_share']:.1%}",
        f"{row['of_product_rate']:.2f}",
    ]


def fill(exp_dir: Path, document: Path) -> None:
    """Replaces the section of a document.

    Raises:
        ConfigError: The document is not there or lacks the markers, or the benchmark's file is not one.
    """
    marker = f"<!-- {SECTION}:begin -->"
    if not document.is_file() or marker not in document.read_text(encoding="utf-8"):
        raise ConfigError(
            f"{document} has no line {marker}; name a file that has, such as docs/performance.md"
        )
    section = profile_section(read_benchmarks(exp_dir).get("encoder"))
    replace_between_markers(document, {SECTION: section})


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--exp-dir", type=Path, default=Path("exp"), help="where bench/encoder.json is")
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
