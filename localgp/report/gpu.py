"""What `scripts/gpu_check.py` found on a card, as a section of RESULTS.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from localgp.errors import ConfigError
from localgp.tables import Column, percent, render

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
    def of_library(row: Row) -> float | None:
        """Over the library's run of the same thing, by their medians."""
        same = ("measure", "model", "batch")
        theirs = (
            other["wall_ms"]
            for other in rows
            if other["run"] in LIBRARIES and all(other[key] == row[key] for key in same)
        )
        found = next(theirs, None)
        return None if found is None else row["wall_ms"] / found

    kernels = Column("kernels, ms", "kernel_ms", _milliseconds)
    counted = [Column(heading, key) for key, heading in _COUNTED.items()]
    model, batch, run = (Column(name, name) for name in ("model", "batch", "run"))
    utterances = batch._replace(heading="utterances")
    timed = [
        *(model, batch, run),
        Column("ms", "wall_ms", _milliseconds),
        Column("time / dense", "of_dense", ".2f"),
        Column("time / library", of_library, ".2f"),
        *(kernels, *counted),
        Column("peak MiB", "peak_mib"),
    ]
    searches = [
        *(model, utterances, run),
        Column("skipped", lambda row: row.get("skipped") or None, percent),
        Column("decided per", lambda row: row.get("decided_per") or None),
        Column("speed / ESPnet", "speedup_vs_espnet", ".2f"),
        Column("step time / dense", "step_time_ratio_vs_dense", ".2f"),
    ]
    tables = {measure: (title, timed) for measure, title in _TIMED.items()}
    tables["decode"] = "Beam search of 5", searches
    tables["step"] = "A step of it", [model, utterances, run, kernels, *counted]
    texts = []
    for measure, (title, columns) in tables.items():
        own = [row for row in rows if row["measure"] == measure]
        texts += [f"**{title}**", render(own, columns).markdown()] if own else []
    return texts


def _milliseconds(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"
