"""A configuration by what its options make: what is stored with a run, and whether two configurations are one run.

Example:
    >>> row05 = {"name": "row05", "pruning": {"encoder": "local"}, "decode": {"beam": 5}, "device": "cpu"}
    >>> with_parts(row05, Part.MODEL)
    {'name': 'row05', 'pruning': {'encoder': 'local'}}
    >>> list(differences(row05, row05 | {"decode": {"beam": 1}}, Part.MODEL))
    []
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from localgp.settings import SCHEMA, Part
from localgp.window import upgraded

MAKES_WEIGHTS = (Part.MODEL, Part.DATA, Part.TRAINING)
MAKES_SCORES = (Part.MODEL, Part.DATA)  # of weights that are there
STORED = tuple(part for part in Part if part is not Part.COMMAND)  # with a run
PORTABLE = tuple(part for part in STORED if part is not Part.FREE)  # and what of it is another machine's, too
LENGTH = ("training.max_steps", "training.max_epochs", "trainer.max_steps")
_BEFORE = {key: option.before for key, option in SCHEMA.items() if option.before is not None}
_OF_A_SECTION = {key.partition(".")[0]: option.part for key, option in reversed(SCHEMA.items()) if "." in key}
_OF_A_SECTION |= {"debug": Part.COMMAND, "hydra": Part.COMMAND}


def part_of(key: str) -> Part:
    """What a dotted key makes. One that is not known, of another version, makes what its section does first."""
    known = SCHEMA.get(key)
    return known.part if known else _OF_A_SECTION.get(key.partition(".")[0], Part.MODEL)


def stored(cfg: DictConfig) -> dict[str, Any]:
    """What of a configuration is kept with its run, resolved: all but what is of one command only."""
    resolved: Any = OmegaConf.to_container(cfg, resolve=True)
    return with_parts(resolved, *STORED)


def with_parts(config: Mapping[str, Any], *parts: Part, prefix: str = "") -> dict[str, Any]:
    """A plain configuration with the options of some parts alone."""
    kept: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            below = with_parts(value, *parts, prefix=f"{prefix}{key}.")
            kept |= {key: below} if below else {}
        elif part_of(f"{prefix}{key}") in parts:
            kept[key] = value
    return kept


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A stored configuration with what its model is by options that came after it."""
    whole = upgraded(config)
    for key, before in _BEFORE.items():
        section, _, name = key.partition(".")
        if part_of(key) is Part.MODEL and isinstance(whole.get(section), Mapping):
            whole[section] = {name: before, **whole[section]}
    return whole


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], *parts: Part
) -> Iterator[tuple[str, Any, Any]]:
    """Key, old and new value of every option of these parts in which two plain configurations differ."""
    before, after = ({**_BEFORE, **_seen(flat(upgraded(config)))} for config in (old, new))
    for key in sorted({*before, *after}):
        if part_of(key) in parts and before.get(key) != after.get(key):
            yield key, before.get(key), after.get(key)


def _seen(config: dict[str, Any]) -> dict[str, Any]:
    """Without the extractors whose contexts no gates see."""
    seen = [*(config.get("pruning.context") or ()), *(config.get("pruning.decoder_context") or ())]
    return {
        key: value
        for key, value in config.items()
        if not key.startswith("contexts.") or key.split(".")[1] in seen
    }


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys to values; lists are values."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
