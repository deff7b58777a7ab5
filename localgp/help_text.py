"""What ``--help`` of a command prints: what it does, its own options as they stand, and where the others are."""

from __future__ import annotations

import re
import textwrap
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from localgp.command_line import composing
from localgp.conf_files import choices, comment_of
from localgp.config_parts import flat
from localgp.run_argument import as_override
from localgp.settings import SCHEMAS

_WIDTH = 110


def help_text(
    command: str, about: str, own: Sequence[str], overrides: Sequence[str], arguments: Namespace
) -> str:
    """The text.

    Args:
        about: The docstring of the command's module: what it does, and examples.
        own: Sections and options of the command.
        overrides: As on the command line: ``conf=row05 --help`` shows row05's values.
    """
    with composing(arguments) as composed:
        cfg = composed(overrides)
        values = flat(OmegaConf.to_container(cfg, resolve=False))  # type: ignore[arg-type]
        asked = [key for key, value in values.items() if str(value).startswith(("${parts:", "${ranking:"))]
        found = {key: OmegaConf.select(cfg, key) for key in asked}  # of this backbone
        values |= {key: value if isinstance(value, str) else list(value) for key, value in found.items()}
    chosen = {group: str(OmegaConf.select(cfg, f"{group}.name")) for group in choices()}
    examples = re.sub(r"(?m)^(?=python -m)", "    ", about.strip())
    parts = [examples.replace("``", "").replace("`", ""), "Options (key=value), with their values now"]
    schema = SCHEMAS.get(arguments.config_name, {})
    sections = [[name] for name in own if name not in values]
    for section in [
        *sections,
        [name for name in own if name in values],
    ]:  # those without a section side by side
        mine = [key for name in section for key in values if key == name or key.startswith(f"{name}.")]
        about_them = {key: comment_of(key, chosen, arguments.config_name) for key in mine}
        lines = [
            _option(key, values[key], about_them[key] or (schema[key].rule.valid if key in schema else ""))
            for key in mine
        ]
        parts.append("\n".join(lines))
    if arguments.config_name == "config":
        groups = "\n".join(_wrapped(f"  {group}=", " | ".join(names)) for group, names in choices().items())
        parts.append(f"Groups (each a choice of files under conf/)\n{groups}")
        other = sorted({key.partition(".")[0] for key in values} - {key.partition(".")[0] for key in own})
        parts.append(_wrapped("Other sections: ", ", ".join(other)))
        parts.append(
            f"A run's directory stands for the options that made it: python -m localgp.{command} "
            "exp/<corpus>/<backbone>/<conf>/seed<k>"
        )
    parts.append(
        "Lists are [a,b]; -m runs every combination of key=a,b. --cfg job prints everything as it would be used, and\n"
        "--cfg job --package SECTION a part of it; --debug shows where an error came from; --hydra-help: the rest."
    )
    return "\n\n".join(part for part in parts if part)


def _option(key: str, value: Any, comment: str) -> str:
    shown = value if isinstance(value, str) else as_override(value).replace("'", "")
    head = f"  {key}={shown}"
    if not comment:
        return head
    return _wrapped(f"{head:<38}  ", comment, indent=40)


def _wrapped(head: str, text: str, indent: int | None = None) -> str:
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=head,
        subsequent_indent=" " * (len(head) if indent is None else indent),
        break_long_words=False,
        break_on_hyphens=False,
    )
