"""Paths as users write them, and as a configuration holds them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from localgp.errors import ConfigError


def expanded(path: str) -> Path:
    """A path with ``~`` and ``~user`` replaced.

    Raises:
        ConfigError: There is no such user, or this one has no home directory.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        start = Path(path).parts[0]
        raise ConfigError(
            f"{path}: {start} stands for a user's home directory, and there is none; give the whole path, or ./{path} "
            f"for what is called {start} in the current directory"
        ) from error


def literal(value: Any) -> Any:
    """A value that OmegaConf takes as it stands: ``${`` in a text, at any depth, is no interpolation.

    Examples:
        >>> from omegaconf import OmegaConf
        >>> path = "models/${name}/a"
        >>> OmegaConf.create({"path": literal(path)}).path == path
        True
    """
    if isinstance(value, str):
        # Backslashes before it are doubled, as they escape each other there and nowhere else.
        return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", value)
    if isinstance(value, dict):
        return {key: literal(item) for key, item in value.items()}
    if isinstance(value, list):
        return [literal(item) for item in value]
    return value
