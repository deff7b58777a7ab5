"""What libraries ask of a user and a container's user may not have: a name, and a directory for caches."""

from __future__ import annotations

import getpass
import os
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_NUMBA = "NUMBA_CACHE_DIR"


def give_user_a_name() -> None:
    """Lets PyTorch be imported whole: it names its compiler's cache after the user and fails where the id has no
    name."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = f"uid{os.getuid()}"


@cache
def give_numba_a_cache() -> tempfile.TemporaryDirectory[str] | None:
    """Lets librosa be imported: numba refuses its functions where it can cache them neither beside librosa nor in the
    home directory. It gets a temporary directory, which goes with the process."""
    if os.environ.get(_NUMBA):
        return None
    librosa = find_spec("librosa")
    places = [Path(folder) for folder in (librosa.submodule_search_locations or [])] if librosa else []
    caches = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    if caches.is_absolute():  # else there is no home: "~" stays
        places.append(caches / "numba")
    if any(_is_writable(place) for place in places):
        return None
    directory = tempfile.TemporaryDirectory(prefix="localgp-numba-")
    os.environ[_NUMBA] = directory.name
    return directory


def _is_writable(place: Path) -> bool:
    """Whether a directory can be written to, or made."""
    there = next((folder for folder in (place, *place.parents) if folder.exists()), None)
    return there is not None and os.access(there, os.W_OK | os.X_OK)
