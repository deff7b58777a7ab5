"""Files and directories that appear whole or not at all.

What is being written lies beside its place under a hidden name, on the same file system and so with the same room,
and is renamed into it. Whatever ends the writing takes it away again; only a process that is killed leaves one,
which `sweep` removes.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from localgp.failures import is_full_disk

_NUMBERS = itertools.count()  # two files that one process writes at once never share a name
_LONGEST = 40  # letters of the name: the whole of a long one would leave no room for what is added


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name[:_LONGEST]}.{os.getpid()}-{next(_NUMBERS)}.tmp")


@contextmanager
def written(path: Path, suffix: str = "") -> Iterator[Path]:
    """A file to write in the place of ``path``: a reader sees the old one or the new one, never a part.

    It has the permissions that the user's files have: some writers make theirs for the owner alone.

    Args:
        suffix: Added to the temporary name, for writers that choose the format by it.

    Raises:
        OSError: It cannot be written; it names ``path``.
    """
    temporary = _beside(path)
    temporary = temporary.with_name(temporary.name + suffix)
    with naming(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.touch()
            mode = temporary.stat().st_mode & 0o777
            yield temporary
            temporary.chmod(mode)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())  # a power failure after the renaming would else leave it empty
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def staging(path: Path) -> Iterator[Path]:
    """An empty directory beside ``path``, in which what is to lie there can be made; it goes at the end.

    Raises:
        OSError: It cannot be written; it names ``path``.
    """
    folder = _beside(path)
    with naming(path, folder):
        try:
            folder.mkdir(parents=True)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def filled(path: Path) -> Iterator[Path]:
    """An empty directory that takes the place of ``path`` at the end; what is there goes. See `staging`."""
    with staging(path) as folder:
        new, old = folder / "new", folder / "old"
        new.mkdir()
        yield new
        if path.exists():
            os.replace(path, old)
        try:
            os.replace(new, path)
        except OSError:
            if old.exists():
                os.replace(old, path)
            raise


@contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Lets an error of the system name ``path`` where it names no file or the temporary one, and a full disk be an
    `OSError` whichever library met it."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            named = error.filename
            if named is not None and (
                temporary is None or not Path(os.fsdecode(named)).is_relative_to(temporary)
            ):
                raise
            raise OSError(error.errno, error.strerror, str(path)) from error
        if is_full_disk(error, path.parent):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


def write_atomically(path: Path, text: str) -> None:
    """Writes UTF-8; see `written`."""
    with written(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def file_digest(path: Path) -> str:
    """16 hex digits of the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def sweep(directory: Path, name: str = "") -> None:
    """Removes what killed processes left there half-written, of one name or of all.

    Only for who holds the lock of what is written there (`localgp.locks`): another's work looks the same.
    """
    if not directory.is_dir():
        return
    begin = f".{name[:_LONGEST]}." if name else "."
    for entry in list(os.scandir(directory)):
        if entry.name.startswith(begin) and ".tmp" in entry.name:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                Path(entry.path).unlink(missing_ok=True)
