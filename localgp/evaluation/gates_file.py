"""Which module ran on which frame, for a whole split in one small file.

``gates/<split>.npz`` holds, for U utterances, L layers, M modules and T encoder frames:

| array         | type, shape                 | content                                                         |
|---------------|-----------------------------|-----------------------------------------------------------------|
| `utt_ids`     | str (U,)                    | in the order of the other arrays                                |
| `modules`     | str (M,)                    | `ffn1`, `attention`, `ffn2`, …                                  |
| `bits`        | uint8 (U, L, M, ceil(T / 8))| `numpy.packbits` over frames, big-endian; 1 where the module ran|
| `frames`      | int ()                      | T                                                               |
| `real`        | int32 (U, 2)                | first and one past the last frame with signal; others are padding|
| `seconds_per_frame` | float ()              |                                                                 |
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from localgp.errors import CheckpointError
from localgp.io import written


@dataclass
class GateRecord:
    """The file's content, unpacked: ``open`` is bool (U, L, M, T)."""

    utt_ids: list[str]
    modules: list[str]
    open: np.ndarray
    real: np.ndarray
    seconds_per_frame: float

    def real_mask(self) -> np.ndarray:
        """(U, T), True for frames with signal."""
        frames = np.arange(self.open.shape[-1])
        return (frames >= self.real[:, :1]) & (frames < self.real[:, 1:])

    def kept(self) -> tuple[np.ndarray, np.ndarray]:
        """Share of frames that run, (L, M): over all frames, and over the real ones."""
        real = self.real_mask()[:, None, None, :]
        count = max(1, int(real.sum()))
        return self.open.mean((0, 3)), (self.open & real).sum((0, 3)) / count


def write_gates(path: Path, record: GateRecord) -> None:
    """Writes aside and renames."""
    with written(path, ".npz") as temporary:
        np.savez_compressed(
            temporary,
            utt_ids=np.array(record.utt_ids),
            modules=np.array(record.modules),
            bits=np.packbits(record.open, axis=-1),
            frames=np.array(record.open.shape[-1]),
            real=record.real.astype(np.int32),
            seconds_per_frame=np.array(record.seconds_per_frame),
        )


@contextmanager
def stored_arrays(path: Path) -> Iterator[Any]:
    """The arrays of an npz file, none of them unpickled.

    Raises:
        CheckpointError: Whatever is wrong with the file, found while it is opened or while its arrays are used.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            yield file
    except (
        OSError, EOFError, BadZipFile, zlib.error, NotImplementedError, MemoryError,
        ValueError, TypeError, KeyError, IndexError,
    ) as error:  # fmt: skip
        raise CheckpointError(
            f"{path} cannot be read as stored gates ({type(error).__name__}: {error}); evaluate that run again with "
            "evaluate.force=true"
        ) from error


def read_gates(path: Path) -> GateRecord:
    """Reads what `write_gates` wrote; nothing is unpickled.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    with stored_arrays(path) as file:
        frames, real = int(file["frames"]), file["real"]
        utt_ids, modules = [str(u) for u in file["utt_ids"]], [str(m) for m in file["modules"]]
        opened = np.unpackbits(file["bits"], axis=-1, count=frames).astype(bool)
        if opened.ndim != 4 or opened.shape[::2] != (len(utt_ids), len(modules)):
            raise ValueError(f"bits of {opened.shape}, {len(utt_ids)} utterances, {len(modules)} modules")
        if real.shape != (len(utt_ids), 2):
            raise ValueError(f"real of {real.shape}, {len(utt_ids)} utterances")
        return GateRecord(utt_ids, modules, opened, real, float(file["seconds_per_frame"]))
