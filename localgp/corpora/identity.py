"""What a corpus is, by content: which segments were read, and the bytes of their recordings.

Names, places and times of files say nothing: a moved corpus is the same one, and another file under a known name, of
the same size and age even, is another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from localgp.corpora.segment import Reading
from localgp.io import file_digest, write_atomically

FORMAT = 3  # of the prepared data: raise it when anything changes what comes out of the same corpus


def audio_digests(files: Collection[Path], known: Path) -> dict[Path, str]:
    """SHA-256 of each file, first 16 hex digits. A file is read once, and again when its inode says that it changed.

    Args:
        files: All of which exist.
        known: A JSON file of what was found before; the time of the inode's last change is part of it, which no copy
            sets as it does the modification time.
    """

    before = _read(known)
    marks = {}
    for path in files:
        stat = path.stat()
        marks[path] = [stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    found: dict[str, list[Any]] = {}
    unread = []
    for path, mark in marks.items():
        place = str(path.absolute())
        if before.get(place, [None])[:-1] == mark:
            found[place] = before[place]
        else:
            unread.append(path)
    for path in tqdm(unread, desc="read recordings", unit="file", delay=3.0):
        found[str(path.absolute())] = [*marks[path], _digest(path)]
    if unread:
        with suppress(PermissionError):  # a data_dir of another user's: the files are read again next time
            write_atomically(known, json.dumps(before | found))
    return {path: found[str(path.absolute())][-1] for path in marks}


def _digest(path: Path) -> str:
    if not path.is_file():
        return "no file"  # a directory or a pipe: decoding says what is wrong with it
    try:
        return file_digest(path)
    except OSError as error:
        return f"unread: {error.errno}"


def _read(known: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(known.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # as good as none: they are read again
    if not isinstance(content, dict):
        return {}
    return {k: v for k, v in content.items() if isinstance(v, list) and len(v) == 5}


def fingerprint(reading: Reading, digests: dict[Path, str], max_seconds: float, on_error: str) -> str:
    """12 hex digits over the segments as read, their recordings' content, and what cutting depends on."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        digest.update(json.dumps(value, ensure_ascii=False).encode() + b"\n")

    add([FORMAT, max_seconds, on_error])
    for segment in reading.segments:
        row = asdict(segment) | {"audio": [segment.audio.stem, digests[segment.audio]]}
        del row["source"]
        add(row)
    add([(dropped.utt_id, dropped.reason) for dropped in reading.dropped])
    return digest.hexdigest()[:12]
