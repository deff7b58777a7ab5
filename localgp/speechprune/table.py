"""Rows of results as a table for people, on standard output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def render(rows: Sequence[dict[str, Any]], columns: dict[str, str]) -> str:
    """Aligned text.

    Args:
        rows: Results.
        columns: Key in a row to ``heading:format``; the format is Python's (``.1%``), without one the value is
            printed as it is. A value that is missing or None is a dash.

    Examples:
        >>> print(render([{"n": 3, "share": 0.25}], {"n": "tokens", "share": "kept:.1%"}))
        tokens   kept
             3  25.0%
    """
    parts = [spec.partition(":") for spec in columns.values()]
    lines = [[heading for heading, _, _ in parts]]
    for row in rows:
        values = [row.get(key) for key in columns]
        lines.append(
            ["-" if v is None else format(v, spec) for v, (_, _, spec) in zip(values, parts, strict=True)]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(parts))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
    )
