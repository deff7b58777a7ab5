"""Whether a prepared corpus still holds what was written: all but the samples when it is opened, those when used."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from localgp.errors import CorpusError
from localgp.failures import is_of_machine
from localgp.stored import short


def rows_digest(rows: Any) -> str:
    """16 hex digits over the rows in their order; the samples are in it by their own sum.

    Args:
        rows: A prepared split.
    """
    columns = sorted(name for name in rows.column_names if name != "samples")
    table = rows.select_columns(columns).with_format(None)[:]
    digest = hashlib.sha256(json.dumps(columns).encode())
    for row in zip(*(table[name] for name in columns), strict=True):
        digest.update(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()[:16]


def describe_split(folder: Path, rows: Any) -> dict[str, Any]:
    """What `damage_of` compares with later: the bytes of each file, and the rows' digest."""
    files = {path.name: path.stat().st_size for path in sorted(folder.glob("*.arrow"))}
    return {"files": files, "digest": rows_digest(rows)}


def damage_of(folder: Path, report: dict[str, Any]) -> str | None:
    """What is wrong with a prepared corpus, and None where nothing is.

    Args:
        report: Its report.json.

    Raises:
        OSError: The machine's fault, or a matter of permission: it says nothing about the files.
    """
    from datasets import load_from_disk

    stored = report.get("stored")
    if not isinstance(stored, dict) or not stored:
        return "its report.json does not say what was stored"
    for split, stated in stored.items():
        try:
            for name, size in stated["files"].items():
                with (folder / split / name).open("rb") as file:
                    there = file.seek(0, 2)
                if there != size:
                    return f"{split}/{name} has {there} bytes of {size}"
            rows = load_from_disk(str(folder / split))
            rows.data.table.validate(full=True)  # offsets that lead out of their buffers are not followed
            if rows_digest(rows) != stated["digest"]:
                return f"the rows of {split} are not those that were written"
        except Exception as error:  # damaged files make Arrow, JSON and datasets raise errors of all kinds
            if is_of_machine(error):
                raise
            return f"{split}: {short(error)}"
    return None


def read_row(rows: Any, index: int) -> dict[str, Any]:
    """A row with its samples, which are compared with the sum that was stored beside them.

    Raises:
        CorpusError: They are not the same.
    """
    row: dict[str, Any] = rows[index]
    if rows.cache_files:  # of a prepared corpus, and not made in memory
        samples = np.ascontiguousarray(row["samples"], dtype=np.int16)
        if samples_digest(samples) != row["audio_sha1"]:
            folder = Path(rows.cache_files[0]["filename"]).parent.parent
            raise CorpusError(
                f"{folder} is damaged: the samples of {row['utt_id']} are not those that were written. Remove that "
                "folder; the next command prepares the corpus again."
            )
    return row


def samples_digest(samples: np.ndarray) -> str:
    """First 16 hex digits of the SHA-1 of int16 samples."""
    return hashlib.sha1(samples.tobytes()).hexdigest()[:16]
