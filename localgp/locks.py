"""One process at a time for what two would write into each other: a run, an evaluation, a corpus, a packed model.

The operating system frees the lock of a process that died, on any machine, as far as the file system knows locks.
Who holds it stands beside it: process, machine, since when.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from localgp.errors import BusyError
from localgp.io import write_atomically

_AFTERLIFE = 15.0  # seconds in which the data loading processes of a killed one end


@contextmanager
def held(path: Path, doing: str, *, wait: bool = False) -> Iterator[None]:
    """Holds the lock ``path``.

    Args:
        path: The lock's file, hidden, beside what it guards.
        doing: For the messages of others: ``training exp/mini/mini/row05/seed1``.
        wait: For who holds it, saying so, instead of refusing.

    Raises:
        BusyError: Another process holds it.
    """

    path.parent.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(path), path.with_name(f"{path.name}.holder")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = _holder(holder)
        if not wait:
            if not _is_dead(who):
                raise BusyError(_refusal(doing, who)) from None
        else:
            print(f"{doing}: {_described(who)} is at it; waiting for it", file=sys.stderr, flush=True)
        try:
            lock.acquire(timeout=-1 if wait else _AFTERLIFE)
        except Timeout:
            raise BusyError(_refusal(doing, who)) from None
    except OSError as error:
        if not wait or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        yield  # another user's directory: this one can only read what is done
        return
    try:
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
        with contextlib.suppress(OSError):  # a courtesy
            write_atomically(holder, json.dumps(owner) + "\n")
        yield
    finally:
        with contextlib.suppress(OSError):
            holder.unlink(missing_ok=True)
        lock.release()


def _holder(path: Path) -> dict[str, object]:
    """What stands about who holds a lock; it is written just after the lock is taken."""
    for _ in range(5):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return content if isinstance(content, dict) else {}
        except (OSError, ValueError):
            time.sleep(0.05)
    return {}


def _is_dead(who: dict[str, object]) -> bool:
    """A process of this machine that is no more, whose children still hold what it held."""
    pid = who.get("pid")
    if who.get("host") != socket.gethostname() or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _described(who: dict[str, object]) -> str:
    if not who:
        return "another process"
    return f"process {who.get('pid')} on {who.get('host')}, since {who.get('since')},"


def _refusal(doing: str, who: dict[str, object]) -> str:
    return (
        f"{doing}: {_described(who)} is at it, and two would write into each other. Wait until it has ended, or end "
        "it; then the same command goes on from what is saved."
    )
