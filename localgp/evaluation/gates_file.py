"""Which module ran on which frame, for a whole split in one small file.

``gates/<split>.npz`` holds, for U utterances, L layers, M modules and T encoder frames:

| array         | type, shape                 | content                                                         |
|---------------|-----------------------------|-----------------------------------------------------------------|
| `utt_ids`     | str (U,)                    | in the order of the other arrays                                |
| `modules`     | str (M,)                    | `ffn1`, `attention`, `ffn2`, …                                  |
| `bits`        | uint8 (U, L, M, ceil(T / 8))| `numpy.packbits` over frames, big-endian; 1 where the module ran|
| `frames`      | int ()                      | T                                                               |
| `real`        | int32 (U, 2)                | first and one past the last frame with signal; others are padding|
| `lengths`     | int32 (U,)                  | frames that the utterance has; there where it is not T for all  |
| `seconds_per_frame` | float ()              |                                                                 |
| `timing`      | float (2,)                  | seconds at the middle of the first frame, and to the next       |
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
from localgp.timeline import frame_centres


@dataclass
class GateRecord:
    """The file's content, unpacked: ``open`` is bool (U, L, M, T), False behind an utterance's last frame; ``lengths``
    is None where all have T; ``timing`` is None in files that are older than it."""

    utt_ids: list[str]
    modules: list[str]
    open: np.ndarray
    real: np.ndarray
    seconds_per_frame: float
    lengths: np.ndarray | None = None
    timing: tuple[float, float] | None = None

    def centres(self) -> np.ndarray:
        """Seconds at the middle of what each frame sees, (T,)."""
        frames = self.open.shape[-1]
        if self.timing is None:
            return frame_centres(frames, frames * self.seconds_per_frame)
        first, step = self.timing
        return first + step * np.arange(frames)

    def counts(self) -> np.ndarray:
        """Frames of each utterance, (U,)."""
        frames = np.full(len(self.utt_ids), self.open.shape[-1])
        return frames if self.lengths is None else np.asarray(self.lengths)

    def own_mask(self) -> np.ndarray:
        """(U, T), True for frames that the utterance has, with signal or padding."""
        return np.arange(self.open.shape[-1]) < self.counts()[:, None]

    def real_mask(self) -> np.ndarray:
        """(U, T), True for frames with signal."""
        frames = np.arange(self.open.shape[-1])
        return (frames >= self.real[:, :1]) & (frames < self.real[:, 1:])

    def kept(self) -> tuple[np.ndarray, np.ndarray]:
        """Share of frames that run, (L, M): over all frames, and over the real ones."""
        real = self.real_mask()[:, None, None, :]
        count = max(1, int(real.sum()))
        every = self.open.mean((0, 3))
        if self.lengths is not None:
            every = self.open.sum((0, 3)) / max(1, int(self.counts().sum()))
        return every, (self.open & real).sum((0, 3)) / count


def with_frames(open_T: np.ndarray, frames: int) -> np.ndarray:
    """Gates with closed frames behind them, up to so many; (..., frames)."""
    return np.pad(open_T, [(0, 0)] * (open_T.ndim - 1) + [(0, frames - open_T.shape[-1])])


def write_gates(path: Path, record: GateRecord) -> None:
    """Writes aside and renames."""
    more: dict[str, Any] = {} if record.lengths is None else {"lengths": record.lengths.astype(np.int32)}
    more |= {} if record.timing is None else {"timing": np.array(record.timing)}
    with written(path, ".npz") as temporary:
        np.savez_compressed(
            temporary,
            utt_ids=np.array(record.utt_ids),
            modules=np.array(record.modules),
            bits=np.packbits(record.open, axis=-1),
            frames=np.array(record.open.shape[-1]),
            real=record.real.astype(np.int32),
            seconds_per_frame=np.array(record.seconds_per_frame),
            **more,
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
        lengths = file.get("lengths")
        if lengths is not None and (lengths.shape != (len(utt_ids),) or lengths.max(initial=0) > frames):
            raise ValueError(
                f"lengths of {lengths.shape}, {len(utt_ids)} utterances of up to {frames} frames"
            )
        timing = file.get("timing")
        if timing is not None:
            first, step = timing.tolist()
            timing = float(first), float(step)
        return GateRecord(utt_ids, modules, opened, real, float(file["seconds_per_frame"]), lengths, timing)
