"""What `scripts/gpu_check.py` found on a card, as a section of RESULTS.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from localgp.errors import ConfigError
from localgp.report.tables import Table

TITLE = "On a GPU"
NOT_MEASURED = (
    "Not measured yet: `make gpu` on a machine with a card does, and then `python -m localgp.report "
    "report.gpu=gpu_check.json`."
)
LIBRARIES = ("espnet", "transformers")  # the names of runs that are not ours
_TIMED = {
    "encode": "Encodes of full windows",
    "graph": "The same as CUDA graphs",
    "search": "A beam search of 40 tokens, and with its steps as CUDA graphs",
    "training": "Training steps of the encoder (forward, backward, fused AdamW)",
}
_COUNTED = {"launches": "launches", "waits": "waits of the host", "copies": "copies"}

Row = Mapping[str, Any]


def gpu_section(path: Path) -> str:
    """Markdown of a report that ``make gpu`` wrote: on what, what passed and what did not, times and counts.

    Raises:
        ConfigError: Another file, or none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        parts: list[dict[str, Any]] = list(found["parts"])
        rows = [row for part in parts for row in part["rows"]]
        texts = [_about(found, parts), *_tables([row for row in rows if "measure" in row])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"report.gpu={path} is not what `make gpu` writes ({type(error).__name__}: {error}); valid: its "
            "gpu_check.json, or null"
        ) from error
    return "\n\n".join(texts)


def _about(found: Row, parts: Sequence[Row]) -> str:
    ran = [part for part in parts if part["status"] != "skipped"]
    passed = [part for part in ran if part["status"] == "passed"]
    where = found["card"] or "a machine without a card, so that nothing is timed here"
    said = [
        f"`make gpu` on {where}; PyTorch {found['torch']}, Python {found['python']}, commit "
        f"{str(found['commit'])[:12]}. Weights and inputs are random, in bf16: times say nothing of quality.",
        f"Parts passed: {len(passed)} of {len(ran)}.",
    ]
    for part in ran:
        if part["status"] != "passed":
            wrong = [_checked(row) for row in part["rows"] if row.get("ok") is False]
            error = str(part.get("error", "")).strip().splitlines()[-1:]
            said.append(f"{part['part']} {part['status']}: {'; '.join([*wrong, *error]) or 'no time left'}.")
    return " ".join(said)


def _checked(row: Row) -> str:
    if "limit" not in row:
        return str(row["check"])
    return f"{row['check']} is {row['value']}, at most {row['limit']}"


def _tables(rows: Sequence[Row]) -> list[str]:
    texts = []
    for measure, title in _TIMED.items():
        cells = [
            [*_named(row), _milliseconds(row["wall_ms"]), *_ratios(row, rows), *_counts(row)]
            for row in rows
            if row["measure"] == measure
        ]
        if cells:
            header = ["model", "batch", "run", "ms", "time / dense", "time / library", "kernels, ms"]
            table = Table([*header, *_COUNTED.values(), "peak MiB"], cells)
            texts += [f"**{title}**", table.markdown()]
    searches = [row for row in rows if row["measure"] == "decode"]
    if searches:
        cells = [
            [
                *_named(row),
                "-" if not row.get("skipped") else f"{100 * row['skipped']:.0f} %",
                str(row.get("decided_per") or "-"),
                _ratio(row.get("speedup_vs_espnet")),
                _ratio(row.get("step_time_ratio_vs_dense")),
            ]
            for row in searches
        ]
        header = [
            "model",
            "utterances",
            "run",
            "skipped",
            "decided per",
            "speed / ESPnet",
            "step time / dense",
        ]
        texts += ["**Beam search of 5**", Table(header, cells).markdown()]
    steps = [row for row in rows if row["measure"] == "step"]
    if steps:
        cells = [
            [*_named(row), _milliseconds(row["kernel_ms"]), *(str(row[key]) for key in _COUNTED)]
            for row in steps
        ]
        header = ["model", "utterances", "run", "kernels, ms", *_COUNTED.values()]
        texts += ["**A step of it**", Table(header, cells).markdown()]
    return texts


def _named(row: Row) -> list[str]:
    return [str(row["model"]), str(row["batch"]), str(row["run"])]


def _ratios(row: Row, rows: Sequence[Row]) -> list[str]:
    """Over our dense run, paired, and over the library's, by their medians."""
    same = ("measure", "model", "batch")
    theirs = [
        other["wall_ms"]
        for other in rows
        if other["run"] in LIBRARIES and all(other[key] == row[key] for key in same)
    ]
    return [_ratio(row.get("of_dense")), _ratio(row["wall_ms"] / theirs[0] if theirs else None)]


def _counts(row: Row) -> list[str]:
    return [_milliseconds(row["kernel_ms"]), *(str(row[key]) for key in _COUNTED), str(row["peak_mib"])]


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _milliseconds(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"
