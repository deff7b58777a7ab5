"""Where the extractors' weights are, and reading them without running anything of their authors'."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from localgp.download import HUB_ID, download
from localgp.errors import LocalGPError
from localgp.paths import expanded

MINI = Path(__file__).parent / "mini"


class ContextError(LocalGPError):
    """A context extractor that is missing, incomplete, unsafe or of another kind."""


def lengthened(signal_N: np.ndarray, shortest: int) -> np.ndarray:
    """A signal that an extractor can hear: a shorter one is repeated from its start, as ESPnet's BEATs does, and an
    empty one is silence.

    Examples:
        >>> lengthened(np.array([1.0, 2.0]), 5)
        array([1., 2., 1., 2., 1.])
    """
    if len(signal_N) >= shortest:
        return signal_N
    return np.resize(signal_N, shortest)  # repeats; zeros for an empty one


def local_directory(source: str) -> Path | None:
    """``source`` as a directory on this machine, or None where it can only be a hub id."""
    directory = expanded(source)
    return directory if directory.is_dir() else None


def fetch_directory(key: str, source: str, files: Sequence[str]) -> Path:
    """The directory that ``source`` names, fetched from the Hugging Face hub where it is an id.

    Args:
        key: The option that names it, for messages.
        files: What the directory has to hold.

    Raises:
        ContextError: Nothing there, or a file of it is missing.
    """
    directory = local_directory(source)
    if directory is None:
        if not HUB_ID.match(source) or Path(source).suffix in (".ckpt", ".pt", ".pth", ".yaml"):
            raise ContextError(
                f"{key}={source}: no such directory, and not a Hugging Face repository id; valid are 'mini' (the "
                f"embedded extractor), a directory with {' and '.join(files)}, or an id such as "
                "speechbrain/spkrec-ecapa-voxceleb"
            )
        directory = download(
            source,
            files,
            option=f"{key}=",
            instead=f"The small embedded extractor needs no download: {key}=mini",
            error=ContextError,
        )
    missing = [name for name in files if not (directory / name).is_file()]
    if missing:
        there = ", ".join(sorted(p.name for p in directory.iterdir())[:12]) or "nothing"
        raise ContextError(
            f"{key}={source}: {directory} lacks {' and '.join(missing)}; it holds: {there}. Copy the whole model "
            f"repository there, or use the embedded extractor: {key}=mini"
        )
    return directory


def read_tensors(path: Path) -> Any:
    """A checkpoint's content: tensors and plain values; nothing in it is executed.

    Raises:
        ContextError: Damaged, or it holds objects whose loading would run code.
    """

    try:
        with path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except PermissionError:  # not damaged
        raise
    except pickle.UnpicklingError as error:
        raise ContextError(
            f"{path}: refused, since loading it would run code of the file's author, or it is damaged "
            f"({str(error).splitlines()[0]}); get a checkpoint that holds only tensors and plain values"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ContextError(f"{path}: damaged or not a checkpoint ({reason}); copy it again") from error


def load_exactly(module: Any, state: Any, path: Path, *, unused: Sequence[str] = ()) -> None:
    """Loads a state dictionary that must have all of the module's parameters in their shapes.

    Args:
        unused: Prefixes of parameters that the file may hold besides.

    Raises:
        ContextError: With the first misfits.
    """

    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ContextError(f"{path}: not a state dictionary of tensors")
    own = module.state_dict()
    problems = [f"{key} is not in the checkpoint" for key in own if key not in state]
    problems += [f"{key} is unknown" for key in state if key not in own and not key.startswith(tuple(unused))]
    problems += [
        f"{key} is {tuple(state[key].shape)}, expected {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise ContextError(
            f"{path} does not fit its configuration: {'; '.join(problems[:4])}{more}. Copy weights and configuration "
            "of the same model again."
        )
    module.load_state_dict({key: state[key] for key in own})


def digest_of(path: Path, *settings: object) -> str:
    """16 hex digits over a file's bytes and settings that change what comes out."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(repr(settings).encode())
    return digest.hexdigest()[:16]
