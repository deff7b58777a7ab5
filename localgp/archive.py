"""Archives of models: written so that ESPnet's own tools read them, unpacked without trusting their author."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from filelock import FileLock

from localgp.errors import BackboneError, ConfigError, LocalGPError
from localgp.failures import remedy
from localgp.io import filled, written
from localgp.paths import expanded

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")  # ESPnet's
_LARGEST = (
    64 * 2**30
)  # bytes unpacked: ten times the largest OWSM; beyond it the archive is a bomb or a mistake
_MOST_FILES = 10_000
_CONTENT, _SIZES = "model", "files.json"  # of an unpacked archive: its files, and how long each is
_LOCK = ".lock"  # in the cache: one process at a time unpacks
_COMPRESSED = (".pth", ".safetensors", ".npz")  # weights do not deflate


def is_archive(path: Path) -> bool:
    return path.name.endswith(SUFFIXES)


def opened(path: str) -> Path:
    """A path as a user gives it; of an archive, the directory that it is unpacked to.

    Raises:
        BackboneError: See `unpacked`.
        ConfigError: See `localgp.paths.expanded`.
    """
    place = expanded(path)
    return unpacked(place) if is_archive(place) and place.is_file() else place


def cache_directory() -> Path:
    """Where archives are unpacked: ``$LOCALGP_CACHE``, or ``localgp`` in the user's cache directory."""
    if os.environ.get("LOCALGP_CACHE"):
        return Path(os.environ["LOCALGP_CACHE"])
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "localgp"


def unpacked(archive: Path) -> Path:
    """The directory of an archive's content, named by the archive's SHA-256: unpacked when it is not there, or is no
    longer as it was unpacked.

    Raises:
        BackboneError: Damaged, or with a member that must not be: outside of the directory, a link, a device; or there
            is nowhere to unpack it.
    """

    try:
        state = archive.stat()
        digest = _digest(archive, state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise BackboneError(f"{archive}: cannot be read ({error.strerror})") from error
    try:
        final = cache_directory() / digest
        if _is_whole(final):
            return final / _CONTENT
        final.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(final.with_name(_LOCK))
        lock.acquire()  # else two would repair each other's
    except (ConfigError, OSError) as error:
        raise BackboneError(
            f"{archive}: nowhere to unpack it ({error}); LOCALGP_CACHE=DIR names a place that this user can write to"
        ) from error
    try:
        if not _is_whole(final):
            _unpack_to(archive, final)
    finally:
        lock.release()
    return final / _CONTENT


@functools.lru_cache
def _digest(archive: Path, size: int, changed: int) -> str:
    """Of a file in one state; a command opens the same one several times."""
    with archive.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _is_whole(directory: Path) -> bool:
    """Whether an unpacked archive has every file, as long as it was."""
    try:
        sizes = json.loads((directory / _SIZES).read_text(encoding="utf-8"))
        return all((directory / _CONTENT / name).stat().st_size == size for name, size in sizes.items())
    except (FileNotFoundError, NotADirectoryError, ValueError, AttributeError, TypeError):
        return False


def _unpack_to(archive: Path, final: Path) -> None:
    """Unpacks an archive in place of what may be left of an earlier time."""
    with filled(final) as new:
        content = new / _CONTENT
        content.mkdir()
        try:
            _unpack(archive, content)
        except (LocalGPError, MemoryError):
            raise
        except Exception as error:  # zipfile, tarfile and their decompressors each have errors of their own
            if remedy(error) is not None:
                raise  # of the disk, not of the archive
            raise BackboneError(f"{archive}: damaged, or not an archive ({error}); copy it again") from error
        files = (path for path in content.rglob("*") if path.is_file())
        sizes = {path.relative_to(content).as_posix(): path.stat().st_size for path in files}
        (new / _SIZES).write_text(json.dumps(sizes), encoding="utf-8")


def _unpack(archive: Path, directory: Path) -> None:
    written, seen = 0, set()
    for number, (name, size, source) in enumerate(_members(archive)):
        target = _inside(archive, name)
        if target in seen or number >= _MOST_FILES:
            raise BackboneError(f"{archive}: refused, holds {name!r} twice or over {_MOST_FILES} files")
        seen.add(target)
        place = directory / target
        place.parent.mkdir(parents=True, exist_ok=True)
        with source, place.open("xb") as file:
            # The stated size is the author's word: what comes out is counted.
            while chunk := source.read(1 << 20):
                written += len(chunk)
                if written > _LARGEST:
                    raise BackboneError(f"{archive}: refused, unpacks to over {_LARGEST >> 30} GiB")
                file.write(chunk)
        if place.stat().st_size != size:
            raise BackboneError(f"{archive}: damaged, {name!r} is not as long as stated; copy it again")


def _members(archive: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Name, stated size and content of every regular file; directories are left, anything else is refused."""
    if archive.name.endswith(".zip"):
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise BackboneError(f"{archive}: refused, {info.filename!r} is a link or a device")
                if not info.is_dir():
                    yield info.filename, info.file_size, zipped.open(info)
        return
    with tarfile.open(archive) as tarred:
        for member in tarred:
            if not (member.isfile() or member.isdir()):
                raise BackboneError(f"{archive}: refused, {member.name!r} is a link or a device")
            if member.isfile():
                content = tarred.extractfile(member)
                assert content is not None
                yield member.name, member.size, content


def _inside(archive: Path, name: str) -> PurePosixPath:
    """The member's path, which must stay inside of the directory on every operating system."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name:
        raise BackboneError(f"{archive}: refused, member {name!r} would be written outside of its directory")
    return path


def write_zip(archive: Path, directory: Path, first: str) -> None:
    """Zips a directory's files, ``first`` before all others; the archive appears complete or not at all."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    files.sort(key=lambda path: path.relative_to(directory).as_posix() != first)
    with written(archive) as temporary, zipfile.ZipFile(temporary, "w") as zipped:
        for path in files:
            info = zipfile.ZipInfo(
                path.relative_to(directory).as_posix()
            )  # of 1980: the same bytes every time
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            if path.suffix not in _COMPRESSED:
                info.compress_type = zipfile.ZIP_DEFLATED
            with path.open("rb") as source, zipped.open(info, "w", force_zip64=True) as target:
                shutil.copyfileobj(source, target, 1 << 20)
