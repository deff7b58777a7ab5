"""A command line before anything is done with it: a run's directory becomes its configuration, and every option that
there is not and every value that cannot be is named, of all jobs of a sweep at once.
"""

from __future__ import annotations

import copy
import shlex
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from localgp.conf_files import CONF_DIR, where
from localgp.errors import ConfigError, refuse
from localgp.option_rules import did_you_mean
from localgp.paths import literal
from localgp.settings import SCHEMAS, Option, is_option, keys_of, problems_of, unknown
from localgp.window import spelt_out


def parsed(argv: Sequence[str]) -> tuple[Namespace, list[str]]:
    """Hydra's arguments with the overrides in ``overrides``, and what else stood on the command line."""
    from hydra._internal.utils import get_args_parser

    arguments = get_args_parser().parse_intermixed_args(list(argv))
    flags = list(argv)
    for override in arguments.overrides:
        flags.remove(override)
    return arguments, flags


@contextmanager
def composing(arguments: Namespace) -> Iterator[Callable[[Sequence[str]], DictConfig]]:
    """A function from overrides to a configuration, as Hydra will compose it for these arguments."""
    place = create_config_search_path(str(CONF_DIR))
    if arguments.config_dir is not None:
        own = f"file://{Path(arguments.config_dir).absolute()}"
        place.prepend("command-line", own, anchor=SearchPathQuery(provider="schema"))

    def composed(overrides: Sequence[str]) -> DictConfig:
        try:
            return compose(arguments.config_name, overrides=list(overrides))
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(in_our_words(error)) from error

    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        GlobalHydra.instance().clear()
        Hydra.create_main_hydra2(task_name="localgp", config_search_path=place)
        yield composed


def check_line(overrides: Sequence[str], arguments: Namespace) -> list[str]:
    """Refuses what cannot be, before anything is done.

    Args:
        overrides: As on the command line.
        arguments: Hydra's own.

    Returns:
        The overrides as Hydra is to be given them: options of a context extractor of one's own need no ``+``.

    Raises:
        ConfigError: With all problems of all jobs of a sweep.
    """
    with composing(arguments) as composed:
        try:
            parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
            items = [
                _own_context(item) for item in parser.parse_overrides([spelt_out(item) for item in overrides])
            ]
            ready = [str(item.input_line) for item in items]
            if any(item.key_or_group == "hydra/sweeper" for item in items):
                return ready  # only that sweeper knows its jobs; each is checked when it begins
            schema = SCHEMAS.get(arguments.config_name)
            if (
                schema is None
            ):  # a configuration of the user's own: what is in it is checked when the job begins
                return ready
            jobs = _jobs(items) if arguments.multirun else [ready]
            bases: dict[tuple[str, ...], DictConfig] = {}
            problems = [
                problem
                for job in jobs  # `--cfg` shows what cannot be, too
                for problem in _problems(
                    parser.parse_overrides(job), composed, bases, schema, not arguments.cfg
                )
            ]
        except HydraException as error:
            raise ConfigError(in_our_words(error)) from error
    refuse(dict.fromkeys(problems))
    return ready


def _jobs(items: list[Override]) -> list[list[str]]:
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    return [job for batch in BasicSweeper.split_arguments(items, None) for job in batch]


def _problems(
    items: Sequence[Override],
    composed: Callable[[Sequence[str]], DictConfig],
    bases: dict[tuple[str, ...], DictConfig],
    schema: Mapping[str, Option],
    whole: bool,
) -> list[str]:
    """Of one job.

    Args:
        bases: Configurations by the groups that were chosen for them; grows.
        whole: Its values too, and not the names alone.
    """
    structure, values, problems = [], [], []
    for item in items:
        options = GlobalHydra.instance().config_loader().get_group_options(item.key_or_group)
        choice = item.value() if options else None
        if isinstance(choice, str) and choice not in options and not item.key_or_group.startswith("hydra"):
            near = did_you_mean(choice, options)
            problems.append(
                f"{item.input_line}: there is no such {item.key_or_group}{near}; valid: {', '.join(options)}"
            )
        elif options or item.key_or_group.startswith("hydra"):
            structure.append(str(item.input_line))
        else:
            values.append(item)
    chosen, misread = tuple(structure), bool(problems)
    if chosen not in bases:
        bases[chosen] = composed(structure)
    cfg = copy.deepcopy(bases[chosen])
    there = set(keys_of(cfg))
    for item in values:
        wrong = [key for key in _keys(item) if not _may_be(key, there, schema)]
        if item.is_delete():
            problems.append(f"{item.input_line}: an option cannot be taken away; give it another value")
        elif wrong:
            # With another choice it may be there.
            problems += [_not_there(key, schema) for key in wrong if not (misread and key in schema)]
        else:
            OmegaConf.update(cfg, item.key_or_group, item.value(), merge=True, force_add=True)
    return problems if misread or not whole else problems + problems_of(cfg, schema)


def _may_be(key: str, there: set[str], schema: Mapping[str, Option]) -> bool:
    """Whether it is an option that there is, a whole section, or one of an extractor of the user's own."""
    section = any(other.startswith(f"{key}.") for other in there)
    return key in there or section or (key not in schema and is_option(key, schema))


def _not_there(key: str, schema: Mapping[str, Option]) -> str:
    if key in schema and (places := where(key)):
        return f"there is no option {key} here; it belongs to {' or '.join(places)}"
    loader = GlobalHydra.instance().config_loader()
    return unknown(key, schema, tuple(loader.list_groups("")))


def _keys(item: Override) -> list[str]:
    """The dotted keys that an override sets."""

    def below(key: str, value: Any) -> Iterator[str]:
        if isinstance(value, dict) and value:
            for name, one in value.items():
                yield from below(f"{key}.{name}", one)
        else:
            yield key

    return [item.key_or_group] if item.is_sweep_override() else list(below(item.key_or_group, item.value()))


def _own_context(item: Override) -> Override:
    """The same; with ``++`` where it is an option of a context extractor that only the user knows."""
    key = item.key_or_group
    if key.startswith("contexts.") and is_option(key) and key not in SCHEMAS["config"]:
        bare = str(item.input_line).lstrip("+")
        return OverridesParser.create().parse_override(f"++{bare}")
    return item


def as_override(value: Any) -> str:
    r"""A value as Hydra's command line has it.

    Examples:
        >>> print(as_override(["it's", None, 1e-05, True]))
        ['it\'s',null,1e-05,true]
    """
    if isinstance(value, list | tuple):
        return f"[{','.join(map(as_override, value))}]"
    if isinstance(value, str):
        return QuotedString(text=literal(value), quote=Quote.single).with_quotes()
    words = {"None": "null", "True": "true", "False": "false"}
    return words.get(repr(value), repr(value))


def in_our_words(error: Exception) -> str:
    """Hydra's message without its links and its search path; how to quote a value that it cannot read."""
    lines = [line.strip() for line in str(error).splitlines()]
    ends = [
        i for i, line in enumerate(lines) if line.startswith(("See https", "Config search path", "To append"))
    ]
    message = " ".join(line for line in lines[: ends[0] if ends else None] if line)
    override = error.override if isinstance(error, OverrideParseException) else ""
    quoted = _quoted(override)
    if quoted is None:
        return message
    return f"{override}: letters outside ASCII and most signs need quotes, the shell's and Hydra's: {quoted}"


def _quoted(override: str) -> str | None:
    """An override with its value in quotes, as a shell is to be given it; None where that does not help."""
    key, _, value = override.partition("=")
    if not value or value[0] in "'\"[{":  # none, or a list or quotes that went wrong
        return None
    line = f"{key}={as_override(value)}"
    try:
        OverridesParser.create().parse_override(line)
    except HydraException:
        return None
    return shlex.quote(line) if set(line) & set('"$`\\!') else f'"{line}"'
