"""The files under ``conf/`` as documentation: groups with their choices, and what stands beside each option."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

_REPOSITORY_CONF = Path(__file__).parent.parent / "conf"
CONF_DIR = _REPOSITORY_CONF if _REPOSITORY_CONF.is_dir() else Path(__file__).parent / "conf"


def choices() -> dict[str, list[str]]:
    """Every group's choices, such as ``{"backbone": ["mini", ...]}``."""
    folders = sorted(folder for folder in CONF_DIR.iterdir() if folder.is_dir())
    found = {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders}
    return {group: names for group, names in found.items() if names}


@cache
def experiment(name: str) -> dict[str, Any]:
    """What the experiment of that name sets; empty where it is none of ours.

    Examples:
        >>> experiment("row05")["pruning"], experiment("mine")
        ({'encoder': 'local', 'context': ['front']}, {})
    """
    file = CONF_DIR / "conf" / f"{name}.yaml"
    content = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return content if isinstance(content, dict) else {}


@cache
def comments(file: str) -> dict[str, str]:
    """Dotted keys of a file, given as ``corpus/mini`` or ``config``, to the comment on their line; empty without one.

    Examples:
        >>> comments("training/paper")["training.grad_clip"], comments("config")["data_dir"]
        ('', 'corpora and their prepared caches')
    """
    text = (CONF_DIR / f"{file}.yaml").read_text(encoding="utf-8")
    lines = text.splitlines()
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    of_root = "/" not in file or "@package _global_" in lines[0]
    prefix = "" if of_root else f"{file.partition('/')[0]}."
    return dict(_comments(root, lines, prefix)) if isinstance(root, yaml.MappingNode) else {}


def _comments(node: yaml.MappingNode, lines: list[str], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        block = isinstance(value, yaml.MappingNode) and not value.flow_style
        # A section's comment stands behind its own colon, a value's behind the value.
        end = key.end_mark if block else value.end_mark
        found = re.search(r"\s#\s?(.*)$", lines[end.line][end.column :]) if end.line < len(lines) else None
        yield name, found[1].strip() if found else ""
        if isinstance(value, yaml.MappingNode):
            yield from _comments(value, lines, f"{name}.")


def comment_of(key: str, chosen: dict[str, str], config_name: str = "config") -> str:
    """What stands beside an option: in its group's chosen file, else in another one of it, else in ``config_name``.

    Args:
        chosen: Group to the choice that is in force.
    """
    group = key.partition(".")[0]
    options = choices().get(group, [])
    ordered = sorted(options, key=lambda name: name != chosen.get(group))
    files = [f"{group}/{name}" for name in ordered]
    for file in [*files, config_name]:
        found = comments(file).get(key)
        if found:
            return found
    return ""


def where(key: str) -> list[str]:
    """The choices whose files have an option, such as ``corpus=manifest``; empty for one that is always there."""
    if key in comments("config"):
        return []
    group = key.partition(".")[0]
    return [f"{group}={name}" for name in choices().get(group, ()) if key in comments(f"{group}/{name}")]
