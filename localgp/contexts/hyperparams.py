"""SpeechBrain's ``hyperparams.yaml`` as data.

HyperPyYAML's own loader instantiates whatever class or function the file names, which for a downloaded file is
running somebody else's program. Here a ``!new:`` becomes a `Call`: a name and its arguments, for the reader to
look at.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from localgp.contexts.source import ContextError


@dataclass(frozen=True)
class Call:
    """What ``!new:name {arguments}`` would have called."""

    name: str
    arguments: Any


@dataclass(frozen=True)
class _Reference:
    text: str


class _Loader(yaml.SafeLoader):
    """Tags that do something are kept as inert values."""


def _call(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Call:
    if isinstance(node, yaml.MappingNode):
        return Call(suffix, loader.construct_mapping(node, deep=True))
    if isinstance(node, yaml.SequenceNode):
        return Call(suffix, loader.construct_sequence(node, deep=True))
    return Call(suffix, {})


def _plain(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_scalar(node) if isinstance(node, yaml.ScalarNode) else None


for _tag in ("!new:", "!name:", "!apply:", "!module:", "!include:", "!applyref:"):
    _Loader.add_multi_constructor(_tag, _call)
_Loader.add_constructor("!ref", lambda loader, node: _Reference(str(node.value)))
_Loader.add_constructor("!copy", lambda loader, node: _Reference(str(node.value)))
_Loader.add_multi_constructor("!", _plain)  # !PLACEHOLDER, !tuple and the like


def read_hyperparams(path: Path) -> dict[str, Any]:
    """Top-level entries, with plain references (``!ref <key>``) resolved.

    Raises:
        ContextError: Not YAML, or not a mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ContextError(f"{path}: not a readable hyperparams.yaml ({error}); copy it again") from error
    if not isinstance(content, dict):
        raise ContextError(f"{path}: not a SpeechBrain hyperparams.yaml (no top-level keys); copy it again")
    return {key: _resolve(value, content, 0) for key, value in content.items()}


def _resolve(value: Any, top: dict[str, Any], depth: int) -> Any:
    if depth > 20:  # a file may refer in circles
        return None
    if isinstance(value, _Reference):
        whole = re.fullmatch(r"<(\w+)>", value.text.strip())
        if whole:
            return _resolve(top.get(whole[1]), top, depth + 1)
        return value.text
    if isinstance(value, Call):
        return Call(value.name, _resolve(value.arguments, top, depth + 1))
    if isinstance(value, dict):
        return {key: _resolve(item, top, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, top, depth + 1) for item in value]
    return value


def arguments_of(path: Path, content: dict[str, Any], key: str, name: str) -> dict[str, Any]:
    """Arguments of the entry ``key``, which has to be a ``!new:`` of the class ``name``.

    Raises:
        ContextError: It is missing or of another class.
    """
    entry = content.get(key)
    if not isinstance(entry, Call) or entry.name != name or not isinstance(entry.arguments, dict):
        found = f"!new:{entry.name}" if isinstance(entry, Call) else repr(entry)
        raise ContextError(
            f"{path}: {key} is {found}, supported: !new:{name}; use an ECAPA-TDNN such as "
            "speechbrain/spkrec-ecapa-voxceleb"
        )
    return entry.arguments
