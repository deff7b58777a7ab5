"""Gate policies and context extractors of the user's own, named by dotted path: ``my_module.MyGates``.

They are looked for on Python's path, and are trusted as anything there is. A model that comes from elsewhere is not:
what it names is imported only where the caller has allowed it by name.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from localgp.errors import CheckpointError, ConfigError

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
KNOWN_CONTEXTS = ("spk", "event", "lang2vec")  # sections of ``contexts`` that are ours


def is_dotted(value: Any) -> bool:
    """Whether it can be the path of a class."""
    return isinstance(value, str) and _DOTTED.fullmatch(value) is not None


def own_contexts(contexts: Mapping[str, Any] | None) -> list[str]:
    """The names in a ``contexts`` section that are of the user's own."""
    return [str(name) for name in contexts or () if name not in KNOWN_CONTEXTS]


def named_in(cfg: Mapping[str, Any]) -> dict[str, str]:
    """Option to the class that a configuration names there, of gates and of the contexts that they see."""
    pruning, contexts = cfg.get("pruning") or {}, cfg.get("contexts") or {}
    found = {}
    if is_dotted(pruning.get("encoder")):
        found["pruning.encoder"] = str(pruning["encoder"])
    if pruning.get("encoder"):
        for name in own_contexts(contexts):
            if name in (pruning.get("context") or ()):
                found[f"contexts.{name}.source"] = str((contexts[name] or {}).get("source"))
    return found


def import_class(path: str, key: str) -> Any:
    """A user's own class by its dotted path.

    Args:
        path: ``module.Class``.
        key: The option that names it, for messages.

    Raises:
        ConfigError: There is none.
    """
    if not is_dotted(path):
        raise ConfigError(
            f"{key} is {path!r}; valid: a class on Python's path as module.Class, such as my_module.MyClass"
        )
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise ConfigError(f"{key}={path}: {module} imports {error.name}, which is not there") from error
        raise ConfigError(
            f"{key}={path}: there is no module {error.name}; start from the folder that holds it, or put that "
            "folder on PYTHONPATH"
        ) from error
    except Exception as error:  # the user's own code
        raise ConfigError(
            f"{key}={path}: importing {module} ends in {type(error).__name__}: {error}"
        ) from error
    if not isinstance(found, type):
        there = sorted(n for n, value in vars(sys.modules[module]).items() if isinstance(value, type))
        raise ConfigError(f"{key}={path}: {module} has no class {name}; it has {', '.join(there) or 'none'}")
    return found


def make(path: str, key: str, offered: Mapping[str, Any], options: Mapping[str, Any] | None = None) -> Any:
    """An instance of a class.

    Args:
        offered: Keyword arguments, of which it gets those that it takes.
        options: Keyword arguments that the user gave, and which it has to take.

    Raises:
        ConfigError: No such class, or it cannot be made with these.
    """
    kind = import_class(path, key)
    try:
        parameters = inspect.signature(kind).parameters
        everything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        taken = {name: value for name, value in offered.items() if everything or name in parameters}
        return kind(**{**taken, **(options or {})})
    except Exception as error:  # the user's own code
        raise ConfigError(
            f"{key}={path} cannot be made ({type(error).__name__}: {error}); what it is given: "
            f"{', '.join([*offered, *(options or {})])}"
        ) from error


def permit(
    cfg: Mapping[str, Any], path: Path | str, allowed: Collection[type | str], *, own: bool = False
) -> None:
    """Refuses to import what a model from elsewhere names.

    Args:
        path: Where the model lies.
        allowed: Classes, or their dotted paths, that the caller trusts.
        own: It is a run, whose configuration the user wrote: what it names is allowed, unless it would be found
            inside of the run's own directory.

    Raises:
        CheckpointError: It names a class that is not allowed.
    """
    trusted = {a if isinstance(a, str) else f"{a.__module__}.{a.__qualname__}" for a in allowed}
    for key, name in named_in(cfg).items():
        if name in trusted or (own and not _found_inside(name, path)):
            continue
        raise CheckpointError(
            f"{path}: refused, {key}={name} would import code that this model names. If you have that class and trust "
            f"it, allow it: localgp.load(..., extensions=[{name!r}]), or --extension {name}. gates='open' (--gates "
            "open) runs the model without its gates"
        )


def _found_inside(name: str, folder: Path | str) -> bool:
    """Whether a part of a dotted path may be a file in the folder, as from a folder above a copied run."""
    parts, inside = name.split(".")[:-1], Path(folder).resolve()
    for entry in sys.path:
        for count in range(1, len(parts) + 1):
            place = Path(entry or ".", *parts[:count])
            for found in (place, place.with_name(f"{place.name}.py")):
                if found.exists() and found.resolve().is_relative_to(inside):
                    return True
    return False
