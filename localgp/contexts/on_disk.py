"""Extracted contexts on disk, found by what was heard and by whom.

    <data_dir>/prepared/contexts/<extractor>-<digest>/<shard>.safetensors    audio_sha1 -> (S, C) float16

The digest covers the extractor's weights, its settings and its code's version, the key a segment's samples: other
weights or other audio have no entry here, so nothing stale is ever read. A shard is written aside and renamed, and is
not touched again; stopped at any point, the next run computes what is missing.

Shape legend: N samples, S steps, C context size.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

from localgp.corpora.integrity import read_row
from localgp.io import sweep, written
from localgp.locks import held

_SHARD_ENTRIES = 256  # seconds of work lost at most when stopped


class ContextStore:
    """Read access to one extractor's contexts; files are mapped into memory and opened when first needed.

    Args:
        folder: Of the extractor's shards.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shard_of: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        self.refresh()

    def refresh(self) -> None:
        """Takes in shards that have been written since; a damaged one is kept aside and made again."""

        known = set(self._shard_of.values())
        for path in sorted(self.folder.glob("*.safetensors")):
            if path in known:
                continue
            path.open("rb").close()  # says in words what safetensors calls missing: that it may not be read
            try:
                with safe_open(path, "np") as file:
                    self._shard_of.update(dict.fromkeys(file.keys(), path))
            except SafetensorError as error:
                aside = path.with_suffix(".damaged")
                path.rename(aside)
                print(f"{path} cannot be read ({error}); kept as {aside.name}, made again", file=sys.stderr)

    def __contains__(self, key: str) -> bool:
        return key in self._shard_of

    def __getitem__(self, key: str) -> np.ndarray:
        """(S, C) float16 of the segment whose ``audio_sha1`` is ``key``."""
        path = self._shard_of[key]
        if path not in self._open:
            self._open[path] = safe_open(path, "np")
        return self._open[path].get_tensor(key)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # a loader process maps the files itself

    def write(self, entries: dict[str, np.ndarray]) -> None:
        """Adds a shard."""

        name = hashlib.sha256("".join(sorted(entries)).encode()).hexdigest()[:16]
        with written(self.folder / f"{name}.safetensors") as temporary:
            save_file(entries, temporary)
        self.refresh()


def open_store(base: Path, extractor: Any, rows: Any, keys: Collection[str]) -> ContextStore:
    """The store of an extractor, with everything in it that ``keys`` name.

    Args:
        base: Of all extractors' stores.
        extractor: `localgp.contexts.speaker.SpeakerExtractor` or another with its ``name``, ``digest`` and
            ``extract``.
        rows: Prepared rows (`localgp.corpora.prepared`) in which the keys are found.
        keys: ``audio_sha1`` of the segments needed.
    """
    folder = base / f"{extractor.name}-{extractor.digest}"
    folder.mkdir(parents=True, exist_ok=True)
    store = ContextStore(folder)
    if all(key in store for key in keys):
        return store
    with held(folder / ".lock", f"extracting {extractor.name}", wait=True):
        sweep(folder)
        store.refresh()
        _extract(store, extractor, rows, {key for key in keys if key not in store})
    return store


def _extract(store: ContextStore, extractor: Any, rows: Any, missing: Collection[str]) -> None:

    if not missing:
        return
    # One segment at a time: no padding, so what comes out depends on the segment alone.
    places: dict[str, int] = {}
    for index, key in enumerate(rows.select_columns(["audio_sha1"])["audio_sha1"]):
        if key in missing:
            places.setdefault(key, index)
    interval = 0.1 if sys.stderr.isatty() else 10.0  # a log file gets few lines
    entries: dict[str, np.ndarray] = {}
    for key, index in tqdm(
        places.items(), desc=f"extract {extractor.name}", unit="segment", mininterval=interval
    ):
        samples = np.asarray(read_row(rows, index)["samples"], dtype=np.float32) / 32768.0
        entries[key] = np.ascontiguousarray(extractor.extract(samples))
        if len(entries) == _SHARD_ENTRIES:
            store.write(entries)
            entries = {}
    if entries:
        store.write(entries)
