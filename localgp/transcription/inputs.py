"""Which recordings a command line names: files, folders, pipes."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from localgp.errors import AudioError

STDIN = "/dev/stdin"
# What counts as a recording in a folder; a file that is named itself may end in anything.
# fmt: off
SUFFIXES = frozenset((
    ".3gp", ".aac", ".aif", ".aiff", ".amr", ".au", ".avi", ".caf", ".flac", ".flv", ".m4a", ".m4b", ".m4v", ".mka",
    ".mkv", ".mov", ".mp2", ".mp3", ".mp4", ".mpeg", ".mpg", ".oga", ".ogg", ".opus", ".ra", ".ts", ".w64", ".wav",
    ".weba", ".webm", ".wma", ".wmv",
))
# fmt: on


@dataclass(frozen=True)
class Input:
    """A recording that was asked for.

    Attributes:
        path: What is opened.
        base: The folder that was named, or that of a file that was; None for a pipe, which lies nowhere.
        found: It was found in a folder, and not named itself.
    """

    path: str
    base: str | None
    found: bool = False

    def problem(self) -> str | None:
        """Why nothing can be read there, found without reading it."""
        name = readable(self.path)
        if self.path == STDIN and sys.stdin is not None and sys.stdin.isatty():
            return (
                "standard input is a terminal; send a recording into it: ... | python -m localgp.transcribe -"
            )
        try:
            mode = os.stat(self.path).st_mode
        except (OSError, ValueError) as error:
            missing = isinstance(error, FileNotFoundError | NotADirectoryError)
            return f"{name}: no such audio file" if missing else f"{name}: cannot be read ({_reason(error)})"
        if stat.S_ISDIR(mode):
            return f"{name} is a directory; --recursive transcribes the recordings in it and in the folders below"
        if not os.access(self.path, os.R_OK):
            return f"{name}: cannot be read (no permission); change it: chmod u+r, or leave the file out"
        return None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def find_inputs(given: Sequence[str], recursive: bool) -> list[Input]:
    """The recordings that the words of a command line name, in their order and each once; ``-`` is standard input.

    Args:
        recursive: Take every recording in a folder and below it, by `SUFFIXES`, in the order of the names.

    Raises:
        AudioError: A folder without any.
    """
    found: dict[str, Input] = {}
    for name in given:
        path = STDIN if name == "-" else name
        if recursive and os.path.isdir(path):
            inside = list(_recordings(path))
            if not inside:
                raise AudioError(
                    f"{readable(name)}: no recording in this folder; one ends in {' '.join(sorted(SUFFIXES))}"
                )
            for file in inside:
                found.setdefault(os.path.abspath(file), Input(file, os.path.abspath(path), found=True))
        else:
            base = None if path == STDIN or is_stream(path) else os.path.dirname(os.path.abspath(path))
            found.setdefault(os.path.abspath(path), Input(path, base))
    return list(found.values())


def _recordings(folder: str) -> Iterator[str]:
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield os.path.join(here, name)


def is_stream(path: str | Path) -> bool:
    """Whether it is a pipe or the like, which can be read once and from its beginning only."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode)


@contextmanager
def on_disk(path: str | Path) -> Iterator[str | Path]:
    """The path itself, or for a stream that of a copy: many formats have to be read back and forth.

    Raises:
        AudioError: As the reader raises it, with the stream's name in place of the copy's.
    """
    if not is_stream(path):
        yield path
        return
    with tempfile.NamedTemporaryFile(prefix="localgp.") as copy:
        with open(path, "rb") as stream:
            shutil.copyfileobj(stream, copy, 1 << 20)
        copy.flush()
        try:
            yield copy.name
        except AudioError as error:
            raise type(error)(str(error).replace(copy.name, str(path))) from error


def readable(name: str | Path) -> str:
    """A file's name as text that can be printed: bytes that are no UTF-8 are written as ``\\xe9``.

    Examples:
        >>> import os
        >>> readable(os.fsdecode(b"caf\\xe9.wav"))
        'caf\\\\xe9.wav'
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")
