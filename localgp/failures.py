"""What to say about failures that are not ours: disk, memory, devices, worker processes.

`localgp.cli` prints this in place of a traceback. Anything that is not listed here stays a traceback, since
hiding a bug helps nobody.
"""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from localgp.errors import BackboneError, LocalGPError


def remedy(error: BaseException) -> str | None:
    """What happened and what to do about it; None where this is not a failure of the surroundings."""
    if isinstance(error, OSError):
        return _of_system(error)
    text = str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return _OUT_OF_MEMORY.format(_first_line(text) or "the machine's memory is used up")
    if isinstance(error, RuntimeError):
        if re.search(r"out of memory|can't allocate memory|DefaultCPUAllocator", text):
            return _OUT_OF_MEMORY.format(_first_line(text))
        if re.search(r"DataLoader worker|worker.*(exited|killed)|Broken ?[Pp]rocess", text):
            return (
                f"a data loading process died ({_first_line(text)}): most often it was killed for memory, or shared "
                "memory (/dev/shm) is full. Set training.workers=0, or fewer; what is saved stays, and the same "
                "command goes on from it."
            )
        if re.search(r"NCCL|ncclInternalError|Connection (closed|reset) by peer|Gloo", text):
            return (
                f"the connection between the processes of this run broke ({_first_line(text)}): one of them failed "
                "first; its message is above, or on another node. The same command goes on from the last checkpoint."
            )
    if is_full_disk(error):
        return _DISK_FULL.format(_first_line(text))
    if type(error).__name__ in ("BrokenProcessPool", "ProcessExitedException"):
        return (
            f"a worker process died ({_first_line(text)}), most often for want of memory: use fewer "
            "(corpus.workers=1, training.workers=0); the same command goes on from what is done."
        )
    return None


# What the writers of PyTorch and safetensors say of it, without an errno.
_FULL = r"PytorchStreamWriter failed|enforce fail at inline_container|No space left|os error (28|122)\b"


def is_full_disk(error: BaseException, directory: Path | None = None) -> bool:
    """Whether an error that has no errno comes of a full disk.

    Args:
        directory: Where was written, for libraries that do not say why they could not (NumPy, libsndfile).
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    if re.search(_FULL, str(error)):
        return True
    if directory is None or isinstance(error, LocalGPError):
        return False
    try:
        return shutil.disk_usage(directory).free < 1 << 16
    except OSError:
        return False


_DISK_FULL = (
    "a file could not be written ({}): the disk is full, or a quota is reached. Free space, or write elsewhere "
    "(exp_dir=..., data_dir=...). Nothing half-written is left in place; the same command goes on from what is saved."
)
_OUT_OF_MEMORY = (
    "out of memory: {}\n  In training: training.batch_size=1 training.accumulate=4 keeps the recipe's batch of 4; "
    "training.checkpointing=true and training.precision=bf16 need less; training.optimizer=adam8bit on a GPU.\n"
    "  In decoding: decode.batch=1, decode.beam=1 (transcribe: --batch 1 --beam 1)."
)


# Failures of the machine, or of permission, which say nothing about the file that was being read.
_OF_MACHINE = (errno.EACCES, errno.EPERM, errno.EIO, errno.ENOMEM, errno.EMFILE)


def is_of_machine(error: BaseException) -> bool:
    """Whether a file that could not be read may be sound all the same."""
    return isinstance(error, MemoryError) or getattr(error, "errno", None) in _OF_MACHINE


_IN_THE_WAY = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.ELOOP)


def _of_system(error: OSError) -> str | None:
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _DISK_FULL.format(f"{where}{error.strerror}")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"{where}{error.strerror}: this user may not read or write there. Change its permissions, or choose "
            "another place (exp_dir=..., data_dir=..., --output-dir ...)."
        )
    if error.errno == errno.ENOMEM:
        return _OUT_OF_MEMORY.format(error.strerror)
    if error.errno == errno.EMFILE:
        return f"{where}too many open files: raise the limit (ulimit -n 4096) or use fewer workers."
    if error.errno == errno.ENOENT and error.filename:
        return (
            f"{where}{error.strerror}: it, or a directory above it, is missing, or was removed while this ran; check "
            "the path, and run the command again."
        )
    if error.errno in _IN_THE_WAY:
        return (
            f"{where}{error.strerror}: something else is where a file or directory has to be; choose another."
        )
    if error.errno == errno.EIO:
        return (
            f"{where}{error.strerror}: the disk or the network file system failed; copy the data elsewhere."
        )
    return None


@contextlib.contextmanager
def explained(path: object, files: str = "a file of it") -> Iterator[None]:
    """Makes a `BackboneError` of whatever a model's files raise.

    They are somebody's YAML, JSON, NumPy and SentencePiece, and libraries build from any of it: what a wrong value
    raises, and where, is open. A failure of the machine has its own message.
    """
    try:
        yield
    except (LocalGPError, MemoryError):
        raise
    except Exception as error:
        if remedy(error) is not None:
            raise
        raise BackboneError(
            f"{path}: {files} is damaged or of another kind of model ({type(error).__name__}: {error}); copy the "
            "whole model again"
        ) from error


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:300] if text.strip() else ""
